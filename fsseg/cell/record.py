"""A run directory: where its files lie, and what they say together. `fsseg.cell.models` says what each file holds.

`fsseg.run` works in a directory through `Cell`; `fsseg.sweep` and `fsseg.report` look at directories through
`RunDirectory` and `find_runs`. No torch and no Hydra here: a thousand directories are read in well under a second.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.claim import LEASE_SECONDS, ClaimView, is_stale, look, take_away
from fsseg.cell.key import (
    LEVELS,
    CellKey,
    base_learner_variant,
    cell_key,
    earlier_keys,
    fingerprint,
    identity,
    named_now,
)
from fsseg.cell.models import (
    Altered,
    Attempt,
    Copied,
    Identity,
    NotJson,
    Result,
    State,
    Status,
    Unreadable,
    read,
    write_record,
)
from fsseg.cell.variant import may_be_earlier
from fsseg.config.history import BEFORE
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import UserError, visible
from fsseg.process.command import train_line
from fsseg.process.files import METRICS_BYTES, open_regular, read_yaml, write_atomic

if TYPE_CHECKING:
    from fsseg.cell.episodes import EpisodeCounts
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg")

_NUMBER = re.compile("[0-9]{1,9}")
_REASON_LENGTH = 2000  # characters shown of why a run ended
# folders of a run: no runs there
_INSIDE = frozenset(("checkpoints", "figures", "attempts", "tensorboard", "used_by", "profile", "trackers"))
_RECORDS = frozenset(("result.json", "status.json", "identity.json", "config.yaml"))  # a folder of this name is a fault


@dataclass(frozen=True)
class RunDirectory:
    """One run directory: where its files are, and what they say."""

    directory: Path

    @property
    def config_file(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def identity_file(self) -> Path:
        return self.directory / "identity.json"

    @property
    def result_file(self) -> Path:
        return self.directory / "result.json"

    @property
    def status_file(self) -> Path:
        return self.directory / "status.json"

    @property
    def claim_file(self) -> Path:
        return self.directory / "claim.json"

    @property
    def sync_file(self) -> Path:
        return self.directory / "sync.json"

    @property
    def metrics_file(self) -> Path:
        return self.directory / "metrics.csv"

    @property
    def log_file(self) -> Path:
        return self.directory / "train.log"

    @property
    def episodes_file(self) -> Path:
        return self.directory / "episodes.npz"

    @property
    def episodes_part(self) -> Path:
        """What was evaluated so far, until there is a result."""
        return self.directory / "episodes.part"

    @property
    def replaced(self) -> Path:
        """The run that `redo=true` is about to replace, until there is a new result (see `fsseg.cell.fence`)."""
        return self.directory / ".replaced"

    @property
    def attempts(self) -> Path:
        return self.directory / "attempts"

    @property
    def tensorboard(self) -> Path:
        return self.directory / "tensorboard"

    def tracker_file(self, name: str) -> Path:
        """What a tracker has of the run (`logger.trackers`)."""
        return self.directory / "trackers" / f"{name}.json"

    def tracker_log(self, name: str) -> Path:
        """What the tool printed."""
        return self.directory / "trackers" / f"{name}.log"

    @property
    def profile_folder(self) -> Path:
        """Where the time of the training went (`train.profile`)."""
        return self.directory / "profile"

    @property
    def figures(self) -> Path:
        return self.directory / "figures"

    @property
    def curves_figure(self) -> Path:
        return self.figures / "curves.png"

    @property
    def episodes_figure(self) -> Path:
        return self.figures / "episodes.png"

    @property
    def steps_figure(self) -> Path:
        return self.figures / "steps.png"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last, for the case that the last one is damaged."""
        return self.checkpoints / "previous.pt"

    def best_checkpoint(self, kind: str) -> Path:
        """The checkpoint that scored best in training, of a kind of `train.select`."""
        return self.checkpoints / f"{kind}.pt"

    def best_part(self, kind: str) -> Path:
        """What of its episodes was evaluated so far, until there is a result; it travels as checkpoints do."""
        return self.checkpoints / f"{kind}.part"

    def result(self) -> Result | None:
        """Raises: Unreadable."""
        return read(self.result_file, Result)

    def episodes(self) -> EpisodeCounts | None:
        """The counts of every evaluated episode; None without a result, or if an earlier version made it.

        Raises:
            Unreadable: result.json cannot be read, or the counts are not those of which it names the digest.
        """
        from fsseg.cell.episodes import read_counts  # numpy: whoever only looks at runs starts quicker without

        result = self.result()
        if result is None or result.episodes is None:
            return None
        return read_counts(self.episodes_file, result.episodes)

    def status(self) -> Status | None:
        """Raises: Unreadable."""
        return read(self.status_file, Status)

    def identity_record(self) -> Identity | None:
        """Raises: Unreadable."""
        return read(self.identity_file, Identity)

    def recorded_overrides(self) -> list[str] | None:
        """What the line of the cell set; None where nothing tells."""
        try:
            record = self.identity_record()
        except Unreadable:
            return None
        return None if record is None else record.overrides

    def copied(self) -> Copied:
        """What the store has; nothing where the file is absent or damaged, so that everything is copied again."""
        try:
            return read(self.sync_file, Copied) or Copied()
        except Unreadable:
            return Copied()

    def config(self) -> dict[str, Any]:
        """The whole configuration, {} if there is none.

        Raises:
            Unreadable: it is no YAML, or no mapping.
        """
        try:
            value = read_yaml(self.config_file)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise Unreadable(f"cannot be read ({error})") from None
        if not isinstance(value, dict):
            raise Unreadable("holds no configuration")
        return value

    def last_attempt(self) -> tuple[int, Attempt | None]:
        """Number and record of the newest start; 0 and None if there was none, None if its file is damaged."""
        number = max((int(p.stem) for p in self.attempts.glob("*.json") if _NUMBER.fullmatch(p.stem)), default=0)
        return number, self._attempt(number)

    def all_attempts(self) -> list[Attempt]:
        """The records of all starts that can be read, in no order."""
        found = (self._attempt(int(p.stem)) for p in self.attempts.glob("*.json") if _NUMBER.fullmatch(p.stem))
        return [attempt for attempt in found if attempt is not None]

    def _attempt(self, number: int) -> Attempt | None:
        try:
            return read(self.attempts / f"{number}.json", Attempt)
        except Unreadable:
            return None

    def curves(self, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, tuple[list[float], list[float]]]:
        """Column of metrics.csv -> (steps, values), steps rising.

        What is no finite number is skipped, and so are lines that a kill cut short. Where a resumed run wrote a step
        twice, the later line counts. Reading ends at what is no CSV. {} if there is no file, or it is larger than
        `METRICS_BYTES`.

        Args:
            wanted: which columns are read.
        """
        found: dict[str, dict[float, float]] = {}
        with suppress(OSError, csv.Error):
            handle = open_regular(self.metrics_file, METRICS_BYTES)
            with os.fdopen(handle, encoding="utf-8", errors="replace", newline="") as file:
                lines = csv.reader(file)
                names = {name: place for place, name in enumerate(next(lines, []))}
                at = names.pop("step", len(names))
                columns = [(place, name) for name, place in names.items() if name and wanted(name)]
                for line in lines:
                    if (step := _finite(line[at]) if at < len(line) else None) is None:
                        continue
                    for place, name in columns:
                        if place < len(line) and (value := _finite(line[place])) is not None:
                            found.setdefault(name, {})[step] = value
        return {name: (sorted(values), [values[s] for s in sorted(values)]) for name, values in found.items()}

    def note(self, line: str) -> None:
        """Append a line to train.log, for a process that could not write it itself.

        Raises:
            OSError: it cannot be written.
        """
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%H:%M:%S} {line}\n")

    def claim(self) -> ClaimView | None:
        """Who works in the directory, as one look shows it."""
        return look(self.claim_file)

    def take_claim(self, view: ClaimView) -> bool:
        """Remove the claim of a holder who is known to have ended; False if it is not there any more."""
        return take_away(self.claim_file, view.holder)

    def take_stale_claim(self) -> bool:
        """Remove a claim whose holder is gone or gives no sign of life, which takes a moment to see."""
        view = self.claim()
        return view is not None and (view.gone or is_stale(self.claim_file, view.holder)) and self.take_claim(view)

    def size(self) -> int:
        """Bytes of all its files; links count for nothing, and neither does what cannot be looked at."""
        folders, total = [os.fspath(self.directory)], 0
        while folders:
            with suppress(OSError), os.scandir(folders.pop()) as listing:
                for entry in listing:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
        return total

    def find_key(self) -> CellKey | None:
        """The cell's own name, which it keeps where its folder is renamed or copied: that of identity.json.

        An earlier version noted none there. Then it is read off the path, with the name of the configuration for that
        of the experiment's folder; of a directory that was copied out of its tree, off the configuration alone.
        """
        with suppress(Unreadable):
            if (stored := self.identity_record()) is not None and stored.cell is not None:
                return stored.cell
        placed = CellKey.from_path(self.directory)
        try:
            config = self.config()
            if placed is not None:
                key = replace(placed, name=str(config.get("name") or placed.name))
                return key if key.is_whole else placed
            key = CellKey(
                str(config["name"]), str(config["dataset"]["name"]), str(config["model"]["name"]),
                str(config["backbone"]["name"]), int(config["shot"]), int(config["fold"]), int(config["seed"]),
                "unknown",
            )  # fmt: skip
        except (Unreadable, KeyError, TypeError, ValueError):
            return placed
        return key if key.is_whole else None

    def row_key(self, key: CellKey) -> CellKey:
        """The key under which tables show the cell `key` of this directory: its runs of all versions are one row."""
        overrides = self.recorded_overrides() if may_be_earlier(key.variant) else None
        return key if overrides is None else named_now(key, overrides)

    def look(self, now: float | None = None) -> Snapshot:
        """How the run stands.

        Args:
            now: seconds since the epoch; None takes the clock.
        """
        cut = ""
        try:
            if (result := self.result()) is not None:
                if (mixed := self._of_another_run(result)) is not None:
                    return Snapshot(self, State.BROKEN, mixed)
                return Snapshot(self, State.DONE, result=result)
        except NotJson as error:  # cut short when its host died: somebody may be at it again
            cut = f"result.json {error}"
        except Unreadable as error:
            return Snapshot(self, State.BROKEN, f"result.json {error}")
        seen = self._unfinished(time.time() if now is None else now)
        return Snapshot(self, State.BROKEN, cut) if cut and not seen.alive else seen

    def _of_another_run(self, result: Result) -> str | None:
        """How identity.json contradicts the result; None if it does not, or does not say."""
        try:
            stored = self.identity_record()
        except Unreadable:
            return None
        if stored is None or None in (stored.run, result.run) or stored.run == result.run:
            return None
        with suppress(Unreadable):  # between the two looks it may have been set aside for a redo
            if (again := self.result()) is None or again.run != result.run:
                return None
        return f"result.json is of run {result.run}, identity.json of run {stored.run}"

    def _unfinished(self, now: float) -> Snapshot:
        try:
            status = self.status()
        except Unreadable as error:
            return Snapshot(self, State.BROKEN, f"status.json {error}")
        if status is None:
            return Snapshot(self, State.FAILED, "ended before its first status")
        claim = self.claim()
        age = _age(status, claim, now)
        reason = (status.reason or "")[:_REASON_LENGTH]
        if status.state == State.DONE:
            return Snapshot(self, State.BROKEN, "status.json says done, but there is no result.json", status, None, age)
        if status.state not in (State.RUNNING, State.QUEUED, State.PREEMPTED, State.PRUNED, State.FAILED, State.STALE):
            return Snapshot(self, State.BROKEN, f"status.json has state {status.state!r}", status, None, age)
        state = State(status.state)
        if state == State.RUNNING and claim is not None and claim.gone:
            state = State.STALE
            reason = reason or "its process has ended without a word: killed, or out of memory"
        elif state == State.RUNNING and (age is None or age > (claim.holder.lease if claim else LEASE_SECONDS)):
            state, reason = State.STALE, reason or "no sign of life: killed, or its host is gone"
        return Snapshot(self, state, reason, status, None, age)


