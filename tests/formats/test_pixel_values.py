import json

import numpy as np
import pytest

from segkit.formats.mask_format import MaskFormat
from segkit.formats.pixel_values import PixelValues, RegionValues, pixel_values

STREET = MaskFormat.multiclass(["sky", "road", "car"])
BINARY = MaskFormat.binary("nucleus")


def test_default_values():
    assert PixelValues(STREET).values == {0: "sky", 1: "road", 2: "car"}
    assert PixelValues(BINARY).values == {0: "background", 1: "nucleus"}
    # classes named by numbers are stored as those numbers
    assert PixelValues(MaskFormat.multiclass([0, 7, 12])).values == {0: "0", 7: "7", 12: "12"}


def test_several_disk_values_name_one_class_and_the_first_is_written():
    table = PixelValues(STREET, {9: "car", 4: "sky", 5: "sky", 1: "road"}, [255, 200])
    plane = table.to_planes(np.array([[4, 5, 1], [9, 200, 255]], np.uint8), "a.png")
    assert plane[..., 0].tolist() == [[0, 0, 1], [2, 255, 255]]
    assert table.to_disk(plane, "a.png").tolist() == [[4, 4, 1], [9, 255, 255]]


def test_the_background_of_a_binary_mask():
    # 0 is what is left of a binary mask whose `values` name the class alone
    assert PixelValues(BINARY, {255: "nucleus"}).values == {255: "nucleus", 0: "background"}
    # None is the absence of the class, here in a mask that marks it by black
    inverted = PixelValues(BINARY, {0: "nucleus", 255: None})
    assert inverted.to_planes(np.array([[0, 255]], np.uint8), "a.png")[..., 0].tolist() == [[1, 0]]
    with pytest.raises(ValueError, match=r"no disk value for \['background'\]"):
        PixelValues(BINARY, {0: "nucleus"})


def test_undeclared_values_name_file_values_and_way_out():
    stored = np.array([[0, 2], [77, 3]], np.uint8)
    with pytest.raises(ValueError, match=r"b/a\.png: found values \[3, 77\].*declared: 0: sky.*`ignored_values`"):
        PixelValues(STREET).to_planes(stored, "b/a.png")
    with pytest.raises(ValueError, match=r"found values \[300\]"):
        PixelValues(STREET).to_planes(np.array([[300]], np.uint16), "a.png")
    with pytest.raises(ValueError, match=r"a\.png: found values \[0\.5\], expected whole numbers"):
        PixelValues(STREET).to_planes(np.array([[1, 0.5]], np.float32), "a.png")


def test_writing_ignored_pixels_needs_a_value_for_them():
    plane = np.array([[[0], [255]]], np.uint8)
    with pytest.raises(ValueError, match=r"a\.png: some pixels have no class.*`ignored_values`, such as \[255\]"):
        PixelValues(STREET).to_disk(plane, "a.png")
    assert PixelValues(STREET, ignored_values=[11]).to_disk(plane, "a.png").tolist() == [[0, 11]]
    with pytest.raises(ValueError, match=r"plane values \[3\] are no class"):
        PixelValues(STREET).to_disk(np.array([[[3]]], np.uint8), "a.png")


def test_uint16_planes_and_values():
    many = MaskFormat.multiclass(range(300))
    table = PixelValues(many, ignored_values=[1000])
    stored = np.array([[299, 1000, 7]], np.uint16)
    plane = table.to_planes(stored, "a.png")
    assert (plane.dtype, plane[..., 0].tolist()) == (np.uint16, [[299, 65535, 7]])
    assert (table.to_disk(plane, "a.png") == stored).all()
    # few classes with large values: uint8 planes, uint16 on disk
    large = PixelValues(STREET, {0: "sky", 1000: "road", 65535: "car"})
    stored = np.array([[65535, 0, 1000]], np.uint16)
    plane = large.to_planes(stored, "a.png")
    assert (plane.dtype, plane[..., 0].tolist()) == (np.uint8, [[2, 0, 1]])
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


def test_one_bit_samples_are_1_or_255_as_declared():
    stored = np.array([[True, False]])
    for values in (None, {255: "nucleus"}, {1: "nucleus", 0: None, 254: "nucleus"}):
        assert PixelValues(BINARY, values).to_planes(stored, "a.png")[..., 0].tolist() == [[1, 0]]
    with_ignored = PixelValues(BINARY, ignored_values=[255])
    assert with_ignored.to_planes(stored, "a.png")[..., 0].tolist() == [[1, 0]]


def test_what_unwritten_pixels_are():
    assert PixelValues(BINARY).unwritten == 0
    assert PixelValues(STREET).unwritten is None
    assert PixelValues(STREET, ignored_values=[9]).unwritten == 255
    assert RegionValues(BRATS, REGIONS).unwritten == 0
    assert RegionValues(BRATS, REGIONS, [9]).unwritten == 255


# Regions ------------------------------------------------------------------------------------------------

BRATS = MaskFormat.multilabel(["whole", "core", "enhancing"])
# The labels of BraTS: 1 necrosis, 2 oedema, 4 enhancing tumour; 3 is not used.
REGIONS = {1: ["whole", "core"], 2: "whole", 4: ["enhancing", "core", "whole"]}


