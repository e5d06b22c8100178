"""Overlapping planes as bits: eight to a byte, moved eight at a time and unpacked last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ALL_KNOWN = 255


@dataclass(frozen=True, eq=False)
class PackedPlanes:
    """(H, W, P) planes of 0, 1 and ignored, packed along the last axis.

    Bit p % 8 of byte p // 8 is plane p. Slicing rows and columns gives a view, of which nothing is unpacked yet.

    Attributes:
        bits: (H, W, ceil(P / 8)) uint8.
        known: like `bits`, 0 where a plane is ignored; or (H, W, 1) of 0 and 255 for all planes alike; None where
            nothing is ignored.
        num_planes: P.
    """

    bits: np.ndarray
    known: np.ndarray | None
    num_planes: int

    def __getitem__(self, window: tuple[slice, slice]) -> PackedPlanes:
        known = None if self.known is None else self.known[window]
        return PackedPlanes(self.bits[window], known, self.num_planes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, P)."""
        return self.bits.shape[0], self.bits.shape[1], self.num_planes

    def unpack(self) -> np.ndarray:
        """(H, W, P) uint8 of 0, 1 and 255; another view of 8 * ceil(P / 8) planes, so not always contiguous."""
        planes = _unpack(self.bits)
        if self.known is not None:
            if self.known.shape == self.bits.shape:
                # 0 - 1 is 255 in uint8, and x | 255 is 255 whatever x was.
                planes |= np.negative(_unpack(~self.known))
            else:
                planes[self.known[..., 0] != _ALL_KNOWN] = 255
        return planes[..., : self.num_planes]


def pack_planes(planes: np.ndarray, where: str) -> PackedPlanes:
    """Pack (H, W, P) uint8 planes; `PackedPlanes.unpack` gives them back.

    Raises:
        ValueError: `where` holds values besides 0, 1 and 255.
    """
    largest = planes.max(initial=0, where=planes != 255)
    if planes.dtype != np.uint8 or largest > 1:
        raise ValueError(f"{where}: planes are {planes.dtype} with values up to {largest}, expected 0, 1 and 255.")
    ignored = planes == 255
    known = _pack(~ignored) if ignored.any() else None
    return PackedPlanes(_pack(planes == 1), known, planes.shape[2])


def unpacked(planes: np.ndarray | PackedPlanes) -> np.ndarray:
    """(H, W, P) planes as an array, whichever way they are held."""
    return planes.unpack() if isinstance(planes, PackedPlanes) else planes


def _pack(flags: np.ndarray) -> np.ndarray:
    """(H, W, P) bool to (H, W, ceil(P / 8)) uint8."""
    height, width, count = flags.shape
    whole = np.zeros((height, width, -(-count // 8) * 8), bool)
    whole[..., :count] = flags
    # Flattened: numpy packs one long row many times faster than short ones along the last axis.
    return np.packbits(whole.reshape(-1), bitorder="little").reshape(height, width, -1)


def _unpack(packed: np.ndarray) -> np.ndarray:
    """(H, W, K) uint8 to (H, W, 8 K) uint8 of 0 and 1."""
    height, width, count = packed.shape
    return np.unpackbits(packed.reshape(-1), bitorder="little").reshape(height, width, count * 8)
