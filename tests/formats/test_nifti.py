import gzip
import os

import nibabel
import numpy as np
import pytest

from segkit.formats import volumes
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import (
    nifti_case_name,
    parse_slice_stem,
    set_volume_slice,
    slice_shape,
    slice_spacing_mm,
    slice_stem,
    volume_slice,
)
from segkit.formats.volumes import load_volume, volume_shape

ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])
STREET = MaskFormat.multiclass(["sky", "road", "car"])
# Oblique, anisotropic, left-handed: nothing that a default would give.
AFFINE = np.array([[-0.7, 0.1, 0.0, 20.0], [0.0, 0.9, -0.3, -11.5], [0.0, 0.3, 2.5, 7.25], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)


def in_memory(array):
    """What is stored with `AFFINE` as segkit keeps it: x grows to the right."""
    return array[::-1]


def save(path, array, affine=AFFINE, make=nibabel.Nifti1Image, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = make(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def labels(seed=0, shape=SHAPE, top=3, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


# Slices -------------------------------------------------------------------------------------------------


def test_stems_and_names():
    assert slice_stem("night/case", "z", 17) == "night/case@z017"
    assert slice_stem("c", "x", 1234) == "c@x1234"
    assert parse_slice_stem("night/case@z017") == ("night/case", "z", 17)
    assert parse_slice_stem("a@z001@y002") == ("a@z001", "y", 2)
    for wrong in ("case", "case@q001", "case@z1", "@z001", "case@z001.png"):
        with pytest.raises(ValueError, match="names no slice"):
            parse_slice_stem(wrong)
    names = ("a.nii.gz", "b/c.d.NII.GZ", "e.nii", "f.png", ".nii", "g.gz")
    assert [nifti_case_name(n) for n in names] == ["a", "c.d", "e", None, None, None]


def test_slices_by_hand():
    array = np.arange(24).reshape(2, 3, 4)  # value = 12 x + 4 y + z
    assert volume_slice(array, "z", 1).tolist() == [[1, 13], [5, 17], [9, 21]]  # rows y, columns x
    assert volume_slice(array, "y", 2).tolist() == [[8, 20], [9, 21], [10, 22], [11, 23]]  # rows z, columns x
    assert volume_slice(array, "x", 1).tolist() == [[12, 16, 20], [13, 17, 21], [14, 18, 22], [15, 19, 23]]
    for axis, expected in (("x", (4, 3)), ("y", (4, 2)), ("z", (3, 2))):
        assert slice_shape(array.shape, axis) == volume_slice(array, axis, 0).shape == expected
    assert [slice_spacing_mm((1.0, 2.0, 3.0), a) for a in "xyz"] == [(3.0, 2.0), (3.0, 1.0), (2.0, 1.0)]
    bands = np.stack([array, -array], -1)
    assert volume_slice(bands, "z", 1)[2, 1].tolist() == [21, -21]
    with pytest.raises(ValueError, match="it has 4 along z"):
        volume_slice(array, "z", 4)
    with pytest.raises(ValueError, match="expected x, y or z"):
        volume_slice(array, "w", 0)


@pytest.mark.parametrize("axis", "xyz")
def test_set_volume_slice_is_the_inverse_of_volume_slice(axis):
    array = labels()
    again = np.zeros_like(array)
    for index in range(SHAPE["xyz".index(axis)]):
        set_volume_slice(again, axis, index, volume_slice(array, axis, index))
    np.testing.assert_array_equal(again, array)


def test_volumes_keep_their_depth_and_say_their_spacing(tmp_path):
    for dtype, expected in ((np.int16, np.int16), (np.uint8, np.uint8), (np.float64, np.float32)):
        volume = load_volume(save(tmp_path / f"{np.dtype(dtype).name}.nii.gz", labels(dtype=dtype)))
        assert volume.array.dtype == expected
        np.testing.assert_array_equal(volume.array, in_memory(labels()))
        assert volume.spacing_mm == pytest.approx((0.7, 0.9539392, 2.5179357), rel=1e-6)
    swapped = load_volume(save(tmp_path / "swapped.nii", labels(dtype=np.dtype(">i2"))))
    assert swapped.array.dtype == np.int16
    assert swapped.array.dtype.isnative


def test_a_rescaled_volume_and_one_with_bands(tmp_path):
    path = tmp_path / "scaled.nii"
    image = nibabel.Nifti1Image(labels(dtype=np.int16), AFFINE)
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, path)
    np.testing.assert_array_equal(load_volume(path).array, 2.0 * in_memory(labels()) - 1000.0)
    assert load_volume(path).array.dtype == np.float32
    bands = save(tmp_path / "bands.nii.gz", labels(shape=(*SHAPE, 1, 2)))
    assert volume_shape(bands) == load_volume(bands).array.shape == (*SHAPE, 2)
    single = save(tmp_path / "single.nii.gz", labels(shape=(*SHAPE, 1)))
    assert volume_shape(single) == SHAPE


def test_the_last_volume_is_decoded_once_and_a_new_file_is_seen(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", labels(seed=1))
    calls = []
    decode = volumes._decode
    monkeypatch.setattr(volumes, "_decode", lambda p: calls.append(p) or decode(p))
    for _ in range(3):
        first = load_volume(path)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        first.array[0, 0, 0] = 7
    save(path, labels(seed=2))
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(load_volume(path).array, in_memory(labels(seed=2)))


# Reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", "xyz")
def test_read_gives_slices_across_the_axis(axis, tmp_path):
    array = labels()
    save(tmp_path / "sub" / "case.nii.gz", array)
    codec = open_codec({"name": "nifti", "axis": axis}, ORGANS)
    stems = codec.stems(tmp_path)
    assert stems == [f"sub/case@{axis}{i:03d}" for i in range(SHAPE["xyz".index(axis)])]
    for index, stem in enumerate(stems):
        np.testing.assert_array_equal(codec.read(tmp_path, stem)[..., 0], volume_slice(in_memory(array), axis, index))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.int64, np.uint16])
def test_whole_labels_in_any_depth(dtype, tmp_path):
    image = nibabel.Nifti1Image(labels(dtype=dtype), AFFINE, dtype=dtype)
    nibabel.save(image, tmp_path / "a.nii.gz")
    planes = open_codec("nifti", ORGANS).read(tmp_path, "a@z002")
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes[..., 0], in_memory(labels())[:, :, 2].T)


@pytest.mark.parametrize(
    ("values", "slope", "inter"),
    [
        ([0, 41, 82], 1 / 41, 0),
        ([0, 255, 510], 1 / 255, 0),
        ([0, 2, 4], 0.5, 0),
        ([10, 11, 12], 1, -10),
        ([-5, 0, 5], 0.2, 1),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_scaled_labels_are_whole_numbers_again(values, slope, inter, order, tmp_path):
    """0, 1 and 2 lie in the file as `values`."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(np.array(values, np.int16)[labels()], AFFINE, header)
    image.header.set_slope_inter(slope, inter)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(np.asarray(nibabel.load(tmp_path / "a.nii").dataobj), labels(), atol=1e-6)
    planes = open_codec("nifti", ORGANS).read(tmp_path, "a@z001")
    np.testing.assert_array_equal(planes[..., 0], in_memory(labels())[:, :, 1].T)


def test_labels_in_nifti_2_and_with_one_band(tmp_path):
    nibabel.save(nibabel.Nifti2Image(labels(dtype=np.int64)[..., None], AFFINE, dtype=np.int64), tmp_path / "a.nii.gz")
    codec = open_codec("nifti", ORGANS)
    assert len(codec.stems(tmp_path)) == 6
    np.testing.assert_array_equal(codec.read(tmp_path, "a@z005")[..., 0], in_memory(labels())[:, :, 5].T)


@pytest.mark.parametrize("order", "<>")
def test_labels_of_a_big_endian_image_keep_its_header(order, tmp_path):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.int16)
    header["descrip"] = b"scanner"
    nibabel.save(nibabel.Nifti1Image(labels(dtype=np.int16), AFFINE, header), tmp_path / "in.nii")
    format = MaskFormat.multiclass(range(300))
    codec = open_codec("nifti", format)
    for index in range(6):
        codec.write(
            tmp_path / "out", f"a@z{index:03d}", np.full((5, 4, 1), 260 + index, np.uint16), tmp_path / "in.nii"
        )
    codec.finish(tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.header.endianness == order
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"scanner"
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "in.nii").affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj)[0, 0], [260, 261, 262, 263, 264, 265])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, r"\[0\.5\], expected whole numbers"),
        (np.nan, r"\[nan\], expected whole numbers"),
        (-1, "from -1"),
        (7, r"\[7\]"),
    ],
)
def test_labels_without_a_class_name_the_slice(value, said, tmp_path):
    array = labels(dtype=np.float32)
    array[1, 1, 3] = value
    save(tmp_path / "a.nii.gz", array)
    codec = open_codec("nifti", ORGANS)
    codec.read(tmp_path, "a@z002")
    with pytest.raises(ValueError, match=rf"a\.nii\.gz, slice z3: found values {said}"):
        codec.read(tmp_path, "a@z003")


def test_bad_volumes_are_one_error_that_names_the_file(tmp_path):
    good = save(tmp_path / "good" / "a.nii.gz", labels(shape=(20, 30, 40))).read_bytes()
    codec = open_codec("nifti", ORGANS)
    for name, content in {
        "empty.nii.gz": b"",
        "text.nii.gz": b"these are not voxels",
        "text.nii": b"these are not voxels" * 40,
        "cut.nii.gz": good[: len(good) // 2],
        "cut.nii": gzip.decompress(good)[:5000],
        "header_cut.nii": gzip.decompress(good)[:200],
        "flipped.nii.gz": good[:900] + bytes([good[900] ^ 0x55]) + good[901:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^[^ ]*/{name}: "):
            codec.read(tmp_path, f"{name.split('.')[0]}@z001")
        (tmp_path / name).unlink()
    save(tmp_path / "bands.nii.gz", labels(shape=(*SHAPE, 2)))
    with pytest.raises(ValueError, match=r"bands\.nii\.gz: a volume of shape \(4, 5, 6, 2\), expected one label"):
        codec.stems(tmp_path)


def test_a_header_that_declares_too_much_is_refused_before_decoding(tmp_path):
    path = save(tmp_path / "a.nii", labels())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()  # dim[1..3] of the NIfTI-1 header
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii: the header says \(30000, 30000, 30000\) voxels"):
        open_codec("nifti", ORGANS).read(tmp_path, "a@z000")


# Writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", "xyz")
@pytest.mark.parametrize("make", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_finish_keeps_orientation_and_voxel_size_of_the_input(axis, make, tmp_path):
    image = save(tmp_path / "in" / "a.nii.gz", labels(dtype=np.int16), make=make, cal_max=400)
    out = tmp_path / "out"
    codec = open_codec({"name": "nifti", "axis": axis}, ORGANS)
    truth = labels(seed=4)
    for index in range(SHAPE["xyz".index(axis)]):
        plane = volume_slice(in_memory(truth), axis, index)[..., None]
        codec.write(out, slice_stem("sub/a", axis, index), plane, like=image)
    assert codec.stems(out) == [], "slices wait until finish"
    codec.finish(out)
    assert [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()] == ["sub/a.nii.gz"]
    assert not (out / ".segkit-parts").exists()

    written, given = nibabel.load(out / "sub" / "a.nii.gz"), nibabel.load(image)
    np.testing.assert_array_equal(np.asarray(written.dataobj), truth)
    np.testing.assert_array_equal(written.affine, given.affine)
    assert isinstance(written, make)
    for key in ("qform_code", "sform_code", "xyzt_units"):
        assert written.header[key] == given.header[key]
    np.testing.assert_array_equal(written.header["pixdim"], given.header["pixdim"])
    assert (written.get_data_dtype(), written.header["cal_max"]) == (np.uint8, 0)

    before = (out / "sub" / "a.nii.gz").read_bytes()
    codec.finish(out)
    assert (out / "sub" / "a.nii.gz").read_bytes() == before


def test_an_image_with_bands_gives_its_header_to_labels(tmp_path):
    image = save(tmp_path / "in.nii.gz", labels(shape=(*SHAPE, 2)))
    codec = open_codec("nifti", ORGANS)
    codec.write(tmp_path / "out", "a@z001", np.ones((5, 4, 1), np.uint8), like=image)
    codec.finish(tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.shape == SHAPE
    np.testing.assert_allclose(written.affine, AFFINE, rtol=1e-6)


def test_slices_nobody_wrote(tmp_path):
    image = save(tmp_path / "in.nii.gz", labels())
    plane = np.ones((5, 4, 1), np.uint8)
    for number, (format, options, expected) in enumerate(
        [(ORGANS, {}, 0), (ORGANS, {"ignored_values": [255]}, 255), (STREET, {"ignored_values": [9]}, 9)]
    ):
        out = tmp_path / str(number)
        codec = open_codec({"name": "nifti", **options}, format)
        codec.write(out, "a@z002", plane, like=image)
        codec.finish(out)
        stored = np.asarray(nibabel.load(out / "a.nii.gz").dataobj)
        assert (stored[:, :, 2] == 1).all()
        assert np.unique(np.delete(stored, 2, 2)).tolist() == [expected]
    strict = open_codec("nifti", STREET)
    strict.write(tmp_path / "out", "a@z002", plane, like=image)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: 100 voxels lie in slices that were not written"):
        strict.finish(tmp_path / "out")


def test_finish_merges_with_the_volume_that_is_there(tmp_path):
    out = tmp_path / "out"
    image = save(tmp_path / "in.nii.gz", labels())
    save(out / "a.nii", labels(seed=7))
    codec = open_codec("nifti", ORGANS)
    codec.write(out, "a@z001", np.full((5, 4, 1), 2, np.uint8), like=image)
    codec.finish(out)
    expected = labels(seed=7)
    expected[:, :, 1] = 2
    assert [p.name for p in out.iterdir()] == ["a.nii"]
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "a.nii").dataobj), expected)
    # without `like`, the header that is there is kept
    codec.write(out, "a@z003", np.full((5, 4, 1), 1, np.uint8))
    codec.finish(out)
    expected[:, :, 3] = 1
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "a.nii").dataobj), expected)
    np.testing.assert_allclose(nibabel.load(out / "a.nii").affine, AFFINE, rtol=1e-6)


def test_finish_refuses_a_volume_of_another_shape_and_keeps_the_slices(tmp_path):
    out = tmp_path / "out"
    image = save(tmp_path / "in.nii.gz", labels())
    before = save(out / "a.nii.gz", labels(shape=(4, 5, 7))).read_bytes()
    codec = open_codec("nifti", ORGANS)
    codec.write(out, "a@z001", np.zeros((5, 4, 1), np.uint8), like=image)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: is there already with the shape \(4, 5, 7\).*\(4, 5, 6\)"):
        codec.finish(out)
    assert (out / "a.nii.gz").read_bytes() == before
    assert len(list((out / ".segkit-parts").rglob("*.png"))) == 1


def test_write_refuses_what_is_no_slice_of_its_input(tmp_path):
    image = save(tmp_path / "in.nii.gz", labels())
    codec = open_codec("nifti", ORGANS)
    for stem, shape in (("a@z000", (4, 5, 1)), ("a@z006", (5, 4, 1))):
        with pytest.raises(ValueError, match=r"is no such slice of .*in\.nii\.gz, whose shape is \(4, 5, 6\)"):
            codec.write(tmp_path / "out", stem, np.zeros(shape, np.uint8), like=image)
    with pytest.raises(ValueError, match=r"in\.png: is no volume"):
        codec.write(tmp_path / "out", "a@z000", np.zeros((5, 4, 1), np.uint8), like=tmp_path / "in.png")
    with pytest.raises(ValueError, match="'photo' names no slice"):
        codec.write(tmp_path / "out", "photo", np.zeros((5, 4, 1), np.uint8))


def test_slices_of_different_sizes_make_no_volume(tmp_path):
    codec = open_codec("nifti", ORGANS)
    codec.write(tmp_path, "a@z000", np.zeros((5, 4, 1), np.uint8))
    codec.write(tmp_path, "a@z001", np.zeros((5, 3, 1), np.uint8))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: slices of sizes .* make no volume"):
        codec.finish(tmp_path)


def test_more_than_255_classes(tmp_path):
    format = MaskFormat.multiclass(range(300))
    codec = open_codec({"name": "nifti", "ignored_values": [1000]}, format)
    planes = np.array([[[299], [0]], [[65535], [256]], [[1], [255]]], np.uint16)
    codec.write(tmp_path, "a@z000", planes)
    codec.finish(tmp_path)
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == np.uint16
    np.testing.assert_array_equal(codec.read(tmp_path, "a@z000"), planes)


def test_an_input_written_anew_gives_its_new_header(tmp_path):
    codec = open_codec("nifti", ORGANS)
    image = tmp_path / "in.nii.gz"
    for depth in (6, 7):
        save(image, labels(shape=(4, 5, depth)))
        codec.write(tmp_path / str(depth), "a@z001", np.zeros((5, 4, 1), np.uint8), like=image)
        codec.finish(tmp_path / str(depth))
        assert volume_shape(tmp_path / str(depth) / "a.nii.gz") == (4, 5, depth)


@pytest.mark.parametrize("axis", "xyz")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_whole_volumes_are_what_their_slices_are(tmp_path, axis, suffix):
    image = save(tmp_path / "images" / f"c{suffix}", np.zeros(SHAPE, np.int16))
    codec = open_codec({"name": "nifti", "axis": axis, "ignored_values": [9]}, ORGANS)
    marked = labels()
    marked[2, 3, 4] = 255
    count = SHAPE["xyz".index(axis)]
    planes = np.stack([volume_slice(marked, axis, index)[..., None] for index in range(count)])
    stems = [slice_stem("night/c", axis, index) for index in range(count)]
    codec.write_volume(tmp_path / "whole", stems, planes, like=image)
    for stem, plane in zip(stems, planes, strict=True):
        codec.write(tmp_path / "slices", stem, plane, like=image)
    codec.finish(tmp_path / "slices")
    whole, slices = (tmp_path / name / "night" / "c.nii.gz" for name in ("whole", "slices"))
    assert whole.read_bytes() == slices.read_bytes()
    assert codec.stems(tmp_path / "whole") == stems
    assert np.array_equal(np.stack([codec.read(tmp_path / "whole", stem) for stem in stems]), planes)
    assert [p.name for p in (tmp_path / "whole").iterdir()] == ["night"]
    # Without a header to copy, as slices are written.
    codec.write_volume(tmp_path / "alone", stems, planes)
    codec.finish(tmp_path / "alone")
    assert np.array_equal(codec.read(tmp_path / "alone", stems[1]), planes[1])


def test_a_volume_with_slices_missing_or_of_another_size_is_not_written(tmp_path):
    image = save(tmp_path / "images" / "c.nii.gz", np.zeros(SHAPE, np.int16))
    codec = open_codec("nifti", ORGANS)
    stems, planes = [slice_stem("c", "z", i) for i in range(6)], np.zeros((6, 5, 4, 1), np.uint8)
    for wrong_stems, wrong in (
        (stems[1:], planes[1:]),
        (stems[::-1], planes),
        (stems, planes.swapaxes(1, 2)),
        (stems, planes[1:]),
    ):
        with pytest.raises(ValueError, match="are not all slices of"):
            codec.write_volume(tmp_path / "out", wrong_stems, wrong, like=image)
    with pytest.raises(ValueError, match="planes are int16"):
        codec.write_volume(tmp_path / "out", stems, planes.astype(np.int16), like=image)
    assert not (tmp_path / "out").exists()
