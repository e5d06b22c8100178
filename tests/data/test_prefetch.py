from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segkit.data import prefetch
from segkit.data.datasets import MaskDataset
from segkit.data.loaders import eval_loader, train_loader
from segkit.data.prefetch import DeviceLoader
from segkit.data.sample import Batch
from tests.data.stand_in import add_sample

CPU = torch.device("cpu")


def open_folder(folder, codec, **options) -> MaskDataset:
    return MaskDataset(folder / "images", folder / "masks", codec, **options)


def batches(values) -> list[Batch]:
    return [Batch([str(v)], torch.full((1, 3, 4, 5), v, dtype=torch.uint8), torch.zeros(1, 1, 4, 5)) for v in values]


def test_on_the_cpu_batches_pass_as_they_are(folder, codec):
    ds = open_folder(folder, codec)
    plain = train_loader(ds, 2, workers=0)
    loader = DeviceLoader(plain, CPU)
    assert len(loader) == len(plain) == 2
    for _ in range(2):  # epochs
        for mine, theirs in zip(loader, plain, strict=True):
            assert mine.stems == theirs.stems
            assert mine.images.dtype == torch.uint8
            assert torch.equal(mine.images, theirs.images)
            assert torch.equal(mine.target, theirs.target)


def test_lists_of_batches_pass_as_lists(folder, codec):
    add_sample(folder, codec, "wide", np.zeros((20, 40, 1), np.uint8))
    parts = list(DeviceLoader(eval_loader(open_folder(folder, codec), 6, workers=0), CPU))
    assert [[len(part) for part in batch] for batch in parts] == [[5, 1]]


def test_the_sampler_hears_of_the_epoch(folder, codec):
    loader = DeviceLoader(train_loader(open_folder(folder, codec), 2, seed=1, workers=0), CPU)
    stems = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        stems.append([batch.stems for batch in loader])
    assert stems[0] == stems[2] != stems[1]


def test_errors_of_workers_pass_through(folder, codec):
    ds = open_folder(folder, codec)
    (folder / "masks" / "c.npy").unlink()
    with pytest.raises(ValueError, match="no such mask"):
        list(DeviceLoader(train_loader(ds, 2, workers=1), CPU))


def test_a_loop_may_stop_early_and_begin_again(folder, codec):
    loader = DeviceLoader(train_loader(open_folder(folder, codec), 1, workers=1, shuffle=False), CPU)
    for _ in range(2):
        for batch in loader:
            assert batch.stems == ["a"]
            break
    assert [batch.stems[0] for batch in loader] == ["a", "b", "c", "town/d", "town/e"]


class RecordedStreams:
    """Stands in for `torch.cuda` where there is none, and writes down what is asked of it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def Stream(self, device):
        return SimpleNamespace(name="side")

    def stream(self, stream):
        return torch.autograd.set_grad_enabled(torch.is_grad_enabled())  # any context

    def current_stream(self, device):
        return SimpleNamespace(name="computing", wait_stream=lambda side: self.events.append(f"wait for {side.name}"))


def test_a_batch_is_waited_for_before_the_next_copy_and_handed_out_after_it(monkeypatch):
    streams = RecordedStreams()
    events = streams.events
    monkeypatch.setattr(prefetch.torch, "cuda", streams)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: events.append(f"record {stream.name}"))

    def to(self, device, non_blocking):
        assert non_blocking
        events.append(f"copy {self.stems[0]}")
        return self

    monkeypatch.setattr(Batch, "to", to)
    for batch in DeviceLoader(batches([1, 2]), torch.device("cuda")):
        events.append(f"compute {batch.stems[0]}")
    handing_over = ["wait for side", "record computing", "record computing"]
    assert events == ["copy 1", *handing_over, "copy 2", "compute 1", *handing_over, "compute 2"]
    assert list(DeviceLoader([], torch.device("cuda"))) == []
    (parts,) = DeviceLoader([batches([1, 2])], torch.device("cuda"))
    assert [part.stems for part in parts] == [["1"], ["2"]]


@pytest.mark.gpu
def test_on_a_gpu_every_batch_arrives_whole(folder, codec):
    """Copies and computing overlap; none may see bytes of another batch."""
    loader = [batch.pin_memory() for batch in batches(np.arange(40) % 250)]
    device = torch.device("cuda")
    work = torch.rand(2000, 2000, device=device)
    for number, batch in enumerate(DeviceLoader(loader, device)):
        for _ in range(5):
            work = (work @ work).clamp(0, 1)
        assert batch.images.device.type == "cuda"
        assert batch.images.dtype == torch.uint8
        assert (batch.images == number % 250).all()
