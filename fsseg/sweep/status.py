"""How the cells below some folders stand: read from status.json and result.json alone, quickly, while others write.

`fsseg status` prints it; `fsseg plan`, `retry` and `clean` ask the same questions here. Neither torch nor Hydra is
imported, so that a thousand cells take well under a second.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.cell.claim import is_gone, read_holder
from fsseg.cell.key import CellKey
from fsseg.errors import UserError
from fsseg.process.files import read_json

CLAIM = "claim.json"
LEASE_SECONDS = 300.0  # of a run that left no claim to tell its own
STATES = ("done", "running", "queued", "preempted", "stale", "failed", "broken")
_MARKERS = frozenset(("result.json", "status.json", "config.yaml"))
_LAYOUT = re.compile(
    r"(?P<name>[^/]+)/(?P<dataset>[^/]+)/(?P<method>[^/]+)/(?P<backbone>[^/]+)/(?P<shot>\d+)shot/(?P<variant>[^/]+)"
    r"/fold(?P<fold>\d+)/seed(?P<seed>\d+)/?$"
)


@dataclass(frozen=True)
class CellState:
    """One run directory as its files describe it.

    Attributes:
        state: one of `STATES`: done (a result is there), running (heard of within the lease), queued, preempted (saved
            and waiting to go on), stale (says running, but is silent for longer than the lease), failed, broken (its
            files cannot be read).
        phase: what it is doing, or did last: prepare, train, evaluate, record.
        step, steps: within that phase.
        age: seconds since it was last heard of; None if never.
        reason: why it failed, or what is wrong; empty otherwise.
        miou: of the result, or of the evaluation so far.
        key: read off the path; None for a directory that lies elsewhere.
    """

    directory: Path
    state: str
    phase: str | None = None
    step: int | None = None
    steps: int | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    host: str | None = None
    slurm_job: str | None = None
    age: float | None = None
    reason: str = ""
    miou: float | None = None
    partial: bool = False
    key: CellKey | None = None

    @property
    def label(self) -> str:
        return str(self.key) if self.key else str(self.directory)


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """All run directories below the folders (or the folders themselves), each once, sorted.

    Raises:
        UserError: a folder does not exist.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{root} is no folder", "name a folder that holds runs, e.g. outputs/runs")
        for path in _walk(str(root), set()):
            found.setdefault(Path(path))
    return sorted(found)


def _walk(folder: str, above: set[tuple[int, int]]) -> Iterator[str]:
    try:
        about = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError:
        return  # vanished or closed to us: nothing to tell
    if (mark := (about.st_dev, about.st_ino)) in above:
        return  # a link that leads back up
    if any(e.name in _MARKERS for e in entries):
        yield folder  # a run holds no further runs
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir():
            yield from _walk(entry.path, above | {mark})


def key_of(directory: Path) -> CellKey | None:
    """The cell's key, if the directory lies where `CellKey.path` puts it."""
    match = _LAYOUT.search(directory.as_posix()) or _LAYOUT.search(Path(os.path.abspath(directory)).as_posix())
    if match is None:
        return None
    return CellKey(**{k: int(v) if k in ("shot", "fold", "seed") else v for k, v in match.groupdict().items()})  # type: ignore[arg-type]


def read_state(directory: Path, now: float | None = None, lease: float | None = None) -> CellState:
    """The state of one run directory.

    Args:
        directory: of the run.
        now: seconds since the epoch; None takes the clock.
        lease: seconds of silence after which a running cell counts as stale; None takes that of its claim.
    """
    key = key_of(directory)
    result = read_json(directory / "result.json")
    if result is not None:
        metrics = _mapping(result.get("metrics"))
        return CellState(
            directory, "done", miou=_number(metrics.get("miou")), partial=bool(result.get("partial")), key=key
        )
    status = read_json(directory / "status.json")
    if status is None:
        if (directory / "status.json").exists() or (directory / "result.json").exists():
            return CellState(directory, "broken", reason="status.json or result.json cannot be read", key=key)
        return CellState(directory, "failed", reason="ended before its first status", key=key)
    now = time.time() if now is None else now
    beat = _number(status.get("heartbeat"))
    state, reason = str(status.get("state")), str(status.get("reason") or "")
    gone = False
    if state == "running" and (holder := read_holder(directory / CLAIM)) is not None:
        lease = holder.lease if lease is None else lease
        gone = is_gone(holder)
        try:
            renewed = (directory / CLAIM).stat().st_mtime
        except OSError:
            renewed = None
        beat = max(filter(None, (beat, renewed)), default=None)
    age = None if beat is None else max(0.0, now - beat)  # clocks of two hosts differ: never less than nothing
    if gone:
        state, reason = "stale", reason or "its process has ended without a word: killed, or out of memory"
    elif state == "running" and (age is None or age > (LEASE_SECONDS if lease is None else lease)):
        state, reason = "stale", reason or "no sign of life: killed, or its host is gone"
    elif state == "done":
        state, reason = "broken", "status.json says done, but there is no result.json"
    elif state not in STATES:
        state, reason = "broken", f"status.json has state {state!r}"
    return CellState(
        directory, state,
        phase=_text(status.get("phase")), step=_whole(status.get("step")), steps=_whole(status.get("steps")),
        seconds_per_step=_number(status.get("seconds_per_step")), eta_seconds=_number(status.get("eta_seconds")),
        host=_text(status.get("host")), slurm_job=_text(status.get("slurm_job")), age=age, reason=reason,
        miou=_number(status.get("miou")), key=key,
    )  # fmt: skip


