"""A codec that depends on nothing, and samples written with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat


class StandInCodec(Codec):
    """`STEM.npy` holds the planes as they are."""

    name = "stand_in"

    def stems(self, root):
        return sorted(p.relative_to(root).with_suffix("").as_posix() for p in Path(root).rglob("*.npy"))

    def read(self, root, stem):
        path = Path(root, f"{stem}.npy")
        if not path.exists():
            raise ValueError(f"{path}: no such mask.")
        return self.check(np.load(path), str(path))

    def files(self, root, stem):
        return [Path(root, f"{stem}.npy")]

    def write(self, root, stem, planes, like=None):
        path = Path(root, f"{stem}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, planes)

    def to_spec(self):
        return {"name": self.name}


FORMAT = MaskFormat.multiclass(["a", "b", "c", "d"])


def add_sample(root, codec, stem, planes, image=None):
    """Write one sample; without `image` its red band shows the planes."""
    if image is None:
        image = np.dstack([planes[..., 0] * 60, planes[..., 0] * 20, planes[..., 0]])
    path = Path(root, "images", f"{stem}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))
    codec.write(Path(root, "masks"), stem, planes)
