"""What the tables of experiments share: which cells go into one table, its rows, and its notes.

`experiments` is the caller. Rows are compared only on the same folds and training seeds.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fsseg.process.files import json_text
from fsseg.report.collect import CellResult, by_list
from fsseg.report.formats import MISSING, Number
from fsseg.report.paper import comparable_ablation, unlike_ablation
from fsseg.report.statistics import Statistic

LABELS = {
    "baseline": "baseline (backbone + QP)",
    "sm": "baseline + SM",
    "full": "baseline + SM + IC",
    "without_ep": "without E_p",
    "without_es": "without E_s",
}
Cells = dict[tuple[int, int], CellResult]
"""The cells of one row, by fold and seed."""
Rows = dict[Any, Cells]
"""Kind of model -> its cells."""


@dataclass
class Group:
    """Cells for one table: equal in everything but the model's settings, learning rate, fold and seed."""

    report: str
    name: str
    cells: list[CellResult]
    stem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        first = self.cells[0]
        key, protocol = first.key, first.result.protocol.get("name")
        return f"{key.dataset}, {key.backbone}, {key.shot}-shot, protocol {protocol}"

    @cached_property
    def of_the_papers_task(self) -> bool:
        """Whether the paper's ablations (PASCAL-5i fold 0, ResNet-50, 1 shot, all images) are of the same task."""
        return all(comparable_ablation(c.key, c.result.dataset.num_val_images) and not c.partial for c in self.cells)

    @cached_property
    def settings_known(self) -> bool:
        return all(c.identity is not None for c in self.cells)

    @cached_property
    def other_settings(self) -> list[str]:
        """Settings of any cell that the paper's ablations do not have, as `key=value`."""
        return sorted({setting for c in self.cells for setting in unlike_ablation(c.identity or {})})

    @property
    def comparable(self) -> bool:
        return self.of_the_papers_task and self.settings_known and not self.other_settings


def groups_of(cells: Iterable[CellResult], reports: Container[str | None]) -> list[Group]:
    """The scored cells of the named reports, sorted into tables."""
    found: dict[tuple[str, str, tuple[str, ...]], list[CellResult]] = defaultdict(list)
    for cell in cells:
        report, key = cell.result.report, cell.key
        if cell.scored and report in reports:
            same = (key.dataset, key.backbone, key.shot, cell.protocol_id, cell.data_val, *_same_settings(cell))
            found[str(report), key.name, tuple(map(str, same))].append(cell)
    groups = [
        Group(key[0], key[1], alike, notes=_rates_note(alike))
        for key, members in sorted(found.items())
        for of_rate in _by_rate(members)
        for alike in by_list(of_rate).values()
    ]
    names: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        names[group.report].add(group.name)
    taken: dict[str, int] = defaultdict(int, summary=1)  # summary.md is that of all runs
    for group in groups:
        stem = group.report if len(names[group.report]) == 1 else _stem(group.name)
        taken[stem] += 1
        group.stem = stem if taken[stem] == 1 else f"{stem}-{taken[stem]}"
    return groups


def _stem(name: str) -> str:
    """A name of runs as one of a file."""
    return re.sub(r"[^\w.+ -]", "_", name)[:100]


def _same_settings(cell: CellResult) -> tuple[bool, str]:
    """A cell's identity without what a table compares and without the learning rate (see `_by_rate`).

    Cells of unknown settings share no table with others.
    """
    identity: Mapping[str, Any] = cell.identity or {}
    compared = ("model.", "fold", "seed", "protocol.episodes_file", "checkpoint")  # a file also by "... (content)"
    kept = {k: identity[k] for k in sorted(identity) if k != "train.lr" and not k.startswith(compared)}
    return cell.identity is None, json_text(kept)


def _model(cell: CellResult) -> str:
    if cell.identity is None:
        return json_text(cell.result.model)
    return json_text({k: v for k, v in sorted(cell.identity.items()) if k.startswith("model.")})


def _rate(cell: CellResult) -> str:
    """The learning rate as JSON; if it is unknown, the variant, which differs for another rate."""
    return cell.key.variant if cell.identity is None else json.dumps(cell.identity.get("train.lr"))


def _by_rate(cells: Sequence[CellResult]) -> list[list[CellResult]]:
    """One table if every model has a single learning rate; if a model has several, a table for each rate."""
    rates = {(_model(cell), _rate(cell)) for cell in cells}
    if len(rates) == len({model for model, _ in rates}):
        return [list(cells)]
    found: dict[str, list[CellResult]] = defaultdict(list)
    for cell in cells:
        found[_rate(cell)].append(cell)
    return [members for _, members in sorted(found.items())]


