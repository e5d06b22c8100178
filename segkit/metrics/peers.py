"""The number that another toolkit would print for the same masks, from the same counts.

| like | its number | absent from both | predicted, not in the truth |
|---|---|---|---|
| `mmseg` | `mIoU` of `IoUMetric`: one confusion matrix | left out | 0 |
| `smp` | `iou_score(reduction="macro")`: counts summed over images | 1 | 0 |
| `monai` | `DiceMetric(reduction="mean")` with background: classes of an image, then images | left out | left out |
| `nnunet` | `foreground_mean` of Dice: cases of a class, then classes | left out of its class | 0 |
| `torchmetrics` | `MulticlassJaccardIndex(average="macro")` or its sisters | left out; binary, multilabel: 0 | 0 |
| `paddleseg` | `mIoU`: one confusion matrix | 0 | 0 |
| `ultralytics` | `mIoU` of its semantic validator: one confusion matrix | left out | left out |

mmsegmentation, PaddleSeg and Ultralytics know one class per pixel alone: of a binary mask they score the background as
a second class, and overlapping classes they cannot score. Ignored pixels count nowhere, which some of these toolkits
need to be told. Values are fractions; mmsegmentation and PaddleSeg print them times 100, or rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.metrics.counts import Counts, pixels_of_truth
from segkit.metrics.definitions import define_score, scored_classes
from segkit.metrics.scores import ratio
from segkit.suggest import closest


@dataclass(frozen=True)
class PeerScore:
    """A number and what it is.

    Attributes:
        name: what the toolkit calls it, and how it averages.
        value: in 0..1; None where the toolkit would print NaN.
    """

    name: str
    value: float | None

    def to_dict(self) -> dict[str, str | float | None]:
        """JSON-ready."""
        return {"name": self.name, "value": self.value}


def score_like(peer: str, counts: Counts) -> PeerScore:
    """The number that `peer` would print.

    Args:
        peer: one of `PEERS`.

    Raises:
        ValueError: not one of them, or it cannot score masks of this format.
    """
    check_peers([peer])
    name, value = PEERS[peer]
    found = value(counts)
    return PeerScore(name, None if found is None or found != found else found)


def check_peers(names: Iterable[str]) -> None:
    """Refuse what is not one of `PEERS`."""
    for name in names:
        if name not in PEERS:
            raise ValueError(f"no toolkit {name!r} to score like. {closest(name, PEERS)}")


def _smp(counts: Counts) -> float | None:
    return define_score(counts, "iou", "pooled", empty="one").mean


def _torchmetrics(counts: Counts) -> float | None:
    empty = "zero" if counts.format.planes_are_bits else "leave_out"
    return define_score(counts, "iou", "pooled", empty=empty).mean


def _nnunet(counts: Counts) -> float | None:
    foreground = scored_classes(counts.format, foreground_only=True)
    # A class that no case holds makes the whole mean NaN there: numpy.mean of the classes, numpy.nanmean of cases.
    return ratio("dice", counts.rows[:, foreground]).nanmean(0).mean().item()


def _monai(counts: Counts) -> float | None:
    dice = torch.where(pixels_of_truth(counts.rows)[..., 0] > 0, ratio("dice", counts.rows), torch.nan)
    by_image = dice.nanmean(1)
    # Where the truth of all images is empty, MONAI gives 0 and not NaN.
    return 0.0 if by_image.isnan().all() else by_image.nanmean().item()


def _mmseg(counts: Counts) -> float | None:
    return ratio("iou", _confused(counts, "mmsegmentation")).nanmean().item()


def _paddleseg(counts: Counts) -> float | None:
    return ratio("iou", _confused(counts, "PaddleSeg")).nan_to_num(0.0).mean().item()


def _ultralytics(counts: Counts) -> float | None:
    rows = _confused(counts, "Ultralytics")
    return ratio("iou", rows)[pixels_of_truth(rows)[..., 0] > 0].mean().item()


def _confused(counts: Counts, toolkit: str) -> Tensor:
    """(C, 4) counts of one confusion matrix over all images: of a binary mask, of background and the class."""
    rows = counts.rows.sum(0)
    if not counts.format.planes_are_bits:
        return rows
    if counts.format.num_planes > 1:
        raise ValueError(
            f"{toolkit} scores one class per pixel, and the classes {list(counts.format.names)} may overlap: it has no "
            "number for them. smp, monai, nnunet and torchmetrics have."
        )
    tp, fp, fn, tn = rows[0]
    return torch.stack([torch.stack([tn, fn, fp, tp]), rows[0]])


PEERS: dict[str, tuple[str, Callable[[Counts], float | None]]] = {
    "mmseg": ("IoUMetric mIoU, from one confusion matrix", _mmseg),
    "smp": ("iou_score, reduction macro", _smp),
    "monai": ("DiceMetric, include_background, reduction mean", _monai),
    "nnunet": ("foreground_mean Dice, over cases", _nnunet),
    "torchmetrics": ("JaccardIndex, average macro", _torchmetrics),
    "paddleseg": ("mIoU, from one confusion matrix", _paddleseg),
    "ultralytics": ("semantic mIoU, from one confusion matrix", _ultralytics),
}
