import json
import os
import struct
import subprocess
import sys
import zlib

import cv2
import nibabel
import numpy as np
import pytest

from segkit.formats.codecs import CODECS, open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import encode_png, read_png, write_png

BINARY = MaskFormat.binary("nucleus")
STREET = MaskFormat.multiclass(["sky", "road", "car"])
OVERLAP = MaskFormat.multilabel(["WT", "TC", "ET"])
ORGANS = MaskFormat.multiclass(["background", "liver", "spleen"])


def random_planes(format, seed, size_hw, ignored=True):
    rng = np.random.default_rng(seed)
    top = 2 if format.classes_overlap else format.num_classes
    planes = rng.integers(0, top, (*size_hw, format.num_planes)).astype(format.dtype)
    if ignored:
        planes[rng.random(planes.shape) < 0.2] = format.ignore_index
    return planes


def stems_for(codec):
    return ["case@z000", "night/case@z000"] if codec == "nifti" else ["a", "night/b.c d"]


# Any codec --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "format"),
    [
        ({"name": "index_png", "values": {255: "nucleus", 254: "nucleus", 0: None}}, BINARY),
        ({"name": "palette_png", "values": {7: "car", 1: "sky", 0: "road"}}, STREET),
        ({"name": "color_png", "values": {"sky": "#0000ff", "road": [1, 2, 3], "car": [[4, 5, 6], "#070809"]}}, STREET),
        (
            {
                "name": "file_per_class",
                "pattern": "{stem}_{class}.png",
                "present_values": [1, 255],
                "missing": "empty",
                "unmarked": "ignore",
            },
            STREET,
        ),
        ({"name": "bit_planes", "bits": {2: "WT", 1: "TC", 0: "ET"}, "ignored_values": [255]}, OVERLAP),
        ({"name": "tiff", "values": {1: ["WT", "TC"], 2: "WT", 4: ["WT", "TC", "ET"]}}, OVERLAP),
        ({"name": "tiff", "present_values": [1, 255], "ignored_values": [2]}, OVERLAP),
        ({"name": "threshold", "threshold": 0.5, "dark": True, "suffix": ".tif"}, BINARY),
        ({"name": "nifti", "values": {1: "liver", 6: "spleen"}, "axis": "x"}, ORGANS),
        (
            {
                "name": "coco",
                "values": {7: "liver", "spleen": "spleen", "gall bladder": None},
                "ignored_values": [255],
                "others": "background",
                "crowd": "ignore",
                "missing": "empty",
                "overlap": "smallest",
            },
            ORGANS,
        ),
        (
            {"name": "labelme", "values": {"lv": "liver", "sp": "spleen"}, "overlap": "last", "missing": "ignore"},
            ORGANS,
        ),
        ({"name": "labelme", "others": "sky", "unmarked": "ignore"}, STREET),
    ],
)
def test_specs_with_options_survive_json(spec, format):
    codec = open_codec(spec, format)
    assert open_codec(json.loads(json.dumps(codec.to_spec())), format) == codec
    assert codec != open_codec(spec["name"], format)


@pytest.mark.parametrize("codec_name", CODECS)
def test_planes_that_do_not_fit_the_format_are_not_written(codec_name, tmp_path):
    codec = open_codec(codec_name, BINARY)
    stem = stems_for(codec_name)[0]
    for wrong, said in (
        (np.zeros((5, 7), np.uint8), "shape"),
        (np.zeros((5, 7, 2), np.uint8), "shape"),
        (np.zeros((5, 7, 1), np.int64), "int64"),
        (np.full((5, 7, 1), 2, np.uint8), r"plane values \[2\]"),
        (np.full((5, 7, 1), 255, np.uint8), "`ignored_values`"),
    ):
        with pytest.raises(ValueError, match=said):
            codec.write(tmp_path, stem, wrong)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize("stem", ["../x", "/x", "a/../../x", "a//x", ".hidden", "a/.x/b", "_overlay/x", "a\\b", ""])
