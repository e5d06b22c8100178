"""The way of a volume: from DICOM series and labels stored in another order to predictions that lie on the series."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from segkit.config import read_config
from segkit.models.bundle import load_model
from segkit.parts import open_masks, open_parts
from tests.dicoms import write_series
from tests.scenes import FORMATS, scene, write_set
from tests.test_cli import MODEL, segkit

# Rows to the left, columns to the back: how scanners store axial slices.
LPS = np.array([[-0.7, 0, 0, 20.0], [0, -0.9, 0, 11.5], [0, 0, 2.5, -7.25], [0, 0, 0, 1]])
MOVED = np.eye(4) + np.outer([5, 0, 0, 0], [0, 0, 0, 1])
SLICES = 4


@pytest.fixture
def study(tmp_path):
    """Three patients: images as DICOM series, labels as NIfTI in RAS order."""
    pytest.importorskip("pydicom")
    for number in range(3):
        scenes = [scene(SLICES * number + k, (40, 56)) for k in range(SLICES)]
        voxels = np.stack([image.mean(2).T for image, _ in scenes], axis=2).astype(np.int16)
        write_series(tmp_path / "images" / f"p{number}", voxels, LPS, order=[2, 0, 3, 1], RescaleIntercept=-1000)
        labels = nibabel.Nifti1Image(np.stack([maps["disc"].T for _, maps in scenes], axis=2).astype(np.uint8), LPS)
        (tmp_path / "masks").mkdir(exist_ok=True)
        nibabel.save(nibabel.as_closest_canonical(labels), tmp_path / "masks" / f"p{number}.nii.gz")
    path = tmp_path / "config.yaml"
    path.write_text(
        "masks: {format: binary, classes: [disc], codec: nifti}\n"
        f"data: {{root: {tmp_path}, train: {{images: images, masks: masks}}, "
        "val: {from: train, fraction: 0.3}, crop: 32, neighbours: 1}\n"
        f"model: {MODEL}\n"
        "train: {epochs: 1, batch_size: 2, workers: 0, device: cpu}\n"
    )
    return path


def test_series_and_turned_labels_are_one_data_set(study):
    config = read_config(study)
    parts = open_parts(config, open_masks(config))
    assert (len(parts.train), len(parts.val)) == (2 * SLICES, SLICES)
    sample = parts.val.read(1)
    assert sample.image.shape == (40, 56, 3)
    assert sample.spacing_mm == pytest.approx((0.9, 0.7))
    number = int(sample.stem[1])
    image, maps = scene(SLICES * number + 1, (40, 56))
    np.testing.assert_array_equal(sample.image[::-1, ::-1, 1], image.mean(2).astype(np.int16) - 1000)
    np.testing.assert_array_equal(sample.planes[::-1, ::-1, 0], maps["disc"])
    assert sample.image.shape[2] == parts.train.read(0).image.shape[2]


def test_train_predict_and_score(study, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    assert segkit("train", study, "--out", run) == 0
    model = load_model(run)
    assert (model.in_channels, model.reading.neighbours) == (3, 1)
    assert segkit("predict", run, tmp_path / "images", "--out", out, "--device", "cpu") == 0
    assert sorted(p.name for p in out.glob("p*")) == ["p0.nii.gz", "p1.nii.gz", "p2.nii.gz"]
    written = nibabel.load(out / "p1.nii.gz")
    assert nibabel.aff2axcodes(written.affine) == ("L", "P", "S")
    np.testing.assert_allclose(written.affine, LPS, atol=1e-5)
    of_files, of_model = tmp_path / "a.json", tmp_path / "b.json"
    whole = ("--masks", tmp_path / "masks")
    assert segkit("evaluate", "--predictions", out, *whole, "--config", study, "--json", of_files) == 0
    images = ("--images", tmp_path / "images")
    assert segkit("evaluate", run, *images, *whole, "--device", "cpu", "--json", of_model) == 0
    assert json.loads(of_files.read_text())["pooled"] == json.loads(of_model.read_text())["pooled"]
    # Predictions that lie elsewhere are no worse ones, but another question.
    moved = nibabel.Nifti1Image(np.asarray(written.dataobj), MOVED @ LPS)
    nibabel.save(moved, out / "p1.nii.gz")
    assert segkit("evaluate", "--predictions", out, *whole, "--config", study) == 2
    assert "does not lie on the voxels of" in capsys.readouterr().err
    # One series alone.
    assert segkit("predict", run, tmp_path / "images" / "p2", "--out", tmp_path / "one", "--device", "cpu") == 0
    assert (tmp_path / "one" / "p2.nii.gz").read_bytes() == (out / "p2.nii.gz").read_bytes()


def test_pictures_are_refused_where_the_model_takes_neighbours(study, tmp_path, capsys):
    assert segkit("train", study, "--out", tmp_path / "run") == 0
    write_set(tmp_path / "pictures", FORMATS["binary"], 1)
    arguments = ("predict", tmp_path / "run", tmp_path / "pictures" / "images", "--out", tmp_path / "out")
    assert segkit(*arguments, "--device", "cpu") == 1
    assert "has no neighbours, of which the model takes 1" in capsys.readouterr().err


def test_a_model_of_three_axes_is_scored_as_it_predicts(study, tmp_path, capsys):
    run, out, config = tmp_path / "run", tmp_path / "out", tmp_path / "three.yaml"
    config.write_text(study.read_text().replace("crop: 32", "crop: 32, axis: zyx"))
    assert segkit("train", config, "--out", run, "train.batch_size=16") == 0
    assert load_model(run).reading.axis == "zyx"
    assert segkit("predict", run, tmp_path / "images", "--out", out, "--device", "cpu") == 0
    of_files, of_model, of_one = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    whole = ("--masks", tmp_path / "masks")
    assert segkit("evaluate", "--predictions", out, *whole, "--config", config, "--json", of_files) == 0
    model = ("evaluate", run, "--images", tmp_path / "images", *whole, "--device", "cpu")
    assert segkit(*model, "--json", of_model) == 0
    assert segkit(*model, "--axes", "z", "--json", of_one) == 0
    files, average, one = (json.loads(path.read_text()) for path in (of_files, of_model, of_one))
    assert files["pooled"] == average["pooled"] != one["pooled"]
    assert files["images"] == average["images"] == one["images"] == 3 * SLICES
    # The scores that training ends with are those of the same averages.
    assert json.loads((run / "scores.json").read_text())["images"] == SLICES
    capsys.readouterr()
    assert segkit("predict", run, tmp_path / "images", "--out", out, "--axes", "xy") == 2
    assert "answers are slices across z" in capsys.readouterr().err
    assert segkit("train", config, "--out", tmp_path / "other", "data.axis=zz") == 2
    said = capsys.readouterr().err
    assert "data.axis" in said
    assert "as in `zyx`" in said


def test_masks_out_of_fold_are_averages_where_the_scores_are(study, tmp_path):
    config, run = tmp_path / "two.yaml", tmp_path / "run"
    config.write_text(study.read_text().replace("crop: 32", "crop: 32, axis: zy"))
    given = ("data.val=null", "train.batch_size=16", "--folds", 2, "--out", run, "--predictions")
    assert segkit("crossvalidate", config, *given) == 0
    masks, found = ("--predictions", run / "predictions", "--masks", tmp_path / "masks"), tmp_path / "a.json"
    assert segkit("evaluate", *masks, "--config", config, "--json", found) == 0
    of_masks, of_models = json.loads(found.read_text()), json.loads((run / "scores.json").read_text())
    assert of_masks["pooled"] == of_models["pooled"]
    assert of_masks["images"] == of_models["images"] == 3 * SLICES
