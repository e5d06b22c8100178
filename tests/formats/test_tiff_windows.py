"""Windows of TIFF files are what the whole file says there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tifffile

from segkit.data.images import read_image
from segkit.formats import tiff_windows
from segkit.formats.tiff_windows import TiffWindows, tiff_size_hw

RNG = np.random.default_rng(0)
SIZE_HW = (150, 210)
LAYOUTS = {
    "one strip": {"rowsperstrip": 150},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (64, 32)},
    "deflate": {"compression": "zlib", "rowsperstrip": 16},
    "deflated tiles": {"compression": "zlib", "tile": (48, 64), "predictor": True},
    "big": {"bigtiff": True, "tile": (64, 64), "byteorder": ">"},
    "lzw": {"compression": "lzw", "tile": (256, 256)},
}


def image_of(dtype: str, bands: int) -> np.ndarray:
    values = (
        RNG.normal(100, 50, (*SIZE_HW, bands)) if dtype.startswith("f") else RNG.integers(0, 250, (*SIZE_HW, bands))
    )
    return values.astype(dtype)


def check_windows(path, gray: bool | None = False, columns: slice | None = None) -> None:
    """All windows of a grid, line by line, and some that jump."""
    whole = read_image(path, gray=bool(gray))
    with TiffWindows(path, gray) as file:
        assert file.size_hw == whole.shape[:2]
        start, stop = 0, whole.shape[1]
        if columns is not None:
            file.keep(columns)
            start, stop = columns.start, columns.stop
        lines = [(0, 40), (30, 70), (60, 100), (149, 150), (0, 150), (100, 140), (0, 1)]
        across = [(start, start + 50), (start + 33, start + 83), (stop - 1, stop), (start, stop)]
        for rows, place in itertools.product(lines, across):
            window = file.read(slice(*rows), slice(*place))
            np.testing.assert_array_equal(window, whole[slice(*rows), slice(*place)])
            assert window.dtype == whole.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "bands"), [("u1", 1), ("u1", 3), ("u2", 5), ("f4", 2), ("i2", 1)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_windows_are_parts_of_the_whole(tmp_path, layout, dtype, bands, planar):
    image = image_of(dtype, bands)
    options = dict(LAYOUTS[layout])
    if bands == 1:
        image = image[..., 0]
    else:
        image, options["planarconfig"] = np.moveaxis(image, 2, 0) if planar == "separate" else image, planar
    colours = "rgb" if (dtype, bands) == ("u1", 3) else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", image, photometric=colours, metadata=None, **options)
    check_windows(tmp_path / "a.tif")
    check_windows(tmp_path / "a.tif", columns=slice(70, 170))
    assert tiff_size_hw(tmp_path / "a.tif") == SIZE_HW


def test_kinds_of_colours(tmp_path):
    path = tmp_path / "a.tif"
    tile = {"tile": (64, 64)}
    tifffile.imwrite(path, image_of("u1", 3), photometric="rgb", **tile)
    check_windows(path, gray=True)
    tifffile.imwrite(path, image_of("u1", 4), photometric="rgb", extrasamples=["unassalpha"], **tile)
    check_windows(path)
    tifffile.imwrite(path, image_of("u1", 4), photometric="separated", **tile)
    check_windows(path)
    tifffile.imwrite(path, image_of("u1", 1)[..., 0], photometric="miniswhite", **tile)
    check_windows(path)
    palette = RNG.integers(0, 65535, (3, 256), dtype=np.uint16)
    tifffile.imwrite(path, image_of("u1", 1)[..., 0], photometric="palette", colormap=palette, **tile)
    check_windows(path)
    tifffile.imwrite(path, image_of("u1", 3), photometric="ycbcr", compression="jpeg", **tile)
    check_windows(path)
    tifffile.imwrite(path, image_of("u1", 1)[..., 0] > 100, compression="zlib")
    check_windows(path)


def test_pages_are_bands(tmp_path):
    image = image_of("u2", 4)
    for options in ({}, {"compression": "zlib", "tile": (64, 64)}):
        tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(image, 2, 0), photometric="minisblack", **options)
        check_windows(tmp_path / "a.tif")


def test_empty_tiles_hold_zeros(tmp_path):
    tiles = [np.full((64, 64), 7, np.uint8), None, np.full((64, 64), 9, np.uint8), None]
    tifffile.imwrite(
        tmp_path / "a.tif", iter(tiles), shape=(100, 128), dtype=np.uint8, tile=(64, 64), compression="zlib"
    )
    with TiffWindows(tmp_path / "a.tif", gray=True) as file:
        window = file.read(slice(50, 100), slice(60, 70))[..., 0]
    assert window[:14, :4].tolist() == [[7] * 4] * 14
    assert window[14:, :4].tolist() == [[9] * 4] * 36
    assert not window[:, 4:].any()


def test_parts_are_kept_for_one_line_of_windows(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", image_of("u1", 3), tile=(32, 32), compression="zlib")
    decoded = []
    original = TiffWindows._decode
    monkeypatch.setattr(TiffWindows, "_decode", lambda *args: decoded.append(args[2]) or original(*args))
    with TiffWindows(tmp_path / "a.tif") as file:
        for left in (0, 48, 96, 146):
            file.read(slice(0, 64), slice(left, left + 64))
        assert sorted(decoded) == list(range(14))  # two lines of seven tiles, each once
        file.read(slice(48, 112), slice(0, 64))
        assert sorted(decoded[14:]) == [14, 15, 21, 22]  # the second line was kept, the first is gone
        assert {part.top for part in file._parts.values()} == {32, 64, 96}
        file.read(slice(0, 64), slice(0, 64))
        assert sorted(decoded[18:]) == [0, 1]


def test_of_strips_only_the_columns_are_kept(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", image_of("u1", 3), rowsperstrip=16, compression="zlib")
    with TiffWindows(tmp_path / "a.tif") as file:
        file.keep(slice(50, 90))
        file.read(slice(0, 64), slice(60, 80))
        assert {part.samples.shape for part in file._parts.values()} == {(16, 40, 3)}
        assert all(part.samples.base is None for part in file._parts.values())


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"extratags": [(274, "H", 1, 6, True)]}, (20, 30), r"is stored turned \(tag Orientation\)"),
        ({"photometric": "cielab"}, (20, 30, 3), "has colours of kind 8"),
        ({"photometric": "rgb"}, (4, 20, 30, 3), r"array of shape 4x20x30x3 \(axes .*\), expected one picture"),
        ({"photometric": "minisblack", "metadata": None}, (20, 30, 5), "20 pages of 30x5, expected a page per band"),
    ],
)
def test_what_is_no_plain_picture_is_refused(tmp_path, options, shape, message):
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, np.uint8), **options)
    with pytest.raises(ValueError, match=rf"a\.tif: the file .*{message}"):
        TiffWindows(tmp_path / "a.tif")


def test_damage_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image_of("u1", 3), tile=(64, 64), compression="zlib")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.tif: the file"):
        TiffWindows(path)
    path.write_bytes(b"GIF89a")
    assert tiff_size_hw(path) is None
    with pytest.raises(ValueError, match=r"a\.tif: the file cannot be decoded"):
        TiffWindows(path)
    path.write_bytes(whole)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[3]
    path.write_bytes(whole[:offset] + b"\xff" * 40 + whole[offset + 40 :])
    with TiffWindows(path) as file, pytest.raises(ValueError, match=r"a\.tif: the file cannot be decoded"):
        file.read(slice(0, 64), slice(192, 210))
    path.write_bytes(whole)
    monkeypatch.setattr(tiff_windows, "_MAX_PART_BYTES", 3 * 64 * 64 - 1)
    with pytest.raises(ValueError, match="is compressed in parts of 0 MiB"):
        TiffWindows(path)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "1968")
    with pytest.raises(ValueError, match=r"declares 150x210 pixels, expected 1 to 31488"):
        TiffWindows(path)


def test_values_that_are_not_finite_are_named(tmp_path):
    image = image_of("f4", 1)[..., 0]
    image[100, 100] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with TiffWindows(tmp_path / "a.tif") as file:
        file.read(slice(0, 100), slice(0, 210))
        with pytest.raises(ValueError, match=r"a\.tif: values in rows 90 to 120 are NaN"):
            file.read(slice(90, 120), slice(90, 120))
