"""What segkit does with exported files: predict, evaluate, verify."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segkit.formats.files import walk
from segkit.inference.evaluate import evaluate
from segkit.inference.export import export_bundle
from segkit.inference.exported import open_exported
from segkit.inference.golden import keep_golden
from segkit.inference.models import open_model
from segkit.inference.predictor import Predictor
from segkit.inference.verify import Comparison, verify
from segkit.models.builder import build_model
from segkit.models.bundle import load_model, save_bundle, update_bundle
from segkit.models.steps import MinimumSize
from tests.inference.test_export import KINDS, SMALL, Blurry, bundle_of, images_of, wake_up
from tests.scenes import write_set
from tests.test_cli import segkit


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with data, a bundle with golden images, and both kinds of exported files."""
    root = tmp_path_factory.mktemp("exported")
    data = write_set(root / "data", KINDS["overlapping"], 4, size_hw=(70, 93))
    bundle = bundle_of(root / "m", KINDS["overlapping"], **SMALL)
    update_bundle(bundle, KINDS["overlapping"], (MinimumSize(("left",), pixels=40),))
    keep_golden(load_model(bundle), data, bundle, 2)
    assert segkit("export", bundle, "--out", root / "model.onnx", "--json", root / "onnx.json") == 0
    assert segkit("export", bundle, "--format", "torch", "--out", root / "model.pt2") == 0
    return root


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_segkit_predict_writes_the_masks_of_the_bundle(made, tmp_path, file):
    for source, out in ((made / "m", "bundle"), (made / file, "file")):
        assert segkit("predict", source, made / "data" / "images", "--out", tmp_path / out, "--probabilities") == 0
    wanted = {name: path for name, path in walk(tmp_path / "bundle") if name.endswith(".png")}
    found = {name: path for name, path in walk(tmp_path / "file") if name.endswith(".png")}
    assert wanted.keys() == found.keys()
    assert len(wanted) == 8
    assert open_exported(made / file).postprocess == load_model(made / "m").postprocess != ()
    for name, path in wanted.items():
        assert path.read_bytes() == found[name].read_bytes(), name
    with (
        np.load(tmp_path / "bundle/_probabilities/s1.npz") as ours,
        np.load(tmp_path / "file/_probabilities/s1.npz") as theirs,
    ):
        assert np.allclose(ours["probabilities"], theirs["probabilities"], atol=2e-3)


def test_what_was_written_is_told(made):
    report = json.loads((made / "onnx.json").read_text())
    assert report["outputs"] == ["planes", "probabilities"]
    assert report["bytes"] == (made / "model.onnx").stat().st_size
    assert report["checked"]["worst"] <= 1e-3
    assert report["checked"]["images"] == 2 + (1 + 2 + 3) + 1  # golden images, batches of noise, the smallest size


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_windows_and_scores_are_those_of_the_bundle(made, file):
    data = write_set_again(made)
    image = data.read(0).image
    ours, theirs = (Predictor(made / name, device="cpu", tile=32) for name in ("m", file))
    assert np.allclose(ours.probabilities(image), theirs.probabilities(image), atol=1e-4)
    model, codec = open_model(made / file)
    assert codec is not None
    scores = evaluate(model, data, device="cpu", workers=0).to_dict()
    wanted = evaluate(load_model(made / "m"), data, device="cpu", workers=0).to_dict()
    assert scores["pooled"]["iou"]["mean"] == pytest.approx(wanted["pooled"]["iou"]["mean"], abs=1e-3)


def write_set_again(made: Path):
    from segkit.data.datasets import MaskDataset
    from tests.scenes import default_codec

    return MaskDataset(made / "data/images", made / "data/masks", default_codec(KINDS["overlapping"]))


def test_images_of_another_depth_are_brought_to_that_of_the_file(made):
    model = open_exported(made / "model.pt2")
    images = images_of((1, 40, 50))
    planes = model.planes(images)
    assert torch.equal(model.planes((images.to(torch.int32) * 257).to(torch.uint16)), planes)
    assert torch.equal(model.planes(images.float() + 0.2), planes)
    assert torch.equal(model.planes(torch.where(images == 255, 300.0, images.float())), planes)
    with pytest.raises(ValueError, match=r"\(1, 2, 40, 50\).*takes \(N, 3, height, width\)"):
        model.planes(images[:, :2])


def test_a_bundle_and_its_files_verify(made, tmp_path, capsys):
    for given in (["m"], ["model.onnx"], ["model.pt2"], ["model.onnx", "--against", made / "m"]):
        assert segkit("verify", made / given[0], *given[1:], "--json", tmp_path / "v.json") == 0
        found = json.loads((tmp_path / "v.json").read_text())
        assert (found["images"], found["pixels"], found["same"]) == (2, 2 * 70 * 93, True)
        assert found["then"] == {}
    assert "masks differ in 0 of the pixels of 2 images" in capsys.readouterr().out


def test_other_weights_do_not_verify(made, tmp_path, capsys):
    other = save_bundle(load_model(made / "m"), tmp_path / "m")
    (other / "golden.safetensors").write_bytes((made / "m/golden.safetensors").read_bytes())
    assert segkit("verify", other) == 0
    state = load_file(other / "model.safetensors")
    for name in state:
        if "segmentation_head" in name:
            state[name] = -state[name]
    save_file(state, other / "model.safetensors")
    assert segkit("verify", other) == 1
    assert segkit("verify", made / "model.onnx", "--against", other) == 1
    assert "is more than the 0.001 that is allowed" in capsys.readouterr().err
    assert segkit("verify", other, "--tolerance", 1) == 0


def test_thresholds_that_were_tuned_later_change_masks_and_not_the_verdict(made, tmp_path):
    other = save_bundle(load_model(made / "m"), tmp_path / "m")
    (other / "golden.safetensors").write_bytes((made / "m/golden.safetensors").read_bytes())
    described = json.loads((other / "segkit.json").read_text())
    described["format"]["thresholds"] = [0.99, 0.01]
    (other / "segkit.json").write_text(json.dumps(described))
    assert verify(other).compared.worst == 0
    with pytest.raises(ValueError, match="thresholds or the way of reading images differ"):
        verify(made / "model.pt2", against=other)


def test_another_version_of_torch_is_named(made, monkeypatch, capsys):
    versions = {"torch": "99.0", "segkit": "0.1.0"}
    monkeypatch.setattr("segkit.inference.verify.installed_versions", lambda: versions)
    assert segkit("verify", made / "m") == 0
    assert "now it is 99.0" in capsys.readouterr().out


def test_a_bundle_without_golden_images_says_how_to_verify_it(made, tmp_path):
    other = save_bundle(load_model(made / "m"), tmp_path / "m")
    with pytest.raises(ValueError, match=r"m: holds no golden images.*--against BUNDLE"):
        verify(other)
    assert verify(other, against=made / "m").compared.worst == 0


def test_shares_by_hand():
    two = Comparison((0.5, 0.0), (10, 30))
    assert (two.share, two.worst) == (pytest.approx(5 / 40), 0.5)
    assert not two.within(0.4)
    assert two.within(0.5)
    # One pixel of nine is more than a thousandth, and no share to speak of; two are.
    assert Comparison((1 / 9,), (9,)).within(1e-3)
    assert not Comparison((2 / 9,), (9,)).within(1e-3)


@pytest.fixture
def small(tmp_path):
    """Writes a small bundle as a program of torch."""

    def write(name: str, probabilities: bool = True, **options) -> Path:
        torch.manual_seed(0)
        model = build_model(Blurry, "none", KINDS["exclusive"], weights=None, **options)
        wake_up(model)
        save_bundle(model, tmp_path / name)
        file = tmp_path / f"{name}.pt2"
        export_bundle(tmp_path / name, file, "torch", probabilities=probabilities, architecture=Blurry)
        return file

    return write


def test_without_probabilities_segkit_predicts_nothing_and_verifies(small):
    file = small("plain", probabilities=False)
    with pytest.raises(ValueError, match=r"plain\.pt2: was exported without probabilities.*without --no-prob"):
        Predictor(file, device="cpu")
    assert verify(file).compared.worst == 0


def test_a_graph_that_resizes_answers_whole_images_alone(small, tmp_path):
    file = small("resized", resize=48)
    image = images_of((1, 61, 90))[0].permute(1, 2, 0).numpy()
    ours = Predictor(load_model(tmp_path / "resized", architecture=Blurry), device="cpu")
    assert np.array_equal(Predictor(file, device="cpu").predict(image), ours.predict(image))
    with pytest.raises(ValueError, match=r"resizes images inside its graph.*larger --tile"):
        Predictor(file, device="cpu", tile=32).predict(image)


def test_files_that_are_no_exports_are_named(tmp_path, made):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.onnx: onnxruntime cannot open it"):
        open_model(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"a\.pt2: cannot be read as a file of torch\.export"):
        open_model(tmp_path / "a.pt2")
    torch.export.save(torch.export.export(torch.nn.Identity(), (torch.zeros(2),)), tmp_path / "b.pt2")
    with pytest.raises(ValueError, match=r"b\.pt2: holds no extra/segkit\.json"):
        open_model(tmp_path / "b.pt2")
    with pytest.raises(ValueError, match=r"c\.onnx: no such file"):
        open_model(tmp_path / "c.onnx")


def test_onnxruntime_is_asked_for_by_name(made, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'segkit\[onnx\]'"):
        open_exported(made / "model.onnx")


def test_exporters_are_imported_by_those_who_export_alone():
    code = (
        "import sys; import segkit.cli; from segkit import Predictor; "
        "print(sorted(set(sys.modules) & {'onnx', 'onnxruntime', 'onnxscript', 'torch.onnx', 'torch._inductor'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
