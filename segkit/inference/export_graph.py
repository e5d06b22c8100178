"""A model as one graph: stored images in, planes out, at any batch size, height and width."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.models.segmenter import STORED_DTYPES, Segmenter
from segkit.ops.sizes import Spacing, scaled

# Odd, unequal and of many strides: what the exporter sees is not to be taken for a rule, such as "the padding is 0".
_EXAMPLE_BATCH, _EXAMPLE_BLOCKS = 3, (9, 11)


class StoredToPlanes(nn.Module):
    """All that a `Segmenter` does to whole images, written so that exporters can follow it.

    Sizes are computed, never looked at; planes are decoded by `format.decode_plainly`.

    Args:
        model: stays as it is; the graph has a copy on the CPU.
        probabilities: give them as the second output.

    Raises:
        ValueError: the model needs more than the pixels of an image.
    """

    def __init__(self, model: Segmenter, probabilities: bool) -> None:
        super().__init__()
        if isinstance(model.resize, Spacing):
            raise ValueError(
                "it works at a spacing in mm, and a graph sees pixels, not how far they are apart. Predict with the "
                "bundle, or train with `data.resize`."
            )
        self.model = copy.deepcopy(model).cpu().eval()
        self.model.network = _with_plain_pooling(self.model.network)
        self.probabilities = probabilities
        self.stored_dtype = STORED_DTYPES[model.statistics.dtype]
        self.planes_dtype = STORED_DTYPES[str(model.format.dtype)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, B, H, W) of `stored_dtype` to (N, P, H, W) planes and, if wanted, (N, C, H, W) probabilities."""
        stored_hw = (images.shape[-2], images.shape[-1])
        resized = self.model.resize is not None
        height, width = self._working_size(*stored_hw)
        values = self.model.normalize(self.model.resized(images, (height, width)) if resized else images)
        rows, columns = self._repeated(height, images.device), self._repeated(width, images.device)
        padded = values.index_select(2, rows).index_select(3, columns)
        logits = self.model.network(padded)[..., :height, :width]
        if resized:
            logits = F.interpolate(logits, stored_hw, mode="bilinear", align_corners=False)
        planes = self.model.format.decode_plainly(logits).to(self.planes_dtype)
        return (planes, self.model.format.probabilities(logits)) if self.probabilities else (planes,)

    def example(self) -> Tensor:
        """Images for an exporter, which reads their shape and dtype alone."""
        height, width = (blocks * self.model.stride + 5 for blocks in _EXAMPLE_BLOCKS)
        shape = (_EXAMPLE_BATCH, self.model.in_channels, height, width)
        return torch.zeros(shape, dtype=self.stored_dtype)

    def _working_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """What `fit_size` gives, of numbers that are not known yet."""
        resize = self.model.resize
        if resize is None:
            return height, width
        if isinstance(resize, Sequence):
            return resize[0], resize[1]
        assert isinstance(resize, int)
        longest: Any = torch.sym_max(height, width)
        return tuple(torch.sym_max(1, scaled(side, resize, longest)) for side in (height, width))  # type: ignore[return-value]

    def _repeated(self, length: Any, device: torch.device) -> Tensor:
        """Numbers of the rows that `pad_to_stride` gives: the last is repeated up to a whole stride."""
        stride, least = self.model.stride, self.model.min_side
        whole: Any = torch.sym_max(length, least) if least > 1 else length
        return torch.arange((whole + stride - 1) // stride * stride, device=device).clamp_max(length - 1)


@dataclass(frozen=True)
class Traced:
    """A graph as a program of torch.export, for any batch size, height and width.

    Attributes:
        least_side: smallest height and width that the exporter leaves to the program.
        doubtful: (batch, height, width) at which something does not hold that the exporter assumed.
    """

    program: torch.export.ExportedProgram
    least_side: int
    doubtful: tuple[tuple[int, int, int], ...]


def trace(graph: StoredToPlanes) -> Traced:
    """Follow the graph through its example."""
    import torch.fx.experimental._config as symbols
    from torch.export import Dim

    graph = graph.eval()
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Sizes of 1, and equal sizes, are no cases of their own. What is still assumed of sizes becomes an assertion.
    with torch.no_grad(), cast(Any, symbols).patch(backed_size_oblivious=True):
        program = torch.export.export(
            graph, (graph.example(),), dynamic_shapes=(any_size,), prefer_deferred_runtime_asserts_over_guards=True
        )
    # Most say what was assumed to find strides and memory formats, such as "more than one image", and would refuse
    # what is computed correctly. Whether it is has to be tried where they do not hold.
    assumed = []
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            assumed.append(node.args[0])
            program.graph.erase_node(node)
        elif node.target is math.ceil:
            _divide_in_whole_numbers(program.graph, node)
    (images,) = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    batch, _, height, width = images.meta["val"].shape
    least = max(_least(program, side) for side in (height, width))
    doubtful = _doubtful(assumed, (batch, height, width), graph.model.stride, least)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return Traced(program, least, doubtful)


class PlainAdaptivePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products with matrices: exporters take its windows for those of one image size."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.size_hw = size_hw

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        down, across = (
            self._windows(small, side, values) for small, side in zip(self.size_hw, values.shape[-2:], strict=True)
        )
        return down @ values @ across.T

    @staticmethod
    def _windows(small: int, side: Any, like: Tensor) -> Tensor:
        """(small, side): window i averages from floor(i side / small) to ceil((i + 1) side / small)."""
        place = torch.arange(side, device=like.device)
        number = torch.arange(small, device=like.device)[:, None]
        first, end = number * side // small, ((number + 1) * side + small - 1) // small
        inside = (place >= first) & (place < end)
        return inside.to(like.dtype) / (end - first)


def _least(program: torch.export.ExportedProgram, side: Any) -> int:
    found = program.range_constraints.get(side.node.expr)
    return 1 if found is None else max(1, int(found.lower))


def _doubtful(
    assumed: Iterable[Any], sizes: tuple[Any, Any, Any], stride: int, least: int
) -> tuple[tuple[int, int, int], ...]:
    """For each assumption of the sizes, the fewest pixels at which it is wrong; none where it is right everywhere."""
    sides = [max(least, side) for side in (1, stride, stride + 1, 4 * stride, 40 * stride)]
    places = ((n, height, width) for n, height, width in itertools.product((1, 5), sides, sides))
    # One pixel tells little of an answer.
    tried = sorted((place for place in places if place[1:] != (1, 1)), key=math.prod)
    symbols = [size.node.expr for size in sizes]
    conditions = {
        node.meta["val"].node.expr: None
        for node in assumed
        if isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.SymBool)
    }
    found: dict[tuple[int, int, int], None] = {}
    for condition in conditions:
        for place in tried:
            if condition.xreplace(dict(zip(symbols, map(sympy.Integer, place), strict=True))) == sympy.false:
                found[place] = None
                break
    return tuple(found)


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


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                size_hw = (size, size) if isinstance(size, int) else size
                # Pooling to one pixel is a mean, which exports as it is; None keeps a side.
                if size_hw is not None and None not in size_hw and tuple(size_hw) != (1, 1):
                    setattr(module, name, PlainAdaptivePool((int(size_hw[0]), int(size_hw[1]))))  # type: ignore[arg-type]
    return network
