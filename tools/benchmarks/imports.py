"""What imports cost, in whole processes: what a user waits for before the first line of a script runs."""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.processes import run_python
from benchmarks.rows import Entry, Goal, Row
from benchmarks.timing import Settings, rounds_of

_SEGKIT_LOSS = 'from segkit import MaskFormat, build_loss; build_loss("dice", MaskFormat.binary())'
_SEGKIT_MODEL = (
    'from segkit import MaskFormat, build_model; build_model("unet", "resnet18", MaskFormat.binary(), weights=None)'
)
_SMP_MODEL = 'import segmentation_models_pytorch as smp; smp.Unet("resnet18", encoder_weights=None)'

# Title -> baseline, and name -> (code, goal).
_ROWS: dict[str, tuple[str | None, dict[str, tuple[str, Goal | None]]]] = {
    "before torch is needed": (
        None,
        {"python alone": ("pass", None), "import segkit": ("import segkit", Goal(0.3))},
    ),
    "format and loss": (
        "import torch",
        {"import torch": ("import torch", None), "segkit: MaskFormat, build_loss": (_SEGKIT_LOSS, Goal(1.10))},
    ),
    "a model": (
        "SMP: U-Net/ResNet-18",
        {
            "SMP: U-Net/ResNet-18": (_SMP_MODEL, None),
            "import segmentation_models_pytorch": ("import segmentation_models_pytorch", None),
            "import lightning": ("import lightning", None),
            "segkit: U-Net/ResNet-18": (_SEGKIT_MODEL, Goal(1.05)),
        },
    ),
}


def imports(settings: Settings) -> list[Row]:
    """Seconds from the start of the interpreter to its end."""
    rows = []
    titles = list(_ROWS)
    if settings.small:  # a process that builds a model takes seconds, however small the model
        titles, settings = titles[:2], replace(settings, rounds=1)
    for title in titles:
        baseline, ways = _ROWS[title]
        entries = [Entry(name, goal=goal) for name, (_, goal) in ways.items()]
        if not settings.small:
            for code, _ in ways.values():
                _seconds(code)  # reads the files from disk and compiles them
        for _ in rounds_of(f"imports: {title}", settings):
            for entry in entries:
                entry.samples.append(_seconds(ways[entry.name][0]))
        rows.append(Row("imports", f"whole process: {title}", "s", entries, baseline).relate())
    return rows


def _seconds(code: str) -> float:
    started_s = time.perf_counter()
    done = run_python("-c", code)
    seconds = time.perf_counter() - started_s
    if done.returncode:
        raise RuntimeError(f"`{code}` failed:\n{done.stderr[-2000:]}")
    return seconds
