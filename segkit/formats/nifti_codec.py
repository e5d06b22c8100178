"""Label volumes in NIfTI files, read and written slice by slice."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segkit.formats.codec import Codec
from segkit.formats.files import (
    PARTS,
    check_stem,
    existing,
    find_files,
    path_of,
    remove_empty,
    write_whole,
)
from segkit.formats.mask_format import MaskFormat
from segkit.formats.nifti_slices import (
    NIFTI_SUFFIXES,
    axis_number,
    nifti_grid,
    parse_axes,
    parse_slice_stem,
    set_volume_slice,
    slice_shape,
    slice_stem,
    volume_slice,
)
from segkit.formats.pixel_values import pixel_values
from segkit.formats.png_files import read_png, write_png
from segkit.formats.volumes import is_volume, labels_header, load_volume, misplaced, volume_shape

_HEADER = "header"
GEOMETRIES = ("check", "ignore")
# A slope such as 1/255 brings labels back to whole numbers only nearly.
_NEARLY = 1e-4


class NiftiSlices(Codec):
    """A folder of label volumes `CASE.nii.gz` (or `.nii`), whose samples are slices `CASE@z017`.

    Slices are cut in one orientation however a file is stored, see `grids`; their rows and columns are those of
    `nifti_slices.volume_slice`. Labels stored as whole floats, or scaled to whole numbers by the header, are read.
    `write` keeps single slices, `finish` joins them into volumes with the header of the `like` volume, stored in its
    orientation. `like` may be a DICOM series.

    Args:
        format: must have one plane, or be told in `values` which classes a value names.
        values: stored value -> class name or list of them, see `pixel_values`.
        ignored_values: stored values that mean "do not look here"; slices that nobody wrote get the first one
            (else `background`, else they are an error).
        axis: across which slices are taken: x, y or z, or several such as `zyx`.
        geometry: `check` refuses labels whose voxels do not lie on those of their image, see `grids.difference`;
            `ignore` pairs them by number all the same, where the headers are known to be wrong.
    """

    name = "nifti"

    def __init__(
        self,
        format: MaskFormat,
        values: Mapping[int, Any] | None = None,
        ignored_values: Iterable[int] = (),
        axis: str = "z",
        geometry: str = "check",
    ) -> None:
        super().__init__(format)
        self.values = pixel_values(format, values, ignored_values)
        parse_axes(axis)
        self.axis = axis
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry is {geometry!r}: expected {' or '.join(GEOMETRIES)}.")
        self.geometry = geometry

    def to_spec(self) -> dict[str, Any]:
        spec = {"name": self.name, **self.values.to_spec()}
        if self.axis != "z":
            spec["axis"] = self.axis
        return spec if self.geometry == "check" else {**spec, "geometry": self.geometry}

    def stems(self, root: str | Path) -> list[str]:
        """Every slice of every volume; only headers are read."""
        volumes = find_files(root, NIFTI_SUFFIXES)
        return [
            slice_stem(case, axis, index)
            for case, path in volumes.items()
            for axis in self.axis
            for index in range(_label_shape(path)[axis_number(axis)])
        ]

    def read(self, root: str | Path, stem: str) -> np.ndarray:
        case, axis, index = parse_slice_stem(stem)
        path = _volume_path(root, case)
        array, where = load_volume(path).array, f"{path}, slice {axis}{index}"
        _check_label_shape(array.shape, path)
        return self.values.to_planes(_nearly_whole(volume_slice(array, axis, index)), where)

    def check_like(self, root: str | Path, stem: str, like: str | Path) -> None:
        if self.geometry == "ignore" or not is_volume(like):
            return
        path = _volume_path(root, parse_slice_stem(stem)[0])
        found = misplaced(path, like)
        if found is not None:
            raise ValueError(
                f"{path}: does not lie on the voxels of {like}: {found}. Bring the labels onto the image, or give them "
                "its header where only theirs is wrong. The option `geometry: ignore` of the codec leaves out this "
                "check."
            )

    def files(self, root: str | Path, stem: str) -> list[Path]:
        return existing([_volume_path(root, parse_slice_stem(stem)[0])])

    def holds(self, root: str | Path, stem: str) -> bool:
        case, axis, index = parse_slice_stem(stem)
        return _part(Path(root, PARTS, check_stem(case)), axis, index).is_file() or bool(self.files(root, stem))

    def write(self, root: str | Path, stem: str, planes: np.ndarray, like: str | Path | None = None) -> None:
        """Keep one slice for `finish`.

        Args:
            like: the volume whose slice this is, a NIfTI file or a DICOM series. Without it the header of a volume of
                this name below `root` is kept, and else the labels get voxels of 1 mm and as many slices as were
                written.
        """
        case, axis, index = parse_slice_stem(stem)
        where = f"{Path(root, check_stem(case))}, slice {axis}{index}"
        stored = self.values.to_disk(self.check(planes, where), where)
        parts = Path(root, PARTS, case)
        if like is not None:
            shape, header = _like(Path(like))
            if planes.shape[:2] != slice_shape(shape, axis) or index >= shape[axis_number(axis)]:
                raise ValueError(
                    f"{where}: a mask of {planes.shape[0]} x {planes.shape[1]} (height x width) is no such slice of "
                    f"{like}, whose shape is {shape}."
                )
            if not _holds(parts / _HEADER, header):
                write_whole(parts / _HEADER, header)
        write_png(_part(parts, axis, index), stored)

    def write_volume(
        self, root: str | Path, stems: Sequence[str], planes: np.ndarray, like: str | Path | None = None
    ) -> None:
        """Write all slices of a volume as one file, which appears whole or not at all; nothing waits for `finish`.

        Args:
            planes: (D, H, W, P), every slice across one axis.
            like: see `write`; without it slices are kept for `finish`.
        """
        if like is None:
            super().write_volume(root, stems, planes)
            return
        case, axis, _ = parse_slice_stem(stems[0])
        where = str(Path(root, check_stem(case)))
        shape, header = _like(Path(like))
        number = axis_number(axis)
        expected = [slice_stem(case, axis, index) for index in range(shape[number])]
        if list(stems) != expected or planes.shape[1:3] != slice_shape(shape, axis) or len(planes) != len(stems):
            raise ValueError(
                f"{where}: {len(planes)} masks of {planes.shape[1]} x {planes.shape[2]} (height x width) named "
                f"{stems[0]} to {stems[-1]} are not all slices of {like}, whose shape is {shape}."
            )
        self.check(planes.reshape(-1, *planes.shape[2:]), where)
        self._write_labels(_volume_path(root, case), np.moveaxis(planes.swapaxes(1, 2), 0, number), _empty(header))
        # Slices that a run left behind which was ended: `finish` would put them over these.
        for part in Path(root, PARTS, case).glob("*"):
            if part.is_file():
                part.unlink(missing_ok=True)

    def finish(self, root: str | Path) -> None:
        """Join the slices into volumes and merge them into those that are there; one process does this."""
        folder = Path(root, PARTS)
        cases: dict[str, list[Path]] = {}
        for path in sorted(folder.rglob("*.png")):
            if path.is_dir():
                continue  # a case whose name ends so
            cases.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
        faults = []
        for case, paths in cases.items():
            try:
                self._join(_volume_path(root, case), folder / case, paths)
            except ValueError as error:
                faults.append(str(error))  # the other cases are joined all the same
        remove_empty(folder)
        if faults:
            raise ValueError("\n".join(faults))

    def _join(self, path: Path, parts: Path, paths: list[Path]) -> None:
        slices = {parse_slice_stem(f"part@{p.stem}")[1:]: read_png(p).pixels for p in paths}
        volume = _start(path, parts / _HEADER, slices)
        grid = nifti_grid(volume, path)
        written = np.zeros(grid.shape, bool)
        if path.exists():
            if _label_shape(path) != grid.shape:
                raise ValueError(
                    f"{path}: is there already with the shape {_label_shape(path)}, but slices were written for a "
                    f"volume of {grid.shape}. Move the file away or write to another folder."
                )
            # Read and written anew, so that only declared values are merged and the depth suits all of them.
            labels = self.values.to_planes(_nearly_whole(load_volume(path).array), str(path))
            written[:] = True
        else:
            labels = np.zeros((*grid.shape, self.format.num_planes), self.format.dtype)
        for (axis, index), stored in slices.items():
            set_volume_slice(labels, axis, index, self.values.to_planes(stored, f"{parts}, slice {axis}{index}"))
            set_volume_slice(written, axis, index, np.ones(stored.shape, bool))
        if not written.all():
            labels[~written] = self._unwritten(path, written)
        self._write_labels(path, labels, volume)
        for part in (*paths, parts / _HEADER):
            part.unlink(missing_ok=True)

    def _write_labels(self, path: Path, labels: np.ndarray, volume: Any) -> None:
        """Write (x, y, z, P) planes with the header, and in the order, of an image of nibabel."""
        data = nifti_grid(volume, path).to_stored(self.values.to_disk(labels, str(path)))
        image = type(volume)(data, None, volume.header)
        image.header.set_data_dtype(data.dtype)
        content = image.to_bytes()
        if path.name.lower().endswith(".gz"):
            # No time stamp: the same labels are the same file.
            content = gzip.compress(content, compresslevel=6, mtime=0)
        write_whole(path, content)

    def _unwritten(self, path: Path, written: np.ndarray) -> int:
        """Plane value of voxels in slices that nobody wrote."""
        if self.values.unwritten is not None:
            return self.values.unwritten
        raise ValueError(
            f"{path}: {int((~written).sum())} voxels lie in slices that were not written, and no value says so. "
            "Write the other slices too, or give the codec `ignored_values`, such as [255]."
        )


def _part(parts: Path, axis: str, index: int) -> Path:
    """Where a slice waits to be joined with the others of its case."""
    return parts / f"{axis}{index:03d}.png"


def _volume_path(root: str | Path, case: str) -> Path:
    path = path_of(root, case, ".nii.gz")
    if path.exists():
        return path
    plain = path_of(root, case, ".nii")
    return plain if plain.exists() else path


def _label_shape(path: Path) -> tuple[int, ...]:
    return _check_label_shape(volume_shape(path), path)


def _check_label_shape(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ValueError(f"{path}: a volume of shape {shape}, expected one label for each voxel: (x, y, z).")
    return shape


def _nearly_whole(stored: np.ndarray) -> np.ndarray:
    """Floats that are whole but for rounding as whole numbers; others as they are."""
    if stored.dtype.kind != "f":
        return stored
    whole = np.rint(stored)
    return whole if np.allclose(stored, whole, rtol=0, atol=_NEARLY) else stored


def _like(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Shape (x, y, z) of a volume, and the bytes of a header for its labels."""
    if not is_volume(path):
        raise ValueError(f"{path}: is no volume, so it gives no header for labels. Write PNG masks instead.")
    return volume_shape(path)[:3], labels_header(path)


