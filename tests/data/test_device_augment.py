from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from segkit.data.device_augment import find_places, recolor, take_pixels, take_planes
from segkit.data.fast_params import FAST_PRESETS, FastParams, draw

CPU = torch.device("cpu")
IGNORED = 65535


def position_set(sizes_hw):
    """Images whose two bands are x and y, planes that number the pixels; joined, with their starts."""
    images, planes, starts = [], [], [0]
    for height, width in sizes_hw:
        y, x = np.mgrid[:height, :width]
        images.append(np.dstack([x, y]).reshape(-1, 2).astype(np.float32))
        planes.append((y * width + x).reshape(-1, 1).astype(np.uint16))
        starts.append(starts[-1] + height * width)
    pixels, numbers = torch.from_numpy(np.concatenate(images)), np.concatenate(planes)
    return pixels, torch.from_numpy(numbers.view(np.int16)), starts[:-1]


def test_what_is_not_changed_is_the_window_to_the_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (7, 11, 5)).astype(np.uint16)
    planes = rng.integers(0, 256, (7, 11, 2)).astype(np.uint8)
    params = [FastParams((2, 3, 4, 6)), FastParams((0, 0, 4, 6), hflip=True), FastParams((1, 1, 4, 6), vflip=True)]
    places = find_places(params, [0] * 3, [(7, 11)] * 3, (4, 6), CPU)
    assert places.whole
    pixels = take_pixels(torch.from_numpy(image.reshape(-1, 5).view(np.int16)), places)
    target = take_planes(torch.from_numpy(planes.reshape(-1, 2)), places, 255)
    for stored, got in ((image, pixels), (planes, target.permute(0, 2, 3, 1))):
        assert np.array_equal(got[0], stored[2:6, 3:9])
        assert np.array_equal(got[1], stored[0:4, 5::-1])
        assert np.array_equal(got[2], stored[4:0:-1, 1:7])
    assert recolor(pixels, params, None) is pixels


def test_whole_places_give_the_same_bits_beside_others_in_a_batch():
    pixels, _, starts = position_set([(9, 13)])
    whole, turned = FastParams((1, 2, 5, 5)), FastParams((0, 0, 5, 5), rotation_deg=10)
    alone = find_places([whole], starts, [(9, 13)], (5, 5), CPU)
    beside = find_places([whole, turned], starts * 2, [(9, 13)] * 2, (5, 5), CPU)
    assert alone.whole
    assert not beside.whole
    assert torch.equal(take_pixels(pixels, alone)[0], take_pixels(pixels, beside)[0])


