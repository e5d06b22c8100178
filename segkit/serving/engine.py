"""A model behind a queue: images of several requests, answered in batches on one thread."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.formats.mask_format import MaskFormat
from segkit.inference.postprocess import planes_of, postprocess
from segkit.inference.predictor import Predictor
from segkit.inference.tiling import DEFAULT_TILE, WHOLE_PIXELS, batch_logits, batch_planes
from segkit.models.devices import autocast
from segkit.ops.upsample import CoarseLogits
from segkit.serving.answers import Compute


@dataclass(frozen=True, eq=False)
class Job:
    """One image and what is asked of it.

    Attributes:
        image: (H, W, B) as `decode_picture` gives it.
        compute: what is answered of its logits; None for its planes, post-processed.
        format: at the thresholds that the request asks for.
        spacing_mm: (row, column) distances, where the model works at a `Spacing`.
    """

    image: np.ndarray
    compute: Compute | None
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
        return job.image.shape, job.image.dtype, job.spacing_mm, self._decoded_as_always(job)

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[np.ndarray]:
        """What is asked of each of several jobs of one key."""
        predictor, format = self.predictor, self.predictor.model.format
        stored = [torch.from_numpy(np.array(job.image.transpose(2, 0, 1)))[None].to(predictor.device) for job in jobs]
        options = self._tile(jobs[0]), [job.spacing_mm for job in jobs]
        if self._decoded_as_always(jobs[0]):
            # Without the logits of a whole image, where it is large.
            with autocast(predictor.device):
                preds = batch_planes(predictor.model, stored, *options)
            return [self._finished(pred, format, job) for pred, job in zip(preds, jobs, strict=True)]
        with autocast(predictor.device):
            found = batch_logits(predictor.model, stored, *options)
        return [self._answer(logits, job) for logits, job in zip(found, jobs, strict=True)]

    def _decoded_as_always(self, job: Job) -> bool:
        return job.compute is None and job.format == self.predictor.model.format

    def _answer(self, logits: CoarseLogits, job: Job) -> np.ndarray:
        if job.compute is not None:
            return job.compute(logits, job.format)
        return self._finished(job.format.decode(logits), job.format, job)

    def _finished(self, pred: Tensor, format: MaskFormat, job: Job) -> np.ndarray:
        """(H, W, P) post-processed planes of (1, P, H, W) decoded ones."""
        return postprocess(planes_of(pred, format)[0], self.predictor.model.postprocess, format, job.spacing_mm)

    def _tile(self, job: Job) -> int | None:
        if self.predictor.tile is None and self._padded_pixels(job) > WHOLE_PIXELS:
            return DEFAULT_TILE
        return self.predictor.tile

    def _padded_pixels(self, job: Job) -> int:
        """What the network would see: a line of a million pixels becomes as high as its stride."""
        return max(job.image.shape[0], self.predictor.model.stride) * max(
            job.image.shape[1], self.predictor.model.stride
        )
