"""A model whose weights, gradients and optimizer state lie in shares on several devices: FSDP.

This is `torch.distributed.fsdp.fully_shard` (FSDP2, the successor of FullyShardedDataParallel) under Lightning's
`ModelParallelStrategy`. Parameters keep their names and shapes, so optimizers group them as ever.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from segkit.training.launching import WatchedLauncher
from segkit.training.settings import TrainSettings

# Parameters of a block that is gathered as a whole; smaller ones would cost more messages than memory.
_BLOCK = 1_000_000
# What Lightning's strategy computes in.
_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP over all processes; checkpoints are single files, as of any run, and may be resumed without FSDP."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WatchedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


def check_sharding(settings: TrainSettings) -> None:
    """Refuse what a sharded model cannot do.

    Raises:
        ValueError: names the setting.
    """
    for name in ("compile", "ema", "layer_decay", "freeze_encoder_epochs", "deep_supervision"):
        if getattr(settings, name) not in (None, False):
            raise ValueError(
                f"strategy is fsdp, which shares out the weights, and {name} needs them whole: take `strategy: ddp`, "
                f"or leave `{name}` out."
            )
    if settings.precision not in ("auto", *_PRECISIONS):
        raise ValueError(f"precision is {settings.precision!r}: expected with fsdp {', '.join(_PRECISIONS)} or auto.")


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Share the parameters of `network` among the processes of `mesh`, in place, block by block."""
    for module in _blocks(network):
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors. A collective of all processes where the network is sharded."""
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in network.state_dict().items()}


def hold_whole(network: nn.Module) -> None:
    """Gather all weights and keep them, so that processes may compute different numbers of batches in validation.

    Otherwise each forward pass is a collective, for which one process would wait that has no batch left.
    """
    for module in _sharded(network):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def hold_shares(network: nn.Module) -> None:
    """Undo `hold_whole`."""
    for module in _sharded(network):
        module.reshard()
        module.set_reshard_after_forward(True, recurse=False)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Modules to gather one after another: the largest ones that call their own `forward`, see `_BLOCK`."""
    found: list[nn.Module] = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or _parameters(child) > 8 * _BLOCK:
            found += _blocks(child)
        if not isinstance(child, nn.ModuleList | nn.ModuleDict) and _parameters(child) >= _BLOCK:
            found.append(child)
    return found


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _sharded(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]
