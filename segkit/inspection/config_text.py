"""A config that trains as it stands, with the reason for every value beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from segkit.inspection.advice import Advice
from segkit.inspection.meaning import Meaning
from segkit.inspection.parts import Source

# Written bare: words that no YAML reader takes for anything else.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
_NOT_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_WIDTH = 110


def config_text(
    source: Source,
    meaning: Meaning,
    advice: Advice,
    facts: str,
    quarantine: str | None = None,
    axis: str | None = None,
    leaked: int = 0,
) -> str:
    """YAML of a whole config.

    Args:
        facts: a line on the data, for the head.
        quarantine: file of samples to leave out, relative to the root of the data.
        axis: across which volumes are cut; None where there are none.
        leaked: training images that another part holds too.
    """
    if advice.masks is None:
        raise ValueError(
            f"{source.root}: there is nothing to train on and no config to write. {' '.join(meaning.reasons)}"
        )
    lines = [f"# Written by `segkit inspect`: {facts}.", *(f"# {reason}" for reason in meaning.reasons)]
    lines += ["masks:", *_masks(meaning, advice.masks)]
    lines += ["data:", *_data(source, advice, quarantine, axis, leaked)]
    lines += [_comment(f"augment: {advice.augment}", _AUGMENTS[advice.augment])]
    model = {"architecture": advice.architecture, "encoder": advice.encoder, "weights": advice.weights}
    lines += [_comment(f"model: {flow(model)}", "light, pretrained on ImageNet")]
    lines += _loss(meaning, advice)
    lines += [
        "train:",
        _comment(f"  epochs: {advice.epochs}", "enough for a pretrained encoder; the best epoch is kept"),
        _comment(
            f"  batch_size: {advice.batch_size}",
            "about the pixels of eight crops of 320, at most 16",
        ),
        "  lr: 1e-3",
        "  seed: 0",
        _comment(f"  monitor: {_monitor(meaning)}", "decides which epoch is best, on data.val"),
    ]
    return "\n".join(lines) + "\n"


def flow(value: Any) -> str:
    """YAML of a value in one line: `{0: background, 255: nucleus}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        bare = _WORD.fullmatch(value) and value.lower() not in _NOT_WORDS
        return value if bare else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


_AUGMENTS = {
    "street": "flips, scales and colours for photos; `none` and `light` do less",
    "medical": "flips, turns and bends: no direction is up; `none` and `light` do less",
    "light": "flips and brightness; with other bands than three, colour changes mean nothing",
}


def _masks(meaning: Meaning, masks: Mapping[str, Any]) -> list[str]:
    comments = {
        "format": _FORMATS[masks["format"]],
        "activation": "see docs/sigmoid-or-softmax.md",
        "ignored_values": "neither trained on nor scored",
    }
    lines = []
    for key, value in masks.items():
        lines += _wrapped(f"  {key}: ", value, comments.get(key, ""))
    if meaning.candidates:
        found = ", ".join(map(str, meaning.candidates))
        lines.append(
            f'  # Does {found} mean "do not look here"? Then take it out of the classes: ignored_values: [{found}]'
        )
    return lines


_FORMATS = {
    "binary": "one class against the rest",
    "multilabel": "classes may overlap: all, some or none hold at a pixel",
    "multiclass": "exactly one class per pixel",
}


def _data(source: Source, advice: Advice, quarantine: str | None, axis: str | None, leaked: int) -> list[str]:
    lines = []
    for key, value in source.config.items():
        lines.append(f"  {key}: {flow(value)}")
        if key == "train" and advice.val is not None:
            lines.append(_comment(f"  val: {flow(advice.val)}", advice.val_reason))
    if "train" not in source.config and advice.val is not None:
        lines.append(_comment(f"  val: {flow(advice.val)}", advice.val_reason))
    if advice.crop is not None:
        lines.append(_comment(f"  crop: {advice.crop}", "cut at random while training; scored are whole images"))
    if advice.normalize is not None:
        lines.append(_comment(f"  normalize: {advice.normalize}", "intensities differ from scan to scan"))
    if axis is not None:
        lines.append(_comment(f"  axis: {axis}", "volumes are cut across it"))
    if leaked:
        lines.append(
            _comment("  leaks: warn", f"{leaked} images are in train and in another part: leave out one of each")
        )
    if quarantine is not None:
        lines.append(_comment(f"  quarantine: {flow(quarantine)}", "samples with faults, left out"))
    return lines


def _loss(meaning: Meaning, advice: Advice) -> list[str]:
    if all(weight == 1 for weight in advice.class_weights):
        return [_comment("loss: {cross_entropy: 1, dice: 1}", "Dice evens out rare classes")]
    weights = dict(zip(meaning.classes, advice.class_weights, strict=True))
    return [
        "loss:",
        _comment("  cross_entropy:", "weights: square root of median frequency / frequency, within 0.1 and 10"),
        *_wrapped("    class_weights: ", weights, ""),
        "  dice: 1",
    ]


def _monitor(meaning: Meaning) -> str:
    return "pooled_iou" if meaning.activation == "softmax" else "pooled_dice"


def _comment(line: str, comment: str) -> str:
    return f"{line:<34}  # {comment}" if comment else line


def _wrapped(head: str, value: Any, comment: str) -> list[str]:
    """`head` and a value in flow style, broken into lines at commas where it is long."""
    line = head + flow(value)
    if len(line) <= _WIDTH:
        return [_comment(line, comment)]
    lines, current, indent = [], head, " " * (len(head) - len(head.lstrip()) + 2)
    for piece in _pieces(flow(value)):
        if len(current) + len(piece) > _WIDTH and current.strip():
            lines.append(current.rstrip())
            current = indent
        current += piece
    lines.append(current.rstrip())
    return [f"{head[: len(head) - len(head.lstrip())]}# {comment}", *lines] if comment else lines


def _pieces(text: str) -> list[str]:
    """`text` cut behind commas that are not inside quotes."""
    return re.findall(r'(?:"(?:\\.|[^"\\])*"|[^",])*(?:, ?|$)', text)
