"""Commands that answer over a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segkit.commands.options import DeviceOption, EnsembleOption, TileOption, TtaOption

_MISSING = "segkit serve needs {name}, which is not installed: pip install 'segkit[serve]'"


def serve(
    model: Annotated[Path, typer.Argument(help="Run folder, bundle or exported file.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    device: DeviceOption = "auto",
    tile: TileOption = None,
    tta: TtaOption = None,
    ensemble: EnsembleOption = None,
    batch_size: Annotated[int, typer.Option(help="Most images of one size that are computed together.")] = 8,
    max_mebibytes: Annotated[float, typer.Option(help="Largest image file.")] = 32,
    max_megapixels: Annotated[float, typer.Option(help="Largest image, told from the header of its file.")] = 50,
    max_requests: Annotated[int, typer.Option(help="Answered at the same time; more are told to come again.")] = 256,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further name by which browsers may call a server on loopback.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Other web page that may read answers, such as https://example.org.")
    ] = None,
) -> None:
    """Answer images with masks over HTTP, with a page to try it in a browser."""
    try:
        from segkit.serving.app import build_app
        from segkit.serving.running import LOOPBACK_NAMES, address_of, is_loopback, open_socket, run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("segkit"):
            raise
        raise ValueError(_MISSING.format(name=error.name)) from None
    from segkit.inference.predictor import Predictor
    from segkit.serving.limits import MEBIBYTE, Limits

    limits = Limits(
        max_bytes=round(max_mebibytes * MEBIBYTE), max_pixels=round(max_megapixels * 1e6), max_requests=max_requests
    )
    predictor = Predictor([model, *(ensemble or [])], device=device, tile=tile, tta=tta)
    # Before the address is told: whoever reads it may connect.
    with open_socket(host, port) as opened:
        hosts = [*LOOPBACK_NAMES, *(allow_host or [])] if is_loopback(opened) else None
        app = build_app(
            predictor, name=model.resolve().name, limits=limits, batch_size=batch_size, hosts=hosts,
            origins=allow_origin or [],
        )  # fmt: skip
        typer.echo(f"segkit serves {model} at {address_of(opened)} (Ctrl+C ends it)")
        run(app, opened)
    typer.echo("segkit has answered everything and ends.")
