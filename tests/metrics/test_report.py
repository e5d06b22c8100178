from __future__ import annotations

import subprocess
import sys

import torch
from rich.console import Console

from segkit.formats.mask_format import MaskFormat
from segkit.metrics.counts import Counts
from segkit.metrics.report import score_table, summary_line
from segkit.metrics.scores import Scores


def _scores(rows, names) -> Scores:
    rows = torch.tensor(rows, dtype=torch.int64).view(-1, len(names), 4)
    return Scores(Counts(MaskFormat.multiclass(names), rows, torch.arange(len(rows))))


def _print(table) -> list[str]:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text().splitlines()


def _cells(lines: list[str], name: str) -> list[str]:
    (line,) = [line for line in lines if line.strip("│ ").startswith(name)]
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_table_shows_percent_by_class_and_average():
    rows = [[[90, 5, 5, 0], [0, 0, 0, 100]], [[1, 3, 0, 6], [0, 0, 0, 10]]]
    lines = _print(score_table(_scores(rows, ["sky", "[red]road"])))
    assert "2 images" in lines[0]
    # pooled IoU 91/104, Dice 182/195, precision 91/99, recall 91/96; per image (9/10 + 1/4)/2, (18/19 + 2/5)/2
    expected = ["87.50", "93.33", "91.92", "94.79", "57.50", "67.37"]
    assert _cells(lines, "sky")[1:] == expected
    assert _cells(lines, "mean")[1:] == expected
    assert _cells(lines, "[red]road") == ["[red]road"] + 6 * ["-"]
    assert "left out of means: [red]road" in " ".join(lines)


def test_no_note_without_absent_classes():
    assert score_table(_scores([[[1, 0, 0, 1], [1, 0, 0, 1]]], ["a", "b"])).caption is None


def test_summary_names_both_averages_and_what_is_absent():
    rows = [[[90, 5, 5, 0], [0, 0, 0, 100]], [[1, 3, 0, 6], [0, 0, 0, 10]]]
    assert summary_line(_scores(rows, ["sky", "road"])) == (
        "pooled IoU 87.50 %, pooled Dice 93.33 %, per image IoU 57.50 %, per image Dice 67.37 %; "
        "2 images, 1 of 2 classes (absent: road)"
    )
    assert summary_line(_scores([[[1, 0, 0, 1]]], ["cell"])).endswith("; 1 image, 1 class")


def test_rich_is_imported_when_a_table_is_made():
    code = "import sys, segkit.metrics.report; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
