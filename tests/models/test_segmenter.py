from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from segkit.data.datasets import MaskDataset
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.models.segmenter import Recipe, Segmenter, pad_to_stride
from segkit.models.statistics import Clipping, PixelStatistics, find_clipping
from segkit.ops.sizes import Spacing, fit_size

FORMAT = MaskFormat.multilabel(["a", "b"])


class Echo(nn.Module):
    """Returns the first two bands it is given, and remembers what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x[:, :2] * self.scale


def segmenter(**options) -> Segmenter:
    statistics = options.pop("statistics", PixelStatistics((10.0, 20.0, 30.0), (2.0, 4.0, 8.0)))
    return Segmenter(Echo(), FORMAT, statistics, Recipe("echo", "none"), **options)


@pytest.mark.parametrize("size_hw", [(1, 1), (5, 7), (32, 64), (33, 31)])
def test_logits_have_the_size_of_the_image_and_the_network_sees_whole_strides(size_hw):
    model = segmenter(stride=32)
    logits = model(torch.zeros(2, 3, *size_hw, dtype=torch.uint8))
    assert logits.shape == (2, 2, *size_hw)
    assert all(side % 32 == 0 for side in model.network.seen.shape[-2:])


def test_stored_values_are_normalised_in_stored_units():
    stored = torch.tensor([12, 16, 14], dtype=torch.uint8).view(1, 3, 1, 1)
    # (12 - 10) / 2 = 1, (16 - 20) / 4 = -1, (14 - 30) / 8 = -2: nothing is divided by 255
    assert segmenter(stride=1).normalize(stored).flatten().tolist() == [1.0, -1.0, -2.0]


def test_padding_repeats_the_border_and_fills_up_to_the_smallest_side():
    padded = pad_to_stride(torch.arange(6.0).view(1, 1, 2, 3), stride=4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_stride(torch.zeros(1, 1, 3, 9), stride=4, min_side=8).shape == (1, 1, 8, 12)


def test_integers_of_another_depth_are_rescaled_by_full_range_and_told_once(caplog):
    model = segmenter(stride=1)
    eight = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    sixteen = (eight.int() * 257).to(torch.uint16)
    assert torch.allclose(model(sixteen), model(eight), atol=1e-4)
    model(sixteen)
    assert len([r for r in caplog.records if "full range" in r.message]) == 1


def test_wrong_number_of_bands_names_both_numbers():
    with pytest.raises(ValueError, match=r"\(2, 13, 8, 8\).*\(N, 3, H, W\).*in_channels"):
        segmenter()(torch.zeros(2, 13, 8, 8))


def test_predict_logits_goes_through_the_working_size_and_back():
    model = segmenter(stride=1, resize=[8, 12])
    logits = model.predict_logits(torch.full((1, 3, 33, 50), 20, dtype=torch.uint8))
    assert model.network.seen.shape[-2:] == (8, 12)
    assert logits.shape == (1, 2, 33, 50)
    assert torch.allclose(logits[:, 0], torch.tensor(5.0))  # a flat image stays flat: (20 - 10) / 2


@pytest.mark.parametrize("size_hw", [(15, 20), (17, 60), (90, 9), (80, 100)])
@pytest.mark.parametrize(("dtype", "rounding"), [(np.uint8, 1), (np.uint16, 0.5), (np.float32, 1e-3)])
def test_prediction_resizes_as_training_does(tmp_path, dtype, rounding, size_hw):
    noise = (np.random.default_rng(0).random((31, 42, 5)) * 255).astype(dtype)
    folders = tmp_path / "images", tmp_path / "masks"
    for folder, pixels in zip(folders, (noise, np.zeros((31, 42), np.uint8)), strict=True):
        folder.mkdir()
        tifffile.imwrite(folder / "a.tif", pixels)
    trained = MaskDataset(*folders, open_codec("tiff", MaskFormat.multiclass(["a", "b"])), resize=size_hw)[0].image
    assert (trained.shape, trained.dtype) == ((*size_hw, 5), dtype)
    model = segmenter(statistics=PixelStatistics((0.0,) * 5, (1.0,) * 5, np.dtype(dtype).name))
    predicted = model.resized(torch.from_numpy(noise.transpose(2, 0, 1))[None], size_hw)[0]
    assert np.abs(trained.transpose(2, 0, 1) - predicted.numpy()).max() <= rounding + 1e-4


@pytest.mark.parametrize(("resize", "expected"), [(None, (40, 30)), ([7, 9], (7, 9)), (20, (20, 15)), (80, (80, 60))])
def test_fit_size(resize, expected):
    assert fit_size((40, 30), resize) == expected


@pytest.mark.parametrize("resize", ["20", [1, 2, 3], 0, -5, True, [0, 4]])
def test_fit_size_refuses_what_is_no_size(resize):
    with pytest.raises(ValueError, match="height, width"):
        fit_size((40, 30), resize)


def test_statistics_must_be_usable():
    with pytest.raises(ValueError, match="positive std"):
        PixelStatistics((1.0,), (0.0,))
    with pytest.raises(ValueError, match="int8"):
        PixelStatistics((1.0,), (1.0,), dtype="int8")


def test_statistics_are_no_part_of_the_weights():
    assert set(segmenter().state_dict()) == {"network.scale"}


def test_encoder_statistics_stay_for_8_bit_images_and_yield_to_the_data_otherwise():
    images = [np.arange(24, dtype=np.uint8).reshape(2, 4, 3)]
    own = PixelStatistics((1.0,) * 3, (1.0,) * 3, source="encoder")
    model = segmenter(statistics=own, clipping=Clipping())
    model.fit_statistics(lambda: images)
    assert model.statistics == own
    model.fit_statistics(lambda: [i.astype(np.float32) for i in images])
    # band 0 holds 0, 3, ..., 21: mean 10.5, variance 9 * (64 - 1) / 12 = 47.25
    assert model.statistics.source == "data"
    assert model.statistics.dtype == "float32"
    assert model.statistics.mean == pytest.approx((10.5, 11.5, 12.5))
    assert model.statistics.std == pytest.approx((47.25**0.5,) * 3)
    assert model.mean.flatten().tolist() == pytest.approx([10.5, 11.5, 12.5])


def stored(*values, dtype=torch.float32):
    """One pixel of three bands."""
    return torch.tensor(values).to(dtype).view(1, 3, 1, 1)


def test_values_beyond_the_clip_become_its_ends_before_they_are_normalised():
    clip = ((0, 20), (0, 20), (14, 100))
    model = segmenter(stride=1, statistics=PixelStatistics((10, 20, 30), (2, 4, 8), "float32", clip=clip))
    # 50 counts as 20: (20 - 10) / 2. -4 counts as 0: (0 - 20) / 4. 38 stays: (38 - 30) / 8
    assert model.normalize(stored(50.0, -4.0, 38.0)).flatten().tolist() == [5.0, -5.0, 1.0]
    model.statistics = PixelStatistics((10, 20, 30), (2, 4, 8), "float32")
    assert model.normalize(stored(50.0, -4.0, 38.0)).flatten().tolist() == [20.0, -6.0, 1.0]


def test_the_clip_is_in_units_of_the_trained_depth():
    model = segmenter(statistics=PixelStatistics((0,) * 3, (257,) * 3, "uint16", clip=((257, 25700),) * 3))
    assert model.normalize(stored(0, 50, 200, dtype=torch.uint8)).flatten().tolist() == [1.0, 50.0, 100.0]


def test_a_working_size_does_not_lose_the_depth():
    """Resized images are float32, whose depth is no longer to be seen: they are rescaled before."""
    statistics = PixelStatistics((0,) * 3, (257,) * 3, "uint16")
    eight = torch.full((1, 3, 33, 50), 20, dtype=torch.uint8)
    logits = segmenter(stride=1, statistics=statistics, resize=[8, 12]).predict_logits(eight)
    assert torch.allclose(logits, torch.tensor(20.0))


def test_a_spacing_decides_the_working_size_of_each_image():
    model = segmenter(stride=1, resize=Spacing(1, 2))
    images = torch.full((1, 3, 32, 50), 20, dtype=torch.uint8)
    for spacing_mm, size_hw in (((0.5, 2.0), (16, 50)), ((1.0, 1.0), (32, 25))):
        assert model.predict_logits(images, spacing_mm).shape == (1, 2, 32, 50)
        assert model.network.seen.shape[-2:] == size_hw
    with pytest.raises(ValueError, match="tells no spacing"):
        model.predict_logits(images)


def fitted(model, *images):

    model.fit_statistics(lambda: [np.asarray(i).reshape(1, -1, 3) for i in images])
    return model.statistics


def test_statistics_of_an_encoder_yield_to_a_window():
    own = PixelStatistics((1.0,) * 3, (1.0,) * 3, source="encoder")
    image = np.repeat(np.array([0, 100, 200, 255], np.uint8), 3)
    model = segmenter(statistics=own, clipping=find_clipping(window=[100, 200]))
    assert fitted(model, image).clip == ((100.0, 200.0),) * 3
    assert model.statistics.mean == (150.0,) * 3
    before = model.statistics
    assert fitted(model, image // 2) == before  # fitted once


def test_a_deeper_image_among_the_first_is_seen():
    own = PixelStatistics((1.0,) * 3, (1.0,) * 3, source="encoder")
    eight, deep = np.arange(9, dtype=np.uint8), np.arange(9, dtype=np.float32)
    assert fitted(segmenter(statistics=own), eight, eight) == own
    assert fitted(segmenter(statistics=own), eight, deep).dtype == "float32"


def test_normalised_images_need_no_statistics_and_leave_none_behind():
    image = np.arange(24, dtype=np.float32)
    model = segmenter(reading=ImageReading(normalize="volume"))
    plain = PixelStatistics((0.0,) * 3, (1.0,) * 3, "float32", "reading")
    assert fitted(model, image) == plain
    assert torch.equal(model.normalize(stored(1.0, 2.0, 3.0)), stored(1.0, 2.0, 3.0))
    asked = segmenter(reading=ImageReading(normalize="volume"), clipping=find_clipping(window=(-160, 240)))
    with pytest.raises(ValueError, match=r"read with normalize='volume': leave `clip` and `window` out"):
        fitted(asked, image)
    model.reading = ImageReading()  # fine-tuned on values as they are stored
    assert fitted(model, image).source == "data"
