from __future__ import annotations

import pytest
import torch

from segkit.models.builder import build_model
from segkit.training.optimizer import ONE_CYCLE, SCHEDULES, build_optimizer, build_schedule
from tests.scenes import FORMATS


def model():
    return build_model("unet", "tu-test_resnet", FORMATS["binary"], weights=None, decoder_channels=[16, 8, 8, 8, 8])


def test_every_parameter_is_in_one_group_and_the_encoder_learns_more_slowly():
    network = model()
    optimizer = build_optimizer(network, lr=1e-2, encoder_lr_factor=0.1, weight_decay=0.5)
    names = {id(p): name for name, p in network.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            seen.append(name)
            assert group["lr"] == pytest.approx(1e-3 if name.startswith("network.encoder.") else 1e-2), name
            assert group["weight_decay"] == (0.5 if p.ndim > 1 else 0.0), name
    assert sorted(seen) == sorted(names.values())


def test_only_an_encoder_that_has_learned_before_gets_a_lower_rate():
    network = model()
    assert {g["lr"] for g in build_optimizer(network, lr=1.0).param_groups} == {1.0}
    network.pretrained = True
    assert {g["lr"] for g in build_optimizer(network, lr=1.0).param_groups} == {0.3, 1.0}


def test_rates_fall_by_stage_from_the_decoder_to_the_stem():
    network = model()
    network.pretrained = True  # whose 0.3 has no place where rates fall by stage
    names = {id(p): name for name, p in network.network.named_parameters()}
    found = {}
    for group in build_optimizer(network, lr=1.0, layer_decay=0.5).param_groups:
        for p in group["params"]:
            found.setdefault(group["lr"], set()).add(names[id(p)].split(".")[:3][-1])
            assert group["weight_decay"] == (0.01 if p.ndim > 1 else 0.0)
    encoder = {rate: part for rate, part in found.items() if rate < 1.0}
    assert encoder == {
        1 / 32: {"conv1", "bn1"},
        1 / 16: {"layer1"},
        1 / 8: {"layer2"},
        1 / 4: {"layer3"},
        1 / 2: {"layer4"},
    }
    assert found.keys() - encoder.keys() == {1.0}


def test_the_factor_of_the_encoder_comes_on_top():
    rates = {g["lr"] for g in build_optimizer(model(), 1.0, 0.1, layer_decay=0.5).param_groups}
    assert sorted(rates) == pytest.approx([0.1 / 32, 0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 1.0])


def rates(name: str, total: int, warmup: int, **options) -> list[float]:
    return [rate for rate, _ in cycle(name, total, warmup / total, **options)]


def cycle(name: str, total: int, warmup: float | None, **options) -> list[tuple[float, float]]:
    """Rate and momentum of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0, **options)
    schedule = build_schedule(optimizer, name, total, warmup)
    found = []
    for _ in range(total):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_evenly_to_the_peak():
    assert rates("constant", 6, 3) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_and_poly_by_hand():
    # cosine at 0, 1/4, 1/2, 3/4: (1 + cos) / 2 = 1, 0.853553, 0.5, 0.146447
    assert rates("cosine", 4, 0) == pytest.approx([2.0, 1.707107, 1.0, 0.292893], abs=1e-6)
    assert rates("poly", 2, 0) == pytest.approx([2.0, 2.0 * 0.5**0.9])


def test_one_cycle_by_hand():
    # Up over 3 of 10 steps from 2/25, in half a cosine, and down to 2/25e4; the momentum goes the other way.
    found = cycle("one_cycle", 10, None, momentum=0.9)
    assert found[0] == pytest.approx((0.08, 0.95))
    assert found[1] == pytest.approx((1.04, 0.9))
    assert found[2] == pytest.approx((2.0, 0.85))
    assert found[9] == pytest.approx((8e-6, 0.95))
    assert max(found, key=lambda step: step[0]) == found[2]


def test_one_cycle_leaves_an_optimizer_without_momentum_without():
    assert {momentum for _, momentum in cycle("one_cycle", 10, 0.5)} == {0.0}
    assert cycle("one_cycle", 10, 0.5)[4][0] == pytest.approx(2.0)


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.1), (2, 0.5), (4, 0.0), (1, 0.3)])
def test_one_cycle_that_rises_over_a_step_or_none(total, warmup):
    found = [rate for rate, _ in cycle("one_cycle", total, warmup)]
    assert found[0] == pytest.approx(2 / 25) or warmup * total < 1
    assert found[1:] == sorted(found[1:], reverse=True)


def test_one_cycle_stays_low_after_its_last_step():
    """That is the rate which `metrics.csv` has for the last epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, "one_cycle", 5)
    for _ in range(7):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(8e-6)


@pytest.mark.parametrize("name", [*SCHEDULES, ONE_CYCLE])
def test_a_run_that_goes_on_for_longer_has_the_schedule_of_its_new_length(name):
    def schedule(total, state=None):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        made = build_schedule(optimizer, name, total, 0.5)
        if state is not None:
            optimizer.load_state_dict(state[0])
            made.load_state_dict(state[1])
        return optimizer, made

    def advance(optimizer, made, steps):
        for _ in range(steps):
            optimizer.step()
            made.step()
        return optimizer.state_dict(), made.state_dict()

    resumed, whole = schedule(12, advance(*schedule(6), 6)), schedule(12)
    advance(*resumed, 4)
    advance(*whole, 10)
    assert resumed[0].param_groups[0]["lr"] == pytest.approx(whole[0].param_groups[0]["lr"])


def test_the_share_of_the_warm_up_depends_on_the_schedule():
    assert cycle("cosine", 100, None) == cycle("cosine", 100, 0.05)
    assert cycle("one_cycle", 100, None) == cycle("one_cycle", 100, 0.3)


@pytest.mark.parametrize("name", [*SCHEDULES, ONE_CYCLE])
def test_no_schedule_goes_below_zero_or_above_the_peak(name):
    assert all(0.0 <= rate <= 2.0 for rate in rates(name, 20, 5))


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine, poly, constant, one_cycle"):
        rates("cosin", 2, 0)


def test_what_would_train_nothing_is_refused():
    network = model()
    with pytest.raises(ValueError, match=r"learning rates are \[1e-40\], zero throughout"):
        build_optimizer(network, lr=1e-40)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(network.requires_grad_(False), lr=1.0)
