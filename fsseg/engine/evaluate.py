"""Evaluation on novel classes: every episode of every evaluation seed once, counts pooled. Called by `fsseg.run`."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fsseg.cell.models import EpisodesRecord, Metrics, SeedScore, Undrawn
from fsseg.config.schema import Config
from fsseg.data.episode_file import head_of
from fsseg.data.episodes import episodes_fingerprint
from fsseg.data.loader import EvaluationPlan, evaluation_loader
from fsseg.data.source import Source
from fsseg.data.types import Batch, EpisodeSpec
from fsseg.engine import diagnostics, distributed
from fsseg.engine.context import Run
from fsseg.engine.metrics import PooledScore
from fsseg.engine.progress import Progress, duration
from fsseg.engine.ready import Plans
from fsseg.errors import UserError
from fsseg.model.base import FewShotModel, Prediction, upsample
from fsseg.process.ranks import Ranks

log = logging.getLogger("fsseg")


@dataclass
class Picture:
    """One evaluated episode, kept for the figures: predicted foreground at scoring size and its IoU in percent.

    `steps` are the intermediate predictions with their names (`logger.steps`).
    """

    spec: EpisodeSpec
    prediction: NDArray[np.bool_]
    iou: float
    steps: list[tuple[str, NDArray[np.bool_]]] = field(default_factory=list)


@dataclass
class EvaluationRecord:
    """What result.json says of the evaluation, and the pictures.

    Attributes:
        missing_classes: novel classes with too few images for an episode.
        protocol: fields of the protocol that `protocol.episodes_file` replaced; empty without one.
        episodes: of episodes.npz; None where this process does not write it.
    """

    metrics: Metrics
    missing_classes: list[str]
    dataset_fingerprint: str
    episodes_fingerprint: str
    seconds: float
    pictures: list[Picture] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    episodes: EpisodesRecord | None = None


def predicted_foreground(
    logits: Tensor,
    size: tuple[int, int],
    valid_size: tuple[int, int],
    truth_size: tuple[int, int] | None,
    fit: str = "longer_side",
) -> NDArray[np.bool_]:
    """Foreground at the size used for scoring, by the rule of `protocol.fit`.

    Args:
        logits: (2, h, w) at feature size.
        size: (H, W) of the network input.
        valid_size: upper left part of the input that is image.
        truth_size: original size, or None to stay at network size: the padding is then cut off.
        fit: longer_side cuts the padding off before scaling, so that it has no influence; squash scales all of the
            input, its corners aligned; pfenet likewise, to a square of the original's longer side, and cuts afterwards.

    Returns:
        bool, (H0, W0) or (valid height, valid width).
    """
    full = upsample(logits[None], size)
    if fit == "longer_side" or truth_size is None:
        full = full[..., : valid_size[0], : valid_size[1]]
        if truth_size is not None and tuple(full.shape[-2:]) != tuple(truth_size):
            # images are fitted by pixel areas, not corners, so predictions are scaled back likewise
            full = F.interpolate(full, size=truth_size, mode="bilinear", align_corners=False)
    elif fit == "squash":
        full = upsample(full, truth_size)
    else:
        longer = max(truth_size)
        full = upsample(full, (longer, longer))[..., : truth_size[0], : truth_size[1]]
    return (full[0, 1] > full[0, 0]).cpu().numpy()


def evaluate(run: Run, model: FewShotModel, source: Source, plans: Plans) -> EvaluationRecord:
    """Score `model` on the fold's novel classes under the run's protocol.

    A novel class with too few images for an episode is left out and named; the result is then partial. One that has
    the images and is not drawn in a seed has no score there; `protocol.undrawn` says what it counts. Each of several
    processes takes whole batches in turn, so that the score is the same to the last digit on any number of them.

    Raises:
        UserError: the data is faulty.
        Preempted: when the run was asked to stop.
    """
    cfg = run.cfg
    started = time.monotonic()
    plan, shifted, total = plans.evaluation, plans.shifted, plans.num_episodes
    assert plan is not None
    log.info("evaluating %d episodes (%d seeds) of %d novel classes: %s", total, len(plan.episodes), len(plan.classes),
             ", ".join(source.classes[c] for c in plan.classes))  # fmt: skip
    if plan.missing_classes:
        names = ", ".join(source.classes[c] for c in plan.missing_classes)
        log.warning(
            "no episode of %s (too few images): the result is partial, not comparable with published ones", names
        )

    wanted = figure_numbers(next(iter(plan.episodes.values())), cfg.logger.figures)
    model.eval()
    with torch.inference_mode(), Progress("evaluate", total) as progress:
        scoring = Scoring(run, model, source, progress)
        metrics = scoring.score(plan, wanted)
        if shifted:
            metrics.by_background_shift = {shift: scoring.score(p) for shift, p in shifted.items()}

    seconds = time.monotonic() - started
    log.info("mIoU %.2f (std %.2f over %d seeds; answering \"all foreground\" scores %.2f), FB-IoU %.2f, in %s",
             metrics.miou, metrics.miou_std, len(plan.episodes), metrics.miou_all_foreground, metrics.fb_iou,
             duration(seconds))  # fmt: skip
    for shift, of_shift in metrics.by_background_shift.items():
        log.info("background_shift %s: mIoU %.2f (std %.2f)", shift, of_shift.miou, of_shift.miou_std)
    pictures = [picture for part in distributed.gather(scoring.pictures, run.ranks) for picture in part]
    order = {number: i for i, number in enumerate(wanted)}
    pictures.sort(key=lambda p: order[p.spec.number])
    return EvaluationRecord(
        metrics=metrics, episodes_fingerprint=plan.fingerprint,
        missing_classes=[source.classes[c] for c in plan.missing_classes], protocol=_protocol_of_file(cfg, plan),
        dataset_fingerprint=plan.index_fingerprint, seconds=round(seconds, 2), pictures=pictures,
    )  # fmt: skip


def _protocol_of_file(cfg: Config, plan: EvaluationPlan) -> dict[str, Any]:
    """The fields that `protocol.episodes_file` replaced; see `EvaluationRecord.protocol`.

    `num_episodes` is a list, one number a seed, where they differ. `episodes_list` says which protocol the list was
    drawn under, and the fingerprint of all of it (a run of fewer shots takes the first supports of each line).
    """
    if cfg.protocol.episodes_file is None:
        return {}
    with Path(cfg.protocol.episodes_file).open(encoding="utf-8") as file:
        head = head_of(file)
    counts = [len(specs) for specs in plan.episodes.values()]
    return {
        "seeds": list(plan.episodes),
        "num_episodes": counts[0] if len(set(counts)) == 1 else counts,
        "query_order": "episodes_file",
        "episodes_list": {"protocol": head.get("protocol"), "fingerprint": head.get("fingerprint")},
    }


@dataclass
class Scoring:
    """Scores plans with one model: the arguments of `evaluate`, and the state kept from one plan to the next.

    `progress` counts the episodes, and the run's status shows it; None counts and shows nothing.
    """

    run: Run
    model: FewShotModel
    source: Source
    progress: Progress | None = None
    pictures: list[Picture] = field(default_factory=list)

    def score(self, plan: EvaluationPlan, wanted: Sequence[int] = ()) -> Metrics:
        """The metrics of all seeds of a plan; episodes `wanted` of its first seed are added to `pictures`."""
        classes, names, ranks = list(plan.classes), self.source.classes, self.run.ranks
        per_seed: list[SeedScore] = []
        ious: list[list[float]] = []
        rounds: list[list[float]] = []
        distances: list[float | None] = []
        for position, (seed, specs) in enumerate(plan.episodes.items()):
            scores, own_distances = self._seed(plan, specs, wanted if position == 0 else ())
            scores = _pool(scores, len(names), ranks)
            share = self._share(scores[-1], classes)
            per_seed.append(self._seed_score(seed, specs, scores[-1], classes))
            ious.append([scores[-1].iou(c) if scores[-1].episodes[c] else float("nan") for c in classes])
            rounds.append([score.miou(_drawn(score, classes)) * share for score in scores])
            distances += [d for part in distributed.gather(own_distances, ranks) for d in part]
        miou, foreground = [s.miou for s in per_seed], [s.fb_iou or 0.0 for s in per_seed]
        return Metrics(
            miou=statistics.fmean(miou),
            miou_std=_deviation(miou),
            miou_all_foreground=statistics.fmean(s.miou_all_foreground or 0.0 for s in per_seed),
            fb_iou=statistics.fmean(foreground),
            fb_iou_std=_deviation(foreground),
            per_seed=per_seed,
            per_class={names[c]: _mean_of([row[i] for row in ious]) for i, c in enumerate(classes)},
            miou_per_round=[statistics.fmean(column) for column in zip(*rounds)],
            miou_undrawn=_undrawn(per_seed),
            foreground_distance=diagnostics.distance_summary(distances) if self.run.cfg.eval.diagnostics else None,
        )  # fmt: skip

    def _share(self, score: PooledScore, classes: Sequence[int]) -> float:
        """What makes of a mean over the drawn classes the mIoU of `classes` under `protocol.undrawn`, if multiplied."""
        return len(_drawn(score, classes)) / len(classes) if self.run.cfg.protocol.undrawn == "zero" else 1.0

    def _seed_score(self, seed: int, specs: list[EpisodeSpec], score: PooledScore, classes: Sequence[int]) -> SeedScore:
        drawn, share = _drawn(score, classes), self._share(score, classes)
        absent = [self.source.classes[c] for c in classes if c not in drawn]
        both = Undrawn(score.miou(drawn), score.miou(drawn) * len(drawn) / len(classes), absent) if absent else None
        if both is not None:
            log.warning("seed %d drew no episode of %s: mIoU %.2f if left out, %.2f if counted 0 (protocol.undrawn=%s)",
                        seed, ", ".join(absent), both.left_out, both.zero, self.run.cfg.protocol.undrawn)  # fmt: skip
        return SeedScore(
            seed=seed, miou=score.miou(drawn) * share, fb_iou=score.fb_iou(),
            miou_all_foreground=score.miou_all_foreground(drawn) * share,
            num_episodes=len(specs), episodes_fingerprint=episodes_fingerprint({seed: specs}),
            classes_without_episode=absent, miou_undrawn=both,
        )  # fmt: skip

    def _seed(
        self, plan: EvaluationPlan, specs: list[EpisodeSpec], wanted: Sequence[int]
    ) -> tuple[list[PooledScore], list[float | None]]:
        """Scores of every round, and foreground distances if asked for, over this process's share of one seed."""
        own = distributed.batches_of_rank(specs, (self.run.cfg.eval.batch_size or 8), self.run.ranks)
        loader = evaluation_loader(self.source, self.run.cfg, own, plan.split, plan.ignore_classes)
        with closing(iter(loader)) as batches:
            return self._scores(batches, specs, plan.classes, wanted)

    def _scores(
        self, batches: Iterator[Batch], specs: list[EpisodeSpec], classes: Sequence[int], wanted: Sequence[int]
    ) -> tuple[list[PooledScore], list[float | None]]:
        run = self.run
        cfg, ranks, device, fit = run.cfg, run.ranks, run.device, run.cfg.protocol.fit
        assert device is not None
        scores: list[PooledScore] = []
        distances: list[float | None] = []
        for _ in range(math.ceil(len(specs) / ((cfg.eval.batch_size or 8) * ranks.world))):
            batch = distributed.next_batch(batches, run.should_stop, ranks)
            if batch is None:
                continue  # in the last turn only some processes have a batch
            batch = batch.to(device)
            prediction: Prediction = self.model(batch)
            _check_finite(prediction, batch.specs)
            size = (batch.query_image.shape[-2], batch.query_image.shape[-1])
            scores += [PooledScore(len(self.source.classes)) for _ in range(len(prediction.rounds) - len(scores))]
            if cfg.eval.diagnostics:
                distances += diagnostics.foreground_distances(prediction, batch.query_mask)
            for b, spec in enumerate(batch.specs):
                truth = batch.query_truths[b]
                assert truth is not None
                valid = batch.valid_sizes[b]
                own_size: tuple[int, int] | None = (truth.shape[0], truth.shape[1])
                if cfg.protocol.scoring_size == "network":
                    truth, own_size = batch.query_mask[b, : valid[0], : valid[1]].cpu().numpy(), None
                for logits, score in zip(prediction.rounds, scores, strict=True):
                    mask = predicted_foreground(logits[b], size, valid, own_size, fit)
                    iou = score.add(spec.class_id, mask, truth)
                if spec.number in wanted:
                    ways = diagnostics.steps(prediction) if cfg.logger.steps else []
                    drawn = [(name, predicted_foreground(p[b], size, valid, own_size, fit)) for name, p in ways]
                    self.pictures.append(Picture(spec, mask, iou, drawn))
            self._show(scores[-1], classes, len(batch) * ranks.world)
        return scores, distances

    def _show(self, so_far: PooledScore, classes: Sequence[int], episodes: int) -> None:
        if (progress := self.progress) is None:
            return
        miou = so_far.miou([c for c in classes if so_far.episodes[c]])
        progress.step(f"mIoU {miou:.1f}", min(episodes, progress.total - progress.done))
        self.run.status.update(
            phase="evaluate", step=progress.done, steps=progress.total, miou=round(miou, 3),
            seconds_per_step=round(progress.seconds_per_step, 4), eta_seconds=round(progress.eta_seconds, 1),
        )  # fmt: skip


