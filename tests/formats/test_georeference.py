import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import tifffile

from segkit.formats.codecs import CODECS, open_codec
from segkit.formats.georeference import read_georeference
from segkit.formats.mask_format import MaskFormat

SIZE_HW = (5, 7)
UTM = (1024, 0, 1, 1), (1025, 0, 1, 1), (1026, 34737, 22, 0), (3072, 0, 1, 32633), (3076, 0, 1, 9001)
UTM_POINT = UTM[0], (1025, 0, 1, 2), *UTM[2:]
DEGREES = (1024, 0, 1, 2), (1025, 0, 1, 1), (2048, 0, 1, 4326), (2054, 0, 1, 9102)
# Lambert's azimuthal projection about a point of the user's: 32767 is "no code of EPSG".
OWN = (1024, 0, 1, 1), (1026, 34737, 22, 0), (2048, 0, 1, 4258), (3072, 0, 1, 32767), (3075, 0, 1, 10)
SCALE = (33550, "d", 3, (10.0, 20.0, 0.0), True)
TIEPOINT = (33922, "d", 6, (2.0, 1.0, 0.0, 500020.5, 4649756.25, 0.0), True)
MATRIX = (34264, "d", 16, (10.0, 2, 0, 500000.0, 3, -10.0, 0, 4600000.0, 0, 0, 0, 0, 0, 0, 0, 1), True)
# A pixel is 10 wide and 20 high, and point (2, 1) lies at (500020.5, 4649756.25).
CORNER = (500000.5, 10.0, 0.0, 4649776.25, 0.0, -20.0)


def keys(entries) -> tuple:
    directory = (1, 1, 0, len(entries), *(number for entry in entries for number in entry))
    return (34735, "H", len(directory), directory, True)


def write_geotiff(path, *tags, size_hw=SIZE_HW, text="WGS 84 / UTM zone 33N|", **options):
    """A GeoTIFF by the letter of OGC 19-008r4."""
    tags = (*tags, (34737, "s", 0, text, True), (42113, "s", 0, "0", True))
    pixels = np.ones((*size_hw, 4), np.uint16)
    tifffile.imwrite(path, pixels, extratags=tags, photometric="minisblack", planarconfig="contig", **options)
    return path


# GDAL 3.10 (rasterio 1.4.4) says the same of these files, of TIFF masks and of the sidecars; but for "no_epsg_code",
# where it makes a projection of the keys in TIFF masks as in the image, and knows only its name beside PNG masks.
@pytest.mark.parametrize(
    ("tags", "system", "transform"),
    [
        ((keys(UTM), SCALE, TIEPOINT), "EPSG:32633", CORNER),
        ((keys(UTM_POINT), SCALE, TIEPOINT), "EPSG:32633", (499995.5, 10.0, 0.0, 4649786.25, 0.0, -20.0)),
        ((keys(UTM), MATRIX), "EPSG:32633", (500000.0, 10.0, 2.0, 4600000.0, 3.0, -10.0)),
        ((keys(UTM_POINT), MATRIX), "EPSG:32633", (499994.0, 10.0, 2.0, 4600003.5, 3.0, -10.0)),
        ((keys(DEGREES), SCALE, TIEPOINT), "EPSG:4326", CORNER),
        ((keys(OWN), SCALE, TIEPOINT), 'LOCAL_CS["WGS 84 / UTM zone 33N",UNIT["metre",1]]', CORNER),
        ((SCALE, TIEPOINT), None, CORNER),
        ((keys(UTM), TIEPOINT), "EPSG:32633", None),
    ],
    ids=["area", "point", "rotated", "rotated_point", "degrees", "no_epsg_code", "no_system", "no_transform"],
)
@pytest.mark.parametrize("options", [{}, {"bigtiff": True, "byteorder": ">"}], ids=["tiff", "bigtiff"])
def test_system_and_transform_as_gdal_reads_them(tags, system, transform, options, tmp_path):
    found = read_georeference(write_geotiff(tmp_path / "a.tif", *tags, **options), SIZE_HW)
    assert (found.system, found.transform) == (system, transform)
    sidecar = ElementTree.fromstring(found.sidecar())
    assert sidecar.findtext("SRS") == system
    numbers = sidecar.findtext("GeoTransform")
    assert (numbers and tuple(map(float, numbers.split(",")))) == transform


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_a_tiff_mask_has_the_tags_of_its_input(suffix, tmp_path):
    like = write_geotiff(tmp_path / f"image{suffix}", keys(UTM), SCALE, TIEPOINT, bigtiff=True)
    masks = tmp_path / "masks"
    planes = np.ones((*SIZE_HW, 2), np.uint8)
    open_codec("tiff", MaskFormat.multilabel(["a", "b"])).write(masks, "a", planes, like=like)
    open_codec({"name": "threshold", "suffix": ".tif"}, MaskFormat.binary()).write(masks, "b", planes[..., :1], like)
    for mask in (masks / "a.tif", masks / "b.tif"):
        assert read_georeference(mask, SIZE_HW) == read_georeference(like, SIZE_HW)
        with tifffile.TiffFile(mask) as file:
            assert 42113 not in file.pages[0].tags, "what is no data in the image is a class in the mask"
    assert sorted(p.name for p in masks.iterdir()) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("codec_name", ["index_png", "palette_png", "color_png", "bit_planes", "threshold"])
