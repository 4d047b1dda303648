"""The commands that look after sweeps: plan, status, logs, retry, clean, sync. `fsseg.cli.app` adds them to the app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fsseg.cli.line import config_dir, takes_line
from fsseg.errors import UserError

Folders = Annotated[list[Path], typer.Argument(help="Output folders, e.g. outputs/runs; run directories will do")]
Line = Annotated[list[str] | None, typer.Argument(help="Overrides as after `python train.py -m`: dataset=a,b fold=0,1")]


def add_to(app: typer.Typer) -> None:
    app.command()(takes_line(plan))
    for function in (status, logs, retry, cancel, clean, sync, merge):
        app.command()(function)


def plan(
    line: Line = None,
    multirun: Annotated[bool, typer.Option("-m", "--multirun", hidden=True)] = False,
    calibrate: Annotated[bool, typer.Option(help="Measure a few steps here for cells without a measurement")] = False,
    servers: Annotated[int | None, typer.Option(help="Print a command for each of this many machines")] = None,
    by: Annotated[str | None, typer.Option(help="Keys to cut along: dataset,backbone or fold or finest")] = None,
) -> None:
    """The grid of an override line: state, steps, hours, memory and disk of each cell, and what it comes to."""
    from fsseg.sweep import plan as plans

    if servers is not None:
        _held("--servers", servers, 1, 10_000)
    del multirun  # a line may be pasted with its -m
    if by is not None and servers is None:
        raise UserError("--by says how to cut the grid, but not for how many machines", "add --servers 4")
    made = plans.plan(line or [], calibrate, config_dir=config_dir())
    print(plans.text(made))
    if servers is not None:
        keys = [key.strip() for key in by.split(",") if key.strip()] if by is not None else None
        own = [o for o in line or [] if o.lstrip("+~").startswith(("hydra.", "hydra/"))]
        print("\n" + plans.servers(made, servers, keys, own, config_dir()))


def status(
    folders: Folders,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until nothing runs or waits")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks with --watch")] = 5.0,
) -> None:
    """How cells stand: counts, which run and how long they still need, which failed and why, results so far."""
    from fsseg.cell.record import Problem
    from fsseg.sweep import live
    from fsseg.sweep import status as cells

    _held("--every", every, 0.1, 86_400)
    if watch:
        try:
            live.watch(folders, every) if live.is_possible() else cells.watch(folders, every)
        except KeyboardInterrupt:
            raise typer.Exit() from None
    else:
        problems: list[Problem] = []
        print(cells.text(cells.look_around(folders, problems).cells, problems))


def logs(
    cell: Annotated[
        list[str], typer.Argument(help="A run directory; or an output folder and parts of the name, or a job")
    ],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the cell ends")] = False,
    lines: Annotated[int | None, typer.Option("--lines", min=0, help="The last lines of each log; else all")] = None,
) -> None:
    """What a cell has logged: its train.log, and what its jobs printed."""
    from fsseg.sweep import follow as following

    try:
        for line in following.logs(cell, lines, follow):
            print(line, flush=follow)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _held(option: str, value: float, least: float, most: float) -> None:
    """Refuse a number out of range; typer's own limits let NaN through."""
    from fsseg.config.constraints import within

    if fault := within(least, most).fault(option, value):
        raise fault


def retry(
    folders: Folders,
    run: Annotated[bool, typer.Option("--run", help="Run the lines now, one after the other")] = False,
    also: Annotated[list[str] | None, typer.Option(help="A further override: --also hydra/launcher=slurm")] = None,
) -> None:
    """The cells that ended without a result, and the lines that run just them again."""
    from fsseg.sweep import retry as retries

    found = retries.find_retries(folders, also or [])
    print(retries.text(found))
    if run and found.lines and (failed := retries.run_lines(found.lines)):
        raise UserError(
            f"{failed} of {len(found.lines)} lines failed (see above)", "`fsseg status` tells what is missing"
        )
    if run and (left := sum(map(len, found.notes.values()))):
        raise UserError(f"{left} cells were not run: no line was found for them (see above)", "run their own lines")


