from __future__ import annotations

import math

import pytest

from segkit.formats.mask_format import MaskFormat
from segkit.losses.class_weights import balanced_weights, parse_class_weights


def test_by_hand():
    # Frequencies 3/4, 1/4 and 1/12: the median is 1/4.
    pixels, around = [750, 250, 25], [1000, 1000, 300]
    assert balanced_weights(pixels, around) == [round(math.sqrt(1 / 3), 2), 1.0, round(math.sqrt(3), 2)]


def test_within_a_tenth_and_ten():
    assert balanced_weights([10**6, 500, 1], [10**6, 10**6, 10**6]) == [0.1, 1.0, 10.0]


def test_a_class_that_no_image_holds_weighs_one():
    assert balanced_weights([0, 400, 100], [0, 1000, 1000]) == [1.0, round(math.sqrt(0.25 / 0.4), 2), 1.58]
    assert balanced_weights([0, 0], [0, 0]) == [1.0, 1.0]


@pytest.mark.parametrize("pixels", [[0], [7]])
def test_a_class_alone_weighs_one(pixels):
    assert balanced_weights(pixels, [10]) == [1.0]


def test_a_word_that_is_none_is_refused_with_the_one_that_is():
    with pytest.raises(ValueError, match="class_weights is 'balance': expected balanced, a list of numbers or"):
        parse_class_weights("balance", MaskFormat.multiclass(["a", "b"]))
