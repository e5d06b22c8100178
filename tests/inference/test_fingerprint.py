from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.inference.fingerprint import fingerprint
from segkit.models.builder import build_model
from segkit.models.bundle import load_model, save_bundle

FORMAT = MaskFormat.multilabel(["a", "b"])


def model(format=FORMAT, **options):
    torch.manual_seed(1)
    return build_model("unet", "tu-test_resnet", format, weights=None, decoder_channels=[8, 8, 8, 8, 8], **options)


class Averaged:
    """Answers as another model does, in some way of its own; not a module."""

    def __init__(self, inner, **ways):
        self._inner, self.ways = inner, ways
        self.format, self.reading, self.resize, self.stride = inner.format, inner.reading, inner.resize, inner.stride

    def coarse_logits(self, images):
        return self._inner.coarse_logits(images)


def with_weight(network):
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    return network


def with_statistics(network):
    network.statistics = replace(network.statistics, std=(1.0, 2.0, 3.0))
    return network


def with_reading(network):
    network.reading = replace(network.reading, normalize="image")
    return network


def with_file(path, content):
    path.write_bytes(content)
    return Averaged(model(), path=path)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("weight", lambda _: with_weight(model())),
        ("statistics", lambda _: with_statistics(model())),
        ("reading", lambda _: with_reading(model())),
        ("resize", lambda _: model(resize=64)),
        ("classes", lambda _: model(MaskFormat.multilabel(["a", "c"]))),
        ("wrapped", lambda _: Averaged(model())),
        ("ways", lambda _: Averaged(model(), flips=("x", "y"))),
        ("other ways", lambda _: Averaged(model(), flips=("x",))),
        ("wrapped weight", lambda _: Averaged(with_weight(model()))),
        ("file", lambda path: with_file(path / "f", b"one")),
        ("other file", lambda path: with_file(path / "f", b"two")),
    ],
)
def test_what_answers_otherwise_has_another_fingerprint(tmp_path, name, make):
    others = {"plain": fingerprint(model())}
    others |= {"wrapped": fingerprint(Averaged(model()))} if name != "wrapped" else {}
    others |= {"ways": fingerprint(Averaged(model(), flips=("x", "y")))} if name != "ways" else {}
    others |= {"file": fingerprint(with_file(tmp_path / "f", b"one"))} if name != "file" else {}
    found = fingerprint(make(tmp_path))
    assert found not in others.values()
    assert found == fingerprint(make(tmp_path))


def test_a_bundle_is_the_model_it_was_saved_from_however_often_it_is_read(tmp_path):
    save_bundle(model(), tmp_path / "m", open_codec("file_per_class", FORMAT))
    first = load_model(tmp_path / "m")
    before = fingerprint(first)
    first(torch.zeros((1, 3, 32, 32), dtype=torch.uint16))  # tells once that it rescales
    assert fingerprint(load_model(tmp_path / "m")) == before == fingerprint(first)
