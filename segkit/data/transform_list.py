"""A list of albumentations transforms as one function of image, planes and seed; no other module imports them.

Three rules hold for every transform:

- No value appears in a mask that was not there, except `ignore_index` where a transform shows what lies beyond the
  border. Planes are handed over inverted (`~planes`), so *ignored* is 0 there: several transforms write 0 into
  masks without asking, and what they write means *ignored* again when it is inverted back.
- The result is a function of image, planes and seed, whatever process computes it.
- Images keep their dtype, bands and range: what is not 8-bit is changed in units of the image's own range, since
  albumentations takes floats for [0, 1] and cuts off the rest.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segkit.suggest import closest

_GROUPS = {"OneOf", "OneOrOther", "RandomOrder", "Sequential", "SomeOf"}
_STATISTICS = "the model keeps the statistics of its pixels itself"
_OTHER_DATA = "it needs data beside the sample"
_BOXES = "it needs bounding boxes"
_REFUSED = {
    **dict.fromkeys(("Normalize", "ToFloat", "FromFloat"), _STATISTICS),
    **dict.fromkeys(("ToTensorV2", "ToTensor3D"), "batches are made from arrays"),
    "ToRGB": "it changes the number of bands",
    "Lambda": "it takes Python code, which a config cannot hold",
    **dict.fromkeys(("FDA", "HistogramMatching", "Mosaic", "OverlayElements", "TextImage"), _OTHER_DATA),
    "PixelDistributionAdaptation": _OTHER_DATA,
    **dict.fromkeys(("AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "RandomCropNearBBox"), _BOXES),
    **dict.fromkeys(("RandomSizedBBoxSafeCrop", "ConstrainedCoarseDropout"), _BOXES),
    **dict.fromkeys(("MaskDropout", "Morphological"), "it computes with class numbers as if they were amounts"),
}


class Pipeline:
    """Transforms over an image and its planes, in order.

    Args:
        entries: `NAME` or `{NAME: {ARGUMENT: VALUE}}` each; groups such as OneOf hold `transforms` of that form.
        dtype: of the planes.
    """

    def __init__(self, entries: Sequence[Any], dtype: np.dtype) -> None:
        albumentations = _albumentations()
        import cv2

        transforms = [_build(albumentations, entry, dtype) for entry in entries]
        self._compose = albumentations.Compose(transforms, mask_interpolation=cv2.INTER_NEAREST, is_check_shapes=False)
        leaves = _leaves(self._compose.transforms)
        self._changes_values = any(isinstance(leaf, albumentations.ImageOnlyTransform) for leaf in leaves)
        for leaf in leaves:
            # INTER_NEAREST takes the upper left corner of what a pixel covers, which moves a shrunken mask against
            # its image. The exact kind takes the centre; cv2.resize has it, warps need no other.
            if type(leaf).__module__.endswith((".geometric.resize", ".crops.transforms")):
                leaf.mask_interpolation = cv2.INTER_NEAREST_EXACT

    def __call__(self, image: np.ndarray, planes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, B) image and (H, W, P) planes after the transforms; a function of the arguments alone."""
        # One pair of generators shared by all transforms. `set_random_seed` would give each transform its own
        # generator with the same seed, and horizontal and vertical flips would always come together.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        bands, dtype = image.shape[2], image.dtype
        scaled = self._changes_values and dtype != np.uint8
        if scaled:
            low, high = float(image.min()), float(image.max())
            span = (high - low) or 1.0
            image = (image.astype(np.float32) - np.float32(low)) / np.float32(span)
        masks = np.ascontiguousarray((~planes).transpose(2, 0, 1))
        result = self._compose(image=image, masks=masks)
        image, masks = result["image"], np.asarray(result["masks"])
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype == np.float32 and not np.isfinite(image).all():
            # GridElasticDeform divides by zero at rare pixels.
            image = np.nan_to_num(image, nan=float(np.nanmin(image)))
        if scaled:
            image = image * np.float32(span) + np.float32(low)
            if dtype != np.float32:
                image = np.clip(np.rint(image), 0, np.iinfo(dtype).max)
            image = image.astype(dtype)
        if image.dtype != dtype or image.shape[2] != bands:
            raise ValueError(
                f"the transforms made {image.dtype} of {dtype}, and {image.shape[2]} bands of {bands}; "
                "take out those that change either"
            )
        return image, ~masks.transpose(1, 2, 0)


