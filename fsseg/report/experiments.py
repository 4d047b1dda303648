"""The experiments of the paper in its form: Tables 3 to 6, Figures 5 and 7, and the test of its claim.

`fsseg.report.aggregate` calls `experiment_report`. The config key `report` says which of `REPORTS` a cell belongs to;
the files under `conf/experiment` set it. Text, Markdown and PNG are made from run directories alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fsseg.cell.models import Cost
from fsseg.cell.record import RunDirectory
from fsseg.process.files import PICTURE_BYTES, read_file, write_atomic, write_json
from fsseg.report.bias import background_bias, figure5
from fsseg.report.collect import CellResult
from fsseg.report.comparison import LABELS, Group, Rows, component, groups_of, notes_of, number_of, rows_of, statistic
from fsseg.report.formats import TextTable
from fsseg.report.latex import PACKAGES
from fsseg.report.paper import WITHOUT_INTERVAL, paper_results

_MOST_ROUNDS = 100  # rows of Table 6


@dataclass(frozen=True)
class Written:
    """The text of all experiments, and the files written."""

    text: str
    files: list[Path]


def experiment_report(cells: Iterable[CellResult], folder: Path) -> Written | None:
    """Write `<report>.md` and its pictures into `folder` for every experiment among the cells; None if there is none.

    Raises:
        OSError: a file cannot be written.
    """
    texts, files = [], []
    for group, table in experiment_tables(cells, folder):
        of_table = [folder / f"{group.stem}.{kind}" for kind in ("md", "tex", "csv", "json")]
        write_atomic(of_table[0], table.to_markdown())
        write_atomic(of_table[1], f"{PACKAGES}\n{table.to_latex()}")
        write_atomic(of_table[2], table.to_csv())
        write_json(of_table[3], {"schema_version": 1, **table.to_json(), "pictures": [p.name for p in table.pictures]})
        texts.append(table.to_text())
        files += [*of_table, *table.pictures, *table.vectors]
    return Written("\n".join(texts), files) if texts else None


def experiment_tables(cells: Iterable[CellResult], folder: Path) -> Iterator[tuple[Group, TextTable]]:
    """The table of every experiment among the cells; its pictures are written into `folder`.

    Raises:
        OSError: a picture cannot be written.
    """
    for group in groups_of(cells, REPORTS):
        table = REPORTS[group.report](group, folder / f"{group.stem}.png")
        table.notes += group.notes
        yield group, table


def _ablation(
    group: Group,
    title: str,
    kinds: Sequence[Any],
    kind_of: Callable[[CellResult], Any],
    label: Callable[[Any], str],
    paper: Callable[[Any], float | None],
) -> tuple[TextTable, Rows]:
    """A table with one row for each kind of model: ours, the paper's, and the difference if the task is the same."""
    rows = rows_of(group, kinds, kind_of)
    table = TextTable(f"{title}: mIoU in percent ({group.title})", ["", "ours", "paper", "difference"], scores=(1,))
    for kind, cells in rows.items():
        ours, theirs = statistic(cells, _miou), paper(kind)
        difference = f"{ours.mean - theirs:+.2f}" if ours and theirs is not None and group.comparable else ""
        table.rows.append([label(kind), number_of(ours), _figure(theirs), difference])
    if any(row[-1] for row in table.rows):
        table.notes.append(WITHOUT_INTERVAL)
    table.notes += notes_of(group, rows)
    return table, rows


def _components(group: Group, title: str, kinds: Sequence[str], labels: dict[str, str], key: str) -> TextTable:
    paper = _ablations()[key]
    return _ablation(group, title, kinds, component, labels.__getitem__, lambda kind: paper[labels[kind]])[0]


def _table3(group: Group, _: Path) -> TextTable:
    return _components(group, "Table 3, components", ["baseline", "sm", "full"], LABELS, "components")


def _table4(group: Group, _: Path) -> TextTable:
    kinds = ["full", "without_ep", "without_es"]
    return _components(group, "Table 4, evolution", kinds, LABELS | {"full": "full"}, "evolution")


