"""Which cells began from a checkpoint of a run: notes in its `used_by` folder, for cells of other output folders.

`fsseg.run` leaves a note where it takes a checkpoint, `fsseg.sweep.clean` reads them: it cannot search every disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from fsseg.cell.record import RunDirectory
from fsseg.process.files import read_json, write_json

log = logging.getLogger("fsseg")

FOLDER = "used_by"


def note(checkpoint: str | Path, user: Path) -> None:
    """Note in the run that a checkpoint belongs to, if it belongs to one, that the cell in `user` began from it.

    A folder that cannot be written to gets no note.
    """
    path, place = Path(os.path.realpath(checkpoint)), os.path.abspath(user)
    run = RunDirectory(path.parents[1])
    if path.parent != run.checkpoints or os.path.realpath(user) == str(run.directory):
        return
    try:
        if path.is_file() and any(p.is_file() for p in (run.identity_file, run.result_file, run.status_file)):
            name = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
            write_json(run.directory / FOLDER / f"{name}.json", {"directory": place})
    except OSError as error:
        log.debug("%s does not know that it is used: %s", run.directory, error)


def users(run: RunDirectory) -> list[Path]:
    """The directories of the cells that began from a checkpoint of the run, as far as they left a note."""
    found = []
    for path in sorted((run.directory / FOLDER).glob("*.json")):
        place = (read_json(path) or {}).get("directory")
        if isinstance(place, str) and place.isprintable():
            found.append(Path(place))
    return found