def test_stems_cannot_leave_the_root(codec_name, stem, tmp_path):
    codec = open_codec(codec_name, BINARY)
    stem = f"{stem}@z000" if codec_name == "nifti" else stem
    root = tmp_path / "masks"
    for act in (lambda: codec.read(root, stem), lambda: codec.write(root, stem, np.zeros((2, 3, 1), np.uint8))):
        with pytest.raises(ValueError, match=r"is no name of a sample|names no slice"):
            act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec_name", CODECS)
def test_a_missing_root_or_mask_is_named(codec_name, tmp_path):
    codec = open_codec(codec_name, BINARY)
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        codec.stems(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"case.*(cannot be read|no such file)"):
        codec.read(tmp_path, "case@z000")
    assert codec.stems(tmp_path) == []


# Opening ------------------------------------------------------------------------------------------------


def test_unknown_codecs_and_options_name_the_closest():
    with pytest.raises(ValueError, match=r"'index_pgn'. Did you mean `index_png`"):
        open_codec("index_pgn", BINARY)
    with pytest.raises(ValueError, match=r"no option 'value'. Did you mean `values`"):
        open_codec({"name": "index_png", "value": {255: "nucleus"}}, BINARY)
    with pytest.raises(ValueError, match="no option 'format'"):
        open_codec({"name": "index_png", "format": "binary"}, BINARY)
    for nonsense in ({}, {"values": {}}, 7, None, ["index_png"]):
        with pytest.raises(ValueError, match="expected a name"):
            open_codec(nonsense, BINARY)


def test_options_of_none_are_the_defaults():
    assert open_codec({"name": "index_png", "values": None, "ignored_values": None}, BINARY) == open_codec(
        "index_png", BINARY
    )


def test_codecs_that_write_different_values_are_not_equal():
    one, other = ({"name": "index_png", "values": dict.fromkeys(order, "nucleus")} for order in ((1, 255), (255, 1)))
    assert open_codec(one, BINARY) != open_codec(other, BINARY)


