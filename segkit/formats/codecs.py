"""All codecs by name, and `open_codec`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from segkit.formats.bit_planes import BitPlanes
from segkit.formats.coco_codec import CocoJson
from segkit.formats.codec import Codec
from segkit.formats.file_per_class import FilePerClass
from segkit.formats.labelme_codec import LabelmeJson
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_codec import NiftiSlices
from segkit.formats.png_codecs import ColorPng, IndexPng, PalettePng
from segkit.formats.threshold import Threshold
from segkit.formats.tiff_codec import Tiff
from segkit.suggest import closest

CODECS: dict[str, type[Codec]] = {
    "index_png": IndexPng,
    "palette_png": PalettePng,
    "color_png": ColorPng,
    "file_per_class": FilePerClass,
    "bit_planes": BitPlanes,
    "tiff": Tiff,
    "threshold": Threshold,
    "coco": CocoJson,
    "labelme": LabelmeJson,
    "nifti": NiftiSlices,
}


def open_codec(spec: str | Mapping[str, Any] | Codec, format: MaskFormat) -> Codec:
    """The codec that `spec` names, for masks of `format`.

    Args:
        spec: a name in `CODECS`, or `{name: ..., OPTION: ...}` with the options of its class (None is the default),
            or a codec, which is returned as it is.

    Raises:
        ValueError: unknown name or option, an option that does not fit, or a format that the codec cannot hold.
    """
    if isinstance(spec, Codec):
        if spec.format != format:
            raise ValueError(f"this {spec.name} codec was opened for another mask format: open it anew by its name.")
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ValueError(f"codec is {spec!r}: expected a name ({', '.join(CODECS)}) or {{name: ..., OPTION: ...}}.")
    options = {str(key): value for key, value in spec.items() if key != "name" and value is not None}
    name = spec["name"]
    if name not in CODECS:
        raise ValueError(f"no codec is named {name!r}. {closest(name, CODECS)}")
    make = CODECS[name]
    known = [p for p in inspect.signature(make).parameters if p != "format"]
    for option in options:
        if option not in known:
            raise ValueError(f"codec {name} has no option {option!r}. {closest(option, known)}")
    return make(format, **options)
