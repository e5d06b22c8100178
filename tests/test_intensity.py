"""Ways of normalising, from a config to masks on disk: training, scoring and predicting read images alike."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from segkit.config import read_config
from segkit.data.intensity import image_scale, volume_scale
from segkit.inference.predictor import Predictor
from segkit.models.bundle import load_model
from segkit.parts import Parts, open_masks, open_parts, silent_progress, verify
from tests.scenes import write_set
from tests.test_cli import segkit

# Depth, range, voxel size in mm along x, y, z: what differs from scanner to scanner.
SCANS = {
    "a": (np.uint8, 1, 0, (0.5, 1.0, 3.0)),
    "b": (np.float32, 11, -300, (1.0, 1.0, 3.0)),
    "c": (np.int16, 7, -900, (1.0, 0.5, 3.0)),
}
SHAPE = (30, 34, 4)
MODEL = "architecture: unet, encoder: tu-test_resnet, weights: none, options: {decoder_channels: [16, 8, 8, 8, 8]}"


def write_volumes(root: Path) -> Path:
    """`root`/images and `root`/masks: a bright ball in noise, per scan in other units; and a config."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    x, y, z = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for number, (case, (dtype, factor, offset, zooms)) in enumerate(SCANS.items()):
        rng = np.random.default_rng(number)
        ball = (x - rng.integers(8, 22)) ** 2 + (y - rng.integers(8, 22)) ** 2 + 9 * (z - 2) ** 2 < 49
        values = (60 + 90 * ball + rng.normal(0, 12, SHAPE)).clip(0, 255).round() * factor + offset
        affine = np.diag([*zooms, 1.0])
        nibabel.save(nibabel.Nifti1Image(values.astype(dtype), affine), root / "images" / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), affine), root / "masks" / f"{case}.nii.gz")
    (root / "config.yaml").write_text(
        "masks: {format: multiclass, classes: [background, ball], codec: nifti}\n"
        f"data: {{root: {root}, train: {{images: images, masks: masks}}, val: {{images: images, masks: masks}}, "
        "leaks: warn, crop: 32}\n"
        "augment: fast_medical\n"
        f"model: {{{MODEL}}}\n"
        "train: {epochs: 1, batch_size: 4, workers: 0, device: cpu}\n"
    )
    return root / "config.yaml"


@pytest.mark.parametrize(
    ("overrides", "reading", "source", "clip"),
    [
        ((), "dataset", "data", "fitted"),
        (("model.clip=none",), "dataset", "data", None),
        (("model.window=[0, 500]",), "dataset", "data", [[0.0, 500.0]]),
        (("data.normalize=image",), "image", "reading", None),
        (("data.normalize=volume", "data.cache=disk"), "volume", "reading", None),
        (("data.normalize=volume", "data.spacing_mm=[1.5, 0.75]"), "volume", "reading", None),
    ],
    ids=["clip", "none", "window", "image", "volume", "spacing"],
)
def test_from_a_config_to_scores_and_masks(tmp_path, monkeypatch, overrides, reading, source, clip):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    config, run = write_volumes(tmp_path / "data"), tmp_path / "run"
    assert segkit("train", config, *overrides, "--out", run) == 0
    described = json.loads((run / "model" / "segkit.json").read_text())
    statistics = described["statistics"]
    assert (described["reading"]["normalize"], statistics["source"], statistics["dtype"]) == (
        reading,
        source,
        "float32",
    )
    if clip == "fitted":
        ((low, high),) = statistics["clip"]
        assert -900 <= low < statistics["mean"][0] < high < 11 * 255
    else:
        assert statistics["clip"] == clip
    if source == "reading":
        assert (statistics["mean"], statistics["std"]) == ([0.0], [1.0])
    # The model scored, and the masks that it writes scored: every image was read the same way, or they differ.
    images, masks = tmp_path / "data" / "images", tmp_path / "data" / "masks"
    assert segkit("evaluate", run, "--split", "val", "--json", tmp_path / "model.json") == 0
    assert segkit("predict", run, images, "--out", tmp_path / "out") == 0
    given = ("--predictions", tmp_path / "out", "--masks", masks, "--config", config)
    assert segkit("evaluate", *given, "--json", tmp_path / "files.json") == 0
    scores = [json.loads((tmp_path / name).read_text())["pooled"] for name in ("model.json", "files.json")]
    assert scores[0] == scores[1]
    trained = json.loads((run / "scores.json").read_text())["pooled"]
    assert trained == scores[0]
    # And arrays, for who reads files on their own.
    predictor = Predictor(run, device="cpu")
    for case, (*_, zooms) in SCANS.items():
        voxels = np.asarray(nibabel.load(images / f"{case}.nii.gz").dataobj)
        image = voxels[:, :, 1].T if voxels.dtype == np.uint8 else voxels[:, :, 1].T.astype(np.float32)
        options = {"scale": volume_scale(voxels)} if reading == "volume" else {}
        planes = predictor.predict(image, spacing_mm=(zooms[1], zooms[0]), **options)
        written = np.asarray(nibabel.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)
        assert np.array_equal(written[:, :, 1].T, planes[..., 0])


