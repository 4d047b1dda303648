"""How cells stand, and the text of `fsseg status`: which run, which wait, which failed and why, results so far.

A run directory says what its run knew. Whether a cell waits for a job, or will never be started any more, is told by
the records of sweeps and by SLURM's queue: `look_around` asks all three. Neither torch nor Hydra is imported, so that a
thousand cells take well under a second.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fsseg.cell.models import State
from fsseg.cell.record import Problem, RunDirectory, Snapshot, find_runs
from fsseg.cell.sweeps import experiments_near, sweeps_of
from fsseg.errors import UserError, visible
from fsseg.process.command import train_line
from fsseg.process.tables import aligned
from fsseg.process.words import span
from fsseg.sweep.elsewhere import Elsewhere

_IN_HANDS = (State.RUNNING, State.PENDING, State.QUEUED)
_NEVER = "never started"


def look_around(folders: Sequence[str | Path], problems: list[Problem] | None = None) -> list[Snapshot]:
    """How all cells below the folders stand, those of sweeps that never started among them.

    Args:
        folders: output folders or run directories.
        problems: takes what is left out; None logs it.

    Raises:
        UserError: a folder does not exist, or there is neither a run nor a sweep.
    """
    now = time.time()
    runs = find_runs(folders, problems)
    elsewhere = Elsewhere(sweeps_of(experiments_near(folders), problems))
    found = {os.path.realpath(run.directory): run.look(now) for run in runs}
    roots = [os.path.realpath(folder) for folder in folders]
    for directory in elsewhere.directories():
        place = os.path.realpath(directory)
        if any(f"{place}/".startswith(f"{root.rstrip('/')}/") for root in roots):
            found.setdefault(place, Snapshot(RunDirectory(directory), State.STOPPED, _NEVER))
    if not found:
        raise UserError(
            f"no run found under {', '.join(map(str, folders))}",
            f"name a folder above run directories, e.g. outputs/runs, or start runs with `{train_line()}`",
        )
    placed = [_placed(s, elsewhere) for s in found.values()]
    endings = elsewhere.endings([s.directory for s in placed if _needs_an_ending(s)])
    placed = [replace(s, reason=_joined(s.reason, endings.get(s.directory, ""))) for s in placed]
    return sorted(placed, key=lambda s: str(s.directory))


def _placed(s: Snapshot, elsewhere: Elsewhere) -> Snapshot:
    """A cell as its directory shows it, put right by what the queue and the sweeps tell."""
    if s.state == State.DONE:
        return s
    claim = s.run.claim()
    if claim is not None and claim.alive():
        return replace(s, state=State.STALE) if elsewhere.has_ended(s.run, claim) else s
    if (queued := elsewhere.queued(s.directory)) is not None and queued[1].state != "COMPLETING":
        job, entry = queued
        release = f"; `scontrol release {job}` lets it go" if entry.held else ""
        return replace(
            s, state=State.RUNNING if entry.works else State.PENDING, reason=f"SLURM {job}, {entry}{release}"
        )
    beat = s.status.heartbeat or 0.0 if s.status is not None else 0.0
    if (job := elsewhere.unknown(s.directory, beat)) != "":
        return replace(s, state=State.PENDING, reason=f"SLURM {job} when it was submitted; this machine cannot ask it")
    if (sweep := elsewhere.awaited(s.directory, beat)) is not None:
        holder = claim.holder if (claim := sweep.claim()) is not None else "a process"
        return replace(s, state=State.QUEUED, reason=f"{sweep}, {holder}")
    if s.state == State.QUEUED:  # an earlier version of fsseg said so; nobody has it any more
        return replace(s, state=State.STOPPED, reason=_NEVER)
    if s.state == State.STOPPED:
        return replace(s, reason=_joined(s.reason, elsewhere.end(s.directory)))
    return s


def _needs_an_ending(s: Snapshot) -> bool:
    """Whether it would help to know how the cell's last job ended."""
    return s.state in (State.STOPPED, State.STALE, State.PREEMPTED)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def text(cells: Sequence[Snapshot], problems: Sequence[Problem] = (), limit: int = 40) -> str:
    """What `fsseg status` prints; a section names `limit` cells or problems at most."""
    counts = Counter(s.state for s in cells)
    lines = [f"{len(cells)} cells: " + ", ".join(f"{counts[state]} {state}" for state in State if counts[state])]

    def section(title: str, states: Sequence[State], row: Callable[[Snapshot], str]) -> None:
        if chosen := [s for s in cells if s.state in states]:
            lines.append(f"\n{title}")
            lines.extend(visible(row(s)) for s in chosen[:limit])
            if len(chosen) > limit:
                lines.append(f"  ... and {len(chosen) - limit} more")

    section("running", [State.RUNNING], _running)
    section("pending in SLURM's queue", [State.PENDING], _in_a_queue)
    section("queued in a sweep", [State.QUEUED], _in_a_queue)
    waiting = [State.STALE, State.FAILED, State.BROKEN, State.PREEMPTED, State.STOPPED]
    section("to be run again (`fsseg retry`)", waiting, _waiting)
    if problems:
        lines.append("\nleft out")
        lines.extend(f"  {visible(p)}" for p in problems[:limit])
        if len(problems) > limit:
            lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join([*lines, *_results(cells)])


