"""The server as an ASGI application: routes, refusals as JSON, and what every answer carries."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from segkit._version import __version__
from segkit.inference.predictor import Predictor
from segkit.inference.tiling import WHOLE_PIXELS
from segkit.models.steps import steps_to_list
from segkit.ops.sizes import fit_size
from segkit.serving.answers import Compute, encode_view, outputs_of, view_layers
from segkit.serving.asking import Options, read_options
from segkit.serving.batching import Batcher
from segkit.serving.engine import Engine, Job
from segkit.serving.limits import Limits, Refused, Room
from segkit.serving.metrics import MEDIA_TYPE, Metrics
from segkit.serving.pictures import check_picture, decode_picture
from segkit.serving.shell import Shell, page_routes
from segkit.serving.uploads import Body

DEFAULT_BATCH, DEFAULT_WAIT_MS = 8, 5.0
Result = TypeVar("Result")


def build_app(
    predictor: Predictor,
    *,
    name: str = "model",
    limits: Limits | None = None,
    batch_size: int = DEFAULT_BATCH,
    wait_ms: float = DEFAULT_WAIT_MS,
    hosts: Sequence[str] | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """An ASGI application that answers images with masks of one model.

    Args:
        predictor: the model, on its device.
        name: of the model, for people.
        limits: sizes above which requests are refused; by default those of `Limits`.
        batch_size: most images of one size that are computed together.
        wait_ms: that an image waits for others of its size when the model is idle.
        hosts: names by which browsers may call the server; None for any. A server on loopback that answers to any
            name can be read by web pages whose domain is pointed at it (DNS rebinding).
        origins: web pages of other servers that may read answers (CORS); none by default.

    Raises:
        ValueError: a model that takes no single pictures.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")
    service = Service(predictor, name, limits or Limits(), batch_size, wait_ms)
    cross = [
        Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    ]
    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/view", service.view, methods=["POST"]),
            Route("/health", service.health),
            Route("/metrics", service.metrics),
            *page_routes(),
        ],
        middleware=[Middleware(Shell, hosts=hosts), *(cross if origins else [])],
        exception_handlers={HTTPException: _http_error, 500: _failure},
        lifespan=service.lifespan,
    )


