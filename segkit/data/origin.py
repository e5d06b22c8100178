"""What a decoded copy of samples was made from: files, and the options under which they were read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2

from segkit._version import __version__

# Goes up when samples are laid out or decoded in another way.
LAYOUT_VERSION = 2

Stamps = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Origin:
    """Sources and reading options of some samples.

    Attributes:
        images, masks: the two folders, absolute.
        image_files, mask_files: path below the folder -> (bytes, time of change in ns).
        options: JSON-ready; everything else that decides what `read` gives, the names of the samples included.
    """

    images: Path
    masks: Path
    image_files: Stamps
    mask_files: Stamps
    options: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; differs once a file, an option or the version of segkit does."""
        # In the order given: of a codec's values the first is the one that counts.
        return hashlib.sha256(json.dumps(self.to_dict()).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of the folder that holds the copy: copies from one folder of images begin alike, see `family`."""
        return f"{self.family}{self.fingerprint[:16]}"

    @property
    def family(self) -> str:
        """What the names of all copies from this folder of images begin with."""
        place = hashlib.sha256(str(self.images).encode()).hexdigest()[:8]
        return f"{self.images.parent.name[:40]}-{self.images.name[:40]}-{place}-"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, see `is_outdated`."""
        return {
            "decoders": decoders(),
            "images": str(self.images),
            "masks": str(self.masks),
            "options": self.options,
            "image_files": self.image_files,
            "mask_files": self.mask_files,
        }


def find_origin(
    images: Path,
    image_files: Iterable[Path],
    masks: Path,
    mask_files: Iterable[Path],
    options: Mapping[str, Any],
) -> Origin:
    """The origin of samples that are read from these files, which lie below `images` and `masks`.

    Raises:
        ValueError: names a file that is not there any more.
    """
    images, masks = images.absolute(), masks.absolute()
    return Origin(images, masks, _stamps(images, image_files), _stamps(masks, mask_files), options)


def is_outdated(origin: Mapping[str, Any]) -> bool:
    """Whether what `Origin.to_dict` described has changed since. False where the folder of images is not there."""
    if not Path(origin["images"]).is_dir():
        return False  # a disk that is not plugged in says nothing
    if origin["decoders"] != decoders():
        return True
    try:
        return any(
            _stamp(Path(origin[folder], name)) != tuple(stamp)
            for folder in ("images", "masks")
            for name, stamp in origin[f"{folder[:-1]}_files"].items()
        )
    except OSError:
        return True


def decoders() -> dict[str, Any]:
    """Versions that decide what pixels a file gives."""
    return {
        "layout": LAYOUT_VERSION,
        "segkit": __version__,
        "opencv": cv2.__version__,
        "imagecodecs": version("imagecodecs"),
    }


def _stamps(root: Path, files: Iterable[Path]) -> Stamps:
    stamps: Stamps = {}
    for path in dict.fromkeys(files):  # slices share their volume
        try:
            stamps[path.absolute().relative_to(root).as_posix()] = _stamp(path)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}). It was there a moment ago.") from None
    return stamps


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
