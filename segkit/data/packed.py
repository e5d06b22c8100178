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
        known: like `bits`, 0 where a plane is ignored; None where no plane is.
        num_planes: P.
        inside: (H, W) uint8, 0 where all planes are ignored, else 255; None where they are nowhere.
    """

    bits: np.ndarray
    known: np.ndarray | None
    num_planes: int
    inside: np.ndarray | None = None

    def __getitem__(self, window: tuple[slice, slice]) -> PackedPlanes:
        known, inside = (None if part is None else part[window] for part in (self.known, self.inside))
        return PackedPlanes(self.bits[window], known, self.num_planes, inside)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, P)."""
        return self.bits.shape[0], self.bits.shape[1], self.num_planes

    def unpack(self) -> np.ndarray:
        """(H, W, P) uint8 of 0, 1 and 255. In memory plane lies behind plane, which is how batches hold them."""
        planes = _unpack(self.bits, self.num_planes)
        if self.known is not None:
            unknown = _unpack(~self.known, self.num_planes)
            np.negative(unknown, out=unknown)
            planes |= unknown  # 0 - 1 is 255 in uint8, and x | 255 is 255 whatever x was
        if self.inside is not None:
            planes |= ~self.inside
        return planes.transpose(1, 2, 0)


def are_bits(planes: np.ndarray) -> bool:
    """Whether (H, W, P) planes hold nothing but 0, 1 and 255."""
    if planes.dtype != np.uint8:
        return False
    return planes.max(initial=0) <= 1 or not ((planes > 1) & (planes < 255)).any()


def pack_planes(planes: np.ndarray, where: str) -> PackedPlanes:
    """Pack (H, W, P) uint8 planes; `PackedPlanes.unpack` gives them back.

    Raises:
        ValueError: `where` holds values besides 0, 1 and 255.
    """
    if not are_bits(planes):
        found = sorted(set(np.unique(planes).tolist()) - {0, 1, 255})
        raise ValueError(f"{where}: planes are {planes.dtype} and hold {found[:10]}, expected uint8 of 0, 1 and 255.")
    if planes.max(initial=0) <= 1:
        return PackedPlanes(_pack(planes), None, planes.shape[2])
    return PackedPlanes(_pack(planes == 1), _pack(planes < 255), planes.shape[2])


def unpacked(planes: np.ndarray | PackedPlanes) -> np.ndarray:
    """(H, W, P) planes as an array, whichever way they are held."""
    return planes.unpack() if isinstance(planes, PackedPlanes) else planes


def _pack(flags: np.ndarray) -> np.ndarray:
    """(H, W, P) of 0 and 1, or bool, to (H, W, ceil(P / 8)) uint8."""
    height, width, count = flags.shape
    flags, lacking = np.ascontiguousarray(flags), -count % 8
    if lacking:
        # As items of P bytes and a rest: numpy copies rows of few bytes one byte at a time.
        items = np.zeros((height, width), [("planes", f"V{count}"), ("rest", f"V{lacking}")])
        items["planes"] = flags.view(f"V{count}")[..., 0]
        flags = items.view(np.uint8)
    # Flattened: numpy packs one long row many times faster than short ones along the last axis.
    return np.packbits(flags.reshape(-1), bitorder="little").reshape(height, width, -1)


def _unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """(H, W, K) uint8 to (P, H, W) uint8 of 0 and 1."""
    planes = np.empty((count, *packed.shape[:2]), np.uint8)
    for byte in range(packed.shape[2]):
        layer = np.ascontiguousarray(packed[..., byte])
        for bit, plane in enumerate(planes[8 * byte : 8 * byte + 8]):
            np.right_shift(layer, bit, out=plane)
            np.bitwise_and(plane, 1, out=plane)
    return planes
