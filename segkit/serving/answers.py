"""The ways in which a prediction is answered: what is computed of the logits, and which bytes are sent."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segkit.data.images import resize_image
from segkit.formats.classes import classes_to_list
from segkit.formats.codec import Codec
from segkit.formats.codecs import open_codec
from segkit.formats.files import walk
from segkit.formats.mask_format import MaskFormat
from segkit.formats.run_lengths import mask_region, to_json
from segkit.inference.overlay import to_rgb
from segkit.ops.sizes import fit_size, resample
from segkit.ops.upsample import CoarseLogits

# The name of every mask that is written: no name of a client is used.
_STEM = "mask"

# An array of the (1, C, H, W) logits of an image; called where the model computes.
Compute = Callable[[CoarseLogits, MaskFormat], np.ndarray]


@dataclass(frozen=True)
class Output:
    """One way to answer.

    Attributes:
        media_type: of the answer.
        suffix: of a file that holds it.
        compute: what is answered of the logits of an image; None for its planes, post-processed.
        encode: bytes of the array that is answered.
        codec: how the bytes hold planes, where a codec says so.
    """

    media_type: str
    suffix: str
    compute: Compute | None
    encode: Callable[[np.ndarray], bytes]
    codec: Codec | None = None


def outputs_of(format: MaskFormat, codec: Codec | None) -> dict[str, Output]:
    """The outputs that a model has, by name, the default first.

    - `png`: one PNG file, that which `segkit predict` writes where the model's codec writes one file for each mask;
      else the numbers of `index_png`, or of `bit_planes` where classes overlap. Absent for more than 16 such classes.
    - `zip`: all files that `segkit predict` writes for one image. Absent where the codec needs the image's own file.
    - `rle`: JSON with the compressed run lengths of each class, as COCO files hold them.
    - `probabilities`: NPZ with `probabilities` (C, H, W) float16 and `classes`.
    """
    outputs: dict[str, Output] = {}
    png = _png_codec(format, codec)
    if png is not None:
        outputs["png"] = Output("image/png", ".png", None, lambda planes: _only(_files_of(png, planes)), png)
    if codec is not None and _written_names(codec):
        outputs["zip"] = Output("application/zip", ".zip", None, lambda planes: _zip_of(codec, planes), codec)
    outputs["rle"] = Output("application/json", ".json", None, lambda planes: _rle_of(format, planes))
    outputs["probabilities"] = Output(
        "application/x-npz", ".npz", probabilities_of, lambda probs: _npz_of(format, probs)
    )
    return outputs


def at_thresholds(format: MaskFormat, thresholds: list[float]) -> MaskFormat:
    """The same format decoded at other thresholds: one for all classes, or one for each.

    Raises:
        ValueError: a format without thresholds, or of another number of them.
    """
    for_all = len(thresholds) == 1 and len(format.threshold_groups) > 1
    return format.with_thresholds(thresholds * len(format.threshold_groups) if for_all else thresholds)


def probabilities_of(logits: CoarseLogits, format: MaskFormat) -> np.ndarray:
    """(C, H, W) float16 in [0, 1]."""
    return format.probabilities(logits.full())[0].half().cpu().numpy()


def view_layers(side: int) -> Compute:
    """What a person looks at and moves thresholds over, no larger than a screen.

    Args:
        side: most pixels of the longer side.

    Returns:
        Computes (L, h, w) of uint8, uint16 for more than 256 classes: probabilities times 255 of each class where
        classes overlap; else two layers: the number of the best class, and its probability times 255.
    """

    def compute(logits: CoarseLogits, format: MaskFormat) -> np.ndarray:
        size_hw = _within((logits.shape[2], logits.shape[3]), side)
        probs = format.probabilities(logits.full())
        if size_hw != tuple(probs.shape[-2:]):
            probs = resample(probs, size_hw)
        levels = (probs[0] * 255).round()
        if not format.classes_overlap:
            best, index = levels.max(0)[0], probs[0].argmax(0)
            levels = torch.stack([index.to(levels.dtype), best])
        return levels.cpu().numpy().astype(np.uint8 if format.num_classes <= 256 else np.uint16)

    return compute


def encode_view(image: np.ndarray, layers: np.ndarray) -> bytes:
    """NPY file of (3 + L, h, w): red, green and blue of the image in 0-255, and `layers`.

    Args:
        image: (H, W, B) as the model sees it.
        layers: (L, h, w) as `view_layers` computes them.
    """
    picture = resize_image(to_rgb(image), (layers.shape[1], layers.shape[2])).transpose(2, 0, 1)
    content = io.BytesIO()
    np.save(content, np.concatenate([picture.astype(layers.dtype), layers]))
    return content.getvalue()


def _within(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    return size_hw if max(size_hw) <= side else fit_size(size_hw, side)


def _png_codec(format: MaskFormat, codec: Codec | None) -> Codec | None:
    if codec is not None and _written_names(codec) == [f"{_STEM}.png"]:
        return codec
    several = format.num_planes > 1
    options = {} if several else {"ignored_values": [format.ignore_index]}
    try:
        return open_codec({"name": "bit_planes" if several else "index_png", **options}, format)
    except ValueError:  # more classes than a number has bits
        return None


def _written_names(codec: Codec) -> list[str]:
    """Names of the files that a codec writes for a mask of an image; none where it needs more than the planes."""
    try:
        return list(_files_of(codec, np.zeros((2, 3, codec.format.num_planes), codec.format.dtype)))
    except (ValueError, OSError):
        return []


def _files_of(codec: Codec, planes: np.ndarray) -> dict[str, bytes]:
    """Path -> content of the files that hold planes."""
    with tempfile.TemporaryDirectory(prefix="segkit-") as folder:
        try:
            codec.write(folder, _STEM, planes)
            codec.finish(folder)
        except ValueError as error:
            # Where we wrote it is nothing to the client.
            raise ValueError(str(error).replace(f"{folder}/", "")) from None
        return {name: path.read_bytes() for name, path in sorted(walk(Path(folder)))}


def _only(files: dict[str, bytes]) -> bytes:
    (content,) = files.values()
    return content


def _zip_of(codec: Codec, planes: np.ndarray) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _files_of(codec, planes).items():
            # Without the time: the same masks are the same archive.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _rle_of(format: MaskFormat, planes: np.ndarray) -> bytes:
    target = torch.from_numpy(planes.transpose(2, 0, 1).astype(np.int32))[None]
    maps = format.expand(target)[0].numpy()
    classes = [
        {**described, **to_json(mask_region(held))}
        for described, held in zip(classes_to_list(format.classes), maps, strict=True)
    ]
    return json.dumps({"size": list(planes.shape[:2]), "classes": classes}).encode()


def _npz_of(format: MaskFormat, probs: np.ndarray) -> bytes:
    content = io.BytesIO()
    # Not compressed, which would take longer than most networks.
    np.savez(content, probabilities=probs, classes=np.array(format.names))
    return content.getvalue()
