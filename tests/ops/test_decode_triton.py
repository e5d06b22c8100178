"""The kernels against torch over whole tensors: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from segkit.ops import decode, decode_triton
from segkit.ops.decode import decode_above, decode_indices
from segkit.ops.upsample import CoarseLogits
from tests.ops import kernels

pytestmark = kernels.MARKS
LIMITS = [0.0, 0.5, -0.5, 1.0, 0.25]


@pytest.fixture(autouse=True)
def only_kernels(monkeypatch):
    """The kernels are what is dispatched to, and the definition cannot run."""
    monkeypatch.setattr(decode, "TileReader", None)
    if not kernels.ON_GPU:
        monkeypatch.setattr(decode, "runs_triton", lambda _: True)


def random_logits(classes: int = 5, size_hw=(3, 9), dtype=torch.float32) -> torch.Tensor:
    return torch.randn((2, classes, *size_hw), generator=torch.Generator().manual_seed(classes)).to(dtype)


def coarse(values, *options) -> CoarseLogits:
    return CoarseLogits(values.to(kernels.DEVICE), *options) if options else CoarseLogits.of(values.to(kernels.DEVICE))


@pytest.mark.parametrize("classes", [1, 5, 30])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_indices_agree_with_torch_and_of_equals_take_the_first(classes, memory_format, dtype):
    # Few different values, so that ties are many.
    logits = random_logits(classes, dtype=dtype).mul(2).round().to(memory_format=memory_format)
    decoded = decode_indices(coarse(logits), torch.uint8)
    best, index = logits.max(1, keepdim=True)
    assert torch.equal(decoded.cpu().long(), index)
    limited = decode_indices(coarse(logits), torch.int32, 1.0, 255)
    assert torch.equal(limited.cpu().long(), torch.where(best > 1.0, index, 255))


def test_nan_counts_as_highest_and_all_infinite_as_the_first():
    logits = random_logits(11)
    logits[0, 2, 1, 3], logits[0, 9, 1, 3], logits[0, 1, 1, 3] = math.nan, math.nan, math.inf
    logits[1, 9, 0, 0] = math.nan
    logits[1, :, 2, 2] = -math.inf
    index = logits.max(1, keepdim=True).indices
    assert (index[0, 0, 1, 3], index[1, 0, 0, 0], index[1, 0, 2, 2]) == (2, 9, 0)
    assert torch.equal(decode_indices(coarse(logits), torch.uint8).cpu().long(), index)
    assert decode_indices(coarse(logits), torch.uint8, -100.0, 255)[0, 0, 1, 3] == 255


@pytest.mark.parametrize("pixels", [4, 256])
@pytest.mark.parametrize("align_corners", [True, False])
def test_upsampled_logits_are_decoded_without_being_built(monkeypatch, align_corners, pixels):
    monkeypatch.setattr(decode_triton, "_PIXELS", pixels)
    monkeypatch.setattr(decode_triton, "_CLASSES", 2)
    values = random_logits(size_hw=(3, 4), dtype=torch.float64)
    full = F.interpolate(values, (9, 12), mode="bilinear", align_corners=align_corners)[..., :8, :11]
    logits = coarse(values, (9, 12), (8, 11), align_corners)
    assert torch.equal(decode_indices(logits, torch.uint8).cpu().long(), full.max(1, keepdim=True).indices)
    above = full > torch.tensor(LIMITS, dtype=torch.float64).view(1, -1, 1, 1)
    assert torch.equal(decode_above(logits, LIMITS, torch.uint8).cpu().bool(), above)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_above_a_limit_of_each_class(dtype):
    logits = random_logits(dtype=dtype)
    logits[0, 0, 0, 0] = math.nan
    above = decode_above(coarse(logits), LIMITS, torch.uint8)
    assert above.dtype == torch.uint8
    assert torch.equal(above.cpu().bool(), logits.float() > torch.tensor(LIMITS).view(1, -1, 1, 1))


@pytest.mark.gpu
def test_the_device_is_not_waited_for():
    logits = coarse(random_logits(size_hw=(3, 4)), (9, 12))
    for mode in ("default", "error"):  # the first run compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            decode_indices(logits, torch.uint8, 0.5, 255)
            decode_above(logits, LIMITS, torch.uint8)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_threshold_is_compared_with_all_digits():
    # 0.1 in bfloat16 is 0.10009765625, above 0.1.
    logits = coarse(torch.full((1, 1, 1, 2), 0.1, dtype=torch.bfloat16))
    assert decode_above(logits, [0.1], torch.uint8).flatten().tolist() == [1, 1]
    assert decode_above(logits, [0.1001], torch.uint8).flatten().tolist() == [0, 0]
    precise = coarse(torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64))
    assert decode_indices(precise, torch.uint8, 0.1 - 1e-12, 255).item() == 0
    assert decode_indices(precise, torch.uint8, 0.1, 255).item() == 255
