"""What the processes of tests/training/test_distributed.py do; started by torchrun or by `fit` itself.

python -m torch.distributed.run --nproc-per-node 2 tests/training/ranks.py compare FOLDER
python tests/training/ranks.py end FOLDER fail|stop|nan
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from segkit.data.augment import build_augment
from segkit.data.datasets import MaskDataset
from segkit.inference.evaluate import evaluate
from segkit.losses.build import build_loss
from segkit.models.builder import build_model
from segkit.training.fit import fit
from segkit.training.preemption import Preempted
from tests.scenes import FORMATS, default_codec

FORMAT = FORMATS["exclusive"]
# No statistics over a batch, no dropout, and a loss that is the mean of those of equal crops: linear in the images.
SIZES = {"decoder_dropout": 0.0, "decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64}
OPTIONS = {"epochs": 3, "lr": 3e-3, "workers": 0, "device": "cpu", "checkpoint_every_steps": 2}


def open_set(folder: Path) -> MaskDataset:
    return MaskDataset(folder / "images", folder / "masks", default_codec(FORMAT))


class Order(Callback):
    """The stems of each training batch of this process, in order."""

    def __init__(self):
        self.stems = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.stems.append(batch.stems)


class At(Callback):
    """Calls `action` in one process after one training batch."""

    def __init__(self, rank, epoch, batch, action):
        self.moment, self.action = (rank, epoch, batch), action

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.global_rank, trainer.current_epoch, batch_idx) == self.moment:
            self.action()


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, name: str, *callbacks, val="val", resume=False, loss=None, **options):
    """Trains on 13 images with batches of 4 over all processes; 3 or 1 images are scored."""
    train, val = open_set(folder / "train"), open_set(folder / val)
    train.augment = build_augment("light", FORMAT, crop=64)
    torch.manual_seed(9 if resume else 0)
    model = build_model("fpn", "tu-test_efficientnet_gn", FORMAT, weights=None, **SIZES)
    settings = {**OPTIONS, "batch_size": 4 // int(os.environ.get("WORLD_SIZE", "1")), **options}
    quiet = {"callbacks": callbacks, "tell": lambda line: None, "resume": resume}
    loss = loss or build_loss("cross_entropy", FORMAT)
    fit(model, train, val, out=folder / name, loss=loss, **quiet, **settings)
    return model, val


def compare(folder: Path) -> None:
    """Runs to be compared with those of one process; `folder`/rankN.json says what this process saw."""
    rank = int(os.environ.get("RANK", "0"))
    order = Order()
    twice = {"epochs": 2, "repeat": 2}
    model, val = train(folder, "double", order, precision="64-true", ema=0.5, freeze_encoder_epochs=1, **twice)
    scores = evaluate(model.float(), val, device="cpu", workers=0).to_dict()
    Path(folder, f"rank{rank}.json").write_text(json.dumps({"order": order.stems, "scores": scores}))
    if not dist.is_initialized():
        return
    # One image for two processes; plain weights in shares, with a checkpoint that is resumed without.
    plain = {"channels_last": False, "epochs": 2}  # shares are
    for strategy in ("ddp", "fsdp"):
        train(folder, strategy, val="one", strategy=strategy, **plain)
    for strategy, asked in (("ddp", 1), ("fsdp", 0)):
        try:
            train(folder, f"{strategy}-cut", At(asked, 1, 0, terminate), val="one", strategy=strategy, **plain)
        except Preempted:
            train(folder, f"{strategy}-cut", val="one", strategy=strategy, resume=True, **plain)


def broken():
    raise ValueError("broken on purpose")


class Spoiled(torch.nn.Module):
    """Cross entropy that is NaN in the fifth training batch of the second process."""

    def __init__(self):
        super().__init__()
        self.plain, self.calls = build_loss("cross_entropy", FORMAT), 0

    def forward(self, logits, target):
        self.calls += torch.is_grad_enabled()
        return self.plain(logits, target) * (torch.nan if self.calls == 5 and dist.get_rank() == 1 else 1.0)


def end(folder: Path, how: str) -> None:
    """A run of two processes that `fit` starts; in the second epoch one fails, is asked to stop, or has no loss."""
    at = {"fail": [At(1, 1, 0, broken)], "stop": [At(0, 1, 0, terminate)], "nan": []}[how]
    train(folder, how, *at, loss=Spoiled() if how == "nan" else None, devices=2, batch_size=2)


if __name__ == "__main__":
    what, folder, *more = sys.argv[1:]
    torch.set_num_threads(1)
    {"compare": compare, "end": end}[what](Path(folder), *more)
