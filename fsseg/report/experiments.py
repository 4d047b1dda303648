"""The experiments of the paper as it prints them: Tables 3 to 6, Figures 5 and 7, and the test of its claim.

`tables.aggregate` calls `experiment_report` for every folder; cells say themselves which of `REPORTS` they belong to
(config key `report`, set by the files under `conf/experiment`). Text, Markdown and PNG come from run directories alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.process.files import write_atomic
from fsseg.report.bias import background_bias, figure5
from fsseg.report.cells import Cell, mapping
from fsseg.report.comparison import (
    LABELS,
    MISSING,
    Group,
    Key,
    Section,
    component,
    groups_of,
    notes_of,
    rows_of,
    statistic,
    to_markdown,
    to_text,
)  # fmt: skip
from fsseg.report.paper import paper_results


@dataclass(frozen=True)
class Written:
    """The text of all experiments, and the files written."""

    text: str
    files: list[Path]


def experiment_report(cells: Iterable[Cell], folder: Path) -> Written | None:
    """Write `<report>.md` and its pictures into `folder` for every experiment among the cells; None without any.

    Raises:
        OSError: a file cannot be written.
    """
    texts, files = [], []
    for group in groups_of(cells, REPORTS):
        section = REPORTS[group.report](group, folder / f"{group.stem}.png")
        section.notes += group.notes
        markdown = folder / f"{group.stem}.md"
        write_atomic(markdown, to_markdown(section))
        texts.append(to_text(section))
        files += [markdown, *section.pictures]
    return Written("\n".join(texts), files) if texts else None


def _ablation(
    group: Group,
    title: str,
    kinds: Sequence[Any],
    kind_of: Callable[[Cell], Any],
    label: Callable[[Any], str],
    paper: Callable[[Any], float | None],
) -> tuple[Section, dict[Any, dict[Key, Cell]]]:
    """A table with one row a kind of model: ours, the paper's, and the difference where both are of the same task."""
    rows = rows_of(group, kinds, kind_of)
    section = Section(f"{title}: mIoU in percent ({group.title})", ["", "ours", "paper", "difference"], [])
    for kind, cells in rows.items():
        ours, theirs = statistic(cells, _miou), paper(kind)
        difference = f"{ours.mean - theirs:+.2f}" if ours and theirs is not None and group.comparable else ""
        section.rows.append(
            [label(kind), MISSING if ours is None else str(ours), "" if theirs is None else f"{theirs:.2f}", difference]
        )
    section.notes += notes_of(group, rows)
    return section, rows


def _table3(group: Group, _: Path) -> Section:
    paper = paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]["components"]
    title = "Table 3, components"
    return _ablation(
        group, title, ["baseline", "sm", "full"], component, LABELS.__getitem__, lambda k: paper[LABELS[k]]
    )[0]


def _table4(group: Group, _: Path) -> Section:
    paper = paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]["evolution"]
    labels = {**LABELS, "full": "full"}
    kinds = ["full", "without_ep", "without_es"]
    return _ablation(group, "Table 4, evolution", kinds, component, labels.__getitem__, lambda k: paper[labels[k]])[0]


def _table5(group: Group, _: Path) -> Section:
    paper = paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]["iterations"]
    kinds = sorted({1, 2, 3, 4, 5} | {t for c in group.cells if isinstance(t := _iterations(c), int)})
    section, rows = _ablation(
        group,
        "Table 5, iterations",
        kinds,
        _iterations,
        lambda t: f"T = {t}",
        lambda t: paper.get(str(t), {}).get("miou"),
    )
    section.header += ["GMACs", "GMACs dense", "paper GMACs"]
    for line, (t, cells) in zip(section.rows, rows.items()):
        cost = next((mapping(c.result.get("cost")) for c in cells.values()), {})
        line += [
            _number(cost.get("gmacs")),
            _number(cost.get("gmacs_dense")),
            _number(paper.get(str(t), {}).get("gmacs")),
        ]
    section.notes.append(
        "GMACs: of one episode as the model runs, SM and IC left out in round T; dense: in the paper's form, which "
        "counts them (`fsseg cost`)"
    )
    return section


def _table6(group: Group, _: Path) -> Section:
    paper = paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]["prediction_after_iteration_of_T3"]
    iterations = sorted({t for c in group.cells if isinstance(t := _iterations(c), int)})
    rows = rows_of(group, iterations, _iterations)
    header = ["", *(f"ours, T = {t}" for t in iterations), "paper, T = 3"]
    section = Section(f"Table 6, mIoU of P_t in percent ({group.title})", header, [])
    for t in range(1, max([*iterations, len(paper)]) + 1):
        found = [statistic(rows[T], lambda c, t=t: _round(c, t)) for T in iterations]  # type: ignore[misc]
        theirs = paper.get(str(t))
        section.rows.append(
            [f"P_{t}", *(MISSING if s is None else str(s) for s in found), "" if theirs is None else f"{theirs:.2f}"]
        )
    section.notes += notes_of(group, rows)
    return section


def _figure7(group: Group, picture: Path) -> Section:
    section = Section(f"Figure 7, predictions after QP, SM, IC ({group.title})", ["sheet", "mIoU", "of the run"], [])
    for cell in group.cells:
        sheet = cell.path / "figures" / "steps.png"
        if not sheet.is_file():
            section.notes.append(f"{sheet} is missing (logger.figures=0, or logger.steps=false)")
            continue
        number = len(section.pictures) + 1
        target = picture if number == 1 else picture.with_name(f"{picture.stem}-{number}.png")
        write_atomic(target, sheet.read_bytes())
        section.pictures.append(target)
        section.rows.append([target.name, f"{cell.miou:.2f}", str(cell.path)])
    return section


def _miou(cell: Cell) -> float | None:
    return cell.miou


def _iterations(cell: Cell) -> int | None:
    """T of a whole ABCB; None for any other model, which is no row of Tables 5 and 6."""
    model = mapping(cell.result.get("model"))
    value = model.get("iterations")
    return value if component(cell) == "full" and isinstance(value, int) else None


def _round(cell: Cell, t: int) -> float | None:
    rounds = mapping(cell.result.get("metrics")).get("miou_per_round")
    return float(rounds[t - 1]) if isinstance(rounds, list) and t <= len(rounds) else None


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else "-"


REPORTS: dict[str, Callable[[Group, Path], Section]] = {
    "table3_components": _table3,
    "table4_evolution": _table4,
    "table5_iterations": _table5,
    "table6_rounds": _table6,
    "figure5_distance": figure5,
    "figure7_steps": _figure7,
    "background_bias": background_bias,
}
"""Config key `report` -> how its runs are shown."""
