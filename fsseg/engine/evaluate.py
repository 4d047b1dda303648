"""Evaluation on novel classes: the counts of every episode of every seed, and the score that follows from them.

Called by `fsseg.run`. `fsseg.engine.scoring` makes the counts.
"""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import nn

from fsseg.cell.episodes import OWN, EpisodeCounts, EpisodePart, PartHead, write_counts
from fsseg.cell.models import BestCheckpoint, EpisodesRecord, Metrics, SeedScore, Undrawn
from fsseg.config.constraints import BEST
from fsseg.config.schema import Config
from fsseg.data.episode_file import head_of
from fsseg.data.episodes import episodes_fingerprint
from fsseg.data.loader import EvaluationPlan
from fsseg.data.source import Source
from fsseg.data.types import EpisodeSpec
from fsseg.engine import diagnostics, distributed, precision
from fsseg.engine.checkpoint import Chosen
from fsseg.engine.context import Run
from fsseg.engine.metrics import PooledScore
from fsseg.engine.progress import Progress, duration
from fsseg.engine.ready import Plans, steps_of
from fsseg.engine.scoring import Picture, Scoring, scope_of
from fsseg.model.base import FewShotModel

log = logging.getLogger("fsseg")


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
    episodes_fingerprint: str
    pictures: list[Picture] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    episodes: EpisodesRecord | None = None


