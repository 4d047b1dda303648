"""Compositions: one cell, or every cell of a `-m` line, as `train.py` would compose them.

The sweeper, `fsseg plan` and `fsseg retry` compose grids here, the data commands one configuration. The files under
`conf/` lie beside the package in a checkout and inside it in a wheel. No torch here.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.config import machine
from fsseg.config.entry import explained, resolved, typed  # registers the schemas
from fsseg.config.files import check_file
from fsseg.config.hydra_internals import also_search, apply_overrides, group_repository, look_before_reading, split_line
from fsseg.config.line import as_written
from fsseg.config.schema import Config
from fsseg.config.series import Series, sets_a_value
from fsseg.errors import UserError


@dataclass(frozen=True)
class Composed:
    """One composed configuration, without the `hydra` node.

    Attributes:
        overrides: the part of the line that belongs to this cell, as Hydra's sweeper hands it to a job.
        task_overrides: those of them that are not Hydra's own, with `${...}` resolved; they name the cell's variant.
        cfg: for reading; a cell of a grid shares the nodes that are the same with others.
    """

    overrides: tuple[str, ...]
    task_overrides: tuple[str, ...]
    cfg: Config

    @property
    def config(self) -> DictConfig:
        """What `fsseg.run.run` takes."""
        return self.cfg if isinstance(self.cfg, DictConfig) else OmegaConf.structured(self.cfg)

    @property
    def resolved(self) -> dict[str, Any]:
        """As plain mappings and lists, its interpolations resolved."""
        return resolved(self.cfg)


def config_folder() -> Path:
    """Where the configuration files are.

    Raises:
        UserError: if the installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "_conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configuration files beside or in {package}", "install fsseg again, or run from a checkout")