def _rates_note(cells: Sequence[CellResult]) -> list[str]:
    """The learning rate of each model if they differ; models that differ in T are named with it."""
    several = {kind for kind in LABELS if len({_rounds(c) for c in cells if component(c) == kind}) > 1}
    found: dict[str, set[Any]] = defaultdict(set)
    for cell in sorted(cells, key=lambda c: ([*LABELS, None].index(component(c)), _rounds(c))):
        label = LABELS.get(component(cell) or "", cell.key.method)
        found[f"{label}, T = {_rounds(cell)}" if component(cell) in several else label].add(_rate(cell))
    if len(set.union(*found.values())) == 1 or any(c.identity is None for c in cells):
        return []
    each = (f"{label}: {', '.join(map(str, sorted(rates, key=str)))}" for label, rates in found.items())
    return [f"train.lr is each model's own: {'; '.join(each)}"]


def _rounds(cell: CellResult) -> int:
    """T; 1 for the baseline, whatever its unused `iterations` says."""
    value = cell.result.model.get("iterations")
    return value if isinstance(value, int) and component(cell) != "baseline" else 1


def component(cell: CellResult) -> str | None:
    """The row of Tables 3 and 4 that a cell belongs to: a key of `LABELS`; None for any other model."""
    model, method = cell.result.model, cell.key.method
    if method == "baseline" or (method == "abcb" and not model.get("modulation", True)):
        return "baseline"
    if method != "abcb":
        return None
    off = [k for k in ("cleansing", "pixel_evolution", "structure_evolution") if not model.get(k, True)]
    if len(off) > 1:
        return None
    names = {"cleansing": "sm", "pixel_evolution": "without_ep", "structure_evolution": "without_es"}
    return names[off[0]] if off else "full"


def rows_of(group: Group, kinds: Sequence[Any], kind_of: Callable[[CellResult], Any]) -> Rows:
    """The cells of each row by fold and seed, reduced to the folds and seeds that all rows with results have."""
    rows: Rows = {kind: {} for kind in kinds}
    clashes = set()
    for cell in group.cells:
        kind, place = kind_of(cell), (cell.key.fold, cell.key.seed)
        if kind not in rows:
            group.notes.append(f"left out, as it is none of the rows: {cell.path}")
            continue
        first = rows[kind].setdefault(place, cell)
        if first is not cell and first.result.fingerprint != cell.result.fingerprint:
            clashes.add((kind, place))
            group.notes.append(f"left out, as they are two results for one place: {first.path} and {cell.path}")
    for kind, place in clashes:
        del rows[kind][place]
    present = [set(of_row) for of_row in rows.values() if of_row]
    common = set.intersection(*present) if present else set()
    folds = {fold for fold, _ in common}
    of_seed: dict[int, set[int]] = defaultdict(set)
    for fold, seed in common:
        of_seed[seed].add(fold)
    whole = {(fold, seed) for fold, seed in common if of_seed[seed] == folds} or common
    if any(keys != whole for keys in present):
        group.notes.append(
            "rows are compared on the folds and training seeds that all of them have: "
            + ", ".join(f"fold {fold} seed {seed}" for fold, seed in sorted(whole))
        )
    return {kind: {key: of_row[key] for key in sorted(whole) if key in of_row} for kind, of_row in rows.items()}


def statistic(cells: Cells, measure: Callable[[CellResult], float | None]) -> Statistic | None:
    """Mean and spread of a measure over cells that hold the same folds for every seed; None if any has none."""
    known = {key: value for key, cell in cells.items() if (value := measure(cell)) is not None}
    return Statistic.of(known) if known and len(known) == len(cells) else None


def number_of(figure: Statistic | None) -> str:
    """What a table shows of it."""
    return MISSING if figure is None else Number(figure, figure.mean, figure.std)


def notes_of(group: Group, rows: Rows, beside_paper: bool = True) -> list[str]:
    """Notes for readers of the table; `beside_paper`: it has figures of the paper."""
    keys = sorted({key for cells in rows.values() for key in cells})
    notes = []
    if keys:
        folds, seeds = (", ".join(map(str, sorted({key[i] for key in keys}))) for i in (0, 1))
        notes.append(f"folds {folds}; training seeds {seeds}")
    if len({seed for _, seed in keys}) > 1:
        notes.append("±: sample standard deviation over training seeds, of the means over folds")
    if any(c.partial for cells in rows.values() for c in cells.values()):
        notes.append("partial: some novel classes could not be evaluated")
    if not group.settings_known:
        notes.append(
            "no identity.json that can be read lies beside these results, so their settings are unknown: the rows may "
            "differ in more than the model" + (", and nothing is compared with the paper" if beside_paper else "")
        )
    if beside_paper and (not group.of_the_papers_task or group.other_settings):
        notes.append(
            "the paper's figures are of pascal5i fold 0, resnet50, 1-shot, on all images: another task than these "
            "runs', so there are no differences"
            + (f"; unlike the paper, they have {', '.join(other)}" if (other := group.other_settings) else "")
        )
    return notes
