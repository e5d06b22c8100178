"""Where on Earth the pixels of a GeoTIFF lie, kept in the masks that are predicted from it.

A mask in a TIFF file gets the tags of the input as they are. A mask in a file that has no place for them gets a
sidecar `MASK.aux.xml` as GDAL writes and reads it, and with it QGIS, rasterio and ArcGIS. Sources: OGC 19-008r4
(GeoTIFF 1.1), GDAL's persistent auxiliary metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from segkit.formats.files import write_whole
from segkit.formats.image_checks import is_tiff

SIDECAR_SUFFIX = ".aux.xml"
_SCALE, _TIEPOINT, _MATRIX = 33550, 33922, 34264
# Size of pixels, points, matrix; then the keys of the coordinate system, their numbers and their texts. The value
# that GDAL takes for "no data" (42113) is one of the image, and is left out.
_TAGS = (_SCALE, _TIEPOINT, _MATRIX, 34735, 34736, 34737)
_ORIENTATION = 274
_PIXEL_IS_POINT = 2
# Codes of coordinate systems that EPSG has given out; 32767 says "made by the user".
_EPSG = range(1024, 32767)


@dataclass(frozen=True)
class Georeference:
    """Coordinate system and transform of a GeoTIFF.

    Attributes:
        tags: (code, type, count, value, True) of each tag, as tifffile writes them.
        system: `EPSG:n`, WKT of a local system with the name it has where EPSG has no code, or None.
        transform: (x, x per column, x per row, y, y per column, y per row) of the upper left corner, as GDAL orders
            them; None where points, but no transform, tie the pixels to the Earth.
    """

    tags: tuple[tuple[Any, ...], ...]
    system: str | None
    transform: tuple[float, ...] | None

    def sidecar(self) -> str:
        """The content of `MASK.aux.xml`."""
        lines = ["<PAMDataset>"]
        if self.system is not None:
            lines.append(f"  <SRS>{escape(self.system)}</SRS>")
        if self.transform is not None:
            lines.append(f"  <GeoTransform>{', '.join(map(repr, self.transform))}</GeoTransform>")
        return "\n".join((*lines, "</PAMDataset>", ""))


def read_georeference(like: str | Path | None, size_hw: tuple[int, int]) -> Georeference | None:
    """That of `like`, the input of a mask of `size_hw`; None where there is none or where it is no TIFF file.

    Raises:
        ValueError: `like` cannot be read, or is a GeoTIFF of another size.
    """
    if like is None or not _holds_tiff(Path(like)):
        return None
    # Imported here: tifffile costs 0.1 s, and most data sets hold no TIFF.
    import tifffile

    try:
        with tifffile.TiffFile(like) as file:
            page: Any = file.pages[0]
            tags = [tag for code in _TAGS if (tag := page.tags.get(code)) is not None]
            # Nobody writes GeoTIFFs that are turned, and no two readers agree on what their transform means.
            if not tags or _value(page, _ORIENTATION, 1) != 1:
                return None
            keys = page.geotiff_tags or {}
            found = Georeference(
                tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags),
                _system(keys),
                _transform(page, keys),
            )
            given_hw = page.imagelength, page.imagewidth
    except Exception as error:  # tifffile raises many kinds, down to struct.error
        raise ValueError(f"{like}: its georeference cannot be read ({error or type(error).__name__}).") from None
    if given_hw != tuple(size_hw):
        raise ValueError(
            f"{like}: is {given_hw[0]} x {given_hw[1]} (height x width), but its mask is {size_hw[0]} x {size_hw[1]}, "
            "so that its georeference would be wrong. Write the mask in the size of its image."
        )
    return found


def put_sidecar(path: Path, georeference: Georeference | None) -> None:
    """Write `PATH.aux.xml` before `path` itself is written; one that belonged to an older mask goes."""
    sidecar = path.with_name(path.name + SIDECAR_SUFFIX)
    if georeference is None:
        sidecar.unlink(missing_ok=True)
    else:
        write_whole(sidecar, georeference.sidecar().encode())


def _holds_tiff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_tiff(file.read(4))
    except IsADirectoryError:
        return False  # a DICOM series
    except OSError as error:
        raise ValueError(f"{path}: the input of a mask cannot be read ({error.strerror or error}).") from None


def _system(keys: dict[str, Any]) -> str | None:
    """What GDAL takes for the coordinate system."""
    for key in ("ProjectedCSTypeGeoKey", "GeographicTypeGeoKey"):
        if int(keys.get(key, 0)) in _EPSG:
            return f"EPSG:{int(keys[key])}"
        if key in keys:
            break  # a projection of the user's, whose degrees are not those of the pixels
    name = str(keys.get("GTCitationGeoKey") or keys.get("PCSCitationGeoKey") or "unknown").replace('"', "'")
    return f'LOCAL_CS["{name}",UNIT["metre",1]]' if "GTModelTypeGeoKey" in keys else None


def _transform(page: Any, keys: dict[str, Any]) -> tuple[float, ...] | None:
    matrix, scale, points = (_value(page, code, ()) for code in (_MATRIX, _SCALE, _TIEPOINT))
    if len(matrix) == 16:
        x, x_column, x_row = matrix[3], matrix[0], matrix[1]
        y, y_column, y_row = matrix[7], matrix[4], matrix[5]
    elif len(scale) >= 2 and len(points) >= 6:
        x_column, x_row, y_column, y_row = scale[0], 0.0, 0.0, -scale[1]
        x, y = points[3] - points[0] * scale[0], points[4] + points[1] * scale[1]
    else:
        return None
    if int(keys.get("GTRasterTypeGeoKey", 1)) == _PIXEL_IS_POINT:
        # The tags then tell the centre of the first pixel, GDAL's transform its corner.
        x, y = x - (x_column + x_row) / 2, y - (y_column + y_row) / 2
    return tuple(float(number) for number in (x, x_column, x_row, y, y_column, y_row))


def _value(page: Any, code: int, default: Any) -> Any:
    tag = page.tags.get(code)
    return default if tag is None else tag.value
