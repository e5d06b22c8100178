import io

import cv2
import nibabel
import numpy as np
import pytest
from PIL import Image

from segkit.data.images import (
    ImageRef,
    find_images,
    image_refs,
    image_spacing_mm,
    read_image,
    resize_image,
    resize_planes,
)
from segkit.ops.sizes import fit_size

# Smooth, with another value in every corner and band, so that turned, mirrored or swapped pictures differ.
ROWS, COLUMNS = np.mgrid[:40, :64]
PICTURE = np.stack([3 * ROWS, 2 * COLUMNS, 200 - ROWS - COLUMNS], axis=2).astype(np.uint8)
GRAY = PICTURE[..., 0]


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".PNG", ".ppm"])
def test_rgb_is_read_in_the_order_red_green_blue(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", PICTURE, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_jpeg_is_close_and_in_order(tmp_path):
    image = read_image(save(tmp_path / "a.jpg", PICTURE, quality=95))
    assert np.abs(image.astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_gray_is_repeated_or_kept_as_one_band(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", GRAY)
    np.testing.assert_array_equal(read_image(path), np.dstack([GRAY] * 3))
    np.testing.assert_array_equal(read_image(path, gray=True), GRAY[..., None])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colour", [PICTURE, GRAY[..., None]], ids=["rgba", "gray+alpha"])
def test_alpha_is_dropped(tmp_path, suffix, colour):
    alpha = np.full((*GRAY.shape, 1), 9, np.uint8)
    path = save(tmp_path / f"a{suffix}", np.concatenate([colour, alpha], 2))
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(colour, PICTURE.shape))


def test_rgb_as_gray_has_one_band_of_brightness(tmp_path):
    image = read_image(save(tmp_path / "a.png", PICTURE), gray=True)
    expected = PICTURE @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image[..., 0], expected, atol=1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_a_palette_is_read_as_its_colours(tmp_path, suffix):
    picture = Image.fromarray(np.where(GRAY > 50, 1, 0).astype(np.uint8)).convert("P")
    picture.putpalette([250, 10, 20, 30, 40, 200] + [0] * 762)
    picture.save(tmp_path / f"a{suffix}")
    expected = np.where(GRAY[..., None] > 50, [30, 40, 200], [250, 10, 20])
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_is_black_and_white(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", GRAY > 50)
    np.testing.assert_array_equal(read_image(path, gray=True)[..., 0], np.where(GRAY > 50, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_keeps_its_values_and_its_one_band(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", GRAY.astype(np.uint16) * 300)
    image = read_image(path)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[..., 0], GRAY.astype(np.uint16) * 300)


def test_16_bit_png_colours_are_red_green_blue(tmp_path):
    colours = PICTURE.astype(np.uint16) * 300
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(colours, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours)


@pytest.mark.parametrize("suffix", [".pgm", ".jp2"])
def test_16_bit_gray_of_other_files_keeps_its_values(tmp_path, suffix):
    stored = GRAY.astype(np.uint16) * 300 + 7
    cv2.imwrite(str(tmp_path / f"a{suffix}"), stored)
    for gray in (False, True):
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}", gray), stored[..., None])


@pytest.mark.parametrize("suffix", [".ppm", ".jp2"])
def test_16_bit_colours_of_other_files_are_red_green_blue(tmp_path, suffix):
    colours = PICTURE.astype(np.uint16) * 300
    cv2.imwrite(str(tmp_path / f"a{suffix}"), cv2.cvtColor(colours, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), colours)


@pytest.mark.parametrize("suffix", [".pgm", ".jp2"])
def test_8_bit_gray_of_other_files_is_repeated(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"a{suffix}"), GRAY)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.dstack([GRAY] * 3))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}", gray=True), GRAY[..., None])


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 2}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_jpeg_has_the_pixels_that_opencv_decodes(tmp_path, mode, options, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.jpg", exif=exif, **options)
    expected = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR)[..., ::-1]
    # Another decoder of the same library: equal here, and never further apart than its builds are.
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_a_camera_noted_is_applied(tmp_path, suffix, orientation):
    upright = Image.fromarray(PICTURE)
    # How the upright picture lies in the file, from the EXIF table of orientations.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    options = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    stored.save(tmp_path / f"a{suffix}", exif=exif, **options)
    image = read_image(tmp_path / f"a{suffix}")
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).mean() < 2


