"""The first bias of the head: a model that has learned nothing says how frequent each class is."""

from __future__ import annotations

import logging

import torch

from segkit.data.datasets import MaskDataset
from segkit.models.head import has_learned_head, head_of
from segkit.models.segmenter import Segmenter
from segkit.training.class_balance import class_shares

log = logging.getLogger("segkit")


@torch.no_grad()
def set_prior_bias(model: Segmenter, train: MaskDataset) -> None:
    """Set the bias of the last convolution so that the first probabilities lie around the shares of the classes.

    Otherwise every class begins at one half, or one of C, and where one is rare the first steps teach nothing but that
    it is (Lin et al. 2017, section 4.1). A head that has learned before is left as it is, see `has_learned_head`.

    Args:
        train: at most 500 of its masks are read.

    Raises:
        ValueError: no convolution with a bias gives the logits.
    """
    head = head_of(model)
    if head is None or head.bias is None:
        raise ValueError(
            f"{model.recipe.architecture} ends in no convolution with {model.format.num_classes} outputs and a bias: "
            "leave `prior_bias` out."
        )
    if has_learned_head(model):
        log.warning("prior_bias: the head has a bias already, which is kept.")
        return
    head.bias.copy_(torch.tensor(model.format.prior_logits(class_shares(train))))
