import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from segkit.data.augment import PRESETS, build_augment
from segkit.data.fast_augment import FAST_PRESETS
from segkit.data.sample import Sample
from segkit.formats.mask_format import MaskFormat

RNG = np.random.default_rng(0)
SIZE_HW = (44, 60)
ANY_P = {"p": 1.0}

# Formats whose planes hold neither 0 nor 1 below, so that a 0 or 1 written by a transform is noticed.
FORMATS = {
    "uint8": MaskFormat.multiclass([f"c{i}" for i in range(9)]),
    "uint16": MaskFormat.multiclass([f"c{i}" for i in range(300)]),
}

PRESET_TRANSFORMS = [
    ({name: {**args, **ANY_P}}, name)
    for preset in PRESETS.values()
    for entry in preset.transforms
    for name, args in [(entry, {}) if isinstance(entry, str) else next(iter(entry.items()))]
]
# Those whose defaults write 0 into masks, or which a user is likely to name.
OTHER_TRANSFORMS = [
    ({name: {**args, **ANY_P}}, name)
    for name, args in {
        "GridDistortion": {"distort_limit": 0.9},
        "ElasticTransform": {"alpha": 300, "sigma": 10},
        "OpticalDistortion": {"distort_limit": 0.9},
        "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 10},
        "ThinPlateSpline": {"scale_range": [0.5, 0.6]},
        "Perspective": {"scale": 0.3},
        "ShiftScaleRotate": {"rotate_limit": 80, "fill_mask": 1},
        "Rotate": {"limit": 90, "interpolation": 2, "mask_interpolation": 1},
        "SafeRotate": {},
        "RandomScale": {"scale_limit": 0.7},
        "RandomResizedCrop": {"size": [31, 47]},
        "CropAndPad": {"percent": [-0.3, 0.3]},
        "PadIfNeeded": {"min_height": 70, "min_width": 90},
        "RandomCrop": {"height": 60, "width": 20, "pad_if_needed": True},
        "CoarseDropout": {"fill_mask": 1},
        "GridDropout": {"fill_mask": 1},
        "PixelDropout": {"mask_drop_value": 1},
        "XYMasking": {"num_masks_x": 2, "mask_x_length": 9, "fill_mask": 1},
        "RandomGridShuffle": {},
        "Transpose": {},
        "D4": {},
        "TimeMasking": {},
    }.items()
]


def planes_of(count, dtype, size_hw=SIZE_HW):
    """Blocks of values from 3 on, without the ignored value."""
    largest = 9 if dtype == "uint8" else 300
    blocks = RNG.integers(3, largest, (size_hw[0] // 4, size_hw[1] // 4, count))
    return blocks.repeat(4, 0).repeat(4, 1).astype(dtype)


def sample_of(image_dtype, bands, planes):
    image = RNG.random((*planes.shape[:2], bands)) * {"uint8": 255, "uint16": 9000, "float32": 2800}[image_dtype]
    return Sample("a", (image - 400 if image_dtype == "float32" else image).astype(image_dtype), planes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 3, 5, 20])
@pytest.mark.parametrize(
    "entry",
    [t for t, _ in PRESET_TRANSFORMS + OTHER_TRANSFORMS],
    ids=[n for _, n in PRESET_TRANSFORMS + OTHER_TRANSFORMS],
)
def test_no_value_appears_that_was_not_there(entry, count, dtype):
    augment = build_augment([entry], FORMATS[dtype])
    sample = sample_of("uint8", 3, planes_of(count, dtype))
    known = {*np.unique(sample.planes), FORMATS[dtype].ignore_index}
    for seed in range(4):
        result = augment(sample, seed)
        assert result.planes.dtype == dtype
        assert result.planes.shape == (*result.image.shape[:2], count)
        assert set(np.unique(result.planes)) <= known


@pytest.mark.parametrize("crop", [None, 32, [70, 90]])
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize(("image_dtype", "bands"), [("uint8", 1), ("uint8", 3), ("uint16", 13), ("float32", 1)])
def test_presets_fit_every_kind_of_image(preset, image_dtype, bands, crop):
    augment = build_augment(preset, FORMATS["uint8"], crop)
    sample = sample_of(image_dtype, bands, planes_of(1, "uint8"))
    before = sample.image.copy(), sample.planes.copy()
    size_hw = SIZE_HW if crop is None else (32, 32) if crop == 32 else (70, 90)
    for seed in range(12):
        result = augment(sample, seed)
        assert (result.image.shape, result.image.dtype) == ((*size_hw, bands), sample.image.dtype)
        assert result.planes.shape == (*size_hw, 1)
        assert set(np.unique(result.planes)) <= {*np.unique(before[1]), 255}
        assert float(result.image.min()) >= float(before[0].min()) - 600
        assert float(result.image.max()) <= float(before[0].max()) + 600
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.planes, before[1])


