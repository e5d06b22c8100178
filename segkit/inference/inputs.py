"""From what a user names (files, folders, patterns) to images, each with a stem of its own."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from segkit.data.images import ImageRef, image_refs, join_bands
from segkit.data.reading import ImageReading
from segkit.formats.files import walk
from segkit.formats.volumes import join_series


@dataclass(frozen=True)
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
            found.setdefault((member.image.path.resolve(), member.image.axis, member.image.index), member)
    jobs = _with_bands(list(found.values()), reading)
    if leave_out is not None:
        for item in jobs:
            if item.parent.resolve() == leave_out.resolve():
                raise ValueError(
                    f"{item.image}: its mask would be written over it. Give another --out than {leave_out}."
                )
    return _apart(jobs), broken


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
        skipped = None if leave_out is None or leave_out.resolve() == root.resolve() else leave_out.resolve()
        paths = [path for _, path in sorted(walk(root)) if skipped is None or skipped not in path.resolve().parents]
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
