"""Sums and gradients of one tile of pixels, in registers: `segkit.ops.loss_tiles` for the kernels on CUDA.

A tile is (C, n): all classes of n pixels, with C padded to a power of two. Vectors over classes are (C, 1), over pixels
(1, n). `real` tells classes from padding; `valid`, (1, n) or (C, n), is False where ignored, outside of the image, and,
where it has classes, in padding. The arithmetic is in the tile's dtype, float32 or float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segkit.ops.loss_tiles import TileLoss

# Numbers of a tile in the registers of one warp: 16 of each thread. A kernel needs up to ten such tiles at once.
_NUMBERS_PER_WARP = 512
# Offsets below it are int32.
_SMALL_OFFSETS = 2**31


def tile_shape(num_classes: int, pixels: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows and columns of a tile, and warps of a program.

    Args:
        pixels: columns that there should be at least; fewer where that would take more than 8 warps.
    """
    per_warp = _NUMBERS_PER_WARP // (2 if dtype == torch.float64 else 1)
    rows = triton.next_power_of_2(num_classes)
    numbers = max(rows, min(8 * per_warp, max(per_warp, pixels * rows)))
    return rows, numbers // rows, max(1, numbers // per_warp)


def constants(loss: TileLoss, dtype: torch.dtype, *tensors: Tensor) -> dict[str, Any]:
    """What kernels are compiled for: each set of options is a kernel of its own, without the work it has no use for.

    Args:
        tensors: all that is read and written by (N, C, H, W) offsets.
    """
    farthest = max(sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in tensors)
    return {
        "SOFTMAX": loss.choices.softmax,
        "INDEX_PLANES": loss.choices.index_planes,
        "TERM": loss.gamma is not None,
        "GAMMA": loss.gamma or 0.0,
        "SMOOTHING": loss.smoothing,
        "OVERLAP": loss.overlap,
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        # Of a pixel from the first of its image. Half the registers where they fit in 32 bits.
        "OFFSET": tl.int32 if farthest < _SMALL_OFFSETS else tl.int64,
    }


def weights_of(loss: TileLoss, dtype: torch.dtype) -> Tensor | None:
    """(C,) weights as kernels read them."""
    return None if loss.class_weights is None else loss.class_weights.to(dtype).contiguous()


def finish(partial: Tensor, loss: TileLoss) -> Tensor:
    """(2 + 3 C,) sums in the order of `LossSums`, from the (programs, 2 + 3 C) sums of programs.

    Those hold, in place of the weight, the number of valid choices, or of valid pixels if planes hold indices.
    """
    total = partial.sum(0, dtype=torch.float64)
    truth = total[-loss.num_classes :]
    if loss.gamma is None:
        total[1] = 0.0
    else:
        if loss.choices.index_planes and not loss.choices.softmax:
            total[1] *= loss.num_classes
        if loss.class_weights is not None:
            total[1] += ((loss.class_weights.double() - 1.0) * truth).sum()
    return total.to(partial.dtype)


@triton.jit
def read_truth(target, places, classes, real, inside, ignore_index, INDEX_PLANES: tl.constexpr):
    """Truth of a tile of pixels at (1, n) or (C, n) places: (C, n) bool; valid; (1, n) class indices."""
    if INDEX_PLANES:
        index = tl.load(target + places, mask=inside, other=0).to(tl.int32)
        valid = inside & (index != ignore_index)
        index = tl.where(valid, index, -1)
        return classes == index, valid, index
    else:
        plane = tl.load(target + places, mask=real & inside, other=0).to(tl.int32)
        valid = real & inside & (plane != ignore_index)
        return (plane == 1) & valid, valid, 0


@triton.jit
def read_weights(weights, classes, real, index, valid, num_classes, SOFTMAX: tl.constexpr, DTYPE: tl.constexpr):
    """Softmax: (1, n) weight of the true class, 0 where ignored. Sigmoid: (C, 1) weight of a class that is there."""
    if SOFTMAX:
        if weights is None:
            return valid.to(DTYPE)
        else:
            # A number that is no class must not read beyond the weights.
            return tl.load(weights + index, mask=(index >= 0) & (index < num_classes), other=0.0)
    else:
        if weights is None:
            return tl.full(classes.shape, 1.0, DTYPE)
        else:
            return tl.load(weights + classes, mask=real, other=0.0)


