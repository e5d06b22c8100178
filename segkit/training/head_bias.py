"""The first bias of the head: a model that has learned nothing says how frequent each class is."""

from __future__ import annotations

import logging

import torch
from torch import nn

from segkit.data.datasets import MaskDataset
from segkit.models.segmenter import Segmenter
from segkit.training.class_balance import class_shares

log = logging.getLogger("segkit")


@torch.no_grad()
def set_prior_bias(model: Segmenter, train: MaskDataset) -> None:
    """Set the bias of the last convolution so that the first probabilities lie around the shares of the classes.

    Otherwise every class begins at one half, or one of C, and where one is rare the first steps teach nothing but that
    it is (Lin et al. 2017, section 4.1). A head whose bias is not zero has learned before, and is left as it is.

    Args:
        train: at most 500 of its masks are read.

    Raises:
        ValueError: no convolution with a bias gives the logits.
    """
    classes = model.format.num_classes
    heads = [m for m in model.network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    if not heads or heads[-1].bias is None:
        raise ValueError(
            f"{model.recipe.architecture} ends in no convolution with {classes} outputs and a bias: leave "
            "`prior_bias` out."
        )
    bias = heads[-1].bias
    if bias.any():
        log.warning("prior_bias: the head has a bias already, which is kept.")
        return
    bias.copy_(torch.tensor(model.format.prior_logits(class_shares(train))))
