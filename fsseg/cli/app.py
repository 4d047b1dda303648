"""The `fsseg` command: runs cells and looks after them. Each subcommand imports what it needs when it is called.

The other modules of `fsseg.cli` add their commands to the `app` made here. Its help must be quick: nothing but typer is
imported before a command is called.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from fsseg.cli import bench as bench_commands
from fsseg.cli import data as data_commands
from fsseg.cli import demo as demo_command
from fsseg.cli import export as export_command
from fsseg.cli import page as page_command
from fsseg.cli import predict as predict_command
from fsseg.cli import report as report_commands
from fsseg.cli import search as search_command
from fsseg.cli import sweep as sweep_commands
from fsseg.errors import UserError
from fsseg.process.descriptors import open_standard_streams

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
sweep_commands.add_to(app)
data_commands.add_to(app)
bench_commands.add_to(app)
report_commands.add_to(app)
page_command.add_to(app)
export_command.add_to(app)
predict_command.add_to(app)
demo_command.add_to(app)
search_command.add_to(app)


@app.callback()
def _root() -> None:
    """Runs few-shot segmentation experiments, and looks after them."""


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
def train(line: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Run one cell, or with -m a sweep: all that `python train.py` does, from any folder."""
    from fsseg.cli.train import start

    start(line or [])


def main() -> None:
    """Entry point: user errors end in two lines and status 1; `HYDRA_FULL_ERROR=1` shows their traceback."""
    open_standard_streams()
    with suppress(AttributeError):  # a stream that a test put there
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal without ± or —
    if sys.argv[1:2] == ["train"]:  # ends as train.py does: typer would make status 1 of a Ctrl-C
        return train(sys.argv[2:])
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where it can be told that it failed
    except UserError as error:
        _leave(error)
    except BrokenPipeError:  # `fsseg plan ... | head`
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        what = f"{error.filename or 'the output'}: cannot be used ({error.strerror})"
        _leave(UserError(what, "free space, mend the permissions, or allow more open files (ulimit -n)"))


def _leave(error: UserError) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        traceback.print_exc()
    sys.exit(f"error: {error}")


def _drop_output() -> None:
    """What is still buffered goes nowhere: Python would try to write it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
