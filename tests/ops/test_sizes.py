import pytest

from segkit.ops.sizes import Spacing, fit_size, is_one_size, resize_from_json, resize_to_json


def test_a_spacing_keeps_the_extent_in_mm():
    # 40 rows of 0.5 mm are 20 mm: 10 of 2 mm. 30 columns of 1.5 mm are 45 mm: 45 of 1 mm.
    assert fit_size((40, 30), Spacing(2, 1), (0.5, 1.5)) == (10, 45)
    assert fit_size((40, 30), Spacing(0.5, 1.5), (0.5, 1.5)) == (40, 30)
    assert fit_size((40, 30), Spacing(1000, 1000), (0.5, 1.5)) == (1, 1)


def test_spacings_that_cannot_be_used_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match=r"2 x 1 mm per pixel.*tells no spacing.*`data\.resize`"):
        fit_size((40, 30), Spacing(2, 1))
    for header in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (float("inf"), 1.0)):
        with pytest.raises(ValueError, match="mend the header"):
            fit_size((40, 30), Spacing(2, 1), header)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "10000")
    assert fit_size((40, 30), Spacing(1, 1), (2.0, 2.0)) == (80, 60)
    with pytest.raises(ValueError, match=r"of 40x30 pixels.*would become 120x90.*coarser"):
        fit_size((40, 30), Spacing(1, 1), (3.0, 3.0))
    with pytest.raises(ValueError, match="two numbers above 0"):
        Spacing(1, 0)


@pytest.mark.parametrize("resize", [None, 20, [7, 9], Spacing(0.5, 1.25)])
def test_sizes_survive_json(resize):
    import json

    assert resize_from_json(json.loads(json.dumps(resize_to_json(resize)))) == resize


def test_only_height_and_width_make_one_size_of_all():
    assert [is_one_size(r) for r in (None, 20, [7, 9], (7, 9), Spacing(1, 1))] == [False, False, True, True, False]
