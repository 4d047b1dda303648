"""The `fsseg` command: looks after what `train.py` runs. Each subcommand imports what it needs when it is called.

`fsseg.cli.sweep`, `fsseg.cli.data` and `fsseg.cli.report` add their commands to the `app` made here. Its help must be
quick: nothing but typer is imported before a command is called.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress

import typer

from fsseg.cli import data as data_commands
from fsseg.cli import report as report_commands
from fsseg.cli import sweep as sweep_commands
from fsseg.errors import UserError

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
sweep_commands.add_to(app)
data_commands.add_to(app)
report_commands.add_to(app)


@app.callback()
def _root() -> None:
    """Looks after few-shot segmentation experiments; `python train.py` runs them."""


def main() -> None:
    """Entry point: user errors end in two lines and status 1; `HYDRA_FULL_ERROR=1` shows their traceback."""
    with suppress(AttributeError):  # a stream that a test put there
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal without ± or —
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
