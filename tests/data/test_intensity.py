import os

import nibabel
import numpy as np
import pytest

from segkit.data import intensity
from segkit.data.intensity import Scale, clipped, files_scale, image_scale, volume_scale


def save(path, voxels):
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def test_scale_by_hand():
    # band 0 holds 1, 3, 1, 3: mean 2, deviation 1. Band 1 holds 7 four times.
    image = np.array([[[1, 7], [3, 7]], [[1, 7], [3, 7]]], np.uint8)
    scale = image_scale(image)
    assert (scale.mean, scale.std) == ((2.0, 7.0), (1.0, 1.0))
    normalized = scale.apply(image)
    assert normalized.dtype == np.float32
    assert normalized[0].tolist() == [[-1, 0], [1, 0]]


def test_the_bands_of_neighbours_repeat():
    scale = Scale((1.0, 10.0), (2.0, 5.0))
    # slices z - 1 and z, two bands each
    assert scale.apply(np.array([[[3, 15, 5, 0]]], np.uint8)).tolist() == [[[1, 1, 2, -2]]]
    for bands in (1, 3):
        with pytest.raises(ValueError, match=f"an image of {bands} bands, but mean and deviation of 2"):
            scale.apply(np.zeros((2, 2, bands), np.uint8))


@pytest.mark.parametrize("value", [0, 0.1, -3e7, 65535])
def test_constant_images_give_zeros(value):
    image = np.full((30, 41, 2), value, np.float32)
    assert not image_scale(image).apply(image).any()


def test_small_deviations_beside_large_means_and_tiny_units():
    # Diffusion in square metres per second is about 1e-9: that is no constant image.
    for low, high in ((1e6, 1e6 + 2), (1e-9, 3e-9)):
        image = np.array([[[low], [high]]], np.float32)
        assert image_scale(image).apply(image).flatten().tolist() == pytest.approx([-1, 1], rel=1e-5)


def test_large_images_are_looked_at_in_parts(monkeypatch):
    image = np.random.default_rng(0).normal(3, 5, (37, 29, 3)).astype(np.float32)
    monkeypatch.setattr(intensity, "_AT_ONCE", 200)
    scale = image_scale(image)
    assert scale.mean == pytest.approx(image.mean((0, 1), dtype=np.float64))
    assert scale.std == pytest.approx(image.std((0, 1), dtype=np.float64))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 2)])
def test_volumes_are_one_whole(shape):
    array = np.asfortranarray(np.random.default_rng(0).integers(-900, 3000, shape).astype(np.int16))
    scale = volume_scale(array)
    bands = array.reshape(-1, *shape[3:]) if len(shape) == 4 else array.reshape(-1, 1)
    assert scale.mean == pytest.approx(bands.mean(0))
    assert scale.std == pytest.approx(bands.std(0))


def test_a_file_is_looked_at_once_until_it_changes(tmp_path, monkeypatch):
    path, asked = tmp_path / "a.nii.gz", []
    load = intensity.load_volume
    monkeypatch.setattr(intensity, "load_volume", lambda path: asked.append(path) or load(path))
    save(path, np.array([1, 3], np.uint8).reshape(1, 1, 2))
    assert [files_scale([path]).mean for _ in range(3)] == [(2.0,)] * 3
    assert len(asked) == 1
    save(path, np.array([5, 7], np.uint8).reshape(1, 1, 2))
    os.utime(path, ns=(1, 1))
    assert files_scale([path]).mean == (6.0,)


def test_a_volume_without_a_mean_names_its_file(tmp_path):
    voxels = np.zeros((2, 3, 4), np.float32)
    voxels[0, 0, 3] = np.nan
    save(tmp_path / "a.nii", voxels)
    with pytest.raises(ValueError, match=r"a\.nii: holds values that are NaN or infinite"):
        files_scale([tmp_path / "a.nii"])


def test_clipping_by_hand():
    image = np.array([[[-5, -5], [3, 3], [99, 99]]], np.float32)
    assert clipped(image, ((0, 10), (-1, 50)))[0].tolist() == [[0, -1], [3, 3], [10, 50]]
    assert clipped(image, None) is image
    deep = clipped(image.astype(np.int32).astype(np.uint16), ((1.5, 10),) * 2)
    assert deep.dtype == np.uint16
    eight = np.full((1, 1, 2), 255, np.uint8)
    assert clipped(eight, ((0, 10),) * 2) is eight  # it changes in units of 255 whatever it holds


@pytest.mark.parametrize("clip", [(1.5, 2.5), (2.25, 2.75), (-160.0, 3.5), (-9.0, -1.5), (0.5, 70000.0)])
def test_what_the_model_clips_is_what_it_would_have_clipped(clip):
    image = np.arange(6, dtype=np.uint16).reshape(1, 6, 1)
    once = clipped(image, [clip])
    assert once.dtype == np.uint16
    assert once.astype(float).clip(*clip).tolist() == image.astype(float).clip(*clip).tolist()
