import itertools
import sys

import imagecodecs
import nibabel
import numpy as np
import pytest

from segkit.data.images import find_images, image_spacing_mm, read_image
from segkit.formats import dicom_files, volumes
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.volumes import (
    is_volume,
    join_series,
    load_volume,
    misplaced,
    volume_grid,
    volume_name,
    volume_shape,
)
from segkit.inference.inputs import find_inputs
from tests.dicoms import RADIOGRAPH, data_set, places, save, write_multi_frame, write_series

pydicom = pytest.importorskip("pydicom")

ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])
# A scanner's axial slices: rows to the left, columns to the back, slices to the head; 0.7 x 0.9 x 2.5 mm.
LPS = np.array([[-0.7, 0, 0, 20.0], [0, -0.9, 0, 11.5], [0, 0, 2.5, -7.25], [0, 0, 0, 1]])
# 20 degrees about x and 10 about z, as of a tilted head.
TURN = np.eye(4)
TURN[:3, :3] = np.array([[np.cos(0.17), -np.sin(0.17), 0], [np.sin(0.17), np.cos(0.17), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(0.35), -np.sin(0.35)], [0, np.sin(0.35), np.cos(0.35)]]
)
OBLIQUE = TURN @ LPS
# Slices to the left, rows to the front, columns to the feet.
SAGITTAL = np.array([[0, 0, -1.5, 30.0], [0.8, 0, 0, -11.5], [0, -0.8, 0, 7.25], [0, 0, 0, 1]])
SHAPE = (5, 7, 6)


