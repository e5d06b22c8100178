"""`Predictor`: a model and a device, from image arrays to planes and from image files to mask files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segkit.data.intensity import Scale, image_scale
from segkit.data.sample import Sample
from segkit.formats.codec import Codec
from segkit.inference.batches import Wanted
from segkit.inference.jobs import JobOptions, PredictReport, run_job
from segkit.inference.models import SegmentationModel, open_model
from segkit.inference.shards import WHOLE, Shard
from segkit.inference.tiling import check_tile, image_logits
from segkit.models.devices import autocast, pick_device
from segkit.ops.upsample import CoarseLogits

# Batches of files where nobody says otherwise: on a CPU larger ones are no faster.
_BATCH_SIZE = {"cpu": 4}
_GPU_BATCH_SIZE = 8
# Pixels of images that are computed at once, if there are several: those of a batch of large ones would need gigabytes.
_PIXELS = {"cpu": 2**21}
_GPU_PIXELS = 2**25


class Predictor:
    """Predicts masks with one model on one device.

    Arrays are whole images as they are stored, (H, W, B), or (H, W) for one band. They are normalised as
    `model.reading.normalize` says, and with `volume` each needs the `scale` of the volume that it is a slice of:

        scale = volume_scale(voxels)                       # segkit.data.intensity; once per volume
        planes = predictor.predict(voxels[:, :, 17].T, scale=scale)

    Where the model works at a spacing, each needs its `spacing_mm`, the (row, column) distances.

    Args:
        model: a `Segmenter` or another `SegmentationModel`, or the path of a bundle or run folder.
        codec: how masks are written; by default the codec stored in the bundle. Only files need one.
        device: auto, cpu, cuda, cuda:1, mps.
        tile: side of the windows in pixels; None cuts only images above 4 megapixels.
    """

    def __init__(
        self,
        model: SegmentationModel | str | Path,
        codec: Codec | None = None,
        *,
        device: str = "auto",
        tile: int | None = None,
    ) -> None:
        check_tile(tile)
        if isinstance(model, str | Path):
            model, stored_codec = open_model(model)
            codec = codec if codec is not None else stored_codec
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.codec = codec
        self.tile = tile

    def predict(
        self, image: np.ndarray, *, spacing_mm: Sequence[float] | None = None, scale: Scale | None = None
    ) -> np.ndarray:
        """(H, W, P) planes of an image."""
        return self._planes(self._coarse_logits(self._normalized(image, scale), spacing_mm))

    def probabilities(
        self, image: np.ndarray, *, spacing_mm: Sequence[float] | None = None, scale: Scale | None = None
    ) -> np.ndarray:
        """(C, H, W) float32 in [0, 1] of an image."""
        logits = self._coarse_logits(self._normalized(image, scale), spacing_mm)
        return self._probabilities(logits).cpu().numpy()

    def logits(
        self, image: np.ndarray, *, spacing_mm: Sequence[float] | None = None, scale: Scale | None = None
    ) -> Tensor:
        """(1, C, H, W) float32 logits on the device."""
        return self._coarse_logits(self._normalized(image, scale), spacing_mm).full().float()

    def predict_sample(self, sample: Sample) -> np.ndarray:
        """(H, W, P) planes of a sample as a data set with `model.reading` reads it."""
        return self._planes(self._coarse_logits(sample.image, sample.spacing_mm))

    def predict_files(
        self,
        inputs: Iterable[str | Path],
        out: str | Path,
        *,
        overlay: bool = False,
        probabilities: bool = False,
        objects: bool = False,
        batch_size: int | None = None,
        overwrite: str | None = None,
        resume: bool = False,
        shard: str | Shard = WHOLE,
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictReport:
        """Write one mask per image into `out`, under the path relative to the input given; see docs/batch-inference.md.

        A file that cannot be read is named in the report, and the rest is done. What is done stands in
        `out/_journal.jsonl`, so that a job that was killed can go on.

        Args:
            inputs: image files, folders or glob patterns.
            overlay: also write `out/_overlay/STEM.png`, the classes in colour over the image.
            probabilities: also write `out/_probabilities/STEM.npz`: `probabilities` (C, H, W) float16 and
                `classes`, the names of the channels.
            objects: also write `out/_objects.json`, the connected regions of each class in all images of the job as
                COCO JSON with scores; see `find_objects`.
            batch_size: images that are computed together where they have one size; default 4 on a CPU, else 8.
            overwrite: `always` writes masks anew, `never` keeps those that are there; None is `always`, but refuses
                to begin anew where `out` holds an unfinished job.
            resume: go on with the job that `out` holds, or begin it where there is none.
            shard: `2/8` does the second of eight parts.
            progress: called with (images done, images in all).

        Raises:
            ValueError: an input that is not there, or `out` holds another job.
            OSError: masks cannot be written.
            KeyboardInterrupt, Preempted: SIGINT or SIGTERM came; the batch that was computed is kept.
        """
        if self.codec is None:
            raise ValueError("the model was saved without a codec: give `codec`, which says how to write masks.")
        if batch_size is None:
            batch_size = _BATCH_SIZE.get(self.device.type, _GPU_BATCH_SIZE)
        options = JobOptions(
            Wanted(overlay, probabilities, objects, keep=overwrite == "never"),
            batch_size,
            overwrite,
            resume,
            Shard.parse(shard) if isinstance(shard, str) else shard,
            {"tile": self.tile, "device": self.device.type},
        )
        return run_job(self, self.codec, inputs, Path(out), options, progress)

    def answers(
        self, images: Sequence[np.ndarray], spacings: Sequence[tuple[float, float] | None], probabilities: bool
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(H, W, P) planes, and (C, H, W) probabilities where they are wanted, of images as `model.reading` reads them.

        Those of one size and spacing are computed together.
        """
        return [
            (self._planes(logits), self._probabilities(logits).cpu().numpy() if probabilities else None)
            for logits in self._batch_logits(images, spacings)
        ]

    def _normalized(self, image: np.ndarray, scale: Scale | None) -> np.ndarray:
        """(H, W, B) as `model.reading` would have read it."""
        image = image[..., None] if image.ndim == 2 else image
        mode = self.model.reading.normalize
        if mode == "dataset":
            if scale is not None:
                raise ValueError("the model takes values as they are stored: leave `scale` out.")
            return image
        if scale is None and mode == "volume":
            raise ValueError(
                "the model takes values normalised over a whole volume, which one image does not tell: give "
                "`scale=volume_scale(voxels)` of segkit.data.intensity, or `image_scale(image)` for an image that is "
                "no slice."
            )
        return (image_scale(image) if scale is None else scale).apply(image)

    def _coarse_logits(self, image: np.ndarray, spacing_mm: Sequence[float] | None) -> CoarseLogits:
        return self._batch_logits([image], [spacing_mm])[0]

    @torch.inference_mode()
    def _batch_logits(
        self, images: Sequence[np.ndarray], spacings: Sequence[Sequence[float] | None]
    ) -> list[CoarseLogits]:
        found: dict[int, CoarseLogits] = {}
        for numbers in self._same(images, spacings):
            stored = np.stack([images[number].transpose(2, 0, 1) for number in numbers])
            with autocast(self.device):
                logits = image_logits(
                    self.model, torch.from_numpy(stored).to(self.device), self.tile, spacings[numbers[0]]
                )
            values = logits.values.split(1)
            found |= {number: replace(logits, values=one) for number, one in zip(numbers, values, strict=True)}
        return [found[number] for number in range(len(images))]

    def _same(
        self, images: Sequence[np.ndarray], spacings: Sequence[Sequence[float] | None]
    ) -> Iterator[Sequence[int]]:
        """Numbers of images to compute at once: those that are alike, as many as have few pixels together."""
        alike: dict[tuple, list[int]] = {}
        for number, (image, spacing_mm) in enumerate(zip(images, spacings, strict=True)):
            key = (image.shape, image.dtype, None if spacing_mm is None else tuple(spacing_mm))
            alike.setdefault(key, []).append(number)
        for ((height, width, _), *_), numbers in alike.items():
            most = max(1, _PIXELS.get(self.device.type, _GPU_PIXELS) // (height * width))
            yield from (numbers[start : start + most] for start in range(0, len(numbers), most))

    def _probabilities(self, logits: CoarseLogits) -> Tensor:
        return self.model.format.probabilities(logits.full())[0]

    def _planes(self, logits: CoarseLogits) -> np.ndarray:
        pred = self.model.format.decode(logits)[0].cpu().numpy()
        return np.ascontiguousarray(pred.transpose(1, 2, 0)).astype(self.model.format.dtype, copy=False)
