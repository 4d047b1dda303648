"""Validation during training: base classes (`eval.every_epochs`), and novel ones (`train.select`). The loop calls it.

On images of base classes that nobody trains on, it shows whether training goes on to help, without a look at the novel
classes. With `train.select` it keeps the weights that scored best so far, beside the last ones, which are the result
always. It must leave no trace in the training: weights, statistics and random numbers stay as they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from msgspec import UNSET, UnsetType
from torch import Tensor

from fsseg.cell.episodes import OWN
from fsseg.cell.models import BaseScores, BestCheckpoint, NovelScores, ValidationScore
from fsseg.cell.record import Cell
from fsseg.config.schema import Config
from fsseg.data.loader import EvaluationPlan, TrainingPlan
from fsseg.data.source import Source
from fsseg.engine import checkpoint
from fsseg.engine.checkpoint import Chosen
from fsseg.engine.context import Run
from fsseg.engine.evaluate import metrics_of
from fsseg.engine.progress import duration
from fsseg.engine.scoring import Scoring
from fsseg.errors import UserError
from fsseg.model.base import FewShotModel
from fsseg.process.words import every

log = logging.getLogger("fsseg")

BASE, NOVEL = "base", "novel"
"""Which classes a validation scores; what a checkpoint and metrics.csv hold of it is named so."""


class Validation:
    """When to validate, the scores so far, how to make the next, and the weights of the best.

    Args:
        run, model, source: of the training.
        classes: BASE or NOVEL.
        plan: of the training, with episodes of these classes to validate on.
        steps: of the whole training; after the last one there is a validation too.

    Attributes:
        seconds: that all validations took.
        weights: of the best one so far (`checkpoint.changing_weights`), if they are kept.
    """

    def __init__(
        self, run: Run, model: FewShotModel, source: Source, classes: str, plan: TrainingPlan, steps: int
    ) -> None:
        self.run, self.model, self.source, self.classes = run, model, source, classes
        self.plan, self.steps = plan, steps
        self.episodes = episodes_of(plan, classes)
        self.kind = f"best_{classes}"
        self.kept = self.kind in run.cfg.train.select
        self.seconds = 0.0
        self.weights: dict[str, Tensor] = {}
        self._scores: list[ValidationScore] = []
        if run.ranks.first:
            self._announce()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        state = {f"{self.classes}_scores": msgspec.to_builtins(self._scores), f"{self.classes}_seconds": self.seconds}
        if self.classes == NOVEL:
            state["novel_rule"] = _rule(self.run.cfg, self.plan)
        return state | ({self.kind: self.weights} if self.kept else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint that `check_kept` has passed."""
        self._scores = msgspec.convert(state.get(f"{self.classes}_scores", []), list[ValidationScore])
        self.seconds = state.get(f"{self.classes}_seconds", 0.0)
        self.weights = {name: value.cpu() for name, value in state.get(self.kind, {}).items()} if self.kept else {}

    def due(self, step: int) -> bool:
        """Whether the model of this step is to be validated now: every n-th epoch, and after the last step."""
        if self._scores and self._scores[-1].step >= step:
            return False
        return step == self.steps or (step > 0 and step % self._every == 0)

    def score(self, step: int) -> dict[str, Any]:
        """Validate the model of this step; its row of metrics.csv. All ranks call it.

        Raises:
            Preempted: when the run was asked to stop; the validation is still due then.
            UserError: faulty data, or an answer that is no number.
        """
        began = time.monotonic()
        random = checkpoint.rng_state()
        self.model.eval()
        try:
            # No inference mode: what a method keeps from one call to the next must be of use in training.
            with torch.no_grad():
                counts = Scoring(self.run, self.model, self.source).counts({OWN: self.episodes})
            found = metrics_of(self.run.cfg, self.source, self.episodes, counts)
        finally:
            self.model.train()
            checkpoint.set_rng_state(random)
            self.seconds += time.monotonic() - began
        epoch = round(step / self.plan.steps_per_epoch, 4)
        assert found.fb_iou is not None
        best = self._best
        if self.kept and (best is None or found.miou > best.miou):  # on all ranks alike, as the counts are
            self.weights = checkpoint.changing_weights(self.model)
        self._scores.append(ValidationScore(step, epoch, found.miou, found.fb_iou))
        log.info("%s classes after %.1f epochs: mIoU %.2f, FB-IoU %.2f, in %s", self.classes,
                 epoch, found.miou, found.fb_iou, duration(time.monotonic() - began))  # fmt: skip
        names = (f"{self.classes}/miou", f"{self.classes}/fb_iou")
        return {"step": step, "epoch": epoch, **dict(zip(names, (found.miou, found.fb_iou)))}

    @property
    def seconds_left(self) -> float:
        """Of the validations to come, by those that were made."""
        if not self._scores:
            return 0.0
        left = math.ceil(self.steps / self._every) - len(self._scores)
        return left * self.seconds / len(self._scores)

    def base_scores(self) -> BaseScores:
        """What result.json says of base classes."""
        return BaseScores(
            miou=self._scores[-1].miou, fb_iou=self._scores[-1].fb_iou, images=self.plan.held_out,
            episodes=self._number, episodes_fingerprint=self.episodes.fingerprint,
            classes_without_episode=self._undrawn, seconds=round(self.seconds, 2), scores=self._scores,
        )  # fmt: skip

    def novel_scores(self) -> NovelScores:
        """What result.json says of novel classes."""
        return NovelScores(
            every_epochs=epochs_between(self.run.cfg, NOVEL), episodes=self._number,
            episodes_fingerprint=self.episodes.fingerprint, classes_without_episode=self._undrawn,
            seconds=round(self.seconds, 2), scores=self._scores,
        )  # fmt: skip

    def chosen(self) -> Chosen | None:
        """The best at the end of a training; None if it is not kept."""
        if not self.kept or (best := self._best) is None:
            return None
        record = BestCheckpoint(
            step=best.step, epoch=best.epoch, chosen_by=best.miou, validations=len(self._scores),
            every_epochs=epochs_between(self.run.cfg, self.classes), episodes=self._number,
        )  # fmt: skip
        return Chosen(self.kind, record, self.weights)

    @property
    def _best(self) -> ValidationScore | None:
        """The first of the best scores."""
        return max(self._scores, key=lambda score: score.miou, default=None)

    @property
    def _every(self) -> int:
        """Steps between two validations."""
        return epochs_between(self.run.cfg, self.classes) * self.plan.steps_per_epoch

    @property
    def _number(self) -> int:
        return sum(map(len, self.episodes.episodes.values()))

    @property
    def _undrawn(self) -> list[str]:
        return [self.source.classes[c] for c in self.episodes.missing_classes]

    def _announce(self) -> None:
        often, classes = every(epochs_between(self.run.cfg, self.classes), "epoch"), len(self.episodes.classes)
        if self.classes == NOVEL:
            log.warning("%s, %d episodes of %d novel classes choose a checkpoint, which is kept beside the last one; "
                        "its score is optimistic (train.select)", often, self._number, classes)  # fmt: skip
            return
        log.info("%d training images are held back: %s, %d episodes of %d base classes on them",
                 self.plan.held_out, often, self._number, classes)  # fmt: skip
        if self._undrawn:
            log.warning("base-class validation has no episode of %s: too few of its images are held back "
                        "(eval.base_share), or none was drawn (eval.base_episodes)",
                        ", ".join(self._undrawn))  # fmt: skip


