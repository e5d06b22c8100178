"""The sums that losses are made of, straight from logits and planes, and their gradient.

From (N, C, H, W) logits against (N, P, H, W) planes come a few numbers: Σ w·f of one pixel term, and Σ p·t, Σ p, Σ t
of each class. Whole tensors of probabilities, one-hot masks or per-pixel losses are never built: tiles of them are,
at a size that stays in the CPU's cache (`segkit.ops.loss_tiles`, the definition). Nothing stays from forward to
backward; peak memory is the gradient and little more. Logits that a network would upsample last are upsampled tile by
tile (`segkit.ops.upsample`). On CUDA, `segkit.ops.loss_sums_triton` computes the same in one pass over the logits each
way, and keeps one number per pixel, log Σ exp of its logits; `backend_of` tells which one runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segkit.ops.backend import Backend, runs_triton
from segkit.ops.loss_tiles import Choices, TileLoss, check_planes, refuse_second_derivative
from segkit.ops.parallel import in_order
from segkit.ops.upsample import CoarseLogits, Tile, TileReader

# The kernels hold all classes of a few pixels in registers, which end there.
_KERNEL_CLASSES = 512


@dataclass(frozen=True)
class PixelTerm:
    """A loss of every choice by itself, (1 - exp l)^gamma · -l with l the log-probability of the truth.

    Attributes:
        gamma: 0 is cross entropy, above it focal loss (Lin et al. 2017).
        smoothing: share of the truth in [0, 1) that is spread over all outcomes (Szegedy et al. 2016); only with
            gamma 0.
        class_weights: (C,) float32 weights of choices by the class that is there, None for 1 each. Where a class is
            not there, the choice weighs 1.
    """

    gamma: float = 0.0
    smoothing: float = 0.0
    class_weights: Tensor | None = None


class LossSums(NamedTuple):
    """Sums over the valid pixels of a batch, in float32 or better."""

    term: Tensor  # () Σ w·f; 0 without a pixel term
    weight: Tensor  # () Σ w; 0 without a pixel term
    both: Tensor  # (C,) Σ p·t; 0 without overlap
    probs: Tensor  # (C,) Σ p; 0 without overlap
    truth: Tensor  # (C,) Σ t


def loss_sums(
    logits: CoarseLogits, target: Tensor, choices: Choices, term: PixelTerm | None = None, overlap: bool = True
) -> LossSums:
    """One pass over the logits; differentiable with respect to their values, once.

    Args:
        logits: stand for (N, C, H, W).
        target: (N, P, H, W) planes.
        term: the pixel term to sum, None for none.
        overlap: whether to sum p·t and p.

    Returns:
        Sums. Ignored pixels move neither them nor a gradient, even where their logits are infinite or NaN.
    """
    options = (0.0, 0.0) if term is None else (term.gamma, term.smoothing)
    weights = None if term is None else term.class_weights
    plan = _Plan(*choices, logits.align_corners, overlap, term is not None, *options)
    sums, _ = _sums(logits.values, target, weights, list(logits.size_hw), [float(number) for number in plan])
    return LossSums(sums[0], sums[1], *sums[2:].split(logits.values.shape[1]))


def backend_of(values: Tensor, target: Tensor) -> Backend:
    """What sums (N, C, h, w) logits against a target: "triton" on CUDA up to 512 classes, else "tiles"."""
    fits = values.numel() and target.numel() and values.shape[1] <= _KERNEL_CLASSES
    return "triton" if fits and runs_triton(values.device) else "tiles"


class _Plan(NamedTuple):
    """What is summed, as the numbers that an operator takes."""

    softmax: float
    index_planes: float
    ignore_index: float
    align_corners: float
    overlap: float
    term: float
    gamma: float
    smoothing: float

    def logits(self, values: Tensor, target: Tensor, size_hw: list[int]) -> CoarseLogits:
        crop_hw = (target.shape[-2], target.shape[-1])
        return CoarseLogits(values, (size_hw[0], size_hw[1]), crop_hw, bool(self.align_corners))

    def tile_loss(self, values: Tensor, class_weights: Tensor | None) -> TileLoss:
        choices = Choices(bool(self.softmax), bool(self.index_planes), int(self.ignore_index))
        gamma = self.gamma if self.term else None
        return TileLoss(choices, values.shape[1], gamma, self.smoothing, class_weights, bool(self.overlap))


# Operators of their own, so that torch.compile takes each as one call and does not unroll the loop over tiles.


@torch.library.custom_op("segkit::loss_sums", mutates_args=())
def _sums(
    values: Tensor, target: Tensor, class_weights: Tensor | None, size_hw: list[int], plan: list[float]
) -> tuple[Tensor, Tensor]:
    """(2 + 3 C,) sums in the order of `LossSums`; (N, H, W) log Σ exp that kernels keep for the way back, else (0,)."""
    choice = _Plan(*plan)
    logits, loss = choice.logits(values, target, size_hw), choice.tile_loss(values, class_weights)
    if backend_of(values, target) == "triton":
        from segkit.ops.loss_sums_triton import forward

        return forward(logits, target, loss)
    sums = _sum_tiles(logits, target, loss)
    return sums, sums.new_empty(0)


@torch.library.custom_op("segkit::loss_sums_backward", mutates_args=())
def _sums_backward(
    grad: Tensor,
    normalizers: Tensor,
    values: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    size_hw: list[int],
    plan: list[float],
) -> Tensor:
    """Gradient of `values`, in their dtype, from the (2 + 3 C,) gradient of the sums."""
    choice = _Plan(*plan)
    logits, loss = choice.logits(values, target, size_hw), choice.tile_loss(values, class_weights)
    if backend_of(values, target) == "triton":
        from segkit.ops.loss_sums_triton import backward

        return backward(logits, target, loss, normalizers, grad)
    return _gradient_of_tiles(logits, target, loss, grad)


@_sums.register_fake
def _fake_sums(values: Tensor, target: Tensor, weights: Any, size_hw: Any, plan: list[float]) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    kept = plan[0] and backend_of(values, target) == "triton"
    pixels = (len(target), *target.shape[2:]) if kept else (0,)
    return values.new_empty(2 + 3 * values.shape[1], dtype=dtype), values.new_empty(pixels, dtype=dtype)


@_sums_backward.register_fake
def _fake_backward(grad: Tensor, normalizers: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, target, class_weights, *numbers = inputs
    ctx.save_for_backward(output[1], values, target, class_weights)
    ctx.numbers = numbers
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_derivative()
    return _sums_backward(grad, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


_sums.register_autograd(_gradient, setup_context=_keep)


# The definition ----------------------------------------------------------------------------------------------


def _sum_tiles(logits: CoarseLogits, target: Tensor, loss: TileLoss) -> Tensor:
    check_planes(target, loss.choices, loss.num_classes)
    reader, device = TileReader(logits), logits.values.device

    def sums_of(place: tuple[int, Tile]) -> Tensor:
        return loss.forward(reader.read(*place), _planes(target, *place))

    # Tiles are added in float64 where the device has it: float32 stops counting at 2^24 pixels.
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros(2 + 3 * loss.num_classes, dtype=wide, device=device)
    with torch.autocast(device.type, enabled=False):
        for sums in in_order(sums_of, reader, device):
            total += sums
    return total.to(reader.dtype)


def _gradient_of_tiles(logits: CoarseLogits, target: Tensor, loss: TileLoss, grad: Tensor) -> Tensor:
    reader, device = TileReader(logits), logits.values.device
    result = reader.empty_gradient()

    def gradient_of(place: tuple[int, Tile]) -> tuple[int, Tile, Tensor] | None:
        image, tile = place
        out = reader.matrix_of(result, image, tile)
        of_tile = loss.backward(reader.read(image, tile), _planes(target, image, tile), grad, out)
        if out is not None:
            return None
        of_patch = reader.pull_back(tile, of_tile)
        if reader.patches_overlap:
            return image, tile, of_patch
        reader.add_gradient(result, image, tile, of_patch)
        return None

    with torch.autocast(device.type, enabled=False):
        for found in in_order(gradient_of, reader, device):
            if found is not None:
                reader.add_gradient(result, *found)
    return result.to(logits.values.dtype)


def _planes(target: Tensor, image: int, tile: Tile) -> Tensor:
    """(P, R · W)."""
    return target[image, :, tile.rows, tile.columns].flatten(1)
