"""From a configuration to a `Source`. A new one is a file in `data/sources`, a schema that names it, a YAML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsseg.config.schema import DatasetConfig
from fsseg.errors import UserError

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.data.source import Source, Split


def source_class(name: str) -> type[Source]:
    """The class behind `dataset.name`; it takes the data set's configuration, `cfg.dataset`.

    Raises:
        UserError: an unknown name.
    """
    found: type[Source] = DatasetConfig.target(name)
    return found


def build_source(cfg: Config) -> Source:
    """The data set of a configuration.

    Raises:
        UserError: if its folder or annotations are missing or broken.
    """
    return source_class(cfg.dataset.name)(cfg.dataset)  # type: ignore[call-arg]  # a subclass takes only this


def needed_splits(cfg: Config) -> list[Split]:
    """The splits that a run of this configuration reads."""
    needed: dict[Split, bool] = {"train": cfg.train.enabled, "val": cfg.eval.enabled}
    return [split for split, wanted in needed.items() if wanted]


def folder_faults(cfg: Config) -> list[UserError]:
    """What is missing on disk, found by looking at folders only."""
    try:
        return source_class(cfg.dataset.name).check_folder(cfg.dataset, needed_splits(cfg))
    except UserError as error:
        return [error]
