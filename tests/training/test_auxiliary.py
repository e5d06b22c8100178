"""Heads inside the network train it there, and nothing of them is left."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.losses.build import build_loss
from segkit.models.builder import ARCHITECTURES, build_model
from segkit.models.bundle import load_model
from segkit.training import compiling
from segkit.training.auxiliary import SUPERVISED, AuxiliaryHeads, check_supervision
from segkit.training.fit import fit
from segkit.training.step import training_loss
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model

FORMAT = FORMATS["exclusive"]
SIZE_HW = (70, 100)  # no multiples of 32: padded to 96 x 128


def batch(format=FORMAT):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *SIZE_HW), generator=rng, dtype=torch.uint8)
    target = torch.randint(0, 2, (2, format.num_planes, *SIZE_HW), generator=rng, dtype=torch.uint8)
    target[:, :, :5] = 255
    return images, target


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_levels_and_learns_from_them(name):
    assert name in SUPERVISED
    torch.manual_seed(0)
    model = build_model(name, "tu-test_vit" if name == "dpt" else "tu-test_resnet", FORMAT, weights=None)
    before, weights = dict(model.state_dict()), torch.get_rng_state()
    heads = AuxiliaryHeads(model, 0.4)
    assert torch.equal(torch.get_rng_state(), weights)  # dropout and all else is drawn as without
    assert sum(heads.weights) == pytest.approx(0.4)
    seen = []

    class Loss(nn.Module):
        takes_coarse_logits = True

        def forward(self, logits, target):
            seen.append(logits)
            return build_loss("cross_entropy", FORMAT)(logits, target)

    training_loss(model, Loss(), *batch(), heads).backward()
    assert len(seen) == 1 + len(heads.heads)
    for logits in seen:
        assert logits.shape == (2, 3, *SIZE_HW)
    for logits in seen[1:]:
        assert logits.values.shape[2] <= logits.size_hw[0] // 2  # full resolution is never built
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.parameters() if p.ndim > 1)
    model.zero_grad()
    heads.loss(Loss(), model(batch()[0], coarse=True), batch()[1]).backward()  # without the network's own logits
    first = next(p for p in model.network.encoder.parameters() if p.ndim > 1)
    assert first.grad.abs().sum() > 0
    heads.release()
    assert dict(model.state_dict()).keys() == before.keys()
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("loss", [{"cross_entropy": 1, "dice": 1}, {"boundary": 1}])
def test_the_loss_is_that_of_the_textbook(kind, loss):
    """U-Net: features by hand, 1x1 convolution, bilinear upsampling to the padded size, cropped, coarsest least."""
    format = FORMATS[kind]
    model = small_model(format).eval()
    heads = AuxiliaryHeads(model, 0.6, seed=4)
    model.train()
    for module in model.modules():  # the same features in both passes
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images, target = batch(format)
    measure = build_loss(loss, format)
    found = training_loss(model, measure, images, target, heads)

    features, blocks = [], model.network.decoder.blocks
    hooks = [block.register_forward_hook(lambda m, i, o: features.append(o)) for block in blocks]
    expected = measure(model(images), target)
    assert [tuple(f.shape[2:]) for f in features] == [(6, 8), (12, 16), (24, 32), (48, 64), (96, 128)]
    for feature, head, weight in zip(features, heads.heads, (1, 2, 4, 8), strict=False):
        logits = F.interpolate(head(feature), (96, 128), mode="bilinear", align_corners=False)
        expected = expected + 0.6 * weight / 15 * measure(logits[..., : SIZE_HW[0], : SIZE_HW[1]], target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for hook in hooks:
        hook.remove()


def test_heads_start_from_the_seed_and_do_nothing_in_evaluation():
    model = small_model(FORMAT)
    heads = [AuxiliaryHeads(model, 0.4, seed).heads[0].weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    watcher = AuxiliaryHeads(model, 0.4)
    model.eval()(batch()[0])
    assert watcher._features == [None] * 4
    assert model.train().training


def test_parts_of_the_network_keep_their_modes_and_heads_synchronise_as_it_does():
    model = build_model("deeplabv3plus", "tu-test_resnet", FORMAT, weights=None).train()
    frozen = model.network.encoder.eval()
    heads = AuxiliaryHeads(model, 0.4)
    assert not any(m.training for m in frozen.modules())
    assert model.network.decoder.training
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in heads.modules())
    model.network = nn.SyncBatchNorm.convert_sync_batchnorm(model.network)
    norms = [m for m in AuxiliaryHeads(model, 0.4).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1
    assert isinstance(norms[0], nn.SyncBatchNorm)


def test_a_supervised_run_leaves_a_plain_bundle_and_trained_heads_in_the_checkpoint(tmp_path):
    model, _, _, result, _ = run(tmp_path, FORMAT, epochs=8, deep_supervision=0.4)
    assert result.best > 0.5
    bundle = load_model(tmp_path / "run")
    assert bundle.state_dict().keys() == small_model(FORMAT).state_dict().keys()
    assert not any(m._forward_hooks for m in model.modules())
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    trained = saved["state_dict"]["auxiliary.heads.3.weight"]
    assert not torch.equal(trained, AuxiliaryHeads(small_model(FORMAT), 0.4, seed=0).heads[3].weight)
    groups = saved["optimizer_states"][0]["param_groups"]
    parameters = sum(1 for _ in small_model(FORMAT).parameters())
    assert sum(len(group["params"]) for group in groups) == parameters + 8


def test_a_compiled_supervised_run_is_the_plain_one_in_one_graph(tmp_path, monkeypatch):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "_BACKEND", backend)
    plain, *_ = run(tmp_path, FORMAT, "plain", deep_supervision=0.4)
    compiled, *_ = run(tmp_path, FORMAT, "compiled", deep_supervision=0.4, compile=True)
    assert len(graphs) == 1
    assert (tmp_path / "compiled" / "metrics.csv").read_text() == (tmp_path / "plain" / "metrics.csv").read_text()
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, compiled.network.state_dict()[name]), name


class Own(nn.Module):
    """A network of nobody's library."""

    def __init__(self, encoder_name, encoder_weights, in_channels, classes):
        super().__init__()
        self.last = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, images):
        return self.last(images)


def test_networks_without_known_features_are_refused_before_anything_is_written(tmp_path):
    model = build_model(Own, "none", FORMAT, weights=None)
    with pytest.raises(ValueError, match=r"nothing is known of features inside .*Own.*expected one of unet, "):
        fit(model, write_set(tmp_path / "t", FORMAT, 2), out=tmp_path / "run", deep_supervision=0.4)
    assert not (tmp_path / "run").exists()
    shallow = build_model("unet", "resnet18", FORMAT, weights=None, encoder_depth=3, decoder_channels=[32, 16, 8])
    check_supervision(shallow)
    with pytest.raises(ValueError, match="deep_supervision is 0, expected greater than 0"):
        fit(shallow, write_set(tmp_path / "u", FORMAT, 2), out=tmp_path / "run", deep_supervision=0)
