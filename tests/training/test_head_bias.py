from __future__ import annotations

import numpy as np
import pytest
import torch

from segkit.models.builder import ARCHITECTURES, build_model
from segkit.models.bundle import save_bundle
from segkit.models.head import head_of
from segkit.training.class_balance import class_shares
from segkit.training.head_bias import set_prior_bias
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model


@pytest.mark.parametrize("kind", FORMATS)
def test_a_head_without_weights_gives_the_shares_of_the_classes(tmp_path, kind):
    format = FORMATS[kind]
    data = write_set(tmp_path, format, 3)
    model = small_model(format).eval()
    set_prior_bias(model, data)
    model.network.segmentation_head[0].weight.data.zero_()
    probs = format.probabilities(model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    planes = torch.from_numpy(np.stack([data.read_planes(i).transpose(2, 0, 1) for i in range(3)]))
    expected = format.expand(planes).float().mean((0, 2, 3))
    assert probs[0, :, 5, 7].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_ignored_pixels_are_in_no_share(tmp_path):
    data = write_set(tmp_path, FORMATS["exclusive"], 1)
    planes = np.array([[0, 0, 0, 1, 255, 255]], dtype=np.uint8)[..., None]
    data.read_planes = lambda index: planes
    assert class_shares(data) == [0.75, 0.25, 0.0]


def test_a_class_that_is_nowhere_keeps_a_finite_logit(tmp_path):
    assert FORMATS["exclusive"].prior_logits([1.0, 0.0, 0.0]) == pytest.approx([-1e-6, -13.8155, -13.8155], rel=1e-4)


def test_a_head_that_has_learned_keeps_its_bias(tmp_path, caplog):
    model = small_model(FORMATS["binary"])
    bias = model.network.segmentation_head[0].bias
    bias.data.fill_(0.3)
    set_prior_bias(model, write_set(tmp_path, FORMATS["binary"], 2))
    assert bias.item() == pytest.approx(0.3)
    assert "the head has a bias already" in caplog.text


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_of_every_architecture_is_new_until_it_has_learned(tmp_path, caplog, name):
    """DeepLab's bias begins at random."""
    format, encoder = FORMATS["exclusive"], "tu-test_vit" if name == "dpt" else "tu-test_resnet"
    data = write_set(tmp_path, format, 2)
    model = build_model(name, encoder, format, weights=None)
    set_prior_bias(model, data)
    assert head_of(model).bias.tolist() == pytest.approx(format.prior_logits(class_shares(data)))
    assert not caplog.text
    save_bundle(model, tmp_path / "bundle", None)
    again = build_model(name, encoder, format, weights=tmp_path / "bundle")
    set_prior_bias(again, data.subset(data.stems[:1]))
    assert torch.equal(head_of(again).bias, head_of(model).bias)
    assert "the head has a bias already" in caplog.text


def test_fit_sets_it_once(tmp_path):
    model = small_model(FORMATS["binary"])
    run(tmp_path, FORMATS["binary"], model=model, prior_bias=True, lr=1e-9, epochs=1)
    assert model.network.segmentation_head[0].bias.item() < -0.5  # a disc covers less than a third


def test_a_network_without_such_a_convolution_is_told_so(tmp_path):
    model = build_model("unet", "tu-test_resnet", FORMATS["binary"], weights=None, decoder_channels=[16, 8, 8, 8, 8])
    model.network.segmentation_head[0].bias = None
    with pytest.raises(ValueError, match="ends in no convolution with 1 outputs"):
        set_prior_bias(model, write_set(tmp_path, FORMATS["binary"], 1))
