"""Episodes as tensors: plans (what to load), the data set that builds one episode, and the loaders of batches.

`fsseg.engine` makes the plans and iterates over the loaders. The batches depend on the configuration and the data
alone, not on the number of worker processes, nor on the step at which loading starts.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsseg.config.entry import plain
from fsseg.config.schema import Config
from fsseg.data.episode_file import ListHead, read_episodes
from fsseg.data.episodes import EpisodeSampler, episodes_fingerprint, evaluation_episodes
from fsseg.data.held_out import hold_back
from fsseg.data.images import reduction
from fsseg.data.lists import FoldLists, eligible_pairs, images_needed, train_lists, val_lists
from fsseg.data.pixels import Sample
from fsseg.data.source import Source, Split
from fsseg.data.transforms import EvalTransform, TrainTransform
from fsseg.data.types import Batch, Episode, EpisodeSpec, Tasks, collate
from fsseg.data.visits import Load, Visit
from fsseg.errors import UserError
from fsseg.process.signals import shield_worker


@dataclass(frozen=True)
class TrainingPlan:
    """What training draws from.

    Attributes:
        sampler: episode number -> `EpisodeSpec`; len(sampler) is N, the episodes of an epoch.
        batch_size: B; step t holds the episodes t * B .. t * B + B - 1.
        ignore_classes: classes whose pixels are 255 in training masks (`protocol.novel_in_training=ignore`).
        index_fingerprint: of the training split's index.
        held_out: number of images held back from training, and `validation` the episodes of them, if there are any.
        novel: episodes of novel classes that a checkpoint is chosen by, if one is (`train.select`).
    """

    sampler: EpisodeSampler
    batch_size: int
    ignore_classes: tuple[int, ...]
    index_fingerprint: str
    held_out: int = 0
    validation: EvaluationPlan | None = None
    novel: EvaluationPlan | None = None

    @property
    def lists(self) -> FoldLists:
        return self.sampler.lists

    @property
    def num_images(self) -> int:
        """Training images; under `protocol.train_query=image` each is the query once an epoch."""
        return len(self.lists.images)

    @property
    def steps_per_epoch(self) -> int:
        """N // B, at least 1. Episodes run on across epochs: no episode is skipped, no batch is smaller."""
        return max(1, len(self.sampler) // self.batch_size)

    def dataset(self, source: Source, specs: Sequence[EpisodeSpec] | StepSpecs, cfg: Config) -> EpisodeDataset:
        """What builds the episodes of these specs."""
        return EpisodeDataset(source, "train", specs, train_transform(cfg), cfg.seed, self.ignore_classes)


@dataclass(frozen=True)
class EvaluationPlan:
    """What evaluation visits.

    Attributes:
        episodes: evaluation seed -> its episodes.
        classes: the fold's novel classes that have the images for an episode; the score is their mean.
        missing_classes: the novel classes with too few images for an episode; the result is partial if there are any.
        fingerprint: of the episodes.
        index_fingerprint: of the split's index.
        split: of the images.
        ignore_classes: classes whose pixels are 255 in the truth, as in training.
    """

    episodes: dict[int, list[EpisodeSpec]]
    classes: tuple[int, ...]
    missing_classes: tuple[int, ...]
    fingerprint: str
    index_fingerprint: str
    split: Split = "val"
    ignore_classes: tuple[int, ...] = ()

    def beginning(self, number: int | None) -> EvaluationPlan:
        """The first so many episodes of the first seed, None for all, and of the classes those that they draw."""
        seed, specs = next(iter(self.episodes.items()))
        episodes = {seed: specs[:number]}
        drawn = {spec.class_id for spec in episodes[seed]}
        return replace(
            self,
            episodes=episodes,
            classes=tuple(c for c in self.classes if c in drawn),
            missing_classes=tuple(c for c in (*self.classes, *self.missing_classes) if c not in drawn),
            fingerprint=episodes_fingerprint(episodes),
        )


def undrawn_classes(plan: EvaluationPlan) -> list[int]:
    """Those of the plan's classes that some seed draws no episode of."""
    drawn = [{spec.class_id for spec in specs} for specs in plan.episodes.values()]
    return [c for c in plan.classes if not all(c in classes for classes in drawn)]


def training_plan(source: Source, cfg: Config) -> TrainingPlan:
    """Lists and sampler of the base classes, and with `eval.every_epochs` the episodes to validate on.

    Raises:
        UserError: faulty annotations, nothing to train on, or nothing to validate on.
    """
    cfg = plain(cfg)
    index = source.index("train")
    novel = source.novel_classes(cfg.fold)
    every = train_lists(index, novel, cfg.protocol, cfg.shot, source.classes)
    lists, held_out = hold_back(every, cfg)
    shift = _background_shift(cfg)
    sampler = EpisodeSampler(lists, cfg.shot, cfg.seed, cfg.protocol, _families(source, "train", lists, shift), shift)
    ignored = tuple(novel) if cfg.protocol.novel_in_training == "ignore" else ()
    plan = TrainingPlan(sampler, cfg.train.batch_size, ignored, index.fingerprint)
    if held_out is None:
        return plan
    number = len(every.images) - len(lists.images)
    return replace(plan, held_out=number, validation=_validation_plan(source, cfg, held_out, plan))


def _validation_plan(source: Source, cfg: Config, held_out: FoldLists, training: TrainingPlan) -> EvaluationPlan:
    """`eval.base_episodes` episodes of the base classes: a class, then a query of it, both uniformly."""
    rules = copy.deepcopy(cfg.protocol)
    rules.query_order, rules.num_episodes = "class_uniform", cfg.eval.base_episodes
    shift = _background_shift(cfg)
    families = _families(source, "train", held_out, shift)
    episodes = {cfg.seed: evaluation_episodes(held_out, rules, cfg.shot, cfg.seed, families, shift)}
    drawn = {spec.class_id for spec in episodes[cfg.seed]}
    return EvaluationPlan(
        episodes=episodes,
        classes=tuple(c for c in held_out.classes if c in drawn),
        missing_classes=tuple(c for c in training.lists.classes if c not in drawn),
        fingerprint=episodes_fingerprint(episodes),
        index_fingerprint=training.index_fingerprint,
        split="train",
        ignore_classes=training.ignore_classes,
    )


def evaluation_plan(source: Source, cfg: Config) -> EvaluationPlan:
    """Evaluation episodes of every seed of the protocol, or those of `protocol.episodes_file`.

    Raises:
        UserError: faulty annotations, a faulty episode file, or no novel class that can form an episode.
    """
    cfg = plain(cfg)
    index = source.index("val")
    novel = source.novel_classes(cfg.fold)
    if cfg.protocol.episodes_file is not None:
        head = ListHead(source.name, cfg.fold, cfg.shot, source.classes)
        episodes = read_episodes(Path(cfg.protocol.episodes_file), head, novel, index)
    else:
        lists = val_lists(index, novel, cfg.protocol, cfg.shot, source.classes)
        shift = _background_shift(cfg)
        families = _families(source, "val", lists, shift)
        episodes = {
            seed: evaluation_episodes(lists, cfg.protocol, cfg.shot, seed, families, shift)
            for seed in cfg.protocol.seeds
        }
    present = {spec.class_id for specs in episodes.values() for spec in specs}
    images = Counter(c for _, c in eligible_pairs(index, novel, cfg.protocol))
    needed = images_needed(cfg.protocol, cfg.shot)
    missing = tuple(c for c in sorted(novel) if c not in present and images[c] < needed)
    return EvaluationPlan(
        episodes=episodes,
        classes=tuple(c for c in sorted(novel) if c not in missing),
        missing_classes=missing,
        fingerprint=episodes_fingerprint(episodes),
        index_fingerprint=index.fingerprint,
    )


def training_loader(
    source: Source,
    cfg: Config,
    start_step: int,
    num_steps: int,
    plan: TrainingPlan | None = None,
    positions: range | None = None,
) -> EpisodeLoader:
    """Batches of the steps start_step .. start_step + num_steps - 1, in order; a resumed run continues at `start_step`.

    `positions` is the part of each batch to load where several processes share it; None is all of it.
    """
    plan = plan or training_plan(source, cfg)
    specs = StepSpecs(plan, range(plan.batch_size) if positions is None else positions, start_step, num_steps)
    dataset = plan.dataset(source, specs, cfg)
    return make_loader(dataset, len(specs.positions), resolve_workers(cfg.num_workers))


def evaluation_loader(source: Source, cfg: Config, visits: Sequence[Visit], plan: EvaluationPlan) -> EpisodeLoader:
    """What each visit needs, as `Loaded`, in the order given.

    Args:
        plan: of the evaluation, or one of its plans: they differ in episodes alone.
    """
    return one_by_one(VisitDataset(source, cfg, visits, plan), cfg.num_workers)


def one_by_one(dataset: Dataset[Any], num_workers: int) -> EpisodeLoader:
    """The items of a data set in order, as they are; `num_workers` as in a configuration."""
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(len(dataset)),  # type: ignore[arg-type]
        num_workers=resolve_workers(num_workers),
        collate_fn=_as_it_is,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # see `make_loader`
    )
    return EpisodeLoader(loader)


