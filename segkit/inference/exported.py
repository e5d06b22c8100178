"""Exported models: an ONNX file, a saved program of torch or an AOTInductor package, run like a bundle."""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from segkit.data.reading import ImageReading
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.golden import GoldenImages
from segkit.models.segmenter import STORED_DTYPES, full_range_scale
from segkit.models.steps import Steps, open_steps
from segkit.ops.sizes import Resize, resample, resize_from_json
from segkit.ops.upsample import CoarseLogits

log = logging.getLogger("segkit")

SUFFIXES = (".onnx", ".pt2")
# Names in a file: what it says of itself, as JSON, and its golden images, in base64.
FACTS, GOLDEN = "segkit.json", "segkit_golden.safetensors"
_FULL_RANGE = {torch.uint8: 255, torch.uint16: 65535}


class Runner(Protocol):
    """What computes the graph of a file.

    Attributes:
        contents: what segkit wrote beside the graph, by name.
    """

    contents: dict[str, str]

    def to(self, device: torch.device) -> None: ...

    def run(self, images: Tensor) -> list[Tensor]:
        """(N, B, H, W) images of the stored dtype to the outputs of the graph, on the device of the images."""


@dataclass(frozen=True)
class Facts:
    """What an exported file says of itself.

    Attributes:
        bundle: the description of the bundle that it was made of.
        format: `onnx`, `torch` or `aoti`.
        dtype: of the images that the graph takes: uint8, uint16 or float32.
        stride: see `Segmenter`.
        least_side: smallest height and width that the graph takes.
        outputs: names of what it gives.
    """

    bundle: dict[str, Any]
    format: str
    dtype: str
    stride: int
    least_side: int
    outputs: tuple[str, ...]

    def to_json(self) -> str:
        """As it stands in the file: the keys of a bundle's `segkit.json`, and `export` beside them."""
        own = {"format": self.format, "dtype": self.dtype, "stride": self.stride, "least_side": self.least_side}
        return json.dumps({**self.bundle, "export": {**own, "outputs": list(self.outputs)}}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Facts:
        """What `to_json` wrote."""
        bundle = json.loads(text)
        export = bundle.pop("export")
        return Facts(bundle, **{**export, "outputs": tuple(export["outputs"])})


class ExportedModel:
    """A `SegmentationModel` whose network, statistics, padding and decoding are one graph in a file.

    Its logits are those of the probabilities that the graph gives, to about 1e-6 in probability. Where it resizes
    images, that is a part of the graph, which then answers whole images alone.

    Attributes:
        codec: how masks are written; None where the bundle was saved without one.
    """

    def __init__(self, path: Path, runner: Runner) -> None:
        self.path, self.runner = path, runner
        try:
            self.facts = Facts.from_json(runner.contents[FACTS])
            described = self.facts.bundle
            self.format = MaskFormat.from_dict(described["format"])
            self.reading = ImageReading(**described["reading"])
            self.resize: Resize = resize_from_json(described["resize"])
            self.in_channels: int = described["in_channels"]
            self.postprocess: Steps = open_steps(described.get("postprocess", []), self.format)
            self.codec: Codec | None = (
                None if described["codec"] is None else open_codec(described["codec"], self.format)
            )
            self.stride = self.facts.stride
            self.dtype = STORED_DTYPES[self.facts.dtype]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a file that `segkit export` wrote, or from a version that segkit cannot read: {error!r}"
            ) from error

    @property
    def golden(self) -> GoldenImages:
        """The images that the file was checked on, with the masks that the bundle gave them."""
        try:
            content = base64.b64decode(self.runner.contents.get(GOLDEN, ""))
        except ValueError:
            content = b""
        return GoldenImages.from_bytes(content, str(self.path))

    @property
    def tells_probabilities(self) -> bool:
        """Whether the graph gives probabilities beside planes."""
        return "probabilities" in self.facts.outputs

    def to(self, device: torch.device) -> ExportedModel:
        """Compute on another device where the file can; answers come to where the images are in any case."""
        self.runner.to(device)
        return self

    def eval(self) -> ExportedModel:
        """Itself: there is no other mode."""
        return self

    def planes(self, images: Tensor) -> Tensor:
        """(N, P, H, W) planes of (N, B, H, W) stored values, decoded by the graph."""
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """What the graph gives (N, B, H, W) stored values: planes and, if it tells them, (N, C, H, W) probabilities."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: {self.path} takes (N, {self.in_channels}, height, width)."
            )
        least = self.facts.least_side
        if min(images.shape[-2:]) < least:
            raise ValueError(
                f"an image of {images.shape[-2]}x{images.shape[-1]} pixels: {self.path} takes sides of {least} pixels "
                "and more. Predict it with the bundle."
            )
        if images.dtype != self.dtype:
            images = self._in_own_depth(images)
            if self.dtype in _FULL_RANGE:  # such as an image between two of its pixels
                images = images.round().clamp(0, _FULL_RANGE[self.dtype]).to(self.dtype)
        return self.runner.run(images.contiguous())

    def resized(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        return resample(self._in_own_depth(images), size_hw)

    def coarse_logits(self, images: Tensor) -> CoarseLogits:
        if self.resize is not None:
            raise ValueError(
                f"{self.path}: resizes images inside its graph, so it cannot answer windows or other scales of them. "
                "Predict whole images (a larger --tile), or with the bundle that it was made of."
            )
        return self.predict_coarse_logits(images)

    def predict_coarse_logits(self, images: Tensor, spacing_mm: Sequence[float] | None = None) -> CoarseLogits:
        self.check_probabilities()
        return CoarseLogits.of(self.format.logits_of(self.outputs(images)[1]))

    def check_probabilities(self) -> None:
        """Refuse a file without them where logits are needed."""
        if not self.tells_probabilities:
            raise ValueError(
                f"{self.path}: was exported without probabilities, of which windows, averages and thresholds are made. "
                "Export it again without --no-probabilities; other programs run it as it is."
            )

    def _in_own_depth(self, images: Tensor) -> Tensor:
        return images.float() * full_range_scale(images.dtype, self.dtype)


def is_exported(path: str | Path) -> bool:
    """Whether a path names an exported file, by its suffix."""
    return Path(path).suffix.lower() in SUFFIXES


def open_exported(path: str | Path) -> ExportedModel:
    """The model in an exported file. A .pt2 may run any code when it is opened (pickle, compiled code): open your own.

    Raises:
        ValueError: not there, not written by segkit, or onnxruntime is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    return ExportedModel(path, _open_runner(path))


