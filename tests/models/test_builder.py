from __future__ import annotations

import pytest
import torch
from torch import nn

from segkit.formats.mask_format import MaskFormat
from segkit.models import builder
from segkit.models.builder import ARCHITECTURES, build_model
from segkit.models.bundle import save_bundle

FORMAT = MaskFormat.multiclass(["a", "b", "c"])


def encoder_for(architecture: str) -> str:
    return "tu-vit_tiny_patch16_224" if architecture == "dpt" else "resnet18"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_any_size_and_any_bands(architecture):
    model = build_model(architecture, encoder_for(architecture), FORMAT, weights=None, in_channels=4).eval()
    with torch.inference_mode():
        for size_hw in ((1, 1), (45, 70)):
            assert model(torch.randint(0, 255, (2, 4, *size_hw), dtype=torch.uint8)).shape == (2, 3, *size_hw)


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus", "pan", "upernet"])
def test_a_training_batch_of_one_where_batchnorm_needs_two_is_one_clear_message(architecture):
    model = build_model(architecture, "resnet18", FORMAT, weights=None)
    with pytest.raises(ValueError, match="batch_size of 2 or more"):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    "encoder", ["mobilenet_v2", "mit_b0", "efficientnet-b0", "tu-convnext_atto", "tu-tf_efficientnet_lite0"]
)
def test_encoders_of_smp_and_timm(encoder):
    model = build_model("fpn", encoder, FORMAT, weights=None).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 50, 33)).shape == (1, 3, 50, 33)


def test_two_classes_as_one_sigmoid_have_one_channel():
    model = build_model("unet", "resnet18", MaskFormat.binary("x"), weights="none", decoder_channels=[16, 8, 8, 8, 8])
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "message"),
    [
        ("unett", "resnet18", {}, "Did you mean `unet`"),
        ("unet", "resnet19", {}, "resnet18"),
        ("unet", "tu-resnet18x", {}, "tu-resnet18"),
        ("dpt", "resnet18", {}, "dpt with encoder resnet18 cannot be built"),
        ("unetplusplus", "mit_b0", {}, "unetplusplus with encoder mit_b0 cannot be built"),
        ("unet", "resnet18", {"decoder_chanels": [1]}, "decoder_chanels"),
        ("nowhere.at.all:make", "resnet18", {}, "cannot be imported"),
    ],
)
def test_what_cannot_be_built_is_one_message(architecture, encoder, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, encoder, FORMAT, weights=None, **options)


class Tiny(nn.Module):
    """A network of one's own that takes SMP's arguments."""

    def __init__(self, encoder_name: str, encoder_weights: str | None, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def test_a_callable_and_its_name_build_the_same_network():
    for architecture in (Tiny, f"{Tiny.__module__}:Tiny"):
        model = build_model(architecture, "resnet18", FORMAT, weights=None, in_channels=5)
        assert model(torch.zeros(1, 5, 9, 11)).shape == (1, 3, 9, 11)
        assert model.recipe.architecture.endswith(":Tiny")


def test_callables_of_any_kind():
    import functools

    def loose(**options):
        assert options["depth"] == 3
        return nn.Conv2d(options["in_channels"], options["classes"], 1)

    for make in (functools.partial(loose, depth=3), functools.partial(Tiny)):
        model = build_model(make, "an-encoder-of-my-own", FORMAT, weights=None)
        assert model(torch.zeros(1, 3, 9, 11)).shape == (1, 3, 9, 11)
    assert build_model(loose, "mine", FORMAT, weights=None, depth=3).recipe.options == {"depth": 3}


def test_weights_that_smp_lists_for_an_encoder_are_asked_for_by_name(monkeypatch):
    import segmentation_models_pytorch as smp

    def fail(**options):
        assert options["encoder_weights"] == "instagram"
        raise ConnectionError("no route to host")

    monkeypatch.setattr(smp, "Unet", fail)
    with pytest.raises(ValueError, match="instagram of resnext101_32x16d could not be downloaded"):
        build_model("unet", "resnext101_32x16d", FORMAT, weights="instagram")


def test_a_failed_download_is_one_message_with_ways_on(monkeypatch):
    import segmentation_models_pytorch as smp

    def fail(**options):
        assert options["encoder_weights"] == "imagenet"
        raise ConnectionError("no route to host")

    monkeypatch.setattr(smp, "Unet", fail)
    with pytest.raises(ValueError, match=r"could not be downloaded.*`none`.*path.*`packaged`"):
        build_model("unet", "resnet18", FORMAT, weights="imagenet")


def test_default_statistics_by_bands():
    assert builder._statistics("resnet18", "none", 3, None, None).mean == (123.675, 116.28, 103.53)
    assert builder._statistics("resnet18", "none", 1, None, None).mean == pytest.approx((114.495,))
    assert builder._statistics("resnet18", "none", 13, None, None).std == (1.0,) * 13
    given = builder._statistics("resnet18", "none", 2, [1, 2], [3, 4])
    assert (given.mean, given.std, given.source) == ((1.0, 2.0), (3.0, 4.0), "given")
    with pytest.raises(ValueError, match="one per band"):
        builder._statistics("resnet18", "none", 2, [1], [3])


def test_what_is_clipped_is_fitted_so_no_other_statistics_are_taken(tmp_path):
    options = {"weights": None, "decoder_channels": [16, 8, 8, 8, 8]}
    format = MaskFormat.binary()
    model = build_model("unet", "resnet18", format, window=[-160, 240], **options)
    assert model.clipping.window == (-160.0, 240.0)
    with pytest.raises(ValueError, match="leave `mean` and `std` out"):
        build_model("unet", "resnet18", format, mean=[0] * 3, std=[1] * 3, window=[-160, 240], **options)
    save_bundle(model, tmp_path / "m")
    build_model("unet", "resnet18", format, **{**options, "weights": tmp_path / "m"})
    with pytest.raises(ValueError, match=r"learned with pixel statistics of their own.*leave `clip` and `window` out"):
        build_model("unet", "resnet18", format, clip=[1, 99], **{**options, "weights": tmp_path / "m"})
