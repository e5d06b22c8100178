"""Write a bundle as one file that other programs run, and only if it gives the same masks."""

from __future__ import annotations

import base64
import importlib.util
import logging
import math
import operator
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
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.inference.export_graph import StoredToPlanes
from segkit.inference.exported import FACTS, GOLDEN, ExportedModel, Facts, first_line, open_exported
from segkit.inference.golden import GoldenImage, GoldenImages, noise_images, predict_golden, read_golden
from segkit.inference.inputs import find_inputs
from segkit.inference.verify import Comparison, compare_batches, compare_golden
from segkit.models.bundle import load_model
from segkit.models.bundle_files import find_bundle, read_description
from segkit.models.segmenter import Segmenter

# Format -> suffix of its files.
EXPORT_FORMATS = {"onnx": ".onnx", "torch": ".pt2", "aoti": ".pt2"}
TOLERANCE = 1e-3
# Sizes that are checked beside the golden images, as (batch, height, width) in strides and further pixels.
_CHECKED = ((1, (2, 5), (3, 7)), (2, (4, 1), (2, 0)), (3, (2, 3), (2, 1)))
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
            program = trace(graph)
    except Exception as error:  # exporters have exceptions of all kinds
        raise ValueError(f"{what} cannot be exported: {first_line(error)}") from error
    kept = read_golden(bundle)
    golden = predict_golden(model, noise_images(model, _golden_sizes(model)) if kept is None else kept.images)
    outputs = ("planes", "probabilities") if probabilities else ("planes",)
    facts = Facts(described, format, model.statistics.dtype, model.stride, _least_side(program), outputs)
    part = out.with_name(f".{out.stem}.{uuid.uuid4().hex[:12]}.part{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with _quiet():
                _WRITERS[format](program, part, facts, golden)
                exported = open_exported(part)
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{what} cannot be exported to {format}: {first_line(error)}") from error
        checked = _check(exported, model, golden, images)
        if not checked.within(tolerance):
            raise ValueError(
                f"{out}: not written. {checked.describe()}, and at most {tolerance:g} is allowed. Try another format, "
                "or a higher --tolerance if so many do not matter."
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


def trace(graph: StoredToPlanes) -> torch.export.ExportedProgram:
    """The graph as a program of torch.export, for any batch size, height and width."""
    import torch.fx.experimental._config as symbols
    from torch.export import Dim

    graph = graph.eval()
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Sizes of 1, and equal sizes, are no cases of their own. What is still assumed of sizes becomes an assertion.
    with torch.no_grad(), cast(Any, symbols).patch(backed_size_oblivious=True):
        program = torch.export.export(
            graph, (graph.example(),), dynamic_shapes=(any_size,), prefer_deferred_runtime_asserts_over_guards=True
        )
    # They say what was assumed to find strides and memory formats, such as "more than one image", and would refuse
    # what is computed correctly. Whether it is, `_check` tells at other sizes.
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
        elif node.target is math.ceil:
            _divide_in_whole_numbers(program.graph, node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _divide_in_whole_numbers(graph: torch.fx.Graph, ceiling: torch.fx.Node) -> None:
    """Put -(-a // b) for ceil(a / b), by which timm computes padding: torch saves no program with a ceil."""
    (quotient,) = ceiling.args
    if not isinstance(quotient, torch.fx.Node) or quotient.target is not operator.truediv:
        return
    value: Any = quotient.args[0]
    divisor = quotient.args[1]
    with graph.inserting_before(ceiling):
        steps: list[tuple[Any, tuple[Any, ...]]] = [
            (operator.neg, ()),
            (operator.floordiv, (divisor,)),
            (operator.neg, ()),
        ]
        for operation, others in steps:
            node = graph.call_function(operation, (value, *others))
            node.meta["val"] = operation(*(a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in node.args))
            value = node
    ceiling.replace_all_uses_with(value)
    graph.erase_node(ceiling)


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


def _least_side(program: torch.export.ExportedProgram) -> int:
    """Smallest height and width that the exporter leaves to the program."""
    (images,) = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    least = 1
    for side in images.meta["val"].shape[-2:]:
        found = program.range_constraints.get(side.node.expr)
        least = max(least, 1 if found is None else int(found.lower))
    return least


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


def _check(
    exported: ExportedModel, model: Segmenter, golden: GoldenImages, images: Iterable[GoldenImage]
) -> Comparison:
    """The golden images, those that were given, and batches of noise of several sizes."""
    stride, least = model.stride, exported.facts.least_side
    batches = []
    for number, (count, *sides) in enumerate(_CHECKED):
        height, width = (max(least, blocks * stride + pixels) for blocks, pixels in sides)
        batches.append(noise_images(model, [(height, width)] * count, seed=number))
    batches += [noise_images(model, [(least, least)]), *([image] for image in images)]
    return compare_golden(exported, golden).joined(compare_batches(exported, model, batches))


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
