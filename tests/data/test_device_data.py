from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from segkit.data import device_data
from segkit.data.augment import build_augment
from segkit.data.datasets import MaskDataset, sample_seed
from segkit.data.device_data import DEVICE_PRESETS, DeviceDataset, device_train_loader, free_memory
from segkit.data.fast_augment import draw
from segkit.data.loaders import SeededSampler, train_loader
from segkit.data.sample import Sample
from segkit.formats.mask_format import MaskFormat
from tests.data.stand_in import FORMAT, add_sample
from tests.scenes import FORMATS, write_set

CPU = torch.device("cpu")


def named(spec, crop=None):
    """An augmentation; the device reads its name and never calls it."""
    return build_augment(spec, FORMAT, crop=crop)


class InMemory(MaskDataset):
    """Samples that no file holds."""

    def __init__(self, samples: list[Sample], format: MaskFormat, augment=None, seed: int = 0):
        self.samples, self._format, self.augment, self.seed = samples, format, augment, seed
        self.stems, self.resize = [sample.stem for sample in samples], None

    @property
    def format(self) -> MaskFormat:
        return self._format

    def read(self, index: int) -> Sample:
        return copy.deepcopy(self.samples[index])


def samples(sizes_hw, bands: int, dtype: str, format: MaskFormat) -> list[Sample]:
    """Noise in images and planes; every tenth pixel is ignored."""
    rng = np.random.default_rng(bands)
    made = []
    for number, (height, width) in enumerate(sizes_hw):
        image = (rng.random((height, width, bands)) * 5000).astype(dtype)
        planes = rng.integers(0, min(format.num_classes, 2 if format.num_planes > 1 else 999), (height, width, 1))
        planes = np.repeat(planes, format.num_planes, 2).astype(format.dtype)
        planes[rng.random((height, width)) < 0.1] = format.ignore_index
        made.append(Sample(f"s{number}", image, planes))
    return made


SIZES = [(20, 28), (31, 17), (24, 24), (20, 28), (40, 19)]
MANY = MaskFormat.multiclass(list(range(300)))  # uint16 planes


@pytest.mark.parametrize("format", [FORMATS["exclusive"], FORMATS["overlapping"], MANY], ids=["u8", "P2", "u16"])
@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "uint8"), (3, "uint8"), (3, "uint16"), (13, "uint16"), (5, "float32")]
)
def test_crops_that_only_move_hold_the_stored_pixels(format, bands, dtype):
    stored = samples(SIZES, bands, dtype, format)
    ds = DeviceDataset(InMemory(stored, format, named("none", [16, 12])), CPU)
    batch = ds.__getitems__([(3, index) for index in range(5)])
    assert batch.images.dtype == getattr(torch, dtype)
    assert batch.target.dtype == format.torch_dtype
    assert batch.images.shape == (5, bands, 16, 12)
    assert batch.target.shape == (5, format.num_planes, 16, 12)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.target.is_contiguous()
    for n, sample in enumerate(stored):
        (top, left) = draw(DEVICE_PRESETS["none"], (16, 12), sample.size_hw, sample_seed(0, 3, n))[0].corner
        window = slice(top, top + 16), slice(left, left + 12)
        assert np.array_equal(batch.images[n].permute(1, 2, 0).numpy(), sample.image[window])
        assert np.array_equal(batch.target[n].permute(1, 2, 0).numpy(), sample.planes[window])


def test_without_augmentation_samples_come_whole(folder, codec):
    data = MaskDataset(folder / "images", folder / "masks", codec)
    ds = DeviceDataset(data, CPU)
    assert len(ds) == 5
    for mine, theirs in zip(
        device_train_loader(ds, 2, shuffle=False), train_loader(data, 2, shuffle=False, workers=0), strict=True
    ):
        assert mine.stems == theirs.stems
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.target, theirs.target)


def test_samples_lie_there_in_their_resized_form(folder, codec):
    data = MaskDataset(folder / "images", folder / "masks", codec, resize=[10, 15])
    batch = DeviceDataset(data, CPU)[0, 2]
    assert np.array_equal(batch.images[0].permute(1, 2, 0), data[2].image)
    assert np.array_equal(batch.target[0].permute(1, 2, 0), data[2].planes)


