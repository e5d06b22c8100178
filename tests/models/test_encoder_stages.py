from __future__ import annotations

import pytest
import torch
from torch import nn

from segkit.models.builder import build_model
from segkit.models.encoder_stages import encoder_stages
from tests.scenes import FORMATS


def build(architecture, encoder):
    return build_model(architecture, encoder, FORMATS["binary"], weights=None)


# First names of each stage, from the published networks.
STAGES = {
    ("unet", "resnet18"): ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    ("unet", "tu-test_resnet"): ["model.conv1", "model.layer1", "model.layer2", "model.layer3", "model.layer4"],
    ("unet", "mobilenet_v2"): ["features.0.", "features.2.", "features.4.", "features.7.", "features.14."],
    ("unet", "mit_b0"): ["patch_embed1", "patch_embed2", "patch_embed3", "patch_embed4"],
    ("dpt", "tu-test_vit"): ["model.cls_token", "model.blocks.1.", "model.blocks.3.", "model.blocks.4."],
}


@pytest.mark.parametrize(("architecture", "encoder"), STAGES)
def test_stages_of_encoders(architecture, encoder):
    model = build(architecture, encoder)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages = encoder_stages(model)
    names = {id(p): name for name, p in model.network.encoder.named_parameters()}
    for stage, first in zip(stages, STAGES[architecture, encoder], strict=True):
        assert names[id(stage[0])].startswith(first)
    assert sorted(names[id(p)] for stage in stages for p in stage) == sorted(names.values())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_leads_to_no_feature_belongs_to_the_last_stage():
    model = build("unet", "tu-test_resnet")
    model.network.encoder.classifier = nn.Linear(2, 3)
    assert any(p is model.network.encoder.classifier.weight for p in encoder_stages(model)[-1])


def test_a_network_without_an_encoder_is_told_so():
    model = build("unet", "tu-test_resnet")
    model.network.encoder = None
    with pytest.raises(ValueError, match="no part `encoder`"):
        encoder_stages(model)
