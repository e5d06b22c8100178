from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from segkit.data.reading import ImageReading
from segkit.inference.inputs import find_inputs, read_input_list


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((4, 5, 3), np.uint8))


def stems(*inputs):
    return [i.stem for i in find_inputs(inputs)[0]]


def test_a_folder_keeps_the_paths_below_it_and_passes_over_what_predict_writes(tmp_path):
    put(tmp_path / "a.png", tmp_path / "sub" / "b.JPG", tmp_path / "_overlay" / "a.png", tmp_path / ".x" / "c.png")
    assert stems(tmp_path) == ["a", "sub/b"]


def test_files_and_patterns(tmp_path):
    put(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.jpg")
    assert stems(tmp_path / "a.png") == ["a"]
    assert stems(f"{tmp_path}/*.png") == ["a", "b"]
    assert stems(f"{tmp_path}/*.png", tmp_path / "a.png") == ["a", "b"]


def test_stems_that_collide_get_their_folders_in_front(tmp_path):
    put(tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", tmp_path / "two" / "b.png")
    assert stems(tmp_path / "one", tmp_path / "two") == ["one/a", "two/a", "b"]
    put(tmp_path / "x" / "same" / "a.png", tmp_path / "y" / "same" / "a.png")
    assert stems(tmp_path / "x" / "same", tmp_path / "y" / "same") == ["x/same/a", "y/same/a"]


def test_two_images_of_one_name_in_one_folder_are_refused(tmp_path):
    put(tmp_path / "a.png", tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg.*a\.png|a\.png.*a\.jpg"):
        find_inputs([tmp_path / "a.png", tmp_path / "a.jpg"])


@pytest.mark.parametrize("given", ["nowhere", "nowhere.png", "*.png"])
def test_nothing_found_names_the_input(tmp_path, given):
    with pytest.raises(ValueError, match=r"nowhere|\*\.png"):
        find_inputs([tmp_path / given])


def test_a_volume_gives_its_slices(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 3), np.uint8), np.eye(4)), tmp_path / "head.nii.gz")
    assert stems(tmp_path / "head.nii.gz") == ["head@z000", "head@z001", "head@z002"]
    assert [i.stem for i in find_inputs([tmp_path], ImageReading(axis="x"))[0]] == [f"head@x00{i}" for i in range(4)]


def test_one_file_by_two_paths_is_one_input(tmp_path, monkeypatch):
    put(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert stems("a.png", tmp_path / "a.png", "./a.png") == ["a"]


def test_masks_are_never_written_over_images(tmp_path):
    put(tmp_path / "a.png")
    for given in (tmp_path, tmp_path / "a.png", f"{tmp_path}/*.png"):
        with pytest.raises(ValueError, match="would be written over it"):
            find_inputs([given], leave_out=tmp_path)


def test_earlier_predictions_below_an_input_are_no_inputs(tmp_path):
    put(tmp_path / "a.png", tmp_path / "predictions" / "a.png")
    found, _ = find_inputs([tmp_path], leave_out=tmp_path / "predictions")
    assert [i.stem for i in found] == ["a"]


def test_an_unreadable_volume_is_named_and_the_rest_is_found(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    found, broken = find_inputs([tmp_path])
    assert [i.stem for i in found] == ["a"]
    assert [path.name for path, _ in broken] == ["bad.nii.gz"]


def test_links_to_one_file_are_images_of_their_own_names(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    assert stems(tmp_path) == ["a", "b"]
    assert stems(tmp_path / "a.png", tmp_path / "folder" / "a.png") == ["a"]


def test_a_list_names_paths_as_they_stand(tmp_path, monkeypatch):
    names = ["night/a b.png", "#1.png", " c.png", "d\x0ce.png", "é.png"]
    put(*(tmp_path / name for name in names))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(names).encode())
    monkeypatch.chdir(tmp_path)
    assert read_input_list("list.txt") == names
    assert stems(*read_input_list(tmp_path / "list.txt")) == ["a b", "#1", " c", "d\x0ce", "é"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"night/a b.png\n")))
    assert stems(*read_input_list("-")) == ["a b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\0b.png\0", "line 1: holds a zero byte.*-print0"),
        (b"a.png\nb\xff.png\n", "line 2: is no text in UTF-8"),
        (b"\n\r\n", "names no input"),
        (None, "cannot be read as a list of inputs"),
    ],
)
def test_what_is_no_list_is_named_with_its_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"list\.txt.*{message}"):
        read_input_list(tmp_path / "list.txt")
