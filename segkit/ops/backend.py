"""Which code runs an operator: Triton's kernels on a GPU that has them, else the definition in plain PyTorch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from functools import lru_cache
from typing import Literal

import torch

# "tiles" is the definition: plain PyTorch, tile by tile.
Backend = Literal["triton", "tiles"]


@lru_cache
def runs_triton(device: torch.device) -> bool:
    """True if Triton can compile for the device, and is there with all that it needs."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    # It builds the code that starts a kernel with a C compiler, which slim containers lack.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        warnings.warn(
            "Found no C compiler, which Triton needs: losses, decoding and counts run in plain PyTorch on the GPU, and "
            "take longer. Install gcc or clang, or name a compiler in the environment variable CC.",
            stacklevel=2,
        )
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)
