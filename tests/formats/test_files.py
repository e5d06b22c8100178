from __future__ import annotations

import pytest

from segkit.formats import files
from segkit.formats.files import open_lines, remove_unfinished, writing_whole


@pytest.mark.parametrize("size", [1, 3, 2**16])
@pytest.mark.parametrize(
    ("content", "kept"), [(b"one\ntwo", b"one\n"), (b"one\ntwo\n", b"one\ntwo\n"), (b"one", b""), (b"", b"")]
)
def test_lines_are_added_after_the_last_whole_one(tmp_path, monkeypatch, content, kept, size):
    monkeypatch.setattr(files, "_CHUNK_BYTES", size)
    path = tmp_path / "new" / "lines"
    path.parent.mkdir()
    path.write_bytes(content)
    with open_lines(path) as file:
        file.write(b"three\n")
    assert path.read_bytes() == kept + b"three\n"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in (".notes.part", "a.png", ".hidden", "b.0123456789ab.part"):
        (tmp_path / "sub" / name).touch()
    with writing_whole(tmp_path / "sub" / "c.png") as file:
        file.write(b"c")
        (left,) = (path for path in (tmp_path / "sub").iterdir() if path.name.startswith(".c.png."))
        remove_unfinished(tmp_path)
        assert not left.exists()
        left.touch()  # for the rename
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == sorted(
        (".notes.part", "a.png", ".hidden", "b.0123456789ab.part", "c.png")
    )
