"""The `fsseg` command: looks after what `train.py` runs. Each subcommand imports what it needs when it is called.

`fsseg.cli.sweep` and `fsseg.cli.data` add their commands to the `app` made here, whose help must come at once: nothing
but typer is imported before a command is called.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from fsseg.cli import data as data_commands
from fsseg.cli import sweep as sweep_commands
from fsseg.errors import UserError

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
sweep_commands.add_to(app)
data_commands.add_to(app)


@app.callback()
def _root() -> None:
    """Looks after few-shot segmentation experiments; `python train.py` runs them."""


@app.command()
def aggregate(
    folders: Annotated[list[str], typer.Argument(help="Output folders, e.g. outputs/runs, or addresses: s3://...")],
    out: Annotated[Path | None, typer.Option(help="Where the tables go; the first folder if not given")] = None,
) -> None:
    """Collect results into tables: folds as columns, the mean, and the paper's figure beside ours."""
    import tempfile

    from fsseg.process.remote import is_url
    from fsseg.report.aggregate import aggregate as collect_tables
    from fsseg.sweep.sync import mirror

    with tempfile.TemporaryDirectory(prefix="fsseg-aggregate-") as temporary:
        places = [mirror(f, Path(temporary, str(i))) if is_url(f) else Path(f) for i, f in enumerate(folders)]
        if out is None and is_url(folders[0]):
            out = Path(folders[0].rstrip("/").rpartition("/")[2] + "-summary")
        print(collect_tables(places, out))


def main() -> None:
    """Entry point: user errors end in two lines and status 1; `HYDRA_FULL_ERROR=1` shows their traceback."""
    try:
        app()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            traceback.print_exc()
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `fsseg plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