def entry_name(entry: Any) -> str:
    """Name of the transform or group that an entry of a list names."""
    name, _ = _name_and_arguments(entry)
    return name


def _name_and_arguments(entry: Any) -> tuple[str, Any]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str):
            return name, {} if arguments is None else arguments
    raise ValueError(
        f"augment: {entry!r} is no transform: expected NAME or {{NAME: {{ARGUMENT: VALUE}}}}, "
        "such as `{GaussNoise: {p: 0.3}}`."
    )


def _build(albumentations: Any, entry: Any, dtype: np.dtype) -> Any:
    """One transform, or a group of them, from its form in a config."""
    name, arguments = _name_and_arguments(entry)
    kind = _look_up(albumentations, name)
    if name in _GROUPS and isinstance(arguments, Sequence) and not isinstance(arguments, str):
        arguments = {"transforms": arguments}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"augment: {name} got {arguments!r}: expected {{ARGUMENT: VALUE}}, such as `{{p: 0.3}}`.")
    options = dict(arguments)
    known = [p for p in inspect.signature(kind).parameters if p not in ("strict", "first", "second")]
    for argument in options:
        if argument not in known:
            raise ValueError(f"augment: {name} has no argument {argument!r}. {closest(argument, known)}")
    if name in _GROUPS:
        inner = options.get("transforms")
        if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
            raise ValueError(f"augment: {name} needs a list of transforms, got {inner!r}.")
        options["transforms"] = [_build(albumentations, e, dtype) for e in inner]
    return _construct(kind, name, _with_safe_masks(name, options, dtype))


def _look_up(albumentations: Any, name: str) -> Any:
    if name in _REFUSED:
        raise ValueError(f"augment: {name} is not for training segmentation: {_REFUSED[name]}. Take it out.")
    kinds = {
        n: k
        for n, k in vars(albumentations).items()
        if inspect.isclass(k)
        and n not in ("BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", *_REFUSED)
        and (n in _GROUPS or issubclass(k, albumentations.BasicTransform))
        and not issubclass(k, albumentations.Transform3D)
    }
    if name not in kinds:
        raise ValueError(
            f"augment: albumentations {albumentations.__version__} has no transform {name!r} for images. "
            f"{closest(name, kinds)}"
        )
    return kinds[name]


def _with_safe_masks(name: str, options: dict[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """The same arguments, with those that touch masks set for inverted planes, in which *ignored* is 0."""
    for argument in ("fill_mask", "mask_drop_value"):
        # None leaves the mask as it is where a dropout covers the image, which is a choice of its own.
        if options.get(argument) is not None:
            options[argument] = 0
    options.pop("mask_interpolation", None)
    if name == "CropNonEmptyMaskIfExists":
        inverted = int(np.iinfo(dtype).max)
        options["ignore_values"] = [inverted - v for v in (0, *(options.get("ignore_values") or ()))]
    return options


def _construct(kind: Any, name: str, options: dict[str, Any]) -> Any:
    share = options.get("p", 0.5)
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"augment: {name} has p {share!r}: expected a probability from 0 to 1.")
    try:
        with warnings.catch_warnings():
            # "A special case of Affine" and the like are remarks about style.
            warnings.simplefilter("ignore", UserWarning)
            return kind(**options)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line)
        raise ValueError(f"augment: {name} does not take these arguments: {reason}") from None


def _leaves(transforms: Sequence[Any]) -> list[Any]:
    found = []
    for transform in transforms:
        inner = getattr(transform, "transforms", None)
        found += _leaves(inner) if inner is not None else [transform]
    return found


def _albumentations() -> Any:
    # It asks the network for a newer version when imported, unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations
