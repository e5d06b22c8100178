"""`inspect`: from folders to a report, a config, a list of bad samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segkit.data.images import read_image
from segkit.data.reading import ImageReading
from segkit.formats.files import write_whole
from segkit.inspection.advice import Advice, advise
from segkit.inspection.before_training import leaked_images
from segkit.inspection.coding import Coding
from segkit.inspection.config_text import config_text
from segkit.inspection.duplicates import Duplicate, find_duplicates, fingerprint
from segkit.inspection.evidence import find_overlap
from segkit.inspection.faults import Blurred, empty_masks, find_blurred, find_faults, is_soft, unfit_for_threshold
from segkit.inspection.gallery import Shown, make_gallery
from segkit.inspection.meaning import Meaning, read_classes, read_values
from segkit.inspection.naming import Naming, name_values
from segkit.inspection.notes import find_notes
from segkit.inspection.objects import are_objects
from segkit.inspection.opening import Opened, find_masks
from segkit.inspection.page import label_names, write_page
from segkit.inspection.parts import Source
from segkit.inspection.report import Report, make_report
from segkit.inspection.stored import Key, MaskReader, open_reader
from segkit.inspection.survey import Fault, Progress, Seen, Survey, take_survey
from segkit.inspection.thumbnails import label_colors


@dataclass(frozen=True)
class Inspection:
    """A data set that was looked at.

    Attributes:
        report: what `segkit inspect --json` writes.
        bad: (part, stem) -> faults, of samples to leave out.
        survey, reader: what was read, and how, to look at samples again.
    """

    source: Source
    meaning: Meaning
    advice: Advice
    report: Report
    bad: Mapping[tuple[str, str], list[Fault]]
    survey: Survey
    reader: MaskReader

    def config(self, quarantine: Path | None = None) -> str:
        """YAML of a config that trains on these data.

        Args:
            quarantine: what `write_quarantine` wrote, where there are bad samples.
        """
        axis = "z" if self.report["coding"]["codec"] == "nifti" else None
        listed = None if quarantine is None or not self.bad else _below(quarantine, self.source.root)
        leaked = len(leaked_images(self.survey.looks))
        return config_text(self.source, self.meaning, self.advice, facts_line(self.report), listed, axis, leaked)

    def write_page(self, path: Path, quarantine: Path | None = None) -> None:
        """The report as one HTML file with small pictures of up to 300 samples, and the config.

        Args:
            quarantine: see `config`.
        """
        bright = dict.fromkeys(["255"], next(iter(self.meaning.classes), "bright"))
        names = bright if self.report["coding"]["codec"] == "threshold" else label_names(self.report)
        colors = label_colors(names.values())
        doubled = {(part, d[s]) for d in self.report["duplicates"] for part, s in zip(d["parts"], "ab", strict=True)}
        nothing = self.meaning.nothing(self.survey)

        def shown(seen: Seen) -> Shown:
            pair = seen.pair

            def read() -> tuple[np.ndarray, dict[str, np.ndarray]]:
                marks = self.reader.marks(pair.masks, pair.mask) if seen.mask_hw is not None else {}
                held = {names.get(str(key), str(key)): mark for key, mark in marks.items() if key not in nothing}
                return read_image(pair.image), held

            faults = [fault.text for fault in self.bad.get(pair.sample, ())]
            return Shown(pair.part, pair.stem, read, faults, wanted=pair.sample in doubled)

        pictures = make_gallery([shown(seen) for seen in self.survey.seen], colors)
        config = None if self.advice.masks is None else self.config(quarantine)
        write_page(path, self.report, pictures, title=str(self.source.root), config=config)

    def write_quarantine(self, path: Path) -> None:
        """Bad samples, one per line, each below its faults as comments; `data.quarantine` takes the file."""
        lines = [f"# Samples with faults, found by `segkit inspect`: {len(self.bad)}. Leave them out: data.quarantine."]
        for (part, stem), faults in sorted(self.bad.items()):
            lines += [f"# {' '.join(str(fault).split())}" for fault in faults]
            # Another part may hold a good sample of the same name.
            lines.append(f"{part}: {stem}" if len(self.source.parts) > 1 else stem)
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
    opened = find_masks(source, classes, reading)
    survey = take_survey(
        source.parts, opened.reader, reading, workers, progress, look=fingerprint, first_images=opened.images
    )
    coding, naming, blurred = _settle(opened, survey, classes)
    reader = opened.reader if coding is opened.coding else open_reader(coding)
    if coding.per_class:
        overlap = find_overlap(survey, per_class=True)
        meaning = read_classes(survey, overlap, coding, opened.order)
    else:
        meaning = read_values(survey, naming, coding, blurred.stray)
        overlap = find_overlap(survey, per_class=False, unlabelled=meaning.unlabelled)
    if meaning.format == "binary":
        overlap = replace(overlap, never_together=[])  # of two values of one class
    nothing = meaning.nothing(survey)
    # Of gray levels every one has a meaning, whatever they are called.
    declared = Naming() if coding.codec == "threshold" else naming
    faults = [*survey.faults, *find_faults(survey, opened.reader, declared, blurred, nothing)]
    advice = advise(survey, meaning, coding, opened.masks)
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
        faults=_told_once([*faults, *_leaks(duplicates, survey)]),
        notes=find_notes(survey, meaning, coding, overlap, nothing),
    )
    bad: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        if fault.sample is not None:
            bad.setdefault(fault.sample, []).append(fault)
    return Inspection(source, meaning, advice, report, bad, survey, reader)


def _settle(
    opened: Opened, survey: Survey, classes: Mapping[Key, str] | list[str] | None
) -> tuple[Coding, Naming, Blurred]:
    """What only all values together show: soft masks, values that blur made, and which name is whose."""
    coding, naming = opened.coding, opened.naming
    if coding.per_class:
        return coding, naming, Blurred()
    if opened.masks is None and coding.codec != "threshold" and is_soft(survey):
        root = str(survey.seen[0].pair.masks)
        text = "holds masks with soft borders, as resizing or JPEG leave them: read as bright or dark. Export them new."
        survey.faults.append(Fault(root, text))
        coding = Coding("threshold", f"{coding.text}, bright or dark with soft borders")
    elif _may_number_objects(opened, classes) and are_objects(survey, opened.reader):
        coding = Coding("threshold", f"{coding.text}, a number for each object", {"threshold": 0})
    if coding.codec == "threshold":
        if opened.masks is None and not coding.options:
            survey.faults += unfit_for_threshold(survey, open_reader(coding))
        return coding, Naming({255: classes[-1]}, (), True) if isinstance(classes, list) else naming, Blurred()
    blurred = find_blurred(survey, opened.reader, (*naming.names, *naming.ignored))
    if isinstance(classes, list) and len(classes) == 1 and survey.two_whites:
        naming = Naming({255: classes[0], 1: classes[0]}, (), True)
    elif isinstance(classes, list):
        naming = name_values(classes, set(survey.pixels) - blurred.stray)
    return coding, naming, blurred


def _may_number_objects(opened: Opened, classes: Mapping[Key, str] | list[str] | None) -> bool:
    """Whether nobody says that values are classes, and the codec `threshold` could read them."""
    unnamed = classes is None or (isinstance(classes, list) and len(classes) == 1)
    return opened.masks is None and unnamed and opened.coding.codec in ("index_png", "palette_png", "tiff")


def facts_line(report: Report) -> str:
    """`701 images, 360x480, 3 bands of uint8`."""
    sizes = report["sizes"]
    shown = f"{sizes[0]['height']}x{sizes[0]['width']}" if sizes else "none readable"
    if len(sizes) > 1:
        shown += f" and {len(sizes) - 1} other size{'s' if len(sizes) > 2 else ''}"
    bands = "" if report["bands"] is None else f", {report['bands']} band{'s' if report['bands'] > 1 else ''}"
    return f"{report['images']} images, {shown}{bands} of {report['dtype']}"


def _told_once(faults: Sequence[Fault]) -> list[Fault]:
    """One fault for all slices of a volume that have the same."""
    of_file: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        of_file.setdefault((fault.file.partition(" (slice ")[0], fault.text), []).append(fault)
    return [Fault(path, text) if len(same) > 1 else same[0] for (path, text), same in of_file.items()]


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
    files: dict[Any, str] = {seen.pair.sample: str(seen.pair.image) for seen in survey.seen}
    return [
        Fault(
            files[pair.b],
            f"is {'the same image as' if pair.kind == 'exact' else 'nearly the same image as'} {files[pair.a]}: "
            f"{pair.parts[1]} would be scored on what {pair.parts[0]} has seen. Keep both in one part.",
        )
        for pair in duplicates
        if pair.parts[0] != pair.parts[1]
    ]
