"""Commands that choose what is done with a trained model's answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segkit.commands.options import DeviceOption, JsonOption, TileOption, TtaOption
from segkit.console import complain, progress

if TYPE_CHECKING:
    from segkit.inference.tuning import Tuning


def tune(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle; its description is written anew.")],
    config: Annotated[Path | None, typer.Option(help="Config; default that of the run folder.")] = None,
    split: Annotated[str, typer.Option(help="Part of the config's data: val, or train where there is none.")] = "val",
    criterion: Annotated[str, typer.Option(help="pooled_dice, pooled_iou, per_image_dice, per_image_iou.")] = (
        "pooled_dice"
    ),
    folds: Annotated[int, typer.Option(help="Parts; each is scored by what the others choose.")] = 5,
    group: Annotated[
        str | None, typer.Option(help="Stems with the same first group of this regex stay together.")
    ] = None,
    thresholds: Annotated[bool, typer.Option(help="Tune thresholds.")] = True,
    postprocess: Annotated[bool, typer.Option(help="Fit steps of post-processing.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be kept; write nothing.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    tta: TtaOption = None,
    json: JsonOption = None,
) -> None:
    """Choose thresholds and post-processing on validation data; what helps is stored in the model."""
    from segkit.config import read_config
    from segkit.experiment import open_evaluation, write_json
    from segkit.inference.tuning import tune as choose
    from segkit.models.bundle import update_bundle
    from segkit.shipped import find_config

    if split == "test":
        raise ValueError("--split test: what is chosen on the test part makes its scores worthless. Choose on val.")
    if split == "train":
        complain("the model has seen the training part: what is chosen on it may not hold for other images.")
    if not dry_run:
        _check_writable(model)
    path = config and find_config(config)
    network, data, part = open_evaluation(model, path, overrides or [], split, None, None)
    if group is None:
        read = read_config(path if path is not None else model / "config.yaml", overrides or [])
        group = read.data.val.group if read.data.val is not None else None
    done = choose(
        network,
        data,
        criterion=criterion,
        folds=folds,
        group=group,
        thresholds=thresholds,
        steps=postprocess,
        device=device,
        tile=tile,
        tta=tta,
        progress=progress,
    )
    _show(done)
    if done.improved and not dry_run:
        update_bundle(model, done.format, done.postprocess, tuned={**done.summary(), "split": part, "tta": tta})
        typer.echo(f"{model}: thresholds and post-processing are stored.")
    else:
        typer.echo(f"{model}: left as it is" + (", as --dry-run asks." if dry_run else "; nothing helps."))
    if json is not None:
        write_json(json, {**done.to_dict(), "split": part, "tta": tta, "stored": done.improved and not dry_run})


def _check_writable(model: Path) -> None:
    """Before anything is computed."""
    from segkit.models.bundle_files import find_bundle

    folder = find_bundle(model)
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{folder}: cannot be written to, and what is chosen is stored there. Copy the model to a folder of yours, "
            "or let --dry-run tell what would be kept."
        )


def _show(done: Tuning) -> None:
    """What was tried and what it gave, in percent."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{done.criterion} in percent, {done.images} images, {done.folds} folds"
    table = Table(title=title)
    for name in ("what", "before", "cross-fitted", "kept"):
        table.add_column(name, justify="right" if name in ("before", "cross-fitted") else "left")
    for choice in done.thresholds:
        names = ", ".join(choice.classes) if len(choice.classes) <= 3 else f"{len(choice.classes)} classes"
        change = f"threshold of {names}: {_threshold(choice.before)} to {_threshold(choice.best)}"
        scores = (_percent(choice.score_before), _percent(choice.cross_fitted))
        table.add_row(escape(change), *scores, "yes" if choice.kept else "no")
    for step in done.steps:
        what = step.what if step.best is None else f"{step.what}: {step.best.describe()}"
        scores = (_percent(step.score_before), _percent(step.cross_fitted))
        table.add_row(escape(what), *scores, "yes" if step.kept else "no")
    table.add_section()
    table.add_row("all", _percent(done.before), _percent(done.cross_fitted), "yes" if done.improved else "no")
    Console().print(table)
    for note in done.notes:
        typer.echo(note)
    typer.echo(f"on the images that chose it: {_percent(done.plain)} %, which is too good; cross-fitted is honest.")


def _threshold(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100.0 * score:.2f}"
