from collections import Counter

import numpy as np
import pytest

from segkit.data.augment import build_augment
from segkit.data.datasets import MaskDataset, check_training_sizes, sample_seed
from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from tests.data.stand_in import add_sample


@pytest.fixture
def ds(folder, codec):
    return MaskDataset(folder / "images", folder / "masks", codec)


def test_pairs_by_stem(ds, folder):
    assert ds.stems == ["a", "b", "c", "town/d", "town/e"]
    assert (len(ds), ds.format, ds.image_path(3)) == (5, ds.codec.format, folder / "images" / "town" / "d.png")
    sample = ds.read(3)
    assert sample.stem == "town/d"
    np.testing.assert_array_equal(sample.image[..., 0], sample.planes[..., 0] * 60)
    assert [s.stem for s in ds] == ds.stems  # a plain loop ends


def test_gray(folder, codec):
    gray = MaskDataset(folder / "images", folder / "masks", codec, reading=ImageReading(gray=True))
    assert gray.read(0).image.shape == (20, 28, 1)


def test_images_without_masks_are_refused_by_name(folder, codec):
    for stem in ("a", "town/d"):
        (folder / "masks" / f"{stem}.npy").unlink()
    with pytest.raises(ValueError, match=r"2 of 5 images in .* have no mask in .*: a, town/d\. Add what is missing"):
        MaskDataset(folder / "images", folder / "masks", codec)


def test_masks_without_images_are_refused_unless_a_list_says_which(folder, codec):
    (folder / "images" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"1 masks in .* have no image in .*: b\."):
        MaskDataset(folder / "images", folder / "masks", codec)
    assert MaskDataset(folder / "images", folder / "masks", codec, stems=["c", "a"]).stems == ["c", "a"]
    with pytest.raises(ValueError, match=r"images: no samples b\."):
        MaskDataset(folder / "images", folder / "masks", codec, stems=["c", "b"])


def test_both_sides_are_named_at_once(folder, codec):
    (folder / "images" / "b.png").unlink()
    (folder / "masks" / "c.npy").unlink()
    with pytest.raises(ValueError, match=r"have no mask in .*: c; 1 masks in .* have no image in .*: b\."):
        MaskDataset(folder / "images", folder / "masks", codec)


