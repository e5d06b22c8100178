from dataclasses import replace

import numpy as np
import pytest

from segkit.data.packed import pack_planes, unpacked

RNG = np.random.default_rng(0)


def planes_of(count, ignored, size_hw=(7, 11)):
    values = [0, 1, 255] if ignored else [0, 1]
    return RNG.choice(np.array(values, np.uint8), (*size_hw, count))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 20])
@pytest.mark.parametrize("ignored", [False, True])
def test_unpacking_is_the_inverse_of_packing(count, ignored):
    planes = planes_of(count, ignored)
    packed = pack_planes(planes, "a")
    assert packed.shape == planes.shape
    assert packed.bits.shape == (7, 11, -(-count // 8))
    assert (packed.known is None) == (not ignored)
    np.testing.assert_array_equal(packed.unpack(), planes)
    np.testing.assert_array_equal(unpacked(packed), planes)
    assert unpacked(planes) is planes


def test_bit_p_of_the_bytes_is_plane_p():
    planes = np.zeros((1, 2, 11), np.uint8)
    planes[0, 1, [0, 3, 9]] = 1
    packed = pack_planes(planes, "a")
    assert packed.bits.tolist() == [[[0, 0], [1 + 8, 2]]]


def test_a_window_is_a_view_and_holds_what_lies_within_it():
    planes = planes_of(9, True)
    packed = pack_planes(planes, "a")
    window = packed[2:5, 3:9]
    assert np.shares_memory(window.bits, packed.bits)
    np.testing.assert_array_equal(window.unpack(), planes[2:5, 3:9])


@pytest.mark.parametrize("ignored", [False, True])
def test_outside_all_planes_are_ignored(ignored):
    packed = pack_planes(planes_of(9, ignored), "a")
    inside = np.full((7, 11), 255, np.uint8)
    inside[2, 3] = 0
    expected = packed.unpack().copy()
    expected[2, 3] = 255
    found = replace(packed, inside=inside)
    np.testing.assert_array_equal(found.unpack(), expected)
    np.testing.assert_array_equal(found[1:4, 2:5].unpack(), expected[1:4, 2:5])


def test_other_values_are_refused():
    planes = planes_of(2, True)
    planes[3, 4, 1] = 7
    with pytest.raises(ValueError, match=r"^town/a: planes are uint8 and hold \[7\], expected uint8 of 0, 1 and 255"):
        pack_planes(planes, "town/a")
