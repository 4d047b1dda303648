"""`fsseg merge A B C --out D`: the runs of several machines in one output folder, each at the place of its cell.

All copies of a cell are looked at first, the one in the output folder among them. `fsseg.sweep.lineage` says which of
them is the latest state of one run, and `fsseg.sweep.copies` puts it into place. Where two are of different runs,
neither takes the place of the other, and both are named. Records of sweeps come too, so that cells that never started
are known.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fsseg.cell import uses
from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.cell.record import Problem, RunDirectory, find_runs, nothing_found
from fsseg.cell.sweeps import Sweep, look_for, new_sweep, sweeps_of
from fsseg.errors import UserError
from fsseg.process.files import ClaimLost
from fsseg.process.remote import is_url
from fsseg.sweep.copies import StoredRun, runs_among, torn
from fsseg.sweep.lineage import AnotherRun, Order, compare, differences
from fsseg.sweep.local import ASIDE, How, LocalRun, drop_empty, local_copy, remove_moved
from fsseg.sweep.merged import CellCopy, Conflict, Merged, MergedCell
from fsseg.sweep.pull import check_folder
from fsseg.sweep.store import Store, Tries, words
from fsseg.sweep.sync import check_address, reading, tell_left_out

_EMPTY = "it ended before its first checkpoint, and there is another run of its cell"
_AT_ONCE = 32  # runs that are removed where they were
_LATER = "a later state of the run is in place"


def merge(sources: Sequence[str], output: Path, how: How = How.COPY, check: bool = False) -> Merged:
    """Bring all runs below the sources into one output folder, checkpoints included.

    Args:
        sources: folders, and addresses of stores.
        output: the output folder; made if need be. It may be one of the sources, or lie in one.
        how: for folders; from a store files are always copied.
        check: only look.

    Raises:
        UserError: a source does not exist or cannot be read, there is no run in any, a store is to be moved or linked;
            the output folder is none.
    """
    check_folder(output)
    if how != How.COPY and (urls := [source for source in sources if is_url(source)]):
        raise UserError(f"--{how.value}: {urls[0]} is no folder of this machine", "leave the option out for a store")
    merged = Merged(output, check)
    with tempfile.TemporaryDirectory(prefix="fsseg-merge-") as temporary:
        copies: list[CellCopy] = []
        sweeps: list[Sweep] = []
        for number, source in enumerate(sources):
            if is_url(source):
                copies += _on_a_store(source, Path(temporary, str(number)))
            else:
                found = list(_below(Path(source), how, check, merged, sweeps))
                known = {os.path.realpath(c.told) for c in copies if c.root is not None}
                copies += [c for c in found if os.path.realpath(c.told) not in known]
        moved_before = how == How.MOVE and output.is_dir() and find_runs([output], [])
        if not copies and not sweeps and not merged.strange and not moved_before:
            raise nothing_found(sources)
        groups: dict[CellKey, list[CellCopy]] = {}
        for one in copies:
            if one.key is None:
                merged.strange.append((one.told, one.fault))
            else:
                groups.setdefault(one.key, []).append(one)
        for key, group in sorted(groups.items(), key=lambda pair: str(pair[0])):
            cell = MergedCell(output / key.path, group)
            _settle(cell, check)
            merged.cells.append(cell)
    if not check:
        _tell_who_uses_what(merged.cells)
        if how == How.MOVE:
            _remove(merged.cells)
    _bring_sweeps(sweeps, merged, how)
    return merged


def _below(folder: Path, how: How, check: bool, merged: Merged, sweeps: list[Sweep]) -> Iterator[CellCopy]:
    """The copies in a folder; `sweeps` and `merged.strange` take the rest of what is there.

    Raises:
        UserError: there is no such folder.
    """
    if how == How.MOVE and not check:
        find_runs([folder], [], _finish_removals)
    problems: list[Problem] = []
    runs, found = look_for([folder], problems)
    merged.strange += [(str(p.path), p.what) for p in problems]
    sweeps += found
    for run in runs:
        one = CellCopy(str(run.directory), folder, key=run.find_key())
        try:
            if one.key is None:
                raise UserError("nothing says which cell it is")
            one.in_place = _is_same_folder(run.directory, merged.output / one.key.path)
            one.copy = local_copy(run, how)
            _look(one)
        except UserError as error:
            one.fault = error.what
        except OSError as error:
            one.fault = f"{error.filename or 'it'} cannot be read ({error.strerror})"
        yield one


def _finish_removals(folder: Path, names: set[str]) -> None:
    """Delete what an interrupted command has set aside to delete it."""
    for name in names:
        if ASIDE.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)


def _on_a_store(url: str, folder: Path) -> Iterator[CellCopy]:
    """The copies below an address; `folder` takes their records.

    Raises:
        UserError: the address is wrong, or cannot be read.
    """
    check_address(url)
    tries, bad = Tries(), list[str]()
    with reading(url):
        remote = tries.call(lambda: Store(url))
        runs = runs_among(tries.call(remote.look), bad)
    tell_left_out(url, bad)
    for base, files in sorted(runs.items()):
        run = StoredRun(remote, url, base, files, tries)
        one = CellCopy(str(run))
        try:
            one.copy = run.read(folder)
            one.key = one.copy.records.find_key()
            if one.key is None:
                raise UserError("nothing says which cell it is")
            _look(one)
        except Exception as error:  # one odd run ends no other
            one.fault = error.what if isinstance(error, UserError) else words(error)
            one.key = one.key or CellKey.from_path(Path(base))
        yield one


def _look(one: CellCopy) -> None:
    """Fill in how a copy stands.

    Raises:
        UserError: it is not whole.
    """
    assert one.copy is not None
    run = one.copy.records
    seen = run.look()
    one.state = seen.state
    claim = run.claim()
    if claim is not None and claim.alive():
        one.left = f"{claim.holder} works on it there"
        return
    one.left = one.copy.unfit(seen)
    if one.left or not isinstance(one.copy.place, LocalRun):
        return
    if fault := torn(run):
        raise UserError(fault)
    records = (run.result_file, run.identity_file, run.config_file, run.episodes_file, run.attempts, run.checkpoints)
    needed = tuple(path.name for path in records)
    if outside := [n for n in one.copy.place.left_out if n.startswith(needed)]:
        raise UserError(f"{outside[0]} is a link out of the run")


def _is_same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _settle(cell: MergedCell, check: bool) -> None:
    """Bring the latest of the copies of a cell, if all are of one run."""
    here = RunDirectory(cell.directory)
    cell.torn = [(c.told, c.fault) for c in cell.copies if c.fault and not c.in_place]
    cell.left = [(c.told, c.left) for c in cell.copies if c.left and not c.in_place]
    usable = [c for c in cell.copies if not c.fault and not c.left and not c.in_place]
    best, ordered = _latest(cell, here, usable)
    if not cell.conflicts and not cell.errors:
        for one in ordered:
            assert one.copy is not None
            try:
                cell.brought += _bring(one, here, cell, check)
            except (UserError, OSError) as error:
                cell.errors.append((one.told, words(error)))
            except ClaimLost as lost:
                cell.errors.append((one.told, str(lost)))
            except Exception as error:  # botocore, paramiko and others have their own exception types
                cell.errors.append((one.told, words(error)))
    if any(path.exists() for path in (here.identity_file, here.result_file, here.status_file)):
        seen = here.look()
        cell.state = seen.state
        if not seen.alive and not cell.errors:
            cell.damaged = seen.reason if seen.state == State.BROKEN else torn(here)
    elif check and not cell.conflicts:
        cell.state = best


def _latest(cell: MergedCell, here: RunDirectory, usable: list[CellCopy]) -> tuple[State | None, list[CellCopy]]:
    """The state of the latest copy, and the copies in the order in which they are put into place."""
    best: CellCopy | None = None
    rest: list[CellCopy] = []
    for one in usable:
        assert one.copy is not None
        held = here if best is None or best.copy is None else best.copy.records
        try:
            order = compare(held, one.copy.records)
        except AnotherRun as another:
            if one.is_empty:
                cell.left.append((one.told, _EMPTY))
            elif best is not None and best.is_empty:
                cell.left.append((best.told, _EMPTY))
                best = one
            else:
                place = str(here.directory) if best is None else best.told
                told = differences(held, one.copy.records)
                kind = _kind(another, held, one.copy.records)
                cell.conflicts.append(Conflict(place, one.told, kind, told, best is None))
        except UserError as error:  # here it is not whole
            cell.errors.append((str(here.directory), error.what))
        else:
            late = best if order == Order.LATER else one if order.stays else None
            if late is not None:
                cell.left.append((late.told, _LATER))
            if order in (Order.NEW, Order.LATER):
                rest += [] if best is None else [best]
                best = one
            else:
                rest.append(one)
    return (best.state if best is not None else None), [*([] if best is None else [best]), *rest]


def _kind(another: AnotherRun, *runs: RunDirectory) -> str:
    if all(run.result_file.exists() for run in runs):
        return "two results"
    return "one run that went on in two places" if "each for itself" in another.what else "two runs"


def _bring(one: CellCopy, here: RunDirectory, cell: MergedCell, check: bool) -> int:
    """Put a copy into place; the number of files.

    Raises:
        Exception: as `RunCopy.take`.
    """
    copy = one.copy
    assert copy is not None
    if check:
        order = Order.SAME if cell.brought else compare(here, copy.records)
        return 0 if cell.brought else len(copy.wanted(here, order, True))
    order, busy, brought = copy.take(here, True)
    if busy:
        cell.left.append((one.told, busy.replace("on it here", f"on {here.directory}")))
    if isinstance(copy.place, LocalRun):
        cell.unlinked += copy.place.copied
    return brought


def _tell_who_uses_what(cells: Iterable[MergedCell]) -> None:
    """Bring the notes of which cells began from a run's checkpoint; those of merged cells say where these are now."""
    places = {os.path.realpath(c.told): cell.directory for cell in cells for c in cell.copies if c.root is not None}
    for cell in cells:
        for one in cell.copies:
            if one.copy is None or one.root is None or one.in_place or cell.state is None or cell.conflicts:
                continue
            here = RunDirectory(cell.directory)
            for user in uses.users(one.copy.records):
                place = Path(os.path.abspath(places.get(os.path.realpath(user), user)))
                if here.checkpoint.exists() and str(place).isprintable() and place not in uses.users(here):
                    uses.note(here.checkpoint, place)