def _open_runner(path: Path) -> Runner:
    if path.suffix.lower() == ".onnx":
        return OnnxRunner(path)
    return TorchRunner(path)


class OnnxRunner:
    """An ONNX file in onnxruntime: on the CPU, or on CUDA where the installed onnxruntime has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = self._open(["CPUExecutionProvider"])
        self.contents: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def to(self, device: torch.device) -> None:
        import onnxruntime

        if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            options = {"device_id": device.index or 0}
            self.session = self._open([("CUDAExecutionProvider", options), "CPUExecutionProvider"])
        elif device.type != "cpu":
            log.info("%s: the installed onnxruntime computes on the CPU alone.", self.path)

    def run(self, images: Tensor) -> list[Tensor]:
        found = self.session.run(None, {"images": images.cpu().numpy()})
        return [torch.from_numpy(np.ascontiguousarray(array)).to(images.device) for array in found]

    def _open(self, providers: list[Any]) -> Any:
        if importlib.util.find_spec("onnxruntime") is None:
            raise ValueError(f"{self.path}: ONNX files are run by onnxruntime: pip install 'segkit[onnx]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime has an exception class for each status
            raise ValueError(f"{self.path}: onnxruntime cannot open it: {first_line(error)}") from error


class TorchRunner:
    """A file that torch wrote: a program of torch.export, or a package of AOTInductor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                self.contents = {
                    name: archive.read(entry).decode()
                    for name in (FACTS, GOLDEN)
                    for entry in names
                    if entry.endswith(f"/extra/{name}")
                }
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read as a file of torch.export: {error}") from error
        if FACTS not in self.contents:
            raise ValueError(f"{path}: holds no extra/{FACTS}, so `segkit export` did not write it.")
        self.is_compiled = any("/aotinductor/" in entry for entry in names)
        try:
            if self.is_compiled:
                self._compute: Any = torch._inductor.aoti_load_package(str(path))
            else:
                self._program = torch.export.load(path)
                self._compute = self._program.module()
        except Exception as error:  # whatever the file makes torch raise
            raise ValueError(f"{path}: torch cannot open it: {first_line(error)}") from error
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        if device == self.device:
            return
        if self.is_compiled:
            log.info("%s: compiled for the CPU, and computes there.", self.path)
            return
        from torch.export.passes import move_to_device_pass

        self._program = move_to_device_pass(self._program, str(device))
        self._compute, self.device = self._program.module(), device

    @torch.inference_mode()
    def run(self, images: Tensor) -> list[Tensor]:
        return [found.to(images.device) for found in self._compute(images.to(self.device))]


def first_line(error: Exception) -> str:
    """What an error says, without the pages that exporters add."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].strip()[:300] if lines else type(error).__name__
