"""Models, images and running servers for the tests of `segkit.serving`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.testclient import TestClient

from segkit.formats.codec import Codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.predictor import Predictor
from segkit.serving.app import build_app
from segkit.serving.running import address_of, make_server, open_socket
from tests.inference.test_predictor import model
from tests.scenes import FORMATS, default_codec, scene

SIZE_HW = (45, 61)


def predictor_of(kind: str | MaskFormat, codec: Codec | None = None, **options) -> Predictor:
    format = FORMATS[kind] if isinstance(kind, str) else kind
    return Predictor(model(format, **options), codec or default_codec(format), device="cpu")


def png(number: int = 1, size_hw: tuple[int, int] = SIZE_HW) -> bytes:
    return encoded(scene(number, size_hw)[0])


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    stored = image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image
    return cv2.imencode(suffix, stored)[1].tobytes()


@contextmanager
def client_of(predictor: Predictor, **options) -> Iterator[TestClient]:
    with TestClient(build_app(predictor, **options), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Address of a real server in a thread of this process."""
    with open_socket("127.0.0.1", 0) as opened:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield address_of(opened)
        finally:
            server.should_exit = True
            thread.join()