@triton.jit
def read_grad(grad, classes, real, num_classes, OVERLAP: tl.constexpr):
    """Gradient of Σ w·f, of (C, 1) Σ p·t and of (C, 1) Σ p."""
    if OVERLAP:
        grad_both = tl.load(grad + 2 + classes, mask=real, other=0.0)
        grad_probs = tl.load(grad + 2 + num_classes + classes, mask=real, other=0.0)
        return tl.load(grad), grad_both, grad_probs
    else:
        return tl.load(grad), 0.0, 0.0


@triton.jit
def write_sums(partial, term, known, both, probs, there, classes, num_classes):
    """Sums of one program, of tiles or of what is left of them, into its row of (programs, 2 + 3 C)."""
    real = classes < num_classes
    row = partial + tl.program_id(0) * (2 + 3 * num_classes)
    tl.store(row, tl.sum(tl.sum(term, 1), 0))
    tl.store(row + 1, tl.sum(tl.sum(known, 1), 0))
    tl.store(row + 2 + classes, tl.sum(both, 1, keep_dims=True), mask=real)
    tl.store(row + 2 + num_classes + classes, tl.sum(probs, 1, keep_dims=True), mask=real)
    tl.store(row + 2 + 2 * num_classes + classes, tl.sum(there, 1, keep_dims=True), mask=real)


