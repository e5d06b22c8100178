import itertools

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from segkit.data.datasets import MaskDataset
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.grids import Grid, checked_affine, difference
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import slice_stem, volume_slice
from segkit.formats.volumes import load_volume, volume_shape

ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])
# Anisotropic and off the origin: nothing that a default would give.
RAS = np.array([[0.7, 0, 0, -20.0], [0, 0.9, 0, -11.5], [0, 0, 2.5, 7.25], [0, 0, 0, 1]])
# As a scanner has it: no axis along one of the patient's, but each closest to its own.
OBLIQUE = np.array([[0.68, -0.1, 0.2, -20.0], [0.1, 0.85, -0.4, -11.5], [-0.1, 0.3, 2.4, 7.25], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)
AXES = ["".join(names) for order in itertools.permutations(("RL", "AP", "SI")) for names in itertools.product(*order)]


def turned(array, affine, axes):
    """The same head stored along other axes, by nibabel."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape[:3])


def save(path, array, affine, **codes):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    for name, code in codes.items():
        image.header[f"{name}_code"] = code
    nibabel.save(image, path)
    return path


def head(dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 3, SHAPE).astype(dtype)


def test_there_are_48_orders():
    assert len(set(AXES)) == 48


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("affine", [RAS, OBLIQUE], ids=["straight", "oblique"])
def test_every_order_is_one_head_in_memory_and_comes_back_as_stored(affine, axes):
    stored, stored_affine = turned(head(), affine, axes)
    grid = Grid(stored.shape, stored_affine)
    assert grid.directions == axes
    assert grid.shape == SHAPE
    assert grid.spacing_mm == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0))
    np.testing.assert_array_equal(grid.from_stored(stored), head())
    np.testing.assert_array_equal(grid.to_stored(head()), stored)
    bands = np.stack([stored, -stored], -1)
    np.testing.assert_array_equal(grid.from_stored(bands)[..., 1], -head())
    assert difference(grid, Grid(SHAPE, affine)) is None


@pytest.mark.parametrize("axes", AXES)
def test_image_and_labels_stored_in_any_two_orders_pair(axes, tmp_path):
    """With labels equal to the image, whatever is turned shows."""
    save(tmp_path / "images" / "a.nii.gz", *turned(head(), RAS, axes))
    save(tmp_path / "masks" / "a.nii.gz", *turned(head(np.uint8), RAS, AXES[(AXES.index(axes) + 17) % 48]))
    for axis in "xyz":
        data = MaskDataset(
            tmp_path / "images",
            tmp_path / "masks",
            open_codec({"name": "nifti", "axis": axis}, ORGANS),
            reading=ImageReading(axis=axis),
        )
        assert len(data) == SHAPE["xyz".index(axis)]
        for index in range(len(data)):
            sample = data.read(index)
            np.testing.assert_array_equal(sample.image, sample.planes)
            np.testing.assert_array_equal(sample.planes[..., 0], volume_slice(head(), axis, index))


@pytest.mark.parametrize("axes", AXES)
def test_predictions_are_stored_as_their_image_is(axes, tmp_path):
    stored, affine = turned(head(), OBLIQUE, axes)
    image = save(tmp_path / "in" / "a.nii.gz", stored, affine, qform=1)
    codec = open_codec("nifti", ORGANS)
    truth = head(np.uint8, seed=3)
    for index in range(SHAPE[2]):
        codec.write(tmp_path, slice_stem("a", "z", index), volume_slice(truth, "z", index)[..., None], like=image)
    codec.finish(tmp_path)
    written, given = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(image)
    np.testing.assert_array_equal(np.asarray(written.dataobj), turned(truth, OBLIQUE, axes)[0])
    np.testing.assert_array_equal(written.affine, given.affine)
    np.testing.assert_array_equal(written.header.get_qform(), given.header.get_qform())
    assert (written.header["sform_code"], written.header["qform_code"]) == (2, 1)
    codec.check_like(tmp_path, "a@z000", image)
    np.testing.assert_array_equal(codec.read(tmp_path, "a@z003")[..., 0], truth[:, :, 3].T)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_the_array_in_memory_is_that_of_nibabel(axes, tmp_path):
    path = save(tmp_path / "a.nii", *turned(head(), OBLIQUE, axes))
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.array, np.asarray(canonical.dataobj))
    assert volume.spacing_mm == pytest.approx(canonical.header.get_zooms())
    assert volume.array.flags.f_contiguous


def test_the_qform_counts_where_there_is_no_sform(tmp_path):
    stored, affine = turned(head(), RAS, "LPS")
    path = save(tmp_path / "a.nii", stored, affine, qform=1, sform=0)
    np.testing.assert_array_equal(load_volume(path).array, head())


def test_units_are_brought_to_mm(tmp_path):
    image = nibabel.Nifti1Image(head(), np.diag([500.0, 600, 700, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert load_volume(tmp_path / "a.nii").spacing_mm == pytest.approx((0.5, 0.6, 0.7))


# Files that do not say how the patient lies --------------------------------------------------------------


def unknown(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((0.7, 0.9, 2.5))
    nibabel.save(image, path)
    assert (nibabel.load(path).header["qform_code"], nibabel.load(path).header["sform_code"]) == (0, 0)
    return path


def test_without_orientation_the_stored_order_counts_on_both_sides(tmp_path):
    """nibabel would flip x: it takes such files for LAS."""
    unknown(tmp_path / "images" / "a.nii", head())
    unknown(tmp_path / "masks" / "a.nii", head(np.uint8))
    sample = MaskDataset(tmp_path / "images", tmp_path / "masks", open_codec("nifti", ORGANS)).read(2)
    np.testing.assert_array_equal(sample.image[..., 0], head()[:, :, 2].T)
    np.testing.assert_array_equal(sample.planes, sample.image)
    assert sample.spacing_mm == pytest.approx((0.9, 0.7))


def test_labels_of_an_image_without_orientation_have_none_either(tmp_path):
    image = unknown(tmp_path / "in.nii", head())
    codec = open_codec("nifti", ORGANS)
    for index in range(SHAPE[2]):
        codec.write(tmp_path / "out", f"a@z{index:03d}", head(np.uint8)[:, :, index].T[..., None], like=image)
    codec.finish(tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert (written.header["qform_code"], written.header["sform_code"]) == (0, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), head())


def test_one_side_without_orientation_pairs_only_where_nothing_is_turned(tmp_path):
    labels = unknown(tmp_path / "masks" / "a.nii", head(np.uint8))
    codec = open_codec("nifti", ORGANS)
    codec.check_like(labels.parent, "a@z000", save(tmp_path / "ras.nii", head(), RAS))
    lps = save(tmp_path / "lps.nii", *turned(head(), RAS, "LPS"))
    with pytest.raises(ValueError, match=r"a\.nii: does not lie on .*lps\.nii: one is stored as LPS, the other does"):
        codec.check_like(labels.parent, "a@z000", lps)


@pytest.mark.parametrize("broken", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((3, 4))])
def test_a_header_that_places_no_voxels_is_refused(broken, tmp_path):
    path = save(tmp_path / "a.nii", head(), RAS)
    content = bytearray(path.read_bytes())
    content[280:328] = broken.astype("<f4").tobytes()  # srow_x, srow_y, srow_z of the NIfTI-1 header
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii: "):
        volume_shape(path)


def test_small_voxels_are_no_fault(tmp_path):
    np.testing.assert_array_equal(checked_affine(np.diag([1e-4, 1e-4, 1e-4, 1]), tmp_path)[0, 0], 1e-4)


# Image and labels that do not belong together --------------------------------------------------------------


def moved(x_mm=0.0, x_scale=1.0):
    affine = RAS.copy()
    affine[0, 3] += x_mm
    affine[0, 0] *= x_scale
    return affine


@pytest.mark.parametrize(
    ("affine", "shape", "said"),
    [
        (moved(0.1), SHAPE, None),  # a seventh of a voxel
        (moved(x_scale=1.05), SHAPE, None),  # 0.15 voxels at the fourth
        (moved(0.35), SHAPE, r"lies 0\.35 mm \(0\.5 voxels\) beside"),  # corners taken for centres
        (moved(0.7), SHAPE, r"lies 0\.7 mm \(1 voxels\) beside .*first at \(-19\.3, -11\.5, 7\.25\)"),
        (moved(x_scale=1.2), SHAPE, r"voxel \(3, 0, 0\) lies 0\.42 mm \(0\.6 voxels\) beside .*0\.84 x 0\.9 x 2\.5 mm"),
        (RAS, (4, 5, 7), r"it has 4 x 5 x 7 voxels along x, y, z, and the other 4 x 5 x 6"),
        (np.eye(4), SHAPE, r"stored as RAS with voxels of 1 x 1 x 1 mm, first at \(0, 0, 0\)"),
    ],
)
def test_labels_beside_their_image_are_refused_with_the_numbers(affine, shape, said, tmp_path):
    image = save(tmp_path / "images" / "a.nii", head(), RAS)
    save(tmp_path / "masks" / "a.nii", np.zeros(shape, np.uint8), affine)
    codec = open_codec("nifti", ORGANS)
    if said is None:
        codec.check_like(tmp_path / "masks", "a@z001", image)
        return
    with pytest.raises(ValueError, match=rf"masks/a\.nii: does not lie on the voxels of .*images/a\.nii: .*{said}"):
        codec.check_like(tmp_path / "masks", "a@z001", image)
    ignoring = open_codec({"name": "nifti", "geometry": "ignore"}, ORGANS)
    ignoring.check_like(tmp_path / "masks", "a@z001", image)
    assert open_codec(ignoring.to_spec(), ORGANS) == ignoring != codec


def test_a_data_set_finds_moved_labels_when_it_is_checked(tmp_path):
    save(tmp_path / "images" / "a.nii", head(), RAS)
    save(tmp_path / "masks" / "a.nii", head(np.uint8), moved(5))
    data = MaskDataset(tmp_path / "images", tmp_path / "masks", open_codec("nifti", ORGANS))
    with pytest.raises(ValueError, match=r"6 faults in 6 samples.*\n.*lies 5 mm"):
        data.verify()
    save(tmp_path / "masks" / "a.nii", head(np.uint8), RAS)
    assert data.verify() == {(5, 4): 6}


def test_an_unknown_geometry_is_refused():
    with pytest.raises(ValueError, match="geometry is 'guess': expected check or ignore"):
        open_codec({"name": "nifti", "geometry": "guess"}, ORGANS)


# Real volumes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "labels", "axes"),
    [
        ("hippocampus/val/images/*.nii.gz", "hippocampus/val/labels/*.nii.gz", "RAS"),
        ("brats3d/*0003*/*_flair.nii.gz", "brats3d/*0003*/*_seg.nii.gz", "LPS"),
        ("brats3d/*0005*/*_t1c.nii.gz", "brats3d/*0005*/*_seg.nii.gz", "LPS"),
        ("mni152/t1.nii.gz", "mni152/tissue.nii.gz", "RAS"),
        ("totalseg_example/ct_image.nii.gz", "totalseg_example/ct_label.nii.gz", "RAS"),
    ],
)
def test_real_pairs_lie_on_each_other_and_turned_copies_are_the_same(image, labels, axes, shared_data, tmp_path):
    paths = [sorted(shared_data.glob(pattern)) for pattern in (image, labels)]
    if not all(paths):
        pytest.skip(f"{image} is not here")
    path, labels_path = paths[0][0], paths[1][0]
    given = nibabel.load(labels_path)
    assert "".join(nibabel.aff2axcodes(given.affine)) == axes
    turned_stored, turned_affine = turned(
        np.asarray(nibabel.as_closest_canonical(given).dataobj), nibabel.as_closest_canonical(given).affine, "PIR"
    )
    save(tmp_path / "a.nii.gz", turned_stored, turned_affine)
    codec = open_codec("nifti", MaskFormat.multiclass(range(120)))
    codec.check_like(tmp_path, "a@z000", path)
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz").array, load_volume(labels_path).array)
    assert volume_shape(path) == volume_shape(labels_path) == load_volume(path).array.shape