def train_transform(cfg: Config) -> TrainTransform:
    """The training transform that the configuration describes."""
    data = cfg.dataset
    low, high = data.scale_range
    return TrainTransform(
        data.image_size, (low, high), data.rotate_degrees, data.blur_probability, data.flip_probability, data.crop_keep,
        cfg.protocol.fit,
    )  # fmt: skip


def evaluation_transform(cfg: Config) -> EvalTransform:
    """The transform of evaluation images that the configuration describes."""
    return EvalTransform(cfg.dataset.image_size, cfg.protocol.fit)


def resolve_workers(num_workers: int) -> int:
    """`num_workers`, or for -1 one less than the cores this process may use, at most 8."""
    if num_workers >= 0:
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1)


class ImageFiles:
    """The images and masks of a split, checked against each other.

    Args:
        source: of the images and masks.
        split: which split they are of.
        ignore_classes: classes whose pixels become 255.
    """

    def __init__(self, source: Source, split: Split, ignore_classes: Sequence[int] = ()) -> None:
        self.source, self.split, self.ignore_classes = source, split, tuple(ignore_classes)

    def mask(self, image_id: str, class_id: int) -> NDArray[np.uint8]:
        """At original size."""
        return self.source.mask(self.split, image_id, class_id, self.ignore_classes)

    def support_mask(self, image_id: str, spec: EpisodeSpec) -> NDArray[np.uint8]:
        """
        Raises:
            UserError: it has no foreground.
        """
        mask = self.mask(image_id, spec.class_id)
        if not (mask == 1).any():
            raise UserError(
                f"{self.source.name}, {self.split} image {image_id}: support mask of class "
                f"{self.source.classes[spec.class_id]} has no foreground pixel (episode {spec.number})",
                "the annotation differs from the index: run `fsseg prepare` again, or replace the file",
            )
        return mask

    def image(self, image_id: str, size: tuple[int, ...], longer_side: int | None) -> NDArray[np.uint8]:
        """The image of a mask of `size`; `longer_side` as in `Source.image`.

        Raises:
            UserError: it is of another size.
        """
        image = self.source.image(self.split, image_id, longer_side)
        if not reduction(image.shape, size):
            raise UserError(
                f"{self.source.name}, {self.split} image {image_id}: image of {image.shape[1]} x {image.shape[0]} "
                f"pixels, mask of {size[1]} x {size[0]}",
                "replace the file that is not the official one; `fsseg verify` lists all such images",
            )
        return image