def test_float_images_keep_their_range():
    # Taken for [0, 1] by albumentations, all of this would be cut to 1 (or 0).
    sample = sample_of("float32", 1, planes_of(1, "uint8"))
    for entry in ("RandomBrightnessContrast", "GaussNoise", "RandomGamma"):
        for seed in range(3):
            image = build_augment([{entry: {"p": 1}}], FORMATS["uint8"])(sample, seed).image
            assert image.std() > 200
            assert np.corrcoef(image.ravel(), sample.image.ravel())[0, 1] > 0.5


def test_geometry_alone_leaves_16_bit_and_float_values_untouched():
    for image_dtype, bands in (("uint16", 13), ("float32", 1)):
        sample = sample_of(image_dtype, bands, planes_of(1, "uint8"))
        result = build_augment([{"HorizontalFlip": {"p": 1}}], FORMATS["uint8"])(sample, 0)
        np.testing.assert_array_equal(result.image, sample.image[:, ::-1])
        np.testing.assert_array_equal(result.planes, sample.planes[:, ::-1])


def test_no_nan_comes_out():
    # albumentations 2.0.8 itself gives NaN at single pixels of this image.
    image = (np.random.default_rng(0).random((60, 80, 1)) * 200 - 300).astype(np.float32)
    sample = Sample("a", image, np.full((60, 80, 1), 2, np.uint8))
    augment = build_augment([{"GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 10}}], FORMATS["uint8"])
    for seed in range(6):
        found = augment(sample, seed).image
        assert np.isfinite(found).all()
        assert found.min() >= image.min() - 1


def test_16_bit_values_survive_an_intensity_transform_that_does_nothing():
    sample = sample_of("uint16", 4, planes_of(1, "uint8"))
    still = {"RandomBrightnessContrast": {"brightness_limit": [0, 0], "contrast_limit": [0, 0], "p": 1}}
    np.testing.assert_array_equal(build_augment([still], FORMATS["uint8"])(sample, 0).image, sample.image)


# Geometry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "light",
        "street",
        "medical",
        [{"Affine": {"rotate": [-40, 40], "scale": [0.5, 2], "shear": [-10, 10], "p": 1}}],
        [{"ElasticTransform": {"alpha": 60, "sigma": 8, "p": 1}}],
        [{"Perspective": {"p": 1}}],
        [{"RandomScale": {"scale_limit": [-0.6, -0.5], "p": 1}}],
        [{"RandomResizedCrop": {"size": [60, 80], "p": 1}}],
    ],
    ids=str,
)
@pytest.mark.parametrize("crop", [None, [64, 80]])
def test_image_and_mask_move_together(spec, crop):
    # Wide soft shapes, and an image painted from them: after any move it must still agree with the mask.
    rows, columns = np.mgrid[:120, :160]
    planes = (1 + 2 * (np.hypot(rows - 50, columns - 60) < 30) + 5 * (columns > 110)).astype(np.uint8)[..., None]
    shades = np.zeros(256, np.uint8)
    shades[[1, 3, 6, 8]] = (20, 90, 160, 230)
    sample = Sample("a", shades[planes].repeat(3, 2), planes)
    augment = build_augment(spec, MaskFormat.multiclass(list(range(9))), crop)
    agreeing, moved = [], 0
    for seed in range(12):
        result = augment(sample, seed)
        known = result.planes[..., 0] != 255
        painted = shades[result.planes[..., 0]].astype(float)
        seen = result.image.mean(2)
        # Brightness and contrast may have changed: a straight line through the shades is taken out.
        slope, offset = np.polyfit(painted[known], seen[known], 1)
        agreeing.append((np.abs(slope * painted + offset - seen)[known] < 35 * slope).mean())
        moved += not np.array_equal(result.planes, sample.planes)
    assert moved > 3
    assert min(agreeing) > 0.96
    assert np.mean(agreeing) > 0.985


def test_beyond_the_border_planes_are_ignored_and_the_image_is_mirrored():
    planes = planes_of(2, "uint8", (8, 12))
    image = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12, 1)
    augment = build_augment("none", FORMATS["uint8"], [10, 12])
    # By the row at which the image begins: its rows in the result, the border row not repeated.
    mirrored = {0: [*range(8), 6, 5], 1: [1, *range(8), 6], 2: [2, 1, *range(8)]}
    seen = set()
    for seed in range(20):
        result = augment(Sample("a", image, planes), seed)
        inside = (result.planes != 255).all((1, 2))
        top = int(np.argmax(inside))
        np.testing.assert_array_equal(result.planes[inside], planes)
        np.testing.assert_array_equal(result.image, image[mirrored[top]])
        assert ((result.planes == 255).all((1, 2)) == ~inside).all()
        seen.add(top)
    assert seen == {0, 1, 2}


