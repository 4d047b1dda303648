"""From output folders to a list of cells: finds run directories, reads them, and names the files it cannot read.

`fsseg aggregate` calls `collect`; `to_frame` is for notebooks. Directories are read through
`fsseg.cell.record`; torch and Hydra are never imported, so that reading a thousand runs is quick.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from fsseg.cell.key import CellKey, number_of_folds
from fsseg.cell.models import Metrics, Result, State, Unreadable
from fsseg.cell.record import Problem, RunDirectory, Snapshot, is_run, walk
from fsseg.config.constraints import BEST
from fsseg.config.history import completed
from fsseg.errors import UserError
from fsseg.process.command import train_line
from fsseg.process.files import read_file
from fsseg.process.words import span
from fsseg.report.replication import REPLICATION_BYTES, REPLICATION_FILE, is_ours, merge_older, parse_replication

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # faults named of one file

T = TypeVar("T")

_OWN_SETTINGS = ("fold", "seed", "train.lr")
"""Settings that many cells have each for itself; the others are held once for all that agree in them."""


class _Shared:
    """Equal values, each held once: thousands of cells have the same protocol, classes and settings."""

    def __init__(self) -> None:
        self._held: dict[tuple[type, bytes], Any] = {}

    def __call__(self, value: T) -> T:
        """The value itself if it is the first of its kind, otherwise the one that equals it."""
        try:
            content = hashlib.sha256(msgspec.msgpack.encode(value)).digest()
        except (TypeError, ValueError, OverflowError):  # YAML and JSON know more than MessagePack
            return value
        held: T = self._held.setdefault((type(value), content), value)
        return held


class MadeWith(NamedTuple):
    """What of a result's provenance may move its numbers; None where it is not recorded.

    `code` is the commit that fsseg ran from, or without git its version; `edited`: files differed from the commit.
    """

    torch: str | None = None
    code: str | None = None
    edited: bool = False
    device: str | None = None

    @classmethod
    def of(cls, provenance: dict[str, Any]) -> MadeWith:
        """From a result's provenance, which may hold anything."""

        def text(value: Any) -> str | None:
            return value if isinstance(value, str) and value else None

        git, packages = (v if isinstance(v := provenance.get(k), dict) else {} for k in ("git", "packages"))
        commit, version = text(git.get("commit")), text(provenance.get("fsseg"))
        code = f"commit {commit[:10]}" if commit else f"version {version}" if version else None
        device = text(provenance.get("device"))
        # How many threads a CPU had is no other device.
        return cls(text(packages.get("torch")), code, git.get("dirty") is True, device and device.partition(" (")[0])


NOT_RECORDED = MadeWith()


@dataclass
class CellResult:
    """A cell as a table needs it: its score, or the reason why there is none.

    Attributes:
        path: the run directory; for a figure of the older workflow, its file.
        result: if `collect` was asked for the whole, all that is in result.json. Otherwise without its provenance and,
            where it asks for no report, without the scores of each class and seed: no table shows them, and they would
            take most of the memory. For a cell without result.json only its key, and its protocol if that is known.
        reason: why there is no score, in words; empty if there is one.
        episodes: fingerprints of the evaluated episode lists, one a seed.
        made_with: what is kept of its provenance.
        shared: holds the parts that other cells have too.
        is_trial: whether a search made it, which scores base classes alone.
    """

    path: Path
    result: Result
    state: State = State.DONE
    reason: str = ""
    episodes: tuple[str, ...] = ()
    made_with: MadeWith = NOT_RECORDED
    shared: _Shared = field(default_factory=_Shared, repr=False, compare=False)
    is_trial: bool = False

    @property
    def key(self) -> CellKey:
        return self.result.cell

    @property
    def scored(self) -> bool:
        return self.result.metrics is not None

    def metrics(self, kind: str = "") -> Metrics | None:
        """Of the result; or of another checkpoint beside it, of a kind of `train.select`. None where there is none."""
        if not kind:
            return self.result.metrics
        return None if (best := self.result.best.get(kind)) is None else best.metrics

    @property
    def selected(self) -> str:
        """The kind of `train.select` by which the checkpoint was chosen that the cell began from; empty without."""
        origin = self.result.checkpoint
        return origin.selected if origin is not None and isinstance(origin.selected, str) else ""

    @property
    def partial(self) -> bool:
        """Whether a novel class could not be evaluated."""
        return self.result.is_partial

    @property
    def data_val(self) -> str | None:
        """Fingerprint of the evaluation split; None where the result has none."""
        return self.result.dataset.fingerprint_val

    @cached_property
    def identity(self) -> ChainMap[str, Any] | None:
        """All settings that can change the numbers, flat; None if unknown, as for a result copied without them."""
        try:
            record = RunDirectory(self.path).identity_record()
        except Unreadable:
            return None
        if record is None:
            return None
        own = {key: record.identity.pop(key) for key in _OWN_SETTINGS if key in record.identity}
        return ChainMap(own, self.shared(record.identity))

    @property
    def folds(self) -> int:
        """How many folds its data set has: one where its novel classes are named; as published where nobody says."""
        return number_of_folds(self.identity or {})

    @cached_property
    def protocol_id(self) -> str | None:
        """8 hex digits over the whole protocol: only cells with equal ones are averaged. None if it is unknown.

        Of `episodes_file` only whether there is one counts, and which protocol its list was drawn under: every fold
        needs a file of its own. `episodes_list` shows whether two cells of a fold had the same list.
        """
        protocol = self.result.protocol
        if not protocol:
            return None
        whole = completed(protocol) | {"episodes_file": protocol.get("episodes_file") is not None}
        if "episodes_list" in whole:
            whole["episodes_list"] = _head(protocol).get("protocol")
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def episodes_list(self) -> str | None:
        """Fingerprint of the list in `episodes_file`, equal for all shots that were evaluated on it; None without."""
        return _head(self.result.protocol).get("fingerprint")


