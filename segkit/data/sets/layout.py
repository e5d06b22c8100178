"""What a layout is: a way in which a data set lies on disk, so that nobody has to rename a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from segkit.data.patterns import STEM
from segkit.data.splits import read_stem_list
from segkit.formats.classes import RGB
from segkit.suggest import closest

# What a config may say of a part.
PART_KEYS = ("images", "masks", "image_pattern", "mask_pattern", "bands", "list")
PART_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """Where the samples of one part (train, val, test) lie; the arguments of `MaskDataset`.

    Attributes:
        images: folder of images.
        masks: folder of masks, or the file that holds them all.
        stems: the samples to take, or None for all.
        image_pattern, mask_pattern: how files are named after stems, see `Pattern`.
        bands: names of the bands where they lie in a file each, else none.
    """

    images: Path
    masks: Path
    stems: list[str] | None = None
    image_pattern: str = STEM
    mask_pattern: str = STEM
    bands: tuple[str, ...] = ()


class Layout(ABC):
    """Where the parts of a data set lie below a root, and what its masks mean.

    Attributes:
        expects: what a root of this layout holds, for messages.
    """

    expects: ClassVar[str]

    @abstractmethod
    def parts(self, root: Path) -> dict[str, Part]:
        """The parts that are there, by name: train, val, test; none where `root` is no such data set."""

    @abstractmethod
    def masks(self, root: Path) -> dict[str, Any]:
        """What the masks mean: the section `masks` of a config. Empty where the layout does not say.

        Raises:
            ValueError: a file that names the classes is missing or cannot be understood.
        """

    def recognises(self, root: Path) -> bool:
        """Whether `root` looks like this layout and no other."""
        return bool(self.parts(root))

    def part(self, root: Path, name: str, given: Mapping[str, Any]) -> Part:
        """The part called `name`, after what a config says of it in `PART_KEYS`.

        Raises:
            ValueError: an unknown key, a part that is not there, or a list that cannot be read.
        """
        for key in given:
            if key not in PART_KEYS:
                raise ValueError(f"data.{name} has no key {key!r}. {closest(key, PART_KEYS)}")
        known = self.parts(root)
        if name not in known and not {"images", "masks"} <= given.keys():
            raise ValueError(self._absent_text(root, name, given, known))
        # Files of a part that only the config knows are most likely named as those of the other parts.
        part = known.get(name) or next(iter(known.values()), Part(root, root))
        changes: dict[str, Any] = {key: root / given[key] for key in ("images", "masks") if key in given}
        changes |= {key: given[key] for key in ("image_pattern", "mask_pattern") if key in given}
        if "images" in given:
            changes["stems"] = None  # they are those of other images
        if "bands" in given:
            changes["bands"] = tuple(given["bands"])
        if "list" in given:
            changes["stems"] = read_stem_list(root / given["list"])
        return replace(part, **changes)

    def _absent_text(self, root: Path, name: str, given: Mapping[str, Any], known: Iterable[str]) -> str:
        there = list(known)
        if "train" in there:
            way_out = f"Take a share of the training part ({name}: {{from: train, fraction: 0.1}}), or name its folders"
        else:
            way_out = "Correct `data.root`, or name the folders"
        return (
            f"{root}: no part {name!r} here; found are {there or 'none'}. Expected: {self.expects}. "
            f"{way_out} ({name}: {{images: FOLDER, masks: FOLDER}})."
        )


def first_folder(root: Path, *names: str) -> Path | None:
    """The first of these folders below `root` that is there; names may be glob patterns."""
    found = (path for name in names for path in sorted(root.glob(name)) if path.is_dir())
    return next(found, None)


def split_parts(root: Path, images: str, masks: str, folders: Mapping[str, str], **names: Any) -> dict[str, Part]:
    """Parts in folders of their own: `images` and `masks` with `{part}` replaced, where both are there.

    Args:
        folders: name of a part -> what stands for `{part}`.
        names: patterns, see `Part`.
    """
    found = {}
    for name, folder in folders.items():
        pair = root / images.format(part=folder), root / masks.format(part=folder)
        if all(path.exists() for path in pair):
            found[name] = Part(*pair, **names)
    return found


def read_names(path: Path) -> list[str]:
    """The first column of a list of samples."""
    return [line.split()[0] for line in read_stem_list(path)]


def colored(classes: Mapping[str, RGB]) -> list[dict[str, Any]]:
    """Classes as a config lists them: `{name: ..., color: [r, g, b]}`."""
    return [{"name": name, "color": list(color)} for name, color in classes.items()]
