"""JSON files as annotation tools write them: read whole or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segkit.formats.files import read_whole
from segkit.formats.limits import RAISE_LIMIT, max_pixels


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: names the file: it is missing, empty, cut short, no JSON, or holds no object.
    """
    content = read_whole(path)
    if not content:
        raise ValueError(f"{path}: is empty. Restore the file or leave it out.")
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path}: is no annotation file: its lists are nested too deeply.") from None
    except ValueError as error:  # no UTF-8 text, no JSON, or a number of thousands of digits
        raise ValueError(f"{path}: is no readable JSON ({error!s:.200}). Restore the file or leave it out.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a JSON {type(values).__name__}, expected an object {{...}}.")
    return values


def records(values: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """`values[key]`, which must be a list of objects."""
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise ValueError(f"{where}: `{key}` is missing or no list of objects {{...}}.")
    return found


def declared_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """(height, width) if they are whole numbers above 0 and no more pixels than `max_pixels` allows."""
    for side in (height, width):
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise ValueError(f"{where}: a size of {height!r:.40} x {width!r:.40}, expected whole numbers of pixels.")
    if height * width > max_pixels():
        raise ValueError(
            f"{where}: declares {height} x {width} pixels, expected at most {max_pixels()} ({RAISE_LIMIT})."
        )
    return height, width
