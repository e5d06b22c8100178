"""What a run ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from segkit.models.bundle_files import installed_versions


def describe_environment() -> dict[str, Any]:
    """Versions, devices and threads, for whoever asks later what made these numbers."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": installed_versions(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
