import logging
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import tifffile

from segkit.data import cache, origin
from segkit.data.augment import build_augment
from segkit.data.cache_files import SampleWriter
from segkit.data.datasets import MaskDataset
from segkit.data.loaders import eval_loader, train_loader
from segkit.data.packed import PackedPlanes
from segkit.data.reading import ImageReading
from segkit.data.sample import Sample
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.evaluate import as_stored
from tests.data.stand_in import add_sample
from tests.scenes import FORMATS, write_set

SIZE_HW = (40, 56)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Copies on disk and in shared memory, of this test alone."""
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "shm")
    return tmp_path / "cache"


@pytest.fixture
def ds(folder, codec):
    return MaskDataset(folder / "images", folder / "masks", codec)


def copies(home):
    return sorted(p.name for p in home.glob("[!.]*")) if home.exists() else []


def touch(path, seconds=5):
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + seconds * 10**9))


def assert_same(one: Sample, two: Sample):
    assert (one.stem, one.spacing_mm, one.image.dtype, one.planes.dtype) == (
        two.stem,
        two.spacing_mm,
        two.image.dtype,
        two.planes.dtype,
    )
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.planes, two.planes)


# What it holds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["disk", "ram"])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_copy_gives_what_the_files_give(tmp_path, kind, place):
    ds = write_set(tmp_path / "data", FORMATS[kind], 3)
    cached = ds.cached(place)
    assert cached.stems == ds.stems
    for index in (*range(3), -1):
        assert_same(cached.read(index), ds.read(index))
        assert_same(cached[index], ds[index])
    with pytest.raises(IndexError):
        cached.read(3)
    assert cached.verify() == ds.verify()


@pytest.mark.parametrize("ignored", [[], [128]])
@pytest.mark.parametrize("count", [2, 8, 11])
def test_overlapping_planes_are_bits_on_disk(tmp_path, count, ignored):
    format = MaskFormat.multilabel([f"c{i}" for i in range(count)])
    codec = open_codec({"name": "file_per_class", "ignored_values": ignored}, format)
    rng = np.random.default_rng(0)
    for stem in ("a", "b"):
        planes = rng.integers(0, 2, (*SIZE_HW, count)).astype(np.uint8)
        if ignored and stem == "b":
            planes[3:20, 5:30, 1] = 255
        add_sample(tmp_path, codec, stem, planes)
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    cached = ds.cached()
    for index in range(2):
        assert_same(cached.read(index), ds.read(index))
        assert isinstance(cached.read(index).stored_planes, PackedPlanes)
    size = (cached._copy.folder / "planes.bin").stat().st_size
    pixels, layers = SIZE_HW[0] * SIZE_HW[1], 3 if ignored else 2
    assert pixels * -(-count // 8) * layers <= size <= pixels * -(-count // 8) * layers + 64 * layers


def test_volumes_keep_their_spacing_and_depth(tmp_path):
    rng = np.random.default_rng(0)
    for kind, dtype in (("images", np.float32), ("masks", np.uint8)):
        (tmp_path / kind).mkdir()
        voxels = rng.integers(0, 3, (12, 9, 4)).astype(dtype)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.7, 2.0, 1.0])), tmp_path / kind / "case.nii.gz")
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", open_codec("nifti", MaskFormat.multiclass(range(3))))
    cached = ds.cached()
    assert len(cached) == 4
    assert cached.read(2).spacing_mm == pytest.approx((0.7, 0.5))
    for index in range(4):
        assert_same(cached.read(index), ds.read(index))


def test_some_slices_of_a_volume_are_not_all_of_them(tmp_path):
    codec = open_codec("nifti", FORMATS["exclusive"])
    ds = write_set(tmp_path / "data", FORMATS["exclusive"], 3, codec=codec)
    assert_same(ds.subset(["case@z001"]).cached().read(0), ds.read(1))
    assert_same(ds.cached().read(2), ds.read(2))


def test_any_depth_any_bands_and_wide_planes(tmp_path):
    format = MaskFormat.multiclass([f"c{i}" for i in range(300)])
    codec = open_codec("index_png", format)
    rng = np.random.default_rng(0)
    for stem, dtype in (("a", np.uint16), ("b", np.float32)):
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{stem}.tif", (rng.random((20, 30, 13)) * 900).astype(dtype))
        codec.write(tmp_path / "masks", stem, rng.integers(0, 300, (20, 30, 1)).astype(np.uint16))
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    for index in range(2):
        assert_same(ds.cached().read(index), ds.read(index))


def test_resize_comes_after_the_copy_so_that_scores_see_the_stored_size(folder, codec):
    plain = MaskDataset(folder / "images", folder / "masks", codec, resize=[10, 14])
    cached = plain.cached()
    assert_same(cached[1], plain[1])
    assert cached[1].size_hw == (10, 14)
    assert as_stored(cached)[1].size_hw == (20, 28)


def test_subsets_share_the_copy_they_were_taken_from(ds, home):
    cached = ds.cached()
    part = cached.subset(["town/e", "b"])
    assert_same(part.read(0), ds.read(4))
    assert copies(home) == [cached._copy.folder.name]
    # A subset that is cached on its own holds its own samples.
    alone = ds.subset(["b"]).cached()
    assert_same(alone.read(0), ds.read(1))
    assert len(copies(home)) == 2


# Reading -----------------------------------------------------------------------------------------------


def test_samples_are_views_into_one_map_and_read_only(ds):
    cached = ds.cached()
    one, again = cached.read(2), cached.read(2)
    assert np.shares_memory(one.image, again.image)
    assert np.shares_memory(one.planes, again.planes)
    with pytest.raises(ValueError, match="read-only"):
        one.image[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        one.planes[0, 0] = 1


@pytest.mark.parametrize("spec", ["none", "light", "street", "medical", "fast_light", "fast_street", "fast_medical"])
@pytest.mark.parametrize("kind", ["exclusive", "overlapping"])
@pytest.mark.parametrize("crop", [None, 24, [50, 60]])
def test_augmentation_of_a_copy_is_that_of_the_files(tmp_path, kind, spec, crop):
    ds = write_set(tmp_path / "data", FORMATS[kind], 2)
    ds.augment = build_augment(spec, ds.format, crop)
    cached = ds.cached()
    for epoch in range(6):
        for index in range(2):
            assert_same(cached[epoch, index], ds[epoch, index])


@pytest.mark.parametrize("spec", ["light", "fast_light", "fast_medical"])
def test_planes_are_unpacked_within_the_crop_only(tmp_path, monkeypatch, spec):
    ds = write_set(tmp_path / "data", FORMATS["overlapping"], 1)
    ds.augment = build_augment(spec, ds.format, 16)
    cached = ds.cached()
    shapes = []
    unpack = PackedPlanes.unpack
    monkeypatch.setattr(PackedPlanes, "unpack", lambda self: (shapes.append(self.shape), unpack(self))[1])
    for seed in range(5):
        assert cached[seed, 0].planes.shape == (16, 16, 2)
    assert set(shapes) == {(16, 16, 2)}


@pytest.mark.parametrize(("place", "method"), [("disk", "fork"), ("ram", "spawn")])
def test_workers_map_the_copy_themselves(folder, codec, method, place):
    ds = MaskDataset(folder / "images", folder / "masks", codec, augment=build_augment("fast_light", codec.format, 16))
    expected = [batch.images for batch in train_loader(ds, 2, workers=0)]
    cached = ds.cached(place)
    cached.read(0)  # a fork takes the open map along, a pickle does not
    for path in (folder / "images").rglob("*.png"):
        path.unlink()
    found = [batch.images for batch in train_loader(cached, 2, workers=2, start_method=method)]
    assert len(found) == len(expected) > 0
    for one, two in zip(found, expected, strict=True):
        assert (one == two).all()
    stems = [s for parts in eval_loader(as_stored(cached), 2, workers=1, start_method=method) for s in parts[0].stems]
    assert stems == ds.stems


def test_a_pickle_holds_no_samples(ds):
    cached = ds.cached()
    cached.read(0)
    again = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) < len(pickle.dumps(ds)) + 500
    assert_same(again.read(3), ds.read(3))


def test_a_copy_that_is_gone_is_told(ds):
    cached = ds.cached()
    shutil.rmtree(cached._copy.folder)
    with pytest.raises(ValueError, match=r"this decoded copy is gone or damaged\. Start again"):
        cached.read(0)


# Fingerprint -------------------------------------------------------------------------------------------


def test_a_copy_is_made_once(ds, home, monkeypatch):
    first, counts = ds.cached(), []
    monkeypatch.setattr(SampleWriter, "add", None)
    again = ds.cached(progress=lambda done, total: counts.append(done))
    assert again._copy.folder == first._copy.folder
    assert counts == []
    assert_same(again.read(1), ds.read(1))


def test_progress_and_threads(ds):
    counts = []
    ds.cached(workers=3, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(n, 5) for n in range(1, 6)]


@pytest.mark.parametrize("place", ["disk", "ram"])
@pytest.mark.parametrize("side", ["images/b.png", "masks/b.npy"])
def test_a_changed_file_is_never_served_stale(folder, codec, home, side, place):
    ds = MaskDataset(folder / "images", folder / "masks", codec)
    ds.cached(place)
    changed = np.full((20, 28, 1), 3, np.uint8)
    if side.startswith("images"):
        cv2.imwrite(str(folder / side), changed * 50)
    else:
        codec.write(folder / "masks", "b", changed)
    touch(folder / side)
    cached = ds.cached(place)
    assert_same(cached.read(1), ds.read(1))
    assert (cached.read(1).image == 150).all() or (cached.read(1).planes == 3).all()
    if place == "disk":
        assert copies(home) == [cached._copy.folder.name]  # the old one holds nothing that anybody can use


def test_an_outdated_copy_in_use_stays(folder, ds, home):
    old = ds.cached()
    touch(folder / "images" / "b.png")
    new = ds.cached()
    assert len(copies(home)) == 2
    old.read(1)
    del old
    touch(folder / "images" / "b.png")
    newest = ds.cached()
    assert copies(home) == sorted(c._copy.folder.name for c in (new, newest))


def test_new_samples_and_lost_ones_make_another_copy(folder, codec, home):
    ds = MaskDataset(folder / "images", folder / "masks", codec)
    ds.cached()
    add_sample(folder, codec, "f", np.zeros((20, 28, 1), np.uint8))
    grown = MaskDataset(folder / "images", folder / "masks", codec)
    assert_same(grown.cached().read(3), grown.read(3))
    assert len(copies(home)) == 2  # the first still agrees with the files
    (folder / "masks" / "f.npy").unlink()
    with pytest.raises(ValueError, match="f"):
        grown.cached()


@pytest.mark.parametrize(
    ("codec_a", "codec_b"),
    [
        ({"values": {0: "a", 1: "b"}}, {"values": {0: "b", 1: "a"}}),
        ({"values": {0: "a", 1: "b"}}, {"values": {0: "a"}, "ignored_values": [1]}),
    ],
)
def test_what_values_mean_is_part_of_the_fingerprint(tmp_path, codec_a, codec_b):
    planes = np.arange(20 * 28).reshape(20, 28, 1) % 2
    one, two = (
        open_codec({"name": "index_png", **spec}, MaskFormat.multiclass(sorted(set(spec["values"].values()))))
        for spec in (codec_a, codec_b)
    )
    add_sample(tmp_path, one, "a", planes.astype(np.uint8))
    sets = [MaskDataset(tmp_path / "images", tmp_path / "masks", codec) for codec in (one, two)]
    for ds in sets:
        assert_same(ds.cached().read(0), ds.read(0))
    assert not np.array_equal(sets[0].read(0).planes, sets[1].read(0).planes)


def test_colours_of_classes_are_part_of_the_fingerprint(tmp_path):
    red, green = ({"name": "x", "color": color} for color in ([255, 0, 0], [0, 255, 0]))
    formats = [
        MaskFormat.multiclass([red, {**green, "name": "y"}]),
        MaskFormat.multiclass([green, {**red, "name": "y"}]),
    ]
    one, two = (open_codec("color_png", format) for format in formats)
    assert one.to_spec() == two.to_spec()
    add_sample(tmp_path, one, "a", np.zeros((4, 5, 1), np.uint8))
    for codec, value in ((one, 0), (two, 1)):
        cached = MaskDataset(tmp_path / "images", tmp_path / "masks", codec).cached()
        assert (cached.read(0).planes == value).all()


def test_gray_axis_and_versions_are_part_of_the_fingerprint(folder, codec, ds, home, monkeypatch):
    ds.cached()
    gray = MaskDataset(folder / "images", folder / "masks", codec, reading=ImageReading(gray=True)).cached()
    assert gray.read(0).image.shape == (20, 28, 1)
    other = MaskDataset(folder / "images", folder / "masks", codec, reading=ImageReading(axis="x"))
    assert len({d._origin().fingerprint for d in (ds, gray, other)}) == 3
    assert len(copies(home)) == 2
    del gray
    monkeypatch.setattr(origin, "__version__", "next")
    ds.cached()
    assert len(copies(home)) == 1  # copies that another version decoded are removed


def test_a_moved_data_set_is_another(folder, codec, ds, home):
    ds.cached()
    shutil.copytree(folder / "images", folder / "more" / "images", copy_function=shutil.copy2)
    MaskDataset(folder / "more" / "images", folder / "masks", codec).cached()
    assert len(copies(home)) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("index_png", ["s1.png"]),
        ("palette_png", ["s1.png"]),
        ("color_png", ["s1.png"]),
        ("file_per_class", ["sky/s1.png", "ground/s1.png", "disc/s1.png"]),
        ("nifti", ["case.nii.gz"]),
    ],
)
def test_codecs_name_the_files_they_read(tmp_path, name, expected):
    codec = open_codec(name, FORMATS["exclusive"])
    ds = write_set(tmp_path / "data", FORMATS["exclusive"], 2, codec=codec)
    root = tmp_path / "data" / "masks"
    assert [p.relative_to(root).as_posix() for p in codec.files(root, ds.stems[1])] == expected
    assert ds.codec.files(root, "nothing@z001" if name == "nifti" else "nothing") == []


def test_an_absent_class_file_that_appears_makes_another_copy(tmp_path):
    format = MaskFormat.multilabel(["left", "right"])
    codec = open_codec({"name": "file_per_class", "missing": "empty"}, format)
    add_sample(tmp_path, codec, "a", np.ones((6, 7, 2), np.uint8))
    (tmp_path / "masks" / "right" / "a.png").rename(tmp_path / "right.png")
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    assert ds.cached().read(0).planes[..., 1].max() == 0
    (tmp_path / "right.png").rename(tmp_path / "masks" / "right" / "a.png")
    assert ds.cached().read(0).planes[..., 1].min() == 1


def test_files_that_change_while_they_are_read_are_noticed(folder, ds, home, monkeypatch):
    add = SampleWriter.add

    def add_and_touch(self, sample):
        add(self, sample)
        touch(folder / "images" / "c.png", 1)

    monkeypatch.setattr(SampleWriter, "add", add_and_touch)
    with pytest.raises(ValueError, match="files changed while they were read"):
        ds.cached()
    assert copies(home) == []


# Faults and bounds -------------------------------------------------------------------------------------


def test_a_bad_sample_is_named_as_verify_does(folder, codec, ds, home):
    (folder / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    codec.write(folder / "masks", "town/d", np.zeros((3, 3, 1), np.uint8))
    with pytest.raises(ValueError, match="2 faults in 5 samples") as by_verify:
        ds.verify()
    with pytest.raises(ValueError, match="2 faults in 5 samples") as by_cache:
        ds.cached()
    assert str(by_cache.value) == str(by_verify.value)
    assert copies(home) == []


@pytest.mark.parametrize("place", ["disk", "ram"])
def test_a_bound_is_told_with_size_and_ways_out(ds, home, place):
    with pytest.raises(ValueError, match=r"5 decoded samples take about 0\.0 MiB, but the cache may take") as caught:
        ds.cached(place, max_gib=1e-6)
    another = {"disk": "data.cache_dir", "ram": "data.cache=disk"}[place]
    for way in ("`cache_gib`", "data.cache_gib", another, "data.cache=off"):
        assert way in str(caught.value)
    assert copies(home) == []
    assert ds.cached(place, max_gib=1).read(0).size_hw == (20, 28)


def test_a_bound_holds_where_the_estimate_was_too_low(ds, monkeypatch):
    monkeypatch.setattr(MaskDataset, "_estimated_bytes", lambda self: 0)
    # 5 samples of 20 x 28 x (3 + 1) bytes, of which two fit.
    with pytest.raises(ValueError, match="decoded samples take about"):
        ds.cached(max_gib=4600 / 2**30, workers=1)


def test_bounds_by_default(ds, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5000))
    with pytest.raises(ValueError, match="nine tenths of what is free in"):
        ds.cached()
    monkeypatch.setattr(cache, "available_memory", lambda: 5000)
    with pytest.raises(ValueError, match="half of the free memory"):
        ds.cached("ram")


def test_a_wrong_place_or_bound(ds):
    with pytest.raises(ValueError, match="a cache in 'disc': expected disk or ram"):
        ds.cached("disc")
    with pytest.raises(ValueError, match="a cache of 0 GiB"):
        ds.cached(max_gib=0)


# Shared memory -----------------------------------------------------------------------------------------


def test_shared_memory_is_free_again_when_the_copy_goes(ds, tmp_path, home):
    cached = ds.cached("ram")
    assert cached._copy.folder.is_relative_to(tmp_path / "shm")
    assert cached._copy.folder.parent.stat().st_mode & 0o777 == 0o700
    assert copies(home) == []
    image = cached.read(0).image
    folder = cached._copy.folder
    del cached
    assert not folder.exists()
    np.testing.assert_array_equal(image, ds.read(0).image)  # what is mapped stays


def test_shared_memory_left_by_a_killed_process_is_freed(ds, tmp_path):
    home = tmp_path / "shm" / f"segkit-{os.getuid()}"
    shutil.copytree(ds.cached()._copy.folder, home / "left-by-another")
    cached = ds.cached("ram")
    assert copies(home) == [cached._copy.folder.name]


@pytest.mark.parametrize("reason", ["none", "small"])
def test_without_enough_shared_memory_the_copy_goes_to_disk_and_says_so(
    ds, home, monkeypatch, caplog, reason, tmp_path
):
    if reason == "none":
        monkeypatch.setattr(cache, "SHARED_MEMORY", tmp_path / "nowhere")
    else:
        usage, whole = shutil.disk_usage("/"), shutil.disk_usage
        shm = str(tmp_path / "shm")
        small = lambda path: usage._replace(free=64) if str(path).startswith(shm) else whole(path)  # noqa: E731
        monkeypatch.setattr(shutil, "disk_usage", small)
    with caplog.at_level(logging.WARNING, "segkit"):
        cached = ds.cached("ram")
    assert copies(home) == [cached._copy.folder.name]
    assert f"the decoded copy goes to {home} instead" in caplog.text
    assert_same(cached.read(0), ds.read(0))


# Many processes ----------------------------------------------------------------------------------------


def build_in_a_process(ds, barrier, answers):
    barrier.wait()
    cached = ds.cached()
    answers.put([int(cached.read(i).image.sum()) for i in range(len(cached))])


def test_processes_that_build_together_read_the_same(folder, codec, home):
    ds = MaskDataset(folder / "images", folder / "masks", codec)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=build_in_a_process, args=(ds, barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [[int(ds.read(i).image.sum()) for i in range(5)]] * 3
    assert len(copies(home)) == 1
    assert [p.name for p in home.glob(".*")] == []


def test_default_folders(monkeypatch):
    assert cache.default_home() == Path(os.environ["SEGKIT_CACHE"])
    monkeypatch.delenv("SEGKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.default_home() == Path("/x/segkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.default_home() == Path("/home/me/.cache/segkit")
    monkeypatch.setenv("SEGKIT_CACHE", "~/fast")
    assert cache.default_home() == Path("/home/me/fast")


def test_without_a_home_folder_one_must_be_named(monkeypatch):
    def no_home():
        raise RuntimeError

    monkeypatch.delenv("SEGKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match=r"no home folder for a cache\. Say where with `data\.cache_dir`"):
        cache.default_home()


def test_a_place_where_no_folder_can_be_made_is_told_with_ways_out(ds, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"no folder for a cache can be made .*`data.cache_dir`.*`data.cache=off`"):
        ds.cached("disk", folder=tmp_path / "file" / "cache")
