"""The end of an error message about a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: object, known: Iterable[object], limit: int = 12) -> str:
    """`Did you mean X?` where a known word is near, else the known words, at most `limit` of them."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if near:
        return f"Did you mean `{near[0]}`?"
    if not names:
        return ""
    return f"Known are {', '.join(names[:limit])}" + (", ..." if len(names) > limit else ".")
