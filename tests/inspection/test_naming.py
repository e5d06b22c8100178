"""What `--classes` says."""

from __future__ import annotations

import pytest

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inspection.naming import name_values, names_of_codec, parse_classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky, road,ignore", ["sky", "road", "ignore"]),
        ("0=sky,1=road,11=ignore", {0: "sky", 1: "road", 11: "ignore"}),
        ("1=car,2=car", {1: "car", 2: "car"}),
        ("#FF0000=red roof,#000000=background", {"#ff0000": "red roof", "#000000": "background"}),
    ],
)
def test_both_ways_to_write_classes(text, expected):
    assert parse_classes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("0=sky,road", "expected"),
        ("0=sky,0=road", "no name or two"),
        ("sky,sky", "more than once"),
        ("sky=0,road=1", "no value"),
        ("0=", "no name"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_classes(text)


def test_names_in_order_are_those_of_the_values():
    assert name_values(["sky", "road", "ignore"], [0, 1, 2]).names == {0: "sky", 1: "road"}
    assert name_values(["sky", "road", "ignore"], [0, 1, 2]).ignored == (2,)
    # a class that no mask holds keeps its place
    assert name_values(["sky", "road", "car"], [0, 2]).names == {0: "sky", 1: "road", 2: "car"}
    assert name_values(["sky", "road"], [7, 100]).names == {7: "sky", 100: "road"}
    assert name_values(["nucleus"], [0, 255]).names == {255: "nucleus"}
    with pytest.raises(ValueError, match=r"2 names, and the masks hold 3 values: 0, 1, 255.*0=NAME"):
        name_values(["sky", "road"], [0, 1, 255])


def test_names_of_a_codec_are_those_it_reads_by():
    classes = ["sky", {"name": "road", "color": [1, 2, 3]}]
    format = MaskFormat.multiclass(classes)
    numbers = open_codec({"name": "index_png", "values": {7: "road", 3: "sky"}, "ignored_values": [255]}, format)
    assert names_of_codec(numbers).names == {7: "road", 3: "sky"}
    assert names_of_codec(numbers).ignored == (255,)
    colours = open_codec({"name": "color_png", "values": {"sky": ["#0000ff", "#0000fe"], "road": "#010203"}}, format)
    assert names_of_codec(colours).names == {"#0000ff": "sky", "#0000fe": "sky", "#010203": "road"}
    assert names_of_codec(open_codec("color_png", format)).names["#010203"] == "road"
    binary = open_codec("color_png", MaskFormat.binary("road"))
    assert names_of_codec(binary).names["#000000"] == "background"
