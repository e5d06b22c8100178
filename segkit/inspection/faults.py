"""What is wrong with single files, told from the whole set: values that do not belong, soft borders, mixed codings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segkit.inspection.coding import spread
from segkit.inspection.naming import Naming
from segkit.inspection.stored import Key, MaskReader
from segkit.inspection.survey import Fault, Seen, Survey, mask_file

# Values that share less of all pixels may come from a resized mask; so many of them in one file are looked into.
_FAINT_SHARE = 0.01
_FAINT_VALUES = 3
# Files looked into before all others are.
_FIRST_LOOKS = 24
# Of the faint pixels that lie between their neighbours' values: chance gives a third where values are unrelated.
_BETWEEN = 0.5
_SHOWN = 8
# Gray levels of soft masks: those of neither side, how many there are, and their largest share.
_DARK, _BRIGHT = 32, 223
_BETWEEN_LEVELS, _BETWEEN_SHARE, _BRIGHT_SHARE = 8, 0.2, 1e-3
# Share of masks up to which something odd is a fault of theirs, not a habit of the set.
_FEW = 0.05


@dataclass(frozen=True)
class Blurred:
    """Masks that were resized or compressed as if they were pictures.

    Attributes:
        stray: values that only blur made.
        files: that hold them.
    """

    stray: frozenset[Key] = frozenset()
    files: tuple[Seen, ...] = ()


def find_blurred(survey: Survey, reader: MaskReader, declared: Iterable[Key] = ()) -> Blurred:
    """Masks with values between those of their neighbours: borders that were interpolated."""
    known = set(declared)
    limit = _FAINT_SHARE * survey.total
    faint = frozenset(key for key, pixels in survey.pixels.items() if pixels < limit and key not in known)
    suspects = [seen for seen in survey.seen if len(seen.values & faint) >= _FAINT_VALUES]
    first = spread(suspects, _FIRST_LOOKS)
    guilty = [seen for seen in first if _lies_between(seen, reader, faint)]
    if not guilty:
        return Blurred()
    done = {id(seen) for seen in first}
    guilty += [seen for seen in suspects if id(seen) not in done and _lies_between(seen, reader, faint)]
    ids = {id(seen) for seen in guilty}
    clean = [seen for seen in survey.seen if seen.mask_hw is not None and id(seen) not in ids]
    found_elsewhere = frozenset().union(*(seen.values for seen in clean)) if clean else frozenset()
    stray = frozenset().union(*(seen.values & faint for seen in guilty)) - found_elsewhere
    return Blurred(stray, tuple(seen for seen in suspects if id(seen) in ids))


def is_soft(survey: Survey) -> bool:
    """Whether masks are dark and bright with levels between, as JPEG, resizing or smooth brushes leave them."""
    levels = [value for value in survey.pixels if isinstance(value, int)]
    if not levels or max(levels) > 255:
        return False
    between = [value for value in levels if _DARK < value < _BRIGHT]
    few = sum(survey.pixels[value] for value in between) < _BETWEEN_SHARE * survey.total
    bright = sum(survey.pixels[value] for value in levels if value >= _BRIGHT)
    return len(between) >= _BETWEEN_LEVELS and few and bright > _BRIGHT_SHARE * survey.total


def find_faults(
    survey: Survey, reader: MaskReader, naming: Naming, blurred: Blurred, nothing: Sequence[Key] = ()
) -> list[Fault]:
    """Everything that only the whole set shows; what reading found is in `survey.faults`.

    Args:
        nothing: values that mean that nothing is here.
    """
    faults = [*_blur_faults(blurred, reader)]
    faults += _two_whites(survey, reader)
    faults += _undeclared(survey, reader, naming, blurred)
    faults += _mixed_codings(survey, reader)
    faults += _mixed_bands(survey)
    faults += _nothing_to_learn(survey)
    faults += _of_one_class(survey, reader, nothing)
    return faults


def _lies_between(seen: Seen, reader: MaskReader, faint: frozenset[Key]) -> bool:
    values = reader.values(seen.pair.masks, seen.pair.mask)
    if values is None:
        return False
    wanted = np.isin(values, [key for key in seen.values & faint if isinstance(key, int)])
    wide = values.astype(np.int32)
    between = np.zeros(values.shape, bool)
    for axis in (0, 1):
        if wide.shape[axis] > 2:
            a, b, c = (np.moveaxis(wide, axis, 0)[part] for part in (slice(None, -2), slice(1, -1), slice(2, None)))
            np.moveaxis(between, axis, 0)[1:-1] |= ((a < b) & (b < c)) | ((a > b) & (b > c))
    return bool(between[wanted].mean() >= _BETWEEN)


def _blur_faults(blurred: Blurred, reader: MaskReader) -> list[Fault]:
    faults = []
    for seen in blurred.files:
        strange = len(seen.values & blurred.stray) or len(seen.values)
        text = (
            f"looks interpolated: {strange} values lie between those beside them, as after resizing or JPEG. "
            "Resize masks with nearest neighbour, or export this one again."
        )
        faults.append(_of_mask(seen, reader, text))
    return faults


def _two_whites(survey: Survey, reader: MaskReader) -> list[Fault]:
    if not survey.two_whites:
        return []
    ones = [seen for seen in survey.seen if 1 in seen.values]
    whites = [seen for seen in survey.seen if 255 in seen.values]
    few, value, usual = (ones, 1, 255) if len(ones) <= len(whites) else (whites, 255, 1)
    text = f"marks its class with {value}, most others with {usual}. Save it with {usual}, if both mean the same."
    return [_of_mask(seen, reader, text) for seen in few]


def _undeclared(survey: Survey, reader: MaskReader, naming: Naming, blurred: Blurred) -> list[Fault]:
    if not naming.given:
        return []
    known = {*naming.names, *naming.ignored, *blurred.stray}
    faults = []
    for seen in survey.seen:
        strange = seen.values - known
        # What is left of a binary mask needs no name.
        if strange - ({0, "#000000"} if len(set(naming.names.values())) == 1 else set()):
            shown = sorted(strange, key=str)
            more = ", ..." if len(shown) > _SHOWN else ""
            text = (
                f"holds values that no class declares: {', '.join(map(str, shown[:_SHOWN]))}{more}. Name them in "
                "--classes, or mend the mask."
            )
            faults.append(_of_mask(seen, reader, text))
    return faults


def _mixed_codings(survey: Survey, reader: MaskReader) -> list[Fault]:
    kinds = Counter(seen.kind for seen in survey.seen if seen.kind)
    if len(kinds) < 2:
        return []
    usual = kinds.most_common(1)[0][0]
    return [
        _of_mask(seen, reader, f"is a {seen.kind}, most others are a {usual}. Store all masks alike.")
        for seen in survey.seen
        if seen.kind and seen.kind != usual
    ]


def _mixed_bands(survey: Survey) -> list[Fault]:
    bands = Counter(seen.image.bands for seen in survey.seen if seen.image is not None)
    if len(bands) < 2:
        return []
    usual = bands.most_common(1)[0][0]
    return [
        Fault(
            str(seen.pair.image),
            f"has {seen.image.bands} bands, most others {usual}. A model takes one number of bands: convert it.",
            seen.pair.stem,
        )
        for seen in survey.seen
        if seen.image is not None and seen.image.bands != usual
    ]


def _nothing_to_learn(survey: Survey) -> list[Fault]:
    read = [seen for seen in survey.seen if seen.mask_hw is not None]
    # A class of its own file may be all there is; one value in every pixel says nothing.
    one = len(survey.pixels) == 1 and survey.pixels.total() == survey.total
    if not read or (survey.pixels and not one):
        return []
    what = f"hold nothing but {next(iter(survey.pixels))}" if one else "mark no class"
    return [Fault(str(read[0].pair.masks), f"all {len(read)} masks {what}: there is nothing to learn.")]


def _of_one_class(survey: Survey, reader: MaskReader, nothing: Sequence[Key]) -> list[Fault]:
    """Masks that are one class in every pixel, where few are: of tiles of land that is common, else it is a slip."""
    read = [seen for seen in survey.seen if seen.mask_hw is not None]
    full = [seen for seen in read if seen.filled is not None and seen.filled not in nothing]
    if len(full) > max(1, _FEW * len(read)) or len(read) == 1:
        return []
    return [_of_mask(s, reader, f"is {s.filled} in every pixel. Was the whole area marked?") for s in full]


def _of_mask(seen: Seen, reader: MaskReader, text: str) -> Fault:
    return Fault(mask_file(reader, seen.pair.masks, seen.pair.mask), text, seen.pair.stem)


def empty_masks(survey: Survey, nothing: Sequence[Key]) -> list[str]:
    """Stems of masks that mark no class."""
    return [s.pair.stem for s in survey.seen if s.mask_hw is not None and s.values.issubset(nothing)]
