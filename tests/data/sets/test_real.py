"""The real sets through their configs: counts, sizes, shares and values are those of their READMEs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from segkit.data.datasets import MaskDataset
from segkit.data.layouts import LAYOUTS, recognise
from tests.data.sets.small import open_shared

BINARY = {"format": "binary", "classes": ["vessel"]}
HIPPOCAMPUS = {"format": "multiclass", "classes": ["background", "anterior", "posterior"], "codec": "nifti"}
LAND = {0: "no data", 1: "cultivated", 2: "forest", 3: "grassland", 4: "shrubland", 8: "artificial"}
SENTINEL2 = {
    "format": "multiclass",
    "classes": list(LAND.values())[1:],
    "codec": {"name": "index_png", "values": {str(value): name for value, name in LAND.items() if value}},
    "ignored_values": [0],
}


def share_of(data: MaskDataset, plane: int, value: int) -> float:
    """Percent of pixels in a plane that have the value."""
    planes = [data.read(i).planes[..., plane] for i in range(len(data))]
    return 100 * sum(int((p == value).sum()) for p in planes) / sum(p.size for p in planes)


def open_one(folder, root, layout: str, part: str, masks: dict[str, Any] | None = None, **given: Any) -> MaskDataset:
    """One part, without reading all of it; the training part, which a config must have, is opened beside it."""
    parts = open_shared(folder, root, layout, masks, verify=(part,), **{"train": {}, part: given})
    return getattr(parts, part)


def test_every_root_is_recognised(shared_data):
    expected = {"camvid": "camvid", "coco_subset": "coco", "voc_sample": "voc", "brats2d_nested": "class_folders"}
    plain = {"brats3d", "chase_db1", "dsb2018", "hippocampus", "mni152", "sentinel2", "totalseg_example"}
    found = {path.name: recognise(path) for path in shared_data.iterdir() if path.is_dir()}
    assert {name: found[name] for name in expected} == expected
    assert {name for name in plain if found.get(name) is not None} == set()


def test_camvid(shared_data, tmp_path):
    data = open_one(tmp_path, shared_data / "camvid", "camvid", "val")
    assert (len(data), data.read(0).size_hw) == (101, (360, 480))
    # sky 9.2, tree 16.3, unlabelled 1.7 percent
    assert [round(share_of(data, 0, v), 1) for v in (0, 5, 255)] == [9.2, 16.3, 1.7]


def test_chase_in_plain_folders(shared_data, tmp_path):
    data = open_one(tmp_path, shared_data / "chase_db1", "folders", "test", BINARY)
    assert (len(data), data.read(0).size_hw) == (8, (960, 999))
    assert round(share_of(data, 0, 1), 1) == 6.3


def test_dsb2018(shared_data, tmp_path):
    masks = {"format": "binary", "classes": ["nucleus"], "codec": {"name": "index_png", "values": {"255": "nucleus"}}}
    data = open_one(tmp_path, shared_data / "dsb2018", "folders", "test", masks)
    assert len(data) == 48
    assert round(share_of(data, 0, 1), 1) == 11.0


def test_nested_tumours(shared_data, tmp_path):
    data = open_one(tmp_path, shared_data / "brats2d_nested", "class_folders", "test")
    assert (len(data), data.format.names) == (27, ("ET", "TC", "WT"))
    inner, middle, outer = np.moveaxis(np.concatenate([data.read(i).planes.reshape(-1, 3) for i in range(27)]), 1, 0)
    assert 0 < inner.sum() < middle.sum() < outer.sum()
    assert (inner <= middle).all()
    assert (middle <= outer).all()


def test_coco(shared_data, tmp_path):
    parts = open_shared(tmp_path, shared_data / "coco_subset", "coco", train={}, val={})
    assert (len(parts.train), len(parts.val), parts.val.format.num_classes) == (33, 14, 80)
    listed = json.loads((shared_data / "coco_subset" / "annotations" / "instances_val.json").read_text())
    assert {f"{stem}.jpg" for stem in parts.val.stems} == {image["file_name"] for image in listed["images"]}


def test_hippocampus(shared_data, tmp_path):
    data = open_one(tmp_path, shared_data / "hippocampus", "folders", "test", HIPPOCAMPUS)
    assert len({stem.split("@")[0] for stem in data.stems}) == 10
    assert share_of(data, 0, 0) == pytest.approx(94.8, abs=1)  # that of all 60 cases


def test_bands_of_brain_tumours_lie_in_files_of_their_own(shared_data, tmp_path):
    names = ["background", "necrosis", "oedema", "non-enhancing core", "enhancing core"]
    masks = {"format": "multiclass", "classes": names, "codec": "nifti"}
    folders = {"images": ".", "masks": ".", "image_pattern": "{stem}_{band}", "bands": ["flair", "t1c"]}
    data = open_shared(
        tmp_path, shared_data / "brats3d", "folders", masks, verify=(), train={**folders, "mask_pattern": "{stem}_seg"}
    ).train
    assert len(data) == 2 * 56
    sample = data.read(data.stems.index("brats_2013_pat0005_1/brats_2013_pat0005_1@z020"))
    assert (sample.image.shape, sample.planes.shape, sample.spacing_mm) == ((169, 141, 2), (169, 141, 1), (1, 1))
    assert sample.planes.any()
    assert not np.array_equal(sample.image[..., 0], sample.image[..., 1])


def test_organs(shared_data, tmp_path):
    root = shared_data / "totalseg_example"
    names = json.loads((root / "ct_classes.json").read_text())
    present = {int(value): name for value, name in names.items()}
    codec = {"name": "nifti", "values": {str(value): name for value, name in present.items()}}
    masks = {"format": "multiclass", "classes": list(present.values()), "codec": codec}
    folders = {"images": ".", "masks": ".", "image_pattern": "{stem}_image", "mask_pattern": "{stem}_label"}
    data = open_shared(tmp_path, root, "folders", masks, train=folders).train
    assert data.stems == [f"ct@z{number:03d}" for number in range(30)]
    assert data.read(0).spacing_mm == (3, 3)
    seen = {int(v) for i in range(30) for v in np.unique(data.read(i).planes)}
    assert len(seen - {0}) == 41


def test_satellite(shared_data, tmp_path):
    data = open_shared(tmp_path, shared_data / "sentinel2", "folders", SENTINEL2).train
    assert data.stems == ["s2_20150731", "s2_20150820", "s2_20150830", "s2_20150909"]
    assert (data.read(0).image.shape, data.read(0).image.dtype) == ((101, 100, 13), np.uint16)
    assert share_of(data, 0, 1) == pytest.approx(75, abs=1)  # forest
    cloud = {"train": {"masks": "cloud"}}
    masks = {"format": "binary", "classes": ["cloud"], "codec": {"name": "index_png", "values": {"255": "cloud"}}}
    cloudy = open_shared(tmp_path, shared_data / "sentinel2", "folders", masks, **cloud).train
    assert [bool(cloudy.read(i).planes.all()) for i in range(4)] == [True, True, False, False]


def test_pascal(shared_data, tmp_path):
    root = shared_data / "voc_sample"
    parts = open_shared(tmp_path, root, "voc", train={}, val={})
    lists = [(root / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().split() for name in ("train", "val")]
    assert [parts.train.stems, parts.val.stems] == lists
    samples = [data.read(i) for data in (parts.train, parts.val) for i in range(len(data))]
    assert {int(v) for sample in samples for v in np.unique(sample.planes)} == {0, 5, 6, 7, 9, 15, 18, 255}
    written = (root / "class_names.txt").read_text().split("\n")[:21]
    spelled = [name for name, own in zip(written, parts.train.format.names, strict=True) if name != own]
    assert spelled == ["_background_", "potted plant", "tv/monitor"]


def test_layouts_that_no_root_has_find_nothing(shared_data):
    for name, layout in LAYOUTS.items():
        if name not in ("scene", "mni152"):
            assert layout.parts(shared_data) == {}, name
