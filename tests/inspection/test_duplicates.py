import cv2
import numpy as np
import pytest

from segkit.data.images import find_images, read_image, resize_image
from segkit.inspection.duplicates import NEAR_BITS, Duplicate, Fingerprint, find_duplicates, fingerprint


def photo(seed: int, size_hw=(97, 131), bands=3) -> np.ndarray:
    """(H, W, bands) uint8: coarse random light under finer detail, as photographs have."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    image = np.zeros((height, width, bands))
    for cells, strength in ((3, 60), (8, 30), (24, 10)):
        coarse = rng.normal(0, strength, (cells, cells, bands)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(image.shape)
    return (image + 128).clip(0, 255).astype(np.uint8)


def recompressed(image: np.ndarray, quality=60) -> np.ndarray:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def brighter(image: np.ndarray) -> np.ndarray:
    return (image * 1.1 + 8).clip(0, 255).astype(np.uint8)


def half(image: np.ndarray) -> np.ndarray:
    return resize_image(image, (image.shape[0] // 2, image.shape[1] // 2))


COPIES = {"recompressed": recompressed, "brighter": brighter, "half": half}


def duplicates(images: dict, parts: dict | None = None) -> list[Duplicate]:
    return find_duplicates({key: fingerprint(image) for key, image in images.items()}, parts or dict(images))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 13])
def test_one_other_pixel_is_another_image_and_still_near(dtype, bands):
    image = photo(1, bands=bands).astype(dtype)
    changed = image.copy()
    changed[-1, -1, -1] += 1
    assert fingerprint(image) == fingerprint(image.copy())
    assert fingerprint(image).pixels != fingerprint(changed).pixels
    assert [d.kind for d in duplicates({"train": image, "test": changed}, {"train": "train", "test": "test"})] == [
        "near"
    ]


def test_equal_bytes_of_another_shape_or_dtype_are_not_equal():
    image = photo(2, (64, 96))
    assert fingerprint(image) != fingerprint(image.reshape(96, 64, 3))
    assert fingerprint(image) != fingerprint(image.reshape(-1).view(np.uint16).reshape(32, 96, 3))


def test_checksums_cover_all_of_an_image_larger_than_one_chunk():
    image = photo(3, (400, 900))  # 1,080,000 bytes, four chunks and a part
    seen = {fingerprint(image).pixels}
    for place in ((0, 0), (100, 0), (200, 500), (399, 899)):
        changed = image.copy()
        changed[place] ^= 1
        seen.add(fingerprint(changed).pixels)
    assert len(seen) == 5


def test_a_view_has_the_fingerprint_of_its_copy():
    image = photo(4)
    assert fingerprint(image[::2, ::-1]) == fingerprint(image[::2, ::-1].copy())


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_and_others_are_not(copy):
    images = {("train", n): photo(n) for n in range(40)}
    images |= {("test", n): COPIES[copy](photo(n)) for n in range(30, 60)}
    found = duplicates(images, {key: key[0] for key in images})
    expected = [("near", ("train", n), ("test", n), ("train", "test")) for n in range(30, 40)]
    assert [(d.kind, d.a, d.b, d.parts) for d in found] == expected


def test_a_group_of_equal_images_is_reported_once_each_with_the_first():
    same, other = photo(5), photo(6)
    parts = {"t1": "train", "v1": "val", "t2": "train", "o": "train", "v2": "val", "x1": "test"}
    images = {key: other if key == "o" else same for key in parts}
    found = duplicates(images, parts)
    assert [(d.kind, d.a, d.b, d.parts) for d in found] == [
        ("exact", "t1", "v1", ("train", "val")),
        ("exact", "t1", "v2", ("train", "val")),
        ("exact", "t1", "x1", ("train", "test")),
        ("exact", "t1", "t2", ("train", "train")),
    ]


def test_near_images_of_one_part_are_not_reported():
    images = {"a": photo(7), "b": recompressed(photo(7))}
    assert duplicates(images, {"a": "train", "b": "train"}) == []


def test_the_nearest_of_several_is_named():
    image = photo(8)
    turned = {"far": brighter(half(image)), "close": brighter(image), "test": image}
    bits = {key: np.unpackbits(np.frombuffer(fingerprint(i).hash, np.uint8)) for key, i in turned.items()}
    distance = {key: int((bits[key] != bits["test"]).sum()) for key in ("far", "close")}
    nearest = min(distance, key=distance.get)
    assert distance["far"] != distance["close"]
    found = duplicates(turned, {"far": "train", "close": "train", "test": "test"})
    assert [(d.a, d.b, d.bits) for d in found] == [(nearest, "test", distance[nearest])]


def test_frames_without_a_picture_are_near_to_nothing():
    noise = np.random.default_rng(0).integers(0, 3, (120, 90, 3)).astype(np.uint8)
    bar = np.zeros((120, 90, 3), np.uint8)
    bar[40:80] = 200
    lower_bar = np.zeros_like(bar)
    lower_bar[44:84] = 200
    # The faint pattern of a sensor in the dark, the same in every frame.
    pattern = 10_000 + (photo(9, bands=1) // 8).astype(np.uint16)
    images = {
        "pattern": pattern,
        "pattern 2": pattern + np.eye(*pattern.shape[:2], dtype=np.uint16)[..., None],
        "black": np.zeros((120, 90, 3), np.uint8),
        "dark": np.full((120, 90, 3), 4, np.uint8),
        "noise": noise,
        "noise 2": noise[::-1],
        "gray": np.full((60, 45, 1), 900, np.uint16),
        "air": np.full((60, 45, 1), -1024, np.float32),
        "bar": bar,
        "lower bar": lower_bar,
    }
    assert duplicates(images, {key: key for key in images}) == []
    again = {**images, "black again": np.zeros((120, 90, 3), np.uint8)}
    assert [(d.kind, d.a, d.b) for d in duplicates(again, {key: key for key in again})] == [
        ("exact", "black", "black again")
    ]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (5, 7)])
def test_images_of_few_pixels_have_a_fingerprint(size_hw):
    image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
    assert fingerprint(image) == fingerprint(image.copy())


@pytest.mark.parametrize(("flipped", "found"), [(0, 1), (NEAR_BITS, 1), (NEAR_BITS + 1, 0)])
@pytest.mark.parametrize("where", ["low", "high"])
def test_the_distance_counts_bits_wherever_they_are(flipped, found, where):
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (3000, 256)).astype(np.uint8)  # more than one block of rows and of columns
    bits[:, 255] = 0
    bits[2999] = bits[2600]
    bits[2999, :flipped] ^= where == "low"
    bits[2999, 255 - flipped : 255] ^= where == "high"
    prints = {n: Fingerprint((n,), np.packbits(row).tobytes()) for n, row in enumerate(bits)}
    pairs = find_duplicates(prints, {n: "train" if n < 2900 else "test" for n in prints})
    assert [(d.a, d.b, d.bits) for d in pairs] == [(2600, 2999, flipped)] * found


def test_nothing_and_one_part_give_nothing():
    assert find_duplicates({}, {}) == []
    assert duplicates({"a": photo(1), "b": photo(2)}, {"a": "train", "b": "train"}) == []


@pytest.mark.parametrize("name", ["camvid", "brats2d_nested", "dsb2018", "chase_db1"])
def test_splits_of_real_data_share_no_picture_and_copies_are_found(name, shared_data):
    prints, copied = {}, 0
    for part in ("train", "val", "test"):
        folder = shared_data / name / part / "images"
        refs = find_images(folder) if folder.is_dir() else {}
        for number, (stem, ref) in enumerate(refs.items()):
            if name == "camvid" and number % 4:  # every fourth, for time
                continue
            image = read_image(ref)
            prints[part, stem] = fingerprint(image)
            if part == "train" and number % 16 == 0:
                copied += 1
                for copy, change in COPIES.items():
                    prints[copy, stem] = fingerprint(change(image))
    own = {key: print for key, print in prints.items() if key[0] not in COPIES}
    assert find_duplicates(own, {key: key[0] for key in own}) == []
    for copy in COPIES:
        both = {key: print for key, print in prints.items() if key[0] in ("train", copy)}
        found = find_duplicates(both, {key: key[0] for key in both})
        assert copied > 1
        assert [d.a[1] for d in found] == [d.b[1] for d in found]
        assert len(found) == copied
