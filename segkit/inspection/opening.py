"""How the masks of a data set are read for inspection, and what is known of them before they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from segkit.data.images import ImageRef
from segkit.data.patterns import Pattern
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inspection.coding import CODEC_TEXTS, Coding, find_coding
from segkit.inspection.naming import Naming, name_values, names_of_codec
from segkit.inspection.parts import Source
from segkit.inspection.stored import Key, MaskReader, open_reader


@dataclass(frozen=True)
class Opened:
    """How masks are coded, what reads them, and what values and classes are called.

    Attributes:
        order: of the classes, where it is given.
        masks: what a layout says of them: the section of a config.
        images: of the first part, by stem, where they were looked for.
    """

    coding: Coding
    reader: MaskReader
    naming: Naming
    order: list[str] | None = None
    masks: dict[str, Any] | None = None
    images: Mapping[str, ImageRef] | None = None


def find_masks(source: Source, classes: Mapping[Key, str] | list[str] | None, reading: ImageReading) -> Opened:
    """As a layout says, or as files tell.

    Args:
        classes: see `parse_classes`; they go before what a layout says.

    Raises:
        ValueError: no masks, or names that the masks do not hold.
    """
    part = next(iter(source.parts.values()))
    if source.masks is not None and classes is None:
        return _open_known(source.masks)
    refs = reading.named(part.image_pattern, part.bands).find(part.images)
    mask_pattern = Pattern(part.mask_pattern)
    coding = find_coding(part.masks, [mask_pattern.name(stem) for stem in refs])
    if coding.classes is None:
        naming = name_values(classes, ()) if isinstance(classes, Mapping) else Naming()
        return Opened(coding, open_reader(coding), naming, images=refs)
    if classes is None:
        return Opened(coding, open_reader(coding), Naming(), images=refs)
    wanted = list(classes) if isinstance(classes, list) else list(map(str, classes))
    lost = [name for name in wanted if name not in coding.classes]
    if lost:
        raise ValueError(f"--classes names {lost}, which the masks do not hold: {', '.join(coding.classes)}.")
    others = {"others": "background"} if coding.codec in ("coco", "labelme") else {}
    coding = replace(coding, options={**coding.options, **others}, classes=tuple(wanted))
    return Opened(coding, open_reader(coding), Naming(), wanted, images=refs)


def _open_known(masks: Mapping[str, Any]) -> Opened:
    """As a layout says."""
    known = {key: masks.get(key) for key in ("format", "classes", "activation", "threshold")}
    format = MaskFormat.from_config({key: value for key, value in known.items() if value is not None})
    spec = masks.get("codec", "index_png")
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    if spec["name"] in ("coco", "labelme"):
        spec.setdefault("missing", "empty")  # and said so, where there are such images
    section = {"format": masks["format"], "activation": format.to_dict()["activation"], **masks}
    section["codec"] = spec if len(spec) > 1 else spec["name"]
    if masks.get("ignored_values"):
        spec = {**spec, "ignored_values": masks["ignored_values"]}
    codec = open_codec(spec, format)
    text = CODEC_TEXTS[codec.name]
    options = {key: spec[key] for key in ("missing",) if key in spec}
    if codec.marks_classes or format.num_planes > 1:
        coding = Coding(codec.name, text, options, format.names)
        return Opened(coding, open_reader(coding, codec), Naming(), list(format.names), section)
    coding = Coding(codec.name, text)
    return Opened(coding, open_reader(coding), names_of_codec(codec), masks=section)
