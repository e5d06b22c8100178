"""What holds where two classes are marked, or none: the same rules for all files that mark one class at a time."""

import numpy as np
import pytest

from segkit.formats.class_regions import ClassRegions
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import write_png

ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])
STREET = MaskFormat.multiclass(["sky", "road", "car"])
NESTED = MaskFormat.multilabel(["whole", "core"])

LARGE = np.array([[1, 1, 1, 0, 0]], bool)
SMALL = np.array([[0, 0, 1, 1, 0]], bool)


def added(regions, *steps):
    canvas = regions.canvas((1, 5))
    for name, *arguments in steps:
        getattr(canvas, name)(*arguments)
    return canvas.planes("a.json")[0].tolist()


@pytest.mark.parametrize(
    ("overlap", "expected"), [("ignore", [1, 1, 255, 2, 0]), ("last", [1, 1, 1, 2, 0]), ("smallest", [1, 1, 2, 2, 0])]
)
def test_a_pixel_of_two_classes_by_hand(overlap, expected, tmp_path):
    regions = ClassRegions(ORGANS, overlap)
    marks = [("mark", 2, SMALL, "spleen"), ("mark", 1, LARGE, "liver")]
    steps = [marks[number] for number in regions.sorted_regions([2, 3])]
    assert [value for (value,) in added(regions, *steps)] == expected
    # The same in class files, where `last` is the last of `classes`.
    for name, mark in (("liver", LARGE), ("spleen", SMALL)):
        write_png(tmp_path / name / "a.png", mark.astype(np.uint8))
    codec = open_codec({"name": "file_per_class", "overlap": overlap}, ORGANS)
    in_order_of_classes = [1, 1, 2, 2, 0] if overlap == "last" else expected
    assert codec.read(tmp_path, "a").ravel().tolist() == in_order_of_classes
    assert open_codec(codec.to_spec(), ORGANS) == codec


def test_two_classes_on_one_pixel_are_an_error_that_names_both_and_the_way_out():
    expected = r"a\.json: 1 pixels.*row 0, column 2: spleen and liver.*`overlap: last`.*format `multilabel`"
    with pytest.raises(ValueError, match=expected):
        added(ClassRegions(ORGANS), ("mark", 2, SMALL, "spleen"), ("mark", 1, LARGE, "liver"))
    twice_the_same = [("mark", 2, SMALL, "spleen"), ("mark", 2, LARGE, "spleen")]
    assert added(ClassRegions(ORGANS), *twice_the_same) == [[2], [2], [2], [2], [0]]


@pytest.mark.parametrize("overlap", ["error", "ignore"])
def test_nothing_is_known_in_ignored_regions_whatever_is_marked(overlap):
    middle = np.array([[0, 0, 1, 0, 1]], bool)
    steps = [("mark", 1, LARGE, "liver"), ("ignore", middle), ("mark", 2, SMALL, "spleen")]
    assert added(ClassRegions(ORGANS, overlap), *steps) == [[1], [1], [255], [2], [255]]


def test_where_order_counts_ignored_regions_and_background_are_drawn_in_their_turn():
    steps = [("mark", 1, LARGE, "liver"), ("ignore", SMALL), ("mark", 0, np.array([[1, 0, 0, 1, 0]], bool), "")]
    assert added(ClassRegions(ORGANS, "last"), *steps) == [[0], [1], [255], [0], [0]]
    # Elsewhere background is what is left, and hides nothing.
    assert added(ClassRegions(ORGANS, "ignore"), *steps) == [[1], [1], [255], [255], [0]]


def test_a_doubt_hides_what_is_not_marked():
    steps = [("doubt", 1, SMALL), ("mark", 2, LARGE, "spleen")]
    assert added(ClassRegions(ORGANS), *steps) == [[2], [2], [2], [255], [0]]
    steps = [("doubt", 1, SMALL), ("mark", 0, LARGE, ""), ("doubt", 1, LARGE), ("mark", 1, LARGE & SMALL, "")]
    assert added(ClassRegions(NESTED), *steps) == [[1, 255], [1, 255], [1, 1], [0, 255], [0, 0]]


def test_overlapping_classes_keep_all_marks():
    steps = [("mark", 0, LARGE, ""), ("mark", 1, SMALL, ""), ("ignore", np.array([[1, 0, 0, 0, 0]], bool))]
    for overlap in ("error", "smallest"):
        expected = [[255, 255], [1, 0], [1, 1], [0, 1], [0, 0]]
        assert added(ClassRegions(NESTED, overlap), *steps) == expected


def test_unmarked_pixels_need_a_background_or_a_word():
    steps = [("mark", 1, LARGE, "road"), ("mark", 2, SMALL & ~LARGE, "car")]
    with pytest.raises(
        ValueError, match=r"a\.json: 1 pixels are marked for no class.*`background`.*`unmarked: ignore`"
    ):
        added(ClassRegions(STREET), *steps)
    assert added(ClassRegions(STREET, unmarked="ignore"), *steps) == [[1], [1], [1], [2], [255]]


def test_options_that_are_not_known():
    for options in ({"overlap": "first"}, {"unmarked": "empty"}):
        (name,) = options
        with pytest.raises(ValueError, match=f"`{name}` is '.*': expected error, ignore"):
            ClassRegions(STREET, **options)
    with pytest.raises(ValueError, match="the only class"):
        ClassRegions(MaskFormat.multiclass(["background"]))