def _age(status: Status, claim: ClaimView | None, now: float) -> float | None:
    """Seconds since a run was last heard of, by its status or its claim."""
    beats = [status.heartbeat]
    if status.state == State.RUNNING and claim is not None:
        beats.append(claim.renewed)
    last = max((b for b in beats if b is not None), default=None)
    return None if last is None else max(0.0, now - last)  # clocks of two hosts differ: never less than nothing


@dataclass(frozen=True)
class Snapshot:
    """How a run stood when one looked.

    Attributes:
        reason: why it is not done, for people; empty where there is nothing to say.
        status: what status.json says; None for a finished run, or where it cannot be read.
        result: of a finished run.
        age: seconds since it was last heard of; None if never.
    """

    run: RunDirectory
    state: State
    reason: str = ""
    status: Status | None = None
    result: Result | None = None
    age: float | None = None

    @property
    def directory(self) -> Path:
        return self.run.directory

    @cached_property
    def key(self) -> CellKey | None:
        """The cell's own name, which may be another than its folder's."""
        return self.result.cell if self.result else self.run.find_key()

    @property
    def label(self) -> str:
        """The cell's name; and where it lies, if that has another."""
        elsewhere = CellKey.from_path(self.directory) not in (None, self.key)
        return str(self.key or self.directory) + f" (in {self.directory})" * elsewhere

    @property
    def miou(self) -> float | None:
        """Of the result, or of the evaluation so far."""
        return self.result.miou if self.result else self.status.miou if self.status else None

    @property
    def progress(self) -> tuple[str, int, int] | None:
        """Phase, step and steps within it; None where that is not known."""
        s = self.status
        return (s.phase or "stopped", s.step, s.steps) if s is not None and s.step is not None and s.steps else None

    @property
    def alive(self) -> bool:
        """Whether somebody works on the cell, or will, as far as one look can tell."""
        claim = self.run.claim()
        busy = self.state in (State.RUNNING, State.PENDING, State.QUEUED)
        return busy or (self.state != State.STALE and claim is not None and claim.alive())


