from __future__ import annotations

import numpy as np
import pytest

from segkit.data.images import read_image
from segkit.formats.codecs import open_codec
from segkit.formats.limits import max_pixels, max_voxels
from segkit.formats.mask_format import MaskFormat
from segkit.formats.png_files import encode_png, read_png


def test_limits_without_the_variable(monkeypatch):
    monkeypatch.delenv("SEGKIT_MAX_PIXELS", raising=False)
    assert (max_pixels(), max_voxels()) == (1073741824, 2147483648)


@pytest.mark.parametrize("text", ["0", "-5", "many", "1e6"])
def test_a_limit_is_a_whole_number(monkeypatch, text):
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", text)
    with pytest.raises(ValueError, match=r"SEGKIT_MAX_PIXELS is .* expected a number of pixels"):
        max_pixels()


@pytest.mark.parametrize("read", [read_png, read_image])
def test_a_picture_beyond_the_limit_is_refused(tmp_path, monkeypatch, read):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(np.zeros((7, 9), np.uint8)))
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "63")
    read(path)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "62")
    with pytest.raises(ValueError, match=r"a\.png.*declares.*62"):
        read(path)


@pytest.mark.parametrize("codec", ["index_png", "tiff", "threshold", "labelme", "coco", "nifti"])
def test_every_kind_of_mask_beyond_the_limit_says_how_to_read_it(codec, tmp_path, monkeypatch):
    masks = open_codec(codec, MaskFormat.binary("nucleus"))
    stem = "a@z000" if codec == "nifti" else "a"
    masks.write(tmp_path, stem, np.zeros((7, 9, 1), np.uint8))
    masks.finish(tmp_path)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "62")
    with pytest.raises(ValueError, match=r"(a\.|annotations).*62.*raise SEGKIT_MAX_PIXELS to read more"):
        masks.read(tmp_path, stem)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "63")
    masks.read(tmp_path, stem)
