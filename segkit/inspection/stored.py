"""Masks as they are stored: how many pixels of each value a file holds, or of each class and pair of classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.files import existing, find_files, path_of
from segkit.formats.image_files import read_image_file
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import read_png
from segkit.inspection.coding import Coding, kind_of

Key = int | str  # value on disk, "#rrggbb", or name of a class

# Pixels of a run on average below which runs are not worth looking for.
_SHORT_RUNS = 8
# Above it, only the classes that an image holds are looked at.
_FEW_CLASSES = 8
_MOST_BITS = 62
_MOST_DRAWN = 100
# Of 255, and of all pixels.
_COLOURED, _COLOURED_SHARE = 96, 1e-3
GRAY_PICTURE, COLOUR_PICTURE = "gray picture", "colour picture"


@dataclass(frozen=True)
class MaskCounts:
    """What one mask holds.

    Attributes:
        size_hw: height and width.
        kind: how it is stored, for a person; equal for masks stored alike.
        pixels: pixels of each value or class that is there.
        labels: pixels with no class, with one, and with two or more; None where values exclude each other.
        both: pixels that two classes share, for each pair that shares some; names in the order of the classes.
    """

    size_hw: tuple[int, int]
    kind: str
    pixels: Mapping[Key, int]
    labels: tuple[int, int, int] | None = None
    both: Mapping[tuple[Key, Key], int] = field(default_factory=dict)


class MaskReader(ABC):
    """Reads masks of one coding for counting."""

    @abstractmethod
    def stems(self, root: Path) -> list[str]:
        """Names of the masks below `root`."""

    @abstractmethod
    def files(self, root: Path, stem: str) -> list[Path]:
        """The files of a mask."""

    @abstractmethod
    def count(self, root: Path, stem: str, like: Path | None = None) -> MaskCounts:
        """Decode a mask and count it.

        Args:
            like: its image, beside which a volume must lie.

        Raises:
            ValueError: names the file and what is wrong with it.
        """

    def values(self, root: Path, stem: str) -> np.ndarray | None:
        """(H, W) values of a mask that holds gray levels, else None."""
        return None

    def channels(self, root: Path, stem: str) -> np.ndarray | None:
        """(H, W, 1) gray levels or (H, W, 3) colours of a mask, else None."""
        values = self.values(root, stem)
        return None if values is None else values[..., None]

    def marks(self, root: Path, stem: str) -> dict[Key, np.ndarray]:
        """(H, W) bool of each value or class that a mask holds, to draw it; of many the first."""
        values = self.values(root, stem)
        if values is None:
            return {}
        return {int(value): values == value for value in np.unique(values)[:_MOST_DRAWN]}


def open_reader(coding: Coding, codec: Codec | None = None) -> MaskReader:
    """The reader of a coding.

    Args:
        codec: reads classes that are held each for itself; default one that `coding` describes.
    """
    if coding.per_class:
        return _ClassPlanes(codec or open_codec({"name": coding.codec, **coding.options}, _format(coding)))
    if coding.codec in ("index_png", "palette_png", "color_png"):
        return _PngValues(in_colours=coding.codec == "color_png")
    if coding.codec == "threshold":
        return _GrayPictures(coding.options)
    return _CodecValues({"name": coding.codec, **coding.options})


def count_values(values: np.ndarray) -> dict[Any, int]:
    """Pixels of each value of an (H, W) array of whole numbers."""
    flat = values.ravel()
    changes = flat[1:] != flat[:-1]
    if np.count_nonzero(changes) * _SHORT_RUNS > flat.size:
        found, counts = np.unique(flat, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    # Masks are made of runs, of which there are some thousands: 0.1 ms for 512x1024 pixels, half of cv2.calcHist.
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    lengths = np.diff(starts, append=flat.size)
    if flat.dtype == np.uint8:
        of_each = np.bincount(flat[starts], weights=lengths)
        return {int(value): int(of_each[value]) for value in np.flatnonzero(of_each)}
    found, which = np.unique(flat[starts], return_inverse=True)
    sums = np.bincount(which, weights=lengths).astype(np.int64)
    return dict(zip(found.tolist(), sums.tolist(), strict=True))


class _PngValues(MaskReader):
    """Numbers or colours in PNG files."""

    def __init__(self, in_colours: bool) -> None:
        self.in_colours = in_colours

    def stems(self, root: Path) -> list[str]:
        return list(find_files(root, [".png"]))

    def files(self, root: Path, stem: str) -> list[Path]:
        return existing([path_of(root, stem, ".png")])

    def count(self, root: Path, stem: str, like: Path | None = None) -> MaskCounts:
        png = read_png(path_of(root, stem, ".png"))
        pixels, kind = png.pixels, kind_of(png)
        if not self.in_colours and pixels.ndim == 2:
            return MaskCounts(pixels.shape, kind, count_values(pixels))
        if pixels.ndim == 2:
            shown = count_values(pixels)
            palette = png.palette if png.palette is not None else _grays(png.bits)
            counts: dict[Key, int] = {}
            for value, number in shown.items():
                key = _text(tuple(palette[value].tolist())) if value < len(palette) else f"beyond palette: {value}"
                counts[key] = counts.get(key, 0) + number
            return MaskCounts(pixels.shape, kind, counts)
        return MaskCounts(pixels.shape[:2], kind, _count_colours(pixels))

    def values(self, root: Path, stem: str) -> np.ndarray | None:
        pixels = read_png(path_of(root, stem, ".png")).pixels
        return pixels if pixels.ndim == 2 and not self.in_colours else None

    def marks(self, root: Path, stem: str) -> dict[Key, np.ndarray]:
        if not self.in_colours:
            return super().marks(root, stem)
        codes = _codes(self._colours(root, stem))
        return {_color_key(code): codes == code for code in np.unique(codes)[:_MOST_DRAWN].tolist()}

    def channels(self, root: Path, stem: str) -> np.ndarray | None:
        return self._colours(root, stem) if self.in_colours else super().channels(root, stem)

    def _colours(self, root: Path, stem: str) -> np.ndarray:
        """(H, W, 3) of 8 bits."""
        png = read_png(path_of(root, stem, ".png"))
        palette = png.palette if png.palette is not None else _grays(png.bits)
        return _eight_bits(png.pixels[..., :3] if png.pixels.ndim == 3 else palette[png.pixels])


class _GrayPictures(MaskReader):
    """Gray levels of any picture; of colours the brightest channel, as the codec `threshold` takes them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.codec = open_codec({"name": "threshold", **options}, MaskFormat.binary())

    def stems(self, root: Path) -> list[str]:
        return self.codec.stems(root)

    def files(self, root: Path, stem: str) -> list[Path]:
        return self.codec.files(root, stem)

    def count(self, root: Path, stem: str, like: Path | None = None) -> MaskCounts:
        picture = self._picture(root, stem)
        values = _brightness(picture)
        return MaskCounts(values.shape, COLOUR_PICTURE if _is_coloured(picture) else GRAY_PICTURE, count_values(values))

    def values(self, root: Path, stem: str) -> np.ndarray:
        return _brightness(self._picture(root, stem))

    def marks(self, root: Path, stem: str) -> dict[Key, np.ndarray]:
        return {255: self.codec.read(root, stem)[..., 0] == 1}

    def _picture(self, root: Path, stem: str) -> np.ndarray:
        files = self.files(root, stem)
        if not files:
            raise ValueError(f"{root / stem}: no such mask.")
        return read_image_file(files[0], gray=None)


