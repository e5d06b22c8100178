"""Every codec with every format: what is written is read again, or a refusal says why it cannot be.

The tests go over `CODECS`, so that a new codec is held to them once it is registered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segkit.formats.codec import Codec
from segkit.formats.codecs import CODECS, open_codec
from segkit.formats.mask_format import MaskFormat

FORMATS = {
    "binary": MaskFormat.binary("nucleus"),
    "binary_softmax": MaskFormat.binary("nucleus", activation="softmax"),
    "exclusive": MaskFormat.multiclass(["sky", "road", "car"]),
    "one_vs_rest": MaskFormat.multiclass(["sky", "road", "car"], activation="sigmoid"),
    "background_in_the_middle": MaskFormat.multiclass(["sky", "background", "car"]),
    "one_class": MaskFormat.multiclass(["sky"]),
    "classes_300": MaskFormat.multiclass(range(300)),
    **{f"multilabel_{count}": MaskFormat.multilabel([f"c {n}" for n in range(count)]) for count in (1, 2, 9, 20)},
}
SEVERAL_PLANES = {name for name, format in FORMATS.items() if format.num_planes > 1}
ONE_CLASS_AND_ITS_BACKGROUND = {"binary", "binary_softmax", "multilabel_1"}

# Codecs of one number per pixel.
NUMBERS = ("index_png", "palette_png", "nifti")
# Options with which a codec has something to say of pixels that nobody knows.
IGNORED = {
    "index_png": {"ignored_values": [1000]},
    "palette_png": {"ignored_values": [255]},
    "color_png": {"ignored_values": ["#ffffff"]},
    "file_per_class": {"ignored_values": [128]},
    "bit_planes": {"ignored_values": [65535]},
    "tiff": {"ignored_values": [1000]},
    "nifti": {"ignored_values": [999]},
    "coco": {"ignored_values": ["void"], "crowd": "ignore"},
    "labelme": {"ignored_values": ["void"]},
}
# (codec, format) -> what opening one for the other says.
REFUSED = {
    **{(codec, name): "may overlap" for codec in (*NUMBERS, "color_png") for name in SEVERAL_PLANES},
    ("palette_png", "classes_300"): "a palette has 256 colours, too few for 300 classes",
    **{("bit_planes", n): "exclude each other.*`index_png`" for n, f in FORMATS.items() if not f.classes_overlap},
    ("bit_planes", "multilabel_20"): "too few for 20 classes.*`file_per_class`",
    **{("threshold", n): "one class from its background" for n in FORMATS.keys() - ONE_CLASS_AND_ITS_BACKGROUND},
}
# The only codec without an option for ignored pixels: a file that is bright and dark has no third state.
KNOWS_NO_IGNORED = {"threshold"}
# Each class is ignored on its own; other codecs for several planes refuse what is ignored in some of them.
IGNORES_CLASS_BY_CLASS = {"file_per_class", "tiff", "coco"}

PAIRS = [pytest.param(codec, name, id=f"{codec}-{name}") for codec in CODECS for name in FORMATS]
HELD = [(codec, name) for codec in CODECS for name in FORMATS if (codec, name) not in REFUSED]


def random_planes(format: MaskFormat, seed: int, size_hw: tuple[int, int], ignored: bool = False) -> np.ndarray:
    """(H, W, P) planes in which every class may be; `ignored`: a fifth of the pixels is, in all planes."""
    rng = np.random.default_rng(seed)
    top = 2 if format.classes_overlap else format.num_classes
    planes = rng.integers(0, top, (*size_hw, format.num_planes)).astype(format.dtype)
    if ignored:
        planes[rng.random(size_hw) < 0.2] = format.ignore_index
        planes[0, 0] = format.ignore_index
    return planes


def ignoring(codec: str, format_name: str) -> dict[str, Any]:
    """The spec of a codec that knows ignored pixels."""
    # Pages of a TIFF have 8 bits.
    by_page = {"ignored_values": [128]} if codec == "tiff" and format_name in SEVERAL_PLANES else {}
    return {"name": codec, **IGNORED.get(codec, {}), **by_page}


def stem_for(codec: str, name: str) -> str:
    return f"{name}@z000" if codec == "nifti" else name


def write_all(codec: Codec, root: Path, planes: dict[str, np.ndarray]) -> None:
    root.mkdir(exist_ok=True)
    for stem, value in planes.items():
        codec.write(root, stem, value)
    codec.finish(root)


def read_all(codec: Codec, root: Path) -> dict[str, np.ndarray]:
    return {stem: codec.read(root, stem) for stem in codec.stems(root)}


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_round_trip(codec: Codec, root: Path, planes: dict[str, np.ndarray]) -> None:
    """What is written is read, and what is read is written to the same bytes."""
    write_all(codec, root / "one", planes)
    read = read_all(codec, root / "one")
    assert list(read) == sorted(planes)
    for stem, value in planes.items():
        assert read[stem].dtype == codec.format.dtype
        np.testing.assert_array_equal(read[stem], value)
    write_all(codec, root / "two", read)
    assert contents(root / "one") == contents(root / "two")
    codec.finish(root / "two")
    assert contents(root / "one") == contents(root / "two")
    for value in read.values():
        value[0, 0] = 0  # a caller may augment in place


@pytest.mark.parametrize(("codec_name", "format_name"), PAIRS)
def test_read_returns_what_was_written_or_opening_says_why_not(codec_name, format_name, tmp_path):
    format = FORMATS[format_name]
    if (codec_name, format_name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[codec_name, format_name]):
            open_codec(codec_name, format)
        return
    # The last two as single slices and images are named that wait to be joined.
    stems = [stem_for(codec_name, name) for name in ("a", "night/b.c d", "-ü.png", "n.json/c")]
    planes = {stem: random_planes(format, seed, (5, 7)) for seed, stem in enumerate(stems)}
    check_round_trip(open_codec(codec_name, format), tmp_path, planes)


@pytest.mark.parametrize("codec_name", CODECS)
def test_a_mask_without_pixels_is_refused_by_name(codec_name, tmp_path):
    format = FORMATS["binary"]
    with pytest.raises(ValueError, match=r"a(, .*|\.\w+|@z000.*|'): a mask of 0 x 4 pixels: nothing to write"):
        open_codec(codec_name, format).write(tmp_path, stem_for(codec_name, "a"), np.zeros((0, 4, 1), format.dtype))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("codec_name", "format_name"), HELD)
def test_ignored_pixels_are_read_again_or_writing_says_why_not(codec_name, format_name, tmp_path):
    format = FORMATS[format_name]
    stem = stem_for(codec_name, "a")
    planes = random_planes(format, 3, (5, 7), ignored=True)
    with pytest.raises(ValueError, match=r"ignored|no class"):
        open_codec(codec_name, format).write(tmp_path, stem, planes)
    assert contents(tmp_path) == {}
    if codec_name not in KNOWS_NO_IGNORED:
        check_round_trip(open_codec(ignoring(codec_name, format_name), format), tmp_path, {stem: planes})


@pytest.mark.parametrize(("codec_name", "format_name"), [pair for pair in HELD if pair[1] in SEVERAL_PLANES])
def test_pixels_ignored_for_some_classes_are_read_again_or_writing_says_why_not(codec_name, format_name, tmp_path):
    format = FORMATS[format_name]
    stem = stem_for(codec_name, "a")
    planes = random_planes(format, 4, (5, 7))
    planes[1, 2:5, 0] = planes[2, 3, 1] = format.ignore_index
    codec = open_codec(ignoring(codec_name, format_name), format)
    if codec_name in IGNORES_CLASS_BY_CLASS:
        check_round_trip(codec, tmp_path, {stem: planes})
        return
    with pytest.raises(ValueError, match=r"ignored .*some"):
        codec.write(tmp_path, stem, planes)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("codec_name", "format_name"), HELD)
def test_a_spec_opens_an_equal_codec_after_json(codec_name, format_name):
    format = FORMATS[format_name]
    plain = open_codec(codec_name, format)
    for codec in (plain, open_codec(ignoring(codec_name, format_name), format)):
        again = open_codec(json.loads(json.dumps(codec.to_spec())), format)
        assert again == codec
        assert hash(again) == hash(codec)
        assert repr(again) == repr(codec)
    assert (codec == plain) == (codec_name in KNOWS_NO_IGNORED)


# Regions: one number for a set of classes ---------------------------------------------------------------


@pytest.mark.parametrize("codec_name", [*NUMBERS, "tiff"])
@pytest.mark.parametrize("format_name", sorted(SEVERAL_PLANES))
@pytest.mark.parametrize("ignored", [False, True])
def test_regions_are_read_again(codec_name, format_name, ignored, tmp_path):
    """Classes like the layers of an onion: the first lies around the second, that around the third."""
    format = FORMATS[format_name]
    values = {10 + depth: list(format.names[:depth]) for depth in range(1, format.num_classes + 1)}
    spec = {"name": codec_name, "values": {0: [], **values}, **({"ignored_values": [7]} if ignored else {})}
    depth = np.random.default_rng(5).integers(0, format.num_classes + 1, (5, 7, 1))
    planes = (np.arange(format.num_classes) < depth).astype(np.uint8)
    if ignored:
        planes[1, 2:4] = 255
    codec = open_codec(spec, format)
    assert open_codec(json.loads(json.dumps(codec.to_spec())), format) == codec
    check_round_trip(codec, tmp_path, {stem_for(codec_name, "a"): planes})


@pytest.mark.parametrize("codec_name", [*NUMBERS, "tiff"])
def test_a_set_of_classes_without_a_number_is_refused(codec_name, tmp_path):
    codec = open_codec({"name": codec_name, "values": {1: ["c 0"], 2: ["c 1"]}}, FORMATS["multilabel_2"])
    planes = np.ones((3, 5, 2), np.uint8)
    with pytest.raises(ValueError, match=r"15 pixels say that c 0 and c 1 hold together.*`bit_planes`"):
        codec.write(tmp_path, stem_for(codec_name, "a"), planes)
    assert contents(tmp_path) == {}


# Any planes under any name ------------------------------------------------------------------------------

# Blanks, umlauts, and signs that shells, addresses and patterns take for something else.
LETTERS = st.text("aZ09äÖß漢 -_+&#%()[]{}'=,;!", min_size=1, max_size=8).map(str.strip).filter(bool)
STEMS = st.lists(LETTERS, min_size=1, max_size=3).map("/".join)
SIZES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.just(1), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.just(1)),
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_planes_under_any_name(data, tmp_path_factory):
    codec_name, format_name = data.draw(st.sampled_from(HELD))
    format, size_hw = FORMATS[format_name], data.draw(SIZES)
    top = 1 if format.classes_overlap else format.num_classes - 1
    planes = data.draw(arrays.arrays(format.dtype, (*size_hw, format.num_planes), elements=st.integers(0, top)))
    if codec_name not in KNOWS_NO_IGNORED:
        unknown = data.draw(arrays.arrays(bool, size_hw, fill=st.just(False)))
        planes[unknown] = format.ignore_index
    codec = open_codec(ignoring(codec_name, format_name), format)
    root = tmp_path_factory.mktemp("masks")
    check_round_trip(codec, root, {stem_for(codec_name, data.draw(STEMS)): planes})