def _head(protocol: dict[str, Any]) -> dict[str, Any]:
    """The part of a protocol that describes its list of episodes."""
    head = protocol.get("episodes_list")
    return head if isinstance(head, dict) else {}


def by_list(cells: list[CellResult]) -> dict[str | None, list[CellResult]]:
    """Cells by their list of episodes if two of one fold have different lists, otherwise all of them under None.

    Only cells under one key can be compared: it is unknown which lists of different folds belong together.
    """
    if len({(c.key.fold, c.episodes_list) for c in cells}) == len({c.key.fold for c in cells}):
        return {None: cells}
    found: dict[str | None, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(str(cell.episodes_list), []).append(cell)
    return found


@dataclass
class Collection:
    """Everything found under the given folders, in a stable order."""

    cells: list[CellResult]
    problems: list[Problem]


def collect(paths: Iterable[str | Path], whole: bool = False) -> Collection:
    """Read all run directories under any number of folders; a run directory or a replication_results.json may be named.

    Overlapping folders are read once. A file that cannot be understood becomes a `Problem`, and its cell counts as
    missing, never as a number.

    Args:
        whole: keep of each result also what no table shows (see `CellResult.result`).

    Raises:
        UserError: a path does not exist, or nothing at all was found.
    """
    roots = [Path(p) for p in paths]
    if not roots:
        raise UserError("no folder given", "name at least one, e.g. outputs/runs")
    for root in roots:
        if not root.exists():
            raise UserError(f"{root} does not exist", "name a folder that holds runs, e.g. outputs/runs")
    cells: list[CellResult] = []
    problems: list[Problem] = []
    shared = _Shared()
    seen: set[tuple[int, int]] = set()
    named = [p for p in {p.resolve(): p for p in roots if p.is_file()}.values() if not _is_a_summary(p)]
    older = {file: _read_replication(file, problems) for file in named}
    for root in (p for p in roots if not p.is_file()):
        for name, files in walk(root, seen, problems):
            folder = Path(name)
            if is_run(folder, files):
                cells += _read_run(RunDirectory(folder), problems, shared, whole)
            if REPLICATION_FILE in files and not is_ours(folder / REPLICATION_FILE):
                older[folder / REPLICATION_FILE] = _read_replication(folder / REPLICATION_FILE, problems)
    figures, apart = merge_older(older)
    cells += [CellResult(path, result) for path, result in figures]
    problems += [Problem(path, what) for path, what in apart]
    if not cells and not problems:
        raise UserError(
            f"no run found under {', '.join(map(str, roots))}",
            "name a folder above run directories (they hold result.json, status.json or config.yaml), or start runs"
            f" with `{train_line()}`",
        )
    cells.sort(key=lambda c: (_order(c.key), str(c.path)))
    return Collection(cells, problems)


def _is_a_summary(file: Path) -> bool:
    """Whether `fsseg aggregate` wrote it (`fsseg aggregate outputs/runs/*`): it holds nothing that the runs do not."""
    return file.stem == "summary" or is_ours(file)


def _order(k: CellKey) -> tuple[Any, ...]:
    return (k.dataset, k.method, k.backbone, k.variant, k.name, k.shot, k.fold, k.seed)


def _read_run(run: RunDirectory, problems: list[Problem], shared: _Shared, whole: bool) -> list[CellResult]:
    """The cell of a run directory; an empty list if it cannot be identified."""
    seen = run.look()
    if (result := seen.result) is not None:
        why = "" if result.metrics else "trained, not evaluated"
        made_with = shared(MadeWith.of(result.provenance))
        result.cell = run.row_key(result.cell)
        episodes = shared(_episodes(result))
        if not whole:
            _slim(result, shared)
        is_trial = result.metrics is None and _trial_of(_config(run, problems)) is not None
        return [CellResult(run.directory, result, seen.state, why, episodes, made_with, shared, is_trial)]
    unreadable = seen.state == State.BROKEN and seen.status is None
    if unreadable:
        file, _, what = seen.reason.partition(" ")
        problems.append(Problem(run.directory / file, what))
    if (key := run.find_key()) is None:
        if not unreadable:
            problems.append(Problem(run.directory, "is a run, but neither its path nor its config.yaml names a cell"))
        return []
    config = _config(run, problems)
    protocol = config.get("protocol")
    known = Result(run.row_key(key), fingerprint="", protocol=shared(protocol if isinstance(protocol, dict) else {}))
    is_trial = _trial_of(config) is not None
    return [CellResult(run.directory, known, seen.state, _reason(seen), shared=shared, is_trial=is_trial)]


def _config(run: RunDirectory, problems: list[Problem]) -> dict[str, Any]:
    try:
        return run.config()
    except Unreadable as error:
        problems.append(Problem(run.config_file, str(error)))
        return {}


def _trial_of(config: Mapping[str, Any]) -> object:
    """The number of the trial that a cell is of; None if no search made it."""
    search = config.get("search")
    return search.get("trial") if isinstance(search, dict) else None


def _episodes(result: Result) -> tuple[str, ...]:
    """Fingerprints of the evaluated lists of episodes, one a seed."""
    seeds = result.metrics.per_seed if result.metrics else []
    return tuple(s.episodes_fingerprint for s in seeds if s.episodes_fingerprint)


def _slim(result: Result, shared: _Shared) -> None:
    """Drop of a result what no table shows, and share with other results what they have too."""
    metrics, result.provenance = result.metrics, {}
    result.protocol, result.model, result.dataset = (
        shared(result.protocol),
        shared(result.model),
        shared(result.dataset),
    )
    result.missing_classes, result.cost = shared(result.missing_classes), shared(result.cost)
    if metrics is None:
        return
    beside = [best.metrics for best in result.best.values() if best.metrics is not None]
    for shown in beside if result.report is not None else [metrics, *beside]:
        shown.per_seed, shown.per_class = [], {}


def _reason(seen: Snapshot) -> str:
    if seen.state == State.BROKEN or seen.status is None:
        return seen.reason
    parts = [str(seen.state)]
    if seen.progress:
        parts.append("step {1} of {2}".format(*seen.progress))
    if seen.state in (State.RUNNING, State.STALE):
        if seen.status.eta_seconds is not None:
            parts.append(f"{span(seen.status.eta_seconds)} to go")
        if seen.age is not None:
            parts.append(f"last heard of {span(seen.age)} ago on {seen.status.host or 'unknown host'}")
    return ", ".join([*parts, seen.reason.strip()] if seen.reason else parts)


def _read_replication(path: Path, problems: list[Problem]) -> list[Result]:
    results: list[Result] = []
    try:
        # json takes NaN, which one fold of an older program may have
        content = json.loads(read_file(path, REPLICATION_BYTES))
        if not isinstance(content, dict):
            faults = ["is not a JSON object"]
        else:
            results, faults = parse_replication(content)
    except OSError as error:
        faults = [f"cannot be read ({error.strerror})"]
    except RecursionError:
        faults = ["is nested too deeply"]
    except ValueError as error:
        faults = [f"is not JSON ({error})"]
    if len(faults) > _SHOWN:
        faults = [*faults[:_SHOWN], f"has {len(faults) - _SHOWN} more faults"]
    problems += [Problem(path, fault) for fault in faults]
    return results


def to_frame(collection: Collection | Sequence[CellResult]) -> pd.DataFrame:
    """One row a cell, with a score or without."""
    import pandas as pd  # takes a second: only for those who ask for a frame

    cells = collection.cells if isinstance(collection, Collection) else collection
    columns = [
        "name", "dataset", "method", "backbone", "variant", "shot", "fold", "seed", "state", "miou", "miou_std",
        "fb_iou", "fb_iou_std", "partial", "missing_classes", "protocol", "protocol_id", "data_val", "data_train",
        "steps", "seconds", "finished_at", "fingerprint", "reason", "path", *BEST,
    ]  # fmt: skip
    rows = []
    for cell in cells:
        result = cell.result
        metrics = {m: getattr(result.metrics, m, None) for m in ("miou", "miou_std", "fb_iou", "fb_iou_std")}
        rows.append({
            **vars(cell.key), **metrics,
            "state": cell.state.value,
            "partial": cell.partial,
            "missing_classes": ", ".join(result.missing_classes),
            "protocol": result.protocol.get("name"),
            "protocol_id": cell.protocol_id,
            "data_val": cell.data_val,
            "data_train": result.dataset.fingerprint_train,
            "steps": result.training.steps if result.training else None,
            "seconds": result.train_seconds,
            "finished_at": result.finished_at,
            "fingerprint": result.fingerprint,
            "reason": cell.reason,
            "path": str(cell.path),
            **{kind: getattr(cell.metrics(kind), "miou", None) for kind in BEST},
        })  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
