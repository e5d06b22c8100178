"""Whole volumes: one unit of work, averaged over axes, written as they came."""

from __future__ import annotations

import gzip
import re

import nibabel
import numpy as np
import pytest
import torch

from segkit.data.datasets import MaskDataset
from segkit.data.images import ImageRef
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import axis_number, set_volume_slice, volume_slice
from segkit.inference import volumes
from segkit.inference.evaluate import evaluate, evaluate_predictions
from segkit.inference.inputs import Input
from segkit.inference.predictor import Predictor
from segkit.inference.volumes import answer_volume, by_volume, check_axes
from segkit.models.builder import build_model
from segkit.models.steps import open_steps
from segkit.ops.sizes import Spacing
from tests.dicoms import write_series
from tests.painted import Painted
from tests.scenes import FORMATS

CPU = torch.device("cpu")
ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])
# Oblique, anisotropic, left-handed.
AFFINE = np.array([[-0.7, 0.1, 0.0, 20.0], [0.0, 0.9, -0.3, -11.5], [0.0, 0.3, 2.5, 7.25], [0, 0, 0, 1]])
SHAPE = (9, 12, 10)
SIZES_MM = np.diag([0.5, 1.5, 2.0, 1.0])
ORDERS = ("RAS", "LPS", "SAR", "PIL", "IAR")


def network(format=ORGANS, reading=ImageReading(), in_channels=1, resize=None):
    torch.manual_seed(3)
    model = build_model(
        "unet",
        "tu-test_resnet",
        format,
        weights=None,
        in_channels=in_channels,
        resize=resize,
        decoder_channels=[16, 8, 8, 8, 8],
    ).eval()
    model.reading = reading
    return model


def noise(shape=SHAPE, seed=0):
    """Clouds rather than grains, so that the network's answers vary."""
    from scipy.ndimage import gaussian_filter

    return (gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2) * 20).astype(np.float32)


def labels(shape=SHAPE, top=3, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def turned(array, order):
    """The same voxels, in RAS order in `array`, as a file keeps them whose axes grow as `order` says."""
    image = nibabel.Nifti1Image(array, SIZES_MM)
    to = nibabel.orientations.axcodes2ornt(order)
    return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(SIZES_MM), to))


def voxels_of(planes, axis):
    """(x, y, z, P) of (D, H, W, P)."""
    return np.moveaxis(planes.swapaxes(1, 2), 0, axis_number(axis))


# The average over axes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("own", "xyz")
def test_over_axes_a_model_that_looks_at_single_voxels_says_what_it_says_across_one(tmp_path, kind, own):
    format = FORMATS[kind]
    stored = labels((5, 6, 7), format.num_classes + 1).astype(np.float32)
    path = save(tmp_path / "v.nii.gz", stored)
    model = Painted(format, ImageReading(axis=own))
    image = ImageRef(path, own, 0)
    one, three = (answer_volume(model, image, axes, device=CPU, probabilities=True) for axes in (None, "xyz"))
    assert np.array_equal(one.planes, three.planes)
    assert len(np.unique(one.planes)) > 1
    np.testing.assert_allclose(one.probs, three.probs, atol=1e-6)
    # And that is what the voxels show.
    if format.num_planes == 1 and format.num_classes > 1:
        seen = np.where(stored < format.num_classes, stored, 0)
        assert np.array_equal(voxels_of(three.planes, own)[..., 0], seen)


def mean_by_hand(model, voxels, axes):
    """(C, x, y, z) probabilities of each slice alone, averaged."""
    total = np.zeros((model.format.num_classes, *voxels.shape), np.float64)
    predictor = Predictor(model, device="cpu")
    for axis in axes:
        for index in range(voxels.shape[axis_number(axis)]):
            probs = predictor.probabilities(volume_slice(voxels, axis, index))
            for number, of_class in enumerate(probs):
                part = np.zeros_like(voxels)
                set_volume_slice(part, axis, index, of_class)
                total[number] += part
    return total / len(axes)