def test_normalised_volumes_make_one_training_set_of_all_depths(tmp_path):
    config = read_config(write_volumes(tmp_path), ["data.normalize=volume", "augment=none", "data.crop=null"])
    parts = open_parts(config, open_masks(config))
    samples = [parts.train[i] for i in range(len(parts.train))]
    assert {sample.image.dtype.name for sample in samples} == {"float32"}
    balls = [s.image[..., 0][s.planes[..., 0] == 1].mean() for s in samples if s.planes.any()]
    assert len(balls) > 5
    assert 2 < min(balls) < max(balls) < 6  # the ball is as bright in each, whatever the scanner's unit


def test_training_samples_are_brought_to_the_spacing(tmp_path):
    config = read_config(write_volumes(tmp_path), ["data.spacing_mm=1.0", "augment=none", "data.crop=null"])
    parts = open_parts(config, open_masks(config))
    sizes = {parts.train.stems[i][0]: parts.train[i].size_hw for i in range(len(parts.train))}
    # 34 rows along y, 30 columns along x
    assert sizes == {"a": (34, 15), "b": (34, 30), "c": (17, 30)}
    assert {parts.train[i].spacing_mm for i in range(len(parts.train))} == {(1.0, 1.0)}
    # Checked before training: stored sizes are one, working sizes are three.
    with pytest.raises(ValueError, match=r"come in 3 sizes.*17x30 \(4\)"):
        verify(parts, config, silent_progress)


def test_images_without_a_spacing_are_named_before_training(tmp_path, capsys):
    from tests.test_cli import write_config

    config = write_config(tmp_path, "binary")
    assert segkit("train", config, "data.spacing_mm=1.0", "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "5 faults in 5 samples" in error
    assert "s0: 1 x 1 mm per pixel are asked for, but the image tells no spacing" in error
    assert not (tmp_path / "run").exists()


def test_images_that_are_only_scored_need_a_spacing_too(tmp_path):
    config = read_config(write_volumes(tmp_path / "volumes"), ["data.spacing_mm=1.0"])
    train = open_parts(config, open_masks(config)).train
    pictures = write_set(tmp_path / "pictures", train.format, 2)
    with pytest.raises(ValueError, match="2 faults in 2 samples"):
        verify(Parts(train, pictures, None), config, silent_progress)
    assert pictures.resize is None  # scores are counted at the stored size


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (("data.spacing_mm=1", "data.resize=64"), "expected `resize` or `spacing_mm`, not both"),
        (("data.spacing_mm=0",), "`data.spacing_mm` is 0, expected greater than 0"),
        (("data.spacing_mm=[1, 2, 3]",), "`data.spacing_mm` is [1, 2, 3], expected"),
        (("data.normalize=slice",), "expected 'dataset', 'image' or 'volume'"),
        (("model.clip=[99, 1]",), "expected `clip: [low, high]` with percentiles"),
        (("model.window=[240, -160]",), "expected `window: [low, high]` with low below high"),
        (("model.window=[0, 1]", "model.clip=[1, 99]"), "expected `clip` or `window`, not both"),
        (("model.window=[0, 1]", "data.normalize=image"), "`model.clip` and `model.window` left out"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path, capsys, mistake, message):
    assert segkit("train", write_volumes(tmp_path / "data"), *mistake, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


def test_a_config_with_ranges_survives_its_run_folder(tmp_path):
    path = write_volumes(tmp_path)
    for overrides in (["model.window=[-160, 240]"], ["model.clip=none"], ["model.clip=[1, 99]"], ["data.spacing_mm=2"]):
        config = read_config(path, overrides)
        (tmp_path / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assert read_config(tmp_path / "again.yaml") == config


def test_arrays_need_what_files_tell(tmp_path):
    config, run = write_volumes(tmp_path / "data"), tmp_path / "run"
    assert segkit("train", config, "data.normalize=volume", "--out", run) == 0
    predictor = Predictor(load_model(run), device="cpu")
    image = np.random.default_rng(0).normal(900, 50, (34, 30)).astype(np.float32)
    with pytest.raises(ValueError, match=r"scale=volume_scale\(voxels\)"):
        predictor.predict(image)
    scale = image_scale(image[..., None])
    assert np.array_equal(
        predictor.predict(image, scale=scale), predictor.predict(image * 2, scale=image_scale(2 * image[..., None]))
    )
