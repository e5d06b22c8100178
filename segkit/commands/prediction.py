"""Commands that run a model on new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import AxesOption, DeviceOption, EnsembleOption, JsonOption, TileOption, TtaOption
from segkit.console import complain, progress


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the classes over the images.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write them as NPZ.")] = False,
    objects: Annotated[bool, typer.Option("--objects", help="Also write connected regions as COCO JSON.")] = False,
    axes: AxesOption = None,
    codec: Annotated[str | None, typer.Option(help="How masks are written, if not as those of training.")] = None,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    tta: TtaOption = None,
    ensemble: EnsembleOption = None,
    json: JsonOption = None,
) -> None:
    """Predict masks for images, in the codec of the training masks."""
    from segkit.experiment import write_json
    from segkit.formats.codecs import open_codec
    from segkit.inference.predictor import Predictor

    predictor = Predictor([model, *(ensemble or [])], device=device, tile=tile, tta=tta)
    if codec is not None:
        predictor.codec = open_codec(codec, predictor.model.format)
    with progress("predicting") as update:
        report = predictor.predict_files(
            inputs, out, axes=axes, overlay=overlay, probabilities=probabilities, objects=objects, progress=update
        )
    for file, reason in report.failed:
        complain(reason if file in reason else f"{file}: {reason}")
    if json is not None:
        write_json(json, report.to_dict())
    rate = report.to_dict()["images_per_second"]
    typer.echo(f"{report.done} masks in {out}" + (f" ({rate:.1f} images/s)" if rate else ""))
    if report.failed:
        raise typer.Exit(1)