def _remove(cells: Sequence[MergedCell]) -> None:
    """Remove the copies whose files are all in place."""
    moved: list[tuple[MergedCell, CellCopy]] = []
    for cell in cells:
        stay = {told for told, _ in (*cell.left, *cell.torn, *cell.errors)}
        for one in () if cell.conflicts else cell.copies:
            if one.copy is not None and one.root is not None and not one.in_place and one.told not in stay:
                moved.append((cell, one))

    def remove(pair: tuple[MergedCell, CellCopy]) -> str:
        cell, one = pair
        assert one.copy is not None
        assert one.root is not None
        return remove_moved(one.copy, RunDirectory(cell.directory), one.root)

    # A silent holder is watched for some renewals before its claim is taken: all of them at the same time.
    with ThreadPoolExecutor(max_workers=max(1, min(_AT_ONCE, len(moved)))) as pool:
        for (cell, one), why in zip(moved, pool.map(remove, moved)):
            if why:
                cell.left.append((one.told, why))
            else:
                cell.removed += 1


def _bring_sweeps(sweeps: Sequence[Sweep], merged: Merged, how: How) -> None:
    """Bring the records of sweeps, each once, under numbers that are free."""
    known: dict[Path, dict[str, Sweep]] = {}
    for sweep in sorted(sweeps, key=lambda s: s.record.started):
        experiment = merged.output / _experiment_of(sweep)
        if _is_same_folder(sweep.experiment, experiment):
            continue
        there = known.setdefault(experiment, {_mark(s): s for s in sweeps_of([experiment], [])})
        own = there.get(_mark(sweep))
        claim = sweep.claim()
        if claim is not None and claim.alive():
            merged.left_sweeps.append((str(sweep.file), f"{claim.holder} works on it"))
            continue
        try:
            if own is None or _is_later(sweep, own):
                merged.sweeps += 1
                if not merged.check:
                    there[_mark(sweep)] = _written(sweep, own, experiment)
            if how == How.MOVE and not merged.check:
                sweep.file.unlink(missing_ok=True)
                drop_empty(sweep.file.parent, sweep.experiment.parent)
        except OSError as error:
            merged.left_sweeps.append((str(sweep.file), words(error)))


def _written(sweep: Sweep, own: Sweep | None, experiment: Path) -> Sweep:
    """Raises: OSError: it cannot be written."""
    if own is None:
        return new_sweep(experiment, sweep.record)
    later = Sweep(own.file, sweep.record)
    later.save()
    return later


def _experiment_of(sweep: Sweep) -> str:
    """The name of the experiment, which it keeps where its folder is renamed or copied."""
    name = sweep.record.common.get("name")
    plain = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return str(name) if plain else Path(os.path.abspath(sweep.experiment)).name


def _mark(sweep: Sweep) -> str:
    """What tells a start of a sweep from every other."""
    record = sweep.record
    return f"{record.started!r} {record.host} {record.pid} {record.line}"


def _is_later(one: Sweep, other: Sweep) -> bool:
    def progress(sweep: Sweep) -> tuple[bool, int]:
        return sweep.record.end is not None, sum(cell.job is not None for cell in sweep.record.cells)

    return progress(one) > progress(other)
