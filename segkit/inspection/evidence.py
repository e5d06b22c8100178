"""What the sums of a survey say about classes: which exclude each other, which lie inside another, which never meet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from segkit.inspection.stored import Key
from segkit.inspection.survey import Survey

# An inner class may leave the outer one where a hand slipped.
INSIDE = 0.95
# Two classes that chance alone would bring together in three images, and that never meet: e^-3 is 5 %.
_EXPECTED = 3.0
# Pairs grow with the square of the classes: those told, and those counted (blurred masks hold all 256 values).
_MOST_PAIRS = 200
_MOST_COUNTED = 5_000_000


@dataclass(frozen=True)
class PairEvidence:
    """Two classes that share pixels.

    Attributes:
        pixels: that both hold.
        iou: of the two.
        share_of_a, share_of_b: of each class that lies in the other.
    """

    a: Key
    b: Key
    pixels: int
    iou: float
    share_of_a: float
    share_of_b: float


@dataclass(frozen=True)
class Overlap:
    """How classes share pixels.

    Attributes:
        labels: pixels with no label, with one, with two or more.
        pairs: that share pixels, most first.
        containment: (inner, outer, share of the inner class's pixels inside the outer one).
        never_together: pairs that no image holds, though chance alone would put them into several.
        images_with_two: images that hold two classes or more; without one nothing shows whether classes exclude
            each other.
    """

    labels: tuple[int, int, int]
    pairs: list[PairEvidence] = field(default_factory=list)
    containment: list[tuple[Key, Key, float]] = field(default_factory=list)
    never_together: list[tuple[Key, Key]] = field(default_factory=list)
    images_with_two: int = 0

    @property
    def chains(self) -> list[tuple[Key, ...]]:
        """Classes that lie inside each other, from the outermost to the innermost: `(WT, TC, ET)`."""
        inside: dict[Key, set[Key]] = {}
        for inner, outer, _ in self.containment:
            inside.setdefault(outer, set()).add(inner)
        # Straight into the next: what lies inside something inside is told there.
        steps = {
            outer: [i for i in inner if not any(i in inside.get(other, ()) for other in inner if other != i)]
            for outer, inner in inside.items()
        }

        def walk(way: tuple[Key, ...]) -> list[tuple[Key, ...]]:
            longer = [found for step in sorted(steps.get(way[-1], ()), key=str) for found in walk((*way, step))]
            return longer or [way]

        innermost = {inner for inners in inside.values() for inner in inners}
        return [way for outer in inside if outer not in innermost for way in walk((outer,))]

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """`labels` as shares of all pixels."""
        total = sum(self.labels)
        return None if total == 0 else (self.labels[0] / total, self.labels[1] / total, self.labels[2] / total)


def find_overlap(survey: Survey, per_class: bool, unlabelled: Sequence[Key] = ()) -> Overlap:
    """How the classes of a survey share pixels.

    Args:
        per_class: classes are held each for itself, so that they could overlap.
        unlabelled: values that name no class: the background of a binary mask, ignored values.
    """
    classes = [key for key in survey.pixels if key not in unlabelled]
    presence = Counter(seen.values.difference(unlabelled) for seen in survey.seen if seen.mask_hw is not None)
    never = _never_together(classes, presence, sum(presence.values()))
    two = sum(count for held, count in presence.items() if len(held) > 1)
    if not per_class:
        none = sum(survey.pixels[key] for key in unlabelled)
        return Overlap((none, survey.total - none, 0), never_together=never, images_with_two=two)
    pairs = [_pair(survey, a, b, pixels) for (a, b), pixels in survey.both.most_common()]
    labels = (survey.labels[0], survey.labels[1], survey.labels[2])
    return Overlap(labels, pairs, _containment(survey, pairs), never, two)


def _pair(survey: Survey, a: Key, b: Key, pixels: int) -> PairEvidence:
    of_a, of_b = survey.pixels[a], survey.pixels[b]
    return PairEvidence(a, b, pixels, pixels / (of_a + of_b - pixels), pixels / of_a, pixels / of_b)


def _containment(survey: Survey, pairs: list[PairEvidence]) -> list[tuple[Key, Key, float]]:
    """The smaller of two classes inside the larger one; two classes of equal pixels contain each other once."""
    found = []
    for pair in pairs:
        inner, outer, share = pair.a, pair.b, pair.share_of_a
        if survey.pixels[pair.a] > survey.pixels[pair.b]:
            inner, outer, share = pair.b, pair.a, pair.share_of_b
        if share >= INSIDE:
            found.append((inner, outer, share))
    return sorted(found, key=lambda entry: (-survey.pixels[entry[1]], -survey.pixels[entry[0]]))


def _never_together(classes: list[Key], presence: Counter[frozenset[Key]], images: int) -> list[tuple[Key, Key]]:
    if len(classes) ** 2 + sum(len(held) ** 2 for held in presence) > _MOST_COUNTED:
        return []
    together: Counter[tuple[Key, Key]] = Counter()
    alone: Counter[Key] = Counter()
    order = {key: number for number, key in enumerate(classes)}
    for held, count in presence.items():
        listed = sorted(held, key=order.__getitem__)
        for first, a in enumerate(listed):
            alone[a] += count
            for b in listed[first + 1 :]:
                together[a, b] += count
    expected = {
        (a, b): alone[a] * alone[b] / images
        for first, a in enumerate(classes)
        for b in classes[first + 1 :]
        if (a, b) not in together and alone[a] * alone[b] >= _EXPECTED * images
    }
    return sorted(expected, key=expected.__getitem__, reverse=True)[:_MOST_PAIRS]
