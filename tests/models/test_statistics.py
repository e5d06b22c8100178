import numpy as np
import pytest

from segkit.data.loaders import collate
from segkit.data.sample import Sample
from segkit.models.statistics import pixel_statistics

RNG = np.random.default_rng(0)
IMAGES = {
    "uint8": RNG.integers(0, 256, (6, 7, 2)).astype(np.uint8),
    "uint16": RNG.integers(0, 65536, (6, 7, 2)).astype(np.uint16),
    "float32": RNG.normal(50, 900, (6, 7, 2)).astype(np.float32),
}


def test_statistics_by_hand():
    # band 0 holds 1, 3 and band 1 twice 5, which never changes
    found = pixel_statistics([np.array([[[1, 5], [3, 5]]], np.uint8)])
    assert (found.mean, found.std, found.dtype, found.source) == ((2.0, 5.0), (1.0, 1.0), "uint8", "data")


@pytest.mark.parametrize(
    "dtypes",
    [
        ("uint8", "uint16"),
        ("uint16", "uint8", "uint8"),
        ("uint8", "float32"),
        ("float32", "uint16"),
        ("uint8", "uint16", "float32"),
    ],
    ids="+".join,
)
def test_mixed_depths_give_the_statistics_of_their_batch(dtypes):
    images = [IMAGES[d] for d in dtypes]
    batch = collate([Sample(str(i), a, np.zeros((6, 7, 1), np.uint8)) for i, a in enumerate(images)]).images.numpy()
    found = pixel_statistics(iter(images))
    assert found.dtype == str(batch.dtype)
    assert found.mean == pytest.approx(batch.mean((0, 2, 3), dtype=np.float64))
    assert found.std == pytest.approx(batch.std((0, 2, 3), dtype=np.float64))


def test_images_that_give_no_statistics_are_refused():
    with pytest.raises(ValueError, match="list of images is empty"):
        pixel_statistics([])
    with pytest.raises(ValueError, match="2 and 1 bands"):
        pixel_statistics([IMAGES["uint8"], IMAGES["uint16"][..., :1]])
    with pytest.raises(ValueError, match="not finite"):
        pixel_statistics([np.full((2, 2, 1), np.nan, np.float32)])
