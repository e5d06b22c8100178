"""Commands that score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import AxesOption, DeviceOption, EnsembleOption, JsonOption, TileOption, TtaOption
from segkit.console import progress, show_scores

# Spelled out, so that `segkit --help` imports no torch; a test holds it against `segkit.metrics.peers`.
_LIKE_HELP = (
    "Also the number that this toolkit would print; may be repeated: mmseg, smp, monai, nnunet, torchmetrics, "
    "paddleseg or ultralytics."
)
LikeOption = Annotated[list[str] | None, typer.Option("--like", metavar="TOOLKIT", help=_LIKE_HELP)]


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
    axes: AxesOption = None,
    tta: TtaOption = None,
    ensemble: EnsembleOption = None,
    like: LikeOption = None,
    json: JsonOption = None,
) -> None:
    """Score a model, or a folder of predicted masks, against true masks."""
    from segkit.config import read_config
    from segkit.experiment import open_evaluation
    from segkit.inference.averaging import open_models
    from segkit.inference.evaluate import evaluate as score
    from segkit.inference.evaluate import evaluate_predictions, evaluate_predictions_of
    from segkit.metrics.peers import check_peers
    from segkit.parts import open_masks, open_part, scored_part
    from segkit.shipped import find_config

    check_peers(like or [])
    if predictions is not None:
        of_models = any(given is not None for given in (model, images, tile, axes, tta))
        if of_models or config is None or ensemble:
            raise ValueError(
                "--predictions DIR goes with --config CONFIG and, in place of the config's data, --masks DIR; "
                "without a MODEL and what is for one (--tile, --axes, --tta, --ensemble)."
            )
        experiment = read_config(find_config(config), overrides or [])
        main = experiment.data.axis[0]
        with progress("scoring masks") as update:
            if masks is not None:
                scores = evaluate_predictions(predictions, masks, open_masks(experiment, main), progress=update)
            else:
                split = scored_part(experiment, split)
                data = open_part(experiment, split, open_masks(experiment)).across(main)
                scores = evaluate_predictions_of(predictions, data, progress=update)
        show_scores(scores, json, split, like)
        return
    if model is None:
        raise ValueError("name a MODEL (run folder or bundle), or give --predictions DIR.")
    network, data, part = open_evaluation(model, config and find_config(config), overrides or [], split, images, masks)
    averaged, _ = open_models([network, *(ensemble or [])], tta)
    with progress("scoring") as update:
        scores = score(averaged, data, device=device, tile=tile, axes=axes, progress=update)
    show_scores(scores, json, part, like)
