"""Images that a data set holds twice: the same pixels, or the same picture stored in another way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

# Of 255 bits. Measured on CamVid, DSB2018, CHASE_DB1, BraTS slices, COCO and hippocampus volumes: a copy of half the
# size, a tenth brighter or saved as JPEG of quality 60 differs in at most 21 bits (27 in images of 51x35 pixels), two
# different images of two parts in at least 40. Pictures that have nothing in common differ in half of them.
NEAR_BITS = 32
_GRID = 32  # the picture is averaged to so many rows and columns,
_FREQUENCIES = 16  # of whose cosine transform so many rows and columns give one bit each, all but the mean
_BITS = _FREQUENCIES**2 - 1
# Pixels per side that are looked at: each cell of the grid is the average of at least 16 of them.
_SAMPLES = 128
# Coefficients below this share of all contrast are rounding errors, whose sign says nothing.
_FAINT = 1e-4
# Bytes, which the second checksum finds in the processor's cache.
_CHUNK = 2**18
# Pairs compared at once: as float32 they stay in the processor's cache.
_ROWS, _COLUMNS = 512, 2048


@dataclass(frozen=True)
class Fingerprint:
    """What two images are compared by.

    Attributes:
        pixels: shape, dtype and checksums of all pixels: equal where the images are.
        hash: 32 bytes, of which few bits differ between pictures that look alike; None where the picture has too
            little in it to tell, as a black frame or an empty slice has.
    """

    pixels: tuple
    hash: bytes | None


@dataclass(frozen=True)
class Duplicate:
    """Two images of which one says nothing that the other does not.

    Attributes:
        kind: `exact` for equal pixels, `near` for the same picture.
        a, b: keys of the images; `a` is in the earlier part.
        parts: the parts that hold `a` and `b`.
        bits: how many bits of the hash differ; 0 for equal pixels.
    """

    kind: Literal["exact", "near"]
    a: Hashable
    b: Hashable
    parts: tuple[str, str]
    bits: int = 0


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Fingerprint of an (H, W, B) image of uint8, uint16 or float32."""
    # Imported here: it costs 0.1 s. Its two checksums run at the speed of memory, cryptographic ones at a thirtieth of
    # it, which is the time of decoding the JPEG.
    import imagecodecs

    data: Any = np.ascontiguousarray(image).data.cast("B")  # any buffer, where imagecodecs names bytes
    crc, adler = 0, 1
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        crc, adler = imagecodecs.deflate_crc32(chunk, crc), imagecodecs.deflate_adler32(chunk, adler)
    return Fingerprint((image.shape, image.dtype.str, crc, adler), _picture_hash(image))


def find_duplicates(fingerprints: Mapping, part_of: Mapping[Hashable, str]) -> list[Duplicate]:
    """Images that occur twice: those in two parts first, since they make scores better than they are.

    Of equal images each is paired with the first. An image of a later part that is near to images of an earlier part is
    paired with the nearest of them. Near images within one part are not reported: frames of a film are meant to be so.

    Args:
        fingerprints: `Fingerprint` of each image, by any key.
        part_of: the part (train, val, test) of each key; parts rank in the order in which they occur here.
    """
    exact, firsts = _exact(fingerprints, part_of)
    across = [pair for pair in exact if pair.parts[0] != pair.parts[1]]
    within = [pair for pair in exact if pair.parts[0] == pair.parts[1]]
    return across + list(_near(firsts, fingerprints, part_of)) + within