@dataclass(frozen=True)
class Cell(RunDirectory):
    """The directory of a composed configuration. Whoever writes in it holds its claim.

    Attributes:
        identity: all settings that can change the numbers, flat.
        overrides: what it was composed from.
    """

    key: CellKey
    fingerprint: str
    identity: dict[str, Any] = field(repr=False)
    overrides: tuple[str, ...] = ()

    @property
    def experiment(self) -> Path:
        """`outputs/<name>`."""
        return self.directory.parents[LEVELS - 2]

    def finished(self) -> Result | None:
        """The result, if this very cell (same fingerprint) is done. One that was cut short counts as absent.

        Raises:
            UserError: there is a result that this version does not understand, that was changed, or that is of another
                run than the identity: it is never overwritten unasked.
        """
        try:
            result = self.result()
        except NotJson:
            return None
        except Unreadable as error:
            raise self._not_understood(self.result_file, error) from None
        if result is not None and (mixed := self._of_another_run(result)) is not None:
            raise UserError(f"{self.directory}: {mixed}", "bring the right one back, or train anew with redo=true")
        return result if result is not None and result.fingerprint == self.fingerprint else None

    def is_begun(self) -> bool:
        """Whether a run of this very cell (same fingerprint) is in the directory, as far as its files can be read."""
        for stored in (self.identity_record, self.result):
            with suppress(Unreadable):
                if (record := stored()) is not None:
                    return record.fingerprint == self.fingerprint
        return False

    def check_same_settings(self) -> None:
        """Refuse a directory that holds a run with other settings.

        Raises:
            UserError: naming the keys that differ, and the ways out; or that its identity cannot be understood.
        """
        try:
            stored = self.identity_record()
        except NotJson:
            stored = None
        except Unreadable as error:
            raise self._not_understood(self.identity_file, error) from None
        if stored is None:
            self._check_lone_result()
            return
        if stored.fingerprint == self.fingerprint:
            return
        ours = json.loads(json.dumps(self.identity, default=str))
        differing = [
            f"{key}: {there} there, {now} now"
            for key, (there, now) in settings_that_differ(stored.identity, ours).items()
        ]
        raise UserError(
            f"{self.directory} holds a run with other settings: " + "; ".join(differing),
            "keep both with name=<another name> or variant=<a name>, or replace that run with redo=true",
        )

    def _check_lone_result(self) -> None:
        """Raises: UserError: there is a result of other settings, though no identity."""
        with suppress(NotJson):
            result = self.result()
            if result is not None and result.fingerprint != self.fingerprint:
                raise UserError(
                    f"{self.directory} holds the result of a run with other settings, without its identity.json",
                    "keep both with name=<another name> or variant=<a name>, or replace that run with redo=true",
                )

    def _not_understood(self, path: Path, error: Unreadable) -> UserError:
        fix = "it may be of another version of fsseg: keep both with name=<another name>, or replace it with redo=true"
        if isinstance(error, Altered):
            fix = "bring the file back as it was written, or train anew with redo=true"
        return UserError(f"{path} {error}", fix)

    def begin(self, config: str) -> tuple[str, bool]:
        """Write identity.json, and config.yaml with the text given, for a run that starts or goes on here.

        A run that goes on keeps its name, also where its folder was renamed or copied meanwhile.

        Returns:
            The run's id, that of the run that is here or else a new one; and whether it is new.
        """
        try:
            stored = self.identity_record()
        except Unreadable:  # `check_same_settings` has let it pass
            stored = None
        known = stored.run if stored is not None else None
        own = self.find_key() if stored is not None else None
        run = known or uuid.uuid4().hex[:12]
        self.write_identity(run, own)
        write_atomic(self.config_file, config)
        return run, known is None

    def write_identity(self, run: str, own: CellKey | None = None) -> None:
        """identity.json for the run of this id; `own` is its name if that is not the one of the directory."""
        content = Identity(self.fingerprint, self.identity, list(self.overrides), run, own or self.key)
        write_record(self.identity_file, content)


