from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from segkit.data.device_augment import find_places, recolor, take_pixels, take_planes
from segkit.data.fast_augment import FAST_PRESETS, Colours, FastAugment, draw
from segkit.data.sample import Sample
from segkit.data.warp import Move
from segkit.formats.mask_format import MaskFormat

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


def moved(corner: tuple[int, int], window_hw: tuple[int, int], **changes) -> Move:
    """A window shown in its own size."""
    return Move(corner, window_hw, window_hw, **changes)


def test_what_is_not_changed_is_the_window_to_the_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (7, 11, 5)).astype(np.uint16)
    planes = rng.integers(0, 256, (7, 11, 2)).astype(np.uint8)
    moves = [moved((2, 3), (4, 6)), moved((0, 0), (4, 6), flip_x=True), moved((1, 1), (4, 6), flip_y=True)]
    places = find_places(moves, [0] * 3, [(7, 11)] * 3, CPU)
    assert places.whole
    pixels = take_pixels(torch.from_numpy(image.reshape(-1, 5).view(np.int16)), places)
    target = take_planes(torch.from_numpy(planes.reshape(-1, 2)), places, 255)
    for stored, got in ((image, pixels), (planes, target.permute(0, 2, 3, 1))):
        assert np.array_equal(got[0], stored[2:6, 3:9])
        assert np.array_equal(got[1], stored[0:4, 5::-1])
        assert np.array_equal(got[2], stored[4:0:-1, 1:7])
    assert recolor(pixels, [Colours()] * 3, eight_bit=False) is pixels


@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_are_those_of_numpy(quarters):
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    places = find_places([moved((2, 4), (5, 5), flip_x=True, quarters=quarters)], [0], [(9, 13)], CPU)
    assert places.whole
    got = take_pixels(torch.from_numpy(image.reshape(-1, 3)), places)[0]
    assert np.array_equal(got, np.rot90(image[2:7, 4:9][:, ::-1], quarters))


