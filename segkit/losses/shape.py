"""Losses that judge the shape of a class: how far mistakes lie from its boundary, and whether its lines hold together.

They look at neighbours, so they need logits at full resolution; coarse ones are upsampled for them. They stand beside
a loss of pixels or areas, which finds the class in the first place.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from segkit.formats.class_places import parse_members
from segkit.formats.mask_format import MaskFormat
from segkit.losses.base import SegmentationLoss, full_logits
from segkit.ops.distance import distance_to
from segkit.ops.loss_tiles import check_planes
from segkit.ops.skeleton import soft_skeleton
from segkit.ops.upsample import CoarseLogits


class ShapeLoss(SegmentationLoss):
    """A loss of the probability maps of some classes.

    Args:
        classes: their names; default all but `background`, whose shape is what the others leave.
    """

    members: Tensor | None

    def __init__(self, format: MaskFormat, classes: Any = None) -> None:
        super().__init__(format)
        numbers = parse_members(classes, format)
        everything = len(numbers) == format.num_classes
        self.register_buffer("members", None if everything else torch.tensor(numbers), persistent=False)

    def measure(self, logits: CoarseLogits, target: Tensor) -> Tensor:
        """See `SegmentationLoss`."""
        format = self.format
        check_planes(target, format.choices, format.num_classes)
        z, valid = full_logits(logits), format.valid(target)
        # Hidden before the activation: 0 times the derivative of an infinite logit is NaN.
        probs = self._of_members(format.probabilities(torch.where(valid, z, 0.0)))
        if not probs.numel():
            return probs.sum()
        truth = self._of_members(format.expand(target))
        return self.compare(probs, truth, self._of_members(valid.expand(z.shape)))

    @abstractmethod
    def compare(self, probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """The loss of M classes.

        Args:
            probs: (N, M, H, W) float32 or better, in [0, 1]; finite where not valid.
            truth: (N, M, H, W) bool, False where not valid.
            valid: (N, M, H, W) bool.
        """

    def _of_members(self, maps: Tensor) -> Tensor:
        return maps if self.members is None else maps.index_select(1, self.members)


class Boundary(ShapeLoss):
    """Mistakes weighed by their distance from the boundary of the truth (Kervadec et al. 2019).

    In each map, of one class in one image, Σ d·|truth - p| / Σ d over valid pixels, with d the distance of a pixel's
    centre from the nearest pixel known to be of the other side, less the half that lies beyond the boundary. Then the
    mean over the maps that have valid pixels. The paper's Σ ±d·p differs by a constant; its code counts half a pixel
    more outside and less inside. Divided by Σ d, the loss is in [0, 1] at every size of image, 0 for the truth alone,
    and its weight needs no schedule. A map without a boundary, of a class that is absent or everywhere, has no
    distances: its pixels count alike, where the paper's code passes over it.

    Distances are computed anew for each batch, see `segkit.ops.distance`: two maps of each class and image.

    Args:
        classes: see `ShapeLoss`.
    """

    def compare(self, probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """See `ShapeLoss`."""
        distance = torch.where(truth, distance_to(valid & ~truth), distance_to(truth)) - 0.5
        weights = torch.where(valid, distance.masked_fill(distance.isinf(), 1.0), 0.0).to(probs.dtype)
        wrong = torch.where(valid, torch.where(truth, 1.0 - probs, probs), 0.0)
        total = weights.sum((2, 3))
        of_maps = (weights * wrong).sum((2, 3)) / torch.where(total > 0, total, 1.0)
        return of_maps.sum() / (total > 0).sum().clamp_min(1)


class ClDice(ShapeLoss):
    """1 - mean over classes of the Dice of centre lines and areas (Shit et al. 2021), for vessels, roads and cells.

    With S the soft skeletons of p and t over the valid pixels of the batch, precision is (Σ S(p)·t + 1) / (Σ S(p) + 1),
    sensitivity (Σ S(t)·p + 1) / (Σ S(t) + 1), and the loss 1 minus their harmonic mean. A gap in a line costs as much
    where the line is thin as where it is wide. A predicted line of an absent class costs precision.

    Args:
        iterations: rounds of thinning: at least half the width in pixels of the widest line, the more, the slower. The
            paper takes 5 to 25.
        classes: see `ShapeLoss`; those that are lines.
    """

    def __init__(self, format: MaskFormat, iterations: int = 5, classes: Any = None) -> None:
        super().__init__(format, classes)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations is {iterations!r}: expected a whole number, at least 1.")
        self.iterations = iterations

    def compare(self, probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """See `ShapeLoss`."""
        areas = truth.to(probs.dtype)
        lines, true_lines = (soft_skeleton(maps, valid, self.iterations) for maps in (probs, areas))
        precision = _share(lines, areas)
        sensitivity = _share(true_lines, torch.where(valid, probs, 0.0))
        return 1.0 - (2.0 * precision * sensitivity / (precision + sensitivity)).mean()


def _share(lines: Tensor, areas: Tensor) -> Tensor:
    """(M,) share of the lines that lies in the areas, with one pixel added to both."""
    return ((lines * areas).sum((0, 2, 3)) + 1.0) / (lines.sum((0, 2, 3)) + 1.0)
