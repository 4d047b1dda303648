"""`outputs/<name>/sweeps/<n>.json`: what one start of a `-m` line is to run, written before its first job starts.

The record holds the resolved configuration of each cell, which its job then runs whatever becomes of the YAML files
meanwhile, and the job of each cell. So cells that never started are known, and the jobs of a sweep are found again
wherever their logs lie. `fsseg.sweep` writes records and reads them; a claim beside the record is held while the
process that started the sweep works on it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec

from fsseg.cell.claim import ClaimView, look
from fsseg.cell.key import LEVELS, CellKey
from fsseg.cell.models import Unreadable, Versioned, read, record_text, write_record
from fsseg.cell.record import Problem, RunDirectory, find_runs
from fsseg.process.files import create_exclusive

SWEEP_BYTES = 64 << 20
"""Most that is read of a record; a cell has about 500 bytes."""
FOLDER = "sweeps"
_NUMBER = re.compile(r"([1-9][0-9]{0,8})\.json")


class SweptCell(msgspec.Struct, omit_defaults=True):
    """A cell of a sweep.

    Attributes:
        path: its run directory, relative to the folder of the experiment.
        own: what of its configuration is not that of the sweep (see `SweepRecord.config_of`).
        job: its job: `12_3` or `12` in SLURM, `<pid>.<n>` of a local worker; None before it is submitted.
        log: what the job prints.
    """

    path: str
    overrides: list[str]
    fingerprint: str
    own: dict[str, Any] = {}
    job: str | None = None
    log: str | None = None


class SweepRecord(Versioned):
    """One start of a sweep.

    Attributes:
        line: the overrides of the whole line.
        launcher: `basic`, `local`, `slurm`, or the class of another one.
        user: number of the user whose jobs wait in SLURM's queue; None of a sweep without such jobs.
        cluster: SLURM's name of itself; None if it did not tell.
        end: how it ended, or why it could not begin; None while it runs, and after it was killed.
        code: of the process that started it (`fsseg.process.provenance.code_state`).
        hydra: Hydra's own node, its interpolations unresolved.
        common, nodes: see `config_of`.
    """

    line: list[str]
    cells: list[SweptCell]
    launcher: str = ""
    cluster: str | None = None
    user: int | None = None
    host: str | None = None
    pid: int | None = None
    started: float = 0.0
    end: str | None = None
    code: dict[str, Any] = msgspec.field(default_factory=dict)
    hydra: dict[str, Any] = msgspec.field(default_factory=dict)
    common: dict[str, Any] = msgspec.field(default_factory=dict)
    nodes: dict[str, list[dict[str, Any]]] = msgspec.field(default_factory=dict)

    @property
    def queues(self) -> bool:
        """Whether its cells are handed to SLURM."""
        return self.user is not None

    def config_of(self, cell: SweptCell) -> dict[str, Any]:
        """The resolved configuration of a cell.

        Cells share most of it: a part (`dataset`, `model`, ...) stands once in `nodes`, and `own` has its number unless
        that is 0; of the plain settings `own` has those that differ from `common`.
        """
        parts = {name: kinds[cell.own.get(name, 0)] for name, kinds in self.nodes.items()}
        return self.common | {k: v for k, v in cell.own.items() if k not in self.nodes} | parts

    def share(self, configs: Iterable[Mapping[str, Any]], first: int = 0) -> None:
        """Take the configurations of the cells, in their order.

        Args:
            first: the place of the first of them: those before have theirs.
        """
        numbers = {name: {_text(kind): i for i, kind in enumerate(kinds)} for name, kinds in self.nodes.items()}
        for cell, config in zip(self.cells[first:], configs):
            plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
            self.common = self.common or plain
            cell.own = {k: v for k, v in plain.items() if k not in self.common or _differ(v, self.common[k])}
            for name in config.keys() - plain.keys():
                text, kinds = _text(config[name]), numbers.setdefault(name, {})
                if text not in kinds:
                    kinds[text] = len(kinds)
                    self.nodes.setdefault(name, []).append(config[name])
                if kinds[text]:
                    cell.own[name] = kinds[text]


def _text(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or one != other


@dataclass(frozen=True)
class Sweep:
    """A record with its file."""

    file: Path
    record: SweepRecord

    @property
    def experiment(self) -> Path:
        """`outputs/<name>`."""
        return self.file.parents[1]

    @property
    def claim_file(self) -> Path:
        """Held while the process that started the sweep works on it."""
        return self.file.with_suffix(".claim")

    def claim(self) -> ClaimView | None:
        return look(self.claim_file)

    def directory(self, cell: SweptCell) -> Path:
        return self.experiment / cell.path

    @cached_property
    def by_path(self) -> dict[str, SweptCell]:
        return {cell.path: cell for cell in self.record.cells}

    def save(self) -> None:
        """Raises: OSError: it cannot be written."""
        write_record(self.file, self.record)

    def __str__(self) -> str:
        return f"sweep {self.file.stem}"


def new_sweep(experiment: Path, record: SweepRecord) -> Sweep:
    """Write a record under the next free number.

    Raises:
        OSError: it cannot be written.
    """
    folder, text = experiment / FOLDER, record_text(record)
    number = max((n for n, _ in _numbered(folder)), default=0) + 1
    while not create_exclusive(folder / f"{number}.json", text):
        number += 1
    return Sweep(folder / f"{number}.json", record)


def read_sweep(file: Path) -> Sweep:
    """Raises: Unreadable: it is absent or not understood."""
    if (record := read(file, SweepRecord, SWEEP_BYTES)) is None:
        raise Unreadable("is not there any more")
    sound = all(type(number) is int and 0 <= number < len(record.nodes[name])
                for cell in record.cells for name, number in cell.own.items() if name in record.nodes)  # fmt: skip
    if not sound:
        raise Unreadable("names parts of a configuration that it does not hold")
    record.cells = [cell for cell in record.cells if _is_below(cell.path)]
    return Sweep(file, record)


def sweeps_of(experiments: Iterable[Path], problems: list[Problem] | None = None) -> list[Sweep]:
    """The sweeps of experiments (`outputs/<name>`), the newest of each last.

    Records of several machines are numbered as they were brought together (`fsseg.sweep.merge`), so their own time
    counts, and the number only where that is equal.

    Args:
        problems: takes the records that cannot be read.
    """
    found, seen = [], set[str]()
    for experiment in experiments:
        if (real := os.path.realpath(experiment)) in seen:
            continue
        seen.add(real)
        own: list[Sweep] = []
        for _, file in sorted(_numbered(experiment / FOLDER)):
            try:
                own.append(read_sweep(file))
            except Unreadable as error:
                if problems is not None:
                    problems.append(Problem(file, str(error)))
        found += sorted(own, key=lambda sweep: sweep.record.started)
    return found


def look_for(
    folders: Sequence[str | Path], problems: list[Problem] | None = None
) -> tuple[list[RunDirectory], list[Sweep]]:
    """All runs below the folders, sorted by path, and the sweeps of the experiments that these hold or belong to.

    Args:
        folders: output folders, run directories, or anything above or between.
        problems: takes what is left out; None logs the folders among it.

    Raises:
        UserError: a folder does not exist.
    """
    experiments: dict[Path, None] = {}
    for folder in map(Path, folders):
        whole = Path(os.path.abspath(folder))
        for above in (folder, *(Path(os.path.relpath(p) if not folder.is_absolute() else p) for p in whole.parents)):
            if len(whole.parents) - len(Path(os.path.abspath(above)).parents) < LEVELS:
                experiments[above] = None
    below: list[Path] = []
    runs = find_runs(folders, problems, lambda folder, names: below.append(folder) if FOLDER in names else None)
    with_records = [place for place in experiments if os.path.isdir(place / FOLDER)]
    return runs, sweeps_of(dict.fromkeys([*with_records, *below]), problems)


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    with suppress(OSError), os.scandir(folder) as listing:
        for entry in listing:
            if (match := _NUMBER.fullmatch(entry.name)) is not None:
                yield int(match.group(1)), folder / entry.name


@lru_cache(maxsize=4096)  # the sweeps of an experiment name the same cells
def _is_below(path: str) -> bool:
    """Whether this is the path of a run below its experiment: a record may be anybody's."""
    key = CellKey.from_path(Path("name", path)) if path.isprintable() else None
    return key is not None and key.path == Path("name", path)
