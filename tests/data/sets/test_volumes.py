from __future__ import annotations

import json

import numpy as np
import pytest

from segkit.data.layouts import find_layout, recognise
from tests.data.sets.small import open_set, planes_of, read_layout, write_values, write_volume

IGNORED = 255
SHAPE = (3, 2, 2)  # x, y, z: slices of 2 rows and 3 columns
# x runs along columns: rows of slice z=1 are [5, 7, 9] + 0 and [5, 7, 9] + 1 in `ramp`
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[:, 0, 1], LABELS[:, 1, 1] = (0, 1, 2), (2, 1, 0)


def describe(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"name": "Prostate", **content}))


def write_decathlon(root, labels, bands=1):
    shape = SHAPE if bands == 1 else (*SHAPE, bands)
    entries = []
    for number, case in enumerate(("prostate_00", "prostate_01")):
        image = np.full(shape, 10 * number, np.float32)
        if bands > 1:
            image[..., 1] += 5
        write_volume(root / "imagesTr" / f"{case}.nii.gz", image)
        write_volume(root / "labelsTr" / f"{case}.nii.gz", LABELS)
        entries.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    write_volume(root / "imagesTs" / "prostate_02.nii.gz", np.zeros(shape, np.float32))
    (root / "imagesTr" / "._prostate_00.nii.gz").write_bytes(b"left by a Mac")
    modality = {str(number): name for number, name in zip(range(bands), ("T2", "ADC"), strict=False)}
    test = ["./imagesTs/prostate_02.nii.gz"]
    describe(root, modality=modality, labels=labels, numTraining=2, training=entries, test=test, tensorImageSize="4D")


def test_decathlon(tmp_path):
    root = tmp_path / "Task05_Prostate"
    write_decathlon(root, {"0": "background", "1": "PZ", "2": "TZ"}, bands=2)
    parts = open_set(root, "msd", train={}, val={"from": "train", "fraction": 0.5})
    assert sorted(parts.train.stems + parts.val.stems) == [f"prostate_{n:02d}@z{z:03d}" for n in (0, 1) for z in (0, 1)]
    index = parts.train.stems.index(next(s for s in parts.train.stems if s.endswith("@z001")))
    sample = parts.train.read(index)
    assert sample.image.shape == (2, 3, 2)
    assert sample.image[0, 0, 1] - sample.image[0, 0, 0] == 5
    assert planes_of(parts.train, index) == [[0, 1, 2], [2, 1, 0]]
    assert parts.train.format.names == ("background", "PZ", "TZ")
    assert recognise(root) == "msd"
    with pytest.raises(ValueError, match=r"no part 'test' here; found are \['train'\]"):
        open_set(root, "msd", train={}, test={})


def test_cases_with_numbers_are_no_channels(tmp_path):
    described = {"labels": {"0": "background", "1": "spleen"}}
    for case in ("spleen_0000", "spleen_0001"):
        write_volume(tmp_path / "msd" / "imagesTr" / f"{case}.nii.gz", np.zeros(SHAPE, np.float32))
        write_volume(tmp_path / "nnunet" / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(SHAPE, np.float32))
        for root in ("msd", "nnunet"):
            write_volume(tmp_path / root / "labelsTr" / f"{case}.nii.gz", LABELS.clip(0, 1))
    (tmp_path / "msd" / "imagesTr" / "._spleen_0000.nii.gz").write_bytes(b"left by a Mac")
    entries = [{"image": f"./imagesTr/{case}.nii.gz"} for case in ("spleen_0000", "spleen_0001")]
    describe(tmp_path / "msd", training=entries, **described)
    describe(tmp_path / "nnunet", training=entries, modality={"0": "CT"}, **described)
    (tmp_path / "nnunet" / "splits_final.json").write_text('[{"train": ["spleen_0001"], "val": ["spleen_0000"]}]')
    assert (recognise(tmp_path / "msd"), recognise(tmp_path / "nnunet")) == ("msd", "nnunet")
    assert len(open_set(tmp_path / "msd", "msd").train) == 4
    parts = open_set(tmp_path / "nnunet", "nnunet", train={}, val={})
    assert parts.train.stems == ["spleen_0001@z000", "spleen_0001@z001"]
    assert parts.val.stems == ["spleen_0000@z000", "spleen_0000@z001"]


