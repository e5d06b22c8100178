"""Commands that write a model for other programs, and that check copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import DeviceOption, JsonOption
from segkit.console import complain

ToleranceOption = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of the pixels of an image in which masks may differ.")
]


def export(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch and aoti.")],
    format: Annotated[str, typer.Option(help="onnx, torch (torch.export) or aoti (compiled).")] = "onnx",
    probabilities: Annotated[
        bool, typer.Option("--probabilities/--no-probabilities", help="Give them as the second output.")
    ] = True,
    images: Annotated[
        list[str] | None, typer.Option(metavar="INPUT", help="Also check on these: files, folders or patterns.")
    ] = None,
    tolerance: ToleranceOption = 1e-3,
    json: JsonOption = None,
) -> None:
    """Write a model as one file, stored images in and planes out, checked against the model."""
    from segkit.experiment import write_json
    from segkit.inference.export import export_bundle, read_checked_images

    given = read_checked_images(model, images or [])
    report = export_bundle(model, out, format, probabilities=probabilities, images=given, tolerance=tolerance)
    if json is not None:
        write_json(json, report.to_dict())
    smallest = f", images from {report.least_side} pixels a side on" if report.least_side > 1 else ""
    typer.echo(
        f"{out}: {report.format}, {report.bytes / 2**20:.1f} MiB, gives {' and '.join(report.outputs)}{smallest}; "
        f"{report.checked.describe()}"
    )


def verify(
    model: Annotated[Path, typer.Argument(help="Run folder, bundle or exported file.")],
    against: Annotated[Path | None, typer.Option(help="Bundle whose masks count, in place of those kept.")] = None,
    tolerance: ToleranceOption = 1e-3,
    device: DeviceOption = "cpu",
    json: JsonOption = None,
) -> None:
    """Run a model on its golden images: does it still give the masks that it gave when it was trained?"""
    from segkit.experiment import write_json
    from segkit.inference.verify import verify as check
    from segkit.models.devices import pick_device

    found = check(model, against, pick_device(device))
    same = found.compared.within(tolerance)
    if json is not None:
        write_json(json, {**found.to_dict(), "tolerance": tolerance, "same": same})
    typer.echo(f"{model}: {found.compared.describe()}")
    for name, then in found.then.items():
        typer.echo(f"masks were kept with {name} {then}, now it is {found.now[name]}")
    if not same:
        complain(f"{model}: {found.compared.worst:.3g} is more than the {tolerance:g} that is allowed.")
        raise typer.Exit(1)
