"""Distances between the borders of two regions, in millimetres: HD95, average surface distance, surface Dice.

The border of a region are its pixels (voxels) with a neighbour along an axis outside it or beyond the image, as MONAI
and scipy erode it. Distances run between pixel centres. They are exact and equal to those of MONAI, which computes a
distance map of the whole bounding box for them; here a k-d tree holds the border alone, and border pixels that both
regions share are never looked up.

Sources: Huttenlocher et al. 1993 (Hausdorff distance); Nikolov et al. 2018 (surface Dice), counted in border pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from segkit.metrics.definitions import check_empty_rule


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each border pixel of either region is from the border of the other, in mm.

    Attributes:
        of_pred: (n,) distances of the border of the prediction to that of the truth.
        of_truth: (m,) distances the other way round.
        diagonal_mm: of the image, the largest distance that could be.

    Where one region alone is empty, the distances of the other are infinite.
    """

    of_pred: np.ndarray
    of_truth: np.ndarray
    diagonal_mm: float

    @property
    def both_empty(self) -> bool:
        """Nothing was there, and nothing was predicted: there is no distance to speak of."""
        return not len(self.of_pred) and not len(self.of_truth)

    def hausdorff(self, percentile: float = 95.0, empty: str = "leave_out") -> float | None:
        """The larger of the two percentiles of distances, in mm; 100 is the Hausdorff distance itself.

        Args:
            percentile: 0-100.
            empty: what it is where a region is empty, one of `segkit.metrics.definitions.EMPTY_RULES`.
        """
        if not self._both_there:
            return self._of_empty(empty, best=0.0, worst=self.diagonal_mm)
        return float(max(np.percentile(self.of_pred, percentile), np.percentile(self.of_truth, percentile)))

    def average(self, empty: str = "leave_out") -> float | None:
        """Average symmetric surface distance: the mean over the border pixels of both regions, in mm."""
        if not self._both_there:
            return self._of_empty(empty, best=0.0, worst=self.diagonal_mm)
        return float((self.of_pred.sum() + self.of_truth.sum()) / (len(self.of_pred) + len(self.of_truth)))

    def surface_dice(self, tolerance_mm: float, empty: str = "leave_out") -> float | None:
        """Share of the border pixels of both regions that lie within `tolerance_mm` of the other border, 0-1.

        A region on one side alone scores 0 under every rule.
        """
        if self.both_empty:
            return self._of_empty(empty, best=1.0, worst=0.0)
        near = (self.of_pred <= tolerance_mm).sum() + (self.of_truth <= tolerance_mm).sum()
        return float(near / (len(self.of_pred) + len(self.of_truth)))

    @property
    def _both_there(self) -> bool:
        return bool(len(self.of_pred)) and bool(len(self.of_truth))

    def _of_empty(self, empty: str, best: float, worst: float) -> float | None:
        check_empty_rule(empty)
        if self.both_empty:
            return {"one": best, "zero": worst}.get(empty)
        return worst if empty in ("penalise", "zero") else None


def surface_distances(
    pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float] | None = None
) -> SurfaceDistances:
    """Distances between the borders of a predicted and a true region.

    Args:
        pred: (H, W) or (D, H, W) bool.
        truth: the same shape.
        spacing_mm: distance of neighbouring pixels along each axis; None is 1 mm each, so that results are in pixels.

    Raises:
        ValueError: shapes that differ, or not one spacing per axis.
    """
    spacing = np.ones(pred.ndim) if spacing_mm is None else np.asarray(spacing_mm, float)
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise ValueError(f"regions of shape {pred.shape} and {truth.shape}: expected two of one shape, 2-D or 3-D.")
    if spacing.shape != (pred.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm is {spacing_mm}: expected {pred.ndim} positive numbers, one per axis.")
    diagonal = float(np.linalg.norm((np.array(pred.shape) - 1) * spacing))
    box = _bounding_box(pred, truth)
    if box is None:
        nothing = np.zeros(0)
        return SurfaceDistances(nothing, nothing, diagonal)
    # Cut to the box first: erosion looks at all of what it is given. Its faces are borders either way.
    here, there = border(pred[box]), border(truth[box])
    shared = here & there
    own_here, own_there, both = (_points(edge, spacing) for edge in (here & ~shared, there & ~shared, shared))
    zeros = np.zeros(len(both))
    of_pred = np.concatenate([zeros, _nearest(own_here, own_there, both)])
    of_truth = np.concatenate([zeros, _nearest(own_there, own_here, both)])
    return SurfaceDistances(of_pred, of_truth, diagonal)


def border(region: np.ndarray) -> np.ndarray:
    """(H, W) or (D, H, W) bool: pixels of the region with a neighbour along an axis that is not in it."""
    if region.ndim == 2:
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        inside = cv2.erode(region.view(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        return np.logical_and(region, inside == 0)
    padded, hidden = np.pad(region, 1), region.copy()
    for axis, length in enumerate(region.shape):
        for start in (0, 2):  # the neighbours before and after
            window = [slice(1, -1)] * region.ndim
            window[axis] = slice(start, start + length)
            np.logical_and(hidden, padded[tuple(window)], out=hidden)
    return np.logical_and(region, ~hidden)


def _bounding_box(pred: np.ndarray, truth: np.ndarray) -> tuple[slice, ...] | None:
    either = pred | truth
    box = []
    for axis in range(either.ndim):
        where = np.flatnonzero(either.any(tuple(other for other in range(either.ndim) if other != axis)))
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def _points(pixels: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(n, axes) places in mm of the pixels that are set."""
    # np.argwhere takes six times as long.
    return np.stack(np.unravel_index(np.flatnonzero(pixels), pixels.shape), axis=1) * spacing


def _nearest(points: np.ndarray, own: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Distances of `points` to the nearest of the other border: what is its own, and what both share."""
    others = np.concatenate([own, shared])
    if not len(points):
        return np.zeros(0)
    if not len(others):
        return np.full(len(points), np.inf)
    # Balanced trees cost more to build than they save in as many queries as there are points.
    return cKDTree(others, balanced_tree=False, compact_nodes=False).query(points)[0]
