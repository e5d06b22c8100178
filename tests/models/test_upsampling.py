"""Coarse logits are those of the network before its last upsampling, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.upsampling import find_last_upsampling

FORMAT = MaskFormat.multiclass(["a", "b", "c"])
IMAGES = torch.randint(0, 256, (2, 3, 70, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FACTORS = {"fpn": 4, "deeplabv3": 8, "deeplabv3plus": 4, "pspnet": 8, "pan": 4, "upernet": 4, "segformer": 4, "dpt": 2}


def make(architecture: str, **options):
    torch.manual_seed(0)
    encoder = "tu-vit_tiny_patch16_224" if architecture == "dpt" else "resnet18"
    return build_model(architecture, encoder, FORMAT, weights=None, **options).eval()


@pytest.mark.parametrize(("architecture", "factor"), FACTORS.items())
@torch.inference_mode()
def test_coarse_logits_stand_for_the_logits(architecture, factor):
    model = make(architecture)
    coarse = model.coarse_logits(IMAGES)
    assert coarse.shape == (2, 3, 70, 45)
    assert coarse.size_hw == tuple(factor * side for side in coarse.values.shape[-2:])
    # The network itself still upsamples, as segmentation-models-pytorch does.
    padded = torch.nn.functional.pad(
        model.normalize(IMAGES), (0, coarse.size_hw[1] - 45, 0, coarse.size_hw[0] - 70), mode="replicate"
    )
    assert torch.allclose(model.network(padded)[..., :70, :45], coarse.full(), atol=1e-6)
    assert torch.equal(model(IMAGES), coarse.full())


@pytest.mark.parametrize("architecture", ["unet", "unetplusplus", "manet", "linknet"])
def test_networks_that_end_with_a_convolution_have_nothing_to_leave_out(architecture):
    model = make(architecture)
    assert find_last_upsampling(model.network) is None
    assert not model.coarse_logits(IMAGES).upsampled


def test_an_activation_behind_the_upsampling_keeps_it_in():
    """Activation of an upsampling is not upsampling of an activation."""
    model = make("fpn", activation="sigmoid")
    assert not model.coarse_logits(IMAGES).upsampled
    assert model(IMAGES).min() >= 0.0


def test_names_of_weights_stay():
    import segmentation_models_pytorch as smp

    assert set(make("fpn").network.state_dict()) == set(
        smp.FPN("resnet18", encoder_weights=None, classes=3).state_dict()
    )


def test_a_copy_leaves_out_its_own_upsampling():
    model = make("fpn")
    other = copy.deepcopy(model)
    with model._last_upsampling.left_out(), torch.no_grad():
        assert other.network.segmentation_head[1].deferred is False
        assert other.coarse_logits(IMAGES).upsampled


def test_a_failure_within_leaves_the_network_as_it_was():
    model = make("deeplabv3plus").train()
    with pytest.raises(ValueError, match="batch_size of 2"):
        model.coarse_logits(IMAGES[:1])
    assert model.network.segmentation_head[1].deferred is False


def test_two_users_at_a_time_leave_the_upsampling_on():
    last = make("fpn")._last_upsampling
    first, second = last.left_out(), last.left_out()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert last.module.deferred is False


def test_a_forward_of_ones_own_is_left_alone():
    """What follows the head there may not be a thing to do at low resolution."""
    import segmentation_models_pytorch as smp

    class Sharper(smp.FPN):
        def forward(self, x):
            return super().forward(x).softmax(1).log()

    assert find_last_upsampling(Sharper("resnet18", encoder_weights=None, classes=3)) is None
