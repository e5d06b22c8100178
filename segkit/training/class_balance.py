"""Weights of classes counted from training data: `balanced` in a loss, and `rare` in the focus of crops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from segkit.data.datasets import MaskDataset
from segkit.data.focus import Focus
from segkit.formats.mask_format import MaskFormat
from segkit.losses.class_weights import BALANCED, balanced_weights

# Shares of a common class are steady long before; of a rare one, whose weight is bounded, soon after.
_MASKS = 500


def losses_to_balance(spec: str | Mapping[str, Any], format: MaskFormat) -> list[str]:
    """Names of the losses whose `class_weights` are to be counted.

    Raises:
        ValueError: classes that may overlap.
    """
    if not isinstance(spec, Mapping):
        return []
    found = [name for name, value in spec.items() if isinstance(value, Mapping) and _is_balanced(value)]
    if found and format.classes_overlap:
        raise ValueError(
            f"loss {found[0]} has class_weights: balanced, but classes {list(format.names)} each have a sigmoid of "
            "their own. A weight on what is there would shift every probability, and with it the best threshold: "
            "leave it out and add `dice`, which evens out rare classes, or give numbers."
        )
    return found


def without_balance(spec: str | Mapping[str, Any], format: MaskFormat) -> str | dict[str, Any]:
    """The loss without the weights that are not counted yet: what else is wrong with it can be told at once."""
    return _with_weights(spec, losses_to_balance(spec, format), None)


def count_class_weights(
    spec: str | Mapping[str, Any], data: MaskDataset, progress: Callable[[int, int], None] | None = None
) -> str | dict[str, Any]:
    """The loss with numbers in place of `class_weights: balanced`; see `balanced_weights`.

    Args:
        spec: for `build_loss`; left as it is.
        data: the training part. Its masks are read once as they are stored, at most 500 of them, evenly spread.
        progress: called with (masks counted, masks in all).

    Raises:
        ValueError: classes that may overlap.
    """
    names = losses_to_balance(spec, data.format)
    if not names:
        return _with_weights(spec, [], None)
    weights = balanced_weights(*class_pixels(data, _MASKS, progress))
    return _with_weights(spec, names, dict(zip(data.format.names, weights, strict=True)))


def waits_for_counts(data: MaskDataset) -> bool:
    """Whether the crops of `data` are to be placed on rare classes, and nobody has counted which those are."""
    focus: Focus | None = getattr(data.augment, "focus", None)
    return focus is not None and focus.weights is None


def focus_on_rare(data: MaskDataset, progress: Callable[[int, int], None] | None = None) -> MaskDataset:
    """The data set with chances of classes in a focus on rare ones: they are those of `balanced_weights`.

    Args:
        data: the training part; returned as it is where no focus waits for numbers. Its masks are read as by
            `count_class_weights`, so that equal data give equal numbers.
        progress: called with (masks counted, masks in all).
    """
    if not waits_for_counts(data):
        return data
    counted, augment = copy.copy(data), copy.copy(data.augment)
    weights = balanced_weights(*class_pixels(data, _MASKS, progress))
    augment.focus = augment.focus.weighted(weights)  # type: ignore[union-attr]
    counted.augment = augment
    return counted


def class_pixels(
    data: MaskDataset, limit: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[int], list[int]]:
    """Pixels of each class, and those of all masks that hold it, over at most `limit` masks."""
    pixels, around = np.zeros((2, data.format.num_classes), dtype=np.int64)
    for counts, area in _class_counts(data, limit, progress):
        pixels += counts[:, 0]
        around += np.where(counts[:, 0] > 0, area, 0)
    return pixels.tolist(), around.tolist()


def class_shares(data: MaskDataset) -> list[float]:
    """Share of each class among the pixels where it is known whether it is there; 0 for a class without any.

    Masks are read as by `count_class_weights`.
    """
    total = np.zeros((data.format.num_classes, 4), dtype=np.int64)
    for counts, _ in _class_counts(data, _MASKS, None):
        total += counts
    return (total[:, 0] / total.sum(1).clip(1)).tolist()


def _class_counts(
    data: MaskDataset, limit: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[np.ndarray, int]]:
    """(C, 4) counts of `format.count` and the area of at most `limit` masks."""
    format = data.format
    chosen = np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int))
    for done, index in enumerate(chosen):
        planes = data.read_planes(int(index))
        # Of planes against themselves, what is there is a hit.
        target = torch.from_numpy(planes.transpose(2, 0, 1)[None].astype(np.int32)).to(format.torch_dtype)
        yield format.count(target, target)[0].numpy(), planes.shape[0] * planes.shape[1]
        if progress is not None:
            progress(done + 1, len(chosen))


def _is_balanced(options: Mapping[str, Any]) -> bool:
    weights = options.get("class_weights")
    return isinstance(weights, str) and weights == BALANCED


def _with_weights(spec: str | Mapping[str, Any], names: list[str], weights: Any) -> str | dict[str, Any]:
    if not isinstance(spec, Mapping):
        return spec
    return {name: {**value, "class_weights": weights} if name in names else value for name, value in spec.items()}
