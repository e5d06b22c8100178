"""What is wrong with single files, told from the whole set: values that do not belong, soft borders, mixed codings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segkit.inspection.coding import has_transparency, spread
from segkit.inspection.naming import Naming
from segkit.inspection.stored import COLOUR_PICTURE, Key, MaskReader
from segkit.inspection.survey import Fault, Seen, Survey, mask_file

# Values that share less of all pixels may come from a resized mask; so many of them in one file are looked into.
_FAINT_SHARE = 0.01
_FAINT_VALUES = 3
# Files looked into before all others are.
_FIRST_LOOKS = 24
# Of the pixels of a value, those that lie between their neighbours' values where blur made it (chance gives a third
# where values are unrelated), and those inside an area of the value, of which a class has more.
_BETWEEN, _INSIDE = 0.5, 0.1
_SHOWN = 8
# Gray levels of soft masks: those of neither side, how many there are, and their largest share.
_DARK, _BRIGHT = 32, 223
_BETWEEN_LEVELS, _BETWEEN_SHARE, _BRIGHT_SHARE = 8, 0.2, 1e-3
# So many levels to either side of one belong to it; 17 of the 190 between dark and bright hold a tenth of soft borders.
_AROUND, _GATHERED = 8, 0.25
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
    places = {seen.pair.sample: _places(seen, reader, faint) for seen in first}
    if not any(map(_is_blurred, places.values())):
        return Blurred()
    places |= {seen.pair.sample: _places(seen, reader, faint) for seen in suspects if seen.pair.sample not in places}
    guilty = {sample: found for sample, found in places.items() if _is_blurred(found)}
    clean = [seen for seen in survey.seen if seen.mask_hw is not None and seen.pair.sample not in guilty]
    found_elsewhere = frozenset().union(*(seen.values for seen in clean))
    pixels: Counter[Key] = Counter()
    inside: Counter[Key] = Counter()
    for found in guilty.values():
        pixels.update({key: place.pixels for key, place in found.items()})
        inside.update({key: place.inside for key, place in found.items()})
    stray = frozenset(key for key in pixels if inside[key] <= _INSIDE * pixels[key]) - found_elsewhere
    return Blurred(stray, tuple(seen for seen in suspects if seen.pair.sample in guilty))


def is_soft(survey: Survey) -> bool:
    """Whether masks are dark and bright with levels between, as JPEG, resizing or smooth brushes leave them."""
    levels = {level: n for key, n in survey.pixels.items() if (level := gray_level(key)) is not None}
    if not levels or len(levels) < len(survey.pixels) or max(levels) > 255:
        return False
    between = [level for level in levels if _DARK < level < _BRIGHT]
    few = sum(levels[level] for level in between) < _BETWEEN_SHARE * survey.total
    bright = sum(n for level, n in levels.items() if level >= _BRIGHT)
    return len(between) >= _BETWEEN_LEVELS and few and bright > _BRIGHT_SHARE * survey.total


def gray_level(key: Key) -> int | None:
    """The brightness that a value or a gray colour stands for; None for other colours."""
    if isinstance(key, int):
        return key
    return int(key[1:3], 16) if len(key) == 7 and key[1:3] == key[3:5] == key[5:] else None


def unfit_for_threshold(survey: Survey, reader: MaskReader) -> list[Fault]:
    """Where bright and dark may not be all that gray pictures mean."""
    root = str(survey.seen[0].pair.masks) if survey.seen else ""
    faults = []
    if 2 * sum(seen.kind == COLOUR_PICTURE for seen in survey.seen) > len(survey.seen):
        text = "holds colours, all of which are read as bright. If they are classes, save the masks as PNG: JPEG mixes"
        faults.append(Fault(root, f"{text} them, so that no colour can be told from another for sure."))
    elif levels := [level for level in _gathered(survey) if _has_area(survey, reader, level)]:
        text = f"holds gray levels around {', '.join(map(str, levels))}, neither dark nor bright, which are cut in the"
        faults.append(Fault(root, f"{text} middle. If they are classes, save the masks as PNG with a number for each."))
    return faults


def _gathered(survey: Survey) -> list[int]:
    """Levels between dark and bright that hold much of what is there: of soft borders all hold alike."""
    levels = {level: n for key, n in survey.pixels.items() if (level := gray_level(key)) is not None}
    middle = {level: n for level, n in levels.items() if _DARK < level < _BRIGHT}
    least = max(_GATHERED * sum(middle.values()), _BRIGHT_SHARE * survey.total)
    found: list[int] = []
    for level in sorted(middle, key=lambda level: -middle[level]):
        around = sum(n for other, n in middle.items() if abs(other - level) <= _AROUND)
        if around >= least and all(abs(other - level) > 2 * _AROUND for other in found):
            found.append(level)
    return sorted(found)


def _has_area(survey: Survey, reader: MaskReader, level: int) -> bool:
    """Whether pixels of a level lie side by side; those of a border lie in a row."""
    there = inside = 0
    for seen in spread([seen for seen in survey.seen if seen.mask_hw is not None], _FIRST_LOOKS):
        values = reader.values(seen.pair.masks, seen.pair.mask)
        if values is not None:
            near = (np.abs(values.astype(np.int32) - level) <= _AROUND).astype(np.uint8)
            there += int(near.sum())
            inside += int(cv2.erode(near, np.ones((3, 3), np.uint8)).sum())
    return inside > _INSIDE * there


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
    faults += _nothing_to_learn(survey, reader)
    faults += _of_one_class(survey, reader, nothing)
    return faults


@dataclass(frozen=True)
class _Place:
    """Where the pixels of a value lie: how many there are, between their neighbours' values, inside its areas."""

    pixels: int
    between: int
    inside: int


