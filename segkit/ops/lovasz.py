"""The Lovász extension of the Jaccard loss, class by class, and its gradient.

The extension is linear between two ties of the errors: its gradient is a weight per pixel, found by sorting. Sorting
needs one class at full resolution at a time, so coarse logits are upsampled class by class and the gradient goes back
to the coarse values at once. It is made together with the loss, since sorting twice would double the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segkit.ops.choices import at_least_float32
from segkit.ops.loss_tiles import Choices, check_planes, refuse_second_derivative
from segkit.ops.upsample import CoarseLogits, TileReader


def lovasz_loss(logits: CoarseLogits, target: Tensor, choices: Choices) -> Tensor:
    """Mean over classes of the Lovász extension of |truth - probability| (Berman et al. 2018, eq. 9).

    Args:
        logits: stand for (N, C, H, W); the batch is one set of pixels.
        target: (N, P, H, W) planes; ignored pixels move nothing, whatever their logits are.

    Returns:
        Scalar in float32 or better, in [0, 1]; differentiable with respect to the coarse values, once.
    """
    wanted = torch.is_grad_enabled() and logits.values.requires_grad
    plan = [*(float(choice) for choice in choices), float(logits.align_corners)]
    loss, _ = _lovasz(logits.values, target, list(logits.size_hw), plan, wanted)
    return loss


def lovasz_weights(errors: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Gradient of one class's Lovász extension with respect to its errors.

    Args:
        errors: (N, H, W) float in [0, 1].
        truth: (N, H, W) bool.
        valid: (N, H, W) bool; False pixels get the weight 0.

    Returns:
        (N, H, W) like `errors`, of sum at most 1.
    """
    # Pixels enter a set of errors, worst first; a weight is the step in that set's Jaccard loss. A stable order makes
    # equal runs equal, also among ties.
    order = errors.flatten().sort(descending=True, stable=True).indices
    # Ignored pixels are neither and take no step; leaving them out of the sort would wait for the device.
    hit = (truth & valid).flatten()[order]
    miss = (valid & ~truth).flatten()[order]
    # The set holds some true pixels and some false positives: its loss is 1 - intersection / union. Integers, and
    # the step in closed form: differences of neighbouring losses would lose most digits in float32.
    union = hit.sum() + miss.cumsum(0)
    intersection = (hit.sum() - hit.cumsum(0)).to(errors.dtype)
    step_hit = 1.0 / union.clamp_min(1).to(errors.dtype)
    # The first false positive of an absent class takes the loss from 0 to 1.
    step_miss = torch.where(union == 1, 1.0, intersection / (union * (union - 1)).clamp_min(1))
    steps = torch.where(hit, step_hit, torch.where(miss, step_miss, 0.0))
    return torch.empty_like(steps).scatter_(0, order, steps).view_as(errors)


