from __future__ import annotations

import pytest
import torch

from segkit.ops.skeleton import soft_skeleton


def thinned(rows: list[str], iterations: int = 3, ignored: str = "") -> list[str]:
    maps = torch.tensor([[float(letter == "#") for letter in row] for row in rows])[None, None]
    valid = torch.tensor([[letter != "?" for letter in row] for row in rows])[None, None]
    found = soft_skeleton(maps, valid, iterations)[0, 0]
    return ["".join("#" if value else "." for value in row) for row in found.int().tolist()]


def test_a_bar_becomes_its_middle():
    bar = [".........", ".#######.", ".#######.", ".#######.", "........."]
    assert thinned(bar) == [".........", ".........", "..#####..", ".........", "........."]


def test_a_thin_line_stays():
    line = [".......", ".#####.", "....#..", "....#..", "......."]
    assert thinned(line) == line


def test_a_bar_wider_than_twice_the_rounds_leaves_nothing():
    wide = [".........."] + [".########."] * 7 + [".........."]
    assert set("".join(thinned(wide, 2))) == {"."}
    assert thinned(wide, 3)[4] == "....##...."


def test_what_is_ignored_is_taken_as_beyond_the_edge():
    seen = torch.rand((2, 3, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = torch.cat([seen, torch.rand((2, 3, 9, 5), dtype=torch.float64)], 3)
    valid = torch.ones_like(maps, dtype=torch.bool)
    valid[..., 8:] = False
    expected = soft_skeleton(seen, valid[..., :8], 4)
    found = soft_skeleton(maps, valid, 4)
    assert torch.equal(found[..., :8], expected)
    assert (found[..., 8:] == 0).all()
    assert expected.max() > 0.5


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 6), (5, 1), (6, 7)])
def test_gradients_agree_with_differences(size_hw):
    maps = torch.rand((1, 2, *size_hw), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    valid = torch.rand(maps.shape, generator=torch.Generator().manual_seed(4)) < 0.9
    assert torch.autograd.gradcheck(lambda x: soft_skeleton(x, valid, 2), maps.requires_grad_())
