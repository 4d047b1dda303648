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
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fsseg.cell.key import CellKey, number_of_folds
from fsseg.cell.models import IN_HANDS, LOST, State, Unreadable
from fsseg.cell.record import Problem, RunDirectory, Snapshot, nothing_found
from fsseg.cell.sweeps import Sweep, look_for
from fsseg.cell.variant import is_shortened, labels
from fsseg.errors import visible
from fsseg.process.tables import aligned
from fsseg.process.words import span
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.queue import Queued

_NEVER = "never started"


@dataclass(frozen=True)
class Surroundings:
    """What lies below some folders.

    Attributes:
        cells: how all cells stand, those of sweeps that never started among them, sorted by path.
        sweeps: of the experiments that the cells belong to.
        elsewhere: who has the cells.
    """

    cells: list[Snapshot]
    sweeps: list[Sweep]
    elsewhere: Elsewhere


def look_around(folders: Sequence[str | Path], problems: list[Problem] | None = None) -> Surroundings:
    """How all cells below the folders stand.

    Args:
        folders: output folders or run directories.
        problems: takes what is left out; None logs it.

    Raises:
        UserError: a folder does not exist, or there is neither a run nor a sweep.
    """
    now = time.time()
    runs, sweeps = look_for(folders, problems)
    elsewhere = Elsewhere(sweeps)
    found = {os.path.realpath(run.directory): run.look(now) for run in runs}
    roots = [os.path.realpath(folder) for folder in folders]
    for directory in elsewhere.directories():
        place = os.path.realpath(directory)
        if any(f"{place}/".startswith(f"{root.rstrip('/')}/") for root in roots):
            found.setdefault(place, Snapshot(RunDirectory(directory), State.STOPPED, _NEVER))
    if not found:
        raise nothing_found(folders)
    placed = [_placed(s, elsewhere) for s in found.values()]
    endings = elsewhere.endings([s.directory for s in placed if _needs_an_ending(s)])
    placed = [
        replace(s, reason=_joined(s.reason, endings[s.directory])) if s.directory in endings else s for s in placed
    ]
    return Surroundings(sorted(placed, key=lambda s: str(s.directory)), sweeps, elsewhere)


def _placed(s: Snapshot, elsewhere: Elsewhere) -> Snapshot:
    """A cell as its directory shows it, put right by what the queue and the sweeps tell."""
    claim = s.run.claim() if s.state != State.DONE else None
    if claim is not None and claim.alive():
        return replace(s, state=State.STALE) if elsewhere.has_ended(s.run, claim) else s
    if (queued := elsewhere.queued(s.directory)) is not None:
        return _in_slurm(s, *queued, elsewhere.places(s.directory)[-1].sweep.record.started)
    if s.state == State.DONE:
        return s
    beat = s.status.heartbeat or 0.0 if s.status is not None else 0.0
    if (sweep := elsewhere.awaited(s.directory, beat)) is not None:
        holder = claim.holder if (claim := sweep.claim()) is not None else "a process"
        return replace(s, state=State.QUEUED, reason=f"{sweep}, {holder}")
    place = elsewhere.unknown(s.directory)
    if place is not None and (beat < place.sweep.record.started or s.state == State.PREEMPTED):
        told = f"SLURM {place.slurm_job} when it was submitted; its queue cannot be asked from here now"
        return replace(s, state=State.UNKNOWN, reason=told)
    if s.state == State.QUEUED:  # an earlier version of fsseg said so; nobody has it any more
        return replace(s, state=State.STOPPED, reason=_NEVER)
    if s.state == State.STOPPED:
        return replace(s, reason=_joined(s.reason, elsewhere.end(s.directory)))
    return s


def _in_slurm(s: Snapshot, job: str, entry: Queued, submitted: float) -> Snapshot:
    """A cell whose job is in the queue; `submitted` is when its newest sweep started."""
    if s.state == State.DONE:  # its job is about to end; or it waits to do the cell anew
        with suppress(OSError):
            if s.run.result_file.stat().st_mtime >= submitted:
                return s
    if entry.state == "COMPLETING" and s.state == State.FAILED:
        return s
    release = f"; `scontrol release {job}` lets it go" if entry.held else ""
    again = "; the result that is there stays until then" if s.state == State.DONE else ""
    state = State.RUNNING if entry.works else State.PENDING
    return replace(s, state=state, reason=f"SLURM {job}, {entry}{release}{again}")


def _needs_an_ending(s: Snapshot) -> bool:
    """Whether it would help to know how the cell's last job ended."""
    return s.state in (State.STOPPED, State.STALE, State.PREEMPTED)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def text(cells: Sequence[Snapshot], problems: Sequence[Problem] = (), limit: int = 40) -> str:
    """What `fsseg status` prints; a section names `limit` cells or problems at most."""
    counts = Counter(s.state for s in cells)
    lines = [f"{len(cells)} cells: " + ", ".join(f"{counts[state]} {state}" for state in State if counts[state])]

    def section(title: str, *states: State, row: Callable[[Snapshot], str] = told) -> None:
        if chosen := [s for s in cells if s.state in states]:
            lines.append(f"\n{title}")
            lines.extend(visible(f"  {s.label}  {row(s)}").rstrip() for s in chosen[:limit])
            if len(chosen) > limit:
                lines.append(f"  ... and {len(chosen) - limit} more")

    section("running", State.RUNNING)
    section("pending in SLURM's queue", State.PENDING)
    section("queued in a sweep", State.QUEUED)
    section("not to be known from here (`fsseg status` where their queue is)", State.UNKNOWN)
    section("to be run again (`fsseg retry`)", *LOST, row=lambda s: f"{s.state}: {_waiting(s)}")
    if problems:
        lines.append("\nleft out")
        lines.extend(f"  {visible(p)}" for p in problems[:limit])
        if len(problems) > limit:
            lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join([*lines, *_results(cells)])


