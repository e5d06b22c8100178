"""Advice on real data sets, and what `segkit inspect` writes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.cli import main
from segkit.config import read_config
from segkit.formats.codecs import open_codec
from segkit.formats.png_files import write_png
from segkit.inspection.parts import Source, find_source
from segkit.inspection.run import facts_line, inspect
from segkit.parts import open_masks, open_part
from tests.inspection.sets import blocks, look, write_class_files, write_image, write_masks
from tests.scenes import FORMATS, write_set

CAMVID = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist,ignore"


def segkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code


def some(folder: Path, into: Path, every: int, kinds=("images", "masks")) -> Path:
    """A part of a data set: links to every n-th image, and to the masks of those."""
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        images = sorted((part / kinds[0]).iterdir())[::every]
        for image in images:
            stem = image.name.split(".")[0]
            for path in (image, *(m for m in (part / kinds[1]).rglob("*") if m.name.split(".")[0] == stem)):
                link = into / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    return into


@pytest.mark.parametrize(
    ("name", "every", "expected", "classes"),
    [
        ("dsb2018", 4, ("binary", "sigmoid", "index_png"), ["foreground"]),
        ("chase_db1", 4, ("binary", "sigmoid", "index_png"), ["foreground"]),
        ("brats2d_nested", 4, ("multilabel", "sigmoid", "file_per_class"), ["WT", "TC", "ET"]),
    ],
)
def test_advice_on_real_sets(shared_data, tmp_path, name, every, expected, classes):
    report = look(some(shared_data / name, tmp_path / name, every)).report
    advice = report["advice"]
    assert (advice["format"], advice["activation"], advice["codec"]) == expected
    assert advice["classes"] == classes
    assert report["faults"] == []
    assert len(advice["reasons"]) == 2
    assert re.search(r"\d+(\.\d)? %", advice["reasons"][0])


def test_regions_of_tumours_lie_inside_each_other(shared_data, tmp_path):
    report = look(some(shared_data / "brats2d_nested", tmp_path / "brats", 3)).report
    inside = {(entry["inner"], entry["outer"]): entry["share"] for entry in report["overlap"]["containment"]}
    assert inside == {("TC", "WT"): 1.0, ("ET", "TC"): 1.0, ("ET", "WT"): 1.0}
    assert "WT ⊃ TC ⊃ ET" in report["advice"]["reasons"][0]


def test_streets_with_and_without_names(shared_data, tmp_path):
    root = some(shared_data / "camvid", tmp_path / "camvid", 20)
    folders = {"images": root / "train" / "images", "masks": root / "train" / "masks"}
    unnamed = look(None, **folders).report["advice"]
    assert (unnamed["format"], unnamed["activation"], unnamed["codec"]) == ("multiclass", "softmax", "index_png")
    assert (unnamed["ignored_values"], unnamed["ignore_candidates"]) == ([], [11])
    named = look(root, CAMVID.split(",")).report
    advice = named["advice"]
    assert (advice["ignored_values"], advice["ignore_candidates"]) == ([11], [])
    assert advice["classes"] == CAMVID.split(",")[:11]
    assert named["values"]["3"]["name"] == "road"
    # of the README beside the data: road is near 30 % of pixels, bicyclists below 1 %
    assert 0.2 < named["values"]["3"]["pixel_share"] < 0.4
    assert named["values"]["10"]["pixel_share"] < 0.02
    assert named["overlap"]["share_0"] == pytest.approx(named["values"]["11"]["pixel_share"])
    assert advice["augment"] == "street"
    layout = look(root, layout="camvid").report
    assert layout["coding"]["layout"] == "camvid"
    assert layout["advice"]["ignored_values"] == [11]
    assert layout["advice"]["classes"][8] == "car"
    assert layout["values"]["11"]["name"] == "ignored"
    beside = look(None, layout="camvid", **folders).report  # the layout names what lies in any folders
    assert beside["advice"]["ignored_values"] == [11]
    assert beside["advice"]["classes"] == layout["advice"]["classes"]


def test_volumes(shared_data, tmp_path):
    report = look(some(shared_data / "hippocampus", tmp_path / "h", 10, ("images", "labels"))).report
    advice = report["advice"]
    assert (advice["format"], advice["activation"], advice["codec"]) == ("multiclass", "softmax", "nifti")
    assert report["bands"] == 1
    assert set(report["values"]) == {"0", "1", "2"}
    assert report["values"]["0"]["pixel_share"] == pytest.approx(0.948, abs=0.01)


def test_thirteen_bands(shared_data):
    folder = shared_data / "sentinel2"
    report = look(None, images=folder / "images", masks=folder / "masks").report
    assert (report["bands"], report["dtype"], report["advice"]["format"]) == (13, "uint16", "multiclass")
    assert report["advice"]["classes"] == ["0", "1", "2", "3", "4", "8"]
    clouds = look(None, images=folder / "images", masks=folder / "cloud").report
    assert (clouds["advice"]["format"], clouds["advice"]["activation"]) == ("binary", "sigmoid")
    assert clouds["empty_masks"] == ["s2_20150830", "s2_20150909"]


def test_a_palette_with_255(shared_data):
    folder = shared_data / "voc_sample"
    advice = look(None, images=folder / "JPEGImages", masks=folder / "SegmentationClass").report["advice"]
    assert (advice["codec"], advice["ignore_candidates"]) == ("palette_png", [255])


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> Path:
    for part, number in (("train", 6), ("val", 2)):
        write_masks(tmp_path / "data", {f"{part}{n}": blocks([0, 255], (64, 96)) for n in range(number)}, part)
    return tmp_path / "data"


def test_the_report_as_json_has_every_key_of_the_contract(data, tmp_path, capsys):
    assert segkit("inspect", data, "--json", tmp_path / "r.json", "--strict") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    contract = {
        "images", "masks", "bands", "dtype", "parts", "sizes", "coding", "values", "overlap", "empty_masks",
        "duplicates", "faults", "advice", "seconds", "images_per_second",
    }  # fmt: skip
    assert contract <= set(report)
    assert report["parts"] == {"train": 6, "val": 2}
    assert report["sizes"] == [{"height": 64, "width": 96, "count": 8}]
    assert report["coding"]["codec"] == "index_png"
    assert report["values"]["255"] == {"name": None, "pixel_share": 0.5, "image_share": 1.0, "images": 8}
    assert set(report["overlap"]) == {
        "share_0", "share_1", "share_2_or_more", "pairs", "containment", "never_together",
    }  # fmt: skip
    assert set(report["advice"]) >= {
        "format", "activation", "codec", "ignored_values", "ignore_candidates", "classes", "class_weights", "crop",
        "batch_size", "reasons", "masks",
    }  # fmt: skip
    assert report["images_per_second"] > 0
    assert "binary · sigmoid" in capsys.readouterr().out


def test_strict_exits_1_on_any_fault(data, tmp_path, capsys):
    (data / "train" / "masks" / "train3.png").unlink()
    assert segkit("inspect", data) == 0
    assert segkit("inspect", data, "--strict") == 1
    assert "an image without a mask" in " ".join(capsys.readouterr().out.split())


def test_config_and_quarantine_are_written_and_read(data, tmp_path, monkeypatch, capsys):
    (data / "train" / "masks" / "train3.png").unlink()
    monkeypatch.chdir(tmp_path)
    arguments = ("--classes", "nucleus", "--write", "c.yaml", "--quarantine", "bad.txt")
    assert segkit("inspect", "data", *arguments) == 0
    assert "1 sample to leave out with data.quarantine=bad.txt" in capsys.readouterr().out
    config = read_config("c.yaml")
    assert config.data.root == "data"
    assert config.data.train.images == "train/images"
    train = open_part(config, "train", open_masks(config))
    assert train.stems == [f"train{n}" for n in (0, 1, 2, 4, 5)]
    assert train.format.names == ("nucleus",)


def test_folders_are_named_as_typed(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ("--images", "data/train/images", "--masks", "data/train/masks")
    assert segkit("inspect", *where, "--write", "c.yaml") == 0
    config = read_config("c.yaml")
    assert (config.data.root, config.data.train.images) == (".", "data/train/images")
    assert config.data.val.from_ == "train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the ROOT"),
        (("--images", "x"), "go together"),
        (("{data}", "--images", "x", "--masks", "y"), "not both"),
        (("nowhere",), "no such folder"),
        (("{root}",), "no data set that segkit knows"),
        (("--images", "{data}/train/images", "--masks", "nowhere"), "nowhere: no such folder"),
        (("--images", "{data}", "--masks", "{root}/empty"), "no masks here"),
        (("{data}", "--classes", "a,b,c,d,e,f"), "6 names, and the masks hold 2 values: 0, 255"),
        (("{data}", "--classes", "0=a,b"), "expected"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_2(data, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    assert segkit("inspect", *(a.format(data=data, root=tmp_path) for a in arguments)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_results_do_not_depend_on_threads(data, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        mask = rng.integers(0, 3, (30, 40), dtype=np.uint8)
        write_masks(tmp_path / "many", {f"s{number}": mask})
    source = find_source(tmp_path / "many")
    calls: list[tuple[int, int]] = []
    reports = [inspect(source, workers=1), inspect(source, workers=5, progress=lambda d, n: calls.append((d, n)))]
    plain = [{k: v for k, v in r.report.items() if k not in ("seconds", "images_per_second")} for r in reports]
    assert plain[0] == plain[1]
    assert calls == [(n, 40) for n in range(1, 41)]


def test_facts_of_a_set_that_cannot_be_read(tmp_path):
    write_masks(tmp_path, {"a": blocks([0, 1])})
    (tmp_path / "images" / "a.jpg").write_bytes(b"\xff\xd8broken")
    found = look(tmp_path)
    assert isinstance(found.source, Source)
    assert found.report["bands"] is None
    assert "none readable" in facts_line(found.report)
    assert not math.isnan(found.report["values"]["1"]["pixel_share"])
    assert cv2.imread(str(tmp_path / "images" / "a.jpg")) is None


def test_objects_that_overlap(shared_data):
    found = look(shared_data / "coco_subset")
    report, advice = found.report, found.report["advice"]
    assert report["coding"]["layout"] == "coco"
    assert (advice["format"], advice["activation"], advice["codec"]) == ("multilabel", "sigmoid", "coco")
    assert len(advice["classes"]) == 80
    assert report["parts"] == {"train": 33, "val": 14}
    # one picture in each file has no annotation
    assert len(report["empty_masks"]) == 2
    assert advice["masks"]["codec"] == {"name": "coco", "missing": "empty"}
    assert report["overlap"]["share_2_or_more"] > 0.01


def test_shapes_of_labelme(shared_data):
    folder = shared_data / "voc_sample"
    report = look(None, images=folder / "JPEGImages", masks=folder / "labelme").report
    assert (report["advice"]["format"], report["advice"]["codec"]) == ("multilabel", "labelme")
    assert report["advice"]["classes"] == ["bottle", "bus", "car", "chair", "person", "sofa"]
    assert report["advice"]["masks"]["codec"]["ignored_values"] == ["__ignore__"]
    assert any("have two labels" in note for note in report["notes"])
    some_of = look(None, ["person", "sofa"], images=folder / "JPEGImages", masks=folder / "labelme").report["advice"]
    assert some_of["classes"] == ["person", "sofa"]
    assert some_of["masks"]["codec"]["others"] == "background"


def test_masks_saved_as_jpeg_or_with_soft_borders_are_bright_or_dark(tmp_path):
    rows, columns = np.mgrid[:80, :120]
    marks = (rows - 40) ** 2 + (columns - 50) ** 2 < 900
    for kind, suffix in (("jpeg", ".jpg"), ("png", ".png")):
        for number in range(4):
            write_masks(tmp_path / kind, {f"s{number}": np.uint8(marks) * 255})
            (tmp_path / kind / "masks" / f"s{number}.png").unlink()
            soft = cv2.GaussianBlur(np.roll(marks, number, 1).astype(np.float32) * 255, (5, 5), 0).astype(np.uint8)
            cv2.imwrite(str(tmp_path / kind / "masks" / f"s{number}{suffix}"), soft)
        found = look(tmp_path / kind, ["disc"])
        advice = found.report["advice"]
        assert (advice["format"], advice["activation"], advice["codec"]) == ("binary", "sigmoid", "threshold")
        assert advice["masks"]["codec"] == "threshold"
        assert advice["classes"] == ["disc"]
        assert found.bad == {}
        assert [f["fault"].split(",")[0] for f in found.report["faults"]] == (
            [] if kind == "jpeg" else ["holds masks with soft borders"]
        )
        (tmp_path / "c.yaml").write_text(found.config())
        config = read_config(tmp_path / "c.yaml", ["data.val=null"])
        truth = np.roll(marks, 2, 1)
        planes = open_part(config, "train", open_masks(config)).read(2).planes[..., 0]
        assert ((planes == 1) != truth).mean() < 0.01


@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
def test_tiff_masks_of_one_number_or_a_page_for_each_class(tmp_path, kind):
    codec = open_codec("tiff", FORMATS[kind])
    data = write_set(tmp_path, FORMATS[kind], 3, codec=codec)
    report = look(tmp_path).report
    advice = report["advice"]
    assert (advice["codec"], advice["format"]) == ("tiff", FORMATS[kind].to_dict()["format"])
    if kind == "overlapping":
        assert advice["classes"] == ["left", "disc"]
        planes = np.stack([data.read(n).planes for n in range(3)])
        assert report["overlap"]["share_2_or_more"] == pytest.approx((planes.sum(-1) == 2).mean())


def test_files_named_by_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_masks(tmp_path, {f"s{number}_mask": blocks([0, 1, 3], (64, 96))})
        (tmp_path / "images" / f"s{number}_mask.jpg").rename(tmp_path / "images" / f"s{number}_photo.jpg")
    patterns = ("--image-pattern", "{stem}_photo", "--mask-pattern", "{stem}_mask")
    folders = ("--images", "images", "--masks", "masks")
    assert segkit("inspect", *folders, *patterns, "--strict", "--write", "c.yaml", "--json", "r.json") == 0
    assert json.loads(Path("r.json").read_text())["masks"] == 6
    config = read_config("c.yaml")
    assert len(open_part(config, "train", open_masks(config))) == 5
    assert segkit("inspect", *folders) == 2  # nothing belongs together


def test_bands_in_a_file_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "c")):
        write_png(Path("scans", f"{name}_seg.png"), blocks([0, 1, 2], (64, 96)))
        for band in ("flair", "t1c"):
            write_image(Path("scans", f"{name}_{band}.png"), (64, 96), seed, gray=True)
    named = ("--image-pattern", "{stem}_{band}", "--bands", "flair, t1c", "--mask-pattern", "{stem}_seg")
    folders = ("--images", "scans", "--masks", "scans")
    assert segkit("inspect", *folders, *named, "--write", "c.yaml", "--json", "r.json", "--html", "r.html") == 0
    report = json.loads(Path("r.json").read_text())
    assert (report["images"], report["masks"], report["bands"], report["faults"]) == (3, 3, 2, [])
    config = read_config("c.yaml")
    assert config.data.train.bands == ["flair", "t1c"]
    assert open_part(config, "train", open_masks(config)).read(0).image.shape == (64, 96, 2)
    assert Path("r.html").read_text().count("data:image/webp") >= 6
    assert segkit("inspect", *folders, "--bands", "flair") == 2


def test_class_files_that_are_absent_mean_that_nothing_is_there(tmp_path):
    left, right = blocks([1, 1, 0, 0]) == 1, blocks([0, 1, 1, 0]) == 1
    planes = {"left": {f"s{n}": left for n in range(8)}, "right": {f"s{n}": right for n in range(0, 8, 2)}}
    report = look(write_class_files(tmp_path, planes)).report
    assert report["faults"] == []
    assert report["values"]["right"]["images"] == 4
    assert report["advice"]["masks"]["codec"] == {"name": "file_per_class", "missing": "empty"}
    assert "4 class files are absent" in report["coding"]["text"]


def test_a_config_with_bad_samples_leaves_them_out_by_itself(data, tmp_path, monkeypatch, capsys):
    (data / "train" / "masks" / "train3.png").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    assert segkit("inspect", "data", "--write", "c.yaml") == 0
    assert "c_quarantine.txt: 1 sample to leave out" in capsys.readouterr().out
    config = read_config("c.yaml")
    assert open_part(config, "train", open_masks(config)).verify().total() == 5


def test_a_page_with_pictures_of_all_samples(data, tmp_path, capsys):
    (data / "train" / "masks" / "train3.png").write_bytes(b"broken")
    assert segkit("inspect", data, "--html", tmp_path / "r.html", "--quarantine", data / "bad.txt") == 0
    text = (tmp_path / "r.html").read_text()
    for stem in ("train0", "train3", "val1"):
        assert stem in text
    assert text.count("data:image/webp") >= 8
    assert "binary" in text
    assert "quarantine: bad.txt" in text  # the config that is shown trains


@pytest.mark.parametrize("name", ["color_png", "nifti", "threshold"])
def test_pages_are_drawn_of_every_coding(tmp_path, name):
    kind = "binary" if name == "threshold" else "exclusive"
    write_set(tmp_path / "d", FORMATS[kind], 3, codec=open_codec(name, FORMATS[kind]))
    found = look(tmp_path / "d")
    found.write_page(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().count("data:image/webp") >= 6


def test_a_layout_may_write_its_data(tmp_path):
    report = look(tmp_path / "scene", layout="scene").report
    assert report["advice"]["classes"] == ["sky", "ground", "building", "ball"]
    assert report["advice"]["ignored_values"] == [255]
    assert report["faults"] == []
