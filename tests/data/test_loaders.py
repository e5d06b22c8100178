import numpy as np
import pytest
import torch

from segkit.data.augment import build_augment
from segkit.data.datasets import MaskDataset
from segkit.data.loaders import SeededSampler, collate, eval_loader, group_by_size, train_loader
from segkit.data.sample import Sample
from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from tests.data.stand_in import FORMAT, StandInCodec, add_sample


def sample(stem="a", size_hw=(4, 6), bands=3, dtype=np.uint8, planes=2, planes_dtype=np.uint8, value=1):
    image = np.arange(size_hw[0] * size_hw[1] * bands).reshape(*size_hw, bands).astype(dtype)
    return Sample(stem, image, np.full((*size_hw, planes), value, planes_dtype))


# collate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 13])
def test_images_stay_as_stored_and_turn_to_bands_first(dtype, bands):
    one, two = sample("a", bands=bands, dtype=dtype), sample("b", bands=bands, dtype=dtype)
    two.image[1, 2, 0] = 77
    batch = collate([one, two])
    assert (batch.stems, batch.images.shape) == (["a", "b"], (2, bands, 4, 6))
    assert batch.images.dtype == getattr(torch, dtype)
    for n, s in enumerate((one, two)):
        np.testing.assert_array_equal(batch.images[n].numpy(), np.moveaxis(s.image, -1, 0))


def test_planes_become_targets_of_the_device_dtype():
    small, wide = MaskFormat.multiclass(list(range(3))), MaskFormat.multiclass(list(range(300)))
    assert collate([sample()]).target.dtype == small.torch_dtype
    batch = collate([sample(planes_dtype=np.uint16, value=65535)])
    assert batch.target.dtype == wide.torch_dtype
    assert batch.target.unique().tolist() == [wide.ignore_index]
    assert batch.target.shape == (1, 2, 4, 6)
    assert batch.target.is_contiguous()


def test_depths_in_one_batch_become_the_widest():
    batch = collate([sample("a", dtype=np.uint8), sample("b", dtype=np.uint16)])
    assert batch.images.dtype == torch.uint16
    assert batch.images[0].int().max() == 71 * 257
    assert batch.images[1].int().max() == 71
    batch = collate([sample("a", dtype=np.uint8), sample("b", dtype=np.float32)])
    assert batch.images.dtype == torch.float32
    assert batch.images[0].max() == 71


def test_sizes_and_bands_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"2 sizes: a is 4x6, b is 4x7 \(height x width\). Set `data.crop`"):
        collate([sample("a"), sample("b", size_hw=(4, 7))])
    with pytest.raises(ValueError, match="a has 3 bands, b has 4"):
        collate([sample("a"), sample("b", bands=4)])


def test_group_by_size_keeps_all_in_order():
    samples = [sample("a"), sample("b", (5, 6)), sample("c"), sample("d", (5, 6)), sample("e", bands=1)]
    batches = group_by_size(list(zip([4, 7, 5, 9, 0], samples, strict=True)))
    assert [(b.stems, b.indices) for b in batches] == [(["a", "c"], [4, 5]), (["b", "d"], [7, 9]), (["e"], [0])]


# SeededSampler -----------------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        sampler = SeededSampler(50, seed)
        for epoch in (0, 1, 0):
            sampler.set_epoch(epoch)
            order = list(sampler)
            assert sorted(i for _, i in order) == list(range(50))
            assert {e for e, _ in order} == {epoch}
            assert orders.setdefault((seed, epoch), order) == order
    assert len({tuple(i for _, i in o) for o in orders.values()}) == 4


