from __future__ import annotations

import json

import numpy as np
import pytest

from segkit.formats.mask_format import MaskFormat
from segkit.models.builder import build_model
from segkit.models.bundle import load_model, save_bundle, update_bundle
from segkit.models.steps import FillHoles, LargestComponent, MinimumSize, Within, open_steps, steps_to_list

EXCLUSIVE = MaskFormat.multiclass(["background", "cell", "debris"])
NO_BACKGROUND = MaskFormat.multiclass(["sky", "cell", "debris"])
NESTED = MaskFormat.multilabel(["disc", "cup"])
BINARY = MaskFormat.binary("cell")


def planes(text: str, layer: int = 0, num: int = 1) -> np.ndarray:
    """(H, W, P) of rows such as `0110/0.00`, where a dot is ignored; other layers are 0."""
    rows = [[255 if c == "." else int(c) for c in row] for row in text.split("/")]
    result = np.zeros((len(rows), len(rows[0]), num), np.uint8)
    result[..., layer] = rows
    return result


def text(array: np.ndarray, layer: int = 0) -> str:
    return "/".join("".join("." if v == 255 else str(v) for v in row) for row in array[..., layer])


def after(step, array: np.ndarray, format: MaskFormat, spacing_mm=None) -> str:
    changed = array.copy()
    step.apply(changed, format, spacing_mm)
    return text(changed)


def test_the_largest_region_stays_and_corners_connect():
    found = after(LargestComponent(), planes("110001/001000/000011"), BINARY)
    assert found == "110000/001000/000000"
    assert after(LargestComponent(), planes("0100/0001"), BINARY) == "0100/0000"  # of equals the first
    assert after(LargestComponent(), planes("0000/0000"), BINARY) == "0000/0000"
    for left in range(2, 8):  # also where it lies further to the right
        array = np.zeros((3, 9, 1), np.uint8)
        array[1, left], array[2, left - 2] = 1, 1
        assert after(LargestComponent(), array, BINARY) == text(array * (np.arange(3) == 1)[:, None, None])


def test_what_is_removed_becomes_background_where_there_is_one():
    assert after(LargestComponent(("cell",)), planes("1102/2021/2221"), EXCLUSIVE) == "1102/2020/2220"
    # Without background the nearest pixel says what is there; ignored pixels are neither changed nor asked.
    assert after(MinimumSize(("cell",), pixels=2), planes("00.2/0.12/0..2"), NO_BACKGROUND) == "00.2/0.22/0..2"
    assert after(MinimumSize(("cell",), pixels=9), planes("1.1/111"), NO_BACKGROUND) == "1.1/111"  # nothing to ask


def test_classes_that_are_not_named_are_all_but_background():
    array = planes("011000/000010/200222")
    assert after(MinimumSize(pixels=2), array, EXCLUSIVE) == "011000/000000/000222"
    assert after(MinimumSize(("debris",), pixels=2), array, EXCLUSIVE) == "011000/000010/000222"
    assert after(LargestComponent(), planes("0200/2221"), NO_BACKGROUND) == "2200/2221"


def test_sizes_are_pixels_or_millimetres():
    array = planes("0110/0000/1000")
    assert after(MinimumSize(pixels=1), array, BINARY) == "0110/0000/1000"
    assert after(MinimumSize(pixels=2), array, BINARY) == "0110/0000/0000"
    assert after(MinimumSize(mm2=1.0), array, BINARY, (0.5, 2.0)) == "0110/0000/1000"
    assert after(MinimumSize(mm2=1.1), array, BINARY, (0.5, 2.0)) == "0110/0000/0000"
    # As large as asked for, were it not for rounding.
    assert after(MinimumSize(mm2=2 * 0.49), array, BINARY, (0.7, 0.7)) == "0110/0000/0000"
    assert after(MinimumSize(mm2=2 * 0.49), array, BINARY, [float(np.float32(0.7))] * 2) == "0110/0000/0000"
    with pytest.raises(ValueError, match=r"tells no spacing\. Give pixels"):
        MinimumSize(mm2=1.0).apply(array.copy(), BINARY)
    with pytest.raises(ValueError, match=r"mm3 of an image\. Give mm2"):
        MinimumSize(mm3=1.0).apply(array.copy(), BINARY, (1, 1))


def test_regions_of_volumes_hang_together_across_slices():
    volume = np.stack([planes("1000/0000"), planes("0100/0001"), planes("0100/0000")])
    kept = volume.copy()
    LargestComponent().apply(kept, BINARY)
    assert [text(p) for p in kept] == ["1000/0000", "0100/0000", "0100/0000"]
    MinimumSize(mm3=24.1).apply(kept, BINARY, (4, 1, 2))  # three voxels of 8 mm3
    assert not kept.any()
    with pytest.raises(ValueError, match=r"mm2 of a volume\. Give mm3"):
        MinimumSize(mm2=1.0).apply(volume, BINARY, (4, 1, 2))


def test_holes_are_what_the_border_does_not_reach():
    assert after(FillHoles(), planes("01110/01010/01110"), BINARY) == "01110/01110/01110"
    assert after(FillHoles(), planes("01010/01010/01110"), BINARY) == "01010/01010/01110"
    # A gap at a corner is closed, as the region hangs together there.
    assert after(FillHoles(), planes("00100/01010/00100"), BINARY) == "00100/01110/00100"
    # Other classes and ignored pixels in a hole stay, unless there is no background.
    assert after(FillHoles(("cell",)), planes("11111/10.21/11111"), EXCLUSIVE) == "11111/11.21/11111"
    assert after(FillHoles(("cell",)), planes("11111/10.21/11111"), NO_BACKGROUND) == "11111/11.11/11111"


