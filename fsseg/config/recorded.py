"""A resolved configuration as it was recorded, made into what `fsseg.run.run` takes: no YAML file is read.

Jobs of a sweep run the configuration that was recorded when they were submitted (`fsseg.cell.sweeps`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsseg.config.entry import explained
from fsseg.config.history import ADDED, ADDED_GROUPS, ADDED_TO, RETIRED
from fsseg.config.schema import NEUTRAL_KEYS, BackboneConfig, Config, DatasetConfig, MethodConfig, ProtocolConfig
from fsseg.errors import UserError


def from_recorded(plain: Mapping[str, Any]) -> DictConfig:
    """The configuration whose resolved values these are, made of the schemas as composing makes it.

    A setting that came later has the value that the recorded run had without it (`fsseg.config.history`), or its
    default if it changes no number.

    Raises:
        UserError: a setting is missing, unknown, or of another type: they were recorded by other code.
    """
    config = OmegaConf.structured(Config)
    known = {field.name for field in fields(Config)}
    try:
        later = {*ADDED_GROUPS, *(key.removesuffix(".") for key in NEUTRAL_KEYS)}
        if unlike := (known - later) - set(plain) | set(plain) - known:
            raise UserError(f"{', '.join(sorted(unlike))} is known on one side only")
        with explained():
            for name, base in (("dataset", DatasetConfig), ("backbone", BackboneConfig), ("model", MethodConfig)):
                config[name] = base.named(plain[name]["name"])  # type: ignore[attr-defined]
            config.protocol = ProtocolConfig
            merged = OmegaConf.merge(config, OmegaConf.create(_of_today(plain, config)))
    except (UserError, KeyError, TypeError) as error:
        what = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the recorded configuration does not fit this version of the code ({what})",
            "go back to the commit that it was recorded with, or start its line again",
        ) from None
    assert isinstance(merged, DictConfig)
    return merged


def _of_today(plain: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """Recorded values, without the settings that are gone, with those that came later as every earlier run had them.

    Args:
        config: of the schemas; says which settings there are.
    """
    found = copy.deepcopy(dict(plain))
    for key, only in RETIRED.items():
        group, _, name = key.partition(".")
        if isinstance(values := found.get(group), dict) and values.get(name) == only:
            del values[name]
    for key, value in {**ADDED, **ADDED_TO.get(found["dataset"]["name"], {})}.items():
        group, _, name = key.partition(".")
        known = name in list(config[group])  # not every backbone has a stem
        if known and isinstance(values := found.get(group), dict):
            values.setdefault(name, copy.deepcopy(value))
    return found
