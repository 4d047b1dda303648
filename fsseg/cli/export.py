"""The command `fsseg export`: the model of a run as a file for other programs; `fsseg.cli.app` adds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsseg.errors import visible


def add_to(app: typer.Typer) -> None:
    app.command()(export)


def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or a checkpoint in it", metavar="RUN_DIR")],
    to: Annotated[str, typer.Option(help="onnx, torchscript or safetensors")],
    line: Annotated[
        list[str] | None,
        typer.Argument(help="What is otherwise on this machine: backbone.weights=", metavar="[KEY=VALUE]..."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file; one in the current folder if not given")] = None,
) -> None:
    """Write the model of a run as ONNX, TorchScript or safetensors, for use without fsseg."""
    from fsseg.engine.export import export as write
    from fsseg.process.logs import configure_logging

    configure_logging("warning")
    print("\n".join(map(visible, write(run, to, out, line or []).splitlines())))
