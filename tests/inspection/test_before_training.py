from __future__ import annotations

import logging
import shutil

import cv2
import numpy as np
import pytest

from segkit.config import read_config
from segkit.data.datasets import MaskDataset
from segkit.experiment import prepare
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inspection.before_training import PartSurvey, check_parts, warn_of_shared_files
from segkit.inspection.parts import find_source
from segkit.inspection.run import inspect
from tests.scenes import FORMATS, default_codec, write_set
from tests.test_cli import write_config

FORMAT = FORMATS["exclusive"]


def survey(data):
    found = PartSurvey(data)
    data.verify(take=found.take)
    return found


def check(train, val, leaks="refuse"):
    check_parts({"train": survey(train), "val": survey(val)}, leaks)


def marked(folder, *values, first=0, ignored=255):
    """Images with masks that hold one value each."""
    write_set(folder, FORMAT, len(values), first=first)
    for number, value in enumerate(values):
        cv2.imwrite(str(folder / "masks" / f"s{number}.png"), np.full((40, 56), value, np.uint8))
    return MaskDataset(folder / "images", folder / "masks", default_codec(FORMAT, ignored))


@pytest.mark.parametrize("kind", FORMATS)
def test_sound_parts_are_passed_over_in_silence(tmp_path, caplog, kind):
    train = write_set(tmp_path / "train", FORMATS[kind], 3)
    check(train, write_set(tmp_path / "val", FORMATS[kind], 2, first=100))
    # Shares of one folder hold different images, with a group or without.
    check(train.subset(["s0", "s1"]), train.subset(["s2"]))
    assert not caplog.records


def test_training_pixels_that_are_all_ignored_are_refused(tmp_path):
    train, val = marked(tmp_path / "train", 255, 255), marked(tmp_path / "val", 0, first=100)
    with pytest.raises(ValueError, match=r"all 2 masks of data.train is ignored.*ignored_values.*nothing to learn"):
        check(train, val)


def test_images_that_are_wholly_ignored_are_named(tmp_path, caplog):
    check(marked(tmp_path / "train", 0, 255, 1, 2), marked(tmp_path / "val", 255, first=100))
    assert "1 of 4 samples of train are ignored in every pixel, and say nothing: s1." in caplog.text
    assert "all 1 masks of data.val is ignored" in caplog.text


def test_classes_that_training_does_not_hold_are_told(tmp_path, caplog):
    check(marked(tmp_path / "train", 0, 0), marked(tmp_path / "val", 2, first=100))
    assert "occur in no training mask, so that no model learns them: ground, disc." in caplog.text
    assert "of these, val holds disc: they will be scored, and found nowhere." in caplog.text


def test_a_binary_class_that_is_nowhere_is_told(tmp_path, caplog):
    format = MaskFormat.binary("disc")
    parts = []
    for part, first in (("train", 0), ("val", 100)):
        data = write_set(tmp_path / part, format, 1, first=first)
        parts.append(data)
    cv2.imwrite(str(tmp_path / "train" / "masks" / "s0.png"), np.zeros((40, 56), np.uint8))
    check(*parts)
    assert "no model learns them: disc." in caplog.text


def test_an_image_of_two_parts_is_refused_with_the_way_out_or_accepted(tmp_path, caplog):
    train = write_set(tmp_path / "train", FORMAT, 3)
    val = write_set(tmp_path / "val", FORMAT, 2, first=100)
    shutil.copy(tmp_path / "train/images/s2.png", tmp_path / "val/images/s0.png")
    with pytest.raises(ValueError, match=r"pixel for pixel: 1 image of val \(s0 = train s2\)\.") as refused:
        check(train, val)
    assert "data.quarantine" in str(refused.value)
    assert "data.leaks: warn" in str(refused.value)
    check(train, val, leaks="warn")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "s0 = train s2" in caplog.text


