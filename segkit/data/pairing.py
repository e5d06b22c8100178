"""Which image belongs to which mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segkit.data.images import IMAGE_SUFFIXES, ImageRef, find_images
from segkit.data.patterns import Pattern
from segkit.data.reading import ImageReading
from segkit.data.splits import find_stems, match_stems
from segkit.formats.codec import Codec
from segkit.formats.nifti_slices import NIFTI_SUFFIXES

_SHOWN = 5


@dataclass(frozen=True)
class Pairs:
    """Samples that have both image and mask.

    Attributes:
        images: stem of the sample -> its image, in the order of the samples.
        masks: stem of the sample -> its name for the codec.
        left_out: stems of the images left out on purpose.
        unknown: names to leave out that mean no image and no mask here.
    """

    images: dict[str, ImageRef]
    masks: dict[str, str]
    left_out: list[str]
    unknown: list[str]


def find_pairs(
    images: Path,
    masks: Path,
    codec: Codec,
    reading: ImageReading,
    mask_pattern: Pattern,
    stems: Iterable[str] | None = None,
    quarantine: Iterable[str] = (),
) -> Pairs:
    """Pairs of image and mask that belong to the same sample.

    Raises:
        ValueError: no images, no masks, an image without a mask, or a mask without an image.
    """
    refs = reading.find(images)
    names = mask_pattern.by_stem(codec.stems(masks))
    if images.resolve() == masks.resolve():
        refs, names = told_apart(refs, names, reading.files, mask_pattern)
    if not refs:
        raise ValueError(f"{images}: no images here {_expected_images(images, reading)}.")
    if not names:
        raise ValueError(f"{masks}: no masks here that the codec {codec.name!r} reads{_expected(mask_pattern)}.")
    # A name without an image may mean a mask that has none.
    known = [*refs, *names]
    left_out, unknown = find_stems(_as_stems(quarantine, reading.files, known), known)
    excluded = set(left_out)
    meant = list(refs) if stems is None else match_stems(_as_stems(stems, reading.files, refs), refs, images)
    wanted = [s for s in meant if s not in excluded]
    no_mask = [s for s in wanted if s not in names]
    # A list says which samples are meant; masks of others may lie beside them.
    no_image = [] if stems is not None else [s for s in names if s not in refs and s not in excluded]
    if no_mask or no_image:
        raise ValueError(_unpaired_text(images, masks, wanted, no_mask, [names[s] for s in no_image]))
    if not wanted:
        raise ValueError(f"{images}: all {len(refs)} images are left out by `quarantine` or the list of samples.")
    return Pairs(
        {s: refs[s] for s in wanted}, {s: names[s] for s in wanted}, [s for s in meant if s in excluded], unknown
    )


def told_apart(
    refs: dict[str, ImageRef], names: dict[str, str], image_pattern: Pattern, mask_pattern: Pattern
) -> tuple[dict[str, ImageRef], dict[str, str]]:
    """Images and masks of one folder: a file that both patterns describe belongs to the longer one."""
    if len(mask_pattern.text) > len(image_pattern.text):
        masks = set(names.values())
        refs = {s: ref for s, ref in refs.items() if not masks & _file_names(s, image_pattern)}
    elif len(mask_pattern.text) < len(image_pattern.text):
        files = {name for s in refs for name in _file_names(s, image_pattern)}
        names = {s: name for s, name in names.items() if name not in files}
    return refs, names


def _file_names(stem: str, pattern: Pattern) -> set[str]:
    return {pattern.name(stem, band) for band in pattern.bands or ("",)}


def _as_stems(names: Iterable[str], pattern: Pattern, known: Iterable[str]) -> list[str]:
    """Names of samples; what names no sample in `known`, but the file of an image, is turned into its sample."""
    names = list(names)
    if pattern.is_plain:
        return names
    # Samples go first: nnU-Net's `case_0000` is one, and looks like the file of `case`.
    unknown = set(find_stems(names, known)[1])
    found = []
    for name in names:
        if name not in unknown:
            found.append(name)
            continue
        suffix = next((s for s in (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES) if name.lower().endswith(s)), "")
        match = pattern.match(name[: len(name) - len(suffix)])
        found.append(name if match is None else match[0])
    return found


def _expected_images(images: Path, reading: ImageReading) -> str:
    if reading.files.is_plain:
        return f"(read are {', '.join(IMAGE_SUFFIXES)}, .nii and .nii.gz)"
    there = _first(list(find_images(images, reading.axis))) or "none"
    return f"whose names match {reading.files.text!r} (there are: {there})"


def _expected(pattern: Pattern) -> str:
    return "" if pattern.is_plain else f" and whose names match {pattern.text!r}"


def _unpaired_text(images: Path, masks: Path, wanted: list[str], no_mask: list[str], no_image: list[str]) -> str:
    parts = []
    if no_mask:
        parts.append(f"{len(no_mask)} of {len(wanted)} images in {images} have no mask in {masks}: {_first(no_mask)}")
    if no_image:
        parts.append(f"{len(no_image)} masks in {masks} have no image in {images}: {_first(no_image)}")
    text = "; ".join(parts)
    if len(no_mask) == len(wanted):
        return (
            f"{text}. Image and mask belong together when their names agree up to the suffix: say how they differ "
            "with `image_pattern` and `mask_pattern`, such as '{stem}_mask', or rename one side."
        )
    return f"{text}. Add what is missing, leave these out with `quarantine`, or name the samples to use in a list."


def _first(stems: Sequence[str]) -> str:
    return ", ".join(stems[:_SHOWN]) + (f", ... ({len(stems)} in all)" if len(stems) > _SHOWN else "")
