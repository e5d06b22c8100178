"""Counting values and classes of masks."""

from __future__ import annotations

import numpy as np
import pytest

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import write_png
from segkit.inspection.coding import Coding
from segkit.inspection.stored import count_planes, count_values, open_reader
from tests.scenes import write_set


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_values_are_counted_as_numpy_counts_them(dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 7, dtype=dtype)
    array = np.random.default_rng(1).choice(values, (31, 47))
    found, counts = np.unique(array, return_counts=True)
    assert count_values(array) == dict(zip(found.tolist(), counts.tolist(), strict=True))


def test_more_pixels_than_float32_counts_exactly():
    # 2^24 + 1 is the first whole number that float32, in which OpenCV counts, does not hold.
    array = np.zeros((1, 2**24 + 3), np.uint8)
    array[0, -2:] = 9
    assert count_values(array) == {0: 2**24 + 1, 9: 2}


def test_classes_of_a_mask_by_hand():
    #  a  1 1 0     b  0 1 0    labels 1 2 0
    #     1 1 0        0 1 0           1 2 0    ignored pixels (255) are no label
    a = np.array([[1, 1, 0], [1, 1, 255]], np.uint8)
    b = np.array([[0, 1, 0], [255, 1, 0]], np.uint8)
    counts = count_planes(np.stack([a, b], axis=2), ("a", "b"), "x")
    assert counts.pixels == {"a": 4, "b": 2}
    assert counts.labels == (2, 2, 2)
    assert counts.both == {("a", "b"): 2}


@pytest.mark.parametrize("classes", [3, 8, 9, 17, 40])
def test_pairs_of_classes_are_the_products_of_their_planes(classes):
    planes = (np.random.default_rng(classes).random((13, 17, classes)) < 0.3).astype(np.uint8)
    names = tuple(f"c{number}" for number in range(classes))
    counts = count_planes(planes, names, "x")
    flat = planes.reshape(-1, classes).astype(np.int64)
    products = flat.T @ flat
    for i in range(classes):
        assert counts.pixels[names[i]] == products[i, i]
        for j in range(i + 1, classes):
            assert counts.both.get((names[i], names[j]), 0) == products[i, j]
    of_each = flat.sum(1)
    assert counts.labels == ((of_each == 0).sum(), (of_each == 1).sum(), (of_each > 1).sum())


def test_a_palette_and_an_rgb_file_of_the_same_colours_count_alike(tmp_path):
    palette = np.array([[0, 0, 0], [200, 10, 30], [0, 90, 255]], np.uint8)
    indices = np.array([[0, 1, 1], [2, 2, 2]], np.uint8)
    write_png(tmp_path / "p.png", indices, palette)
    write_png(tmp_path / "c.png", palette[indices])
    reader = open_reader(Coding("color_png", ""))
    expected = {"#000000": 1, "#c80a1e": 2, "#005aff": 3}
    assert reader.stems(tmp_path) == ["c", "p"]
    assert dict(reader.count(tmp_path, "p").pixels) == dict(reader.count(tmp_path, "c").pixels) == expected
    by_number = open_reader(Coding("palette_png", "")).count(tmp_path, "p")
    assert by_number.pixels == {0: 1, 1: 2, 2: 3}


def test_volumes_are_counted_slice_by_slice_whatever_the_numbers(tmp_path):
    values = {0: "sky", 300: "ground", 65534: "disc"}
    format = MaskFormat.multiclass(["sky", "ground", "disc"])
    codec = open_codec({"name": "nifti", "values": values}, format)
    data = write_set(tmp_path, format, 2, codec=codec)
    reader = open_reader(Coding("nifti", ""))
    for index, stem in enumerate(reader.stems(tmp_path / "masks")):
        plane = data.read(index).planes[..., 0]
        expected = {list(values)[k]: int((plane == k).sum()) for k in range(3)}
        assert dict(reader.count(tmp_path / "masks", stem).pixels) == expected