def test_regions_by_hand():
    table = pixel_values(BRATS, REGIONS, [9])
    assert isinstance(table, RegionValues)
    stored = np.array([[0, 1], [2, 4], [9, 0]], np.uint8)
    planes = table.to_planes(stored, "a.png")
    assert planes.dtype == np.uint8
    assert planes.tolist() == [[[0, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]], [[255, 255, 255], [0, 0, 0]]]
    again = table.to_disk(planes, "a.png")
    assert (again.dtype, again.tolist()) == (np.uint8, stored.tolist())
    assert table.shown() == {1: "core", 2: "whole", 4: "enhancing", 0: "background"}


def test_an_inner_class_brings_the_outer_ones_along():
    table = pixel_values(BRATS, REGIONS)
    #                     core alone  enhancing alone  enhancing and whole, as a threshold of a model may give them
    planes = np.array([[[0, 1, 0], [0, 0, 1], [1, 0, 1]]], np.uint8)
    # nnU-Net writes whole, core, enhancing one over the other, so that the last one given decides
    assert table.to_disk(planes, "a.png").tolist() == [[1, 4, 4]]


def test_a_set_without_a_value_is_refused_with_the_most_frequent():
    lungs = MaskFormat.multilabel(["lung", "heart", "vessel"])
    table = pixel_values(lungs, {1: "lung", 2: "heart", 3: ["lung", "vessel"]})
    planes = np.array([[[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]], np.uint8)
    expected = r"a\.png: 2 pixels say that lung and heart hold together.*`VALUE: \[lung, heart\]`.*`file_per_class`"
    with pytest.raises(ValueError, match=expected):
        table.to_disk(planes, "a.png")
    # vessels lie in lungs wherever the table has them
    assert table.to_disk(planes[:, 3:], "a.png").tolist() == [[3]]
    # One value has all three, but neither lung nor heart alone says that there is a vessel.
    table = pixel_values(lungs, {1: "lung", 2: "heart", 3: ["lung", "heart", "vessel"]})
    with pytest.raises(ValueError, match="2 pixels say that lung and heart hold together"):
        table.to_disk(planes[:, :2], "a.png")


def test_regions_ignored_in_part_cannot_be_written():
    planes = np.array([[[255, 255, 255], [255, 1, 0]]], np.uint8)
    with pytest.raises(ValueError, match=r"a\.png: 1 pixels are ignored in some classes only.*`file_per_class`"):
        pixel_values(BRATS, REGIONS, [9]).to_disk(planes, "a.png")
    with pytest.raises(ValueError, match=r"`ignored_values`, such as"):
        pixel_values(BRATS, REGIONS).to_disk(planes[:, :1], "a.png")
    with pytest.raises(ValueError, match=r"plane values \[2\], expected 0, 1 or ignored"):
        pixel_values(BRATS, REGIONS).to_disk(np.full((1, 1, 3), 2, np.uint8), "a.png")


def test_many_regions_and_large_values():
    letters = MaskFormat.multilabel(range(20))
    table = pixel_values(letters, {1000 + n: [str(n), "19"] for n in range(20)})
    planes = np.zeros((1, 21, 20), np.uint8)
    planes[0, np.arange(20), np.arange(20)] = planes[0, :20, 19] = 1
    stored = table.to_disk(planes, "a.png")
    assert (stored.dtype, stored.tolist()) == (np.uint16, [[*range(1000, 1020), 0]])
    assert (table.to_planes(stored, "a.png") == planes).all()


def test_regions_survive_json():
    table = pixel_values(BRATS, REGIONS, [9])
    again = pixel_values(BRATS, **json.loads(json.dumps(table.to_spec())))
    assert isinstance(again, RegionValues)
    assert list(again.values.items()) == list(table.values.items())


@pytest.mark.parametrize(
    ("format", "values", "said"),
    [
        (STREET, {0: ["sky"], 1: ["road", "car"]}, r"\['sky', 'road', 'car'\] exclude each other.*`multilabel`"),
        (BRATS, {0: [], 1: ["whole", "cor"]}, r"maps 1 to \['cor'\], which are no classes"),
        (BRATS, {0: [], 1: ["whole", "core"]}, r"no disk value for \['enhancing'\]"),
        (BRATS, {0: "core", 1: ["whole", "core", "enhancing"]}, r"without a class: add a line `VALUE: \[\]`"),
        (BRATS, {1: "core", "1": "whole", 2: "enhancing"}, r"maps 1 to both \('core',\) and \('whole',\)"),
        (BRATS, ["whole"], r"expected lines `VALUE: \[NAME, ...\]`"),
        (BRATS, {1: list(BRATS.names), 70000: []}, "holds values from 0 to 65535"),
        (BRATS, None, "may overlap.*`bit_planes`.*list of classes for each value"),
        (MaskFormat.multilabel(range(65)), {1: [str(n) for n in range(65)]}, "65 classes are more than the 64"),
    ],
)
def test_regions_that_cannot_be_meant_are_refused(format, values, said):
    with pytest.raises(ValueError, match=said):
        pixel_values(format, values)


def test_a_binary_mask_may_be_told_as_regions():
    table = pixel_values(BINARY, {0: [], 3: ["nucleus"], 4: ["nucleus"]})
    planes = table.to_planes(np.array([[0, 3, 4]], np.uint8), "a.png")
    assert planes[..., 0].tolist() == [[0, 1, 1]]
    assert table.to_disk(planes, "a.png").tolist() == [[0, 3, 3]]
