from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch

from segkit.ops import backend, loss_sums
from segkit.ops.backend import runs_triton
from segkit.ops.loss_sums import backend_of

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh():
    runs_triton.cache_clear()
    yield
    runs_triton.cache_clear()


def logits(classes: int = 3, height: int = 4) -> torch.Tensor:
    return torch.zeros((2, classes, height, 5))


def test_the_definition_runs_on_a_cpu():
    assert not runs_triton(torch.device("cpu"))
    assert backend_of(logits(), torch.zeros((2, 1, 4, 5))) == "tiles"


def test_the_definition_runs_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not runs_triton(CUDA)


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.warns(UserWarning, match="Install gcc"):
        assert not runs_triton(CUDA)


@pytest.mark.parametrize(("capability", "runs"), [((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_triton_needs_volta(monkeypatch, capability, runs):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(backend.torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert runs_triton(CUDA) is runs


@pytest.mark.parametrize(
    ("classes", "height", "expected"), [(3, 4, "triton"), (512, 4, "triton"), (513, 4, "tiles"), (3, 0, "tiles")]
)
def test_kernels_sum_up_to_512_classes(monkeypatch, classes, height, expected):
    monkeypatch.setattr(loss_sums, "runs_triton", lambda _: True)
    assert backend_of(logits(classes, height), torch.zeros((2, 1, 4, 5))) == expected


@pytest.mark.gpu
def test_kernels_run_on_a_gpu():
    pytest.importorskip("triton")
    assert backend_of(logits().cuda(), torch.zeros((2, 1, 4, 5)).cuda()) == "triton"