def _start(path: Path, header: Path, slices: Mapping[tuple[str, int], np.ndarray]) -> Any:
    """An empty image with the shape and header that the labels get."""
    import nibabel

    if header.exists():
        return _empty(header.read_bytes())
    if path.exists():
        return _empty(_like(path)[1])
    return nibabel.Nifti1Image(np.zeros(_shape_around(path, slices), np.uint8), np.eye(4))


def _empty(content: bytes) -> Any:
    """An image of nibabel with this header and no voxels of its own."""
    import nibabel

    # The first four bytes are the size of the header, in the byte order of the file.
    wide = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    make = nibabel.Nifti2Image if wide else nibabel.Nifti1Image
    header_of = make.header_class.from_fileobj(io.BytesIO(content))
    return make(np.broadcast_to(np.uint8(0), header_of.get_data_shape()), None, header_of)


def _shape_around(path: Path, slices: Mapping[tuple[str, int], np.ndarray]) -> tuple[int, ...]:
    """Smallest (x, y, z) that holds all slices."""
    axes = {axis for axis, _ in slices}
    sizes = {stored.shape for stored in slices.values()}
    if len(axes) != 1 or len(sizes) != 1:
        raise ValueError(
            f"{path}: slices of sizes {sorted(sizes)} across {sorted(axes)} make no volume. Write them with `like`, "
            "the volume they belong to."
        )
    number = axis_number(axes.pop())
    rows, columns = sizes.pop()
    shape = [columns, rows]
    shape.insert(number, 1 + max(index for _, index in slices))
    return tuple(shape)


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content
