"""Write a bundle as one file that other programs run, and only if it gives the same masks."""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import shutil
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.inference.export_graph import StoredToPlanes, Traced, trace
from segkit.inference.exported import FACTS, GOLDEN, Facts, first_line, open_exported
from segkit.inference.golden import GoldenImage, GoldenImages, noise_images, predict_golden, read_golden
from segkit.inference.inputs import find_inputs
from segkit.inference.verify import PROBABILITY, Comparison, compare_batches
from segkit.models.bundle import load_model
from segkit.models.bundle_files import find_bundle, read_description
from segkit.models.segmenter import Segmenter

# Format -> suffix of its files.
EXPORT_FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".pt2"}
TOLERANCE = 1e-3
# Sizes that are checked beside the golden images, as (batch, height, width) in strides and further pixels.
_CHECKED = ((1, (2, 5), (3, 7)), (2, (4, 1), (2, 0)), (3, (2, 3), (2, 1)), (1, (1, 0), (1, 0)))
# The only modules that exporters talk through while they work.
_LOUD = ("torch", "torch.onnx", "torch.export", "torch._inductor", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        checked: how its masks compare with those of the bundle.
        least_side: smallest height and width that it takes.
    """

    path: Path
    format: str
    outputs: tuple[str, ...]
    least_side: int
    bytes: int
    checked: Comparison
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As `segkit export --json` writes it."""
        return {
            "file": str(self.path),
            "format": self.format,
            "outputs": list(self.outputs),
            "least_side": self.least_side,
            "bytes": self.bytes,
            "checked": self.checked.to_dict(),
            "seconds": round(self.seconds, 3),
        }


def export_bundle(
    bundle: str | Path,
    out: str | Path,
    format: str = "onnx",
    *,
    probabilities: bool = True,
    images: Sequence[GoldenImage] = (),
    tolerance: float = TOLERANCE,
    architecture: Callable[..., nn.Module] | None = None,
) -> ExportReport:
    """Write the model of a bundle or run folder as one file: stored images in, planes out.

    Args:
        out: the file, which takes the place of one that is there. Nothing is written where masks differ.
        format: a name of `EXPORT_FORMATS`. `aoti` compiles for the CPU of this machine.
        probabilities: give them as the second output, of which segkit makes windows, averages and thresholds.
        images: to check on as well, whole. What the file keeps are the golden images of the bundle, or noise.
        tolerance: largest share of the pixels of any of the checked images in which masks may differ.
        architecture: see `load_model`.

    Raises:
        ValueError: a network that cannot be exported, a missing package, or masks that differ.
    """
    started, out = time.monotonic(), Path(out)
    _check_target(out, format)
    model = load_model(bundle, architecture=architecture)
    described = read_description(find_bundle(Path(bundle)))
    what = f"{bundle}: {described['architecture']} with {described['encoder']}"
    try:
        graph = StoredToPlanes(model, probabilities)
        with _quiet():
            traced = trace(graph)
    except Exception as error:  # exporters have exceptions of all kinds
        raise ValueError(f"{what} cannot be exported: {first_line(error)}") from error
    kept = read_golden(bundle)
    golden = predict_golden(model, noise_images(model, _golden_sizes(model)) if kept is None else kept.images)
    outputs = ("planes", "probabilities") if probabilities else ("planes",)
    facts = Facts(described, format, model.statistics.dtype, model.stride, traced.least_side, outputs)
    part = out.with_name(f".{out.stem}.{uuid.uuid4().hex[:12]}.part{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with _quiet():
                _WRITERS[format](traced.program, part, facts, golden)
                exported = open_exported(part)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{what} cannot be exported to {format}: {first_line(error)}") from error
        batches = [*([image] for image in (*golden.images, *images)), *_batches_of_noise(model, traced)]
        try:
            checked = compare_batches(exported, model, batches)
        except Exception as error:  # what programs raise is as free
            raise ValueError(f"{what} cannot be exported to {format}: {first_line(error)}") from error
        if not checked.within(tolerance):
            raise ValueError(
                f"{out}: not written. {checked.describe()}, and at most {tolerance:g} is allowed (a probability that "
                f"is off by more than {PROBABILITY:g} counts as well). Try another format, or a higher --tolerance if "
                "so many do not matter."
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return ExportReport(out, format, outputs, facts.least_side, out.stat().st_size, checked, time.monotonic() - started)


def read_checked_images(bundle: str | Path, inputs: Sequence[str | Path]) -> list[GoldenImage]:
    """Images for `export_bundle`, read as the model of a bundle reads images.

    Raises:
        ValueError: an input that is no image, or cannot be read.
    """
    if not inputs:
        return []
    described = read_description(find_bundle(Path(bundle)))
    reading = ImageReading(**described["reading"])
    planes = MaskFormat.from_dict(described["format"]).num_planes
    found, broken = find_inputs(inputs, reading.for_new_images())
    if broken:
        raise ValueError("\n".join(reason for _, reason in broken))
    images = []
    for item in found:
        image = reading.read(item.image)
        empty = np.zeros((*image.shape[:2], planes), np.uint8)
        images.append(GoldenImage(image, empty, reading.spacing_mm(item.image)))
    return images


def _check_target(out: Path, format: str) -> None:
    if format not in EXPORT_FORMATS:
        raise ValueError(f"format is {format!r}: expected one of {', '.join(EXPORT_FORMATS)}.")
    suffix = EXPORT_FORMATS[format]
    if out.suffix.lower() != suffix:
        raise ValueError(f"{out}: files of format {format} end in {suffix}: give such a name with --out.")
    if format == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"exporting to ONNX needs {', '.join(missing)}: pip install 'segkit[onnx]'")
    if format == "aoti" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise ValueError(
            "format aoti compiles with a C++ compiler, and there is none: install g++ or clang++, name one in the "
            "environment variable CXX, or take format torch."
        )


def _write_onnx(program: torch.export.ExportedProgram, path: Path, facts: Facts, golden: GoldenImages) -> None:
    names = {0: "batch", 2: "height", 3: "width"}
    written: Any = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=list(facts.outputs),
        dynamic_shapes=(names,),
    )
    properties = written.model.metadata_props
    properties[FACTS] = facts.to_json()
    properties[GOLDEN] = _as_text(golden)
    written.save(str(path), external_data=False)


def _write_program(program: torch.export.ExportedProgram, path: Path, facts: Facts, golden: GoldenImages) -> None:
    torch.export.save(program, path)
    _add_extras(path, facts, golden)


def _write_package(program: torch.export.ExportedProgram, path: Path, facts: Facts, golden: GoldenImages) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    _add_extras(path, facts, golden)


def _add_extras(path: Path, facts: Facts, golden: GoldenImages) -> None:
    """Put what segkit knows where torch keeps `extra_files`: a .pt2 is a zip file with one folder."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{FACTS}", facts.to_json())
        archive.writestr(f"{root}/extra/{GOLDEN}", _as_text(golden))  # torch reads extra files as text


def _as_text(golden: GoldenImages) -> str:
    return base64.b64encode(golden.to_bytes()).decode()


_WRITERS = {"onnx": _write_onnx, "torch": _write_program, "aoti": _write_package}


def _batches_of_noise(model: Segmenter, traced: Traced) -> Iterator[list[GoldenImage]]:
    """Of several odd sizes, of the smallest, and of those at which the exporter assumed what does not hold there."""
    stride, least = model.stride, traced.least_side
    sizes = [(count, *(blocks * stride + pixels for blocks, pixels in sides)) for count, *sides in _CHECKED]
    for number, (count, height, width) in enumerate(dict.fromkeys([*sizes, (1, 1, 1), *traced.doubtful])):
        yield noise_images(model, [(max(least, height), max(least, width))] * count, seed=number)


def _golden_sizes(model: Segmenter) -> Iterable[tuple[int, int]]:
    side = max(96, 2 * model.stride)
    return ((side + 5, side + 32), (side, side), (side + 40, side + 11))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and advice of exporters: what goes wrong is told by us."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
