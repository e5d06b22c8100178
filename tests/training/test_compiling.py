from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segkit.data.augment import build_augment
from segkit.models.builder import build_model
from segkit.training import compiling
from segkit.training.compiling import MODES, CompiledTraining, check_one_size, compile_mode
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model

FORMAT = FORMATS["exclusive"]


class Tiny(nn.Module):
    """A network of one's own, which inductor compiles in seconds."""

    def __init__(self, encoder_name: str, encoder_weights: str | None, in_channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1)
        )

    def forward(self, x):
        return self.layers(x)


def tiny_model(seed: int = 0):
    torch.manual_seed(seed)
    return build_model(Tiny, "none", FORMAT, weights=None)


@pytest.fixture
def graphs(monkeypatch):
    """For every graph that is compiled, the shape of its images and how often it ran; it runs as it is written."""
    torch._dynamo.reset()
    compiled: list[dict] = []

    def backend(graph, inputs):
        (shape,) = (tuple(x.shape) for x in inputs if x.ndim == 4 and x.shape[1] == 3 and x.shape[2] > 7)
        compiled.append({"images": shape, "runs": 0})
        facts = compiled[-1]

        def run(*arguments):
            facts["runs"] += 1
            return graph.forward(*arguments)

        return run

    monkeypatch.setattr(compiling, "_BACKEND", backend)
    return compiled


def test_a_compiled_run_is_the_plain_run_in_one_graph(tmp_path, graphs):
    """Two epochs of two batches of 32 x 32; validation images are 40 x 56 and never compiled."""
    plain, *_ = run(tmp_path, FORMAT, "plain")
    assert graphs == []
    compiled, *_ = run(tmp_path, FORMAT, "compiled", compile=True)
    assert graphs == [{"images": (3, 3, 32, 32), "runs": 4}]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert (tmp_path / "compiled" / "metrics.csv").read_text() == (tmp_path / "plain" / "metrics.csv").read_text()
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, compiled.network.state_dict()[name]), name
    # Left as it was: images of any size are welcome again.
    compiled(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert len(graphs) == 1


def test_an_encoder_that_thaws_is_compiled_anew(tmp_path, graphs):
    plain, *_ = run(tmp_path, FORMAT, "plain", freeze_encoder_epochs=1)
    compiled, *_ = run(tmp_path, FORMAT, "compiled", freeze_encoder_epochs=1, compile=True)
    assert graphs == [{"images": (3, 3, 32, 32), "runs": 2}] * 2
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, compiled.network.state_dict()[name]), name


def test_checkpoints_know_nothing_of_compiling(tmp_path, graphs):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise RuntimeError("stopped")

    whole = tiny_model()
    run(tmp_path, FORMAT, "whole", model=whole)
    train, val = write_set(tmp_path / "t", FORMAT, 6), write_set(tmp_path / "v", FORMAT, 3)
    train.augment = build_augment("light", FORMAT, crop=32)
    stopped = tiny_model()
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, FORMAT, "cut", model=stopped, train=train, val=val, compile="default", callbacks=[Stop()])
    assert stopped.network._compiled_call_impl is None
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name for name in saved if name.startswith("model.")} == {f"model.{n}" for n in whole.state_dict()}
    resumed = tiny_model(seed=9)
    run(tmp_path, FORMAT, "cut", model=resumed, train=train, val=val, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_inductor_compiles_what_trains(tmp_path):
    torch._dynamo.reset()
    plain, compiled = tiny_model(), tiny_model()
    *_, one, _ = run(tmp_path, FORMAT, "plain", model=plain)
    *_, two, _ = run(tmp_path, FORMAT, "compiled", model=compiled, compile=True)
    assert two.best == pytest.approx(one.best, abs=1e-3)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, compiled.state_dict()[name], rtol=1e-2, atol=1e-3), name


def test_a_batch_of_one_is_explained_in_a_compiled_network_as_well(graphs):
    model = build_model("deeplabv3plus", "resnet18", FORMAT, weights=None).train()
    model.network.compile(backend=compiling._BACKEND, dynamic=False)
    with pytest.raises(ValueError, match="batch_size of 2 or more"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_with_cuda_graphs_gradients_gather_in_memory_of_their_own():
    """As Lightning calls: forward, zero_grad, backward, and zero_grad only in the first of accumulated batches."""
    network = nn.Conv2d(3, 2, 1)
    network.bias.requires_grad_(False)
    training = CompiledTraining(network, "reduce-overhead")
    training.on_train_start(None, SimpleNamespace(device=torch.device("cuda")))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    own = None
    for number in range(4):
        training.on_train_batch_start(None, None, None, number)
        loss = network(torch.full((1, 3, 5, 7), float(number + 1))).sum()
        if number % 2 == 0:
            optimizer.zero_grad()
        training.on_before_backward(None, None, loss)
        loss.backward()
        own = own if own is not None else network.weight.grad
        assert network.weight.grad is own
        assert network.bias.grad is None
        # 35 pixels of 1; 1 and 2; 3; 3 and 4.
        assert own.unique().tolist() == [35.0 * (1, 3, 3, 7)[number]]


def test_without_cuda_graphs_gradients_are_left_to_torch():
    network = nn.Conv2d(3, 2, 1)
    for mode, device in (("default", "cuda"), ("reduce-overhead", "cpu")):
        training = CompiledTraining(network, mode)
        training.on_train_start(None, SimpleNamespace(device=torch.device(device)))
        training.on_before_backward(None, None, None)
        assert network.weight.grad is None


def test_modes():
    assert [compile_mode(given) for given in (False, True, *MODES)] == [None, "default", *MODES]
    with pytest.raises(ValueError, match="compile is 'fast': expected true, false, default"):
        compile_mode("fast")


def test_images_of_several_sizes_are_refused_before_anything_is_written(tmp_path):
    train = write_set(tmp_path / "t", FORMAT, 2)
    for augment, resize in ((None, None), (build_augment("light", FORMAT), 32)):
        train.augment, train.resize = augment, resize
        with pytest.raises(ValueError, match=r"set `data.crop`, or `data\.resize"):
            run(tmp_path, FORMAT, model=small_model(FORMAT), train=train, compile=True)
    assert not (tmp_path / "run").exists()
    # One size, or an augmentation that may see to it.
    cuts = [
        (None, [32, 32]),
        (build_augment("light", FORMAT, crop=32), None),
        (build_augment([{"RandomCrop": {"height": 8, "width": 8}}], FORMAT), None),
        (lambda sample, seed: sample, None),
    ]
    for augment, resize in cuts:
        train.augment, train.resize = augment, resize
        check_one_size(train)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_compiled_training_learns_as_plain_training_does(tmp_path, mode):
    options = {"device": "cuda", "precision": "32-true", "accumulate": 2, "epochs": 3}
    *_, plain, _ = run(tmp_path, FORMAT, "plain", **options)
    *_, compiled, _ = run(tmp_path, FORMAT, mode, compile=mode, **options)
    assert compiled.best == pytest.approx(plain.best, abs=0.05)
