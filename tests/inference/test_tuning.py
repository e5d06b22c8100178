from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.data.datasets import MaskDataset
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import slice_stem
from segkit.inference.evaluate import evaluate
from segkit.inference.postprocess import find_wholes, postprocess
from segkit.inference.predictor import Predictor
from segkit.inference.tuning import _untunable, tune
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics
from segkit.models.steps import FillHoles, LargestComponent, MinimumSize, Within
from tests.scenes import FORMATS, default_codec, write_set
from tests.test_cli import segkit, write_config

CPU = {"device": "cpu", "workers": 0}


class Bands(nn.Module):
    """Logit of each class: what a band of the image says, from 0 to 255, around 128."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[..., None, None])
            self.conv.bias.zero_()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, : self.classes]


def banded(format: MaskFormat) -> Segmenter:
    """Probability above 0.5 where the band of a class is above 128."""
    statistics = PixelStatistics((128.0,) * 3, (25.0,) * 3)
    return Segmenter(Bands(format.num_classes), format, statistics, Recipe("b", "none"), stride=1).eval()


def write_bands(root, format: MaskFormat, images: list[tuple[np.ndarray, np.ndarray]]) -> MaskDataset:
    """`images`: (H, W, 3) uint8 and (H, W, P) planes each."""
    import cv2

    codec = default_codec(format)
    (root / "images").mkdir(parents=True)
    for number, (image, planes) in enumerate(images):
        cv2.imwrite(str(root / "images" / f"s{number}.png"), image[..., ::-1])
        codec.write(root / "masks", f"s{number}", planes)
    return MaskDataset(root / "images", root / "masks", codec)


def specked(seed: int, specks: int = 12, size_hw: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """(image, truth) of a block with a hole that the model misses, and specks where it is wrong."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(size_hw, np.uint8)
    top, left = rng.integers(4, 12, 2)
    truth[top : top + 18, left : left + 24] = 1
    bright = truth.copy()
    bright[top + 6 : top + 9, left + 8 : left + 11] = 0
    for y, x in zip(rng.integers(32, 40, specks), rng.integers(0, 56, specks), strict=True):
        bright[y, x] = 1
    image = np.where(bright, 200, 40).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2), truth[..., None]


def test_steps_that_help_are_found_and_the_model_scores_as_told(tmp_path):
    format = MaskFormat.binary("block")
    data = write_bands(tmp_path, format, [specked(seed) for seed in range(6)])
    model = banded(format)
    done = tune(model, data, folds=3, **CPU)
    assert done.improved
    assert [choice.kept for choice in done.thresholds] == [False]
    assert done.postprocess[0] == FillHoles(("block",))
    assert isinstance(done.postprocess[1], (LargestComponent, MinimumSize))
    assert done.cross_fitted == done.plain == 1.0
    assert evaluate(model, data, **CPU).pooled("dice").mean == pytest.approx(done.before)
    model.postprocess = done.postprocess
    assert evaluate(model, data, **CPU).pooled("dice").mean == 1.0
    sample = data.read(0)
    predictor = Predictor(model, data.codec, device="cpu")
    assert np.array_equal(predictor.predict(sample.image), sample.planes)
    assert np.array_equal(predictor.predict_sample(sample), sample.planes)
    predictor.predict_files([data.images], tmp_path / "out")
    assert np.array_equal(data.codec.read(tmp_path / "out", "s0"), sample.planes)
    assert json.dumps(done.to_dict(), allow_nan=False)


def test_steps_that_do_not_help_are_left_out_and_earlier_ones_stay(tmp_path):
    """Truth is all that is bright, specks and hole: every step would do harm, also the one that the model has."""
    format = MaskFormat.binary("block")
    images = [(image, (image[..., :1] > 128).astype(np.uint8)) for image, _ in (specked(seed) for seed in range(4))]
    data = write_bands(tmp_path, format, images)
    model = banded(format)
    done = tune(model, data, folds=2, **CPU)
    assert (done.improved, done.postprocess, done.format) == (False, (), format)
    assert not any(choice.kept for choice in (*done.steps, *done.thresholds))
    model.postprocess = (MinimumSize(pixels=2),)
    done = tune(model, data, folds=2, **CPU)
    assert done.before < done.cross_fitted == 1.0
    assert done.postprocess == ()
    # Only thresholds: steps stay, and so does the score.
    kept = tune(model, data, folds=2, steps=False, **CPU)
    assert (kept.before, kept.cross_fitted, kept.plain) == pytest.approx((done.before,) * 3)
    assert kept.postprocess == model.postprocess