def test_holes_of_volumes_are_closed_on_all_sides():
    ring = planes("1111/1001/1111")
    full = np.ones_like(ring)
    closed, open_above = np.stack([full, ring, full]), np.stack([ring, ring, full])
    for volume, filled in ((closed, True), (open_above, False)):
        changed = volume.copy()
        FillHoles().apply(changed, BINARY)
        assert bool(changed.all()) is filled
        assert filled or (changed == volume).all()


def test_one_class_lies_within_another():
    both = planes("0110/0110", 0, 2) | planes("0011/0011", 1, 2)
    cut, grown = both.copy(), both.copy()
    Within("cup", "disc").apply(cut, NESTED)
    Within("cup", "disc", keep="inner").apply(grown, NESTED)
    assert (text(cut, 0), text(cut, 1)) == ("0110/0110", "0010/0010")
    assert (text(grown, 0), text(grown, 1)) == ("0111/0111", "0011/0011")


@pytest.mark.parametrize("step", [LargestComponent(), MinimumSize(pixels=3), FillHoles(), Within("a", "b")])
def test_steps_repeated_change_nothing_and_ignored_pixels_stay(step):
    format = MaskFormat.multilabel(["a", "b"])
    rng = np.random.default_rng(0)
    array = (rng.random((23, 31, 2)) < 0.4).astype(np.uint8)
    array[rng.random(array.shape) < 0.05] = 255
    once = array.copy()
    step.apply(once, format)
    twice = once.copy()
    step.apply(twice, format)
    assert ((once == 255) == (array == 255)).all()
    assert (once != array).any()
    assert (twice == once).all()


SPECS = [
    {"name": "within", "inner": "cup", "outer": "disc", "keep": "inner"},
    {"name": "fill_holes"},
    {"name": "largest_component", "classes": ["cup"]},
    {"name": "minimum_size", "mm2": 2.5},
]


def test_descriptions_are_read_back():
    steps = open_steps(SPECS, NESTED)
    assert steps_to_list(steps) == SPECS
    assert open_steps(json.loads(json.dumps(steps_to_list(steps))), NESTED) == steps
    assert open_steps(["fill_holes"], NESTED) == (FillHoles(),)
    assert steps[0].describe() == "within inner cup, outer disc, keep inner"


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("fill_holes", "expected a list of steps"),
        ({"name": "fill_holes"}, "expected a list of steps"),
        ([3], "3 is no step"),
        ([{"name": ["fill_holes"]}], "unknown step"),
        (["fill_hole"], "unknown step 'fill_hole'. Did you mean `fill_holes`"),
        ([{"name": "fill_holes", "size": 3}], "fill_holes has no option 'size'"),
        ([{"name": "fill_holes", "classes": ["cap"]}], "no class 'cap'. Did you mean `cup`"),
        ([{"name": "fill_holes", "classes": "cup"}], "expected a list of names"),
        ([{"name": "minimum_size"}], "one of pixels, mm2 and mm3"),
        ([{"name": "minimum_size", "pixels": 3, "mm2": 3}], "one of pixels, mm2 and mm3"),
        ([{"name": "minimum_size", "pixels": 0}], "expected a number above 0"),
        ([{"name": "within", "inner": "cup"}], "name two classes"),
        ([{"name": "within", "inner": "cup", "outer": "disk"}], "no class 'disk'. Did you mean `disc`"),
        ([{"name": "within", "inner": "cup", "outer": "disc", "keep": "both"}], "expected outer or inner"),
    ],
)
def test_what_is_wrong_with_a_step_is_said(specs, message):
    with pytest.raises(ValueError, match=message):
        open_steps(specs, NESTED)


def test_classes_that_exclude_each_other_do_not_lie_within():
    with pytest.raises(ValueError, match=r"exclude each other\. Use format `multilabel`"):
        open_steps([{"name": "within", "inner": "cell", "outer": "debris"}], EXCLUSIVE)


def test_steps_and_thresholds_travel_with_the_bundle(tmp_path):
    small = {"decoder_channels": [16, 8, 8, 8, 8]}
    model = build_model("unet", "tu-test_resnet", NESTED, weights=None, **small)
    save_bundle(model, tmp_path / "m", score=1)
    assert load_model(tmp_path / "m").postprocess == ()
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    steps = open_steps(SPECS, NESTED)
    update_bundle(tmp_path / "m", NESTED.with_thresholds([0.25, 0.75]), steps, tuned={"split": "val"})
    again = load_model(tmp_path / "m")
    assert (again.postprocess, again.format.thresholds) == (steps, (0.25, 0.75))
    described = json.loads((tmp_path / "m" / "segkit.json").read_text())
    assert (described["score"], described["tuned"]) == (1, {"split": "val"})
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights
    described["postprocess"] = ["magic"]
    (tmp_path / "m" / "segkit.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"segkit.json: describes no model: postprocess: unknown step 'magic'"):
        load_model(tmp_path / "m")
    save_bundle(again, tmp_path / "n")
    assert load_model(tmp_path / "n").postprocess == steps
