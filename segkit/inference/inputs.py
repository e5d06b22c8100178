"""From what a user names (files, folders, patterns) to images, each with a stem of its own."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from segkit.data.images import ImageRef, find_images, image_refs


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


def find_inputs(inputs: Iterable[str | Path], axis: str = "z") -> list[Input]:
    """All images named by `inputs`, sorted within each, no file twice.

    Raises:
        ValueError: an input that is not there or holds no image, or two images that would share a mask.
    """
    found: dict[ImageRef, Input] = {}
    for given in inputs:
        members = _members(given, axis)
        if not members:
            raise ValueError(f"{given}: no images here.")
        for member in members:
            found.setdefault(member.image, member)
    return _apart(list(found.values()))


def _members(given: str | Path, axis: str) -> list[Input]:
    path = Path(given)
    if path.is_dir():
        return [Input(ref, stem, path) for stem, ref in find_images(path, axis).items()]
    if path.exists():
        return _file(path, axis)
    if glob.has_magic(str(given)):
        matches = sorted(Path(p) for p in glob.glob(str(given), recursive=True))
        return [member for match in matches if match.is_file() for member in _file(match, axis)]
    raise ValueError(f"{given}: no such file or folder, and not a pattern with * or ?.")


def _file(path: Path, axis: str) -> list[Input]:
    return [Input(ref, stem, path.parent) for stem, ref in image_refs(path.parent, path, axis, any_suffix=True)]


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
