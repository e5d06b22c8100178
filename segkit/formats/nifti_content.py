"""Bytes of a NIfTI file, as many as its header declares and no more.

A header of 348 bytes can name terabytes, and a packed stream can unfold to a thousand times its size. So sizes are
compared with what the file can hold before memory is asked for, and what lies behind the voxels is read to a limit.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

# Room for header extensions: DICOM headers and XML of some hundred KiB.
_MAX_START = 2**26
# What may lie behind the voxels without a meaning.
_MAX_REST = 2**24
# Deflate shrinks to 1/1032 at most (https://zlib.net/zlib_tech.html).
_MAX_GROWTH = 1040
# Size of the header -> where it says at which byte voxels begin, and how (nifti1.h, nifti2.h).
_STARTS = {348: (108, "f"), 540: (168, "q")}


def check_nifti_start(path: Path) -> None:
    """Refuse a header after which other things than voxels would be read without bound.

    Raises:
        ValueError: names the file.
    """
    try:
        with _opened(path) as stream:
            header = stream.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: no readable NIfTI volume ({error}). Restore the file or leave it out.") from None
    for order in "<>":
        size = struct.unpack_from(f"{order}i", header.ljust(4, b"\0"))[0]
        if size in _STARTS and len(header) >= size:
            position, kind = _STARTS[size]
            start = struct.unpack_from(order + kind, header, position)[0]
            if not (math.isfinite(start) and 0 <= start <= _MAX_START):
                raise ValueError(
                    f"{path}: the header says that voxels begin at byte {start:g}, expected at most {_MAX_START}. "
                    "Restore the file or leave it out."
                )
            return


def read_voxels(path: Path, size: int) -> bytes:
    """The first `size` bytes; a compressed file is read to its end, where its checksum stands.

    Raises:
        ValueError: names the file: cut short, damaged, or larger than it declares.
    """
    try:
        stored, packed = path.stat().st_size, _is_packed(path)
        if size > stored * (_MAX_GROWTH if packed else 1) + 4096 * packed:
            raise ValueError(
                f"{path}: is cut short (its {stored} bytes hold no {size}). Restore the file or leave it out."
            )
        with _opened(path) as stream:
            content = stream.read(size)
            # Not through nibabel: it stops before the checksum, and a damaged file becomes other labels.
            rest = _length_of_rest(stream) if packed else 0
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the voxels cannot be decoded ({error}). Restore the file or leave it out.") from None
    except MemoryError:
        raise ValueError(f"{path}: {size} bytes of voxels are more than there is memory for.") from None
    if len(content) < size:
        raise ValueError(f"{path}: is cut short ({len(content)} of {size} bytes). Restore the file or leave it out.")
    if rest > _MAX_REST:
        raise ValueError(
            f"{path}: goes on for more than {_MAX_REST} bytes behind the voxels that its header declares. "
            "Restore the file or leave it out."
        )
    return content


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if _is_packed(path) else path.open("rb")  # type: ignore[return-value]


def _length_of_rest(stream: BinaryIO) -> int:
    """Bytes up to the end of the stream, or a little more than allowed."""
    length = 0
    while length <= _MAX_REST:
        part = len(stream.read(2**20))
        if not part:
            break
        length += part
    return length
