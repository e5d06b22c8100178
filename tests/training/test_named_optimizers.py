from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from segkit.training.named_optimizers import check_optimizer, make_optimizer, optimizer_names


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def optimizer_of(net, spec, lr=1e-2):
    groups = [{"params": [p for p in net.parameters() if (p.ndim > 1) == big], "lr": lr} for big in (True, False)]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.01, 0.0
    return make_optimizer(spec, groups, lr)


def steps(net, optimizer, numbers):
    for number in numbers:
        images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(number))
        net(images).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", optimizer_names())
def test_every_named_optimizer_moves_the_weights_and_resumes_to_the_bit(name):
    whole = network()
    steps(whole, optimizer_of(whole, name), range(6))
    first = network()
    optimizer = optimizer_of(first, name)
    steps(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second = network()
    second.load_state_dict(weights)
    optimizer = optimizer_of(second, name)
    optimizer.load_state_dict(state)
    steps(second, optimizer, range(3, 6))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert not torch.equal(whole[0].weight, network()[0].weight)


@pytest.mark.parametrize("name", optimizer_names())
def test_weights_without_a_gradient_stay(name):
    net = network()
    optimizer = optimizer_of(net, name)
    net[0].weight.requires_grad_(False)
    steps(net, optimizer, range(2))
    assert torch.equal(net[0].weight, network()[0].weight)
    assert not torch.equal(net[3].weight, network()[3].weight)
    net[0].weight.requires_grad_(True)
    steps(net, optimizer, range(2))  # the first of adopt looks at gradients alone
    assert not torch.equal(net[0].weight, network()[0].weight)


def test_sgd_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = make_optimizer({"name": "SGD", "momentum": 0.5, "nesterov": False}, [{"params": [weight]}], 0.1)
    for expected in (0.8, 0.5):  # gradient 2: steps of 0.1 * 2, then 0.1 * (2 + 0.5 * 2)
        (2 * weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert weight.item() == pytest.approx(expected)


def test_the_default_is_the_adamw_of_torch():
    optimizer = optimizer_of(network(), "adamw")
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert all(g["betas"] == (0.9, 0.999) and g["eps"] == 1e-8 and not g["fused"] for g in optimizer.param_groups)


def test_a_fused_optimizer_lets_gradients_be_clipped_first():
    # The mark that Lightning refuses to clip for, and torch's GradScaler leaves unscaling to.
    assert not getattr(optimizer_of(network(), {"name": "adamw", "fused": True}), "_step_supports_amp_scaling", False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adamv", "unknown optimizer 'adamv'. Did you mean `adam"),
        ({"momentum": 0.9}, "expected a name"),
        ({"name": "sgd", "momentun": 0.9}, "sgd has no option 'momentun'. Did you mean `momentum`"),
        ({"name": "sgd", "lr": 0.9}, "set `train.lr`"),
        ({"name": "sgd", "momentum": -1}, "Invalid momentum value: -1"),
        ({"name": "adamw", "betas": 3}, "optimizer adamw with"),
        ({"name": "adamw", "betas": [0.9]}, "optimizer adamw with .* list index out of range"),
        ({"name": "lamb", "betas": [0.9]}, "optimizer lamb with .* makes no step: not enough values to unpack"),
        ({"name": "muon", "ns_steps": "five"}, "optimizer muon with .* makes no step: "),
        ("adahessian", "second derivatives"),
        ("kronw", "would not end as an uninterrupted one"),
        ("fusedlamb", "package apex, which is not installed"),
    ],
)
def test_what_cannot_work_is_refused(spec, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check_optimizer(spec)
