"""What became of a job: for people, for machines, and as a list of the images to leave out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkit.data.splits import can_be_listed
from segkit.formats.files import write_whole
from segkit.formats.nifti_slices import split_slice_stem
from segkit.formats.volumes import volume_name
from segkit.inference.inputs import Broken
from segkit.inference.journal import Entry

# One of `RESERVED_NAMES`.
QUARANTINE_NAME = "_quarantine.txt"


@dataclass
class PredictReport:
    """What became of a list of inputs, over all lives of the job.

    Attributes:
        done: images whose masks are there.
        kept: those of them whose masks were there before the job, with `overwrite="never"`.
        failed: (file, reason) of each input that could not be predicted, once.
        seconds: time that the batches took; of shards that of the slowest, once all are done.
        complete: the whole job is done; False where only this shard is.
    """

    done: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    kept: int = 0
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As `segkit predict --json` writes it."""
        computed = self.done - self.kept
        return {
            "done": self.done,
            "kept": self.kept,
            "failed": [{"file": file, "reason": reason} for file, reason in self.failed],
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(computed / self.seconds, 3) if computed and self.seconds > 0 else None,
        }


def make_report(
    entries: Iterable[Entry], broken: Broken, unjoined: Iterable[tuple[str, str]], seconds: float, complete: bool
) -> PredictReport:
    """The report of the batches in `entries`.

    Args:
        broken: inputs that could not even be listed.
        unjoined: (file, reason) of outputs that could not be joined.
    """
    report = PredictReport(seconds=seconds, complete=complete)
    failed = {str(path): str(reason) for path, reason in broken}
    for entry in entries:
        report.done += entry.done
        report.kept += entry.kept
        for _, file, reason in entry.failed:
            failed.setdefault(file, reason)  # of a volume with many slices the first
    report.failed = list({**failed, **dict(unjoined)}.items())
    return report


def write_quarantine(out: Path, broken: Broken, entries: Iterable[Entry]) -> None:
    """Write samples without masks, each below its reason as a comment; `data.quarantine` takes the file.

    Names that a list cannot hold, such as those that are no text, are comments too. Without such samples there is no
    file.
    """
    reasons = {volume_name(path) or path.stem: str(reason) for path, reason in broken}
    for entry in sorted(entries, key=lambda entry: entry.batch):
        for stem, file, reason in entry.failed:
            reasons.setdefault(split_slice_stem(stem)[0], reason if file in reason else f"{file}: {reason}")
    path = out / QUARANTINE_NAME
    if not reasons:
        path.unlink(missing_ok=True)
        return
    lines = [f"# Images that `segkit predict` could not do: {len(reasons)}. Leave them out: data.quarantine."]
    for stem, reason in reasons.items():
        lines += [f"# {' '.join(reason.split())}", stem if can_be_listed(stem) else f"# Cannot be listed: {stem!r}"]
    write_whole(path, ("\n".join(lines) + "\n").encode(errors="backslashreplace"))
