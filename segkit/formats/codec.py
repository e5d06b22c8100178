"""What a codec is: how the files of a folder hold planes.

A codec reads `(H, W, P)` planes from `(root, stem)` and writes them back. Disk values end and begin here:
above it, planes hold class indices or 0/1, and the largest value of the dtype where nobody knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segkit.formats.mask_format import MaskFormat

# What `segkit predict` puts beside the masks; a folder of predictions is itself a data set.
RESERVED_NAMES = (
    "_overlay",
    "_probabilities",
    "_objects.json",
    "_quarantine.txt",
    "_journal.jsonl",
    "_journal",
)

# Columns of the pieces of a mask start and end at multiples of it, or at the right end.
PIECE_STEP = 512
# What `Codec.writing` gives: takes rows, columns and their (h, w, P) planes.
PutPlanes = Callable[[slice, slice, np.ndarray], None]


class Codec(ABC):
    """How files hold the planes of one `MaskFormat`.

    A stem is the name of a sample: the path below `root` without its suffix, with forward slashes. Slices of a
    volume are named `case@z017`.
    """

    name: ClassVar[str]
    # Whether files mark each class for itself, by its name, rather than give each pixel a number or a colour.
    marks_classes: ClassVar[bool] = False
    # Whether `writing` takes masks in pieces.
    writes_pieces: ClassVar[bool] = False

    def __init__(self, format: MaskFormat) -> None:
        self.format = format

    @abstractmethod
    def stems(self, root: str | Path) -> list[str]:
        """Sorted names of the samples below `root`."""

    @abstractmethod
    def read(self, root: str | Path, stem: str) -> np.ndarray:
        """(H, W, P) planes of `format.dtype`.

        Raises:
            ValueError: names the file and what is wrong with it: missing, not decodable, undeclared values.
        """

    def check_like(self, root: str | Path, stem: str, like: str | Path) -> None:  # noqa: B027 - most have no geometry
        """Refuse planes that lie elsewhere than the image they belong to, where files tell.

        Args:
            like: the file, or folder of a series, that holds the image.

        Raises:
            ValueError: names both files and how they differ.
        """

    @abstractmethod
    def files(self, root: str | Path, stem: str) -> list[Path]:
        """The files that `read` would open and that are there now: as long as they and `to_spec` stay, so do planes."""

    def holds(self, root: str | Path, stem: str) -> bool:
        """Whether the mask of a sample is there, all of it; what `write` left for `finish` counts."""
        return bool(self.files(root, stem))

    @abstractmethod
    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        """Write (H, W, P) planes so that `read` returns them; the file appears whole or not at all.

        Args:
            like: the input the planes belong to, for formats that copy its header (affine of a volume).
        """

    def write_volume(
        self, root: str | Path, stems: Sequence[str], planes: np.ndarray, like: str | Path | None = None
    ) -> None:
        """Write (D, H, W, P) planes, all slices of one volume: one file where files are volumes, else one for each.

        Args:
            stems: D names of slices, in their order.
            like: the volume that they are slices of.
        """
        for stem, plane in zip(stems, planes, strict=True):
            self.write(root, stem, plane, like)

    def writing(
        self, root: str | Path, stem: str, size_hw: tuple[int, int], like: str | Path | None = None
    ) -> AbstractContextManager[PutPlanes]:
        """`write` for a mask that is never in memory: a context manager that gives a function to call with its pieces.

        Columns of pieces start and end at multiples of `PIECE_STEP`, or at the right end; for given columns, rows come
        from top to bottom without gaps. The file appears at the end.

        Raises:
            ValueError: the codec takes whole masks only.
        """
        raise ValueError(
            f"{stem}: a mask of {size_hw[0]}x{size_hw[1]} is too large to be in memory, and the codec {self.name!r} "
            "writes whole masks only. Take the codec `tiff`: `segkit predict --codec tiff`, or "
            "`Predictor(model, open_codec('tiff', format))`."
        )

    def finish(self, root: str | Path) -> None:  # noqa: B027 - most codecs have nothing to join
        """Join what many writers wrote, where a codec needs it. Atomic; may be repeated."""

    @abstractmethod
    def to_spec(self) -> dict[str, Any]:
        """JSON-ready description that `open_codec` takes: `{"name": ..., options that differ from defaults}`.

        The order of its values counts: do not sort the keys.
        """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codec):
            return NotImplemented
        # As text: of several values for one class the first is written, so their order counts.
        return (type(self), self.format, str(self.to_spec())) == (type(other), other.format, str(other.to_spec()))

    def __hash__(self) -> int:
        return hash((self.name, self.format))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_spec()})"

    def check(self, planes: np.ndarray, where: str) -> np.ndarray:
        """`planes` if their shape, dtype and values fit the format; `where` names them in the error."""
        expected = self.format.num_planes
        if planes.ndim != 3 or planes.shape[2] != expected or planes.dtype != self.format.dtype:
            raise ValueError(
                f"{where}: planes are {planes.dtype} of shape {planes.shape}, expected {self.format.dtype} "
                f"of shape (height, width, {expected})."
            )
        if not planes.size:
            raise ValueError(f"{where}: a mask of {planes.shape[0]} x {planes.shape[1]} pixels: nothing to write.")
        return planes
