from __future__ import annotations

import math

import pytest
import torch

from segkit.ops.hardest import select_hardest


def marked(values, counted, share):
    found = select_hardest(torch.tensor([values]), torch.tensor([counted], dtype=torch.bool), share)
    return found[0].int().tolist()


def test_the_largest_of_those_that_count():
    # Half of five is three, rounded up; the 9 does not count, so it is neither taken nor part of the five.
    assert marked([1.0, 9.0, 4.0, 2.0, 3.0, 5.0], [1, 0, 1, 1, 1, 1], 0.5) == [0, 0, 1, 0, 1, 1]
    assert marked([1.0, 9.0, 4.0, 2.0, 3.0, 5.0], [1, 0, 1, 1, 1, 1], 1.0) == [1, 0, 1, 1, 1, 1]


def test_among_equals_the_first():
    assert marked([2.0, 3.0, 2.0, 2.0, 1.0, 2.0], [1, 1, 0, 1, 1, 1], 0.6) == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.29, 29), (0.281, 29), (1e-9, 1), (1.0, 100)])
def test_the_number_is_exact(share, count):
    # In floats 0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996.
    assert sum(marked([0.5] * 100, [1] * 100, share)) == count


def test_none_where_none_counts():
    assert marked([1.0, 2.0], [0, 0], 0.5) == [0, 0]
    assert select_hardest(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool), 0.5).shape == (0, 4)
    assert select_hardest(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0.5).shape == (2, 0)


def test_what_is_no_number_cannot_hide():
    assert marked([1.0, math.nan, 3.0, math.inf], [1, 1, 1, 1], 0.5) == [0, 1, 0, 1]
    assert marked([math.nan] * 4, [1, 1, 0, 1], 0.6) == [1, 1, 0, 0]


def test_each_set_by_itself():
    values = torch.tensor([[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]])
    counted = torch.tensor([[True, True, True], [True, False, False]])
    assert select_hardest(values, counted, 0.5).int().tolist() == [[0, 1, 1], [1, 0, 0]]


def test_no_values_are_read_back():
    meta = torch.zeros(3, 50, device="meta")
    assert select_hardest(meta, meta > 0, 0.3).shape == (3, 50)