def stored(dtype=np.int16, low=-900, high=2000, shape=SHAPE):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def nifti(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


# Series ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_a_series_is_the_volume_that_nifti_holds(affine, order, tmp_path):
    """The order of names means nothing: positions decide."""
    write_series(tmp_path / "series", stored(), affine, order=order)
    path = nifti(tmp_path / "volume.nii.gz", stored(), affine)
    series, volume = load_volume(tmp_path / "series"), load_volume(path)
    np.testing.assert_array_equal(series.array, volume.array)
    assert series.array.dtype == np.int16
    assert series.array.flags.f_contiguous
    assert series.spacing_mm == pytest.approx(volume.spacing_mm, rel=1e-6)
    assert volume_shape(tmp_path / "series") == volume_shape(path) == series.array.shape
    np.testing.assert_allclose(volume_grid(tmp_path / "series").affine, affine, atol=1e-6)
    assert misplaced(path, tmp_path / "series") is None
    assert "voxels) beside" in misplaced(nifti(tmp_path / "moved.nii", stored(), TURN @ affine), tmp_path / "series")


@pytest.mark.parametrize(
    ("array", "tags", "expected"),
    [
        (stored(), {"RescaleSlope": 1, "RescaleIntercept": -24}, np.int16),
        (stored(np.uint16, 0, 4000), {"RescaleSlope": 1, "RescaleIntercept": -1024, "bits": 12}, np.int16),
        (stored(np.uint16, 0, 65535), {"RescaleSlope": 1, "RescaleIntercept": -5}, np.float32),
        (stored(np.uint16, 0, 4000), {"RescaleSlope": 0.25, "RescaleIntercept": -10.5}, np.float32),
        (stored(np.uint16, 0, 65535), {}, np.uint16),
        (stored(np.uint8, 0, 255), {}, np.uint8),
        (stored(np.int16), {"PhotometricInterpretation": "MONOCHROME1"}, np.int16),
    ],
)
def test_values_are_in_the_units_of_the_modality(array, tags, expected, tmp_path):
    write_series(tmp_path / "s", array, LPS, **tags)
    volume = load_volume(tmp_path / "s")
    units = array * float(tags.get("RescaleSlope", 1)) + float(tags.get("RescaleIntercept", 0))
    assert volume.array.dtype == expected
    np.testing.assert_array_equal(volume.array, units[::-1, ::-1].astype(expected))


def test_each_slice_has_its_own_scale(tmp_path):
    """As PET has it."""
    directions, spacing, positions = places(LPS, 3)
    array = stored(np.int16, 0, 1000, (5, 7, 3))
    for k, slope in enumerate((0.5, 2.0, 3.25)):
        tags = {"ImageOrientationPatient": directions, "PixelSpacing": spacing, "ImagePositionPatient": positions[k]}
        save(data_set(array[:, :, k].T, RescaleSlope=slope, RescaleIntercept=0, **tags), tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(load_volume(tmp_path).array, (array * [0.5, 2.0, 3.25])[::-1, ::-1])


def test_a_tilted_gantry_keeps_its_shear(tmp_path):
    sheared = LPS.copy()
    sheared[1, 2] = 0.6
    write_series(tmp_path / "ct", stored(), sheared)
    np.testing.assert_allclose(volume_grid(tmp_path / "ct").affine, sheared, atol=1e-6)
    codec = open_codec("nifti", ORGANS)
    codec.write(tmp_path / "out", "ct@z002", np.ones((7, 5, 1), np.uint8), like=tmp_path / "ct")
    codec.finish(tmp_path / "out")
    header = nibabel.load(tmp_path / "out" / "ct.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), sheared, atol=1e-5)
    assert header["qform_code"] == 0


@pytest.mark.parametrize("name", ["{}", "1.2.840.{}", "IM{:05d}.DCM", "{:03d}.ima"])
def test_names_mean_nothing_and_other_files_are_passed_over(name, tmp_path):
    folder = tmp_path / "study" / "chest"
    write_series(folder, stored(), LPS, name=name)
    plan = data_set(np.zeros((2, 2), np.uint8), kind="1.2.840.10008.5.1.4.1.1.481.3")
    del plan.Rows, plan.Columns, plan.PixelData
    save(plan, folder / "plan.dcm")  # contours have no pixels
    save(plan, tmp_path / "study" / "DICOMDIR")
    (folder / "notes.txt").write_text("DICM")
    (folder / "thumbnail").write_bytes(b"x" * 200)
    refs = find_images(tmp_path)
    assert list(refs) == [f"study/chest@z{k:03d}" for k in range(6)]
    image = read_image(refs["study/chest@z004"])
    np.testing.assert_array_equal(image[..., 0], stored()[::-1, ::-1, 4].T)
    assert image.dtype == np.float32
    assert image_spacing_mm(refs["study/chest@z004"]) == pytest.approx((0.9, 0.7))
    assert list(find_images(folder)) == [f"chest@z{k:03d}" for k in range(6)]
    inputs, broken = find_inputs([folder])
    assert ([i.stem for i in inputs], broken) == ([f"chest@z{k:03d}" for k in range(6)], [])
    # One slice, all of them, or a pattern stand for the series, once, and for nothing beside it.
    slices = [folder / name.format(number) for number in range(6)]
    for given in (slices[:1], slices, [folder, *slices], [folder / f"{name.format(0)[:2]}*"]):
        assert [i.stem for i in find_inputs(given)[0]] == [f"chest@z{k:03d}" for k in range(6)]
    save(plan, tmp_path / "plan")
    with pytest.raises(ValueError, match="plan: no images here"):
        find_inputs([folder, tmp_path / "plan"])


def test_what_makes_no_volume_is_refused_with_the_numbers(tmp_path):
    even = LPS.copy()

    def series(folder, keep=range(6), affine=even, **tags):
        write_series(tmp_path / folder, stored(), affine, **tags)
        for path in set(tmp_path.joinpath(folder).iterdir()) - {tmp_path / folder / f"{k:03d}.dcm" for k in keep}:
            path.unlink()
        return tmp_path / folder

    gap = series("gap", keep=(0, 1, 2, 4, 5))
    with pytest.raises(
        ValueError, match=r"gap: slices are 2\.5 mm apart, but 002\.dcm and 004\.dcm 5 mm \(1 such of 4 distances"
    ):
        volume_shape(gap)
    double = series("double")
    save(pydicom.dcmread(double / "003.dcm"), double / "copy.dcm")
    with pytest.raises(ValueError, match=r"double: 2 or more of 7 slices share their place .*003\.dcm and copy\.dcm"):
        load_volume(double)
    mixed = series("mixed")
    write_series(mixed, stored(), LPS, name="b{}", series="9.9", SeriesDescription="thin")
    with pytest.raises(ValueError, match=r"mixed: holds 2 DICOM series .*'thin': 6 files such as b0.*of its own"):
        volume_shape(mixed)
    other = series("other")
    write_series(other, stored(shape=(4, 7, 1)), LPS @ np.diag([1, 1, -1, 1]), name="z.dcm")
    with pytest.raises(ValueError, match=r"other/z\.dcm: 7x4 pixels .*000\.dcm of the same series has 7x5"):
        volume_shape(other)
    cut = series("cut")
    (cut / "004.dcm").write_bytes((cut / "004.dcm").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cut/004\.dcm: the pixels cannot be decoded"):
        load_volume(cut)
    beside = series("beside")
    ds = pydicom.dcmread(beside / "003.dcm")
    ds.ImagePositionPatient[0] += 2
    save(ds, beside / "003.dcm")
    with pytest.raises(ValueError, match=r"beside: 003\.dcm lies 2 mm beside the line"):
        load_volume(beside)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no volume: holds no DICOM slices"):
        volume_shape(tmp_path / "empty")


def test_a_header_that_declares_too_much_is_refused_before_decoding(tmp_path, monkeypatch):
    write_series(tmp_path / "s", stored(), LPS)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "209")
    with pytest.raises(ValueError, match=r"s: the headers say \(5, 7, 6\) voxels, expected between 1 and 209"):
        load_volume(tmp_path / "s")


def test_a_deflated_file_that_unfolds_without_end_is_refused_before_it_is_unfolded(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_files, "_MOST_UNFOLDED", 2**20)
    pixels = stored(np.uint8, 0, 200, (5, 7, 1))[..., 0]
    for name, behind in (("picture", 0), ("bomb", 2**22)):
        ds = data_set(pixels, RADIOGRAPH)
        ds.PixelData += bytes(behind)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        save(ds, tmp_path / f"{name}.dcm")
    assert (read_image(tmp_path / "picture.dcm", gray=True)[..., 0] == pixels).all()
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("unfolded"))
    with pytest.raises(ValueError, match=r"bomb\.dcm: its \d+ bytes unfold to more than \d+"):
        read_image(tmp_path / "bomb.dcm")


def test_data_behind_the_declared_frames_are_no_further_frames(tmp_path):
    pixels = stored(np.uint8, 0, 200, (5, 7, 1))[..., 0]
    ds = data_set(pixels, RADIOGRAPH)
    ds.PixelData = pixels.tobytes() * 4
    save(ds, tmp_path / "a.dcm")
    assert (read_image(tmp_path / "a.dcm", gray=True)[..., 0] == pixels).all()


@pytest.mark.parametrize("length", [140, 300, 500])
def test_a_slice_that_is_damaged_makes_no_volume_without_it(length, tmp_path):
    """Nor does the last one, which leaves no gap."""
    write_series(tmp_path / "s", stored(), LPS)
    (tmp_path / "s" / "005.dcm").write_bytes((tmp_path / "s" / "005.dcm").read_bytes()[:length])
    with pytest.raises(ValueError, match=r"s/005\.dcm: no readable DICOM file \(cut short\)"):
        find_images(tmp_path)


def test_a_slice_written_anew_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_files, "_LOOK_AGAIN_S", 1e-6)
    write_series(tmp_path / "s", stored(), LPS)
    load_volume(tmp_path / "s")
    write_series(tmp_path / "s", stored() + 1, LPS, RescaleIntercept=0)
    np.testing.assert_array_equal(load_volume(tmp_path / "s").array, (stored() + 1)[::-1, ::-1])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [4, 2, 0, 5, 3, 1]])
