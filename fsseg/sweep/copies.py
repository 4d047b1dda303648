"""A copy of a run, in a folder or on a store, and how it is put into place: for `fsseg sync --pull` and `fsseg merge`.

Its files are first brought into a hidden folder of the cell (`.pulled`), where an interrupted command finds them again.
Only once all are there, and the copy still is what was brought, they are put into place under the cell's claim,
checkpoints before the settings and `result.json` last. So no reader ever takes a part of a run for one. What is here
already is replaced only by a later state of the same run (`fsseg.sweep.lineage`), and what a copy says is foreign: its
names lead nowhere else, and its records are read as data.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fsseg.cell import uses
from fsseg.cell.claim import LEASE_SECONDS, Busy, acquire
from fsseg.cell.fence import drop, fenced, put
from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import RunDirectory, Snapshot
from fsseg.errors import UserError
from fsseg.process.files import RECORD_BYTES, prepared, sha256_of, write_atomic
from fsseg.process.remote import path_of
from fsseg.process.words import span
from fsseg.sweep.held import in_turn, is_plain, is_temporary, shown
from fsseg.sweep.lineage import AGAIN, Order, compare, identity_of
from fsseg.sweep.store import Listed, Store, Tries

NOT_BEGUN = "it has not begun there"
PARTS = ".pulled"
"""Folder of what was brought and is not in place yet."""


class CopyPlace(Protocol):
    """Where a copy lies: a `Store`, or a folder of this machine."""

    def look(self, below: str = "") -> dict[str, Listed]:
        """The files of the copy, relative to it."""

    def fetch(self, name: str, target: Path) -> None:
        """Make a new file here of one of the copy."""


@dataclass(frozen=True)
class RunCopy:
    """A copy of a run.

    Attributes:
        place: where it lies.
        base: its folder there.
        files: relative to it.
        records: the run directory itself; of a copy on a store, one that holds its records alone.
    """

    place: CopyPlace
    base: str
    files: Mapping[str, Listed]
    records: RunDirectory
    tries: Tries = field(default_factory=Tries)

    def unfit(self, seen: Snapshot) -> str:
        """Why the copy has nothing to bring yet; empty if it has.

        Raises:
            UserError: the copy is not whole, or parts of two runs.
        """
        there = self.records
        if seen.state == State.RUNNING and seen.age is not None and seen.age < LEASE_SECONDS:
            host = seen.status.host if seen.status else None
            return f"it runs on {host or 'another machine'}, heard of {span(seen.age)} ago"
        if seen.state == State.BROKEN:
            raise UserError(f"the copy there is no whole run: {seen.reason}", AGAIN)
        identity = identity_of(there)
        number, start = there.last_attempt()
        if seen.result is None and identity is None:
            if number or self.has_checkpoint():
                raise UserError(f"the copy there has no {there.identity_file.name} yet", AGAIN)
            return NOT_BEGUN
        if identity is None and there.identity_file.exists():
            raise UserError(f"the copy there is no whole run: {there.identity_file.name} is cut short", AGAIN)
        if seen.result is not None and seen.result.episodes is not None and there.episodes_file.name not in self.files:
            raise UserError(f"the copy there is no whole run: {there.episodes_file.name} is missing", AGAIN)
        run = identity.run if identity is not None else seen.result.run if seen.result is not None else None
        if start is not None and None not in (start.run, run) and start.run != run:
            raise UserError(f"the copy there has parts of two runs ({run} and {start.run})", AGAIN)
        return ""

    def has_checkpoint(self) -> bool:
        return any(name.startswith(f"{self.records.checkpoints.name}/") for name in self.files)

    def take(self, here: RunDirectory, checkpoints: bool) -> tuple[Order, str, int]:
        """Put the copy into place, if it is a later state of what is here; of the same state, what is missing.

        Args:
            checkpoints: those of finished runs too. An unfinished run cannot go on without: they come in any case.

        Returns:
            How the two compare, who works on the cell here if anybody does, and the number of files put into place.

        Raises:
            UserError: the copy is not whole, or must not replace what is here.
            ClaimLost: another process has taken the directory over.
            OSError: the directory here cannot be written.
            Exception: any of the store's.
        """
        order = compare(here, self.records)
        if not self.wanted(here, order, checkpoints) and not _left_over(here):
            return order, "", 0
        try:
            claim = acquire(here.claim_file, LEASE_SECONDS)
        except Busy as busy:
            return order, f"{busy.holder} works on it here", 0
        try:
            claim.start()
            with fenced(here, claim) as work:
                order = compare(here, self.records)  # somebody had it until a moment ago
                names = self.wanted(here, order, checkpoints)
                self._bring(here, names, work)
                if self._done and not order.stays:
                    drop(here.episodes_part, work)
        finally:
            claim.release()
        return order, "", len(names)

    def wanted(self, here: RunDirectory, order: Order, checkpoints: bool) -> list[str]:
        """The files to bring, in the order in which they are put into place.

        Args:
            order: of the copy, compared with what is here.
            checkpoints: as for `take`.
        """
        if order.stays:
            return []
        apart, last = f"{here.checkpoints.name}/", (here.result_file.name, here.status_file.name)
        names = [n for n in self.files if checkpoints or not self._done or not n.startswith(apart)]
        if self._done and here.episodes_part.name in names:
            names.remove(here.episodes_part.name)
        # The status goes behind the checkpoints: how far it says the run is, is how far it is. One that says that the
        # run is done goes behind the result.
        in_order = [n for n in in_turn(here, names) if n not in last] + [n for n in last if n in names]
        if order != Order.SAME:
            return in_order
        return [n for n in in_order if not (here.directory / n).exists() or self._is_torn(n, here.directory / n)]

    @property
    def _done(self) -> bool:
        return self.records.result_file.exists()

    def _is_torn(self, name: str, file: Path) -> bool:
        """Whether a file is not the one of which the result of the copy names the digest."""
        if name != self.records.episodes_file.name:
            return False
        try:
            result = self.records.result()
        except Unreadable:
            return False
        return result is not None and result.episodes is not None and sha256_of(file) != result.episodes.sha256

    def _bring(self, here: RunDirectory, names: Sequence[str], work: Path) -> None:
        """Bring files and put them into place; those that an earlier command has brought are taken from there.

        Raises:
            UserError: the copy changed meanwhile, or is not whole.
            ClaimLost: another process has taken the directory over.
        """
        parts = {name: here.directory / PARTS / f".{self._mark(name)}.tmp" for name in names}
        for name, part in parts.items():
            if not part.exists():
                self.tries.call(lambda name=name, part=part: self._fetch(name, part))  # type: ignore[misc]
            if self._is_torn(name, part):
                part.unlink()
                raise UserError(f"the copy there is no whole run: {name} is not what its result names", AGAIN)
        now = self.tries.call(lambda: self.place.look(self.base)) if names else {}
        if names and (changed := [name for name in self.files if now.get(name) != self.files[name]]):
            raise UserError(f"the copy there changed meanwhile: {shown(changed[0])}", "run the same command again")
        ready = {name: work / part.name for name, part in parts.items()}
        for name, part in parts.items():
            put(part, ready[name], work)
        if here.result_file.name in names:
            drop(here.status_file, work)  # of an earlier state: should this be cut short, the next one brings the other
        for name in names:
            put(ready[name], here.directory / name, work)
        drop(here.directory / PARTS, work)

    def _mark(self, name: str) -> str:
        """Names the content of a file of the copy, for the folder of parts."""
        return Listed.of({"name": name, "mark": self.files[name].mark}).mark

    def _fetch(self, name: str, part: Path) -> None:
        with prepared(part) as temporary:
            self.place.fetch(f"{self.base}/{name}" if self.base else name, temporary)
            handle = os.open(temporary, os.O_RDONLY)  # for writing a linked file of somebody else cannot be opened
            try:
                os.fsync(handle)
                came = os.fstat(handle).st_size
            finally:
                os.close(handle)
            if came != self.files[name].size:
                raise OSError(f"{shown(name)}: {came} bytes came, there are {self.files[name].size}")
            os.replace(temporary, part)


def _left_over(here: RunDirectory) -> bool:
    """Whether a command that was killed has left something in a run directory: the next one clears it away."""
    claim = here.claim()
    return claim is not None and claim.gone


def torn(run: RunDirectory) -> str:
    """What of a copy in a folder was cut short or is missing, as far as its records tell; empty if nothing.

    Checkpoints are looked at from their end, where a file that was cut short lacks the list of what is in it.
    """
    for file, look in ((run.config_file, run.config), (run.identity_file, run.identity_record)):
        try:
            look()
        except Unreadable as error:
            return f"{file.name} {error}"
    try:
        run.episodes()
    except Unreadable as error:
        return f"{run.episodes_file.name} {error}"
    numbers = [path for path in run.attempts.glob("*.json") if path.stem.isdecimal()]
    if len(run.all_attempts()) < len(numbers):
        return f"{run.attempts.name}/ has a record that cannot be read"
    for path in sorted(run.checkpoints.glob("*.pt")):
        if not zipfile.is_zipfile(path):
            return f"{path.relative_to(run.directory)} is cut short"
    return ""


def runs_among(listed: Mapping[str, Listed], bad: list[str]) -> dict[str, dict[str, Listed]]:
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
class StoredRun:
    """A run on a store, of which nothing was read yet: the folder `base` below `url` with these files."""

    remote: Store
    url: str
    base: str
    files: Mapping[str, Listed]
    tries: Tries

    def __str__(self) -> str:
        return f"{self.url.rstrip('/')}/{self.base}" if self.base else self.url

    def read(self, folder: Path) -> RunCopy:
        """Fetch the small files that say what the run is and how far it is.

        Args:
            folder: takes them, in folders that are called as on the store.

        Raises:
            UserError: a record has more bytes than any run writes.
            Exception: any of the store's.
        """
        run = RunDirectory(folder.joinpath(*path_of(self.url), *Path(self.base).parts))
        named = (run.result_file, run.status_file, run.identity_file, run.config_file)
        starts = [n for n in self.files if n.startswith(f"{run.attempts.name}/")]
        names = [n for n in (*(path.name for path in named), *starts) if n in self.files]
        for name in names:
            if self.files[name].size > RECORD_BYTES:
                raise UserError(f"{name} there has {self.files[name].size} bytes, which no run has written", AGAIN)
        paths = {(f"{self.base}/{name}" if self.base else name): name for name in names}
        for path, data in self.tries.call(lambda: self.remote.read(sorted(paths))).items():
            if isinstance(data, OSError):
                raise data
            write_atomic(run.directory / paths[path], data)
        return RunCopy(self.remote, self.base, self.files, run, self.tries)
