"""Sigmoid or softmax: what kind of mask the values, their overlap and their names make, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segkit.formats.mask_format import BACKGROUND
from segkit.inspection.coding import Coding
from segkit.inspection.evidence import Overlap
from segkit.inspection.faults import gray_level
from segkit.inspection.naming import Naming
from segkit.inspection.stored import Key
from segkit.inspection.survey import Survey

FOREGROUND = "foreground"
_BLACK = "#000000"
# What people and tools write for "do not look here".
_USUAL_IGNORES = (255, 65535)
_CHAINS_SHOWN = 3
_VALUES_SHOWN = 12
# An id for the rest of the world is thin but in nearly every image; a background is large.
_VOID_SHARE, _VOID_IMAGES, _FEWEST_IMAGES = 0.05, 0.9, 8


@dataclass(frozen=True)
class Meaning:
    """What the masks of a data set mean.

    Attributes:
        format: binary, multilabel or multiclass; None where masks are all the same.
        activation: sigmoid or softmax.
        classes: names, in the order of the logits.
        names: value -> name of its class; `background` in binary masks.
        ignored: values that mean "do not look here".
        candidates: unnamed values that may mean so.
        reasons: two sentences with the numbers behind them.
        dark: gray levels that are not the class of the codec `threshold`.
    """

    format: str | None
    activation: str | None
    classes: tuple[str, ...]
    names: Mapping[Key, str]
    ignored: tuple[Key, ...]
    candidates: tuple[Key, ...]
    reasons: tuple[str, ...]
    dark: tuple[Key, ...] = ()

    def nothing(self, survey: Survey) -> tuple[Key, ...]:
        """Values that mean that nothing is here: `unlabelled`, `background`, and an unnamed 0 on most pixels."""
        named = [k for k, name in self.names.items() if name == BACKGROUND]
        zero = [k for k, name in self.names.items() if name == str(k) and k in (0, _BLACK)]
        large = [k for k in zero if survey.pixels[k] > survey.total / 2]
        return (*self.unlabelled, *named, *large)

    @property
    def unlabelled(self) -> tuple[Key, ...]:
        """Values that name no class."""
        background = (k for k, name in self.names.items() if name == BACKGROUND and BACKGROUND not in self.classes)
        return (*background, *self.ignored, *self.dark)


def read_values(survey: Survey, naming: Naming, coding: Coding, stray: frozenset[Key] = frozenset()) -> Meaning:
    """The meaning of masks that hold one value per pixel.

    Args:
        stray: values that only blur made.
    """
    found = sorted((k for k in survey.pixels if k not in stray), key=_order)
    names: dict[Key, str]
    if coding.codec == "threshold":
        return _bright(survey, naming, coding)
    if naming.given:
        return _named(survey, naming, found)
    if not survey.pixels:
        return _no_advice("No mask could be read: nothing can be told from them.")
    if len(found) < 2:
        what = "hold the same value" if len(survey.pixels) == 1 else "are blurred or pictures, not masks"
        return _no_advice(f"All masks {what}: nothing can be told from them.")
    if survey.two_whites:
        names = {0: BACKGROUND, 255: FOREGROUND, 1: FOREGROUND}
        why = "no mask holds both 1 and 255, so both mark the one class"
        return Meaning("binary", "sigmoid", (FOREGROUND,), names, (), (), _binary_reasons(survey, names, why))
    if len(found) == 2 and found[0] in (0, _BLACK):
        names = {found[0]: BACKGROUND, found[1]: FOREGROUND}
        return Meaning("binary", "sigmoid", (FOREGROUND,), names, (), (), _binary_reasons(survey, names))
    names = {key: str(key) for key in found}
    candidates = _candidates(survey, found)
    return Meaning("multiclass", "softmax", tuple(names.values()), names, (), candidates, _class_reasons(survey, names))


def read_classes(survey: Survey, overlap: Overlap, coding: Coding, order: Sequence[str] | None) -> Meaning:
    """The meaning of masks that hold each class for itself.

    Args:
        order: of the classes, where a person or a layout names them; default that of the file that lists them, or by
            their pixels, so that outer classes come before those inside them.
    """
    assert coding.classes is not None
    ordered = list(order or coding.classes)
    if order is None and coding.codec == "file_per_class":  # folders have no order of their own
        ordered.sort(key=lambda name: -survey.pixels[name])
    names: dict[Key, str] = {name: name for name in ordered}
    shares = overlap.shares
    if len(ordered) == 1:
        share = survey.pixels[ordered[0]] / max(survey.total, 1)
        reasons = (
            f"One class, {ordered[0]}, is marked against the rest: {percent(share)} of all pixels.",
            "One sigmoid says how likely it is there; a softmax over two classes would be the same model with twice "
            "the logits.",
        )
        return Meaning("binary", "sigmoid", (ordered[0],), names, (), (), reasons)
    assert shares is not None
    if overlap.pairs:
        return Meaning("multilabel", "sigmoid", tuple(ordered), names, (), (), _overlap_reasons(shares, overlap))
    if not overlap.images_with_two:
        reasons = (
            f"No image holds two of the {len(ordered)} classes, so nothing shows whether they exclude each other.",
            "A sigmoid per class is right either way; if every pixel can have one class only, take multiclass.",
        )
        return Meaning("multilabel", "sigmoid", tuple(ordered), names, (), (), reasons)
    reasons = (
        f"No pixel has two labels, in {overlap.images_with_two} images that hold two classes or more: here the "
        f"{len(ordered)} classes exclude each other.",
        f"Softmax lets them compete for each pixel; {percent(shares[0])} of all pixels have no label and are the class "
        f"`{BACKGROUND}`. If the classes may overlap after all, take multilabel.",
    )
    classes = (BACKGROUND, *(n for n in ordered if n != BACKGROUND)) if shares[0] or BACKGROUND in ordered else ordered
    return Meaning("multiclass", "softmax", tuple(classes), names, (), (), reasons)


def looks_like_bits(values: Sequence[Key]) -> str | None:
    """A sentence where values may be sums of powers of two, one per class; contiguous values never are told so."""
    numbers = sorted(v for v in values if isinstance(v, int) and v)
    if len(numbers) < len([v for v in values if v not in (0, _BLACK)]) or len(numbers) < 3:
        return None
    bits = [1 << k for k in range(16) if any(v >> k & 1 for v in numbers)]
    if numbers == list(range(1, len(numbers) + 1)) or not set(bits) <= set(numbers) or numbers[-1] in _USUAL_IGNORES:
        return None
    sums = [v for v in numbers if v not in bits]
    example = f", {sums[0]} = {' + '.join(str(b) for b in bits if sums[0] & b)}" if sums else ""
    shown = ", ".join(map(str, numbers[:_VALUES_SHOWN])) + (", ..." if len(numbers) > _VALUES_SHOWN else "")
    return (
        f"The values {shown} could also be bits of overlapping classes ({bits[0]}, {bits[1]}, "
        f"...{example}). If they are, use the codec `bit_planes` and format multilabel."
    )


def _named(survey: Survey, naming: Naming, found: Sequence[Key]) -> Meaning:
    names = dict(naming.names)
    rest = [k for k in found if k not in names and k not in naming.ignored]
    classes = list(dict.fromkeys(names.values()))
    if len(classes) == 1 and len(rest) == 1 and rest[0] in (0, _BLACK):
        names = {rest[0]: BACKGROUND, **names}
    others = [name for name in classes if name != BACKGROUND]
    if len(others) == 1 and len(classes) <= 2 and BACKGROUND in names.values():
        reasons = _binary_reasons(survey, names)
        return Meaning("binary", "sigmoid", (others[0],), names, naming.ignored, (), reasons)
    reasons = _class_reasons(survey, names, naming.ignored)
    return Meaning("multiclass", "softmax", tuple(classes), names, naming.ignored, (), reasons)


def _no_advice(reason: str) -> Meaning:
    return Meaning(None, None, (), {}, (), (), (reason,))


def _bright(survey: Survey, naming: Naming, coding: Coding) -> Meaning:
    name = next((n for n in naming.names.values() if n != BACKGROUND), FOREGROUND)
    levels = {key: gray_level(key) or 0 for key in survey.pixels}
    brightest = max(levels.values(), default=0)
    cut = coding.options.get("threshold", 127.5 if brightest < 256 else 32767.5)
    is_dark = {key: (level > cut) == bool(coding.options.get("dark")) for key, level in levels.items()}
    dark = tuple(key for key in levels if is_dark[key])
    share = sum(survey.pixels[key] for key in levels if not is_dark[key]) / max(survey.total, 1)
    if share == 0:
        return _no_advice(
            f"No pixel of any mask is bright, which would be the class: the brightest is {brightest}, and "
            f"{cut + 0.5:g} is needed. If these are numbers of classes, save the masks as PNG: other files change them."
        )
    if coding.options.get("threshold") == 0:
        reasons = (
            f"The masks number objects, {len(levels) - len(dark)} numbers in all that count from 1 in every "
            f"mask or come back in no other, each on one connected piece: one class against the rest, on "
            f"{percent(share)} of all pixels.",
            "One sigmoid says how likely it is there, whichever object it is; `segkit predict --objects` tells the "
            "connected ones apart again. If the numbers are classes after all, name them with --classes.",
        )
    else:
        clear = sum(survey.pixels[key] for key, level in levels.items() if level in (0, 255)) / survey.total
        reasons = (
            f"The masks are gray pictures, dark or bright with {percent(clear)} of the pixels exactly 0 or 255: one "
            f"class against the rest, bright in {percent(share)} of all pixels.",
            "One sigmoid says how likely it is there; the levels between come from resizing or compression and are "
            "cut in the middle.",
        )
    return Meaning("binary", "sigmoid", (name,), {}, (), (), reasons, dark)


def _binary_reasons(survey: Survey, names: Mapping[Key, str], why: str = "") -> tuple[str, str]:
    share = sum(survey.pixels[k] for k, name in names.items() if name != BACKGROUND) / max(survey.total, 1)
    name = next(n for n in names.values() if n != BACKGROUND)
    shown = " and ".join(map(str, sorted(names, key=_order)))
    return (
        f"The masks hold {shown}{f' ({why})' if why else ''}: one class, {name}, on {percent(share)} of all pixels, "
        "against the rest.",
        "One sigmoid says how likely it is there; a softmax over two classes would be the same model with twice the "
        "logits.",
    )


def _class_reasons(survey: Survey, names: Mapping[Key, str], ignored: Sequence[Key] = ()) -> tuple[str, str]:
    classes = len(set(names.values()))
    lost = sum(survey.pixels[k] for k in ignored) / max(survey.total, 1)
    but = f", apart from {percent(lost)} that are ignored (value {', '.join(map(str, ignored))})" if ignored else ""
    return (
        f"Each of {survey.total:,} pixels holds exactly one of {classes} classes{but}: none has two labels.",
        "Softmax makes the classes compete for each pixel, which is what such a mask says; a sigmoid per class would "
        "have to learn that they exclude each other.",
    )


def _overlap_reasons(shares: tuple[float, float, float], overlap: Overlap) -> tuple[str, str]:
    labelled = shares[1] + shares[2]
    first = (
        f"{percent(shares[2] / labelled)} of all labelled pixels have two labels or more, in {len(overlap.pairs)} "
        f"pair{'s' if len(overlap.pairs) > 1 else ''} of classes"
    )
    if overlap.containment:
        share = min(share for _, _, share in overlap.containment)
        chains = [" ⊃ ".join(map(str, chain)) for chain in sorted(overlap.chains, key=len, reverse=True)]
        nested = ", ".join(chains[:_CHAINS_SHOWN]) + (", ..." if len(chains) > _CHAINS_SHOWN else "")
        every = "every pixel of the inner one" if share == 1 else f"at least {percent(share)} of the inner one"
        first += f"; classes lie inside each other: {nested} ({every})"
    else:
        pair = overlap.pairs[0]
        first += f", most of them {pair.a} with {pair.b} ({percent(pair.iou)} IoU)"
    return (
        f"{first}.",
        "A softmax names one class per pixel and would train the other as wrong; a sigmoid per class can say both.",
    )


def _candidates(survey: Survey, found: Sequence[Key]) -> tuple[Key, ...]:
    """Values that may mean *ignore*: 255 beside small numbers, a thin last value, and a thin 0."""
    numbers = [k for k in found if isinstance(k, int)]
    if len(numbers) < 3:
        return ()
    images = sum(seen.mask_hw is not None for seen in survey.seen)
    last, before = numbers[-1], numbers[-2]

    def thin(value: int, everywhere: bool) -> bool:
        share = survey.pixels[value] / max(survey.total, 1)
        common = survey.images[value] >= max(_VOID_IMAGES * images, _FEWEST_IMAGES)
        return share < _VOID_SHARE and (common or not everywhere)

    candidates = [0] if numbers[0] == 0 and thin(0, everywhere=False) else []
    if (last in _USUAL_IGNORES and before < last - 1) or thin(last, everywhere=True):
        candidates.append(last)
    return tuple(candidates)


def _order(key: Key) -> tuple[bool, Any]:
    return isinstance(key, str), key


def percent(share: float) -> str:
    """For sentences: 12.3 %, 0.042 %; neither 0 nor 100 for what is not."""
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value < 1 else f"{min(value, 99.9):.1f} %"
