"""From the body of a request to the bytes of one image file, none of which is written to disk."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

import anyio
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from segkit.serving.limits import MEBIBYTE, Held, Limits, Refused

# What a form adds to the file in it: names, types and separators.
_FORM_BYTES = 64 * 1024
# Of a refused file, so many times the largest are read and forgotten before the connection is cut.
_DISCARDED_SIZES = 16
_FORM = "multipart/form-data"
# What clients send who know no better.
_ANY_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
_WAY_OUT = "POST the bytes of an image file, or a form (multipart/form-data) with one file."


class Body:
    """What a client sends, taken piece by piece.

    Args:
        request: not read so far.
        limits: of size and time.
    """

    def __init__(self, request: Request, limits: Limits) -> None:
        self._request, self._limits = request, limits
        self._finished = False

    async def image(self, held: Held) -> bytes:
        """The image file that a request brings, as its body or as the one file of a form.

        Args:
            held: takes account of the bytes.

        Raises:
            Refused: too large (before or while it arrives), too slow, of another type, or no file.
        """
        headers, limits = self._request.headers, self._limits
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _FORM and kind not in _ANY_TYPES and not kind.startswith("image/"):
            raise Refused(415, f"The body is {kind[:80]}, which is no image. {_WAY_OUT}")
        most = limits.max_bytes + (_FORM_BYTES if kind == _FORM else 0)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:18]) > most:
            raise self._too_large()
        chunks = self._chunks(most, held)
        if kind == _FORM:
            content = await _file_of_form(headers, chunks)
        else:
            content = b"".join([chunk async for chunk in chunks])
        if len(content) > limits.max_bytes:
            raise self._too_large()
        if not content:
            raise Refused(400, f"The body is empty. {_WAY_OUT}")
        return content

    async def discard(self, seconds: float = 5.0) -> None:
        """Read what a refused client still sends, and forget it.

        A connection that is closed over unread bytes is reset, and its client may never see why. A client that waits
        to be told to go on (`Expect: 100-continue`, as curl does) has sent nothing yet.
        """
        if self._request.headers.get("expect", "").lower() == "100-continue":
            return
        left = _DISCARDED_SIZES * self._limits.max_bytes
        with suppress(Refused), anyio.move_on_after(seconds):
            while left > 0 and not self._finished:
                left -= len(await self._receive())

    async def _chunks(self, most: int, held: Held) -> AsyncGenerator[bytes, None]:
        """The body, refused as soon as it is too large or takes too long."""
        received, ends = 0, time.monotonic() + self._limits.upload_s
        while not self._finished:
            try:
                with anyio.fail_after(ends - time.monotonic()):
                    chunk = await self._receive()
            except TimeoutError:
                seconds = f"{self._limits.upload_s:g} s"
                raise Refused(408, f"The image did not arrive within {seconds}. Send it again.") from None
            received += len(chunk)
            if received > most:
                raise self._too_large()
            if chunk:
                held.add(len(chunk))
                yield chunk

    async def _receive(self) -> bytes:
        message = await self._request.receive()
        self._finished = not message.get("more_body", False)
        if message["type"] != "http.request":
            raise Refused(400, "The client left before the image had arrived.")
        return message.get("body", b"")

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"The image file is larger than {self._limits.max_bytes / MEBIBYTE:g} MiB, the most this server takes. "
            "Send a smaller one, or run `segkit predict` where the file is.",
        )


class _FormInMemory(MultiPartParser):
    """Its files stay in memory: their size is limited already."""

    spool_max_size = sys.maxsize


async def _file_of_form(headers: Headers, chunks: AsyncGenerator[bytes, None]) -> bytes:
    try:
        form = await _FormInMemory(headers, chunks, max_files=1, max_fields=16).parse()
    except MultiPartException as error:
        raise Refused(400, f"The form cannot be read: {error.message.rstrip('.')}. {_WAY_OUT}") from None
    except (FormParserError, ValueError, LookupError) as error:
        raise Refused(400, f"The form cannot be read ({type(error).__name__}). {_WAY_OUT}") from None
    files = [value for value in form.values() if isinstance(value, UploadFile)]
    if not files:
        raise Refused(400, f"The form holds no file. {_WAY_OUT}")
    content = await files[0].read()
    await form.close()
    return content
