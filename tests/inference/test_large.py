"""Images read by window and masks written in bands, against the same images in memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from segkit.data.images import ImageRef
from segkit.data.intensity import image_scale
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.georeference import read_georeference
from segkit.formats.mask_format import MaskFormat
from segkit.inference import large
from segkit.inference.large import goes_by_window, is_large, predict_large
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics
from tests.formats.test_georeference import SCALE, TIEPOINT, UTM, keys

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
FORMATS = {
    "binary": MaskFormat.binary(),
    "multilabel": MaskFormat.multilabel(["a", "b", "c"], thresholds=[0.4, 0.5, 0.6]),
    "multiclass": MaskFormat.multiclass(["x", "y", "z", "w"]),
}


class Around(nn.Module):
    """Logits of the 5x5 pixels around, and windows that are counted."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bands, classes, 5, padding=2)
        self.windows: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.windows.append(tuple(x.shape))
        return self.conv(x)


def model(format: MaskFormat, bands: int = 3, dtype: str = "uint8", **options) -> Segmenter:
    torch.manual_seed(1)
    statistics = PixelStatistics((100.0,) * bands, (50.0,) * bands, dtype)
    return Segmenter(
        Around(bands, format.num_classes), format, statistics, Recipe("a", "none"), stride=1, **options
    ).eval()


@pytest.fixture
def large_images(monkeypatch):
    """Images above 50,000 pixels are large, and a panel is 512 columns wide."""
    monkeypatch.setattr(large, "LARGE_PIXELS", 50_000)
    monkeypatch.setattr(large, "_PANEL_BYTES", 1)


def write_image(path, size_hw=(300, 1100), bands=3, dtype="uint8", **options) -> np.ndarray:
    image = RNG.integers(0, 250, (*size_hw, bands)).astype(dtype)
    colours = "rgb" if bands == 3 and dtype == "uint8" else "minisblack"
    tifffile.imwrite(path, image, photometric=colours, planarconfig="contig", tile=(64, 64), **options)
    return image


@pytest.mark.parametrize("name", FORMATS)
def test_masks_are_those_of_images_in_memory(tmp_path, large_images, name):
    segmenter, codec = model(FORMATS[name]), open_codec("tiff", FORMATS[name])
    georeference = (keys(UTM), SCALE, TIEPOINT, (34737, "s", 0, "WGS 84|", True))
    image = write_image(tmp_path / "a.tif", extratags=georeference, compression="zlib")
    assert is_large(ImageRef(tmp_path / "a.tif"))
    report = Predictor(segmenter, codec, device="cpu", tile=96).predict_files([tmp_path / "a.tif"], tmp_path / "out")
    assert (report.done, report.failed) == (1, [])
    assert set(segmenter.network.windows) == {(1, 3, 96, 96)}
    found = codec.read(tmp_path / "out", "a")
    expected = Predictor(segmenter, codec, device="cpu", tile=96).predict(image)
    assert (found != expected).mean() < 1e-5  # a tie may fall to either side
    assert len(np.unique(expected)) > 1
    assert read_georeference(tmp_path / "out/a.tif", (300, 1100)) == read_georeference(tmp_path / "a.tif", (300, 1100))
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        assert file.is_bigtiff