def test_crops_come_from_everywhere_inside():
    rows, columns = np.mgrid[:8, :10]
    image = np.dstack([rows, columns]).astype(np.uint16)
    augment = build_augment("none", FORMATS["uint8"], [3, 4])
    sample = Sample("a", image, planes_of(1, "uint8", (8, 12))[:, :10])
    corners = {tuple(augment(sample, seed).image[0, 0].tolist()) for seed in range(600)}
    assert corners == {(y, x) for y in range(6) for x in range(7)}


def test_street_scales_between_half_and_double():
    columns = np.arange(299, dtype=np.uint16)[None, :, None].repeat(300, 0)
    sample = Sample("a", columns, columns)
    augment = build_augment("street", FORMATS["uint16"], 100)
    scales = []
    for seed in range(60):
        row = augment(sample, seed).planes[50, 10:90, 0].astype(int)
        scales.append(79 / abs(row[-1] - row[0]))
    assert min(scales) > 0.48
    assert max(scales) < 2.1
    assert (min(scales) < 0.65, max(scales) > 1.6) == (True, True)
    assert 0.25 < np.mean(np.array(scales) < 1) < 0.75


def test_quarter_turns_only_where_the_size_stays():
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    assert {build_augment("medical", FORMATS["uint8"])(sample, s).size_hw for s in range(20)} == {SIZE_HW}
    # Of a wide image a square is cut, and that can turn: a mark of one side of the image comes up on four.
    wide = np.zeros((44, 60, 3), np.uint8)
    wide[:, :30] = 200
    augment = build_augment("medical", FORMATS["uint8"], 40)
    sides = [augment(Sample("a", wide, planes_of(1, "uint8")), s).image[..., 0].astype(float) for s in range(40)]
    assert {np.ptp(s.mean(0)[5:-5]) > np.ptp(s.mean(1)[5:-5]) for s in sides if s.std() > 60} == {True, False}
    square = sample_of("uint8", 1, planes_of(1, "uint8", (40, 40)))
    turned = [build_augment(["RandomRotate90"], FORMATS["uint8"])(square, s).image for s in range(20)]
    assert any(np.array_equal(t[..., 0], np.rot90(square.image[..., 0])) for t in turned)


@pytest.mark.parametrize("size_hw", [(4, 40), (40, 4), (1, 40), (1, 1), (5, 5)])
def test_medical_takes_images_smaller_than_its_grid(size_hw):
    augment = build_augment("medical", FORMATS["uint8"])
    sample = Sample("a", np.zeros((*size_hw, 1), np.float32), np.zeros((*size_hw, 1), np.uint8))
    assert {augment(sample, seed).size_hw for seed in range(60)} == {size_hw}


