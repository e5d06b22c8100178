"""How the names of files are made from the names of samples: `{stem}_leftImg8bit`, `{stem}_{band}`.

A pattern is the path of a file below its folder, without suffix, with `{stem}` in place of the sample's name. A stem
may hold folders: `{stem}_leftImg8bit` gives `frankfurt/frankfurt_000000_leftImg8bit` the stem
`frankfurt/frankfurt_000000`. Of slices, `case@z017`, the part before `@` is what a pattern describes, for that part
is the name of a file: `{stem}_seg` gives `case_seg@z017` the stem `case@z017`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from segkit.formats.dicom_files import DICOM_SUFFIXES
from segkit.formats.files import check_stem
from segkit.formats.image_files import PICTURE_SUFFIXES
from segkit.formats.nifti_slices import NIFTI_SUFFIXES, split_slice_stem

STEM, BAND = "{stem}", "{band}"
_SUFFIXES = (*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *DICOM_SUFFIXES)


@dataclass(frozen=True)
class Pattern:
    """Names of files and of the samples they belong to.

    Args:
        text: names `{stem}` once, and `{band}` once where there are bands.
        bands: what may stand for `{band}`, in the order of the bands.

    Raises:
        ValueError: a pattern that cannot be a name, or that does not fit `bands`.
    """

    text: str = STEM
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        if not isinstance(self.text, str) or self.text.count(STEM) != 1:
            raise ValueError(
                f"pattern {self.text!r}: expected the name of a file without its suffix that holds {STEM} once, such "
                f"as '{STEM}_image'."
            )
        if self.text.count(BAND) != (1 if self.bands else 0):
            raise ValueError(
                f"pattern {self.text!r} with bands {list(self.bands)}: expected {BAND} once where bands are named, "
                f"and nowhere else, such as '{STEM}_{BAND}' with bands ['0000', '0001']."
            )
        if len(set(self.bands)) < len(self.bands) or not all(b and isinstance(b, str) for b in self.bands):
            raise ValueError(f"bands {list(self.bands)}: expected words that differ, such as ['0000', '0001'].")
        rest = self.text.replace(STEM, "s").replace(BAND, "b")
        if "{" in rest or "}" in rest or "*" in rest:
            raise ValueError(
                f"pattern {self.text!r}: expected no other braces than {STEM} and {BAND}, and no `*`: the whole name "
                "of a file is described."
            )
        ending = next((s for s in _SUFFIXES if self.text.lower().endswith(s)), None)
        if ending is not None:
            raise ValueError(
                f"pattern {self.text!r}: leave the suffix out: {self.text[: -len(ending)]!r} means files of any type."
            )
        check_stem(rest)

    @property
    def is_plain(self) -> bool:
        """Whether files are named as their samples are."""
        return self.text == STEM

    def match(self, name: str) -> tuple[str, str] | None:
        """(stem of the sample, band) that a file's stem stands for, or None; the band is empty where there are none."""
        if self.is_plain:
            return name, ""
        file, place = split_slice_stem(name)
        found = self._expression.fullmatch(file)
        if found is None:
            return None
        return found["stem"] + place, found["band"] if self.bands else ""

    def name(self, stem: str, band: str = "") -> str:
        """The stem of the file that belongs to a sample: the inverse of `match`."""
        file, place = split_slice_stem(stem)
        return self.text.replace(BAND, band).replace(STEM, file) + place

    def by_stem(self, names: Iterable[str]) -> dict[str, str]:
        """Stem of the sample -> name, of those names that match; for patterns without bands.

        Raises:
            ValueError: two names of one sample.
        """
        found: dict[str, str] = {}
        for name in names:
            match = self.match(name)
            if match is None:
                continue
            if found.setdefault(match[0], name) != name:
                raise ValueError(
                    f"{found[match[0]]!r} and {name!r} both belong to sample {match[0]!r} by the pattern "
                    f"{self.text!r}: keep one of them."
                )
        return found

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        text = re.escape(self.text)
        bands = "|".join(re.escape(band) for band in self.bands)
        # The shortest stem leaves the longest band: `a_left_1` is band `left_1` of `a`, not band `1` of `a_left`.
        return re.compile(
            text.replace(re.escape(STEM), "(?P<stem>.+?)").replace(re.escape(BAND), f"(?P<band>{bands})"),
            re.DOTALL,
        )
