import pickle
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from segkit.data.augment import PRESETS, build_augment
from segkit.data.fast_augment import FAST_PRESETS
from segkit.data.sample import Sample
from segkit.formats.mask_format import MaskFormat

RNG = np.random.default_rng(0)
NAMES = list(FAST_PRESETS)
FEW, MANY = (MaskFormat.multiclass([f"c{i}" for i in range(n)]) for n in (9, 300))
SEEDS = 400


def planes_of(count, dtype, size_hw):
    """Blocks of values from 3 on, without the ignored value."""
    blocks = RNG.integers(3, 9 if dtype == np.uint8 else 300, (size_hw[0] // 4 + 1, size_hw[1] // 4 + 1, count))
    return blocks.repeat(4, 0).repeat(4, 1)[: size_hw[0], : size_hw[1]].astype(dtype)


def sample_of(dtype, bands, planes):
    image = RNG.random((*planes.shape[:2], bands)) * {np.uint8: 255, np.uint16: 9000, np.float32: 2800}[dtype]
    return Sample("a", (image - 400 if dtype == np.float32 else image).astype(dtype), planes, (1.0, 2.0))


# Laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [None, 32, [70, 90]])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bands", [1, 3, 4, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_kind_of_image_keeps_its_kind_and_range(name, dtype, bands, crop):
    augment = build_augment(name, FEW, crop)
    sample = sample_of(dtype, bands, planes_of(1, np.uint8, (44, 60)))
    before = sample.image.copy(), sample.planes.copy()
    size_hw = (44, 60) if crop is None else (32, 32) if crop == 32 else (70, 90)
    for seed in range(8):
        result = augment(sample, seed)
        assert (result.image.shape, result.image.dtype) == ((*size_hw, bands), sample.image.dtype)
        assert (result.planes.shape, result.planes.dtype) == ((*size_hw, 1), np.uint8)
        assert (result.stem, result.spacing_mm) == ("a", (1.0, 2.0))
        if dtype != np.uint8:
            assert before[0].min() <= result.image.min() <= result.image.max() <= before[0].max()
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.planes, before[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [1, 3, 5, 20])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("crop", [24, [70, 90]])
def test_no_value_appears_that_was_not_there(name, count, dtype, crop):
    format = FEW if dtype == np.uint8 else MANY
    sample = sample_of(np.uint8, 3, planes_of(count, dtype, (44, 60)))
    known, seen = {*np.unique(sample.planes)}, set()
    augment = build_augment(name, format, crop)
    for seed in range(12):
        found = set(np.unique(augment(sample, seed).planes))
        assert found <= known | {format.ignore_index}
        seen |= found
    assert seen == {*known, format.ignore_index} or crop == 24


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (40, 1), (3, 5)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("crop", [None, 16])
def test_the_smallest_images(name, size_hw, crop):
    sample = Sample("a", np.full((*size_hw, 3), 90, np.uint8), np.full((*size_hw, 1), 4, np.uint8))
    augment = build_augment(name, FEW, crop)
    for seed in range(30):
        result = augment(sample, seed)
        assert result.size_hw == (size_hw if crop is None else (16, 16))
        assert set(np.unique(result.planes)) <= {4, 255}
        assert len(np.unique(result.image)) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("crop", [None, 32])
def test_a_seed_gives_one_result_whatever_came_before(name, crop):
    sample = sample_of(np.uint8, 3, planes_of(2, np.uint8, (44, 60)))
    one, two = build_augment(name, FEW, crop), pickle.loads(pickle.dumps(build_augment(name, FEW, crop)))
    seeds = [*range(8), 2**64 - 1]
    forward = [one(sample, s) for s in seeds]
    backward = [two(sample, s) for s in reversed(seeds)][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.planes, b.planes)
    assert len({a.image.tobytes() for a in forward}) > 3
    assert (one.spec, one.crop) == (name, None if crop is None else (32, 32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("crop", [None, [64, 80], 64])
def test_image_and_mask_move_together(name, crop):
    # Wide soft shapes, and an image painted from them: after any move it must still agree with the mask.
    rows, columns = np.mgrid[:120, :160]
    planes = (1 + 2 * (np.hypot(rows - 50, columns - 60) < 30) + 5 * (columns > 110)).astype(np.uint8)[..., None]
    shades = np.zeros(256, np.uint8)
    shades[[1, 3, 6, 8]] = (50, 90, 140, 180)
    sample = Sample("a", shades[planes].repeat(3, 2), planes)
    augment = build_augment(name, FEW, crop)
    agreeing, moved = [], 0
    for seed in range(12):
        result = augment(sample, seed)
        known = result.planes[..., 0] != 255
        painted, shown = shades[result.planes[..., 0]].astype(float), result.image.mean(2)
        slope, offset = np.polyfit(painted[known], shown[known], 1)
        agreeing.append((np.abs(slope * painted + offset - shown)[known] < 25 * slope).mean())
        moved += not np.array_equal(result.planes, sample.planes)
    assert moved > 3
    assert min(agreeing) > 0.96
    assert np.mean(agreeing) > 0.985


def test_gray_stays_gray_when_colours_change():
    sample = Sample(
        "a", RNG.integers(60, 190, (40, 40, 1)).repeat(3, 2).astype(np.uint8), planes_of(1, np.uint8, (40, 40))
    )
    augment = build_augment("fast_street", FEW, 32)
    for seed in range(40):
        assert np.ptp(augment(sample, seed).image.astype(int), axis=2).max() <= 1


def test_bands_of_several_ranges_keep_theirs():
    image = np.dstack([RNG.random((30, 40)), 5000 + 900 * RNG.random((30, 40))]).astype(np.float32)
    augment = build_augment("fast_light", FEW, 24)
    spread = []
    for seed in range(60):
        found = augment(Sample("a", image, planes_of(1, np.uint8, (30, 40))), seed).image
        assert 0 <= found[..., 0].min() <= found[..., 0].max() <= 1
        assert 5000 <= found[..., 1].min() <= found[..., 1].max() <= 5900
        spread.append(found.mean((0, 1)))
    assert (np.std(spread, axis=0) > (0.03, 30)).all()


def test_mistakes_name_the_fast_presets_too():
    with pytest.raises(ValueError, match="Did you mean `fast_street`"):
        build_augment("fast_steet", FEW)
    with pytest.raises(ValueError, match="crop is 0"):
        build_augment("fast_light", FEW, 0)


def test_albumentations_is_not_needed():
    code = (
        "import sys; import numpy as np; from segkit.data.augment import PRESETS, build_augment\n"
        "from segkit.data.sample import Sample; from segkit.formats.mask_format import MaskFormat\n"
        "augment = build_augment('fast_medical', MaskFormat.binary(), 8)\n"
        "augment(Sample('a', np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 1), np.uint8)), 0)\n"
        "print('albumentations' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# The same statistics as albumentations -------------------------------------------------------------------


def results(name, sample, format, crop, seeds=SEEDS):
    """What the albumentations preset gives, and what the fast one gives."""
    for spec in (name, f"fast_{name}"):
        augment = build_augment(spec, format, crop)
        yield [augment(sample, seed) for seed in range(seeds)]


def linear_maps(samples):
    """(n, 2, 2) matrices from a step in the image (x, y) to one in the result, from planes that hold (y, x)."""
    found = []
    for sample in samples:
        known = np.zeros(sample.size_hw, bool)
        known[::3, ::3] = (sample.planes[::3, ::3] != 65535).all(2)
        y, x = np.nonzero(known)
        steps, *_ = np.linalg.lstsq(
            np.column_stack([x, y, np.ones_like(x)]), sample.planes[known].astype(float), rcond=None
        )
        found.append(np.linalg.inv(steps[:2, ::-1].T))
    return np.array(found)


@pytest.fixture(scope="module")
def coordinates():
    """Planes hold row and column, from 3 on."""
    rows, columns = np.mgrid[3:303, 3:363]
    planes = np.dstack([rows, columns]).astype(np.uint16)
    return Sample("a", np.zeros((300, 360, 1), np.uint8), planes)


def test_street_scales_flips_and_places_alike(coordinates):
    maps = [linear_maps(r) for r in results("street", coordinates, MANY, 96)]
    scales = [np.abs(m[:, 1, 1]) for m in maps]
    for scale in scales:
        assert scale.min() > 0.49
        assert scale.max() < 2.04
    assert np.mean(np.log(scales[0])) == pytest.approx(np.mean(np.log(scales[1])), abs=0.08)
    assert np.std(np.log(scales[0])) == pytest.approx(np.std(np.log(scales[1])), rel=0.12)
    flipped = [(m[:, 0, 0] < 0).mean() for m in maps]
    assert flipped == pytest.approx([0.5, 0.5], abs=0.1)
    places = [np.array([s.planes[48, 48] for s in r], float) for r in results("street", coordinates, MANY, 96)]
    assert places[0].mean(0) == pytest.approx(places[1].mean(0), abs=12)
    assert places[0].std(0) == pytest.approx(places[1].std(0), rel=0.15)


@pytest.mark.parametrize("crop", [120, [100, 130], None])
def test_medical_rotates_scales_turns_and_flips_alike(coordinates, crop):
    facts, places = [], []
    for found in results("medical", coordinates, MANY, crop):
        maps = linear_maps(found)
        middles = np.array([s.planes[s.size_hw[0] // 2, s.size_hw[1] // 2] for s in found], float)
        places.append(np.std(middles[middles.max(1) < 65535], axis=0))
        # Rotated and scaled after flips and turns, which change only order and signs of the columns.
        angles = np.rad2deg(np.arctan2(maps[:, 1, 0], maps[:, 0, 0]))
        quarters = np.round(angles / 90).astype(int) % 4
        rest = (angles + 45) % 90 - 45
        facts.append((np.linalg.norm(maps, axis=1), np.linalg.det(maps) < 0, quarters, rest, np.abs(rest) < 0.7))
    (sizes, mirrored, quarters, rest, still), (sizes_2, mirrored_2, quarters_2, rest_2, still_2) = facts
    # Half of the samples are rotated; the elastic grid of albumentations moves a fifth of its other samples a little.
    assert still_2.mean() == pytest.approx(0.5, abs=0.08)
    assert still.mean() == pytest.approx(still_2.mean(), abs=0.14)
    assert 22 < np.abs(rest_2).max() < 25.5
    assert sizes_2.min() == pytest.approx(0.8, abs=0.02)
    assert sizes_2.max() == pytest.approx(1.25, abs=0.02)
    assert np.std(rest) == pytest.approx(np.std(rest_2), rel=0.15)
    assert np.std(sizes) == pytest.approx(np.std(sizes_2), rel=0.2)
    assert np.mean(sizes) == pytest.approx(np.mean(sizes_2), rel=0.02)
    assert mirrored.mean() == pytest.approx(mirrored_2.mean(), abs=0.1)
    assert places[0] == pytest.approx(places[1], rel=0.12, abs=6)  # where the middle of the result comes from
    for turn in range(4):
        assert (quarters == turn).mean() == pytest.approx((quarters_2 == turn).mean(), abs=0.1)


def noise_sample():
    """RGB noise of mean 118 and a mean saturation of about 100, as photographs have."""
    rng = np.random.default_rng(3)
    gray = rng.normal(118, 20, (96, 96, 1))
    image = np.clip(gray + rng.normal(0, 24, (96, 96, 3)), 20, 235).astype(np.uint8)
    return Sample("a", image, np.full((96, 96, 1), 4, np.uint8))


def moments(samples):
    """Means and deviations of each result's gray values: (n,) each."""
    gray = [s.image.mean(2) for s in samples]
    return np.array([g.mean() for g in gray]), np.array([g.std() for g in gray])


@pytest.mark.parametrize("name", ["light", "street", "medical"])
def test_brightness_and_contrast_alike(name):
    sample = Sample("a", np.repeat(noise_sample().image[..., :1], 3, 2), noise_sample().planes)
    means, means_2 = (moments(r)[0] for r in results(name, sample, FEW, 64, 1500))
    changed, changed_2 = (np.abs(m - means.mean()) > 4 for m in (means, means_2))
    assert changed.mean() == pytest.approx(changed_2.mean(), abs=0.06)
    assert means.mean() == pytest.approx(means_2.mean(), abs=2)
    assert means.std() == pytest.approx(means_2.std(), rel=0.1)


def test_contrast_alike():
    spreads = [moments(r)[1] for r in results("light", noise_sample(), FEW, 64)]
    assert spreads[0].std() == pytest.approx(spreads[1].std(), rel=0.15)
    assert spreads[0].mean() == pytest.approx(spreads[1].mean(), rel=0.03)
    assert spreads[0].max() == pytest.approx(spreads[1].max(), rel=0.05)


def test_16_bit_and_float_images_change_alike():
    for dtype in (np.uint16, np.float32):
        image = (noise_sample().image[..., :1].astype(np.float32) * 20 + 300).astype(dtype)
        means, means_2 = (moments(r)[0] for r in results("light", Sample("a", image, noise_sample().planes), FEW, 64))
        assert means.mean() == pytest.approx(means_2.mean(), rel=0.02)
        assert means.std() == pytest.approx(means_2.std(), rel=0.15)


def orange():
    """Colours of one hue and many saturations, whose mean is that of photographs."""
    rng = np.random.default_rng(5)
    hsv = np.dstack([np.full((96, 96), 15), rng.integers(60, 140, (96, 96)), rng.integers(110, 170, (96, 96))])
    image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return Sample("a", image, np.full((96, 96, 1), 4, np.uint8))


def hsv_of(samples):
    """(n, H * W, 3), as OpenCV counts them."""
    return np.array([cv2.cvtColor(s.image, cv2.COLOR_RGB2HSV).reshape(-1, 3) for s in samples], float)


def test_hue_changes_alike():
    hues = [np.median(hsv_of(r)[..., 0], axis=1) - 15 for r in results("street", orange(), FEW, 64, 600)]
    hues = [(hue + 90) % 180 - 90 for hue in hues]
    for hue in hues:
        assert (np.abs(hue) > 0.9).mean() == pytest.approx(0.3 * 0.92, abs=0.06)
        assert 8 < np.abs(hue).max() <= 11
    assert np.std(hues[0]) == pytest.approx(np.std(hues[1]), rel=0.15)


def test_saturation_changes_alike(monkeypatch):
    colour_alone = replace(FAST_PRESETS["fast_street"], light_p=0.0, colour_p=1.0)
    monkeypatch.setitem(FAST_PRESETS, "fast_street", colour_alone)
    entry = next(e for e in PRESETS["street"].transforms if "HueSaturationValue" in e)["HueSaturationValue"]
    specs = [{"HueSaturationValue": {**entry, "p": 1}}], "fast_street"
    means = []
    for augment in (build_augment(spec, FEW, 64) for spec in specs):
        means.append(hsv_of([augment(orange(), seed) for seed in range(SEEDS)])[..., 1].mean(1))
    assert np.mean(means[0]) == pytest.approx(np.mean(means[1]), abs=3)
    assert np.std(means[0]) == pytest.approx(np.std(means[1]), rel=0.1)
    assert np.ptp(means[0]) == pytest.approx(np.ptp(means[1]), rel=0.15)
