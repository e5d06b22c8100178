"""Samples whose image and mask are named differently, as data sets name them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segkit.data.datasets import MaskDataset
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from tests.data.stand_in import FORMAT, StandInCodec

CODEC = StandInCodec(FORMAT)


def write_image(path: Path, value: int, depth: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((4, 6), value, depth))


def write_mask(root: Path, name: str, value: int) -> None:
    CODEC.write(root, name, np.full((4, 6, 1), value, np.uint8))


@pytest.fixture
def city(tmp_path):
    """Two towns; beside each image and mask lies one of another kind."""
    for number, stem in enumerate(("aachen/aachen_1", "aachen/aachen_2", "bonn/bonn_1")):
        write_image(tmp_path / "images" / f"{stem}_left.png", 10 * number)
        write_image(tmp_path / "images" / f"{stem}_right.png", 200)
        write_mask(tmp_path / "masks", f"{stem}_ids", number)
        write_mask(tmp_path / "masks", f"{stem}_colours", 3)
    return tmp_path


def open_city(root: Path, **options) -> MaskDataset:
    return MaskDataset(
        root / "images", root / "masks", CODEC, image_pattern="{stem}_left", mask_pattern="{stem}_ids", **options
    )


def test_patterns_pair_what_is_named_differently(city):
    ds = open_city(city)
    assert ds.stems == ["aachen/aachen_1", "aachen/aachen_2", "bonn/bonn_1"]
    assert [(s.image.max(), s.planes.max()) for s in map(ds.read, range(3))] == [(0, 0), (10, 1), (20, 2)]
    assert ds.read(2).stem == "bonn/bonn_1"
    assert (ds.image_path(1), ds.mask_stem(1), ds.prediction_stem(1)) == (
        city / "images" / "aachen" / "aachen_2_left.png",
        "aachen/aachen_2_ids",
        "aachen/aachen_2_left",
    )
    small = ds.subset(["bonn/bonn_1", "aachen/aachen_1"])
    assert [(s.image.max(), s.planes.max()) for s in map(small.read, range(2))] == [(20, 2), (0, 0)]


def test_lists_and_quarantine_name_samples_or_the_files_of_images(city):
    assert open_city(city, stems=["bonn/bonn_1", "aachen/aachen_1_left.png"]).stems == [
        "bonn/bonn_1",
        "aachen/aachen_1",
    ]
    ds = open_city(city, quarantine=["aachen/aachen_2", "bonn/bonn_1_left", "bonn/bonn_9"])
    assert (ds.stems, ds.quarantined) == (["aachen/aachen_1"], ["aachen/aachen_2", "bonn/bonn_1"])
    assert ds.quarantine_unknown == ["bonn/bonn_9"]


def test_a_sample_that_looks_like_a_file_of_another_is_itself(tmp_path):
    # nnU-Net calls the image of `case_0000` `case_0000_0000`.
    for number in range(3):
        write_image(tmp_path / "images" / f"case_{number:04d}_0000.png", number)
        write_mask(tmp_path / "masks", f"case_{number:04d}", number)

    def stems(**options) -> list[str]:
        folders = tmp_path / "images", tmp_path / "masks"
        return MaskDataset(*folders, CODEC, image_pattern="{stem}_0000", **options).stems

    assert stems(stems=["case_0002", "case_0000"]) == ["case_0002", "case_0000"]
    assert stems(stems=["case_0001_0000.png"]) == ["case_0001"]
    assert stems(quarantine=["case_0000"]) == ["case_0001", "case_0002"]


def test_what_lacks_its_other_side_is_named_by_sample_and_by_mask(city):
    (city / "masks" / "aachen" / "aachen_1_ids.npy").unlink()
    (city / "images" / "bonn" / "bonn_1_left.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images .*: aachen/aachen_1; 1 masks .*: bonn/bonn_1_ids\. Add what"):
        open_city(city)


def test_patterns_that_match_nothing_show_what_is_there(city):
    with pytest.raises(
        ValueError, match=r"names match '\{stem\}_front' \(there are: aachen/aachen_1_left, .*\(6 in all\)\)"
    ):
        MaskDataset(city / "images", city / "masks", CODEC, image_pattern="{stem}_front")
    with pytest.raises(
        ValueError, match=r"no masks here that the codec 'stand_in' reads and whose names match '\{stem"
    ):
        MaskDataset(city / "images", city / "masks", CODEC, mask_pattern="{stem}_front")
    with pytest.raises(ValueError, match="say how they differ with `image_pattern` and `mask_pattern`"):
        MaskDataset(city / "images", city / "masks", CODEC, stems=["bonn/bonn_1_left"])


@pytest.mark.parametrize(("image", "mask"), [("{stem}", "{stem}_mask"), ("{stem}_image", "{stem}")])
def test_images_and_masks_may_share_a_folder(tmp_path, image, mask):
    for stem, value in (("a", 1), ("b", 2)):
        write_image(tmp_path / f"{image.format(stem=stem)}.png", 100 * value)
        write_image(tmp_path / f"{mask.format(stem=stem)}.png", value)
    codec = open_codec("index_png", FORMAT)
    ds = MaskDataset(tmp_path, tmp_path, codec, image_pattern=image, mask_pattern=mask)
    assert ds.stems == ["a", "b"]
    assert [(s.image.max(), s.planes.max()) for s in ds] == [(100, 1), (200, 2)]


def write_bands(root: Path) -> None:
    for stem, values in {"a": (1, 2), "town/b": (3, 4)}.items():
        for band, value in zip(("red", "nir"), values, strict=True):
            write_image(root / "images" / f"{stem}_{band}.png", value)
        write_mask(root / "masks", stem, 1)


def open_bands(root: Path, bands: tuple[str, ...] = ("nir", "red"), **options) -> MaskDataset:
    return MaskDataset(root / "images", root / "masks", CODEC, image_pattern="{stem}_{band}", bands=bands, **options)


def test_bands_that_lie_in_files_of_their_own_are_joined_in_order(tmp_path):
    write_bands(tmp_path)
    ds = open_bands(tmp_path)
    assert ds.stems == ["a", "town/b"]
    assert ds.read(1).image.shape == (4, 6, 2)
    assert ds.read(1).image[0, 0].tolist() == [4, 3]
    assert open_bands(tmp_path, ("red", "nir")).read(1).image[0, 0].tolist() == [3, 4]
    assert ds.prediction_stem(1) == "town/b"
    # the reading of one data set reads another
    again = MaskDataset(tmp_path / "images", tmp_path / "masks", CODEC, reading=ds.reading)
    assert again.read(0).image[0, 0].tolist() == [2, 1]


def test_colour_files_among_bands_keep_their_colours(tmp_path):
    write_bands(tmp_path)
    for stem in ("a", "town/b"):
        colours = np.zeros((4, 6, 3), np.uint8) + np.array([30, 20, 10], np.uint8)  # OpenCV writes blue first
        cv2.imwrite(str(tmp_path / "images" / f"{stem}_red.png"), colours)
    assert open_bands(tmp_path).read(0).image[0, 0].tolist() == [2, 10, 20, 30]


def test_a_missing_band_is_named_and_can_be_left_out(tmp_path):
    write_bands(tmp_path)
    (tmp_path / "images" / "a_nir.png").unlink()
    with pytest.raises(ValueError, match=r"1 faults in 2 samples(.|\n)*a_red\.png: the image has no file .*\['nir'\]"):
        open_bands(tmp_path).verify()
    assert open_bands(tmp_path, quarantine=["a"]).verify() == {(4, 6): 1}
    # As where `predict` was given one file of an image, and the other lies beside it.
    with pytest.raises(ValueError, match=r"among those given.*takes all files of an image"):
        open_bands(tmp_path).read(0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"a_red\.png: is 4x5 \(height x width\) of uint8, but a_nir\.png is 4x6"),
        (np.zeros((4, 6), np.uint16), r"a_red\.png: is 4x6 .* of uint16, but a_nir\.png is 4x6 .* of uint8"),
    ],
)
def test_bands_that_differ_are_named(tmp_path, other, message):
    write_bands(tmp_path)
    cv2.imwrite(str(tmp_path / "images" / "a_red.png"), other)
    with pytest.raises(ValueError, match=message):
        open_bands(tmp_path).read(0)


def write_volume(path: Path, array: np.ndarray, corner_mm: float = 0) -> None:
    import nibabel

    affine = np.diag([2.0, 3, 4, 1])
    affine[0, 3] = corner_mm
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def test_bands_of_volumes_are_joined_slice_by_slice(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {band: rng.integers(0, 900, (4, 5, 3)).astype(np.int16) for band in ("0000", "0001")}
    for band, array in arrays.items():
        write_volume(tmp_path / "images" / f"case_{band}.nii.gz", array)
    labels = rng.integers(0, 4, (4, 5, 3)).astype(np.uint8)
    write_volume(tmp_path / "masks" / "case_seg.nii.gz", labels)
    options = {"image_pattern": "{stem}_{band}", "bands": ["0000", "0001"], "mask_pattern": "{stem}_seg"}
    codec = open_codec("nifti", FORMAT)
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec, **options)
    assert ds.stems == ["case@z000", "case@z001", "case@z002"]
    sample = ds.read(2)
    for number, band in enumerate(("0000", "0001")):
        np.testing.assert_array_equal(sample.image[..., number], arrays[band][:, :, 2].T)
    np.testing.assert_array_equal(sample.planes[..., 0], labels[:, :, 2].T)
    assert sample.spacing_mm == (3, 2)
    write_volume(tmp_path / "images" / "case_0001.nii.gz", arrays["0001"], corner_mm=7)
    with pytest.raises(ValueError, match=r"case_0001\.nii\.gz: does not lie on the voxels of .*case_0000\.nii\.gz: "):
        ds.read(0)


def test_a_copy_knows_patterns_and_every_file(city, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    write_bands(tmp_path / "bands")
    ds = open_bands(tmp_path / "bands")
    origin = ds._origin()
    assert sorted(origin.image_files) == ["a_nir.png", "a_red.png", "town/b_nir.png", "town/b_red.png"]
    assert origin.fingerprint != open_bands(tmp_path / "bands", ("red", "nir"))._origin().fingerprint
    streets = open_city(city)
    assert sorted(streets._origin().mask_files) == [f"{s}_ids.npy" for s in streets.stems]
    copy = streets.cached("disk").subset(["bonn/bonn_1"])
    assert (copy.read(0).image.max(), copy.read(0).planes.max()) == (20, 2)


def test_a_copy_of_masks_in_one_file_knows_which_of_them(city):
    class OneFile(StandInCodec):
        def files(self, root, stem):
            return [city / "masks" / "bonn" / "bonn_1_ids.npy"]

    def origin(mask_pattern):
        folders = city / "images", city / "masks"
        patterns = {"image_pattern": "{stem}_left", "mask_pattern": mask_pattern}
        return MaskDataset(*folders, OneFile(FORMAT), **patterns)._origin()

    ids, colours = origin("{stem}_ids"), origin("{stem}_colours")
    assert (ids.image_files, ids.mask_files) == (colours.image_files, colours.mask_files)
    assert ids.fingerprint != colours.fingerprint


def test_a_reading_drops_names_for_new_images_but_keeps_bands():
    named = ImageReading(axis="x").named("{stem}_left", None)
    assert named.for_new_images() == ImageReading(axis="x")
    joined = named.named("{stem}_{band}", ["a", "b"])
    assert joined.for_new_images() == joined == ImageReading(axis="x", pattern="{stem}_{band}", bands=("a", "b"))
