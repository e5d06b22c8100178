from __future__ import annotations

import cv2
import numpy as np
import pytest

from segkit.training.curves import COLORS, Axis, Curve, Panel, draw_curves, tick_text
from segkit.training.pictures import curve_panels
from tests.scenes import FORMATS, write_set
from tests.training.test_fit import run


@pytest.mark.parametrize(
    ("values", "options", "ticks"),
    [
        ([0.3, 0.9], {}, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ([0, 1000], {}, [0, 200, 400, 600, 800, 1000]),
        ([1, 5], {"tight": True}, [1, 2, 3, 4, 5]),
        ([0.7, 0.7], {}, [0.62, 0.64, 0.66, 0.68, 0.7, 0.72, 0.74, 0.76, 0.78]),
        ([2e-6, 3e-1], {"log": True, "tight": True}, [1e-4, 1e-2]),
        ([float("nan"), float("inf"), 1, 4], {"tight": True}, [1, 2, 3, 4]),
        ([-3, 0, 2, 40], {"log": True}, [2, 5, 10, 20]),
    ],
)
def test_axes_name_round_numbers(values, options, ticks):
    axis = Axis(values, 0, 300, **options)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis(axis.low), axis(axis.high)) == pytest.approx((0, 300))


def test_a_log_axis_has_decades_at_equal_distances():
    axis = Axis([1e-4, 1], 0, 400, log=True)
    assert [axis(10.0**n) for n in range(-4, 1)] == pytest.approx([0, 100, 200, 300, 400])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.001, "0.001"), (2e-5, "2e-5"), (40000, "40000"), (-0.25, "-0.25"), (3e7, "3e7")]
)
def test_numbers_are_short(value, text):
    assert tick_text(value) == text


def color_columns(picture, color):
    """Columns that hold pixels of a colour, below the legends."""
    return np.flatnonzero((picture[50:] == color).all(2).any(0))


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_curves_of_any_length_are_drawn_from_end_to_end(count):
    x = list(range(1, count + 1))
    picture = draw_curves([Panel("loss", [Curve("training", x, [1 / n for n in x])])], "epoch")
    columns = color_columns(picture, COLORS[0])
    assert picture.shape == (290, 960, 3)
    if count > 1:
        assert (columns.min(), columns.max()) == (pytest.approx(84, abs=4), pytest.approx(932, abs=4))
        assert len(columns) > 700
    else:
        assert columns.mean() == pytest.approx((84 + 932) / 2, abs=2)


def test_a_line_breaks_where_a_number_is_missing():
    y = [1.0, 1.0, float("nan"), float("nan"), 1.0, 1.0]
    picture = draw_curves([Panel("loss", [Curve("training", range(100, 106), y)])], "step")
    columns = color_columns(picture, COLORS[0])
    pixel = (932 - 84) / 5
    assert not ((columns > 84 + 1.2 * pixel) & (columns < 84 + 3.8 * pixel)).any()
    assert (columns > 84 + 4.2 * pixel).any()


def test_panels_of_a_run_mark_the_best_epoch():
    rows = [
        {"epoch": 0, "train_loss": 2.0, "lr": 1e-3},
        {"epoch": 1, "train_loss": 1.0, "val_loss": 1.5, "pooled_iou": 0.5, "lr": 5e-4},
    ]
    loss, score, lr = curve_panels(rows, "pooled_iou", 1)
    assert [(c.name, list(c.x), list(c.y)) for c in loss.curves] == [
        ("training", [1, 2], [2.0, 1.0]),
        ("validation", [2], [1.5]),
    ]
    colors = {curve.name: color for panel in (loss, score, lr) for curve, color in panel.colored()}
    assert [color for panel in (loss, score, lr) for _, color in panel.colored()] == [
        *(colors["training"], colors["validation"]),
        *(colors["validation"], colors["decoder and head"]),
    ]
    assert len(set(colors.values())) == 3
    assert score.mark == (2, 0.5, "best 0.5000 in epoch 2")
    assert list(lr.curves[0].y) == [1e-3, 5e-4]
    assert curve_panels(rows, "val_loss", 1)[0].mark == (2, 1.5, "best 1.5000 in epoch 2")
    assert len(curve_panels(rows[:1], None, 0)) == 2


def test_a_run_leaves_its_curves_and_pictures_of_the_same_images(tmp_path):
    format = FORMATS["overlapping"]
    train, val = write_set(tmp_path / "t", format, 4), write_set(tmp_path / "v", format, 7)
    run(tmp_path, format, train=train, val=val, epochs=3, validate_every=2, pictures_every=1)
    assert cv2.imread(str(tmp_path / "run" / "curves.png")).shape == (784, 960, 3)
    sheets = sorted((tmp_path / "run" / "pictures" / "epochs").iterdir())
    assert [path.name for path in sheets] == ["epoch_0002.png", "epoch_0003.png"]
    first, second = (cv2.imread(str(path)) for path in sheets)
    # 40x56 grows five times; three side by side, four images below each other, a line of text above each and one more.
    assert first.shape == second.shape == (4 * (200 + 26) + 26 + 16, 3 * 280 + 2 * 8 + 16, 3)
    images = np.s_[60:260, 8 : 8 + 2 * 280 + 8]  # image and truth of the first row
    assert (first[images] == second[images]).all()
    original = cv2.imread(str(val.image_path(0)))
    assert (first[60:260:5, 8:288:5] == original).all()


def test_pictures_come_every_few_epochs(tmp_path):
    run(tmp_path, FORMATS["binary"], epochs=5, pictures_every=2)
    names = [p.name for p in (tmp_path / "run" / "pictures" / "epochs").iterdir()]
    assert sorted(names) == ["epoch_0002.png", "epoch_0004.png"]
