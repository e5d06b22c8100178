"""What a job has done, batch by batch, on disk: what is needed to go on with it after it was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segkit.formats.files import open_lines, remove_empty, write_whole
from segkit.formats.locks import held_elsewhere, locked
from segkit.inference.shards import Shard

# Of a whole job, and the folder of those of shards. Both are `RESERVED_NAMES`.
JOURNAL, SHARDS = "_journal.jsonl", "_journal"
# Held while a job is begun, and while its outputs are joined.
LOCK = ".job.lock"
_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What became of one batch.

    Attributes:
        batch: its number.
        done: images whose masks are there now.
        kept: those of them that had masks before.
        failed: (stem, file, reason) of the others.
        seconds: since the batch before it, or since the job went on.
        together: images that were computed at once, where fewer than a batch fit into the memory of the device.
    """

    batch: int
    done: int
    kept: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    together: int | None = None


@dataclass(frozen=True)
class Past:
    """What journals say.

    Attributes:
        job: the description of the job.
        entries: by the number of the batch.
        lives: how often a process went on with it or began it.
        seconds: that it took over all lives; of shards the longest, as they work side by side.
        finished: all was done and joined; (file, reason) of what could not be joined. None before.
    """

    job: Mapping[str, Any]
    entries: Mapping[int, Entry]
    lives: int
    seconds: float
    finished: list[tuple[str, str]] | None


class Journal:
    """The journal of one shard, to which lines are added. One process alone has it open.

    Args:
        job: describes the job, JSON-ready; compared when it is resumed.

    Raises:
        ValueError: another process has it open.
    """

    def __init__(self, out: Path, shard: Shard, job: Mapping[str, Any]) -> None:
        self.path = journal_path(out, shard)
        # Two that begin at the same moment would write a journal each, of which one takes the place of the other.
        with locked(out / LOCK):
            if not self.path.exists():
                # Whole or not at all: a journal without its first line would say nothing about the job.
                write_whole(self.path, _line({"version": _VERSION, "job": job}))
            self._held = self.path.open("r+b")
            if held_elsewhere(self._held.fileno()):
                self._held.close()
                raise _at_work(self.path)
        # Only now: it cuts off what a killed process has left of a line, and one at work may be within a line.
        self._file = open_lines(self.path)
        self._add({"life": os.getpid()})

    def add(self, entry: Entry, sync: bool = True) -> None:
        """One batch is done. What it wrote must have been written before.

        Args:
            sync: bring the line to the disk.
        """
        self._add({name: value for name, value in asdict(entry).items() if value or name in ("batch", "done")}, sync)

    def finish(self, failed: Iterable[tuple[str, str]]) -> None:
        """All shards are done, and their outputs joined but for `failed`."""
        self._add({"finished": list(failed)})

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self._held.close()

    def _add(self, values: Mapping[str, Any], sync: bool = True) -> None:
        self._file.write(_line(values))
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())


def journal_path(out: Path, shard: Shard) -> Path:
    """`_journal.jsonl`, or for shards `_journal/2-of-8.jsonl`: a file for each, as two machines cannot share one."""
    return out / JOURNAL if shard.count == 1 else out / SHARDS / f"{shard.number}-of-{shard.count}.jsonl"


def remove_journals(paths: Iterable[Path]) -> None:
    """Of a job that is begun anew.

    Raises:
        ValueError: another process has one of them open.
    """
    with ExitStack() as stack:
        files = [(path, stack.enter_context(path.open("r+b"))) for path in paths]
        for path, file in files:
            if held_elsewhere(file.fileno()):
                raise _at_work(path)
        for path, _ in files:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path, _ in files if path.parent.name == SHARDS}:
            remove_empty(folder)


def find_journals(out: Path) -> list[Path]:
    """Those of all shards, whatever their number."""
    return [path for path in (out / JOURNAL, *sorted((out / SHARDS).glob("*.jsonl"))) if path.is_file()]


def read_journals(paths: Iterable[Path]) -> Past | None:
    """What several journals of one job say together; None without any.

    A line that was cut off when a process was killed is passed over: its batch is done again.

    Raises:
        ValueError: names a file that is no journal, or two that are of different jobs.
    """
    job: Mapping[str, Any] | None = None
    entries: dict[int, Entry] = {}
    lives, seconds, finished, first = 0, 0.0, None, None
    for path in paths:
        lines = _read(path)
        found = next(lines)["job"]
        if job is None:
            job, first = found, path
        elif found != job:
            raise ValueError(f"{path}: is of another job than {first}: {differences(job, found)}.")
        own = 0.0
        for values in lines:
            if "batch" in values:
                failed = [(stem, file, reason) for stem, file, reason in values.pop("failed", [])]
                entry = Entry(**values, failed=failed)
                entries[entry.batch] = entry
                own += entry.seconds
            elif "finished" in values:
                finished = [(file, reason) for file, reason in values["finished"]]
            lives += "life" in values
        seconds = max(seconds, own)
    return None if job is None else Past(job, entries, lives, seconds, finished)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Where two descriptions of jobs differ, in words."""
    parts = []
    for name in dict.fromkeys((*old, *new)):
        before, now = old.get(name), new.get(name)
        if before != now:
            is_hash = isinstance(before, str) and isinstance(now, str) and len(before) == len(now) == 64
            parts.append(f"other {name}" if is_hash else f"{name} was {before!r}, now it is {now!r}")
    return "; ".join(parts)


def _at_work(path: Path) -> ValueError:
    return ValueError(f"{path}: another process is at work on this job. Wait for it, or end it.")


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The values of all lines; the first describes the job."""
    content = path.read_bytes()
    lines = content[: _whole_lines(content)].splitlines()
    way_out = "Remove it, which begins the job anew."
    for number, line in enumerate(lines or [b""], start=1):
        try:
            values = json.loads(line)
        except ValueError:
            raise ValueError(f"{path}, line {number}: is no line of a journal. {way_out}") from None
        if number == 1 and (not isinstance(values, dict) or values.get("version") != _VERSION or "job" not in values):
            raise ValueError(f"{path}: is no journal that this version of segkit has written. {way_out}")
        yield values


def _whole_lines(content: bytes) -> int:
    """Length of a journal without a last line that was cut off."""
    return content.rfind(b"\n") + 1


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
