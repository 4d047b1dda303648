"""The command `fsseg demo`: a page on this machine that segments images by the example of a few; `app` adds it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsseg.cli.line import takes_line
from fsseg.cli.predict import names_a_model, predictor_of

if TYPE_CHECKING:
    from fsseg.engine.predict import Predictor

Line = Annotated[list[str] | None, typer.Argument(help="A method that trains nothing: method=prototype backbone=...")]


def add_to(app: typer.Typer) -> None:
    app.command(name="demo")(takes_line(demo))


def demo(
    line: Line = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A last.pt or a run directory to offer; may be repeated")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Runs below this folder are offered too")] = Path("outputs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes one that is free")] = 7860,
    browser: Annotated[bool, typer.Option("--open/--no-browser", help="Open the page in a browser")] = False,
) -> None:
    """Serve a page on this machine: draw a support mask, drop images, see what is found (fsseg[demo])."""
    from fsseg.demo.serve import bound, check_packages, serve, workplace
    from fsseg.process.logs import configure_logging

    configure_logging("info")
    with workplace() as folder:
        check_packages()
        with bound(port) as listener:
            from fsseg.demo.models import Models

            models = Models(_named(list(line or []), checkpoint or []), runs, _opened_by(list(line or [])))
            for name in models.named:  # a mistake is told here, where it was made
                models.get(name)
            serve(models, listener, folder, browser)


def _named(line: list[str], checkpoints: list[Path]) -> dict[str, Callable[[], Predictor]]:
    """What the line names: name -> how it is opened."""
    open_run = _opened_by(line)
    named: dict[str, Callable[[], Predictor]] = {str(path): partial(open_run, path) for path in checkpoints}
    if names_a_model(line):
        # It may be opened again by a thread of the server, which does not know --config-dir.
        named[shlex.join(line)] = partial(copy_context().run, predictor_of, None, _in_this_process(line))
    return named


def _opened_by(line: list[str]) -> Callable[[Path], Predictor]:
    """How checkpoints and runs are opened: beside a method that the line names, only its device is theirs too."""
    own = [word for word in line if not names_a_model(line) or word.startswith("device=")]
    return lambda path: predictor_of(path, _in_this_process(own))


def _in_this_process(line: list[str]) -> list[str]:
    """Images are read by this process: it has threads, so that others should not be forked off it."""
    return [*(word for word in line if not word.startswith("num_workers=")), "num_workers=0"]
