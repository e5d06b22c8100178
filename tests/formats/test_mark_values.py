import numpy as np
import pytest

from segkit.formats.mark_values import MarkValues


def test_marks_of_one_bit_and_of_other_depths():
    table = MarkValues("tiff", [9], [128])
    assert table.to_planes(np.array([[True, False]]), "a.tif").tolist() == [[1, 0]]
    for dtype in (np.uint8, np.uint16, np.float32):
        planes = table.to_planes(np.array([[0, 9], [128, 9]], dtype), "a.tif")
        assert (planes.dtype, planes.tolist()) == (np.uint8, [[0, 1], [255, 1]])
    with pytest.raises(ValueError, match=r"a\.tif: found values \[300\], expected 0 and 9, or \[128\] for ignored"):
        table.to_planes(np.array([[300]], np.uint16), "a.tif")


def test_only_one_of_the_values_that_need_no_word_may_be_there():
    table = MarkValues("tiff")
    for value in (1, 255):
        assert table.to_planes(np.array([[0, value]], np.uint8), "a.tif").tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"a\.tif: holds both 1 and 255.*`present_values: \[1, 255\]`"):
        table.to_planes(np.array([[1, 255]], np.uint8), "a.tif")
    assert MarkValues("tiff", [255, 1]).to_planes(np.array([[1, 255]], np.uint8), "a.tif").tolist() == [[1, 1]]


def test_the_first_of_several_values_is_written():
    table = MarkValues("tiff", [7, 8], [200, 201])
    assert table.to_disk(np.array([[0, 1, 255]], np.uint8), "a.tif").tolist() == [[0, 7, 200]]
    with pytest.raises(ValueError, match=r"plane values \[3\], expected 0, 1 or ignored"):
        table.to_disk(np.array([[3]], np.uint8), "a.tif")
    with pytest.raises(ValueError, match="some pixels are ignored, and no value on disk means that"):
        MarkValues("tiff").to_disk(np.array([[255]], np.uint8), "a.tif")