class Service:
    """What the routes do, for one model."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits, batch_size: int, wait_ms: float) -> None:
        self._model, self._predictor, self._name = predictor.model, predictor, name
        self._limits, self._batch_size, self._wait_s = limits, batch_size, wait_ms / 1000
        self._engine = Engine(predictor)
        self._format = predictor.model.format
        self._outputs = outputs_of(self._format, predictor.codec)
        self._most_pixels = limits.pixels_of(self._format.num_classes)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Threads and queue, from the start of the server until all is answered."""
        # Enough that a batch gathers while another is computed, and the answers of a third are encoded.
        images = 4 * self._batch_size
        self._room = Room(self._limits, images, max(self._most_pixels, images * WHOLE_PIXELS))
        self._batcher: Batcher[Job, np.ndarray] = Batcher(
            self._engine.run,
            self._engine.key,
            self._batch_size,
            self._wait_s,
            lambda size, seconds: self._metrics.batch(size, seconds),
        )
        self._metrics = Metrics(lambda: len(self._batcher), lambda: self._room.requests)
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "segkit-codec")
        try:
            yield
        finally:
            await self._batcher.close()
            self._pool.shutdown()

    async def predict(self, request: Request) -> Response:
        """POST an image, get a mask."""

        async def answer(image: np.ndarray, options: Options) -> Response:
            output = self._outputs[options.output]
            computed = await self._compute(image, output.compute, options)
            try:
                content = await self._in_thread(output.encode, computed)
            except ValueError as error:  # what the codec has no value for
                raise Refused(422, f"The mask cannot be written as {options.output}: {error}") from None
            name = f'attachment; filename="mask{output.suffix}"'
            return Response(content, media_type=output.media_type, headers={"Content-Disposition": name})

        return await self._answered(request, answer, "output", "threshold", "spacing_mm")

    async def view(self, request: Request) -> Response:
        """POST an image, get what the page shows: picture and layers, no larger than a screen."""

        async def answer(image: np.ndarray, options: Options) -> Response:
            layers = await self._compute(image, view_layers(options.side), options)
            content = await self._in_thread(encode_view, image, layers)
            return Response(content, media_type="application/x-npy")

        return await self._answered(request, answer, "side", "spacing_mm")

    async def health(self, request: Request) -> Response:
        """Whether the server answers, and with what."""
        alive = self._batcher.is_alive
        codecs = {name: output.codec.to_spec() for name, output in self._outputs.items() if output.codec is not None}
        described = {
            "status": "ready" if alive else "failed",
            "segkit": __version__,
            "model": {
                "name": self._name,
                "format": self._format.to_dict(),
                "overlap": self._format.classes_overlap,
                "postprocess": steps_to_list(self._model.postprocess),
                "bands": self._model.in_channels,
                "device": str(self._predictor.device),
            },
            "outputs": list(self._outputs),
            "codecs": codecs,
            "limits": {
                "bytes": self._limits.max_bytes,
                "pixels": self._most_pixels,
                "requests": self._limits.max_requests,
                "batch_size": self._batch_size,
            },
        }
        return JSONResponse(described, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters in the text format of Prometheus."""
        return Response(self._metrics.text(), media_type=MEDIA_TYPE)

    async def _answered(
        self, request: Request, answer: Callable[[np.ndarray, Options], Awaitable[Response]], *known: str
    ) -> Response:
        """The answer to an image, or why there is none; counted either way."""
        started, output = time.monotonic(), "view"
        body = Body(request, self._limits)
        try:
            with self._room.request() as held:
                options = read_options(request, self._format, self._outputs, *known)
                output = options.output if "output" in known else output
                data = await body.image(held)
                pixels = await self._in_thread(check_picture, data, self._most_pixels)
                async with self._room.image(pixels):
                    image = await self._in_thread(decode_picture, data, self._model)
                    response = await answer(image, options)
        except Refused as refused:
            await body.discard()
            response = JSONResponse({"error": refused.sentence}, refused.status, refused.headers)
        except Exception:
            self._metrics.request(output, 500, time.monotonic() - started)
            raise
        self._metrics.request(output, response.status_code, time.monotonic() - started)
        return response

    async def _compute(self, image: np.ndarray, compute: Compute | None, options: Options) -> np.ndarray:
        """What the model's thread computes of an image."""
        self._check_working_size(image, options)
        try:
            return await self._batcher.answer(Job(image, compute, options.format, options.spacing_mm))
        except torch.OutOfMemoryError:
            raise Refused(
                413, "The image needs more memory than the device has. Send a smaller one, or start with --tile."
            ) from None
        except ValueError as error:
            raise Refused(422, f"The model cannot answer this image: {error}") from None

    def _check_working_size(self, image: np.ndarray, options: Options) -> None:
        try:
            height, width = fit_size((image.shape[0], image.shape[1]), self._model.resize, options.spacing_mm)
        except ValueError as error:
            if options.spacing_mm is not None:
                raise Refused(422, f"The option spacing_mm does not fit this image: {error}") from None
            raise Refused(
                422,
                "The model works at a spacing of its own, and pictures tell none: give the option "
                "spacing_mm=ROW,COLUMN, the distances of the rows and of the columns in mm.",
            ) from None
        if height * width > self._most_pixels:
            raise Refused(
                413,
                f"At the size that the model works at, the image has {height}x{width} pixels, more than the "
                f"{self._most_pixels} that the server takes. Send a smaller one.",
            )

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address: POST images to /predict, or GET /, /health or /metrics.",
        405: "This address takes another method: POST images to /predict and GET the others.",
    }
    sentence = sentences.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server failed on this request. Its log says why."}, 500)
