"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import JsonOption
from segkit.console import progress, show_scores
from segkit.processes import free_run, is_main_process


def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file, or the name of a shipped config.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default runs/CONFIG.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do a few batches of everything; print the plan.")] = False,
    find_lr: Annotated[bool, typer.Option("--find-lr", help="Suggest a learning rate by a range test.")] = False,
    json: JsonOption = None,
) -> None:
    """Train a model: a run folder with the best epoch, scores and pictures."""
    from segkit.config import read_config
    from segkit.experiment import resume_experiment, train_experiment
    from segkit.formats.files import write_whole
    from segkit.shipped import find_config
    from segkit.training.preemption import preemptible

    if (config is None) == (resume is None):
        raise ValueError("give a config to train, or --resume RUN to go on with a run; not both.")
    if (dry_run or find_lr) and (resume is not None or (dry_run and (find_lr or out is not None))):
        raise ValueError("--dry-run and --find-lr go with a config, one at a time, and --dry-run without --out.")
    if resume is not None:
        if out is not None:
            raise ValueError("--resume RUN goes on in RUN: leave --out away.")
        with preemptible():
            scores = resume_experiment(resume, tell=print, progress=progress)
        if scores is None:
            if is_main_process():
                typer.echo(f"{resume}: this run is finished; its scores are in {resume / 'scores.json'}.")
            if is_main_process() and json is not None:
                write_whole(json, (resume / "scores.json").read_bytes())
            return
        run = resume
    else:
        assert config is not None
        path = find_config(config)
        if dry_run:
            from segkit.dry_run import show_plan

            with preemptible():  # so that its temporary folder goes
                show_plan(read_config(path, overrides or []), json, progress)
            return
        if find_lr:
            from segkit.lr_search import lr_picture, search_lr

            search_lr(read_config(path, overrides or []), lr_picture(path, out), json, progress=progress)
            return
        run = out if out is not None else free_run(path.stem)
        if is_main_process():
            typer.echo(f"run folder: {run}")
        experiment = read_config(path, overrides or [])
        with preemptible():
            scores = train_experiment(experiment, run, tell=print, progress=progress)
    show_scores(scores)
    if json is not None and is_main_process():
        write_whole(json, (run / "scores.json").read_bytes())


def crossvalidate(
    config: Annotated[Path | None, typer.Argument(help="YAML file, or the name of a shipped config.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts, default 5; each is left out of one training.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Stems with the same first group of this regex stay together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than 0 gives other folds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default runs/CONFIG.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with one that was interrupted.")] = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Also write the out-of-fold masks.")] = False,
    json: JsonOption = None,
) -> None:
    """Train once without each fold of the training part, and score every sample by the model that has not seen it."""
    from segkit.config import read_config
    from segkit.console import show_folds
    from segkit.folds import begin_folds, read_folds, train_folds
    from segkit.shipped import find_config
    from segkit.training.preemption import preemptible

    if (config is None) == (resume is None) or (resume is not None and out is not None):
        raise ValueError("give a config, with or without --out, or --resume RUN to go on in RUN; not both.")
    if resume is not None and (folds, group, seed) != (None, None, None):
        raise ValueError(
            "--folds, --group and --seed are those that RUN began with: leave them away with --resume RUN."
        )
    with preemptible():
        if config is not None:
            path = find_config(config)
            run = out if out is not None else free_run(path.stem)
            experiment = read_config(path, overrides or [])
            begun = begin_folds(experiment, run, 5 if folds is None else folds, group, seed or 0)
        else:
            assert resume is not None
            begun = read_folds(resume)
        scores = train_folds(begun, predictions=predictions, tell=print, progress=progress)
    show_folds(scores, begun.folder, json)
