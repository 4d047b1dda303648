"""Evaluation on novel classes: every episode of every evaluation seed once, counts pooled. Called by `fsseg.run`."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fsseg.cell import Status
from fsseg.config import Config
from fsseg.data.episodes import fingerprint
from fsseg.data.loader import evaluation_loader, evaluation_plan
from fsseg.data.source import Source
from fsseg.data.types import EpisodeSpec
from fsseg.engine import distributed
from fsseg.engine.metrics import PooledScore
from fsseg.engine.progress import Progress, duration
from fsseg.model.base import FewShotModel, Prediction
from fsseg.ranks import ALONE, Ranks

log = logging.getLogger("fsseg")


@dataclass
class Picture:
    """One evaluated episode, kept for the figures: predicted foreground at scoring size and its IoU in percent."""

    spec: EpisodeSpec
    prediction: NDArray[np.bool_]
    iou: float


@dataclass
class EvaluationRecord:
    """What result.json says of the evaluation, and the pictures."""

    metrics: dict[str, Any]
    missing_classes: list[str]
    dataset_fingerprint: str
    episodes_fingerprint: str
    seconds: float
    pictures: list[Picture] = field(default_factory=list)


def predicted_foreground(
    logits: Tensor, size: tuple[int, int], valid_size: tuple[int, int], truth_size: tuple[int, int] | None
) -> NDArray[np.bool_]:
    """Foreground at the size where it is scored.

    Args:
        logits: (2, h, w) at feature size.
        size: (H, W) of the network input.
        valid_size: part of the input that is image; padding is cut off before scaling, so that it cannot bleed in.
        truth_size: original size, or None to stay at network size.

    Returns:
        bool, (H0, W0) or (valid height, valid width).
    """
    full = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=True)
    full = full[..., : valid_size[0], : valid_size[1]]
    if truth_size is not None and tuple(full.shape[-2:]) != tuple(truth_size):
        full = F.interpolate(full, size=truth_size, mode="bilinear", align_corners=True)
    return (full[0, 1] > full[0, 0]).cpu().numpy()


def evaluate(
    model: FewShotModel,
    source: Source,
    cfg: Config,
    status: Status,
    device: torch.device,
    should_stop: Callable[[], str | None] = lambda: None,
    ranks: Ranks = ALONE,
) -> EvaluationRecord:
    """Score `model` on the fold's novel classes under `cfg.protocol`.

    A novel class too small to form an episode is left out and named; the result is then partial.

    Args:
        should_stop: asked before every batch; a reason to stop, or None.
        ranks: the processes that evaluate together; each takes whole batches in turn, so that the score is the same to
            the last digit on any number of them.

    Raises:
        UserError: if no episode can be formed, or the data is at fault.
        Preempted: when `should_stop` names a reason.
    """
    started = time.monotonic()
    plan = evaluation_plan(source, cfg)
    classes = list(plan.classes)
    runs = list(plan.episodes.items())
    total = sum(len(specs) for _, specs in runs)
    log.info("evaluating %d episodes (%d seeds) of %d novel classes: %s", total, len(runs), len(classes),
             ", ".join(source.classes[c] for c in classes))  # fmt: skip
    if plan.missing_classes:
        names = ", ".join(source.classes[c] for c in plan.missing_classes)
        log.warning(
            "no episode of %s (too few images, or too few episodes): "
            "the result is partial, not comparable with published ones",
            names,
        )

    wanted = _figure_numbers(runs[0][1], cfg.logger.figures)
    pictures: list[Picture] = []
    per_seed: list[dict[str, Any]] = []
    ious: list[list[float]] = []
    rounds: list[list[float]] = []
    model.eval()
    with torch.inference_mode(), Progress("evaluate", total) as progress:
        for position, (seed, specs) in enumerate(runs):
            scores: list[PooledScore] = []
            own = distributed.batches_of_rank(specs, cfg.eval.batch_size, ranks)
            batches = iter(evaluation_loader(source, cfg, own))
            for _ in range(math.ceil(len(specs) / (cfg.eval.batch_size * ranks.world))):
                batch = distributed.next_batch(batches, should_stop, ranks, device)
                if batch is None:
                    continue  # the last turn has a batch for some of the processes only
                batch = batch.to(device)
                prediction: Prediction = model(batch)
                size = (batch.query_image.shape[-2], batch.query_image.shape[-1])
                scores += [PooledScore(len(source.classes)) for _ in range(len(prediction.rounds) - len(scores))]
                for b, spec in enumerate(batch.specs):
                    truth = batch.query_truths[b]
                    assert truth is not None
                    valid = batch.valid_sizes[b]
                    if cfg.protocol.scoring_size == "network":
                        truth = batch.query_mask[b, : valid[0], : valid[1]].cpu().numpy()
                    for logits, score in zip(prediction.rounds, scores, strict=True):
                        mask = predicted_foreground(logits[b], size, valid, truth.shape)
                        iou = score.add(spec.class_id, mask, truth)
                    if position == 0 and spec.number in wanted:
                        pictures.append(Picture(spec, mask, iou))
                so_far = scores[-1]
                seen = [c for c in classes if so_far.episodes[c]]
                progress.step(f"mIoU {so_far.miou(seen):.1f}", min(len(batch) * ranks.world, total - progress.done))
                status.update(
                    phase="evaluate", step=progress.done, steps=total, miou=round(so_far.miou(seen), 3),
                    seconds_per_step=round(progress.seconds_per_step, 4), eta_seconds=round(progress.eta_seconds, 1),
                )  # fmt: skip
            scores = _pool(scores, len(source.classes), ranks)
            counted = [c for c in classes if scores[-1].episodes[c]]
            if len(counted) < len(classes):
                absent = ", ".join(source.classes[c] for c in classes if c not in counted)
                log.warning("seed %d drew no episode of %s: its mIoU is over the other classes", seed, absent)
            per_seed.append({
                "seed": seed, "miou": scores[-1].miou(counted), "fb_iou": scores[-1].fb_iou(),
                "miou_all_foreground": scores[-1].miou_all_foreground(counted),
                "num_episodes": len(specs), "episodes_fingerprint": fingerprint({seed: specs}),
                "classes_without_episode": [source.classes[c] for c in classes if c not in counted],
            })  # fmt: skip
            ious.append([scores[-1].iou(c) if scores[-1].episodes[c] else float("nan") for c in classes])
            rounds.append([score.miou(counted) for score in scores])

    metrics = {
        "miou": statistics.fmean(s["miou"] for s in per_seed),
        "miou_std": _deviation([s["miou"] for s in per_seed]),
        "miou_all_foreground": statistics.fmean(s["miou_all_foreground"] for s in per_seed),
        "fb_iou": statistics.fmean(s["fb_iou"] for s in per_seed),
        "fb_iou_std": _deviation([s["fb_iou"] for s in per_seed]),
        "per_seed": per_seed,
        "per_class": {source.classes[c]: _mean_of([row[i] for row in ious]) for i, c in enumerate(classes)},
        "miou_per_round": [statistics.fmean(column) for column in zip(*rounds)],
    }
    seconds = time.monotonic() - started
    log.info("mIoU %.2f (std %.2f over %d seeds; answering \"all foreground\" scores %.2f), FB-IoU %.2f, in %s",
             metrics["miou"], metrics["miou_std"], len(runs), metrics["miou_all_foreground"], metrics["fb_iou"],
             duration(seconds))  # fmt: skip
    pictures = [picture for part in distributed.gather(pictures, ranks) for picture in part]
    order = {number: i for i, number in enumerate(wanted)}
    pictures.sort(key=lambda p: order[p.spec.number])
    return EvaluationRecord(
        metrics=metrics, episodes_fingerprint=plan.fingerprint,
        missing_classes=[source.classes[c] for c in plan.missing_classes],
        dataset_fingerprint=plan.index_fingerprint, seconds=round(seconds, 2), pictures=pictures,
    )  # fmt: skip


def _pool(scores: list[PooledScore], num_classes: int, ranks: Ranks) -> list[PooledScore]:
    """The scores of every round over all processes: sums of whole numbers. One without a batch has none to add."""
    parts = distributed.gather(scores, ranks)
    pooled = [PooledScore(num_classes) for _ in range(max(len(part) for part in parts))]
    for part in parts:
        for score, counts in zip(pooled, part):
            score.merge(counts)
    return pooled


def _deviation(values: list[float]) -> float:
    """Sample standard deviation (n - 1); 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_of(values: list[float]) -> float | None:
    present = [v for v in values if v == v]
    return statistics.fmean(present) if present else None


def _figure_numbers(specs: list[EpisodeSpec], count: int) -> list[int]:
    """Episodes to draw: the first of each class in turn, then the second of each, chosen before any is scored."""
    by_class: dict[int, list[int]] = {}
    for spec in specs:
        by_class.setdefault(spec.class_id, []).append(spec.number)
    turns = max((len(v) for v in by_class.values()), default=0)
    ordered = [numbers[turn] for turn in range(turns) for numbers in by_class.values() if turn < len(numbers)]
    return ordered[:count]