@pytest.mark.parametrize(("axes", "own"), [("zyx", "z"), ("xz", "x"), ("y", "y")])
@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
def test_probabilities_are_averaged_voxel_by_voxel(tmp_path, axes, own, kind):
    format, voxels = FORMATS[kind], noise((10, 14, 12))
    model = network(format, ImageReading(axis=own))
    answer = answer_volume(
        model, ImageRef(save(tmp_path / "v.nii", voxels), own, 0), axes, device=CPU, probabilities=True
    )
    expected = mean_by_hand(model, voxels, axes)
    found = np.moveaxis(answer.probs.swapaxes(2, 3), 0, 1 + axis_number(own))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # Decoded as one answer would be: by the largest, or by the thresholds.
    planes = voxels_of(answer.planes, own)
    near = np.abs(np.sort(expected, axis=0)[-1] - np.sort(expected, axis=0)[-2]) < 1e-4
    if kind == "exclusive":
        assert np.array_equal(planes[..., 0][~near], expected.argmax(0)[~near])
    else:
        sure = np.abs(expected - 0.5) > 1e-4
        assert np.array_equal(np.moveaxis(planes, -1, 0)[sure], (expected > 0.5)[sure])


def test_a_volume_whose_axes_change_places_gets_the_answer_whose_axes_do(tmp_path):
    # Slices across z of one have the rows and columns of those across x of the other.
    voxels, order = noise(), (2, 0, 1)
    other = np.ascontiguousarray(voxels.transpose(order))
    for make, axes in ((network, (None, None)), (lambda reading: Painted(ORGANS, reading), ("zy", "xz"))):
        straight, mixed = (
            voxels_of(
                answer_volume(
                    make(reading=ImageReading(axis=own)),
                    ImageRef(save(tmp_path / f"{own}.nii", array.round()), own, 0),
                    given,
                    device=CPU,
                ).planes,
                own,
            )
            for own, array, given in (("z", voxels, axes[0]), ("x", other, axes[1]))
        )
        assert np.array_equal(straight.transpose(*order, 3), mixed)
        assert len(np.unique(mixed)) > 1


def test_probabilities_that_are_large_wait_in_a_file(tmp_path, monkeypatch):
    path = save(tmp_path / "v.nii", noise())
    image, model = ImageRef(path, "z", 0), network()
    in_memory = answer_volume(model, image, "zyx", device=CPU, probabilities=True)
    monkeypatch.setattr(volumes, "_MEMORY_BYTES", 1000)
    in_file = answer_volume(model, image, "zyx", device=CPU, probabilities=True)
    assert (in_memory.probs.dtype, in_file.probs.dtype) == (np.float32, np.float16)
    assert isinstance(in_file.probs, np.memmap)
    np.testing.assert_allclose(in_memory.probs, in_file.probs, atol=1e-3)
    ordered = np.sort(in_memory.probs, axis=1)
    sure = ordered[:, -1] - ordered[:, -2] > 2e-3
    assert sure.mean() > 0.5
    assert np.array_equal(in_memory.planes[..., 0][sure], in_file.planes[..., 0][sure])


def test_no_room_for_the_file_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(volumes, "_MEMORY_BYTES", 1000)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes.os, "posix_fallocate", full, raising=False)
    image = ImageRef(save(tmp_path / "v.nii", noise()), "z", 0)
    with pytest.raises(OSError, match=r"no room for .* GiB of probabilities .*TMPDIR"):
        answer_volume(network(), image, "zyx", device=CPU)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_number_of_slices_that_are_computed_together_changes_nothing(tmp_path, size):
    image, model = ImageRef(save(tmp_path / "v.nii", noise()), "z", 0), network()
    alone, together = (
        answer_volume(model, image, "zy", device=CPU, batch_size=n, probabilities=True) for n in (7, size)
    )
    np.testing.assert_allclose(alone.probs, together.probs, atol=1e-5)


# What a slice is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", "xyz")
@pytest.mark.parametrize("band", range(5))
def test_neighbours_lie_along_the_axis_that_is_cut_and_repeat_at_the_ends(tmp_path, axis, band):
    stored = labels((4, 5, 6))
    path = save(tmp_path / "v.nii.gz", stored)
    model = Painted(ORGANS, ImageReading(axis=axis, neighbours=2), band)
    planes = answer_volume(model, ImageRef(path, axis, 0), device=CPU).planes
    number = axis_number(axis)
    places = (np.arange(stored.shape[number]) + band - 2).clip(0, stored.shape[number] - 1)
    assert np.array_equal(voxels_of(planes, axis)[..., 0], stored.take(places, number))