def evaluate(run: Run, model: FewShotModel, source: Source, plans: Plans) -> EvaluationRecord:
    """Score `model` on the fold's novel classes under the run's protocol.

    A novel class with too few images for an episode is left out and named; the result is then partial. One that has
    the images and is not drawn in a seed has no score there; `protocol.undrawn` says what it counts. Each of several
    processes takes whole batches, so that the score is the same to the last digit on any number of them. What was
    counted before an interruption is not counted again.

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

    first, specs = next(iter(plan.episodes.items()))
    wanted = [(first, number) for number in figure_numbers(specs, cfg.logger.figures)]
    counts, drawn = _counted(run, model, source, {OWN: plan, **shifted}, wanted)
    metrics = metrics_of(run.cfg, source, plan, counts)
    metrics.by_background_shift = {s: metrics_of(run.cfg, source, p, counts, s) for s, p in shifted.items()}
    run.still_ours()
    record = write_counts(run.cell.episodes_file, counts) if run.ranks.first else None

    log.info("mIoU %.2f (std %.2f over %d seeds; answering \"all foreground\" scores %.2f), FB-IoU %.2f, in %s",
             metrics.miou, metrics.miou_std, len(plan.episodes), metrics.miou_all_foreground, metrics.fb_iou,
             duration(time.monotonic() - started))  # fmt: skip
    for shift, of_shift in metrics.by_background_shift.items():
        log.info("background_shift %s: mIoU %.2f (std %.2f)", shift, of_shift.miou, of_shift.miou_std)
    pictures = [picture for part in distributed.gather(drawn, run.ranks) for picture in part]
    pictures.sort(key=lambda p: wanted.index((p.seed, p.spec.number)))
    return EvaluationRecord(
        metrics=metrics, episodes_fingerprint=plan.fingerprint,
        missing_classes=[source.classes[c] for c in plan.missing_classes], protocol=_protocol_of_file(cfg, plan),
        pictures=pictures, episodes=record,
    )  # fmt: skip


def evaluate_chosen(
    run: Run, model: FewShotModel, source: Source, plans: Plans, chosen: Sequence[Chosen],
    last: EvaluationRecord | None,
) -> dict[str, BestCheckpoint]:  # fmt: skip
    """Score the best checkpoints of a training (`train.select`), each on the protocol's own episodes.

    The model is left with other weights than its last ones, so this comes after `evaluate`.

    Args:
        last: what `evaluate` found of the last checkpoint; None scores nothing.

    Raises:
        UserError, Preempted: as of `evaluate`.
    """
    if last is not None and plans.evaluation is not None and plans.training is not None:
        known = {steps_of(plans.training, run.cfg): structs.replace(last.metrics, by_background_shift={})}
        for best in chosen:
            record, started = best.record, time.monotonic()
            log.info("the checkpoint of step %d is the %s", record.step, BEST[best.kind])
            if record.step not in known:
                model.load_state_dict(best.weights, strict=False)  # all that it lacks is frozen
                counts, _ = _counted(run, model, source, {OWN: plans.evaluation}, kind=best.kind)
                known[record.step] = metrics_of(run.cfg, source, plans.evaluation, counts)
            record.metrics, record.seconds = known[record.step], round(time.monotonic() - started, 2)
            log.info("mIoU %.2f, beside %.2f of the last checkpoint, which is the result",
                     record.metrics.miou, last.metrics.miou)  # fmt: skip
    return {best.kind: best.record for best in chosen}


def _counted(
    run: Run, model: FewShotModel, source: Source, plans: Mapping[str, EvaluationPlan],
    wanted: Sequence[tuple[int, int]] = (), kind: str | None = None,
) -> tuple[EpisodeCounts, list[Picture]]:  # fmt: skip
    """The counts of all episodes of the plans, and this process's pictures of those `wanted`.

    Args:
        kind: of a checkpoint beside the last one.
    """
    total = sum(len(specs) for plan in plans.values() for specs in plan.episodes.values())
    model.eval()
    place = run.cell.episodes_part if kind is None else run.cell.best_part(kind)
    part = _part(run, place, model, plans, source) if run.ranks.first else None
    try:
        done = 0 if part is None else len(part.have)
        if done:
            log.info("%d of %d episodes were evaluated before", done, total)
        progress = Progress("evaluate", total, done)
        scoring = Scoring(run, model, source, progress, part, beside=kind is not None)
        precision.prepare(model, scoring.device, scoring.amp)
        with torch.inference_mode(), progress:
            return scoring.counts(plans, wanted), scoring.pictures
    finally:
        if part is not None:
            part.close()


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


def _part(
    run: Run, place: Path, model: FewShotModel, plans: Mapping[str, EvaluationPlan], source: Source
) -> EpisodePart:
    """The record of what was evaluated so far, of these weights on these episodes."""
    plan = next(iter(plans.values()))
    head = PartHead(
        run=run.id, fingerprint=run.cell.fingerprint, weights=weights_digest(model), data=plan.index_fingerprint,
        images=source.images_fingerprint(plan.split),
        episodes={shift: of_shift.fingerprint for shift, of_shift in plans.items()},
    )  # fmt: skip
    return EpisodePart(place, head, scope_of(plans, source))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names and numbers of all weights and statistics."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def metrics_of(cfg: Config, source: Source, plan: EvaluationPlan, counts: EpisodeCounts, shift: str = OWN) -> Metrics:
    """The metrics of all seeds of a plan, from the counts of its episodes, which are those of `shift`."""
    classes, names = list(plan.classes), source.classes
    per_seed: list[SeedScore] = []
    ious: list[list[float]] = []
    rounds: list[list[float]] = []
    for seed, specs in plan.episodes.items():
        scores = PooledScore.of_rounds(counts.select(shift, seed), len(names))
        share = _share(cfg, scores[-1], classes)
        per_seed.append(_seed_score(cfg, source, {seed: specs}, scores[-1], classes))
        ious.append([scores[-1].iou(c) if scores[-1].episodes[c] else float("nan") for c in classes])
        rounds.append([score.miou(_drawn(score, classes)) * share for score in scores])
    miou, foreground = [s.miou for s in per_seed], [s.fb_iou or 0.0 for s in per_seed]
    distances = [None if math.isnan(d) else d for d in counts.select(shift)["distance"].tolist()]
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
        foreground_distance=diagnostics.distance_summary(distances) if cfg.eval.diagnostics else None,
    )


def _share(cfg: Config, score: PooledScore, classes: Sequence[int]) -> float:
    """What makes of a mean over the drawn classes the mIoU of `classes` under `protocol.undrawn`, if multiplied."""
    return len(_drawn(score, classes)) / len(classes) if cfg.protocol.undrawn == "zero" else 1.0


def _seed_score(
    cfg: Config, source: Source, episodes: dict[int, list[EpisodeSpec]], score: PooledScore, classes: Sequence[int]
) -> SeedScore:
    """The score of one seed, whose episodes are given."""
    ((seed, specs),) = episodes.items()
    drawn, share = _drawn(score, classes), _share(cfg, score, classes)
    absent = [source.classes[c] for c in classes if c not in drawn]
    both = Undrawn(score.miou(drawn), score.miou(drawn) * len(drawn) / len(classes), absent) if absent else None
    if both is not None:
        log.warning("seed %d drew no episode of %s: mIoU %.2f if left out, %.2f if counted 0 (protocol.undrawn=%s)",
                    seed, ", ".join(absent), both.left_out, both.zero, cfg.protocol.undrawn)  # fmt: skip
    return SeedScore(
        seed=seed, miou=score.miou(drawn) * share, fb_iou=score.fb_iou(),
        miou_all_foreground=score.miou_all_foreground(drawn) * share,
        num_episodes=len(specs), episodes_fingerprint=episodes_fingerprint(episodes),
        classes_without_episode=absent, miou_undrawn=both,
    )  # fmt: skip


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
