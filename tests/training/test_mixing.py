"""Batches are mixed pixel by pixel, image and planes together, whatever the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkit.config import read_config
from segkit.formats.mask_format import MaskFormat
from segkit.training.fit import fit
from segkit.training.mixing import Mixer
from segkit.training.settings import MixSettings, train_settings
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run, small_model

MANY = MaskFormat.multiclass(list(range(300)))
PARTLY = MaskFormat.multilabel(["cup", "disc", "vessel"])
ALL = {**FORMATS, "many": MANY, "partly": PARTLY}
WAYS = ("cutmix", "classmix", "copy_paste")
SIZE_HW = (24, 36)


def batch_of(format: MaskFormat, count: int = 4, bands: int = 2, dtype=torch.uint8):
    """Every pixel is told apart by its image's bands: number of the image, and a checksum of its planes."""
    rng = np.random.default_rng(1)
    height, width = SIZE_HW[0] // 4, SIZE_HW[1] // 4
    values = 2 if format.num_planes > 1 or format.num_classes == 1 else format.num_classes
    blocks = rng.integers(0, values, (count, format.num_planes, height, width))
    blocks[rng.random(blocks.shape) < 0.2] = format.ignore_index
    target = torch.from_numpy(blocks.repeat(4, 2).repeat(4, 3)).to(format.torch_dtype)
    images = torch.zeros(count, *SIZE_HW, bands, dtype=torch.int32)  # as `collate` lays them out
    images[..., 0] = torch.arange(count).view(-1, 1, 1)
    images[..., 1] = _checksum(target)
    return images.to(dtype).permute(0, 3, 1, 2), target


def _checksum(target):
    factors = torch.tensor([1, 7, 31][: target.shape[1]]).view(1, -1, 1, 1)
    return (target.long() * factors).sum(1) % 251


def only(way, **options):
    return MixSettings(**{way: 1.0}, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ALL)
def test_image_and_planes_of_a_pixel_stay_together_and_no_value_is_new(kind, way, dtype):
    format = ALL[kind]
    named = format.names[1:2] if way == "copy_paste" and not format.classes_overlap else None
    images, target = batch_of(format, dtype=dtype)
    before = images.clone(), target.clone()
    mixer = Mixer(only(way, classes=named), format, seed=3)
    foreign = 0
    for batch in range(12):
        mixed, planes = mixer(images, target, (0, batch, 0))
        assert (mixed.dtype, mixed.shape, planes.dtype) == (images.dtype, images.shape, target.dtype)
        assert torch.equal(mixed[:, 1].long(), _checksum(planes))
        whose = mixed[:, 0].long()
        own = torch.arange(len(images)).view(-1, 1, 1)
        for number in range(len(images)):
            others = set(whose[number].unique().tolist()) - {number}
            assert len(others) <= 1  # of one other image
        # each pixel lies where it lay
        origin = torch.gather(target, 0, whose[:, None].expand_as(target))
        assert torch.equal(planes, origin)
        foreign += int((whose != own).sum())
    assert foreign > 0
    assert torch.equal(images.to(torch.int32), before[0].to(torch.int32))
    assert torch.equal(target, before[1])


def test_draws_depend_on_seed_and_key_alone():
    format = FORMATS["exclusive"]
    images, target = batch_of(format)
    plan = MixSettings(cutmix=0.5, classmix=0.5)

    def mixed(seed, *key):
        return Mixer(plan, format, seed)(images, target, key)[0].flatten().tolist()

    assert mixed(1, 2, 3, 0) == mixed(1, 2, 3, 0)
    others = (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)
    assert len({tuple(mixed(*key)) for key in ((1, 2, 3, 0), *others)}) == 5


def test_shares_are_those_of_the_batches():
    format = FORMATS["exclusive"]
    images, target = batch_of(format)
    mixer = Mixer(MixSettings(cutmix=0.25, classmix=0.35), format, seed=0)
    (cutmix, _), (classmix, _) = [way for way in mixer._ways if way[0]]
    nothing, everything = (lambda source, rng, all=all: torch.full_like(source, all) > 0 for all in (0, 1))
    mixer._ways = [(cutmix, nothing), (classmix, everything)]
    mixed = [mixer(images, target, (0, batch, 0))[0] for batch in range(800)]
    untouched, equal = (np.array([test(images, m) for m in mixed]) for test in (lambda a, b: a is b, torch.equal))
    assert untouched.mean() == pytest.approx(0.4, abs=0.05)
    assert (equal & ~untouched).mean() == pytest.approx(0.25, abs=0.05)
    assert (~equal).mean() == pytest.approx(0.35, abs=0.05)


def test_boxes_take_half_the_area_before_they_are_clipped_and_lie_everywhere():
    format = FORMATS["exclusive"]
    _, target = batch_of(format)
    mixer = Mixer(only("cutmix"), format, seed=0)
    areas, covered = [], torch.zeros(SIZE_HW, dtype=torch.bool)
    for batch in range(200):
        region = mixer._boxes(target, np.random.default_rng(batch))
        areas += region.flatten(1).float().mean(1).tolist()
        covered |= region.any(0)[0]
        for box in region[:, 0]:  # rows and columns that belong to it make it up
            assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
    # E[share] = 1/2 for a torus; of a box with its centre anywhere E[(1 - s/4)^2 s^2] with s = sqrt(u), by the border
    s = np.sqrt((np.arange(10000) + 0.5) / 10000)
    assert np.mean(areas) == pytest.approx(np.mean(s**2 * (1 - s / 4) ** 2), abs=0.02)
    assert covered.all()


