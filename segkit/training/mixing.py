"""Training batches whose images are mixed with each other, on the device, just before the network sees them.

Image and planes of a pixel travel together, whatever the planes mean: no value appears that was not there, and what was
ignored stays ignored. Each image of a batch gets pixels of one other image of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from segkit.data.device_augment import to_device
from segkit.formats.class_places import foreground, holds_any, parse_members, present_classes
from segkit.formats.mask_format import MaskFormat
from segkit.training.settings import MixSettings

# Draws of the mixing are apart from those of all else that has the same seed.
_STREAM = 2


class Mixer:
    """Mixes a share of the batches, each in one way.

    - `cutmix`: a box of another image (Yun et al. 2019; French et al. 2020 for masks). It has the shape of the image,
      a share of its area that is drawn evenly, and its centre anywhere; it ends at the border.
    - `classmix`: of another image the pixels of half of its classes, rounded down (Olsson et al. 2021). Where classes
      overlap, the pixels where any of the half holds, rounded down or up by chance: a class alone is pasted or not.
    - `copy_paste`: of another image the pixels of `classes`, at their place (Ghiasi et al. 2021; their change of scale
      is up to the augmentation).

    Args:
        plan: share of the batches for each, None for no mixing.
        format: what the planes mean.
        seed: of the draws.

    Raises:
        ValueError: a class that is none, or no telling what `copy_paste` is to paste.
    """

    def __init__(self, plan: MixSettings | None, format: MaskFormat, seed: int) -> None:
        self.format, self.seed = format, seed
        ways: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
            "cutmix": self._boxes,
            "classmix": self._half_the_classes,
            "copy_paste": self._chosen_classes,
        }
        self._ways = [(getattr(plan, name), region) for name, region in ways.items()] if plan is not None else []
        self._pasted: list[int] = []
        if plan is not None and plan.copy_paste:
            try:
                self._pasted = foreground(format) if plan.classes is None else parse_members(plan.classes, format)
            except ValueError as error:
                raise ValueError(f"mix: copy_paste: {error}") from None

    def __call__(self, images: Tensor, target: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The batch mixed, or as it is; a function of the arguments alone. Nothing waits for the device.

        Args:
            images: (N, B, H, W) as stored. One alone has no other to be mixed with, and stays.
            target: (N, P, H, W) planes.
            key: numbers of this batch, such as epoch, batch and rank.
        """
        if not self._ways or len(images) < 2:
            return images, target
        rng = np.random.default_rng([self.seed, *key, _STREAM])
        drawn = rng.random()
        for share, find_region in self._ways:
            if drawn < share:
                by = int(rng.integers(1, len(images)))
                source = target.roll(by, 0)
                region = find_region(source, rng)
                return _pasted(images, by, region), torch.where(region, source, target)
            drawn -= share
        return images, target

    def _boxes(self, source: Tensor, rng: np.random.Generator) -> Tensor:
        """(N, 1, H, W) bool, a box in each image."""
        count, size = len(source), np.array(source.shape[2:])
        centre = rng.random((count, 2)) * size
        half = np.sqrt(rng.random((count, 1))) * size / 2
        ends = np.rint(np.concatenate([centre - half, centre + half], 1)).astype(np.int32)
        top, left, bottom, right = to_device(torch.from_numpy(ends), source.device)[..., None, None, None].unbind(1)
        y, x = (torch.arange(int(side), device=source.device) for side in size)
        return (y[:, None] >= top) & (y[:, None] < bottom) & (x >= left) & (x < right)

    def _half_the_classes(self, source: Tensor, rng: np.random.Generator) -> Tensor:
        """(N, 1, H, W) bool, where any class of half of those that an image holds is."""
        present = present_classes(source, self.format)
        order = to_device(torch.from_numpy(rng.random(present.shape, np.float32)), source.device)
        up = to_device(torch.from_numpy(rng.integers(0, 2, (len(source), 1))), source.device)
        half = (present.sum(1, keepdim=True) + (up if self.format.classes_overlap else 0)) // 2
        # Of those that are there, the first in a random order.
        rank = order.masked_fill(~present, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        return holds_any(source, present & (rank < half), self.format)

    def _chosen_classes(self, source: Tensor, rng: np.random.Generator) -> Tensor:
        """(N, 1, H, W) bool, where any of the classes is that are pasted."""
        chosen = torch.zeros(self.format.num_classes, dtype=torch.bool)
        chosen[self._pasted] = True
        return holds_any(source, to_device(chosen, source.device).expand(len(source), -1), self.format)


def _pasted(images: Tensor, by: int, region: Tensor) -> Tensor:
    """`images` with the pixels of the image `by` places before in `region`."""
    # torch computes little in uint16: int16 has the same bits.
    own = images.view(torch.int16) if images.dtype == torch.uint16 else images
    return torch.where(region, own.roll(by, 0), own).view(images.dtype)
