from __future__ import annotations

import numpy as np
import pytest
import torch

from segkit.data.augment import build_augment
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.georeference import read_georeference
from segkit.formats.mask_format import MaskFormat
from segkit.inference.evaluate import evaluate, evaluate_predictions
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from tests.formats.test_georeference import SCALE, SIZE_HW, TIEPOINT, UTM, keys, write_geotiff
from tests.scenes import FORMATS, default_codec, write_set

SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}


def model(format: MaskFormat, **options):
    torch.manual_seed(1)
    return build_model("unet", "tu-test_resnet", format, weights=None, **SMALL, **options)


@pytest.mark.parametrize("kind", FORMATS)
def test_planes_and_probabilities_are_those_of_the_format(kind):
    format = FORMATS[kind]
    predictor = Predictor(model(format), device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (45, 61, 3)).astype(np.uint8)
    planes, probs = predictor.predict(image), predictor.probabilities(image)
    assert (planes.shape, planes.dtype) == ((45, 61, format.num_planes), format.dtype)
    assert probs.shape == (format.num_classes, 45, 61)
    with torch.inference_mode():
        logits = predictor.model(torch.from_numpy(image.transpose(2, 0, 1))[None])
    assert np.array_equal(planes, format.decode(logits)[0].numpy().transpose(1, 2, 0))
    assert np.allclose(probs, format.probabilities(logits)[0].numpy(), atol=1e-6)


def test_none_below_the_threshold_is_written_as_the_ignored_value_and_scores_as_a_miss(tmp_path):
    format = MaskFormat.multiclass(["sky", "ground", "disc"], "sigmoid", threshold=0.999999)
    codec = open_codec({"name": "index_png", "ignored_values": [9]}, format)
    data = write_set(tmp_path / "data", format, 2, codec=codec)
    predictor = Predictor(model(format), codec, device="cpu")
    predictor.predict_files([data.images], tmp_path / "out")
    assert (codec.read(tmp_path / "out", "s0") == 255).all()
    scores = evaluate_predictions(tmp_path / "out", data.masks, codec)
    assert scores.pooled("recall").mean == 0.0


def test_without_an_ignored_value_none_is_refused_by_name(tmp_path):
    format = MaskFormat.multiclass(["sky", "ground", "disc"], "sigmoid", threshold=0.999999)
    data = write_set(tmp_path / "data", format, 1)
    report = Predictor(model(format), data.codec, device="cpu").predict_files([data.images], tmp_path / "out")
    assert "ignored_values" in report.failed[0][1]


def test_a_bundle_predicts_like_its_model(tmp_path):
    format = FORMATS["binary"]
    data = write_set(tmp_path / "data", format, 1)
    network = model(format)
    save_bundle(network, tmp_path / "m", data.codec)
    image = data.read(0).image
    assert np.array_equal(Predictor(tmp_path / "m", device="cpu").predict(image), Predictor(network).predict(image))


def test_a_model_without_codec_says_so(tmp_path):
    with pytest.raises(ValueError, match="without a codec"):
        Predictor(model(FORMATS["binary"]), device="cpu").predict_files([tmp_path], tmp_path / "out")


def test_scores_count_pixels_at_the_stored_size(tmp_path):
    format = FORMATS["exclusive"]
    data = write_set(tmp_path / "data", format, 2, size_hw=(45, 61))
    scores = evaluate(model(format, resize=[32, 32]), data, device="cpu", workers=0)
    counts = scores.pooled("recall").per_class
    assert scores.images == 2
    assert set(counts) == {"sky", "ground", "disc"}
    total = sum(scores._pooled[0].tolist())
    assert total == 2 * 45 * 61