def test_a_network_that_upsamples_last_and_bands_of_16_bits(tmp_path, large_images):
    format = MaskFormat.multiclass(["x", "y"])
    segmenter = build_model("fpn", "tu-test_resnet", format, in_channels=5, weights=None).eval()
    image = write_image(tmp_path / "a.tif", (260, 700), 5, "uint16")
    codec = open_codec("tiff", format)
    seen = []
    predict_large(
        segmenter, ImageRef(tmp_path / "a.tif"), codec, tmp_path / "out", "a",
        device=CPU, tile=64, batch_size=4, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    found, expected = codec.read(tmp_path / "out", "a"), Predictor(segmenter, device="cpu", tile=64).predict(image)
    assert (found != expected).mean() < 1e-3
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.parametrize("gray", [False, True])
def test_images_are_normalised_as_a_whole(tmp_path, large_images, gray):
    bands = 1 if gray else 3
    segmenter = model(FORMATS["binary"], bands, "float32", reading=ImageReading(normalize="image"))
    segmenter.statistics = PixelStatistics((0.0,) * bands, (1.0,) * bands, "float32", "reading")
    image = RNG.integers(0, 60, (300, 400), dtype=np.uint8)
    image[:, 200:] += 150  # windows of one half have another mean than the whole
    tifffile.imwrite(tmp_path / "a.tif", image, rowsperstrip=16, compression="zlib")
    codec = open_codec("tiff", segmenter.format)
    predict_large(segmenter, ImageRef(tmp_path / "a.tif"), codec, tmp_path, "out", device=CPU, tile=64)
    stored = np.repeat(image[..., None], bands, 2)
    expected = Predictor(segmenter, device="cpu", tile=64).predict(stored, scale=image_scale(stored))
    assert (codec.read(tmp_path, "out") != expected).mean() < 1e-4


def test_probabilities_are_a_page_for_each_class(tmp_path, large_images):
    segmenter = model(FORMATS["multiclass"])
    image = write_image(tmp_path / "a.tif")
    predictor = Predictor(segmenter, open_codec("tiff", segmenter.format), device="cpu", tile=128)
    report = predictor.predict_files([tmp_path / "a.tif"], tmp_path / "out", probabilities=True)
    assert report.done == 1
    with tifffile.TiffFile(tmp_path / "out/_probabilities/a.tif") as file:
        pages = [page.asarray() for page in file.pages]
        assert [page.tags["PageName"].value for page in file.pages] == ["x", "y", "z", "w"]
    assert {page.dtype for page in pages} == {np.dtype(np.float16)}
    np.testing.assert_allclose(np.stack(pages), predictor.probabilities(image), atol=1e-3)


def test_what_needs_all_pixels_at_once(tmp_path, large_images, monkeypatch):
    """Is done as before while the image can be read whole, and refused above that."""
    segmenter = model(FORMATS["binary"])
    write_image(tmp_path / "a.tif")
    ref, tiff = ImageRef(tmp_path / "a.tif"), open_codec("tiff", segmenter.format)
    png = open_codec("index_png", segmenter.format)
    assert goes_by_window(ref, tiff)
    assert not goes_by_window(ref, png)
    assert not goes_by_window(ref, tiff, needs_whole=True)
    predictor = Predictor(segmenter, png, device="cpu")
    assert predictor.predict_files([ref.path], tmp_path / "out", overlay=True).done == 1
    assert (tmp_path / "out/_overlay/a.png").exists()
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "100000")
    assert goes_by_window(ref, png, needs_whole=True)
    failed = predictor.predict_files([ref.path], tmp_path / "png").failed
    assert "a mask of 300x1100 is too large to be in memory" in failed[0][1]
    predictor.codec = tiff
    failed = predictor.predict_files([ref.path], tmp_path / "overlay", overlay=True).failed
    assert "needs all of its pixels at once" in failed[0][1]
    assert predictor.predict_files([ref.path], tmp_path / "tiff").done == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 200}, "is 300x1100, too large to be resized to the 55x200"),
        ({"reading": ImageReading(neighbours=1)}, "the model takes slices with their neighbours"),
    ],
)
def test_models_that_need_more_than_a_window_are_refused(tmp_path, large_images, options, message):
    write_image(tmp_path / "a.tif")
    segmenter = model(FORMATS["binary"], **options)
    codec = open_codec("tiff", segmenter.format)
    with pytest.raises(ValueError, match=rf"a\.tif: {message}"):
        predict_large(segmenter, ImageRef(tmp_path / "a.tif"), codec, tmp_path, "out", device=CPU)
    assert not (tmp_path / "out.tif").exists()


def test_an_image_that_breaks_off_is_named_and_leaves_no_mask(tmp_path, large_images):
    write_image(tmp_path / "a.tif", compression="zlib")
    whole = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].dataoffsets[-1]
    (tmp_path / "a.tif").write_bytes(whole[:offset] + b"\xff" * 100 + whole[offset + 100 :])
    segmenter = model(FORMATS["binary"])
    predictor = Predictor(segmenter, open_codec("tiff", segmenter.format), device="cpu", tile=128)
    report = predictor.predict_files([tmp_path / "a.tif"], tmp_path / "out", probabilities=True)
    assert report.done == 0
    assert [(file, "cannot be decoded" in reason) for file, reason in report.failed] == [
        (str(tmp_path / "a.tif"), True)
    ]
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["_journal.jsonl", "_quarantine.txt"]


PEAKS = """
import re, sys
from pathlib import Path
import numpy as np, tifffile, torch
from torch import nn
from segkit.data.images import ImageRef
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.large import predict_large
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics

folder, device = Path(sys.argv[1]), torch.device("cpu")
format = MaskFormat.multiclass(range(16))
model = Segmenter(nn.Conv2d(3, 16, 1), format, PixelStatistics((0.0,) * 3, (1.0,) * 3), Recipe("a", "none"), stride=1)

def status_mib(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024

for height in (600, 600, 8000):
    tiles = (np.zeros((256, 256, 3), np.uint8) for _ in range(-(-height // 256) * 2))
    size = {"shape": (height, 512, 3), "dtype": np.uint8, "tile": (256, 256)}
    tifffile.imwrite(folder / "a.tif", tiles, photometric="rgb", **size)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mib("VmRSS")
    options = {"device": device, "tile": 128}
    predict_large(model.eval(), ImageRef(folder / "a.tif"), open_codec("tiff", format), folder, "out", **options)
    print(status_mib("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of one call")
def test_memory_does_not_grow_with_the_height(tmp_path):
    """Logits of 8000 x 512 pixels and 16 classes are 250 MiB, its pixels 12; a line of windows is 4 MiB."""
    done = subprocess.run([sys.executable, "-c", PEAKS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, low_mib, tall_mib = map(float, done.stdout.split())
    assert tall_mib < low_mib + 6
    assert max(first, tall_mib) < 60


def test_only_large_tiff_files_are_large(tmp_path, large_images):
    write_image(tmp_path / "small.tif", (100, 100))
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    for name in ("small.tif", "broken.tif", "a.png", "missing.tif"):
        assert not is_large(ImageRef(tmp_path / name))
    write_image(tmp_path / "a.tif")
    assert is_large(ImageRef(tmp_path / "a.tif"))
    assert not is_large(ImageRef(tmp_path / "a.tif", bands=(tmp_path / "a.tif",)))
