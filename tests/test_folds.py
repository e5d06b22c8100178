"""Cross-validation: every sample is scored once, by a model that has not seen it."""

from __future__ import annotations

import json
import statistics

import pytest

from segkit import folds as folds_module
from segkit.config import read_config
from segkit.data import datasets
from segkit.inference.evaluate import evaluate_predictions_of
from segkit.parts import open_masks, open_part, open_parts
from tests.test_cli import segkit, write_config


def train_stems(path, *overrides):
    config = read_config(path, overrides)
    return {name: data.stems for name, data in open_parts(config, open_masks(config)).named().items()}


@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
def test_out_of_fold_scores_are_those_of_the_masks_of_all_folds(tmp_path, kind):
    path, run = write_config(tmp_path, kind), tmp_path / "run"
    test = f"data.test={{images: {tmp_path}/val/images, masks: {tmp_path}/val/masks}}"
    given = ("data.val=null", test, "--folds", 2, "--out", run, "--predictions", "--json", tmp_path / "out.json")
    assert segkit("crossvalidate", path, *given) == 0
    scores = json.loads((run / "scores.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text()) == scores
    assert (scores["split"], scores["images"]) == ("out-of-fold", 5)
    config = read_config(path)
    truth = open_part(config, "train", open_masks(config))
    of_masks = evaluate_predictions_of(run / "predictions", truth).to_dict()
    assert {key: scores[key] for key in of_masks if key != "per_image"} == {
        key: value for key, value in of_masks.items() if key != "per_image"
    }
    assert [fold["held_out"]["images"] for fold in scores["folds"]] == [3, 2]
    assert [fold["test"]["images"] for fold in scores["folds"]] == [2, 2]
    for number, fold in enumerate(scores["folds"], start=1):
        own = json.loads((run / f"fold_{number}" / "scores.json").read_text())
        assert own == {**fold["held_out"], "split": "held_out"}
    for part in ("held_out", "test"):
        means = [fold[part]["pooled"]["dice"]["mean"] for fold in scores["folds"]]
        spread = scores["spread"][part]["pooled_dice"]
        assert spread["mean"] == pytest.approx(statistics.mean(means))
        assert spread["deviation"] == pytest.approx(statistics.stdev(means))


def test_an_interrupted_cross_validation_goes_on_and_ends_alike(tmp_path, monkeypatch):
    path = write_config(tmp_path, "binary")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert segkit("crossvalidate", path, "--folds", 3, "--out", whole) == 0
    train = folds_module.train_experiment

    def stop_in_the_second(config, run, **options):
        if run.name == "fold_2":
            raise KeyboardInterrupt
        return train(config, run, **options)

    with monkeypatch.context() as patch:
        patch.setattr(folds_module, "train_experiment", stop_in_the_second)
        assert segkit("crossvalidate", path, "--folds", 3, "--out", cut) == 130
    assert not (cut / "scores.json").exists()
    before = (cut / "fold_1" / "metrics.csv").stat().st_mtime_ns
    assert segkit("crossvalidate", "--resume", cut) == 0
    assert (cut / "fold_1" / "metrics.csv").stat().st_mtime_ns == before
    assert (cut / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


def test_a_fold_says_in_its_own_config_what_it_leaves_out(tmp_path, capsys):
    path, run = write_config(tmp_path, "exclusive"), tmp_path / "run"
    assert segkit("crossvalidate", path, "--folds", 2, "--out", run) == 0
    scores = tmp_path / "scores.json"
    assert segkit("evaluate", run / "fold_2", "--device", "cpu", "--json", scores) == 0
    assert json.loads(scores.read_text()) == json.loads((run / "fold_2" / "scores.json").read_text())
    assert segkit("train", "--resume", run / "fold_2") == 0
    capsys.readouterr()
    assert segkit("evaluate", run / "fold_2", "--split", "heldout") == 2
    assert "expected train, val, test or held_out." in capsys.readouterr().err


def test_what_a_fold_holds_out_is_neither_trained_on_nor_used_to_choose(tmp_path):
    path = write_config(tmp_path, "exclusive")
    shares = ("data.val={from: train, fraction: 0.3}", "data.test={from: train, fraction: 0.2, seed: 3}")
    plain = train_stems(path, *shares)
    pool = {*plain["train"], *plain["val"]}
    seen = []
    for number in (1, 2):
        parts = train_stems(path, *shares, f"data.fold={{number: {number}, of: 2}}")
        assert parts["test"] == plain["test"]
        assert sorted(parts["train"] + parts["val"] + parts["held_out"]) == sorted(pool)
        seen += parts["held_out"]
    assert sorted(seen) == sorted(pool)
    # Folders of their own are no part of the pool, and choose the best epoch of every fold.
    parts = train_stems(path, "data.fold={number: 1, of: 2}")
    assert len(parts["val"]) == 2
    assert len(parts["train"]) + len(parts["held_out"]) == 5


def test_the_first_fold_finds_the_batch_size_for_all(tmp_path, monkeypatch):
    path, run = write_config(tmp_path, "binary"), tmp_path / "run"
    found = iter([3, 1])  # in the same process the peak of memory hides what the second fold takes
    monkeypatch.setattr("segkit.training.batch_size.largest_by_slope", lambda *_: next(found))
    assert segkit("crossvalidate", path, "train.batch_size=auto", "--folds", 2, "--out", run) == 0
    assert [read_config(run / f"fold_{n}" / "config.yaml").train.batch_size for n in (1, 2)] == [3, 3]


def test_folds_are_dealt_with_one_look_at_the_folders(tmp_path, monkeypatch):
    path, opened = write_config(tmp_path, "binary"), []
    find_pairs = datasets.find_pairs
    monkeypatch.setattr(datasets, "find_pairs", lambda *given, **named: opened.append(1) or find_pairs(*given, **named))
    begun = folds_module.begin_folds(read_config(path), tmp_path / "run", folds=4)
    assert len(opened) == 1
    for number, stems in enumerate(begun.stems, start=1):
        assert stems == train_stems(path, f"data.fold={{number: {number}, of: 4}}")["held_out"]


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ('{"stems": [["a"]', "no readable JSON"), ("{}", "keys group, seed, stems")]
)
def test_a_damaged_list_of_folds_is_named(tmp_path, capsys, text, message):
    folds_module.begin_folds(read_config(write_config(tmp_path, "binary")), tmp_path / "run", folds=2)
    (tmp_path / "run" / "folds.json").write_text(text)
    assert segkit("crossvalidate", "--resume", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert message in said
    assert "folds.json" in said


def test_folds_keep_the_groups_of_the_validation_part_together(tmp_path):
    path = write_config(tmp_path, "binary")
    config = read_config(path, ["data.val={from: train, group: '^s([0-3]|4)', fraction: 0.3}"])
    pairs = read_config(path, ["data.val={from: train, group: '^(s)', fraction: 0.3}"])
    assert folds_module.begin_folds(config, tmp_path / "run", folds=2).group == "^s([0-3]|4)"
    with pytest.raises(ValueError, match="at least two groups"):
        folds_module.begin_folds(pairs, tmp_path / "other", folds=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--folds", 6), "6 folds need as many groups, and there are 5"),
        (("--folds", 1), "folds is 1: expected 2 or more"),
        (("data.fold={number: 1, of: 2}",), "it is one fold already"),
        (("data.fold={number: 3, of: 2}",), "a `number` from 1 to 2, not 3"),
        (("--group", "^(t)"), "does not match the stem 's0'"),
        (("--seed", -1), "seed is -1: expected 0 or more"),
        (("data.train=null",), "the config has no `data.train`. Add it"),
    ],
)
def test_folds_that_cannot_work_are_refused_before_anything_is_written(tmp_path, capsys, arguments, message):
    path = write_config(tmp_path, "binary")
    assert segkit("crossvalidate", path, *arguments, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_used_folder_and_one_that_is_none_are_refused(tmp_path, capsys):
    path = write_config(tmp_path, "binary")
    assert segkit("crossvalidate", path, "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
    assert segkit("crossvalidate", "--resume", tmp_path) == 2
    assert "no folds.json here" in capsys.readouterr().err
    assert segkit("crossvalidate", path, "--resume", tmp_path) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--folds", 3), ("--group", "^(s)"), ("--seed", 0)])
def test_a_resumed_cross_validation_has_the_folds_that_it_began_with(tmp_path, capsys, option):
    folds_module.begin_folds(read_config(write_config(tmp_path, "binary")), tmp_path / "run", folds=2)
    assert segkit("crossvalidate", "--resume", tmp_path / "run", *option) == 2
    assert "are those that RUN began with" in capsys.readouterr().err


def test_data_that_changed_since_is_refused(tmp_path, capsys):
    path, run = write_config(tmp_path, "binary"), tmp_path / "run"
    folds_module.begin_folds(read_config(path), run, folds=2)
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind / "s4.png").unlink()
    assert segkit("crossvalidate", "--resume", run) == 2
    assert "are others now" in capsys.readouterr().err
