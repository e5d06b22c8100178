"""What a request asks for, beside its image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from segkit.formats.mask_format import MaskFormat
from segkit.serving.answers import Output, at_thresholds
from segkit.serving.limits import Refused
from segkit.suggest import closest

DEFAULT_SIDE, MAX_SIDE = 1600, 4096


@dataclass(frozen=True)
class Options:
    """The query of a request.

    Attributes:
        format: at the thresholds of the query, if it has any.
        output: name of an output.
        spacing_mm: (row, column) distances of the image.
        side: longest side of a view.
    """

    format: MaskFormat
    output: str
    spacing_mm: tuple[float, float] | None
    side: int


def read_options(request: Request, format: MaskFormat, outputs: Mapping[str, Output], *known: str) -> Options:
    """The options of a request, of which only `known` may be given.

    Raises:
        Refused: an option that is not known, given twice, or out of range; no output that the client accepts.
    """
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise Refused(400, f"There is no option {name!r:.60}. {closest(name[:60], known)}")
        if name in query:
            raise Refused(400, f"The option {name} is given twice.")
        query[name] = value
    if "threshold" in query:
        try:
            format = at_thresholds(format, _numbers("threshold", query["threshold"]))
        except ValueError as error:
            raise Refused(422, f"The option threshold does not fit this model: {error}") from None
    output = query["output"] if "output" in query else _accepted(request.headers.get("accept", "*/*"), outputs)
    if output not in outputs:
        raise Refused(400, f"There is no output {output!r:.60} of this model. {closest(output[:60], outputs)}")
    return Options(format, output, _spacing(query.get("spacing_mm")), _side(query.get("side")))


def _accepted(header: str, outputs: Mapping[str, Output]) -> str:
    """The output that an Accept header (RFC 9110, 12.5.1) likes most."""
    best, best_quality = None, 0.0
    for name, output in outputs.items():
        quality = _quality(header, output.media_type)
        if quality > best_quality:
            best, best_quality = name, quality
    if best is None:
        types = ", ".join(output.media_type for output in outputs.values())
        raise Refused(406, f"The client accepts {header!r:.100}, and this model answers in {types}.")
    return best


def _quality(header: str, media_type: str) -> float:
    """What the most specific range that matches says; 0 where none does."""
    found = (-1, 0.0)
    for part in header.split(","):
        given, *parameters = (text.strip().lower() for text in part.split(";"))
        for rank, wanted in enumerate(("*/*", media_type.partition("/")[0] + "/*", media_type)):
            if given == wanted:
                weights = [text[2:] for text in parameters if text.startswith("q=")]
                found = max(found, (rank, _weight(weights[0]) if weights else 1.0))
    return found[1]


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise Refused(400, f"The option {name} is {text!r:.60}: expected numbers with commas between them.")
    return numbers


def _spacing(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    numbers = _numbers("spacing_mm", text)
    if len(numbers) != 2 or min(numbers) <= 0:
        raise Refused(400, f"The option spacing_mm is {text!r:.60}: expected ROW,COLUMN, two numbers above 0.")
    return numbers[0], numbers[1]


def _side(text: str | None) -> int:
    if text is None:
        return DEFAULT_SIDE
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_SIDE:
        raise Refused(400, f"The option side is {text!r:.60}: expected a number of pixels from 1 to {MAX_SIDE}.")
    return int(text)