def test_cmyk_jpeg_shows_its_colours(tmp_path):
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).mean() < 4


# Bad files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_a_file_cut_short_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"a\{suffix}: .*Copy it again, .*or leave it out with `quarantine`"):
        read_image(path)


def test_a_jpeg_cut_short_behind_a_whole_thumbnail_is_refused(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(PICTURE[:16, :16]).save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + thumbnail.getvalue()
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    path = save(tmp_path / "a.jpg", noise, exif=exif)
    assert read_image(path).shape == noise.shape
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="end mark of JPEG is missing"):
        read_image(path)


def test_a_damaged_png_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: the file is damaged"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_no_image_is_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\{suffix}: the file (is empty|cannot be decoded)"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png: cannot be read"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_a_header_that_asks_for_too_much_is_refused_before_decoding(tmp_path, monkeypatch, suffix):
    path = save(tmp_path / f"a{suffix}", PICTURE)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 64 - 1))
    with pytest.raises(ValueError, match=r"declares 40x64.*expected 1 to 2559"):
        read_image(path)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 64))
    assert read_image(path).shape == PICTURE.shape


def test_a_bomb_is_refused_without_its_memory(tmp_path):
    data = bytearray(save(tmp_path / "a.png", GRAY).read_bytes())
    data[16:24] = (200_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match="declares 200000x200000 pixels"):
        read_image(tmp_path / "a.png")


# Volumes -----------------------------------------------------------------------------------------------


def save_volume(path, array, zooms=(1.0, 2.0, 3.0)):
    image = nibabel.Nifti1Image(array, np.diag([*zooms, 1]))
    image.header.set_zooms(zooms + (1.0,) * (array.ndim - 3))
    nibabel.save(image, path)


