from __future__ import annotations

import json

import pytest
import torch
from safetensors import SafetensorError

from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.bundle import load_codec, load_model, save_bundle
from segkit.models.statistics import PixelStatistics
from segkit.ops.sizes import Spacing
from tests.models.test_builder import Tiny
from tests.scenes import FORMATS, default_codec

SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}
IMAGES = torch.randint(0, 255, (2, 3, 37, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bundle_gives_back_the_same_logits_format_and_codec(tmp_path, kind):
    format = FORMATS[kind]
    codec = default_codec(format)
    model = build_model(
        "unet", "resnet18", format, weights=None, mean=[1.5, 0.1, 3], std=[0.3, 7, 1 / 3], resize=[32, 64], **SMALL
    ).eval()
    save_bundle(model, tmp_path / "run" / "model", codec)
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        again = load_model(path)
        assert again.format == format
        assert again.resize == [32, 64]
        assert load_codec(path).to_spec() == codec.to_spec()
        with torch.inference_mode():
            assert torch.equal(again.predict_logits(IMAGES), model.predict_logits(IMAGES))


def test_thresholds_travel_with_the_model(tmp_path):
    format = MaskFormat.multilabel(["a", "b"], thresholds=[0.3, 0.8])
    save_bundle(build_model("unet", "resnet18", format, weights=None, **SMALL), tmp_path / "m")
    assert load_model(tmp_path / "m").format.thresholds == (0.3, 0.8)
    assert load_codec(tmp_path / "m") is None


def test_weights_are_those_of_plain_smp(tmp_path):
    import segmentation_models_pytorch as smp
    from safetensors.torch import load_file

    model = build_model("fpn", "resnet18", FORMATS["exclusive"], weights=None).eval()
    save_bundle(model, tmp_path / "m")
    plain = smp.FPN("resnet18", encoder_weights=None, classes=3).eval()
    plain.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(plain(x), model.network(x))


def test_a_saved_bundle_is_replaced_whole(tmp_path):
    model = build_model("unet", "resnet18", FORMATS["binary"], weights=None, **SMALL)
    save_bundle(model, tmp_path / "m", score=1)
    save_bundle(model, tmp_path / "m", score=2)
    assert json.loads((tmp_path / "m" / "segkit.json").read_text())["score"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_write_keeps_the_old_bundle(tmp_path, monkeypatch):
    model = build_model("unet", "resnet18", FORMATS["binary"], weights=None, **SMALL)
    save_bundle(model, tmp_path / "m", score=1)
    with pytest.raises(TypeError):
        save_bundle(model, tmp_path / "m", score=object())
    assert json.loads((tmp_path / "m" / "segkit.json").read_text())["score"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_network_of_ones_own_needs_its_callable_and_imports_nothing(tmp_path):
    model = build_model(Tiny, "resnet18", FORMATS["exclusive"], weights=None)
    save_bundle(model, tmp_path / "m")
    described = json.loads((tmp_path / "m" / "segkit.json").read_text())
    described["architecture"] = "antigravity:fly"
    (tmp_path / "m" / "segkit.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="architecture="):
        load_model(tmp_path / "m")
    again = load_model(tmp_path / "m", architecture=Tiny)
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "segkit.json").unlink(), "expected a run folder or a bundle"),
        (lambda m: (m / "segkit.json").write_text("{"), "cannot be read as JSON"),
        (lambda m: (m / "segkit.json").write_text("[]"), "keys of a bundle"),
        (lambda m: (m / "model.safetensors").write_bytes(b"12345678"), "damaged"),
        (lambda m: (m / "model.safetensors").unlink(), "damaged"),
    ],
)
def test_a_damaged_bundle_names_its_folder(tmp_path, damage, message):
    folder = save_bundle(build_model("unet", "resnet18", FORMATS["binary"], weights=None, **SMALL), tmp_path / "m")
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_a_description_with_a_missing_key_names_the_key(tmp_path):
    folder = save_bundle(build_model("unet", "resnet18", FORMATS["binary"], weights=None, **SMALL), tmp_path / "m")
    described = json.loads((folder / "segkit.json").read_text())
    del described["in_channels"]
    (folder / "segkit.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="'in_channels' is missing"):
        load_model(folder)


def test_codecs_open_again_from_their_json():
    codec = open_codec({"name": "index_png", "values": {0: "background", 255: "disc"}}, FORMATS["binary"])
    again = open_codec(json.loads(json.dumps(codec.to_spec())), FORMATS["binary"])
    assert again.to_spec() == codec.to_spec()


def test_ways_of_normalising_travel_with_the_model(tmp_path):
    model = build_model("unet", "resnet18", FORMATS["binary"], weights=None, resize=Spacing(0.7, 1 / 3), **SMALL)
    model.statistics = PixelStatistics((1, 2, 3), (4, 5, 6), "uint16", "data", clip=((0, 1 / 3), (1, 2), (-5, 7e4)))
    model.reading = ImageReading(axis="x", normalize="volume")
    save_bundle(model.eval(), tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert (again.statistics, again.reading, again.resize) == (model.statistics, model.reading, model.resize)
    images = IMAGES.to(torch.uint16) * 200
    with torch.inference_mode():
        assert torch.equal(again.predict_logits(images, (1.0, 1.0)), model.predict_logits(images, (1.0, 1.0)))


def test_a_bundle_that_does_not_speak_of_clipping_clips_nothing(tmp_path):
    folder = save_bundle(build_model("unet", "resnet18", FORMATS["binary"], weights=None, **SMALL), tmp_path / "m")
    described = json.loads((folder / "segkit.json").read_text())
    del described["statistics"]["clip"], described["reading"]["normalize"]
    (folder / "segkit.json").write_text(json.dumps(described))
    again = load_model(folder)
    assert (again.statistics.clip, again.reading.normalize) == (None, "dataset")


def test_a_bundle_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    model = build_model("unet", "tu-test_resnet", FORMATS["binary"], weights=None, **SMALL)
    save_bundle(model, tmp_path / "m", score=1)

    def full(*given):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"m: the model could not be written .*No space left on device.*Make room"):
        save_bundle(model, tmp_path / "m", score=2)
    assert json.loads((tmp_path / "m/segkit.json").read_text())["score"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
