from __future__ import annotations

import pytest
import torch

from segkit.models.devices import pick_device


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
