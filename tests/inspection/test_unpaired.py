"""Images and masks that do not find each other by name."""

from __future__ import annotations

import pytest

from segkit.inspection.unpaired import guess_patterns
from tests.inspection.sets import blocks, look, write_masks


@pytest.mark.parametrize(
    ("images", "masks", "patterns"),
    [
        (["Image_01L", "Image_02R"], ["Image_01L_1stHO", "Image_02R_1stHO"], ("{stem}", "{stem}_1stHO")),
        (["21_training", "22_training"], ["21_manual1", "22_manual1"], ("{stem}_training", "{stem}_manual1")),
        (["img_a", "img_b"], ["mask_a", "mask_b"], ("img_{stem}", "mask_{stem}")),
        (["p1@z000", "p1@z001"], ["seg_p1@z000", "seg_p1@z001"], ("{stem}", "seg_{stem}")),
        ([f"i{n:03d}" for n in range(40)], [f"i{n:03d}_m" for n in range(9, 40)], ("{stem}", "{stem}_m")),
        (["a", "b"], ["c", "d"], None),
        (["cat1", "cat2", "cat3"], ["dog7", "dog8", "dog9"], None),
        (["x/img1", "x/img2"], ["x/lbl1", "x/lbl2"], None),  # which no pattern can say
    ],
)
def test_patterns_are_guessed_where_most_names_fit(images, masks, patterns):
    assert guess_patterns(images, masks) == patterns


def test_the_message_says_what_to_type(tmp_path):
    root = write_masks(tmp_path, {f"s{n}": blocks([0, 255]) for n in range(4)})
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    with pytest.raises(
        ValueError, match=r"'s0' and the mask 's0_mask'\)\. Most would with --mask-pattern '{stem}_mask'"
    ):
        look(root)
    assert look(root, mask_pattern="{stem}_mask").report["masks"] == 4


def test_no_images_are_no_fault_of_masks(tmp_path):
    root = write_masks(tmp_path, {"a": blocks([0, 1])})
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"images: no images here\. The masks are in .*masks"):
        look(root)
