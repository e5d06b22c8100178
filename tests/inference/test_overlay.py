from __future__ import annotations

import numpy as np

from segkit.formats.classes import MaskClass
from segkit.formats.mask_format import MaskFormat
from segkit.inference.overlay import draw_overlay, side_by_side, to_rgb

RED, BLUE = MaskClass("red", (200, 0, 0)), MaskClass("blue", (0, 0, 100))


def test_a_class_tints_its_inside_and_outlines_itself():
    planes = np.zeros((9, 11, 1), np.uint8)
    planes[2:7, 2:9] = 1
    picture = draw_overlay(np.full((9, 11, 3), 100, np.uint8), planes, MaskFormat.multilabel([RED]))
    assert picture[4, 5].tolist() == [150, 50, 50]  # half of 100, half of (200, 0, 0)
    assert picture[2, 5].tolist() == [200, 0, 0]
    assert picture[0, 0].tolist() == [100, 100, 100]


def test_overlapping_classes_mix_and_ignored_pixels_stay_bare():
    planes = np.ones((9, 9, 2), np.uint8)
    planes[:, :4] = 255
    picture = draw_overlay(np.zeros((9, 9, 3), np.uint8), planes, MaskFormat.multilabel([RED, BLUE]))
    assert picture[4, 6].tolist() == [50, 0, 25]  # half of the mean of (200, 0, 0) and (0, 0, 100)
    assert picture[4, 1].tolist() == [0, 0, 0]


def test_background_is_not_painted():
    format = MaskFormat.multiclass(["background", RED])
    picture = draw_overlay(np.full((5, 5, 3), 70, np.uint8), np.zeros((5, 5, 1), np.uint8), format)
    assert (picture == 70).all()


def test_other_depths_are_stretched_to_8_bit():
    bands = np.linspace(0, 5000, 13 * 30 * 40).reshape(30, 40, 13).astype(np.uint16)
    rgb = to_rgb(bands)
    assert rgb.shape == (30, 40, 3)
    assert rgb.dtype == np.uint8
    assert (int(rgb.min()), int(rgb.max())) == (0, 255)
    assert to_rgb(np.full((3, 4, 1), 7.5, np.float32)).shape == (3, 4, 3)
    assert (to_rgb(np.full((3, 4, 1), 9, np.uint8)) == 9).all()


def test_side_by_side_adds_up():
    assert side_by_side(np.zeros((5, 4, 3), np.uint8), np.zeros((5, 6, 3), np.uint8), gap=2).shape == (5, 12, 3)
