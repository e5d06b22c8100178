"""Reads thousands of damaged files and says which of them were not refused as they should be.

Run in a process of its own, `python -m tests.mutated_files GROUP COUNT`, because what is looked for may kill it. A read
may give an array of at most the pixels allowed, or raise a ValueError that names the file. It may neither raise
anything else, nor take longer than `_TIMEOUT_S`, nor more memory than 4 times the pixels and `_SLACK_MIB`.
`python -m tests.mutated_files GROUP COUNT NUMBER` reads one of them, without a net.
"""

from __future__ import annotations

import faulthandler
import gzip
import io
import json
import os
import re
import resource
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import nibabel
import numpy as np
import tifffile
from PIL import Image

from segkit.data.images import ImageRef, read_image
from segkit.formats.codec import Codec
from segkit.formats.codecs import CODECS, open_codec
from segkit.formats.mask_format import MaskFormat

# Small, so that a read of a large picture stands out.
_LIMIT = int(os.environ.get("MUTATED_LIMIT", 2**18))
_TIMEOUT_S = 20
# What decoders need beside pixels (tables, buffers, threads), and what the allocator keeps.
_SLACK_MIB = 48
_GROUPS = ("png", "photo", "plain", "tiff", "volume", "codec")
_SIZE_HW = (11, 14)
_EXTREMES = [0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 1]
_EXTREMES += [2**40, 2**63 - 1, 2**64 - 1]
# Where parts of a file begin: chunks of PNG, segments of JPEG, boxes, directories.
_MARKS = re.compile(
    rb"IHDR|PLTE|tRNS|eXIf|IDAT|IEND|VP8.|ALPH|EXIF|ftyp|jp2.|ihdr|colr|\xff[\x4f-\xfe]|[,!]|[{}\[\]\"]"
)


@dataclass(frozen=True)
class Wrapping:
    """What keeps damage from the decoder: compression, and check sums."""

    unpack: Callable[[bytes], bytes]
    pack: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """One valid file and how it is read."""

    name: str
    content: bytes
    path: Path
    read: Callable[[], np.ndarray]
    names: tuple[str, ...]
    wrapping: Wrapping | None = None


def cases(group: str, root: Path) -> list[Case]:
    """The valid files of a group, written below `root`."""
    if group == "codec":
        return [case for name in CODECS for case in _codec_cases(name, root / name)]
    return [_image_case(name, content, root) for name, content in _IMAGES[group]()]


def mutated(case: Case, others: list[Case], rng: np.random.Generator) -> tuple[bytes, str]:
    """The content of a file damaged in one to three ways, and in which."""
    content, said = case.content, []
    inside = case.wrapping is not None and rng.random() < 0.8
    if inside:
        content = case.wrapping.unpack(content)
        said.append("inside:")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way = _WAYS[rng.integers(len(_WAYS))]
        content = way(content, others[rng.integers(len(others))].content, rng)
        said.append(way.__name__[1:])
    return case.wrapping.pack(content) if inside else content, " ".join(said)


