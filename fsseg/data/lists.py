"""From a `ClassIndex` to the lists of one fold: who may be query, who may be support, under a protocol's rules.

`fsseg.data.loader` builds them for training (base classes) and evaluation (novel classes), `fsseg.data.episodes` draws
from them. The rules are those of `ProtocolConfig`; nothing here opens an image.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsseg.config.schema import ProtocolConfig
from fsseg.data.source import ClassIndex
from fsseg.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldLists:
    """The images and classes that episodes of one fold and split are drawn from.

    Attributes:
        images: query images, in list order; each has at least one class.
        classes_of: for each of `images`, those of its classes (sorted class_ids) that an episode may use.
        candidates: for each usable class, all images that may be its query or support, in list order.
        missing_classes: classes of the pool without enough images for one episode, sorted; they appear nowhere else.
        query_classes: for each of `images`, the usable classes that it may be the query of where the image is chosen
            first: those of `classes_of`, or under `protocol.query_class=any_size` all that it has a pixel of.
    """

    images: tuple[str, ...]
    classes_of: tuple[tuple[int, ...], ...]
    candidates: dict[int, tuple[str, ...]]
    missing_classes: tuple[int, ...]
    query_classes: tuple[tuple[int, ...], ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Usable class_ids, sorted."""
        return tuple(sorted(self.candidates))

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """Every (query image, class), by image in list order, then by class."""
        return tuple((image, c) for image, classes in zip(self.images, self.classes_of) for c in classes)


def images_with(index: ClassIndex, classes: Collection[int]) -> set[int]:
    """Positions of the images that hold any of `classes`, even one pixel or a crowd (a pair of 0 pixels)."""
    wanted = np.isin(index.pair_class, np.asarray(sorted(classes), dtype=np.int64))
    return set(index.pair_image[wanted].tolist())


_GRID_PIXELS = 3
"""Pixels on the grid from which `list_rule=grid` lists a pair: more than 2."""


def eligible_pairs(
    index: ClassIndex, classes: Collection[int], protocol: ProtocolConfig, without: Collection[int] = ()
) -> list[tuple[int, int]]:
    """(position of the image, class_id) of the pairs that the protocol lists, sorted; these are the published lists.

    Args:
        index: of the split.
        classes: class_ids that count.
        protocol: `list_rule` = pixels takes objects of `min_pixels` at original size (0: of one pixel); grid takes
            those with more than 2 pixels on the grid, however small they are.
        without: positions of images that are left out.

    Raises:
        UserError: the rule is grid, and the data set does not count the pixels on it.
    """
    if protocol.list_rule == "pixels":
        listed = index.pair_pixels >= max(protocol.min_pixels, 1)
    elif index.pair_grid is not None:
        listed = index.pair_grid >= _GRID_PIXELS
    else:
        raise UserError(
            "protocol.list_rule=grid: the pixels on the grid are not counted for this data set",
            "set protocol.list_rule=pixels; the grid is HSNet's rule for PASCAL",
        )
    keep = listed & np.isin(index.pair_class, np.asarray(sorted(classes), dtype=np.int64))
    if without:
        keep &= ~np.isin(index.pair_image, np.asarray(sorted(without), dtype=np.int64))
    return _pairs(index, keep)


def _pairs(index: ClassIndex, keep: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return sorted(zip(index.pair_image[keep].tolist(), index.pair_class[keep].tolist()))


def train_lists(
    index: ClassIndex, novel: Collection[int], protocol: ProtocolConfig, shot: int, class_names: Sequence[str]
) -> FoldLists:
    """Lists of the base classes in the training split.

    `protocol.novel_in_training` = drop leaves out every image with a pixel or a crowd of a novel class; background and
    ignore keep it (the loader then labels those pixels 0 or 255). A class with too few images for one episode is
    left out with a warning.

    Args:
        index: of the split `train`.
        novel: class_ids held out in this fold.
        protocol: the rules.
        shot: K.
        class_names: of all classes; position = class_id.

    Raises:
        UserError: no base class can form an episode, or as `eligible_pairs`.
    """
    base = [c for c in range(len(class_names)) if c not in set(novel)]
    without = images_with(index, novel) if protocol.novel_in_training == "drop" else ()
    pairs = eligible_pairs(index, base, protocol, without)
    return _build(index, pairs, _Pool("base", "training", base), protocol, shot, class_names)


def val_lists(
    index: ClassIndex, novel: Collection[int], protocol: ProtocolConfig, shot: int, class_names: Sequence[str]
) -> FoldLists:
    """Lists of the novel classes in the evaluation split; arguments and errors as in `train_lists`.

    A novel class with too few images is in `missing_classes`: the result is then partial, and the class has no score.
    """
    pairs = eligible_pairs(index, novel, protocol)
    return _build(index, pairs, _Pool("novel", "evaluation", sorted(novel)), protocol, shot, class_names)


def images_needed(protocol: ProtocolConfig, shot: int) -> int:
    """Images a class needs for one episode: the query and K others, or one other where supports may repeat."""
    return 2 if protocol.repeat_support else shot + 1


@dataclass(frozen=True)
class _Pool:
    """The classes that lists are made of (base, novel), and the episodes that are drawn from them."""

    kind: str
    purpose: str
    classes: Sequence[int]


def _build(
    index: ClassIndex,
    pairs: Sequence[tuple[int, int]],
    pool: _Pool,
    protocol: ProtocolConfig,
    shot: int,
    class_names: Sequence[str],
) -> FoldLists:
    members: dict[int, list[str]] = {c: [] for c in pool.classes}
    for position, c in pairs:
        members[c].append(index.image_ids[position])
    needed = images_needed(protocol, shot)
    missing = tuple(c for c in pool.classes if len(members[c]) < needed)
    candidates = {c: tuple(images) for c, images in members.items() if len(images) >= needed}
    if not candidates:
        grid = protocol.list_rule == "grid"
        rule = "list_rule=grid" if grid else f"min_pixels={protocol.min_pixels}"
        raise UserError(
            f"no {pool.kind} class has the {needed} images that a {shot}-shot {pool.purpose} episode needs "
            f"(the split lists {len(index.image_ids)} images, {len(pairs)} (image, class) pairs are left by protocol "
            f"{protocol.name}: {rule}, novel_in_training={protocol.novel_in_training})",
            f"point dataset.root at more images, or lower shot{'' if grid else ' or protocol.min_pixels'}",
        )
    if missing:
        names = ", ".join(f"{class_names[c]} ({len(members[c])})" for c in missing[:8])
        names += ", ..." if len(missing) > 8 else ""
        log.warning(
            "%d of %d %s classes have fewer than the %d images a %d-shot episode needs and are left out: %s",
            len(missing), len(pool.classes), pool.kind, needed, shot, names,
        )  # fmt: skip
    listed = _by_image(pairs, candidates)
    held = listed if protocol.query_class == "listed" else _by_image(_pairs(index, index.pair_pixels > 0), candidates)
    order = sorted(listed)
    return FoldLists(
        images=tuple(index.image_ids[i] for i in order),
        classes_of=tuple(listed[i] for i in order),
        candidates=candidates,
        missing_classes=missing,
        query_classes=tuple(held[i] for i in order),
    )


def _by_image(pairs: Sequence[tuple[int, int]], usable: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The usable classes of each image, sorted, by its position."""
    classes: dict[int, list[int]] = {}
    for position, c in pairs:
        if c in usable:
            classes.setdefault(position, []).append(c)
    return {position: tuple(sorted(found)) for position, found in classes.items()}
