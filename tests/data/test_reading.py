import os

import cv2
import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from segkit.data.datasets import MaskDataset
from segkit.data.images import ImageRef
from segkit.data.reading import ImageReading
from segkit.formats import dicom_files
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.bundle import load_model, save_bundle
from tests.dicoms import write_series
from tests.scenes import FORMATS, write_set

RAS = np.diag([0.7, 0.9, 2.5, 1])
VOXELS = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(np.uint8)


def save(path, voxels):
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, [0, 0, 0, 1, 2]), (1, [0, 0, 1, 2, 3]), (3, [1, 2, 3, 4, 5]), (5, [3, 4, 5, 5, 5])],
)
def test_neighbours_are_bands_in_order_and_the_ends_are_repeated(index, expected, tmp_path):
    save(tmp_path / "a.nii", VOXELS)
    reading = ImageReading(neighbours=2)
    image = reading.read(reading.find(tmp_path)[f"a@z{index:03d}"])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, VOXELS[:, :, expected].transpose(1, 0, 2))


def test_neighbours_across_another_axis(tmp_path):
    save(tmp_path / "a.nii", VOXELS)
    reading = ImageReading(axis="x", neighbours=1)
    image = reading.read(reading.find(tmp_path)["a@x003"])
    np.testing.assert_array_equal(image, VOXELS[[2, 3, 3]].transpose(2, 1, 0))


def test_bands_of_one_slice_stay_together(tmp_path):
    voxels = np.stack([VOXELS, 255 - VOXELS], -1)
    save(tmp_path / "a.nii", voxels)
    reading = ImageReading(neighbours=1)
    image = reading.read(reading.find(tmp_path)["a@z002"])
    expected = [voxels[:, :, z, band].T for z in (1, 2, 3) for band in (0, 1)]
    np.testing.assert_array_equal(image, np.stack(expected, -1))
    np.testing.assert_array_equal(reading.without_neighbours(image), voxels[:, :, 2].transpose(1, 0, 2))
    np.testing.assert_array_equal(ImageReading().without_neighbours(image), image)


def test_a_picture_has_no_neighbours(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), VOXELS[:, :, 0])
    with pytest.raises(ValueError, match=r"a\.png: no slice of a volume, so it has no neighbours, .* takes 1 on"):
        ImageReading(neighbours=1).read(ImageRef(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="neighbours is -1"):
        ImageReading(neighbours=-1)


def test_a_bundle_keeps_the_neighbours(tmp_path):
    model = build_model("unet", "resnet18", FORMATS["exclusive"], weights=None, in_channels=5)
    model.reading = ImageReading(axis="y", neighbours=2)
    save_bundle(model, tmp_path / "m")
    assert load_model(tmp_path / "m").reading == ImageReading(axis="y", neighbours=2)


RNG = np.random.default_rng(0)
UNEVEN = RNG.integers(0, 250, (9, 7, 4)).astype(np.uint8)
UNEVEN[:, :, 2] //= 3  # a darker slice


def read_all(reading, root):
    return {stem: reading.read(ref) for stem, ref in reading.find(root).items()}


def test_stored_values_stay_unless_asked(tmp_path):
    save(tmp_path / "a.nii.gz", UNEVEN)
    read = read_all(ImageReading(), tmp_path)
    assert np.array_equal(read["a@z002"], UNEVEN[:, :, 2].T[..., None])
    assert read["a@z002"].dtype == np.uint8


def test_slices_of_a_volume_share_its_mean(tmp_path):
    save(tmp_path / "a.nii.gz", UNEVEN)
    read = read_all(ImageReading(normalize="volume"), tmp_path)
    together = np.concatenate([image.ravel() for image in read.values()])
    assert together.dtype == np.float32
    assert (together.mean(), together.std()) == pytest.approx((0, 1), abs=1e-5)
    assert read["a@z002"].mean() < -0.5  # the dark slice stays dark
    alone = read_all(ImageReading(normalize="image"), tmp_path)["a@z002"]
    assert (alone.mean(), alone.std()) == pytest.approx((0, 1), abs=1e-5)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_depth_and_range_of_a_volume_mean_nothing(tmp_path, axis):
    save(tmp_path / "a.nii.gz", UNEVEN)
    save(tmp_path / "b.nii.gz", UNEVEN.astype(np.float32) * 11 - 300)
    read = read_all(ImageReading(normalize="volume", axis=axis), tmp_path)
    for stem, image in read.items():
        if stem.startswith("a@"):
            assert np.allclose(image, read[stem.replace("a@", "b@")], atol=1e-5)


def test_a_picture_is_its_own_volume(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), RNG.integers(0, 99, (8, 9, 3)).astype(np.uint8))
    image, volume = (read_all(ImageReading(normalize=word), tmp_path)["a"] for word in ("image", "volume"))
    assert np.array_equal(image, volume)
    assert np.allclose(image.mean((0, 1)), 0, atol=1e-6)
    assert np.allclose(image.std((0, 1)), 1, atol=1e-6)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="normalize is 'slice': expected dataset, image or volume"):
        ImageReading(normalize="slice")


