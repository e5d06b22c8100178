"""What `segkit inspect` found, as one HTML file that opens anywhere.

The file needs no network, and nothing in it comes from the data as code: every name is escaped by the template, and a
content policy lets the browser run the one script of this package, known by its hash, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segkit.formats.files import write_whole
from segkit.inspection.thumbnails import Thumbnail, label_colors

_TEMPLATES = Path(__file__).parent / "templates"
# What a page still shows at once; all of it stands in the JSON.
_MAX_MATRIX = 40
_MAX_PAIRS = 100
_MAX_ROWS = 1000
_MAX_NAMES = 60
_UNKNOWN = "–"


def write_page(
    path: str | Path,
    report: Mapping[str, Any],
    thumbnails: Sequence[Thumbnail] = (),
    *,
    title: str = "Data set",
    config: str | None = None,
) -> None:
    """Write the report of `segkit inspect` as one HTML file.

    Args:
        path: the file; replaced whole, or not at all.
        report: what `segkit inspect --json` writes. A number that is None or missing is shown as unknown.
        thumbnails: the samples to show, a few hundred at most; duplicates find their pictures here too.
        title: name of the data set.
        config: text of a whole config; by default the sections that the advice decides.
    """
    # Imported here: only this page needs it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "share": share, "width": _width, "data_uri": _data_uri}
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        _view(report, thumbnails, config), title=title, style=style, script=script, script_hash=f"sha256-{digest}"
    )
    write_whole(Path(path), text.encode("utf-8", "replace"))


def label_names(report: Mapping[str, Any]) -> dict[str, str]:
    """Value in the masks -> the name by which the page calls it; `label_colors` of these names are its colours."""
    return {str(value): str(found.get("name") or value) for value, found in (report.get("values") or {}).items()}


def number(value: float | None) -> str:
    """`1,234` or `0.25`; a dash where it is not known."""
    if value is None:
        return _UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def share(value: float | None) -> str:
    """A share of 0-1 for people: `12.3 %`, `<0.01 %`, a dash where it is not known."""
    if value is None:
        return _UNKNOWN
    if 0 < value < 1e-4:
        return "<0.01 %"
    if 0.999 < value < 1:  # never 100 % where something is left
        return "99.9 %"
    percent = 100 * value
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %"


def _view(report: Mapping[str, Any], thumbnails: Sequence[Thumbnail], config: str | None) -> dict[str, Any]:
    """All that the template shows, in the order of the page."""
    advice = report.get("advice") or {}
    labels = _labels(report, advice)
    names = label_names(report)
    faults = report.get("faults") or []
    duplicates = report.get("duplicates") or []
    return {
        "advice": {key: advice.get(key) for key in ("format", "activation", "reasons", "ignore_candidates")},
        "chips": _chips(report, advice),
        "config": _config(advice) if config is None else config,
        "tiles": _tiles(report, labels, duplicates, faults),
        "labels": labels,
        "overlap": _overlap(report.get("overlap") or {}, names),
        "sizes": _bars(report.get("sizes") or [], "count"),
        "bands": report.get("bands"),
        "dtype": report.get("dtype"),
        "empty_masks": report.get("empty_masks") or [],
        "duplicates": _pictured(duplicates, thumbnails),
        "num_duplicates": len(duplicates),
        "faults": faults[:_MAX_ROWS],
        "num_faults": len(faults),
        "notes": report.get("notes") or [],
        "gallery": _gallery(thumbnails, names.values()),
        "max_names": _MAX_NAMES,
        "max_rows": _MAX_ROWS,
    }


def _labels(report: Mapping[str, Any], advice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each value in the masks."""
    names = label_names(report)
    colors = label_colors(names.values())
    ignored, candidates = ({str(v) for v in advice.get(key) or ()} for key in ("ignored_values", "ignore_candidates"))
    return [
        {
            **{key: found.get(key) for key in ("pixel_share", "image_share", "images")},
            "value": str(value),
            "name": names[str(value)],
            # An ignored value needs no name beside the badge that says so.
            "named": found.get("name") is not None and str(value) not in ignored,
            "color": "#{:02x}{:02x}{:02x}".format(*colors[names[str(value)]]),
            "ignored": str(value) in ignored,
            "candidate": str(value) in candidates,
        }
        for value, found in (report.get("values") or {}).items()
    ]


