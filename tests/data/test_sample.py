import numpy as np
import pytest
import torch

from segkit.data.sample import Batch, Sample


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"town/a: image is 36x48 but its mask is 25x26 \(height x width\)"):
        Sample("town/a", np.zeros((36, 48, 3), np.uint8), np.zeros((25, 26, 1), np.uint8))


@pytest.mark.parametrize(
    ("image", "planes"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 1), np.uint8)),
        (np.zeros((4, 5, 3), np.float64), np.zeros((4, 5, 1), np.uint8)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 1), np.int64)),
    ],
)
def test_shapes_and_dtypes_are_checked_where_data_enters(image, planes):
    with pytest.raises(ValueError, match=r"^a: (image|mask) is .* expected"):
        Sample("a", image, planes)


def test_batch_moves_whole():
    batch = Batch(["a", "b"], torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.ones(2, 1, 4, 5, dtype=torch.uint8))
    moved = batch.to("meta")
    assert len(moved) == 2
    assert (moved.images.device.type, moved.target.device.type) == ("meta", "meta")
    assert (moved.stems, moved.images.dtype) == (["a", "b"], torch.uint8)
