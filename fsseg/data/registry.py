"""From a configuration to a `Source`, and what its data are on this machine: for finished cells, and for plans.

A new source is a file in `data/sources`, a schema that names it, a YAML file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsseg.cell.models import DataRecord
from fsseg.config.entry import resolved
from fsseg.config.schema import DatasetConfig, trains
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.data.faults import faults_error
from fsseg.data.folds import base_classes
from fsseg.errors import UserError

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.data.lists import FoldLists
    from fsseg.data.source import ClassIndex, Source, Split

log = logging.getLogger(__name__)

T = TypeVar("T")


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


_made: dict[Hashable, Any] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """In this block `made_once` makes each thing once: the cells of a sweep are checked one after the other."""
    global _made
    before, _made = _made, {}
    try:
        yield
    finally:
        _made = before


def made_once(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, or raises as a `UserError`; within `sharing` that of the first call with this key."""
    if _made is None:
        return make()
    if key not in _made:
        try:
            _made[key] = make()
        except UserError as error:
            _made[key] = error
    if isinstance(found := _made[key], UserError):
        raise found
    return cast(T, found)


def checked_source(cfg: Config) -> Source:
    """The data set of a configuration, after the checks that precede a run.

    Raises:
        UserError: with everything that is missing or at fault.
    """

    def make() -> Source:
        source = build_source(cfg)
        source.check(needed_splits(cfg))
        return source

    source = made_once((str(resolved(cfg.dataset)), *needed_splits(cfg)), make)
    _check_base_classes(cfg, source)
    return source


def _check_base_classes(cfg: Config, source: Source) -> None:
    """Models that know the base classes know those of the source.

    Raises:
        UserError: the source has other novel classes than its settings say.
    """
    if not cfg.backbone.base_training and cfg.model.name not in BASE_LEARNERS:
        return
    told = base_classes(cfg.dataset, cfg.fold)
    if set(told) != set(range(len(source.classes))) - set(source.novel_classes(cfg.fold)):
        raise UserError(
            f"dataset={cfg.dataset.name}: by its settings the base classes of fold {cfg.fold} are {list(told)}, by its "
            "source they are others",
            f"let NUM_CLASSES and interleaved of its settings agree with novel_classes of {type(source).__name__}, or "
            "leave backbone.base_training out",
        )


def needed_splits(cfg: Config) -> list[Split]:
    """The splits that a run of this configuration reads."""
    needed: dict[Split, bool] = {"train": cfg.train.enabled and trains(cfg), "val": cfg.eval.enabled}
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
    """What the data on this machine give runs, as far as indexes of them are kept: each is read once, none is made."""

    def __init__(self) -> None:
        self._indexes: dict[tuple[str, Split], tuple[Source, ClassIndex] | None] = {}
        self._counts: dict[tuple[Any, ...], int | None] = {}
        self._faults: dict[tuple[Any, ...], list[UserError]] = {}
        self._texts: dict[int, tuple[Any, str]] = {}

    def training_images(self, cfg: Config) -> int | None:
        """Queries of an epoch of a cell, by the rules of its fold and protocol: its training images, or their pairs.
        None if the data, or their index, are not there."""
        from fsseg.data.episodes import epoch_length

        pool = self._mark(cfg)
        if pool not in self._counts:
            try:
                found, query = self._lists(cfg, "train"), cfg.protocol.train_query
                query = "image" if cfg.model.name in BASE_LEARNERS else query
                self._counts[pool] = None if found is None else epoch_length(found, query)
            except UserError:
                self._counts[pool] = None
        return self._counts[pool]

    def faults(self, cfg: Config) -> list[UserError]:
        """Why a run could not train, or could not be scored after its training: what its lists and episodes lack."""
        splits = needed_splits(cfg)
        mark = (*self._mark(cfg), *splits)
        if mark not in self._faults:
            found: list[UserError] = []
            for split in splits:
                try:
                    self._lists(cfg, split)
                except UserError as error:
                    found.append(error)
            if (there := self._index(cfg, "train") if "train" in splits else None) is not None:
                source, train = there
                val = self._index(cfg, "val")
                shared = source.shared_images(
                    train.image_ids, source.listed("val") if val is None else val[1].image_ids
                )
                found += [faults_error(shared)] if shared else []
            self._faults[mark] = found
        return self._faults[mark]

    def _mark(self, cfg: Config) -> tuple[Any, ...]:
        held_back = (cfg.eval.base_share, cfg.eval.base_episodes, cfg.seed) if cfg.eval.every_epochs else None
        of_base = cfg.model.name in BASE_LEARNERS
        return self._text(cfg.dataset), self._text(cfg.protocol), cfg.fold, cfg.shot, held_back, of_base

    def _text(self, node: Any) -> str:
        """A part of a configuration, resolved; the cells of a grid share their nodes."""
        if id(node) not in self._texts:
            self._texts[id(node)] = node, str(resolved(node))  # the node is kept, so that its id stays its own
        return self._texts[id(node)][1]

    def _lists(self, cfg: Config, split: Split) -> FoldLists | None:
        """The lists of a split, or None without its index, and for evaluation with episodes from a file.

        Raises:
            UserError: there can be no episode; or the file is not one for this run.
        """
        from fsseg.data.episode_file import ListHead, read_episodes
        from fsseg.data.held_out import hold_back
        from fsseg.data.lists import train_lists, val_lists

        if (found := self._index(cfg, split)) is None:
            return None
        source, index = found
        novel = source.novel_classes(cfg.fold)
        if cfg.model.name in BASE_LEARNERS:  # as `fsseg.data.base_images.base_lists`, of both splits
            return train_lists(index, novel, cfg.protocol, cfg.shot, source.classes)
        if split == "val" and cfg.protocol.episodes_file is not None:
            head = ListHead(source.name, cfg.fold, cfg.shot, source.classes)
            read_episodes(Path(cfg.protocol.episodes_file), head, novel, index)
            return None
        if split == "val":
            return val_lists(index, novel, cfg.protocol, cfg.shot, source.classes)
        return hold_back(train_lists(index, novel, cfg.protocol, cfg.shot, source.classes), cfg)[0]

    def _index(self, cfg: Config, split: Split) -> tuple[Source, ClassIndex] | None:
        mark = self._text(cfg.dataset), split
        if mark not in self._indexes:
            self._indexes[mark] = _kept(cfg, split)
        return self._indexes[mark]


def _kept(cfg: Config, split: Split) -> tuple[Source, ClassIndex] | None:
    try:
        # A generated data set is made by its mere construction.
        if not all(source_class(cfg.dataset.name).layout(cfg.dataset, [split]).values()):
            return None
        source = build_source(cfg)
        index = source.kept_index(split)
        return None if index is None else (source, index)
    except (UserError, OSError):
        return None