def test_neighbours_of_every_axis_are_averaged(tmp_path):
    stored = labels((4, 5, 6))
    model = Painted(ORGANS, ImageReading(neighbours=1), band=2)  # the slice above
    image = ImageRef(save(tmp_path / "v.nii.gz", stored), "z", 0)
    probs = answer_volume(model, image, "zyx", device=CPU, probabilities=True).probs
    above = [stored.take((np.arange(n) + 1).clip(0, n - 1), number) for number, n in enumerate(stored.shape)]
    high, low = (float(np.exp(v) / (np.exp(4) + 2 * np.exp(-4))) for v in (4, -4))
    expected = np.mean([np.where(voxels == 1, high, low) for voxels in above], axis=0)
    np.testing.assert_allclose(voxels_of(probs[:, 1, ..., None], "z")[..., 0], expected, atol=1e-6)


def test_each_axis_has_its_own_spacing(tmp_path):
    path = save(tmp_path / "v.nii.gz", labels((8, 6, 4)), np.diag([0.5, 1.0, 3.0, 1.0]))
    model = Painted(ORGANS, resize=Spacing(1.0, 1.0))
    answer = answer_volume(model, ImageRef(path, "z", 0), "zyx", device=CPU, batch_size=100)
    assert model.seen == [
        ((12, 4), (3.0, 0.5)),  # y: rows are z, columns x
        ((12, 6), (3.0, 1.0)),  # x: rows are z, columns y
        ((6, 4), (1.0, 0.5)),  # z: rows are y, columns x
    ]
    assert answer.planes.shape == (4, 6, 8, 1)


def test_values_are_normalised_over_the_volume_along_every_axis(tmp_path):
    # Any slice alone has another mean: only by that of the volume do 0, 1 and 2 come out.
    stored = labels((4, 5, 6)).astype(np.float64)
    stored[0] = 0
    stored[:, 0] = 2
    mean, std = stored.mean(), stored.std()
    image = ImageRef(save(tmp_path / "v.nii.gz", (stored * 50 + 700).astype(np.int16)), "z", 0)

    class Normalised(Painted):
        def coarse_logits(self, images):
            return super().coarse_logits((images * std + mean).round())

    model = Normalised(ORGANS, ImageReading(normalize="volume"))
    probs = answer_volume(model, image, "zyx", device=CPU, probabilities=True).probs
    best = voxels_of(probs.argmax(1)[..., None], "z")[..., 0]
    assert np.array_equal(best, stored)
    assert probs.max(1).min() > 0.99  # all three axes say it


def test_bands_in_a_file_each(tmp_path):
    shown, other = labels((4, 5, 6)), labels((4, 5, 6), seed=1)
    paths = tuple(save(tmp_path / f"c_{n}.nii.gz", a) for n, a in (("a", other), ("b", shown)))
    reading = ImageReading(pattern="{stem}_{band}", bands=("a", "b"))
    model = Painted(ORGANS, reading, band=1)
    planes = answer_volume(model, ImageRef(paths[0], "z", 0, bands=paths), "zyx", device=CPU).planes
    assert np.array_equal(voxels_of(planes, "z")[..., 0], shown)


def test_a_volume_is_decoded_once_for_all_axes_and_bands(tmp_path, monkeypatch):
    from segkit.formats import volumes as stored_volumes

    paths = tuple(save(tmp_path / f"c_{n}.nii.gz", labels((4, 5, 6), seed=n)) for n in range(4))
    decoded = []
    decode = stored_volumes._decode
    monkeypatch.setattr(stored_volumes, "_decode", lambda path: decoded.append(path) or decode(path))
    monkeypatch.setattr(stored_volumes, "_KEPT_BYTES", 0)  # as where each is larger than all that is kept
    reading = ImageReading(pattern="{stem}_{band}", bands=tuple("0123"), normalize="volume", neighbours=1)
    answer_volume(Painted(ORGANS, reading), ImageRef(paths[0], "z", 0, bands=paths), "zyx", device=CPU, batch_size=2)
    assert sorted(decoded) == sorted(paths)
    assert len(stored_volumes._volumes) <= 2
    assert not stored_volumes._in_use


# Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axes", [None, "zyx"])
def test_any_orientation_comes_back_voxel_for_voxel(tmp_path, order, axes):
    stored = turned(labels((4, 5, 6)), order)
    nibabel.save(stored, tmp_path / "v.nii.gz")
    predictor = Predictor(Painted(ORGANS), open_codec("nifti", ORGANS), device="cpu")
    report = predictor.predict_files([tmp_path / "v.nii.gz"], tmp_path / "out", axes=axes)
    assert (report.done, report.failed) == (6, [])
    written = nibabel.load(tmp_path / "out" / "v.nii.gz")
    assert "".join(nibabel.aff2axcodes(written.affine)) == order
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj))
    assert np.array_equal(written.affine, stored.affine)
    assert not list((tmp_path / "out").glob(".*"))


