"""Regions as run lengths: polygons, circles and masks drawn by pycocotools, after what it would not survive is refused.

A region is pycocotools' dictionary `{"size": [height, width], "counts": bytes}`: lengths of the runs without and with
the region in turn, column by column. It takes as much memory as its outline, so that many wait until they are drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Region = dict[str, Any]

# The bits of a character in compressed run lengths: five of a number, and whether more of it follows.
_FIRST_CHARACTER = 48
_MORE, _SIGN, _BITS = 32, 16, 5
# 2**30 pixels need 31 bits with a sign.
_MAX_CHARACTERS = 7


def polygons_region(parts: Any, size_hw: tuple[int, int]) -> Region:
    """The region inside any of some polygons `[x0, y0, x1, y1, ...]`; (0, 0) is the corner of the first pixel.

    Raises:
        ValueError: says what is wrong with a polygon; the caller names the file.
    """
    from pycocotools import mask

    if not isinstance(parts, list) or not parts:
        raise ValueError("has no polygon (a box alone marks no pixels)")
    flat = [_checked_polygon(part, size_hw).tolist() for part in parts]
    return mask.merge(mask.frPyObjects(flat, *size_hw))


def circle_region(center_xy: Sequence[float], rim_xy: Sequence[float], size_hw: tuple[int, int]) -> Region:
    """The pixels whose centres lie in the circle around a point through another."""
    _near(np.array([center_xy, rim_xy], np.float64), size_hw)
    (x, y), (height, width), radius = center_xy, size_hw, math.dist(center_xy, rim_xy)
    columns = np.arange(width)
    squares = radius**2 - (columns + 0.5 - x) ** 2
    columns, half = columns[squares >= 0], np.sqrt(squares[squares >= 0])
    begin = np.ceil(y - half - 0.5).clip(0, height).astype(np.int64)
    end = (np.floor(y + half - 0.5) + 1).clip(0, height).astype(np.int64)
    met = begin < end
    return _region_of((columns * height + begin)[met], (columns * height + end)[met], size_hw)


def mask_region(mask: np.ndarray) -> Region:
    """The region of an (H, W) bool mask."""
    from pycocotools import mask as run_lengths

    return run_lengths.encode(np.asfortranarray(mask.view(np.uint8)))


def label_regions(labels: np.ndarray, count: int) -> list[Region]:
    """The regions of 1, ..., `count` in an (H, W) map of whole numbers, in one pass over the map."""
    flat = labels.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    order = np.argsort(flat[starts], kind="stable")
    bounds = np.searchsorted(flat[starts][order], np.arange(1, count + 2))
    regions = []
    for first, last in itertools.pairwise(bounds):
        runs = order[first:last]
        regions.append(_region_of(starts[runs], starts[runs] + lengths[runs], labels.shape))
    return regions


def runs_region(given: Any, size_hw: tuple[int, int]) -> Region:
    """The region of run lengths as JSON holds them: `counts` as a list, or compressed into text.

    Raises:
        ValueError: says what is wrong with them; the caller names the file.
    """
    from pycocotools import mask

    height, width = size_hw
    size, counts = given.get("size"), given.get("counts")
    if size != [height, width]:
        raise ValueError(f"has run lengths for the size {size}, but the image is [{height}, {width}]")
    if isinstance(counts, list):
        runs = _numbers(counts, "run lengths", "iu")
    elif isinstance(counts, str):
        runs = _uncompressed(counts)
    else:
        raise ValueError(f"has run lengths of the type {type(counts).__name__}, expected a list or text")
    # pycocotools trusts them, and reads or writes beyond its memory where they lie.
    if runs.min(initial=0) < 0 or runs.max(initial=0) > height * width or int(runs.sum()) != height * width:
        raise ValueError(f"has run lengths that do not add up to its {height} x {width} pixels")
    if isinstance(counts, str):
        return {"size": size, "counts": counts.encode("ascii")}
    return mask.frPyObjects({"size": size, "counts": counts}, height, width)


def area(region: Region) -> int:
    """Number of pixels."""
    from pycocotools import mask

    return int(mask.area(region))


def draw(regions: Sequence[Region]) -> np.ndarray:
    """(H, W) bool of pixels in any of the regions, at least one."""
    from pycocotools import mask

    return mask.decode(mask.merge(list(regions))).view(bool)


def to_json(region: Region) -> dict[str, Any]:
    """`segmentation`, `bbox` and `area` of an annotation in COCO files."""
    from pycocotools import mask

    return {
        "segmentation": {"size": [int(side) for side in region["size"]], "counts": region["counts"].decode("ascii")},
        "bbox": [int(side) for side in mask.toBbox(region)],
        "area": area(region),
    }


def _region_of(begin: np.ndarray, end: np.ndarray, size_hw: tuple[int, ...]) -> Region:
    """The region of runs [begin, end) in the order of columns."""
    from pycocotools import mask

    height, width = size_hw
    counts = np.diff(np.stack([begin, end], axis=1).ravel(), prepend=0, append=height * width)
    return mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def _checked_polygon(part: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(2 N,) float64 of a polygon that can be drawn."""
    if not isinstance(part, list):
        raise ValueError(f"has {part!r:.40} for a polygon, expected a list [x, y, x, y, ...]")
    points = _numbers(part, "a polygon", "iuf").astype(np.float64)
    if len(points) % 2:
        raise ValueError(f"has a polygon of {len(points)} numbers, expected an x and a y for each point")
    if len(points) < 6:
        raise ValueError(f"has a polygon of {len(points) // 2} points, expected at least 3")
    if not np.isfinite(points).all():
        raise ValueError("has a polygon with NaN or infinite coordinates")
    xy = _near(points.reshape(-1, 2), size_hw)
    # pycocotools keeps five points for each pixel that an outline passes: a file of 1 MB could ask for all memory.
    length = np.abs(np.diff(xy, axis=0, append=xy[:1])).max(1).sum()
    height, width = size_hw
    if length > 2 * (height + 1) * (width + 1) + 12 * max(size_hw):
        raise ValueError(f"has a polygon of {length:.0f} pixels' length, longer than all edges of its image")
    return points


