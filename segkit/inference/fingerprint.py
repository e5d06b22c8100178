"""What tells one model from another: a hash of all that its answers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.inference.models import SegmentationModel

_CHUNK_BYTES = 2**20
# Not a part of what a model is: it is in evaluation mode, wherever it lies.
_PASSED_OVER = {"training", "device"}


def fingerprint(model: SegmentationModel) -> str:
    """Differs between models that differ in weights, classes, thresholds, statistics, reading or options.

    Of an `nn.Module` the tensors and public attributes count, of another object all attributes: numbers, words, models,
    and files that are given by a `Path`. What cannot be looked into counts by its kind alone.
    """
    digest = hashlib.sha256()
    settings = (model.format.to_dict(), asdict(model.reading), model.resize, model.stride)
    digest.update(repr(settings).encode())
    _add(digest, model, {})
    return digest.hexdigest()


def _add(digest: Any, value: Any, seen: dict[int, Any]) -> None:
    """Add `value`, and what it is made of; `seen` keeps what was added, so that no other object gets its number."""
    if isinstance(value, str | int | float | bool | bytes | None | torch.dtype):
        digest.update(f"{value!r};".encode())
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    digest.update(f"{type(value).__qualname__}:".encode())
    if isinstance(value, Tensor):
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Path):
        _add_file(digest, value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _PASSED_OVER:
                _add(digest, key, seen)
                _add(digest, part, seen)
    elif isinstance(value, list | tuple):
        for part in value:
            _add(digest, part, seen)
    elif is_dataclass(value) and not isinstance(value, type):
        _add(digest, {name: getattr(value, name) for name in value.__dataclass_fields__}, seen)
    elif isinstance(value, nn.Module):
        _add(digest, dict(value.named_parameters(recurse=False)), seen)
        _add(digest, dict(value.named_buffers(recurse=False)), seen)
        _add(digest, dict(value.named_children()), seen)
        _add(digest, {name: part for name, part in vars(value).items() if name[0] != "_"}, seen)
    elif hasattr(value, "coarse_logits"):
        _add(digest, vars(value), seen)


def _add_file(digest: Any, path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