def test_a_volume_gives_one_image_per_slice(tmp_path):
    array = np.random.default_rng(0).normal(0, 900, (5, 7, 4)).astype(np.int16)
    (tmp_path / "in").mkdir()
    save_volume(tmp_path / "in" / "case.nii.gz", array)
    refs = find_images(tmp_path)
    assert list(refs) == [f"in/case@z00{i}" for i in range(4)]
    image = read_image(refs["in/case@z002"])
    assert image.dtype == np.float32
    # rows along y, columns along x
    np.testing.assert_array_equal(image[..., 0], array[:, :, 2].T)
    assert image_spacing_mm(refs["in/case@z002"]) == (2.0, 1.0)
    assert list(find_images(tmp_path, axis="x")) == [f"in/case@x00{i}" for i in range(5)]
    assert read_image(find_images(tmp_path, axis="x")["in/case@x000"]).shape == (4, 7, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_slices_keep_these_depths(tmp_path, dtype):
    save_volume(tmp_path / "case.nii", np.arange(24, dtype=dtype).reshape(2, 3, 4))
    image = read_image(ImageRef(tmp_path / "case.nii", "z", 1))
    assert (image.dtype, image.shape) == (dtype, (3, 2, 1))


def test_a_volume_of_several_bands_keeps_them(tmp_path):
    save_volume(tmp_path / "case.nii", np.random.default_rng(0).random((4, 5, 3, 2)).astype(np.float32))
    assert read_image(ImageRef(tmp_path / "case.nii", "z", 0)).shape == (5, 4, 2)


def test_a_volume_asked_for_as_an_image_says_what_to_do(tmp_path):
    save_volume(tmp_path / "case.nii", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="take the references of `find_images`"):
        read_image(tmp_path / "case.nii")


def test_nan_is_refused(tmp_path):
    array = np.zeros((4, 5, 3), np.float32)
    array[1, 1, 1] = np.nan
    save_volume(tmp_path / "case.nii", array)
    assert read_image(ImageRef(tmp_path / "case.nii", "z", 0)).max() == 0
    with pytest.raises(ValueError, match=r"case.nii \(slice z1\): 1 values are NaN or infinite"):
        read_image(ImageRef(tmp_path / "case.nii", "z", 1))


# Folders -----------------------------------------------------------------------------------------------


def test_find_images_is_sorted_recursive_and_blind_to_other_files(tmp_path):
    for name in ("b.PNG", "a.jpg", "night/c.d.tif", "_overlay/a.png", ".hidden.png", "notes.txt", "_journal.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    refs = find_images(tmp_path)
    assert list(refs) == ["a", "b", "night/c.d"]
    assert refs["night/c.d"] == ImageRef(tmp_path / "night" / "c.d.tif")


def test_two_images_of_one_stem_are_both_named(tmp_path):
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"two images are named 'a': a\.jpg and a\.png"):
        find_images(tmp_path)


def test_a_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no such folder\. Did you mean .*images"):
        find_images(tmp_path / "image")


def test_a_single_file_may_have_any_suffix(tmp_path):
    save(tmp_path / "a.jpe", PICTURE, format="JPEG")
    assert list(image_refs(tmp_path, tmp_path / "a.jpe")) == []
    assert list(image_refs(tmp_path, tmp_path / "a.jpe", any_suffix=True)) == [("a", ImageRef(tmp_path / "a.jpe"))]


# Sizes -------------------------------------------------------------------------------------------------


def test_fit_size():
    assert fit_size((30, 60), [7, 9]) == (7, 9)
    assert fit_size((30, 60), 40) == (20, 40)
    assert fit_size((60, 30), 40) == (40, 20)
    assert fit_size((1, 1000), 10) == (1, 10)
    for wrong in (0, -3, [3], [3, 0], "64", 2.5, True):
        with pytest.raises(ValueError, match="resize is"):
            fit_size((30, 60), wrong)


@pytest.mark.parametrize("bands", [1, 3, 13, 300])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size_hw", [(7, 9), (40, 50), (7, 50), (20, 9)])
def test_resize_keeps_dtype_bands_and_mean(bands, dtype, size_hw):
    image = (np.random.default_rng(0).random((20, 30, bands)) * 200).astype(dtype)
    resized = resize_image(image, size_hw)
    assert (resized.shape, resized.dtype) == ((*size_hw, bands), dtype)
    np.testing.assert_allclose(resized.mean((0, 1)), image.mean((0, 1)), rtol=0.1)


def test_shrinking_averages_over_areas():
    #   0 100 | 8 8        a plain bilinear or nearest pick of [0, 0] would give 0
    #   0 100 | 8 8
    image = np.array([[0, 100, 8, 8]] * 2, np.uint8)[..., None]
    assert resize_image(image, (1, 2)).ravel().tolist() == [50, 8]


def test_planes_take_the_value_at_the_centre():
    planes = np.array([[0, 7, 0, 0, 9, 255]], np.uint8)[..., None]
    assert resize_planes(planes, (1, 2)).ravel().tolist() == [7, 9]
    assert resize_planes(planes, (2, 3))[1].ravel().tolist() == [7, 0, 255]
    assert resize_planes(planes, (1, 12)).ravel().tolist() == np.repeat(planes.ravel(), 2).tolist()


def test_planes_stay_under_their_image():
    # An image painted from its mask: resized, the mask is where the image is bright.
    planes = np.zeros((60, 90, 1), np.uint8)
    planes[21:39, 30:75] = 1
    for size_hw in ((20, 30), (35, 41), (120, 200)):
        image = resize_image(planes * 200, size_hw)
        beside = (resize_planes(planes, size_hw) == 1) != (image > 100)
        # The four corners may differ; the upper left pick of INTER_NEAREST differs along whole edges.
        assert beside.sum() <= 4, size_hw


def test_real_camvid_webp(shared_data):
    refs = find_images(shared_data / "camvid" / "val" / "images")
    image = read_image(next(iter(refs.values())))
    assert (image.shape, image.dtype) == ((360, 480, 3), np.uint8)
    with Image.open(next(iter(refs.values())).path) as picture:
        np.testing.assert_array_equal(image, np.asarray(picture))


def test_real_dsb2018_gray_and_colour(shared_data):
    refs = find_images(shared_data / "dsb2018" / "test" / "images").values()
    assert {read_image(r).shape[2] for r in refs} == {3}
    assert {read_image(r, gray=True).shape[2] for r in refs} == {1}
