from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.data.reading import ImageReading
from segkit.formats.mask_format import MaskFormat
from segkit.inference.averaging import Ensemble, TestTimeAugmentation, open_models, with_views
from segkit.inference.evaluate import evaluate
from segkit.inference.predictor import Predictor
from segkit.inference.tiling import image_logits
from segkit.models.builder import build_model
from segkit.models.bundle import save_bundle
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics
from segkit.ops.sizes import Spacing
from tests.scenes import FORMATS, default_codec, write_set

SMALL = {"decoder_channels": [16, 8, 8, 8, 8]}
IMAGES = torch.randint(0, 255, (2, 3, 45, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(kind: str = "exclusive", architecture: str = "fpn", seed: int = 1, **options) -> Segmenter:
    torch.manual_seed(seed)
    options = {**(SMALL if architecture == "unet" else {}), **options}
    return build_model(architecture, "tu-test_resnet", FORMATS[kind], weights=None, **options).eval()


class Counting(nn.Module):
    """One pixel at a time, and how often it was asked."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        return self.conv(x)


def pointwise(seed: int = 0, format: MaskFormat = FORMATS["overlapping"], **options) -> Segmenter:
    torch.manual_seed(seed)
    statistics = PixelStatistics((100.0,) * 3, (50.0,) * 3)
    recipe = Recipe("p", "none")
    return Segmenter(Counting(format.num_classes), format, statistics, recipe, **{"stride": 8, **options}).eval()


@pytest.mark.parametrize("kind", FORMATS)
@torch.inference_mode()
def test_an_ensemble_is_the_mean_of_probabilities(kind):
    """Networks that end without upsampling, so that every pixel is an answer."""
    models = [network(kind, "unet", seed) for seed in (1, 2, 3)]
    expected = sum(FORMATS[kind].probabilities(model(IMAGES)) for model in models) / 3
    logits = Ensemble(models).coarse_logits(IMAGES).full()
    assert torch.allclose(FORMATS[kind].probabilities(logits), expected, atol=1e-6)


@torch.inference_mode()
def test_answers_on_one_grid_are_averaged_where_they_were_computed():
    models = [network(seed=seed) for seed in (1, 2)]
    each = [model.coarse_logits(IMAGES) for model in models]
    logits = Ensemble(models).coarse_logits(IMAGES)
    assert logits.values.shape == each[0].values.shape != (2, 3, 45, 70)
    assert logits.shape == (2, 3, 45, 70)
    format = FORMATS["exclusive"]
    expected = (format.probabilities(each[0].values) + format.probabilities(each[1].values)) / 2
    assert torch.allclose(format.probabilities(logits.values), expected, atol=1e-6)


@torch.inference_mode()
def test_answers_on_several_grids_meet_at_full_resolution_and_weigh_alike():
    models = [network(seed=1), network(architecture="unet", seed=2), network(architecture="unet", seed=3)]
    format = FORMATS["exclusive"]
    expected = sum(format.probabilities(model(IMAGES)) for model in models) / 3
    logits = Ensemble(models).coarse_logits(IMAGES)
    assert logits.values.shape == (2, 3, 45, 70)
    assert torch.allclose(format.probabilities(logits.full()), expected, atol=1e-5)


@torch.inference_mode()
def test_an_ensemble_of_one_model_twice_answers_as_that_model():
    model = network("binary")
    assert torch.allclose(Ensemble([model, model]).coarse_logits(IMAGES).full(), model(IMAGES), atol=1e-4)


@torch.inference_mode()
def test_members_work_at_their_own_size_and_in_their_own_units():
    models = [pointwise(1, resize=40), pointwise(2, resize=[24, 36]), pointwise(3)]
    models[1].statistics = PixelStatistics((20000.0,) * 3, (9000.0,) * 3, "uint16")
    logits = Ensemble(models).predict_coarse_logits(IMAGES)
    expected = sum(model.predict_logits(IMAGES).sigmoid() for model in models) / 3
    assert [model.network.sizes[-1] for model in models] == [(32, 40), (24, 40), (48, 72)]
    assert torch.allclose(logits.full().sigmoid(), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"different sizes \(40, \[24, 36\], None\).*Leave `tile` out"):
        image_logits(Ensemble(models), IMAGES, tile=32)


@torch.inference_mode()
def test_members_of_one_size_share_windows():
    models = [pointwise(1, resize=[64, 80]), pointwise(2, resize=[64, 80])]
    models[1].statistics = PixelStatistics((20000.0,) * 3, (9000.0,) * 3, "uint16")
    windows = image_logits(Ensemble(models), IMAGES, tile=32).full()
    expected = sum(model.predict_logits(IMAGES).sigmoid() for model in models) / 2
    assert set(models[0].network.sizes[:-1]) == {(32, 32)}
    assert (windows.sigmoid() - expected).abs().max() < 0.02  # windows see images rounded to their stored depth


@torch.inference_mode()
def test_views_of_an_ensemble_are_made_by_each_model_at_its_size(tmp_path):
    models = [pointwise(1, resize=(40, 64)), pointwise(2)]
    image = IMAGES[0].permute(1, 2, 0).numpy()
    expected = Predictor(models, tta="hflip", device="cpu").probabilities(image)
    together = Ensemble(models)
    assert np.array_equal(Predictor(together, tta="hflip", device="cpu").probabilities(image), expected)
    data = write_set(tmp_path, FORMATS["overlapping"], 2)
    assert evaluate(together, data, tta="hflip", device="cpu", workers=0).pooled("dice").mean is not None
    # What was tuned since counts.
    together.format = together.format.with_thresholds([0.25, 0.75])
    seen = with_views(together, "hflip")
    assert isinstance(seen, Ensemble)
    assert (seen.format, with_views(together, None)) == (together.format, together)


def test_thresholds_of_an_ensemble_are_the_mean():
    models = [pointwise(format=MaskFormat.multilabel(["a", "b"], thresholds=t)) for t in ([0.2, 0.5], [0.4, 0.9])]
    assert Ensemble(models).format.thresholds == pytest.approx((0.3, 0.7))
    several = [MaskFormat.multiclass(["a", "b"], "sigmoid", threshold) for threshold in (0.2, 0.6, None)]
    assert Ensemble([pointwise(format=f) for f in several[:2]]).format.threshold == pytest.approx(0.4)
    assert Ensemble([pointwise(format=f) for f in several]).format.threshold is None
    assert Ensemble([pointwise(format=MaskFormat.multiclass(["a", "b"]))] * 2).format.threshold_groups == ()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            pointwise(format=MaskFormat.multilabel(["left", "ring"])),
            "model 2 .* classes is .*ring",
        ),
        (pointwise(format=MaskFormat.multiclass(["left", "disc"])), "format is multiclass softmax, that of model 1"),
        (pointwise(reading=ImageReading(normalize="image")), "option normalize of reading is image, .* dataset"),
    ],
)
def test_members_that_differ_are_refused_with_what_differs(other, message):
    with pytest.raises(ValueError, match=message):
        Ensemble([pointwise(), other])


def test_members_with_other_bands_are_refused():
    with pytest.raises(ValueError, match="number of bands is 5, that of model 1 3"):
        Ensemble([network("binary"), network("binary", in_channels=5)])
    with pytest.raises(ValueError, match="no models"):
        Ensemble([])


@pytest.mark.parametrize("names", ["flips", "rotations", "flips,rotations", "hflip,scale=0.5"])
@pytest.mark.parametrize("architecture", ["fpn", "unet"])
@torch.inference_mode()
def test_views_are_answers_to_turned_images_turned_back(names, architecture):
    """By hand, at full resolution: sides are multiples of the stride, so that no padding breaks the symmetry."""
    images = IMAGES[..., :32, :64]
    model = network(architecture=architecture)
    format = model.format
    tta = TestTimeAugmentation(model, names)
    by_hand = {
        "flips": [((),), ((-1,),), ((-2,),), ((-1, -2),)],
        "rotations": [(0,), (1,), (2,), (3,)],
    }
    total, count = torch.zeros(2, 3, 32, 64), 0
    if names == "flips":
        for (dims,) in by_hand["flips"]:
            total += format.probabilities(model(images.flip(dims)).flip(dims))
            count += 1
    elif names == "rotations":
        for (turns,) in by_hand["rotations"]:
            answer = model(torch.rot90(images, turns, (2, 3)))
            total += format.probabilities(torch.rot90(answer, -turns, (2, 3)))
            count += 1
    elif names == "flips,rotations":
        for turns, mirrored in itertools.product(range(4), (False, True)):
            seen = torch.rot90(images.flip(-1) if mirrored else images, turns, (2, 3))
            answer = torch.rot90(model(seen), -turns, (2, 3))
            total += format.probabilities(answer.flip(-1) if mirrored else answer)
            count += 1
    else:
        for scale, mirrored in itertools.product((1, 2), (False, True)):
            seen = images.flip(-1) if mirrored else images
            seen = seen if scale == 1 else model.resized(seen, (16, 32))
            answer = nn.functional.interpolate(model(seen), (32, 64), mode="bilinear") if scale == 2 else model(seen)
            total += format.probabilities(answer.flip(-1) if mirrored else answer)
            count += 1
    assert len(tta.views) == count
    logits = tta.coarse_logits(images)
    averaged, plain = (format.probabilities(answer) - total / count for answer in (logits.full(), model(images)))
    # Between the points of a coarse grid it is another average: of this wild, untrained network by a 40th as much.
    assert averaged.abs().mean() < (1e-7 if architecture == "unet" and "scale" not in names else 0.003)
    assert plain.abs().mean() > 0.02


@torch.inference_mode()
def test_flips_and_turns_stay_on_the_coarse_grid_at_odd_sizes():
    model = network()
    coarse = model.coarse_logits(IMAGES)
    logits = TestTimeAugmentation(model, "flips,rotations").coarse_logits(IMAGES)
    assert (logits.values.shape, logits.size_hw) == (coarse.values.shape, coarse.size_hw)
    assert logits.shape == (2, 3, 45, 70)
    # The plain view is one of the eight: the padding of the others is that of the model.
    plain = TestTimeAugmentation(model, "hflip")
    plain.views = plain.views[:1]
    alone, expected = (model.format.probabilities(z) for z in (plain.coarse_logits(IMAGES).full(), model(IMAGES)))
    assert torch.allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@torch.inference_mode()
def test_where_pixels_stand_alone_every_view_says_the_same(dtype):
    """Also where windows, a working size, neighbours' padding and a spacing come in between."""
    images = IMAGES.to(dtype)
    for options, spacing in (({}, None), ({"resize": 60}, None), ({"resize": Spacing(1, 2)}, (0.7, 1.1))):
        model = pointwise(3, **options)
        tta = TestTimeAugmentation(model, "flips,rotations")
        expected = model.predict_coarse_logits(images, spacing).full()
        assert torch.allclose(tta.predict_coarse_logits(images, spacing).full(), expected, atol=1e-4)
        assert len(model.network.sizes) == 9
    tta = TestTimeAugmentation(pointwise(3), "flips,rotations")
    assert torch.allclose(image_logits(tta, images, 32).full(), pointwise(3)(images), atol=1e-4)


@torch.inference_mode()
def test_a_network_with_a_smallest_side_is_averaged_too():
    model = pointwise(3, min_side=64)
    tta = TestTimeAugmentation(model, "flips")
    assert torch.allclose(tta.coarse_logits(IMAGES).full(), model(IMAGES), atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_predictor_and_evaluate_take_views_and_several_models(tmp_path, kind):
    data = write_set(tmp_path / "data", FORMATS[kind], 3, size_hw=(32, 64))
    for number in (1, 2):
        save_bundle(network(kind, "unet", seed=number), tmp_path / f"m{number}", default_codec(FORMATS[kind]))
    paths = [tmp_path / "m1", tmp_path / "m2"]
    predictor = Predictor(paths, device="cpu", tta="hflip")
    report = predictor.predict_files([data.images], tmp_path / "out")
    assert (report.done, report.failed) == (3, [])
    image = data.read(0).image
    views = [Predictor(path, device="cpu").probabilities(seen) for path in paths for seen in (image, image[:, ::-1])]
    expected = (views[0] + views[1][..., ::-1] + views[2] + views[3][..., ::-1]) / 4
    assert np.abs(predictor.probabilities(image) - expected).max() < 1e-5
    assert np.abs(views[0] - expected).max() > 0.01
    both, _ = open_models(paths)
    scores = evaluate(both, data, device="cpu", tta="hflip", workers=0)
    written = evaluate(open_models(paths, "hflip")[0], data, device="cpu", workers=0)
    assert scores.to_dict() == written.to_dict()
    assert scores.to_dict() != evaluate(open_models(paths[0])[0], data, device="cpu", workers=0).to_dict()
