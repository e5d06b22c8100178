"""Connected regions, holes and nearest values of arrays of two or three dimensions; corners that touch connect.

OpenCV and SciPy are imported where they are used: formats, which need them seldom, are imported by everything.
"""

from __future__ import annotations

import numpy as np


def label_components(held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regions that hang together.

    Args:
        held: (H, W) or (D, H, W) bool.

    Returns:
        Labels shaped like `held`, 0 where it is False, regions from 1; and (regions + 1,) the number of elements of
        each label.
    """
    if held.ndim == 2:
        import cv2

        count, labels = cv2.connectedComponents(np.ascontiguousarray(held).view(np.uint8), connectivity=8)
    else:
        from scipy import ndimage

        labels, count = ndimage.label(held, np.ones((3,) * held.ndim, bool))
        count += 1
    return labels, np.bincount(labels.ravel(), minlength=count)


def find_holes(held: np.ndarray) -> np.ndarray:
    """Bool like `held`: elements outside that are cut off from the border; a gap at a corner is closed."""
    if held.ndim > 2:
        from scipy import ndimage

        return ndimage.binary_fill_holes(held) & ~held
    import cv2

    _, labels = cv2.connectedComponents((~held).view(np.uint8), connectivity=4)
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    enclosed = np.ones(int(labels.max()) + 1, bool)
    enclosed[edges] = False
    enclosed[0] = False
    return enclosed[labels]


def replace_by_nearest(values: np.ndarray, where: np.ndarray, unknown: np.ndarray) -> None:
    """Give the elements `where` the value of the nearest one that is not `unknown`, in place; as they are without one.

    Args:
        values: of any number of dimensions.
        where, unknown: bool like `values`.
    """
    if not where.any() or unknown.all():
        return
    from scipy import ndimage

    places = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    values[where] = values[tuple(axis[where] for axis in places)]
