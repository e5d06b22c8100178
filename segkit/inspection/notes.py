"""What is no fault of a file, and yet worth knowing before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segkit.formats.mask_format import BACKGROUND
from segkit.inspection.coding import Coding
from segkit.inspection.evidence import Overlap
from segkit.inspection.faults import empty_masks
from segkit.inspection.meaning import Meaning, looks_like_bits, percent
from segkit.inspection.stored import Key
from segkit.inspection.survey import Survey

# Share of labelled pixels up to which an overlap may be a slip of the hand.
_SLIGHT = 0.01


def find_notes(survey: Survey, meaning: Meaning, coding: Coding, overlap: Overlap, nothing: Sequence[Key]) -> list[str]:
    """Sentences on what is no fault and yet worth knowing.

    Args:
        nothing: values that mean that nothing is here.
    """
    notes = []
    empty = len(empty_masks(survey, nothing))
    if empty:
        unsure = " (nobody drew there, or there is nothing)" if coding.options.get("missing") == "empty" else ""
        notes.append(f"{empty} mask{'s mark' if empty > 1 else ' marks'} no class at all{unsure}.")
    depths = Counter(seen.image.dtype for seen in survey.seen if seen.image is not None)
    if len(depths) > 1:
        shown = ", ".join(f"{dtype} ({count})" for dtype, count in depths.most_common())
        notes.append(f"Images come in {len(depths)} depths: {shown}. They are brought to the widest.")
    held = {meaning.names.get(key) for key in survey.pixels}
    unseen = [name for name in meaning.classes if name not in held and name != BACKGROUND] if meaning.names else []
    if unseen:
        notes.append(f"No mask holds {', '.join(unseen[:12])}{', ...' if len(unseen) > 12 else ''}.")
    shares = overlap.shares
    if overlap.pairs and shares is not None and shares[2] < _SLIGHT * (shares[1] + shares[2]):
        notes.append(
            f"Only {percent(shares[2] / (shares[1] + shares[2]))} of labelled pixels have two labels. If that is only "
            "where drawn borders meet, the classes exclude each other: format multiclass."
        )
    bits = looks_like_bits(list(survey.pixels)) if meaning.activation == "softmax" else None
    if bits:
        notes.append(bits)
    for value in meaning.candidates:
        share = percent(survey.pixels[value] / survey.total)
        notes.append(
            f"Value {value} ({share} of pixels, {survey.images[value]} images) may mean *ignore*; nothing says so. "
            f"If it does: --classes '...,{value}=ignore'."
        )
    return notes
