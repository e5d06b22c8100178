import pytest

from segkit.formats.classes import MaskClass, classes_to_list, default_color, parse_classes, parse_color


def test_names_numbers_mappings_and_classes_are_taken_alike():
    given = ["sky", 7, {"name": "road", "color": "#0a0B0c"}, MaskClass("car", (1, 2, 3))]
    parsed = parse_classes(given)
    assert [c.name for c in parsed] == ["sky", "7", "road", "car"]
    assert [c.color for c in parsed[2:]] == [(10, 11, 12), (1, 2, 3)]
    assert parsed[0].color == default_color(0, "sky")
    assert parse_classes(classes_to_list(parsed)) == parsed


def test_background_is_black_and_other_classes_never_are():
    parsed = parse_classes(["road", "background", *range(300)])
    assert parsed[1].color == (0, 0, 0)
    colors = [c.color for c in parsed]
    assert len(set(colors)) == len(colors), "codecs that store colours need a different one for each class"


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([], "at least one"),
        ("sky", "expected a list"),
        (3, "expected a list"),
        (["sky", "road", "sky"], r"\['sky'\] are named more than once"),
        (["7", 7], "more than once"),
        ([True], "expected a word or a number"),
        ([""], "expected a word or a number"),
        ([None], "expected a word or a number"),
        ([{"nam": "sky"}], "expected the keys `name`"),
        ([{"name": "sky", "color": [1, 2]}], "three numbers from 0 to 255"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(classes, said):
    with pytest.raises(ValueError, match=said):
        parse_classes(classes)


def test_colors():
    assert parse_color("e69f00") == parse_color("#E69F00") == parse_color([230, 159, 0]) == (230, 159, 0)
    for wrong in ("red", "#12345", "#gg0000", [1, 2, 256], [1, 2, -1], [1.0, 2, 3], 5):
        with pytest.raises(ValueError, match="three numbers from 0 to 255"):
            parse_color(wrong)
