"""Labels of annotation files and the classes that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from segkit.formats.class_labels import ClassLabels
from segkit.formats.class_regions import ClassRegions
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat

MANY = [f"c{index}" for index in range(300)]


def test_of_several_labels_for_a_class_the_first_is_written():
    values = {"first": "c9", "second": "c9", **{name: name for name in MANY}}
    labels = ClassLabels(ClassRegions(MaskFormat.multilabel(MANY)), values)
    assert labels.written(9) == "first"
    assert [labels.target(label) for label in ("first", "second", "c299")] == [9, 9, 299]


@pytest.mark.parametrize("name", ["coco", "labelme"])
def test_class_255_of_many_overlapping_ones_is_a_class(name, tmp_path):
    """Its number is the value that means *ignored* in planes of 8 bits."""
    codec = open_codec({"name": name, "ignored_values": ["void"]}, MaskFormat.multilabel(MANY))
    planes = np.zeros((4, 6, 300), np.uint8)
    planes[1:3, 2:5, 255] = 1
    planes[0, 0] = 255
    codec.write(tmp_path, "a", planes)
    codec.finish(tmp_path)
    assert np.array_equal(codec.read(tmp_path, "a"), planes)