@pytest.mark.parametrize("name", FAST_PRESETS)
def test_image_and_planes_are_read_at_the_same_places(name):
    """The image holds its coordinates, the planes number the pixels: the number is that of the nearest coordinate."""
    sizes, crop = [(40, 56), (61, 37), (50, 50)], (32, 32)
    pixels, numbers, starts = position_set(sizes)
    inside = 0
    for seed in range(20):
        params = [draw(FAST_PRESETS[name], size, crop, seed) for size in sizes]
        places = find_places(params, starts, sizes, crop, CPU)
        x, y = take_pixels(pixels, places).unbind(3)
        target = take_planes(numbers, places, IGNORED)[:, 0]
        for n, (_, width) in enumerate(sizes):
            known = target[n] != IGNORED
            nearest_y, nearest_x = target[n] // width, target[n] % width
            # Where the image is mirrored at its border, its coordinates turn back.
            assert (x[n] - nearest_x)[known].abs().max() <= 0.5 + 1e-3
            assert (y[n] - nearest_y)[known].abs().max() <= 0.5 + 1e-3
            assert x[n].min() >= 0
            assert x[n].max() <= width - 1
            inside += int(known.sum())
    assert inside > 0.5 * 20 * 3 * 32 * 32


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_those_of_opencv(seed):
    image = np.random.default_rng(seed).random((40, 56, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(image, (0, 0), 4)  # OpenCV rounds places to 1/32 pixel
    params = draw(FAST_PRESETS["fast_medical"], (40, 56), (24, 24), seed)
    places = find_places([params], [0], [(40, 56)], (24, 24), CPU)
    got = take_pixels(torch.from_numpy(smooth.reshape(-1, 3)), places)[0].numpy()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REFLECT_101
    want = cv2.warpAffine(smooth, params.source_matrix((24, 24)), (24, 24), flags=flags, borderMode=border)
    assert np.abs(got - want).max() < 2e-3


def test_beyond_the_border_the_image_is_mirrored_and_planes_are_ignored():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    window = FastParams((-4, -3, 12, 9))  # wider than once mirrored
    places = find_places([window], [0], [(3, 4)], (12, 9), CPU)
    want = np.pad(image, ((4, 5), (3, 2)), mode="reflect")
    assert np.array_equal(take_pixels(torch.from_numpy(image.reshape(-1, 1)), places)[0, ..., 0], want)
    target = take_planes(torch.from_numpy(image.reshape(-1, 1)), places, 255)[0, 0]
    assert np.array_equal(target, np.pad(image, ((4, 5), (3, 2)), constant_values=255))


def test_an_image_of_one_row_is_mirrored_into_itself():
    places = find_places([FastParams((-1, 0, 3, 2))], [0], [(1, 2)], (3, 2), CPU)
    assert take_pixels(torch.tensor([[5], [6]], dtype=torch.uint8), places)[0, ..., 0].tolist() == [[5, 6]] * 3


def test_a_window_twice_as_large_is_the_mean_of_four_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    places = find_places([FastParams((0, 0, 6, 8))], [0], [(6, 8)], (3, 4), CPU)
    got = take_pixels(torch.from_numpy(image.reshape(-1, 1)), places)[0, ..., 0].numpy()
    assert got == pytest.approx(image.reshape(3, 2, 4, 2).mean((1, 3)))


def test_colours_by_hand():
    values = torch.tensor([[[[10.0, 100.0, 250.0]]], [[[10.0, 100.0, 250.0]]]])
    window = (0, 0, 1, 1)
    params = [FastParams(window, brightness=0.1, contrast=0.5), FastParams(window, saturation=0.5)]
    got = recolor(values, params, (0.0, 255.0))
    # Half of each value and a tenth of 255; half way to the mean of 120.
    assert got[0, 0, 0].tolist() == pytest.approx([30.5, 75.5, 150.5])
    assert got[1, 0, 0].tolist() == pytest.approx([65, 110, 185])
    # Cut off at the ends of the range.
    assert recolor(values, [FastParams(window, brightness=0.5)] * 2, (0.0, 255.0)).max() == 255


def test_colours_of_other_depths_are_in_units_of_the_range_of_each_crop():
    values = torch.tensor([[1000, 2000, 3000, 1500, 1000], [0, 10, 20, 30, 40]], dtype=torch.int32).view(2, 1, 1, 5)
    params = [FastParams((0, 0, 1, 1), brightness=0.1, contrast=0.5), FastParams((0, 0, 1, 1), contrast=2.0)]
    got = recolor(values, params, None)
    assert got[0, 0, 0].tolist() == pytest.approx([1200, 1700, 2200, 1450, 1200])
    assert got[1, 0, 0].tolist() == pytest.approx([0, 20, 40, 40, 40])


def test_a_sample_that_keeps_its_colours_keeps_its_bits_beside_others():
    values = torch.rand(2, 3, 5, 3) * 1e4 - 77
    window = (0, 0, 3, 5)
    for other in (FastParams(window, brightness=0.1, contrast=0.9), FastParams(window, hue_deg=9.0)):
        for limits in (None, (-100.0, 1e4)):
            assert torch.equal(recolor(values, [FastParams(window), other], limits)[0], values[0])
