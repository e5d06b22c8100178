"""Regions drawn from polygons, circles and run lengths, beside pycocotools and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO

from segkit.formats.run_lengths import (
    area,
    circle_region,
    draw,
    label_regions,
    mask_region,
    polygons_region,
    runs_region,
    to_json,
)

SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))


def random_mask(size_hw, seed, share):
    return np.random.default_rng(seed).random(size_hw) < share


def run_lengths_by_loop(pixels):
    """Uncompressed run lengths by their definition: column by column, first what is outside."""
    counts, current = [0], False
    for value in pixels.ravel(order="F").tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


@settings(deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_are_read_compressed_and_as_a_list(size_hw, seed, share):
    pixels = random_mask(size_hw, seed, share)
    packed = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    for counts in (run_lengths_by_loop(pixels), packed["counts"].decode()):
        region = runs_region({"size": list(size_hw), "counts": counts}, size_hw)
        np.testing.assert_array_equal(draw([region]), pixels)
        assert area(region) == pixels.sum()
    np.testing.assert_array_equal(draw([mask_region(pixels)]), pixels)


@settings(deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_regions_of_labels_are_the_masks_of_each(size_hw, seed, count):
    labels = np.random.default_rng(seed).integers(0, count + 1, size_hw)
    regions = label_regions(labels, count)
    assert len(regions) == count
    for number, region in enumerate(regions, start=1):
        np.testing.assert_array_equal(draw([region]), labels == number)


@settings(deadline=None)
@given(SIZES, st.lists(st.floats(-1, 2), min_size=6, max_size=20).filter(lambda p: len(p) % 2 == 0))
def test_polygons_are_those_of_pycocotools_at_any_size(size_hw, shares):
    height, width = size_hw
    polygon = [share * (width, height)[number % 2] for number, share in enumerate(shares)]
    expected = mask.decode(mask.frPyObjects([polygon], height, width))[..., 0]
    np.testing.assert_array_equal(draw([polygons_region([polygon], size_hw)]), expected)


def test_polygons_by_hand():
    # Corners of pixels: x 1 to 3 and y 0 to 2 enclose two columns and two rows.
    square = [1, 0, 3, 0, 3, 2, 1, 2]
    assert draw([polygons_region([square], (3, 5))]).tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    # Parts join; what leaves the image is cut off.
    parts = [square, [4, 2, 9, 2, 9, 7, 4, 7]]
    assert draw([polygons_region(parts, (3, 5))]).tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]


def test_circles_hold_the_pixels_whose_centres_they_enclose():
    # Centre of the pixel at row 1, column 2; radius 1 reaches its four neighbours' centres.
    plus = draw([circle_region((2.5, 1.5), (3.5, 1.5), (4, 5))])
    assert plus.tolist() == [[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    rows, columns = np.mgrid[:40, :30] + 0.5
    for center, rim in (((11.2, 33.3), (2.5, 20.1)), ((-3, 5), (9, 9)), ((15, 20), (15, 80))):
        inside = (columns - center[0]) ** 2 + (rows - center[1]) ** 2 <= np.sum(np.square(np.subtract(center, rim)))
        np.testing.assert_array_equal(draw([circle_region(center, rim, (40, 30))]), inside)


def test_boxes_and_areas_are_those_of_the_pixels():
    pixels = np.zeros((6, 8), bool)
    pixels[1:4, 2] = pixels[3, 2:7] = True
    record = json.loads(json.dumps(to_json(mask_region(pixels))))
    assert (record["bbox"], record["area"]) == ([2, 1, 5, 3], 7)
    assert mask.decode(record["segmentation"]).tolist() == pixels.tolist()


@pytest.mark.parametrize("part", ["train", "val"])
def test_real_annotations_are_drawn_as_pycocotools_draws_them(shared_data, part):
    file = COCO(shared_data / "coco_subset" / "annotations" / f"instances_{part}.json")
    kinds = set()
    for annotation in file.dataset["annotations"]:
        image = file.imgs[annotation["image_id"]]
        size_hw, segmentation = (image["height"], image["width"]), annotation["segmentation"]
        read = runs_region if isinstance(segmentation, dict) else polygons_region
        kinds.add((read.__name__, annotation["iscrowd"], len(segmentation) > 1))
        np.testing.assert_array_equal(draw([read(segmentation, size_hw)]), file.annToMask(annotation) > 0)
    assert ("polygons_region", 0, True) in kinds
    assert ("runs_region", 1, True) in kinds


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "has no polygon"),
        (None, "has no polygon"),
        ([[]], "a polygon of 0 points, expected at least 3"),
        ([[1, 1, 4, 1]], "a polygon of 2 points, expected at least 3"),
        ([[1, 1, 4, 1, 4]], "a polygon of 5 numbers, expected an x and a y"),
        ([[1, 1, 4, 1, 4, float("nan")]], "NaN or infinite"),
        ([[1, 1, 4, 1, 4, float("inf")]], "NaN or infinite"),
        ([[1, 1, 4, 1, 4, "4"]], "other than numbers"),
        ([[1, 1, 4, 1, 4, None]], "other than numbers"),
        ([[1, 1, 4, 1, 4, 10**30]], "other than numbers"),
        ([[1, 1, 4, 1, 4, [4]]], "other than numbers"),
        ([1, 1, 4, 1, 4, 4], "expected a list"),
        ([[1, 1, 4, 1, 4, 1e9]], r"point \[4.0, 1000000000.0\], far outside its 5 x 7"),
        ([[-7.5, 1, 4, 1, 4, 4]], r"point \[-7.5, 1.0\], far outside"),
        ([[0, 0, 7, 5] * 100], "longer than all edges"),
    ],
)
def test_polygons_that_cannot_be_drawn(parts, said):
    with pytest.raises(ValueError, match=said):
        polygons_region(parts, (5, 7))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": [7, 5], "counts": [35]}, r"size \[7, 5\], but the image is \[5, 7\]"),
        ({"counts": [35]}, "size None"),
        ({"size": [5, 7]}, "of the type NoneType"),
        ({"size": [5, 7], "counts": []}, "do not add up to its 5 x 7"),
        ({"size": [5, 7], "counts": ""}, "do not add up to its 5 x 7"),
        ({"size": [5, 7], "counts": [34]}, "do not add up"),
        ({"size": [5, 7], "counts": [30, 6]}, "do not add up"),
        ({"size": [5, 7], "counts": [40, -5]}, "do not add up"),
        ({"size": [5, 7], "counts": [2**62, 2**62, 2**62, 2**62, 35]}, "do not add up"),
        ({"size": [5, 7], "counts": [30.0, 5.0]}, "other than numbers"),
        ({"size": [5, 7], "counts": ["35"]}, "other than numbers"),
        ({"size": [5, 7], "counts": [[35]]}, "other than numbers"),
        ({"size": [5, 7], "counts": "o"}, "cut short or damaged"),
        ({"size": [5, 7], "counts": "é"}, "cut short or damaged"),
        ({"size": [5, 7], "counts": " "}, "cut short or damaged"),
        ({"size": [5, 7], "counts": "ooooooo0"}, "too long"),
        ({"size": [5, 7], "counts": "S1S1"}, "do not add up"),
    ],
)
def test_run_lengths_that_are_no_mask_of_the_image(given, said):
    with pytest.raises(ValueError, match=said):
        runs_region(given, (5, 7))


@settings(deadline=None)
@given(SIZES, st.text(st.characters(min_codepoint=0, max_codepoint=130), max_size=12))
def test_no_text_is_drawn_beyond_the_image(size_hw, text):
    try:
        region = runs_region({"size": list(size_hw), "counts": text}, size_hw)
    except ValueError:
        return
    assert draw([region]).shape == size_hw
    assert area(region) <= size_hw[0] * size_hw[1]
