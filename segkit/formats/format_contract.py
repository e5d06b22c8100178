"""What can be asked of any mask format: the contract that `segkit.formats.mask_format` fulfils in three ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segkit.formats.activation import prior_logits
from segkit.formats.classes import MaskClass, parse_classes
from segkit.ops.loss_tiles import Choices
from segkit.ops.upsample import CoarseLogits


class ThresholdGroup(NamedTuple):
    """Classes that one threshold is for.

    Attributes:
        classes: their numbers.
        threshold: a class holds where its probability is higher; None where any will do.
        optional: whether it may be None; a pixel below it is then *none*, `ignore_index` in a prediction.
    """

    classes: tuple[int, ...]
    threshold: float | None
    optional: bool = False


@dataclass(frozen=True)
class FormatContract(ABC):
    """Meaning of a mask: what it holds, and verbs on tensors. Code asks these, and never which kind of mask it has.

    Attributes:
        classes: `MaskClass` each; class number c is logit channel c.
        classes_overlap: whether several classes may hold at one pixel.
        planes_are_bits: whether planes hold nothing but 0, 1 and ignored, so that eight fit into one byte.
    """

    classes: tuple[MaskClass, ...]
    classes_overlap: ClassVar[bool] = False
    planes_are_bits: ClassVar[bool] = False
    _softmax: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", parse_classes(self.classes))

    # What it holds -------------------------------------------------------------------------------------
    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def num_classes(self) -> int:
        """C, the number of classes and of logit channels."""
        return len(self.classes)

    @property
    @abstractmethod
    def num_planes(self) -> int:
        """P, the number of exclusive choices stored per pixel."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Of planes in memory: uint8, or uint16 where class indices need it."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of targets on a device: uint8, or int32 where planes are uint16 (torch computes little in uint16)."""
        return torch.uint8 if self.dtype == np.uint8 else torch.int32

    @property
    def ignore_index(self) -> int:
        """The largest value of `dtype`: this choice is not known, and neither trained on nor scored."""
        return int(np.iinfo(self.dtype).max)

    @property
    @abstractmethod
    def plane_values(self) -> dict[str, int]:
        """What one stored value per pixel can say: name -> value in the only plane.

        Raises:
            ValueError: several planes, which one value per pixel cannot hold.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `from_dict` reads it back."""

    def describe(self) -> str:
        """One short line for messages: `multiclass softmax [sky, road, ...12 in all]`."""
        values, names = self.to_dict(), list(self.names)
        if len(names) > 4:
            names = [*names[:2], f"...{len(names)} in all"]
        return f"{values['format']} {values['activation']} [{', '.join(names)}]"

    def shares_planes(self, other: FormatContract) -> bool:
        """True if masks of `other` mean the same: equal names in equal planes, whatever activation predicts them."""
        mine, theirs = ((f.names, f.num_planes, f.dtype) for f in (self, other))
        return mine == theirs

    # Thresholds ----------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def threshold_groups(self) -> tuple[ThresholdGroup, ...]:
        """Which classes each threshold is for; empty where the best class always wins, as by softmax."""

    @abstractmethod
    def with_thresholds(self, thresholds: Sequence[float | None]) -> Any:
        """The same format with other thresholds, one for each of `threshold_groups`."""

    @abstractmethod
    def claims(self, logits: Tensor) -> Tensor:
        """(N, C, H, W) logits of the classes that `decode` gives if they are above their threshold; -inf elsewhere."""

    # Verbs on tensors ----------------------------------------------------------------------------------

    @property
    def choices(self) -> Choices:
        """How planes and logits belong together: what the operators of `segkit.ops` need to know of a format."""
        return Choices(self._softmax, not self.planes_are_bits, self.ignore_index)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, C, H, W) logits to probabilities in [0, 1], in float32 or better."""

    @abstractmethod
    def logits_of(self, probs: Tensor) -> Tensor:
        """Logits with these `probabilities`, (N, C, H, W) both: so averages of several answers are decoded.

        Probabilities of exactly 0 or 1 count as within 1e-7 of it, so that logits stay finite.
        """

    def prior_logits(self, shares: Sequence[float]) -> list[float]:
        """Logits whose probabilities are these shares of the classes, each in [0, 1]."""
        return prior_logits(shares, self._softmax)

    @abstractmethod
    def expand(self, target: Tensor) -> Tensor:
        """(N, P, H, W) planes to (N, C, H, W) bool, one map per class; False where ignored."""

    def valid(self, target: Tensor) -> Tensor:
        """(N, P, H, W) bool, True where the choice is known."""
        return target != self.ignore_index

    @abstractmethod
    def decode(self, logits: Tensor | CoarseLogits) -> Tensor:
        """(N, C, H, W) logits to (N, P, H, W) planes of `torch_dtype`; coarse logits are never upsampled whole."""

    @abstractmethod
    def decode_plainly(self, logits: Tensor) -> Tensor:
        """`decode` of (N, C, H, W) logits as a few operations on whole tensors, for graphs that leave Python."""

    @abstractmethod
    def count(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, C, 4) int64 [tp, fp, fn, tn] over valid choices, from (N, P, H, W) planes; see `segkit.ops.counts`."""

    @abstractmethod
    def log_likelihood(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """Log-probability of the truth for each independent choice.

        Args:
            logits: (N, C, H, W) float.
            target: (N, P, H, W) planes.
            smoothing: label smoothing in [0, 1): the truth is mixed with a uniform choice (Szegedy et al. 2016).

        Returns:
            (N, T, H, W) float32 or better, at most 0; exactly 0 where ignored.
        """

    @abstractmethod
    def choice_weights(self, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Weight of each choice: that of the class that is there, 1 for "not there", 0 where ignored.

        So `[w]` for a binary format and `[1, w]` for the same task as two exclusive classes weigh alike.

        Args:
            target: (N, P, H, W) planes.
            class_weights: (C,) float, or None for 1 each.

        Returns:
            (N, T, H, W) float32.
        """

    # Verbs on planes in memory, (..., P) of images or volumes ------------------------------------------
    @abstractmethod
    def holds(self, planes: np.ndarray, number: int) -> np.ndarray:
        """(...) bool: where class `number` holds."""

    @abstractmethod
    def vacant(self, planes: np.ndarray, number: int) -> np.ndarray:
        """(...) bool: where class `number` does not hold and could, without taking the place of another.

        Where classes exclude each other that is background; in a format without background, every other class.
        """

    @abstractmethod
    def put(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        """Let class `number` hold `where`, (...) bool, in place; ignored stays ignored."""

    @abstractmethod
    def remove(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        """Let class `number` no longer hold `where`, (...) bool, in place.

        Where classes exclude each other, background takes its place; in a format without background, that of the
        nearest pixel of another class.
        """
