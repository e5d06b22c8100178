"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
TileOption = Annotated[int | None, typer.Option(help="Side of the windows; by default only above 4 megapixels.")]
AxesOption = Annotated[
    str | None, typer.Option(metavar="zyx", help="Volumes: average over the slices across each of these axes.")
]
TtaOption = Annotated[
    str | None, typer.Option(metavar="VIEWS", help="Average over views: flips, rotations, scales, hflip, scale=0.75.")
]
EnsembleOption = Annotated[
    list[Path] | None, typer.Option("--ensemble", metavar="MODEL", help="Average with this model too; may be repeated.")
]