class Composer:
    """Composes one cell after the other, quickly.

    Hydra reads every YAML file again for every cell. What the files give depends on the group choices (`dataset=`,
    `backbone=`, ...) alone, so each set of choices is composed once. The other overrides are applied on top, by the
    function that Hydra itself uses. Cells whose overrides have the same keys are made from one another (`Series`).

    Args:
        loader: Hydra's.
        master: configuration of the sweep that the cells belong to, with its `hydra` node; None takes `train.py -m`.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig | None = None) -> None:
        self._loader = loader
        self._given = master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._series: dict[tuple[tuple[str, ...], tuple[str, ...]], Series] = {}
        self._groups: dict[str, bool] = {}

    @cached_property
    def master(self) -> DictConfig:
        """The configuration of the sweep as a whole, with its `hydra` node."""
        return self._given or self._loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)

    @cached_property
    def _repository(self) -> Any:
        return group_repository(self._loader, self.master)

    def one(self, overrides: Sequence[str]) -> Composed:
        """One configuration, as `train.py` without -m.

        Raises:
            UserError: a fault of the line, in the words of `train.py`.
        """
        with explained():
            overrides = as_written(overrides)
            config = self._loader.load_configuration("train", overrides, run_mode=RunMode.RUN)
            # Reading them resolves them: an interpolation to nowhere is told here.
            return Composed(tuple(overrides), tuple(config.hydra.overrides.task), typed(_without_hydra(config)))

    def grid(self, overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """Every job of `train.py -m <overrides>` and what it composes to; a faulty job has its error instead.

        Raises:
            UserError: a fault of the line as a whole.
        """
        return self.of_line(overrides).grid_of_master()

    def of_line(self, overrides: Sequence[str]) -> Composer:
        """A composer whose master configuration is that of `train.py -m <overrides>`.

        Raises:
            UserError: a fault of the line as a whole.
        """
        with explained():
            master = self._loader.load_configuration("train", as_written(overrides), run_mode=RunMode.MULTIRUN)
        return Composer(self._loader, master)

    def grid_of_master(self) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """As `grid`, for the line from which Hydra made this composer's master configuration."""
        with explained():
            # An experiment file names what it sweeps under hydra.sweeper.params; the command line wins, as in Hydra.
            # `${...}` in either is for each cell to resolve: here it would take the values of the defaults.
            params = _unresolved(OmegaConf.select(self.master, "hydra.sweeper.params")) or {}
            OmegaConf.to_container(self.master.hydra.sweeper, resolve=True)  # as Hydra does to make a sweeper of it
            line = _unresolved(self.master.hydra.overrides.task)
            jobs = split_line(self._loader, [*(f"{key}={value}" for key, value in params.items()), *line])
        if not jobs:
            raise UserError(
                "this line has no cells: a glob(...) in it matches no choice", "give the choices themselves"
            )
        return self.each(jobs)

    def each(self, jobs: Sequence[Sequence[str]]) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """Each job with what its overrides compose to, or with its error."""
        found: list[tuple[tuple[str, ...], Composed | UserError]] = []
        for job in map(tuple, jobs):
            try:
                with explained():
                    cfg = self._quickly(job) or typed(self.compose(job))
                    task = tuple(o for o in job if not o.startswith(("hydra.", "hydra/")))
                    found.append((job, Composed(job, _resolved_in(cfg, task), cfg)))
            except UserError as error:
                found.append((job, error))
        return found

    def swept(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """The overrides of one job as a `-m` line hands them on: Hydra writes every value anew (`False` for `false`).

        Raises:
            UserError: they are not in Hydra's grammar.
        """
        with explained():
            return split_line(self._loader, as_written(overrides))[0]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one job, without its `hydra` node.

        Raises:
            HydraException: as Hydra words it.
            OmegaConfBaseException: likewise.
        """
        if self._repository is None:
            return self._slowly(overrides)
        try:
            choices = tuple(line for line in overrides if self._chooses(line))
            if choices not in self._bases:
                self._bases[choices] = self._slowly(choices)
            cfg = copy.deepcopy(self._bases[choices])
            apply_overrides([self._parse(line) for line in overrides if not self._chooses(line)], cfg)
            return cfg
        except (HydraException, OmegaConfBaseException):
            return self._slowly(overrides)  # Hydra itself composes it, for its own error message

    def _quickly(self, overrides: Sequence[str]) -> Config | None:
        """The configuration of one job, made from that of another one with the same keys; None if it cannot be."""
        try:
            plain = [self._parse(line) for line in overrides if not self._chooses(line)]
            if self._repository is None or not all(map(sets_a_value, plain)):
                return None
            choices = tuple(line for line in overrides if self._chooses(line))
            mark = choices, tuple(str(override.key_or_group) for override in plain)
            if mark not in self._series:
                self._series[mark] = Series(self.compose(overrides), mark[1])
            return self._series[mark].one(plain)
        except (HydraException, OmegaConfBaseException):
            return None

    def _slowly(self, overrides: Sequence[str]) -> DictConfig:
        return _without_hydra(self._loader.load_sweep_config(self.master, list(overrides)))

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self._parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _chooses(self, line: str) -> bool:
        """Whether an override picks from a group, by the rule of Hydra's defaults list."""
        override = self._parse(line)
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = self._repository.group_exists(key)
        return self._groups[key] and not isinstance(override.value(), dict)


@contextmanager
def composer(config_dir: str | None = None) -> Iterator[Composer]:
    """A `Composer` over `conf/`; Hydra's global state is put back afterwards.

    Args:
        config_dir: a further folder of configuration files, as `--config-dir` gives it to `train.py`.

    Raises:
        UserError: there is no such folder, or machine.yaml is faulty.
    """
    with initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"):
        look_before_reading(check_file)
        machine.install(multirun=True)
        loader = GlobalHydra.instance().config_loader()
        if config_dir is not None:
            if not os.path.isdir(config_dir):
                raise UserError(f"--config-dir {config_dir}: there is no such folder", "give a folder of YAML files")
            also_search(loader, config_dir)
        yield Composer(loader)


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Composed:
    """One configuration from an override line; see `Composer.one` and `composer`."""
    with composer(config_dir) as c:
        return c.one(overrides)


def _unresolved(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _resolved_in(cfg: Config, task: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides of a cell with `${...}` resolved in its own configuration, as Hydra shows them to its job."""
    if not any("${" in override for override in task):
        return task
    return tuple(OmegaConf.create({**_unresolved(cfg), "hydra": list(task)}).hydra)


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config
