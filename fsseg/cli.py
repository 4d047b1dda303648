"""The `fsseg` command: looks after what `train.py` runs. Each subcommand imports what it needs when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fsseg.errors import UserError

app = typer.Typer(
    add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Looks after few-shot segmentation experiments; `python train.py` runs them.",
)  # fmt: skip


@app.callback()
def _root() -> None:
    """Looks after few-shot segmentation experiments; `python train.py` runs them."""


@app.command()
def aggregate(
    folders: Annotated[list[Path], typer.Argument(help="Output folders, e.g. outputs/runs")],
    out: Annotated[Path | None, typer.Option(help="Where the tables go; the first folder if not given")] = None,
) -> None:
    """Collect results into tables: folds as columns, the mean, and the paper's figure beside ours."""
    from fsseg.report.tables import aggregate as collect_tables

    print(collect_tables(folders, out))


def main() -> None:
    """Entry point: user errors end in two lines and status 1."""
    try:
        app()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
