"""The methods. A new one is a file here with a `FewShotModel`, a schema that names it, a YAML in `conf/method/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsseg.config.schema import MethodConfig
from fsseg.model.base import FewShotModel, Prediction

if TYPE_CHECKING:
    from fsseg.config.schema import Config


def method_class(name: str) -> type[FewShotModel]:
    """The class behind `model.name`.

    Raises:
        UserError: an unknown name.
    """
    found: type[FewShotModel] = MethodConfig.target(name)
    return found


def build_model(cfg: Config) -> FewShotModel:
    """The method of `cfg`, with its backbone, on the CPU. Random weights come from torch's global generator.

    Raises:
        UserError: an unknown method or backbone, or weights that cannot be loaded.
    """
    return method_class(cfg.model.name).from_config(cfg)


__all__ = ["FewShotModel", "Prediction", "build_model", "method_class"]