def test_a_step_that_one_image_alone_wants_is_not_kept(tmp_path):
    format = MaskFormat.binary("block")
    honest = [(image, (image[..., :1] > 128).astype(np.uint8)) for image, _ in (specked(s, 9) for s in range(4))]
    data = write_bands(tmp_path, format, [*honest, specked(9, specks=200)])
    done = tune(banded(format), data, folds=5, thresholds=False, **CPU)
    small = next(choice for choice in done.steps if choice.what == "small regions of block")
    assert small.best is not None
    assert small.cross_fitted < small.score_before
    assert not small.kept


def test_containment_is_found_where_the_truth_has_it(tmp_path):
    format = MaskFormat.multilabel(["disc", "cup"])
    images = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        disc, cup = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
        disc[5:25, 8:30] = 1
        cup[10:20, 12:24] = 1
        image = np.full((30, 40, 3), 40, np.uint8)
        image[disc > 0, 0] = 200
        image[cup > 0, 1] = 200
        image[12:18, 24 : 33 + rng.integers(4), 1] = 200  # a tongue of the cup that leaves the disc
        images.append((image, np.stack([disc, cup], axis=2)))
    data = write_bands(tmp_path, format, images)
    done = tune(banded(format), data, folds=2, **CPU)
    assert done.steps[0].what == "cup within disc"
    assert done.steps[0].kept
    assert done.postprocess[0] == Within("cup", "disc")
    assert "disc within cup" not in [choice.what for choice in done.steps]


def test_thresholds_are_chosen_by_class_and_then_decode(tmp_path):
    """Truth begins at 105 in one class and at 150 in the other; the model says 0.5 at 128."""
    format = MaskFormat.multilabel(["low", "high"])
    rng = np.random.default_rng(0)
    images = []
    for _ in range(4):
        image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        images.append((image, np.stack([image[..., 0] > 105, image[..., 1] > 150], axis=2).astype(np.uint8)))
    data = write_bands(tmp_path, format, images)
    model = banded(format)
    done = tune(model, data, folds=2, steps=False, criterion="per_image_iou", **CPU)
    low, high = (1 / (1 + np.exp(-(value - 128) / 25)) for value in (105, 150))
    assert done.format.thresholds == pytest.approx((low, high), abs=0.01)
    assert done.cross_fitted > 0.98 > 0.85 > done.before
    model.format = done.format
    assert evaluate(model, data, **CPU).per_image("iou").mean == pytest.approx(done.plain)


def test_softmax_has_no_thresholds_but_steps(tmp_path):
    format = MaskFormat.binary("block", "softmax")
    data = write_bands(tmp_path, format, [specked(seed) for seed in range(4)])
    model = banded(format)
    model.network.conv.weight.data[0] *= -1  # background is the band, turned round
    done = tune(model, data, folds=2, **CPU)
    assert done.thresholds == []
    assert "takes the best class of each pixel and has no thresholds" in done.notes[0]
    assert FillHoles(("block",)) in done.postprocess
    with pytest.raises(ValueError, match="has no thresholds"):
        tune(model, data, folds=2, steps=False, **CPU)


def test_one_vs_rest_thresholds_need_an_ignored_value(tmp_path):
    format = FORMATS["one_vs_rest"]
    data = write_set(tmp_path / "plain", format, 4)
    model = banded(format)
    with pytest.raises(ValueError, match="codec 'index_png' cannot write: give it an ignored value"):
        tune(model, data, folds=2, steps=False, **CPU)
    data = write_set(tmp_path / "ignoring", format, 4, codec=default_codec(format, 255))
    done = tune(model, data, folds=2, steps=False, **CPU)
    assert [choice.before for choice in done.thresholds] == [None]
    assert done.thresholds[0].classes == ("sky", "ground", "disc")


def test_volumes_with_an_ignored_value_have_thresholds_too(tmp_path):
    """Their codec takes names of slices alone, also where it is tried."""
    format = FORMATS["one_vs_rest"]
    assert _untunable(format, open_codec("nifti", format)) != []
    assert _untunable(format, open_codec({"name": "nifti", "ignored_values": [255]}, format)) == []


def test_a_class_that_no_true_mask_holds_is_not_cleaned_away(tmp_path):
    """The model marks a few pixels of it: without them, the mean over the classes that occur would double."""
    format = MaskFormat.multilabel(["block", "rare"])
    images = []
    for seed in range(4):
        image, truth = specked(seed)
        image[..., 1] = 40
        image[1:4, 1:4, 1] = 200
        images.append((image, np.concatenate([truth, np.zeros_like(truth)], axis=2)))
    done = tune(banded(format), write_bands(tmp_path, format, images), folds=2, **CPU)
    assert [step.classes for step in done.postprocess] == [("block",)] * 2
    assert "rare" not in str([choice.what for choice in done.steps])
    assert done.format == format


