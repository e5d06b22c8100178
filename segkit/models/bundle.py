"""A bundle: one folder with all that predicting needs.

`model.safetensors` holds the network's tensors, `segkit.json` everything else: format with thresholds, codec,
architecture, encoder, bands, pixel statistics, post-processing, versions. Loading one executes no code from it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.files import write_whole
from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.bundle_files import DESCRIPTION, WEIGHTS, find_bundle, installed_versions, read_description
from segkit.models.segmenter import Segmenter
from segkit.models.statistics import PixelStatistics
from segkit.models.steps import Steps, open_steps, steps_to_list
from segkit.ops.sizes import resize_from_json, resize_to_json


def save_bundle(
    model: Segmenter,
    folder: str | Path,
    codec: Codec | None = None,
    *,
    state: dict[str, Tensor] | None = None,
    **notes: Any,
) -> Path:
    """Write `model` as a bundle; the folder is replaced whole or not at all.

    Args:
        codec: how predictions are written, usually the codec of the training masks.
        state: state dict of the network, where it is not the model's own.
        notes: JSON-ready values to keep beside it, such as the score it reached.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    fresh.chmod(0o755)
    try:
        tensors = model.network.state_dict() if state is None else state
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, fresh / WEIGHTS)
        except SafetensorError as error:
            raise OSError(f"{folder}: the model could not be written ({error}). Make room, then try again.") from error
        text = json.dumps(_describe(model, codec, notes), indent=2, ensure_ascii=False)
        (fresh / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        _replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def load_model(
    path: str | Path, device: str | torch.device = "cpu", architecture: Callable[..., nn.Module] | None = None
) -> Segmenter:
    """The model of a bundle or of a run folder, in evaluation mode.

    Args:
        architecture: the callable that built the network, for a network of your own; a bundle only names it
            and nothing is imported on the word of a file.

    Raises:
        ValueError: not a bundle, or its parts do not belong together.
    """
    folder = find_bundle(Path(path))
    described = read_description(folder)
    try:
        format = MaskFormat.from_dict(described["format"])
        if ":" in described["architecture"] and architecture is None:
            raise ValueError(
                f"its network is {described['architecture']!r}, which is not part of segkit: "
                "call load_model(path, architecture=...) with that callable."
            )
        model = build_model(
            architecture or described["architecture"],
            described["encoder"],
            format,
            weights=None,
            in_channels=described["in_channels"],
            resize=resize_from_json(described["resize"]),
            **described["options"],
        )
        model.statistics = PixelStatistics(**described["statistics"])
        model.reading = ImageReading(**described["reading"])
        model.postprocess = open_steps(described.get("postprocess", []), format)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / DESCRIPTION}: describes no model: {_reason(error)}") from error
    load_weights(model, folder)
    return model.to(device).eval()


def update_bundle(path: str | Path, format: MaskFormat, postprocess: Steps, **notes: Any) -> None:
    """Write other thresholds and steps of post-processing into a bundle or run folder; weights stay.

    Args:
        format: that of the model, `with_thresholds`.
        notes: JSON-ready values to keep beside it, in place of those of the same names.
    """
    folder = find_bundle(Path(path))
    described = read_description(folder) | {"format": format.to_dict(), "postprocess": steps_to_list(postprocess)}
    text = json.dumps(described | notes, indent=2, ensure_ascii=False)
    write_whole(folder / DESCRIPTION, (text + "\n").encode())


def load_weights(model: Segmenter, folder: Path) -> None:
    """Put the tensors of a bundle into a model of the same shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.network.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged, or of another network: {error}") from error


def load_codec(path: str | Path, format: MaskFormat | None = None) -> Codec | None:
    """The codec stored in a bundle or run folder; None if it was saved without one."""
    described = read_description(find_bundle(Path(path)))
    if described["codec"] is None:
        return None
    return open_codec(described["codec"], format or MaskFormat.from_dict(described["format"]))


def _describe(model: Segmenter, codec: Codec | None, notes: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": model.format.to_dict(),
        "codec": codec.to_spec() if codec is not None else None,
        "architecture": model.recipe.architecture,
        "encoder": model.recipe.encoder,
        "options": model.recipe.options,
        "in_channels": model.in_channels,
        "resize": resize_to_json(model.resize),
        "reading": asdict(model.reading),
        "statistics": asdict(model.statistics),
        "postprocess": steps_to_list(model.postprocess),
        "versions": installed_versions(),
        **notes,
    }


def _replace_folder(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.replace(folder, old / "bundle")
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _reason(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
