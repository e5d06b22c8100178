"""TIFF files of labels: samples as they are stored, of one page or several, and written whole.

tifffile decodes. What it takes on trust is checked before: pixels and pages that the file declares, and that all data
lie within the file, for it fills what lies behind the end with zeros.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.files import read_whole, write_whole
from segkit.formats.georeference import Georeference
from segkit.formats.image_checks import is_tiff
from segkit.formats.image_pixels import upright
from segkit.formats.limits import RAISE_LIMIT, max_pixels

PAGE_NAME, _ORIENTATION = 285, 274
# Smaller copies of a page (overviews of GeoTIFFs) and masks of transparency, which hold no labels.
_REDUCED, _TRANSPARENCY = 1, 4


@dataclass(frozen=True, eq=False)
class TiffLayers:
    """What a TIFF file stores.

    Attributes:
        samples: (H, W, N) of N pages, or of a page with N samples per pixel; bool where they have one bit.
        names: of the N pages; empty where a page has no name.
    """

    samples: np.ndarray
    names: tuple[str, ...]


def read_layers(path: str | Path, most: int) -> TiffLayers:
    """The samples of a TIFF file of at most `most` pages; any compression, tiles or strips, either byte order.

    Raises:
        ValueError: names the file: missing, no TIFF, cut short, damaged, too large, more pages or pages that differ.
    """
    # Imported here: tifffile costs 0.1 s, and most data sets hold no TIFF.
    import tifffile

    from segkit.formats.tiff_files import Refused, check_chain, check_page

    content = read_whole(path)
    if not is_tiff(content):
        raise ValueError(f"{path}: is no TIFF file, whatever its name says. Save the mask as TIFF.")
    # Damage is raised below with the name of the file; tifffile would print it as well.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        check_chain(content)
        with tifffile.TiffFile(io.BytesIO(content), _multifile=False) as file:
            pages = _label_pages(file, most)
            _check_sizes(pages)
            for page in pages:
                check_page(page, content)
            # (samples, 1, H, W, samples): planar samples come first, interleaved ones last.
            stored = [np.moveaxis(page.asarray(squeeze=False)[:, 0], 0, -2) for page in pages]
            # As `tiff_files` does with the image beside it: only one of the two turned would be a wrong mask.
            layers = [
                upright(samples.reshape(*samples.shape[:2], -1), _orientation(page))
                for samples, page in zip(stored, pages, strict=True)
            ]
            names = [_name(page) for page, layer in zip(pages, layers, strict=True) for _ in range(layer.shape[2])]
    except (_Unfit, Refused) as error:
        raise ValueError(f"{path}: {error}. Restore the file or leave it out.") from None
    except MemoryError:
        raise ValueError(f"{path}: has more pixels than there is memory for. Cut it into tiles.") from None
    except Exception as error:  # tifffile and imagecodecs raise many kinds, down to struct.error
        raise ValueError(
            f"{path}: cannot be decoded as TIFF ({error or type(error).__name__}). Restore the file or leave it out."
        ) from None
    return TiffLayers(np.concatenate(layers, axis=2), tuple(names))


def write_layers(
    path: str | Path,
    layers: Sequence[np.ndarray],
    names: Sequence[str] = (),
    georeference: Georeference | None = None,
) -> None:
    """Write (H, W) uint8 or uint16 layers, a page each, compressed without loss; whole or not at all.

    Args:
        names: of the pages, if they have any.
        georeference: of the first page, in which readers look for it.
    """
    import tifffile

    if layers[0].size == 0:
        height, width = layers[0].shape
        raise ValueError(f"a mask of {height} x {width} pixels: there is nothing to write.")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for number, layer in enumerate(layers):
            tags: list[Any] = [] if georeference is None or number else list(georeference.tags)
            if names:
                tags.append((PAGE_NAME, "s", 0, names[number].encode(), True))
            file.write(
                layer,
                photometric="minisblack",
                compression="zlib",
                # No time nor program: the same labels are the same file.
                software=False,
                metadata=None,
                extratags=tags,
            )
    write_whole(path, buffer.getvalue())


class _Unfit(ValueError):
    """What is wrong is known and said, but for the name of the file."""


def _label_pages(file: Any, most: int) -> list[Any]:
    pages: list[Any] = []
    for page in file.pages:
        if page.subfiletype & (_REDUCED | _TRANSPARENCY):
            continue
        if len(pages) == most:
            raise _Unfit(f"has more than {most} {'page' if most == 1 else 'pages'}, expected at most that many")
        pages.append(page)
    if not pages:
        raise _Unfit("holds no picture")
    return pages


def _check_sizes(pages: list[Any]) -> None:
    sizes = {(page.imagelength, page.imagewidth) for page in pages}
    if len(sizes) > 1:
        shown = " and ".join(f"{height} x {width}" for height, width in sorted(sizes))
        raise _Unfit(f"has pages of {shown} (height x width), expected one size")
    samples = sum(page.imagelength * page.imagewidth * page.imagedepth * page.samplesperpixel for page in pages)
    if not 0 < samples <= max_pixels():
        raise _Unfit(f"declares {samples} pixels, expected between 1 and {max_pixels()} of them ({RAISE_LIMIT})")
    for page in pages:
        if page.imagedepth != 1:
            raise _Unfit(f"is a volume of {page.imagedepth} slices in one page, expected a page of one mask")


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None else 1


def _name(page: Any) -> str:
    tag = page.tags.get(PAGE_NAME)
    return str(tag.value) if tag is not None else ""
