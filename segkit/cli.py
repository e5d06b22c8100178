"""The `segkit` command: a few calls each, no numerics."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from segkit._version import __version__
from segkit.console import complain as _complain
from segkit.console import progress as _progress
from segkit.console import show_scores as _show_scores
from segkit.processes import OthersEnded, free_run, is_main_process

app = typer.Typer(
    name="segkit",
    help="Train, score and run semantic segmentation models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Older typer stands on click, newer carries its own copy: the base of all usage errors either way.
_UsageError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
# Short here, so that `segkit --help` imports nothing; `segkit.inspection.naming` reads it.
_CLASSES_HELP = (
    "Names of the values in the masks: 0=sky,1=road,11=ignore (ignore: not trained on; colours as '#ff0000=road'), "
    "or names alone, in the order of the values: sky,road,ignore."
)
TileOption = Annotated[int | None, typer.Option(help="Side of the windows; by default only above 4 megapixels.")]


@app.command(
    epilog="Example: segkit train configs/camvid_multiclass_fpn.yaml data.root=data/camvid train.epochs=5",
)
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
            scores = resume_experiment(resume, tell=print, progress=_progress)
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

            show_plan(read_config(path, overrides or []), json, _progress)
            return
        if find_lr:
            from segkit.lr_search import lr_picture, search_lr

            search_lr(read_config(path, overrides or []), lr_picture(path, out), json, progress=_progress)
            return
        run = out if out is not None else free_run(path.stem)
        if is_main_process():
            typer.echo(f"run folder: {run}")
        experiment = read_config(path, overrides or [])
        with preemptible():
            scores = train_experiment(experiment, run, tell=print, progress=_progress)
    _show_scores(scores)
    if json is not None and is_main_process():
        write_whole(json, (run / "scores.json").read_bytes())


@app.command(epilog="Example: segkit crossvalidate nuclei.yaml --folds 5 --group '^(patient[0-9]+)' --out runs/nuclei")
def crossvalidate(
    config: Annotated[Path | None, typer.Argument(help="YAML file, or the name of a shipped config.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    folds: Annotated[int, typer.Option(help="Parts; each is left out of one training.")] = 5,
    group: Annotated[
        str | None, typer.Option(help="Stems with the same first group of this regex stay together.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other folds.")] = 0,
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
    with preemptible():
        if config is not None:
            path = find_config(config)
            run = out if out is not None else free_run(path.stem)
            begun = begin_folds(read_config(path, overrides or []), run, folds, group, seed)
        else:
            assert resume is not None
            begun = read_folds(resume)
        scores = train_folds(begun, predictions=predictions, tell=print, progress=_progress)
    show_folds(scores, begun.folder, json)


@app.command(epilog="Example: segkit evaluate runs/camvid --config configs/camvid_multiclass_fpn.yaml --split test")
def evaluate(
    model: Annotated[Path | None, typer.Argument(help="Run folder or bundle.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config; with --masks only its masks section.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the config's data: train, val or test.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, in place of a config.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of true masks.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Folder of predicted masks, in place of a model.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model, or a folder of predicted masks, against true masks."""
    from segkit.config import read_config
    from segkit.experiment import open_evaluation
    from segkit.inference.evaluate import evaluate as score
    from segkit.inference.evaluate import evaluate_predictions, evaluate_predictions_of
    from segkit.parts import open_masks, open_part, scored_part
    from segkit.shipped import find_config

    if predictions is not None:
        if model is not None or images is not None or config is None:
            raise ValueError(
                "--predictions DIR goes with --config CONFIG and, in place of the config's data, --masks DIR; "
                "without a MODEL."
            )
        experiment = read_config(find_config(config), overrides or [])
        with _progress("scoring masks") as update:
            if masks is not None:
                scores = evaluate_predictions(predictions, masks, open_masks(experiment), progress=update)
            else:
                split = scored_part(experiment, split)
                data = open_part(experiment, split, open_masks(experiment))
                scores = evaluate_predictions_of(predictions, data, progress=update)
        _show_scores(scores, json, split)
        return
    if model is None:
        raise ValueError("name a MODEL (run folder or bundle), or give --predictions DIR.")
    network, data, part = open_evaluation(model, config and find_config(config), overrides or [], split, images, masks)
    with _progress("scoring") as update:
        scores = score(network, data, device=device, tile=tile, progress=update)
    _show_scores(scores, json, part)


@app.command(epilog="Example: segkit predict runs/camvid photos/ 'more/*.jpg' --out predictions --overlay")
def predict(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the classes over the images.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write them as NPZ.")] = False,
    objects: Annotated[bool, typer.Option("--objects", help="Also write connected regions as COCO JSON.")] = False,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    json: JsonOption = None,
) -> None:
    """Predict masks for images, in the codec of the training masks."""
    from segkit.experiment import write_json
    from segkit.inference.predictor import Predictor

    predictor = Predictor(model, device=device, tile=tile)
    with _progress("predicting") as update:
        report = predictor.predict_files(
            inputs, out, overlay=overlay, probabilities=probabilities, objects=objects, progress=update
        )
    for file, reason in report.failed:
        _complain(reason if file in reason else f"{file}: {reason}")
    if json is not None:
        write_json(json, report.to_dict())
    rate = report.to_dict()["images_per_second"]
    typer.echo(f"{report.done} masks in {out}" + (f" ({rate:.1f} images/s)" if rate else ""))
    if report.failed:
        raise typer.Exit(1)


@app.command(epilog="Example: segkit inspect data/camvid --classes 0=sky,1=road,2=ignore --write camvid.yaml")
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
    with _progress("inspecting") as update:
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


@app.command(epilog="Example: segkit init camvid_multiclass_fpn --out camvid.yaml")
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


@app.command(epilog="Example: segkit demo --out runs/demo")
def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default runs/demo.")] = None,
    data: Annotated[Path, typer.Option(help="Where the slices are written.")] = Path("data/mni152"),
    json: JsonOption = None,
) -> None:
    """The main job on real MRI that comes with the install: train, score, predict."""
    from segkit.demo import run_demo
    from segkit.formats.files import write_whole

    run = out if out is not None else free_run("demo")
    scores = run_demo(run, data, tell=print, progress=_progress)
    _show_scores(scores)
    if json is not None:
        write_whole(json, (run / "scores.json").read_bytes())


@app.command(epilog="Example: segkit env --json env.json")
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


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"segkit {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit 0: all went well; 1: some inputs failed; 2: a user's mistake, one message."""
    logging.basicConfig(format="segkit: %(message)s", level=logging.WARNING)
    logging.getLogger("segkit").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        code = app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except _UsageError as error:
        _complain(error.format_message())
        code = 2
    except ValueError as error:
        _complain(str(error))
        code = 2
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
        code = 2
    except OthersEnded as error:
        _complain(f"{error}.")
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted.")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
