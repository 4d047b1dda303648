"""Images with label maps of the base classes: what a base learner (BAM's stage 1) trains on, and is scored on.

`fsseg.engine.ready` makes the plans. In training an image is the query of an episode without supports, so that the
training loop is the same for all; its mask is the label map: 0 background, 1..B the base classes in the order of their
ids, 255 ignore. Images, classes and what becomes of novel pixels follow the rules of the protocol, as for episodes.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fsseg.config.entry import plain
from fsseg.config.schema import Config, ProtocolConfig
from fsseg.data.episodes import EpisodeSampler
from fsseg.data.lists import FoldLists, train_lists
from fsseg.data.loader import (
    EpisodeDataset,
    ImageFiles,
    StepSpecs,
    TrainingPlan,
    evaluation_transform,
    one_by_one,
    train_transform,
)
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Source, Split
from fsseg.data.types import Episode, EpisodeSpec


@dataclass(frozen=True)
class BaseClasses:
    """The base classes of a fold, and where they are.

    Attributes:
        classes: their ids, sorted; label of the map = place + 1.
        present: image id -> those that the annotation of the image names, however small.
        ignore_classes: novel classes whose pixels are 255 (`protocol.novel_in_training=ignore`); else they are 0.
    """

    classes: tuple[int, ...]
    present: Mapping[str, tuple[int, ...]]
    ignore_classes: tuple[int, ...]

    @classmethod
    def of(cls, index: ClassIndex, novel: Sequence[int], protocol: ProtocolConfig, count: int) -> BaseClasses:
        """Those of an index; `count` classes in all."""
        base = tuple(c for c in range(count) if c not in set(novel))
        present: dict[str, list[int]] = {}
        for position, class_id in zip(index.pair_image.tolist(), index.pair_class.tolist()):
            if class_id in base:
                present.setdefault(index.image_ids[position], []).append(class_id)
        ignored = tuple(novel) if protocol.novel_in_training == "ignore" else ()
        return cls(base, {image: tuple(sorted(found)) for image, found in present.items()}, ignored)

    def label_map(self, files: ImageFiles, image_id: str) -> NDArray[np.uint8]:
        """The label map of an image that has a base class, at original size, (H, W) uint8.

        Where masks of classes overlap (COCO's `union`), the larger class id counts; a pixel that one class leaves open
        and another one covers is of the latter.
        """
        labels = None
        for class_id in self.present[image_id]:
            mask = files.mask(image_id, class_id)
            labels = np.zeros_like(mask) if labels is None else labels
            labels[(mask == IGNORE_INDEX) & (labels == 0)] = IGNORE_INDEX
            labels[mask == 1] = self.classes.index(class_id) + 1
        assert labels is not None, image_id
        return labels


@dataclass(frozen=True)
class BaseTrainingPlan(TrainingPlan):
    """What a base learner trains on: `sampler` gives each image once an epoch, without supports."""

    base: BaseClasses | None = None

    def dataset(self, source: Source, specs: Sequence[EpisodeSpec] | StepSpecs, cfg: Config) -> EpisodeDataset:
        assert self.base is not None
        return BaseImageDataset(source, specs, cfg, self.base)


@dataclass(frozen=True)
class BaseEvaluationPlan:
    """What a base learner is scored on: images of the evaluation split with a base class, each once."""

    images: tuple[str, ...]
    base: BaseClasses
    index_fingerprint: str


def base_training_plan(source: Source, cfg: Config) -> BaseTrainingPlan:
    """The images of the base classes: those that 1-shot episodes of the protocol would train on.

    Raises:
        UserError: faulty annotations, or nothing to train on.
    """
    cfg = plain(cfg)
    index, rules = source.index("train"), copy.deepcopy(cfg.protocol)
    rules.train_query = "image"  # whatever episodes do: each image once an epoch
    sampler = EpisodeSampler(base_lists(index, source, cfg), 0, cfg.seed, rules)
    base = BaseClasses.of(index, source.novel_classes(cfg.fold), rules, len(source.classes))
    return BaseTrainingPlan(sampler, cfg.train.batch_size, base.ignore_classes, index.fingerprint, base=base)


def base_evaluation_plan(source: Source, cfg: Config) -> BaseEvaluationPlan:
    """The same images of the evaluation split, by the same rules.

    Raises:
        UserError: faulty annotations, or no such image.
    """
    cfg = plain(cfg)
    index = source.index("val")
    base = BaseClasses.of(index, source.novel_classes(cfg.fold), cfg.protocol, len(source.classes))
    return BaseEvaluationPlan(base_lists(index, source, cfg).images, base, index.fingerprint)


def base_lists(index: ClassIndex, source: Source, cfg: Config) -> FoldLists:
    """The images of a split with a base class, as the protocol lists them for training.

    Raises:
        UserError: there is none.
    """
    return train_lists(index, source.novel_classes(cfg.fold), cfg.protocol, cfg.shot, source.classes)


class BaseImageDataset(EpisodeDataset):
    """Training image number i of a sequence of specs with its label map, as the query of an episode without supports.

    The crop is any, whatever it shows, as in PSPNet's training.
    """

    def __init__(
        self, source: Source, specs: Sequence[EpisodeSpec] | StepSpecs, cfg: Config, base: BaseClasses
    ) -> None:
        super().__init__(source, "train", specs, train_transform(cfg), cfg.seed, base.ignore_classes)
        self.base = base

    def __getitem__(self, i: int) -> Episode:
        """
        Raises:
            UserError: a faulty image or mask; the file is named.
        """
        spec = self.specs[i]
        labels = self.base.label_map(self.files, spec.query_id)
        image = self.files.image(spec.query_id, labels.shape, self.transform.longer_side)
        sample = self.transform.of_labels(image, labels, Random(f"fsseg transform {self.seed} {spec.number} query"))
        side = sample.mask.shape[-1]
        return Episode(
            support_images=torch.empty(0, 3, side, side),
            support_masks=torch.empty(0, side, side, dtype=torch.uint8),
            support_pictures=torch.empty(0, side, side, dtype=torch.bool),
            query_image=sample.image,
            query_mask=sample.mask,
            query_picture=sample.picture,
            spec=spec,
            valid_size=sample.valid_size,
        )


@dataclass
class LabelledImage:
    """An evaluation image.

    Attributes:
        image: (3, H, W) float32, and `picture` (H, W) bool, as in `Episode`.
        valid_size: likewise.
        labels: (H0, W0) uint8 at original size; `mask` (H, W) at network size, 255 at padding.
    """

    image: Tensor
    picture: Tensor
    valid_size: tuple[int, int]
    labels: NDArray[np.uint8]
    mask: Tensor

    def pin_memory(self) -> LabelledImage:
        self.image = self.image.pin_memory()
        return self


class LabelledImages(Dataset[LabelledImage]):
    """Image number i of a share of an evaluation.

    Args:
        images: of the share.
    """

    def __init__(self, source: Source, cfg: Config, plan: BaseEvaluationPlan, images: Sequence[str]) -> None:
        split: Split = "val"
        self.files = ImageFiles(source, split, plan.base.ignore_classes)
        self.transform, self.base, self.images = evaluation_transform(cfg), plan.base, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> LabelledImage:
        """
        Raises:
            UserError: as of `BaseImageDataset`.
        """
        labels = self.base.label_map(self.files, self.images[i])
        pixels = self.files.image(self.images[i], labels.shape, self.transform.longer_side)
        image, picture = self.transform.image(pixels, labels.shape)
        window = self.transform.place(labels.shape).window
        return LabelledImage(image, picture, window, labels, self.transform.mask(labels))


def labelled_images(
    source: Source, cfg: Config, plan: BaseEvaluationPlan, images: Sequence[str]
) -> Generator[LabelledImage, None, None]:
    """The images of a share of an evaluation, in the order given; whoever may stop before the end closes it.

    Raises:
        UserError: as of `LabelledImages`.
    """
    return iter(one_by_one(LabelledImages(source, cfg, plan, images), cfg.num_workers))
