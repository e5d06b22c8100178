from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from segkit.models.devices import autocast, has_bfloat16, pick_device


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="expected auto"):
        pick_device("gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_message():
    with pytest.raises(ValueError, match="finds no CUDA GPU"):
        pick_device("cuda")


@pytest.mark.parametrize("device", ["mps", "cuda:77"])
def test_a_device_that_is_not_here_is_one_message(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is an Apple GPU")
    with pytest.raises(ValueError, match="finds no"):
        pick_device(device)


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_bfloat16_is_for_gpus_that_compute_in_it(monkeypatch):
    cuda = torch.device("cuda")
    # A GPU before Ampere: torch says yes, unless asked not to count imitation.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bfloat16()
    assert isinstance(autocast(cuda), nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_bfloat16()
    assert autocast(cuda).fast_dtype == torch.bfloat16
    assert isinstance(autocast(torch.device("cpu")), nullcontext)