@triton.jit
def tile_forward(
    z,
    truth,
    valid,
    real,
    weights,
    num_classes,
    SOFTMAX: tl.constexpr,
    TERM: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """Of (C, n) logits, -infinity in padding.

    Returns:
        (C, n) probabilities, 0 where not valid; w·f, (1, n) for softmax and (C, n) for sigmoid; for softmax (1, n)
        log Σ exp (z - max z), infinite where not valid, else 0.
    """
    # where(), not a product: ignored logits may be anything.
    z = tl.where(valid, z, 0.0)
    if SOFTMAX:
        top = tl.max(z, 0, keep_dims=True)
        z = z - top
        p = tl.exp(z)
        total = tl.sum(p, 0, keep_dims=True)
        log_total = tl.log(total)
        p = p * tl.where(valid, 1.0 / total, 0.0)
        term = tl.zeros_like(top)
        if TERM:
            log_p = tl.sum(tl.where(truth, z, 0.0), 0, keep_dims=True)
            if SMOOTHING != 0.0:
                spread = tl.sum(tl.where(real, z, 0.0), 0, keep_dims=True) / num_classes
                log_p = (1.0 - SMOOTHING) * log_p + SMOOTHING * spread
            log_p = log_p - log_total
            term = -log_p
            if GAMMA != 0.0:
                miss = tl.sum(tl.where(truth, 0.0, p), 0, keep_dims=True)
                term = _power(_positive(miss), GAMMA) * term
            term = tl.where(valid, weights * term, 0.0)
        return p, term, tl.where(valid, log_total, float("inf"))
    else:
        valid = valid & real
        p, q, _, rest = _sigmoid(z)
        term = tl.zeros_like(z)
        if TERM:
            if SMOOTHING != 0.0:
                log_p = _smoothed(truth, z.dtype, SMOOTHING) * z - (tl.maximum(z, 0.0) + rest)
            else:
                log_p = -(tl.maximum(tl.where(truth, -z, z), 0.0) + rest)
            term = -log_p
            if GAMMA != 0.0:
                term = _power(_positive(tl.where(truth, q, p)), GAMMA) * term
            term = tl.where(valid, tl.where(truth, weights, 1.0) * term, 0.0)
        return tl.where(valid, p, 0.0), term, 0.0


@triton.jit
def tile_backward(
    z,
    truth,
    valid,
    weights,
    normalizer,
    grad_term,
    grad_both,
    grad_probs,
    num_classes,
    SOFTMAX: tl.constexpr,
    TERM: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """(C, n) gradient of the logits, 0 where not valid, from that of Σ w·f, (C, 1) Σ p·t and (C, 1) Σ p."""
    z = tl.where(valid, z, 0.0)
    grad = tl.zeros_like(z)
    if SOFTMAX:
        # The largest logit first: together with it, log Σ exp would lose the digits that tell p from 1.
        z = z - tl.max(z, 0, keep_dims=True)
        p = tl.exp(z - normalizer)
        if OVERLAP:
            # G, the gradient of p, to that of z: p · (G - Σ p·G).
            of_p = grad_probs + tl.where(truth, grad_both, 0.0)
            grad = of_p - tl.sum(p * of_p, 0, keep_dims=True)
        if TERM:
            slope = grad_term * weights
            if GAMMA != 0.0:
                log_p = tl.sum(tl.where(truth, z, 0.0), 0, keep_dims=True) - normalizer
                slope = slope * _slope(log_p, tl.sum(tl.where(truth, 0.0, p), 0, keep_dims=True), GAMMA)
            grad = p * (grad + slope) - tl.where(truth, (1.0 - SMOOTHING) * slope, 0.0)
            if SMOOTHING != 0.0:
                grad = grad - slope * SMOOTHING / num_classes
        else:
            grad = p * grad
    else:
        p, q, pq, rest = _sigmoid(z)
        if OVERLAP:
            grad = (grad_probs + tl.where(truth, grad_both, 0.0)) * pq
        if TERM:
            slope = grad_term * tl.where(truth, weights, 1.0)
            if GAMMA != 0.0:
                log_p = -(tl.maximum(tl.where(truth, -z, z), 0.0) + rest)
                slope = slope * _slope(log_p, tl.where(truth, q, p), GAMMA)
            if SMOOTHING != 0.0:
                grad = grad + slope * (p - _smoothed(truth, z.dtype, SMOOTHING))
            else:
                # p - 1 = -q, which keeps the digits that p loses near 1.
                grad = grad + slope * tl.where(truth, -q, p)
    return tl.where(valid, grad, 0.0)


@triton.jit
def _sigmoid(z):
    """p, 1 - p, p · (1 - p), none of which cancels, and log(1 + exp -|z|): -log p without max(-z, 0)."""
    small = tl.exp(-tl.abs(z))
    large_share = 1.0 / (1.0 + small)
    small_share = small * large_share
    p = tl.where(z >= 0.0, large_share, small_share)
    q = tl.where(z >= 0.0, small_share, large_share)
    return p, q, large_share * small_share, _log1p(small)


@triton.jit
def _log1p(x):
    """log(1 + x) of x in [0, 1]: Triton has none that runs everywhere."""
    if x.dtype == tl.float64:
        # Kahan: what 1 + x lost is in both factors, and cancels.
        y = 1.0 + x
        return tl.where(y == 1.0, x, tl.log(y) * (x / (y - 1.0)))
    else:
        # Interpolates log(1 + x) / x at Chebyshev's nodes; 1.5e-7 from it in float32, and cheaper than tl.log.
        y = 0.0052534578 * x - 0.0295885074
        y = y * x + 0.078361668
        y = y * x - 0.136747697
        y = y * x + 0.191114311
        y = y * x - 0.248443699
        y = y * x + 0.333192713
        y = y * x - 0.499995015
        return x * (y * x + 0.999999971)


@triton.jit
def _smoothed(truth, dtype: tl.constexpr, SMOOTHING: tl.constexpr):
    return truth.to(dtype) * (1.0 - SMOOTHING) + 0.5 * SMOOTHING


@triton.jit
def _slope(log_p, miss, GAMMA: tl.constexpr):
    """-f'(l) of the log-probability of the truth, and `miss`, 1 minus the probability."""
    miss = _positive(miss)
    return _power(miss, GAMMA) - GAMMA * _power(miss, GAMMA - 1.0) * tl.exp(log_p) * log_p


@triton.jit
def _positive(x):
    """At 0 the slope of x^gamma is infinite for gamma < 1: hence the smallest positive number in its place."""
    if x.dtype == tl.float64:
        return tl.maximum(x, 2.2250738585072014e-308)
    else:
        return tl.maximum(x, 1.1754943508222875e-38)


@triton.jit
def _power(x, EXPONENT: tl.constexpr):
    """x^EXPONENT of positive numbers."""
    if EXPONENT == 0.0:
        return x * 0.0 + 1.0
    elif EXPONENT == 1.0:
        return x
    elif EXPONENT == 2.0:
        return x * x
    else:
        return tl.exp2(EXPONENT * tl.log2(x))
