from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest

from segkit.data.fast_params import FAST_PRESETS, FastParams, FastPreset, draw


def sampled(image: np.ndarray, params: FastParams, crop_hw: tuple[int, int]) -> np.ndarray:
    """What OpenCV shows of `image` (H, W) through the matrix of `params`."""
    matrix = params.source_matrix(crop_hw)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, crop_hw[::-1], flags=flags)


def test_flips_turns_and_window_are_those_of_numpy():
    image = np.arange(9 * 13, dtype=np.uint8).reshape(9, 13)
    window = image[2:7, 4:9]
    for hflip, vflip, turns in [
        (False, False, 0),
        (True, False, 0),
        (False, True, 1),
        (True, True, 3),
        (True, False, 2),
    ]:
        want = window[:, ::-1] if hflip else window
        want = np.rot90(want[::-1] if vflip else want, turns)
        params = FastParams((2, 4, 5, 5), hflip, vflip, turns)
        assert np.array_equal(params.source_matrix((5, 5)) % 1, np.zeros((2, 3)))
        assert np.array_equal(sampled(image, params, (5, 5)), want)


def test_a_window_shown_larger_keeps_the_edges_of_its_pixels():
    # 2 rows, 3 columns shown as 4 x 9: (x, y) of the crop is centred at ((x + 1/2) / 3 - 1/2, (y + 1/2) / 2 - 1/2).
    matrix = FastParams((5, 7, 2, 3)).source_matrix((4, 9))
    assert matrix == pytest.approx(np.array([[1 / 3, 0, 7 - 1 / 3], [0, 1 / 2, 5 - 1 / 4]]))


def test_rotation_is_counter_clockwise_and_comes_after_scaling():
    # A point right of the centre of a 5 x 5 crop lies above it after a quarter turn. Columns grew by 2 before, so
    # what lies 2 pixels above the centre then lay 1 pixel to its right.
    matrix = FastParams((0, 0, 5, 5), scale_hw=(1.0, 2.0), rotation_deg=90.0).source_matrix((5, 5))
    assert matrix @ [2, 0, 1] == pytest.approx([3, 2])
    assert matrix @ [2, 2, 1] == pytest.approx([2, 2])


def test_colours_keep_gray_and_turn_hue():
    params = FastParams((0, 0, 1, 1), contrast=0.8, saturation=1.2, hue_deg=20.0)
    assert params.color_matrix(3) @ [1, 1, 1] == pytest.approx([0.8] * 3, rel=1e-12)
    assert np.array_equal(params.color_matrix(4), np.eye(4) * 0.8)
    assert np.array_equal(FastParams((0, 0, 1, 1)).color_matrix(3), np.eye(3))
    turned = FastParams((0, 0, 1, 1), hue_deg=20.0).color_matrix(3) @ [0.6, 0.5, 0.5]
    assert colorsys.rgb_to_hsv(*turned)[0] * 360 == pytest.approx(20, abs=1.2)
    grayed = FastParams((0, 0, 1, 1), saturation=0.5).color_matrix(3) @ [0.9, 0.3, 0.3]
    assert grayed == pytest.approx([0.7, 0.4, 0.4])


@pytest.mark.parametrize("name", FAST_PRESETS)
def test_drawn_numbers_keep_to_their_ranges_and_shares(name):
    preset, size_hw, crop_hw = FAST_PRESETS[name], (90, 130), (64, 64)
    drawn = [draw(preset, size_hw, crop_hw, seed) for seed in range(3000)]
    share = lambda values: np.mean(list(values))  # noqa: E731
    assert share(p.hflip for p in drawn) == pytest.approx(preset.hflip, abs=0.04)
    assert share(p.vflip for p in drawn) == pytest.approx(preset.vflip, abs=0.04)
    assert share(p.quarter_turns == 1 for p in drawn) == pytest.approx(preset.turns / 4, abs=0.04)
    assert share(p.rotation_deg != 0 for p in drawn) == pytest.approx(preset.affine, abs=0.04)
    assert share(p.brightness != 0 for p in drawn) == pytest.approx(preset.light, abs=0.04)
    assert share(p.hue_deg != 0 for p in drawn) == pytest.approx(preset.color, abs=0.04)
    assert max(abs(p.rotation_deg) for p in drawn) <= preset.rotation_deg
    assert max(abs(p.brightness) for p in drawn) == pytest.approx(preset.brightness, rel=0.02)
    assert min(p.contrast for p in drawn) == pytest.approx(1 - preset.contrast, rel=0.02)
    assert share(p.brightness for p in drawn) == pytest.approx(0, abs=0.01)
    for params in drawn:
        assert all(preset.scale[0] <= s <= preset.scale[1] for s in params.scale_hw)
        top, left, height, width = params.window
        if width <= size_hw[1] and height <= size_hw[0]:
            assert 0 <= top <= size_hw[0] - height
            assert 0 <= left <= size_hw[1] - width
        assert 64 / 2.0 - 1 <= height <= 90 * 1.5


def test_hflip_and_vflip_are_drawn_apart():
    drawn = [draw(FastPreset(hflip=0.5, vflip=0.5), (8, 8), None, seed) for seed in range(2000)]
    assert np.mean([p.hflip and p.vflip for p in drawn]) == pytest.approx(0.25, abs=0.04)


def test_every_place_of_a_crop_is_drawn_and_no_other():
    windows = {draw(FastPreset(), (5, 4), (3, 4), seed).window for seed in range(200)}
    assert windows == {(top, 0, 3, 4) for top in range(3)}
    # Of an image smaller than its crop: all of it is shown, with what is mirrored on either side.
    windows = {draw(FastPreset(), (5, 4), (6, 6), seed).window for seed in range(200)}
    assert windows == {(top, left, 6, 6) for top in (-1, 0) for left in (-2, -1, 0)}


def test_a_margin_keeps_crops_from_the_border_where_there_is_room():
    preset = FastPreset(margin=1.5)
    tops = {draw(preset, (40, 30), (10, 10), seed).window[0] for seed in range(500)}
    assert (min(tops), max(tops)) == (2, 27)
    assert draw(preset, (10, 30), (10, 10), 0).window[0] == 0


def test_only_square_crops_are_turned():
    preset = FastPreset(turns=1.0)
    assert {draw(preset, (9, 9), (6, 5), seed).quarter_turns for seed in range(50)} == {0}
    assert {draw(preset, (9, 9), (6, 6), seed).quarter_turns for seed in range(50)} == {0, 1, 2, 3}