@torch.library.custom_op("segkit::lovasz", mutates_args=())
def _lovasz(
    values: Tensor, target: Tensor, size_hw: list[int], plan: list[float], wanted: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to `values`, (0,) where it is not wanted; both in float32 or better.

    Halved only when the factor of the loss is known, which may be the scale of a GradScaler: 1 / pixels is less than
    float16 can hold.
    """
    choices = Choices(bool(plan[0]), bool(plan[1]), int(plan[2]))
    logits = CoarseLogits(values, (size_hw[0], size_hw[1]), (target.shape[-2], target.shape[-1]), bool(plan[3]))
    check_planes(target, choices, values.shape[1])
    with torch.autocast(values.device.type, enabled=False):
        return _Lovasz(logits, target, choices).loss_and_gradient(wanted)


@_lovasz.register_fake
def _fake_lovasz(values: Tensor, target: Tensor, size_hw: Any, plan: Any, wanted: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return values.new_empty((), dtype=dtype), torch.empty_like(values, dtype=dtype) if wanted else values.new_empty(
        0, dtype=dtype
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_derivative()
    (gradient,) = ctx.saved_tensors
    return (grad * gradient).to(ctx.dtype), None, None, None, None


_lovasz.register_autograd(_gradient, setup_context=_keep)


class _Lovasz:
    """One class at a time; (N, H, W) maps are the largest tensors beside the gradient."""

    def __init__(self, logits: CoarseLogits, target: Tensor, choices: Choices) -> None:
        self.logits, self.target, self.choices = logits, target, choices
        self.reader = TileReader(
            CoarseLogits(logits.values[:, :1], logits.size_hw, logits.crop_hw, logits.align_corners)
        )
        self.normalizers = self._log_sum_exp() if choices.softmax else None

    def loss_and_gradient(self, wanted: bool) -> tuple[Tensor, Tensor]:
        values, classes = self.logits.values, self.logits.values.shape[1]
        loss = torch.zeros((), dtype=self.reader.dtype, device=values.device)
        gradient = torch.empty_like(values, dtype=loss.dtype) if wanted else values.new_empty(0, dtype=loss.dtype)
        pull = torch.zeros((), dtype=loss.dtype, device=values.device)
        for c in range(classes):
            probs, truth, valid = self._probs(c), self._truth(c), self._valid(c)
            errors = torch.where(truth, 1.0 - probs, probs)
            weights = lovasz_weights(errors, truth, valid) / classes
            # where(), not a product: errors of ignored pixels may be NaN.
            loss += torch.where(valid, weights * errors, 0.0).sum()
            if wanted:
                by_probs = torch.where(valid, torch.where(truth, -weights, weights) * probs, 0.0)
                if self.normalizers is None:
                    by_probs *= torch.where(valid, 1.0 - probs, 0.0)
                else:
                    pull = pull + by_probs
                gradient[:, c : c + 1] = self._back(c, by_probs)
        if wanted and self.normalizers is not None:
            # The derivative of a softmax has a part of all classes, p_k · Σ_j G_j p_j, known only now.
            for c in range(classes):
                of_all = torch.where(self._valid(c), self._probs(c) * pull, 0.0)
                gradient[:, c : c + 1] -= self._back(c, of_all)
        return loss, gradient

    def _log_sum_exp(self) -> Tensor:
        reader = TileReader(self.logits)
        result = self._map(reader.dtype)
        for image, tile in reader:
            place = result[image, tile.rows, tile.columns]
            place.copy_(at_least_float32(reader.read(image, tile)).logsumexp(0).view_as(place))
        return result

    def _probs(self, c: int) -> Tensor:
        """(N, H, W) probabilities of class c."""
        reader = self._reader(c)
        z = self._map(reader.dtype)
        for image, tile in reader:
            place = z[image, tile.rows, tile.columns]
            place.copy_(reader.read(image, tile).view_as(place))
        return z.sigmoid_() if self.normalizers is None else z.sub_(self.normalizers).exp_()

    def _reader(self, c: int) -> TileReader:
        return self.reader.with_values(self.logits.values[:, c : c + 1])

    def _truth(self, c: int) -> Tensor:
        return self.target[:, 0] == c if self.choices.index_planes else self.target[:, c] == 1

    def _valid(self, c: int) -> Tensor:
        return self.target[:, 0 if self.choices.index_planes else c] != self.choices.ignore_index

    def _back(self, c: int, gradient: Tensor) -> Tensor:
        """(N, 1, h, w) gradient of coarse values of class c from the (N, H, W) gradient of its logits."""
        reader = self._reader(c)
        result = reader.empty_gradient()
        for image, tile in reader:
            of_tile = gradient[image, tile.rows, tile.columns].reshape(1, -1)
            reader.add_gradient(result, image, tile, reader.pull_back(tile, of_tile))
        return result

    def _map(self, dtype: torch.dtype) -> Tensor:
        n, _, height, width = self.logits.shape
        return torch.empty((n, height, width), dtype=dtype, device=self.logits.values.device)
