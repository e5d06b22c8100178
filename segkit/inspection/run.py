"""`inspect`: from folders to a report, a config, a list of bad samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.data.reading import ImageReading
from segkit.formats.codecs import open_codec
from segkit.formats.files import write_whole
from segkit.formats.mask_format import BACKGROUND, MaskFormat
from segkit.inspection.advice import Advice, advise
from segkit.inspection.coding import Coding, find_coding
from segkit.inspection.config_text import config_text
from segkit.inspection.duplicates import Duplicate, find_duplicates, fingerprint
from segkit.inspection.evidence import find_overlap
from segkit.inspection.faults import empty_masks, find_blurred, find_faults
from segkit.inspection.meaning import Meaning, looks_like_bits, percent, read_classes, read_values
from segkit.inspection.naming import Naming, name_values, names_of_codec
from segkit.inspection.parts import Source
from segkit.inspection.report import Report, make_report
from segkit.inspection.stored import Key, MaskReader, open_reader
from segkit.inspection.survey import Fault, Progress, Survey, take_survey


@dataclass(frozen=True)
class Inspection:
    """A data set that was looked at.

    Attributes:
        report: what `segkit inspect --json` writes.
        bad: stem -> faults, of samples to leave out.
    """

    source: Source
    meaning: Meaning
    advice: Advice
    report: Report
    bad: Mapping[str, list[str]]

    def config(self, quarantine: Path | None = None) -> str:
        """YAML of a config that trains on these data.

        Args:
            quarantine: what `write_quarantine` wrote, where there are bad samples.
        """
        axis = "z" if self.report["coding"]["codec"] == "nifti" else None
        listed = None if quarantine is None or not self.bad else _below(quarantine, self.source.root)
        return config_text(self.source, self.meaning, self.advice, facts_line(self.report), listed, axis)

    def write_quarantine(self, path: Path) -> None:
        """Stems of bad samples, one per line, each below its faults as comments; `data.quarantine` takes the file."""
        lines = [f"# {len(self.bad)} samples with faults, found by `segkit inspect`. Leave them out: data.quarantine."]
        for stem, faults in sorted(self.bad.items()):
            lines += [f"# {' '.join(fault.split())}" for fault in faults]
            lines.append(stem)
        write_whole(path, ("\n".join(lines) + "\n").encode())


def inspect(
    source: Source,
    classes: Mapping[Key, str] | list[str] | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look at every file of a data set.

    Args:
        source: see `find_source`.
        classes: names of values, see `parse_classes`.
        workers: threads; default one per core, at most 8.
        progress: called with (samples read, samples in all).

    Raises:
        ValueError: folders that hold no images or no masks, or names that do not fit them.
    """
    reading = ImageReading()
    coding, reader, naming, order = _open(source, classes, reading)
    survey = take_survey(source.parts, reader, reading, workers, progress, look=fingerprint)
    blurred = find_blurred(survey, reader, (*naming.names, *naming.ignored))
    if isinstance(classes, list) and not coding.per_class:
        naming = name_values(classes, set(survey.pixels) - blurred.stray)
    if coding.per_class:
        overlap = find_overlap(survey, per_class=True)
        meaning = read_classes(survey, overlap, coding, order)
        unlabelled: tuple[Key, ...] = ()
    else:
        meaning = read_values(survey, naming, coding, blurred.stray, blurred.everywhere)
        unlabelled = meaning.unlabelled
        overlap = find_overlap(survey, per_class=False, unlabelled=unlabelled)
    nothing = meaning.nothing(survey)
    faults = [*survey.faults, *find_faults(survey, reader, naming, blurred, nothing)]
    advice = advise(survey, meaning, coding, source.masks)
    duplicates = find_duplicates(survey.looks, {key: key[0] for key in survey.looks})
    report = make_report(
        survey,
        coding,
        meaning,
        overlap,
        advice,
        layout=source.layout,
        named=naming.given or coding.per_class,
        empty=empty_masks(survey, nothing),
        duplicates=[_duplicate(pair) for pair in duplicates],
        faults=[*faults, *_leaks(duplicates, survey)],
        notes=_notes(survey, meaning, nothing),
    )
    bad: dict[str, list[str]] = {}
    for fault in faults:
        if fault.stem is not None:
            bad.setdefault(fault.stem, []).append(f"{fault.file}: {fault.text}")
    return Inspection(source, meaning, advice, report, bad)


def facts_line(report: Report) -> str:
    """`701 images, 360x480, 3 bands of uint8`."""
    sizes = report["sizes"]
    shown = f"{sizes[0]['height']}x{sizes[0]['width']}" if sizes else "none readable"
    if len(sizes) > 1:
        shown += f" and {len(sizes) - 1} other size{'s' if len(sizes) > 2 else ''}"
    bands = "" if report["bands"] is None else f", {report['bands']} band{'s' if report['bands'] > 1 else ''}"
    return f"{report['images']} images, {shown}{bands} of {report['dtype']}"