@pytest.mark.parametrize("kind", ["exclusive", "partly", "many"])
def test_classmix_pastes_half_of_the_classes_whole(kind):
    format = ALL[kind]
    target = torch.full((2, format.num_planes, *SIZE_HW), 0, dtype=format.torch_dtype)
    if format.num_planes == 1:
        target[0, 0, :, 9:] = 1  # two classes, and one in the second image
        target[0, 0, 3, 3] = format.ignore_index
    else:
        target[0, 0, :, 9:] = target[0, 2, :5] = 1
        target[1, 1, 3] = 1
        target[0, 1] = format.ignore_index  # not known of this image
    mixer = Mixer(only("classmix"), format, seed=0)
    seen, alone = set(), set()
    for batch in range(40):
        region = mixer._half_the_classes(target, np.random.default_rng(batch))
        seen.add(tuple(region[0, 0].flatten().tolist()))
        alone.add(int(region[1].sum()))
    maps = format.expand(target)[0]
    expected = {tuple(here.flatten().tolist()) for here in maps if here.any()}
    assert seen == expected  # one of two, never both, never the ignored pixel
    assert len(expected) == 2
    assert alone == ({0} if format.num_planes == 1 else {0, SIZE_HW[1]})


def test_copy_paste_takes_the_named_classes_and_nothing_else():
    format = FORMATS["exclusive"]
    images, target = batch_of(format)
    mixer = Mixer(only("copy_paste", classes=["disc"]), format, seed=0)
    mixed, _ = mixer(images, target, (0, 0, 0))
    whose = mixed[:, 0].long()
    for number in range(4):
        pasted = whose[number] != number
        (source,) = whose[number][pasted].unique().tolist()
        assert torch.equal(pasted, target[source, 0] == 2)


def test_a_batch_of_one_stays_as_it_is():
    format = FORMATS["exclusive"]
    images, target = batch_of(format, count=1)
    assert Mixer(only("cutmix"), format, 0)(images, target, (0, 0, 0))[0] is images
    assert Mixer(None, format, 0)(*batch_of(format), (0, 0, 0))[1].shape[0] == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cutmix": 0.7, "classmix": 0.7}, "expected shares .* they add up to 1.4"),
        ({}, "they add up to 0"),
        ({"cutmix": 1.5}, "mix.cutmix is 1.5, expected less than or equal to 1"),
        (0.5, "mix is 0.5, expected a share of the batches for each way of mixing, such as {cutmix: 0.5}"),
        ({"cutmix": True}, "mix.cutmix is True, expected a number"),
        ({"cutmx": 0.5}, "unknown key 'mix.cutmx'.*cutmix"),
        ({"cutmix": 0.5, "classes": ["disc"]}, "`copy_paste` where `classes` is given"),
    ],
)
def test_settings_that_make_no_mixture_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        train_settings(mix=given)


def test_a_batch_of_one_has_nothing_to_mix_and_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="contradict each other, expected a `batch_size` of 2 or more where `mix`",
    ):
        train_settings(mix={"cutmix": 0.5}, batch_size=1)
    (tmp_path / "c.yaml").write_text(
        "masks: {format: binary, classes: [x]}\ntrain:\n  batch_size: 1\n  mix: {cutmix: 0.5}\n"
    )
    with pytest.raises(ValueError, match=r"c.yaml, line 2: .* expected a `batch_size` of 2 or more"):
        read_config(tmp_path / "c.yaml")


def test_shares_may_add_up_to_all_batches():
    assert 0.56 + 0.34 + 0.1 > 1
    assert train_settings(mix={"cutmix": 0.56, "classmix": 0.34, "copy_paste": 0.1}).mix.cutmix == 0.56


def test_what_is_to_be_pasted_has_to_be_said_where_everything_is_foreground(tmp_path):
    format = FORMATS["exclusive"]
    for mix, message in (
        ({"copy_paste": 0.5}, "mix: copy_paste: no class .* named `background`"),
        ({"copy_paste": 0.5, "classes": ["disk"]}, "mix: copy_paste: classes names 'disk'.*disc"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(small_model(format), write_set(tmp_path / str(len(mix)), format, 2), out=tmp_path / "run", mix=mix)
    assert not (tmp_path / "run").exists()


def test_a_run_with_mixed_batches_learns_and_differs_from_one_without(tmp_path):
    format = FORMATS["overlapping"]
    mix = {"cutmix": 0.3, "classmix": 0.3, "copy_paste": 0.3}
    *_, plain, _ = run(tmp_path, format, "plain", epochs=2)
    *_, mixed, _ = run(tmp_path, format, "mixed", epochs=8, mix=mix)
    assert mixed.best > 0.5
    first = [(tmp_path / name / "metrics.csv").read_text().splitlines()[1] for name in ("plain", "mixed")]
    assert first[0] != first[1]
    assert plain.epochs == 2