def main(group: str, count: int, only: int | None = None) -> None:
    """Read `count` damaged files of a group and print what was wrong as JSON."""
    os.environ["SEGKIT_MAX_PIXELS"] = str(_LIMIT)
    faults, outcomes = [], {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        files = cases(group, Path(folder))
        for case in files:
            case.path.write_bytes(case.content)
            case.read()
        base = _peak_mib()
        progress = os.open(os.environ.get("MUTATED_PROGRESS", os.devnull), os.O_WRONLY | os.O_CREAT)
        for number in range(count) if only is None else [only]:
            case, rng = files[number % len(files)], np.random.default_rng([4, number])
            content, said = mutated(case, files, rng)
            os.pwrite(progress, f"{number:8d} {case.name} {said}".ljust(120).encode(), 0)
            case.path.write_bytes(content)
            # Readers that keep what they decoded look at the time of the file.
            os.utime(case.path, ns=(number, number))
            if only is None:
                faulthandler.dump_traceback_later(_TIMEOUT_S, exit=True)
            outcome, fault = _outcome(case, base, only is not None)
            outcomes[outcome] += 1
            if fault:
                faults.append(f"{number}: {case.name} ({said}): {fault}")
                base = max(base, _peak_mib() - _SLACK_MIB)
            case.path.write_bytes(case.content)
            os.utime(case.path, ns=(1, 1))
        faulthandler.cancel_dump_traceback_later()
    shares = {outcome: number / count for outcome, number in outcomes.items()}
    print(json.dumps({"read": count, "shares": shares, "peak_mib": _peak_mib() - base, "faults": faults}))


def _outcome(case: Case, base: float, loud: bool) -> tuple[str, str | None]:
    """Whether a file was read or refused, and what was wrong with that, if anything."""
    outcome, pixels, fault = "refused", 4 * _LIMIT, None
    try:
        array = case.read()
        outcome, pixels = "read", array.nbytes
        if array.ndim != 3 or not 0 < array.shape[0] * array.shape[1] <= _LIMIT:
            fault = f"an array of shape {array.shape}"
    except ValueError as error:
        if loud:
            print(repr(error))
        if not any(name in str(error) for name in case.names):
            fault = f"the file is not named: {error!r}"
        if isinstance(error.__context__, MemoryError):
            fault = f"more memory was asked for than there is: {error!r}"
    except BaseException as error:
        if loud:
            raise
        fault = f"{type(error).__name__}: {error}"
    peak = _peak_mib()
    if fault is None and peak > base + _SLACK_MIB + 4 * pixels / 2**20:
        fault = f"took {peak - base:.0f} MiB"
    return outcome, fault


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# Ways to damage a file ---------------------------------------------------------------------------------


def _truncate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _truncate_at_a_part(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    starts = [m.start() for m in _MARKS.finditer(content)] or [0]
    return content[: max(0, starts[rng.integers(len(starts))] + rng.integers(-4, 5))]


def _flip_bits(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 9) if content else 0):
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _flip_bits_of_the_header(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return _flip_bits(content[:64], other, rng) + content[64:]


def _overwrite(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([1, 2, 2, 4, 4, 8]))
    value = _EXTREMES[rng.integers(len(_EXTREMES))] & (2 ** (8 * size) - 1)
    start = int(rng.integers(max(1, len(content))))
    order = "little" if rng.random() < 0.5 else "big"
    return content[:start] + value.to_bytes(size, order) + content[start + size :]


def _overwrite_the_header(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return _overwrite(content[:64], other, rng) + content[64:]


def _declare_more(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The height or the width is made larger wherever it seems to stand, in one of the ways to write a number."""
    for size in rng.permutation(_SIZE_HW)[: rng.integers(1, 3)]:
        write = _NUMBERS[rng.integers(len(_NUMBERS))]
        more = int(rng.choice([40, 300, 2000, 16000, 65000, 10**6]))
        content = content.replace(write(int(size)), write(more), int(rng.integers(1, 3)))
    return content


def _splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return _truncate(content, other, rng) + other[rng.integers(len(other) + 1) :]


def _repeat(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(len(content) + 1, size=2))
    return content[:end] + content[start:end] * int(rng.integers(1, 20)) + content[end:]


def _zero(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(len(content) + 1, size=2))
    return content[:start] + bytes(int(end - start)) + content[end:]


def _remove(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) + 1))
    return content[:start] + content[start + int(rng.integers(1, 9)) :]


# Ways to write a number: PNG, JPEG; TIFF, NIfTI, GIF, BMP; WebP, which counts from 0; PNM, JSON.
_NUMBERS = (
    lambda n: (n & 0xFFFF).to_bytes(2, "big"),
    lambda n: n.to_bytes(4, "big"),
    lambda n: (n & 0xFFFF).to_bytes(2, "little"),
    lambda n: n.to_bytes(4, "little"),
    lambda n: (n - 1).to_bytes(3, "little"),
    lambda n: str(n).encode(),
)
_WAYS = (
    _declare_more,
    _declare_more,
    _declare_more,
    _truncate,
    _truncate_at_a_part,
    _flip_bits,
    _flip_bits,
    _flip_bits_of_the_header,
    _overwrite,
    _overwrite,
    _overwrite_the_header,
    _overwrite_the_header,
    _splice,
    _repeat,
    _zero,
    _remove,
)


def _unpack_png(content: bytes) -> bytes:
    """The same PNG with rows as they are before deflate."""
    return _map_chunks(content, lambda kind, data: zlib.decompress(data) if kind == b"IDAT" else data)


def _pack_png(content: bytes) -> bytes:
    """Packed rows and right check sums for as many chunks as are there."""
    return _map_chunks(content, lambda kind, data: zlib.compress(data) if kind == b"IDAT" else data)


def _map_chunks(content: bytes, change: Callable[[bytes, bytes], bytes]) -> bytes:
    parts, start = [content[:8]], 8
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if end > len(content):
            break
        kind = content[start + 4 : start + 8]
        data = change(kind, content[start + 8 : end - 4])
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
        start = end
    return b"".join((*parts, content[start:]))


_WRAPPINGS = {
    ".png": Wrapping(_unpack_png, _pack_png),
    ".gz": Wrapping(gzip.decompress, lambda content: gzip.compress(content, 1, mtime=0)),
}


# Valid files -------------------------------------------------------------------------------------------


def _image_case(name: str, content: bytes, root: Path) -> Case:
    path = root / name
    volume = ".nii" in name
    source = ImageRef(path, "z", 1) if volume else path
    return Case(name, content, path, lambda: read_image(source), (name,), _WRAPPINGS.get(path.suffix))


def _codec_cases(name: str, root: Path) -> list[Case]:
    codec = _open_any(name)
    rng = np.random.default_rng(3)
    planes = rng.integers(0, 2, (*_SIZE_HW, codec.format.num_planes)).astype(codec.format.dtype)
    stem = "case@z000" if name == "nifti" else "case"
    codec.write(root, stem, planes)
    codec.finish(root)
    paths = codec.files(root, stem)

    def read() -> np.ndarray:
        codec.stems(root)
        return codec.read(root, stem)

    names = tuple(path.name for path in paths)
    return [Case(f"{name}/{p.name}", p.read_bytes(), p, read, names, _WRAPPINGS.get(p.suffix)) for p in paths]


def _open_any(name: str) -> Codec:
    """The codec with masks of the first format that it holds."""
    names = ["background", "road", "car"]
    formats = (MaskFormat.multiclass(names), MaskFormat.multilabel(names[1:]), MaskFormat.binary())
    for format in formats:
        try:
            return open_codec(name, format)
        except ValueError as error:
            refused = error
    raise refused


def _picture(bands: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rows, columns = np.mgrid[: _SIZE_HW[0], : _SIZE_HW[1]]
    image = np.stack([(11 + 7 * band) * rows + 5 * columns for band in range(bands)], axis=2)
    return image.astype(dtype)[..., 0] if bands == 1 else image.astype(dtype)


def _pillow(kind: str, mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(_picture())
    picture = picture.quantize(7) if mode == "P" else picture.convert(mode)
    picture.save(file, kind, **options)
    return file.getvalue()


def _opencv(suffix: str, image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _png_images() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16"):
        yield f"{mode.replace(';', '')}.png", _pillow("png", mode)
    for bits in (1, 2, 4, 8):
        yield f"palette{bits}.png", _pillow("png", "P", bits=bits, transparency=1)
    yield "rgb16.png", _opencv(".png", _picture(3, np.uint16))
    yield "rgba16.png", _opencv(".png", _picture(4, np.uint16))
    yield "turned.png", _pillow("png", "RGB", exif=_exif(6))
    yield "text.png", _pillow("png", "L", icc_profile=bytes(200))


def _photo_images() -> Iterator[tuple[str, bytes]]:
    for mode in ("L", "RGB", "CMYK"):
        yield f"{mode}.jpg", _pillow("jpeg", mode, quality=50)
    yield "progressive.jpg", _pillow("jpeg", "RGB", progressive=True)
    yield "turned.jpg", _pillow("jpeg", "RGB", exif=_exif(8))
    yield "lossy.webp", _pillow("webp", "RGB", quality=50)
    yield "lossless.webp", _pillow("webp", "RGB", lossless=True)
    yield "alpha.webp", _pillow("webp", "RGBA", exif=_exif(3))
    for mode in ("L", "RGB"):
        yield f"{mode}.jp2", _pillow("jpeg2000", mode)
    yield "deep.j2k", imagecodecs.jpeg2k_encode(_picture(5, np.uint16), level=0)


def _plain_images() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"{mode}.bmp", _pillow("bmp", mode)
    yield "runs.bmp", _bmp_of_runs()
    yield "palette.gif", _pillow("gif", "P", interlace=0)
    yield "clear.gif", _pillow("gif", "P", interlace=1, transparency=2)
    for mode in ("1", "L", "RGB"):
        yield f"{mode}.ppm", _pillow("ppm", mode)
    yield "deep.pgm", _opencv(".pgm", _picture(1, np.uint16))
    yield "text.pgm", _opencv(".pgm", _picture(1), cv2.IMWRITE_PXM_BINARY, 0)
    yield "text.ppm", _opencv(".ppm", _picture(3), cv2.IMWRITE_PXM_BINARY, 0)
    yield "text.pbm", b"P1\n# drawn by hand\n3 2\n1 0 1\n0 1 0\n"
    yield "float.pfm", _opencv(".pfm", _picture(1, np.float32))


def _bmp_of_runs() -> bytes:
    rows = b"".join(b"%c%c\0\0" % (_SIZE_HW[1], row) for row in range(_SIZE_HW[0] - 1)) + b"\0\x03abc\0\x0b\x09\0\1"
    palette = bytes(range(256)) * 4
    header = struct.pack("<IiiHHIIiiII", 40, _SIZE_HW[1], _SIZE_HW[0], 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def _tiff_images() -> Iterator[tuple[str, bytes]]:
    rgb, many = _picture(), _picture(5, np.uint16)
    for compression in (None, "zlib", "lzw", "packbits", "jpeg", "zstd", "lzma", "webp", "png", "jpeg2000"):
        yield f"{compression}.tif", _tiff(rgb, photometric="rgb", compression=compression, rowsperstrip=4)
    yield "planar.tif", _tiff(np.moveaxis(many, 2, 0), photometric="minisblack", planarconfig="separate")
    yield "interleaved.tif", _tiff(many, photometric="minisblack", planarconfig="contig", predictor=True, compression=8)
    yield "pages.tif", _tiff(np.moveaxis(many, 2, 0), photometric="minisblack", metadata=None)
    yield "tiled.tif", _tiff(rgb, photometric="rgb", tile=(16, 16), compression="lzw")
    yield "big.tif", _tiff(rgb, photometric="rgb", bigtiff=True, byteorder=">")
    yield "float.tif", _tiff(_picture(1, np.float32), compression="zlib", predictor=3)
    yield "bits.tif", _tiff(_picture(1) > 50, photometric="minisblack")
    yield "ome.ome.tif", _tiff(_picture(1), ome=True)
    yield "imagej.tif", _tiff(np.moveaxis(many, 2, 0), imagej=True, metadata={"axes": "CYX"})
    for mode in ("1", "P", "CMYK", "LA", "RGBA"):
        yield f"pillow_{mode}.tif", _pillow("tiff", mode)
    yield "fax.tif", _pillow("tiff", "1", compression="group4")
    yield "turned.tif", _pillow("tiff", "RGB", exif=_exif(5))


def _tiff(image: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    imagej, ome = options.pop("imagej", None), options.pop("ome", None)
    tifffile.imwrite(file, image, imagej=imagej, ome=ome, **options)
    return file.getvalue()


def _volume_images() -> Iterator[tuple[str, bytes]]:
    for dtype in (np.uint8, np.int16, np.float64):
        yield f"{np.dtype(dtype).name}.nii", _nifti(_picture(3, dtype))
        yield f"{np.dtype(dtype).name}.nii.gz", gzip.compress(_nifti(_picture(3, dtype)))
    yield "bands.nii.gz", gzip.compress(_nifti(_picture(6, np.float32).reshape(11, 14, 3, 2)))
    yield "scaled.nii", _nifti(_picture(3, np.int16), slope=2.5)
    yield "nifti2.nii", _nifti(_picture(3), nibabel.Nifti2Image)
    extended = nibabel.Nifti1Image(_picture(3), np.eye(4))
    extended.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made for a test"))
    yield "extended.nii", extended.to_bytes()


def _nifti(array: np.ndarray, make: type = nibabel.Nifti1Image, slope: float | None = None) -> bytes:
    image = make(array, np.eye(4), dtype=array.dtype)
    if slope is not None:
        image.header.set_slope_inter(slope, 1)
    return image.to_bytes()


_IMAGES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "png": _png_images,
    "photo": _photo_images,
    "plain": _plain_images,
    "tiff": _tiff_images,
    "volume": _volume_images,
}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:4]))
