"""`training_loss`: the same value and gradients as with full-resolution logits, which are never built."""

from __future__ import annotations

import pytest
import torch
from segmentation_models_pytorch.base import SegmentationHead, SegmentationModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from segkit.formats.mask_format import MaskFormat
from segkit.losses.build import LOSSES, build_loss
from segkit.models.builder import build_model
from segkit.ops.upsample import CoarseLogits
from segkit.training.step import training_loss
from tests.scenes import FORMATS

N, SIZE_HW = 2, (90, 70)


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any tensor made within it holds."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def batch(format):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, *SIZE_HW), generator=random, dtype=torch.uint8)
    choices = 2 if format.num_planes == format.num_classes else format.num_classes
    target = torch.randint(0, choices, (N, format.num_planes, *SIZE_HW), generator=random).to(format.torch_dtype)
    target[0, :, :9] = format.ignore_index
    return images, target


class Tiny(SegmentationModel):
    """A quarter of the resolution, and the head that segmentation-models-pytorch puts on such decoders."""

    requires_divisible_input_shape = False

    def __init__(self, encoder_name, encoder_weights, in_channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 6, 5, stride=4, padding=2)
        self.decoder = nn.ReLU()
        self.segmentation_head = SegmentationHead(6, classes, upsampling=4)
        self.classification_head = None


def model_of(format):
    torch.manual_seed(0)
    return build_model(Tiny, "none", format, weights=None)


def loss_and_gradients(model, loss, images, target):
    model.zero_grad()
    value = training_loss(model, loss, images, target)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", FORMATS)
def test_equal_to_full_resolution(kind, name):
    """A function is a foreign loss: it gets the upsampled tensor."""
    format = FORMATS[kind]
    model, loss = model_of(format), build_loss(name, format)
    images, target = batch(format)
    value, gradients = loss_and_gradients(model, loss, images, target)
    seen = []

    def foreign(logits, target):
        seen.append(tuple(logits.shape))
        return loss(logits, target)

    expected, expected_gradients = loss_and_gradients(model, foreign, images, target)
    assert seen == [(N, format.num_classes, *SIZE_HW)]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    head = "network.segmentation_head.0.weight"
    assert gradients[head].abs().max() > 0
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, expected_gradients[key], rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz"])
def test_full_resolution_logits_are_never_built(name):
    """Not even one tensor of their size: with many classes all others are smaller."""
    format = MaskFormat.multiclass(range(60))
    model = model_of(format)
    images, target = batch(format)
    full = N * format.num_classes * SIZE_HW[0] * SIZE_HW[1]
    coarse = N * format.num_classes * 24 * 24
    loss = build_loss({name: 1}, format)
    with LargestTensor() as seen:
        training_loss(model, loss, images, target).backward()
    assert coarse <= seen.largest <= full // 4
    with LargestTensor() as seen:
        training_loss(model, lambda logits, target: loss(logits, target), images, target).backward()
    assert seen.largest >= full


def test_stride_padding_is_never_trained_on():
    format = FORMATS["exclusive"]
    model, (images, target) = model_of(format), batch(format)
    logits = model.coarse_logits(images)
    assert logits.size_hw == (96, 96)
    assert logits.shape[2:] == SIZE_HW
    padded = torch.full((N, 1, 96, 96), format.ignore_index, dtype=torch.uint8)
    padded[..., : SIZE_HW[0], : SIZE_HW[1]] = target
    loss = build_loss({"cross_entropy": 1, "dice": 1, "lovasz": 1}, format)
    whole = CoarseLogits(logits.values, logits.size_hw)
    assert loss(logits, target).item() == pytest.approx(loss(whole, padded).item(), rel=1e-5)


class Wrapper(nn.Module):
    """As DistributedDataParallel and others: the model is `module`, and only `forward` is theirs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args, **options):
        self.calls += 1
        return self.module(*args, **options)


def test_a_wrapped_model_is_called_through_its_wrapper():
    format = FORMATS["exclusive"]
    model, loss, (images, target) = model_of(format), build_loss("dice", format), batch(format)
    wrapped = Wrapper(model)
    assert torch.equal(training_loss(wrapped, loss, images, target), training_loss(model, loss, images, target))
    assert wrapped.calls == 1


def test_any_network_that_gives_logits_will_do():
    format = FORMATS["exclusive"]
    network, loss, (images, target) = nn.Conv2d(3, 3, 1), build_loss("dice", format), batch(format)
    value = training_loss(network, loss, images.float(), target)
    assert torch.equal(value, loss(network(images.float()), target))
