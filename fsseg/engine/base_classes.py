"""Base learners: their score on the base classes, and how other cells start from them. Called by `fsseg.run`.

The score is the mean IoU of the base classes over images of the evaluation split, each image once; it is kept apart
from few-shot scores everywhere.
"""

from __future__ import annotations

import logging
import statistics
import time
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fsseg.cell.key import file_digest
from fsseg.cell.models import BaseClassMetrics, Origin
from fsseg.cell.record import Cell, open_cell
from fsseg.config.base_training import base_config
from fsseg.config.entry import resolved, typed
from fsseg.data.base_images import BaseEvaluationPlan, LabelledImage, labelled_images
from fsseg.data.source import IGNORE_INDEX, Source
from fsseg.engine import checkpoint, distributed, precision
from fsseg.engine.context import Run
from fsseg.engine.progress import Progress, duration
from fsseg.engine.scoring import logits_at_scoring_size
from fsseg.errors import Diverged, UserError
from fsseg.model.base import FewShotModel
from fsseg.model.base_learner import BaseLearner

if TYPE_CHECKING:
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg")


def evaluate_base(run: Run, model: FewShotModel, source: Source, plan: BaseEvaluationPlan) -> BaseClassMetrics:
    """Score a base learner on its own classes.

    Each of several processes takes part of the images; all numbers are sums of pixels, so the score is the same on any
    number of them. An evaluation that is interrupted starts anew.

    Raises:
        UserError: the data is faulty, or an answer holds numbers that are not finite.
        Preempted: when the run was asked to stop.
    """
    cfg, ranks, device = run.cfg, run.ranks, run.device
    assert device is not None
    assert isinstance(model, BaseLearner)
    started, names = time.monotonic(), [source.classes[c] for c in plan.base.classes]
    log.info("scoring %d base classes on %d images", len(names), len(plan.images))
    amp = precision.usable(cfg.eval.amp, device, "eval.amp")
    precision.prepare(model, device, amp)
    model.eval()
    mine = plan.images[ranks.rank :: ranks.world]
    turns = -(-len(plan.images) // ranks.world)
    table = torch.zeros(len(names) + 1, len(names) + 1, dtype=torch.int64)
    with (
        torch.inference_mode(), Progress("evaluate", len(plan.images)) as progress,
        closing(labelled_images(source, cfg, plan, mine)) as loaded,
    ):  # fmt: skip
        for turn in range(turns):
            item = distributed.next_batch(loaded, run.should_stop, ranks)
            if item is not None:
                with precision.autocast(device, amp):
                    kept = model.encode(item.image[None].to(device), item.picture[None], "query")
                table += confusion(*_answer(kept["logits"], item, model.backbone.patches, cfg), len(names) + 1)
            progress.step("", min(ranks.world, len(plan.images) - turn * ranks.world))
            run.status.update(phase="evaluate", step=progress.done, steps=progress.total,
                              eta_seconds=round(progress.eta_seconds, 1))  # fmt: skip
    counts = torch.tensor(distributed.add_up(table.flatten().tolist(), ranks)).view_as(table)
    found = metrics_of_table(counts, names, len(plan.images))
    log.info("mIoU of base classes %.2f, in %s", found.base_miou, duration(time.monotonic() - started))
    return found


def _answer(logits: Tensor, item: LabelledImage, patches: bool, cfg: Config) -> tuple[Tensor, Tensor]:
    """Predicted and true labels at scoring size.

    Raises:
        Diverged: the answer is not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise Diverged(
            "the base learner answers with numbers that are not finite",
            "its weights have diverged: train it anew with a lower base_training.lr",
        )
    size = (item.mask.shape[-2], item.mask.shape[-1])
    truth, own_size = torch.from_numpy(item.labels), (item.labels.shape[0], item.labels.shape[1])
    if cfg.protocol.scoring_size == "network":
        truth, own_size = item.mask[: item.valid_size[0], : item.valid_size[1]], None  # type: ignore[assignment]
    full = logits_at_scoring_size(logits, size, item.valid_size, own_size, cfg.protocol.fit, patches)
    return full[0].argmax(0).cpu(), truth


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixels by true (row) and predicted (column) label, (classes, classes) int64; those of 255 count nowhere."""
    counted = truth != IGNORE_INDEX
    pairs = truth[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def metrics_of_table(table: Tensor, names: list[str], images: int) -> BaseClassMetrics:
    """The score from a table of `confusion`, whose label 0 is background and 1.. are the classes named.

    A class that is in no image has no IoU and is left out of the mean, whatever is taken for it elsewhere.
    """
    both = table.diagonal().double()
    ious = (100 * both / (table.sum(0) + table.sum(1) - both)).tolist()
    true = table.sum(1).tolist()
    per_class = {name: ious[label] for label, name in enumerate(names, start=1) if true[label]}
    return BaseClassMetrics(
        base_miou=statistics.fmean(per_class.values()) if per_class else 0.0, per_class=per_class,
        background=ious[0] if true[0] else None, images=images, absent=[n for n in names if n not in per_class],
    )  # fmt: skip


def base_cell(cfg: Config) -> Cell:
    """The cell of the base learner that a configuration starts from."""
    base = base_config(resolved(cfg))
    return open_cell(typed(base), resolved(base))


def take_over(model: FewShotModel, cell: Cell) -> Origin:
    """Start a model from the checkpoint of a finished base learner; returns its origin, for the record.

    Raises:
        UserError: the checkpoint is gone, damaged, or not the one of the result beside it.
    """
    path, fix = cell.checkpoint, f"bring it back, or remove {cell.directory}: the base learner is then trained anew"
    if not path.is_file():
        raise UserError(f"{path}: the checkpoint of the base learner is gone", fix)
    try:
        state = checkpoint.load(path)
        checkpoint.check_with_result(path, state)
        if state["fingerprint"] != cell.fingerprint:
            raise UserError(f"{path} is of another base learner than result.json beside it")
        model.start_from_base(state["model"])
    except UserError as error:
        raise UserError(f"base learner: {error.what}", fix) from None
    except RuntimeError as error:
        line = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise UserError(f"base learner: {path} does not fit this model: {line[:200]}", fix) from None
    log.info("backbone from the base learner %s (step %s)", path, state["step"])
    return Origin(
        path=str(path),
        step=state["step"],
        fingerprint=state["fingerprint"],
        digest=file_digest(path),
        **state["origin"],
    )