class EpisodeDataset(Dataset[Episode]):
    """Training episode number i of a sequence of specs, read and transformed.

    Args:
        source: of the images and masks.
        split: which split the specs are of.
        specs: the episodes; a list, or anything with the same indexing.
        transform: the random one of training.
        seed: of the training augmentation.
        ignore_classes: classes whose pixels become 255.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        specs: Sequence[EpisodeSpec] | StepSpecs,
        transform: TrainTransform,
        seed: int = 0,
        ignore_classes: Sequence[int] = (),
    ) -> None:
        self.files, self.specs = ImageFiles(source, split, ignore_classes), specs
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, i: int) -> Episode:
        """
        Raises:
            UserError: a faulty image or mask, or a support mask without foreground; the file is named.
        """
        spec, files = self.specs[i], self.files
        supports = [
            self._sample(spec, image_id, files.support_mask(image_id, spec), f"support {k}")
            for k, image_id in enumerate(spec.support_ids)
        ]
        query = self._sample(spec, spec.query_id, files.mask(spec.query_id, spec.class_id), "query")
        return Episode(
            support_images=torch.stack([s.image for s in supports]),
            support_masks=torch.stack([s.mask for s in supports]),
            support_pictures=torch.stack([s.picture for s in supports]),
            query_image=query.image,
            query_mask=query.mask,
            query_picture=query.picture,
            spec=spec,
            valid_size=query.valid_size,
        )

    def _sample(self, spec: EpisodeSpec, image_id: str, mask: NDArray[np.uint8], role: str) -> Sample:
        image = self.files.image(image_id, mask.shape, self.transform.longer_side)
        return self.transform(image, mask, Random(f"fsseg transform {self.seed} {spec.number} {role}"))


@dataclass
class Loaded:
    """A visit, with all that it needs from the data set.

    Attributes:
        images: (N, 3, H, W) float32, those to be encoded, and `pictures` (N, H, W) bool; None if there is none.
        tasks: of its episodes.
    """

    visit: Visit
    tasks: Tasks
    images: Tensor | None = None
    pictures: Tensor | None = None

    def pin_memory(self) -> Loaded:
        return self if self.images is None else replace(self, images=self.images.pin_memory())


class VisitDataset(Dataset[Loaded]):
    """Visit number i of an evaluation: the images that are to be encoded for it, and the masks of its episodes.

    Args:
        source, cfg: of the evaluation.
        visits: `fsseg.data.visits.schedule`.
        plan: see `evaluation_loader`.
    """

    def __init__(self, source: Source, cfg: Config, visits: Sequence[Visit], plan: EvaluationPlan) -> None:
        self.files = ImageFiles(source, plan.split, plan.ignore_classes)
        self.transform, self.visits = evaluation_transform(cfg), visits

    def __len__(self) -> int:
        return len(self.visits)

    def __getitem__(self, i: int) -> Loaded:
        """
        Raises:
            UserError: as of `EpisodeDataset`.
        """
        visit = self.visits[i]
        tasks = self._tasks([listed.spec for listed in visit.episodes])
        if not visit.loads:
            return Loaded(visit, tasks)
        found = [self.image(load) for load in visit.loads]
        images, pictures = (torch.stack(part) for part in zip(*found))
        return Loaded(visit, tasks, images, pictures)

    def image(self, load: Load) -> tuple[Tensor, Tensor]:
        """One image (3, H, W), and which of its pixels are picture (H, W).

        Raises:
            UserError: a faulty image; the file is named.
        """
        size = self.files.mask(load.image_id, load.class_id).shape
        return self.transform.image(self.files.image(load.image_id, size, self.transform.longer_side), size)

    def _tasks(self, specs: list[EpisodeSpec]) -> Tasks:
        truths = [self.files.mask(spec.query_id, spec.class_id) for spec in specs]
        supports = [
            torch.stack([self.transform.mask(self.files.support_mask(i, spec), keep_foreground=True)
                         for i in spec.support_ids])
            for spec in specs
        ]  # fmt: skip
        return Tasks(
            support_masks=torch.stack(supports),
            query_mask=torch.stack([self.transform.mask(truth) for truth in truths]),
            specs=specs,
            valid_sizes=[self.transform.place(truth.shape).window for truth in truths],
            query_truths=list(truths),
        )


class EpisodeLoader:
    """Iterates over `Batch`es, `Loaded` or other items; a `UserError` of a worker process is raised here unchanged.

    Whoever may stop before the end closes the iterator: otherwise the traceback of a failure keeps the workers.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Generator[Any, None, None]:
        items = iter(self.loader)
        try:
            for item in items:
                if isinstance(item, _Fault):
                    raise UserError(item.what, item.fix)
                yield item
        finally:
            # The workers end with the last reference to `items`. Since Python 3.12 closing a generator frees what it
            # holds only if it is inside a `try`.
            del items


