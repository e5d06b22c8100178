from __future__ import annotations

import pytest
import torch

from segkit.models.builder import build_model
from segkit.training.optimizer import SCHEDULES, build_optimizer, build_schedule
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


def rates(name: str, total: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, name, total, warmup)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_evenly_to_the_peak():
    assert rates("constant", 6, 3) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_and_poly_by_hand():
    # cosine at 0, 1/4, 1/2, 3/4: (1 + cos) / 2 = 1, 0.853553, 0.5, 0.146447
    assert rates("cosine", 4, 0) == pytest.approx([2.0, 1.707107, 1.0, 0.292893], abs=1e-6)
    assert rates("poly", 2, 0) == pytest.approx([2.0, 2.0 * 0.5**0.9])


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_goes_below_zero_or_above_the_peak(name):
    assert all(0.0 <= rate <= 2.0 for rate in rates(name, 20, 5))


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine, poly"):
        rates("cosin", 2, 0)
