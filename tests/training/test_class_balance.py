from __future__ import annotations

import json
import math

import pytest
import yaml

from segkit.data.datasets import MaskDataset
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.losses.build import build_loss
from segkit.training.class_balance import class_pixels, count_class_weights, losses_to_balance, without_balance
from tests.inspection.sets import blocks, look, write_class_files, write_masks
from tests.test_cli import segkit, write_config

BALANCED = {"cross_entropy": {"weight": 2, "class_weights": "balanced"}, "dice": 1}


def stripes(root, masks, classes=("sky", "road", "car"), activation="softmax", **options):
    write_masks(root, masks)
    codec = open_codec({"name": "index_png", **options}, MaskFormat.multiclass(classes, activation))
    return MaskDataset(root / "images", root / "masks", codec)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_weights_by_hand(tmp_path, activation):
    # sky: all of a and half of b, 3/4 of the pixels around it; road: half of b, 1/2; car: nowhere
    data = stripes(tmp_path, {"a": blocks([0]), "b": blocks([0, 1])}, activation=activation)
    assert class_pixels(data, 500) == ([3600, 1200, 0], [4800, 2400, 0])
    weights = {"sky": round(math.sqrt(0.625 / 0.75), 2), "road": round(math.sqrt(0.625 / 0.5), 2), "car": 1.0}
    spec = count_class_weights(BALANCED, data)
    assert spec == {"cross_entropy": {"weight": 2, "class_weights": weights}, "dice": 1}
    assert build_loss(spec, data.format).losses["cross_entropy"].class_weights.tolist() == pytest.approx(
        list(weights.values())
    )
    assert BALANCED["cross_entropy"]["class_weights"] == "balanced"  # left as it was


def test_the_same_numbers_as_inspection_advises(tmp_path):
    masks = {"a": blocks([0, 0, 0, 1]), "b": blocks([0, 2, 2, 2, 2]), "c": blocks([0, 0, 0, 0, 0, 2])}
    data = stripes(tmp_path, masks)
    advice = look(tmp_path, {0: "sky", 1: "road", 2: "car"}).report["advice"]
    spec = count_class_weights(BALANCED, data)
    assert list(spec["cross_entropy"]["class_weights"].values()) == advice["class_weights"]
    assert len(set(advice["class_weights"])) == 3


def test_ignored_pixels_are_of_no_class(tmp_path):
    data = stripes(tmp_path, {"a": blocks([0, 1, 9])}, ignored_values=[9])
    assert class_pixels(data, 500) == ([800, 800, 0], [2400, 2400, 0])


def test_at_most_so_many_masks_evenly_spread(tmp_path):
    data = stripes(tmp_path, {str(n): blocks([n % 3], (32, 10)) for n in range(9)})
    seen = []
    pixels, _ = class_pixels(data, 3, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert pixels == [320, 320, 320]  # of masks 0, 4 and 8


def test_counted_from_the_decoded_copy(tmp_path, monkeypatch):
    data = stripes(tmp_path / "data", {"a": blocks([0]), "b": blocks([0, 1])})
    expected = class_pixels(data, 500)
    copied = data.cached("disk", folder=tmp_path / "cache")
    monkeypatch.setattr(type(data.codec), "read", lambda *_: pytest.fail("decoded a mask again"))
    assert class_pixels(copied, 500) == expected


def test_overlapping_planes_are_counted_class_by_class(tmp_path):
    left, right = blocks([1, 1, 0]) == 1, blocks([0, 1, 0]) == 1
    write_class_files(tmp_path, {"l": {"a": left, "b": left}, "r": {"a": right, "b": right & False}})
    codec = open_codec("file_per_class", MaskFormat.multilabel(["l", "r"]))
    data = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    assert class_pixels(data, 500) == ([3200, 800], [4800, 2400])
    with pytest.raises(ValueError, match=r"class_weights: balanced, but classes .* sigmoid of their own.* add `dice`"):
        count_class_weights(BALANCED, data)


@pytest.mark.parametrize("spec", ["cross_entropy", {"dice": 1}, {"cross_entropy": {"class_weights": [1, 2, 3]}}, None])
def test_a_loss_with_nothing_to_count_reads_nothing(tmp_path, spec, monkeypatch):
    data = stripes(tmp_path, {"a": blocks([0, 1])})
    monkeypatch.setattr(MaskDataset, "read_planes", lambda *_: pytest.fail("read a mask"))
    assert count_class_weights(spec, data) == spec
    assert losses_to_balance(spec, data.format) == []


def test_other_mistakes_are_told_before_anything_is_counted():
    format = MaskFormat.multiclass(["sky", "road"])
    build_loss(without_balance(BALANCED, format), format)
    with pytest.raises(ValueError, match="Did you mean `gamma`"):
        build_loss(without_balance({"focal": {"class_weights": "balanced", "gama": 1}}, format), format)


def test_a_run_keeps_the_numbers(tmp_path, capsys):
    path = write_config(tmp_path / "data", "exclusive")
    loss = "loss={cross_entropy: {class_weights: balanced, top_k: 0.5}, cl_dice: 0.5, boundary: 1}"
    assert segkit("train", path, loss, "--out", tmp_path / "run") == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loss"]
    weights = kept["cross_entropy"]["class_weights"]
    assert all(isinstance(weight, float) and 0.1 <= weight <= 10 for weight in weights.values())
    assert len(set(weights.values())) > 1
    assert kept["cl_dice"] == 0.5
    assert "class weights: " in capsys.readouterr().out
    scores = (tmp_path / "run" / "scores.json").read_bytes()
    assert json.loads(scores)["images"] > 0
    # What it wrote trains the same again, without counting.
    assert segkit("train", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "scores.json").read_bytes() == scores
    assert "class weights: " not in capsys.readouterr().out


def test_a_run_refuses_to_weigh_classes_that_overlap(tmp_path, capsys):
    path = write_config(tmp_path / "data", "overlapping")
    loss = "loss={cross_entropy: {class_weights: balanced}}"
    assert segkit("train", path, loss, "--out", tmp_path / "run") == 2
    assert "each have a sigmoid of their own" in capsys.readouterr().err
