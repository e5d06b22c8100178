"""`Predictor`: a model and a device, from image arrays to planes and from image files to mask files."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.data.images import ImageRef
from segkit.data.intensity import Scale, image_scale
from segkit.data.sample import Sample
from segkit.formats.coco_files import file_name_of
from segkit.formats.codec import Codec
from segkit.formats.files import write_whole
from segkit.inference.averaging import OneOrSeveral, open_models
from segkit.inference.inputs import Input, find_inputs
from segkit.inference.large import goes_by_window, predict_large
from segkit.inference.objects import Objects, collect_objects
from segkit.inference.overlay import draw_overlay, write_picture
from segkit.inference.postprocess import planes_of, postprocess
from segkit.inference.tiling import check_tile, image_logits, image_planes
from segkit.inference.volumes import answer_volume, by_volume, check_axes
from segkit.models.devices import autocast, pick_device
from segkit.ops.upsample import CoarseLogits


@dataclass
class PredictReport:
    """What became of a list of inputs.

    Attributes:
        done: number of masks written.
        failed: (file, reason) of each input that could not be predicted.
        seconds: wall-clock time, model loading excluded.
    """

    done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As `segkit predict --json` writes it."""
        return {
            "done": self.done,
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.done / self.seconds, 3) if self.done and self.seconds > 0 else None,
        }


@dataclass(frozen=True)
class _Extras:
    """What is written beside masks, see `Predictor.predict_files`."""

    out: Path
    overlay: bool
    probabilities: bool
    objects: Objects | None

    @property
    def need_probabilities(self) -> bool:
        return self.probabilities or self.objects is not None


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
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictReport:
        """Write one mask per image into `out`, under the path relative to the input given.

        A file that cannot be read is named in the report, and the rest is done.

        Args:
            inputs: image files, folders or glob patterns.
            axes: average the answers for volumes over the slices across each of these axes, such as `zyx`; by default
                the axes whose slices the model has learned from.
            overlay: also write `out/_overlay/STEM.png`, the classes in colour over the image.
            probabilities: also write `out/_probabilities/STEM.npz`: `probabilities` (C, H, W) float16 and
                `classes`, the names of the channels.
            objects: also write `out/_objects.json`, the connected regions of each class in all images of this call as
                COCO JSON with scores; see `find_objects`.
            progress: called with (images done, images in all).
        """
        if self.codec is None:
            raise ValueError("the model was saved without a codec: give `codec`, which says how to write masks.")
        if axes is not None:
            check_axes(axes, self.model.reading)
        out, report, started = Path(out), PredictReport(), time.monotonic()
        jobs, broken = find_inputs(inputs, self.model.reading.for_new_images(), leave_out=out)
        report.failed += [(str(path), reason) for path, reason in broken]
        out.mkdir(parents=True, exist_ok=True)
        before = 0
        with collect_objects(out, self.model.format) if objects else nullcontext() as found:
            extras = _Extras(out, overlay, probabilities, found)
            for piece in by_volume(jobs):
                told = _share_of(progress, before, len(piece), len(jobs))
                try:
                    if piece[0].image.axis is None and axes is None:
                        self._predict_one(piece[0], self.codec, extras)
                    else:
                        self._predict_volume(piece, axes, self.codec, extras, told)
                    report.done += len(piece)
                except (ValueError, OSError) as error:
                    report.failed.append((str(piece[0].image.path), str(error)))
                told(1.0)
                before += len(piece)
        try:
            self.codec.finish(out)
        except ValueError as error:
            report.failed.append((str(out), str(error)))
        report.seconds = time.monotonic() - started
        return report

    def _predict_one(self, job: Input, codec: Codec, extras: _Extras) -> None:
        reading = self.model.reading
        whole = extras.overlay or extras.objects is not None or bool(self.model.postprocess)
        if goes_by_window(job.image, codec, whole):
            predict_large(
                self.model, job.image, codec, extras.out, job.stem,
                device=self.device, tile=self.tile, probabilities=extras.probabilities, needs_whole=whole,
            )  # fmt: skip
            return
        image = reading.read(job.image)
        spacing_mm, probs = reading.spacing_mm(job.image), None
        if extras.need_probabilities:
            logits = self._coarse_logits(image, spacing_mm)
            planes = self._finished(self.model.format.decode(logits), spacing_mm)
            probs = self._probabilities(logits).cpu().numpy()
        else:  # without the logits of a whole image
            planes = self._image_planes(image, spacing_mm)
        codec.write(extras.out, job.stem, planes, like=job.image.path)
        self._write_extras(job, planes, probs, extras, image)

    def _predict_volume(
        self,
        jobs: list[Input],
        axes: Sequence[str] | None,
        codec: Codec,
        extras: _Extras,
        progress: Callable[[float], None],
    ) -> None:
        image = jobs[0].image
        answer = answer_volume(
            self.model, image, axes,
            device=self.device, tile=self.tile, probabilities=extras.need_probabilities, progress=progress,
        )  # fmt: skip
        codec.write_volume(extras.out, [job.stem for job in jobs], answer.planes, like=image.path)
        for number, job in enumerate(jobs):
            probs = None if answer.probs is None else answer.probs[number]
            self._write_extras(job, answer.planes[number], probs, extras)

    def _write_extras(
        self, job: Input, planes: np.ndarray, probs: np.ndarray | None, extras: _Extras, image: np.ndarray | None = None
    ) -> None:
        """What is asked for beside the mask; `image` as `model.reading` reads it, where it is at hand."""
        if extras.overlay:
            reading = self.model.reading
            seen = reading.without_neighbours(reading.read(job.image) if image is None else image)
            picture = draw_overlay(seen, planes, self.model.format)
            write_picture(extras.out / "_overlay" / f"{job.stem}.png", picture)
        if probs is None:
            return
        if extras.objects is not None:
            extras.objects.add(file_name_of(job.stem, job.image.path), planes, probs)
        if extras.probabilities:
            content = io.BytesIO()
            half = probs.astype(np.float16)
            np.savez_compressed(content, probabilities=half, classes=np.array(self.model.format.names))
            write_whole(extras.out / "_probabilities" / f"{job.stem}.npz", content.getvalue())

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


def _share_of(
    progress: Callable[[int, int], None] | None, before: int, size: int, total: int
) -> Callable[[float], None]:
    """Tells `progress` the share that is done of `size` images, which follow `before` others."""

    def tell(share: float) -> None:
        if progress is not None:
            progress(before + round(share * size), total)

    return tell