@pytest.mark.parametrize("name", DEVICE_PRESETS)
@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (13, "uint16"), (1, "float32")])
def test_a_sample_is_a_function_of_seed_epoch_and_index(name, bands, dtype):
    data = InMemory(samples(SIZES, bands, dtype, MANY), MANY, named(name, 16), seed=4)
    ds = DeviceDataset(data, CPU)
    together = ds.__getitems__([(7, index) for index in (3, 0, 4, 1)])
    for place, index in enumerate((3, 0, 4, 1)):
        alone = DeviceDataset(data, CPU, workers=1)[7, index]
        assert alone.stems == [f"s{index}"]
        assert torch.equal(alone.images[0].float(), together.images[place].float())
        assert torch.equal(alone.target[0], together.target[place])
    if name != "none":
        assert not torch.equal(ds[8, 3].images.float(), together.images[:1].float())
    data.seed = 5
    assert not torch.equal(DeviceDataset(data, CPU)[7, 3].target, together.target[:1])


@pytest.mark.parametrize("name", DEVICE_PRESETS)
@pytest.mark.parametrize("format", [FORMATS["exclusive"], FORMATS["overlapping"], MANY], ids=["u8", "P2", "u16"])
def test_no_value_appears_that_was_not_there(name, format):
    stored = samples(SIZES, 3, "uint8", format)
    for sample in stored:
        sample.planes[sample.planes == 0] = 1  # 0 is what a careless fill would write
    ds = DeviceDataset(InMemory(stored, format, named(name, [40, 33])), CPU)
    for epoch in range(5):
        target = ds.__getitems__([(epoch, index) for index in range(5)]).target
        for n, sample in enumerate(stored):
            assert set(target[n].unique().tolist()) <= {*np.unique(sample.planes).tolist(), format.ignore_index}


def test_values_keep_to_their_type_and_range():
    stored = samples(SIZES, 3, "uint16", MANY)
    ds = DeviceDataset(InMemory(stored, MANY, named("fast_medical", 16)), CPU)
    for epoch in range(10):
        values = ds.__getitems__([(epoch, index) for index in range(5)]).images.int()
        assert values.min() >= 0
        assert values.max() <= max(sample.image.max() for sample in stored)


@pytest.mark.parametrize("name", DEVICE_PRESETS)
def test_samples_are_those_that_the_cpu_makes(tmp_path, name):
    """The same draws, and rounded as well: a value cut off would be half a step too dark on average."""
    data = write_set(tmp_path, FORMATS["overlapping"], 3)
    data.augment = build_augment(name, data.format, crop=24)
    ds, brighter = DeviceDataset(data, CPU), []
    for epoch in range(4):
        for index in range(3):
            mine, theirs = ds[epoch, index], data[epoch, index]
            brighter.append((mine.images[0].permute(1, 2, 0).numpy().astype(int) - theirs.image).mean())
            assert np.mean(mine.target[0].permute(1, 2, 0).numpy() != theirs.planes) < 0.05
    assert abs(np.mean(brighter)) < 0.15


def test_ranks_share_the_samples_and_see_what_one_process_sees(tmp_path):
    data = write_set(tmp_path, FORMATS["exclusive"], 8)
    data.augment = named("fast_street", [32, 24])
    ds = DeviceDataset(data, CPU)
    assert len(device_train_loader(ds, 3, repeat=2)) == 5
    whole = device_train_loader(ds, 1, seed=3)
    whole.sampler.set_epoch(2)
    alone = {batch.stems[0]: batch for batch in whole}
    seen: list[str] = []
    for rank in range(2):
        loader = device_train_loader(ds, 2, seed=3, rank=rank, world_size=2)
        loader.sampler.set_epoch(2)
        assert isinstance(loader.sampler, SeededSampler)
        assert len(loader) == 2
        for batch in loader:
            for n, stem in enumerate(batch.stems):
                assert torch.equal(batch.images[n], alone[stem].images[0])
            seen += batch.stems
    assert set(seen) == set(alone)


