"""Compositions without `hydra.main`: one cell, or every cell of a `-m` line, as `train.py` would compose them.

The side command calls this: `fsseg plan` for grids, `fsseg retry` to find the line of a run directory, the data
commands for one configuration. The files under `conf/` stand beside the package in a checkout, inside it in a wheel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.config.entry import explain, typed  # registers the schemas
from fsseg.config.hydra_internals import BasicSweeper
from fsseg.config.schema import Config
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
    package = Path(__file__).resolve().parents[1]
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
            config = self._loader.load_configuration("train", list(overrides), run_mode=RunMode.RUN)
        task = tuple(config.hydra.overrides.task)
        with open_dict(config):
            del config["hydra"]
        return Composed(tuple(overrides), task, config)

    def grid(self, overrides: Sequence[str]) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """Every job of `train.py -m <overrides>` and what it composes to; a job that cannot be has its error instead.

        Raises:
            UserError: a fault of the line as a whole.
        """
        return self.grid_of(self._master(overrides))

    def grid_of(self, master: DictConfig) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """As `grid`, from the configuration that Hydra has made of the line, with its `hydra` node."""
        return self._each(master, self._jobs(master))

    def each(self, jobs: Sequence[Sequence[str]]) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        """Any number of single configurations, each with its own overrides; quicker than calls of `one`."""
        master = self._loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        return self._each(master, [tuple(job) for job in jobs])

    def _each(
        self, master: DictConfig, jobs: Sequence[tuple[str, ...]]
    ) -> list[tuple[tuple[str, ...], Composed | UserError]]:
        from fsseg.config.quick_compose import QuickComposer

        fast = QuickComposer(self._loader, master)
        found: list[tuple[tuple[str, ...], Composed | UserError]] = []
        for job in jobs:
            try:
                task = tuple(o for o in job if not o.startswith(("hydra.", "hydra/")))
                found.append((job, Composed(job, task, fast.compose(job))))
            except (HydraException, OmegaConfBaseException) as error:
                found.append((job, explain(error)))
        return found

    def _master(self, overrides: Sequence[str]) -> DictConfig:
        with _explained():
            return self._loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN)

    def _jobs(self, master: DictConfig) -> list[tuple[str, ...]]:
        with _explained():
            # What an experiment file sweeps stands under hydra.sweeper.params; the command line wins, as in Hydra.
            params = OmegaConf.select(master, "hydra.sweeper.params") or {}
            arguments = [f"{key}={value}" for key, value in params.items()] + list(master.hydra.overrides.task)
            parsed = OverridesParser.create(config_loader=self._loader).parse_overrides(arguments)
            return [tuple(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


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
