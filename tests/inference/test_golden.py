from __future__ import annotations

import numpy as np
import pytest
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.inference.golden import (
    GOLDEN,
    GoldenImage,
    GoldenImages,
    choose_images,
    differing_share,
    keep_golden,
    noise_images,
    predict_golden,
    read_golden,
)
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from segkit.training.fit import fit
from tests.scenes import FORMATS, write_set

SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}


def model(format: MaskFormat, **options):
    torch.manual_seed(1)
    return build_model("unet", "tu-test_resnet", format, weights=None, **SMALL, **options).eval()


@pytest.mark.parametrize("kind", FORMATS)
def test_training_keeps_crops_of_validation_images_with_the_masks_of_the_kept_model(tmp_path, kind):
    format = FORMATS[kind]
    train, val = write_set(tmp_path / "t", format, 4), write_set(tmp_path / "v", format, 5, size_hw=(300, 50))
    network = model(format)
    fit(network, train, val, out=tmp_path / "run", epochs=1, batch_size=2, workers=0, device="cpu", tell=lambda _: None)
    golden = read_golden(tmp_path / "run")
    assert golden is not None
    assert (tmp_path / "run" / "model" / GOLDEN).stat().st_size < 2**20
    assert golden.format == format
    assert [g.image.shape for g in golden.images] == [(256, 50, 3)] * 3
    samples = [val.read(n).image for n in (0, 2, 4)]
    predictor = Predictor(tmp_path / "run", device="cpu")
    for kept, whole in zip(golden.images, samples, strict=True):
        assert any(np.array_equal(kept.image, whole[top : top + 256]) for top in range(45))
        assert np.array_equal(kept.planes, predictor.predict(kept.image))


def test_a_run_may_keep_none(tmp_path):
    format = FORMATS["binary"]
    data = write_set(tmp_path / "t", format, 2)
    options = {"epochs": 1, "batch_size": 2, "workers": 0, "device": "cpu", "tell": lambda _: None}
    fit(model(format), data, out=tmp_path / "run", golden_images=0, **options)
    assert read_golden(tmp_path / "run") is None
    assert sorted(p.name for p in (tmp_path / "run" / "model").iterdir()) == ["model.safetensors", "segkit.json"]


def test_crops_show_what_the_masks_show(tmp_path):
    format = MaskFormat.binary("disc")
    data = write_set(tmp_path / "t", format, 1, size_hw=(700, 900))
    (golden,) = choose_images(data, 1)
    assert golden.image.shape[:2] == (256, 256)
    assert set(np.unique(golden.planes)) == {0, 1}


def test_images_of_many_bands_stay_below_a_megabyte(tmp_path, monkeypatch):
    format = MaskFormat.binary("disc")
    data = write_set(tmp_path / "t", format, 3, size_hw=(300, 300))
    network = model(format, in_channels=40)
    plain = type(data).read

    def many(self, index):
        sample = plain(self, index)
        sample.image = np.repeat(sample.image.astype(np.float32), 14, axis=2)[..., :40]
        return sample

    monkeypatch.setattr(type(data), "read", many)
    save_bundle(network, tmp_path / "m")
    keep_golden(network, data, tmp_path / "m", 3)
    assert 500_000 < (tmp_path / "m" / GOLDEN).stat().st_size < 2**20


def test_golden_images_survive_their_file(tmp_path):
    format = MaskFormat.multilabel(["a", "b"], thresholds=[0.3, 0.8])
    image = np.arange(24, dtype=np.uint16).reshape(3, 4, 2)
    planes = (image > 10).astype(np.uint8)
    golden = GoldenImages(
        (GoldenImage(image, planes, (0.5, 1 / 3)), GoldenImage(image[:2], planes[:2])), format, {"x": "1"}
    )
    again = GoldenImages.from_bytes(golden.to_bytes(), "here")
    assert (again.format, again.versions) == (golden.format, golden.versions)
    assert [g.spacing_mm for g in again.images] == [(0.5, 1 / 3), None]
    for before, after in zip(golden.images, again.images, strict=True):
        assert before.image.dtype == after.image.dtype
        assert np.array_equal(before.image, after.image)
        assert np.array_equal(before.planes, after.planes)
    with pytest.raises(ValueError, match="here: damaged"):
        GoldenImages.from_bytes(golden.to_bytes()[:-5], "here")
    with pytest.raises(ValueError, match="here: damaged"):
        GoldenImages.from_bytes(b"", "here")
    with pytest.raises(ValueError, match=r"here: damaged.*there is none"):
        GoldenImages.from_bytes(GoldenImages((), format, {}).to_bytes(), "here")


def test_noise_is_as_bright_as_the_images_of_the_training():
    network = model(FORMATS["binary"], in_channels=2, mean=[50, 200], std=[10, 20])
    (golden,) = noise_images(network, [(160, 240)])
    assert golden.image.dtype == np.uint8
    assert np.allclose(golden.image.mean((0, 1)), [50, 200], atol=10)
    again, other = noise_images(network, [(160, 240)])[0], noise_images(network, [(160, 240)], seed=1)[0]
    assert np.array_equal(golden.image, again.image)
    assert not np.array_equal(golden.image, other.image)


def test_shares_count_pixels_and_not_planes():
    planes = np.zeros((2, 5, 3), np.uint8)
    other = planes.copy()
    other[0, 1] = [0, 1, 1]
    other[1, 4, 0] = 1
    assert differing_share(planes, other) == pytest.approx(2 / 10)
    assert differing_share(planes, planes[:1]) == 1.0


def test_golden_masks_do_not_know_post_processing_or_where_the_model_trains(tmp_path):
    network = model(FORMATS["binary"])
    network.train()
    save_bundle(network, tmp_path / "m")
    data = write_set(tmp_path / "t", FORMATS["binary"], 1)
    keep_golden(network.eval(), data, tmp_path / "m", 1)
    (golden,) = read_golden(tmp_path / "m").images
    assert np.array_equal(golden.planes, predict_golden(network, [golden]).images[0].planes)