def test_a_multi_frame_file_is_a_volume(order, tmp_path):
    write_multi_frame(tmp_path / "in" / "ct.dcm", stored(), OBLIQUE, order=order, slope=2, intercept=-1000)
    refs = find_images(tmp_path)
    assert list(refs) == [f"in/ct@z{k:03d}" for k in range(6)]
    expected = load_volume(nifti(tmp_path / "a.nii", (stored() * 2.0 - 1000).astype(np.float32), OBLIQUE))
    volume = load_volume(tmp_path / "in" / "ct.dcm")
    np.testing.assert_array_equal(volume.array, expected.array)
    assert misplaced(tmp_path / "a.nii", tmp_path / "in" / "ct.dcm") is None


def test_frames_without_places_are_no_volume(tmp_path):
    path = save(data_set(stored(np.uint8, 0, 255).T), tmp_path / "film.dcm")
    assert volume_name(path) == "film"
    with pytest.raises(ValueError, match=r"film\.dcm: holds 6 frames and does not say how each lies"):
        volume_shape(path)


def compressed_by_imagecodecs(ds, syntax, encode):
    ds.file_meta.TransferSyntaxUID = syntax
    pixels = np.frombuffer(ds.PixelData, f"u{ds.BitsAllocated // 8}").reshape(ds.Rows, ds.Columns)
    ds.PixelData = pydicom.encaps.encapsulate([encode(pixels & ((1 << ds.BitsStored) - 1))])
    ds["PixelData"].VR = "OB"