class _CodecValues(MaskReader):
    """Numbers that a codec reads: a class for each number makes planes hold what files hold."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.codec = open_codec(spec, MaskFormat.multiclass(range(256)))
        self._spec = spec

    def stems(self, root: Path) -> list[str]:
        return self.codec.stems(root)

    def files(self, root: Path, stem: str) -> list[Path]:
        return self.codec.files(root, stem)

    def count(self, root: Path, stem: str, like: Path | None = None) -> MaskCounts:
        plane = self.values(root, stem)
        if like is not None:
            self.codec.check_like(root, stem, like)
        return MaskCounts(plane.shape, self.codec.name, count_values(plane))

    def values(self, root: Path, stem: str) -> np.ndarray:
        try:
            return self.codec.read(root, stem)[..., 0]
        except ValueError:
            return self._wide.read(root, stem)[..., 0]

    @cached_property
    def _wide(self) -> Codec:
        """For numbers of 16 bits, of which 65535 is *ignored*, which planes hold as 65535; takes a second to open."""
        return open_codec({**self._spec, "ignored_values": [65535]}, MaskFormat.multiclass(range(65535)))


class _ClassPlanes(MaskReader):
    """Classes that are each held for itself."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.names = codec.format.names

    def stems(self, root: Path) -> list[str]:
        return self.codec.stems(root)

    def files(self, root: Path, stem: str) -> list[Path]:
        return self.codec.files(root, stem)

    def count(self, root: Path, stem: str, like: Path | None = None) -> MaskCounts:
        planes = self.codec.read(root, stem)
        if like is not None:
            self.codec.check_like(root, stem, like)
        return count_planes(planes, self.names, self.codec.name)

    def marks(self, root: Path, stem: str) -> dict[Key, np.ndarray]:
        planes = self.codec.read(root, stem)
        return {name: marks for c, name in enumerate(self.names) if (marks := planes[..., c] == 1).any()}


