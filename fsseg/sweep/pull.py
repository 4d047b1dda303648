"""`fsseg sync --pull`: run directories from a store, so that a cell goes on, or counts as done, on this machine.

A run comes to where the line that made it looks for it: below the output folder as on the store. Its files are first
fetched into a hidden folder (`.pulled`), where an interrupted pull finds them again. Only once all are there, and the
store still has what was fetched, they are put into place under the cell's claim, checkpoints before the settings and
`result.json` last. So no reader ever takes a part of a run for one. What is here already is replaced only by a later
state of the same run, and what a store says is foreign: its names lead nowhere else, and its records are read as data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell import uses
from fsseg.cell.claim import LEASE_SECONDS, Busy, acquire
from fsseg.cell.fence import drop, fenced, put
from fsseg.cell.key import CellKey
from fsseg.cell.models import Identity, NotJson, Result, State, Unreadable
from fsseg.cell.record import RunDirectory, Snapshot
from fsseg.errors import UserError, visible
from fsseg.process.files import RECORD_BYTES, ClaimLost, prepared, write_atomic
from fsseg.process.remote import path_of
from fsseg.process.words import span
from fsseg.sweep.held import in_turn, is_below, is_plain, is_temporary, own_result, shown, start_of
from fsseg.sweep.store import Listed, Store, Tries, words
from fsseg.sweep.sync import check_address, reading, tell_left_out

_USUAL = Tries()
_PARTS = ".pulled"  # folder of what was fetched and is not in place yet
_NOT_BEGUN, _DONE_HERE, _WENT_ON = "it has not begun there", "it is done here", "it went on here"
_MOST_LINES = 40  # of cells that are named
_MOVE_AWAY = "move it away, and pull again; or leave it, it goes on without the store"
_AGAIN = "pull again when the copy there is complete (`fsseg sync` on the machine where it ran completes it)"


@dataclass
class Pulled:
    """What a pull achieved for one run.

    Attributes:
        directory: here; where that is unknown, the folder on the store.
        fetched: files that were put into place.
        state: of the run on the store.
        kept: why it is left as it is here, if that is how it should be.
        error: why it could not be fetched in full; empty if it could.
    """

    directory: Path
    fetched: int = 0
    state: State | None = None
    kept: str = ""
    error: str = ""


def pull(url: str, output: Path, checkpoints: bool = False, tries: Tries = _USUAL) -> list[Pulled]:
    """Fetch all runs below an address; one entry for each, in the order of the store's names.

    Args:
        url: the folder that stands for the output folder, or one below it.
        output: the output folder here; made if need be.
        checkpoints: fetch those of finished runs too. An unfinished run cannot go on without: they come in any case.
        tries: for each operation.

    Raises:
        UserError: the address is wrong, cannot be read, holds no run or is the folder itself; the folder is not one
            for output.
    """
    check_address(url)
    _check_folder(output)
    bad: list[str] = []
    with reading(url):
        remote = tries.call(lambda: Store(url))
        runs = _runs_among(tries.call(remote.look), bad)
    tell_left_out(url, bad)
    if not runs:
        raise UserError(f"no run found under {url}", "name a folder above runs that were copied with sync.url")
    if remote.folder is not None:
        there = Path(os.path.realpath(remote.folder))
        if is_below(there, output) or is_below(Path(os.path.abspath(output)), there):
            raise UserError(f"{url} leads to {output} itself", "name another folder, or another address")
    found = []
    for base, files in sorted(runs.items()):
        pulled = Pulled(Path(base or url))
        try:
            _Source(remote, url, base, files, tries).into(output, checkpoints, pulled)
        except ClaimLost as lost:
            pulled.error = str(lost)
        except Exception as error:  # one odd run ends no other
            pulled.error = words(error)
        found.append(pulled)
    return found


def _check_folder(output: Path) -> None:
    """Raises: UserError: it is a file, or the folder of one experiment."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is no folder", "name the output folder, e.g. outputs")
    if any(output.glob("*/*/*/*shot/*/fold*/seed*")):
        raise UserError(
            f"{output} is the folder of one experiment; runs are put below an output folder by their names",
            f"name the folder above: {output.parent}",
        )


def _runs_among(listed: Mapping[str, Listed], bad: list[str]) -> dict[str, dict[str, Listed]]:
    """Folder of each run on a store -> its files, relative to it, as far as they may come here.

    Args:
        bad: takes the names that lead elsewhere.
    """
    run = RunDirectory(Path())
    records = {run.result_file.name, run.status_file.name, run.identity_file.name}
    stays = {run.claim_file.name, run.sync_file.name}
    good: dict[str, Listed] = {}
    for name, about in listed.items():
        if not is_plain(name):
            bad.append(shown(name))
        elif not any(map(is_temporary, name.split("/"))):
            good[name] = about
    runs: dict[str, dict[str, Listed]] = {n.rpartition("/")[0]: {} for n in good if n.rpartition("/")[2] in records}
    for name, about in good.items():
        base = next((f for f in _folders_above(name) if f in runs), None)
        if base is None:
            continue
        own = name.removeprefix(f"{base}/") if base else name
        if own not in stays and not own.startswith(f"{uses.FOLDER}/"):
            runs[base][own] = about
    return runs


