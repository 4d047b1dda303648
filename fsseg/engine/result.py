"""Builds the `Result` of result.json from what a run did. Called by `fsseg.run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from fsseg.cell.attempt import now
from fsseg.cell.models import BaseClassMetrics, BestCheckpoint, DataRecord, Origin, Result, Timing, Training
from fsseg.config.entry import resolved
from fsseg.config.history import ACT_ELSEWHERE, STANDARD_POOL
from fsseg.engine.context import Run
from fsseg.engine.devices import describe_device, peak_memory
from fsseg.process.provenance import provenance

if TYPE_CHECKING:
    from fsseg.data.source import Source
    from fsseg.engine.evaluate import EvaluationRecord


@dataclass
class Work:
    """What a run did.

    Attributes:
        came_from: the checkpoint it started from.
        base_learner: what its backbone came from (`backbone.base_training`).
        base_classes: the score of a base learner.
        training: None if nothing was trained.
        train_data: fingerprint of the training split's index.
        weights: the file that its backbone was read from (`Backbone.weights`).
        best: checkpoints beside the last one, by kind (`train.select`).
    """

    source: Source
    came_from: Origin | None = None
    training: Training | None = None
    train_data: str | None = None
    evaluation: EvaluationRecord | None = None
    best: dict[str, BestCheckpoint] = field(default_factory=dict)
    base_learner: Origin | None = None
    base_classes: BaseClassMetrics | None = None
    weights: dict[str, str] | None = None
    timing: Timing = field(default_factory=Timing)


def build_result(run: Run, done: Work) -> Result:
    """The content of result.json."""
    from fsseg.engine.diagnostics import cost_summary  # here, because a finished cell must not import torch

    cfg, cell, source, evaluation = run.cfg, run.cell, done.source, done.evaluation
    assert run.device is not None
    scored = evaluation is not None or done.base_classes is not None
    return Result(
        cell=cell.find_key() or cell.key,
        fingerprint=cell.fingerprint,
        report=cfg.report,
        model=resolved(cfg.model),
        protocol=rules_followed(run) | (evaluation.protocol if evaluation else {}),
        metrics=evaluation.metrics if evaluation else None,
        episodes=evaluation.episodes if evaluation else None,
        best_novel=done.best.get("best_novel", UNSET),
        best_base=done.best.get("best_base", UNSET),
        partial=bool(evaluation and evaluation.missing_classes),
        missing_classes=evaluation.missing_classes if evaluation else [],
        dataset=DataRecord(
            name=cfg.dataset.name,
            novel_classes=[source.classes[c] for c in source.novel_classes(cfg.fold)],
            num_val_images=len(source.index("val").image_ids) if scored else None,
            train_list=source.list_origin("train") if done.training else None,
            val_list=source.list_origin("val") if scored else None,
            mask_rule=source.mask_rule,
            fingerprint_train=done.train_data,
            fingerprint_val=source.index("val").fingerprint if scored else None,
            images_train=source.images_fingerprint("train") if done.training else None,
            images_val=source.images_fingerprint("val") if scored else None,
            episodes_fingerprint=evaluation.episodes_fingerprint if evaluation else None,
        ),
        training=done.training,
        cost=cost_summary(cfg) if cfg.eval.diagnostics else None,
        checkpoint=done.came_from,
        base_classes=done.base_classes,
        base_learner=done.base_learner,
        timing=done.timing,
        peak_memory_bytes=peak_memory(run.device),
        provenance=provenance(describe_device(run.device)) | {"weights": _weights(done)},
        finished_at=now(),
        run=run.id,
    )


def _weights(done: Work) -> dict[str, str] | None:
    """Which file the backbone started from; None where a checkpoint, which the result names, took its place."""
    return None if done.came_from is not None or done.base_learner is not None else done.weights


_RULES = ("protocol.", *(f"{key}=" for key in ACT_ELSEWHERE.values()))


def rules_followed(run: Run) -> dict[str, Any]:
    """The protocol, with what the line has put in place of its pool and size. A list that is a file goes by content.

    A preset that says what it is not says so too of the rules that the line changed.
    """
    rules, identity = resolved(run.cfg.protocol), run.cell.identity
    for key, other in ACT_ELSEWHERE.items():
        rule, now = key.removeprefix("protocol."), identity.get(other)
        if rules[rule] is not None and rules[rule] != now and (rules[rule], now) != (STANDARD_POOL, None):
            rules[rule] = now
    if unlike := [words for words in rules["unlike"] if words]:  # empty: of other data or another backbone
        changed = [o.lstrip("+") for o in run.cell.overrides or () if o.lstrip("+").startswith(_RULES)]
        unlike += [f"changed by the line: {o}" for o in changed if not o.startswith("protocol.unlike")]
    return rules | {"unlike": unlike}
