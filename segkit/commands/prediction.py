"""Commands that run a model on new images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segkit.commands.options import AxesOption, DeviceOption, EnsembleOption, JsonOption, TileOption, TtaOption
from segkit.console import complain, progress


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="Image files, folders or patterns.")
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="A text file with one input per line; - is standard input."),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the classes over the images.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write them as NPZ.")] = False,
    objects: Annotated[bool, typer.Option("--objects", help="Also write connected regions as COCO JSON.")] = False,
    axes: AxesOption = None,
    codec: Annotated[str | None, typer.Option(help="How masks are written, if not as those of training.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the job in OUT; begin it if there is none.")
    ] = False,
    overwrite: Annotated[
        str | None,
        typer.Option(metavar="always|never", help="Masks that are there: write anew, or keep. Default: write anew."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of a batch; default 4 on a CPU, else 8.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do part I of N; by default what torchrun or srun says.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="auto|local|HOST:PORT", help="Compute on a Ray cluster."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on the Ray cluster; default one for each GPU, else each machine.")
    ] = None,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    tta: TtaOption = None,
    ensemble: EnsembleOption = None,
    json: JsonOption = None,
) -> None:
    """Predict masks for images, in the codec of the training masks."""
    from segkit.experiment import write_json
    from segkit.formats.codecs import open_codec
    from segkit.inference.inputs import read_input_list
    from segkit.inference.predictor import Predictor
    from segkit.inference.shards import Shard, launched_shard, own_device
    from segkit.processes import is_main_process
    from segkit.training.preemption import preemptible

    if not inputs and listed is None:
        raise ValueError("nothing to predict: give INPUTs (image files, folders, patterns) or `--list FILE`.")
    part = launched_shard()
    if shard is not None and part.together:
        raise ValueError(f"torchrun has given this process part {part} already: leave --shard out.")
    part = part if shard is None else Shard.parse(shard)
    if ray is not None and part.together:
        raise ValueError("torchrun has started several processes of this job, and Ray would too: start one for --ray.")
    if workers is not None and ray is None:
        raise ValueError("--workers is of jobs on a Ray cluster: say --ray as well.")
    models = [model, *(ensemble or [])]
    with preemptible(), progress("predicting", "images") as update:
        options: dict[str, Any] = {
            "inputs": [*(inputs or []), *(read_input_list(listed) if listed is not None else [])],
            "out": out,
            "axes": axes,
            "overlay": overlay,
            "probabilities": probabilities,
            "objects": objects,
            "batch_size": batch_size,
            "overwrite": overwrite,
            "resume": resume,
            "shard": part,
            "progress": update,
        }
        if ray is not None:
            from segkit.inference.ray_jobs import predict_on_ray

            report = predict_on_ray(
                models, address=ray, workers=workers, codec=codec, device=device, tile=tile, tta=tta, **options
            )
        else:
            predictor = Predictor(models, device=own_device(device), tile=tile, tta=tta)
            if codec is not None:
                predictor.codec = open_codec(codec, predictor.model.format)
            report = predictor.predict_files(**options)
    if is_main_process() or not part.together:
        for file, reason in report.failed:
            complain(reason if file in reason else f"{file}: {reason}")
        if json is not None:
            write_json(json, report.to_dict())
        rate = report.to_dict()["images_per_second"]
        whole = "" if report.complete else f" by part {part}; others are not done yet"
        typer.echo(f"{report.done} masks in {out}" + (f" ({rate:.1f} images/s)" if rate else "") + whole)
    if report.failed:
        raise typer.Exit(1)
