"""Objects of predicted masks: by hand, beside pycocotools, and through files."""

import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.objects import find_objects, join_objects, object_line
from segkit.inference.predictor import Predictor
from segkit.models.builder import build_model
from tests.painted import Painted as PaintedModel
from tests.scenes import FORMATS, write_set

EXCLUSIVE = MaskFormat.multiclass(["background", "cat", "dog"])
NESTED = MaskFormat.multilabel(["whole", "core"])

#          0  1  2  3  4  5  6
PICTURE = [
    [1, 1, 0, 0, 0, 0, 2],
    [1, 0, 0, 0, 0, 2, 0],
    [0, 0, 1, 1, 0, 0, 0],
    [255, 0, 1, 1, 0, 2, 2],
]


def test_boxes_areas_and_scores_by_hand():
    planes = np.array(PICTURE, np.uint8)[..., None]
    probs = np.full((3, 4, 7), 0.25, np.float32)
    probs[1, :2] = [[0.9, 0.8, 0, 0, 0, 0, 0], [0.7, 0, 0, 0, 0, 0, 0]]
    probs[2, 3, 5:] = 0.5, 1.0
    found = [
        (name, o["bbox"], o["area"], o["score"], o["iscrowd"]) for name, o in find_objects(planes, probs, EXCLUSIVE)
    ]
    assert found == [
        ("cat", [0, 0, 2, 2], 3, 0.8, 0),
        ("cat", [2, 2, 2, 2], 4, 0.25, 0),
        ("dog", [5, 0, 2, 2], 2, 0.25, 0),  # two pixels that touch at a corner
        ("dog", [5, 3, 2, 1], 2, 0.75, 0),
    ]


def test_a_class_inside_another_keeps_its_own_objects():
    planes = np.zeros((5, 6, 2), np.uint8)
    planes[1:4, 1:5, 0] = 1
    planes[2, (1, 4), 1] = 1
    planes[0] = 255
    found = [(name, o["bbox"], o["area"]) for name, o in find_objects(planes, np.ones((2, 5, 6)), NESTED)]
    assert found == [("whole", [1, 1, 4, 3], 12), ("core", [1, 2, 1, 1], 1), ("core", [4, 2, 1, 1], 1)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([EXCLUSIVE, NESTED, MaskFormat.binary("x"), MaskFormat.multiclass(["sky", "road"], "sigmoid")]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 2**32 - 1),
)
def test_the_objects_of_a_class_are_its_mask_once(tmp_path_factory, format, size_hw, seed):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("objects")
    top = 2 if format.classes_overlap else format.num_classes
    planes = rng.integers(0, top, (*size_hw, format.num_planes)).astype(format.dtype)
    probs = rng.random((format.num_classes, *size_hw)).astype(np.float32)
    (folder / "lines").write_bytes(object_line(0, "night/a.jpg", planes, probs, format))
    join_objects(folder / "_objects.json", [folder / "lines"], format)
    file = COCO(folder / "_objects.json")
    held = format.expand(torch.from_numpy(planes.transpose(2, 0, 1))[None])[0].numpy()
    for index, name in enumerate(format.names):
        if name == "background":
            assert file.getCatIds(catNms=[name]) == []
            continue
        listed = file.loadAnns(file.getAnnIds(catIds=file.getCatIds(catNms=[name])))
        masks = [file.annToMask(record) for record in listed]
        np.testing.assert_array_equal(sum(masks, np.zeros(size_hw)), held[index])
        for record, mask in zip(listed, masks, strict=True):
            assert cv2.connectedComponents(mask)[0] == 2
            assert record["area"] == mask.sum()
            assert record["score"] == pytest.approx(probs[index][mask > 0].mean(), abs=1e-5)
        # None of them could be joined with another.
        assert cv2.connectedComponents(held[index].astype(np.uint8))[0] == 1 + len(listed)
    # The same file is a set of masks.
    codec = open_codec({"name": "coco", "unmarked": "ignore"}, format)
    np.testing.assert_array_equal(codec.read(folder / "_objects.json", "night/a"), planes)


class Painted(Predictor):
    """Predicts what the image shows: of each class, logit 4 where the red band holds its number, else -4."""

    def answers(self, images, spacings, probabilities):
        format, numbers = self.model.format, torch.arange(self.model.format.num_classes)[:, None, None]
        shown = [torch.where(torch.from_numpy(image[..., 0].copy()) == numbers, 4.0, -4.0)[None] for image in images]
        planes = [format.decode(logits)[0].numpy().transpose(1, 2, 0).astype(format.dtype) for logits in shown]
        return [(plane, format.probabilities(logits)[0].numpy()) for plane, logits in zip(planes, shown, strict=True)]


def painted(format, codec):
    network = build_model("unet", "tu-test_resnet", format, weights=None, decoder_channels=[16, 8, 8, 8, 8])
    return Painted(network, open_codec(codec, format), device="cpu")


