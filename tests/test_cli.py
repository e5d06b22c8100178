"""The command line as a user meets it: exit codes, messages, files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.cli import main
from segkit.config import read_config
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.metrics.peers import PEERS
from segkit.parts import open_part
from tests.scenes import FORMATS, write_set

MODEL = "{architecture: unet, encoder: tu-test_resnet, weights: none, options: {decoder_channels: [16, 8, 8, 8, 8]}}"
MASKS = {
    "exclusive": "{format: multiclass, classes: [sky, ground, disc]}",
    "one_vs_rest": "{format: multiclass, activation: sigmoid, classes: [sky, ground, disc]}",
    "overlapping": "{format: multilabel, classes: [left, disc], codec: file_per_class}",
    "binary": "{format: binary, classes: [disc]}",
    "binary_softmax": "{format: binary, activation: softmax, classes: [disc]}",
}


CODEC_OPTIONS = {"index_png": {"values": {7: "sky", 200: "ground", 3: "disc"}, "ignored_values": [255]}}


def segkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def write_config(root: Path, kind: str, codec: Codec | None = None) -> Path:
    write_set(root / "train", FORMATS[kind], 5, codec=codec)
    write_set(root / "val", FORMATS[kind], 2, codec=codec, first=100)
    path = root / "config.yaml"
    named = "" if codec is None else f", codec: {json.dumps(codec.to_spec())}"
    path.write_text(
        f"masks: {MASKS[kind][:-1]}{named}}}\n"
        f"data: {{root: {root}, train: {{images: train/images, masks: train/masks}}, "
        "val: {images: val/images, masks: val/masks}, crop: 32}\n"
        f"model: {MODEL}\n"
        "train: {epochs: 1, batch_size: 2, workers: 0, device: cpu}\n"
    )
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    assert segkit("train", write_config(root, "exclusive"), "--out", root / "run", "--json", root / "out.json") == 0
    return root


@pytest.mark.parametrize("kind", ["one_vs_rest", "overlapping", "binary", "binary_softmax"])
def test_train_predict_and_score_the_predictions_for_every_format(tmp_path, kind, capsys):
    config, run = write_config(tmp_path, kind), tmp_path / "run"
    assert segkit("train", config, "--out", run) == 0
    out = tmp_path / "predictions"
    assert segkit("predict", run, tmp_path / "val" / "images", "--out", out, "--overlay", "--device", "cpu") == 0
    arguments = ("--predictions", out, "--masks", tmp_path / "val" / "masks", "--config", config)
    assert segkit("evaluate", *arguments, "--json", tmp_path / "a.json") == 0
    assert segkit("evaluate", run, "--device", "cpu", "--json", tmp_path / "b.json") == 0
    of_files, of_model = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert of_model["split"] == "val"
    for average in ("pooled", "per_image"):
        assert of_files[average] == of_model[average]
    # a folder of predictions is itself a data set
    again = ("train", config, f"data.train={{images: {tmp_path / 'val' / 'images'}, masks: {out}}}", "data.leaks=warn")
    assert segkit(*again, "--out", tmp_path / "second") == 0


@pytest.mark.parametrize(
    "name", ["index_png", "palette_png", "color_png", "file_per_class", "nifti", "coco", "labelme"]
)
def test_predictions_are_masks_again_in_every_codec(tmp_path, name):
    codec = open_codec({"name": name, **CODEC_OPTIONS.get(name, {})}, FORMATS["exclusive"])
    config = write_config(tmp_path, "exclusive", codec)
    assert segkit("train", config, "--out", tmp_path / "run") == 0
    out = tmp_path / "predictions"
    assert segkit("predict", tmp_path / "run", tmp_path / "val" / "images", "--out", out, "--overlay") == 0
    scoring = ("--predictions", out, "--masks", tmp_path / "val" / "masks", "--config", config)
    assert segkit("evaluate", *scoring, "--json", tmp_path / "a.json") == 0
    stored = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert json.loads((tmp_path / "a.json").read_text())["pooled"] == stored["pooled"]
    again = ("train", config, f"data.train={{images: {tmp_path / 'val' / 'images'}, masks: {out}}}", "data.leaks=warn")
    assert segkit(*again, "--out", tmp_path / "second") == 0
    images = read_config(config, [again[2]])
    assert len(open_part(images, "train", codec)) == 2


def test_a_run_folder_holds_what_the_design_says(trained):
    run = trained / "run"
    names = {p.name for p in run.iterdir()} - {"tensorboard"}
    assert names == {
        "config.yaml",
        "curves.png",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "model",
        "scores.json",
        "pictures",
    }
    scores = json.loads((run / "scores.json").read_text())
    assert list(scores["pooled"]["iou"]["per_class"]) == ["sky", "ground", "disc"]
    assert (scores["split"], scores["images"]) == ("val", 2)
    assert json.loads((trained / "out.json").read_text()) == scores
    assert set(scores) == {"format", "split", "images", "absent", "pooled", "per_image"}
    assert len(list((run / "pictures").glob("*.png"))) == 2


def test_resuming_a_finished_run_says_so(trained, capsys):
    assert segkit("train", "--resume", trained / "run") == 0
    assert "finished" in capsys.readouterr().out


def test_a_used_run_folder_is_refused_and_left_alone(trained, capsys):
    before = (trained / "run" / "config.yaml").read_bytes()
    assert segkit("train", trained / "config.yaml", "train.epochs=7", "--out", trained / "run") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (trained / "run" / "config.yaml").read_bytes() == before


def test_predict_names_broken_files_does_the_rest_and_exits_1(trained, tmp_path, capsys):
    shutil.copytree(trained / "val" / "images", tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (tmp_path / "in" / "empty.jpg").touch()
    report = tmp_path / "report.json"
    assert segkit("predict", trained / "run", tmp_path / "in", "--out", tmp_path / "out", "--json", report) == 1
    told = json.loads(report.read_text())
    assert told["done"] == 2
    assert {Path(f["file"]).name for f in told["failed"]} == {"broken.png", "empty.jpg"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "_journal.jsonl",
        "_quarantine.txt",
        "s0.png",
        "s1.png",
    ]
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "empty.jpg" in errors
    assert "Traceback" not in errors


def test_predict_goes_on_with_the_job_of_a_list(trained, tmp_path, capsys, monkeypatch):
    images = trained / "val" / "images"
    (tmp_path / "list.txt").write_text(f"{images / 's0.png'}\n{images / 's1.png'}\n")
    given = ("predict", trained / "run", "--list", tmp_path / "list.txt", "--out", tmp_path / "out", "--resume")
    report = tmp_path / "report.json"
    parts = ("--batch-size", 1, "--json", report)
    assert segkit(*given, *parts, "--shard", "2/2") == 0
    assert "1 masks in" in (told := capsys.readouterr().out)
    assert "by part 2/2; others are not done yet" in told
    assert json.loads(report.read_text())["complete"] is False
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert segkit(*given, *parts) == 0
    told = json.loads(report.read_text())
    assert (told["done"], told["complete"]) == (2, True)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert segkit(*given, *parts, "--tile", 64) == 2
    assert "tile was None, now it is 64" in capsys.readouterr().err
    before = json.loads(report.read_text())
    assert segkit(*given, *parts) == 0
    assert json.loads(report.read_text()) == before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert segkit(*given, "--shard", "1/2") == 2


def test_predict_writes_overlays_and_probabilities_beside_the_masks(trained, tmp_path):
    image = trained / "val" / "images" / "s0.png"
    arguments = ("predict", trained / "run", image, "--out", tmp_path, "--overlay", "--probabilities", "--tile", 32)
    assert segkit(*arguments) == 0
    mask = cv2.imread(str(tmp_path / "s0.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (40, 56)
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert cv2.imread(str(tmp_path / "_overlay" / "s0.png")).shape == (40, 56, 3)
    stored = np.load(tmp_path / "_probabilities" / "s0.npz")
    assert stored["probabilities"].shape == (3, 40, 56)
    assert np.allclose(stored["probabilities"].astype(np.float32).sum(0), 1, atol=2e-3)
    assert (stored["probabilities"].argmax(0) == mask).mean() > 0.99
    assert stored["classes"].tolist() == ["sky", "ground", "disc"]


def test_views_and_several_models_are_averaged_in_files_and_scores(trained, tmp_path, capsys):
    run, images = trained / "run", trained / "val" / "images"
    averaged = ("--tta", "flips", "--ensemble", run / "model", "--device", "cpu")
    assert segkit("predict", run, images, "--out", tmp_path / "out", "--probabilities", *averaged) == 0
    assert segkit("predict", run, images, "--out", tmp_path / "alone", "--probabilities", "--device", "cpu") == 0
    stored = [np.load(tmp_path / out / "_probabilities" / "s0.npz")["probabilities"] for out in ("out", "alone")]
    assert np.abs(stored[0].astype(np.float32) - stored[1].astype(np.float32)).max() > 0.01
    assert segkit("evaluate", run, "--json", tmp_path / "a.json", *averaged) == 0
    masks = ("--predictions", tmp_path / "out", "--masks", trained / "val" / "masks", "--config", run / "config.yaml")
    assert segkit("evaluate", *masks, "--json", tmp_path / "b.json") == 0
    assert (
        json.loads((tmp_path / "a.json").read_text())["pooled"]
        == json.loads((tmp_path / "b.json").read_text())["pooled"]
    )
    assert segkit("evaluate", *masks, "--tta", "flips") == 2
    assert segkit("predict", run, images, "--out", tmp_path / "no", "--tta", "mirror") == 2
    assert "unknown view 'mirror'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_post_processing_of_a_config_is_scored_stored_and_predicted(tmp_path):
    config, run = write_config(tmp_path, "exclusive"), tmp_path / "run"
    step = {"name": "minimum_size", "classes": ["sky", "ground", "disc"], "pixels": 30}
    assert segkit("train", config, f"postprocess=[{json.dumps(step)}]", "--out", run) == 0
    assert json.loads((run / "model" / "segkit.json").read_text())["postprocess"] == [step]
    out = tmp_path / "out"
    assert segkit("predict", run, tmp_path / "val" / "images", "--out", out, "--device", "cpu") == 0
    arguments = ("--predictions", out, "--masks", tmp_path / "val" / "masks", "--config", config)
    assert segkit("evaluate", *arguments, "--json", tmp_path / "a.json") == 0
    scores = [json.loads(path.read_text())["pooled"] for path in (run / "scores.json", tmp_path / "a.json")]
    assert scores[0] == scores[1]


def test_predict_writes_the_objects_of_all_images_in_one_file(trained, tmp_path):
    images = trained / "val" / "images"
    assert segkit("predict", trained / "run", images, "--out", tmp_path, "--objects") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["_journal.jsonl", "_objects.json", "s0.png", "s1.png"]
    objects = json.loads((tmp_path / "_objects.json").read_text())
    assert [image["file_name"] for image in objects["images"]] == ["s0.png", "s1.png"]
    assert [category["name"] for category in objects["categories"]] == ["sky", "ground", "disc"]
    for image in objects["images"]:
        mask = cv2.imread(str(tmp_path / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert (image["height"], image["width"]) == mask.shape
        for category in objects["categories"]:
            count, _, stats, _ = cv2.connectedComponentsWithStats(np.uint8(mask == category["id"] - 1), connectivity=8)
            assert count == len(stats)
            found = [
                (*record["bbox"], record["area"])
                for record in objects["annotations"]
                if (record["image_id"], record["category_id"]) == (image["id"], category["id"])
            ]
            assert sorted(found) == sorted(tuple(row) for row in stats[1:].tolist())
    assert all(0 < record["score"] <= 1 for record in objects["annotations"])


def test_evaluate_takes_folders_in_place_of_a_config(trained, tmp_path):
    val = trained / "val"
    arguments = ("--images", val / "images", "--masks", val / "masks", "--json", tmp_path / "s.json")
    assert segkit("evaluate", trained / "run" / "model", *arguments) == 0
    stored = json.loads((trained / "run" / "scores.json").read_text())
    assert json.loads((tmp_path / "s.json").read_text())["pooled"] == stored["pooled"]


def test_evaluate_says_what_other_toolkits_would_print(tmp_path, capsys):
    """Truth: half sky, half ground, no disc. One quarter of the sky was taken for disc."""
    for folder, quarter in (("masks", 0), ("predictions", 2)):
        planes = np.ones((8, 8), np.uint8)
        planes[:4] = 0
        planes[:2, :4] = quarter
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), planes)
    (tmp_path / "masks.yaml").write_text(f"masks: {MASKS['exclusive']}\n")
    arguments = ("evaluate", "--predictions", tmp_path / "predictions", "--masks", tmp_path / "masks")
    arguments = (*arguments, "--config", tmp_path / "masks.yaml", "--json", tmp_path / "scores.json")
    assert segkit(*arguments, "--like", "mmseg", "--like", "ultralytics") == 0
    assert "like ultralytics: 0.875000" in capsys.readouterr().out
    like = json.loads((tmp_path / "scores.json").read_text())["like"]
    assert like["mmseg"] == {"name": PEERS["mmseg"][0], "value": pytest.approx((0.75 + 1 + 0) / 3)}
    assert like["ultralytics"]["value"] == pytest.approx((0.75 + 1) / 2)

    assert segkit(*arguments, "--like", "nnU-Net") == 2
    assert "Did you mean `nnunet`?" in capsys.readouterr().err
    assert segkit("evaluate", "--help") == 0
    assert set(PEERS) <= set(re.findall(r"\w+", capsys.readouterr().out))


def test_predictions_need_nothing_but_the_masks_section(trained, tmp_path):
    (tmp_path / "masks.yaml").write_text(f"masks: {MASKS['exclusive']}\n")
    masks = trained / "val" / "masks"
    arguments = ("--predictions", masks, "--masks", masks, "--config", tmp_path / "masks.yaml")
    assert segkit("evaluate", *arguments, "--json", tmp_path / "s.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["pooled"]["iou"]["mean"] == 1.0


@pytest.mark.parametrize("option", [("--axes", "z"), ("--tile", 64), ("--tta", "hflip"), ("--ensemble", "run")])
def test_what_is_for_a_model_does_not_go_with_predictions(tmp_path, capsys, option):
    assert segkit("evaluate", "--predictions", tmp_path, "--config", "any.yaml", *option) == 2
    assert "without a MODEL and what is for one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "give a config"),
        (("train", "nowhere.yaml"), "nowhere.yaml: no such file. Configs that come with segkit: brats"),
        (("train", "{config}", "train.epoch=3"), "Did you mean `epochs`"),
        (("train", "{config}", "masks.format=multilabel", "masks.activation=softmax"), "probabilities sum to 1"),
        (("train", "{config}", "masks.format=multilabel"), "may overlap"),
        (("train", "{config}", "data.train.images=nowhere"), "nowhere: no such folder"),
        (("train", "{config}", "data.train.masks=empty"), "no masks here"),
        (("train", "{config}", "data.train.images=empty"), "no images here"),
        (("train", "{config}", "model.encoder=resnet19"), "unknown encoder 'resnet19'"),
        (("train", "{config}", "augment=[Flipp]"), "Flipp"),
        (("train", "{config}", "loss=dyce"), "Did you mean `dice`"),
        (("train", "{config}", "masks.classes=[sky, ground]"), "found values [2], which no class declares"),
        (("train", "--resume", "nowhere"), "no config.yaml here"),
        (("train", "{config}", "train.device=gpu"), "expected auto, cpu, cuda"),
        (("train", "{config}", "model.in_channels=13"), "3 bands, the model takes 13"),
        (("train", "{config}", "--resume", "{run}"), "not both"),
        (("train", "--resume", "{run}", "--out", "x"), "leave --out away"),
        (("evaluate", "{run}", "--tile", "0"), "at least 32"),
        (("evaluate", "{run}", "--device", "mars"), "expected auto, cpu, cuda"),
        (("evaluate",), "name a MODEL"),
        (("evaluate", "nowhere"), "no such folder"),
        (("evaluate", "{run}", "--split", "tset"), "expected train, val or test"),
        (("evaluate", "{run}", "--images", "x"), "go together"),
        (("predict", "{run}", "nowhere.png", "--out", "x"), "no such file or folder"),
        (("predict", "{run}", "{root}/empty", "--out", "x"), "no images here"),
        (("predict", "{run}", "{root}/val/images", "--out", "x", "--device", "cuda:99x"), "expected auto"),
        (("predict", "{run}", "--out", "x"), "give INPUTs"),
        (("predict", "{run}", "--out", "x", "--list", "nowhere.txt"), "nowhere.txt: cannot be read as a list"),
        (("predict", "{run}", "{root}/val/images", "--out", "x", "--shard", "0/4"), "from 1 to N"),
        (("predict", "{run}", "{root}/val/images", "--out", "x", "--overwrite", "no"), "expected always or never"),
        (("init", "nothing"), "Configs that come with segkit"),
        (("trian",), "trian"),
        (("train", "--nonsense"), "--nonsense"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_2(trained, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (trained / "empty").mkdir(exist_ok=True)
    places = {"config": trained / "config.yaml", "run": trained / "run", "root": trained}
    assert segkit(*(a.format(**places) for a in arguments)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("config.yaml"))


def test_image_and_mask_of_two_sizes_are_named_before_training_starts(trained, tmp_path, capsys):
    shutil.copytree(trained / "train", tmp_path / "train")
    cv2.imwrite(str(tmp_path / "train" / "masks" / "s3.png"), np.zeros((20, 20), np.uint8))
    arguments = ("train", trained / "config.yaml", f"data.train.images={tmp_path}/train/images")
    assert segkit(*arguments, f"data.train.masks={tmp_path}/train/masks", "--out", tmp_path / "run") == 2
    errors = capsys.readouterr().err
    assert "s3" in errors
    assert "40x56" in errors
    assert "20x20" in errors
    assert not (tmp_path / "run").exists()


def test_version_env_and_init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert segkit("--version") == 0
    assert capsys.readouterr().out.startswith("segkit 0.")
    assert segkit("env", "--json", "env.json") == 0
    assert json.loads((tmp_path / "env.json").read_text())["versions"]["torch"]
    assert segkit("init") == 0
    assert "camvid_multiclass_fpn" in capsys.readouterr().out
    assert segkit("init", "smoke") == 0
    assert "layout: scene" in (tmp_path / "smoke.yaml").read_text()
    assert segkit("init", "smoke") == 2


def test_two_runs_of_one_config_are_equal(tmp_path):
    config = write_config(tmp_path, "exclusive")
    for name in ("a", "b"):
        assert segkit("train", config, "--out", tmp_path / name) == 0
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert (tmp_path / "a" / "scores.json").read_bytes() == (tmp_path / "b" / "scores.json").read_bytes()


def test_an_interrupted_run_is_resumed_from_the_command_line(tmp_path, capsys):
    config = write_config(tmp_path, "exclusive")
    assert segkit("train", config, "--out", tmp_path / "run") == 0
    before = json.loads((tmp_path / "run" / "scores.json").read_text())
    (tmp_path / "run" / "scores.json").unlink()
    assert segkit("train", "--resume", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == before
    # stopped after the first bundle, while the first checkpoint was written
    (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "run" / "checkpoints" / ".last.ckpt.0.part")
    (tmp_path / "run" / "scores.json").unlink()
    assert segkit("train", "--resume", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == before
    assert segkit("train", "--resume", tmp_path / "run", "--json", tmp_path / "again.json") == 0
    assert json.loads((tmp_path / "again.json").read_text()) == before


def test_images_of_two_sizes_are_named_before_training_starts(tmp_path, capsys):
    config = write_config(tmp_path, "binary")
    for kind, shape in (("images", (20, 30, 3)), ("masks", (20, 30))):
        cv2.imwrite(str(tmp_path / "train" / kind / "other.png"), np.zeros(shape, np.uint8))
    assert segkit("train", config, "data.crop=null", "--out", tmp_path / "run") == 2
    errors = capsys.readouterr().err
    assert "20x30" in errors
    assert "data.crop" in errors
    assert not (tmp_path / "run").exists()
    assert segkit("train", config, "--out", tmp_path / "run") == 0


def test_training_on_the_device_from_a_config(tmp_path, capsys):
    config = write_config(tmp_path, "overlapping")
    on_device = ("train", config, "data.cache=device", "--out", tmp_path / "run")
    # Said before any file is read; `light` is what a config without `augment` has.
    assert segkit(*on_device) == 2
    assert "augment is 'light', which runs on the CPU" in capsys.readouterr().err
    assert segkit(*on_device, "train.compile=true", "data.crop=null", "augment=fast_light") == 2
    assert "set `data.crop`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert segkit(*on_device, "augment=fast_light") == 0
    assert read_config(tmp_path / "run" / "config.yaml").data.cache == "device"
    assert (tmp_path / "run" / "scores.json").is_file()


def test_predict_never_writes_over_its_inputs(trained, tmp_path, capsys):
    shutil.copytree(trained / "val" / "images", tmp_path / "images")
    before = (tmp_path / "images" / "s0.png").read_bytes()
    assert segkit("predict", trained / "run", tmp_path / "images", "--out", tmp_path / "images") == 2
    assert "written over" in capsys.readouterr().err
    assert (tmp_path / "images" / "s0.png").read_bytes() == before


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "inspect", "init", "demo", "env"])
def test_every_command_has_help_with_an_example(command, capsys):
    assert segkit(command, "--help") == 0
    assert f"Example: segkit {command}" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")


def test_the_tools_hand_their_arguments_over(tmp_path):
    import subprocess
    import sys

    tools = Path(__file__).resolve().parents[1] / "tools"
    for name in ("train", "evaluate", "predict", "inspect_masks"):
        done = subprocess.run([sys.executable, tools / f"{name}.py", "--nonsense"], capture_output=True, text=True)
        assert done.returncode == 2
        assert "--nonsense" in done.stderr