def _is_blurred(places: Mapping[Key, _Place]) -> bool:
    ramps = sum(place.between >= _BETWEEN * place.pixels for place in places.values())
    return ramps >= max(_FAINT_VALUES, len(places) / 2)


def _places(seen: Seen, reader: MaskReader, faint: frozenset[Key]) -> dict[Key, _Place]:
    """Of each faint value of a mask; empty where values have no order."""
    channels = reader.channels(seen.pair.masks, seen.pair.mask)
    if channels is None:
        return {}
    wide = channels.astype(np.int32)
    between = np.zeros(wide.shape[:2], bool)
    inside = np.ones(wide.shape[:2], bool)
    for axis in (0, 1):
        if wide.shape[axis] > 2:
            a, b, c = (np.moveaxis(wide, axis, 0)[part] for part in (slice(None, -2), slice(1, -1), slice(2, None)))
            ordered = (((a <= b) & (b <= c)) | ((a >= b) & (b >= c))).all(2)
            before, behind = (a == b).all(2), (b == c).all(2)
            np.moveaxis(between, axis, 0)[1:-1] |= ordered & ~before & ~behind
            np.moveaxis(inside, axis, 0)[1:-1] &= before & behind
    codes = wide @ np.array([1, 256, 65536])[: wide.shape[2]]
    found = {}
    for key in seen.values & faint:
        here = codes == (key if isinstance(key, int) else int.from_bytes(bytes.fromhex(key[1:]), "little"))
        found[key] = _Place(*(int(np.count_nonzero(which)) for which in (here, here & between, here & inside)))
    return found


def _blur_faults(blurred: Blurred, reader: MaskReader) -> list[Fault]:
    faults = []
    for seen in blurred.files:
        strange = len(seen.values & blurred.stray) or len(seen.values)
        text = (
            f"looks interpolated: {strange} {_kind(seen)} lie between those beside them, as after resizing or JPEG. "
            "Resize masks with nearest neighbour, or export this one again."
        )
        faults.append(_of_mask(seen, reader, text))
    return faults


def _kind(seen: Seen) -> str:
    return "colours" if any(isinstance(value, str) for value in seen.values) else "values"


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
            f"has {seen.image.bands} band{'s' if seen.image.bands > 1 else ''}, most others {usual}. A model takes one "
            "number of bands: convert it.",
            seen.pair.sample,
        )
        for seen in survey.seen
        if seen.image is not None and seen.image.bands != usual
    ]


def _nothing_to_learn(survey: Survey, reader: MaskReader) -> list[Fault]:
    read = [seen for seen in survey.seen if seen.mask_hw is not None]
    # A class of its own file may be all there is; one value in every pixel says nothing.
    one = len(survey.pixels) == 1 and survey.pixels.total() == survey.total
    if not read or (survey.pixels and not one):
        return []
    what = f"hold nothing but {next(iter(survey.pixels))}" if one else "mark no class"
    text = f"all {len(read)} masks {what}: there is nothing to learn."
    if any(map(has_transparency, reader.files(read[0].pair.masks, read[0].pair.mask))):
        text += " Transparency is not read: if it is the mask, save it as a gray PNG."
    return [Fault(str(read[0].pair.masks), text)]


def _of_one_class(survey: Survey, reader: MaskReader, nothing: Sequence[Key]) -> list[Fault]:
    """Masks that are one class in every pixel, where few are: of tiles of land that is common, else it is a slip."""
    read = [seen for seen in survey.seen if seen.mask_hw is not None]
    full = [seen for seen in read if seen.filled is not None and seen.filled not in nothing]
    if len(full) > max(1, _FEW * len(read)) or len(read) == 1:
        return []
    return [_of_mask(s, reader, f"is {s.filled} in every pixel. Was the whole area marked?") for s in full]


def _of_mask(seen: Seen, reader: MaskReader, text: str) -> Fault:
    return Fault(mask_file(reader, seen.pair.masks, seen.pair.mask), text, seen.pair.sample)


def empty_masks(survey: Survey, nothing: Sequence[Key]) -> list[str]:
    """Stems of masks that mark no class."""
    return [s.pair.stem for s in survey.seen if s.mask_hw is not None and s.values.issubset(nothing)]
