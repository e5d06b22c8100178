"""A small data set on disk."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.stand_in import FORMAT, StandInCodec, add_sample


@pytest.fixture
def codec():
    return StandInCodec(FORMAT)


@pytest.fixture
def folder(tmp_path, codec):
    """`images/STEM.png` and `masks/STEM.npy` of five samples; the image shows its mask."""
    rng = np.random.default_rng(0)
    for stem in ("a", "b", "c", "town/d", "town/e"):
        add_sample(tmp_path, codec, stem, rng.integers(0, 4, (20, 28, 1)).astype(np.uint8))
    return tmp_path
