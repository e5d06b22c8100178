from __future__ import annotations

import os

from segkit.formats import locks
from segkit.formats.locks import held_elsewhere, lock


def test_a_file_is_held_by_whoever_comes_first(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    first, second = (os.open(path, os.O_RDWR) for _ in range(2))
    assert not held_elsewhere(first)
    assert held_elsewhere(second)
    os.close(first)
    assert not held_elsewhere(second)
    third = os.open(path, os.O_RDWR)
    assert not lock(third, exclusive=True, wait=False)
    monkeypatch.setattr(locks, "fcntl", None)  # where there are no locks nobody is kept waiting
    assert not held_elsewhere(third)
    for descriptor in (second, third):
        os.close(descriptor)
