"""What differs between the rows of a table beside what they are named after. `fsseg.report.tables` lists it below.

A table over methods compares them fairly where nothing else differs: rate, optimiser, epochs, batch, backbone, weights,
training images, image size, augmentation, episodes. All of that is in a cell's identity or in its result.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fsseg.cell.key import BASE_CELL
from fsseg.config.constraints import BEST
from fsseg.config.history import BEFORE, STANDARD_POOL
from fsseg.process.words import count, every, several
from fsseg.report.collect import CellResult

Differences = dict[str, dict[str, str]]
"""Setting -> label of each row that has it -> its value, in words."""

_CONTENT = " (content)"
_OF_FOLDS = ("checkpoint", "protocol.episodes_file")
"""Files of which every fold has its own: whether there is one is told, not which."""
_NOT_COMPARED = ("fold", "seed", "shot", "model.name", "eval.diagnostics", "eval.background_shifts")
"""Columns and names of rows, and what is only recorded."""
_FIRST = ("episodes", "training seeds", "train.", "training ", "backbone.", "dataset.", "protocol.", "eval.", "model.")
"""The order in which settings are told."""
_MOST = 12  # values of one setting that a note tells

_Values = dict[str, dict[str, set[str]]]
"""Setting -> label of a row -> its values, in words."""
_Places = dict[tuple[int, int], set[str]]
"""Number of shots and fold -> values, in words."""


def differences(rows: Mapping[str, Sequence[CellResult]]) -> Differences:
    """The settings in which the cells of some rows differ; empty where none does.

    A setting that a method or a backbone does not have is compared among the rows that have it. A row that trains
    nothing has no settings of the training.

    Args:
        rows: label -> the cells that its numbers are made of.
    """
    found: Differences = {}
    for key, values in (_looked_for(rows) | (_settings(rows) if len(rows) > 1 else {})).items():
        if len(set.union(*values.values())) > 1:
            found[key] = {label: _either(of_row) for label, of_row in values.items()}
    for key, places in (_by_place(rows) if len(rows) > 1 else {}).items():
        if any(len(set.union(*at)) > 1 for at in _together(places)):
            found[key] = {label: _either(set.union(*of_row.values())) for label, of_row in places.items()}
    order = {key: next((i for i, start in enumerate(_FIRST) if key.startswith(start)), len(_FIRST)) for key in found}
    return {key: found[key] for key in sorted(found, key=lambda key: (order[key], key))}


def in_words(found: Differences) -> list[str]:
    """A line for each setting: its values, each with the rows that have it."""
    lines = []
    for key, of_rows in found.items():
        rows_of: dict[str, list[str]] = defaultdict(list)
        for label, value in of_rows.items():
            rows_of[value].append(label)
        told = "; ".join(f"{value} ({several(labels)})" for value, labels in rows_of.items())
        lines.append(f"differs: {key}: {told if len(rows_of) <= _MOST else f'{len(rows_of)} different values'}")
    return lines


def _settings(rows: Mapping[str, Sequence[CellResult]]) -> _Values:
    """What the identities of all rows' cells say, where that is known; and the seeds."""
    stored: dict[str, dict[str, set[str]]] = {label: _of_row(cells) for label, cells in rows.items()}
    found: _Values = defaultdict(dict)
    for key in {key for of_row in stored.values() for key in of_row}:
        for label, of_row in stored.items():
            if values := of_row.get(key) or _without(key, of_row):
                found[key][label] = values
    for label, cells in rows.items():
        found["training seeds"][label] = {", ".join(map(str, sorted({c.key.seed for c in cells})))}
    unknown = {label for label, of_row in stored.items() if not of_row}
    if unknown and len(unknown) < len(rows):
        for label in rows:
            found["settings"][label] = {"not known, without identity.json" if label in unknown else "known"}
    return found


