"""Masks that are written in pieces: read back, tiled, whole or not at all."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tifffile

from segkit.formats.codecs import CODECS, open_codec
from segkit.formats.georeference import read_georeference
from segkit.formats.mask_format import MaskFormat
from tests.formats.test_georeference import SCALE, TIEPOINT, UTM, keys, write_geotiff

RNG = np.random.default_rng(0)
FORMATS = {
    "binary": MaskFormat.binary(),
    "multilabel": MaskFormat.multilabel(["a", "b", "c"]),
    "multiclass": MaskFormat.multiclass(range(12), "sigmoid", 0.5),
    "many": MaskFormat.multiclass(range(300)),
}


def planes_of(format: MaskFormat, size_hw) -> np.ndarray:
    most = 2 if format.num_planes > 1 or format.num_classes == 1 else format.num_classes
    return RNG.integers(0, most, (*size_hw, format.num_planes)).astype(format.dtype)


def write_pieces(codec, folder, planes, columns=((0, 512), (512, 1024), (1024, 1100)), like=None):
    """Panel by panel, in bands that end anywhere."""
    with codec.writing(folder, "deep/a", planes.shape[:2], like) as put:
        for start, stop in columns:
            edges = [0, 1, 300, 512, 513, 1300, len(planes)]
            for top, bottom in pairwise(edges):
                put(slice(top, bottom), slice(start, stop), planes[top:bottom, start:stop])


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_are_read_back(tmp_path, name):
    format = FORMATS[name]
    codec = open_codec({"name": "tiff", "ignored_values": [700 if name == "many" else 200]}, format)
    planes = planes_of(format, (1310, 1100))
    planes[3, 5] = format.ignore_index
    write_pieces(codec, tmp_path, planes)
    np.testing.assert_array_equal(codec.read(tmp_path, "deep/a"), planes)
    with tifffile.TiffFile(tmp_path / "deep/a.tif") as file:
        assert file.is_bigtiff
        assert len(file.pages) == format.num_planes
        assert all(page.is_tiled and page.compression == 8 for page in file.pages)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.tif"]


def test_two_runs_write_the_same_bytes(tmp_path):
    codec = open_codec("tiff", FORMATS["multilabel"])
    planes = planes_of(codec.format, (1310, 1100))
    write_pieces(codec, tmp_path / "one", planes)
    write_pieces(codec, tmp_path / "two", planes, columns=((0, 1100),))
    assert (tmp_path / "one/deep/a.tif").read_bytes() == (tmp_path / "two/deep/a.tif").read_bytes()


def test_values_and_georeference_are_those_of_masks_written_whole(tmp_path):
    codec = open_codec({"name": "tiff", "values": {7: "foreground"}}, FORMATS["binary"])
    planes = planes_of(codec.format, (1310, 1100))
    image = write_geotiff(tmp_path / "in.tif", keys(UTM), SCALE, TIEPOINT, size_hw=planes.shape[:2])
    write_pieces(codec, tmp_path / "pieces", planes, like=image)
    codec.write(tmp_path / "whole", "deep/a", planes, like=image)
    paths = [tmp_path / name / "deep/a.tif" for name in ("pieces", "whole")]
    first, second = (tifffile.imread(path) for path in paths)
    np.testing.assert_array_equal(first, second)
    assert set(np.unique(first)) == {0, 7}
    found = [read_georeference(path, planes.shape[:2]) for path in paths]
    assert found[0] == found[1] == read_georeference(image, planes.shape[:2])
    with pytest.raises(ValueError, match="its georeference would be wrong"):
        write_pieces(codec, tmp_path, planes[:1301], like=image)


def test_a_run_that_ends_in_between_leaves_nothing(tmp_path):
    codec = open_codec("tiff", FORMATS["binary"])
    planes = planes_of(codec.format, (1310, 1100))
    write_pieces(codec, tmp_path, planes)
    before = (tmp_path / "deep/a.tif").read_bytes()
    planes[1305, 3] = 9
    with pytest.raises(ValueError, match=r"a\.tif: .*9"):
        write_pieces(codec, tmp_path, planes)
    assert (tmp_path / "deep/a.tif").read_bytes() == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.tif"]


def test_codecs_of_whole_masks_say_which_one_takes_pieces(tmp_path):
    format = MaskFormat.multilabel(["a", "b"])
    for name in ("file_per_class", "bit_planes", "coco"):
        assert not CODECS[name].writes_pieces
        with pytest.raises(ValueError, match=rf"a: a mask of 9x7 .*{name}.* writes whole masks only.*--codec tiff"):
            open_codec(name, format).writing(tmp_path, "a", (9, 7))
    assert CODECS["tiff"].writes_pieces
