"""From what a user names (files, folders, patterns) to images, each with a stem of its own."""

from __future__ import annotations

import glob
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from segkit.data.images import ImageRef, image_refs, join_bands
from segkit.data.reading import ImageReading
from segkit.formats.files import walk
from segkit.formats.volumes import join_series


@dataclass(frozen=True, slots=True)  # there may be a hundred thousand
class Input:
    """One image to predict.

    Attributes:
        image: where it lies.
        stem: name of its mask, the path below the input that the user gave, without suffix.
        parent: that input's folder; its name goes in front where stems collide.
    """

    image: ImageRef
    stem: str
    parent: Path


Broken = list[tuple[Path, str]]


def find_inputs(
    inputs: Iterable[str | Path], reading: ImageReading = ImageReading(), leave_out: Path | None = None
) -> tuple[list[Input], Broken]:
    """All images named by `inputs`, sorted within each, no file twice; and (file, reason) of unreadable volumes.

    A slice of a DICOM series stands for the whole series.

    Args:
        reading: across which axis volumes are cut (the first of several), and which files are the bands of one image.
        leave_out: the folder that predictions go to. What lies below it is no input, and images in it are refused,
            since masks would be written over them.

    Raises:
        ValueError: an input that is not there or holds no image, or two images that would share a mask.
    """
    _real.cache_clear()  # relative paths start at a folder that may have changed
    found: dict[tuple, Input] = {}
    broken: Broken = []
    named = {Path(given): given for given in inputs}
    # Before the files are looked at one by one: a thousand slices that a shell names are one series.
    paths = dict.fromkeys(join_series(named))
    for path in [*paths, *(path for path in named if path not in paths and path.parent not in paths)]:
        if path in named:
            members, faults = _members(named[path], reading.main_axis, leave_out)
        else:
            members, faults = _images([path], reading.main_axis, path.parent, any_suffix=True)
        if not members and not faults:
            raise ValueError(f"{path}: no images here.")
        broken += faults
        for member in members:
            image = member.image
            found.setdefault((_real(image.path.parent), image.path.name, image.axis, image.index), member)
    jobs = _with_bands(list(found.values()), reading)
    if leave_out is not None:
        masks = _real(leave_out)
        for item in jobs:
            if _real(item.parent) == masks:
                raise ValueError(
                    f"{item.image}: its mask would be written over it. Give another --out than {leave_out}."
                )
    return _apart(jobs), broken


def read_input_list(path: str | Path) -> list[str]:
    """Paths from a text file, or from standard input if `path` is `-`: one per line, as `find` and `ls` print them.

    A line is taken as it stands, spaces and `#` included; empty lines are passed over. Relative paths start at the
    current folder, as those of arguments do.

    Raises:
        ValueError: no such file, no text in UTF-8, or no path in it.
    """
    where = "standard input" if str(path) == "-" else str(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{where}: cannot be read as a list of inputs ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line}: is no text in UTF-8, expected one path per line. Save the list as UTF-8; images "
            "whose names have other bytes are found through their folder."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{where}, line {line}: holds a zero byte, which no path has: expected one path per line, as `find` prints "
            "them without `-print0`, in UTF-8."
        )
    # Not splitlines: a path may hold other signs that end lines, such as a form feed.
    lines = [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line]
    if not lines:
        raise ValueError(f"{where}: names no input. Write one path per line.")
    return lines


def _with_bands(inputs: list[Input], reading: ImageReading) -> list[Input]:
    """One input for each image whose bands lie in several files; the inputs as they are where bands share a file."""
    if not reading.bands:
        return inputs
    by_parent: dict[Path, dict[str, ImageRef]] = {}
    for item in inputs:
        by_parent.setdefault(item.parent, {})[item.stem] = item.image
    joined = [
        Input(image, stem, parent)
        for parent, refs in by_parent.items()
        for stem, image in join_bands(refs, reading.files).items()
    ]
    if inputs and not joined:
        raise ValueError(
            f"{inputs[0].image.path}: the model takes images of which each band is a file, named "
            f"{reading.pattern!r} with the bands {list(reading.bands)}; no input is named so."
        )
    return joined


def _members(given: str | Path, axis: str, leave_out: Path | None) -> tuple[list[Input], Broken]:
    root = Path(given)
    if root.is_dir():
        skipped = None if leave_out is None or _real(leave_out) == _real(root) else _real(leave_out)
        paths = [path for _, path in sorted(walk(root)) if skipped is None or not _lies_in(path.parent, skipped)]
        return _images(paths, axis, root, any_suffix=False)
    if root.exists():
        return _images([root], axis, root.parent, any_suffix=True)
    if glob.has_magic(str(given)):
        matches = sorted(path for path in map(Path, glob.glob(str(given), recursive=True)) if path.is_file())
        found: list[Input] = []
        broken: Broken = []
        for path in join_series(matches):
            members, faults = _images([path], axis, path.parent, any_suffix=True)
            found += members
            broken += faults
        return found, broken
    raise ValueError(f"{given}: no such file or folder, and not a pattern with * or ?.")


def _images(paths: Iterable[Path], axis: str, root: Path, any_suffix: bool) -> tuple[list[Input], Broken]:
    found: list[Input] = []
    broken: Broken = []
    for path in join_series(paths):
        try:
            found += [Input(ref, stem, root) for stem, ref in image_refs(root, path, axis, any_suffix)]
        except ValueError as error:  # a volume whose header cannot be read
            broken.append((path, str(error)))
    return found, broken


@lru_cache(maxsize=1024)
def _real(folder: Path) -> Path:
    """A folder without links. Of a file only its folder is looked up: a link is an image of its own name."""
    return folder.resolve()


def _lies_in(folder: Path, above: Path) -> bool:
    return _real(folder) == above or above in _real(folder).parents


def _apart(inputs: list[Input]) -> list[Input]:
    """Put folder names in front of equal stems until all differ."""
    for depth in range(1, 16):
        by_stem = defaultdict(list)
        for item in inputs:
            by_stem[item.stem].append(item)
        colliding = {id(item) for items in by_stem.values() if len(items) > 1 for item in items}
        if not colliding:
            return inputs
        inputs = [_with_folder(item, depth) if id(item) in colliding else item for item in inputs]
    clash = next(items for items in by_stem.values() if len(items) > 1)
    raise ValueError(
        f"{clash[0].image} and {clash[1].image} would both be written as {clash[0].stem!r}: "
        "predict them into different folders."
    )


def _with_folder(item: Input, depth: int) -> Input:
    parents = item.parent.resolve().parts
    if depth >= len(parents):
        return item
    return replace(item, stem=f"{parents[-depth]}/{item.stem}")
