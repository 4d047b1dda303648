"""What training, saving and evaluating will need, before the first step: the plans of both, and room on the disk.

Called by `fsseg.run` at every start, and by `check`. What needs neither data nor a model is looked at before that, by
`fsseg.sweep.preflight`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from fsseg.cell.record import Cell
from fsseg.config.schema import Config, trains
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.data.base_images import BaseEvaluationPlan, base_evaluation_plan, base_training_plan
from fsseg.data.loader import EvaluationPlan, TrainingPlan, evaluation_plan, training_plan
from fsseg.data.source import Source
from fsseg.engine.checkpoint import size_of, size_of_weights
from fsseg.errors import UserError, merge_errors
from fsseg.process.words import size
from fsseg.sweep.preflight import SMALL_FILES, nearest, room_fault

T = TypeVar("T")


@dataclass(frozen=True)
class Plans:
    """What a run trains on and evaluates; None for what it does not do.

    Attributes:
        shifted: the evaluation under each of `eval.background_shifts`.
        base: the evaluation of a base learner, which has no other.
    """

    training: TrainingPlan | None
    evaluation: EvaluationPlan | None
    shifted: dict[str, EvaluationPlan]
    base: BaseEvaluationPlan | None = None

    @property
    def num_episodes(self) -> int:
        """Evaluation episodes of all seeds and shifts."""
        plans = [] if self.evaluation is None else [self.evaluation, *self.shifted.values()]
        return sum(len(specs) for plan in plans for specs in plan.episodes.values())


def make_plans(source: Source, cfg: Config) -> Plans:
    """The plans of a run whose data are checked.

    Raises:
        UserError: there is nothing to train on, or nothing that can be scored; all in one go.
    """
    found: list[UserError] = []

    def tried(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except UserError as error:
            found.append(error)
            return None

    if cfg.model.name in BASE_LEARNERS:
        images = tried(lambda: base_training_plan(source, cfg)) if cfg.train.enabled else None
        base = tried(lambda: base_evaluation_plan(source, cfg)) if cfg.eval.enabled else None
        if found:
            raise merge_errors(found)
        return Plans(images, None, {}, base)
    training = tried(lambda: training_plan(source, cfg)) if cfg.train.enabled and trains(cfg) else None
    evaluation = tried(lambda: evaluation_plan(source, cfg)) if cfg.eval.enabled else None
    shifts = cfg.eval.background_shifts if evaluation is not None else []
    shifted = {str(float(shift)): evaluation_plan(source, _shifted(cfg, shift)) for shift in shifts}
    if found:
        raise merge_errors(found)
    if training is not None and evaluation is not None and "best_novel" in cfg.train.select:
        training = replace(training, novel=evaluation.beginning(cfg.train.select_episodes))
    return Plans(training, evaluation, shifted)


def _shifted(cfg: Config, shift: float) -> Config:
    """The configuration under another `dataset.background_shift`."""
    changed = copy.deepcopy(cfg)
    changed.dataset.background_shift = shift  # type: ignore[attr-defined]
    return changed


def steps_of(plan: TrainingPlan, cfg: Config) -> int:
    """Steps of the whole training."""
    total = plan.steps_per_epoch * cfg.train.epochs
    return total if cfg.train.max_steps is None else min(total, cfg.train.max_steps)


@dataclass(frozen=True)
class Room:
    """The disk that a run needs below its output folder, in bytes.

    Attributes:
        checkpoint: size of one; 0 for a run that writes none.
        needed: what is still to be written at the most.
        free: what is there.
    """

    folder: Path
    checkpoint: int
    needed: float
    free: int

    def fault(self) -> UserError | None:
        what = f"up to 3 checkpoints of {size(self.checkpoint)}, and logs" if self.checkpoint else "logs and figures"
        return room_fault(self.folder, f"the run ({what})", self.needed, self.free) if self.needed > self.free else None


def room_of(model: nn.Module, cfg: Config, cell: Cell) -> Room:
    """While a checkpoint is written there are three of them: the last, the one before it, and the new one.

    Each holds the best weights so far of every kind in `train.select`, which have a file of their own in the end.
    """
    one = best = 0
    if cfg.train.enabled and trains(cfg):
        one = size_of(model, cfg.train.optimizer, len(cfg.train.select))
        best = size_of_weights(model) * len(cfg.train.select)
    there = 0 if cfg.redo else sum(path.is_file() for path in (cell.checkpoint, cell.previous_checkpoint))
    free = shutil.disk_usage(nearest(cell.directory)).free
    return Room(Path(cfg.output_dir), one, SMALL_FILES + one * (3 - there) + best, free)