def test_objects_of_files_lie_beside_their_masks(tmp_path):
    picture = np.array(PICTURE, np.uint8)
    picture[picture == 255] = 0
    for name, pixels in (("a.png", picture), ("night/b.png", picture[:, ::-1]), ("empty.png", picture * 0)):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.repeat(pixels[..., None], 3, axis=2))
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    predictor = painted(EXCLUSIVE, "index_png")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out", objects=True)
    assert (report.done, len(report.failed)) == (3, 1)
    values = json.loads((tmp_path / "out" / "_objects.json").read_text())
    assert values["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    images = [(image["id"], image["file_name"], image["width"], image["height"]) for image in values["images"]]
    assert images == [(1, "a.png", 7, 4), (2, "empty.png", 7, 4), (3, "night/b.png", 7, 4)]
    boxes = [(a["id"], a["image_id"], a["category_id"], a["bbox"]) for a in values["annotations"]]
    assert boxes == [
        (1, 1, 1, [0, 0, 2, 2]),
        (2, 1, 1, [2, 2, 2, 2]),
        (3, 1, 2, [5, 0, 2, 2]),
        (4, 1, 2, [5, 3, 2, 1]),
        (5, 3, 1, [5, 0, 2, 2]),
        (6, 3, 1, [3, 2, 2, 2]),
        (7, 3, 2, [0, 0, 2, 2]),
        (8, 3, 2, [0, 3, 2, 1]),
    ]
    # softmax of logits 4, -4, -4
    score = np.exp(4) / (np.exp(4) + 2 * np.exp(-4))
    assert [a["score"] for a in values["annotations"]] == pytest.approx([score] * 8, abs=1e-6)
    # Objects are no masks of the folder: it still is a data set, and a second run says the same.
    assert predictor.codec.stems(tmp_path / "out") == ["a", "empty", "night/b"]
    before = (tmp_path / "out" / "_objects.json").read_bytes()
    predictor.predict_files([tmp_path / "in"], tmp_path / "out", objects=True)
    assert (tmp_path / "out" / "_objects.json").read_bytes() == before


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_objects_and_coco_masks_beside_them(tmp_path, kind):
    format = FORMATS[kind]
    images = write_set(tmp_path / "data", format, 2).images
    predictor = painted(format, {"name": "coco", "unmarked": "ignore"})
    predictor.predict_files([images], tmp_path / "out", objects=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "_journal.jsonl",
        "_objects.json",
        "annotations.json",
    ]
    for stem in ("s0", "s1"):
        masks, objects = (
            predictor.codec.read(root, stem) for root in (tmp_path / "out", tmp_path / "out/_objects.json")
        )
        np.testing.assert_array_equal(masks, objects)


def test_slices_of_a_volume_are_images_of_their_own(tmp_path):
    import nibabel

    format = MaskFormat.multiclass(["background", "organ"])
    (tmp_path / "in").mkdir()
    voxels = np.zeros((6, 5, 3), np.float32)
    voxels[1:3, 2, 1] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "case.nii.gz")
    predictor = Predictor(PaintedModel(format), open_codec("nifti", format), device="cpu")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out", objects=True)
    assert (report.done, report.failed) == (3, [])
    file = json.loads((tmp_path / "out" / "_objects.json").read_text())
    assert [image["file_name"] for image in file["images"]] == [f"case@z00{z}.nii.gz" for z in range(3)]
    assert [(a["image_id"], a["bbox"]) for a in file["annotations"]] == [(2, [1, 2, 2, 1])]


def test_objects_are_joined_in_the_order_of_the_images_and_the_last_line_of_each_counts(tmp_path):
    format = MaskFormat.binary("x")
    one, two = (np.zeros((3, 4, 1), np.uint8) for _ in range(2))
    one[0, 0] = two[1, 1:3] = 1
    probs = np.full((1, 3, 4), 0.5)
    line = object_line(2, "c.png", two, probs, format)
    (tmp_path / "first").write_bytes(object_line(12, "m.png", one, probs, format) + line + line[:20])
    (tmp_path / "second").write_bytes(
        object_line(3, "d.png", one, probs, format) + object_line(12, "m.png", two, probs, format)
    )
    join_objects(tmp_path / "_objects.json", [tmp_path / "first", tmp_path / "second"], format)
    file = json.loads((tmp_path / "_objects.json").read_text())
    assert [(image["id"], image["file_name"]) for image in file["images"]] == [(1, "c.png"), (2, "d.png"), (3, "m.png")]
    boxes = [(a["id"], a["image_id"], a["bbox"]) for a in file["annotations"]]
    assert boxes == [(1, 1, [1, 1, 2, 1]), (2, 2, [0, 0, 1, 1]), (3, 3, [1, 1, 2, 1])]