def test_8_bit_beside_16_bit_is_scaled_as_in_any_batch(tmp_path):
    narrow, wide = (samples(SIZES[:1], 3, dtype, MANY)[0] for dtype in ("uint8", "uint16"))
    batch = DeviceDataset(InMemory([narrow, wide], MANY), CPU).__getitems__([(0, 0), (0, 1)])
    assert batch.images.dtype == torch.uint16
    assert np.array_equal(batch.images[0].permute(1, 2, 0), narrow.image.astype(np.uint16) * 257)
    assert np.array_equal(batch.images[1].permute(1, 2, 0), wide.image)


def test_sizes_that_do_not_fit_into_one_batch_are_refused(folder, codec):
    add_sample(folder, codec, "wide", np.zeros((20, 40, 1), np.uint8))
    ds = DeviceDataset(MaskDataset(folder / "images", folder / "masks", codec), CPU)
    with pytest.raises(ValueError, match=r"2 sizes: a is 20x28, wide is 20x40 \(height x width\). Set `data.crop`"):
        ds.__getitems__([(0, 0), (0, ds.stems.index("wide"))])


def test_images_that_differ_in_bands_are_refused():
    mixed = [samples(SIZES[:1], bands, "uint16", MANY)[0] for bands in (3, 4)]
    with pytest.raises(ValueError, match="s0 has 3 bands, s0 has 4"):
        DeviceDataset(InMemory(mixed, MANY), CPU)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (named("street"), "augment is 'street', which runs on the CPU.*fast_light, fast_street.*Did you mean"),
        (named(["HorizontalFlip"]), "augment is a list of transforms"),
        (lambda sample, seed: sample, "augment is <function"),
    ],
)
def test_what_only_the_cpu_can_do_is_refused(folder, codec, augment, message):
    data = MaskDataset(folder / "images", folder / "masks", codec, augment=augment)
    with pytest.raises(ValueError, match=message):
        DeviceDataset(data, CPU)


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_a_decoded_copy_is_read_like_the_files(tmp_path, place):
    """Planes that are packed to bits there, and arrays that are read-only."""
    data = write_set(tmp_path, FORMATS["overlapping"], 3)
    data.augment = named("fast_street", 24)
    files, copy_ = DeviceDataset(data, CPU), DeviceDataset(data.cached(place, folder=tmp_path / "cache"), CPU)
    keys = [(2, 0), (0, 2)]
    assert torch.equal(files.__getitems__(keys).images, copy_.__getitems__(keys).images)
    assert torch.equal(files.__getitems__(keys).target, copy_.__getitems__(keys).target)


def test_data_that_do_not_fit_are_refused_with_their_size(folder, codec, monkeypatch):
    data = MaskDataset(folder / "images", folder / "masks", codec)
    one = 20 * 28 * 4
    monkeypatch.setattr(device_data, "free_memory", lambda device: 10 * one)
    DeviceDataset(data, CPU)
    monkeypatch.setattr(device_data, "free_memory", lambda device: 5 * one)
    with pytest.raises(ValueError, match=r"first 3 of 5 .* cpu has 0.00 GiB free.* Use `data.cache: disk`"):
        DeviceDataset(data, CPU)


def test_free_memory_is_known_or_said_not_to_be():
    free = free_memory(CPU)
    assert free is None or 2**20 < free < 2**50


@pytest.mark.gpu
@pytest.mark.parametrize("name", DEVICE_PRESETS)
def test_a_gpu_makes_the_batches_of_the_cpu(name):
    data = InMemory(samples(SIZES, 3, "uint8", MANY), MANY, named(name, 16))
    here, there = DeviceDataset(data, CPU), DeviceDataset(data, torch.device("cuda"))
    keys = [(1, index) for index in range(5)]
    mine, theirs = there.__getitems__(keys), here.__getitems__(keys)
    assert mine.images.device.type == mine.target.device.type == "cuda"
    # To rounding: no promise that both compute the same float32 everywhere.
    assert (mine.images.cpu().int() - theirs.images.int()).abs().float().mean() < 0.1
    assert (mine.target.cpu() != theirs.target).float().mean() < 1e-2
    free = free_memory(torch.device("cuda"))
    assert free is not None
    assert free > 2**20