def _open(
    source: Source, classes: Mapping[Key, str] | list[str] | None, reading: ImageReading
) -> tuple[Coding, MaskReader, Naming, list[str] | None]:
    """How masks are coded, what reads them, what values are called, and the order of classes where it is given."""
    part = next(iter(source.parts.values()))
    if source.masks is not None:
        return _open_known(source.masks)
    coding = find_coding(part.masks, reading.find(part.images))
    if coding.classes is None:
        naming = Naming() if classes is None else name_values(classes, ()) if isinstance(classes, Mapping) else Naming()
        return coding, open_reader(coding), naming, None
    if classes is None:
        return coding, open_reader(coding), Naming(), None
    wanted = list(classes) if isinstance(classes, list) else list(map(str, classes))
    lost = [name for name in wanted if name not in coding.classes]
    if lost:
        raise ValueError(f"--classes names {lost}, which the masks do not hold: {', '.join(coding.classes)}.")
    coding = Coding(coding.codec, coding.text, coding.options, tuple(wanted))
    return coding, open_reader(coding), Naming(), wanted


def _open_known(masks: Mapping[str, Any]) -> tuple[Coding, MaskReader, Naming, list[str] | None]:
    """The same, as a layout says it."""
    known = {key: masks.get(key) for key in ("format", "classes", "activation", "threshold")}
    format = MaskFormat.from_config({key: value for key, value in known.items() if value is not None})
    spec = masks.get("codec", "index_png")
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    if masks.get("ignored_values"):
        spec["ignored_values"] = masks["ignored_values"]
    codec = open_codec(spec, format)
    options = {key: value for key, value in spec.items() if key not in ("name", "values", "ignored_values")}
    if format.num_planes > 1:
        coding = Coding(codec.name, f"{codec.name}, as the layout says", options, format.names)
        return coding, open_reader(coding, codec), Naming(), list(format.names)
    coding = Coding(codec.name, f"{codec.name}, as the layout says", options)
    return coding, open_reader(coding), names_of_codec(codec), None


def _below(path: Path, root: Path) -> str:
    """As `data.quarantine` takes it: relative to the root of the data, or whole where it lies elsewhere."""
    inside = path.resolve().is_relative_to(root.resolve())
    return path.resolve().relative_to(root.resolve()).as_posix() if inside else str(path.absolute())


def _duplicate(pair: Duplicate) -> dict[str, Any]:
    (_, a), (_, b) = _key(pair.a), _key(pair.b)
    return {"kind": pair.kind, "a": a, "b": b, "parts": list(pair.parts)}


def _key(key: Any) -> tuple[str, str]:
    """(part, stem), the key of an image among its fingerprints."""
    return key


def _leaks(duplicates: Sequence[Duplicate], survey: Survey) -> list[Fault]:
    """Images that two parts share: scores are better than they should be."""
    files: dict[Any, str] = {(seen.pair.part, seen.pair.stem): str(seen.pair.image) for seen in survey.seen}
    return [
        Fault(
            files[pair.b],
            f"is {'the same image as' if pair.kind == 'exact' else 'nearly the same image as'} {files[pair.a]}: "
            f"{pair.parts[1]} would be scored on what {pair.parts[0]} has seen. Keep both in one part.",
        )
        for pair in duplicates
        if pair.parts[0] != pair.parts[1]
    ]


def _notes(survey: Survey, meaning: Meaning, nothing: Sequence[Key]) -> list[str]:
    notes = []
    empty = len(empty_masks(survey, nothing))
    if empty:
        notes.append(f"{empty} mask{'s mark' if empty > 1 else ' marks'} no class at all.")
    depths = Counter(seen.image.dtype for seen in survey.seen if seen.image is not None)
    if len(depths) > 1:
        shown = ", ".join(f"{dtype} ({count})" for dtype, count in depths.most_common())
        notes.append(f"Images come in {len(depths)} depths: {shown}. They are brought to the widest.")
    held = {meaning.names.get(key) for key in survey.pixels}
    unseen = [name for name in meaning.classes if name not in held and name != BACKGROUND] if meaning.names else []
    if unseen:
        notes.append(f"No mask holds {', '.join(unseen[:12])}{', ...' if len(unseen) > 12 else ''}.")
    bits = looks_like_bits(list(survey.pixels)) if meaning.format == "multiclass" else None
    if bits:
        notes.append(bits)
    for value in meaning.candidates:
        share = percent(survey.pixels[value] / survey.total)
        notes.append(
            f"Value {value} ({share} of pixels, {survey.images[value]} images) may mean *ignore*; nothing says so. "
            f"If it does: --classes '...,{value}=ignore'."
        )
    return notes