def settings_that_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> its values in two identities, where these are others.

    An identity that lacks a key was made before there was that setting, and stands for what was done then.
    """
    without = {key: BEFORE.get(key, "(absent)") for key in one.keys() ^ other.keys()}
    return {
        key: (one.get(key, without.get(key)), other.get(key, without.get(key)))
        for key in sorted(set(one) | set(other))
        if one.get(key) != other.get(key)
    }


def open_cell(cfg: Config, resolved: dict[str, Any], overrides: Iterable[str] = (), output: Path | None = None) -> Cell:
    """The cell of a composed configuration; nothing is written.

    Where an earlier version has begun this very cell under the name that it gave to it, that is its directory.

    Args:
        output: where it lies; None takes the configuration's `output_dir`.

    Raises:
        UserError: a file whose content is part of the identity cannot be read.
    """
    overrides, folder = tuple(overrides), Path(cfg.output_dir) if output is None else output
    key = cell_key(cfg, overrides)
    kept = identity(resolved)
    if cfg.model.name in BASE_LEARNERS and not cfg.variant:
        key = replace(key, variant=base_learner_variant(kept))
    cell = Cell(folder / key.path, key, fingerprint(kept), kept, overrides)
    if not cell.identity_file.exists() and not cell.result_file.exists():
        for earlier in earlier_keys(cfg, overrides):
            there = replace(cell, directory=folder / earlier.path, key=earlier)
            if there.is_begun():
                return there
    return cell


@dataclass(frozen=True)
class Problem:
    """A file that should have told something and did not."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def find_runs(
    folders: Iterable[str | Path],
    problems: list[Problem] | None = None,
    visit: Callable[[Path, set[str]], object] = lambda folder, names: None,
) -> list[RunDirectory]:
    """All run directories below the folders (or the folders themselves), each once, sorted by path.

    Args:
        folders: where to look.
        problems: takes the folders that are left out; None logs them.
        visit: is called with every folder on the way, and the names in it.

    Raises:
        UserError: a folder does not exist.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is no folder", "name a folder that holds runs, e.g. outputs/runs")
    seen: set[tuple[int, int]] = set()
    left_out: list[Problem] = [] if problems is None else problems
    found = []
    for root in roots:
        for folder, names in walk(root, seen, left_out):
            visit(Path(folder), names)
            if is_run(Path(folder), names):
                found.append(Path(folder))
    for problem in left_out if problems is None else ():
        log.warning("%s", visible(problem))  # `fsseg` prints it as it is
    return [RunDirectory(path) for path in sorted(found)]


def look_at(folders: Iterable[str | Path], problems: list[Problem] | None = None) -> list[Snapshot]:
    """How all runs below the folders stand; `problems` as for `find_runs`.

    Raises:
        UserError: a folder does not exist, or there is no run.
    """
    folders, now = list(folders), time.time()
    if found := [run.look(now) for run in find_runs(folders, problems)]:
        return found
    raise nothing_found(folders)


def nothing_found(folders: Iterable[str | Path]) -> UserError:
    """That there is no run below the folders."""
    return UserError(
        f"no run found under {', '.join(map(str, folders))}",
        f"name a folder above run directories, e.g. outputs/runs, or start runs with `{train_line()}`",
    )


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder with these files is a run; a config.yaml alone must name a cell."""
    if "result.json" in names or "status.json" in names or "identity.json" in names:
        return True
    return "config.yaml" in names and RunDirectory(folder).find_key() is not None