def _check_finite(prediction: Prediction, specs: Sequence[EpisodeSpec]) -> None:
    """Raises: UserError: an answer holds NaN or infinity; its arg max would be scored like any other."""
    for logits in prediction.rounds:
        if not bool(torch.isfinite(logits).all()):
            sick = next(b for b in range(len(logits)) if not bool(torch.isfinite(logits[b]).all()))
            raise UserError(
                f"the answer to evaluation episode {specs[sick].number} holds numbers that are not finite",
                "the weights have diverged: train anew with a lower train.lr, or give another checkpoint",
            )


def _undrawn(per_seed: Sequence[SeedScore]) -> Undrawn | None:
    """Both figures of all seeds; None if each drew every class."""
    names = [name for s in per_seed for name in s.classes_without_episode]
    both = [s.miou_undrawn or Undrawn(s.miou, s.miou) for s in per_seed]
    if not names:
        return None
    left_out, zero = statistics.fmean(b.left_out for b in both), statistics.fmean(b.zero for b in both)
    return Undrawn(left_out, zero, list(dict.fromkeys(names)))


def _drawn(score: PooledScore, classes: Sequence[int]) -> list[int]:
    """Those of the classes that have an episode."""
    return [c for c in classes if score.episodes[c]]


def _pool(scores: list[PooledScore], num_classes: int, ranks: Ranks) -> list[PooledScore]:
    """The scores of every round over all processes: sums of integers. A process without a batch adds none."""
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


def figure_numbers(specs: list[EpisodeSpec], count: int) -> list[int]:
    """Episodes to draw: the first of each class in turn, then the second of each, chosen before any is scored."""
    by_class: dict[int, list[int]] = {}
    for spec in specs:
        by_class.setdefault(spec.class_id, []).append(spec.number)
    turns = max((len(v) for v in by_class.values()), default=0)
    ordered = [numbers[turn] for turn in range(turns) for numbers in by_class.values() if turn < len(numbers)]
    return ordered[:count]
