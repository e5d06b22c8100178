"""The `segkit` command: a few calls each, no numerics."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from segkit._version import __version__
from segkit.commands.exporting import export, verify
from segkit.commands.looking import demo, env, init, inspect
from segkit.commands.prediction import predict
from segkit.commands.scoring import evaluate
from segkit.commands.serving import serve
from segkit.commands.training import crossvalidate, train
from segkit.commands.tuning import tune
from segkit.console import complain
from segkit.processes import OthersEnded, is_main_process

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

# In the order of `segkit --help`.
_COMMANDS = (
    (train, "Example: segkit train configs/camvid_multiclass_fpn.yaml data.root=data/camvid train.epochs=5"),
    (
        crossvalidate,
        "Example: segkit crossvalidate nuclei.yaml --folds 5 --group '^(patient[0-9]+)' --out runs/nuclei",
    ),
    (evaluate, "Example: segkit evaluate runs/camvid --config configs/camvid_multiclass_fpn.yaml --split test"),
    (tune, "Example: segkit tune runs/nuclei --config dsb2018_binary_unet --split val"),
    (predict, "Example: segkit predict runs/camvid photos/ 'more/*.jpg' --out predictions --overlay"),
    (export, "Example: segkit export runs/camvid --format onnx --out camvid.onnx"),
    (verify, "Example: segkit verify camvid.onnx --against runs/camvid"),
    (serve, "Example: segkit serve runs/camvid --port 8000"),
    (inspect, "Example: segkit inspect data/camvid --classes 0=sky,1=road,2=ignore --write camvid.yaml"),
    (init, "Example: segkit init camvid_multiclass_fpn --out camvid.yaml"),
    (demo, "Example: segkit demo --out runs/demo"),
    (env, "Example: segkit env --json env.json"),
)
for command, example in _COMMANDS:
    app.command(epilog=example)(command)


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
        complain(error.format_message())
        code = 2
    except ValueError as error:
        complain(str(error))
        code = 2
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}." if error.filename else str(error))
        code = 2
    except OthersEnded as error:
        complain(f"{error}.")
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted.")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
