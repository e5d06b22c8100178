"""What `loss_sums` must give, written with whole tensors and differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.ops.loss_sums import LossSums, PixelTerm
from segkit.ops.loss_tiles import Choices
from segkit.ops.upsample import CoarseLogits


def reference_sums(
    logits: CoarseLogits, target: Tensor, choices: Choices, term: PixelTerm | None = None, overlap: bool = True
) -> LossSums:
    """The definition by the textbook, over tensors of full resolution."""
    values = logits.values
    if logits.upsampled:
        values = F.interpolate(values, logits.size_hw, mode="bilinear", align_corners=logits.align_corners)
    height, width = target.shape[-2:]
    z = values[..., :height, :width]
    n, c = z.shape[:2]
    valid = (target != choices.ignore_index).expand(n, c if not choices.index_planes else 1, height, width)
    classes = torch.arange(c).view(1, -1, 1, 1)
    truth = target == (classes if choices.index_planes else 1)
    z = torch.where(valid, z, 0.0)
    p = z.softmax(1) if choices.softmax else z.sigmoid()
    t = truth.to(z.dtype)
    if choices.softmax:
        q = t if term is None else t * (1 - term.smoothing) + term.smoothing / c
        log_likelihood = (q * z.log_softmax(1)).sum(1, keepdim=True)
    else:
        q = t if term is None else t * (1 - term.smoothing) + term.smoothing / 2
        log_likelihood = q * F.logsigmoid(z) + (1 - q) * F.logsigmoid(-z)
    total, weight = z.new_zeros(()), z.new_zeros(())
    if term is not None:
        class_weights = torch.ones(c) if term.class_weights is None else term.class_weights
        of_class = class_weights.to(z.dtype).view(1, -1, 1, 1)
        w = (t * of_class).sum(1, keepdim=True) if choices.softmax else t * of_class + (1 - t)
        w = torch.where(valid, w, 0.0)
        # 0^gamma has no slope for gamma < 1.
        miss = (-torch.expm1(log_likelihood)).clamp_min(torch.finfo(z.dtype).tiny)
        total = (w * miss**term.gamma * -log_likelihood).sum()
        weight = w.sum()
    counted = torch.where(valid, p, 0.0)
    zero = z.new_zeros(c)
    return LossSums(
        total,
        weight,
        (counted * t).sum((0, 2, 3)) if overlap else zero,
        counted.sum((0, 2, 3)) if overlap else zero,
        (t * valid).sum((0, 2, 3)),
    )
