import numpy as np
import pytest
import tifffile

from segkit.data.images import find_images, read_image

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 5000, (20, 30, 13), dtype=np.uint16)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [3, 4, 13])
def test_interleaved_and_planar_are_the_same_image(tmp_path, bands, planar, compression):
    image = BANDS[..., :bands]
    stored = image if planar == "contig" else np.moveaxis(image, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig=planar, compression=compression)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image)


def test_a_page_for_each_band(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(BANDS, -1, 0), photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), BANDS)


def test_bands_last_stored_as_pages(tmp_path):
    # What `tifffile.imwrite(path, array)` makes of (20, 30, 13): 20 pages of 30 x 13.
    tifffile.imwrite(tmp_path / "a.tif", BANDS, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), BANDS)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_other_depths_become_float32(tmp_path, dtype, order):
    image = RNG.normal(0, 300, (20, 30)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, byteorder=order)
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[..., 0], image.astype(np.float32))


def test_big_endian_uint16_is_native_in_memory(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", BANDS[..., 0], byteorder=">")
    read = read_image(tmp_path / "a.tif")
    assert read.dtype.isnative
    np.testing.assert_array_equal(read[..., 0], BANDS[..., 0])


def test_four_8_bit_bands_without_alpha_are_kept(tmp_path):
    image = RNG.integers(0, 255, (20, 30, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "nir.tif", image, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_image(tmp_path / "nir.tif"), image)
    tifffile.imwrite(tmp_path / "alpha.tif", image, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.tif"), image[..., :3])


def test_white_is_zero(tmp_path):
    image = RNG.integers(0, 255, (20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", gray=True)[..., 0], 255 - image)


def test_a_stack_in_time_is_no_image(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 4, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"a\.tif: the file holds an array of shape \(5, 4, 20, 30\)"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_a_file_cut_short_is_refused(tmp_path, compression):
    # tifffile alone gives black pixels for JPEG strips behind the end of the file.
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.integers(0, 255, (300, 200, 3), np.uint8), compression=compression, photometric="rgb")
    assert read_image(path).shape == (300, 200, 3)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"a\.tif: the file is cut short: data up to byte"):
        read_image(path)


def test_nan_is_refused(tmp_path):
    image = np.ones((20, 30), np.float32)
    image[3, 4] = np.inf
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(ValueError, match=r"a\.tif: 1 values are NaN or infinite"):
        read_image(tmp_path / "a.tif")


def test_real_sentinel2_has_13_bands(shared_data):
    refs = find_images(shared_data / "sentinel2" / "images")
    image = read_image(next(iter(refs.values())))
    assert (image.shape, image.dtype) == ((101, 100, 13), np.uint16)
    # Reflectance of neighbouring pixels is alike within a band, not across bands.
    along = np.abs(np.diff(image.astype(int), axis=0)).mean()
    across = np.abs(np.diff(image.astype(int), axis=2)).mean()
    assert along < across