def test_opening_a_codec_imports_no_file_library():
    code = (
        "import sys; from segkit.formats.codecs import open_codec; from segkit.formats.mask_format import MaskFormat;"
        "from segkit.formats.codecs import CODECS; [open_codec(name, MaskFormat.binary()) for name in CODECS];"
        "sys.exit(' '.join({'cv2', 'nibabel', 'tifffile', 'imagecodecs', 'pycocotools'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_a_codec_is_returned_as_it_is_if_its_format_equals():
    codec = open_codec("index_png", BINARY)
    assert open_codec(codec, MaskFormat.binary("nucleus")) is codec
    with pytest.raises(ValueError, match="another mask format"):
        open_codec(codec, STREET)


# Finding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.Png", "a.pNG", "a.PNG"])
def test_a_listed_mask_is_read_whatever_the_case_of_its_suffix(tmp_path, name):
    codec = open_codec("index_png", STREET)
    planes = random_planes(STREET, 0, (5, 7), ignored=False)
    codec.write(tmp_path, "a", planes)
    (tmp_path / "a.png").rename(tmp_path / name)
    assert codec.stems(tmp_path) == ["a"]
    np.testing.assert_array_equal(codec.read(tmp_path, "a"), planes)
    codec.write(tmp_path, "a", planes)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_stems_skip_what_is_hidden_or_reserved_and_see_any_suffix_case(tmp_path):
    pixels = np.array([[0, 1]], np.uint8)
    for name in ("b.PNG", "a.png", "night/c.png", ".d.png", ".x/e.png", "_overlay/f.png", "_probabilities/g.png"):
        write_png(tmp_path / name, pixels)
    for name in ("notes.txt", "h.jpg", "_journal.jsonl"):
        (tmp_path / name).write_text("x")
    codec = open_codec("index_png", BINARY)
    assert codec.stems(tmp_path) == ["a", "b", "night/c"]
    assert [codec.read(tmp_path, s).ravel().tolist() for s in codec.stems(tmp_path)] == [[0, 1]] * 3


def test_two_files_of_one_stem_are_an_error(tmp_path):
    for name in ("a.png", "a.PNG"):
        write_png(tmp_path / name, np.zeros((2, 3), np.uint8))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(ValueError, match=r"a\.(png|PNG) and .*a\.(png|PNG) are both sample 'a'"):
        open_codec("index_png", BINARY).stems(tmp_path)


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path):
    write_png(tmp_path / "store" / "a.png", np.zeros((2, 3), np.uint8))
    root = tmp_path / "masks"
    root.mkdir()
    os.symlink(tmp_path / "store", root / "linked")
    os.symlink(root, tmp_path / "store" / "back")
    assert open_codec("index_png", BINARY).stems(root) == ["linked/a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    codec = open_codec("index_png", BINARY)
    codec.write(tmp_path, "a", np.ones((2, 3, 1), np.uint8))

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        codec.write(tmp_path, "a", np.zeros((2, 3, 1), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert codec.read(tmp_path, "a").all()


# PNG files ----------------------------------------------------------------------------------------------


def raw_png(width, height, bits, kind, rows, palette=b"", extra=b""):
    """A PNG file by the letter of its specification: the expected values owe nothing to the code under test."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), extra]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", [0, 3], ids=["gray", "palette"])
@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [
        (1, bytes([0b10110000]), [1, 0, 1, 1]),
        (2, bytes([0b00011011]), [0, 1, 2, 3]),
        (4, bytes([0x0F, 0x1E]), [0, 15, 1, 14]),
        (8, bytes([0, 1, 2, 200]), [0, 1, 2, 200]),
    ],
)
def test_samples_and_palette_indices_are_read_as_stored(kind, bits, row, expected, tmp_path):
    palette = bytes(range(100, 100 + 3 * 2)) * 128 if kind == 3 else b""
    (tmp_path / "a.png").write_bytes(raw_png(4, 1, bits, kind, [row], palette[: 3 * 2**bits]))
    assert read_png(tmp_path / "a.png").pixels.tolist() == [expected]
    format = MaskFormat.multiclass(range(201))
    for codec in ("index_png", "palette_png"):
        assert open_codec(codec, format).read(tmp_path, "a").ravel().tolist() == expected


def test_white_in_a_1_bit_file_is_1_or_255_as_declared(tmp_path):
    (tmp_path / "a.png").write_bytes(raw_png(3, 1, 1, 0, [bytes([0b01000000])]))
    for spec in ("index_png", {"name": "index_png", "values": {255: "nucleus"}}):
        assert open_codec(spec, BINARY).read(tmp_path, "a").ravel().tolist() == [0, 1, 0]
    # 1 is what the file says, so a codec that declares it is not asked twice.
    both = open_codec({"name": "index_png", "ignored_values": [255]}, BINARY)
    assert both.read(tmp_path, "a").ravel().tolist() == [0, 1, 0]
    (tmp_path / "nucleus").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "nucleus" / "a.png")
    for spec in ("file_per_class", {"name": "file_per_class", "present_values": [255]}):
        assert open_codec(spec, BINARY).read(tmp_path, "a").ravel().tolist() == [0, 1, 0]


def test_index_png_uses_16_bits_only_where_values_need_them(tmp_path):
    open_codec("index_png", STREET).write(tmp_path, "small", np.full((2, 3, 1), 2, np.uint8))
    large = open_codec({"name": "index_png", "values": {0: "sky", 1: "road", 40000: "car"}}, STREET)
    large.write(tmp_path, "large", np.full((2, 3, 1), 2, np.uint8))
    stored = [cv2.imread(str(tmp_path / f"{n}.png"), cv2.IMREAD_UNCHANGED) for n in ("small", "large")]
    assert [(s.dtype, s.max()) for s in stored] == [(np.uint8, 2), (np.uint16, 40000)]


def test_colour_files_are_refused_by_index_png_and_by_file_per_class(tmp_path):
    write_png(tmp_path / "nucleus" / "a.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: has 3 channels.*color_png"):
        open_codec("index_png", BINARY).read(tmp_path, "nucleus/a")
    with pytest.raises(ValueError, match=r"a\.png: has colours"):
        open_codec("file_per_class", BINARY).read(tmp_path, "a")


def test_palette_png_shows_the_class_colours(tmp_path):
    codec = open_codec({"name": "palette_png", "values": {0: "sky", 9: "road", 1: "car"}}, STREET)
    codec.write(tmp_path, "a", np.array([[[0], [1], [2]]], np.uint8))
    shown = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR)[..., ::-1]
    assert [tuple(c) for c in shown[0].tolist()] == [c.color for c in STREET.classes]
    png = read_png(tmp_path / "a.png")
    assert (png.pixels.tolist(), png.palette.shape) == ([[0, 9, 1]], (256, 3))


def test_color_png_takes_several_colours_for_a_class_and_writes_the_first(tmp_path):
    spec = {
        "name": "color_png",
        "values": {"sky": "#0000ff", "road": [128, 64, 128], "car": [[0, 0, 142], "#00003c"]},
        "ignored_values": ["#000000", [255, 255, 255]],
    }
    codec = open_codec(spec, STREET)
    pixels = [[(0, 0, 255), (128, 64, 128), (0, 0, 60), (0, 0, 142)], [(0, 0, 0), (255, 255, 255)] * 2]
    write_png(tmp_path / "a.png", np.array(pixels, np.uint8))
    planes = codec.read(tmp_path, "a")
    assert planes[..., 0].tolist() == [[0, 1, 2, 2], [255] * 4]
    codec.write(tmp_path, "b", planes)
    assert read_png(tmp_path / "b.png").pixels[0, 2].tolist() == [0, 0, 142]
    assert read_png(tmp_path / "b.png").pixels[1].tolist() == [[0, 0, 0]] * 4


def test_color_png_takes_its_values_in_either_direction():
    by_color = {"name": "color_png", "values": {"#ffffff": "nucleus", "#ff0000": "nucleus"}}
    by_name = {"name": "color_png", "values": {"nucleus": ["#ffffff", "#ff0000"]}}
    assert open_codec(by_color, BINARY) == open_codec(by_name, BINARY)
    assert open_codec(by_name, BINARY).values["background"] == ((0, 0, 0),)


def test_color_png_reads_palette_gray_and_opaque_files_by_the_colours_they_show(tmp_path):
    codec = open_codec({"name": "color_png", "values": {"nucleus": "#ffffff"}}, BINARY)
    (tmp_path / "palette.png").write_bytes(raw_png(2, 1, 8, 3, [b"\0\1"], bytes([255] * 3 + [0] * 3)))
    (tmp_path / "gray.png").write_bytes(raw_png(2, 1, 1, 0, [bytes([0b10000000])]))
    (tmp_path / "opaque.png").write_bytes(raw_png(2, 1, 8, 6, [bytes([255] * 4 + [0, 0, 0, 255])]))
    for stem in codec.stems(tmp_path):
        assert codec.read(tmp_path, stem).ravel().tolist() == [1, 0], stem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (raw_png(1, 1, 8, 2, [b"\1\2\3"]), r"found colours \[#010203\].*declared: #.*nucleus"),
        (raw_png(1, 1, 16, 2, [b"\0" * 6]), "16 bits per channel"),
        (raw_png(1, 1, 8, 6, [b"\0\0\0\x7f"]), "transparent pixels"),
        (raw_png(1, 1, 8, 3, [b"\5"], b"\0" * 6), "beyond its palette of 2 colours"),
    ],
)
def test_color_png_refuses_what_has_no_class(content, said, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.png: .*{said}"):
        open_codec("color_png", BINARY).read(tmp_path, "a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"values": {"sky": "#000001", "road": "#000001", "car": "#000002"}}, "#000001 stands for two classes"),
        ({"values": {"sky": "#000001", "road": "#000002"}}, r"no colour for \['car'\]"),
        ({"values": {"sky": "#000001", "road": "#000002", "cat": "#000003"}}, r"\['cat'\], which are no classes"),
        ({"values": {"sky": "blue", "road": "#000002", "car": "#000003"}}, "'blue'"),
        ({"values": {"sky": [], "road": "#000002", "car": "#000003"}}, "expected '#rrggbb'"),
        ({"values": ["#000001"]}, "expected `NAME: colour`"),
        ({"ignored_values": list(STREET.classes[0].color)}, "stands for two classes, or for one and"),
    ],
)
def test_color_png_options_that_cannot_be_meant(options, said):
    with pytest.raises(ValueError, match=said):
        open_codec({"name": "color_png", **options}, STREET)


# Damaged files ------------------------------------------------------------------------------------------

GOOD = encode_png(np.random.default_rng(5).integers(0, 2, (40, 60)).astype(np.uint8))
DAMAGED = {
    "empty": (b"", "is empty"),
    "text": (b"these are not the bytes you are looking for", "is no PNG file"),
    "jpeg": (cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes(), "is no PNG file"),
    "half": (GOOD[: len(GOOD) // 2], "is cut short"),
    "no_end": (GOOD[:-12], "is cut short"),
    "flipped_bit": (GOOD[:60] + bytes([GOOD[60] ^ 4]) + GOOD[61:], "is damaged"),
    "no_pixels": (raw_png(4, 1, 8, 0, [b""]), "cannot be decoded"),
    "huge": (raw_png(2**16, 2**16, 8, 0, [b""]), "declares 65536 x 65536 pixels"),
    "no_size": (raw_png(0, 3, 8, 0, [b""]), "declares 0 x 3 pixels"),
    "no_palette": (raw_png(4, 1, 8, 3, [b"\0\1\2\3"]), "is a palette PNG without"),
}


@pytest.mark.parametrize("codec_name", ["index_png", "palette_png", "color_png", "file_per_class"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_one_error_that_names_it(codec_name, damage, tmp_path):
    content, said = DAMAGED[damage]
    (tmp_path / "nucleus").mkdir()
    for path in (tmp_path / "bad.png", tmp_path / "nucleus" / "bad.png"):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.png: {said}"):
        open_codec(codec_name, BINARY).read(tmp_path, "bad")


def test_no_truncation_is_taken_for_a_mask(tmp_path):
    path = tmp_path / "a.png"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(ValueError, match=r"a\.png"):
            read_png(path)


# A file per class ---------------------------------------------------------------------------------------


def write_class(root, name, rows, stem="a", pattern="{}/{}.png"):
    write_png(root / pattern.format(name, stem), np.array(rows, np.uint8))


def test_file_per_class_by_hand(tmp_path):
    write_class(tmp_path, "WT", [[255, 255, 255, 0]])
    write_class(tmp_path, "TC", [[0, 1, 1, 0]])
    write_class(tmp_path, "ET", [[0, 0, 255, 0]])
    planes = open_codec("file_per_class", OVERLAP).read(tmp_path, "a")
    assert planes[0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_missing_class_files_mean_what_the_spec_says(tmp_path):
    write_class(tmp_path, "WT", [[255, 0]])
    write_class(tmp_path, "ET", [[0, 255]], stem="b")
    for spec in ("file_per_class", {"name": "file_per_class", "missing": "error"}):
        codec = open_codec(spec, OVERLAP)
        assert codec.stems(tmp_path) == ["a", "b"], "a sample that lacks a file is named, not dropped"
        with pytest.raises(ValueError, match=r"TC/a\.png: no such file.*`missing: empty`.*`missing: ignore`"):
            codec.read(tmp_path, "a")
    empty = open_codec({"name": "file_per_class", "missing": "empty"}, OVERLAP)
    assert empty.read(tmp_path, "a")[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    ignore = open_codec({"name": "file_per_class", "missing": "ignore"}, OVERLAP)
    assert ignore.read(tmp_path, "b")[0].tolist() == [[255, 255, 0], [255, 255, 1]]
    with pytest.raises(ValueError, match=r"c\.png: no such file, nor one for another class of 'c'"):
        empty.read(tmp_path, "c")


def test_class_files_of_different_sizes_name_both(tmp_path):
    write_class(tmp_path, "WT", [[0, 255]])
    write_class(tmp_path, "TC", [[0, 255], [0, 0]])
    write_class(tmp_path, "ET", [[0, 255]])
    with pytest.raises(ValueError, match=r"TC/a\.png: is 2 x 2 .*WT/a\.png is 1 x 2"):
        open_codec("file_per_class", OVERLAP).read(tmp_path, "a")


def test_class_files_with_strange_values(tmp_path):
    write_class(tmp_path, "nucleus", [[0, 77, 255]])
    with pytest.raises(ValueError, match=r"nucleus/a\.png: found values \[77\], expected 0 and 255 or 1"):
        open_codec("file_per_class", BINARY).read(tmp_path, "a")
    codec = open_codec({"name": "file_per_class", "ignored_values": [77]}, BINARY)
    assert codec.read(tmp_path, "a").ravel().tolist() == [0, 255, 1]
    write_class(tmp_path, "nucleus", [[0, 1, 255]])
    with pytest.raises(ValueError, match=r"holds both 1 and 255.*`present_values: \[1, 255\]`.*`ignored_values`"):
        open_codec("file_per_class", BINARY).read(tmp_path, "a")
    codec = open_codec({"name": "file_per_class", "present_values": [1, 255]}, BINARY)
    assert codec.read(tmp_path, "a").ravel().tolist() == [0, 1, 1]
    codec = open_codec({"name": "file_per_class", "ignored_values": [255]}, BINARY)
    assert codec.read(tmp_path, "a").ravel().tolist() == [0, 1, 255]


@pytest.mark.parametrize("pattern", ["{stem}_{class}.png", "{stem}/{class}.png", "masks/{class}-{stem}.PNG"])
def test_other_patterns(pattern, tmp_path):
    codec = open_codec({"name": "file_per_class", "pattern": pattern}, OVERLAP)
    planes = {stem: random_planes(OVERLAP, 3, (3, 4), ignored=False) for stem in ("a", "b_c", "night/d")}
    for stem, value in planes.items():
        codec.write(tmp_path, stem, value)
    (tmp_path / "masks").mkdir(exist_ok=True)
    write_png(tmp_path / "masks" / "other.png", np.zeros((1, 1), np.uint8))
    assert codec.stems(tmp_path) == sorted(planes)
    for stem, value in planes.items():
        np.testing.assert_array_equal(codec.read(tmp_path, stem), value)


def test_the_longest_class_name_owns_a_file(tmp_path):
    lungs = MaskFormat.multilabel(["lung", "left_lung"])
    codec = open_codec({"name": "file_per_class", "pattern": "{stem}_{class}.png"}, lungs)
    codec.write(tmp_path, "a", np.zeros((2, 3, 2), np.uint8))
    assert codec.stems(tmp_path) == ["a"]


def test_exclusive_classes_in_files_of_their_own(tmp_path):
    codec = open_codec("file_per_class", ORGANS)
    write_class(tmp_path, "liver", [[255, 0, 0]])
    write_class(tmp_path, "spleen", [[0, 255, 0]])
    assert codec.read(tmp_path, "a").ravel().tolist() == [1, 2, 0]
    codec.write(tmp_path, "b", np.array([[[2], [0], [1]]], np.uint8))
    assert not (tmp_path / "background").exists()
    assert read_png(tmp_path / "spleen" / "b.png").pixels.tolist() == [[255, 0, 0]]


def test_exclusive_classes_must_not_overlap(tmp_path):
    write_class(tmp_path, "liver", [[255, 0, 0], [0, 255, 255]])
    write_class(tmp_path, "spleen", [[0, 255, 0], [0, 255, 255]])
    expected = r"liver/a\.png: 2 pixels.*row 1, column 1: .*liver/a\.png and .*spleen/a\.png.*multilabel"
    with pytest.raises(ValueError, match=expected):
        open_codec("file_per_class", ORGANS).read(tmp_path, "a")


def test_unmarked_pixels_without_a_background_class(tmp_path):
    for name, rows in (("sky", [[255, 0, 0]]), ("road", [[0, 255, 0]]), ("car", [[0, 0, 0]])):
        write_class(tmp_path, name, rows)
    with pytest.raises(
        ValueError, match=r"sky/a\.png: 1 pixels are marked for no class.*`background`.*`unmarked: ignore`"
    ):
        open_codec("file_per_class", STREET).read(tmp_path, "a")
    codec = open_codec({"name": "file_per_class", "unmarked": "ignore"}, STREET)
    planes = codec.read(tmp_path, "a")
    assert planes.ravel().tolist() == [0, 1, 255]
    codec.write(tmp_path, "b", planes)
    np.testing.assert_array_equal(codec.read(tmp_path, "b"), planes)


def test_a_missing_exclusive_class_file_hides_only_what_no_other_file_marks(tmp_path):
    write_class(tmp_path, "liver", [[255, 0]])
    ignore = open_codec({"name": "file_per_class", "missing": "ignore"}, ORGANS)
    assert ignore.read(tmp_path, "a").ravel().tolist() == [1, 255]
    empty = open_codec({"name": "file_per_class", "missing": "empty"}, ORGANS)
    assert empty.read(tmp_path, "a").ravel().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "{class}/a.png"}, r"names \{class\} and \{stem\} once each"),
        ({"pattern": "{class}/{stem}{stem}.png"}, "once each"),
        ({"pattern": "{class}/{stem}.jpg"}, r"ends in \.png"),
        ({"pattern": "../{class}/{stem}.png"}, r"without `\.\.`"),
        ({"pattern": "{klass}/{class}/{stem}.png"}, "once each"),
        ({"missing": "skip"}, "expected error, ignore, empty"),
        ({"unmarked": "empty"}, "expected error, ignore"),
        ({"present_values": [0]}, "expected 1 to 255"),
        ({"present_values": [256]}, "expected 1 to 255"),
        ({"present_values": []}, "no value is left"),
        ({"ignored_values": [255, 1]}, "no value is left"),
        ({"present_values": [9], "ignored_values": [9]}, r"\[9\] are in `ignored_values`"),
        ({"ignored_values": [0]}, r"\[0\] are in `ignored_values`"),
    ],
)
def test_file_per_class_options_that_cannot_be_meant(options, said):
    with pytest.raises(ValueError, match=said):
        open_codec({"name": "file_per_class", **options}, OVERLAP)


@pytest.mark.parametrize("name", ["sign / symbol", "..", ".hidden", "_overlay", "a\\b", "{stem}"])
def test_class_names_that_are_no_file_names(name):
    with pytest.raises(ValueError, match="cannot be the name of a folder or file"):
        open_codec("file_per_class", MaskFormat.multilabel(["a", name]))


# Real data ----------------------------------------------------------------------------------------------

CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
VOC = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table"]
VOC += ["dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "tv"]


def test_camvid(shared_data):
    root = shared_data / "camvid" / "val" / "masks"
    codec = open_codec({"name": "index_png", "ignored_values": [11]}, MaskFormat.multiclass(CAMVID))
    stems = codec.stems(root)
    counts = sum(np.bincount(codec.read(root, stem).ravel(), minlength=256) for stem in stems)
    assert len(stems) == 101
    # shares from the data set's own README, in percent
    shares = (100 * counts / counts.sum()).round(1)
    assert shares[[0, 1, 3, 10, 255]].tolist() == [9.2, 26.0, 29.0, 2.2, 1.7]
    strict = open_codec("index_png", MaskFormat.multiclass(CAMVID))
    with pytest.raises(ValueError, match=r"\.png: found values \[11\]"):
        strict.read(root, stems[0])


def test_dsb2018(shared_data):
    root = shared_data / "dsb2018" / "val" / "masks"
    codec = open_codec({"name": "index_png", "values": {255: "nucleus"}}, BINARY)
    planes = [codec.read(root, stem) for stem in codec.stems(root)]
    assert len(planes) == 30
    assert len({p.shape for p in planes}) > 3
    assert sum(p.sum() for p in planes) / sum(p.size for p in planes) == pytest.approx(0.167, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"values": {255: "vessel"}}])
def test_chase_db1_has_1_bit_masks(shared_data, options):
    root = shared_data / "chase_db1" / "train" / "masks"
    codec = open_codec({"name": "index_png", **options}, MaskFormat.binary("vessel"))
    planes = [codec.read(root, stem) for stem in codec.stems(root)]
    assert (len(planes), planes[0].shape) == (20, (960, 999, 1))
    assert np.mean([p.mean() for p in planes]) == pytest.approx(0.072, abs=5e-4)


def test_brats2d_nested(shared_data, tmp_path):
    root = shared_data / "brats2d_nested" / "val" / "masks"
    codec = open_codec("file_per_class", OVERLAP)
    stems = codec.stems(root)
    planes = np.stack([codec.read(root, stem) for stem in stems])
    assert planes.shape == (27, 240, 240, 3)
    assert (100 * planes.mean((0, 1, 2))).round(1).tolist() == [3.3, 0.5, 0.4]
    assert (planes[..., 0] >= planes[..., 1]).all()
    assert (planes[..., 1] >= planes[..., 2]).all()
    codec.write(tmp_path, stems[0], planes[0])
    np.testing.assert_array_equal(codec.read(tmp_path, stems[0]), planes[0])


def test_voc_palette_masks_are_read_as_indices(shared_data, tmp_path):
    root = shared_data / "voc_sample" / "SegmentationClass"
    format = MaskFormat.multiclass(VOC)
    codec = open_codec({"name": "palette_png", "ignored_values": [255]}, format)
    assert codec.stems(root) == ["2011_000003", "2011_000006", "2011_000025"]
    planes = {stem: codec.read(root, stem) for stem in codec.stems(root)}
    assert sorted(set(np.concatenate([np.unique(p) for p in planes.values()]))) == [0, 5, 6, 7, 9, 15, 18, 255]
    as_index = open_codec({"name": "index_png", "ignored_values": [255]}, format)
    for stem, value in planes.items():
        np.testing.assert_array_equal(as_index.read(root, stem), value)
        codec.write(tmp_path, stem, value)
        np.testing.assert_array_equal(read_png(tmp_path / f"{stem}.png").pixels, read_png(root / f"{stem}.png").pixels)


@pytest.mark.parametrize("name", ["index_png", "tiff", "labelme", "coco", "nifti", "file_per_class"])
def test_a_mask_is_held_from_when_it_is_written_whole(tmp_path, name):
    format = OVERLAP if name == "file_per_class" else ORGANS
    codec, stem = open_codec(name, format), stems_for(name)[1]
    assert not codec.holds(tmp_path, stem)
    codec.write(tmp_path, stem, random_planes(format, 0, (5, 6), ignored=False))
    assert codec.holds(tmp_path, stem)
    assert not codec.holds(tmp_path, stem.replace("night", "day"))
    codec.finish(tmp_path)
    assert codec.holds(tmp_path, stem)
    if name == "file_per_class":
        codec.files(tmp_path, stem)[1].unlink()
        assert not codec.holds(tmp_path, stem)


def test_hippocampus_predictions_are_a_data_set(shared_data, tmp_path):
    images, labels = (shared_data / "hippocampus" / "val" / part for part in ("images", "labels"))
    codec = open_codec("nifti", MaskFormat.multiclass(["background", "anterior", "posterior"]))
    stems = codec.stems(labels)
    case = stems[0].split("@")[0]
    for stem in (s for s in stems if s.startswith(f"{case}@")):
        codec.write(tmp_path, stem, codec.read(labels, stem), like=images / f"{case}.nii.gz")
    codec.finish(tmp_path)
    given, written = (nibabel.load(folder / f"{case}.nii.gz") for folder in (labels, tmp_path))
    np.testing.assert_array_equal(np.asarray(given.dataobj), np.asarray(written.dataobj))
    np.testing.assert_array_equal(given.affine, written.affine)
