"""What the tables of experiments share: which cells may stand in one table, its rows, their means, and its text.

`experiments` is the caller. Rows are compared on the very same folds and training seeds, or not at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fsseg.process.files import json_text
from fsseg.report.cells import Cell, by_list, mapping
from fsseg.report.paper import comparable_ablation, unlike_ablation

MISSING = "—"
LABELS = {
    "baseline": "baseline (backbone + QP)",
    "sm": "baseline + SM",
    "full": "baseline + SM + IC",
    "without_ep": "without E_p",
    "without_es": "without E_s",
}
Key = tuple[int, int]  # fold, seed
Measure = Callable[[Cell], float | None]


@dataclass
class Group:
    """Cells that may stand in one table: the same in everything but the model's settings, its rate, fold and seed."""

    report: str
    name: str
    cells: list[Cell]
    stem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        first = self.cells[0]
        return f"{first.dataset}, {first.backbone}, {first.shot}-shot, protocol {(first.protocol or {}).get('name')}"

    @property
    def comparable(self) -> bool:
        """Whether the paper's ablations (PASCAL-5i fold 0, ResNet-50, 1 shot, all images) are of the same task."""
        return not self.other_settings and all(
            comparable_ablation(c.dataset, c.backbone, c.shot, c.fold, c.data.get("num_val_images")) and not c.partial
            for c in self.cells
        )

    @cached_property
    def other_settings(self) -> list[str]:
        """Settings of any cell that the paper's ablations do not have, as `key=value`."""
        return sorted({setting for c in self.cells for setting in unlike_ablation(c.identity)})


@dataclass
class Section:
    """One table as text cells, with what is to be said below it and the pictures written beside it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Statistic:
    """Mean over folds and training seeds; `std` is that of the seeds' means over folds, with two seeds or more."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ±{self.std:.2f}")


def groups_of(cells: Iterable[Cell], reports: Collection[str]) -> list[Group]:
    """The finished cells of the named reports, sorted into tables."""
    found: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        report = cell.result.get("report")
        if cell.done and isinstance(report, str) and report in reports:
            same = (cell.dataset, cell.backbone, str(cell.shot), str(cell.protocol_id), str(cell.data_val))
            found[(report, cell.name) + same + (_settings(cell),)].append(cell)  # noqa: RUF005  (*same needs Python 3.11)
    groups = [
        Group(key[0], key[1], alike, notes=_rates_note(alike))
        for key, members in sorted(found.items())
        for of_rate in _by_rate(members)
        for alike in by_list(of_rate).values()
    ]
    taken: dict[str, int] = defaultdict(int)
    for group in groups:
        stem = group.report if len({g.name for g in groups if g.report == group.report}) == 1 else group.name
        taken[stem] += 1
        group.stem = stem if taken[stem] == 1 else f"{stem}-{taken[stem]}"
    return groups


def _settings(cell: Cell) -> str:
    """Everything of a cell's identity but what a table compares, and the learning rate (see `_by_rate`)."""
    identity = cell.identity
    compared = ("model.", "fold", "seed", "protocol.episodes_file", "checkpoint", "train.lr")
    return json_text({k: identity[k] for k in sorted(identity) if not k.startswith(compared)})


def _model(cell: Cell) -> str:
    return json_text({k: v for k, v in sorted(cell.identity.items()) if k.startswith("model.")})


def _rate(cell: Cell) -> Any:
    return cell.identity.get("train.lr")


def _by_rate(cells: Sequence[Cell]) -> list[list[Cell]]:
    """One table if every model has one learning rate, be it its own; where a model was run at several, one for each."""
    rates = {(_model(cell), _rate(cell)) for cell in cells}
    if len(rates) == len({model for model, _ in rates}):
        return [list(cells)]
    found: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        found[json_text(_rate(cell))].append(cell)
    return [members for _, members in sorted(found.items())]


def _rates_note(cells: Sequence[Cell]) -> list[str]:
    """Which rate which model had, where they differ; models that differ in T are told apart by it."""
    several = {kind for kind in LABELS if len({_rounds(c) for c in cells if component(c) == kind}) > 1}
    found: dict[str, set[Any]] = defaultdict(set)
    for cell in sorted(cells, key=lambda c: ([*LABELS, None].index(component(c)), _rounds(c))):
        label = LABELS.get(component(cell) or "", cell.method)
        found[f"{label}, T = {_rounds(cell)}" if component(cell) in several else label].add(_rate(cell))
    if len(set.union(*found.values())) == 1:
        return []
    each = (f"{label}: {', '.join(map(str, sorted(rates, key=str)))}" for label, rates in found.items())
    return [f"train.lr is each model's own: {'; '.join(each)}"]


