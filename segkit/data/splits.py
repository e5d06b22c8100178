"""Which samples belong to which part: from a list file, or a seeded share that keeps groups together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from segkit.data.images import IMAGE_SUFFIXES
from segkit.formats.nifti_slices import NIFTI_SUFFIXES, parse_slice_stem
from segkit.suggest import closest

_PARTS = ("train", "val", "test")


def split_stems(
    stems: Iterable[str], fraction: float, seed: int = 0, group: str | None = None
) -> tuple[list[str], list[str]]:
    """Divide stems into the rest and a part; all stems of one group stay on one side.

    The order of groups is that of a hash of (seed, name of the group), so a split neither depends on the order of the
    files nor on the platform, and a new group moves at most one other across the border.

    Args:
        stems: names of all samples.
        fraction: share of the groups that go into the part, in (0, 1); at least one group stays on either side.
        seed: another seed gives another split.
        group: regular expression searched in each stem; its first capture group names the stem's group.
            Default: slices of one volume (`case@z017`) are one group, every other stem is its own.

    Returns:
        (rest, part), both sorted.

    Raises:
        ValueError: a fraction outside (0, 1), a stem the expression does not match, or fewer than two groups.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction is {fraction}: expected a share of the groups between 0 and 1, both excluded.")
    groups = _groups(stems, group)
    if len(groups) < 2:
        raise ValueError(
            f"a split needs at least two groups, and there is only {list(groups)}, "
            f"of {sum(map(len, groups.values()))} samples. "
            "Give a `group` expression that tells more apart, or name the samples in a list."
        )
    order = sorted(groups, key=lambda name: _place(seed, name))
    count = min(max(1, round(fraction * len(order))), len(order) - 1)
    chosen = set(order[:count])
    rest = sorted(s for name in order if name not in chosen for s in groups[name])
    part = sorted(s for name in chosen for s in groups[name])
    return rest, part


def fold_stems(stems: Iterable[str], folds: int, seed: int = 0, group: str | None = None) -> list[list[str]]:
    """Deal stems into folds of about one size; all stems of one group lie in one fold.

    The largest group goes first, each into the fold that holds fewest samples so far; among groups of one size the
    order is that of a hash of (seed, name of the group), as in `split_stems`.

    Args:
        stems: names of all samples.
        folds: number of parts, 2 or more.
        seed: another seed gives other folds.
        group: see `split_stems`.

    Returns:
        Stems of each fold, sorted; none is empty, and together they are all.

    Raises:
        ValueError: fewer than two folds, fewer groups than folds, or a stem the expression does not match.
    """
    check_folds(folds)
    groups = _groups(stems, group)
    if len(groups) < folds:
        raise ValueError(
            f"{folds} folds need as many groups, and there are {len(groups)}, of {sum(map(len, groups.values()))} "
            f"samples: {', '.join(sorted(groups)[:5])}{', ...' if len(groups) > 5 else ''}. "
            "Take fewer folds, or a `group` expression that tells more apart."
        )
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for name in sorted(groups, key=lambda name: (-len(groups[name]), _place(seed, name))):
        min(dealt, key=len).extend(groups[name])
    return [sorted(fold) for fold in dealt]


def check_folds(folds: int) -> None:
    """Refuse fewer than two folds."""
    if folds < 2:
        raise ValueError(f"folds is {folds}: expected 2 or more, as each is left out once.")


def read_stem_list(path: str | Path) -> list[str]:
    """Names from a text file, one per line; blank lines and lines that start with `#` are passed over.

    Raises:
        ValueError: no such file, an empty list, or a name given twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a list of samples ({error}).") from None
    found: dict[str, int] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        if line in found:
            raise ValueError(f"{path}, line {number}: {line!r} stands in line {found[line]} already. Remove one.")
        found[line] = number
    if not found:
        raise ValueError(f"{path}: names no sample. Write one stem per line.")
    return list(found)


def can_be_listed(stem: str) -> bool:
    """Whether `read_quarantine` would find a stem again, written as a line of its own."""
    try:
        stem.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    named, sign, _ = stem.partition(": ")
    return stem.strip().splitlines() == [stem] and stem[0] != "#" and not (sign and named in _PARTS)


def match_stems(names: Iterable[str], known: Iterable[str], where: str | Path) -> list[str]:
    """The known stems that `names` mean, in order, each once.

    A name is a stem, a stem with the suffix of its file (`a.png`), or a volume, which means all its slices.

    Args:
        where: what to name in an error.

    Raises:
        ValueError: a name that is not known, with the closest ones.
    """
    stems = list(known)
    found, lost = find_stems(names, stems)
    if lost:
        shown = ", ".join(lost[:5]) + (f", ... ({len(lost)} in all)" if len(lost) > 5 else "")
        choices = list(dict.fromkeys(case for s in stems if (case := case_of(s)) is not None)) or stems
        raise ValueError(f"{where}: no samples {shown}. {closest(lost[0], choices[:10_000], limit=3)}")
    return found


def read_quarantine(path: str | Path, part: str) -> tuple[list[str], list[str]]:
    """Samples to leave out: lines `STEM` name them in whichever part holds them, lines `PART: STEM` in one part.

    Args:
        part: train, val or test; lines of the other two are passed over.

    Returns:
        Stems of lines without a part, and stems of lines with this one.
    """
    everywhere, here = [], []
    for line in read_stem_list(path):
        named, sign, stem = line.partition(": ")
        if not sign or named not in _PARTS:
            everywhere.append(line)
        elif named == part:
            here.append(stem.strip())
    return everywhere, here


def find_stems(names: Iterable[str], known: Iterable[str]) -> tuple[list[str], list[str]]:
    """What `match_stems` finds, and the names that are not known."""
    stems = dict.fromkeys(known)
    slices: dict[str, list[str]] = {}
    for stem in stems:
        case = case_of(stem)
        if case is not None:
            slices.setdefault(case, []).append(stem)
    found: list[str] = []
    lost: list[str] = []
    for name in names:
        # Of files alone: in `scan1.5` the end is part of the name, and `scan1` is another sample.
        shorter = next((name[: -len(s)] for s in (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES) if name.lower().endswith(s)), name)
        hit = next(([n] if n in stems else slices[n] for n in (name, shorter) if n in stems or n in slices), None)
        if hit is None:
            lost.append(name)
        else:
            found += hit
    return list(dict.fromkeys(found)), lost


def case_of(stem: str) -> str | None:
    """The volume that a slice belongs to (`case` of `case@z017`), or None."""
    try:
        return parse_slice_stem(stem)[0]
    except ValueError:
        return None


def _groups(stems: Iterable[str], group: str | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    key = _group_key(group)
    for stem in sorted(set(stems)):
        groups.setdefault(key(stem), []).append(stem)
    return groups


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _group_key(group: str | None) -> Callable[[str], str]:
    if group is None:
        return lambda stem: case_of(stem) or stem
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"group {group!r}: no regular expression ({error}).") from None
    if pattern.groups < 1:
        raise ValueError(f"group {group!r}: has no capture group. Put the part that names the group in parentheses.")

    def key(stem: str) -> str:
        match = pattern.search(stem)
        if match is None or match.group(1) is None:
            raise ValueError(
                f"group {group!r}: does not match the stem {stem!r}. Widen it, so that it matches all stems."
            )
        return match.group(1)

    return key