class Validations:
    """All validations of a training, in the order in which they are made at a step; without any, none is ever due.

    Args:
        run, model, source, plan: of the training.
        steps: of the whole training.
    """

    def __init__(self, run: Run, model: FewShotModel, source: Source, plan: TrainingPlan, steps: int) -> None:
        self.plan = plan
        made = [classes for classes in (BASE, NOVEL) if _episodes(plan, classes) is not None]
        self._all = {classes: Validation(run, model, source, classes, plan, steps) for classes in made}

    def due(self, step: int) -> list[Validation]:
        """Those to be made now."""
        return [validation for validation in self._all.values() if validation.due(step)]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of them; empty without any."""
        return {name: value for validation in self._all.values() for name, value in validation.state().items()}

    def restore(self, state: Mapping[str, Any], run: Run) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: `train.select` is not as it was.
        """
        check_kept(state, run.cell, run.cfg, self.plan)
        for validation in self._all.values():
            validation.restore(state)

    @property
    def seconds(self) -> float:
        """That all of them took."""
        return sum(validation.seconds for validation in self._all.values())

    @property
    def seconds_left(self) -> float:
        """Of those to come, by those that were made."""
        return sum(validation.seconds_left for validation in self._all.values())

    def base_scores(self) -> BaseScores | None:
        return self._all[BASE].base_scores() if BASE in self._all else None

    def novel_scores(self) -> NovelScores | UnsetType:
        return self._all[NOVEL].novel_scores() if NOVEL in self._all else UNSET

    def chosen(self) -> list[Chosen]:
        """The best checkpoints at the end of a training."""
        found = (validation.chosen() for validation in self._all.values())
        return [best for best in found if best is not None]


def check_kept(state: Mapping[str, Any], cell: Cell, cfg: Config, plan: TrainingPlan) -> None:
    """Refuse to go on from a checkpoint where the best one would be that of a part of the training.

    `train.select` is no part of a cell's identity, for the result is the last checkpoint with and without it. So it may
    have come, or changed, since the checkpoint was written. Without it there is nothing to refuse.

    Raises:
        UserError: what was looked at until then is not what is to be looked at now.
    """
    for classes in (BASE, NOVEL):
        kind = f"best_{classes}"
        if kind not in cfg.train.select or _episodes(plan, classes) is None:
            continue
        every_steps = epochs_between(cfg, classes) * plan.steps_per_epoch
        made = {score["step"] for score in state.get(f"{classes}_scores", [])}
        due = set(range(every_steps, state["step"], every_steps))  # that of this very step may still be to come
        alike = classes == BASE or state.get("novel_rule") == _rule(cfg, plan)
        if not due <= made or (made and not (alike and kind in state)):
            raise UserError(
                f"{cell.checkpoint}: until step {state['step']} this training has not looked for {kind} as "
                "train.select says now",
                "leave train.select, train.select_epochs and train.select_episodes as they were, or set redo=true to "
                "train anew",
            )


def epochs_between(cfg: Config, classes: str) -> int:
    """Epochs from one validation to the next."""
    return cfg.eval.every_epochs if classes == BASE else cfg.train.select_epochs


def episodes_of(plan: TrainingPlan, classes: str) -> EvaluationPlan:
    """The episodes of a validation that is made."""
    found = _episodes(plan, classes)
    assert found is not None
    return found


def _episodes(plan: TrainingPlan, classes: str) -> EvaluationPlan | None:
    return plan.validation if classes == BASE else plan.novel


def _rule(cfg: Config, plan: TrainingPlan) -> list[Any]:
    """How novel classes are looked at: how often, and on which episodes."""
    return [cfg.train.select_epochs, None if plan.novel is None else plan.novel.fingerprint]
