"""Sums and gradients of one tile of pixels: the definition of what `segkit.ops.loss_sums` sums.

With p the probabilities, t the truth (0 or 1), q the truth after label smoothing, w the weight of a choice, and l the
log-probability of its truth:

    pixel term   f = (1 - exp l)^γ · -l                 γ = 0: cross entropy; else focal loss (Lin et al. 2017)
    softmax      ∂f/∂z_k = f'(l) · (q_k - p_k)          ∂p_j/∂z_k = p_j · ([j = k] - p_k)
    sigmoid      ∂f_k/∂z_k = f'(l_k) · (q_k - p_k)      ∂p_k/∂z_k = p_k · (1 - p_k)

All arithmetic is in float32, or float64 for float64 logits, and in a fixed order: equal inputs give equal sums.
Ignored pixels move nothing, even where their logits are infinite or NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segkit.ops.choices import at_least_float32

# A logit whose probability is 0, exactly, in float32 and float64; finite, since 0 · infinity is NaN.
_NEVER = -1e4


class Choices(NamedTuple):
    """How planes and logits belong together.

    Attributes:
        softmax: one choice among C classes per pixel; else C choices of two outcomes.
        index_planes: one plane of class indices; else C planes of 0 and 1.
        ignore_index: a plane's value where the choice is not known.
    """

    softmax: bool
    index_planes: bool
    ignore_index: int


def check_planes(target: Tensor, choices: Choices, num_classes: int) -> None:
    """Refuse planes that say what no class is. Only on a CPU: a GPU would have to be waited for.

    Raises:
        ValueError: names the values.
    """
    if target.device.type != "cpu":
        return
    count = num_classes if choices.index_planes else 2
    # Less `count`, bytes of classes wrap to the highest, *ignored* comes next, and whatever is neither lies below.
    bytes_fit = target.dtype == torch.uint8 and target.numel() > 0
    if bytes_fit and (target - count).min() >= choices.ignore_index - count:
        return
    strange = (target != choices.ignore_index) & ((target >= count) | (target < 0))
    if strange.any():
        raise ValueError(
            f"target holds {sorted(set(target[strange].tolist()))[:5]}, expected 0 to {count - 1}, and "
            f"{choices.ignore_index} where ignored. Read masks with a codec, which turns values on disk into those."
        )


def refuse_second_derivative() -> None:
    """Called in a backward pass: it is recorded only for a derivative of the derivative, which is not defined here."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "segkit's losses can be differentiated once, and create_graph=True asks for more. For second derivatives "
            "write a loss with the verbs of the format, such as `format.log_likelihood`."
        )


