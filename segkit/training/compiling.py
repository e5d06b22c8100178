"""The network compiled for training, and as it is written everywhere else."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from segkit.data.datasets import MaskDataset
from segkit.ops.sizes import is_one_size

MODES = ("default", "reduce-overhead", "max-autotune")

# Those in which torch records CUDA graphs.
_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_BACKEND = "inductor"


class CompiledTraining(Callback):
    """Training steps run `network` compiled for their one shape; validation runs it as it is written.

    Images come to validation in any size, and each would be compiled anew, which takes as long as many epochs of it.
    The network is compiled in place: its state dict has the same names as ever.

    Args:
        mode: one of `MODES`, see `torch.compile`.
    """

    def __init__(self, network: nn.Module, mode: str) -> None:
        self.network, self.mode = network, mode
        self._compiled_call: Any = None
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.network.compile(mode=self.mode, dynamic=False, backend=_BACKEND)
        if self.mode in _GRAPH_MODES and module.device.type == "cuda":
            own = [p for p in self.network.parameters() if p.requires_grad]
            self._gradients = [(p, torch.zeros_like(p)) for p in own]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._gradients:
            # What the graphs gave in the last step is not looked at any more, and may be written over.
            torch.compiler.cudagraph_mark_step_begin()

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        # A first gradient would stay in the memory of its graph, whose next run writes over it: what is accumulated
        # over several batches would be lost. So gradients are added to memory of their own.
        # None for weights that are frozen now: of gradients of zero an optimizer makes steps.
        unset = [(p, own) for p, own in self._gradients if p.requires_grad and p.grad is None]
        for parameter, own in unset:
            parameter.grad = own
        if unset:
            torch._foreach_zero_([own for _, own in unset])

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._compiled_call = self.network._compiled_call_impl
        leave_uncompiled(self.network)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.network._compiled_call_impl = self._compiled_call


def leave_uncompiled(network: nn.Module) -> None:
    """Undo `network.compile()`, for which torch has no function."""
    network._compiled_call_impl = None


def compile_mode(compile: bool | str) -> str | None:
    """The mode of `torch.compile`, None to leave it.

    Raises:
        ValueError: no such mode.
    """
    if isinstance(compile, bool):
        return "default" if compile else None
    if compile not in MODES:
        raise ValueError(f"compile is {compile!r}: expected true, false, {', '.join(MODES)}.")
    return compile


def check_one_size(train: MaskDataset) -> None:
    """Refuse training images that may come in several sizes, as each would be compiled anew.

    Raises:
        ValueError: neither a crop nor a fixed size.
    """
    spec = getattr(train.augment, "spec", "none" if train.augment is None else None)
    # A list of transforms, or a function of one's own, may cut by itself.
    if not isinstance(spec, str) or getattr(train.augment, "crop", None) or is_one_size(train.resize):
        return
    raise ValueError(
        "compile makes a network for one size of images, and nothing says that the training images have one: set "
        "`data.crop`, or `data.resize: [height, width]`, which may be the size that all have; or leave `train.compile`."
    )
