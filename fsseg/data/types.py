"""`Episode`, one few-shot task, `Batch`, several of them stacked, and `Tasks`, these without images: what loaders
hand to models and to the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsseg.data.spec import EpisodeSpec as EpisodeSpec  # for all that import it from here


@dataclass
class Episode:
    """One task: segment in the query what the support masks mark.

    Masks hold {0, 1, 255}. Images are normalised; padding is the mean colour (0) or black in images and 255 in masks.
    Only the pictures say which pixels are picture and which padding: padding lies right of the image and below it (in
    training with `protocol.fit=pfenet` all around it), and in the corners that a rotation leaves empty.

    Attributes:
        support_images: (K, 3, H, W) float32
        support_masks: (K, H, W) uint8
        support_pictures: (K, H, W) bool, True where a pixel is picture, False on padding
        query_image: (3, H, W) float32
        query_mask: (H, W) uint8
        query_picture: (H, W) bool, likewise
        spec: where it comes from
        valid_size: (height, width) of the part of the H x W query that holds its image, rotated corners included: the
            upper left part, but as `query_picture` says in training with `protocol.fit=pfenet`
    """

    support_images: Tensor
    support_masks: Tensor
    support_pictures: Tensor
    query_image: Tensor
    query_mask: Tensor
    query_picture: Tensor
    spec: EpisodeSpec
    valid_size: tuple[int, int]


@dataclass
class Tasks:
    """B episodes of equal shot and size without their images: all that a method needs where it has kept the images.

    Attributes:
        support_masks: (B, K, H, W) uint8 in {0, 1, 255}
        query_mask: (B, H, W) uint8 in {0, 1, 255}
        specs, valid_sizes: as in `Episode`, one each
        query_truths: (H0, W0) uint8, the queries' masks at original size; None in training
    """

    support_masks: Tensor
    query_mask: Tensor
    specs: list[EpisodeSpec]
    valid_sizes: list[tuple[int, int]]
    query_truths: list[NDArray[np.uint8] | None]

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.query_mask.shape[-2], self.query_mask.shape[-1]


@dataclass(kw_only=True)
class Batch(Tasks):
    """B episodes of equal shot and size.

    Attributes:
        support_images: (B, K, 3, H, W) float32
        support_pictures: (B, K, H, W) bool
        query_image: (B, 3, H, W) float32
        query_picture: (B, H, W) bool
    """

    support_images: Tensor
    support_pictures: Tensor
    query_image: Tensor
    query_picture: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """With the images on a device. Masks stay on the host: there they come to feature size, and how many cells
        they mark is known without waiting for the device."""
        return replace(
            self,
            support_images=self.support_images.to(device, non_blocking=True),
            query_image=self.query_image.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        pinned: dict[str, Any] = {name: x.pin_memory() for name, x in values if isinstance(x, Tensor)}
        return replace(self, **pinned)

    def split(self, parts: int) -> list[Batch]:
        """The batch in `parts` parts, whose sizes differ by one at most; no tensor is copied."""
        bounds = [len(self) * part // parts for part in range(parts + 1)]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [Batch(**{name: value[start:end] for name, value in values.items()}) for start, end in pairwise(bounds)]


def collate(episodes: Sequence[Episode]) -> Batch:
    """Stack episodes into a `Batch`."""
    return Batch(
        support_images=torch.stack([e.support_images for e in episodes]),
        support_masks=torch.stack([e.support_masks for e in episodes]),
        support_pictures=torch.stack([e.support_pictures for e in episodes]),
        query_image=torch.stack([e.query_image for e in episodes]),
        query_mask=torch.stack([e.query_mask for e in episodes]),
        query_picture=torch.stack([e.query_picture for e in episodes]),
        specs=[e.spec for e in episodes],
        valid_sizes=[e.valid_size for e in episodes],
        query_truths=[None] * len(episodes),
    )
