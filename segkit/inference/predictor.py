"""`Predictor`: a model and a device, from image arrays to planes and from image files to mask files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segkit.data.images import ImageRef
from segkit.data.intensity import Scale, image_scale
from segkit.data.sample import Sample
from segkit.formats.codec import Codec
from segkit.inference.averaging import OneOrSeveral, open_models
from segkit.inference.batches import Wanted
from segkit.inference.computing import Compute, compute_here
from segkit.inference.jobs import JobOptions, run_job
from segkit.inference.postprocess import planes_of, postprocess
from segkit.inference.reports import PredictReport
from segkit.inference.shards import WHOLE, Shard
from segkit.inference.tiling import WHOLE_PIXELS, batch_logits, batch_planes, check_tile, image_logits, image_planes
from segkit.inference.volumes import answer_volume, check_axes
from segkit.models.devices import autocast, pick_device
from segkit.ops.upsample import CoarseLogits

# Inputs of a batch where nobody says otherwise.
_BATCH_SIZE = {"cpu": 4}
_GPU_BATCH_SIZE = 8
# Pixels that are computed at once, as far as they are those of several images or windows. On a CPU larger ones lose by
# company, see `volumes`; on a GPU those of a batch of large ones would need gigabytes.
_PIXELS = {"cpu": 2**18}
_GPU_PIXELS = 2**25


class Predictor:
    """Predicts masks with one model on one device.

    Arrays are whole images as they are stored, (H, W, B), or (H, W) for one band. They are normalised as
    `model.reading.normalize` says, and with `volume` each needs the `scale` of the volume that it is a slice of:

        scale = volume_scale(voxels)                       # segkit.data.intensity; once per volume
        planes = predictor.predict(voxels[:, :, 17].T, scale=scale)

    Where the model works at a spacing, each needs its `spacing_mm`, the (row, column) distances.

    Args:
        model: a `Segmenter` or another `SegmentationModel`, or the path of a bundle or run folder; of several, the
            average, see `Ensemble`.
        codec: how masks are written; by default the codec stored in the bundle. Only files need one.
        device: auto, cpu, cuda, cuda:1, mps.
        tile: side of the windows in pixels; None cuts only images above 4 megapixels.
        tta: views of each image whose average counts, such as `flips` or `hflip,scale=0.75`; see `parse_views`.
    """

    def __init__(
        self,
        model: OneOrSeveral,
        codec: Codec | None = None,
        *,
        device: str = "auto",
        tile: int | None = None,
        tta: str | Iterable[str] | None = None,
    ) -> None:
        check_tile(tile)
        network, stored_codec = open_models(model, tta)
        self.device = pick_device(device)
        self.model = network.to(self.device).eval()
        self.codec = codec if codec is not None else stored_codec
        self.tile = tile

    def predict(
        self, image: np.ndarray, *, spacing_mm: Sequence[float] | None = None, scale: Scale | None = None
    ) -> np.ndarray:
        """(H, W, P) planes of an image."""
        return self._image_planes(self._normalized(image, scale), spacing_mm)

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
        return self._image_planes(sample.image, sample.spacing_mm)

    def predict_volume(self, volume: str | Path | ImageRef, axes: Sequence[str] | None = None) -> np.ndarray:
        """(D, H, W, P) planes of all slices across `model.reading.main_axis`.

        Args:
            volume: a NIfTI file, a DICOM series, or any slice of either.
            axes: average over the slices across each of these, such as `zyx`.
        """
        image = volume if isinstance(volume, ImageRef) else ImageRef(Path(volume), self.model.reading.main_axis, 0)
        return answer_volume(self.model, image, axes, device=self.device, tile=self.tile).planes

    def predict_files(
        self,
        inputs: Iterable[str | Path],
        out: str | Path,
        *,
        axes: Sequence[str] | None = None,
        overlay: bool = False,
        probabilities: bool = False,
        objects: bool = False,
        batch_size: int | None = None,
        overwrite: str | None = None,
        resume: bool = False,
        shard: str | Shard = WHOLE,
        compute: Compute = compute_here,
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictReport:
        """Write one mask per image into `out`, under the path relative to the input given; see docs/batch-inference.md.

        A file that cannot be read is named in the report, and the rest is done. What is done stands in
        `out/_journal.jsonl`, so that a job that was killed can go on.

        Args:
            inputs: image files, folders or glob patterns.
            axes: average the answers for volumes over the slices across each of these axes, such as `zyx`; by default
                the axes whose slices the model has learned from.
            overlay: also write `out/_overlay/STEM.png`, the classes in colour over the image.
            probabilities: also write `out/_probabilities/STEM.npz`: `probabilities` (C, H, W) float16 and
                `classes`, the names of the channels.
            objects: also write `out/_objects.json`, the connected regions of each class in all images of the job as
                COCO JSON with scores; see `find_objects`.
            batch_size: images that are a batch, of which those of one size are computed together; default 4 on a CPU,
                else 8. A volume is a batch of its own.
            overwrite: `always` writes masks anew, `never` keeps those that are there; None is `always`, but refuses
                to begin anew where `out` holds an unfinished job.
            resume: go on with the job that `out` holds, or begin it where there is none.
            shard: `2/8` does the second of eight parts.
            compute: where batches are computed; see `predict_on_ray`.
            progress: called with (images done, images in all).

        Raises:
            ValueError: an input that is not there, or `out` holds another job.
            OSError: masks cannot be written.
            KeyboardInterrupt, Preempted: SIGINT or SIGTERM came; the batch that was computed is kept.
        """
        if self.codec is None:
            raise ValueError("the model was saved without a codec: give `codec`, which says how to write masks.")
        if axes is not None:
            check_axes(axes, self.model.reading)
        options = JobOptions(
            Wanted(overlay, probabilities, objects, keep=overwrite == "never", axes="".join(axes) if axes else None),
            _BATCH_SIZE.get(self.device.type, _GPU_BATCH_SIZE) if batch_size is None else batch_size,
            overwrite,
            resume,
            Shard.parse(shard) if isinstance(shard, str) else shard,
            compute,
        )
        return run_job(self, self.codec, inputs, Path(out), options, progress)

    @torch.inference_mode()
    def answers(
        self, images: Sequence[np.ndarray], spacings: Sequence[Sequence[float] | None], probabilities: bool
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """(H, W, P) planes, and (C, H, W) probabilities where they are wanted, of images as `model.reading` reads them.

        Those of one size, and windows, are computed together; which ones depends on the list alone.
        """
        if not images:
            return []
        stored = [self._stored(image) for image in images]
        largest = max(min(image.shape[0] * image.shape[1], WHOLE_PIXELS) for image in images)
        at_once = max(1, _PIXELS.get(self.device.type, _GPU_PIXELS) // largest)
        given = (self.model, stored, self.tile, spacings, at_once)
        with autocast(self.device):
            if not probabilities:  # without the logits of a whole image
                preds = batch_planes(*given)
                return [(self._finished(*pair), None) for pair in zip(preds, spacings, strict=True)]
            found = batch_logits(*given)
        return [
            (self._finished(self.model.format.decode(logits), spacing), self._probabilities(logits).cpu().numpy())
            for logits, spacing in zip(found, spacings, strict=True)
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

    @torch.inference_mode()
    def _coarse_logits(self, image: np.ndarray, spacing_mm: Sequence[float] | None) -> CoarseLogits:
        with autocast(self.device):
            return image_logits(self.model, self._stored(image), self.tile, spacing_mm)

    @torch.inference_mode()
    def _image_planes(self, image: np.ndarray, spacing_mm: Sequence[float] | None) -> np.ndarray:
        with autocast(self.device):
            pred = image_planes(self.model, self._stored(image), self.tile, spacing_mm)
        return self._finished(pred, spacing_mm)

    def _stored(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None].to(self.device)

    def _probabilities(self, logits: CoarseLogits) -> Tensor:
        return self.model.format.probabilities(logits.full())[0]

    def _finished(self, pred: Tensor, spacing_mm: Sequence[float] | None) -> np.ndarray:
        """(H, W, P) post-processed planes of (1, P, H, W) decoded ones."""
        format = self.model.format
        return postprocess(planes_of(pred, format)[0], self.model.postprocess, format, spacing_mm)
