"""Files below a root: which stems there are, where a stem lies, and writing whole files or none."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from segkit.formats.codec import RESERVED_NAMES

# What many writers write waits here, below the root, until `Codec.finish` joins it; hidden, so nothing reads it.
PARTS = ".segkit-parts"
_PART = ".part"
_CHUNK_BYTES = 2**16
_UNFINISHED = re.compile(rf"\..+\.[0-9a-f]{{12}}{re.escape(_PART)}", re.DOTALL)


def find_files(root: str | Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Stem -> path of every file below `root` that ends in one of `suffixes` (any case), sorted by stem.

    Hidden files, hidden folders and what `predict` puts beside masks (`RESERVED_NAMES`) are passed over.

    Raises:
        ValueError: `root` is no folder, or two files have the same stem.
    """
    endings = tuple(s.lower() for s in suffixes)
    found: dict[str, Path] = {}
    for relative, path in walk(root):
        ending = next((e for e in endings if relative.lower().endswith(e)), None)
        if ending is None or len(path.name) == len(ending):
            continue
        stem = relative[: -len(ending)]
        if stem in found:
            raise ValueError(f"{path} and {found[stem]} are both sample {stem!r}: keep one of them.")
        found[stem] = path
    return dict(sorted(found.items()))


def walk(root: str | Path) -> Iterator[tuple[str, Path]]:
    """(path below `root` with forward slashes, path) of every file that is neither hidden nor reserved."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder.")
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        # Linked data sets are common; a link back to a parent would never end.
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if is_shown(f))
        for name in names:
            if is_shown(name):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def check_stem(stem: str) -> str:
    """`stem` if it names a sample below a root: no way out of the folder, no hidden or reserved name."""
    parts = stem.split("/")
    if "\\" in stem or "\0" in stem or PurePosixPath(stem).is_absolute() or not all(is_shown(p) for p in parts):
        raise ValueError(
            f"{stem!r} is no name of a sample: expected a path below the folder, such as `a` or `night/a`, without "
            f"`..`, hidden parts (`.x`) or {list(RESERVED_NAMES)}."
        )
    return stem


def path_of(root: str | Path, stem: str, suffix: str) -> Path:
    """Existing file of `stem` whatever the case of its suffix, else the path with `suffix` as given."""
    path = Path(root, check_stem(stem) + suffix)
    if path.exists():
        return path
    # Each way to write it, 8 for `.png`, rather than a list of the folder, which may hold 100,000 files.
    for ending in _spellings(suffix):
        other = path.with_name(path.name[: -len(suffix)] + ending)
        if other.exists():
            return other
    return path


def find_path(root: str | Path, stem: str, suffixes: Sequence[str]) -> Path:
    """Existing file of `stem` with one of `suffixes` in any case, else the path with the first of them."""
    paths = [Path(root, check_stem(stem) + suffix) for suffix in suffixes]
    # Lower case first, which nearly all files have.
    found = existing(paths) or existing(path_of(root, stem, suffix) for suffix in suffixes)
    return found[0] if found else paths[0]


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are there."""
    return [path for path in paths if path.exists()]


def read_whole(path: str | Path) -> bytes:
    """All bytes of a regular file.

    Raises:
        ValueError: names the file: missing, not allowed, no regular file (a pipe would be waited for without end).
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
            raise ValueError(f"{path}: is {kind}, expected a file. Remove it, or leave it out.")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}).") from None


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` so that readers see the old file or the new one, never a part; folders are made."""
    with writing_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` at the end, and is gone if there is an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that a run cut off here leaves nothing that reads as a mask; in the same folder, so that the
    # rename stays within one file system.
    part = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}{_PART}")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def open_lines(path: Path) -> BinaryIO:
    """A file to add lines to, without a last line that was cut off when a process was killed; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _CHUNK_BYTES)
        file.seek(start)
        line_end = file.read(end - start).rfind(b"\n")
        if line_end >= 0:
            file.truncate(start + line_end + 1)
            return file
        end = start
    file.truncate(0)
    return file


def remove_unfinished(root: str | Path) -> None:
    """Remove what `writing_whole` left below a folder in processes that were killed; nobody may write there now."""
    for folder, _, names in os.walk(root):
        for name in names:
            if _UNFINISHED.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


def file_stamp(path: Path) -> tuple[str, int, int]:
    """(path, time, size): differs once a file has been written anew."""
    try:
        facts = path.stat()
    except OSError:
        raise ValueError(f"{path}: no such file.") from None
    return str(path.resolve()), facts.st_mtime_ns, facts.st_size


def remove_empty(folder: Path) -> None:
    """Remove a folder and those below it, as far as they hold no files."""
    for path in (*sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True), folder):
        # Not there, or another writer has put something into it.
        with contextlib.suppress(OSError):
            path.rmdir()


@lru_cache
def _spellings(suffix: str) -> tuple[str, ...]:
    """`suffix` in every mixture of cases, all upper first."""
    letters = [sorted({c.upper(), c.lower()}) for c in suffix]
    return tuple("".join(chosen) for chosen in itertools.product(*letters))


def is_shown(name: str) -> bool:
    """Whether a name in a folder is neither hidden nor one of `RESERVED_NAMES`."""
    return bool(name) and not name.startswith(".") and name not in RESERVED_NAMES