def read_states(folders: Iterable[str | Path]) -> list[CellState]:
    """The states of all run directories below the folders.

    Raises:
        UserError: a folder does not exist, or holds no run.
    """
    folders = list(folders)
    now = time.time()
    states = [read_state(path, now) for path in find_runs(folders)]
    if not states:
        raise UserError(
            f"no run found under {', '.join(map(str, folders))}",
            "name a folder above run directories, e.g. outputs/runs, or start runs with train.py",
        )
    return states


def report(states: Sequence[CellState], limit: int = 40) -> str:
    """What `fsseg status` prints: counts, who runs, who needs help, results so far."""
    counts = Counter(s.state for s in states)
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    lines = [f"{len(states)} cells: {', '.join(parts)}"]

    def section(title: str, chosen: list[CellState], row: Any) -> None:
        if chosen:
            lines.append(f"\n{title}")
            lines.extend(row(s) for s in chosen[:limit])
            if len(chosen) > limit:
                lines.append(f"  ... and {len(chosen) - limit} more")

    section("running", [s for s in states if s.state == "running"], _running_row)
    section("queued", [s for s in states if s.state == "queued"], lambda s: f"  {s.label}")
    waiting = [s for s in states if s.state in ("stale", "failed", "broken", "preempted")]
    section("to be run again (`fsseg retry`)", waiting, _waiting_row)
    if table := _results(states):
        lines += ["", *table]
    return "\n".join(lines)


def _running_row(s: CellState) -> str:
    parts = [s.phase or "?"]
    if s.step is not None and s.steps:
        parts.append(f"{s.step}/{s.steps}")
    if s.eta_seconds is not None:
        parts.append(f"{span(s.eta_seconds)} left")
    if s.miou is not None:
        parts.append(f"mIoU {s.miou:.2f}")
    parts.append(f"on {s.host or 'unknown host'}" + (f" (SLURM {s.slurm_job})" if s.slurm_job else ""))
    if s.age is not None:
        parts.append(f"heard of {span(s.age)} ago")
    return f"  {s.label}  " + ", ".join(parts)


def _waiting_row(s: CellState) -> str:
    parts = [s.reason] if s.reason else []
    if s.step is not None and s.steps:
        parts.append(f"{s.phase or 'stopped'} {s.step}/{s.steps}")
    if s.state == "stale":
        parts.append(f"last on {s.host or 'unknown host'}" + (f" {span(s.age)} ago" if s.age is not None else ""))
    parts.append(f"log: {s.directory / 'train.log'}")
    return f"  {s.label}  {s.state}: " + ", ".join(parts)


def _results(states: Sequence[CellState]) -> list[str]:
    """Folds as columns, mean over those that are there; seeds averaged."""
    rows: dict[tuple[Any, ...], dict[int, list[CellState]]] = {}
    for s in states:
        if s.state == "done" and s.miou is not None and s.key is not None:
            k = s.key
            scores_of = rows.setdefault((k.name, k.dataset, k.method, k.backbone, k.shot, k.variant), {})
            scores_of.setdefault(k.fold, []).append(s)
    if not rows:
        return []
    folds = sorted({fold for row in rows.values() for fold in row})
    labels = {
        row: f"{row[1]} {row[2]} {row[3]} {row[4]}-shot" + ("" if row[5] == "default" else f" [{row[5]}]")
        for row in rows
    }
    if len({row[0] for row in rows}) > 1:
        labels = {row: f"{row[0]}: {label}" for row, label in labels.items()}
    width = max(len(label) for label in labels.values())
    lines = [f"{'mIoU so far':<{width}}  " + " ".join(f"{f'fold {f}':>7}" for f in folds) + f" {'mean':>7}"]
    starred = False
    for row, by_fold in sorted(rows.items(), key=lambda item: item[0]):
        columns, means = [], []
        for fold in folds:
            scores = [s.miou for s in by_fold.get(fold, []) if s.miou is not None]
            if not scores:
                columns.append(f"{'-':>7}")
                continue
            means.append(sum(scores) / len(scores))
            partial = any(s.partial for s in by_fold[fold])
            starred |= partial
            columns.append(f"{means[-1]:>7.2f}" if not partial else f"{f'{means[-1]:.2f}*':>7}")
        mean = f"{sum(means) / len(means):>7.2f}" if len(means) == len(folds) else f"{'-':>7}"
        lines.append(f"{labels[row]:<{width}}  {' '.join(columns)} {mean}")
    if starred:
        lines.append("* partial: a novel class had no episode")
    return lines


def span(seconds: float) -> str:
    """40 s, 12 min, 3.4 h, 5.2 d: at a glance, not to the second."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def watch(folders: Sequence[str | Path], every: float = 5.0) -> None:
    """Print the report again and again until nothing runs or waits for its turn any more."""
    import sys

    while True:
        states = read_states(folders)
        if sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(f"{time.strftime('%H:%M:%S')}  {report(states)}", flush=True)
        if not any(s.state in ("running", "queued") for s in states):
            return
        time.sleep(every)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