def test_names_that_agree_nowhere_are_explained(folder, codec):
    (folder / "other").mkdir()
    codec.write(folder / "other", "a_mask", np.zeros((20, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"a_mask\. Image and mask belong together when their names agree"):
        MaskDataset(folder / "images", folder / "other", codec)


def test_a_long_list_is_shortened(folder, codec):
    for i in range(30):
        codec.write(folder / "masks", f"x{i:02d}", np.zeros((20, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"x00, x01, x02, x03, x04, \.\.\. \(30 in all\)"):
        MaskDataset(folder / "images", folder / "masks", codec)


def test_empty_folders(tmp_path, folder, codec):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no images here \(read are \.png"):
        MaskDataset(tmp_path / "empty", folder / "masks", codec)
    with pytest.raises(ValueError, match="empty: no masks here that the codec 'stand_in' reads"):
        MaskDataset(folder / "images", tmp_path / "empty", codec)
    with pytest.raises(ValueError, match="all 5 images are left out"):
        MaskDataset(folder / "images", folder / "masks", codec, quarantine=["a", "b", "c", "town/d", "town/e"])


def test_quarantine_heals_a_folder(folder, codec):
    (folder / "masks" / "a.npy").unlink()
    (folder / "images" / "b.png").unlink()
    ds = MaskDataset(folder / "images", folder / "masks", codec, quarantine=["a", "b", "of another part"])
    assert ds.stems == ["c", "town/d", "town/e"]
    assert ds.quarantined == ["a"]


def test_quarantine_takes_file_names_and_tells_what_it_does_not_know(folder, codec):
    (folder / "images" / "b.png").unlink()
    names = ["a.png", "b.png", "town/d", "tpyo.png"]
    ds = MaskDataset(folder / "images", folder / "masks", codec, quarantine=names)
    assert (ds.stems, ds.quarantined) == (["c", "town/e"], ["a", "town/d"])
    assert ds.quarantine_unknown == ["tpyo.png"]
    one = MaskDataset(folder / "images", folder / "masks", codec, stems=["c", "a"], quarantine=names)
    assert (one.stems, one.quarantined) == (["c"], ["a"])


def test_quarantine_of_a_volume_leaves_out_all_its_slices(tmp_path, codec):
    import nibabel

    (tmp_path / "images").mkdir()
    for case in ("v", "w"):
        volume = nibabel.Nifti1Image(np.zeros((4, 5, 3), np.uint8), np.eye(4))
        nibabel.save(volume, tmp_path / "images" / f"{case}.nii.gz")
        for z in range(3):
            codec.write(tmp_path / "masks", f"{case}@z00{z}", np.zeros((5, 4, 1), np.uint8))
    for name in ("v", "v.nii.gz"):
        ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec, quarantine=[name])
        assert ds.quarantined == ["v@z000", "v@z001", "v@z002"]
        assert ds.stems == ["w@z000", "w@z001", "w@z002"]


def test_subset_and_without_augment_leave_the_original(ds):
    ds.augment = build_augment("light", ds.format)
    small = ds.subset(["town/e", "a"])
    assert (small.stems, ds.stems[0]) == (["town/e", "a"], "a")
    np.testing.assert_array_equal(small.read(0).image, ds.read(4).image)
    assert small.without_augment().augment is None
    assert small.augment is ds.augment
    with pytest.raises(ValueError, match=r"no samples town/x\. Did you mean `town/"):
        ds.subset(["town/x"])


def test_sizes_that_differ_are_named_when_read(folder, codec):
    add_sample(folder, codec, "z", np.zeros((20, 28, 1), np.uint8), np.zeros((30, 28, 3), np.uint8))
    with pytest.raises(ValueError, match="z: image is 30x28 but its mask is 20x28"):
        MaskDataset(folder / "images", folder / "masks", codec).read(5)


def test_resize_comes_before_augment_and_not_in_read(folder, codec):
    seen = []

    def augment(sample, seed):
        seen.append((sample.size_hw, seed))
        return sample

    ds = MaskDataset(folder / "images", folder / "masks", codec, resize=14, augment=augment, seed=7)
    assert ds[3, 2].size_hw == (10, 14)
    assert ds.read(2).size_hw == (20, 28)
    assert seen == [((10, 14), sample_seed(7, 3, 2))]
    assert set(np.unique(ds[2].planes)) <= set(np.unique(ds.read(2).planes))
    with pytest.raises(ValueError, match="resize is 0"):
        MaskDataset(folder / "images", folder / "masks", codec, resize=0)


def test_augmentation_is_a_function_of_seed_epoch_and_index(ds):
    ds.augment = build_augment([{"RandomBrightnessContrast": {"p": 1}}], ds.format)
    first = {(e, i): ds[e, i].image for e in range(3) for i in (3, 0)}
    again = {(e, i): ds[e, i].image for e in (2, 0, 1) for i in (0, 3)}
    for key, image in first.items():
        np.testing.assert_array_equal(image, again[key])
    assert not np.array_equal(first[0, 0], first[1, 0])
    ds.seed = 1
    assert not np.array_equal(first[0, 0], ds[0, 0].image)
    np.testing.assert_array_equal(ds[0].image, ds[0, 0].image)


def test_seeds_do_not_repeat():
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(10) for i in range(50)}
    assert len(seeds) == 4 * 10 * 50


def test_verify_counts_sizes_and_tells_progress(ds, folder, codec):
    add_sample(folder, codec, "z", np.zeros((12, 9, 1), np.uint8))
    told = []
    sizes = MaskDataset(folder / "images", folder / "masks", codec).verify(2, lambda *now: told.append(now))
    assert sizes == {(20, 28): 5, (12, 9): 1}
    assert told == [(i, 6) for i in range(1, 7)]


def test_verify_names_all_faults_at_once(folder, codec):
    add_sample(folder, codec, "z", np.zeros((20, 28, 1), np.uint8), np.zeros((30, 28, 3), np.uint8))
    (folder / "images" / "b.png").write_bytes(b"nothing")
    codec.write(folder / "masks", "c", np.zeros((20, 28, 3), np.uint8))
    with pytest.raises(ValueError, match="3 faults in 6 samples") as caught:
        MaskDataset(folder / "images", folder / "masks", codec).verify(2)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, name in zip(lines[1:], ("b.png: the file cannot", "c.npy: planes are", "z: image is"), strict=True):
        assert name in line


def test_verify_shows_twenty_faults(tmp_path, codec):
    for i in range(23):
        add_sample(tmp_path, codec, f"{i:02d}", np.zeros((4, 5, 1), np.uint8))
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="23 faults in 23 samples") as caught:
        MaskDataset(tmp_path / "images", tmp_path / "masks", codec).verify()
    assert len(str(caught.value).splitlines()) == 22
    assert str(caught.value).endswith("... and 3 more")


def test_verify_wants_the_same_bands_everywhere(folder, codec):
    import tifffile

    tifffile.imwrite(folder / "images" / "t.tif", np.zeros((20, 28, 5), np.uint8), planarconfig="contig")
    codec.write(folder / "masks", "t", np.zeros((20, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"bands: .*a\.png has 3 of uint8, .*t\.tif has 5 of uint8\. Store"):
        MaskDataset(folder / "images", folder / "masks", codec).verify()


def test_verify_says_how_16_bit_gray_differs_from_8_bit_gray_but_takes_depths_that_fit(folder, codec):
    import cv2

    cv2.imwrite(str(folder / "images" / "t.png"), np.full((20, 28), 40000, np.uint16))
    codec.write(folder / "masks", "t", np.zeros((20, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"t\.png has 1 of uint16, .*a\.png has 3 of uint8.*unless read as gray"):
        MaskDataset(folder / "images", folder / "masks", codec).verify()
    gray = MaskDataset(folder / "images", folder / "masks", codec, reading=ImageReading(gray=True))
    assert gray.verify() == {(20, 28): 6}


def test_sizes_that_do_not_fit_into_a_batch_are_refused_with_the_ways_out():
    sizes = Counter({(20, 28): 5, (12, 9): 7, **{(i, 1): 1 for i in range(1, 5)}})
    check_training_sizes(sizes, 1)
    check_training_sizes(Counter({(20, 28): 5}), 8)
    check_training_sizes(Counter(), 8)
    with pytest.raises(
        ValueError, match=r"6 sizes .*: 12x9 \(7\), 20x28 \(5\), 1x1 \(1\), .*, \.\.\.; a batch of 2"
    ) as caught:
        check_training_sizes(sizes, 2)
    ways = "set `data.crop` (random crops of one size), `data.resize: [height, width]`, or `train.batch_size=1`"
    assert ways in str(caught.value).replace("Set", "set")


# Real data ---------------------------------------------------------------------------------------------


def test_real_camvid(shared_data):
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    codec = open_codec({"name": "index_png", "ignored_values": [11]}, MaskFormat.multiclass(names))
    ds = MaskDataset(shared_data / "camvid/val/images", shared_data / "camvid/val/masks", codec)
    assert ds.verify() == {(360, 480): 101}
    assert ds.read(0).planes.max() in (*range(11), 255)


def test_real_dsb2018_has_gray_and_colour_and_many_sizes(shared_data):
    codec = open_codec({"name": "index_png", "values": {255: "nucleus"}}, MaskFormat.binary("nucleus"))
    ds = MaskDataset(shared_data / "dsb2018/test/images", shared_data / "dsb2018/test/masks", codec)
    sizes = ds.verify()
    assert (sum(sizes.values()), len(sizes) > 3) == (48, True)


def test_real_chase(shared_data):
    codec = open_codec("index_png", MaskFormat.binary("vessel"))
    ds = MaskDataset(shared_data / "chase_db1/test/images", shared_data / "chase_db1/test/masks", codec)
    assert ds.verify() == {(960, 999): 8}
    share = np.mean([(ds.read(i).planes == 1).mean() for i in range(8)])
    assert share == pytest.approx(0.063, abs=0.001)


def test_real_hippocampus_slices(shared_data):
    codec = open_codec("nifti", MaskFormat.multiclass(["background", "anterior", "posterior"]))
    root = shared_data / "hippocampus" / "val"
    ds = MaskDataset(root / "images", root / "labels", codec)
    sizes = ds.verify()
    cases = {stem.split("@")[0] for stem in ds.stems}
    assert (len(cases), len(sizes) > 3) == (10, True)
    assert (ds.read(0).image.shape[2], ds.read(0).spacing_mm) == (1, (1.0, 1.0))
    one = MaskDataset(root / "images", root / "labels", codec, stems=[sorted(cases)[0]])
    assert {stem.split("@")[0] for stem in one.stems} == {sorted(cases)[0]}
    # A hippocampus is darker than the white matter around it, and lies under its label.
    inside = np.concatenate([s.image[s.planes > 0] for s in one])
    around = np.concatenate([s.image[s.planes == 0] for s in one])
    assert 0.1 < inside.std() / around.std() < 0.9


def test_real_sentinel2(shared_data):
    codec = open_codec("index_png", MaskFormat.multiclass([0, 1, 2, 3, 4, 8]))
    ds = MaskDataset(shared_data / "sentinel2/images", shared_data / "sentinel2/masks", codec, resize=64)
    assert (ds.verify(), ds[0].image.shape, ds[0].image.dtype) == ({(64, 63): 4}, (64, 63, 13), np.uint16)
