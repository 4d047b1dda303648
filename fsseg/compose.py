"""Compositions without `hydra.main`: one cell, or every cell of a `-m` line, as `train.py` would compose them.

The side command calls this: `fsseg plan` for grids, `fsseg retry` to find the line of a finished run directory, the data
commands for one configuration. The files under `conf/` stand beside the package in a checkout, and inside it in a wheel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.config import Config
from fsseg.entry import explain, typed  # registers the schemas
from fsseg.errors import UserError


@dataclass(frozen=True)
class Composed:
    """One composed configuration.

    Attributes:
        overrides: the part of the line that belongs to this cell, as Hydra's sweeper hands it to a job.
        task_overrides: those of them that are not Hydra's own; they name the cell's variant.
        config: without the `hydra` node.
    """

    overrides: tuple[str, ...]
    task_overrides: tuple[str, ...]
    config: DictConfig

    @property
    def cfg(self) -> Config:
        return typed(self.config)

    @property
    def resolved(self) -> dict[str, Any]:
        value = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(value, dict)
        return {str(k): v for k, v in value.items()}


def config_folder() -> Path:
    """Where the configuration files are.

    Raises:
        UserError: if the installation has none.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "_conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configuration files beside or in {package}", "install fsseg again, or run from a checkout")


class Composer:
    """Composes against one set of configuration files; made by `composer`."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def one(self, overrides: Sequence[str]) -> Composed:
        """One configuration.

        Raises:
            UserError: a fault of the line, in the words of `train.py`.
        """
        with _explained():
            return self._composed(
                overrides, self._loader.load_configuration("train", list(overrides), run_mode=RunMode.RUN)
            )

    def expand(self, overrides: Sequence[str]) -> list[tuple[str, ...]]:
        """The jobs of `train.py -m <overrides>`, each as its own overrides, in Hydra's order.

        Raises:
            UserError: a fault of the line, in the words of `train.py`.
        """
        return self._expand(overrides)[1]

    def grid(self, overrides: Sequence[str]) -> list[Composed | UserError]:
        """Every job of `train.py -m <overrides>` composed; a job that cannot be is its error instead.

        Raises:
            UserError: a fault of the line as a whole.
        """
        master, jobs = self._expand(overrides)
        return self.jobs(master, jobs)

    def jobs(self, master: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Composed | UserError]:
        """The configurations that Hydra's `load_sweep_config(master, job)` makes, without doing each from scratch.

        Hydra settles the groups (`dataset=coco20i`) first and then sets plain values (`fold=2`) on the outcome. So jobs
        that choose the same groups share the first part: 8 compositions instead of 32 for the paper's grid.
        """
        parser = OverridesParser.create(config_loader=self._loader)
        settled: dict[tuple[str, ...], DictConfig | UserError] = {}
        found: list[Composed | UserError] = []
        for job in jobs:
            parsed = parser.parse_overrides(list(job))
            values = [o for o in parsed if isinstance(o.value(), dict) or not self._is_group(o.key_or_group)]
            plain = {id(o) for o in values}
            groups = tuple(str(o.input_line) for o in parsed if id(o) not in plain)
            try:
                if groups not in settled:
                    try:
                        settled[groups] = self._loader.load_sweep_config(master, list(groups))
                    except (HydraException, OmegaConfBaseException) as error:
                        settled[groups] = explain(error)
                if isinstance(base := settled[groups], UserError):
                    found.append(base)
                    continue
                config = copy.deepcopy(base)
                ConfigLoaderImpl._apply_overrides_to_config(values, config)
            except (HydraException, OmegaConfBaseException) as error:
                found.append(explain(error))
                continue
            task = [str(o.input_line) for o in parsed if not o.is_hydra_override()]
            found.append(self._composed(job, config, task))
        return found

    def _is_group(self, key: str) -> bool:
        return bool(self._loader.repository.group_exists(key))

    def _expand(self, overrides: Sequence[str]) -> tuple[DictConfig, list[tuple[str, ...]]]:
        with _explained():
            master = self._loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN)
            # What an experiment file sweeps stands under hydra.sweeper.params; the command line wins, as in Hydra.
            params = OmegaConf.select(master, "hydra.sweeper.params") or {}
            arguments = [f"{key}={value}" for key, value in params.items()] + list(master.hydra.overrides.task)
            parsed = OverridesParser.create(config_loader=self._loader).parse_overrides(arguments)
            return master, [tuple(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]

    @staticmethod
    def _composed(overrides: Sequence[str], config: DictConfig, task: Sequence[str] | None = None) -> Composed:
        task = tuple(config.hydra.overrides.task if task is None else task)
        with open_dict(config):
            del config["hydra"]
        return Composed(tuple(overrides), task, config)


@contextmanager
def composer() -> Iterator[Composer]:
    """A `Composer` over `conf/`; Hydra's global state is put back afterwards."""
    with initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"):
        yield Composer(GlobalHydra.instance().config_loader())


def compose(overrides: Sequence[str]) -> Composed:
    """One configuration from an override line; see `Composer.one`."""
    with composer() as c:
        return c.one(overrides)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise explain(error) from None
