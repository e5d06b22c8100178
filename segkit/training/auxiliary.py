"""Deep supervision: heads on features inside the network, which train it there and are left behind.

Each head gives logits at the size of its features. The loss upsamples them tile by tile, as it does those of the
network itself, so auxiliary logits of full resolution are never built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segkit.models.encoder_stages import evaluating
from segkit.models.segmenter import Segmenter, pad_to_stride
from segkit.ops.upsample import CoarseLogits
from segkit.training.step import loss_of

# Class of segmentation_models_pytorch -> modules of its decoder that give features, from coarse to fine, without those
# that its own head sees.
_DECODER_LEVELS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "Unet": lambda decoder: list(decoder.blocks)[:-1],
    "UnetPlusPlus": lambda decoder: [decoder.blocks[f"x_0_{n}"] for n in range(decoder.depth)],
    "MAnet": lambda decoder: list(decoder.blocks)[:-1],
    "Linknet": lambda decoder: list(decoder.blocks)[:-1],
    "FPN": lambda decoder: [decoder.p5, decoder.p4, decoder.p3, decoder.p2],
    "PAN": lambda decoder: [getattr(decoder, name) for name in ("fpa", "gau3", "gau2") if hasattr(decoder, name)],
    "UPerNet": lambda decoder: [decoder.psp, *decoder.fpn_conv_blocks],
    "DPT": lambda decoder: list(decoder.fusion_blocks)[:-1],
}
# Decoders without levels are supervised at the last stage of the encoder but one, as PSPNet (Zhao et al. 2017) is. That
# of segmentation_models_pytorch has an encoder of three stages, which ends before the stage of the paper.
_ENCODER_STAGE = {"PSPNet": -1, "DeepLabV3": -2, "DeepLabV3Plus": -2, "Segformer": -2}
_PROBED_SIDE = 64


class AuxiliaryHeads(nn.Module):
    """A head on each level of the decoder, or on a late stage of the encoder.

    The loss of level l, counted from the finest, weighs 2⁻ˡ of all, as in nnU-Net (Isensee et al. 2021), and together
    they weigh `weight`, beside 1 for the network's own logits. Heads are a 1x1 convolution on a decoder, and 3x3 before
    it on an encoder. They are no part of `model`: neither of its weights, nor of bundles, nor of predictions.

    Args:
        model: its network is watched until `release`.
        weight: above 0; 0.4 is that of PSPNet.
        seed: of the weights that the heads begin with.

    Raises:
        ValueError: a network of another kind than those of `SUPERVISED`, or without intermediate features.
    """

    def __init__(self, model: Segmenter, weight: float, seed: int = 0) -> None:
        super().__init__()
        levels, stage = _find_levels(model)
        self._features: list[Tensor | None] = [None] * len(levels)
        self._watching = False
        self._hooks = [module.register_forward_hook(self._keep(number, stage)) for number, module in enumerate(levels)]
        channels = [features.shape[1] for features in self._probed(model)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = [_head(count, model.format.num_classes, spatial=stage is not None) for count in channels]
        place = next(model.network.parameters())
        self.heads = nn.ModuleList(heads).to(place.device, place.dtype)
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.network.modules()):
            self.heads = nn.SyncBatchNorm.convert_sync_batchnorm(self.heads)  # as the network's own
        shares = [0.5 ** (len(levels) - 1 - number) for number in range(len(levels))]
        self.weights = [weight * share / sum(shares) for share in shares]

    def loss(self, loss: Callable[..., Tensor], logits: CoarseLogits, target: Tensor) -> Tensor:
        """Weighted sum of the losses of all heads for the batch that the network has just seen.

        Args:
            loss: that of the network's own logits.
            logits: these; they tell size and stride padding.
            target: (N, P, H, W) planes.
        """
        terms = []
        for number, (weight, head) in enumerate(zip(self.weights, self.heads, strict=True)):
            values = head(self._take(number))
            coarse = CoarseLogits(values, logits.size_hw, logits.crop_hw, align_corners=False)
            terms.append(weight * loss_of(loss, coarse, target))
        return torch.stack(terms).sum()

    def release(self) -> None:
        """Leave the network as it was before."""
        for hook in self._hooks:
            hook.remove()

    def _keep(self, number: int, stage: int | None) -> Callable[..., None]:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if module.training or self._watching:
                self._features[number] = output if stage is None else output[stage]

        return keep

    def _take(self, number: int) -> Tensor:
        """Features of a level; their memory is not held on to."""
        features, self._features[number] = self._features[number], None
        assert features is not None, "the network has not run"
        return features

    @torch.no_grad()
    def _probed(self, model: Segmenter) -> list[Tensor]:
        """Features of all levels for a small image."""
        network, place = model.network, next(model.network.parameters())
        images = torch.zeros(1, model.in_channels, _PROBED_SIDE, _PROBED_SIDE, dtype=place.dtype, device=place.device)
        self._watching = True
        try:
            with evaluating(network):
                network(pad_to_stride(images, model.stride, model.min_side))
        finally:
            self._watching = False
        return [self._take(number) for number in range(len(self._features))]


SUPERVISED = tuple(name.lower() for name in (*_DECODER_LEVELS, *_ENCODER_STAGE))


def check_supervision(model: Segmenter) -> None:
    """Refuse a network on which `AuxiliaryHeads` cannot sit.

    Raises:
        ValueError: see there.
    """
    _find_levels(model)


def _find_levels(model: Segmenter) -> tuple[list[nn.Module], int | None]:
    """Modules that give features, and which of their outputs, where that is a list."""
    network: Any = model.network
    kind = type(network).__name__ if type(network).__module__.startswith("segmentation_models_pytorch.") else ""
    if kind in _ENCODER_STAGE:
        return [network.encoder], _ENCODER_STAGE[kind]
    levels = _DECODER_LEVELS[kind](network.decoder) if kind in _DECODER_LEVELS else []
    if not levels:
        raise ValueError(
            f"deep_supervision: nothing is known of features inside {model.recipe.architecture!r} on which auxiliary "
            f"heads could sit: expected one of {', '.join(SUPERVISED)}, with a decoder of more than one level. Take "
            "one of them, or leave `train.deep_supervision` out."
        )
    return levels, None


def _head(channels: int, classes: int, spatial: bool) -> nn.Module:
    if not spatial:
        return nn.Conv2d(channels, classes, 1)
    # As PSPNet's: a quarter of the channels, without its dropout.
    inner = max(16, channels // 4)
    narrowed = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
    return nn.Sequential(narrowed, nn.BatchNorm2d(inner), nn.ReLU(inplace=True), nn.Conv2d(inner, classes, 1))