def _chips(report: Mapping[str, Any], advice: Mapping[str, Any]) -> list[tuple[str, str]]:
    coding = report.get("coding") or {}
    crop, ignored = advice.get("crop"), advice.get("ignored_values")
    return [
        ("masks", str(coding.get("text") or coding.get("codec") or _UNKNOWN)),
        ("codec", str(advice.get("codec") or coding.get("codec") or _UNKNOWN)),
        ("layout", str(coding.get("layout") or "none")),
        ("ignored values", ", ".join(map(str, ignored)) if ignored else "none"),
        ("crop", f"{crop} × {crop}" if isinstance(crop, int) else _UNKNOWN),
        ("batch size", number(advice.get("batch_size"))),
    ]


def _config(advice: Mapping[str, Any]) -> str:
    """The sections of a config that the advice decides; empty where there is none."""
    if not advice.get("masks"):
        return ""
    sections: dict[str, Any] = {"masks": advice["masks"]}
    if advice.get("crop"):
        sections["data"] = {"crop": advice["crop"]}
    weights, classes = advice.get("class_weights"), advice.get("classes")
    if weights and classes and len(weights) == len(classes):
        weighed = dict(zip(map(str, classes), weights, strict=True))
        sections["loss"] = {"cross_entropy": {"class_weights": weighed}, "dice": 1}
    if advice.get("batch_size"):
        sections["train"] = {"batch_size": advice["batch_size"]}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, default_flow_style=None, width=56)


def _tiles(
    report: Mapping[str, Any], labels: Sequence, duplicates: Sequence[Mapping], faults: Sequence
) -> list[tuple[str, str, str, bool]]:
    """(what, number, detail, whether it asks for attention) of each key number."""
    parts = report.get("parts") or {}
    sizes = report.get("sizes") or []
    across = sum(map(_is_across, duplicates))
    empty = len(report.get("empty_masks") or ())
    images, masks = report.get("images"), report.get("masks")
    kinds = f"{number(len(sizes))} sizes" if sizes else _UNKNOWN
    if len(sizes) == 1:
        kinds = f"{number(sizes[0].get('height'))} × {number(sizes[0].get('width'))}"
    filled = "every mask holds a label" if masks else ""
    matched = "" if not images else "one for each image" if masks == images else "not one for each image"
    bands = f"{number(report.get('bands'))} band{'s' * (report.get('bands') != 1)}"
    rate = report.get("images_per_second")
    return [
        ("images", number(images), " · ".join(f"{part} {number(count)}" for part, count in parts.items()), False),
        ("masks", number(masks), matched, masks != images),
        ("pixels", kinds, f"{bands} of {report.get('dtype') or 'unknown depth'}", False),
        ("values", number(len(labels)), f"{number(sum(row['named'] for row in labels))} with a name", False),
        ("empty masks", number(empty), "background only" if empty else filled, False),
        ("duplicates", number(len(duplicates)), f"{number(across)} across parts", across > 0),
        ("faults", number(len(faults)), "see the list below" if faults else "nothing wrong was found", bool(faults)),
        (
            "read in",
            _UNKNOWN if report.get("seconds") is None else f"{report['seconds']:,.1f} s",
            "" if rate is None else f"{rate:,.0f} images per second",
            False,
        ),
    ]


