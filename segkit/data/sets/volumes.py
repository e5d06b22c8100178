"""Volumes that a file `dataset.json` describes: Medical Segmentation Decathlon and nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segkit.data.patterns import BAND, STEM
from segkit.data.sets.layout import Layout, Part
from segkit.formats.json_files import read_json
from segkit.formats.mask_format import BACKGROUND
from segkit.formats.nifti_slices import nifti_case_name

_DESCRIPTION = "dataset.json"
_SPLITS = "splits_final.json"
_IGNORE = "ignore"
_CODECS = {".nii.gz": "nifti", ".nii": "nifti", ".png": "index_png", ".tif": "tiff", ".tiff": "tiff"}


class Decathlon(Layout):
    """`imagesTr/case.nii.gz` with `labelsTr/case.nii.gz`, both listed in `dataset.json`.

    Several modalities are bands of one file. Labels of the test part are not given out.
    """

    expects = "dataset.json with a list `training`, imagesTr and labelsTr (a folder such as Task04_Hippocampus)"

    def parts(self, root: Path) -> dict[str, Part]:
        described = _described(root)
        if described is None or not isinstance(described.get("training"), list) or _files_have_numbers(root):
            return {}
        return {"train": Part(root / "imagesTr", root / "labelsTr", [_case(e, root) for e in described["training"]])}

    def masks(self, root: Path) -> dict[str, Any]:
        return _masks_of(_labels(_needed(root, self.expects), root), ".nii.gz")


class NnUnet(Layout):
    """nnU-Net's raw folders: `imagesTr/case_0000.nii.gz`, `imagesTr/case_0001.nii.gz` with `labelsTr/case.nii.gz`.

    Both versions of `dataset.json` are read: channels, labels, regions, `ignore` and the kind of file. Fold 0 of
    `splits_final.json` gives train and val, where that file lies beside it.
    """

    expects = (
        "dataset.json, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz (a folder such as Dataset004_Hippocampus)"
    )

    def parts(self, root: Path) -> dict[str, Part]:
        described = _described(root)
        if described is None or not _files_have_numbers(root):
            return {}
        names = _channels(described, root)
        found = {"train": Part(root / "imagesTr", root / "labelsTr", **names)}
        splits = root / _SPLITS
        if splits.is_file():
            first = _first_fold(splits)
            found = {
                name: Part(root / "imagesTr", root / "labelsTr", first[name], **names) for name in ("train", "val")
            }
        if (root / "imagesTs").is_dir() and (root / "labelsTs").is_dir():
            found["test"] = Part(root / "imagesTs", root / "labelsTs", **names)
        return found

    def masks(self, root: Path) -> dict[str, Any]:
        described = _needed(root, self.expects)
        return _masks_of(_labels(described, root), _file_ending(described, root))


def _described(root: Path) -> dict[str, Any] | None:
    """What `dataset.json` says; None where it is missing, or is not about such a set."""
    path = root / _DESCRIPTION
    if not path.is_file() or not (root / "imagesTr").is_dir() or not (root / "labelsTr").is_dir():
        return None
    described = read_json(path)
    return described if "labels" in described else None


def _needed(root: Path, expects: str) -> dict[str, Any]:
    described = _described(root)
    if described is None:
        raise ValueError(f"{root}: is not described by a file {_DESCRIPTION}. Expected: {expects}.")
    return described


def _files_have_numbers(root: Path) -> bool:
    """Whether names of images end in the number of a channel, as nnU-Net's do, and not in that of a case."""
    images = (root / "imagesTr").glob("[!.]*_0000.*")
    return any(not (root / "labelsTr" / path.name).exists() for path in images)


def _case(entry: Any, root: Path) -> str:
    """Name of a case from `{image: ./imagesTr/case.nii.gz, label: ...}`."""
    name = nifti_case_name(entry["image"]) if isinstance(entry, dict) and isinstance(entry.get("image"), str) else None
    if name is None:
        raise ValueError(
            f"{root / _DESCRIPTION}: `training` lists {entry!r}, expected {{image: ./imagesTr/CASE.nii.gz, ...}}."
        )
    return name


def _labels(described: Mapping[str, Any], root: Path) -> dict[str, list[int]]:
    """Name -> values of a class, in the order given; a region has several values."""
    given = described["labels"]
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{root / _DESCRIPTION}: `labels` is {given!r}, expected {{background: 0, NAME: VALUE, ...}}.")
    # The Decathlon and the first nnU-Net write VALUE: NAME.
    pairs = [(n, v) if not str(n).isdecimal() else (v, n) for n, v in given.items()]
    labels: dict[str, list[int]] = {}
    for name, value in pairs:
        values = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not all(str(v).isdecimal() for v in values):
            raise ValueError(f"{root / _DESCRIPTION}: `labels` maps {name!r} to {value!r}, expected whole numbers.")
        labels[name] = [int(v) for v in values]
    return labels


def _masks_of(labels: dict[str, list[int]], ending: str) -> dict[str, Any]:
    """The section `masks` of a config for labels of which each pixel holds one value."""
    ignored = labels.pop(_IGNORE, [])
    if any(len(values) > 1 for values in labels.values()):
        return _region_masks(labels, ignored, ending)
    values = {value: name for name, (value,) in labels.items()}
    foreground = [name for value, name in values.items() if value != 0]
    if len(foreground) == 1 and 0 in values:
        values[0] = BACKGROUND
        return _section("binary", foreground, values, ignored, ending)
    return _section("multiclass", list(values.values()), values, ignored, ending)


def _region_masks(labels: dict[str, list[int]], ignored: list[int], ending: str) -> dict[str, Any]:
    """Regions overlap: each value names all regions that it lies in."""
    regions = {name: values for name, values in labels.items() if values != [0]}
    known = sorted({0, *(value for values in regions.values() for value in values)})
    values = {value: [name for name, held in regions.items() if value in held] for value in known}
    return _section("multilabel", list(regions), values, ignored, ending)


def _section(
    format: str, classes: list[str], values: Mapping[int, Any], ignored: list[int], ending: str
) -> dict[str, Any]:
    section: dict[str, Any] = {"format": format, "classes": classes}
    section["codec"] = {"name": _CODECS[ending], "values": dict(values)}
    return section | ({"ignored_values": ignored} if ignored else {})


def _file_ending(described: Mapping[str, Any], root: Path) -> str:
    ending = described.get("file_ending", ".nii.gz")
    if ending not in _CODECS:
        raise ValueError(
            f"{root / _DESCRIPTION}: `file_ending` is {ending!r}, expected one of {list(_CODECS)}. Convert the files."
        )
    return ending


def _channels(described: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """How images are named: one file per channel, or one file that holds all of them."""
    names = described.get("channel_names", described.get("modality", {}))
    numbers = [f"{number:04d}" for number in range(len(names))]
    ending = _file_ending(described, root)
    if len(numbers) > 1 and any((root / "imagesTr").glob(f"*_{numbers[1]}{ending}")):
        return {"image_pattern": f"{STEM}_{BAND}", "bands": tuple(numbers)}
    return {"image_pattern": f"{STEM}_0000"}


def _first_fold(path: Path) -> dict[str, list[str]]:
    """Cases of train and val."""
    try:
        first = json.loads(path.read_text(encoding="utf-8"))[0]
        return {name: [str(case) for case in first[name]] for name in ("train", "val")}
    except (OSError, ValueError, LookupError, TypeError):
        raise ValueError(f"{path}: expected a list of folds, each {{train: [CASE, ...], val: [CASE, ...]}}.") from None
