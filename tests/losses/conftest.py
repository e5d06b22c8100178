"""One format of each kind, and random logits and targets for any of them."""

from __future__ import annotations

import pytest
import torch

from segkit.formats.mask_format import MaskFormat

FORMATS = {
    "softmax": MaskFormat.multiclass(["sky", "road", "tree"]),
    "one-vs-rest": MaskFormat.multiclass(["sky", "road", "tree"], activation="sigmoid"),
    "overlapping": MaskFormat.multilabel(["liver", "tumour", "vessel"]),
    "binary": MaskFormat.binary("cell"),
    "two-classes": MaskFormat.binary("cell", activation="softmax"),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def format(request) -> MaskFormat:
    return request.param


@pytest.fixture
def make_pair():
    """`make_pair(format, dtype=...)` gives logits (2, C, 5, 7) and a target with the first line of image 0 ignored."""

    def make(format: MaskFormat, dtype=torch.float32, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        logits = 2.0 * torch.randn((2, format.num_classes, 5, 7), generator=random, dtype=torch.float64)
        choices = 2 if format.num_planes == format.num_classes else format.num_classes
        target = torch.randint(0, choices, (2, format.num_planes, 5, 7), generator=random).to(format.torch_dtype)
        target[0, :, 0] = format.ignore_index
        return logits.to(dtype), target

    return make