def count_planes(planes: np.ndarray, names: tuple[str, ...], kind: str) -> MaskCounts:
    """Counts of (H, W, C) planes of 0, 1 and ignored."""
    there = []
    for c in range(len(names)):
        # Copied first: what follows is ten times as fast on pixels that lie side by side.
        marks = np.ascontiguousarray(planes[..., c]) == 1
        if len(names) <= _FEW_CLASSES or marks.any():
            there.append((c, marks))
    if len(there) > _MOST_BITS:
        raise ValueError(f"{len(there)} classes in one image: at most {_MOST_BITS} can be compared with each other.")
    bits = next(dtype for dtype in (np.uint8, np.uint16, np.uint64) if len(there) <= 8 * np.dtype(dtype).itemsize)
    codes = np.zeros(planes.shape[:2], bits)
    for bit, (_, marks) in enumerate(there):
        codes |= np.left_shift(marks.view(np.uint8), bit, dtype=bits)
    classes = [c for c, _ in there]
    pixels: dict[Key, int] = {}
    labels = [0, 0, 0]
    both: dict[tuple[Key, Key], int] = {}
    for code, number in count_values(codes).items():
        held = [names[c] for bit, c in enumerate(classes) if code >> bit & 1]
        labels[min(len(held), 2)] += number
        for first, name in enumerate(held):
            pixels[name] = pixels.get(name, 0) + number
            for other in held[first + 1 :]:
                both[name, other] = both.get((name, other), 0) + number
    return MaskCounts(planes.shape[:2], kind, pixels, (labels[0], labels[1], labels[2]), both)


def _format(coding: Coding) -> MaskFormat:
    assert coding.classes is not None
    return MaskFormat.multilabel(coding.classes)


def _count_colours(pixels: np.ndarray) -> dict[Key, int]:
    return {_color_key(code): number for code, number in count_values(_codes(pixels)).items()}


def _codes(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint32, one number for each colour of (H, W, 3 or 4) pixels; transparency is left out."""
    import cv2

    rgba = cv2.cvtColor(np.ascontiguousarray(_eight_bits(pixels)[..., :3]), cv2.COLOR_RGB2RGBA)
    return rgba.view("<u4")[..., 0]


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _brightness(picture: np.ndarray) -> np.ndarray:
    """(H, W) of the brightest channel."""
    if picture.shape[2] == 1:
        return picture[..., 0]
    channels = np.ascontiguousarray(np.moveaxis(picture, 2, 0))
    return channels.max(axis=0)


def _is_coloured(picture: np.ndarray) -> bool:
    """Whether channels differ by more than compression makes them, in more than a stray pixel of a thousand."""
    if picture.shape[2] == 1:
        return False
    small = picture[:: max(1, picture.shape[0] // 256), :: max(1, picture.shape[1] // 256)].astype(np.int32)
    differ = small.max(axis=2) - small.min(axis=2) > _COLOURED
    return bool(differ.mean() > _COLOURED_SHARE)


def _color_key(code: int) -> str:
    return _text((code & 255, code >> 8 & 255, code >> 16 & 255))


def _grays(bits: int) -> np.ndarray:
    levels = np.linspace(0, 255, 2 ** min(bits, 8)).astype(np.uint8)
    return np.repeat(levels[:, None], 3, axis=1)


def _text(color: tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
