"""From a configuration to a `Source`, and what its data are on this machine: for finished cells, and for plans.

A new source is a file in `data/sources`, a schema that names it, a YAML file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsseg.cell.models import DataRecord
from fsseg.config.entry import resolved
from fsseg.config.schema import DatasetConfig
from fsseg.errors import UserError

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.data.source import ClassIndex, Source, Split

log = logging.getLogger(__name__)


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


class DataNow:
    """The data that are on this machine now, beside those that finished cells are of.

    Equal settings do not make equal results: a list of the same name, or the same folder, may hold something else by
    now. Data are indexed once for each of their configurations, when the first cell asks.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Split], dict[str, str | None]] = {}

    def fault(self, cfg: Config, plain: Mapping[str, Any], recorded: DataRecord) -> UserError | None:
        """Why a finished cell does not stand for its configuration any more; None if it does.

        Data that are absent, incomplete or faulty say nothing, and neither do records of earlier versions.

        Args:
            plain: the configuration of the data set, resolved.
            recorded: the data that its result is of.
        """
        changed, settings = [], str(plain)
        splits: dict[Split, str] = {"train": "training", "val": "evaluation"}
        for split, purpose in splits.items():
            fields = {f"fingerprint_{split}": "index", f"images_{split}": "sizes of the images"}
            then = {field: value for field in fields if (value := getattr(recorded, field)) is not None}
            now = self._marks(cfg, (settings, split)) if then else {}
            changed += [
                f"{purpose} data, {fields[field]}: {value} then, {now[field]} now"
                for field, value in then.items()
                if now.get(field) not in (None, value)
            ]
        if not changed:
            return None
        return UserError(
            f"done, but with other data than dataset.root={cfg.dataset.root} holds now: {'; '.join(changed)}",
            "bring the data back, keep both with name=<another name>, or train anew with redo=true",
        )

    def _marks(self, cfg: Config, key: tuple[str, Split]) -> dict[str, str | None]:
        """Fingerprints of a split by their names in `DataRecord`; {} if they cannot be known."""
        if key not in self._known:
            self._known[key], split = {}, key[1]
            try:
                # A generated data set is made by its mere construction.
                if all(source_class(cfg.dataset.name).layout(cfg.dataset, [split]).values()):
                    source = build_source(cfg)
                    self._known[key] = {
                        f"fingerprint_{split}": source.index(split).fingerprint,
                        f"images_{split}": source.images_fingerprint(split),
                    }
            except (UserError, OSError) as error:
                root, reason = cfg.dataset.root, str(error).splitlines()[0]
                log.warning("finished cells are not compared with the data of dataset.root=%s: %s", root, reason)
        return self._known[key]


class DataAtHand:
    """How many images the data on this machine give runs to train on. Each index is read once, and none is made."""

    def __init__(self) -> None:
        self._indexes: dict[str, tuple[Source, ClassIndex] | None] = {}
        self._counts: dict[tuple[Any, ...], int | None] = {}

    def training_images(self, cfg: Config) -> int | None:
        """Queries of an epoch of a cell, by the rules of its fold and protocol: its training images, or their pairs.
        None if the data, or their index, are not there."""
        settings, rules = str(resolved(cfg.dataset)), cfg.protocol
        pool = (settings, cfg.fold, cfg.shot, rules.novel_in_training, rules.list_rule, rules.min_pixels,
                rules.repeat_support, rules.train_query,
                (cfg.eval.base_share, cfg.seed) if cfg.eval.every_epochs else None)  # fmt: skip
        if pool not in self._counts:
            if settings not in self._indexes:
                self._indexes[settings] = _kept(cfg)
            found = self._indexes[settings]
            self._counts[pool] = None if found is None else _count(cfg, *found)
        return self._counts[pool]


def _kept(cfg: Config) -> tuple[Source, ClassIndex] | None:
    try:
        # A generated data set is made by its mere construction.
        if not all(source_class(cfg.dataset.name).layout(cfg.dataset, ["train"]).values()):
            return None
        source = build_source(cfg)
        index = source.kept_index("train")
        return None if index is None else (source, index)
    except (UserError, OSError):
        return None


def _count(cfg: Config, source: Source, index: ClassIndex) -> int | None:
    from fsseg.data.episodes import epoch_length
    from fsseg.data.held_out import hold_back
    from fsseg.data.lists import train_lists

    try:
        novel = source.novel_classes(cfg.fold)
        lists = train_lists(index, novel, cfg.protocol, cfg.shot, source.classes)
        return epoch_length(hold_back(lists, cfg)[0], cfg.protocol.train_query)
    except UserError:
        return None
