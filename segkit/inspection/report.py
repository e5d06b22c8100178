"""What `segkit inspect` found, as JSON holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from segkit.inspection.advice import Advice
from segkit.inspection.coding import Coding
from segkit.inspection.evidence import Overlap
from segkit.inspection.meaning import Meaning
from segkit.inspection.stored import Key
from segkit.inspection.survey import Fault, Survey

Report = dict[str, Any]


def make_report(
    survey: Survey,
    coding: Coding,
    meaning: Meaning,
    overlap: Overlap,
    advice: Advice,
    *,
    layout: str | None,
    named: bool,
    empty: Sequence[str],
    duplicates: Sequence[dict[str, Any]],
    faults: Sequence[Fault],
    notes: Sequence[str],
) -> Report:
    """JSON-ready; a number that is not known is None.

    Args:
        named: whether names of values are known; otherwise they are None.
    """
    images = [seen.image for seen in survey.seen if seen.image is not None]
    masks = sum(seen.mask_hw is not None for seen in survey.seen)
    sizes = Counter(image.size_hw for image in images)
    seconds = survey.seconds
    return {
        "images": sum(survey.parts.values()),
        "masks": masks,
        "bands": _usual([image.bands for image in images]),
        "dtype": _usual([image.dtype for image in images]),
        "parts": dict(survey.parts),
        "sizes": [{"height": h, "width": w, "count": n} for (h, w), n in sizes.most_common()],
        "coding": {"codec": coding.codec, "text": coding.text, "layout": layout},
        "values": {str(key): _value(survey, meaning, key, masks, named) for key in _in_order(survey, meaning)},
        "overlap": _overlap(overlap),
        "empty_masks": list(empty),
        "duplicates": list(duplicates),
        "faults": [{"file": fault.file, "fault": fault.text} for fault in faults],
        "notes": list(notes),
        "advice": {
            "format": meaning.format,
            "activation": meaning.activation,
            "codec": coding.codec,
            "ignored_values": list(meaning.ignored),
            "ignore_candidates": list(meaning.candidates),
            "classes": list(meaning.classes),
            "class_weights": advice.class_weights,
            "crop": advice.crop,
            "batch_size": advice.batch_size,
            "augment": advice.augment,
            "reasons": list(meaning.reasons),
            "masks": advice.masks,
        },
        "seconds": round(seconds, 3),
        "images_per_second": round(len(survey.seen) / seconds, 1) if survey.seen and seconds > 0 else None,
    }


def _value(survey: Survey, meaning: Meaning, key: Key, masks: int, named: bool) -> dict[str, Any]:
    name = meaning.names.get(key) if named else None
    return {
        "name": "ignored" if key in meaning.ignored else name,
        "pixel_share": survey.pixels[key] / survey.total if survey.total else None,
        "image_share": survey.images[key] / masks if masks else None,
        "images": survey.images[key],
    }


def _in_order(survey: Survey, meaning: Meaning) -> list[Key]:
    """Values in the order of the classes, then what no class names."""
    declared: list[Key] = [*meaning.names, *meaning.ignored]
    rest = sorted((k for k in survey.pixels if k not in declared), key=lambda k: (isinstance(k, str), k))
    return [*declared, *rest]


def _overlap(overlap: Overlap) -> dict[str, Any]:
    shares = overlap.shares or (None, None, None)
    return {
        "share_0": shares[0],
        "share_1": shares[1],
        "share_2_or_more": shares[2],
        "pairs": [
            {
                "a": str(pair.a),
                "b": str(pair.b),
                "pixels": pair.pixels,
                "iou": pair.iou,
                "share_of_a": pair.share_of_a,
                "share_of_b": pair.share_of_b,
            }
            for pair in overlap.pairs
        ],
        "containment": [{"inner": str(i), "outer": str(o), "share": share} for i, o, share in overlap.containment],
        "never_together": [[str(a), str(b)] for a, b in overlap.never_together],
    }


def _usual(values: Sequence[Any]) -> Any:
    return Counter(values).most_common(1)[0][0] if values else None
