"""The score of few-shot segmentation: pooled intersections and unions, mIoU and FB-IoU. Called by the evaluation loop.

Everything is a function of integer pixel counts, so the score is the same on one or several processes, in any order, to
the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsseg.cell.episodes import EpisodeCounts
from fsseg.data.source import IGNORE_INDEX


class PixelCounts(NamedTuple):
    """The pixels of one answer to one episode; those whose truth is 255 count nowhere.

    Attributes:
        foreground: true ones.
        intersection: predicted and true foreground; `union`: either.
        background_intersection: neither; `background_union`: not both.
    """

    foreground: int
    intersection: int
    union: int
    background_intersection: int
    background_union: int

    @property
    def iou(self) -> float:
        """In percent, nan without any foreground; for figures, never for the score."""
        return 100.0 * self.intersection / self.union if self.union else float("nan")


def count_pixels(predictions: Tensor, truth: Tensor) -> Tensor:
    """Count the answers of R rounds to one episode, where they were computed.

    Args:
        predictions: (R, H, W) bool, predicted foreground.
        truth: (H, W) uint8 in {0, 1, 255}, on the same device.

    Returns:
        (R, 5) int64, the columns of `PixelCounts`.
    """
    if predictions.shape[1:] != truth.shape:
        raise ValueError(f"prediction {tuple(predictions.shape[1:])} and truth {tuple(truth.shape)} differ in size")
    counted = truth != IGNORE_INDEX
    positive = truth == 1
    predicted = predictions & counted
    both, either = _each(predicted & positive), _each(predicted | positive)
    true, total = torch.count_nonzero(positive), torch.count_nonzero(counted)
    return torch.stack((true.expand_as(both), both, either, total - either, total - both), 1)


def _each(masks: Tensor) -> Tensor:
    """True pixels of each of (R, H, W); one by one, which on a CPU is several times as fast as a sum."""
    return torch.stack([torch.count_nonzero(mask) for mask in masks])


def pixel_counts(prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> PixelCounts:
    """`count_pixels` of one answer, (H, W) bool."""
    found = count_pixels(torch.from_numpy(np.ascontiguousarray(prediction))[None], torch.from_numpy(truth))
    return PixelCounts(*found[0].tolist())


class PooledScore:
    """Counts of one evaluation run, pooled over all its episodes.

    For each class the intersection and union of foreground are summed over the class's episodes and divided once;
    background is pooled over all episodes. Pixels whose truth is 255 count nowhere.
    """

    def __init__(self, num_classes: int) -> None:
        self.intersection = np.zeros(num_classes, dtype=np.int64)
        self.union = np.zeros(num_classes, dtype=np.int64)
        self.episodes = np.zeros(num_classes, dtype=np.int64)
        self.foreground = np.zeros(num_classes, dtype=np.int64)
        self.counted = np.zeros(num_classes, dtype=np.int64)
        self.background_intersection = 0
        self.background_union = 0

    @classmethod
    def of_rounds(cls, counts: EpisodeCounts, num_classes: int) -> list[PooledScore]:
        """The scores of each round over these episodes."""
        classes, counted = counts["class_id"], counts["union"].astype(np.int64) + counts["background_intersection"]
        scores = [cls(num_classes) for _ in range(counts.rounds)]
        for round, score in enumerate(scores):
            np.add.at(score.intersection, classes, counts["intersection"][:, round])
            np.add.at(score.union, classes, counts["union"][:, round])
            np.add.at(score.episodes, classes, 1)
            np.add.at(score.foreground, classes, counts["foreground"])
            np.add.at(score.counted, classes, counted[:, round])
            score.background_intersection = int(counts["background_intersection"][:, round].sum(dtype=np.int64))
            score.background_union = int(counts["background_union"][:, round].sum(dtype=np.int64))
        return scores

    def add(self, class_id: int, prediction: NDArray[np.bool_], truth: NDArray[np.uint8]) -> float:
        """Count one episode.

        Args:
            class_id: the episode's class.
            prediction: (H, W) bool, predicted foreground.
            truth: (H, W) uint8 in {0, 1, 255}.

        Returns:
            IoU of this episode alone, in percent (nan without any foreground); for figures, never for the score.
        """
        pixels = pixel_counts(prediction, truth)
        self.count(class_id, pixels)
        return pixels.iou

    def count(self, class_id: int, pixels: PixelCounts) -> None:
        """Add the counts of one episode."""
        self.intersection[class_id] += pixels.intersection
        self.union[class_id] += pixels.union
        self.episodes[class_id] += 1
        self.foreground[class_id] += pixels.foreground
        self.counted[class_id] += pixels.union + pixels.background_intersection
        self.background_intersection += pixels.background_intersection
        self.background_union += pixels.background_union

    def iou(self, class_id: int) -> float:
        """IoU of a class in percent; 0 if it was neither predicted nor present."""
        return 100.0 * int(self.intersection[class_id]) / max(1, int(self.union[class_id]))

    def miou(self, classes: Iterable[int]) -> float:
        """Mean IoU over `classes`, in percent.

        Raises:
            ValueError: one of them has no episode, so its IoU is undefined, not 0.
        """
        return self._mean(classes, self.iou)

    def miou_all_foreground(self, classes: Iterable[int]) -> float:
        """mIoU, in percent, of answering "all foreground" in the same episodes: the figure a model has to beat."""
        return self._mean(classes, lambda c: 100.0 * int(self.foreground[c]) / max(1, int(self.counted[c])))

    def _mean(self, classes: Iterable[int], iou: Callable[[int], float]) -> float:
        classes = list(classes)
        if absent := [c for c in classes if not self.episodes[c]]:
            raise ValueError(f"no episode of class {absent[0]} was counted")
        return sum(iou(c) for c in classes) / len(classes)

    def fb_iou(self) -> float:
        """Mean of the pooled foreground IoU and the pooled background IoU over all episodes, in percent."""
        foreground = int(self.intersection.sum()) / max(1, int(self.union.sum()))
        background = self.background_intersection / max(1, self.background_union)
        return 100.0 * (foreground + background) / 2