def test_whole_places_give_the_same_bits_beside_others_in_a_batch():
    pixels, _, starts = position_set([(9, 13)])
    whole, turned = moved((1, 2), (5, 5)), moved((0, 0), (5, 5), angle_deg=10)
    alone = find_places([whole], starts, [(9, 13)], CPU)
    beside = find_places([whole, turned], starts * 2, [(9, 13)] * 2, CPU)
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
        moves = [draw(FAST_PRESETS[name], crop, size, seed)[0] for size in sizes]
        places = find_places(moves, starts, sizes, CPU)
        x, y = take_pixels(pixels, places).unbind(3)
        target = take_planes(numbers, places, IGNORED)[:, 0]
        for n, (_, width) in enumerate(sizes):
            known = target[n] != IGNORED
            nearest_y, nearest_x = target[n] // width, target[n] % width
            # Where the image is mirrored at its border, its coordinates turn back.
            assert (x[n] - nearest_x)[known].abs().max() <= 0.502
            assert (y[n] - nearest_y)[known].abs().max() <= 0.502
            assert x[n].min() >= 0
            assert x[n].max() <= width - 1
            inside += int(known.sum())
    assert inside > 0.5 * 20 * 3 * 32 * 32


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_those_of_opencv(seed):
    image = np.random.default_rng(seed).random((40, 56, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(image, (0, 0), 4)  # OpenCV rounds places to 1/32 pixel
    move, _ = draw(FAST_PRESETS["fast_medical"], (24, 24), (40, 56), seed)
    places = find_places([move], [0], [(40, 56)], CPU)
    got = take_pixels(torch.from_numpy(smooth.reshape(-1, 3)), places)[0].numpy()
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REFLECT_101
    want = cv2.warpAffine(smooth, move.to_source(), (24, 24), flags=flags, borderMode=border)
    assert np.abs(got - want).max() < 2e-3


def test_beyond_the_border_the_image_is_mirrored_and_planes_are_ignored():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    # Wider than once mirrored.
    places = find_places([moved((-4, -3), (12, 9))], [0], [(3, 4)], CPU)
    want = np.pad(image, ((4, 5), (3, 2)), mode="reflect")
    assert np.array_equal(take_pixels(torch.from_numpy(image.reshape(-1, 1)), places)[0, ..., 0], want)
    target = take_planes(torch.from_numpy(image.reshape(-1, 1)), places, 255)[0, 0]
    assert np.array_equal(target, np.pad(image, ((4, 5), (3, 2)), constant_values=255))


def test_an_image_of_one_row_is_mirrored_into_itself():
    places = find_places([moved((-1, 0), (3, 2))], [0], [(1, 2)], CPU)
    assert take_pixels(torch.tensor([[5], [6]], dtype=torch.uint8), places)[0, ..., 0].tolist() == [[5, 6]] * 3


def test_a_window_twice_as_large_is_the_mean_of_four_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
    places = find_places([Move((0, 0), (6, 8), (3, 4))], [0], [(6, 8)], CPU)
    got = take_pixels(torch.from_numpy(image.reshape(-1, 1)), places)[0, ..., 0].numpy()
    assert got == pytest.approx(image.reshape(3, 2, 4, 2).mean((1, 3)))


def test_colours_by_hand():
    values = torch.tensor([[[[10.0, 100.0, 250.0]]], [[[100.0, 150.0, 200.0]]], [[[100.0, 150.0, 200.0]]]])
    # Half of each value and a tenth of 255. The saturation of the others is 127.5: half of it is half way to the mean
    # of 150; ten times of it is no more than twice the distance.
    colours = [Colours(gain=0.5, offset=0.1), Colours(saturation=-63.75), Colours(saturation=1275.0)]
    got = recolor(values, colours, eight_bit=True)
    assert got[0, 0, 0].tolist() == pytest.approx([30.5, 75.5, 150.5])
    assert got[1, 0, 0].tolist() == pytest.approx([125, 150, 175])
    assert got[2, 0, 0].tolist() == pytest.approx([50, 150, 250])
    # Cut off at the ends of the range.
    assert recolor(values, [Colours(offset=0.9)] * 3, eight_bit=True).max() == 255


def test_hue_turns_from_red_to_green():
    red = torch.tensor([[[[160.0, 100.0, 100.0]]]])
    third = recolor(red, [Colours(hue_deg=120.0)], eight_bit=True)
    assert third[0, 0, 0].tolist() == pytest.approx([100, 160, 100], abs=1e-4)
    assert recolor(red, [Colours(hue_deg=120.0)], eight_bit=False) is red


def test_colours_of_other_depths_are_in_units_of_the_range_of_each_band_of_each_crop():
    values = torch.tensor([[[1000, 5], [2000, 7], [3000, 6]], [[0, 1], [10, 2], [40, 3]]], dtype=torch.int32)[:, None]
    got = recolor(values, [Colours(gain=0.5, offset=0.1), Colours(gain=2.0)], eight_bit=False)
    assert got[0, 0, :, 0].tolist() == pytest.approx([1200, 1700, 2200])
    assert got[0, 0, :, 1].tolist() == pytest.approx([5.2, 6.2, 5.7])
    assert got[1, 0, :, 0].tolist() == pytest.approx([0, 20, 40])
    assert got[1, 0, :, 1].tolist() == pytest.approx([1, 3, 3])


@pytest.mark.parametrize("other", [Colours(gain=0.9, offset=0.1), Colours(hue_deg=9.0), Colours(0.8, 0.1, 9.0, 20.0)])
def test_a_sample_that_keeps_its_colours_keeps_its_bits_beside_others(other):
    values = torch.rand(2, 3, 5, 3) * 255
    for eight_bit in (True, False):
        assert torch.equal(recolor(values, [Colours(), other], eight_bit)[0], values[0])


@pytest.mark.parametrize("name", FAST_PRESETS)
@pytest.mark.parametrize("shape", [(40, 56, 3), (40, 56, 1), (40, 56, 5)])
def test_the_device_shows_what_the_cpu_shows(name, shape):
    """One definition, two implementations.

    OpenCV rounds places to 1/32 pixel, so the image is smooth. Where a window grows without a rotation it repeats the
    outermost pixels of the window, and takes either of two pixels half way between them; the rim decides on ranges and
    mean colours with the rest.
    """
    format = MaskFormat.multilabel(["a", "b"])
    rng = np.random.default_rng(0)
    for dtype, most in ((np.uint8, 255), (np.uint16, 4000), (np.float32, 7)):
        image = cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), 4).reshape(shape)
        image = ((image - image.min()) / np.ptp(image) * most).astype(dtype)
        planes = cv2.GaussianBlur(rng.random((40, 56, 2)).astype(np.float32), (0, 0), 4) > 0.5
        sample = Sample("a", image, planes.astype(np.uint8))
        stored = torch.from_numpy(image.view(np.int16 if dtype == np.uint16 else dtype).reshape(-1, shape[2]))
        differ = []
        for seed in range(15):
            want = FastAugment(name, format, (24, 24))(sample, seed)
            move, colours = draw(FAST_PRESETS[name], (24, 24), (40, 56), seed)
            places = find_places([move], [0], [(40, 56)], CPU)
            pixels = recolor(take_pixels(stored, places), [colours], eight_bit=dtype == np.uint8)[0].numpy()
            target = take_planes(torch.from_numpy(sample.planes.reshape(-1, 2)), places, 255)[0]
            apart = np.abs(pixels - want.image.astype(np.float32))[1:-1, 1:-1]
            assert apart.max() <= 0.006 * most
            differ.append(np.mean(target.permute(1, 2, 0).numpy() != want.planes))
        assert np.mean(differ) < 0.005