def test_medical_distorts_images_as_large_as_its_grid():
    def transforms(size_hw):
        found = build_augment("medical", FORMATS["uint8"])._pipeline((*size_hw, 1))
        return {type(t).__name__ for t in found._compose.transforms}

    assert transforms((5, 9)) - transforms((4, 9)) == {"GridDistortion"}


def test_crop_non_empty_looks_for_classes_above_zero():
    planes = np.zeros((60, 60, 1), np.uint8)
    planes[50:53, 7:9] = 2
    planes[:10, :10] = 255
    planes[30:32, 30:32] = 1
    spec = [{"CropNonEmptyMaskIfExists": {"height": 12, "width": 12, "ignore_values": [1]}}]
    augment = build_augment(spec, MaskFormat.multiclass(["a", "b", "c"]))
    for seed in range(10):
        assert 2 in augment(Sample("a", np.zeros((60, 60, 3), np.uint8), planes), seed).planes


# Randomness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["street", "medical", [{"SomeOf": {"n": 2, "transforms": ["GaussNoise", "Rotate", "Blur"]}}]]
)
def test_a_seed_gives_one_result_whatever_came_before(spec):
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    one, two = (build_augment(spec, FORMATS["uint8"], 32) for _ in range(2))
    forward = [one(sample, s) for s in range(8)]
    backward = [two(sample, s) for s in reversed(range(8))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.planes, b.planes)
    assert len({a.image.tobytes() for a in forward}) == 8


def test_transforms_are_independent_of_each_other():
    # albumentations' own seeding gives every transform the same stream: both flips, or none.
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    augment = build_augment(["HorizontalFlip", "VerticalFlip"], FORMATS["uint8"])
    kinds = {augment(sample, seed).image.tobytes() for seed in range(40)}
    assert len(kinds) == 4


def test_large_seeds():
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    assert build_augment("medical", FORMATS["uint8"])(sample, 2**64 - 1).size_hw == SIZE_HW


def test_pickled_augment_gives_the_same():
    augment = build_augment("medical", FORMATS["uint8"], 32)
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    augment(sample, 0)
    pickled = pickle.dumps(augment)
    assert b"albumentations" not in pickled
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again(sample, 5).image, augment(sample, 5).image)
    assert (again.spec, again.crop) == ("medical", (32, 32))


# Lists in a config -------------------------------------------------------------------------------------


def test_groups_are_built_within_groups():
    spec = [
        {"OneOf": {"transforms": ["HorizontalFlip", {"Sequential": ["Blur", {"Rotate": {"fill_mask": 1}}]}], "p": 1}},
        {"OneOf": ["GaussNoise", "Blur"]},
        {"RandomGamma": None},
    ]
    sample = sample_of("uint8", 3, planes_of(1, "uint8"))
    augment = build_augment(spec, FORMATS["uint8"], 32)
    assert augment.spec == spec
    for seed in range(20):
        assert 1 not in augment(sample, seed).planes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("strete", "augment is 'strete': expected the name of a preset.*Did you mean `street`"),
        (7, "augment is 7: expected the name of a preset, or a list"),
        ([7], "7 is no transform"),
        ([{"Blur": {}, "Rotate": {}}], "is no transform: expected NAME or"),
        (["HorizontalFlop"], "no transform 'HorizontalFlop' for images. Did you mean `HorizontalFlip`"),
        (["RandomCrop3D"], "no transform 'RandomCrop3D'"),
        ([{"GaussNoise": {"var_limit": 5}}], "GaussNoise has no argument 'var_limit'. Known are std_range"),
        ([{"Rotate": {"limt": 5}}], "Did you mean `limit`"),
        ([{"Rotate": {"limit": "much"}}], "Rotate does not take these arguments: .*limit"),
        ([{"Rotate": {"p": 7}}], "Rotate has p 7: expected a probability"),
        ([{"RandomRotate90": {"p": "x"}}], "RandomRotate90 has p 'x'"),
        ([{"CoarseDropout": {"num_holes_range": [5, 2]}}], "CoarseDropout does not take these arguments"),
        ([{"RandomCrop": {"height": 5}}], "RandomCrop does not take these arguments"),
        ([{"Rotate": [5]}], r"Rotate got \[5\]: expected"),
        ([{"OneOf": {"p": 1}}], "OneOf needs a list of transforms"),
        ([{"OneOf": ["Blurr"]}], "no transform 'Blurr'.*Did you mean `Blur`"),
        (["Normalize"], "Normalize is not for training segmentation: the model keeps the statistics"),
        (["ToTensorV2"], "ToTensorV2 is not for"),
        ([{"Mosaic": {}}], "Mosaic is not for .*needs data beside the sample"),
    ],
)
def test_mistakes_are_errors_with_the_closest_name(spec, message):
    with pytest.raises(ValueError, match=message):
        build_augment(spec, FORMATS["uint8"])


