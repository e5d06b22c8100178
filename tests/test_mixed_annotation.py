"""Data sets in which not everything is annotated: some classes of some images, or some pixels of all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from segkit.data.augment import build_augment
from segkit.data.datasets import MaskDataset
from segkit.data.loaders import collate
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.evaluate import evaluate
from segkit.inference.predictor import Predictor
from segkit.losses.build import LOSSES, build_loss
from segkit.training.class_balance import class_pixels
from segkit.training.mixing import Mixer
from segkit.training.settings import MixSettings
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model

FORMAT = FORMATS["overlapping"]  # left, disc
THREE = MaskFormat.multilabel(["cup", "disc", "vessel"])
LOSS_SPECS = [
    *LOSSES,
    {"cross_entropy": {"label_smoothing": 0.1, "class_weights": [1, 2, 3]}},
    {"cross_entropy": {"top_k": 0.2}},
    {"cross_entropy": {"top_k": 0.2, "hard_per": "image"}},
    {"cross_entropy": {"hard_below": 0.7}},
    {"focal": {"label_smoothing": 0.1}},
    {"cross_entropy": 1, "dice": 1},
]


@pytest.mark.parametrize("spec", LOSS_SPECS, ids=str)
def test_no_loss_learns_from_a_plane_that_nobody_drew(spec):
    """Of image 0 the disc is not annotated, of both images the vessel."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 12, 17, generator=rng)
    target = torch.randint(0, 2, (2, 3, 12, 17), generator=rng, dtype=torch.uint8)
    target[0, 1] = target[:, 2] = 255
    loss = build_loss(spec, THREE)

    def measured(values):
        values = values.clone().requires_grad_()
        value = loss(values, target)
        (gradient,) = torch.autograd.grad(value, values)
        return value.item(), gradient

    wild = logits.clone()
    wild[0, 1], wild[:, 2] = torch.inf, 1e4
    value, gradient = measured(logits)
    assert (value, True) == (measured(wild)[0], torch.equal(measured(wild)[1], gradient))
    assert gradient[0, 1].abs().sum() == gradient[:, 2].abs().sum() == 0
    assert all(gradient[n, c].abs().sum() > 0 for n, c in ((0, 0), (1, 0), (1, 1)))
    assert np.isfinite(value)


def partly_annotated(root, count=8, missing="ignore") -> MaskDataset:
    """Even scenes know nothing of the disc, odd ones nothing of what is left: files that are not there."""
    write_set(root, FORMAT, count)
    for number in range(count):
        (root / "masks" / ("disc" if number % 2 == 0 else "left") / f"s{number}.png").unlink()
    codec = open_codec({"name": "file_per_class", "missing": missing}, FORMAT)
    return MaskDataset(root / "images", root / "masks", codec)


def test_classes_that_are_annotated_in_different_images_are_learned_together(tmp_path):
    """Taken for empty, what is not annotated teaches that nothing is there."""
    val = write_set(tmp_path / "v", FORMAT, 3)
    inside = {}
    for missing in ("ignore", "empty"):
        train = partly_annotated(tmp_path / missing, missing=missing)
        train.augment = build_augment("fast_light", FORMAT, crop=32, focus={"share": 0.5, "classes": "rare"})
        options = {"mix": {"cutmix": 0.3, "classmix": 0.3}, "deep_supervision": 0.3, "epochs": 14}
        model, *_ = run(tmp_path, FORMAT, f"run-{missing}", train=train, val=val, **options)
        batch = collate([val.read(n) for n in range(3)])
        with torch.no_grad():
            probs = FORMAT.probabilities(model.eval()(batch.images))
        inside[missing] = [probs[:, c][batch.target[:, c] == 1].mean().item() for c in range(2)]
        if missing == "ignore":
            assert min(evaluate(model, val, workers=0, device="cpu").pooled("iou").per_class.values()) > 0.6
    assert all(known > taken_for_empty + 0.06 for known, taken_for_empty in zip(*inside.values(), strict=True))


def test_a_class_is_scored_where_it_is_annotated(tmp_path):
    partly, whole = partly_annotated(tmp_path / "p"), write_set(tmp_path / "w", FORMAT, 8)
    model = small_model(FORMAT)
    found = evaluate(model, partly, workers=0, device="cpu")
    for name, stems in (("left", ["s0", "s2", "s4", "s6"]), ("disc", ["s1", "s3", "s5", "s7"])):
        alone = evaluate(model, whole.subset(stems), workers=0, device="cpu")
        for score in ("iou", "dice", "precision", "recall", "specificity", "accuracy"):
            assert found.pooled(score).per_class[name] == alone.pooled(score).per_class[name]
            assert found.per_image(score).per_class[name] == pytest.approx(alone.per_image(score).per_class[name])


def test_counts_of_classes_are_those_of_the_images_that_know_them(tmp_path):
    partly, whole = partly_annotated(tmp_path / "p"), write_set(tmp_path / "w", FORMAT, 8)
    pixels, around = class_pixels(partly, 500)
    assert around[0] == around[1] == 4 * 40 * 56
    for number, stems in enumerate((["s0", "s2", "s4", "s6"], ["s1", "s3", "s5", "s7"])):
        assert pixels[number] == class_pixels(whole.subset(stems), 500)[0][number]


def test_every_class_is_predicted_for_every_image(tmp_path):
    partly = partly_annotated(tmp_path / "p")
    predicted = Predictor(small_model(FORMAT), partly.codec, device="cpu").predict_sample(partly.read(0))
    assert set(np.unique(predicted)) <= {0, 1}
    assert partly.read(0).planes[..., 1].min() == 255
    partly.codec.write(tmp_path / "out", "s0", predicted)
    assert all((tmp_path / "out" / name / "s0.png").is_file() for name in FORMAT.names)


def test_pasted_pixels_are_as_unknown_as_they_were(tmp_path):
    partly = partly_annotated(tmp_path / "p")
    target = torch.from_numpy(np.stack([partly.read(n).planes.transpose(2, 0, 1) for n in range(2)]))
    images = torch.zeros(2, 3, *target.shape[2:], dtype=torch.uint8)
    _, mixed = Mixer(MixSettings(copy_paste=1.0, classes=["left"]), FORMAT, 0)(images, target, (0,))
    pasted = target[0, 0] == 1  # of the first image, which knows nothing of the disc, on the second
    assert (mixed[1, 1][pasted] == 255).all()
    assert torch.equal(mixed[1, 1][~pasted], target[1, 1][~pasted])
    assert torch.equal(mixed[1, 0], torch.where(pasted, 1, 255))
    assert torch.equal(mixed[0], target[0])  # nothing is known of the class in the second image


def test_a_few_annotated_lines_train_exclusive_classes(tmp_path):
    """Of every mask one row in eight is annotated: 255 in the others, which the config declares."""
    format = FORMATS["exclusive"]
    codec = open_codec({"name": "index_png", "ignored_values": [255]}, format)
    write_set(tmp_path / "t", format, 8, codec=codec)
    for path in (tmp_path / "t" / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask[np.arange(len(mask)) % 8 != 3] = 255
        cv2.imwrite(str(path), mask)
    train = MaskDataset(tmp_path / "t" / "images", tmp_path / "t" / "masks", codec)
    train.augment = build_augment("fast_light", format, crop=32)
    val = write_set(tmp_path / "v", format, 3)
    model, *_ = run(tmp_path, format, train=train, val=val, epochs=14)
    assert evaluate(model, val, workers=0, device="cpu").pooled("iou").mean > 0.6
