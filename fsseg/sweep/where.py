"""`fsseg where`: what this machine has and what says so: data sets, outputs, weights, machine.yaml, launchers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.cell.weights import FILES, cached
from fsseg.config.compose import Composer, composer
from fsseg.config.machine import DEFAULT, LAUNCHERS, LINE, Machine, machine, set_by
from fsseg.config.schema import Config, DatasetConfig
from fsseg.data.registry import source_class
from fsseg.errors import UserError
from fsseg.process.tables import aligned


@dataclass(frozen=True)
class Whereabouts:
    """One row: what it is, where it is, what says so, and whether it is there."""

    name: str
    path: str
    by: str
    state: str
    is_missing: bool = False
    fetched_by: str = ""


def places(line: Sequence[str], config_dir: str | None = None) -> list[Whereabouts]:
    """What a line finds on this machine; without a data set in it, all of them. Those that users lay out themselves are
    then left out if nobody has said where they are, and they are not there.

    Raises:
        UserError: a fault of the line or of machine.yaml.
    """
    here = machine()
    with composer(config_dir) as c:
        configs = _configs(c, line)
        sets = {(cfg.dataset.name, str(cfg.dataset.root)): _data_set(cfg) for cfg in configs}
        if not _names_a_data_set(line):
            sets = {key: row for key, row in sets.items() if _is_usual(row)}
        launcher = str(c.of_line(line).master.hydra.runtime.choices["hydra/launcher"])
    return [
        *sets.values(),
        _outputs(configs[0]),
        _weights(),
        Whereabouts("machine.yaml", str(here.file or "-"), *_file(here)),
        *_launchers(launcher, line, here),
    ]


def _names_a_data_set(line: Sequence[str]) -> bool:
    return any(word.startswith(("dataset", "experiment=")) for word in line)


def _is_usual(row: Whereabouts) -> bool:
    return DatasetConfig.named(row.name).NUM_CLASSES > 0 or not row.is_missing or row.by == LINE


def _configs(c: Composer, line: Sequence[str]) -> list[Config]:
    """A configuration of every data set that the line names; of all data sets, if it names none."""
    if _names_a_data_set(line):
        made = c.grid(line)
    else:
        made = c.grid([f"dataset={','.join(DatasetConfig.choices())}", *line])
    found = []
    for _, composed in made:
        if isinstance(composed, UserError):
            raise composed
        found.append(composed.cfg)
    return found


def _data_set(cfg: Config) -> Whereabouts:
    data: Any = cfg.dataset
    name, source = data.name, source_class(data.name)
    root = Path(data.root).expanduser()
    layout, faults = source.layout(data), source.check_folder(data)
    there = all(layout.values())
    if there:
        state = "there" if not faults else f"there, but {faults[0].what}"
    elif not faults:
        state = "is made on first use"
    elif not root.is_dir():
        state = "missing: there is no such folder"
    else:
        state = f"missing: {', '.join(part for part, there in layout.items() if not there)}"
    return Whereabouts(
        name, str(root), set_by(name, str(data.root)), state, bool(faults) and not there, source.fetching(data)
    )


def _outputs(cfg: Config) -> Whereabouts:
    folder = str(cfg.output_dir)
    by = DEFAULT if folder == Config.output_dir else LINE
    return Whereabouts("outputs", folder, by, "there" if os.path.isdir(folder) else "is made by the first run")


def _weights() -> Whereabouts:
    """Torch's cache of pretrained weights; torch is not imported."""
    by = next((name for name in ("TORCH_HOME", "XDG_CACHE_HOME") if name in os.environ), DEFAULT)
    lacking = [name for name in FILES if not cached(name).is_file()]
    found = [name for name in FILES if name not in lacking]
    state = ", ".join(filter(None, [" ".join(found), f"missing: {' '.join(lacking)}" if lacking else ""]))
    return Whereabouts("weights", str(cached(next(iter(FILES))).parent), by, state, bool(lacking))


def _file(here: Machine) -> tuple[str, str]:
    if here.file is None:
        return "FSSEG_MACHINE is empty", "not read"
    return "FSSEG_MACHINE" if os.environ.get("FSSEG_MACHINE") else DEFAULT, "read" if here.is_there else "absent"


def _launchers(launcher: str, line: Sequence[str], here: Machine) -> list[Whereabouts]:
    """The launcher of `-m`, and the machine's defaults of each."""
    if any(word.startswith("hydra/launcher=") for word in line):
        by = LINE
    else:
        by = str(here.file) if launcher == here.launcher else DEFAULT
    rows = [Whereabouts("launcher", launcher, by, _settings(here.launchers.get(launcher, {})))]
    for name in LAUNCHERS:
        if name != launcher and here.launchers.get(name):
            rows.append(Whereabouts(f"hydra/launcher={name}", "", str(here.file), _settings(here.launchers[name])))
    return rows


def _settings(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def text(found: Sequence[Whereabouts]) -> str:
    """What `fsseg where` prints: the rows, and the lines that set or get what is missing."""
    rows = [["", "where", "set by", "state"], *([p.name, p.path, p.by, p.state] for p in found)]
    lines = [aligned(rows, left=(0, 1, 2, 3))]
    missing, schemas = [p.name for p in found if p.is_missing], DatasetConfig.choices()
    if names := [name for name in missing if name in schemas]:
        lines += ["", "say where the missing data are (FOLDER is yours to fill in), in one of these ways:", aligned([
            ["  on the line", " ".join(f"data.roots.{name}=FOLDER" for name in names)],
            [f"  in {machine().file or 'machine.yaml'}", f"roots: {{{', '.join(f'{n}: FOLDER' for n in names)}}}"],
            ["  in the environment", "export FSSEG_DATA=FOLDER"
             f" (has all data sets, in {', '.join(schemas[n].FOLDER or n for n in names)})"],
            *([f"  or fetch {p.name}", p.fetched_by] for p in found if p.name in names and p.fetched_by),
        ], left=(0, 1))]  # fmt: skip
    if "weights" in missing:
        fetch = "fsseg prepare --weights backbone=NAME"
        lines += ["", f"missing weights: `{fetch}` fetches them; TORCH_HOME names another folder"]
    return "\n".join(lines)
