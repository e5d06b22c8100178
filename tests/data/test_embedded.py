import itertools
import multiprocessing
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from segkit.data import embedded
from segkit.data.datasets import MaskDataset
from segkit.data.embedded import MNI152_CLASSES, SCENE_CLASSES, mni152_slices, write_mni152, write_scene
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat


def open_part(root, part, classes):
    codec = open_codec({"name": "index_png", "ignored_values": [255]}, MaskFormat.multiclass(classes))
    return MaskDataset(root / part / "images", root / part / "masks", codec)


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_scene_is_a_data_set_with_all_classes_in_each_part(tmp_path):
    root = write_scene(tmp_path / "scene")
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        ds = open_part(root, part, SCENE_CLASSES)
        assert ds.verify() == {(64, 96): count}
        values = np.concatenate([s.planes.ravel() for s in ds])
        assert set(np.unique(values)) == {0, 1, 2, 3, 255}
        assert 0.002 < (values == 255).mean() < 0.1
        assert np.bincount(values, minlength=4)[:4].min() / values.size > 0.01


def test_scene_is_the_same_every_time_and_differs_by_seed(tmp_path):
    one, two, other = (write_scene(tmp_path / name, seed) for name, seed in (("1", 0), ("2", 0), ("3", 1)))
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)
    pictures = [data for path, data in contents(one).items() if path.parts[1:2] == ("images",)]
    assert len(set(pictures)) == 40


def test_several_processes_write_one_whole_set(tmp_path):
    root = tmp_path / "scene"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_scene, args=(root,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert contents(root) == contents(write_scene(tmp_path / "again"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "scene"]


def test_nothing_is_left_of_a_set_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_draw_ball", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scene(tmp_path / "scene")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other things"):
        write_scene(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("readme", [None, "# My own set\n", "mni152"])
def test_another_data_set_with_such_folders_is_not_taken_for_the_generated_one(tmp_path, readme):
    for part, kind in itertools.product(("train", "val", "test"), ("images", "masks")):
        (tmp_path / part / kind).mkdir(parents=True)
    if readme is not None:
        (tmp_path / "README.md").write_text(embedded._MNI152_README if readme == "mni152" else readme)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"other things than 'Drawn street scene'.*new or empty, as `data\.root`"):
        write_scene(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_classes_are_those_of_the_shipped_config():
    config = yaml.safe_load(
        (Path(embedded.__file__).parents[1] / "configs" / "mni152_multiclass_unet.yaml").read_text()
    )
    assert tuple(c["name"] for c in config["masks"]["classes"]) == MNI152_CLASSES


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "scene").mkdir()
    assert (write_scene(tmp_path / "scene") / "train" / "images").is_dir()


def test_mni152_parts_lie_three_millimetres_apart():
    slices = mni152_slices()
    counts = {part: sum(p == part for p, _ in slices) for part in ("train", "val", "test")}
    assert 60 <= counts["train"] <= 80
    assert 12 <= counts["val"] <= 16
    assert 20 <= counts["test"] <= 30
    between = [b - a for (p, a), (q, b) in itertools.pairwise(slices) if p != q]
    assert len(between) > 4
    assert min(between) > 3  # three slices of 1 mm lie between


def test_mni152_slices_are_those_of_the_template(tmp_path, shared_data):
    pytest.importorskip("nilearn")
    import nibabel

    root = write_mni152(tmp_path / "mni152")
    t1, tissue = (np.asarray(nibabel.load(shared_data / "mni152" / f"{n}.nii.gz").dataobj) for n in ("t1", "tissue"))
    for part, z in mni152_slices()[::9]:
        image, mask = (cv2.imread(str(root / part / k / f"mni152_z{z:03d}.png"), -1) for k in ("images", "masks"))
        # Upright: the front of the head is the end of the y axis, and the first row.
        np.testing.assert_array_equal(image, t1[:, ::-1, z].T)
        np.testing.assert_array_equal(mask, tissue[:, ::-1, z].T)
    sizes = {part: open_part(root, part, MNI152_CLASSES).verify() for part in ("train", "val", "test")}
    assert all(set(s) == {(233, 197)} for s in sizes.values())
    for ds in (open_part(root, part, MNI152_CLASSES) for part in ("train", "val", "test")):
        assert min((s.planes > 0).mean() for s in ds) > 0.04


def test_without_nilearn_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'segkit\[demo\]'"):
        write_mni152(tmp_path / "mni152")
    assert list(tmp_path.iterdir()) == []
