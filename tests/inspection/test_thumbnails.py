import cv2
import numpy as np
import pytest

from segkit.inspection.thumbnails import Thumbnail, label_colors, make_thumbnail


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
@pytest.mark.parametrize(
    ("size_hw", "small_hw"),
    [
        ((300, 600), (96, 192)),
        ((2000, 10), (192, 1)),
        ((1, 5000), (1, 192)),
        ((35, 51), (105, 153)),
        ((1, 1), (192, 192)),
    ],
)
def test_any_image_becomes_a_small_picture(dtype, bands, size_hw, small_hw):
    rng = np.random.default_rng(0)
    image = (rng.random((*size_hw, bands)) * 250).astype(dtype)
    mask = np.zeros(size_hw, bool)
    mask[0, 0] = True
    made = make_thumbnail("a", "train", image, {"x": mask})
    assert decoded(made.image).shape == decoded(made.overlay).shape == (*small_hw, 3)


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(7000, 9000, np.uint16), (-1000, 400, np.float32), (0, 255, np.uint8)]
)
def test_dark_is_dark_and_bright_is_bright_at_any_depth(low, high, dtype):
    image = np.full((400, 500, 1), low, dtype)
    image[:, 250:] = high
    picture = decoded(make_thumbnail("a", "train", image).image)
    assert picture[:, :90].max() < 8
    assert picture[:, 102:].min() > 247


def test_colours_keep_their_order_and_other_bands_are_left_out():
    image = np.zeros((40, 50, 5), np.uint8)
    image[..., 0], image[..., 1], image[..., 4] = 200, 90, 255
    picture = decoded(make_thumbnail("a", "train", image).image)
    assert np.abs(picture.astype(int) - (200, 90, 0)).max() < 12


def test_labels_are_drawn_in_their_colour_where_they_are():
    image = np.full((400, 300, 3), 60, np.uint8)
    corner = np.zeros((400, 300), bool)
    corner[:200, :150] = True
    colors = {"wall": (255, 0, 0), "floor": (0, 255, 0), "background": (0, 0, 0)}
    masks = {"wall": np.zeros_like(corner), "floor": corner, "background": ~corner}
    made = make_thumbnail("a", "val", image, masks, colors, faults=["too dark"])
    overlay = decoded(made.overlay).astype(int)
    assert made.classes == ("floor", "background")
    assert (made.stem, made.part, made.faults) == ("a", "val", ("too dark",))
    assert (overlay[5:86, 5:60, 1] - overlay[5:86, 5:60, 0] > 80).all()
    assert np.abs(overlay[:, 90:] - 60).max() < 12
    assert np.abs(overlay[110:] - 60).max() < 12
    assert np.abs(decoded(made.image).astype(int) - 60).max() < 4


def test_colours_go_by_place_and_background_is_black():
    names = [f"class {n}" for n in range(300)]
    assert label_colors(["background", *names])["background"] == (0, 0, 0)
    assert list(label_colors(names)) == names
    assert label_colors(names[:5]) == dict(list(label_colors(names).items())[:5])


def test_many_classes_in_one_picture():
    labels = np.arange(400 * 300).reshape(400, 300) // 300
    made = make_thumbnail("a", "t", np.zeros((400, 300, 1), np.uint8), {str(v): labels == v for v in range(400)})
    assert len(made.classes) == 400


def test_a_thumbnail_may_have_no_picture():
    assert Thumbnail("a", "train", b"").classes == ()
