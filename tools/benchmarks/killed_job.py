"""A job over many images that is killed at random moments: `python tools/benchmarks/killed_job.py IMAGES...`.

Cuts small images out of real ones, breaks some, and predicts them twice with `segkit predict`: once undisturbed, once
killed by SIGKILL and resumed until it ends. Every file of both must be the same. Exit status 1 if not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import torch
import typer

import segkit
from segkit import MaskFormat, build_model, open_codec
from segkit.models.bundle import save_bundle

_SIZES_HW = ((64, 96), (64, 96), (64, 96), (48, 80))
_BROKEN = (b"", b"\x89PNG\r\n\x1a\nnot really", b"\xff\xd8\xff\xe0 no picture")
_FORMAT = MaskFormat.multiclass(["background", "dark", "bright"])


def main(
    sources: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Folders of real images.")],
    images: Annotated[int, typer.Option(help="Images to cut, broken ones included.")] = 10_000,
    broken: Annotated[int, typer.Option(help="Broken ones among them.")] = 20,
    kills: Annotated[int, typer.Option(help="How often the job is killed.")] = 3,
    seed: Annotated[int, typer.Option(help="Of crops and moments.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Kill a job and compare it with one that was left alone."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bad = _write_images(root / "in", sources, images, broken, rng)
        torch.manual_seed(seed)
        model = build_model("unet", "tu-test_resnet", _FORMAT, weights=None, decoder_channels=[16, 8, 8, 8, 8])
        save_bundle(model, root / "model", open_codec("index_png", _FORMAT))
        whole_s = _wait(_predict(root, "whole"))
        killed = [_kill(root, rng, whole_s) for _ in range(kills)]
        _wait(_predict(root, "out"))
        report = json.loads((root / "out.json").read_text())
        named = sorted(Path(entry["file"]).name for entry in report["failed"])
        whole, out = _contents(root / "whole"), _contents(root / "out")
        found = {
            "images": images,
            "done": report["done"],
            "failed": len(report["failed"]),
            "undisturbed_s": round(whole_s, 1),
            "images_per_second": json.loads((root / "whole.json").read_text())["images_per_second"],
            "masks_when_killed": killed,
            "broken_named_once": named == sorted(bad),
            "masks": sum(name.endswith(".png") for name in out),
            "same_files": whole.keys() == out.keys(),
            "differing_files": sum(whole[name] != out[name] for name in whole.keys() & out.keys()),
        }
    print(json.dumps(found, indent=2))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    good = found["broken_named_once"] and found["same_files"] and not found["differing_files"]
    if not (good and found["masks"] == found["done"] == images - broken):
        raise typer.Exit(1)


def _write_images(root: Path, sources: list[Path], images: int, broken: int, rng: random.Random) -> list[str]:
    """Crops of real images, of which no two are the same; the names of the broken ones."""
    paths = sorted(path for source in sources for path in source.iterdir() if path.is_file())
    pictures = [picture for path in paths[:200] if (picture := cv2.imread(str(path))) is not None]
    if not pictures:
        raise typer.BadParameter(f"{sources}: no images here.")
    root.mkdir()
    bad = []
    for number in range(images):
        picture, (height, width) = pictures[number % len(pictures)], rng.choice(_SIZES_HW)
        top, left = rng.randrange(picture.shape[0] - height + 1), rng.randrange(picture.shape[1] - width + 1)
        path = root / f"{number % 7}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), picture[top : top + height, left : left + width])
    for number in sorted(rng.sample(range(images), broken)):
        path = root / f"{number % 7}" / f"{number:06d}.jpg"
        path.write_bytes(rng.choice([*_BROKEN, path.read_bytes()[:200]]))
        bad.append(path.name)
    return bad


def _predict(root: Path, out: str) -> subprocess.Popen[bytes]:
    arguments = ["predict", root / "model", root / "in", "--out", root / out, "--json", root / f"{out}.json"]
    command = [sys.executable, "-m", "segkit.cli", *map(str, arguments), "--device", "cpu", "--resume"]
    path = os.pathsep.join([str(Path(segkit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})


def _wait(process: subprocess.Popen[Any]) -> float:
    """Seconds until a job ended by itself, with the broken images named."""
    started_s = time.monotonic()
    code = process.wait()
    if code not in (0, 1):
        raise RuntimeError(f"segkit predict ended with {code}.")
    return time.monotonic() - started_s


def _kill(root: Path, rng: random.Random, whole_s: float) -> int:
    """Kill a life at a moment after its first batch; the number of masks there are then."""
    before = _masks(root / "out")
    process = _predict(root, "out")
    while _masks(root / "out") == before and process.poll() is None:
        time.sleep(0.2)
    time.sleep(rng.uniform(0, whole_s / 5))
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError("the job ended before it was killed: give more images.")
    return _masks(root / "out")


def _masks(out: Path) -> int:
    return sum(1 for path in out.glob("*/*.png") if not path.name.startswith("."))


def _contents(out: Path) -> dict[str, bytes]:
    """Every file but the journal and the reasons, hidden leftovers included."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "_journal.jsonl"
    }


if __name__ == "__main__":
    typer.run(main)
