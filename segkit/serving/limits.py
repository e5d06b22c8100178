"""What a request may ask for, and all of them together; and how a request is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

MEBIBYTE = 2**20
# Numbers of all classes at all pixels of one image: 4 GiB of float32, which windows are blended in.
_MAX_NUMBERS = 2**30


@dataclass(frozen=True)
class Limits:
    """Sizes above which the server says no, so that no request takes the machine down.

    Attributes:
        max_bytes: of an image file.
        max_pixels: that an image file declares; told from its header, before anything is decoded.
        max_requests: being answered at the same time, waiting ones included.
        max_held_bytes: of all image files that are being answered.
        upload_s: seconds in which an image must have arrived.
        retry_s: after which a client should come again when the server is full.
    """

    max_bytes: int = 32 * MEBIBYTE
    max_pixels: int = 50_000_000
    max_requests: int = 256
    max_held_bytes: int = 1024 * MEBIBYTE
    upload_s: float = 120.0
    retry_s: int = 1

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_requests", "max_held_bytes", "upload_s", "retry_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number above 0.")

    def pixels_of(self, num_classes: int) -> int:
        """Pixels that an image may have where a model tells so many classes."""
        return min(self.max_pixels, max(1, _MAX_NUMBERS // num_classes))


class Refused(Exception):
    """A request that is not answered with a mask.

    Args:
        status: the HTTP status.
        sentence: what was found, what was expected, and the way out.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class Room:
    """Counts what the requests hold, in one event loop: files that arrive, and images that are decoded.

    Files beyond the limits are refused; decoded images, which are larger, wait for each other in the order they came.

    Args:
        max_images: decoded at the same time.
        max_pixels: of all of them; a single image may have more.
    """

    def __init__(self, limits: Limits, max_images: int, max_pixels: int) -> None:
        self._limits, self._max_images, self._max_pixels = limits, max_images, max_pixels
        self.requests = 0
        self.bytes = 0
        self._images = 0
        self._pixels = 0
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @contextmanager
    def request(self) -> Iterator[Held]:
        """Room for one request, from its first byte to its answer.

        Raises:
            Refused: there are too many already.
        """
        if self.requests >= self._limits.max_requests:
            raise self._full(f"{self.requests} requests are being answered")
        self.requests += 1
        held = Held(self)
        try:
            yield held
        finally:
            self.requests -= 1
            self.bytes -= held.bytes

    @asynccontextmanager
    async def image(self, pixels: int) -> AsyncIterator[None]:
        """Wait for room for a decoded image."""
        async with self._turn:
            while self._images and (self._images >= self._max_images or self._pixels + pixels > self._max_pixels):
                self._left.clear()
                await self._left.wait()
            self._images += 1
            self._pixels += pixels
        try:
            yield
        finally:
            self._images -= 1
            self._pixels -= pixels
            self._left.set()

    def add(self, count: int) -> None:
        """Bytes that a request holds from now on."""
        if self.bytes + count > self._limits.max_held_bytes:
            raise self._full(f"{self.bytes // MEBIBYTE} MiB of images are being answered")
        self.bytes += count

    def _full(self, found: str) -> Refused:
        seconds = self._limits.retry_s
        return Refused(503, f"The server is full: {found}. Try again in {seconds} s.", {"Retry-After": str(seconds)})


class Held:
    """The bytes that one request holds."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.bytes = 0

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            Refused: all requests together hold too much.
        """
        self._room.add(count)
        self.bytes += count