def told(s: Snapshot) -> str:
    """What there is to say of a cell beside its name and its state."""
    if s.state == State.RUNNING:
        return _running(s)
    if s.state == State.DONE:
        return s.result.score_line() if s.result is not None else ""
    return s.reason if s.state in (State.PENDING, State.QUEUED, State.UNKNOWN) else _waiting(s, with_log=False)


def _running(s: Snapshot) -> str:
    status = s.status
    if status is None or status.state != State.RUNNING:  # its job has a node, and has not come to it yet
        return f"starting, {s.reason}"
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
    return ", ".join(parts)


def _waiting(s: Snapshot, with_log: bool = True) -> str:
    parts = [s.reason] if s.reason else []
    if s.progress:
        parts.append("{} {}/{}".format(*s.progress))
    if s.state == State.STALE:
        host = s.status.host if s.status else None
        parts.append(f"last on {host or 'unknown host'}" + (f" {span(s.age)} ago" if s.age is not None else ""))
    if with_log and (s.run.log_file.exists() or s.state != State.STOPPED):
        parts.append(f"log: {s.run.log_file}")
    return ", ".join(parts)


def _once_each(cells: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """The cells with a score, each once though its folder was copied; and what there is to say of copies.

    Of a cell with two different results none counts, as in `fsseg aggregate`.
    """
    found: dict[CellKey, list[Snapshot]] = {}
    for s in cells:
        if s.state == State.DONE and s.miou is not None and s.key is not None:
            found.setdefault(s.key, []).append(s)
    results = {key: {(s.result.fingerprint, s.miou) for s in of_key if s.result} for key, of_key in found.items()}
    twice = [of_key for key, of_key in found.items() if len(of_key) > 1 and len(results[key]) == 1]
    notes = []
    if twice:
        which = f"{twice[0][0].directory} and {twice[0][1].directory}"
        notes.append(f"{len(twice)} results lie twice and count once, e.g. {which}")
    for key, of_key in found.items():
        if len(results[key]) > 1:
            notes.append(f"left out, as there are two results of {key}: {of_key[0].directory}, {of_key[1].directory}")
    return [of_key[0] for key, of_key in found.items() if len(results[key]) == 1], [visible(note) for note in notes]


def _results(cells: Sequence[Snapshot]) -> list[str]:
    """Folds as columns, and the mean where all are there; seeds averaged."""
    rows: dict[tuple[str, str, str, str, int, str], dict[int, list[Snapshot]]] = {}
    scored, notes = _once_each(cells)
    keys = [s.run.row_key(s.key) for s in scored if s.key is not None]
    for s, k in zip(scored, keys):
        row = rows.setdefault((k.name, k.dataset, k.method, k.backbone, k.shot, k.variant), {})
        row.setdefault(k.fold, []).append(s)
    if not rows:
        return notes
    folds = sorted({fold for row in rows.values() for fold in row})
    several = len({name for name, *_ in rows}) > 1
    shown = {k.variant: s.run for s, k in zip(scored, keys)}
    overrides = {v: run.recorded_overrides() if is_shortened(v) else None for v, run in shown.items()}
    told, shared = labels(overrides, len({(k.dataset, k.method, k.backbone) for k in keys}))
    table = [["mIoU so far", *(f"fold {fold}" for fold in folds), "mean"]]
    for (name, dataset, method, backbone, shot, variant), by_fold in sorted(rows.items()):
        label = f"{name}: " * several + f"{dataset} {method} {backbone} {shot}-shot"
        means = {fold: sum(s.miou or 0.0 for s in seeds) / len(seeds) for fold, seeds in by_fold.items()}
        figures = [f"{means[f]:.2f}" + "*" * _partial(by_fold[f]) if f in means else "-" for f in folds]
        whole = len(means) >= _number_of_folds(next(iter(by_fold.values()))[0].run)
        mean = f"{sum(means.values()) / len(means):.2f}" if whole else "-"
        table.append([f"{label} [{told[variant]}]" if told[variant] else label, *figures, mean])
    starred = any(_partial(seeds) for row in rows.values() for seeds in row.values())
    if starred:
        notes = ["* partial: a novel class had no episode", *notes]
    if shared:
        notes = [visible(f"all variants share: {shared}"), *notes]
    return ["", aligned(table), *notes]


def _number_of_folds(run: RunDirectory) -> int:
    try:
        record = run.identity_record()
    except Unreadable:
        record = None
    return number_of_folds({} if record is None else record.identity)


def _partial(seeds: Sequence[Snapshot]) -> bool:
    return any(s.result is not None and s.result.is_partial for s in seeds)


def watch(folders: Sequence[str | Path], every: float = 5.0) -> None:
    """Print the text repeatedly until no cell runs, or is in any queue."""
    while True:
        problems: list[Problem] = []
        cells = look_around(folders, problems).cells
        if sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(f"{time.strftime('%H:%M:%S')}  {text(cells, problems)}", flush=True)
        if not any(s.state in IN_HANDS for s in cells):
            return
        time.sleep(every)