def walk(root: str | Path, seen: set[tuple[int, int]], problems: list[Problem]) -> Iterator[tuple[str, set[str]]]:
    """Every visible folder with the names in it; links are followed, the insides of runs left out.

    Args:
        seen: folders that were visited before, by device and inode; each is visited once. Filled here.
        problems: takes the folders that cannot be read, and links to a folder that holds `root`: they would lead to
            everything there is.
    """
    above = _above(root)
    waiting = [os.fspath(root)]
    while waiting:
        folder = waiting.pop()
        try:
            about = os.stat(folder)
            if (mark := (about.st_dev, about.st_ino)) in seen:
                continue
            if mark in above:
                problems.append(Problem(Path(folder), "is a link to a folder above; it is not followed"))
                continue
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            problems.append(Problem(Path(folder), f"cannot be read ({error.strerror})"))
            continue
        seen.add(mark)
        names = {e.name for e in entries}
        yield folder, names
        inside = _INSIDE if {"result.json", "status.json", "config.yaml"} & names else frozenset[str]()
        closed = inside | _RECORDS
        waiting += [
            e.path for e in reversed(entries) if not e.name.startswith(".") and e.name not in closed and _is_folder(e)
        ]


def _above(folder: str | Path) -> set[tuple[int, int]]:
    """The folders that hold a folder, up to the root of the file system, by device and inode."""
    found = set()
    for parent in Path(os.path.realpath(folder)).parents:
        with suppress(OSError):
            about = os.stat(parent)
            found.add((about.st_dev, about.st_ino))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _finite(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
