"""A job: many images to masks in a folder, batch by batch, which goes on where it was stopped or killed."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.formats.codec import Codec
from segkit.formats.files import PARTS, open_lines, remove_empty, remove_unfinished
from segkit.formats.locks import locked
from segkit.inference.batches import Answering, BatchWork, Item, Wanted
from segkit.inference.computing import Batch, Compute, Computed, compute_here
from segkit.inference.fingerprint import fingerprint
from segkit.inference.inputs import Broken, Input, find_inputs
from segkit.inference.journal import (
    LOCK,
    Entry,
    Journal,
    Past,
    differences,
    find_journals,
    journal_path,
    read_journals,
    remove_journals,
)
from segkit.inference.objects import OBJECTS_NAME, join_objects
from segkit.inference.reports import PredictReport, make_report, write_quarantine
from segkit.inference.shards import WHOLE, Others, Shard
from segkit.inference.volumes import by_volume
from segkit.training.preemption import Preempted, stoppable

log = logging.getLogger("segkit")

OVERWRITE = ("always", "never")
# Hidden: below `PARTS` no case of a volume has such a name.
_OBJECT_LINES = ".objects-*.jsonl"


@dataclass(frozen=True)
class JobOptions:
    """How a job is done.

    Attributes:
        wanted: what is written for each image.
        batch_size: so many inputs, one after the other in the list, are a batch.
        overwrite: `always` or `never` begins a job anew where there is an unfinished one; None refuses that.
        resume: go on with the job that the output folder holds; begin it where there is none.
        shard: which part of the job.
        compute: where batches are computed.
    """

    wanted: Wanted
    batch_size: int
    overwrite: str | None = None
    resume: bool = False
    shard: Shard = WHOLE
    compute: Compute = compute_here

    def __post_init__(self) -> None:
        if self.overwrite not in (None, *OVERWRITE):
            raise ValueError(f"overwrite is {self.overwrite!r}: expected {' or '.join(OVERWRITE)}.")
        if self.batch_size < 1:
            raise ValueError(f"batch size is {self.batch_size}: expected 1 or more.")


def run_job(
    predictor: Answering,
    codec: Codec,
    inputs: Iterable[str | Path],
    out: Path,
    options: JobOptions,
    progress: Callable[[int, int], None] | None = None,
) -> PredictReport:
    """Write a mask for each image of `inputs` into `out`; the journal beside them says how far it is.

    Args:
        progress: called with (images done, images in all) of this shard.

    Raises:
        ValueError: inputs that are not there, or `out` holds another job, or one that `options` would not go on with.
        OSError: masks cannot be written, as on a full disk; what is done is in the journal.
        KeyboardInterrupt, Preempted: asked to stop; the batch that was computed is written and in the journal.
    """
    started = time.monotonic()
    found, broken = find_inputs(inputs, predictor.model.reading.for_new_images(), leave_out=out)
    job = _Job(predictor, codec, found, broken, out, options, started)
    past = job.past()
    if past is not None and past.finished == []:
        # Of a process that was killed between its last word and its end.
        job.remove_leftovers()
        (out / LOCK).unlink(missing_ok=True)
        return job.report(past)
    with _told(out):
        out.mkdir(parents=True, exist_ok=True)
    with _told(out), job.journal() as journal:
        job.compute(journal, {} if past is None else past.entries, progress)
        return job.finish(journal)


class _Job:
    """One life of a job, or of a shard of it."""

    def __init__(
        self,
        predictor: Answering,
        codec: Codec,
        inputs: Sequence[Input],
        broken: Broken,
        out: Path,
        options: JobOptions,
        started: float,
    ) -> None:
        self.codec, self.broken, self.out, self.options = codec, broken, out, options
        self.work = BatchWork(predictor, codec, out, options.wanted)
        self.batches = make_batches(inputs, options.batch_size)
        self.own = options.shard.batches(len(self.batches))
        self._format, self._clock = predictor.model.format, started
        self._described = {
            "model": fingerprint(predictor.model),
            "codec": json.dumps(codec.to_spec()),  # as text: the order of its values counts
            "inputs": _hash_of(inputs),
            "images": len(inputs),
            "batch size": options.batch_size,
            "tile": predictor.tile,
            "device": predictor.device.type,
            "overwrite": "never" if options.wanted.keep else "always",
            **{name: getattr(options.wanted, name) for name in ("axes", "overlay", "probabilities", "objects")},
        }

    def past(self) -> Past | None:
        """What was done of this job before; None where it begins."""
        journals = find_journals(self.out)
        shard, resume = self.options.shard, self.options.resume
        if not journals:
            return None
        if not resume and shard.count == 1:
            self._begin_anew(journals)
            return None
        if not resume:
            strange = [path for path in journals if path == journal_path(self.out, shard) or not _of(path, shard)]
            if strange:
                raise ValueError(
                    f"{strange[0]}: there is a job here already. `--resume` goes on with it. A job in shards begins in "
                    "a folder without journals: give another --out, or remove this one."
                )
        past = read_journals(journals)
        assert past is not None
        if dict(past.job) != _as_json(self._described):
            raise ValueError(
                f"{journals[0]}: is of another job: {differences(past.job, _as_json(self._described))}. Give what was "
                "given then to go on with it, or another --out to begin this one."
            )
        return past

    def _begin_anew(self, journals: Sequence[Path]) -> None:
        if self.options.overwrite is None:
            past = read_journals(journals)
            if past is not None and past.finished is None:
                done = sum(entry.done for entry in past.entries.values())
                raise ValueError(
                    f"{journals[0]}: holds an unfinished job, with {done} of {past.job['images']} masks. `--resume` "
                    "goes on with it; `--overwrite always` begins anew, and `--overwrite never` too, but keeps masks "
                    "that are there."
                )
        remove_journals(journals)
        remove_unfinished(self.out)
        self.remove_leftovers()

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """That of this life."""
        journal = Journal(self.out, self.options.shard, self._described)
        try:
            yield journal
        finally:
            journal.close()

    def compute(self, journal: Journal, done: Mapping[int, Entry], progress: Callable[[int, int], None] | None) -> None:
        """All batches of this shard that are not done."""
        images = sum(self._images(batch) for batch in self.own)
        count = shown = sum(self._images(batch) for batch in self.own if batch in done)
        if count:
            log.info("going on: %d of %d images were done before.", count, images)
        # As small as it had become: the members of what is computed at once do not depend on who was killed when.
        earlier = [entry.together for entry in done.values() if entry.batch in self.own and entry.together]
        self.work.together = min(earlier, default=None)

        def told(number: int, ahead: int = 0) -> None:
            nonlocal count, shown
            count, shown = count + number, max(shown, count + number + ahead)
            if progress is not None:
                progress(shown, images)

        def batches() -> Iterator[Batch]:
            for batch in self.own:
                if batch in done:
                    continue
                items = self.batches[batch]
                if self.options.wanted.keep and all(map(self.work.is_there, items)):
                    number = self._images(batch)
                    journal.add(Entry(batch, number, number, seconds=self._lap()), sync=False)
                    told(number)
                    continue
                yield batch, items

        # Of a volume, or a large image, before it is written.
        self.work.progress = lambda share, item: told(0, round(share * len(item)))
        told(0)
        with stoppable() as stop, self._objects() as add_objects:
            for found in self.options.compute(self.work, batches(), lambda: stop.asked is not None):
                add_objects(b"".join(outcome.objects for outcome in found.outcomes))
                journal.add(self._entry(found))
                told(self._images(found.batch))
        if stop.asked is not None:
            log.warning("stopped: %d of %d images are done. The same command with --resume goes on.", count, images)
            raise KeyboardInterrupt if stop.asked == signal.SIGINT else Preempted

    def finish(self, journal: Journal) -> PredictReport:
        """Join what was written, once all shards are done; the report is that of the whole job then."""
        others = Others(self.options.shard) if self.options.shard.together else None
        if others is not None:
            others.wait_for_ends()
        first = others is None or self.options.shard.number == 1
        past = self._read()
        if first and len(past.entries) == len(self.batches):
            # Shards that end at the same time both find the job done: the second joins what is joined already.
            with locked(self.out / LOCK):
                self._join(journal, past)
            past = self._read()
        if others is not None and first:
            others.say_finished()
        return self.report(past)

    def report(self, past: Past) -> PredictReport:
        """What became of the whole job if it is done, else of this shard."""
        complete = len(past.entries) == len(self.batches)
        entries = [entry for batch, entry in sorted(past.entries.items()) if complete or batch in self.own]
        # What cannot even be listed belongs to the first shard, so that it is named once.
        broken = self.broken if complete or self.options.shard.number == 1 else []
        return make_report(entries, broken, past.finished or [], past.seconds, complete)

    def remove_leftovers(self) -> None:
        """What nobody needs once all is joined."""
        for path in self._object_lines():
            path.unlink(missing_ok=True)
        remove_empty(self.out / PARTS)

    def _join(self, journal: Journal, past: Past) -> None:
        # Others than this process may have been killed too.
        if past.lives > self.options.shard.count or self.options.compute is not compute_here:
            remove_unfinished(self.out)
        failed = []
        try:
            self.codec.finish(self.out)
        except ValueError as error:
            failed.append((str(self.out), str(error)))
        lines = self._object_lines()
        if lines:
            join_objects(self.out / OBJECTS_NAME, lines, self._format)
        write_quarantine(self.out, self.broken, past.entries.values())
        journal.finish(failed)
        # Last: a process that is killed before has all that it needs to do this again.
        if not failed:
            self.remove_leftovers()

    def _read(self) -> Past:
        past = read_journals(find_journals(self.out))
        assert past is not None
        return past

    def _images(self, batch: int) -> int:
        return sum(map(len, self.batches[batch]))

    def _entry(self, found: Computed) -> Entry:
        pairs = list(zip(self.batches[found.batch], found.outcomes, strict=True))
        failed = [
            (item.inputs[0].stem, str(item.image.path), outcome.reason)
            for item, outcome in pairs
            if outcome.reason is not None
        ]
        done = sum(len(item) for item, outcome in pairs if outcome.reason is None)
        kept = sum(outcome.kept for outcome in found.outcomes)
        return Entry(found.batch, done, kept, failed, self._lap(), found.together)

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        return round(seconds, 4)

    @contextmanager
    def _objects(self) -> Iterator[Callable[[bytes], Any]]:
        if not self.options.wanted.objects:
            yield len
            return
        name = _OBJECT_LINES.replace("*", str(self.options.shard).replace("/", "-of-"))
        with open_lines(self.out / PARTS / name) as file:

            def add(lines: bytes) -> None:
                file.write(lines)
                file.flush()

            yield add

    def _object_lines(self) -> list[Path]:
        return sorted((self.out / PARTS).glob(_OBJECT_LINES))


def make_batches(inputs: Iterable[Input], size: int) -> list[list[Item]]:
    """Batches of inputs that follow each other, `size` images each; all slices of a volume are a batch of their own."""
    batches: list[list[Item]] = []
    number, open_for_more = 0, False
    for piece in by_volume(inputs):
        item = Item(number, piece)
        is_volume = item.image.axis is not None
        if open_for_more and not is_volume and len(batches[-1]) < size:
            batches[-1].append(item)
        else:
            batches.append([item])
        number, open_for_more = number + len(piece), not is_volume
    return batches


@contextmanager
def _told(out: Path) -> Iterator[None]:
    """An error of the disk says how to go on."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{error.filename or out}: cannot be written ({error.strerror or error}). What is done is kept: correct "
            "that, then the same command with --resume goes on."
        ) from error


def _of(path: Path, shard: Shard) -> bool:
    """Whether a journal is that of a shard of as many."""
    return path.name.endswith(f"-of-{shard.count}.jsonl")


def _hash_of(inputs: Sequence[Input]) -> str:
    """Differs with the names of inputs or their order; where the folders lie does not count."""
    digest = hashlib.sha256()
    for item in inputs:
        digest.update(f"{item.stem}\0{item.image.path.name}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(values))