def _table5(group: Group, _: Path) -> TextTable:
    paper = {int(t): figures for t, figures in _ablations()["iterations"].items()}
    kinds = sorted({1, 2, 3, 4, 5} | _all_iterations(group))
    table, rows = _ablation(
        group, "Table 5, iterations", kinds, _iterations, "T = {}".format, lambda t: paper.get(t, {}).get("miou")
    )
    table.header += ["GMACs", "GMACs dense", "paper GMACs"]
    for line, (t, cells) in zip(table.rows, rows.items()):
        cost = next((c.result.cost for c in cells.values()), None) or Cost()
        figures = (cost.gmacs, cost.gmacs_dense, paper.get(t, {}).get("gmacs"))
        line += ["-" if figure is None else f"{figure:.1f}" for figure in figures]
    table.notes.append(
        "GMACs: of one episode as the model runs, SM and IC left out in round T; dense: in the paper's form, which "
        "counts them (`fsseg cost`)"
    )
    return table


def _table6(group: Group, _: Path) -> TextTable:
    paper = _ablations()["prediction_after_iteration_of_T3"]
    iterations = sorted(_all_iterations(group))
    rows = rows_of(group, iterations, _iterations)
    header = ["", *(f"ours, T = {t}" for t in iterations), "paper, T = 3"]
    table = TextTable(f"Table 6, mIoU of P_t in percent ({group.title})", header)
    for t in range(1, max([*iterations, len(paper)]) + 1):
        found = [statistic(rows[T], partial(_round, t=t)) for T in iterations]
        table.rows.append([f"P_{t}", *map(number_of, found), _figure(paper.get(str(t)))])
    table.notes += notes_of(group, rows)
    return table


def _figure7(group: Group, picture: Path) -> TextTable:
    table = TextTable(f"Figure 7, predictions after QP, SM, IC ({group.title})", ["sheet", "mIoU", "of the run"])
    for cell in group.cells:
        sheet = RunDirectory(cell.path).steps_figure
        try:
            drawn = read_file(sheet, PICTURE_BYTES)
        except FileNotFoundError:
            table.notes.append(f"{sheet} is missing (logger.figures=0, or logger.steps=false)")
            continue
        except OSError as error:
            table.notes.append(f"{sheet} cannot be read ({error.strerror})")
            continue
        number = len(table.pictures) + 1
        target = picture if number == 1 else picture.with_name(f"{picture.stem}-{number}.png")
        write_atomic(target, drawn)
        table.pictures.append(target)
        table.rows.append([target.name, f"{cell.result.miou:.2f}", str(cell.path)])
    return table


def _ablations() -> dict[str, Any]:
    return paper_results()["ablations_pascal5i_fold0_resnet50_1shot"]  # type: ignore[no-any-return]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _miou(cell: CellResult) -> float | None:
    return cell.result.miou


def _iterations(cell: CellResult) -> int | None:
    """T of a whole ABCB; None for any other model, which has no row in Tables 5 and 6."""
    value = cell.result.model.get("iterations")
    rounds = isinstance(value, int) and 0 < value <= _MOST_ROUNDS
    return value if rounds and component(cell) == "full" else None


def _all_iterations(group: Group) -> set[int]:
    return {t for c in group.cells if (t := _iterations(c)) is not None}


def _round(cell: CellResult, t: int) -> float | None:
    rounds = cell.result.metrics.miou_per_round if cell.result.metrics else []
    return rounds[t - 1] if t <= len(rounds) else None


REPORTS: dict[str, Callable[[Group, Path], TextTable]] = {
    "table3_components": _table3,
    "table4_evolution": _table4,
    "table5_iterations": _table5,
    "table6_rounds": _table6,
    "figure5_distance": figure5,
    "figure7_steps": _figure7,
    "background_bias": background_bias,
}
"""Config key `report` -> how its runs are shown."""
