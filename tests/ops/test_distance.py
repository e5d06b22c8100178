from __future__ import annotations

import math

import cv2
import pytest
import torch

from segkit.ops.distance import by_rows, distance_to


@pytest.mark.parametrize("measure", [distance_to, by_rows])
def test_by_hand(measure):
    # .  .  .  .  .      one pixel in a corner: 3-4-5 and 5-12-13 would be whole
    pixels = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    pixels[0, 0, 0, 0] = True
    found = measure(pixels)[0, 0]
    assert found[3, 4] == 5.0
    assert found[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert found[1, 1] == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize("measure", [distance_to, by_rows])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_against_all_pairs(measure, share):
    pixels = torch.rand((2, 3, 17, 23), generator=torch.Generator().manual_seed(1)) < share
    pixels[1, 2] = False
    pixels[0, 1] = True
    y, x = torch.meshgrid(torch.arange(17.0), torch.arange(23.0), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    for n in range(2):
        for c in range(3):
            here = places[pixels[n, c].flatten()]
            expected = torch.cdist(places, here).amin(1) if len(here) else torch.full((17 * 23,), math.inf)
            torch.testing.assert_close(measure(pixels)[n, c].flatten(), expected, rtol=1e-6, atol=1e-5)


def test_maps_in_any_order_of_memory_and_without_pixels():
    pixels = torch.rand((2, 3, 9, 5), generator=torch.Generator().manual_seed(2)) < 0.2
    turned = pixels.to(memory_format=torch.channels_last)
    assert torch.equal(distance_to(turned), distance_to(pixels))
    assert torch.equal(distance_to(pixels.mT), distance_to(pixels).mT)
    assert distance_to(pixels[:0]).shape == (0, 3, 9, 5)
    assert distance_to(pixels[:, :, :0]).shape == (2, 3, 0, 5)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_equal_to_the_last_bit_wherever_in_memory_a_map_lies(share):
    # OpenCV with Intel's kernels fails here: 33 · 47 is odd, so every map begins at another byte of a line of memory.
    pixels = torch.rand((50, 1, 33, 47), generator=torch.Generator().manual_seed(4)) < share
    same = pixels.repeat_interleave(64, 0)
    found = distance_to(same).view(50, 64, 33, 47)
    assert torch.equal(found, found[:, :1].expand_as(found))


def test_the_settings_of_opencv_stay_as_they_were():
    for intel in (False, True):
        cv2.ipp.setUseIPP(intel)
        before = cv2.ipp.useIPP()
        distance_to(torch.eye(5, dtype=torch.bool)[None, None])
        assert cv2.ipp.useIPP() == before


def test_nothing_is_read_back_elsewhere():
    assert distance_to(torch.zeros(2, 1, 5, 7, dtype=torch.bool, device="meta")).shape == (2, 1, 5, 7)


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    pixels = torch.rand((2, 3, 65, 90), generator=torch.Generator().manual_seed(3)) < 0.01
    torch.testing.assert_close(distance_to(pixels.cuda()).cpu(), distance_to(pixels), rtol=1e-6, atol=1e-5)
