"""A resolved configuration as it was recorded, made into what `fsseg.run.run` takes: no YAML file is read.

Jobs of a sweep run the configuration that was recorded when they were submitted (`fsseg.cell.sweeps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsseg.config.entry import explained
from fsseg.config.schema import BackboneConfig, Config, DatasetConfig, MethodConfig, ProtocolConfig
from fsseg.errors import UserError


def from_recorded(plain: Mapping[str, Any]) -> DictConfig:
    """The configuration whose resolved values these are, made of the schemas as composing makes it.

    Raises:
        UserError: a setting is missing, unknown, or of another type: they were recorded by other code.
    """
    config = OmegaConf.structured(Config)
    known = {field.name for field in fields(Config)}
    try:
        if unlike := known ^ set(plain):
            raise UserError(f"{', '.join(sorted(unlike))} is known on one side only")
        with explained():
            for name, base in (("dataset", DatasetConfig), ("backbone", BackboneConfig), ("model", MethodConfig)):
                config[name] = base.named(plain[name]["name"])  # type: ignore[attr-defined]
            config.protocol = ProtocolConfig
            merged = OmegaConf.merge(config, OmegaConf.create(dict(plain)))
    except (UserError, KeyError, TypeError) as error:
        what = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the recorded configuration does not fit this version of the code ({what})",
            "go back to the commit that it was recorded with, or start its line again",
        ) from None
    assert isinstance(merged, DictConfig)
    return merged
