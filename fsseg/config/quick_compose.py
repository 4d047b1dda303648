"""Composes the cells of a grid quickly: Hydra once for each choice of groups, then only the plain overrides anew.

Composing is what a sweep over finished cells spends its time on: Hydra reads every YAML file again for every cell.
What the files give depends on the group choices (`dataset=`, `backbone=`, ...) alone; the other overrides are applied
on top of that, by the same function that Hydra itself uses. `fsseg.sweep.sweeper` is the caller. No torch here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.config.hydra_internals import ConfigLoaderImpl


class QuickComposer:
    """Composes one cell after the other.

    Args:
        loader: Hydra's.
        master: the configuration of the sweep itself, with its `hydra` node.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader = loader
        self._master = master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}
        self._repository = None
        if isinstance(loader, ConfigLoaderImpl):
            hydra_overrides = list(OmegaConf.to_container(master.hydra.overrides.hydra))  # type: ignore[arg-type]
            # Brings in `hydra.searchpath`, which may hold more groups.
            _, self._repository = loader._parse_overrides_and_create_caching_repo(
                master.hydra.job.config_name, hydra_overrides
            )

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one cell, without its `hydra` node.

        Raises:
            HydraException: as Hydra words it.
            OmegaConfBaseException: likewise.
        """
        if self._repository is None:
            return self._slowly(overrides)
        try:
            parsed = [self._parse(line) for line in overrides]
            choices = tuple(line for line, override in zip(overrides, parsed) if self._chooses(override))
            rest = [override for override in parsed if not self._chooses(override)]
            if choices not in self._bases:
                self._bases[choices] = self._slowly(choices)
            cfg = copy.deepcopy(self._bases[choices])
            ConfigLoaderImpl._apply_overrides_to_config(rest, cfg)
            return cfg
        except (HydraException, OmegaConfBaseException):
            return self._slowly(overrides)  # Hydra has the last word on what is wrong, and how it says so

    def _slowly(self, overrides: Sequence[str]) -> DictConfig:
        cfg = self._loader.load_sweep_config(self._master, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self._parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _chooses(self, override: Override) -> bool:
        """Whether an override picks from a group, by the rule of Hydra's defaults list."""
        key = override.key_or_group
        if key not in self._groups:
            assert self._repository is not None
            self._groups[key] = self._repository.group_exists(key)
        return self._groups[key] and not isinstance(override.value(), dict)
