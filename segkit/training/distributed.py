"""Several processes that train one model: how many, by which strategy, and what they have to share.

The arithmetic of data parallelism is that of `torch.nn.parallel.DistributedDataParallel`: each process computes the
loss of its own batch, and gradients are averaged.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from torch import nn

from segkit.models.segmenter import Segmenter
from segkit.processes import in_srun, started_by_launcher
from segkit.suggest import closest
from segkit.training.launching import WatchedLauncher
from segkit.training.settings import TrainSettings
from segkit.training.sharding import ShardedStrategy, check_sharding


@dataclass(frozen=True)
class Processes:
    """How many processes train, and where.

    Attributes:
        place: kind of device.
        devices: processes on each machine, one for each device; or the numbers of the devices.
        nodes: machines.
    """

    place: torch.device
    devices: int | list[int]
    nodes: int

    @property
    def total(self) -> int:
        """Processes on all machines."""
        return self.nodes * (self.devices if isinstance(self.devices, int) else len(self.devices))


class DataParallel(DDPStrategy):
    """DDP with processes that end together."""

    def __init__(self, find_unused_parameters: bool) -> None:
        # Buffers are shared once before each validation, not in each step; in validation itself processes have
        # different numbers of batches and would wait for each other.
        super().__init__(find_unused_parameters=find_unused_parameters, broadcast_buffers=False)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = WatchedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


def count_processes(settings: TrainSettings, place: torch.device) -> Processes:
    """How many processes train: as many as torchrun or srun has started, else as the settings say.

    Raises:
        ValueError: several processes on one GPU, or more GPUs than there are.
    """
    started = started_by_launcher()
    found = torch.cuda.device_count() if place.type == "cuda" else 1
    devices, nodes = started or (found if settings.devices == "auto" else settings.devices, settings.nodes)
    if place.type == "cuda" and place.index is not None:
        if devices * nodes > 1:
            raise ValueError(
                f"device is {place}, one GPU, for {devices * nodes} processes: say `device: cuda`, and choose among "
                "the GPUs of a machine with CUDA_VISIBLE_DEVICES."
            )
        return Processes(place, [place.index], nodes)
    if place.type == "cuda" and devices > found:
        raise ValueError(f"{devices} processes on this machine, but torch finds {found} CUDA GPUs: one for each.")
    if place.type == "mps" and devices * nodes > 1:
        raise ValueError("several processes cannot share an Apple GPU: leave `devices` at 1, or say `device: cpu`.")
    return Processes(place, devices, nodes)


def check_strategy(settings: TrainSettings, processes: Processes) -> None:
    """Refuse a strategy that there is not, or that cannot do what the settings ask for.

    Raises:
        ValueError: names the setting.
    """
    known = ["auto", "ddp", "fsdp", *StrategyRegistry.available_strategies()]
    if settings.strategy not in known:
        nearest = closest(settings.strategy, known)
        raise ValueError(
            f"strategy is {settings.strategy!r}: expected auto, ddp, fsdp or another of Lightning. {nearest}"
        )
    if settings.strategy == "fsdp" and processes.total > 1:
        check_sharding(settings)


def pick_strategy(settings: TrainSettings, processes: Processes, model: Segmenter) -> Strategy | str:
    """The strategy of `lightning.Trainer`.

    Raises:
        ValueError: see `check_strategy`.
    """
    check_strategy(settings, processes)
    name = settings.strategy
    if processes.total == 1 and name in ("auto", "ddp", "fsdp"):
        return "auto"
    if name in ("auto", "ddp"):
        frozen = settings.freeze_encoder_epochs > 0  # an encoder whose gradients DDP would wait for
        return DataParallel(find_unused_parameters=frozen or has_unused_parameters(model))
    if name == "fsdp":
        return ShardedStrategy(processes.total)
    return name


def environments() -> list[Any]:
    """The plugin that tells Lightning who started the processes, where it would guess wrong.

    Lightning takes every SLURM job for one whose processes srun has started, and waits for them; and there it would
    catch the signals, save to a file of its own, requeue the job, and start from that file.
    """
    if not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if in_srun() else LightningEnvironment()]


def model_to_train(model: Segmenter, settings: TrainSettings, processes: Processes) -> Segmenter:
    """`model` itself, or a copy of it where training in several processes changes the network.

    BatchNorm becomes SyncBatchNorm; shards are no tensors that anybody else could use. The weights keep their names.

    Raises:
        ValueError: SyncBatchNorm where there is none.
    """
    synchronised = synchronises_batchnorm(model, settings, processes)
    sharded = processes.total > 1 and settings.strategy == "fsdp"
    if not (synchronised or sharded):
        return model
    trained = copy.deepcopy(model)
    if sharded:
        trained.to(memory_format=torch.contiguous_format)  # the only one that can be shared
    if synchronised:
        # Not Lightning's, nor that of torch: they drop the activation that timm's BatchNormAct2d has inside.
        from timm.layers import convert_sync_batchnorm

        trained.network = convert_sync_batchnorm(trained.network)
    return trained


def synchronises_batchnorm(model: Segmenter, settings: TrainSettings, processes: Processes) -> bool:
    """Whether BatchNorm takes its statistics over the batches of all processes.

    Raises:
        ValueError: asked for on a device that has no SyncBatchNorm.
    """
    has_any = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.network.modules())
    if processes.total == 1 or not has_any or settings.sync_batchnorm is False:
        return False
    if processes.place.type != "cuda":
        if settings.sync_batchnorm:
            raise ValueError(
                f"sync_batchnorm: torch has no SyncBatchNorm on a {processes.place.type}, only on CUDA GPUs. Leave it "
                "out: each process then takes statistics of its own batches."
            )
        return False
    return True


def has_unused_parameters(model: Segmenter) -> bool:
    """Whether some parameters get no gradient, as those of stages that an encoder has and does not use.

    DDP waits for the gradients of all parameters, unless it is told to look for those that get none in each step, which
    costs a little. Found by a small black image; a network that does not take one may have any.
    """
    probe = copy.deepcopy(model).cpu().eval()  # eval: BatchNorm takes a batch of one
    side = max(2 * probe.stride, probe.min_side)
    dtype = next(probe.network.parameters()).dtype
    try:
        probe(torch.zeros((1, probe.in_channels, side, side), dtype=dtype)).sum().backward()
    except (RuntimeError, ValueError):
        return True
    return any(p.requires_grad and p.grad is None for p in probe.parameters())


def share_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of the first: running statistics of BatchNorm, of which each has its own.

    The first writes checkpoints and bundles, so its statistics are those to validate. Training does not read them.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
