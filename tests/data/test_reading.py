import cv2
import nibabel
import numpy as np
import pytest

from segkit.data.images import ImageRef
from segkit.data.reading import ImageReading
from segkit.models.builder import build_model
from segkit.models.bundle import load_model, save_bundle
from tests.scenes import FORMATS

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
