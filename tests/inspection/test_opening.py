"""Masks that a layout describes, read for inspection."""

from __future__ import annotations

import json

import numpy as np

from tests.inspection.sets import look, write_class_files, write_image

MARKS = np.zeros((12, 20), bool)
MARKS[2:7, 3:13] = True


def test_one_class_folder_alone(tmp_path):
    write_class_files(tmp_path, {"cell": {"a": MARKS, "b": ~MARKS}})
    report = look(tmp_path, layout="class_folders").report
    assert report["faults"] == []
    assert report["advice"]["format"] == "binary"
    assert report["values"]["cell"]["pixel_share"] == 0.5


def test_one_coco_category_alone(tmp_path):
    write_image(tmp_path / "images" / "a.jpg", (12, 20))
    whole = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 12, "width": 20}],
        "categories": [{"id": 7, "name": "cell"}],
        # 3..13 x 2..7: 50 of 240 pixels
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[3, 2, 13, 2, 13, 7, 3, 7]]}
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(whole))
    report = look(tmp_path, layout="coco").report
    assert report["advice"]["format"] == "binary"
    assert report["values"]["cell"]["pixel_share"] == 50 / 240