def test_sizes_in_mm_of_images_without_a_spacing_are_refused_by_name(tmp_path):
    format = MaskFormat.binary("block")
    data = write_bands(tmp_path, format, [specked(0)])
    model = banded(format)
    model.postprocess = (MinimumSize(mm2=3.0),)
    with pytest.raises(ValueError, match="images, s0: minimum_size: mm2, but the image tells no spacing"):
        evaluate(model, data, **CPU)


def test_too_few_groups_and_other_masks_are_refused(tmp_path):
    data = write_set(tmp_path, FORMATS["binary"], 4)
    with pytest.raises(ValueError, match="5 folds need as many groups, and there are 4"):
        tune(banded(FORMATS["binary"]), data, **CPU)
    with pytest.raises(ValueError, match="cannot be compared"):
        tune(banded(FORMATS["overlapping"]), data, folds=2, **CPU)
    with pytest.raises(ValueError, match="nothing is left to tune"):
        tune(banded(FORMATS["binary"]), data, folds=2, thresholds=False, steps=False, **CPU)


def test_volumes_are_post_processed_whole_in_tuning_and_scoring(tmp_path):
    """A rod across all slices, one voxel wide, and a speck as large in one: only in the volume does the rod win."""
    format = MaskFormat.multiclass(["background", "rod"])
    codec = open_codec("nifti", format)
    (tmp_path / "images").mkdir()
    for case in range(2):
        truth = np.zeros((20, 16, 12), np.uint8)  # x, y, z
        truth[5, 6, :] = 1
        voxels = truth.astype(np.float32) * 300
        voxels[12:15, 2:4, 3 + case] = 300
        like = tmp_path / "images" / f"case{case}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), like)
        for z in range(12):
            codec.write(tmp_path / "masks", slice_stem(f"case{case}", "z", z), truth[:, :, z].T[..., None], like=like)
    codec.finish(tmp_path / "masks")
    data = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    wholes = find_wholes(data)
    assert [(len(whole.numbers), whole.is_volume) for whole in wholes] == [(12, True)] * 2
    statistics = PixelStatistics((128.0,), (25.0,), "float32")
    model = Segmenter(TwoClasses(), format, statistics, Recipe("t", "none"), stride=1).eval()
    assert evaluate(model, data, **CPU).pooled("dice").per_class["rod"] < 0.85
    model.postprocess = (LargestComponent(("rod",)),)
    assert evaluate(model, data, **CPU).pooled("dice").per_class["rod"] == 1.0
    model.postprocess = (MinimumSize(mm3=23.0),)  # 12 voxels of 2 mm3, against 6
    assert evaluate(model, data, batch_size=5, **CPU).pooled("dice").per_class["rod"] == 1.0
    model.postprocess = ()
    done = tune(model, data, folds=2, **CPU)
    assert (done.images, done.cross_fitted) == (24, 1.0)
    assert done.improved
    planes = np.stack([data.read_planes(number) for number in wholes[0].numbers])
    assert np.array_equal(postprocess(planes, done.postprocess, format, (2.0, 1.0, 1.0)), planes)


class TwoClasses(nn.Module):
    """Background, and what is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x, x], dim=1) * self.one


def test_the_command_stores_what_helps_and_evaluate_agrees(tmp_path, capsys, monkeypatch):
    config, run = write_config(tmp_path, "overlapping"), tmp_path / "run"
    assert segkit("train", config, "--out", run) == 0
    before = (run / "model" / "segkit.json").read_text()
    arguments = ("tune", run, "--folds", 2, "--device", "cpu", "--json", tmp_path / "t.json")
    assert segkit(*arguments, "--dry-run", "--tta", "hflip") == 0
    assert (run / "model" / "segkit.json").read_text() == before
    assert json.loads((tmp_path / "t.json").read_text())["stored"] is False
    assert segkit(*arguments) == 0
    told = json.loads((tmp_path / "t.json").read_text())
    stored = json.loads((run / "model" / "segkit.json").read_text())
    assert "threshold of left: 0.5 to" in capsys.readouterr().out
    assert told["improved"], "one epoch leaves room"
    assert stored["format"] == told["format"]
    assert stored["postprocess"] == told["postprocess"]
    assert (stored["tuned"]["split"], stored["tuned"]["cross_fitted"]) == ("val", told["cross_fitted"])
    assert segkit("evaluate", run, "--split", "val", "--device", "cpu", "--json", tmp_path / "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["pooled"]["dice"]["mean"] == pytest.approx(told["plain"])
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert segkit("tune", run) == 2
    assert "cannot be written to" in capsys.readouterr().err
    for wrong, message in ((("--split", "test"), "worthless"), (("--criterion", "dice"), "expected pooled_dice")):
        assert segkit("tune", run, *wrong) == 2
        assert message in capsys.readouterr().err
