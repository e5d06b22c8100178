from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from segkit.models.builder import build_model
from segkit.models.bundle import load_model
from segkit.training.averaging import AveragedWeights
from segkit.training.fit import fit
from tests.scenes import FORMATS, write_set

FORMAT = FORMATS["exclusive"]
SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}


class Watch(Callback):
    """Weights after each step, and those that validations and the end saw."""

    def __init__(self):
        self.after, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.after.append((trainer.global_step, copied(module.model.network)))

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated.append(copied(module.model.network))


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def run(tmp_path, validate=True, **options):
    train, val = write_set(tmp_path / "t", FORMAT, 6, (32, 32)), write_set(tmp_path / "v", FORMAT, 2, (32, 32))
    torch.manual_seed(0)
    model = build_model("unet", "tu-test_resnet", FORMAT, weights=None, **SMALL)
    start, watch = copied(model.network), Watch()
    settings = {"epochs": 2, "batch_size": 2, "lr": 1e-2, "workers": 0, "device": "cpu", **options}
    fit(model, train, val if validate else None, out=tmp_path / "run", callbacks=[watch], tell=print, **settings)
    return model, start, watch


def by_hand(start, after, decay):
    average, step = {k: v.clone() for k, v in start.items()}, 0
    for number, weights in after:
        if number == step:
            continue  # accumulating
        share = min(decay, (1 + step) / (10 + step))
        average = {k: v if v.dtype == torch.int64 else share * average[k] + (1 - share) * v for k, v in weights.items()}
        step = number
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_validated_saved_and_left_in_the_model(tmp_path, accumulate):
    # d = 1/10, 2/11, 3/12, then 0.3
    model, start, watch = run(tmp_path, ema=0.3, accumulate=accumulate, monitor="val_loss")
    expected = by_hand(start, watch.after, 0.3)
    assert watch.after[-1][0] == 6 // accumulate + (accumulate == 2)
    for name, value in expected.items():
        assert torch.allclose(watch.validated[-1][name].float(), value.float(), atol=1e-6), name
    assert not torch.allclose(expected["segmentation_head.0.weight"], watch.after[-1][1]["segmentation_head.0.weight"])
    validated = watch.validated[0], watch.validated[-1]
    kept = model.network.state_dict()
    assert any(all(torch.equal(kept[name], seen[name]) for name in kept) for seen in validated)
    for name, value in load_model(tmp_path / "run").network.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_training_itself_goes_on_with_the_weights_as_they_are(tmp_path):
    *_, with_average = run(tmp_path / "a", ema=0.5)
    *_, without = run(tmp_path / "b")
    for (_, one), (_, other) in zip(with_average.after, without.after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_validation_the_average_is_kept_too(tmp_path):
    model, start, watch = run(tmp_path, ema=0.9, validate=False)
    expected = by_hand(start, watch.after, 0.9)
    for name, value in model.network.state_dict().items():
        assert torch.allclose(value.float(), expected[name].float(), atol=1e-6), name


def test_an_average_of_half_precision_weights_keeps_small_shares():
    # bfloat16 has 8 bits: 1 + 0.001 would be 1 again.
    network = torch.nn.Linear(1, 1, bias=False).bfloat16()
    average = AveragedWeights(network, 0.999)
    trainer = type("Trainer", (), {"global_step": 0, "world_size": 1})()
    torch.nn.init.zeros_(network.weight)
    average.on_train_start(trainer, network)
    average._updates = 10**6
    torch.nn.init.ones_(network.weight)
    for step in range(1, 4):
        trainer.global_step = step
        average.on_train_batch_end(trainer, network, None, None, step)
    assert average.state_dict()["average"]["weight"].item() == pytest.approx(1 - 0.999**3, rel=1e-4)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match="ema is"):
        run(tmp_path, ema=decay)
