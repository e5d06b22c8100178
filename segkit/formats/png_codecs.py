"""One PNG file per mask: class values as gray levels, as palette indices, or as colours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.classes import RGB, class_colors, parse_color
from segkit.formats.codec import Codec
from segkit.formats.disk_values import check_plane
from segkit.formats.files import existing, find_files, path_of
from segkit.formats.georeference import put_sidecar, read_georeference
from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.formats.pixel_values import StoredValues, pixel_values
from segkit.formats.png_files import Png, read_png, write_png

SUFFIX = ".png"
_BLACK: RGB = (0, 0, 0)
# What VOC draws where nobody knows; only for people, the index is what counts.
_IGNORED_COLOR: RGB = (224, 224, 192)


class _OnePng(Codec):
    """One file `STEM.png` for each mask."""

    def stems(self, root: str | Path) -> list[str]:
        return list(find_files(root, [SUFFIX]))

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        path = path_of(root, stem, SUFFIX)
        return self._to_planes(read_png(path), str(path))

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([path_of(root, stem, SUFFIX)])

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        path = path_of(root, stem, SUFFIX)
        pixels = self._to_pixels(self.check(planes, str(path)), str(path))
        put_sidecar(path, read_georeference(like, planes.shape[:2]))
        write_png(path, pixels, self._palette())

    @abstractmethod
    def _to_planes(self, png: Png, where: str) -> np.ndarray:
        """(H, W, P) planes of a decoded file."""

    @abstractmethod
    def _to_pixels(self, planes: np.ndarray, where: str) -> np.ndarray:
        """What is stored for (H, W, P) planes."""

    def _palette(self) -> np.ndarray | None:
        return None


class NumberPng(_OnePng):
    """Gray PNG whose samples are the numbers of a table; 8 bits, 16 where a number is above 255."""

    def __init__(self, format: MaskFormat, values: StoredValues) -> None:
        super().__init__(format)
        self.values = values

    def to_spec(self) -> dict[str, Any]:
        return {"name": self.name, **self.values.to_spec()}

    def _to_planes(self, png: Png, where: str) -> np.ndarray:
        if png.pixels.ndim == 3:
            raise ValueError(
                f"{where}: has {png.pixels.shape[2]} channels, expected one with the class values. "
                "Use the codec `color_png` and say in `values` which colour is which class."
            )
        return self.values.to_planes(png.pixels.view(bool) if png.bits == 1 else png.pixels, where)

    def _to_pixels(self, planes: np.ndarray, where: str) -> np.ndarray:
        return self.values.to_disk(planes, where)


class IndexPng(NumberPng):
    """Gray PNG whose samples are class values: 8 bits, 16 where a value is above 255; 1 to 16 bits are read.

    Samples are read as stored: white in a 1-bit file is 1 (and also 255, as viewers show it, for a codec that
    declares 255 but not 1). Of a palette PNG the indices are read.

    Args:
        format: must have one plane, or be told in `values` which classes a value names.
        values: disk value -> class name or list of them, see `pixel_values`.
        ignored_values: disk values that mean "do not look here".
    """

    name = "index_png"
    _max_value = 65535

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, Any] | None = None,
        ignored_values: Iterable[int] = (),
    ) -> None:
        super().__init__(format, pixel_values(format, values, ignored_values, self._max_value))


class PalettePng(IndexPng):
    """Palette PNG as in Pascal VOC: samples are class values, shown in the class colours. Values up to 255.

    Gray PNG files are read too.
    """

    name = "palette_png"
    _max_value = 255

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, Any] | None = None,
        ignored_values: Iterable[int] = (),
    ) -> None:
        try:
            super().__init__(format, values, ignored_values)
        except ValueError as error:
            if format.num_classes <= 256:
                raise
            raise ValueError(
                f"palette_png: a palette has 256 colours, too few for {format.num_classes} classes. "
                f"Use the codec `index_png`. ({error})"
            ) from None
        colors = {BACKGROUND: _BLACK, **class_colors(format.classes)}
        self._colors = np.zeros((256, 3), np.uint8)
        for value, name in self.values.shown().items():
            self._colors[value] = colors[name]
        self._colors[list(self.values.ignored_values)] = _IGNORED_COLOR

    def _palette(self) -> np.ndarray:
        return self._colors


class ColorPng(_OnePng):
    """RGB PNG in which a colour stands for a class. Palette and gray PNG files are read by the colours they show.

    Args:
        format: must have one plane.
        values: class name -> a colour (`"#rrggbb"` or `[r, g, b]`) or a list of them, of which the first is
            written, or `"#rrggbb"` -> class name; by default each class has its own colour, and the background of
            a binary mask is black.
        ignored_values: colours that mean "do not look here"; the first is written.
    """

    name = "color_png"

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[str, Any] | None = None,
        ignored_values: Iterable[Any] = (),
    ) -> None:
        super().__init__(format)
        known = format.plane_values
        self.values = _default_colors(format) if values is None else _named_colors(values, known)
        self.ignored_values = _parse_colors(ignored_values) if ignored_values else ()
        colors_of = {known[name]: colors for name, colors in self.values.items()}
        if self.ignored_values:
            colors_of[format.ignore_index] = self.ignored_values
        plane_of: dict[int, int] = {}
        for plane_value, colors in colors_of.items():
            for color in colors:
                if plane_of.setdefault(_code(color), plane_value) != plane_value:
                    raise ValueError(
                        f"color_png: colour {_text(color)} stands for two classes, or for one and *ignored*: "
                        "give each class a colour of its own in `values`."
                    )
        self._codes = np.array(sorted(plane_of), np.int32)
        self._planes = np.array([plane_of[code] for code in sorted(plane_of)], format.dtype)
        self._rgb = {plane_value: colors[0] for plane_value, colors in colors_of.items()}

    def to_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"name": self.name}
        if self.values != _default_colors(self.format):
            spec["values"] = {name: [list(c) for c in colors] for name, colors in self.values.items()}
        if self.ignored_values:
            spec["ignored_values"] = [list(c) for c in self.ignored_values]
        return spec

    def _to_planes(self, png: Png, where: str) -> np.ndarray:
        codes = _code(np.moveaxis(_rgb_of(png, where).astype(np.int32), -1, 0))
        nearest = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        strange = self._codes[nearest] != codes
        if strange.any():
            found = [_text(((c >> 16) & 255, (c >> 8) & 255, c & 255)) for c in np.unique(codes[strange])[:10].tolist()]
            declared = ", ".join(f"{_text(colors[0])}: {name}" for name, colors in list(self.values.items())[:40])
            raise ValueError(
                f"{where}: found colours [{', '.join(found)}], which no class declares (declared: {declared}). "
                "Add them to `values`, or to `ignored_values` to leave them out of training."
            )
        return self._planes[nearest][..., None]

    def _to_pixels(self, planes: np.ndarray, where: str) -> np.ndarray:
        plane = planes[..., 0]
        way_out = "and no colour means that. Add one to `ignored_values`, such as ['#ffffff']."
        check_plane(plane, self._rgb, self.format.ignore_index, where, way_out)
        table = np.zeros((self.format.ignore_index + 1, 3), np.uint8)
        for plane_value, color in self._rgb.items():
            table[plane_value] = color
        return table[plane]


def _rgb_of(png: Png, where: str) -> np.ndarray:
    """(H, W, 3) uint8 colours that a file shows."""
    pixels = png.pixels
    if pixels.dtype != np.uint8:
        raise ValueError(f"{where}: has 16 bits per channel, expected 8. Save colours with 8 bits, or use `index_png`.")
    if png.palette is not None:
        if pixels.max() >= len(png.palette):
            raise ValueError(f"{where}: has pixels beyond its palette of {len(png.palette)} colours. Restore the file.")
        return png.palette[pixels]
    if pixels.ndim == 2:
        return np.repeat((pixels * np.uint8(255 // (2**png.bits - 1)))[..., None], 3, axis=2)
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise ValueError(f"{where}: has transparent pixels, which say nothing about a class. Save it without alpha.")
    return pixels[..., :3]


def _default_colors(format: MaskFormat) -> dict[str, tuple[RGB, ...]]:
    colors = {BACKGROUND: _BLACK, **class_colors(format.classes)}
    return {name: (colors[name],) for name in format.plane_values}


def _named_colors(values: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, tuple[RGB, ...]]:
    if not isinstance(values, Mapping):
        raise ValueError(f"color_png: `values` is {values!r}: expected `NAME: colour` for each class.")
    if any(isinstance(name, str) and name.startswith("#") and name not in known for name in values):
        values = _colors_by_name(values)
    named = {str(name): _parse_colors(colors) for name, colors in values.items()}
    strange = [name for name in named if name not in known]
    if strange:
        raise ValueError(f"color_png: `values` names {strange}, which are no classes (classes: {list(known)}).")
    # As for disk values: black is what is left of a binary mask, unless it is taken.
    if BACKGROUND in known and BACKGROUND not in named and all(_BLACK not in colors for colors in named.values()):
        named[BACKGROUND] = (_BLACK,)
    missing = [name for name in known if name not in named]
    if missing:
        raise ValueError(f"color_png: `values` gives no colour for {missing}: add one line `NAME: colour` for each.")
    return named


def _colors_by_name(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """`NAME: [colour, ...]` from `colour: NAME`, the direction in which other codecs take their `values`."""
    by_name: dict[str, list[str]] = {}
    for color, name in values.items():
        by_name.setdefault(BACKGROUND if name is None else str(name), []).append(color)
    return by_name


def _parse_colors(colors: Any) -> tuple[RGB, ...]:
    """One colour or a list of them."""
    given = [colors] if isinstance(colors, str) else list(colors) if isinstance(colors, Iterable) else []
    if given and all(isinstance(part, int) for part in given):
        given = [given]
    if not given:
        raise ValueError(f"color_png: colour {colors!r}: expected '#rrggbb', [r, g, b], or a list of such colours.")
    return tuple(dict.fromkeys(parse_color(color) for color in given))


def _code(rgb: Any) -> Any:
    """One number for a colour, or for each pixel of three channels."""
    return (rgb[0] << 16) | (rgb[1] << 8) | rgb[2]


def _text(color: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