def _folders_above(name: str) -> Iterable[str]:
    """The folders that hold a file of the store, the innermost first; the last is the root."""
    while name:
        name = name.rpartition("/")[0]
        yield name


@dataclass(frozen=True)
class _Source:
    """A run on the store: the folder `base` with these files."""

    remote: Store
    url: str
    base: str
    files: Mapping[str, Listed]
    tries: Tries

    def into(self, output: Path, checkpoints: bool, pulled: Pulled) -> None:
        """Fetch the run; `pulled` takes what came of it.

        Raises:
            UserError: the copy on the store is no whole run, or must not replace what is here.
            OSError: the directory here cannot be written.
            Exception: any of the store's.
        """
        with tempfile.TemporaryDirectory(prefix="fsseg-pull-") as temporary:
            there = self._records(Path(temporary))
            key = CellKey.from_path(there.directory) or there.find_key()
            if key is None:
                raise UserError(f"nothing says which cell {self.base or self.url} is", "name a folder above it")
            here = RunDirectory(output / key.path)
            pulled.directory = here.directory
            seen = there.look()
            pulled.state = seen.state
            pulled.kept = self._unfit(seen)
            if pulled.kept:
                return
            pulled.kept, missing = _standing(here, there)
            if pulled.kept or not self._wanted(here, seen.state, checkpoints, missing):
                return
            try:
                claim = acquire(here.claim_file, LEASE_SECONDS)
            except Busy as busy:
                pulled.kept = f"{busy.holder} works on it here"
                return
            try:
                claim.start()
                with fenced(here, claim) as work:
                    pulled.kept, missing = _standing(here, there)  # somebody had it until a moment ago
                    if not pulled.kept:
                        names = self._wanted(here, seen.state, checkpoints, missing)
                        pulled.fetched = self._bring(here, names, work)
                        if seen.state == State.DONE:
                            drop(here.episodes_part, work)
            finally:
                claim.release()

    def _records(self, folder: Path) -> RunDirectory:
        """The small files that say what the run is and how far it is, in a folder that is called as on the store."""
        place = Path(self.base).parts
        run = RunDirectory(folder.joinpath(*path_of(self.url), *place))
        named = (run.result_file, run.status_file, run.identity_file, run.config_file)
        starts = [n for n in self.files if n.startswith(f"{run.attempts.name}/")]
        names = [n for n in (*(path.name for path in named), *starts) if n in self.files]
        for name in names:
            if self.files[name].size > RECORD_BYTES:
                raise UserError(f"{name} there has {self.files[name].size} bytes, which no run has written", _AGAIN)
        paths = {(f"{self.base}/{name}" if self.base else name): name for name in names}
        for path, data in self.tries.call(lambda: self.remote.read(sorted(paths))).items():
            if isinstance(data, OSError):
                raise data
            write_atomic(run.directory / paths[path], data)
        return run

    def _unfit(self, seen: Snapshot) -> str:
        """Why the run there has nothing to fetch yet; empty if it has.

        Raises:
            UserError: the copy is not whole, or parts of two runs.
        """
        there = seen.run
        if seen.state == State.RUNNING and seen.age is not None and seen.age < LEASE_SECONDS:
            host = seen.status.host if seen.status else None
            return f"it runs on {host or 'another machine'}, heard of {span(seen.age)} ago"
        if seen.state == State.BROKEN:
            raise UserError(f"the copy there is no whole run: {seen.reason}", _AGAIN)
        identity = _identity(there)
        number, start = there.last_attempt()
        if seen.result is None and identity is None:
            if number or self._has_checkpoint():
                raise UserError(f"the copy there has no {there.identity_file.name} yet", _AGAIN)
            return _NOT_BEGUN
        run = identity.run if identity is not None else seen.result.run if seen.result is not None else None
        if start is not None and None not in (start.run, run) and start.run != run:
            raise UserError(f"the copy there has parts of two runs ({run} and {start.run})", _AGAIN)
        return ""

    def _has_checkpoint(self) -> bool:
        return any(name.startswith(f"{RunDirectory(Path()).checkpoints.name}/") for name in self.files)

    def _wanted(self, here: RunDirectory, state: State, checkpoints: bool, missing: bool) -> list[str]:
        """The files to fetch, in the order in which they are put into place.

        Args:
            missing: only those that are not here.
        """
        apart, last = f"{here.checkpoints.name}/", (here.status_file.name, here.result_file.name)
        names = [n for n in self.files if checkpoints or state != State.DONE or not n.startswith(apart)]
        if state == State.DONE and here.episodes_part.name in names:
            names.remove(here.episodes_part.name)
        # The status goes behind the checkpoints: how far it says the run is, is how far it is.
        order = [n for n in in_turn(here, names) if n not in last] + [n for n in last if n in names]
        return [n for n in order if not missing or not (here.directory / n).exists()]

    def _bring(self, here: RunDirectory, names: Sequence[str], work: Path) -> int:
        """Fetch files and put them into place; those that an earlier pull has fetched are taken from there.

        Raises:
            UserError: the copy changed meanwhile.
            ClaimLost: another process has taken the directory over.
        """
        parts = {name: here.directory / _PARTS / f".{self._mark(name)}.tmp" for name in names}
        for name, part in parts.items():
            if not part.exists():
                self.tries.call(lambda name=name, part=part: self._fetch(name, part))  # type: ignore[misc]
        now = self.tries.call(lambda: self.remote.look(self.base))
        if changed := [name for name in self.files if now.get(name) != self.files[name]]:
            raise UserError(f"the copy there changed meanwhile: {changed[0]}", "pull again")
        ready = {name: work / part.name for name, part in parts.items()}
        for name, part in parts.items():
            put(part, ready[name], work)
        for name in names:
            put(ready[name], here.directory / name, work)
        drop(here.directory / _PARTS, work)
        return len(names)

    def _mark(self, name: str) -> str:
        """Names the content of a file of the store, for the folder of parts."""
        return Listed.of({"name": name, "mark": self.files[name].mark}).mark

    def _fetch(self, name: str, part: Path) -> None:
        with prepared(part) as temporary:
            self.remote.fetch(f"{self.base}/{name}" if self.base else name, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if (size := temporary.stat().st_size) != self.files[name].size:
                raise OSError(f"{name}: {size} bytes came, the store has {self.files[name].size}")
            os.replace(temporary, part)


def _standing(here: RunDirectory, there: RunDirectory) -> tuple[str, bool]:
    """How the run of the store compares with what is here.

    Returns:
        Why what is here stays as it is, empty if it does not; and whether only missing files are to be fetched, since
        both are in the same state.

    Raises:
        UserError: what is here is another run, or cannot be read.
    """
    ours, theirs = _identity(here), _identity(there)
    mine, fault = own_result(here)
    if fault:
        raise UserError(f"here {fault}", _MOVE_AWAY)
    their_result, _ = own_result(there)
    (number, last), (their_number, _) = here.last_attempt(), there.last_attempt()
    if mine is None and ours is None and not number and not here.checkpoint.exists():
        return "", False
    known = bool(start_of(there)) and start_of(there) == start_of(here, their_number)  # their newest start is here
    later = last is not None and start_of(here) == start_of(there, number)  # our newest start is there
    ids = [run for run in (_run_of(here, ours), _run_of(there, theirs)) if run is not None]
    if len(set(ids)) > 1 or (len(ids) < 2 and number and not (known or later or mine == their_result is not None)):
        raise UserError("another run of this cell lies here", _MOVE_AWAY)
    if mine is not None:
        if their_result is None:
            return _DONE_HERE, False
        if mine != their_result:
            raise UserError("another result of this cell lies here", _MOVE_AWAY)
        return "", True
    if their_result is not None or not number:
        return "", False
    if known:
        steps, their_steps = _step(here), _step(there)
        if number > their_number or steps > their_steps:
            return _WENT_ON, False
        return "", steps == their_steps
    if later:
        return "", False
    raise UserError("the run went on here and elsewhere, each for itself", _MOVE_AWAY)


def _identity(run: RunDirectory) -> Identity | None:
    """None where there is none, or it was cut short.

    Raises:
        UserError: it cannot be understood.
    """
    try:
        return run.identity_record()
    except NotJson:
        return None
    except Unreadable as error:
        raise UserError(f"{run.identity_file.name} {error}", _AGAIN) from None


def _run_of(run: RunDirectory, identity: Identity | None) -> str | None:
    """The id of the run in a directory; None if nothing tells, as in those of earlier versions."""
    if identity is not None:
        return identity.run
    try:
        result: Result | None = run.result()
    except Unreadable:
        return None
    return result.run if result is not None else None


def _step(run: RunDirectory) -> int:
    """How far its status says it is; -1 without one."""
    try:
        status = run.status()
    except Unreadable:
        return -1
    return -1 if status is None or status.step is None else status.step


def text(found: Sequence[Pulled], output: Path) -> str:
    """What `fsseg sync --pull` prints."""
    failed = [p for p in found if p.error]
    done = [p for p in found if not p.error and (p.state == State.DONE or p.kept == _DONE_HERE)]
    open_ = [p for p in found if not p.error and p not in done and p.kept in ("", _WENT_ON)]
    head = f"{len(found)} cells: {sum(p.fetched for p in found)} files fetched, {len(done)} done, {len(open_)} to go on"
    lines = [f"  {p.directory}: kept as it is: {p.kept}" for p in found if p.kept and not p.error]
    lines += [f"  {p.directory}: not fetched: {p.error}" for p in failed]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"  ... and {len(lines) - _MOST_LINES} more"]
    if open_:
        lines.append(f"to go on, start the line of these cells here (output_dir={output})")
    return "\n".join(map(visible, [head + f", {len(failed)} not fetched" * bool(failed), *lines]))
