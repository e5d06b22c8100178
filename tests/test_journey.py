"""One sample from file to file, in each format: what is written is what was read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkit.data.augment import build_augment
from segkit.data.loaders import collate
from segkit.inference.evaluate import evaluate_predictions
from segkit.losses.build import build_loss
from segkit.metrics.counts import PixelCounts
from segkit.metrics.scores import Scores
from tests.scenes import FORMATS, write_set


def confident_logits(target: torch.Tensor, format) -> torch.Tensor:
    """Logits of a model that knows the truth."""
    return torch.where(format.expand(target), 20.0, -20.0)


@pytest.mark.parametrize("kind", FORMATS)
def test_file_to_logits_to_file_is_the_identity(tmp_path, kind):
    format = FORMATS[kind]
    data = write_set(tmp_path / "data", format, 2, size_hw=(37, 53))
    batch = collate([data[0], data[1]])
    assert batch.images.dtype == torch.uint8
    assert batch.target.shape == (2, format.num_planes, 37, 53)
    logits = confident_logits(batch.target, format)
    pred = format.decode(logits)
    assert torch.equal(pred, batch.target)
    for stem, planes in zip(batch.stems, pred.numpy(), strict=True):
        data.codec.write(tmp_path / "out", stem, planes.transpose(1, 2, 0).astype(format.dtype))
    data.codec.finish(tmp_path / "out")
    for stem in batch.stems:
        assert np.array_equal(data.codec.read(tmp_path / "out", stem), data.codec.read(data.masks, stem))
    assert evaluate_predictions(tmp_path / "out", data.masks, data.codec).pooled("iou").mean == 1.0


@pytest.mark.parametrize("kind", FORMATS)
def test_what_augmentation_leaves_empty_is_neither_trained_on_nor_scored(tmp_path, kind):
    format = FORMATS[kind]
    data = write_set(tmp_path / "data", format, 1, size_hw=(30, 41))
    data.augment = build_augment("none", format, crop=[48, 64])  # larger than the image: the rest is unknown
    batch = collate([data[0]])
    valid = format.valid(batch.target)
    assert int(valid.sum()) == 30 * 41 * format.num_planes
    logits = confident_logits(batch.target, format)
    loss = build_loss({"cross_entropy": 1, "dice": 1}, format)
    wild = torch.where(valid.expand_as(logits), logits, torch.randn_like(logits) * 50)
    wrong = torch.where(valid.expand_as(logits), -logits, logits)
    assert loss(wild, batch.target) == loss(logits, batch.target)
    assert loss(wrong, batch.target) > loss(logits, batch.target) + 1
    counts = PixelCounts(format)
    counts.update(format.decode(wild), batch.target)
    assert Scores(counts.compute()).pooled("iou").mean == 1.0
