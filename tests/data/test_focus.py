"""Crops that are placed on chosen classes hold them, and all else stays as it was."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from segkit.config import read_config
from segkit.data.augment import build_augment
from segkit.data.cache_files import CachedSample
from segkit.data.device_data import DeviceDataset
from segkit.data.focus import Aim, KeptPixels, PlanePixels, build_focus
from segkit.data.packed import pack_planes
from segkit.data.sample import Sample
from segkit.formats.mask_format import MaskFormat
from segkit.training.class_balance import focus_on_rare
from tests.data.test_device_data import InMemory

CLASSES = ["background", "common", "rare", "absent"]
EXCLUSIVE = MaskFormat.multiclass(CLASSES)
OVERLAPPING = MaskFormat.multilabel(["background", "common", "rare", *[f"other{n}" for n in range(7)], "last"])
MANY = MaskFormat.multiclass(["background", "common", "rare", *range(300)])  # uint16 planes
SIZE_HW = (90, 130)
SEEDS = 60


def maps() -> dict[str, np.ndarray]:
    """A band of `common`, and twelve pixels of `rare` in two places, one of them a corner."""
    common, rare = np.zeros((2, *SIZE_HW), bool)
    common[30:60] = True
    rare[0:2, 0:3] = rare[70:72, 100:103] = True
    return {"common": common, "rare": rare, "background": ~common & ~rare, "last": rare}


def sample_of(format: MaskFormat) -> Sample:
    if format.num_planes == 1:
        planes = np.zeros((*SIZE_HW, 1), format.dtype)
        for name, here in maps().items():
            if name in format.names:
                planes[here] = format.names.index(name)
    else:
        empty = np.zeros(SIZE_HW, bool)
        planes = np.stack([maps().get(name, empty) for name in format.names], 2).astype(np.uint8)
    planes[80:, :20] = format.ignore_index
    image = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3)).astype(np.uint8)
    return Sample("a", image, planes)


def cached(sample: Sample, packed: bool) -> CachedSample:
    planes = pack_planes(sample.planes, "a") if packed else sample.planes
    return CachedSample("a", sample.image, planes, None)


def holds(planes: np.ndarray, format: MaskFormat, name: str) -> bool:
    number = format.names.index(name)
    return bool((planes[..., number] == 1).any() if format.num_planes > 1 else (planes == number).any())


SPECS = ["none", "light", "street", "fast_light", "fast_street", "fast_medical", "medical", ["HorizontalFlip"]]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("format", [EXCLUSIVE, OVERLAPPING, MANY], ids=["u8", "P11", "u16"])
def test_every_crop_holds_the_class_where_all_are_placed_on_it(spec, format):
    sample = sample_of(format)
    focused = build_augment(spec, format, 24, focus={"share": 1, "classes": ["rare"]})
    anywhere = build_augment(spec, format, 24)
    found, by_chance = (
        sum(holds(a(sample, s).planes, format, "rare") for s in range(SEEDS)) for a in (focused, anywhere)
    )
    # Nearest neighbours of a crop that shrinks to half may pass over two rows; a corner pixel may be turned out of it.
    assert found >= (SEEDS if spec in ("none", "light", "fast_light", ["HorizontalFlip"]) else 0.8 * SEEDS)
    assert by_chance < 0.5 * SEEDS


@pytest.mark.parametrize("spec", ["none", "street", "fast_medical"])
def test_crops_that_are_not_placed_are_those_without_a_focus(spec):
    sample = sample_of(EXCLUSIVE)
    some = build_augment(spec, EXCLUSIVE, 24, focus={"share": 0.4, "classes": ["rare"]})
    anywhere = build_augment(spec, EXCLUSIVE, 24)
    same = [np.array_equal(some(sample, s).image, anywhere(sample, s).image) for s in range(300)]
    assert 0.52 < np.mean(same) < 0.68


def test_a_class_that_is_not_there_leaves_the_crop_where_it_was():
    sample = sample_of(EXCLUSIVE)
    absent = build_augment("fast_light", EXCLUSIVE, 24, focus={"share": 1, "classes": ["absent"]})
    for seed in range(10):
        np.testing.assert_array_equal(
            absent(sample, seed).image, build_augment("fast_light", EXCLUSIVE, 24)(sample, seed).image
        )


@pytest.mark.parametrize("spec", ["street", "fast_medical"])
def test_crops_are_the_same_from_files_and_from_the_cache(spec):
    sample = sample_of(OVERLAPPING)
    augment = build_augment(spec, OVERLAPPING, 24, focus={"share": 1, "classes": ["last", "common"]})
    again = pickle.loads(pickle.dumps(augment))
    for seed in range(12):
        expected = augment(sample, seed)
        for other in (cached(sample, packed=True), cached(sample, packed=False)):
            np.testing.assert_array_equal(again(other, seed).planes, expected.planes)
            np.testing.assert_array_equal(again(other, seed).image, expected.image)


@pytest.mark.parametrize("format", [EXCLUSIVE, OVERLAPPING, MANY], ids=["u8", "P11", "u16"])
def test_classes_are_counted_and_found_by_hand(format):
    sample = sample_of(format)
    marks = build_focus({"classes": ["rare"]}, format).marks
    ways = [PlanePixels(sample.planes, marks)]
    if format.num_planes > 1:
        ways.append(PlanePixels(pack_planes(sample.planes, "a"), marks))
    rare = format.names.index("rare")
    for pixels in ways:
        assert [pixels.count(format.names.index(name)) for name in ("common", "rare")] == [30 * 130, 12]
        # six pixels in a corner, then row 70 from column 100 on
        assert [pixels.pixel(rare, k) for k in (0, 4, 6, 11)] == [(0, 0), (1, 1), (70, 100), (71, 102)]


def test_of_more_pixels_than_float32_counts_the_last_is_found():
    planes = np.ones((4097, 4097, 1), np.uint8)
    pixels = PlanePixels(planes, build_focus(1, EXCLUSIVE).marks)
    assert pixels.count(1) == 4097**2
    assert pixels.pixel(1, 4097**2 - 1) == (4096, 4096)


def test_on_the_device_crops_hold_the_class_and_lie_where_they_lie_on_the_cpu():
    sample = sample_of(EXCLUSIVE)
    augment = build_augment("none", EXCLUSIVE, 24, focus={"share": 1, "classes": ["rare"]})
    data = InMemory([sample, sample], EXCLUSIVE, augment, seed=3)
    device = DeviceDataset(data, torch.device("cpu"))
    batch = device.__getitems__([(epoch, index) for epoch in range(20) for index in range(2)])
    assert (batch.target == 2).flatten(1).any(1).all()
    assert len({tuple(target.flatten().tolist()) for target in batch.target}) > 10
    # Few enough to be kept whole, in an order of its own: each is drawn.
    kept = KeptPixels(sample.planes, augment.focus, [3, 0])
    assert kept.count(2) == 12
    assert {kept.pixel(2, k) for k in range(12)} == {
        PlanePixels(sample.planes, augment.focus.marks).pixel(2, k) for k in range(12)
    }


def test_of_a_large_class_the_device_remembers_some_pixels_from_everywhere():
    sample = sample_of(EXCLUSIVE)
    focus = build_focus(0.5, EXCLUSIVE)
    kept = KeptPixels(sample.planes, focus, [0, 0])
    assert [kept.count(number) for number in (1, 2, 3)] == [512, 12, 0]
    rows = np.array([kept.pixel(1, k)[0] for k in range(512)])
    assert (rows.min(), rows.max()) == (30, 59)
    assert abs(rows.mean() - 44.5) < 2


def test_foreground_is_drawn_class_by_class_and_rare_by_the_counts():
    sample = sample_of(EXCLUSIVE)
    pixels = PlanePixels(sample.planes, build_focus(1, EXCLUSIVE).marks)

    def rare_share(focus):
        aims = [focus.aim(pixels, seed) for seed in range(400)]
        return np.mean([sample.planes[(*aim.pixel, 0)] == 2 for aim in aims])

    assert rare_share(build_focus(1, EXCLUSIVE)) == pytest.approx(0.5, abs=0.07)
    assert rare_share(build_focus(1, EXCLUSIVE).weighted([9, 1, 4, 9])) == pytest.approx(0.8, abs=0.06)
    augment = build_augment("none", EXCLUSIVE, 24, focus={"share": 1, "classes": "rare"})
    data = InMemory([sample], EXCLUSIVE, augment)
    data.read_planes = lambda index: sample.planes
    with pytest.raises(ValueError, match="nobody has counted"):
        data[0]
    counted = focus_on_rare(data)
    # median frequency over frequency of common (3900 of 11700 pixels) and rare (12), rooted and at most 10
    common, rare, _ = counted.augment.focus.weights
    assert rare == 10
    assert common == pytest.approx(1.0, abs=0.01)
    assert data.augment.focus.weights is None
    assert focus_on_rare(counted) is counted
    assert holds(counted[0].planes, EXCLUSIVE, "rare") or holds(counted[0].planes, EXCLUSIVE, "common")


@pytest.mark.parametrize(
    ("window", "inner", "pixel", "corner"),
    [
        ((20, 20), None, (50, 50), (40, 40)),
        ((20, 20), None, (3, 98), (0, 80)),  # pushed into the image
        ((120, 130), None, (3, 98), (-20, 0)),  # around it
        ((30, 40), (20, 20), (3, 98), (-5, 70)),  # the middle inside, the margin beyond
    ],
)
def test_windows_lie_where_they_should(window, inner, pixel, corner):
    assert Aim(pixel, (0.5, 0.5)).corner(window, (100, 100), inner) == corner


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (0, "share 0: expected a number above 0"),
        (1.5, "share 1.5"),
        ({"share": True}, "share True"),
        ({"chance": 0.5}, "no key 'chance'.*share"),
        ({"classes": "common"}, "focus: classes is 'common': expected foreground, rare or a list"),
        ({"classes": ["comon"]}, "focus: classes names 'comon'.*common"),
        ({"classes": []}, "focus: classes is empty"),
    ],
)
def test_what_makes_no_focus_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_augment("none", EXCLUSIVE, 24, focus=spec)


def test_foreground_has_to_be_something():
    streets = MaskFormat.multiclass(["sky", "road"])
    with pytest.raises(ValueError, match="so every pixel is foreground: list the classes"):
        build_focus(0.5, streets)
    assert build_focus({"classes": ["road"]}, streets).members == (1,)
    assert build_focus({"classes": "rare"}, streets).members == (0, 1)
    assert build_focus(0.5, MaskFormat.binary("cell")).members == (0,)
    with pytest.raises(ValueError, match="there is no crop"):
        build_augment("none", EXCLUSIVE, focus=0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{focus: 0.5}", "expected `crop` where `focus` is given"),
        ("{crop: 8, focus: 2}", "`data.focus` is 2, expected less than or equal to 1"),
        ("{crop: 8, focus: true}", "`data.focus` is True, expected a share of the crops, such as 0.33"),
        ("{crop: 8, focus: {share: true}}", "`data.focus.share` is True, expected a number"),
        ("{crop: 8, focus: rare}", "`data.focus` is 'rare', expected a share .*{share: 0.33, classes: foreground}"),
        ("{crop: 8, focus: {classes: rares}}", "`data.focus.classes` is 'rares', expected 'foreground'"),
        ("{crop: 8, focus: {shar: 1}}", "unknown key `data.focus.shar`.*share"),
    ],
)
def test_configs_say_what_is_wrong(tmp_path, data, message):
    (tmp_path / "c.yaml").write_text(f"masks: {{format: binary, classes: [x]}}\ndata: {data}\n")
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "c.yaml")