def test_crops_come_after_the_mean_of_the_image(tmp_path):
    """The dark half of an image, cut out, would have a mean of 0 as well if each crop were normalised."""
    data = write_set(tmp_path, FORMATS["exclusive"], 1)
    image = np.full((40, 56, 3), 200, np.uint8)
    image[:, :28] = 100
    cv2.imwrite(str(data.image_path(0)), image)
    data = MaskDataset(data.images, data.masks, data.codec, reading=ImageReading(normalize="image"), resize=[20, 28])
    # 100 and 200, half and half: mean 150, deviation 50
    assert data[0].image[:, :12].mean() == pytest.approx(-1)
    assert data[0].image[:, 16:].mean() == pytest.approx(1)


def test_a_cache_holds_what_was_read_and_each_way_of_reading_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dicom_files, "_LOOK_AGAIN_S", 1e-6)
    codec = open_codec("nifti", MaskFormat.multiclass(["sky", "ground", "disc"]))
    plain = write_set(tmp_path / "data", codec.format, 3, codec=codec)
    for word in ("dataset", "image", "volume"):
        data = MaskDataset(plain.images, plain.masks, codec, reading=ImageReading(normalize=word))
        cached = data.cached()
        assert all(np.array_equal(cached[i].image, data[i].image) for i in range(3))
        assert [cached[i].spacing_mm for i in range(3)] == [data[i].spacing_mm for i in range(3)]
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 3


# Files with a band each --------------------------------------------------------------------------------------


def turned(path, voxels, axes, affine=RAS):
    """Save what is `voxels` in RAS order along other axes."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(apply_orientation(voxels, change), affine @ inv_ornt_aff(change, voxels.shape))
    nibabel.save(image, path)


def open_bands(root, **options):
    return MaskDataset(
        root / "images",
        root / "masks",
        open_codec("nifti", MaskFormat.multiclass(range(4))),
        image_pattern="{stem}_{band}",
        mask_pattern="{stem}_seg",
        bands=("t1", "flair"),
        **options,
    )


def test_bands_in_files_of_any_order_with_neighbours(tmp_path):
    turned(tmp_path / "images" / "p_flair.nii.gz", VOXELS + 1, "LPS")
    turned(tmp_path / "images" / "p_t1.nii.gz", VOXELS, "SAR")
    turned(tmp_path / "masks" / "p_seg.nii.gz", VOXELS % 4, "PIR")
    data = open_bands(tmp_path, reading=ImageReading(neighbours=1))
    assert data.stems == [f"p@z{z:03d}" for z in range(6)]
    sample = data.read(5)
    expected = [VOXELS[:, :, z].T + band for z in (4, 5, 5) for band in (0, 1)]
    np.testing.assert_array_equal(sample.image, np.stack(expected, -1))
    np.testing.assert_array_equal(sample.planes[..., 0], VOXELS[:, :, 5].T % 4)


def test_bands_and_labels_that_lie_elsewhere_are_named(tmp_path):
    moved = RAS.copy()
    moved[2, 3] = 5
    turned(tmp_path / "images" / "p_flair.nii.gz", VOXELS, "LPS", moved)
    turned(tmp_path / "images" / "p_t1.nii.gz", VOXELS, "LPS")
    turned(tmp_path / "masks" / "p_seg.nii.gz", VOXELS % 4, "RAS")
    with pytest.raises(ValueError, match=r"p_flair\.nii\.gz: does not lie on the voxels of .*p_t1\.nii\.gz: .*5 mm"):
        open_bands(tmp_path).read(0)
    turned(tmp_path / "images" / "p_flair.nii.gz", VOXELS, "LPS")
    turned(tmp_path / "masks" / "p_seg.nii.gz", VOXELS % 4, "RAS", moved)
    with pytest.raises(ValueError, match=r"p_seg\.nii\.gz: does not lie on the voxels of .*p_t1\.nii\.gz: .*5 mm"):
        open_bands(tmp_path).read(0)


# DICOM -------------------------------------------------------------------------------------------------------


def test_a_decoded_copy_is_made_anew_when_one_slice_of_a_series_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dicom_files, "_LOOK_AGAIN_S", 1e-6)
    affine = np.diag([-0.7, -0.9, 2.5, 1])
    write_series(tmp_path / "images" / "p", VOXELS, affine)
    codec = open_codec("nifti", MaskFormat.multiclass(range(256)))
    (tmp_path / "masks").mkdir()
    nibabel.save(nibabel.Nifti1Image(VOXELS, affine), tmp_path / "masks" / "p.nii.gz")
    data = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    ref = data.reading.find(tmp_path / "images")["p@z000"]
    assert [path.name for path in ref.files] == [f"{k:03d}.dcm" for k in range(6)]
    sample = data.cached().read(2)
    np.testing.assert_array_equal(sample.image, sample.planes)
    path = tmp_path / "images" / "p" / "002.dcm"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    changed = data.cached().read(2)
    assert np.count_nonzero(changed.image != sample.image) == 1