def _looked_for(rows: Mapping[str, Sequence[CellResult]]) -> _Values:
    """How the checkpoints beside the last ones were chosen."""
    found: _Values = defaultdict(lambda: defaultdict(set))
    for label, cells in rows.items():
        for cell in cells:
            for kind, best in cell.result.best.items():
                how = f"{every(best.every_epochs, 'epoch')}, {count(best.episodes, 'episode')}"
                found[f"{BEST[kind]}, looked for"][label].add(how)
    return found


def _of_row(cells: Sequence[CellResult]) -> dict[str, set[str]]:
    """Setting -> its values in the cells of a row."""
    found: dict[str, set[str]] = defaultdict(set)
    seen: set[tuple[int, bool]] = set()
    for cell in cells:
        trained = cell.result.training is not None
        for part in [] if cell.identity is None else cell.identity.maps:
            if (id(part), trained) in seen:  # thousands of cells share one
                continue
            seen.add((id(part), trained))
            for key, value in part.items():
                if key in (*_NOT_COMPARED, BASE_CELL) or (key.startswith("train.") and not trained):
                    continue
                name = key.removesuffix(_CONTENT)
                if name in _OF_FOLDS:
                    found[name] = {"a file"}
                else:
                    found[key].add("a list of its own" if _is_list(value) else _shown(key, value, cell))
        if cell.identity is not None:
            found["train.enabled"].add("true" if trained else "false")
    return found


def _without(key: str, of_row: Mapping[str, set[str]]) -> set[str]:
    """The values of a setting that no cell of a row has; empty where it does not apply to it.

    Identities leave out what has the value that it had before there was a setting (`fsseg.config.history`).
    """
    if not of_row or (key.startswith("train.") and of_row["train.enabled"] == {"false"}):
        return set()
    if key in BEFORE:
        return {_text(BEFORE[key])}
    return {"none"} if key.endswith(_CONTENT) or key in _OF_FOLDS else set()


def _by_place(rows: Mapping[str, Sequence[CellResult]]) -> dict[str, dict[str, _Places]]:
    """What folds have each for itself: episodes, steps, base learners, and lists that are files."""
    found: dict[str, dict[str, _Places]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))
    for label, cells in rows.items():
        for cell in cells:
            place = (cell.key.shot, cell.key.fold)
            if cell.episodes:
                found["episodes"][label][place].add(_digest(cell.episodes))
            if cell.result.training is not None:
                found["training steps"][label][place].add(str(cell.result.training.steps))
            identity = {} if cell.identity is None else cell.identity
            if (base := identity.get(BASE_CELL)) is not None:
                found[BASE_CELL][label][place].add(str(base))
            for key in ("dataset.train_list", "dataset.val_list"):
                if _is_list(value := identity.get(key)):
                    found[key][label][place].add(str(value))
    return found


def _together(places: Mapping[str, _Places]) -> list[list[set[str]]]:
    """The values of each place, row by row."""
    every_place = {place for of_row in places.values() for place in of_row}
    return [[of_row[place] for of_row in places.values() if place in of_row] for place in every_place]


def _either(values: set[str]) -> str:
    """One value, or several; of numbers the least and the most."""
    if len(values) > 2 and all(value.isdecimal() for value in values):
        numbers = sorted(map(int, values))
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(sorted(values))


def _is_list(value: Any) -> bool:
    """Whether a list is a file, known by its content (`fsseg.cell.key`)."""
    return isinstance(value, str) and value.startswith("content ")


def _shown(key: str, value: Any, cell: CellResult) -> str:
    if key == "dataset.train_list" and value is None and cell.key.dataset == "pascal5i":
        return STANDARD_POOL
    return _text(value)


def _text(value: Any) -> str:
    """A value as a line of the configuration has it."""
    return json.dumps(value, default=str).replace('"', "")


def _digest(episodes: Sequence[str]) -> str:
    """One mark for the lists of all evaluation seeds."""
    return episodes[0][:8] if len(episodes) == 1 else hashlib.sha256(" ".join(episodes).encode()).hexdigest()[:8]