def _near(xy: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, 2) points if none is further from the image than its longer side, beyond which drawing costs memory."""
    margin = max(size_hw)
    far = ((xy < -margin) | (xy > np.array(size_hw[::-1]) + margin)).any(1)
    if far.any():
        height, width = size_hw
        raise ValueError(f"has the point {xy[far][0].tolist()}, far outside its {height} x {width} pixels")
    return xy


def _numbers(given: list, what: str, kinds: str) -> np.ndarray:
    """(N,) array of numbers, and nothing but numbers: NumPy would also take texts that look like them."""
    try:
        numbers = np.asarray(given)
    except (ValueError, OverflowError):
        numbers = np.empty(0, object)
    if given and (numbers.ndim != 1 or numbers.dtype.kind not in kinds):
        raise ValueError(f"has something other than numbers in {what}")
    return numbers if given else np.empty(0, np.int64)


def _uncompressed(text: str) -> np.ndarray:
    """(N,) int64 run lengths of COCO's compressed text: from the third on, differences to the last but one."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    except UnicodeEncodeError:
        codes = np.array([-1])
    if codes.min(initial=0) < 0 or codes.max(initial=0) >= 64 or (len(codes) and codes[-1] & _MORE):
        raise ValueError("has compressed run lengths that are cut short or damaged")
    ends = np.flatnonzero((codes & _MORE) == 0)
    if not len(ends):
        return np.empty(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > _MAX_CHARACTERS:
        raise ValueError("has compressed run lengths that are damaged: a number is too long")
    place = np.arange(len(codes)) - np.repeat(starts, sizes)
    runs = np.add.reduceat((codes & (_MORE - 1)) << (_BITS * place), starts)
    runs -= np.where(codes[ends] & _SIGN, np.int64(1) << (_BITS * sizes), 0)
    # The first two stand as they are, and so does the third: pycocotools compares from the fourth on.
    for chain in (slice(1, None, 2), slice(2, None, 2)):
        runs[chain] = runs[chain].cumsum()
    return runs
