"""COCO instance files by hand, beside pycocotools, and refused."""

import json
import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO

from segkit.data.datasets import MaskDataset
from segkit.data.origin import is_outdated
from segkit.formats import coco_files
from segkit.formats.coco_files import file_name_of, load_coco, stem_of
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat

ANIMALS = MaskFormat.multilabel(["cat", "dog"])
BINARY = MaskFormat.binary("animal")
EXCLUSIVE = MaskFormat.multiclass(["background", "cat", "dog"])
CAT, DOG, MOUSE = {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 3, "name": "mouse"}


def box(x, y, width, height):
    """A polygon around whole pixels."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(category, segmentation, image=1, **more):
    return {"image_id": image, "category_id": category["id"], "segmentation": segmentation, **more}


def save(path, *annotations, images=None, categories=(CAT, DOG), **more):
    """An instance file with one image a.jpg, 3 rows and 5 columns, unless others are given."""
    images = [{"id": 1, "file_name": "a.jpg", "height": 3, "width": 5}] if images is None else images
    numbered = [{"id": number, **record} for number, record in enumerate(annotations, start=1)]
    values = {"images": images, "annotations": numbered, "categories": list(categories), **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def read(root, format=ANIMALS, stem="a", **options):
    return open_codec({"name": "coco", **options}, format).read(root, stem)


# Reading ------------------------------------------------------------------------------------------------


def test_polygons_run_lengths_and_parts_by_hand(tmp_path):
    two_parts = box(0, 0, 1, 1) + box(3, 2, 2, 1)
    # Column by column: six pixels outside, then column 2 but for its last pixel.
    column = {"size": [3, 5], "counts": [6, 2, 7]}
    root = save(
        tmp_path / "any name.json", annotation(CAT, two_parts), annotation(DOG, column), annotation(CAT, column)
    )
    planes = read(root)
    assert planes[..., 0].tolist() == [[1, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert planes[..., 1].tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert planes.dtype == np.uint8
    packed = mask.frPyObjects(column, 3, 5)["counts"].decode()
    save(root, annotation(CAT, two_parts), annotation(DOG, {**column, "counts": packed}), annotation(CAT, column))
    np.testing.assert_array_equal(read(tmp_path), planes)


def test_crowds_are_the_class_or_a_doubt(tmp_path):
    crowd = annotation(CAT, {"size": [3, 5], "counts": [0, 6, 9]}, iscrowd=1)
    root = save(
        tmp_path / "a.json", crowd, annotation(CAT, box(1, 0, 2, 1), iscrowd=0), annotation(DOG, box(0, 2, 1, 1))
    )
    assert read(root)[..., 0].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    planes = read(root, crowd="ignore")
    assert planes[..., 0].tolist() == [[255, 1, 1, 0, 0], [255, 255, 0, 0, 0], [255, 255, 0, 0, 0]]
    assert planes[..., 1].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    exclusive = read(root, EXCLUSIVE, crowd="ignore")[..., 0]
    assert exclusive.tolist() == [[255, 1, 1, 0, 0], [255, 255, 0, 0, 0], [2, 255, 0, 0, 0]]


def test_objects_on_one_another_in_exclusive_classes(tmp_path):
    root = save(tmp_path / "a.json", annotation(DOG, box(1, 1, 2, 1)), annotation(CAT, box(0, 0, 2, 3)))
    with pytest.raises(
        ValueError, match=r"a\.json, image a\.jpg: 1 pixels.*row 1, column 1: cat and dog.*`overlap: last`"
    ):
        read(root, EXCLUSIVE)
    corner = {option: int(read(root, EXCLUSIVE, overlap=option)[1, 1, 0]) for option in ("last", "smallest", "ignore")}
    assert corner == {"last": 1, "smallest": 2, "ignore": 255}
    # The smaller object, not the smaller class.
    large = [annotation(DOG, box(0, 0, 5, 3)), annotation(CAT, box(1, 1, 3, 1)), annotation(DOG, box(2, 1, 1, 1))]
    root = save(tmp_path / "b.json", *large)
    assert read(root, EXCLUSIVE, overlap="smallest")[1, :, 0].tolist() == [2, 1, 2, 1, 2]


def test_categories_become_classes(tmp_path):
    three = (CAT, DOG, MOUSE)
    objects = [annotation(category, box(x, 0, 1, 1)) for x, category in enumerate(three)]
    root = save(tmp_path / "a.json", *objects, categories=three)
    with pytest.raises(
        ValueError, match=r"labels 'mouse', which no class declares \(declared: cat, dog\).*`others: back"
    ):
        read(root)
    assert read(root, others="background")[0, 2].tolist() == [0, 0]
    assert read(root, others="ignore")[0, 1:3].tolist() == [[0, 1], [255, 255]]
    assert read(root, values={"cat": "cat", "18": "dog", 3: None})[0, :3].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert read(root, values={17: "cat", "mouse": "cat", "dog": "dog"})[0, :3].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert read(root, ignored_values=[3])[0, 2].tolist() == [255, 255]
    assert read(root, BINARY, values={"dog": None}, others="animal")[0, :4, 0].tolist() == [1, 0, 1, 0]
    assert read(root, BINARY, others="animal", ignored_values=["dog"])[0, :4, 0].tolist() == [1, 255, 1, 0]
    # A category that nothing is annotated with needs no class; a class needs a category.
    save(root, *objects[:2], categories=three)
    assert read(root).sum() == 2
    with pytest.raises(ValueError, match=r"no category stands for class 'cot'. Did you mean `cat`\?"):
        read(root, MaskFormat.multilabel(["cot"]), others="background")


def test_images_without_annotations_say_what_the_spec_says(tmp_path):
    root = save(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"image a\.jpg: has no annotation.*`missing: empty`.*`missing: ignore`"):
        read(root)
    assert (read(root, missing="empty") == 0).all()
    assert read(root, missing="ignore").shape == (3, 5, 2)
    assert (read(root, missing="ignore") == 255).all()
    assert (read(root, EXCLUSIVE, missing="empty") == 0).all()
    with pytest.raises(ValueError, match="15 pixels are marked for no class"):
        read(root, MaskFormat.multiclass(["cat", "dog"]), missing="empty")


@pytest.mark.parametrize("part", ["train", "val"])
def test_coco_subset_as_pycocotools_sees_it(shared_data, part):
    root = shared_data / "coco_subset" / "annotations" / f"instances_{part}.json"
    file = COCO(root)
    names = [category["name"] for category in file.loadCats(file.getCatIds())]
    codec = open_codec({"name": "coco", "missing": "empty"}, MaskFormat.multilabel(names))
    number_of = {number: index for index, number in enumerate(file.getCatIds())}
    images = {image["file_name"].removesuffix(".jpg"): image for image in file.dataset["images"]}
    assert codec.stems(root) == sorted(images)
    for stem, image in images.items():
        expected = np.zeros((image["height"], image["width"], len(names)), np.uint8)
        for record in file.imgToAnns[image["id"]]:
            expected[..., number_of[record["category_id"]]] |= file.annToMask(record)
        np.testing.assert_array_equal(codec.read(root, stem), expected)


def test_coco_subset_is_a_data_set(shared_data, tmp_path):
    folder = shared_data / "coco_subset"
    codec = open_codec({"name": "coco", "missing": "empty", "others": "object"}, MaskFormat.binary("object"))
    # The folder holds the images of both parts.
    root = folder / "annotations" / "instances_val.json"
    data = MaskDataset(folder / "images", root, codec, stems=codec.stems(root))
    assert len(data) == 14
    cached = data.cached(folder=tmp_path, workers=1)
    for index in (0, 7):
        np.testing.assert_array_equal(cached.read(index).planes, data.read(index).planes)


# Finding ------------------------------------------------------------------------------------------------


def test_the_root_is_a_file_or_a_folder_with_one(tmp_path):
    codec = open_codec("coco", ANIMALS)
    save(tmp_path / "one.json", annotation(CAT, box(0, 0, 1, 1)))
    (tmp_path / "_objects.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    assert codec.stems(tmp_path) == codec.stems(tmp_path / "one.json") == ["a"]
    assert codec.files(tmp_path, "a") == [tmp_path / "one.json"]
    other = {"id": 1, "file_name": "night/b.PNG", "height": 3, "width": 5}
    save(tmp_path / "two.json", images=[other])
    with pytest.raises(ValueError, match=r"holds 2 JSON files \(one\.json, two\.json\): name one"):
        codec.stems(tmp_path)
    assert codec.stems(tmp_path / "two.json") == ["night/b"]
    (tmp_path / "two.json").rename(tmp_path / "annotations.json")
    assert codec.stems(tmp_path) == ["night/b"]
    for nowhere in ("three.json", "nowhere"):
        with pytest.raises(ValueError, match=f"{nowhere}: no such folder, nor a JSON file"):
            codec.stems(tmp_path / nowhere)
        with pytest.raises(ValueError, match=r"image 'a': no such file"):
            codec.read(tmp_path / nowhere, "a")
    with pytest.raises(ValueError, match=r"holds no image of the name 'night/c' among its 1 images"):
        codec.read(tmp_path, "night/c")


def test_file_names_and_stems():
    assert stem_of("a/b.c.jpg") == "a/b.c"
    assert stem_of("a") == "a"
    assert stem_of("n/case@z001.nii.gz") == "n/case@z001"
    for like, name in (("x/y.TIF", "a.TIF"), ("case.nii.gz", "a.nii.gz"), (None, "a.png")):
        assert file_name_of("a", like) == name


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    root = save(tmp_path / "a.json", annotation(CAT, box(0, 0, 1, 1)))
    calls = []
    parse = coco_files.read_json
    monkeypatch.setattr(coco_files, "read_json", lambda path: calls.append(path) or parse(path))
    assert [int(read(root).sum()) for _ in range(3)] == [1, 1, 1]
    assert len(calls) == 1
    save(root, annotation(CAT, box(0, 0, 2, 1)))
    os.utime(root, ns=(1, 1))
    assert read(root).sum() == 2


# Writing ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_by_pycocotools(tmp_path):
    planes = np.zeros((4, 6, 2), np.uint8)
    planes[1:3, 2:5, 0] = planes[2:, 4:, 1] = 1
    codec = open_codec("coco", ANIMALS)
    codec.write(tmp_path, "night/a", planes, like="photos/night/a.jpg")
    codec.write(tmp_path, "b", planes * 0)
    codec.finish(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["annotations.json"]
    file = COCO(tmp_path / "annotations.json")
    images = {image["file_name"]: image for image in file.dataset["images"]}
    assert set(images) == {"night/a.jpg", "b.png"}
    assert (images["b.png"]["height"], images["b.png"]["width"]) == (4, 6)
    names = {number: file.cats[number]["name"] for number in file.getCatIds()}
    assert names == {1: "cat", 2: "dog"}
    found = file.imgToAnns[images["night/a.jpg"]["id"]]
    assert [(names[a["category_id"]], a["bbox"], a["area"], a["iscrowd"]) for a in found] == [
        ("cat", [2, 1, 3, 2], 6, 0),
        ("dog", [4, 2, 2, 2], 4, 0),
    ]
    for index, record in enumerate(found):
        np.testing.assert_array_equal(file.annToMask(record), planes[..., index])
    # What nobody marked was looked at all the same: no word is needed to read it.
    assert (codec.read(tmp_path, "b") == 0).all()


def test_a_second_writing_joins_what_is_there(tmp_path):
    images = [
        {"id": n, "file_name": f"{s}.jpg", "height": 3, "width": 5, "license": 4} for n, s in ((7, "a"), (9, "b"))
    ]
    kept = annotation(DOG, box(0, 0, 2, 2), image=9, id=30, note="mine")
    replaced = annotation(CAT, box(0, 0, 5, 3), image=7, id=31)
    root = save(tmp_path / "x.json", kept, replaced, images=images, categories=(MOUSE, DOG), info={"year": 2026})
    with pytest.raises(ValueError, match=r"annotation 31: is of category 17, which `categories` does not hold"):
        load_coco(root)
    save(root, kept, {**replaced, "category_id": 3}, images=images, categories=(MOUSE, DOG), info={"year": 2026})
    planes = np.zeros((3, 5, 2), np.uint8)
    planes[0, 1, 0] = planes[2, 3, 1] = 1
    codec = open_codec({"name": "coco", "values": {17: "cat", "dog": "dog", "mouse": None}}, ANIMALS)
    codec.write(root, "a", planes)
    codec.write(root, "c", planes)
    codec.finish(root)
    once = root.read_bytes()
    codec.finish(root)
    assert root.read_bytes() == once
    values = json.loads(once)
    assert values["info"] == {"year": 2026}
    assert values["categories"] == [MOUSE, DOG, CAT]
    assert [(i["id"], i["file_name"], i.get("license")) for i in values["images"]] == [
        (7, "a.jpg", 4),
        (9, "b.jpg", 4),
        (10, "c.png", None),
    ]
    assert values["annotations"][0] == kept
    assert [(a["id"], a["image_id"], a["category_id"]) for a in values["annotations"][1:]] == [
        (31, 7, 17),
        (32, 7, 18),
        (33, 10, 17),
        (34, 10, 18),
    ]
    for stem in ("a", "c"):
        np.testing.assert_array_equal(codec.read(root, stem), planes)
    assert codec.read(root, "b").sum() == 4
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_is_written_as_annotations_json_whatever_lies_in_it(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    codec, planes = open_codec("coco", ANIMALS), np.ones((3, 5, 2), np.uint8)
    codec.write(tmp_path, "a", planes)
    codec.finish(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["annotations.json", "report.json"]
    np.testing.assert_array_equal(codec.read(tmp_path, "a"), planes)


def test_a_join_that_fails_leaves_the_file_and_what_was_written(tmp_path, monkeypatch):
    codec = open_codec("coco", ANIMALS)
    codec.write(tmp_path, "a", np.ones((3, 5, 2), np.uint8))
    codec.finish(tmp_path)
    codec.write(tmp_path, "a", np.zeros((3, 5, 2), np.uint8))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            codec.finish(tmp_path)
    assert codec.read(tmp_path, "a").all()
    codec.finish(tmp_path)
    assert not codec.read(tmp_path, "a").any()


def test_pixels_ignored_for_some_classes_are_doubtful_crowds(tmp_path):
    planes = np.array([[[255, 0], [1, 255], [255, 255], [0, 1]]], np.uint8)
    with pytest.raises(ValueError, match=r"no label on disk means that. Add one to `ignored_values`"):
        open_codec("coco", ANIMALS).write(tmp_path, "a", planes)
    with pytest.raises(ValueError, match=r"for some of the classes only.*`crowd: ignore`"):
        open_codec({"name": "coco", "ignored_values": ["void"]}, ANIMALS).write(tmp_path, "a", planes)
    expected = {(): [("cat", 1, 1), ("cat", 2, 0), ("dog", 2, 1), ("dog", 1, 0)]}
    expected[("void",)] = [("cat", 1, 0), ("cat", 1, 1), ("dog", 1, 0), ("dog", 1, 1), ("void", 1, 0)]
    expected[()] = [("cat", 1, 0), ("cat", 2, 1), ("dog", 1, 0), ("dog", 2, 1)]
    for ignored, annotations in expected.items():
        codec = open_codec({"name": "coco", "ignored_values": list(ignored), "crowd": "ignore"}, ANIMALS)
        root = tmp_path / f"{len(ignored)}.json"
        codec.write(root, "a", planes)
        codec.finish(root)
        file = json.loads(root.read_text())
        names = {category["id"]: category["name"] for category in file["categories"]}
        found = [(names[a["category_id"]], a["area"], a["iscrowd"]) for a in file["annotations"]]
        assert sorted(found) == sorted(annotations)
        np.testing.assert_array_equal(codec.read(root, "a"), planes)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ([1, 2], ["1", "2"])),
        ({"ignored_values": [255]}, ([256, 257, 255], ["1", "2", "ignored"])),
        ({"values": {5: "1", "b": "2"}, "ignored_values": ["void"]}, ([5, 6, 7], ["1", "b", "void"])),
        # The names 1 and 2 stand for the other class, so that the categories 2 and 1 cannot be called so.
        ({"values": {1: "2", 2: "1"}, "ignored_values": ["ignored"]}, ([2, 1, 3], ["2", "1", "ignored"])),
        ({"values": {3: "1", 1: "1", 2: "2"}}, ([3, 4], ["1", "2"])),
        ({"values": {"x": "1", 1: "2"}}, ([2, 1], ["x", "2"])),
        ({"values": {"x": "1"}, "others": "2"}, ([1, 2], ["x", "2"])),
    ],
)
def test_classes_that_are_numbers_are_read_as_they_were_written(spec, expected, tmp_path):
    format = MaskFormat.multiclass(["background", 1, 2])
    codec = open_codec({"name": "coco", **spec}, format)
    planes = np.array([[[0], [1], [2], [255 if "ignored_values" in spec else 1]]], np.uint8)
    codec.write(tmp_path, "a", planes)
    codec.finish(tmp_path)
    np.testing.assert_array_equal(codec.read(tmp_path, "a"), planes)
    categories = json.loads((tmp_path / "annotations.json").read_text())["categories"]
    ids, names = ([category[key] for category in categories] for key in ("id", "name"))
    assert (ids, names) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([BINARY, ANIMALS, EXCLUSIVE, MaskFormat.multiclass(["cat", "dog"])]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["error", "last", "smallest", "ignore"]),
)
def test_write_finish_read_is_the_identity_in_several_rounds(tmp_path_factory, format, size_hw, seed, overlap):
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("coco")
    spec = {"name": "coco", "ignored_values": ["void"], "crowd": "ignore", "overlap": overlap}
    codec, expected = open_codec(spec, format), {}
    for round_number in range(2):
        for stem in ("a", f"b{round_number}"):
            top = 2 if format.classes_overlap else format.num_classes
            planes = rng.integers(0, top, (*size_hw, format.num_planes)).astype(format.dtype)
            planes[rng.random(planes.shape) < 0.2] = format.ignore_index
            codec.write(root, stem, planes)
            expected[stem] = planes
        codec.finish(root)
        assert codec.stems(root) == sorted(expected)
        for stem, planes in expected.items():
            np.testing.assert_array_equal(codec.read(root, stem), planes)


# Refused ------------------------------------------------------------------------------------------------

IMAGE = {"id": 1, "file_name": "a.jpg", "height": 3, "width": 5}
CATS = annotation(CAT, box(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("{", "is no readable JSON"),
        ("[1]", "holds a JSON list, expected an object"),
        ("\x00", "is no readable JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "is no readable JSON"),
        ("{}", "`categories` is missing or no list"),
        ('{"categories": [], "images": [], "annotations": [7]}', "`annotations` is missing or no list of objects"),
        ('{"categories": [], "images": {}, "annotations": []}', "`images` is missing or no list"),
    ],
)
def test_files_that_are_no_instance_files(content, said, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json: .*{said}"):
        open_codec("coco", ANIMALS).stems(tmp_path)


@pytest.mark.parametrize(
    ("records", "options", "said"),
    [
        ([CATS], {"images": [IMAGE, IMAGE]}, "two images have the id 1, of which one is a.jpg"),
        ([CATS], {"images": [IMAGE, {**IMAGE, "id": 2, "file_name": "a.png"}]}, "a.jpg and a.png are both sample 'a'"),
        ([CATS], {"images": [{**IMAGE, "file_name": "../a.jpg"}]}, "no name of a sample"),
        ([CATS], {"images": [{**IMAGE, "file_name": "x\\a.jpg"}]}, "no name of a sample"),
        ([CATS], {"images": [{**IMAGE, "file_name": "/a.jpg"}]}, "no name of a sample"),
        ([CATS], {"images": [{**IMAGE, "file_name": "."}]}, "image 1, `file_name` '.'"),
        ([CATS], {"images": [{**IMAGE, "file_name": 7}]}, "expected an `id` and a `file_name`"),
        ([CATS], {"images": [{"file_name": "a.jpg"}]}, "expected an `id` and a `file_name`"),
        ([CATS], {"categories": [CAT, {**CAT, "name": "dog"}]}, r"two categories have the id 17 \(cat and dog\)"),
        ([CATS], {"categories": [{"id": 17}]}, "expected an `id` and a `name`"),
        ([{**CATS, "id": 4}, {**CATS, "id": 4}], {}, "annotation 4: has an id that is no number, or that another"),
        ([{**CATS, "id": [4]}], {}, "has an id that is no number"),
        ([{**CATS, "image_id": 8}], {}, "annotation 1: belongs to image 8, which `images` does not hold"),
        ([{**CATS, "image_id": None}], {}, "belongs to image None"),
        ([annotation(MOUSE, [])], {}, "annotation 1: is of category 3, which `categories` does not hold"),
        ([CATS], {"images": [{**IMAGE, "height": 0}]}, "a size of 0 x 5, expected whole numbers"),
        ([CATS], {"images": [{**IMAGE, "width": "5"}]}, "a size of 3 x '5', expected whole numbers"),
        ([CATS], {"images": [{"id": 1, "file_name": "a.jpg"}]}, "a size of None x None"),
        ([CATS], {"images": [{**IMAGE, "height": 2**40}]}, r"declares 1099511627776 x 5 pixels, expected at most"),
        ([annotation(CAT, [])], {}, r"image a\.jpg, annotation 1: has no polygon.*`quarantine`"),
        ([{"image_id": 1, "category_id": 17, "bbox": [0, 0, 1, 1]}], {}, "annotation 1: has no polygon"),
        ([annotation(CAT, [[0, 0, 1]])], {}, "annotation 1: has a polygon of 3 numbers"),
        ([annotation(CAT, {"size": [5, 3], "counts": [15]})], {}, r"run lengths for the size \[5, 3\]"),
        ([annotation(CAT, {"size": [3, 5], "counts": [16]})], {}, "do not add up to its 3 x 5 pixels"),
    ],
)
def test_records_that_cannot_be_meant_are_named(records, options, said, tmp_path):
    root = save(tmp_path / "x.json", *records, **options)
    with pytest.raises(ValueError, match=rf"x\.json.*{said}"):
        read(root)


def test_more_pixels_than_the_limit_are_refused_before_they_are_drawn(tmp_path, monkeypatch):
    root = save(tmp_path / "x.json", CATS)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "14")
    with pytest.raises(ValueError, match=r"image a\.jpg: declares 3 x 5 pixels, expected at most 14"):
        read(root)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crowd": "cat"}, "`crowd` is 'cat': expected class, ignore"),
        ({"missing": "skip"}, "`missing` is 'skip': expected error, ignore, empty"),
        ({"others": "mouse"}, "`others` is 'mouse': expected error, background, ignore or a class of"),
        ({"values": ["cat"]}, "expected lines `LABEL: NAME`"),
        ({"values": {"cat": "cat", "dog": "bird"}}, "maps 'dog' to 'bird', which is no class"),
        ({"values": {"cat": "cat"}}, r"no label for \['dog'\]"),
        ({"values": {"cat": "dog"}, "others": "cat"}, r"no label for \['cat'\]"),
        ({"values": {True: "cat"}}, "label True: expected a word or a number"),
        ({"ignored_values": ["cat"]}, r"labels \['cat'\] stand for a class and are in `ignored_values` too"),
        ({"ignored_values": [1.5]}, "label 1.5: expected a word or a number"),
    ],
)
def test_options_that_cannot_be_meant(options, said):
    with pytest.raises(ValueError, match=said):
        open_codec({"name": "coco", **options}, ANIMALS)


def test_one_ignored_label_needs_no_list():
    assert open_codec({"name": "coco", "ignored_values": "void"}, ANIMALS).labels.ignored_values == ("void",)


def test_images_of_another_size_than_their_record_are_named(tmp_path):
    root = save(tmp_path / "x.json", CATS)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((3, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="image is 3x6 but its mask is 3x5"):
        MaskDataset(tmp_path / "images", root, open_codec("coco", ANIMALS)).verify()


def test_a_decoded_copy_knows_its_instance_file(tmp_path):
    root = save(tmp_path / "x.json", CATS)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((3, 5, 3), np.uint8))
    data = MaskDataset(tmp_path / "images", root, open_codec("coco", ANIMALS))
    origin = data._origin().to_dict()
    assert origin["mask_files"] == {".": (root.stat().st_size, root.stat().st_mtime_ns)}
    assert not is_outdated(origin)
    assert data.cached(folder=tmp_path / "cache", workers=1).read(0).planes.sum() == 1
    save(root, annotation(CAT, box(0, 0, 4, 1)))
    assert is_outdated(origin)
    assert data.cached(folder=tmp_path / "cache", workers=1).read(0).planes.sum() == 4


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"x\.json: is a pipe or a device"):
        open_codec("coco", ANIMALS).stems(tmp_path / "x.json")
