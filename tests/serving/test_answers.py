"""What is sent for a prediction, against other readers of the same files."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import decode_png
from segkit.ops.upsample import CoarseLogits
from segkit.serving.answers import at_thresholds, encode_view, outputs_of, probabilities_of, view_layers
from tests.scenes import FORMATS, default_codec, scene
from tests.scenes import planes_of as scene_planes

OVERLAPPING = FORMATS["overlapping"]


def planes(format, number=1):
    return scene_planes(format, scene(number, (20, 31))[1])


def logits(*maps):
    return CoarseLogits.of(torch.tensor([maps]))


@pytest.mark.parametrize("codec", ["index_png", "palette_png", "color_png"])
def test_png_is_the_file_that_the_codec_of_the_model_writes(tmp_path, codec):
    format = FORMATS["exclusive"]
    own = open_codec(codec, format)
    own.write(tmp_path, "any", planes(format))
    output = outputs_of(format, own)["png"]
    assert output.encode(planes(format)) == (tmp_path / "any.png").read_bytes()
    assert output.codec is own


def test_png_holds_bits_where_the_codec_writes_several_files():
    output = outputs_of(OVERLAPPING, default_codec(OVERLAPPING))["png"]
    stored = decode_png(output.encode(planes(OVERLAPPING))).pixels
    left, disc = np.moveaxis(planes(OVERLAPPING), 2, 0)
    assert np.array_equal(stored, left + 2 * disc)
    assert (stored == 3).any()
    assert output.codec.to_spec() == {"name": "bit_planes"}


def test_png_holds_indices_where_the_codec_writes_no_png():
    format = FORMATS["one_vs_rest"]
    output = outputs_of(format, open_codec("nifti", format))["png"]
    ignored = planes(format)
    ignored[0, 0] = 255
    assert np.array_equal(decode_png(output.encode(ignored)).pixels, ignored[..., 0])


def test_more_classes_than_bits_have_no_png_and_the_first_output_is_another():
    format = MaskFormat.multilabel([f"c{n}" for n in range(17)])
    assert list(outputs_of(format, default_codec(format))) == ["zip", "rle", "probabilities"]
    assert list(outputs_of(format, None)) == ["rle", "probabilities"]


def test_zip_holds_the_files_that_the_codec_writes(tmp_path):
    codec = default_codec(OVERLAPPING)
    output = outputs_of(OVERLAPPING, codec)["zip"]
    content = output.encode(planes(OVERLAPPING))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")) == [
        "disc/mask.png",
        "left/mask.png",
    ]
    assert np.array_equal(codec.read(tmp_path, "mask"), planes(OVERLAPPING))
    assert output.encode(planes(OVERLAPPING)) == content  # no time in it


@pytest.mark.parametrize("kind", FORMATS)
def test_rle_is_read_by_pycocotools(kind):
    format = FORMATS[kind]
    answer = json.loads(outputs_of(format, None)["rle"].encode(planes(format)))
    assert answer["size"] == [20, 31]
    maps = scene(1, (20, 31))[1]
    background = ~np.any([maps[name] for name in format.names if name in maps], axis=0)
    for found, name in zip(answer["classes"], format.names, strict=True):
        held = maps.get(name, background)
        assert np.array_equal(run_lengths.decode(found["segmentation"]), held)
        assert (found["name"], found["area"]) == (name, int(held.sum()))


def test_npz_holds_probabilities_and_names():
    values = probabilities_of(logits([[0.0, 2.0]], [[-2.0, 4.0]]), OVERLAPPING)
    stored = np.load(io.BytesIO(outputs_of(OVERLAPPING, None)["probabilities"].encode(values)))
    expected = 1 / (1 + np.exp(-np.array([[[0.0, 2.0]], [[-2.0, 4.0]]])))
    assert stored["probabilities"].dtype == np.float16
    assert np.allclose(stored["probabilities"], expected, atol=1e-3)
    assert stored["classes"].tolist() == ["left", "disc"]


def test_thresholds_of_a_request_decide():
    # probabilities 0.5 and 0.88 of left; 0.12 and 0.98 of disc
    made = logits([[0.0, 2.0]], [[-2.0, 4.0]])
    assert at_thresholds(OVERLAPPING, [0.9, 0.1]).decode(made)[0, :, 0].tolist() == [[0, 0], [1, 1]]
    assert at_thresholds(OVERLAPPING, [0.4]).decode(made)[0, :, 0].tolist() == [[1, 1], [0, 1]]
    one_vs_rest = MaskFormat.multiclass(["a", "b"], "sigmoid")
    assert at_thresholds(one_vs_rest, [0.6]).decode(made)[0, :, 0].tolist() == [[255, 1]]
    with pytest.raises(ValueError, match="3 thresholds for 2 classes"):
        at_thresholds(OVERLAPPING, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="softmax takes the best class"):
        at_thresholds(FORMATS["exclusive"], [0.5])


def test_a_view_of_overlapping_classes_holds_their_probabilities():
    levels = view_layers(100)(logits([[0.0, 2.0]], [[-2.0, 40.0]]), OVERLAPPING)
    # 255 times 0.5, 0.8808, 0.1192 and 1
    assert levels.tolist() == [[[128, 225]], [[30, 255]]]
    assert levels.dtype == np.uint8


def test_a_view_of_exclusive_classes_holds_the_best_class_and_its_probability():
    levels = view_layers(100)(logits([[0.0, 3.0]], [[0.0, 0.0]], [[1.0, 0.0]]), FORMATS["exclusive"])
    # e / (e + 2) = 0.576 of class 2, e**3 / (e**3 + 2) = 0.909 of class 0
    assert levels.tolist() == [[[2, 0]], [[147, 232]]]


def test_a_view_is_no_larger_than_its_side_and_begins_with_the_picture():
    image = np.zeros((40, 100, 3), np.uint8)
    image[..., 2] = 200
    layers = view_layers(50)(CoarseLogits.of(torch.full((1, 2, 40, 100), 9.0)), OVERLAPPING)
    seen = np.load(io.BytesIO(encode_view(image, layers)))
    assert (seen.shape, seen.dtype) == ((5, 20, 50), np.uint8)
    assert [int(layer.min()) for layer in seen] == [int(layer.max()) for layer in seen] == [0, 0, 200, 255, 255]


def test_more_than_256_classes_are_seen_too():
    format = MaskFormat.multiclass(range(300))
    values = torch.zeros((1, 300, 1, 2))
    values[0, 299, 0, 1] = 50.0
    layers = view_layers(10)(CoarseLogits.of(values), format)
    assert (layers.dtype, layers[0].tolist()) == (np.uint16, [[0, 299]])
