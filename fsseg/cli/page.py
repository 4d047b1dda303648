"""`fsseg report`: one page of HTML about finished and unfinished runs; `fsseg.cli.app` adds it.

How cells stand is known to `fsseg.sweep`, what they scored to `fsseg.report`, and only a checkpoint draws new sheets:
three rooms that do not know one another are brought together here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsseg.errors import UserError, visible

if TYPE_CHECKING:
    from fsseg.report.page.contents import Searched, Standing
    from fsseg.report.tables import Report


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Output folders, e.g. outputs/runs; run directories will do")],
    out: Annotated[Path, typer.Option(help="The page")] = Path("report.html"),
    sheets: Annotated[
        bool, typer.Option("--sheets", help="Draw the best, median and worst episodes of each class anew")
    ] = False,
    also: Annotated[
        list[str] | None, typer.Option(help="For --sheets, as `fsseg sheets` takes it: --also dataset.root=/data/VOC")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Renew the page until nothing runs or waits")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two pages with --watch")] = 30.0,
) -> None:
    """One page about the runs, for a browser: results, intervals, classes, curves, episodes, cost, what is missing."""
    from fsseg.config.constraints import within

    if fault := within(1.0, 86_400).fault("--every", every):
        raise fault
    if also and not sheets:
        raise UserError("--also is for --sheets, which is not given", "add --sheets, or leave --also out")
    if out.is_dir():
        raise UserError(f"{out} is a folder", f"name a file: --out {out / 'report.html'}")
    with tempfile.TemporaryDirectory(prefix="fsseg-sheets-") as temporary:
        drawn = _draw(folders, also or [], Path(temporary)) if sheets else {}
        try:
            while _write(folders, out, drawn, Path(temporary), every if watch else None):
                time.sleep(every)
        except KeyboardInterrupt:
            _write(folders, out, drawn, Path(temporary))  # one that does not renew itself


def _write(
    folders: Sequence[Path], out: Path, drawn: dict[Path, Path], temporary: Path, every: float | None = None
) -> bool:
    """Write the page, and say so; returns whether it is to be written again."""
    from fsseg.process.files import write_atomic
    from fsseg.process.words import count, size
    from fsseg.report.page.contents import contents
    from fsseg.report.page.render import render

    report, standing, busy = _read(folders, temporary)
    page = contents(report, standing, folders, drawn)
    again = every is not None and busy
    text = render(page, refresh=every if again else None)
    try:
        write_atomic(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror})", "give another place for it: --out FILE") from error
    told = ", ".join(f"{number} {kind}" for kind, number in page.counts.items() if number)
    length = size(len(text.encode()))
    print(visible(f"{out}: {count(sum(page.counts.values()), 'cell')} ({told}), {length}"), flush=True)
    return again


def _searches(folders: Sequence[Path], temporary: Path) -> list[Searched]:
    """What searches among the runs have found; none where there is no journal, or Optuna is not installed.

    Args:
        temporary: folder for pictures.
    """
    from importlib.util import find_spec

    from fsseg.report.page.contents import Searched
    from fsseg.sweep.search import view
    from fsseg.sweep.search.study import counted

    if find_spec("optuna") is None or not any(view.journals_of(folder) for folder in folders):
        return []
    found = []
    for study in view.studies_of(folders):
        header, rows = view.table(study)
        notes = [counted(study.trials()), *filter(None, [view.what_counts(study)])]
        line = "" if (best := study.best) is None else study.winner(best)
        found.append(Searched(study.name, header, rows, notes, line, view.draw(study, temporary)))
    return found


def _read(folders: Sequence[Path], temporary: Path) -> tuple[Report, Standing, bool]:
    """What the cells scored, how all of them stand, and whether one of them is in somebody's hands."""
    from fsseg.cell.models import IN_HANDS
    from fsseg.cell.record import Problem
    from fsseg.report.collect import collect
    from fsseg.report.page.contents import Standing, unstarted
    from fsseg.report.tables import build
    from fsseg.sweep.retry import retries_among
    from fsseg.sweep.status import look_around

    problems: list[Problem] = []
    around = look_around(folders, problems)
    report = build(collect(folders, whole=True))
    again = retries_among(around, absent=unstarted(report, around.cells))
    standing = Standing(around.cells, again.lines, again.notes, problems, _searches(folders, temporary))
    return report, standing, any(s.state in IN_HANDS for s in around.cells)


def _draw(folders: Sequence[Path], also: Sequence[str], folder: Path) -> dict[Path, Path]:
    """Sheets of each class for one finished run of each method, shot and fold: run directory -> where they are."""
    from fsseg.cell.finished import find_finished
    from fsseg.process.logs import configure_logging

    configure_logging("warning")
    found, left_out = find_finished(folders, also)
    for error in left_out:
        print(visible(f"no sheets: {error.what}"))
    first = {run.cell.key.path.parent: run for run in reversed(found)}  # the last level is the seed

    from fsseg.engine import redraw  # torch: not before the runs are found

    drawn = {}
    for number, run in enumerate(first.values()):
        place = folder / str(number)
        try:
            print(redraw.draw_run(run, redraw.SheetChoice(1, per_class=True), place), flush=True)
            drawn[run.cell.directory] = place
        except UserError as error:
            print(visible(f"no sheets: {error.what}"))
    return drawn
