from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference import tiling
from segkit.inference.evaluate import evaluate
from segkit.inference.predictor import Predictor
from segkit.inference.stitching import window_starts
from segkit.inference.tiling import image_logits
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics
from segkit.ops.sizes import Spacing
from tests.scenes import write_set


class Pointwise(nn.Module):
    """Each logit depends on its own pixel alone: windows and whole image must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        return self.conv(x)


def model(**options) -> Segmenter:
    torch.manual_seed(0)
    statistics = PixelStatistics((100.0,) * 3, (50.0,) * 3)
    network = Pointwise()
    return Segmenter(network, MaskFormat.multilabel(["a", "b"]), statistics, Recipe("p", "none"), **options).eval()


IMAGES = torch.randint(0, 255, (2, 3, 97, 140), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [32, 50, 96, 97, 200])
@torch.inference_mode()
def test_windows_agree_with_the_whole_image_where_pixels_stand_alone(side):
    segmenter = model(stride=8)
    assert torch.allclose(image_logits(segmenter, IMAGES, side).full(), segmenter(IMAGES), atol=1e-5)


@torch.inference_mode()
def test_interior_of_windows_agrees_where_the_network_looks_around():
    """A 5x5 neighbourhood: only pixels within 2 of a window's inner border may differ, and there blending is smooth."""
    segmenter = model(stride=1)
    segmenter.network.conv = nn.Conv2d(3, 2, 5, padding=2)
    whole, tiled = segmenter(IMAGES), image_logits(segmenter, IMAGES, 64).full()
    away = torch.ones(97, 140, dtype=torch.bool)
    for starts, length, axis in ((window_starts(97, 64), 97, 0), (window_starts(140, 64), 140, 1)):
        for edge in [s for s in starts if s] + [s + 64 for s in starts if s + 64 < length]:
            away.narrow(axis, edge - 2, 4).fill_(False)
    assert away.float().mean() > 0.5
    assert torch.allclose(whole[..., away], tiled[..., away], atol=1e-5)
    assert (whole - tiled).abs().max() > 1e-3


@torch.inference_mode()
def test_large_images_are_cut_without_being_asked(monkeypatch):
    segmenter = model(stride=1)
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", 5000)
    monkeypatch.setattr(tiling, "DEFAULT_TILE", 64)
    image_logits(segmenter, IMAGES)
    assert set(segmenter.network.sizes) == {(64, 64)}


@torch.inference_mode()
def test_windows_are_cut_at_the_working_size():
    segmenter = model(stride=1, resize=70)
    logits = image_logits(segmenter, IMAGES, tile=40)
    assert logits.shape == (2, 2, 97, 140)
    assert set(segmenter.network.sizes) == {(40, 40)}
    assert torch.allclose(logits.full(), segmenter.predict_logits(IMAGES), atol=1e-4)


def test_tiles_share_the_mean_of_their_image(tmp_path):
    """Left of the image is dark, right is bright: a tile of one side alone would have a mean of its own."""
    image = np.full((64, 200, 3), 50, np.uint8)
    image[:, 100:] = 210
    cv2.imwrite(str(tmp_path / "a.png"), image)
    segmenter = model(reading=ImageReading(normalize="image"))
    segmenter.statistics = PixelStatistics((0.0,) * 3, (1.0,) * 3, "float32", "reading")
    whole, tiled = (Predictor(segmenter, device="cpu", tile=tile) for tile in (None, 32))
    expected = whole.logits(image)
    assert torch.allclose(tiled.logits(image), expected, atol=1e-5)
    # 50 and 210, half and half, are -1 and 1.
    values = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    with torch.inference_mode():
        assert torch.allclose(expected[..., 0, [0, -1]], segmenter.network.conv(values)[..., 0, :], atol=1e-5)
    codec = open_codec("file_per_class", segmenter.format)
    for name, predictor in (("whole", whole), ("tiled", tiled)):
        predictor.codec = codec
        predictor.predict_files([tmp_path / "a.png"], tmp_path / name)
    assert np.array_equal(codec.read(tmp_path / "tiled", "a"), codec.read(tmp_path / "whole", "a"))
    assert np.array_equal(codec.read(tmp_path / "tiled", "a"), whole.predict(image))


@torch.inference_mode()
def test_windows_at_a_spacing_agree_with_the_whole_image():
    segmenter = model(stride=1, resize=Spacing(1, 1))
    tiled = image_logits(segmenter, IMAGES, 40, spacing_mm=(0.5, 2.0)).full()
    assert max(max(size) for size in segmenter.network.sizes) == 40  # the working size is 48 x 280
    whole = segmenter.predict_logits(IMAGES, (0.5, 2.0))
    assert segmenter.network.sizes[-1] == (48, 280)
    assert torch.allclose(whole, tiled, atol=1e-5)


def test_a_picture_without_a_spacing_is_named_where_it_is_scored(tmp_path):
    data = write_set(tmp_path, MaskFormat.multilabel(["left", "disc"]), 2)
    segmenter = model(resize=Spacing(1, 1))
    segmenter.format = data.format
    with pytest.raises(ValueError, match=r"images, s0: 1 x 1 mm per pixel are asked for.* tells no spacing"):
        evaluate(segmenter, data, workers=0)
    report = Predictor(segmenter, data.codec, device="cpu").predict_files([data.images], tmp_path / "out")
    assert report.done == 0
    assert [(Path(file).name, "tells no spacing" in reason) for file, reason in report.failed] == [
        ("s0.png", True),
        ("s1.png", True),
    ]


def test_data_read_in_another_way_are_refused(tmp_path):
    data = write_set(tmp_path, MaskFormat.multilabel(["left", "disc"]), 1)
    segmenter = model(reading=ImageReading(normalize="image"))
    segmenter.format = data.format
    with pytest.raises(ValueError, match=r"with .image.\. Open the data with `reading=model\.reading`"):
        evaluate(segmenter, data)