def test_scores_do_not_depend_on_batch_size_or_mixed_sizes(tmp_path):
    format = FORMATS["overlapping"]
    small = write_set(tmp_path / "a", format, 2)
    write_set(tmp_path / "b", format, 3, size_hw=(33, 70))
    for kind in ("images", "masks/left", "masks/disc"):
        for path in (tmp_path / "b" / kind).iterdir():
            path.rename(tmp_path / "a" / kind / f"b{path.name}")
    data = type(small)(small.images, small.masks, small.codec)
    network = model(format)
    one, four = (evaluate(network, data, device="cpu", batch_size=n, workers=0).to_dict() for n in (1, 4))
    assert one["pooled"]["iou"]["per_class"] == pytest.approx(four["pooled"]["iou"]["per_class"], abs=2e-3)
    assert one["images"] == four["images"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "s1.png").unlink(), "1 of 3 masks have no prediction"),
        (lambda out: (out / "s1.png").rename(out / "other.png"), "no prediction"),
        (lambda out: (out / "extra.png").write_bytes((out / "s1.png").read_bytes()), "have no mask"),
    ],
)
def test_predictions_and_masks_must_pair(tmp_path, change, message):
    import shutil

    data = write_set(tmp_path / "data", FORMATS["exclusive"], 3)
    shutil.copytree(data.masks, tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(tmp_path / "out", data.masks, data.codec)


def test_predictions_of_another_size_are_named(tmp_path):
    data = write_set(tmp_path / "data", FORMATS["exclusive"], 1)
    other = write_set(tmp_path / "other", FORMATS["exclusive"], 1, size_hw=(20, 30))
    with pytest.raises(ValueError, match="s0: the prediction is 20x30, the mask 40x56"):
        evaluate_predictions(other.masks, data.masks, data.codec)


def test_volumes_go_in_and_come_out_as_volumes(tmp_path):
    import nibabel

    format = MaskFormat.multiclass(["background", "organ"])
    codec = open_codec("nifti", format)
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    voxels = np.random.default_rng(0).normal(0, 100, (20, 24, 5)).astype(np.float32)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "in" / "case.nii.gz")
    network = model(format, in_channels=1)
    report = Predictor(network, codec, device="cpu").predict_files([tmp_path / "in"], tmp_path / "out")
    assert (report.done, report.failed) == (5, [])
    written = nibabel.load(tmp_path / "out" / "case.nii.gz")
    assert written.shape == (20, 24, 5)
    assert np.allclose(written.affine, affine)
    planes = Predictor(network, device="cpu").predict(voxels[:, :, 2].T[..., None])
    assert np.array_equal(np.asarray(written.dataobj)[:, :, 2].T, planes[..., 0])


def test_tiny_windows_are_refused():
    with pytest.raises(ValueError, match="at least 32"):
        Predictor(model(FORMATS["binary"]), tile=8)


def test_codec_of_the_run_is_used(tmp_path):
    format = FORMATS["overlapping"]
    data = write_set(tmp_path / "data", format, 1)
    save_bundle(model(format), tmp_path / "m", default_codec(format))
    Predictor(tmp_path / "m", device="cpu").predict_files([data.images / "s0.png"], tmp_path / "out")
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")) == [
        "disc/s0.png",
        "left/s0.png",
    ]


def test_a_broken_volume_is_named_once_and_the_others_are_joined(tmp_path):
    import nibabel

    format = MaskFormat.multiclass(["left", "right"])
    codec = open_codec("nifti", format)
    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).normal(0, 100, (20, 24, 4)).astype(np.float32)
    for name in ("a", "b", "c"):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    whole = (tmp_path / "in" / "b.nii.gz").read_bytes()
    (tmp_path / "in" / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    report = Predictor(model(format, in_channels=1), codec, device="cpu").predict_files(
        [tmp_path / "in"], tmp_path / "out"
    )
    assert [file.rsplit("/", 1)[-1] for file, _ in report.failed] == ["b.nii.gz"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_scores_are_counted_on_samples_as_stored(tmp_path):
    format = FORMATS["exclusive"]
    data = write_set(tmp_path / "data", format, 2, size_hw=(45, 61))
    network = model(format)
    plain = evaluate(network, data, device="cpu", workers=0).to_dict()
    data.augment = build_augment("light", format, crop=16)
    data.resize = 20
    assert evaluate(network, data, device="cpu", workers=0).to_dict() == plain
    assert data.resize == 20


def test_the_model_knows_the_axis_its_volumes_are_cut_across(tmp_path):
    import nibabel

    format = MaskFormat.multiclass(["background", "organ"])
    network = model(format, in_channels=1)
    network.reading = ImageReading(axis="x")
    save_bundle(network, tmp_path / "m", open_codec({"name": "nifti", "axis": "x"}, format))
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 24, 20), np.float32), np.eye(4)), tmp_path / "in" / "case.nii.gz")
    report = Predictor(tmp_path / "m", device="cpu").predict_files([tmp_path / "in"], tmp_path / "out")
    assert (report.done, report.failed) == (3, [])


@pytest.mark.parametrize("tile", [0, 8])
def test_evaluate_refuses_tiny_windows_too(tmp_path, tile):
    data = write_set(tmp_path / "data", FORMATS["binary"], 1)
    with pytest.raises(ValueError, match="at least 32"):
        evaluate(model(FORMATS["binary"]), data, tile=tile)


@pytest.mark.parametrize("codec", ["index_png", "tiff"])
def test_masks_of_a_geotiff_lie_where_it_lies(tmp_path, codec):
    (tmp_path / "images").mkdir()
    like = write_geotiff(tmp_path / "images" / "town.tif", keys(UTM), SCALE, TIEPOINT)
    network = model(FORMATS["binary"], in_channels=4)
    report = Predictor(network, open_codec(codec, network.format), device="cpu").predict_files([like], tmp_path / "out")
    assert (report.done, report.failed) == (1, [])
    if codec == "tiff":
        assert read_georeference(tmp_path / "out" / "town.tif", SIZE_HW) == read_georeference(like, SIZE_HW)
    else:
        assert "500000.5, 10.0, 0.0, 4649776.25" in (tmp_path / "out" / "town.png.aux.xml").read_text()
