import numpy as np
import pytest

from segkit.data.loaders import collate
from segkit.data.sample import Sample
from segkit.models.statistics import (
    DEFAULT_CLIPPING,
    Clipping,
    PixelStatistics,
    find_clipping,
    pixel_statistics,
)

RNG = np.random.default_rng(0)
IMAGES = {
    "uint8": RNG.integers(0, 256, (6, 7, 2)).astype(np.uint8),
    "uint16": RNG.integers(0, 65536, (6, 7, 2)).astype(np.uint16),
    "float32": RNG.normal(50, 900, (6, 7, 2)).astype(np.float32),
}


def test_statistics_by_hand():
    # band 0 holds 1, 3 and band 1 twice 5, which never changes
    found = pixel_statistics([np.array([[[1, 5], [3, 5]]], np.uint8)])
    assert (found.mean, found.std, found.dtype, found.source) == ((2.0, 5.0), (1.0, 1.0), "uint8", "data")


@pytest.mark.parametrize(
    "dtypes",
    [
        ("uint8", "uint16"),
        ("uint16", "uint8", "uint8"),
        ("uint8", "float32"),
        ("float32", "uint16"),
        ("uint8", "uint16", "float32"),
    ],
    ids="+".join,
)
def test_mixed_depths_give_the_statistics_of_their_batch(dtypes):
    images = [IMAGES[d] for d in dtypes]
    batch = collate([Sample(str(i), a, np.zeros((6, 7, 1), np.uint8)) for i, a in enumerate(images)]).images.numpy()
    found = pixel_statistics(iter(images))
    assert found.dtype == str(batch.dtype)
    assert found.mean == pytest.approx(batch.mean((0, 2, 3), dtype=np.float64))
    assert found.std == pytest.approx(batch.std((0, 2, 3), dtype=np.float64))


def test_images_that_give_no_statistics_are_refused():
    with pytest.raises(ValueError, match="list of images is empty"):
        pixel_statistics([])
    with pytest.raises(ValueError, match="2 and 1 bands"):
        pixel_statistics([IMAGES["uint8"], IMAGES["uint16"][..., :1]])
    with pytest.raises(ValueError, match="not finite"):
        pixel_statistics([np.full((2, 2, 1), np.nan, np.float32)])


def column(values, dtype):
    """An image of one band and one row."""
    return np.array(values, dtype)[None, :, None]


def test_clipped_statistics_by_hand():
    # 0, 1, ..., 100: the 10th percentile is 10, the 90th 90. Clipped, 11 values are 10, 11 are 90, and 11..89 stay.
    image = column(range(101), np.uint16)
    found = pixel_statistics([image], Clipping((10, 90)))
    clipped = np.array([10] * 11 + list(range(11, 90)) + [90] * 11)
    assert found.clip == ((10.0, 90.0),)
    assert (found.mean[0], found.std[0]) == pytest.approx((50, clipped.std()))
    assert pixel_statistics([image]).clip is None
    assert pixel_statistics([image]).std[0] == pytest.approx(image.std())


def test_one_hot_pixel_does_not_make_all_else_dark():
    values = np.random.default_rng(0).normal(100, 5, 2000).astype(np.float32)
    hot = np.concatenate([values, [1e6]])
    plain, clipped = (pixel_statistics([column(hot, np.float32)], c) for c in (Clipping(), DEFAULT_CLIPPING))
    assert plain.std[0] > 10_000
    assert clipped.std[0] == pytest.approx(5, rel=0.1)


def test_a_window_holds_for_every_band():
    image = np.stack([column([-1000, -160, 240, 3000], np.float32)[..., 0]] * 2, axis=-1)
    found = pixel_statistics([image], find_clipping(window=[-160, 240]))
    assert found.clip == ((-160.0, 240.0),) * 2
    assert (found.mean, found.std) == ((40.0,) * 2, (200.0,) * 2)


def test_8_bit_images_are_clipped_only_when_asked():
    image = column(range(256), np.uint8)
    assert pixel_statistics([image], DEFAULT_CLIPPING).clip is None
    assert pixel_statistics([image], find_clipping([20, 80])).clip == ((51.0, 204.0),)
    # Beside 16-bit they are 16-bit: 255 is 65535 there.
    mixed = pixel_statistics([image, column(range(256), np.uint16)], find_clipping([0, 100]))
    assert (mixed.dtype, mixed.clip) == ("uint16", ((0.0, 65535.0),))


def test_bands_that_percentiles_would_empty_keep_their_range():
    # One cell in a thousand pixels glows: both percentiles are 0. The second band is constant.
    glow = np.zeros((40, 50, 2), np.uint16)
    glow[20, 25, 0], glow[..., 1] = 900, 7
    found = pixel_statistics([glow], DEFAULT_CLIPPING)
    assert found.clip == ((0.0, 900.0), (7.0, 7.0))
    assert found.std[1] == 1.0


def test_large_images_give_a_sample_that_is_the_same_each_time():
    # Columns 0, 1, 2, ... : a step that divides the width would see some of them only.
    image = np.tile(np.arange(1000, dtype=np.float32)[:, None], (500, 1, 1))
    once, again = (pixel_statistics([image, image + 1000], DEFAULT_CLIPPING) for _ in range(2))
    assert once == again
    assert once.mean[0] == pytest.approx(999.5, abs=15)
    assert once.std[0] == pytest.approx(2000 / 12**0.5, rel=0.03)
    assert np.allclose(once.clip, [[10, 1990]], atol=10)


def test_small_units_are_no_constants():
    found = pixel_statistics([column([1e-9, 3e-9], np.float32)])
    assert found.std[0] == pytest.approx(1e-9)
    assert pixel_statistics([column([0.1] * 999, np.float32)]).std == (1.0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": [1, 99], "window": [0, 1]}, "expected one of them"),
        ({"clip": [99, 1]}, "low below high"),
        ({"clip": [0, 101]}, "percentiles from 0 to 100"),
        ({"clip": "off"}, "clip is 'off'"),
        ({"window": [240, -160]}, "window is .* low below high"),
        ({"window": [0, float("nan")]}, "low below high"),
        ({"window": [1, 2, 3]}, "low below high"),
    ],
)
def test_ranges_that_are_none_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find_clipping(**options)


def test_clips_of_statistics_must_be_usable():
    assert PixelStatistics([1], [2], clip=[[0, 5]]).clip == ((0.0, 5.0),)
    for wrong in ([[0, 5], [0, 5]], [[5, 0]], [[float("nan"), 1]]):
        with pytest.raises(ValueError, match="1 bands need as many"):
            PixelStatistics((1,), (2,), clip=wrong)