def jpeg_2000(pixels):
    return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0)


# imagecodecs writes JPEG-LS of 8 or 16 bits only.
@pytest.mark.parametrize(
    ("compress", "bits"),
    [
        (lambda ds: ds.compress(pydicom.uid.RLELossless), 12),
        (lambda ds: ds.compress(pydicom.uid.RLELossless), 16),
        (lambda ds: compressed_by_imagecodecs(ds, pydicom.uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode), 12),
        (lambda ds: compressed_by_imagecodecs(ds, pydicom.uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode), 16),
        (lambda ds: compressed_by_imagecodecs(ds, pydicom.uid.JPEGLossless, imagecodecs.ljpeg_encode), 12),
        (lambda ds: compressed_by_imagecodecs(ds, pydicom.uid.JPEGLSLossless, imagecodecs.jpegls_encode), 16),
        (lambda ds: compressed_by_imagecodecs(ds, pydicom.uid.JPEG2000Lossless, jpeg_2000), 16),
        (lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", pydicom.uid.DeflatedExplicitVRLittleEndian), 12),
    ],
    ids=[
        "rle-12",
        "rle-16",
        "first-order-12",
        "first-order-16",
        "lossless-12",
        "jpeg-ls-16",
        "jpeg-2000-16",
        "deflated",
    ],
)
@pytest.mark.parametrize(("dtype", "low"), [(np.int16, -900), (np.uint16, 0)])
def test_compressed_slices(compress, bits, dtype, low, tmp_path):
    write_series(tmp_path / "plain", stored(dtype, low), LPS, bits=bits)
    for path in (tmp_path / "plain").iterdir():
        ds = pydicom.dcmread(path)
        compress(ds)
        save(ds, tmp_path / "compressed" / path.name)
    volume = load_volume(tmp_path / "compressed")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, stored(dtype, low)[::-1, ::-1])


def test_jpeg_pictures(tmp_path):
    rows, columns = np.mgrid[:40, :64]
    smooth = np.stack([3 * rows, 2 * columns, 200 - rows - columns], axis=2).astype(np.uint8)
    for name, pixels in (("gray", smooth[..., 0]), ("colours", smooth)):
        ds = data_set(pixels)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        ds.PixelData = pydicom.encaps.encapsulate([imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=95)])
        ds["PixelData"].VR = "OB"
        if name == "colours":
            ds.PhotometricInterpretation = "YBR_FULL_422"
        image = read_image(save(ds, tmp_path / f"{name}.dcm"))
        assert np.abs(image.astype(int) - (pixels if pixels.ndim == 3 else pixels[..., None])).mean() < 2


def test_a_compression_that_is_not_installed_says_what_to_install(tmp_path):
    write_series(tmp_path / "s", stored(), LPS)
    ds = pydicom.dcmread(tmp_path / "s" / "000.dcm")
    ds.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    save(ds, tmp_path / "s" / "000.dcm")
    if pydicom.pixels.get_decoder(pydicom.uid.HTJ2KLossless).is_available:
        pytest.skip("the plug-in is installed")
    with pytest.raises(
        ValueError, match=r"000\.dcm: its compression \(High-Throughput JPEG 2000.*pip install pylibjpeg"
    ):
        load_volume(tmp_path / "s")


def test_without_pydicom_the_way_out_is_told(tmp_path, monkeypatch):
    write_series(tmp_path / "s", stored(), LPS)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"is DICOM, which needs pydicom: pip install 'segkit\[dicom\]'"):
        find_images(tmp_path)


# Labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
@pytest.mark.parametrize("axis", "xyz")
def test_predictions_of_a_series_are_nifti_labels_on_its_voxels(affine, axis, tmp_path):
    write_series(tmp_path / "in" / "chest", stored(), affine, order=[3, 0, 5, 1, 4, 2])
    codec = open_codec({"name": "nifti", "axis": axis}, ORGANS)
    refs = find_images(tmp_path / "in", axis)
    for stem, ref in refs.items():
        labels = (read_image(ref) > 500).astype(np.uint8)
        codec.write(tmp_path / "out", stem, labels, like=ref.path)
    codec.finish(tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "chest.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored() > 500)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_allclose(written.header.get_qform(), affine, atol=1e-4)
    assert written.header.get_xyzt_units()[0] == "mm"
    for stem, ref in refs.items():
        codec.check_like(tmp_path / "out", stem, ref.path)


# Pictures --------------------------------------------------------------------------------------------------


def test_radiographs_are_pictures_of_their_own(tmp_path):
    array = stored(np.uint16, 0, 4095, (9, 5))
    for name, series in (("a.dcm", "1"), ("b", "2"), ("c.d.DCM", "3")):
        save(data_set(array, RADIOGRAPH, series, bits=12), tmp_path / name)
    refs = find_images(tmp_path)
    assert list(refs) == ["a", "b", "c.d"]
    image = read_image(refs["b"])
    assert (image.dtype, image.shape) == (np.uint16, (9, 5, 1))
    np.testing.assert_array_equal(image[..., 0], array)
    assert image_spacing_mm(refs["a"]) is None


def test_white_at_zero_is_inverted_within_the_stored_bits(tmp_path):
    array = np.array([[0, 1, 4095], [7, 8, 9]], np.uint16)
    path = save(data_set(array, RADIOGRAPH, bits=12, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm")
    assert read_image(path)[..., 0].tolist() == [[4095, 4094, 0], [4088, 4087, 4086]]
    signed = np.array([[-2048, 0, 2047]], np.int16)
    path = save(data_set(signed, RADIOGRAPH, bits=12, PhotometricInterpretation="MONOCHROME1"), tmp_path / "b.dcm")
    assert read_image(path)[..., 0].tolist() == [[2047, -1, -2048]]


def test_pictures_of_8_bits_and_of_colours(tmp_path):
    gray = save(data_set(stored(np.uint8, 0, 255, (9, 5))), tmp_path / "gray.dcm")
    assert read_image(gray).shape == (9, 5, 3)
    np.testing.assert_array_equal(read_image(gray, gray=True)[..., 0], stored(np.uint8, 0, 255, (9, 5)))
    colours = stored(np.uint8, 0, 255, (9, 6, 3))
    path = save(data_set(colours), tmp_path / "colours.dcm")
    np.testing.assert_array_equal(read_image(path), colours)
    assert read_image(path, gray=True).shape == (9, 6, 1)


def test_pictures_in_hounsfield_units(tmp_path):
    tags = {"RescaleSlope": 0.5, "RescaleIntercept": -100}
    path = save(data_set(np.array([[0, 3]], np.uint16), **tags), tmp_path / "a.dcm")
    assert read_image(path)[..., 0].tolist() == [[-100, -98.5]]


def test_what_is_no_picture_is_named(tmp_path, monkeypatch):
    path = save(data_set(np.zeros((4, 4), np.uint8), PhotometricInterpretation="PALETTE COLOR"), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm: its photometric interpretation is PALETTE COLOR, expected one of"):
        read_image(path)
    big = save(data_set(np.zeros((4, 4), np.uint8)), tmp_path / "b.dcm")
    with monkeypatch.context() as patch:
        patch.setenv("SEGKIT_MAX_PIXELS", "15")
        with pytest.raises(ValueError, match=r"b\.dcm: declares 16 pixels, expected 1 to 15"):
            read_image(big)
    content = big.read_bytes()
    for number, cut in enumerate((140, len(content) // 2, len(content) - 3)):
        damaged = tmp_path / f"cut{number}.dcm"
        damaged.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=rf"cut{number}\.dcm: "):
            read_image(damaged)


def test_one_slice_of_each_patient_are_pictures(tmp_path):
    for number in range(3):
        write_series(tmp_path, stored(shape=(5, 7, 1)), LPS, name=f"p{number}.dcm", series=f"1.{number}")
    assert list(find_images(tmp_path)) == ["p0", "p1", "p2"]


def test_paths_that_are_no_dicom_stay_as_they_are(tmp_path):
    write_series(tmp_path / "s", stored(), LPS)
    others = [tmp_path / name for name in ("a.png", "b.nii.gz", "c")]
    paths = list(itertools.chain(others[:1], sorted((tmp_path / "s").iterdir()), others[1:]))
    assert list(join_series(paths)) == [others[0], tmp_path / "s", *others[1:]]
    assert not is_volume(others[0])
    assert is_volume(tmp_path / "s")
    assert volumes.volume_name(tmp_path / "s") == "s"