def test_one_patient_in_two_orders_gets_one_answer(tmp_path):
    voxels = noise()
    (tmp_path / "in").mkdir()
    for order in ("RAS", "PIL"):
        nibabel.save(turned(voxels, order), tmp_path / "in" / f"{order}.nii.gz")
    predictor = Predictor(network(), open_codec("nifti", ORGANS), device="cpu")
    predictor.predict_files([tmp_path / "in"], tmp_path / "out", axes="zyx")
    straight, other = (
        np.asarray(nibabel.as_closest_canonical(nibabel.load(tmp_path / "out" / f"{order}.nii.gz")).dataobj)
        for order in ("RAS", "PIL")
    )
    assert np.array_equal(straight, other)
    assert len(np.unique(straight)) > 1


STORED = {
    "int16": (np.int16, {}),
    "float32": (np.float32, {}),
    "float64": (np.float64, {}),
    "uint8, scaled": (np.uint8, {"scl_slope": 0.5, "scl_inter": -1.0}),
    "big-endian": (np.dtype(">i2"), {}),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("make", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_headers_are_those_of_the_image(tmp_path, suffix, kind, make):
    dtype, scaling = STORED[kind]
    shown = labels((4, 5, 6))
    image = make(np.zeros((4, 5, 6), dtype), AFFINE)
    image.header.set_xyzt_units("micron", "sec")
    image.header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), code=3)  # says something else than the sform
    image.header.set_sform(AFFINE, code=4)
    image.header["descrip"] = b"by hand"
    stored = ((shown - scaling.get("scl_inter", 0)) / scaling.get("scl_slope", 1)).astype(dtype)
    image = make(stored, None, image.header)
    image.header.set_data_dtype(dtype)
    path = tmp_path / "in" / f"v{suffix}"
    path.parent.mkdir()
    if scaling:
        image.header.set_slope_inter(scaling["scl_slope"], scaling["scl_inter"])
        with open(path, "wb") if suffix == ".nii" else gzip.open(path, "wb") as file:
            file.write(raw_bytes(image, stored))
    else:
        nibabel.save(image, path)
    predictor = Predictor(Painted(ORGANS), open_codec("nifti", ORGANS), device="cpu")
    report = predictor.predict_files([path], tmp_path / "out", axes="zyx")
    assert report.failed == []
    before, after = nibabel.load(path), nibabel.load(tmp_path / "out" / "v.nii.gz")
    assert type(after) is make
    assert np.array_equal(np.asarray(after.dataobj), shown)
    assert after.get_data_dtype() == np.uint8
    places = (
        "pixdim qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z srow_x srow_y srow_z"
    )
    for key in (*places.split(), "srow_z", "xyzt_units", "descrip"):
        assert np.array_equal(before.header[key], after.header[key]), key
    assert after.dataobj.slope == 1.0


def raw_bytes(image, stored):
    """A file whose header scales: nibabel would choose its own slope."""
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"] = image.header.get_slope_inter()
    header["vox_offset"] = 352 if header["sizeof_hdr"] == 348 else 544
    header["magic"] = b"n+1" if header["sizeof_hdr"] == 348 else header["magic"]
    start = header.binaryblock
    return start + b"\0" * (int(header["vox_offset"]) - len(start)) + stored.tobytes(order="F")


