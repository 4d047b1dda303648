"""The methods. A further one is a file here with a `FewShotModel`, a line in `METHODS`, a YAML in `conf/method/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsseg.errors import UserError
from fsseg.model.abcb import Abcb
from fsseg.model.base import FewShotModel, Prediction
from fsseg.model.baseline import Baseline
from fsseg.model.prototype import Prototype

if TYPE_CHECKING:
    from fsseg.config.schema import Config

METHODS: dict[str, type[FewShotModel]] = {"abcb": Abcb, "baseline": Baseline, "prototype": Prototype}
"""Name (config key `model.name`) -> class."""


def build_model(cfg: Config) -> FewShotModel:
    """The method of `cfg`, with its backbone, on the CPU. Random weights come from torch's global generator.

    Raises:
        UserError: an unknown method or backbone, or weights that cannot be loaded.
    """
    if cfg.model.name not in METHODS:
        raise UserError(f"model.name={cfg.model.name} is unknown", f"choose method= one of: {', '.join(METHODS)}")
    return METHODS[cfg.model.name].from_config(cfg)


__all__ = ["METHODS", "FewShotModel", "Prediction", "build_model"]
