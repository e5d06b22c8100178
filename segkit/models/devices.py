"""Where a model computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU; any other word as torch takes it.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {device!r}: expected auto, cpu, cuda, cuda:1 or mps.")
    if chosen.type == "cuda" and not (chosen.index or 0) < torch.cuda.device_count():
        raise ValueError(f"device is {device}, but torch finds no CUDA GPU of that number here: use `auto` or `cpu`.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is mps, but torch finds no Apple GPU here: use `auto` or `cpu`.")
    return chosen


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 on a CUDA GPU that has it, float32 elsewhere."""
    if device.type == "cuda" and has_bfloat16():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def has_bfloat16() -> bool:
    """True on a CUDA GPU that computes in bfloat16; older ones imitate it, slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
