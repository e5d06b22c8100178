"""What stands on the terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from segkit.inspection.terminal import _bar, show_report
from tests.inspection.sets import blocks, look, write_class_files, write_masks


def shown(report) -> str:
    console = Console(file=io.StringIO(), width=100, no_color=True)
    show_report(report, console)
    return console.file.getvalue()


def test_the_verdict_comes_first_and_stands_on_numbers(tmp_path):
    text = shown(look(write_masks(tmp_path, {"a": blocks([0, 0, 7]), "b": blocks([0, 7, 7])}), {7: "[road]"}).report)
    assert text.index("binary · sigmoid · index_png") < text.index("images") < text.index("no faults found")
    assert "[road]" in text  # no markup
    assert "on 50.0 % of all pixels" in text
    assert "40x60 (2)" in text


def test_overlap_is_told_where_there_is_some(tmp_path):
    left, right = blocks([1, 1, 0, 0]) == 1, blocks([0, 1, 1, 0]) == 1
    text = shown(look(write_class_files(tmp_path, {"l": {"a": left}, "r": {"a": right}})).report)
    assert "25.0 % of pixels have no label, 50.0 % one, 25.0 % two or more" in text
    assert "l and r: IoU 33.3 %, 50.0 % of l, 50.0 % of r" in text
    inner = blocks([0, 1, 0, 0]) == 1
    nested = shown(look(write_class_files(tmp_path / "n", {"i": {"a": inner}, "l": {"a": left}})).report)
    assert "i inside l: 100 % of its pixels" in nested


def test_twenty_faults_and_how_many_more(tmp_path):
    root = write_masks(tmp_path, {f"s{n:02d}": blocks([0, 1]) for n in range(30)})
    for number in range(25):
        (root / "masks" / f"s{number:02d}.png").unlink()
    text = shown(look(root).report)
    assert "25 faults" in text
    assert "s19.jpg" in text
    assert "s20.jpg" not in text
    assert "... 5 more" in text


def test_no_line_breaks_a_path(tmp_path):
    name = "a rather long name of a picture with blanks in it and more than the terminal is wide " * 2
    root = write_masks(tmp_path, {f"s{n}": blocks([0, 1]) for n in range(3)} | {name: blocks([0, 1])})
    (root / "masks" / f"{name}.png").unlink()
    assert f"  {root / 'images' / name}.jpg: an image without a mask in {root / 'masks'}.\n" in shown(look(root).report)


def test_nothing_known_is_shown_without_a_number(tmp_path):
    root = write_masks(tmp_path, {"a": blocks([0, 1])})
    (root / "images" / "a.jpg").write_bytes(b"broken")
    text = shown(look(root).report)
    assert "None" not in text
    assert "a.jpg" in text


def test_bars_are_as_long_as_shares():
    lengths = [len(_bar(share)) for share in np.linspace(0, 1, 9)]
    assert lengths == sorted(lengths)
    assert (_bar(0), _bar(1), _bar(0.5), _bar(1e-9)) == ("", "█" * 24, "█" * 12, "▏")
