"""What belongs to a machine and not to an experiment: where data lie, and how its sweeps are launched.

Three places say where a data set lies; the first that does wins: `data.roots.<name>=` on the line, the environment
variable `FSSEG_DATA`, the file `machine.yaml` in the user's configuration folder. Without any it is `data/`. The files
under `conf/dataset` ask with `${data_root:<name>}`. `machine.yaml` also has defaults of launchers;
`fsseg.config.entry.launch` and `fsseg.config.compose` install them before anything is composed. Nothing here is part of
a cell's name or fingerprint.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from fsseg.config.constraints import FILE_PATH, NAME, PLAIN_TEXT, shown
from fsseg.config.files import check_file
from fsseg.config.schema import DatasetConfig
from fsseg.errors import UserError
from fsseg.process.files import read_yaml

LAUNCHERS = ("local", "slurm")
"""The presets under `conf/hydra/launcher` that take defaults from here."""

DEFAULT, LINE = "default", "the line"
"""What else says where something is: nobody, or the line and the files that it names."""

_KEYS = ("data", "roots", "launcher", "launchers")


@dataclass(frozen=True)
class Machine:
    """What `machine.yaml` says.

    Attributes:
        file: where it is, or would be; None if `FSSEG_MACHINE` is empty: there is none.
        is_there: whether it was read.
        data: the folder that holds all data sets.
        roots: folder of a data set, by name.
        launcher: what a `-m` line without `hydra/launcher=` takes.
        launchers: settings of each launcher that a line leaves out.
    """

    file: Path | None
    is_there: bool = False
    data: str | None = None
    roots: dict[str, str] = field(default_factory=dict)
    launcher: str | None = None
    launchers: dict[str, dict[str, Any]] = field(default_factory=dict)


def machine() -> Machine:
    """What `machine.yaml` says now.

    Raises:
        UserError: it cannot be read, or holds something else than it may.
    """
    named = os.environ.get("FSSEG_MACHINE")
    if named == "":
        return Machine(None)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    path = (Path(named) if named else home / "fsseg" / "machine.yaml").expanduser().absolute()
    try:
        stamp = path.stat()
    except OSError as error:
        if named or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            what = f"{path}: cannot be read ({error.strerror})"
            raise UserError(what, "mend FSSEG_MACHINE, or the permissions of the file") from None
        return Machine(path)
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int, size: int) -> Machine:
    """Read once as long as size and time stay: every cell of a grid asks."""
    try:
        check_file(str(path))
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "mend its permissions") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}", "mend the file: docs/data.md has an example") from None
    content = _mapping(path, "the file", content or {}, _KEYS)
    roots = _mapping(path, "roots", content.get("roots") or {}, tuple(DatasetConfig.choices()))
    launchers = _mapping(path, "launchers", content.get("launchers") or {}, LAUNCHERS)
    launcher = content.get("launcher")
    if launcher is not None and (not isinstance(launcher, str) or not NAME.holds(launcher)):
        raise UserError(f"{path}: launcher: {shown(launcher)} is no name", "write e.g. launcher: slurm")
    return Machine(
        path, True, _folder(path, "data", content.get("data")),
        {name: folder for name, root in roots.items() if (folder := _folder(path, f"roots.{name}", root))},
        launcher, {name: _mapping(path, f"launchers.{name}", node or {}) for name, node in launchers.items()},
    )  # fmt: skip


def _mapping(path: Path, place: str, value: Any, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A part of the file that has keys, of which all are known."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {place} is {shown(value)}, and must be keys with values", "write `key: value` lines")
    for key in value if known is not None else ():
        if key not in (known or ()):
            close = difflib.get_close_matches(key, known or (), n=1)
            name = key if place == "the file" else f"{place}.{key}"
            fix = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known or ())}"
            raise UserError(f"{path}: {shown(name)}: there is no such key", fix)
    return value


def _folder(path: Path, key: str, value: Any) -> str | None:
    """A folder that the file names; a relative one would mean another with every folder that a line is started in."""
    if value is None:
        return None
    if not isinstance(value, str) or not (FILE_PATH.holds(value) and PLAIN_TEXT.holds(value)):
        raise UserError(f"{path}: {key}: {shown(value)} is no folder", f"write e.g. {key.rpartition('.')[2]}: /data")
    if not os.path.isabs(os.path.expanduser(value)):
        raise UserError(f"{path}: {key}: {shown(value)} is a relative path", "begin it with / or ~/")
    return value


def candidates(name: str) -> list[tuple[str, str]]:
    """Where a data set may lie if the line says nothing, and what says so; the first counts.

    Raises:
        UserError: as `machine`.
    """
    known = DatasetConfig.choices().get(name)
    below = (known.FOLDER if known is not None else "") or name
    found = []
    if folder := os.environ.get("FSSEG_DATA"):
        found.append((os.path.join(folder, below), "FSSEG_DATA"))
    here = machine()
    if name in here.roots:
        found.append((here.roots[name], f"{here.file}"))
    if here.data is not None:
        found.append((os.path.join(here.data, below), f"{here.file}"))
    return [*found, (os.path.join("data", below), DEFAULT)]


def data_root(name: str, *, _root_: DictConfig) -> str:
    """`${data_root:pascal5i}`: where the data set lies on this machine."""
    given = OmegaConf.select(_root_, f"data.roots.{name}", default=None)
    return str(given) if given is not None else candidates(name)[0][0]


def set_by(name: str, root: str) -> str:
    """What says that a data set lies there: FSSEG_DATA, the path of machine.yaml, `DEFAULT` or `LINE`."""
    path, by = candidates(name)[0]
    return by if path == root else LINE


def install(multirun: bool) -> None:
    """Let Hydra find the machine's launcher defaults: below the files of an experiment, above the presets.

    Args:
        multirun: whether its launcher stands in for Hydra's `basic`, too. Without `-m` nothing is launched.

    Raises:
        UserError: as `machine`.
    """
    here = machine()
    store = ConfigStore.instance()
    for name, settings in here.launchers.items():
        known = tuple(map(str, store.load(f"hydra/launcher/fsseg_{name}.yaml").node))  # of Hydra's plugins
        _mapping(here.file or Path(), f"launchers.{name}", settings, known)
    for name in LAUNCHERS:
        store.store(group="hydra/launcher", name=f"machine_{name}", node=here.launchers.get(name, {}))
    node = HydraConf()
    if multirun and here.launcher is not None:
        node.defaults = [{"launcher": here.launcher} if "launcher" in entry else entry for entry in node.defaults]
    store.store(group="hydra", name="config", node=node, provider="hydra")


def fault_in_file(text: str) -> UserError | None:
    """A fault of composition in the words of the file, if a launcher default of it is the cause.

    Args:
        text: what Hydra says.
    """
    if (match := re.search(r"Could not find 'hydra/launcher/([^']+)'", text)) and match[1] == machine().launcher:
        return UserError(f"{machine().file}: launcher: {match[1]}: there is no such launcher", "choose local or slurm")
    if (match := re.search(r"In 'hydra/launcher/machine_(\w+)'[^\n]*\n([^\n]*)", text)) is None:
        return None
    name, reason = match.groups()
    key = re.search(r"full_key: hydra\.launcher\.(\S+)", text)
    what = f"{machine().file}: launchers.{name}{f'.{key[1]}' if key else ''}: {reason.strip()}"
    return UserError(what, f"`python train.py hydra/launcher={name} --cfg hydra -p hydra.launcher` lists the settings")


def register() -> None:
    """Register the resolver, and what the presets of launchers name; `install` fills it."""
    for name in LAUNCHERS:
        ConfigStore.instance().store(group="hydra/launcher", name=f"machine_{name}", node={})
    OmegaConf.register_new_resolver("data_root", data_root, replace=True)
