"""Whether two ways of running a model give the same masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segkit.inference.exported import ExportedModel, is_exported, open_exported
from segkit.inference.golden import (
    GoldenImage,
    GoldenImages,
    as_batch,
    differing_share,
    masks_of,
    planes_of_batch,
    predict_golden,
    read_golden,
)
from segkit.models.bundle import load_model
from segkit.models.bundle_files import installed_versions
from segkit.models.segmenter import Segmenter

# By which probabilities of one graph may differ in two programs.
PROBABILITY = 0.01


@dataclass(frozen=True)
class Comparison:
    """How many pixels have other masks.

    Attributes:
        shares: of each image, the share of its pixels in which any plane is another.
        pixels: of each image, how many it has.
    """

    shares: tuple[float, ...]
    pixels: tuple[int, ...]

    @property
    def worst(self) -> float:
        """The largest share of any image."""
        return max(self.shares)

    @property
    def share(self) -> float:
        """Of all pixels together."""
        return sum(s * n for s, n in zip(self.shares, self.pixels, strict=True)) / sum(self.pixels)

    def within(self, tolerance: float) -> bool:
        """Whether no image differs in a larger share; a single pixel of a tiny image is no share."""
        return all(s <= tolerance or round(s * n) <= 1 for s, n in zip(self.shares, self.pixels, strict=True))

    def describe(self) -> str:
        """One line for people."""
        return (
            f"masks differ in {self.share:.3g} of the pixels of {len(self.shares)} images, in the worst of them in "
            f"{self.worst:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {"images": len(self.shares), "pixels": sum(self.pixels), "share": self.share, "worst": self.worst}


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        compared: with the golden masks, or with those of another bundle.
        then, now: versions of what decides masks, where they are not the same any more.
    """

    compared: Comparison
    then: dict[str, str]
    now: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As `segkit verify --json` writes it."""
        return {**self.compared.to_dict(), "then": self.then, "now": self.now}


def verify(path: str | Path, against: str | Path | None = None, device: torch.device | str = "cpu") -> Verification:
    """Run a bundle or an exported file on golden images, and compare masks.

    Args:
        path: bundle, run folder, or exported file.
        against: a bundle whose masks count instead of those that were kept with `path`; its golden images are taken
            where it has some.

    Raises:
        ValueError: no golden images on either side, or two that predict different things.
    """
    model = open_exported(path) if is_exported(path) else load_model(path)
    golden = model.golden if isinstance(model, ExportedModel) else read_golden(path)
    if against is not None:
        golden = _masks_of_bundle(against, model, golden)
    if golden is None:
        raise ValueError(
            f"{path}: holds no golden images, as of a run with `train.golden_images: 0` or of an earlier version. "
            "Verify it with --against BUNDLE, a bundle that has some."
        )
    compared = compare_golden(model.to(torch.device(device)), golden, device)
    now = installed_versions()
    changed = [name for name, version in golden.versions.items() if now.get(name, version) != version]
    return Verification(compared, {n: golden.versions[n] for n in changed}, {n: now[n] for n in changed})


def compare_golden(
    model: Segmenter | ExportedModel, golden: GoldenImages, device: torch.device | str = "cpu"
) -> Comparison:
    """Masks of a model beside those that golden images were kept with.

    A graph decodes itself; logits are decoded as the golden images were, whatever thresholds the model has by now.
    """
    shares = []
    for image in golden.images:
        if isinstance(model, ExportedModel):
            (planes,) = planes_of_batch(model.planes(as_batch([image.image]).to(device)), golden.format)
        else:
            planes = masks_of(model, golden.format, image, device)
        shares.append(differing_share(planes, image.planes))
    return Comparison(tuple(shares), tuple(_pixels(image) for image in golden.images))


@torch.inference_mode()
def compare_batches(exported: ExportedModel, model: Segmenter, batches: Iterable[Sequence[GoldenImage]]) -> Comparison:
    """Answers to whole batches beside those that the bundle gives the same images; each batch is of one size.

    Probabilities, where the file gives them, tell of a wrong graph where all pixels are of one class.
    """
    shares: list[float] = []
    pixels: list[int] = []
    for batch in batches:
        planes, *probs = exported.outputs(as_batch([g.image for g in batch]))
        for number, golden in enumerate(batch):
            logits = model.predict_coarse_logits(as_batch([golden.image]), golden.spacing_mm)
            differs = (planes[number].int() != model.format.decode(logits)[0].int()).any(0)
            for found in probs:
                off = (found[number] - model.format.probabilities(logits.full())[0]).abs()
                differs |= ~(off <= PROBABILITY).all(0)  # NaN is no agreement
            shares.append(float(differs.float().mean()))
            pixels.append(_pixels(golden))
    return Comparison(tuple(shares), tuple(pixels))


def _masks_of_bundle(
    bundle: str | Path, model: Segmenter | ExportedModel, golden: GoldenImages | None
) -> GoldenImages | None:
    judge = load_model(bundle)
    mine, theirs = ((m.format.to_dict(), m.in_channels, m.reading) for m in (model, judge))
    if mine != theirs:
        raise ValueError(
            f"{bundle}: predicts {judge.format.describe()} of {judge.in_channels} bands, the model to verify "
            f"{model.format.describe()} of {model.in_channels}; or thresholds or the way of reading images differ. "
            "Export again from this bundle, or name the one that the file was made of."
        )
    chosen = read_golden(bundle) or golden
    return None if chosen is None else predict_golden(judge, chosen.images)


def _pixels(golden: GoldenImage) -> int:
    return golden.image.shape[0] * golden.image.shape[1]
