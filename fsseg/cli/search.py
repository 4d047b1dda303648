"""`fsseg search`: what a search for settings has found; `fsseg.cli.app` adds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsseg.errors import visible


def add_to(app: typer.Typer) -> None:
    app.command()(search)


def search(
    folders: Annotated[list[Path], typer.Argument(help="The experiment's folder: outputs/NAME")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials are listed, the best first")] = 10,
    storage: Annotated[str | None, typer.Option(help="What the line had as search.storage=")] = None,
    plots: Annotated[bool, typer.Option(help="Draw pictures beside the journal")] = True,
) -> None:
    """What searches have found: the best trials, what mattered, pictures, and the line that runs the winner."""
    from fsseg.sweep.search import view

    for number, study in enumerate(view.studies_of(folders, storage)):
        lines = view.text(study, trials).splitlines()
        print("\n" * (number > 0) + "\n".join(map(visible, lines)), flush=True)
        for file, _ in view.draw(study) if plots else ():
            print(visible(f"written: {file}"), flush=True)
