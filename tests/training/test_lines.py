from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from segkit.training import run_callbacks
from segkit.training.fit import fit
from segkit.training.lines import duration_text
from tests.scenes import FORMATS
from tests.training.test_fit import run, small_model, write_set


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.94, "59.9 s"), (187, "3:07"), (3765, "1:02:45"), (273600, "3 d 4 h")]
)
def test_durations_are_short(seconds, text):
    assert duration_text(seconds) == text


def test_lines_say_what_is_best_and_how_long_it_takes(tmp_path):
    *_, lines = run(tmp_path, FORMATS["binary"], epochs=2)
    assert "val_loss" in lines[0]
    assert "best" in lines[0]
    assert lines[0].endswith(" left")
    assert lines[1].endswith(" s")


def table(tmp_path, monkeypatch, width, kind="exclusive", **options):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(run_callbacks, "_terminal", lambda: console)
    format = FORMATS[kind]
    train, val = write_set(tmp_path / "t", format, 4), write_set(tmp_path / "v", format, 2)
    fit(
        small_model(format),
        train,
        val,
        out=tmp_path / "run",
        batch_size=2,
        workers=0,
        device="cpu",
        progress=True,
        **options,
    )
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_terminal_gets_a_table_with_a_row_per_epoch(tmp_path, monkeypatch):
    head, rule, *rows = table(tmp_path, monkeypatch, 140, epochs=3, validate_every=2)
    titles = ["epoch", "train loss", "val loss", "pooled_iou", "sky", "ground", "disc", "lr", "time", "left"]
    assert head.split() == [word for title in titles for word in title.split()]
    assert set(rule) == {"─", " "}
    assert [row.split()[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert "★" not in rows[0]  # not validated
    assert "★" in rows[1]
    assert len(rows[1].split()) > len(rows[0].split()) + 3
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert f"{float(list(csv.DictReader(file))[1]['pooled_iou']):.4f}" in rows[1]


def test_a_narrow_terminal_gets_no_columns_of_classes(tmp_path, monkeypatch):
    head, *_ = table(tmp_path, monkeypatch, 80, epochs=1)
    assert "disc" not in head
    assert len(head) <= 80