def _running(s: Snapshot) -> str:
    status = s.status
    if status is None or status.state != State.RUNNING:  # its job has a node, and has not come to it yet
        return f"  {s.label}  starting, {s.reason}"
    parts = [status.phase or "?"]
    if s.progress:
        parts.append("{1}/{2}".format(*s.progress))
    if status.eta_seconds is not None:
        parts.append(f"{span(status.eta_seconds)} left")
    if s.miou is not None:
        parts.append(f"mIoU {s.miou:.2f}")
    parts.append(f"on {status.host or 'unknown host'}" + (f" (SLURM {status.slurm_job})" if status.slurm_job else ""))
    if s.age is not None:
        parts.append(f"heard of {span(s.age)} ago")
    return f"  {s.label}  " + ", ".join(parts)


def _in_a_queue(s: Snapshot) -> str:
    return f"  {s.label}  {s.reason}".rstrip()


def _waiting(s: Snapshot) -> str:
    parts = [s.reason] if s.reason else []
    if s.progress:
        parts.append("{} {}/{}".format(*s.progress))
    if s.state == State.STALE:
        host = s.status.host if s.status else None
        parts.append(f"last on {host or 'unknown host'}" + (f" {span(s.age)} ago" if s.age is not None else ""))
    if s.run.log_file.exists() or s.state != State.STOPPED:
        parts.append(f"log: {s.run.log_file}")
    return f"  {s.label}  {s.state}: " + ", ".join(parts)


def _results(cells: Sequence[Snapshot]) -> list[str]:
    """Folds as columns, mean over those present; seeds averaged."""
    rows: dict[tuple[str, str, str, str, int, str], dict[int, list[Snapshot]]] = {}
    for s in cells:
        if s.state == State.DONE and s.miou is not None and (k := s.key) is not None:
            row = rows.setdefault((k.name, k.dataset, k.method, k.backbone, k.shot, k.variant), {})
            row.setdefault(k.fold, []).append(s)
    if not rows:
        return []
    folds = sorted({fold for row in rows.values() for fold in row})
    several = len({name for name, *_ in rows}) > 1
    table = [["mIoU so far", *(f"fold {fold}" for fold in folds), "mean"]]
    for (name, dataset, method, backbone, shot, variant), by_fold in sorted(rows.items()):
        label = f"{name}: " * several + f"{dataset} {method} {backbone} {shot}-shot"
        means = {fold: sum(s.miou or 0.0 for s in seeds) / len(seeds) for fold, seeds in by_fold.items()}
        figures = [f"{means[f]:.2f}" + "*" * _partial(by_fold[f]) if f in means else "-" for f in folds]
        mean = f"{sum(means.values()) / len(means):.2f}" if len(means) == len(folds) else "-"
        table.append([label if variant == "default" else f"{label} [{variant}]", *figures, mean])
    starred = any(_partial(seeds) for row in rows.values() for seeds in row.values())
    return ["", aligned(table), *(["* partial: a novel class had no episode"] if starred else [])]


def _partial(seeds: Sequence[Snapshot]) -> bool:
    return any(s.result is not None and s.result.is_partial for s in seeds)


def watch(folders: Sequence[str | Path], every: float = 5.0) -> None:
    """Print the text repeatedly until no cell runs, or is in any queue."""
    while True:
        problems: list[Problem] = []
        cells = look_around(folders, problems)
        if sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(f"{time.strftime('%H:%M:%S')}  {text(cells, problems)}", flush=True)
        if not any(s.state in _IN_HANDS for s in cells):
            return
        time.sleep(every)