@pytest.mark.parametrize("crop", [0, -1, [3], [3, 0], "64", 2.5, True, [4, 5, 6]])
def test_wrong_crops(crop):
    with pytest.raises(ValueError, match="crop is"):
        build_augment("none", FORMATS["uint8"], crop)


def test_a_transform_that_does_not_fit_the_image_names_the_sample():
    with pytest.raises(ValueError, match=r"^a: augment cannot be applied to this sample: .*3-channel"):
        build_augment([{"RandomRain": ANY_P}], FORMATS["uint8"])(sample_of("uint16", 13, planes_of(1, "uint8")), 0)


def test_albumentations_is_imported_late_and_asks_no_network():
    code = (
        "import sys; from segkit.data.augment import build_augment; import segkit.data.loaders;"
        "assert 'albumentations' not in sys.modules;"
        "from segkit.formats.mask_format import MaskFormat;"
        "f = MaskFormat.binary(); build_augment('none', f); assert 'albumentations' not in sys.modules;"
        "import urllib.request; urllib.request.build_opener = None;"
        "build_augment('light', f); assert 'albumentations' in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("preset", [*PRESETS, *FAST_PRESETS])
@pytest.mark.parametrize("bands", [1, 3])
def test_normalised_images_change_in_units_of_their_own_range(preset, bands):
    """Means of 0 and values below it are no reason to cut anything off."""
    image = np.random.default_rng(0).uniform(-2, 2, (40, 40, bands)).astype(np.float32)
    augment = build_augment(preset, MaskFormat.binary(), crop=32)
    sample = Sample("a", image, np.zeros((40, 40, 1), np.uint8))
    changed = [augment(sample, seed).image for seed in range(40)]
    for result in changed:
        assert result.dtype == np.float32
        assert image.min() - 1e-5 <= result.min() < 0
        assert 0 < result.max() <= image.max() + 1e-5
        assert 0.4 < result.std() < 1.5
    # As often brighter as darker: what an image is changed by has no favourite direction.
    assert abs(np.mean([result.mean() for result in changed])) < 0.3


@pytest.mark.parametrize("preset", ["light", "street", "medical", "fast_light", "fast_street", "fast_medical"])
def test_the_range_is_the_one_that_the_model_sees(preset):
    """A fifth of what a CT holds, up or down, is more than its window; a fifth of the window is not."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-100, 200, (40, 40, 1)).astype(np.float32)
    image[:8], image[-8:] = -1000, 3000  # air and metal
    sample, window = Sample("a", image, np.zeros((40, 40, 1), np.uint8)), (-160.0, 240.0)
    plain, told = (build_augment(preset, MaskFormat.binary(), crop=40) for _ in range(2))
    told.clip = (window,)
    moved = {}
    for name, augment in (("plain", plain), ("told", told)):
        seen = [np.median(augment(sample, seed).image.clip(*window)) for seed in range(60)]
        moved[name] = np.ptp(seen)
    assert moved["plain"] > 350  # all black, or all white
    assert moved["told"] < 250
    result = told(sample, 3).image
    assert result.dtype == np.float32
    assert window[0] <= result.min() < result.max() <= window[1]
