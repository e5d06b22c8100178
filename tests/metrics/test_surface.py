"""Distances between borders: by hand, and equal to MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from segkit.metrics.surface import border, surface_distances

SHAPES = {(61, 83): (1.3, 0.6), (23, 31, 27): (2.5, 0.7, 0.9)}


def draw(shape, seed):
    """Two regions that resemble each other, some of them at the edge of the image."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(shape), 4)
    other = field + 0.4 * gaussian_filter(rng.standard_normal(shape), 4)
    limit = np.quantile(field, 0.75)
    return other > limit, field > limit


def test_by_hand_in_two_dimensions():
    pred, truth = np.zeros((9, 12), bool), np.zeros((9, 12), bool)
    truth[4, 2:5] = True  # a line of three pixels
    pred[4, 2:5], pred[1, 3] = True, True  # and a speck, three rows above its middle
    found = surface_distances(pred, truth, (2.0, 0.5))
    assert sorted(found.of_pred) == [0, 0, 0, 6.0]
    assert sorted(found.of_truth) == [0, 0, 0]
    assert found.hausdorff(100) == 6.0
    assert found.hausdorff(50) == 0.0
    assert found.average() == 6.0 / 7
    assert found.surface_dice(5.9) == 6 / 7
    assert found.surface_dice(6.0) == 1.0


def test_border_is_what_touches_the_outside_along_an_axis():
    solid = np.zeros((6, 7), bool)
    solid[1:5, 2:7] = True  # to the right edge of the image
    expected = solid.copy()
    expected[2:4, 3:6] = False
    assert (border(solid) == expected).all()
    block = np.zeros((5, 6, 7), bool)
    block[1:5, 1:5, 1:6] = True
    inside = np.zeros_like(block)
    inside[2:4, 2:4, 2:5] = True
    assert (border(block) == (block & ~inside)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_to_monai(shape):
    metrics = pytest.importorskip("monai.metrics")
    options = {"include_background": True, "spacing": SHAPES[shape]}
    for seed in range(12):
        pred, truth = draw(shape, seed)
        found = surface_distances(pred, truth, SHAPES[shape])
        pair = [torch.from_numpy(region)[None, None] for region in (pred, truth)]
        for percentile in (95, 50):
            theirs = metrics.compute_hausdorff_distance(*pair, percentile=percentile, **options).item()
            assert found.hausdorff(percentile) == pytest.approx(theirs, abs=1e-4)
        theirs = metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item()
        assert found.average() == pytest.approx(theirs, abs=1e-4)
        for tolerance in (0.65, 1.95):  # between the distances that occur: MONAI compares in float32
            theirs = metrics.compute_surface_dice(*pair, [tolerance], **options).item()
            assert found.surface_dice(tolerance) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_turning_both_regions_changes_nothing(shape):
    pred, truth = draw(shape, 3)
    spacing = SHAPES[shape]
    turned = surface_distances(np.ascontiguousarray(pred.T), np.ascontiguousarray(truth.T), spacing[::-1])
    straight = surface_distances(pred, truth, spacing)
    assert turned.average() == pytest.approx(straight.average())
    assert turned.hausdorff() == pytest.approx(straight.hausdorff())
    swapped = surface_distances(truth, pred, spacing)
    assert (np.sort(swapped.of_pred) == np.sort(straight.of_truth)).all()


def test_a_region_on_one_side_alone():
    nothing, something = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    something[1, 2] = True
    for found in (surface_distances(nothing, something, (3, 4)), surface_distances(something, nothing, (3, 4))):
        assert found.hausdorff() is None
        assert found.average() is None
        assert found.hausdorff(empty="penalise") == found.average(empty="penalise") == np.hypot(3 * 3, 4 * 4)
        assert found.surface_dice(1.0) == found.surface_dice(1.0, empty="one") == 0.0


def test_nothing_on_either_side():
    found = surface_distances(np.zeros((4, 5), bool), np.zeros((4, 5), bool))
    assert [found.surface_dice(1.0, empty) for empty in ("leave_out", "one", "zero", "penalise")] == [None, 1, 0, None]
    assert [found.hausdorff(95, empty) for empty in ("leave_out", "one", "penalise")] == [None, 0.0, None]
    with pytest.raises(ValueError, match="Did you mean `penalise`"):
        found.average("penalize")


@pytest.mark.parametrize(
    ("shapes", "spacing", "said"),
    [
        (((4, 5), (5, 4)), None, "of one shape"),
        (((4,), (4,)), None, "2-D or 3-D"),
        (((4, 5), (4, 5)), (1, 2, 3), "2 positive numbers"),
        (((4, 5), (4, 5)), (1, 0), "2 positive numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(shapes, spacing, said):
    with pytest.raises(ValueError, match=said):
        surface_distances(*(np.ones(shape, bool) for shape in shapes), spacing)