@pytest.mark.parametrize(("length", "world_size"), [(10, 3), (9, 3), (2, 4), (1, 4)])
def test_ranks_share_the_samples(length, world_size):
    even = [SeededSampler(length, 3, True, rank, world_size) for rank in range(world_size)]
    seen = [i for s in even for _, i in s]
    assert {len(list(s)) for s in even} == {len(even[0])} == {-(-length // world_size)}
    assert set(seen) == set(range(length))
    once = [SeededSampler(length, 0, False, rank, world_size, even=False) for rank in range(world_size)]
    assert sorted(i for s in once for _, i in s) == list(range(length))
    assert [len(s) for s in once] == [len(list(s)) for s in once]


def test_an_epoch_of_several_passes_is_so_many_epochs_of_one():
    once, thrice = SeededSampler(7, seed=3), SeededSampler(7, seed=3, repeat=3)
    passes = []
    for number in range(6, 9):
        once.set_epoch(number)
        passes += list(once)
    thrice.set_epoch(2)
    assert list(thrice) == passes
    assert len(thrice) == 21
    assert len(set(passes)) == 21  # each has an augmentation of its own
    assert sorted(i for _, i in passes[7:14]) == list(range(7))
    thrice.set_epoch(2, start=8)
    assert list(thrice) == passes[8:]


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize(("length", "batch_size", "world_size"), [(7, 1, 2), (13, 2, 2), (11, 2, 3), (12, 2, 3)])
def test_a_step_of_all_ranks_sees_the_batch_of_one_process(length, batch_size, world_size, repeat):
    def batches(size, rank=0, world_size=1):
        order = list(SeededSampler(length, 3, True, rank, world_size, enough=size, repeat=repeat))
        return [order[k : k + size] for k in range(0, len(order) // size * size, size)]

    of_ranks = [batches(batch_size, rank, world_size) for rank in range(world_size)]
    together = [sorted(i for share in step for i in share) for step in zip(*of_ranks, strict=True)]
    assert together == [sorted(batch) for batch in batches(batch_size * world_size)]


def test_ranks_with_less_than_a_batch_repeat_samples():
    shares = [[i for _, i in SeededSampler(5, 3, True, rank, 2, enough=3)] for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    assert set(shares[0] + shares[1]) == set(range(5))


def test_an_epoch_goes_on_where_it_stopped():
    sampler = SeededSampler(20, 5, True, 1, 2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start=6)
    assert (list(sampler), len(sampler)) == (whole[6:], 4)


def test_rank_must_exist():
    with pytest.raises(ValueError, match="rank 2 of 2 processes"):
        SeededSampler(5, rank=2, world_size=2)


# Loaders -----------------------------------------------------------------------------------------------


@pytest.fixture
def ds(folder, codec):
    augment = build_augment("medical", FORMAT, 16)
    return MaskDataset(folder / "images", folder / "masks", codec, augment=augment, seed=3)


def epochs(loader, numbers=(0, 1)):
    found = {}
    for epoch in numbers:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for n, stem in enumerate(batch.stems):
                found[epoch, stem] = (batch.images[n].numpy().copy(), batch.target[n].numpy().copy())
    return found


def test_samples_are_the_same_for_any_number_of_workers(ds):
    runs = [epochs(train_loader(ds, 2, seed=1, workers=0))]
    runs += [epochs(train_loader(ds, 2, seed=1, workers=w, start_method="fork")) for w in (1, 2)]
    runs.append(epochs(train_loader(ds, 2, seed=1, workers=1, start_method="spawn")))
    # the second epoch alone, as after a resume
    runs.append(epochs(train_loader(ds, 2, seed=1, workers=2, start_method="fork"), (1,)))
    for run in runs[1:]:
        for key, (image, target) in run.items():
            np.testing.assert_array_equal(image, runs[0][key][0])
            np.testing.assert_array_equal(target, runs[0][key][1])
    assert set(runs[1]) == set(runs[2]) == set(runs[3]) == set(runs[0])
    both = {stem for e, stem in runs[0] if e == 0} & {stem for e, stem in runs[0] if e == 1}
    assert any(not np.array_equal(runs[0][0, s][0], runs[0][1, s][0]) for s in both)


def test_the_last_batch_is_dropped_unless_it_is_the_only_one(ds):
    assert [len(b) for b in train_loader(ds, 2, workers=0)] == [2, 2]
    assert [len(b) for b in train_loader(ds, 8, workers=0)] == [5]
    assert [len(b) for b in train_loader(ds, 5, workers=0)] == [5]


def test_repeated_samples_are_augmented_anew(ds):
    seen = {stem: [] for stem in ds.stems}
    loader = train_loader(ds, 2, workers=0, repeat=3)
    assert len(loader) == 7  # a batch reaches from one pass of five into the next
    for batch in loader:
        for stem, image in zip(batch.stems, batch.images, strict=True):
            seen[stem].append(image.numpy().tobytes())
    assert sorted(len(images) for images in seen.values()) == [2, 3, 3, 3, 3]
    for images in seen.values():
        assert len(set(images)) == len(images)


def test_eval_sees_each_sample_once_over_all_ranks(tmp_path):
    codec = StandInCodec(FORMAT)
    for i in range(11):
        planes = np.full((8 + 2 * (i % 3), 10, 1), i % 4, np.uint8)
        add_sample(tmp_path, codec, f"{i:02d}", planes)
    ds = MaskDataset(tmp_path / "images", tmp_path / "masks", codec)
    seen = []
    for rank in range(2):
        for batches in eval_loader(ds, 4, workers=0, rank=rank, world_size=2):
            assert len({b.images.shape[2:] for b in batches}) == len(batches)
            for batch in batches:
                assert batch.images.shape[2:] == batch.target.shape[2:]
                assert [ds.stems[i] for i in batch.indices] == batch.stems
                seen += batch.stems
    assert sorted(seen) == ds.stems


def test_wrong_numbers(ds):
    with pytest.raises(ValueError, match="batch_size is 0"):
        train_loader(ds, 0)
    with pytest.raises(ValueError, match="workers is -1"):
        eval_loader(ds, 1, workers=-1)


def test_workers_use_one_thread_each(folder, codec):
    class Threads(MaskDataset):
        def __getitem__(self, key):
            import cv2

            found = super().__getitem__(key)
            found.planes[:] = cv2.getNumThreads() + torch.get_num_threads()
            return found

    ds = Threads(folder / "images", folder / "masks", codec)
    batches = [b for parts in eval_loader(ds, 5, workers=1, start_method="fork") for b in parts]
    # cv2.setNumThreads(0) reads back as 1
    assert batches[0].target.unique().tolist() == [2]


def test_real_hippocampus_mixes_depths_and_sizes(shared_data):
    codec = open_codec("nifti", MaskFormat.multiclass(["background", "anterior", "posterior"]))
    root = shared_data / "hippocampus" / "train"
    ds = MaskDataset(root / "images", root / "labels", codec, augment=build_augment("medical", codec.format, 48))
    ds = ds.subset([s for s in ds.stems if s.endswith("@z015")])
    dtypes = {ds.read(i).image.dtype.str for i in range(len(ds))}
    assert dtypes == {"|u1", "<f4"}
    batch = next(iter(train_loader(ds, len(ds), workers=0)))
    assert (batch.images.dtype, batch.images.shape[1:]) == (torch.float32, (1, 48, 48))
    assert {0, 1, 2} <= set(batch.target.unique().tolist()) <= {0, 1, 2, 255}


def test_a_batch_has_the_spacing_that_all_its_samples_have():
    def sample(stem, spacing_mm):
        return Sample(stem, np.zeros((4, 5, 1), np.float32), np.zeros((4, 5, 1), np.uint8), spacing_mm)

    samples = [sample("a", (1.0, 2.0)), sample("b", None), sample("c", (1.0, 2.0)), sample("d", (2.0, 1.0))]
    groups = [(batch.stems, batch.to("cpu").spacing_mm) for batch in group_by_size(list(enumerate(samples)))]
    assert groups == [(["a", "c"], (1.0, 2.0)), (["b"], None), (["d"], (2.0, 1.0))]
    assert collate(samples).spacing_mm is None


def test_the_place_in_an_epoch_is_kept_until_another_begins():
    sampler = SeededSampler(5, seed=3)
    sampler.set_epoch(1)
    order = list(sampler)
    sampler.set_epoch(1, start=2)
    sampler.set_epoch(1)  # told again, as by a training loop that is resumed
    assert list(sampler) == order[2:]
    sampler.set_epoch(2)
    assert len(list(sampler)) == 5