def test_decathlon_with_one_organ_is_binary(tmp_path):
    write_decathlon(tmp_path, {"0": "background", "1": "spleen"})
    masks = find_layout("msd").masks(tmp_path)
    assert (masks["format"], masks["classes"]) == ("binary", ["spleen"])
    assert masks["codec"] == {"name": "nifti", "values": {0: "background", 1: "spleen"}}


def test_a_case_that_the_description_lists_must_be_there(tmp_path):
    write_decathlon(tmp_path, {"0": "background", "1": "PZ", "2": "TZ"})
    (tmp_path / "labelsTr" / "prostate_01.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"2 of 4 images in .* have no mask .*prostate_01@z000"):
        open_set(tmp_path, "msd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"0": "background", "1": "PZ"}, "training": ["case"]}, r"dataset\.json: `training` lists 'case'"),
        ({"labels": ["PZ"], "training": []}, r"dataset\.json: `labels` is \['PZ'\], expected \{background: 0"),
        ({"labels": {"PZ": "one"}, "training": []}, r"`labels` maps 'PZ' to 'one', expected whole numbers"),
    ],
)
def test_descriptions_that_cannot_be_understood(tmp_path, content, message):
    write_decathlon(tmp_path, {})
    describe(tmp_path, **content)
    with pytest.raises(ValueError, match=message):
        open_set(tmp_path, "msd")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: is no readable JSON"):
        read_layout(tmp_path, "msd")
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"is not described by a file dataset\.json"):
        read_layout(tmp_path, "msd")


def write_nnunet(root, channels=2, cases=("prostate_00", "prostate_01", "prostate_02"), folder="Tr"):
    for number, case in enumerate(cases):
        for channel in range(channels):
            image = np.full(SHAPE, 10 * number + channel, np.float32)
            write_volume(root / f"images{folder}" / f"{case}_{channel:04d}.nii.gz", image)
        write_volume(root / f"labels{folder}" / f"{case}.nii.gz", LABELS)


V2 = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "TZ": 2}, "file_ending": ".nii.gz"}
V1 = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}


@pytest.mark.parametrize("described", [V2, V1])
def test_nnunet(tmp_path, described):
    write_nnunet(tmp_path)
    write_nnunet(tmp_path, cases=("prostate_09",), folder="Ts")
    entries = [
        {"image": f"./imagesTr/prostate_0{n}.nii.gz", "label": f"./labelsTr/prostate_0{n}.nii.gz"} for n in (0, 1, 2)
    ]
    describe(tmp_path, **described, numTraining=3, **({"training": entries} if described is V1 else {}))
    parts = open_set(tmp_path, "nnunet", train={}, test={})
    assert parts.train.stems == [f"prostate_{n:02d}@z{z:03d}" for n in (0, 1, 2) for z in (0, 1)]
    assert parts.test.stems == ["prostate_09@z000", "prostate_09@z001"]
    assert parts.train.read(5).image[0, 0].tolist() == [20, 21]
    assert planes_of(parts.train, 5) == [[0, 1, 2], [2, 1, 0]]
    assert parts.train.format.names == ("background", "PZ", "TZ")
    assert recognise(tmp_path) == "nnunet"


def test_the_first_fold_of_nnunet_gives_train_and_val(tmp_path):
    write_nnunet(tmp_path)
    describe(tmp_path, **V2, numTraining=3)
    folds = [
        {"train": ["prostate_02", "prostate_00"], "val": ["prostate_01"]},
        {"train": ["prostate_01"], "val": ["prostate_00"]},
    ]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    parts = open_set(tmp_path, "nnunet", train={}, val={})
    assert parts.train.stems == ["prostate_02@z000", "prostate_02@z001", "prostate_00@z000", "prostate_00@z001"]
    assert parts.val.stems == ["prostate_01@z000", "prostate_01@z001"]
    (tmp_path / "splits_final.json").write_text("[]")
    with pytest.raises(ValueError, match=r"splits_final\.json: expected a list of folds"):
        open_set(tmp_path, "nnunet", train={}, val={})