def test_images_are_named_in_the_order_of_the_data_whatever_thread_was_first(tmp_path):
    train = write_set(tmp_path / "train", FORMAT, 3)
    surveys = {"train": PartSurvey(train), "val": PartSurvey(write_set(tmp_path / "val", FORMAT, 3))}
    for found in surveys.values():
        for index in (2, 0, 1):
            found.take(found.data.read(index))
    with pytest.raises(ValueError, match=r"3 images of val \(s0 = train s0, s1 = train s1, s2 = train s2\)"):
        check_parts(surveys)


def test_the_same_picture_saved_in_another_way_is_told(tmp_path, caplog):
    train = write_set(tmp_path / "train", FORMAT, 2)
    val = write_set(tmp_path / "val", FORMAT, 1, first=100)
    brighter = np.clip(cv2.imread(str(tmp_path / "train/images/s1.png")) * 1.1, 0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "val/images/s0.png"), brighter)
    check(train, val)
    assert "nearly the same images are in two parts" in caplog.text
    assert ": 1 image of val (s0 = train s1)." in caplog.text


def test_black_frames_are_no_leak(tmp_path, caplog):
    train, val = write_set(tmp_path / "train", FORMAT, 2), write_set(tmp_path / "val", FORMAT, 1, first=100)
    for part in ("train", "val"):
        cv2.imwrite(str(tmp_path / part / "images/s0.png"), np.zeros((40, 56, 3), np.uint8))
    check(train, val)
    assert not caplog.records


def test_slices_of_one_volume_in_two_parts_are_told(tmp_path, caplog):
    codec = open_codec("nifti", FORMAT)
    data = write_set(tmp_path, FORMAT, 4, codec=codec)
    check(data.subset(data.stems[:2]), data.subset(data.stems[2:]))
    assert "slices of the same volumes are in train and in val" in caplog.text
    assert ": case." in caplog.text


@pytest.mark.parametrize("cache", ["off", "ram"])
def test_training_begins_only_where_no_part_leaks(tmp_path, caplog, cache):
    config = write_config(tmp_path, "exclusive")
    shutil.copy(tmp_path / "train/images/s2.png", tmp_path / "val/images/s0.png")
    overrides = [f"data.cache={cache}", "train.device=cpu"]
    with pytest.raises(ValueError, match="s0 = train s2"):
        prepare(read_config(config, overrides), resume=False, check=True)
    prepare(read_config(config, [*overrides, "data.leaks=warn"]), resume=False, check=True, tell=lambda line: None)
    assert "s0 = train s2" in caplog.text


def test_the_config_that_inspect_writes_for_such_data_trains(tmp_path):
    for part, first in (("train", 0), ("val", 100)):
        write_set(tmp_path / part, FORMAT, 4, first=first)
    shutil.copy(tmp_path / "train/images/s2.png", tmp_path / "val/images/s0.png")
    text = inspect(find_source(tmp_path)).config()
    assert "  leaks: warn" in text
    assert "1 image in train and in another part" in text


def test_files_of_two_parts_are_told_without_reading_them(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(MaskDataset, "read", lambda *_: pytest.fail("read a sample"))
    data = write_set(tmp_path / "a", FORMAT, 4)
    warn_of_shared_files(data.subset(["s0", "s1"]), data.subset(["s2", "s3"]))
    warn_of_shared_files(data, write_set(tmp_path / "b", FORMAT, 4))  # other files of the same names
    assert not caplog.records
    warn_of_shared_files(data.subset(["s0", "s1", "s2"]), data.subset(["s3", "s2", "s1"]))
    assert caplog.text.rstrip().endswith("better than they are: s1, s2.")
    caplog.clear()
    volume = write_set(tmp_path / "c", FORMAT, 4, codec=open_codec("nifti", FORMAT))
    warn_of_shared_files(volume.subset(volume.stems[:2]), volume.subset(volume.stems[2:]))
    assert caplog.text.rstrip().endswith("better than they are: case.")