def test_a_series_comes_out_as_a_volume_that_lies_on_it(tmp_path):
    pytest.importorskip("pydicom")
    shown = labels((6, 5, 4)).astype(np.int16)
    affine = np.array([[-0.7, 0, 0, 20.0], [0, -0.9, 0, 11.5], [0, 0, 2.5, -7.25], [0, 0, 0, 1]])
    write_series(tmp_path / "in" / "chest", shown, affine)
    predictor = Predictor(Painted(ORGANS), open_codec("nifti", ORGANS), device="cpu")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out", axes="zyx")
    assert (report.done, report.failed) == (4, [])
    written = nibabel.load(tmp_path / "out" / "chest.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    assert np.array_equal(np.asarray(written.dataobj), shown)


def test_masks_that_are_pictures_are_written_slice_by_slice(tmp_path):
    format = FORMATS["overlapping"]
    shown = labels((4, 5, 3), 2)
    save(tmp_path / "in" / "v.nii.gz", shown)
    codec = open_codec("file_per_class", format)
    Predictor(Painted(format), codec, device="cpu").predict_files([tmp_path / "in"], tmp_path / "out", axes="zyx")
    assert len(codec.stems(tmp_path / "out")) == 3
    assert np.array_equal(codec.read(tmp_path / "out", "v@z001")[..., 1], shown[:, :, 1].T)


def test_what_lies_beside_masks_is_of_the_average(tmp_path):
    stored = labels((4, 5, 6))
    path = save(tmp_path / "v.nii.gz", stored)
    model = Painted(ORGANS, ImageReading(neighbours=1), band=2)
    predictor = Predictor(model, open_codec("nifti", ORGANS), device="cpu")
    predictor.predict_files([path], tmp_path / "out", axes="zyx", overlay=True, probabilities=True, objects=True)
    answer = answer_volume(model, ImageRef(path, "z", 0), "zyx", device=CPU, probabilities=True)
    for index in range(6):
        stem = f"v@z{index:03d}"
        assert (tmp_path / "out" / "_overlay" / f"{stem}.png").is_file()
        with np.load(tmp_path / "out" / "_probabilities" / f"{stem}.npz") as file:
            assert np.array_equal(file["probabilities"], answer.probs[index].astype(np.float16))
    assert (tmp_path / "out" / "_objects.json").is_file()
    assert np.array_equal(
        np.asarray(nibabel.load(tmp_path / "out" / "v.nii.gz").dataobj), voxels_of(answer.planes, "z")[..., 0]
    )


def test_an_older_mask_is_replaced_whole_whatever_its_shape(tmp_path):
    codec = open_codec("nifti", ORGANS)
    codec.write(tmp_path / "out", "v@z000", np.ones((9, 9, 1), np.uint8))  # left behind by a run that was ended
    save(tmp_path / "out" / "v.nii.gz", labels((2, 2, 2)))
    shown = labels((4, 5, 6))
    path = save(tmp_path / "in" / "v.nii.gz", shown)
    report = Predictor(Painted(ORGANS), codec, device="cpu").predict_files([path], tmp_path / "out")
    assert report.failed == []
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "out" / "v.nii.gz").dataobj), shown)
    assert not list((tmp_path / "out").rglob("*.png"))


# What is wrong is said once ----------------------------------------------------------------------------------


def broken_inputs(folder):
    """Name -> what its fault is told as."""
    good = save(folder / "good.nii.gz", noise())
    content = good.read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "empty.nii").write_bytes(b"")
    hole = noise()
    hole[3, 4, 7] = np.nan
    save(folder / "nan.nii.gz", hole)
    save(folder / "time.nii.gz", noise((*SHAPE, 3)))
    save(folder / "five.nii.gz", noise((8, 8, 8, 2, 2)))
    return {
        "cut.nii.gz": "cannot be decoded",
        "empty.nii": "no readable NIfTI",
        "nan.nii.gz": r"slice [xyz]\d+\): 1 values are NaN",
        "time.nii.gz": "this model takes",
        "five.nii.gz": r"expected \(x, y, z\) or",
    }


