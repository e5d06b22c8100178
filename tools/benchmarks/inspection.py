"""How fast a data set is inspected, beside reading its files and doing nothing with them."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import write_scenes
from benchmarks.rows import Goal, Row
from benchmarks.timing import Contender, Run, Settings, time_row
from segkit import MaskDataset, MaskFormat, open_codec
from segkit.inspection.parts import Source, find_source
from segkit.inspection.run import inspect

_DECODING = "decoding image and mask alone"


def inspection(settings: Settings) -> list[Row]:
    """Files to a report: images/s of `segkit inspect`, beside decoding the same files in as many threads."""
    images, size_hw = (4, (48, 80)) if settings.small else (128, (512, 1024))
    with tempfile.TemporaryDirectory() as folder:
        streets, regions = Path(folder, "streets"), Path(folder, "regions")
        for root in (streets, regions):
            root.mkdir()
        data = write_scenes(streets, images, size_hw)
        nested = _write_regions(regions, data, images // 4)
        threads = min(8, os.cpu_count() or 1)
        height, width = size_hw
        shape = f"{height}x{width} JPEG"
        return [
            _row(f"{shape} + PNG of 19 classes; {threads} threads", data, threads, settings),
            _row(f"{shape} + 4 PNGs of one class each; {threads} threads", nested, threads, settings),
        ]


def _row(title: str, data: MaskDataset, threads: int, settings: Settings) -> Row:
    source = find_source(images=data.images, masks=data.masks)
    contenders = [
        Contender(_DECODING, lambda: _decode(data, threads), result=_pixels),
        Contender("segkit inspect", lambda: lambda: _inspected(source, threads), Goal(0.8, True), _pixels),
    ]
    return time_row("inspect", title, _DECODING, contenders, settings, images=len(data))


def _decode(data: MaskDataset, threads: int) -> Run:
    """Every image and every mask as a loader reads them, of which nothing is kept but sizes."""

    def run() -> int:
        with ThreadPoolExecutor(threads) as pool:
            sizes = pool.map(lambda index: data.read(index).size_hw, range(len(data)))
            return sum(height * width for height, width in sizes)

    return run


def _inspected(source: Source, threads: int) -> int:
    report = inspect(source, workers=threads).report
    return sum(size["height"] * size["width"] * size["count"] for size in report["sizes"])


def _pixels(total: int) -> list[Tensor]:
    return [torch.tensor([total])]


def _write_regions(root: Path, streets: MaskDataset, images: int) -> MaskDataset:
    """The same pictures, with four classes that lie inside each other as a file each."""
    format = MaskFormat.multilabel([f"region{number}" for number in range(4)])
    codec = open_codec("file_per_class", format)
    (root / "images").mkdir()
    for index in range(images):
        stem, indices = streets.stems[index], streets.read(index).planes[..., 0]
        planes = np.stack([indices < 16 >> number for number in range(4)], axis=2).astype(np.uint8)
        codec.write(root / "masks", stem, planes)
        path = streets.image_path(index)
        (root / "images" / path.name).write_bytes(path.read_bytes())
    return MaskDataset(root / "images", root / "masks", codec)
