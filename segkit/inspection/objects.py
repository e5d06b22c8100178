"""Masks that number objects (`1` to `37` for 37 nuclei): their values are no classes."""

from __future__ import annotations

import cv2
import numpy as np

from segkit.inspection.coding import spread
from segkit.inspection.stored import MaskReader
from segkit.inspection.survey import Survey

# Numbers beside 0 below which values are taken for classes, and on average in a mask.
_FEWEST, _FEWEST_IN_A_MASK = 8, 3
# Share of masks that count from 1 with few gaps (an object hidden by others), the share of numbers that must be there,
# and how many different last numbers show that they count objects.
_COUNTING, _THERE, _ENDS = 0.9, 0.9, 3
# Or: share of the numbers that one mask alone holds.
_UNIQUE = 0.5
# Share of the numbers of a mask that are one piece each; objects in front of others cut some in two.
_IN_ONE_PIECE = 0.8
_LOOKED_AT = 12


def are_objects(survey: Survey, reader: MaskReader) -> bool:
    """Whether values are numbers of objects: they count from 1 anew in every mask, or come back in no other, and each
    is one connected piece."""
    keys = [key for key in survey.pixels if isinstance(key, int) and key]
    held = [numbers for seen in survey.seen if (numbers := [key for key in seen.values if key != 0])]
    if len(keys) < max(_FEWEST, len(survey.pixels) - 1) or sum(map(len, held)) < _FEWEST_IN_A_MASK * len(held):
        return False
    ends = [
        last for numbers in held if len(numbers) >= _THERE * (last := max(n for n in numbers if isinstance(n, int)))
    ]
    counting = len(ends) >= _COUNTING * len(held) and len(set(ends)) >= min(_ENDS, len(held))
    unique = len(held) > 2 and sum(survey.images[key] == 1 for key in keys) >= _UNIQUE * len(keys)
    return (counting or unique) and _in_one_piece(survey, reader)


def _in_one_piece(survey: Survey, reader: MaskReader) -> bool:
    numbers = whole = 0
    for seen in spread([seen for seen in survey.seen if len(seen.values) > 1], _LOOKED_AT):
        values = reader.values(seen.pair.masks, seen.pair.mask)
        if values is None:
            return False
        for number in np.unique(values[values > 0]):
            numbers += 1
            whole += cv2.connectedComponents((values == number).view(np.uint8), connectivity=8)[0] == 2
    return whole >= _IN_ONE_PIECE * numbers
