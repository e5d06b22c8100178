"""A model behind a queue: images of several requests, answered in batches on one thread."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from segkit.formats.mask_format import MaskFormat
from segkit.inference.predictor import Predictor
from segkit.inference.tiling import DEFAULT_TILE, WHOLE_PIXELS, image_logits
from segkit.models.devices import autocast
from segkit.ops.upsample import CoarseLogits
from segkit.serving.answers import Compute


@dataclass(frozen=True, eq=False)
class Job:
    """One image and what is asked of it.

    Attributes:
        image: (H, W, B) as `decode_picture` gives it.
        compute: what is made of its logits.
        format: at the thresholds that the request asks for.
        spacing_mm: (row, column) distances, where the model works at a `Spacing`.
    """

    image: np.ndarray
    compute: Compute
    format: MaskFormat
    spacing_mm: tuple[float, float] | None = None


class Engine:
    """Computes jobs with a predictor's model, on its device.

    Args:
        predictor: its model must take single pictures.

    Raises:
        ValueError: a model that takes slices of volumes with their neighbours.
    """

    def __init__(self, predictor: Predictor) -> None:
        if predictor.model.reading.neighbours:
            raise ValueError(
                f"the model takes slices of volumes with {predictor.model.reading.neighbours} neighbours on either "
                "side, and the server takes one picture at a time. Run `segkit predict` on volumes."
            )
        self.predictor = predictor

    def key(self, job: Job) -> Hashable | None:
        """Equal for jobs that fit into one batch; None for an image that is cut into windows, a batch of its own."""
        if self._padded_pixels(job) > WHOLE_PIXELS:
            return None
        return job.image.shape, job.image.dtype, job.spacing_mm

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        """What is asked of each of several jobs of one key."""
        predictor = self.predictor
        stored = torch.from_numpy(np.stack([job.image.transpose(2, 0, 1) for job in jobs])).to(predictor.device)
        with autocast(predictor.device):
            logits = image_logits(predictor.model, stored, self._tile(jobs[0]), jobs[0].spacing_mm)
        return [job.compute(_one(logits, number), job.format) for number, job in enumerate(jobs)]

    def _tile(self, job: Job) -> int | None:
        if self.predictor.tile is None and self._padded_pixels(job) > WHOLE_PIXELS:
            return DEFAULT_TILE
        return self.predictor.tile

    def _padded_pixels(self, job: Job) -> int:
        """What the network would see: a line of a million pixels becomes as high as its stride."""
        return max(job.image.shape[0], self.predictor.model.stride) * max(
            job.image.shape[1], self.predictor.model.stride
        )


def _one(logits: CoarseLogits, number: int) -> CoarseLogits:
    return replace(logits, values=logits.values[number : number + 1])
