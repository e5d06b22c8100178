"""Labelme files by hand, beside the class maps that labelme made of the same shapes, and refused."""

import base64
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit.formats.codecs import open_codec
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import encode_png

ANIMALS = MaskFormat.multilabel(["cat", "dog"])
BINARY = MaskFormat.binary("animal")
EXCLUSIVE = MaskFormat.multiclass(["background", "cat", "dog"])


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def rectangle(label, left, top, right, bottom):
    return shape(label, [[left, top], [right, bottom]], "rectangle")


def png_text(rows):
    return base64.b64encode(encode_png(np.array(rows, np.uint8))).decode()


def save(root, *shapes, stem="a", height=3, width=5, **more):
    """One file of an image with 3 rows and 5 columns unless other sizes are given."""
    values = {"version": "5.0.1", "flags": {}, "shapes": list(shapes), "imagePath": f"{stem}.jpg", "imageData": None}
    path = root / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, "imageHeight": height, "imageWidth": width, **more}))
    return root


def read(root, format=ANIMALS, **options):
    return open_codec({"name": "labelme", **options}, format).read(root, "a")


def test_shapes_by_hand(tmp_path):
    polygon = shape("cat", [[0, 0], [2, 0], [2, 1.0], [0, 1]])
    mask = shape("cat", [[3.0, 1.0], [4.0, 2.0]], "mask", mask=png_text([[1, 0], [255, 1]]))
    circle = shape("dog", [[1.5, 1.5], [1.5, 2.5]], "circle")
    old = {"label": "dog", "points": [[3, 0], [5, 0], [5, 1], [3, 1]]}  # before `shape_type`, all were polygons
    planes = read(save(tmp_path, polygon, mask, circle, old))
    assert planes[..., 0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert planes[..., 1].tolist() == [[0, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 0]]
    # Corners may be given in any order.
    corners = read(save(tmp_path, rectangle("cat", 4, 0, 1, 2)))
    assert corners[..., 0].tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


def test_later_shapes_lie_over_earlier_ones(tmp_path):
    shapes = [rectangle("cat", 0, 0, 5, 3), rectangle("dog", 1, 1, 3, 2), rectangle("void", 2, 0, 3, 3)]
    save(tmp_path, *shapes, rectangle("cat", 2, 2, 3, 3))
    drawn = read(tmp_path, EXCLUSIVE, ignored_values=["void"], overlap="last")[..., 0]
    assert drawn.tolist() == [[1, 1, 255, 1, 1], [1, 2, 255, 1, 1], [1, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match=r"a\.json: 1 pixels.*row 1, column 1: cat and dog.*`overlap: last`"):
        read(tmp_path, EXCLUSIVE, ignored_values=["void"])
    planes = read(tmp_path, ignored_values=["void"])
    assert planes[1].tolist() == [[1, 0], [1, 1], [255, 255], [1, 0], [1, 0]]


def test_a_hole_is_drawn_as_background(tmp_path):
    save(tmp_path, rectangle("cat", 0, 0, 5, 3), rectangle("_background_", 1, 1, 3, 2))
    options = {"values": {"cat": "cat", "dog": "dog", "_background_": "background"}, "overlap": "last"}
    assert read(tmp_path, EXCLUSIVE, **options)[1, :, 0].tolist() == [1, 0, 0, 1, 1]


def test_labels_become_classes(tmp_path):
    save(tmp_path, rectangle("cat", 0, 0, 1, 1), rectangle("mouse", 1, 0, 2, 1), shape("mouse", [[4, 1]], "point"))
    with pytest.raises(ValueError, match=r"a\.json: found labels 'mouse', which no class declares"):
        read(tmp_path)
    # What stands for no class is not looked at, whatever its kind.
    assert read(tmp_path, others="background")[0, :3, 0].tolist() == [1, 0, 0]
    assert read(tmp_path, BINARY, values={"mouse": None}, others="animal")[0, :3, 0].tolist() == [1, 0, 0]
    for options in ({"ignored_values": ["mouse"]}, {"others": "ignore"}, {"values": {"mouse": "cat", "dog": "dog"}}):
        with pytest.raises(ValueError, match=r"shape number 2 \(mouse\): is a 'point', which marks no pixels"):
            read(tmp_path, **{"others": "background", **options})


def test_files_without_shapes_say_what_the_spec_says(tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match=r"a\.json: has no annotation.*`missing: empty`"):
        read(tmp_path)
    assert not read(tmp_path, missing="empty").any()
    assert (read(tmp_path, missing="ignore") == 255).all()
    save(tmp_path, flags={"annotated": True})
    assert not read(tmp_path).any()


def test_what_is_written_are_masks_that_find_their_image(tmp_path):
    planes = np.zeros((4, 6, 2), np.uint8)
    planes[1:3, 2:5, 0] = planes[3, 5, 1] = 1
    planes[2, 3, 0] = 0
    codec = open_codec("labelme", ANIMALS)
    codec.write(tmp_path / "out", "night/a", planes, like=tmp_path / "photos" / "a.jpg")
    codec.write(tmp_path / "out", "b", planes * 0)
    assert codec.stems(tmp_path / "out") == ["b", "night/a"]
    assert codec.files(tmp_path / "out", "b") == [tmp_path / "out" / "b.json"]
    values = json.loads((tmp_path / "out" / "night" / "a.json").read_text())
    assert (values["imageHeight"], values["imageWidth"], values["imagePath"]) == (4, 6, "../../photos/a.jpg")
    cat, dog = values["shapes"]
    assert (cat["label"], cat["shape_type"], cat["points"]) == ("cat", "mask", [[2, 1], [4, 2]])
    assert (dog["label"], dog["points"]) == ("dog", [[5, 3], [5, 3]])
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(cat["mask"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.tolist() == [[1, 1, 1], [1, 0, 1]]
    np.testing.assert_array_equal(codec.read(tmp_path / "out", "night/a"), planes)
    assert not codec.read(tmp_path / "out", "b").any()


def test_pixels_ignored_for_some_classes_are_refused(tmp_path):
    planes = np.array([[[255, 0], [1, 1]]], np.uint8)
    with pytest.raises(ValueError, match=r"for some of the classes only.*`file_per_class`"):
        open_codec({"name": "labelme", "ignored_values": ["void"]}, ANIMALS).write(tmp_path, "a", planes)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([BINARY, ANIMALS, EXCLUSIVE, MaskFormat.multiclass(["cat", "dog"])]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["error", "last", "smallest", "ignore"]),
)
def test_what_is_written_is_read(tmp_path_factory, format, size_hw, seed, overlap):
    rng = np.random.default_rng(seed)
    top = 2 if format.classes_overlap else format.num_classes
    planes = rng.integers(0, top, (*size_hw, format.num_planes)).astype(format.dtype)
    planes[rng.random(size_hw) < 0.2] = format.ignore_index
    codec = open_codec({"name": "labelme", "ignored_values": ["void"], "overlap": overlap}, format)
    root = tmp_path_factory.mktemp("labelme")
    codec.write(root, "a", planes)
    np.testing.assert_array_equal(codec.read(root, "a"), planes)


def test_voc_sample_as_labelme_draws_it(shared_data):
    root = shared_data / "voc_sample"
    names = ["background", *(root / "class_names.txt").read_text().splitlines()[1:]]
    format = MaskFormat.multiclass(names)
    shapes = open_codec({"name": "labelme", "ignored_values": ["__ignore__"], "overlap": "last"}, format)
    maps = open_codec({"name": "palette_png", "ignored_values": [255]}, format)
    assert shapes.stems(root / "labelme") == maps.stems(root / "SegmentationClass")
    for stem in shapes.stems(root / "labelme"):
        drawn, expected = shapes.read(root / "labelme", stem), maps.read(root / "SegmentationClass", stem)
        assert set(np.unique(drawn)) == set(np.unique(expected))
        # Borders differ: the maps hold every pixel that a line touches, and classes were drawn from other polygons.
        borders = cv2.morphologyEx(expected, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        assert (drawn == expected)[~borders].mean() > 0.999
        assert (drawn == expected).mean() > 0.99


GOOD = [[0, 0], [2, 0], [2, 1], [0, 1]]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (shape("cat", GOOD, "line"), "is a 'line', which marks no pixels.*map its label to background in `values`"),
        (shape("cat", GOOD, "points"), "is a 'points', which marks no pixels"),
        (shape("cat", GOOD, ["polygon"]), "which marks no pixels"),
        (shape("cat", GOOD[:2]), "a polygon of 2 points, expected at least 3"),
        (shape("cat", None), "no list of points"),
        (shape("cat", [[0, 0], [1, "1"], [2, 2]]), r"has \[1, '1'\] for a point"),
        (shape("cat", [[0, 0], [1], [2, 2]]), r"has \[1\] for a point"),
        (shape("cat", [[0, 0], [1, float("nan")], [2, 2]]), "NaN, infinite or huge"),
        (shape("cat", [[0, 0], [1, 10**400], [2, 2]]), "NaN, infinite or huge"),
        (shape("cat", [[0, 0], [1, 1e9], [2, 2]]), "far outside its 3 x 5 pixels"),
        (shape("cat", GOOD, "rectangle"), "has 4 points, expected 2"),
        (shape("cat", GOOD[:1], "circle"), "has 1 points, expected 2"),
        (shape("cat", [[0, 0], [1e6, 1e6]], "circle"), "far outside"),
        (shape("cat", [[3, 1], [4, 2]], "mask"), "is no PNG of 2 x 2 pixels"),
        (shape("cat", [[3, 1], [4, 2]], "mask", mask=7), "is no base64 text"),
        (shape("cat", [[3, 1], [4, 2]], "mask", mask="=?"), "is no base64 text"),
        (shape("cat", [[3, 1], [4, 2]], "mask", mask=png_text([[1, 1]])), "is no PNG of 2 x 2 pixels"),
        (shape("cat", [[3, 1], [5, 2]], "mask", mask=png_text([[1, 1, 1]] * 2)), "rows 1 to 2 and columns 3 to 5, bey"),
        (shape("cat", [[3, 1], [2, 2]], "mask", mask=png_text([[1]])), "columns 3 to 2, beyond"),
        (shape("cat", [[0, 0], [1, 0]], "mask", mask=png_text([[1, 1]])[:-40]), "whose PNG is cut short"),
        (shape("cat", [[0, 0], [1, 0]], "mask", mask=png_text(np.ones((1, 2, 3)))), "with colours"),
    ],
)
def test_shapes_that_cannot_be_meant_are_named(bad, said, tmp_path):
    save(tmp_path, shape("dog", GOOD), bad)
    with pytest.raises(ValueError, match=rf"a\.json: shape number 1 \(cat\): .*{said}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imageHeight": None}, "a size of None x 5"),
        ({"imageWidth": 2.5}, "a size of 3 x 2.5"),
        ({"imageHeight": 2**60}, "declares 1152921504606846976 x 5 pixels"),
        ({"shapes": None}, "`shapes` is missing or no list"),
        ({"shapes": [7]}, "`shapes` is missing or no list of objects"),
        ({"shapes": [shape(["cat"], GOOD)]}, r"has a shape with the label \['cat'\], expected a word"),
    ],
)
def test_files_that_cannot_be_meant_are_named(change, said, tmp_path):
    save(tmp_path, **change)
    with pytest.raises(ValueError, match=rf"a\.json: .*{said}"):
        read(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: is no readable JSON"):
        read(tmp_path)


def test_a_small_mask_cannot_ask_for_much_memory(tmp_path):
    """A PNG of 20 bytes that declares 65536 x 65536 pixels, in an image of 3 x 5."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\1\0\0" * 2
    save(tmp_path, shape("cat", [[0, 0], [1, 1]], "mask", mask=base64.b64encode(header).decode()))
    with pytest.raises(ValueError, match="is no PNG of 2 x 2 pixels"):
        read(tmp_path)