def test_ignored_labels_of_nnunet(tmp_path):
    write_nnunet(tmp_path, channels=1)
    labels = {"background": 0, "PZ": 1, "ignore": 2}
    describe(tmp_path, channel_names={"0": "T2"}, labels=labels, file_ending=".nii.gz")
    parts = open_set(tmp_path, "nnunet")
    assert parts.train.format.names == ("PZ",)
    assert planes_of(parts.train, 1) == [[0, 1, IGNORED], [IGNORED, 1, 0]]


def test_regions_of_nnunet_overlap(tmp_path):
    write_nnunet(tmp_path, channels=1)
    labels = {"background": 0, "gland": [1, 2], "zone": 2, "ignore": 3}
    describe(tmp_path, channel_names={"0": "T2"}, labels=labels, regions_class_order=[1, 2], file_ending=".nii.gz")
    masks = find_layout("nnunet").masks(tmp_path)
    assert masks["codec"]["values"] == {0: [], 1: ["gland"], 2: ["gland", "zone"]}
    parts = open_set(tmp_path, "nnunet")
    assert parts.train.format.names == ("gland", "zone")
    # LABELS of slice 1: 0, 1, 2 in the first row
    assert planes_of(parts.train, 1)[0] == [[0, 0], [1, 0], [1, 1]]
    unknown = LABELS.copy()
    unknown[0, 0, 1] = 3
    write_volume(tmp_path / "labelsTr" / "prostate_00.nii.gz", unknown)
    assert planes_of(open_set(tmp_path, "nnunet").train, 1)[0] == [[IGNORED, IGNORED], [1, 0], [1, 1]]


@pytest.mark.parametrize(("ending", "bands"), [(".tif", 2), (".png", 1)])
def test_nnunet_in_other_files(tmp_path, ending, bands):
    import cv2

    for case in ("img1", "img2"):
        for band in range(bands):
            write_values(tmp_path / "imagesTr" / f"{case}_{band:04d}{ending}", [[band, 1, 2], [0, 0, 0]])
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "labelsTr" / f"{case}{ending}"), np.array([[0, 1, 2], [2, 0, 0]], np.uint8))
    names = {str(band): f"band {band}" for band in range(bands)}
    describe(tmp_path, channel_names=names, labels={"background": 0, "road": 1, "car": 2}, file_ending=ending)
    parts = open_set(tmp_path, "nnunet")
    assert parts.train.read(1).image.shape == (2, 3, 2 if bands == 2 else 3)
    assert planes_of(parts.train) == [[0, 1, 2], [2, 0, 0]]


def test_nnunet_in_pictures(tmp_path):
    import cv2

    for number, case in enumerate(("img1", "img2")):
        path = tmp_path / "imagesTr" / f"{case}_0000.png"
        path.parent.mkdir(exist_ok=True)
        # red, green and blue in one file, as nnU-Net's reader of natural pictures has them
        cv2.imwrite(str(path), np.full((2, 3, 3), (9, 8, 7 + number), np.uint8))
        write_values(tmp_path / "labelsTr" / f"{case}.png", [[0, 1, 2], [0, 0, 0]])
    names = {"0": "R", "1": "G", "2": "B"}
    describe(tmp_path, channel_names=names, labels={"background": 0, "road": 1, "car": 2}, file_ending=".png")
    parts = open_set(tmp_path, "nnunet")
    assert parts.train.stems == ["img1", "img2"]
    assert parts.train.read(1).image[0, 0].tolist() == [8, 8, 9]
    assert planes_of(parts.train) == [[0, 1, 2], [0, 0, 0]]
    describe(tmp_path, channel_names=names, labels={"background": 0, "road": 1}, file_ending=".mha")
    with pytest.raises(ValueError, match=r"`file_ending` is '\.mha', expected one of \['\.nii\.gz'"):
        read_layout(tmp_path, "nnunet")