def _rounds(cell: Cell) -> int:
    """T; 1 for the baseline, whatever its unused `iterations` says."""
    value = mapping(cell.result.get("model")).get("iterations")
    return value if isinstance(value, int) and component(cell) != "baseline" else 1


def component(cell: Cell) -> str | None:
    """Which row of Tables 3 and 4 a cell is: a key of `LABELS`; None for any other model."""
    model = mapping(cell.result.get("model"))
    if cell.method == "baseline" or (cell.method == "abcb" and not model.get("modulation", True)):
        return "baseline"
    if cell.method != "abcb":
        return None
    off = [k for k in ("cleansing", "pixel_evolution", "structure_evolution") if not model.get(k, True)]
    if len(off) > 1:
        return None
    names = {"cleansing": "sm", "pixel_evolution": "without_ep", "structure_evolution": "without_es"}
    return names[off[0]] if off else "full"


def rows_of(group: Group, kinds: Sequence[Any], kind_of: Callable[[Cell], Any]) -> dict[Any, dict[Key, Cell]]:
    """The cells of each row by fold and seed, cut to the folds and seeds that all rows with results have."""
    rows: dict[Any, dict[Key, Cell]] = {kind: {} for kind in kinds}
    clashes = set()
    for cell in group.cells:
        kind = kind_of(cell)
        if kind not in rows:
            group.notes.append(f"left out, as it is none of the rows: {cell.path}")
            continue
        first = rows[kind].setdefault((cell.fold, cell.seed), cell)
        if first is not cell and first.fingerprint != cell.fingerprint:
            clashes.add((kind, cell.fold, cell.seed))
            group.notes.append(f"left out, as they are two results for one place: {first.path} and {cell.path}")
    for kind, fold, seed in clashes:
        del rows[kind][fold, seed]
    present = [set(of_row) for of_row in rows.values() if of_row]
    common = set.intersection(*present) if present else set()
    folds = {fold for fold, _ in common}
    whole = {key for key in common if {f for f, s in common if s == key[1]} == folds} or common
    if any(keys != whole for keys in present):
        group.notes.append(
            "rows are compared on the folds and training seeds that all of them have: "
            + ", ".join(f"fold {fold} seed {seed}" for fold, seed in sorted(whole))
        )
    return {kind: {key: of_row[key] for key in sorted(whole) if key in of_row} for kind, of_row in rows.items()}


def statistic(cells: dict[Key, Cell], measure: Measure) -> Statistic | None:
    """Mean and spread of a measure over cells that hold the same folds for every seed; None if any has none."""
    values = {key: measure(cell) for key, cell in cells.items()}
    known = {key: value for key, value in values.items() if value is not None}
    if not known or len(known) < len(values):
        return None
    seeds = sorted({seed for _, seed in known})
    means = [mean([v for (_, s), v in known.items() if s == seed]) for seed in seeds]
    return Statistic(mean(list(known.values())), spread(means))


def notes_of(group: Group, rows: dict[Any, dict[Key, Cell]], beside_paper: bool = True) -> list[str]:
    """What a reader of the table must know; `beside_paper`: figures of the paper stand in it."""
    keys = sorted({key for cells in rows.values() for key in cells})
    notes = []
    if keys:
        folds, seeds = (", ".join(map(str, sorted({key[i] for key in keys}))) for i in (0, 1))
        notes.append(f"folds {folds}; training seeds {seeds}")
    if len({seed for _, seed in keys}) > 1:
        notes.append("±: sample standard deviation over training seeds, of the means over folds")
    if any(c.partial for cells in rows.values() for c in cells.values()):
        notes.append("partial: some novel classes could not be evaluated")
    if beside_paper and not group.comparable:
        notes.append(
            "the paper's figures are of pascal5i fold 0, resnet50, 1-shot, on all images: another task than these "
            "runs', so there are no differences"
            + (f"; unlike the paper, they have {', '.join(other)}" if (other := group.other_settings) else "")
        )
    return notes


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None with fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def to_text(section: Section) -> str:
    """A section for a terminal."""
    table = [section.header, *section.rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(section.header))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]).rstrip()
        for line in table
    ]
    notes = [f"  {note}" for note in section.notes] + [f"  picture: {p}" for p in section.pictures]
    return "\n".join([section.title, "", *lines, "", *notes]).rstrip("\n") + "\n"


def to_markdown(section: Section) -> str:
    """A section as GitHub Markdown, its pictures shown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(section.header) - 1)) + "|"
    parts = [f"### {section.title}", "", line(section.header), rule, *map(line, section.rows), ""]
    parts += [f"- {note}" for note in section.notes]
    parts += ["", *(f"![{p.stem}]({p.name})" for p in section.pictures)] if section.pictures else []
    return "\n".join(parts) + "\n"
