"""segkit: train, score and run semantic segmentation models.

Public names are loaded when they are first used, so `import segkit` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from segkit._version import __version__

if TYPE_CHECKING:
    from segkit.data.augment import build_augment
    from segkit.data.datasets import MaskDataset
    from segkit.formats.classes import MaskClass
    from segkit.formats.codecs import open_codec
    from segkit.formats.mask_format import MaskFormat
    from segkit.inference.evaluate import evaluate
    from segkit.inference.predictor import Predictor
    from segkit.losses.build import build_loss
    from segkit.metrics.counts import PixelCounts
    from segkit.models.builder import build_model
    from segkit.models.bundle import load_model
    from segkit.training.fit import fit

_HOMES = {
    "MaskFormat": "segkit.formats.mask_format",
    "MaskClass": "segkit.formats.classes",
    "open_codec": "segkit.formats.codecs",
    "MaskDataset": "segkit.data.datasets",
    "build_augment": "segkit.data.augment",
    "build_model": "segkit.models.builder",
    "load_model": "segkit.models.bundle",
    "build_loss": "segkit.losses.build",
    "PixelCounts": "segkit.metrics.counts",
    "fit": "segkit.training.fit",
    "evaluate": "segkit.inference.evaluate",
    "Predictor": "segkit.inference.predictor",
}

__all__ = [
    "MaskClass",
    "MaskDataset",
    "MaskFormat",
    "PixelCounts",
    "Predictor",
    "__version__",
    "build_augment",
    "build_loss",
    "build_model",
    "evaluate",
    "fit",
    "load_model",
    "open_codec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segkit' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
