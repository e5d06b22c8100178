"""Commands that look at data and at this installation, and that give something to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import JsonOption
from segkit.console import progress, show_scores
from segkit.processes import free_run

# Short here, so that `segkit --help` imports nothing; `segkit.inspection.naming` reads it.
_CLASSES_HELP = (
    "Names of the values in the masks: 0=sky,1=road,11=ignore (ignore: not trained on; colours as '#ff0000=road'), "
    "or names alone, in the order of the values: sky,road,ignore."
)


def inspect(
    root: Annotated[Path | None, typer.Argument(help="Data set with folders that segkit knows.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, in place of ROOT.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of masks, or a COCO file.")] = None,
    layout: Annotated[str | None, typer.Option(help="How ROOT lies; default: told from its folders.")] = None,
    image_pattern: Annotated[str | None, typer.Option(help="Names of image files, such as '{stem}_image'.")] = None,
    mask_pattern: Annotated[str | None, typer.Option(help="Names of mask files, such as '{stem}_mask'.")] = None,
    bands: Annotated[
        str | None, typer.Option(metavar="LIST", help="What '{band}' in --image-pattern stands for: flair,t1c.")
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="LIST", help=_CLASSES_HELP)] = None,
    write: Annotated[Path | None, typer.Option(metavar="CONFIG", help="Write a config that trains.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures.")] = None,
    quarantine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="List bad samples, for `data.quarantine`.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if there is any fault.")] = False,
    json: JsonOption = None,
) -> None:
    """Look at a data set: what it holds, what is wrong with it, sigmoid or softmax and why."""
    from rich.console import Console

    from segkit.config import write_config
    from segkit.experiment import write_json
    from segkit.inspection.naming import parse_classes
    from segkit.inspection.parts import find_source
    from segkit.inspection.run import inspect as look
    from segkit.inspection.terminal import show_report

    source = find_source(
        root, images, masks, layout, image_pattern, mask_pattern, None if bands is None else bands.split(",")
    )
    with progress("inspecting") as update:
        found = look(source, None if classes is None else parse_classes(classes), progress=update)
    show_report(found.report, Console())
    if json is not None:
        write_json(json, found.report)
    if write is not None and found.bad and quarantine is None:
        quarantine = write.with_name(f"{write.stem}_quarantine.txt")  # or it would not train as it stands
    if quarantine is not None:
        found.write_quarantine(quarantine)
        count = f"{len(found.bad)} sample{'' if len(found.bad) == 1 else 's'}"
        typer.echo(f"{quarantine}: {count} to leave out with data.quarantine={quarantine}")
    if html is not None:
        found.write_page(html, quarantine)
        typer.echo(f"{html}: written. It opens in any browser.")
    if write is not None:
        write_config(write, found.config(quarantine))
        typer.echo(f"{write}: written. Train with: segkit train {write}")
    if strict and found.report["faults"]:
        raise typer.Exit(1)


def init(
    name: Annotated[str | None, typer.Argument(help="Shipped config; without one, the names are listed.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default NAME.yaml here.")] = None,
) -> None:
    """Copy a shipped config to start from."""
    from segkit.shipped import find_config, shipped_configs

    if name is None:
        for known in shipped_configs().values():
            typer.echo(f"{known.stem:28} {known.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        return
    source = find_config(Path(name))
    target = out if out is not None else Path(f"{source.stem}.yaml")
    if target.exists():
        raise ValueError(f"{target}: exists already. Give another name with --out.")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"{target}: copied. Edit data.root and train with: segkit train {target}")


def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default runs/demo.")] = None,
    data: Annotated[Path, typer.Option(help="Where the slices are written.")] = Path("data/mni152"),
    json: JsonOption = None,
) -> None:
    """The main job on real MRI that comes with the install: train, score, predict."""
    from segkit.demo import run_demo
    from segkit.formats.files import write_whole

    run = out if out is not None else free_run("demo")
    scores = run_demo(run, data, tell=print, progress=progress)
    show_scores(scores)
    if json is not None:
        write_whole(json, (run / "scores.json").read_bytes())


def env(json: JsonOption = None) -> None:
    """Versions and devices, to paste into a bug report."""
    from segkit.experiment import write_json
    from segkit.training.environment import describe_environment

    facts = describe_environment()
    for key, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{key}: {text}")
    if json is not None:
        write_json(json, facts)
