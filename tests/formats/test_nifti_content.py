import gzip

import nibabel
import numpy as np
import pytest

from segkit.formats import nifti_content
from segkit.formats.nifti_slices import decode_nifti, open_nifti


def nifti(make=nibabel.Nifti1Image):
    return bytearray(make(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4)).to_bytes())


def test_a_stream_that_goes_on_behind_its_voxels_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_content, "_MAX_REST", 2**21)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(nifti()) + bytes(2**20)))
    assert decode_nifti(path).array.size == 24
    path.write_bytes(gzip.compress(bytes(nifti()) + bytes(2**23)))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: goes on for more than 2097152 bytes"):
        decode_nifti(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_declares_more_than_the_file_can_hold_asks_for_no_memory(tmp_path, suffix):
    content = nifti()
    content[42:48] = np.array([1200, 1200, 1200], "<i2").tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(ValueError, match=r"is cut short \(its [0-9]+ bytes hold no 1728000352\)"):
        decode_nifti(path)


@pytest.mark.parametrize("start", [np.nan, np.inf, -1e30, 3e9])
def test_voxels_that_begin_far_behind_are_refused_before_what_lies_between_is_read(tmp_path, start):
    content = nifti()
    content[108:112] = np.float32(start).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii: the header says that voxels begin at byte"):
        open_nifti(tmp_path / "a.nii")


def test_nifti_2_keeps_that_number_elsewhere(tmp_path):
    content = nifti(nibabel.Nifti2Image)
    (tmp_path / "a.nii").write_bytes(content)
    assert decode_nifti(tmp_path / "a.nii").array.size == 24
    content[168:176] = np.int64(2**40).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match="voxels begin at byte"):
        open_nifti(tmp_path / "a.nii")


def test_two_negative_sizes_are_no_volume(tmp_path):
    content = nifti()
    content[42:46] = np.array([-2, -3], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.nii: "):
        open_nifti(tmp_path / "a.nii")


def test_a_voxel_size_that_vanishes_counts_as_none(tmp_path):
    content = nifti(nibabel.Nifti2Image)
    content[104 + 8 * 3 : 104 + 8 * 4] = np.float64(2.8e-309).tobytes()  # pixdim[3]
    content[344:352] = bytes(8)  # qform_code, sform_code
    (tmp_path / "a.nii").write_bytes(content)
    assert decode_nifti(tmp_path / "a.nii").spacing_mm == (1.0, 1.0, 1.0)