def _overlap(overlap: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Classes are told by name, whichever of name and value the report gives."""

    def named(key: Any) -> str:
        return names.get(str(key), str(key))

    pairs = [pair for pair in overlap.get("pairs") or () if pair.get("pixels") != 0]
    inside: dict[tuple[str, str], float | None] = {}
    weight: dict[str, float] = {}
    for pair in pairs:
        a, b = named(pair["a"]), named(pair["b"])
        inside[a, b], inside[b, a] = pair.get("share_of_a"), pair.get("share_of_b")
        for name in (a, b):
            weight[name] = weight.get(name, 0) + (pair.get("iou") or 0)
    # The classes that overlap most, in the order of the table.
    most = sorted(weight, key=lambda name: -weight[name])[:_MAX_MATRIX]
    order = {name: place for place, name in enumerate(names.values())}
    shown = sorted(most, key=lambda name: order.get(name, len(order)))
    never = overlap.get("never_together") or []
    return {
        "shares": [
            ("no label", overlap.get("share_0")),
            ("one label", overlap.get("share_1")),
            ("two or more labels", overlap.get("share_2_or_more")),
        ],
        "classes": shown,
        "left_out": len(weight) - len(shown),
        "matrix": [[None if a == b else inside.get((a, b), 0) for b in shown] for a in shown],
        "containment": [
            (named(found["inner"]), named(found["outer"]), found.get("share"))
            for found in (overlap.get("containment") or [])[:_MAX_NAMES]
        ],
        "never": [(named(a), named(b)) for a, b in never[:_MAX_NAMES]],
        "num_never": len(never),
    }


def _bars(rows: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows with their `share` of the sum over `key`."""
    rows = [dict(row) for row in rows]
    total = sum(row.get(key) or 0 for row in rows) or 1
    return [{**row, "share": (row.get(key) or 0) / total} for row in rows]


def _pictured(duplicates: Sequence[Mapping[str, Any]], thumbnails: Sequence[Thumbnail]) -> list[dict[str, Any]]:
    pictures: dict[Any, bytes] = {thumbnail.stem: thumbnail.image for thumbnail in thumbnails}
    pictures |= {(thumbnail.part, thumbnail.stem): thumbnail.image for thumbnail in thumbnails}
    shown = []
    for pair in sorted(duplicates, key=lambda pair: not _is_across(pair))[:_MAX_PAIRS]:
        parts = [*(pair.get("parts") or ()), "", ""]
        sides = [
            {"stem": str(stem), "part": part, "image": pictures.get((part, stem)) or pictures.get(stem) or b""}
            for stem, part in zip((pair["a"], pair["b"]), parts, strict=False)
        ]
        shown.append({"kind": pair.get("kind"), "sides": sides, "across": _is_across(pair)})
    return shown


def _is_across(pair: Mapping[str, Any]) -> bool:
    return len(set(pair.get("parts") or ())) > 1


def _gallery(thumbnails: Sequence[Thumbnail], names: Iterable[str]) -> dict[str, Any]:
    """Pictures, and the words to filter them by; a picture names words by their number."""
    parts = list(dict.fromkeys(t.part for t in thumbnails))
    known = list(dict.fromkeys([*names, *(name for t in thumbnails for name in t.classes)]))
    occurring = {name for t in thumbnails for name in t.classes}
    classes = {name: place for place, name in enumerate(name for name in known if name in occurring)}
    faults = {text: place for place, text in enumerate(dict.fromkeys(f for t in thumbnails for f in t.faults))}
    figures = [
        {
            "stem": t.stem,
            "part": t.part,
            "image": t.image,
            "overlay": t.overlay,
            "faults": t.faults,
            "part_number": parts.index(t.part),
            "class_numbers": " ".join(str(classes[name]) for name in t.classes),
            "fault_numbers": " ".join(["any", *(str(faults[text]) for text in t.faults)]) if t.faults else "",
        }
        for t in thumbnails
    ]
    return {"figures": figures, "parts": parts, "classes": list(classes), "faults": list(faults)}


def _width(value: float | None) -> str:
    """CSS length of a bar; what is not nothing stays visible."""
    return "0" if not value else f"max(2px, {100 * min(max(value, 0), 1):.2f}%)"


def _data_uri(data: bytes) -> str:
    kind = "webp" if data[8:12] == b"WEBP" else "png" if data[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
