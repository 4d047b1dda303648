"""Validation on base classes during training: `eval.every_epochs`. Called by the training loop.

It shows whether training goes on to help on images that nobody trains on, without a look at the novel classes. It
chooses nothing, and must leave no trace in the training: weights, statistics and random numbers stay as they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from fsseg.cell.episodes import OWN
from fsseg.cell.models import BaseScore, BaseScores
from fsseg.data.loader import TrainingPlan
from fsseg.data.source import Source
from fsseg.engine import checkpoint
from fsseg.engine.context import Run
from fsseg.engine.evaluate import metrics_of
from fsseg.engine.progress import duration
from fsseg.engine.scoring import Scoring
from fsseg.model.base import FewShotModel
from fsseg.process.words import every

log = logging.getLogger("fsseg")


class BaseValidation:
    """When to validate, the scores so far, and how to make the next.

    Args:
        run, model, source: of the training.
        plan: of the training; without episodes to validate on, a validation is never due.
        steps: of the whole training; after the last one there is a validation too.

    Attributes:
        seconds: that all validations took.
    """

    def __init__(self, run: Run, model: FewShotModel, source: Source, plan: TrainingPlan, steps: int) -> None:
        self.run, self.model, self.source, self.plan, self.steps = run, model, source, plan, steps
        self.seconds = 0.0
        self._scores: list[BaseScore] = []
        if plan.validation is not None and run.ranks.first:
            self._announce()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; empty without validation."""
        if self.plan.validation is None:
            return {}
        return {"base_scores": msgspec.to_builtins(self._scores), "base_seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._scores = msgspec.convert(state.get("base_scores", []), list[BaseScore])
        self.seconds = state.get("base_seconds", 0.0)

    def due(self, step: int) -> bool:
        """Whether the model of this step is to be validated now: every n-th epoch, and after the last step."""
        if self.plan.validation is None or (self._scores and self._scores[-1].step >= step):
            return False
        return step == self.steps or (step > 0 and step % self._every == 0)

    def score(self, step: int) -> dict[str, Any]:
        """Validate the model of this step; its row of metrics.csv. All ranks call it.

        Raises:
            Preempted: when the run was asked to stop; the validation is still due then.
            UserError: faulty data, or an answer that is no number.
        """
        assert self.plan.validation is not None
        began = time.monotonic()
        random = checkpoint.rng_state()
        self.model.eval()
        try:
            # No inference mode: what a method keeps from one call to the next must be of use in training.
            with torch.no_grad():
                counts = Scoring(self.run, self.model, self.source).counts({OWN: self.plan.validation})
            found = metrics_of(self.run.cfg, self.source, self.plan.validation, counts)
        finally:
            self.model.train()
            checkpoint.set_rng_state(random)
            self.seconds += time.monotonic() - began
        epoch = round(step / self.plan.steps_per_epoch, 4)
        assert found.fb_iou is not None
        self._scores.append(BaseScore(step, epoch, found.miou, found.fb_iou))
        log.info("base classes after %.1f epochs: mIoU %.2f, FB-IoU %.2f, in %s",
                 epoch, found.miou, found.fb_iou, duration(time.monotonic() - began))  # fmt: skip
        return {"step": step, "epoch": epoch, "base/miou": found.miou, "base/fb_iou": found.fb_iou}

    @property
    def seconds_left(self) -> float:
        """Of the validations to come, by those that were made."""
        if not self._scores:
            return 0.0
        left = math.ceil(self.steps / self._every) - len(self._scores)
        return left * self.seconds / len(self._scores)

    def record(self) -> BaseScores | None:
        """What result.json says of it; None without validation."""
        plan = self.plan.validation
        if plan is None:
            return None
        return BaseScores(
            miou=self._scores[-1].miou, fb_iou=self._scores[-1].fb_iou, images=self.plan.held_out,
            episodes=self.run.cfg.eval.base_episodes, episodes_fingerprint=plan.fingerprint,
            classes_without_episode=[self.source.classes[c] for c in plan.missing_classes],
            seconds=round(self.seconds, 2), scores=self._scores,
        )  # fmt: skip

    @property
    def _every(self) -> int:
        """Steps between two validations."""
        return self.run.cfg.eval.every_epochs * self.plan.steps_per_epoch

    def _announce(self) -> None:
        plan, settings = self.plan.validation, self.run.cfg.eval
        assert plan is not None
        log.info("%d training images are held back: %s, %d episodes of %d base classes on them",
                 self.plan.held_out, every(settings.every_epochs, "epoch"), settings.base_episodes,
                 len(plan.classes))  # fmt: skip
        if plan.missing_classes:
            names = ", ".join(self.source.classes[c] for c in plan.missing_classes)
            log.warning("base-class validation has no episode of %s: too few of its images are held back "
                        "(eval.base_share), or none was drawn (eval.base_episodes)", names)  # fmt: skip