@pytest.mark.parametrize("axes", [None, "zyx"])
def test_each_broken_volume_is_named_once_and_leaves_nothing_behind(tmp_path, axes):
    faults = broken_inputs(tmp_path / "in")
    predictor = Predictor(network(), open_codec("nifti", ORGANS), device="cpu")
    seen = []
    report = predictor.predict_files(
        [tmp_path / "in"], tmp_path / "out", axes=axes, progress=lambda done, total: seen.append((done, total))
    )
    named = {file.rsplit("/", 1)[-1]: reason for file, reason in report.failed}
    assert sorted(named) == sorted(faults)
    assert len(report.failed) == len(faults)
    for name, reason in faults.items():
        assert re.search(reason, named[name]), named[name]
    assert report.done == SHAPE[2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["_journal.jsonl", "_quarantine.txt", "good.nii.gz"]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_pictures_have_no_axes(tmp_path):
    from segkit.formats.png_files import write_png

    write_png(tmp_path / "in" / "a.png", np.zeros((5, 6), np.uint8))
    save(tmp_path / "in" / "v.nii.gz", labels((4, 5, 6)))
    predictor = Predictor(Painted(ORGANS), open_codec("nifti", ORGANS), device="cpu")
    report = predictor.predict_files([tmp_path / "in"], tmp_path / "out", axes="zyx")
    assert report.done == 6
    assert [reason for _, reason in report.failed] == [
        f"{tmp_path}/in/a.png: no volume, so it has no slices across z, y, x. Leave `axes` out."
    ]


@pytest.mark.parametrize(("axes", "words"), [("zz", "each once"), ("zw", "each once"), ("", "each once"), ("xy", "z")])
def test_axes_that_mean_nothing_are_refused_before_any_work(tmp_path, axes, words):
    with pytest.raises(ValueError, match=words):
        check_axes(axes, ImageReading())
    with pytest.raises(ValueError, match=words):
        Predictor(Painted(ORGANS), open_codec("nifti", ORGANS)).predict_files([tmp_path], tmp_path / "out", axes=axes)
    assert not (tmp_path / "out").exists()


def test_axes_that_the_model_has_not_seen_are_told_once(tmp_path, caplog):
    volumes._tell_new.cache_clear()
    volumes._tell_unequal.cache_clear()
    image = ImageRef(save(tmp_path / "v.nii.gz", labels((4, 5, 6)), np.diag([0.7, 0.7, 5.0, 1.0])), "z", 0)
    answer_volume(Painted(ORGANS), image, device=CPU)
    answer_volume(Painted(ORGANS, ImageReading(axis="zyx")), image, "zx", device=CPU)
    assert not caplog.records
    answer_volume(Painted(ORGANS, resize=Spacing(1.0, 1.0)), image, "zyx", device=CPU)
    assert [record.getMessage()[:75] for record in caplog.records] == [
        "the model has learned from slices across z and is asked for slices across x"
    ]
    for _ in range(2):
        answer_volume(Painted(ORGANS), image, "zyx", device=CPU)
    assert [record.getMessage()[:25] for record in caplog.records[1:]] == ["voxels of 0.7 x 0.7 x 5 m"]


def test_pieces_of_work(tmp_path):
    refs = [
        ImageRef(tmp_path / "a.nii", "z", 0),
        ImageRef(tmp_path / "a.nii", "z", 1),
        ImageRef(tmp_path / "b.png"),
        ImageRef(tmp_path / "b.png"),
        ImageRef(tmp_path / "c.nii", "z", 0),
        ImageRef(tmp_path / "a.nii", "z", 2),
    ]
    inputs = [Input(ref, f"s{number}", tmp_path) for number, ref in enumerate(refs)]
    assert [[item.stem for item in piece] for piece in by_volume(inputs)] == [
        ["s0", "s1", "s5"],
        ["s2"],
        ["s3"],
        ["s4"],
    ]


@pytest.mark.parametrize("axes", [None, "zyx"])
@pytest.mark.parametrize("step", [{"name": "largest_component"}, {"name": "minimum_size", "mm3": 9.0}])
def test_steps_of_post_processing_see_the_whole_volume(tmp_path, axes, step):
    shown = np.zeros((6, 7, 4), np.uint8)
    shown[1, 1, :] = 1  # four voxels of 3 cubic millimetres, one in each slice
    shown[4:6, 4, 2] = 1  # two, more than any slice has of the other
    path = save(tmp_path / "in" / "v.nii.gz", shown, np.diag([0.5, 2.0, 3.0, 1.0]))
    model = Painted(ORGANS)
    model.postprocess = open_steps([step], ORGANS)
    predictor = Predictor(model, open_codec("nifti", ORGANS), device="cpu")
    assert predictor.predict_files([path], tmp_path / "out", axes=axes).failed == []
    written = np.asarray(nibabel.load(tmp_path / "out" / "v.nii.gz").dataobj)
    assert np.argwhere(written).tolist() == [[1, 1, z] for z in range(4)]


# Models that have learned from several axes, and scores ---------------------------------------------------------


def write_cases(root, axis, count=2):
    """Data whose images show their labels, but for one voxel in four."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        truth = labels((4, 5, 6), seed=number)
        shown = np.where(np.random.default_rng(number).random(truth.shape) < 0.25, 0, truth)
        nibabel.save(turned(truth, "LPS"), root / "labels" / f"c{number}.nii.gz")
        nibabel.save(turned(shown.astype(np.float32), "RAS"), root / "images" / f"c{number}.nii.gz")
    codec = open_codec({"name": "nifti", "axis": axis}, ORGANS)
    return MaskDataset(root / "images", root / "labels", codec, reading=ImageReading(axis=axis))


def test_slices_across_several_axes_are_samples(tmp_path):
    data = write_cases(tmp_path, "zy", count=1)
    assert data.stems == [f"c0@y00{n}" for n in range(5)] + [f"c0@z00{n}" for n in range(6)]
    truth = labels((4, 5, 6), seed=0)
    for stem, index in (("c0@y003", 3), ("c0@z005", 10)):
        assert np.array_equal(data.read(index).planes[..., 0], volume_slice(truth, stem[3], int(stem[-1]))), stem
    assert data.across("z").stems == data.stems[5:]
    with pytest.raises(ValueError, match="no slices across x, only across z, y"):
        data.across("x")
    assert open_codec(data.codec.to_spec(), ORGANS) == data.codec


def test_volumes_are_averaged_over_the_axes_that_the_model_has_learned_from(tmp_path):
    path = save(tmp_path / "v.nii.gz", labels((4, 5, 6)))
    both, one = (Painted(ORGANS, ImageReading(axis=axis, neighbours=1), band=2) for axis in ("yz", "y"))
    predictor = Predictor(both, device="cpu")
    average = predictor.predict_volume(path)
    assert average.shape == (5, 6, 4, 1)
    assert np.array_equal(average, predictor.predict_volume(path, "zy"))
    assert np.array_equal(average, Predictor(one, device="cpu").predict_volume(path, "yz"))
    assert np.array_equal(predictor.predict_volume(path, "y"), Predictor(one, device="cpu").predict_volume(path))
    assert not np.array_equal(average, predictor.predict_volume(path, "y"))


@pytest.mark.parametrize(("learned", "axes"), [("z", None), ("z", "zyx"), ("xz", None), ("xz", "x"), ("xz", "yxz")])
def test_scores_of_a_model_are_those_of_what_it_predicts(tmp_path, learned, axes):
    data = write_cases(tmp_path, learned)
    model = Painted(ORGANS, ImageReading(axis=learned, neighbours=1), band=2)
    data.reading = model.reading
    codec = open_codec({"name": "nifti", "axis": learned[0]}, ORGANS)
    told = []
    found = evaluate(
        model, data, device="cpu", workers=0, axes=axes, batch_size=3, progress=lambda *counts: told.append(counts)
    )
    report = Predictor(model, codec, device="cpu").predict_files([data.images], tmp_path / "out", axes=axes)
    assert report.failed == []
    expected = evaluate_predictions(tmp_path / "out", data.masks, codec)
    assert found.to_dict() == expected.to_dict()
    assert found.images == 2 * {"z": 6, "x": 4}[learned[0]]
    assert 0 < found.pooled("dice").mean < 1
    assert told[-1] == (found.images, found.images)


def test_some_slices_of_a_volume_are_scored_by_its_whole_answer(tmp_path):
    data = write_cases(tmp_path, "z")
    whole = {}
    model = Painted(ORGANS, ImageReading(neighbours=1), band=2)
    data.reading = model.reading
    for stem in data.stems:
        whole[stem] = evaluate(model, data.subset([stem]), device="cpu", axes="zyx").pooled("accuracy").per_class
    chosen = ["c1@z004", "c0@z001"]
    both = evaluate(model, data.subset(chosen), device="cpu", axes="zyx").pooled("accuracy").per_class
    for name, value in both.items():
        assert value == pytest.approx(np.mean([whole[stem][name] for stem in chosen]))


def test_hippocampus_volumes_come_back_as_they_lie(shared_data, tmp_path):
    images = sorted((shared_data / "hippocampus" / "test" / "images").glob("*.nii.gz"))[:2]
    format = MaskFormat.multiclass(["background", "anterior", "posterior"])
    model = network(format, ImageReading(normalize="volume"))
    predictor = Predictor(model, open_codec("nifti", format), device="cpu")
    report = predictor.predict_files(images, tmp_path / "out", axes="zyx")
    assert report.failed == []
    for path in images:
        image, mask = nibabel.load(path), nibabel.load(tmp_path / "out" / path.name)
        assert mask.shape == image.shape
        assert np.array_equal(mask.affine, image.affine)
        planes = predictor.predict_volume(path, "zyx")
        assert np.array_equal(np.asarray(nibabel.as_closest_canonical(mask).dataobj), voxels_of(planes, "z")[..., 0])