def _picture_hash(image: np.ndarray) -> bytes | None:
    """Signs of the low frequencies of the gray picture (perceptual hash by cosine transform: Zauner, 2010).

    Differences of neighbouring cells, a common choice, fail where much of the picture is black: copies of nuclei under
    a microscope differed in 120 of 256 bits, retinas of two people in 15.
    """
    gray = _small_gray(image)
    waves = cv2.dct(gray)[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    contrast = float(np.linalg.norm(waves))
    # Less than one part in 255: an even frame, whose noise is not a picture.
    if contrast <= _GRID * max(float(np.abs(gray).max()), 1e-30) / 255:
        return None
    clear = np.abs(waves) > _FAINT * contrast
    if np.count_nonzero(~clear) > NEAR_BITS // 2:
        return None
    return np.packbits((waves > 0) & clear).tobytes()


def _small_gray(image: np.ndarray) -> np.ndarray:
    """(32, 32) float32 gray of the first one or three bands, averaged over areas of evenly spaced pixels."""
    rows, columns = (max(1, size // _SAMPLES) for size in image.shape[:2])
    centres = image[rows // 2 :, columns // 2 :]
    height, width = -(-centres.shape[0] // rows), -(-centres.shape[1] // columns)
    if image.shape[2] > 4:  # which OpenCV does not take at once
        picked = np.ascontiguousarray(centres[::rows, ::columns, :3])
    else:
        picked = cv2.resize(centres, (width, height), interpolation=cv2.INTER_NEAREST)
    picked = picked.reshape(height, width, -1)
    gray = cv2.cvtColor(picked[..., :3], cv2.COLOR_RGB2GRAY) if picked.shape[2] >= 3 else picked[..., 0]
    return cv2.resize(gray.astype(np.float32), (_GRID, _GRID), interpolation=cv2.INTER_AREA)


def _exact(fingerprints: Mapping, part_of: Mapping[Hashable, str]) -> tuple[list[Duplicate], list[Hashable]]:
    """Pairs of equal images, and the first image of every group of equal ones."""
    rank = _ranks(part_of)
    groups: dict[Fingerprint, list[Hashable]] = defaultdict(list)
    for key in sorted(fingerprints, key=lambda key: rank[part_of[key]]):
        groups[fingerprints[key]].append(key)
    pairs = [
        Duplicate("exact", first, other, (part_of[first], part_of[other]))
        for first, *others in groups.values()
        for other in others
    ]
    return pairs, [group[0] for group in groups.values()]


def _near(keys: list[Hashable], fingerprints: Mapping, part_of: Mapping[Hashable, str]) -> Iterator[Duplicate]:
    """Each image of a later part with the nearest of the earlier parts, where that is near."""
    hashed: dict[str, list[Hashable]] = {part: [] for part in _ranks(part_of)}
    for key in keys:
        if fingerprints[key].hash is not None:
            hashed[part_of[key]].append(key)
    earlier: list[Hashable] = []
    for later in hashed.values():
        if earlier and later:
            nearest, bits = _nearest(_signs(later, fingerprints), _signs(earlier, fingerprints))
            for key, other, distance in zip(later, nearest, bits, strict=True):
                if distance <= NEAR_BITS:
                    pair = earlier[other]
                    yield Duplicate("near", pair, key, (part_of[pair], part_of[key]), int(distance))
        earlier = earlier + later


def _ranks(part_of: Mapping[Hashable, str]) -> dict[str, int]:
    return {part: rank for rank, part in enumerate(dict.fromkeys(part_of.values()))}


def _signs(keys: list[Hashable], fingerprints: Mapping) -> np.ndarray:
    """(N, 255) int8 of +1 and -1, low frequencies first."""
    packed = np.frombuffer(b"".join(fingerprints[key].hash for key in keys), np.uint8).reshape(len(keys), -1)
    signs = np.unpackbits(packed, axis=1)[:, :_BITS].view(np.int8)
    return 2 * signs - 1


def _nearest(later: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of `later`, the nearest row of `earlier` and its distance in bits, more than `NEAR_BITS` if none is.

    Products of signs count equal bits less unequal ones, so that all pairs are one matrix product. Rows that differ in
    few bits differ in no more of the first half, which alone is compared at first.
    """
    half = _BITS // 2
    nearest, bits = np.zeros(len(later), np.int64), np.full(len(later), _BITS)
    starts = range(0, len(earlier), _COLUMNS)
    columns = [np.ascontiguousarray(earlier[start : start + _COLUMNS, :half].T, np.float32) for start in starts]
    for top in range(0, len(later), _ROWS):
        rows = later[top : top + _ROWS, :half].astype(np.float32)
        for number, block in enumerate(columns):
            equal = rows @ block
            if equal.max() < half - 2 * NEAR_BITS:
                continue
            a, b = np.nonzero(equal >= half - 2 * NEAR_BITS)
            a, b = a + top, b + starts[number]
            distance = np.count_nonzero(later[a] != earlier[b], axis=1)
            # The nearest is written last, so it stays.
            order = np.argsort(-distance, kind="stable")
            a, b, distance = a[order], b[order], distance[order]
            better = distance < bits[a]
            nearest[a[better]], bits[a[better]] = b[better], distance[better]
    return nearest, bits