def cancel(folders: Folders) -> None:
    """End the jobs of sweeps, in SLURM's queue and on this machine; cells that run save a checkpoint first."""
    from fsseg.sweep import cancel as cancelling

    found = cancelling.cancel(folders)
    print(cancelling.text(found))
    if found.left:
        raise UserError(f"{len(found.left)} jobs were not ended (see above)", "end them where they run")


def clean(
    folders: Folders,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it the files are only listed")] = False,
) -> None:
    """Checkpoints of finished cells, stale claims, temporary files: lists them, and deletes them with --yes."""
    from fsseg.sweep import clean as cleaning

    notes: list[str] = []
    items = cleaning.find_waste(folders, notes)
    for note in notes:
        print(note)
    refused: list[OSError] = []
    deleted = cleaning.delete(items, refused) if yes and items else items
    if deleted or not refused:
        print(cleaning.text(deleted, deleted=yes and bool(items)))
    if refused:
        raise UserError(
            f"{len(refused)} files cannot be deleted, e.g. {refused[0].filename} ({refused[0].strerror})",
            "ask their owner to run the same command",
        )


def sync(
    folders: Folders,
    url: Annotated[
        str | None, typer.Option(help="s3://bucket/folder, ...; else what each run was started with")
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Copy checkpoints too")] = False,
    pull: Annotated[
        str | None, typer.Option(help="Fetch the runs of this address into the output folder that is named")
    ] = None,
) -> None:
    """Copy to a remote store whatever is not there yet, or with --pull from one whatever is not here."""
    from fsseg.sweep import sync as copies

    if pull is not None:
        if url is not None or len(folders) != 1:
            raise UserError("--pull takes one address and one folder", "fsseg sync --pull s3://bucket/folder outputs")
        _pull(pull, folders[0], checkpoints)
        return
    outcomes = copies.catch_up(folders, url, checkpoints)
    print(copies.text(outcomes))
    if behind := sum(bool(o.error) for _, o in outcomes):
        raise UserError(f"{behind} of {len(outcomes)} cells are not copied in full", "run the same command again later")


def _pull(url: str, output: Path, checkpoints: bool) -> None:
    from fsseg.sweep import pull as pulls

    found = pulls.pull(url, output, checkpoints)
    print(pulls.text(found, output))
    if behind := sum(bool(p.error) for p in found):
        raise UserError(f"{behind} of {len(found)} cells are not fetched in full", "mend the causes, and pull again")


def merge(
    sources: Annotated[list[str], typer.Argument(help="Output folders of several machines, or addresses: s3://...")],
    out: Annotated[Path, typer.Option(help="The output folder that takes their runs; may be one of them")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files; so it is without an option")] = False,
    move: Annotated[
        bool, typer.Option("--move", help="Remove a run where it was, once its copy is complete and compared")
    ] = False,
    link: Annotated[bool, typer.Option("--link", help="Give the files a second name, on the same file system")] = False,
    check: Annotated[bool, typer.Option("--check", help="Say what would be done, and change nothing")] = False,
) -> None:
    """Bring the runs of several machines into one output folder, checkpoints included."""
    from fsseg.sweep import merge as merging
    from fsseg.sweep.local import How
    from fsseg.sweep.merged import text

    if copy + move + link > 1:
        raise UserError("--copy, --move and --link exclude each other", "give one of them")
    how = How.MOVE if move else How.LINK if link else How.COPY
    merged = merging.merge(sources, out, how, check)
    print(text(merged))
    if merged.faults:
        raise UserError(
            f"{merged.faults} of these are not complete in {out} (see above)",
            "of two runs of one cell move one away; copy anew what is not whole; then run the same command again",
        )