class TileLoss:
    """Sums over one tile, and the gradient of its logits.

    Args:
        gamma: exponent of the pixel term, None for no pixel term.
        smoothing, class_weights: see `segkit.ops.loss_sums.PixelTerm`.
        overlap: whether p·t and p are summed.
    """

    def __init__(
        self,
        choices: Choices,
        num_classes: int,
        gamma: float | None,
        smoothing: float,
        class_weights: Tensor | None,
        overlap: bool,
    ) -> None:
        self.choices, self.num_classes = choices, num_classes
        self.gamma, self.smoothing, self.class_weights, self.overlap = gamma, smoothing, class_weights, overlap

    def forward(self, z: Tensor, planes: Tensor) -> Tensor:
        """(2 + 3 C,) sums of a tile in the order of `LossSums`.

        Args:
            z: (C, n) logits in any float type.
            planes: (P, n).
        """
        return self._softmax_forward(z, planes[0]) if self.choices.softmax else self._sigmoid_forward(z, planes)

    def backward(self, z: Tensor, planes: Tensor, grad: Tensor, out: Tensor | None = None) -> Tensor:
        """(C, n) gradient of the logits from the (2 + 3 C,) gradient of the sums.

        Args:
            out: (C, n) memory for it in the dtype of the computation, None for new memory.
        """
        if self.choices.softmax:
            return self._softmax_backward(z, planes[0], grad, out)
        return self._sigmoid_backward(z, planes, grad, out)

    # Softmax -------------------------------------------------------------------------------------------

    def _softmax_forward(self, z: Tensor, plane: Tensor) -> Tensor:
        truth, valid = self._truth_of(plane)
        p = self._below_highest(z, valid)
        at_truth = p.gather(0, truth[None])[0]
        spread = p.mean(0) if self.smoothing else None
        total = p.exp_().sum(0)
        log_total = total.log()
        counted = torch.where(valid, truth, self.num_classes)
        sums = [p.new_zeros(2)]
        if self.gamma is not None:
            log_p = at_truth - log_total
            if spread is not None:
                log_p = (1.0 - self.smoothing) * log_p + self.smoothing * (spread - log_total)
            weights = self._index_weights(truth, valid, p.dtype)
            miss = -torch.expm1(log_p) if self.gamma else None
            sums[0][0] = torch.where(valid, weights * self._term(log_p, miss), 0.0).sum()
            sums[0][1] = weights.sum()
        if self.overlap:
            both = torch.where(valid, (at_truth - log_total).exp(), 0.0)
            # Not a matrix product: it adds number by number, and float32 loses a thousandth of a large tile.
            sums += [self._by_class(counted, both), p.mul_(_shares(total, valid)).sum(1)]
        else:
            sums += [p.new_zeros(2 * self.num_classes)]
        sums.append(self._by_class(counted, torch.ones_like(total)))
        return torch.cat(sums)

    def _softmax_backward(self, z: Tensor, plane: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
        # The sums of exponentials are made again: kept, they would be the largest tensor beside the gradient.
        truth, valid = self._truth_of(plane)
        p = self._below_highest(z, valid)
        below = p.gather(0, truth[None])[0] if self.gamma else None
        total = p.exp_().sum(0)
        p.mul_(_shares(total, valid))  # 0 where ignored
        factor, at_truth = p.new_zeros(()), p.new_zeros(())
        by_class = None
        if self.overlap:
            grad_both, by_class = grad[2:].split(self.num_classes)[:2]
            of_truth = p.gather(0, truth[None])[0] * grad_both[truth]
            factor = -(torch.mv(p.T, by_class) + of_truth)
            at_truth = of_truth
        if self.gamma is not None:
            slope = grad[0] * self._index_weights(truth, valid, p.dtype)
            if below is not None:
                log_p = below - total.log()
                slope = torch.where(valid, slope * self._slope(log_p, -torch.expm1(log_p)), 0.0)
            factor = factor + slope
            at_truth = at_truth - (1.0 - self.smoothing) * slope
        if by_class is None:
            result = torch.mul(p, factor, out=out)
        else:
            result = torch.add(by_class[:, None], factor, out=out).mul_(p)
        if self.gamma is not None and self.smoothing:
            result -= slope * (self.smoothing / self.num_classes)
        return result.scatter_add_(0, truth[None], at_truth[None])

    def _below_highest(self, z: Tensor, valid: Tensor) -> Tensor:
        """(C, n) z - max z, 0 where ignored logits must be hidden.

        The largest logit goes first: together with it, log Σ exp would lose the digits that tell p from 1.
        """
        highest = at_least_float32(z.amax(0))
        below = z - highest
        _fill(below, ~valid & ~highest.isfinite(), 0.0)
        return below

    def _truth_of(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) int64 class indices, 0 where ignored, and (n,) bool where not."""
        valid = plane != self.choices.ignore_index
        return torch.where(valid, plane, 0).long(), valid

    def _index_weights(self, truth: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """(n,) weight of the true class, 0 where ignored."""
        if self.class_weights is None:
            return valid.to(dtype)
        return torch.where(valid, self.class_weights.to(dtype)[truth], 0.0)

    def _by_class(self, index: Tensor, amounts: Tensor) -> Tensor:
        """(C,) sums of (n,) amounts by class; the index C is left out."""
        if index.device.type == "cpu":
            # It adds one by one, for which float32 has too few digits.
            sums = torch.bincount(index, amounts.double(), minlength=self.num_classes + 1)
            return sums[: self.num_classes].to(amounts.dtype)
        # bincount would wait for the device, and add in any order.
        classes = torch.arange(self.num_classes, device=index.device)
        return torch.mv((index == classes[:, None]).to(amounts.dtype), amounts)

    # Sigmoid -------------------------------------------------------------------------------------------

    def _sigmoid_forward(self, z: Tensor, planes: Tensor) -> Tensor:
        z, truth, valid = self._hide(z, planes)
        counts = truth.sum(1)
        sums = [z.new_zeros(2)]
        if self.gamma is not None:
            terms = self._term(self._bernoulli(z, truth, valid), self._bernoulli_miss(z, truth))
            if self.class_weights is not None:
                terms *= self._map_weights(truth)
            sums[0][0] = terms.sum()
            known = valid.sum(1).expand(self.num_classes)
            sums[0][1] = (known - counts).sum() + (self._weights(z) * counts).sum()
        if self.overlap:
            p = z.sigmoid()
            sums += [(p * truth).sum(1), p.sum(1)]
        else:
            sums += [z.new_zeros(2 * self.num_classes)]
        return torch.cat([*sums, counts])

    def _sigmoid_backward(self, z: Tensor, planes: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
        z, truth, valid = self._hide(z, planes)
        p = z.sigmoid()
        result = None
        if self.overlap:
            grad_both, grad_probs = (part[:, None] for part in grad[2:].split(self.num_classes)[:2])
            result = torch.addcmul(grad_probs, truth, grad_both, out=out).mul_(torch.addcmul(p, p, p, value=-1.0))
        if self.gamma is not None:
            slope = grad[0] if self.class_weights is None else grad[0] * self._map_weights(truth)
            if self.gamma:
                slope = slope * self._slope(self._bernoulli(z, truth, valid), self._bernoulli_miss(z, truth))
            # At ignored pixels both are 0.
            wrong = p.sub_(truth if not self.smoothing else self._smoothed(truth, valid))
            result = torch.mul(wrong, slope, out=out) if result is None else result.add_(wrong.mul_(slope))
        assert result is not None
        return result

    def _hide(self, z: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(C, n) logits, `_NEVER` where ignored; (C, n) truth and (C or 1, n) valid, 0 or 1 in the same dtype."""
        z = at_least_float32(z)
        valid = planes != self.choices.ignore_index
        if self.choices.index_planes:
            classes = torch.arange(self.num_classes, device=planes.device, dtype=planes.dtype)
            truth = planes == classes[:, None]
        else:
            truth = planes == 1
        shares = _as_numbers(valid, z.dtype)
        if not _none(~valid):
            z = _replace(z, valid, shares)
        return z, _as_numbers(truth, z.dtype), shares

    def _bernoulli(self, z: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """(C, n) log-probability of the truth, 0 where ignored."""
        # -softplus(z) of the outcome that is not true: t·z - softplus(z) would lose the digits of a small loss.
        log_p = _softplus(_opposite(z, truth)).neg_()
        return log_p.add_((self._smoothed(truth, valid) - truth).mul_(z)) if self.smoothing else log_p

    def _bernoulli_miss(self, z: Tensor, truth: Tensor) -> Tensor | None:
        """(C, n) 1 - p of the truth, where a focal term needs it."""
        return _opposite(z, truth).sigmoid_() if self.gamma else None

    def _smoothed(self, truth: Tensor, valid: Tensor) -> Tensor:
        return truth * (1.0 - self.smoothing) + valid * (0.5 * self.smoothing)

    def _weights(self, like: Tensor) -> Tensor:
        """(C,) weight of a class that is there."""
        return like.new_ones(self.num_classes) if self.class_weights is None else self.class_weights.to(like.dtype)

    def _map_weights(self, truth: Tensor) -> Tensor:
        """(C, n) weight of each choice: of the class where it is there, 1 where it is not."""
        return 1.0 + truth * (self._weights(truth)[:, None] - 1.0)

    # Pixel terms ---------------------------------------------------------------------------------------

    def _term(self, log_p: Tensor, miss: Tensor | None) -> Tensor:
        """f(l) of the log-probability of the truth, and 1 minus its probability for gamma above 0; works in place."""
        terms = log_p.neg_()
        return terms if miss is None else terms.mul_(_positive(miss) ** self._focus)

    def _slope(self, log_p: Tensor, miss: Tensor | None) -> Tensor:
        """-f'(l) of the same, for gamma above 0."""
        assert miss is not None
        miss = _positive(miss)
        return miss**self._focus - self._focus * miss ** (self._focus - 1.0) * log_p.exp() * log_p

    @property
    def _focus(self) -> float:
        assert self.gamma is not None
        return self.gamma


def _positive(miss: Tensor) -> Tensor:
    """At 0 the slope of x^gamma is infinite for gamma < 1, and infinite · 0 is NaN: hence the smallest number there."""
    return miss.clamp_min(torch.finfo(miss.dtype).tiny)


def _opposite(z: Tensor, truth: Tensor) -> Tensor:
    """(C, n) logit of the outcome that is not true: -z where the class is, z where it is not."""
    return torch.addcmul(z, truth, z, value=-2.0)


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp z) to the last digits.

    torch's own is made with log1p, which runs number by number on a CPU: this one takes a tenth of its time (one core
    of an AMD EPYC, 2026-11).
    """
    small = z.abs().neg_().exp_()
    rounded = small + 1.0
    # log(1 + x) = log(u) + (x - (u - 1)) / u to first order in what rounding 1 + x to u has lost.
    lost = small.sub_(rounded - 1.0).div_(rounded)
    return rounded.log_().add_(lost).add_(z.clamp_min(0.0))


def _replace(z: Tensor, valid: Tensor, shares: Tensor) -> Tensor:
    """`_NEVER` in place of (C, n) logits that are not valid; `shares` is `valid` as 0 and 1."""
    if z.device.type == "cpu":
        # Two products, for choosing number by number is slow on a CPU; but 0 times infinity is NaN.
        hidden = torch.addcmul((1.0 - shares) * _NEVER, z, shares)
        if hidden.sum().isfinite():
            return hidden
    return z.masked_fill(~valid, _NEVER)


def _as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1 of a bool mask. By way of uint8, which is four times as fast on a CPU as converting bools."""
    return mask.view(torch.uint8).to(dtype)


def _shares(total: Tensor, valid: Tensor) -> Tensor:
    """(n,) 1 / Σ exp, 0 where ignored."""
    return torch.where(valid, total.reciprocal(), 0.0)


def _fill(values: Tensor, where: Tensor, value: float) -> None:
    """Write `value` into the (C, n) columns that (n,) `where` names."""
    if not _none(where):
        values.masked_fill_(where, value)


def _none(mask: Tensor) -> bool:
    """True if surely no element holds. A GPU is never asked: it would have to be waited for."""
    return mask.device.type == "cpu" and not mask.any()