def make_loader(dataset: EpisodeDataset, batch_size: int, num_workers: int) -> EpisodeLoader:
    """Batches of consecutive episodes.

    Args:
        dataset: what to load.
        batch_size: B; the last batch holds what is left.
        num_workers: processes that load; 0 loads in this one. Changes nothing but the time.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=range(len(dataset)),
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # workers' base seed: unused, and global streams stay untouched
    )
    return EpisodeLoader(loader)


@dataclass(frozen=True)
class _Fault:
    """A `UserError` on its way out of a worker; torch would rebuild an exception from its message alone."""

    what: str
    fix: str


class _Guarded:
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except UserError as error:
            return _Fault(error.what, error.fix)


def _collate(items: Sequence[Episode | _Fault]) -> Batch | _Fault:
    for item in items:
        if isinstance(item, _Fault):
            return item
    return collate([item for item in items if isinstance(item, Episode)])


def _as_it_is(item: Any) -> Any:
    return item


def start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    shield_worker()


class StepSpecs:
    """Sequence of the episodes at `positions` of each batch, from step `start_step` on."""

    def __init__(self, plan: TrainingPlan, positions: range, start_step: int, num_steps: int) -> None:
        self.plan, self.positions, self.start_step, self.num_steps = plan, positions, start_step, num_steps

    def __len__(self) -> int:
        return len(self.positions) * self.num_steps

    def __getitem__(self, i: int) -> EpisodeSpec:
        step, position = divmod(i, len(self.positions))
        return self.plan.sampler[(self.start_step + step) * self.plan.batch_size + self.positions[position]]


def _background_shift(cfg: Config) -> float | None:
    return getattr(cfg.dataset, "background_shift", None)


def _families(source: Source, split: Split, lists: FoldLists, shift: float | None) -> Mapping[str, int | None] | None:
    if shift is None:
        return None
    return {image: source.background_family(split, image) for image in lists.images}
