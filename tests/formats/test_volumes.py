import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from segkit.formats import volumes
from segkit.formats.volumes import load_volume, volume_grid


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(volumes, "_volumes", type(volumes._volumes)())


@pytest.fixture
def decoded(monkeypatch):
    """Names of the volumes that were decoded, in order."""
    names, decode = [], volumes._decode

    def counted(path):
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(volumes, "_decode", counted)
    return names


def save(path, seed=0, shape=(4, 5, 6)):
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def test_threads_that_ask_at_once_wait_for_one_decoding(tmp_path, monkeypatch):
    path, calls, decode = save(tmp_path / "a.nii"), [], volumes._decode
    started, go_on = threading.Event(), threading.Event()

    def slow(asked):
        calls.append(asked)
        started.set()
        go_on.wait(10)
        return decode(asked)

    monkeypatch.setattr(volumes, "_decode", slow)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(load_volume, path) for _ in range(8)]
        assert started.wait(10)
        go_on.set()
        found = {id(future.result()) for future in asked}
    assert (len(calls), len(found)) == (1, 1)


def test_a_slow_volume_does_not_hold_up_another(tmp_path, monkeypatch):
    slow, quick, decode = save(tmp_path / "slow.nii"), save(tmp_path / "quick.nii"), volumes._decode
    started, go_on = threading.Event(), threading.Event()

    def waiting(path):
        if path == slow:
            started.set()
            go_on.wait(10)
        return decode(path)

    monkeypatch.setattr(volumes, "_decode", waiting)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(load_volume, slow)
        assert started.wait(10)
        assert load_volume(quick).array.shape == (4, 5, 6)
        assert not asked.done()
        go_on.set()
        asked.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_does_not_wait_for_a_thread_that_stayed_behind(tmp_path, monkeypatch):
    """As workers of a loader may be, while a thread reads."""
    path, decode = save(tmp_path / "a.nii"), volumes._decode
    started, go_on = threading.Event(), threading.Event()

    def slow(asked):
        started.set()
        go_on.wait(10)
        return decode(asked)

    monkeypatch.setattr(volumes, "_decode", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(load_volume, path)
        assert started.wait(10)
        monkeypatch.setattr(volumes, "_decode", decode)
        worker = multiprocessing.get_context("fork").Process(target=load_volume, args=(path,))
        worker.start()
        worker.join(10)
        found, hangs = worker.exitcode, worker.is_alive()
        worker.kill()
        go_on.set()
        asked.result()
    assert (found, hangs) == (0, False)


def test_an_error_is_told_to_all_and_a_mended_file_is_read(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(b"no volume")
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(load_volume, path) for _ in range(4)]:
            with pytest.raises(ValueError, match=r"a\.nii: no readable NIfTI volume"):
                future.result()
    save(path)
    assert load_volume(path).array.shape == (4, 5, 6)


def test_small_volumes_are_kept_and_of_large_ones_the_last_two(tmp_path, decoded, monkeypatch):
    paths = [save(tmp_path / f"{name}.nii") for name in "abcd"]  # 120 bytes each
    for _ in range(3):
        for path in paths:
            load_volume(path)
    assert decoded == ["a.nii", "b.nii", "c.nii", "d.nii"]
    monkeypatch.setattr(volumes, "_KEPT_BYTES", 300)
    load_volume(save(tmp_path / "e.nii"))
    decoded.clear()
    for name in "edab":  # c, d and e were too many
        load_volume(tmp_path / f"{name}.nii")
    assert decoded == ["a.nii", "b.nii"]
    monkeypatch.setattr(volumes, "_KEPT_BYTES", 1)
    load_volume(save(tmp_path / "f.nii"))
    decoded.clear()
    for name in "bfbf":
        load_volume(tmp_path / f"{name}.nii")
    assert decoded == []


def test_headers_are_read_once(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii")
    grids = {id(volume_grid(path)) for _ in range(3)}
    assert len(grids) == 1
