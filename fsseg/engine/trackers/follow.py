"""The process that tells one tracker of one run: `python -m fsseg.engine.trackers.follow RUN_DIRECTORY TRACKER`.

`fsseg.engine.trackers.processes` starts it beside the run and says how far the run's last checkpoint goes; all else is
read from the run directory. Whatever the tool does here (an exception, a crash, a wait without end), the run is another
process. What the tool prints goes to `trackers/<name>.log`.
"""

from __future__ import annotations

import csv
import fcntl
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from fsseg.cell.models import Tracked, read, write_record
from fsseg.cell.record import RunDirectory
from fsseg.engine.trackers.base import LEFT_OUT, About, Tracker, result_numbers, without_password
from fsseg.process.files import METRICS_BYTES, open_regular
from fsseg.process.signals import SIGNALS

CLASSES = {
    "wandb": "fsseg.engine.trackers.to_wandb:WandbRun",
    "mlflow": "fsseg.engine.trackers.to_mlflow:MlflowRun",
    "trackio": "fsseg.engine.trackers.to_trackio:TrackioRun",
    "aim": "fsseg.engine.trackers.to_aim:AimRun",
}

_LAST_WORDS = 60.0  # seconds after the run's process is gone
_LOOK = 1.0  # seconds between two looks whether it is, or said something


def main(arguments: list[str]) -> int:
    """Follow a run to its end; the exit status is 0 if the tracker has all of it."""
    run, name = RunDirectory(Path(arguments[0])), arguments[1]
    for number in SIGNALS:  # that are meant for the run: it says when this ends
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    with _alone(run.tracker_log(name)):
        note = _start(run, name)
        try:
            _follow(run, name, note)
        except BaseException as error:
            print(without_password(traceback.format_exc()), file=sys.stderr)
            note.error = without_password(str(error) or type(error).__name__)[:500]
            write_record(run.tracker_file(name), note)
            return 1
    return 0


def _end_after(parent: int) -> None:
    """End this process a while after the one that started it, whatever the tool is about then."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    time.sleep(_LAST_WORDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with all that the tool has started
    os._exit(1)


@contextmanager
def _alone(log: Path) -> Iterator[None]:
    """Wait until the process of a start before is gone, which may still be telling its last words."""
    with log.open("rb") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(run: RunDirectory, name: str) -> Tracked:
    """What earlier starts of this very run have told the tracker."""
    identity = run.identity_record()
    assert identity is not None
    own = str(identity.run)
    with suppress(Exception):  # a damaged note is made anew
        if (known := read(run.tracker_file(name), Tracked)) is not None and known.run == own:
            return Tracked(own, known.id, known.rows, known.place)
    return Tracked(own)


def _follow(run: RunDirectory, name: str, note: Tracked) -> None:
    tracker = opened(run, name, note)
    note.id, note.place, note.rows = tracker.id, tracker.place, tracker.rows
    write_record(run.tracker_file(name), note)
    state = "killed"
    for word, value in _messages():
        if word == "end":
            state = value
            break
        for step, numbers in rows_of(run.metrics_file, note.rows, int(value)):
            tracker.log(step, numbers)
            note.rows += 1  # not `value`: the next start may have taken rows back already, for it lacked the checkpoint
        write_record(run.tracker_file(name), note)
    if state == "done" and (result := run.result()) is not None:
        figures = {f"figures/{path.stem}": path for path in sorted(run.figures.glob("*.png"))}
        tracker.result(result_numbers(result), figures, run.result_file)
    tracker.close(state)
    note.ended = state
    write_record(run.tracker_file(name), note)


def opened(run: RunDirectory, name: str, note: Tracked) -> Tracker:
    """The tracker, which goes on with the run of the note, if there is one.

    A run directory that was brought here from elsewhere comes without the folders of local tools: then a new run
    begins, and gets all rows.

    Raises:
        Exception: whatever the tool raises.
    """
    module, _, found = CLASSES[name].partition(":")
    kind: Callable[[About], Tracker] = getattr(import_module(module), found)
    now = about(run, name, note)
    try:
        return kind(now)
    except Exception:
        is_local = note.place.startswith(("/", "file:"))
        if note.id is None or not is_local or note.place in (str(now.folder), now.folder.as_uri()):
            raise
        print(f"{note.place} has the run {note.id}, and {now.folder} has not: a new one begins", file=sys.stderr)
    return kind(replace(now, id=None, rows=0))


def about(run: RunDirectory, name: str, note: Tracked) -> About:
    """What a tracker is told of a run when it begins or goes on."""
    key, config = run.find_key(), run.config()
    assert key is not None
    folder = Path(str(config["output_dir"])) / ".trackers" / name
    tags = {part: str(getattr(key, part)) for part in
            ("dataset", "method", "backbone", "shot", "variant", "fold", "seed")}  # fmt: skip
    path = key.path.relative_to(key.name)
    return About(
        note.run, path.as_posix(), key.name, path.parent.parent.as_posix(), tags,
        {part: value for part, value in config.items() if part not in LEFT_OUT}, folder.absolute(), note.id, note.rows,
    )  # fmt: skip


def rows_of(metrics: Path, first: int, end: int) -> list[tuple[int, dict[str, float]]]:
    """Rows `first` to `end` of metrics.csv, counted from 0, without `end`: the step, and its numbers by column."""
    if end <= first:
        return []
    with os.fdopen(open_regular(metrics, METRICS_BYTES), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[first:end]
    return [(int(row["step"]), _numbers(row)) for row in rows]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step" and value}


def _messages() -> Iterator[tuple[str, str]]:
    """Lines `word value` from standard input, until it ends, or the process that started this one does.

    Its workers that load data inherit the other end of the pipe and may live longer.
    """
    parent, text = os.getppid(), b""
    while True:
        if select.select([0], [], [], _LOOK)[0]:
            if not (more := os.read(0, 65536)):
                break
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                word, _, value = line.decode().partition(" ")
                yield word, value
        elif os.getppid() != parent:
            break


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
