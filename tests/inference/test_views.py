from __future__ import annotations

import pytest
import torch

from segkit.inference.views import View, parse_views

SQUARE = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("hflip", 2),
        ("flips", 4),
        ("hflip,vflip", 4),
        ("rotations", 4),
        ("rot90,rot270", 3),
        ("flips,rotations", 8),
        ("scales", 3),
        ("scale=0.75,scale=1.5", 3),
        ("flips,scales", 12),
        (["hflip", "scale=0.5"], 4),
    ],
)
def test_words_are_combined_and_no_view_comes_twice(names, count):
    views = parse_views(names)
    assert views[0] == View()
    assert len(set(views)) == len(views) == count
    wide = torch.rand(5, 7)
    assert len({(str(view.of(wide).tolist()), view.scale) for view in views}) == count


def test_names_mean_what_they_say():
    seen = {name: parse_views(name)[1].of(SQUARE).tolist() for name in ("hflip", "vflip", "rot90", "rot180")}
    assert seen["hflip"] == [[2, 1, 0], [5, 4, 3]]
    assert seen["vflip"] == [[3, 4, 5], [0, 1, 2]]
    assert seen["rot90"] == [[2, 5], [1, 4], [0, 3]]
    assert seen["rot180"] == [[5, 4, 3], [2, 1, 0]]
    assert set(parse_views("hflip,vflip")) == set(parse_views("flips"))


def test_a_view_of_a_view_and_back():
    views = parse_views("flips,rotations")
    image = torch.rand(2, 5, 7)
    for first in views:
        assert torch.equal(first.undo(first.of(image)), image)
        for second in views:
            assert torch.equal(second.after(first).of(image), second.of(first.of(image)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("rotation", "unknown view 'rotation'. Did you mean `rotations`"),
        ("", "expected words such as"),
        ([], "expected words such as"),
        ("hflip,", "expected words such as"),
        ("scale=9", "expected a scale from 0.25 to 4.0"),
        ("scale=1", "other than 1"),
        ("scale=big", "expected a scale"),
    ],
)
def test_unknown_words_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        parse_views(names)
