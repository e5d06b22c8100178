"""What the planes of a mask mean, and which logits predict them.

A mask in memory is planes, `(H, W, P)` unsigned integers: each plane is one exclusive choice per pixel, and
the largest value of the dtype means *ignored*. A `MaskFormat` explains them. It is the only place in segkit
that knows whether classes exclude each other (softmax) or may overlap (sigmoid); all other code asks it.

| format | planes P | logits C | choices T per pixel | activation |
|---|---|---|---|---|
| `ExclusiveMask` | 1, class indices | classes | 1 | softmax |
| `OneVsRestMask` | 1, class indices | classes | C | sigmoid per class |
| `OverlappingMasks` | C, 0 or 1 each | classes | C | sigmoid per class |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from segkit.formats.activation import LEAST_PROBABILITY, check_activation, check_threshold, logit, per_class
from segkit.formats.classes import MaskClass, classes_to_list, parse_classes
from segkit.formats.format_contract import FormatContract, ThresholdGroup
from segkit.ops.choices import (
    at_least_float32,
    bernoulli_log_likelihood,
    bernoulli_weights,
    softmax_log_likelihood,
    softmax_weights,
)
from segkit.ops.components import replace_by_nearest
from segkit.ops.counts import count_binary, count_indices
from segkit.ops.decode import decode_above, decode_indices, plain_above, plain_indices
from segkit.ops.upsample import CoarseLogits

BACKGROUND = "background"


class MaskFormat(FormatContract):
    """Meaning of a mask. Build one with `binary`, `multilabel` or `multiclass`; ask it what `FormatContract` lists."""

    @staticmethod
    def binary(name: str | MaskClass = "foreground", activation: str = "sigmoid", threshold: float = 0.5) -> MaskFormat:
        """One class against background: one sigmoid logit, or the same model as a softmax over two classes."""
        if check_activation(activation) == "softmax":
            return ExclusiveMask((MaskClass(BACKGROUND), *parse_classes([name])))
        return OverlappingMasks(parse_classes([name]), (threshold,))

    @staticmethod
    def multilabel(
        classes: Iterable, activation: str = "sigmoid", thresholds: float | Sequence[float] = 0.5
    ) -> MaskFormat:
        """Classes that may overlap: all, some or none hold at a pixel.

        Raises:
            ValueError: `activation` is softmax, whose probabilities sum to 1 and so allow one class per pixel.
        """
        parsed = parse_classes(classes)
        if check_activation(activation) == "softmax":
            raise ValueError(
                f"softmax over overlapping classes {[c.name for c in parsed]}: softmax probabilities sum to 1, so it "
                "can name only one class per pixel and would forbid the overlap. Use activation `sigmoid`, or "
                "format `multiclass` if the classes exclude each other."
            )
        return OverlappingMasks(parsed, per_class(thresholds, len(parsed)))

    @staticmethod
    def multiclass(classes: Iterable, activation: str = "softmax", threshold: float | None = None) -> MaskFormat:
        """Classes that exclude each other: softmax, or one sigmoid per class against the rest.

        Args:
            threshold: only with sigmoid; a pixel whose best class has no higher probability is decoded as
                *none*, which is `ignore_index` in a prediction and scores as a miss.
        """
        parsed = parse_classes(classes)
        if check_activation(activation) == "sigmoid":
            return OneVsRestMask(parsed, threshold)
        if threshold is not None:
            raise ValueError("a threshold on softmax classes: softmax takes the best class; drop the threshold.")
        return ExclusiveMask(parsed)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> MaskFormat:
        """The format that `to_dict` described: keys format, activation, classes, thresholds or threshold."""
        rest = dict(values)
        word, classes = rest.pop("format", None), rest.pop("classes", None)
        doors: dict[str, Any] = {"binary": _binary_of, "multilabel": MaskFormat.multilabel}
        doors["multiclass"] = MaskFormat.multiclass
        if word not in doors:
            raise ValueError(f"masks.format is {word!r}: expected binary, multilabel or multiclass.")
        if classes is None:
            raise ValueError("masks.classes is missing: list the names of the classes.")
        known = ("activation", "threshold" if word == "multiclass" else "thresholds")
        options = {key: value for key, value in rest.items() if value is not None}
        if options.keys() - set(known):
            raise ValueError(
                f"a {word} format has no key {sorted(options.keys() - set(known))}: expected format, classes, "
                f"{', '.join(known)}."
            )
        return doors[word](classes, **options)

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> MaskFormat:
        """`from_dict` for the `masks` section of a config, where `threshold` is one number or one per class."""
        key = "threshold" if values.get("format") == "multiclass" else "thresholds"
        rest = {name: value for name, value in values.items() if name != "threshold"}
        return MaskFormat.from_dict({**rest, key: values.get("threshold")})


class _OnePlane(MaskFormat):
    """Class indices in one plane: exactly one class per pixel."""

    num_planes = 1

    @property
    def dtype(self) -> np.dtype:
        if self.num_classes > 65535:
            raise ValueError(f"{self.num_classes} classes: at most 65535 fit into uint16 planes beside *ignored*.")
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.uint16)

    @property
    def plane_values(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def expand(self, target: Tensor) -> Tensor:
        indices = torch.arange(self.num_classes, device=target.device, dtype=target.dtype)
        return target == indices.view(1, -1, 1, 1)

    def count(self, pred: Tensor, target: Tensor) -> Tensor:
        return count_indices(pred, target, self.num_classes, self.ignore_index)

    def claims(self, logits: Tensor) -> Tensor:
        best = self.expand(decode_indices(CoarseLogits.of(logits), self.torch_dtype))
        return at_least_float32(logits).masked_fill(~best, -torch.inf)

    def holds(self, planes: np.ndarray, number: int) -> np.ndarray:
        return planes[..., 0] == number

    def vacant(self, planes: np.ndarray, number: int) -> np.ndarray:
        plane, background = planes[..., 0], self._background
        if background is None or background == number:
            return (plane != number) & (plane != self.ignore_index)
        return plane == background

    def put(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        plane = planes[..., 0]
        plane[where & (plane != self.ignore_index)] = number

    def remove(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        plane, background = planes[..., 0], self._background
        where = where & (plane == number)
        if background is None or background == number:
            replace_by_nearest(plane, where, (plane == number) | (plane == self.ignore_index))
        else:
            plane[where] = background

    @property
    def _background(self) -> int | None:
        return self.names.index(BACKGROUND) if BACKGROUND in self.names else None


class _SigmoidPerClass(MaskFormat):
    """Every class judged alone: C independent Bernoulli choices per pixel."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).sigmoid()

    def logits_of(self, probs: Tensor) -> Tensor:
        return at_least_float32(probs).logit(eps=LEAST_PROBABILITY)

    def log_likelihood(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        return bernoulli_log_likelihood(logits, self.expand(target), self.valid(target), smoothing)

    def choice_weights(self, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        return bernoulli_weights(self.expand(target), self.valid(target), class_weights)


@dataclass(frozen=True)
class ExclusiveMask(_OnePlane):
    """Exactly one class per pixel: softmax, probabilities sum to 1, decoded by argmax."""

    _softmax: ClassVar[bool] = True

    def to_dict(self) -> dict[str, Any]:
        return {"format": "multiclass", "activation": "softmax", "classes": classes_to_list(self.classes)}

    @property
    def threshold_groups(self) -> tuple[ThresholdGroup, ...]:
        return ()

    def with_thresholds(self, thresholds: Sequence[float | None]) -> MaskFormat:
        if len(thresholds):
            raise ValueError("thresholds for softmax classes: softmax takes the best class and has no thresholds.")
        return self

    def probabilities(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).softmax(1)

    def logits_of(self, probs: Tensor) -> Tensor:
        return at_least_float32(probs).clamp_min(LEAST_PROBABILITY).log()

    def decode(self, logits: Tensor | CoarseLogits) -> Tensor:
        return decode_indices(CoarseLogits.of(logits), self.torch_dtype)

    def decode_plainly(self, logits: Tensor) -> Tensor:
        return plain_indices(logits, self.torch_dtype)

    def log_likelihood(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        return softmax_log_likelihood(logits, target, self.valid(target), smoothing)

    def choice_weights(self, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        return softmax_weights(target, self.valid(target), class_weights)


@dataclass(frozen=True)
class OneVsRestMask(_OnePlane, _SigmoidPerClass):
    """Exclusive classes, each judged alone by a sigmoid: marginals that need not sum to 1, decoded by argmax.

    Attributes:
        threshold: a best class with no higher probability is decoded as *none* (`ignore_index`);
            None always takes the best class.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            check_threshold(self.threshold)

    def to_dict(self) -> dict[str, Any]:
        values = {"format": "multiclass", "activation": "sigmoid", "classes": classes_to_list(self.classes)}
        return values if self.threshold is None else {**values, "threshold": self.threshold}

    @property
    def threshold_groups(self) -> tuple[ThresholdGroup, ...]:
        return (ThresholdGroup(tuple(range(self.num_classes)), self.threshold, optional=True),)

    def with_thresholds(self, thresholds: Sequence[float | None]) -> MaskFormat:
        if len(thresholds) != 1:
            raise ValueError(f"{len(thresholds)} thresholds for one-vs-rest classes: give the one that all share.")
        return replace(self, threshold=thresholds[0])

    def decode(self, logits: Tensor | CoarseLogits) -> Tensor:
        return decode_indices(CoarseLogits.of(logits), self.torch_dtype, self._limit, self.ignore_index)

    def decode_plainly(self, logits: Tensor) -> Tensor:
        return plain_indices(logits, self.torch_dtype, self._limit, self.ignore_index)

    @property
    def _limit(self) -> float | None:
        return None if self.threshold is None else logit(self.threshold)


@dataclass(frozen=True)
class OverlappingMasks(_SigmoidPerClass):
    """One 0/1 plane per class, each a sigmoid of its own and decoded by its threshold.

    Attributes:
        thresholds: one per class in (0, 1); a class holds where its probability is higher.
    """

    thresholds: tuple[float, ...] = ()
    classes_overlap: ClassVar[bool] = True
    planes_are_bits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        thresholds = tuple(float(t) for t in self.thresholds) or (0.5,) * self.num_classes
        if len(thresholds) != self.num_classes:
            raise ValueError(f"{len(thresholds)} thresholds for {self.num_classes} classes: give one per class.")
        for threshold in thresholds:
            check_threshold(threshold)
        object.__setattr__(self, "thresholds", thresholds)

    @property
    def num_planes(self) -> int:
        return self.num_classes

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)  # 0, 1 or ignored, however many classes there are

    @property
    def plane_values(self) -> dict[str, int]:
        if self.num_planes > 1:
            raise ValueError(
                f"classes {list(self.names)} may overlap, and one value per pixel cannot say that two of them hold. "
                "Use the codec `file_per_class` or `bit_planes`, give `values` with a list of classes for each value, "
                "or use format `multiclass` if the classes exclude each other."
            )
        if self.names[0] == BACKGROUND:
            raise ValueError("the only class is named `background`: name the class that the mask marks instead.")
        return {BACKGROUND: 0, self.names[0]: 1}

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "binary" if self.num_classes == 1 else "multilabel",
            "activation": "sigmoid",
            "classes": classes_to_list(self.classes),
            "thresholds": list(self.thresholds),
        }

    @property
    def threshold_groups(self) -> tuple[ThresholdGroup, ...]:
        return tuple(ThresholdGroup((number,), threshold) for number, threshold in enumerate(self.thresholds))

    def with_thresholds(self, thresholds: Sequence[float | None]) -> MaskFormat:
        return replace(self, thresholds=tuple(0.5 if t is None else t for t in thresholds))

    def claims(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits)

    def holds(self, planes: np.ndarray, number: int) -> np.ndarray:
        return planes[..., number] == 1

    def vacant(self, planes: np.ndarray, number: int) -> np.ndarray:
        return planes[..., number] == 0

    def put(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        planes[..., number][where & self.vacant(planes, number)] = 1

    def remove(self, planes: np.ndarray, number: int, where: np.ndarray) -> None:
        planes[..., number][where & self.holds(planes, number)] = 0

    def expand(self, target: Tensor) -> Tensor:
        return target == 1

    def count(self, pred: Tensor, target: Tensor) -> Tensor:
        return count_binary(pred, target, self.ignore_index)

    def decode(self, logits: Tensor | CoarseLogits) -> Tensor:
        # Compared as logits: no sigmoid to compute, and a tie at 0.5 is "not there", as argmax of two classes says.
        return decode_above(CoarseLogits.of(logits), self._limits, self.torch_dtype)

    def decode_plainly(self, logits: Tensor) -> Tensor:
        return plain_above(logits, self._limits, self.torch_dtype)

    @property
    def _limits(self) -> list[float]:
        return [logit(t) for t in self.thresholds]


def _binary_of(
    classes: Iterable, activation: str = "sigmoid", thresholds: float | Sequence[float] | None = None
) -> MaskFormat:
    parsed = parse_classes(classes)
    if len(parsed) == 2 and parsed[0].name == BACKGROUND:
        parsed = parsed[1:]
    if len(parsed) != 1:
        raise ValueError(
            f"a binary format with classes {[c.name for c in parsed]}: name the one class that the mask marks, "
            "or use multiclass (one class per pixel) or multilabel (classes may overlap)."
        )
    if check_activation(activation) == "sigmoid":
        return OverlappingMasks(parsed, per_class(0.5 if thresholds is None else thresholds, 1))
    if thresholds is not None:
        raise ValueError("a threshold on softmax classes: softmax takes the best class; drop the threshold.")
    return MaskFormat.binary(parsed[0], activation)
