"""The part of the `fsseg` command that shows what ran: tables, two runs beside each other, sheets of episodes.

`fsseg.cli.app` adds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsseg.errors import UserError, merge_errors, visible


def add_to(app: typer.Typer) -> None:
    for function in (aggregate, compare, sheets):
        app.command()(function)


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


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run directory, or a folder with the runs of one row")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one, scored on the same episodes")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all decimals")] = False,
) -> None:
    """Two runs or rows side by side: settings that differ, scores, and paired differences with their intervals."""
    import json

    from fsseg.report import against

    found = against.side_by_side(first, second)
    print(json.dumps(against.to_json(found), indent=2) if as_json else against.text(found))


def sheets(
    folders: Annotated[list[Path], typer.Argument(help="Run directories, or output folders with finished runs")],
    count: Annotated[int, typer.Option(min=1, max=20, help="Episodes on each sheet")] = 3,
    per_class: Annotated[bool, typer.Option("--per-class", help="So many of each class")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Runs side by side, where the first gains most and least on the second")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where the sheets go; figures/ of each run if not given")] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="What is otherwise on this machine: --also dataset.root=/data/VOC")
    ] = None,
) -> None:
    """Draw the best, median and worst episodes of finished runs, from their records and checkpoints."""
    from fsseg.cell.finished import find_finished
    from fsseg.process.logs import configure_logging

    configure_logging("warning")
    found, left_out = find_finished(folders, also or [])
    if compare and left_out:  # or other runs would be A and B
        raise merge_errors(left_out)
    for error in left_out:
        print(visible(f"left out: {error.what}"))

    from fsseg.engine import redraw  # torch: not before the runs are found

    choice = redraw.SheetChoice(count, per_class)
    if compare:
        print(redraw.draw_comparison(found, choice, out or found[0].cell.figures))
        return
    faults: list[UserError] = []
    for run, folder in zip(found, redraw.places(found, out)):
        try:
            print(redraw.draw_run(run, choice, folder), flush=True)
        except UserError as error:
            faults.append(error)
    if faults:
        raise merge_errors(faults)
