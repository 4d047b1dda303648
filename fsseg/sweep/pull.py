"""`fsseg sync --pull`: run directories from a store, so that a cell goes on, or counts as done, on this machine.

A run comes to where the line that made it looks for it: below the output folder as on the store. `fsseg.sweep.copies`
puts it there, `fsseg.sweep.lineage` says whether it may take the place of what is here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsseg.cell.key import CellKey
from fsseg.cell.models import State
from fsseg.cell.record import RunDirectory
from fsseg.errors import UserError, visible
from fsseg.process.files import ClaimLost
from fsseg.sweep.copies import StoredRun, runs_among
from fsseg.sweep.held import is_below
from fsseg.sweep.lineage import Order
from fsseg.sweep.store import Store, Tries, words
from fsseg.sweep.sync import check_address, reading, tell_left_out

_USUAL = Tries()
_MOST_LINES = 40  # of cells that are named


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
    check_folder(output)
    bad: list[str] = []
    with reading(url):
        remote = tries.call(lambda: Store(url))
        runs = runs_among(tries.call(remote.look), bad)
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
            _into(StoredRun(remote, url, base, files, tries), output, checkpoints, pulled)
        except ClaimLost as lost:
            pulled.error = str(lost)
        except Exception as error:  # one odd run ends no other
            pulled.error = words(error)
        found.append(pulled)
    return found


def check_folder(output: Path) -> None:
    """Raises: UserError: it is a file, or the folder of one experiment."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is no folder", "name the output folder, e.g. outputs")
    if any(output.glob("*/*/*/*shot/*/fold*/seed*")):
        raise UserError(
            f"{output} is the folder of one experiment; runs are put below an output folder by their names",
            f"name the folder above: {output.parent}",
        )


def _into(run: StoredRun, output: Path, checkpoints: bool, pulled: Pulled) -> None:
    """Fetch a run; `pulled` takes what came of it.

    Raises:
        UserError: the copy on the store is no whole run, or must not replace what is here.
        OSError: the directory here cannot be written.
        Exception: any of the store's.
    """
    with tempfile.TemporaryDirectory(prefix="fsseg-pull-") as temporary:
        copy = run.read(Path(temporary))
        key = CellKey.from_path(copy.records.directory) or copy.records.find_key()
        if key is None:
            raise UserError(f"nothing says which cell {run.base or run.url} is", "name a folder above it")
        here = RunDirectory(output / key.path)
        pulled.directory = here.directory
        seen = copy.records.look()
        pulled.state = seen.state
        pulled.kept = copy.unfit(seen)
        if not pulled.kept:
            order, busy, pulled.fetched = copy.take(here, checkpoints)
            pulled.kept = order.value if order.stays else busy


def text(found: Sequence[Pulled], output: Path) -> str:
    """What `fsseg sync --pull` prints."""
    failed = [p for p in found if p.error]
    done = [p for p in found if not p.error and (p.state == State.DONE or p.kept == Order.DONE_HERE.value)]
    open_ = [p for p in found if not p.error and p not in done and p.kept in ("", Order.WENT_ON.value)]
    head = f"{len(found)} cells: {sum(p.fetched for p in found)} files fetched, {len(done)} done, {len(open_)} to go on"
    lines = [f"  {p.directory}: kept as it is: {p.kept}" for p in found if p.kept and not p.error]
    lines += [f"  {p.directory}: not fetched: {p.error}" for p in failed]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"  ... and {len(lines) - _MOST_LINES} more"]
    if open_:
        lines.append(f"to go on, start the line of these cells here (output_dir={output})")
    return "\n".join(map(visible, [head + f", {len(failed)} not fetched" * bool(failed), *lines]))
