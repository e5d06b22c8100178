import numpy as np
import pytest

from segkit.formats.disk_values import look_up, pack_bits, values_outside, whole_numbers


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_look_up_and_values_outside_agree_with_numpy(dtype):
    rng = np.random.default_rng(3)
    array = rng.integers(0, 256, (7, 11)).astype(dtype)[::2, 1::3]
    table = rng.integers(0, 256, 65536).astype(np.uint8)
    assert (look_up(table, array) == table[array]).all()
    known = set(range(0, 256, 3))
    assert values_outside(array, known) == sorted(set(array.ravel().tolist()) - known)


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (9, np.uint16), (20, np.uint32), (64, np.uint64)])
def test_packed_bits_say_which_marks_hold(count, dtype):
    marks = np.random.default_rng(count).random((3, 4, count)) < 0.5
    packed = pack_bits(marks)
    assert packed.dtype == dtype
    for row, column in np.ndindex(3, 4):
        assert int(packed[row, column]) == sum(2**k for k in range(count) if marks[row, column, k])


@pytest.mark.parametrize("dtype", ["u1", ">u2", "i2", ">i4", "u8", "f4", "f8"])
def test_whole_numbers_of_any_dtype_stay_what_they_are(dtype):
    numbers = whole_numbers(np.array([[0, 7, 200]], dtype), "a.tif")
    assert numbers.tolist() == [[0, 7, 200]]
    assert numbers.dtype in (np.uint8, np.uint16)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([0.5, 1], r"found values \[0\.5\], expected whole numbers"),
        ([float("nan"), 1], r"found values \[nan\]"),
        ([float("inf"), 1], "from 1.0 to inf, expected labels from 0 to 65535"),
        ([-1, 1], "from -1 to 1"),
        ([65536, 1], "from 1 to 65536"),
        ([1j, 1], "complex128, expected whole numbers"),
    ],
)
def test_what_is_no_label_is_refused(stored, said):
    with pytest.raises(ValueError, match=rf"a\.tif.*{said}"):
        whole_numbers(np.array([stored]), "a.tif")
