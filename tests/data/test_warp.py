from dataclasses import replace

import cv2
import numpy as np
import pytest

from segkit.data.packed import pack_planes
from segkit.data.warp import Move, move_image, move_planes

RNG = np.random.default_rng(0)
SIZE_HW = (46, 61)


def moves(count=40, size_hw=(32, 32), **fixed):
    """Random moves whose window may reach beyond the border."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        straight = rng.random() < 0.4
        window = tuple(int(n) for n in rng.integers(16, 64, 2)) if rng.random() < 0.5 else size_hw
        values = {
            "corner": tuple(int(n) for n in rng.integers(-9, 30, 2)),
            "window_hw": window,
            "size_hw": size_hw,
            "flip_x": bool(rng.random() < 0.5),
            "flip_y": bool(rng.random() < 0.5),
            "quarters": int(rng.integers(4)) if size_hw[0] == size_hw[1] else 0,
            "angle_deg": 0.0 if straight else float(rng.uniform(-25, 25)),
            "scale_xy": (1.0, 1.0) if straight else tuple(rng.uniform(0.8, 1.25, 2)),
        }
        yield Move(**{**values, **fixed})


def by_definition(planes, move, ignore_index):
    """Each pixel of the result looks up the value at its centre; None of OpenCV."""
    rows, columns = np.mgrid[: move.size_hw[0], : move.size_hw[1]]
    x, y = np.tensordot(move.to_source(), np.stack([columns, rows, np.ones_like(rows)]), 1)
    x, y = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < planes.shape[1]) & (y < planes.shape[0])
    result = np.full((*move.size_hw, planes.shape[2]), ignore_index, planes.dtype)
    result[inside] = planes[y[inside], x[inside]]
    return result


def test_planes_take_the_value_at_the_centre_or_are_ignored():
    planes = RNG.integers(3, 9, (*SIZE_HW, 1)).astype(np.uint8)
    differing = [
        (move_planes(planes, move, 255) != by_definition(planes, move, 255)).mean() for move in moves(size_hw=(30, 40))
    ]
    # Ties may be rounded either way, and OpenCV before 5 rounds coordinates to 1/1024 of a pixel.
    assert np.mean(differing) < 0.004


def test_the_steps_in_their_order_by_numpy():
    image = RNG.integers(0, 256, (*SIZE_HW, 3)).astype(np.uint8)
    window = image[5:25, 7:27]
    for flip_x in (False, True):
        for flip_y in (False, True):
            for quarters in range(4):
                expected = window[:, ::-1] if flip_x else window
                expected = np.rot90(expected[::-1] if flip_y else expected, quarters)
                move = Move((5, 7), (20, 20), (20, 20), flip_x, flip_y, quarters)
                np.testing.assert_array_equal(move_image(image, move), expected)
                np.testing.assert_array_equal(by_definition(image, move, 0), expected)


def test_angles_run_clockwise_and_scales_along_the_sides():
    planes = np.zeros((41, 41, 1), np.uint8)
    planes[20, 30] = 1  # right of the middle by 10
    for angle, scale_xy, place in (
        (90.0, (1.0, 1.0), (30, 20)),
        (-90.0, (1.0, 1.0), (10, 20)),
        (0.0, (1.5, 9.0), (20, 35)),
    ):
        move = Move((0, 0), (41, 41), (41, 41), angle_deg=angle, scale_xy=scale_xy)
        assert move_planes(planes, move, 255)[place][0] == 1


@pytest.mark.parametrize("move", list(moves(12, (33, 33))) + list(moves(8, (21, 34))))
def test_straight_moves_are_their_matrix(move):
    """What is cut, resized and flipped step by step lies where the matrix of a warp puts it."""
    # A smooth image, so that any shift shows: x and y as brightness.
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    image = np.dstack([rows, columns]).astype(np.float32)
    found = move_image(image, move)
    rows, columns = np.mgrid[: move.size_hw[0], : move.size_hw[1]]
    x, y = np.tensordot(move.to_source(), np.stack([columns, rows, np.ones_like(rows)]), 1)
    # Within the window and the image: at their borders a pixel has no neighbour to be mixed with.
    inside = np.ones(x.shape, bool)
    for at, start, length, side in zip((y, x), move.corner, move.window_hw, SIZE_HW, strict=True):
        inside &= (at >= max(0, start)) & (at <= min(side, start + length) - 1)
    assert inside.mean() > 0.2
    # OpenCV before 5 rounds to 1/32 of a pixel.
    assert np.abs(found[..., 0] - y)[inside].max() < 0.05
    assert np.abs(found[..., 1] - x)[inside].max() < 0.05


def test_image_and_planes_stay_together():
    """Centroid of a disc in an image that shows its mask, over many moves and sizes: no bias, little scatter."""
    rows, columns = np.mgrid[:210, :230]
    disc = (np.hypot(rows - 101.3, columns - 114.6) < 45).astype(np.uint8)[..., None]
    y, x = np.mgrid[:160, :160]
    shifts = []
    for number, move in enumerate(moves(120, (160, 160), corner=(20, 30))):
        if move.is_straight:  # 128 to 202 pixels become 160
            side = 128 + number % 75
            move = replace(move, window_hw=(side, side), corner=(20 - (side - 160) // 2, 30 - (side - 160) // 2))
        else:
            move = replace(move, window_hw=(160, 160))
        shown, planes = move_image(disc * 200, move)[..., 0], move_planes(disc, move, 255)[..., 0] == 1
        shifts.append([np.average(at, weights=shown) - np.average(at, weights=planes) for at in (x, y)])
    # Of two grids that nearly agree (159 pixels become 160), one is rounded the same way over half an image.
    assert np.abs(shifts).max() < 0.5
    assert np.std(shifts) < 0.1
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.03


@pytest.mark.parametrize("count", [2, 3, 8, 9, 20])
@pytest.mark.parametrize("ignored", [False, True])
def test_packed_planes_move_as_each_of_them_does(count, ignored):
    planes = RNG.integers(0, 2, (*SIZE_HW, count)).astype(np.uint8)
    if ignored:
        planes[10:30, 20:40, count // 2] = 255
    packed = pack_planes(planes, "a")
    by_a_pixel = [Move((-1, 3), (20, 20), (20, 20)), Move((27, 20), (20, 20), (20, 20), angle_deg=0.2)]
    for move in [*moves(30), *by_a_pixel]:
        each = np.dstack([move_planes(planes[..., p : p + 1], move, 255) for p in range(count)])
        np.testing.assert_array_equal(move_planes(packed, move, 255), each)
        np.testing.assert_array_equal(move_planes(planes, move, 255), each)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 20])
def test_no_value_appears_that_was_not_there(count, dtype):
    largest = 9 if dtype == np.uint8 else 300
    planes = RNG.integers(3, largest, (*SIZE_HW, count)).astype(dtype)
    ignored = int(np.iinfo(dtype).max)
    for move in moves(10):
        found = move_planes(planes, move, ignored)
        assert (found.dtype, found.shape) == (planes.dtype, (32, 32, count))
        beyond = found == ignored
        np.testing.assert_array_equal(beyond, beyond[..., :1].repeat(count, 2))
        for plane in range(count):
            assert set(np.unique(found[..., plane])) <= {*np.unique(planes[..., plane]), ignored}


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_of_any_depth_and_bands(bands, dtype):
    image = (RNG.random((*SIZE_HW, bands)) * 250).astype(dtype)
    for move in moves(12):
        found = move_image(image, move)
        assert (found.dtype, found.shape) == (image.dtype, (32, 32, bands))
        assert found.flags.c_contiguous
        assert not np.may_share_memory(found, image)
        # Each band is moved like the others.
        np.testing.assert_allclose(found[..., -1:], move_image(image[..., -1:], move), atol=1.01)


def test_beyond_the_border_images_are_mirrored():
    image = RNG.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    padded = cv2.copyMakeBorder(image, 20, 20, 20, 20, cv2.BORDER_REFLECT_101)
    for angle in (0.0, 14.0):
        move = Move((-5, 10), (32, 32), (32, 32), angle_deg=angle)
        inner = Move((15, 30), (32, 32), (32, 32), angle_deg=angle)
        assert np.abs(move_image(image, move).astype(int) - move_image(padded, inner)).max() <= 1


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 40), (40, 1), (3, 5)])
def test_images_far_smaller_than_the_result(image_hw):
    image = np.full((*image_hw, 3), 77, np.uint8)
    planes = np.full((*image_hw, 1), 4, np.uint8)
    for move in moves(30, corner=(-20, -20)):
        assert (move_image(image, move) == 77).all()
        assert set(np.unique(move_planes(planes, move, 255))) <= {4, 255}


def test_a_warp_reads_only_its_window_of_a_huge_image():
    image = np.broadcast_to(np.arange(40000, dtype=np.uint16)[None, :, None], (64, 40000, 1))
    move = Move((16, 39000), (32, 32), (32, 32), angle_deg=3.0)
    found = move_image(image, move)
    assert found.min() >= 38998
    assert found.max() <= 39034
