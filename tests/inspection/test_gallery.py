import numpy as np

from segkit.inspection.gallery import Shown, choose, make_gallery
from segkit.inspection.thumbnails import label_colors, make_thumbnail


def sample(number: int, **options) -> Shown:
    def read():
        image = np.full((40, 60, 3), number, np.uint8)
        return image, {"car": image[..., 0] > 200, "road": image[..., 0] < 100}

    return Shown("train" if number < 50 else "val", f"case{number}", read, **options)


def broken(stem: str, **options) -> Shown:
    def read():
        raise ValueError(f"{stem}.png: the file is empty.")

    return Shown("test", stem, read, **options)


def stems(samples) -> list[str]:
    return [each.stem for each in samples]


def test_few_samples_are_all_shown_in_order():
    samples = [sample(n, faults=["dark"] if n % 3 == 0 else ()) for n in range(20)]
    assert choose(samples, 20) == samples
    assert choose(samples, 300) == samples
    assert choose([], 10) == []


def test_many_samples_are_picked_evenly_from_all_over():
    samples = [sample(n) for n in range(100)]
    assert stems(choose(samples, 4)) == ["case0", "case25", "case50", "case75"]


def test_what_needs_a_look_is_shown_and_room_stays_for_the_rest():
    samples = [sample(n, faults=["dark"] if n in (7, 8) else (), wanted=n == 91) for n in range(100)]
    assert stems(choose(samples, 6)) == ["case0", "case7", "case8", "case34", "case66", "case91"]
    all_dark = [sample(n, faults=["dark"] if n >= 10 else ()) for n in range(100)]
    shown = choose(all_dark, 30)
    assert len(shown) == 30
    assert sum(bool(each.faults) for each in shown) == 20
    only_dark = [sample(n, faults=["dark"]) for n in range(100)]
    assert len(choose(only_dark, 30)) == 30


def test_pictures_carry_names_faults_and_colours():
    colors = label_colors(["background", "car", "road"])
    first, second = make_gallery([sample(20, faults=["dark"]), sample(220)], colors, workers=1)
    assert (first.stem, first.part, first.faults, first.classes) == ("case20", "train", ("dark",), ("road",))
    assert (second.stem, second.part, second.faults, second.classes) == ("case220", "val", (), ("car",))
    image, masks = sample(20).read()
    assert first == make_thumbnail("case20", "train", image, masks, colors, ["dark"])
    assert first.overlay != make_thumbnail("case20", "train", image, masks).overlay


def test_what_cannot_be_read_is_shown_without_a_picture():
    first, second, third = make_gallery([broken("a"), sample(1), broken("b", faults=["cut short"])])
    assert (first.stem, first.part, first.image, first.faults) == ("a", "test", b"", ("cannot be read",))
    assert second.image
    assert third.faults == ("cut short",)