def test_a_png_mask_has_a_sidecar(codec_name, tmp_path):
    like = write_geotiff(tmp_path / "image.tif", keys(UTM), SCALE, TIEPOINT)
    masks, planes = tmp_path / "masks", np.ones((*SIZE_HW, 1), np.uint8)
    codec = open_codec(codec_name, MaskFormat.binary())
    codec.write(masks, "night/a", planes, like=like)
    text = (masks / "night" / "a.png.aux.xml").read_text()
    assert "<SRS>EPSG:32633</SRS>" in text
    assert "<GeoTransform>500000.5, 10.0, 0.0, 4649776.25, 0.0, -20.0</GeoTransform>" in text
    assert codec.stems(masks) == ["night/a"]
    # Another image under the same name: what is known of the first is not true of the second.
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((*SIZE_HW, 3), np.uint8))
    codec.write(masks, "night/a", planes, like=tmp_path / "image.png")
    assert [p.name for p in (masks / "night").iterdir()] == ["a.png"]


def test_every_class_file_has_a_sidecar(tmp_path):
    like = write_geotiff(tmp_path / "image.tif", keys(UTM), SCALE, TIEPOINT)
    codec = open_codec("file_per_class", MaskFormat.multilabel(["a", "b"]))
    codec.write(tmp_path / "masks", "x", np.ones((*SIZE_HW, 2), np.uint8), like=like)
    found = sorted(p.relative_to(tmp_path / "masks").as_posix() for p in (tmp_path / "masks").rglob("*.*"))
    assert found == ["a/x.png", "a/x.png.aux.xml", "b/x.png", "b/x.png.aux.xml"]
    assert codec.stems(tmp_path / "masks") == ["x"]


@pytest.mark.parametrize("codec_name", sorted({"index_png", "file_per_class", "tiff", "threshold"} & set(CODECS)))
def test_a_georeference_of_another_size_is_refused(codec_name, tmp_path):
    like = write_geotiff(tmp_path / "image.tif", keys(UTM), SCALE, TIEPOINT)
    with pytest.raises(ValueError, match=r"image\.tif: is 5 x 7 .*its mask is 7 x 5.*size of its image"):
        open_codec(codec_name, MaskFormat.binary()).write(tmp_path, "a", np.zeros((7, 5, 1), np.uint8), like=like)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["image.tif"]


def test_images_without_a_georeference_have_none(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(SIZE_HW, np.uint8))
    (tmp_path / "b.jpg").write_bytes(cv2.imencode(".jpg", np.zeros(SIZE_HW, np.uint8))[1].tobytes())
    turned = write_geotiff(tmp_path / "c.tif", SCALE, TIEPOINT, (274, "H", 1, 6, True))
    a_series = tmp_path
    for like in (None, tmp_path / "a.tif", tmp_path / "b.jpg", turned, a_series):
        assert read_georeference(like, SIZE_HW) is None


def test_an_input_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.tif: the input of a mask cannot be read"):
        read_georeference(tmp_path / "gone.tif", SIZE_HW)
    (tmp_path / "half.tif").write_bytes(b"II*\0\x08")
    with pytest.raises(ValueError, match=r"half\.tif: its georeference cannot be read"):
        read_georeference(tmp_path / "half.tif", SIZE_HW)


def test_gdal_reads_what_is_kept(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    like = write_geotiff(tmp_path / "image.tif", keys(UTM), SCALE, TIEPOINT)
    planes = np.ones((*SIZE_HW, 1), np.uint8)
    for codec_name in ("tiff", "index_png"):
        open_codec(codec_name, MaskFormat.binary()).write(tmp_path / "masks", "a", planes, like=like)
    for path in (like, tmp_path / "masks" / "a.tif", tmp_path / "masks" / "a.png"):
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32633
            assert file.transform.to_gdal() == CORNER
