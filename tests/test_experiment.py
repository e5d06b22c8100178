"""From a config to data and a run: what `data.cache` changes, which is nothing but the time."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing

import cv2
import pytest

from segkit.config import read_config
from segkit.data import cache
from segkit.formats.codecs import open_codec
from segkit.parts import open_masks, open_parts, silent_progress, verify
from tests.scenes import FORMATS, write_set
from tests.test_cli import segkit, write_config


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "shm")
    return tmp_path / "cache"


def copies(home):
    return sorted(p.name for p in home.glob("[!.]*")) if home.exists() else []


def parts_of(path, *overrides, progress=None):
    config = read_config(path, overrides)
    return open_parts(config, open_masks(config), progress=progress)


@pytest.mark.parametrize(
    ("kind", "place", "workers"),
    [("exclusive", "disk", (0, 2)), ("overlapping", "disk", (0,)), ("binary", "ram", (2,))],
)
def test_training_from_a_cache_gives_the_same_numbers(tmp_path, home, kind, place, workers):
    path = write_config(tmp_path / "data", kind)
    train = ("train", path, "augment=fast_street", "train.batch_size=4")
    assert segkit(*train, "--out", tmp_path / "files") == 0
    for count in workers:  # the first builds, the second finds
        run = tmp_path / f"cached-{count}"
        assert segkit(*train, f"data.cache={place}", f"train.workers={count}", "--out", run) == 0
        for file in ("metrics.csv", "scores.json"):
            assert (run / file).read_bytes() == (tmp_path / "files" / file).read_bytes(), file
    assert len(copies(home)) == (2 if place == "disk" else 0)  # train and val
    gc.collect()  # Lightning's objects refer to each other, and to the data
    assert list((tmp_path / "shm").rglob("*.bin")) == []


def test_resuming_takes_the_cache_that_is_there(tmp_path, home):
    path = write_config(tmp_path / "data", "exclusive")
    assert segkit("train", path, "data.cache=disk", "--out", tmp_path / "run") == 0
    before, made = (tmp_path / "run" / "scores.json").read_bytes(), copies(home)
    (tmp_path / "run" / "scores.json").unlink()
    assert segkit("train", "--resume", tmp_path / "run") == 0
    assert (tmp_path / "run" / "scores.json").read_bytes() == before
    assert copies(home) == made


def test_parts_that_share_folders_share_a_copy(tmp_path, home):
    path = write_config(tmp_path / "data", "exclusive")
    shares = ("data.val={from: train, fraction: 0.4}", "data.cache=disk")
    titles = []

    class Progress:
        def __init__(self, title):
            titles.append(title)

        def __enter__(self):
            return lambda done, total: None

        def __exit__(self, *exc):
            return None

    cached, plain = parts_of(path, *shares, progress=Progress), parts_of(path, *shares[:1])
    assert len(copies(home)) == 1
    assert titles == ["decoding train"]
    for name in ("train", "val"):
        assert getattr(cached, name).stems == getattr(plain, name).stems
    # Another split is another share of the same copy.
    parts_of(path, shares[0], "data.val.seed=3", shares[1])
    assert len(copies(home)) == 1


def test_the_folder_and_the_bound_of_a_config(tmp_path, home):
    path = write_config(tmp_path / "data", "exclusive")
    parts_of(path, "data.cache=disk", f"data.cache_dir={tmp_path / 'elsewhere'}")
    assert (copies(home), len(copies(tmp_path / "elsewhere"))) == ([], 2)
    with pytest.raises(ValueError, match=r"data\.cache_gib"):
        parts_of(path, "data.cache=disk", "data.cache_gib=1e-6")


def test_nothing_is_cached_unless_asked_for(tmp_path, home, monkeypatch):
    path = write_config(tmp_path / "data", "exclusive")
    monkeypatch.setattr("segkit.data.datasets.MaskDataset._origin", None)  # nor is anything looked at for it
    for overrides in ((), ("data.cache=off",)):
        assert parts_of(path, *overrides).train._copy is None
    assert not home.exists()


def test_with_a_copy_no_file_is_decoded_again_not_even_to_check_it(tmp_path, home, monkeypatch):
    path = write_config(tmp_path / "data", "exclusive")
    sizes = parts_of(path, "data.cache=disk").train.verify()
    for name in ("segkit.data.reading.read_image", "segkit.formats.png_codecs.read_png"):
        monkeypatch.setattr(name, None)
    config = read_config(path, ["data.cache=disk"])
    parts = open_parts(config, open_masks(config))
    verify(parts, config, silent_progress)
    assert parts.train.verify() == sizes
    assert parts.val[1].size_hw == (40, 56)


def test_a_bad_sample_is_named_before_training_starts(tmp_path, home, capsys):
    path = write_config(tmp_path / "data", "exclusive")
    (tmp_path / "data" / "train" / "images" / "s3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert segkit("train", path, "data.cache=disk", "--out", tmp_path / "run") == 2
    errors = capsys.readouterr().err
    assert "1 faults in 5 samples" in errors
    assert "s3.png" in errors
    assert not (tmp_path / "run").exists()
    assert copies(home) == []


def test_parts_that_differ_in_bands_are_named_before_training_starts(tmp_path, home, capsys):
    path = write_config(tmp_path, "exclusive")
    for image in (tmp_path / "val" / "images").iterdir():
        cv2.imwrite(str(image), cv2.imread(str(image), cv2.IMREAD_GRAYSCALE).astype("uint16"))
    assert segkit("train", path, "--out", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'val' / 'images'}: images of data.val have 1 bands, those of data.train have 3." in told
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_config_is_told_before_anything_is_decoded(tmp_path, home, capsys):
    path = write_config(tmp_path / "data", "exclusive")
    for mistake in ("augment=fast_steet", "data.val.images=nowhere"):
        assert segkit("train", path, "data.cache=disk", mistake, "--out", tmp_path / "run") == 2
    assert not home.exists()


def open_in_a_process(path, barrier, answers):
    barrier.wait()
    parts = parts_of(path, "data.cache=disk")
    answers.put([s.stem for s in parts.train])


def test_ranks_that_start_together_build_once(tmp_path, home):
    path = write_config(tmp_path / "data", "exclusive")
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    ranks = [context.Process(target=open_in_a_process, args=(path, barrier, answers)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=60) for _ in ranks] == [[f"s{n}" for n in range(5)]] * 2
    for rank in ranks:
        rank.join(60)
    assert len(copies(home)) == 2


def fail_in_a_process(path, barrier, answers):
    barrier.wait()
    try:
        parts_of(path, "data.cache=ram")
    except ValueError as error:
        answers.put(str(error))


def test_where_one_rank_cannot_build_all_end_with_the_reason(tmp_path, home):
    path = write_config(tmp_path / "data", "exclusive")
    (tmp_path / "data/train/images/s1.png").write_bytes(b"broken")
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    ranks = [context.Process(target=fail_in_a_process, args=(path, barrier, answers)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    assert all("s1.png: the file cannot be decoded" in answers.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(60)


def test_quarantine_is_respected(tmp_path, home, caplog, monkeypatch):
    codec = open_codec("index_png", FORMATS["exclusive"])
    path = write_config(tmp_path / "data", "exclusive", codec)
    (tmp_path / "data" / "bad.txt").write_text("s1\n")
    (tmp_path / "data" / "train" / "images" / "s1.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, "segkit"):
        parts = parts_of(path, "data.cache=disk", "data.quarantine=bad.txt")
    assert parts.train.stems == ["s0", "s2", "s3", "s4"]
    assert caplog.text.count("leaves 1 samples out of train") == 1
    monkeypatch.setenv("RANK", "1")  # the other processes say nothing
    parts_of(path, "data.quarantine=bad.txt")
    assert caplog.text.count("leaves 1 samples out of train") == 1


def test_volumes_too(tmp_path, home):
    codec = open_codec("nifti", FORMATS["exclusive"])
    ds = write_set(tmp_path / "volumes", FORMATS["exclusive"], 3, codec=codec)
    assert [s.stem for s in ds.cached()] == ["case@z000", "case@z001", "case@z002"]


def rename(root, **patterns):
    """Name the images and masks below `root` as users find them, each by a function of its path."""
    for folder, name in patterns.items():
        for path in sorted(root.glob(f"*/{folder}/*")):
            path.rename(path.with_name(name(path)))


def test_files_keep_the_names_they_have_from_training_to_scores(tmp_path):
    path = write_config(tmp_path, "exclusive")
    rename(tmp_path, images=lambda p: f"{p.stem}_photo{p.suffix}", masks=lambda p: f"gt_{p.stem}{p.suffix}")
    named = "image_pattern: '{stem}_photo', mask_pattern: 'gt_{stem}'"
    path.write_text(path.read_text().replace("/masks}", f"/masks, {named}}}"))
    assert segkit("train", path, "--out", tmp_path / "run", "--json", tmp_path / "trained.json") == 0
    out = tmp_path / "out"
    assert segkit("predict", tmp_path / "run", tmp_path / "val" / "images", "--out", out, "--device", "cpu") == 0
    assert sorted(p.name for p in out.glob("*.png")) == ["s0_photo.png", "s1_photo.png"]
    scores = tmp_path / "scores.json"
    scoring = ("evaluate", "--config", path, "--predictions", out, "--json", scores)
    assert segkit(*scoring, "--split", "val") == 0
    assert json.loads(scores.read_text()) == json.loads((tmp_path / "trained.json").read_text())
    (out / "s0_photo.png").rename(out / "s0.png")  # named by the sample
    (out / "more.png").write_bytes((out / "s0.png").read_bytes())  # of an image that val does not hold
    assert segkit(*scoring) == 0
    assert json.loads(scores.read_text()) == json.loads((tmp_path / "trained.json").read_text())
    (out / "s1_photo.png").unlink()
    assert segkit(*scoring) == 2


def test_bands_in_files_of_their_own_are_joined_in_prediction_too(tmp_path):
    path = write_config(tmp_path, "exclusive")
    for image in sorted(tmp_path.glob("*/images/*")):
        for number, band in enumerate(cv2.split(cv2.imread(str(image)))[:2]):
            cv2.imwrite(str(image.with_name(f"{image.stem}_{number:04d}.png")), band)
        image.unlink()
    named = "image_pattern: '{stem}_{band}', bands: ['0000', '0001']"
    path.write_text(path.read_text().replace("/masks}", f"/masks, {named}}}"))
    assert segkit("train", path, "--out", tmp_path / "run", "--json", tmp_path / "trained.json") == 0
    scores = tmp_path / "scores.json"
    assert segkit("evaluate", tmp_path / "run", "--json", scores, "--device", "cpu") == 0
    assert json.loads(scores.read_text()) == json.loads((tmp_path / "trained.json").read_text())
    out = tmp_path / "out"
    images = sorted((tmp_path / "val" / "images").iterdir())
    assert len(images) == 4
    assert segkit("predict", tmp_path / "run", *images, "--out", out, "--device", "cpu") == 0
    assert sorted(p.name for p in out.glob("*.png")) == ["s0.png", "s1.png"]
    assert segkit("evaluate", "--config", path, "--predictions", out, "--json", scores) == 0
    assert json.loads(scores.read_text()) == json.loads((tmp_path / "trained.json").read_text())
    images[0].unlink()  # a band that is missing fails its image, and no other
    report = tmp_path / "report.json"
    again = ("predict", tmp_path / "run", tmp_path / "val" / "images", "--json", report, "--device", "cpu")
    assert segkit(*again, "--out", tmp_path / "again") == 1
    assert [f["reason"].count("['0000']") for f in json.loads(report.read_text())["failed"]] == [1]
    assert segkit("predict", tmp_path / "run", *tmp_path.glob("val/masks"), "--out", tmp_path / "no") == 2


def test_masks_are_cut_across_the_axis_of_the_images(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("masks: {format: binary, classes: [disc], codec: nifti}\ndata: {axis: x}\n")
    config = read_config(path)
    assert open_masks(config).to_spec()["axis"] == "x"
    assert open_masks(config, "y").to_spec()["axis"] == "y"


RECIPE = (
    "augment=fast_light",
    "data.focus={share: 0.7, classes: rare}",
    "train.mix={cutmix: 0.4, classmix: 0.4}",
    "train.deep_supervision=0.4",
    "train.epochs=2",
)


@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
def test_crops_on_rare_classes_mixing_and_heads_from_a_config(tmp_path, home, kind):
    config = write_config(tmp_path, kind)
    for place in ("off", "disk", "device"):
        assert segkit("train", config, *RECIPE, f"data.cache={place}", "--out", tmp_path / place) == 0
    metrics = {place: (tmp_path / place / "metrics.csv").read_text() for place in ("off", "disk", "device")}
    assert metrics["off"] == metrics["disk"]
    assert segkit("train", config, *RECIPE[2:], RECIPE[0], "--out", tmp_path / "anywhere") == 0
    assert metrics["off"] != (tmp_path / "anywhere" / "metrics.csv").read_text()
    saved = read_config(tmp_path / "off" / "config.yaml")
    assert (saved.data.focus.share, saved.train.mix.cutmix, saved.train.deep_supervision) == (0.7, 0.4, 0.4)
    (tmp_path / "off" / "scores.json").rename(tmp_path / "scores.json")
    assert segkit("train", "--resume", tmp_path / "off") == 0
    assert (tmp_path / "off" / "scores.json").read_bytes() == (tmp_path / "scores.json").read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.strategy=ddpp", "Did you mean `ddp`"),
        ("data.focus={classes: [disk]}", "focus: classes names 'disk'"),
        ("data.focus=0.5", "so every pixel is foreground: list the classes"),
        ("train.mix={copy_paste: 0.5}", "mix: copy_paste: no class of"),
        ("train.mix={cutmx: 0.5}", "unknown key `train.mix.cutmx`"),
        ("train.deep_supervision=-1", "expected greater than 0"),
        ("postprocess=[fill_hole]", "unknown step 'fill_hole'. Did you mean `fill_holes`"),
        ("postprocess=[{name: within, inner: disc, outer: sky}]", "exclude each other"),
    ],
)
def test_a_recipe_that_cannot_be_is_told_before_anything_is_written(tmp_path, capsys, override, message):
    assert segkit("train", write_config(tmp_path, "exclusive"), override, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
