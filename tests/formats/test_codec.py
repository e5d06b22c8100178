import json

import numpy as np
import pytest

from segkit.formats.codec import PixelValues, look_up, values_outside
from segkit.formats.mask_format import MaskFormat

STREET = MaskFormat.multiclass(["sky", "road", "car"])
BINARY = MaskFormat.binary("nucleus")


def test_default_values():
    assert PixelValues(STREET).values == {0: "sky", 1: "road", 2: "car"}
    assert PixelValues(BINARY).values == {0: "background", 1: "nucleus"}
    # classes named by numbers are stored as those numbers
    assert PixelValues(MaskFormat.multiclass([0, 7, 12])).values == {0: "0", 7: "7", 12: "12"}


def test_several_disk_values_name_one_class_and_the_first_is_written():
    table = PixelValues(STREET, {9: "car", 4: "sky", 5: "sky", 1: "road"}, [255, 200])
    plane = table.to_plane(np.array([[4, 5, 1], [9, 200, 255]], np.uint8), "a.png")
    assert plane.tolist() == [[0, 0, 1], [2, 255, 255]]
    assert table.to_disk(plane, "a.png").tolist() == [[4, 4, 1], [9, 255, 255]]


def test_the_background_of_a_binary_mask():
    # 0 is what is left of a binary mask whose `values` name the class alone
    assert PixelValues(BINARY, {255: "nucleus"}).values == {255: "nucleus", 0: "background"}
    # None is the absence of the class, here in a mask that marks it by black
    inverted = PixelValues(BINARY, {0: "nucleus", 255: None})
    assert inverted.to_plane(np.array([[0, 255]], np.uint8), "a.png").tolist() == [[1, 0]]
    with pytest.raises(ValueError, match=r"no disk value for \['background'\]"):
        PixelValues(BINARY, {0: "nucleus"})


def test_undeclared_values_name_file_values_and_way_out():
    stored = np.array([[0, 2], [77, 3]], np.uint8)
    with pytest.raises(ValueError, match=r"b/a\.png: found values \[3, 77\].*declared: 0: sky.*`ignored_values`"):
        PixelValues(STREET).to_plane(stored, "b/a.png")
    with pytest.raises(ValueError, match=r"found values \[300\]"):
        PixelValues(STREET).to_plane(np.array([[300]], np.uint16), "a.png")
    with pytest.raises(ValueError, match=r"a\.png: mask values are float32"):
        PixelValues(STREET).to_plane(np.zeros((1, 1), np.float32), "a.png")


def test_writing_ignored_pixels_needs_a_value_for_them():
    plane = np.array([[0, 255]], np.uint8)
    with pytest.raises(ValueError, match=r"a\.png: some pixels have no class.*`ignored_values`, such as \[255\]"):
        PixelValues(STREET).to_disk(plane, "a.png")
    assert PixelValues(STREET, ignored_values=[11]).to_disk(plane, "a.png").tolist() == [[0, 11]]
    with pytest.raises(ValueError, match=r"plane values \[3\] are no class"):
        PixelValues(STREET).to_disk(np.array([[3]], np.uint8), "a.png")


def test_uint16_planes_and_values():
    many = MaskFormat.multiclass(range(300))
    table = PixelValues(many, ignored_values=[1000])
    stored = np.array([[299, 1000, 7]], np.uint16)
    plane = table.to_plane(stored, "a.png")
    assert (plane.dtype, plane.tolist()) == (np.uint16, [[299, 65535, 7]])
    assert (table.to_disk(plane, "a.png") == stored).all()
    # few classes with large values: uint8 planes, uint16 on disk
    large = PixelValues(STREET, {0: "sky", 1000: "road", 65535: "car"})
    stored = np.array([[65535, 0, 1000]], np.uint16)
    plane = large.to_plane(stored, "a.png")
    assert (plane.dtype, plane.tolist()) == (np.uint8, [[2, 0, 1]])
    assert (large.to_disk(plane, "a.png") == stored).all()


@pytest.mark.parametrize(
    ("values", "ignored", "said"),
    [
        ({0: "sky", 1: "road", 2: "truck"}, (), r"maps 2 to 'truck', which is no class"),
        ({0: "sky", 1: "road"}, (), r"no disk value for \['car'\]"),
        (None, (1,), r"\[1\] stand for a class and are in `ignored_values`"),
        ({0: "sky", 1: "road", 70000: "car"}, (), "holds values from 0 to 65535"),
        ({0: "sky", 1: "road", -1: "car"}, (), "from 0"),
        ({0: "sky", 1.5: "road", 2: "car"}, (), r"1\.5: expected a whole number"),
        ({0: "sky", True: "road", 2: "car"}, (), "True: expected a whole number"),
        ({0: "sky", "one": "road", 2: "car"}, (), "'one': expected a whole number"),
        ({0: "sky", 1: "road", "1": "car", 2: "car"}, (), "maps 1 to both 'road' and 'car'"),
        (["sky", "road", "car"], (), "expected lines `VALUE: NAME`"),
        (None, ("void",), "'void': expected a whole number"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(values, ignored, said):
    with pytest.raises(ValueError, match=said):
        PixelValues(STREET, values, ignored)


def test_a_single_ignored_value_needs_no_list():
    assert PixelValues(STREET, ignored_values=255).ignored_values == (255,)


def test_spec_survives_json():
    table = PixelValues(STREET, {9: "car", 4: "sky", 5: "sky", 1: "road"}, [255])
    again = PixelValues(STREET, **json.loads(json.dumps(table.to_spec())))
    assert list(again.values.items()) == list(table.values.items())
    assert again.ignored_values == (255,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_look_up_and_values_outside_agree_with_numpy(dtype):
    rng = np.random.default_rng(3)
    array = rng.integers(0, 256, (7, 11)).astype(dtype)[::2, 1::3]
    table = rng.integers(0, 256, 65536).astype(np.uint8)
    assert (look_up(table, array) == table[array]).all()
    known = set(range(0, 256, 3))
    assert values_outside(array, known) == sorted(set(array.ravel().tolist()) - known)
