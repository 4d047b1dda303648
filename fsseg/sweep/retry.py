"""`fsseg retry`: the cells that ended without a result, and the lines that run just them again.

Nothing has to be reset: a cell without `result.json` is not done, a run goes on from its checkpoint, and takes over a
stale claim by itself. So the whole sweep line would do. The lines here are for those who lost it, or want these cells
only: they are worked out from each cell's own `config.yaml`, composed again, and given only where that leads to the
very same directory and fingerprint.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsseg.cell.key import CellKey, flatten
from fsseg.errors import UserError
from fsseg.process.files import read_json
from fsseg.sweep.grid import command, merge
from fsseg.sweep.status import CellState, read_states

STATES = ("failed", "stale", "preempted", "broken")
_NAMED = ("name", "output_dir", "variant", "shot", "fold", "seed", "dataset.name", "model.name", "backbone.name")
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+@:-]*")


@dataclass
class Retry:
    """What can be run again.

    Attributes:
        cells: that ended without a result.
        lines: shell commands that run them.
        notes: cells that no line could be found for, and why.
    """

    cells: list[CellState]
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_retries(folders: Iterable[str | Path], extra: Sequence[str] = ()) -> Retry:
    """Look for cells without a result that nobody works on, and for the lines that run them.

    Args:
        folders: output folders.
        extra: further overrides for every line, e.g. `hydra/launcher=slurm`.

    Raises:
        UserError: a folder does not exist or holds no run.
    """
    found = Retry([s for s in read_states(folders) if s.state in STATES])
    if not found.cells:
        return found  # Hydra is not even imported
    settings = []
    for state, own in zip(found.cells, _overrides_of(found.cells)):
        if isinstance(own, str):
            found.notes.append(f"{state.label}: {own}")
        else:
            settings.append(own)
    found.lines = [command(box, extra) for box in merge(settings)]
    return found


def _overrides_of(states: Sequence[CellState]) -> list[dict[str, str] | str]:
    """For each cell the overrides that lead to it, or why there are none."""
    from fsseg.config.compose import Composed, composer, config_folder

    protocols = {p.stem for p in (config_folder() / "protocol").glob("*.yaml")}
    stored = [_stored(s) for s in states]
    choices = [c if isinstance(c, str) else _choices(c, protocols) for c in stored]
    found: list[dict[str, str] | str] = []
    with composer() as c:
        wanted = {
            tuple(f"{k}={v}" for k, v in choice.items()): None for choice in choices if not isinstance(choice, str)
        }
        bases = dict(c.each(list(wanted)))
        for state, config, choice in zip(states, stored, choices):
            if isinstance(choice, str) or isinstance(config, str):
                found.append(str(config))
                continue
            base = bases[tuple(f"{k}={v}" for k, v in choice.items())]
            found.append(base.what if isinstance(base, UserError) else _derive(state, config, choice, base))
        # The proof: composed again, they must name this directory and this fingerprint.
        again = c.each([[f"{k}={v}" for k, v in own.items()] for own in found if not isinstance(own, str)])
    results = iter(again)
    for i, own in enumerate(found):
        if isinstance(own, str):
            continue
        composed = next(results)[1]
        found[i] = _checked(states[i], own, composed) if isinstance(composed, Composed) else composed.what
    return found


def _stored(state: CellState) -> dict[str, Any] | str:
    import yaml

    if state.key is None:
        return "its path does not name a cell"
    try:
        text = (state.directory / "config.yaml").read_text(encoding="utf-8")
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return "has no config.yaml: run its sweep line again"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"config.yaml cannot be read ({str(error).splitlines()[0]}): run its sweep line again"
    return config if isinstance(config, dict) else "config.yaml holds no configuration: run its sweep line again"


def _choices(config: dict[str, Any], protocols: set[str]) -> dict[str, str]:
    flat = flatten(config)
    chosen = {
        "dataset": "dataset.name",
        "method": "model.name",
        "backbone": "backbone.name",
        "protocol": "protocol.name",
    }
    return {
        group: str(flat.get(key))
        for group, key in chosen.items()
        if group != "protocol" or (flat.get(key) in protocols and flat.get(key) != "standard")
    }


def _derive(state: CellState, config: dict[str, Any], choice: dict[str, str], base: Any) -> dict[str, str]:
    """The groups, the grid keys, and every other key whose value is not what the groups give."""
    key = state.key
    assert isinstance(key, CellKey)
    flat, plain = flatten(config), flatten(base.resolved)
    output = Path(os.path.abspath(state.directory)).parents[len(key.path.parts) - 1]
    own = {"name": _literal(key.name), "output_dir": _literal(_short(output))}
    own |= choice | {"shot": str(key.shot), "fold": str(key.fold), "seed": str(key.seed)}
    if own["output_dir"] == _literal(plain.get("output_dir")):
        del own["output_dir"]
    for name in sorted(flat):
        if name not in _NAMED and name in plain and flat[name] != plain[name] and name != "redo":
            own[name] = _literal(flat[name])
    from fsseg.cell.key import variant_of

    if variant_of(f"{k}={v}" for k, v in own.items()) != key.variant:
        own["variant"] = key.variant
    return own


def _checked(state: CellState, own: dict[str, str], composed: Any) -> dict[str, str] | str:
    from fsseg.cell.record import open_cell

    cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    record = read_json(state.directory / "identity.json") or {}
    same_place = os.path.realpath(cell.directory) == os.path.realpath(state.directory)
    if not same_place or (record and record.get("fingerprint") != cell.fingerprint):
        return (
            "was made by another version of the code or its configuration files: run its sweep line again, or redo=true"
        )
    return own


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _literal(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_literal(v) for v in value) + "]"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
            return value
        return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    return str(value)


def report(found: Retry) -> str:
    """What `fsseg retry` prints."""
    if not found.cells:
        return "nothing to run again"
    lines = [f"{len(found.cells)} cells ended without a result:"]
    lines += [f"  {s.label}  {s.state}" + (f": {s.reason}" if s.reason else "") for s in found.cells]
    if found.lines:
        lines += ["", "run them again, from the folder they were started in:", *found.lines]
    if found.notes:
        lines += ["", "no line found for:", *(f"  {note}" for note in found.notes)]
    return "\n".join(lines)


def run_lines(lines: Sequence[str]) -> int:
    """Run the lines one after the other, here; returns how many of them failed.

    Raises:
        UserError: there is no train.py.
    """
    places = [Path("train.py"), Path(__file__).resolve().parents[2] / "train.py"]
    script = next((p for p in places if p.is_file()), None)
    if script is None:
        raise UserError("there is no train.py in this folder", "go to the checkout, or run the lines by hand")
    failed = 0
    for line in lines:
        words = shlex.split(line)
        print(f"\n$ {line}", flush=True)
        failed += subprocess.run([sys.executable, str(script), *words[2:]]).returncode != 0
    return failed
