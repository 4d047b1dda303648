"""`check=true`: everything that a run does before its first step, and what it would do then. Nothing is written.

`fsseg.run` calls `check_cell`, for a sweep once for each cell, in one process: within `registry.sharing` data sets and
models are made once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fsseg.cell.models import Result
from fsseg.cell.record import Cell, open_cell
from fsseg.config.base_training import base_config, starts_from_a_base_learner
from fsseg.config.entry import resolved, typed
from fsseg.config.schema import Config, DatasetConfig
from fsseg.data.loader import undrawn_classes
from fsseg.data.registry import DataNow, checked_source, folder_faults, made_once, needed_splits
from fsseg.data.source import Source
from fsseg.engine import checkpoint, distributed
from fsseg.engine.base_classes import take_over
from fsseg.engine.devices import choose_device, describe_device
from fsseg.engine.optimiser import parameter_groups
from fsseg.engine.ready import Plans, make_plans, room_of, steps_of
from fsseg.engine.train import check_state
from fsseg.engine.validation import check_kept
from fsseg.errors import UserError, merge_errors, visible
from fsseg.model import FewShotModel, build_model
from fsseg.model.backbones import published_weights
from fsseg.process.ranks import Ranks
from fsseg.process.words import count, every, several, size
from fsseg.sweep.preflight import output_faults, scratch_faults, weights_faults


@dataclass
class Check:
    """What a check found.

    Attributes:
        cell: what was checked.
        rows: what was looked at, and what is there.
        would: what a start would do now; empty if it would be refused.
        faults: why it would be refused.
        result: of a cell that is done.
    """

    cell: Cell
    rows: list[tuple[str, str]] = field(default_factory=list)
    would: str = ""
    faults: list[UserError] = field(default_factory=list)
    result: Result | None = None

    def text(self) -> str:
        """All that was found but the faults, one thing a line."""
        rows = [*self.rows, *([("", self.would)] if self.would else [])]
        return "\n".join(visible(f"{name:<11}{what}") if name else visible(what) for name, what in rows)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the fault that ends the block."""
        try:
            yield
        except UserError as error:
            self.faults.append(error)

    def verdict(self) -> None:
        """
        Raises:
            UserError: all faults, in one go.
        """
        if self.faults:
            raise merge_errors(self.faults)


def check_cell(cfg: Config, cell: Cell, here: bool) -> Check:
    """Check one cell.

    Args:
        cfg: of the cell, without faults of its own.
        cell: its directory.
        here: whether it would run on this machine, so that its device must be there.
    """
    found = Check(cell)
    found.rows.append(("cell", str(cell.directory)))
    with found.noting():
        found.result = None if cfg.redo else cell.finished()
    if found.result is not None:
        if (changed := DataNow().fault(cfg, resolved(cfg.dataset), found.result.dataset)) is not None:
            found.faults.append(UserError(f"{cell.directory} is {changed.what}", changed.fix))
        else:
            found.would = f"already done: {found.result.score_line()}; nothing would be run"
        return found
    if (claim := cell.claim()) is not None and claim.alive():
        found.would = f"would be left alone: {claim.holder} has it"
        return found
    if not cfg.redo:
        with found.noting():
            cell.check_same_settings()
    found.faults += output_faults(cell)
    if here:
        found.faults += scratch_faults(cfg)
        with found.noting():
            found.rows.append(("device", describe_device(choose_device(cfg.device))))
    source, plans = _data(cfg, found)
    model = _model(cfg, found)
    if source is not None and model is not None and cfg.checkpoint is not None:
        with found.noting():
            origin = checkpoint.start_from(model, cfg, source)
            found.rows.append(("weights", f"{cfg.checkpoint}, step {origin.step}"))
    if starts_from_a_base_learner(cfg):
        _base_learner(cfg, model, found)
    if model is not None:
        _room(cfg, model, found)
    if source is not None and plans is not None and not found.faults:
        with found.noting():
            found.would = _would(cfg, cell, source, plans)
    if found.faults:
        found.would = ""
    return found


def _data(cfg: Config, found: Check) -> tuple[Source | None, Plans | None]:
    if lacking := folder_faults(cfg):
        found.faults += lacking
        return None, None
    source = plans = None
    with found.noting():
        source = checked_source(cfg)
        plans = make_plans(source, cfg)
    if source is None or plans is None:
        return source, None
    counts = {"train": "training", "val": "evaluation"}
    images = " and ".join(f"{len(source.index(s).image_ids)} {counts[s]}" for s in needed_splits(cfg))
    found.rows.append(("data", f"{source.name} in {source.root}: {images} images, all whole by their headers"))
    novel, names = source.novel_classes(cfg.fold), source.classes
    if (training := plans.training) is not None:
        steps, lists = steps_of(training, cfg), training.lists
        left_out = several([names[c] for c in lists.missing_classes])
        found.rows.append((
            "training", f"{training.num_images} images of {len(lists.classes)} base classes, "
            f"{steps} steps of {cfg.train.batch_size} ({steps / training.steps_per_epoch:.1f} epochs)"
            + f"; too few images of {left_out}" * bool(left_out),
        ))  # fmt: skip
        if (watched := training.validation) is not None:
            found.rows.append((
                "validation", f"{cfg.eval.base_episodes} episodes of {len(watched.classes)} base classes on "
                f"{training.held_out} training images held back, {every(cfg.eval.every_epochs, 'epoch')}",
            ))  # fmt: skip
        if (choosing := training.novel) is not None:
            episodes = sum(map(len, choosing.episodes.values()))
            found.rows.append((
                "selection", f"{episodes} episodes of {len(choosing.classes)} novel classes choose a checkpoint, "
                f"{every(cfg.train.select_epochs, 'epoch')}; the last one is the result",
            ))  # fmt: skip
        with found.noting():
            ranks = Ranks(world=int(os.environ.get("WORLD_SIZE", "1")))
            distributed.share(cfg.train.batch_size, ranks, cfg.train.accumulate)
    if plans.base is not None:
        rules = f"{len(plans.base.images)} images of the evaluation split, {len(plans.base.base.classes)} base classes"
        found.rows.append(("evaluation", rules))
    if (evaluation := plans.evaluation) is not None:
        drawn = several([names[c] for c in evaluation.classes])
        found.rows.append((
            "evaluation", f"{plans.num_episodes} episodes ({count(len(evaluation.episodes), 'seed')}"
            f"{f', {1 + len(plans.shifted)} backgrounds' if plans.shifted else ''}) of {len(evaluation.classes)} of "
            f"{len(novel)} novel classes: {drawn}",
        ))  # fmt: skip
        if evaluation.missing_classes:
            absent = several([names[c] for c in evaluation.missing_classes])
            found.rows.append(("", f"partial: no episode of {absent} (too few images)"))
        if undrawn := undrawn_classes(evaluation):
            absent = several([names[c] for c in undrawn])
            found.rows.append(("", f"no episode of {absent} in some seed (protocol.undrawn={cfg.protocol.undrawn})"))
    return source, plans


def _model(cfg: Config, found: Check) -> FewShotModel | None:
    """The model on the CPU; with random weights where those that it starts from are still to be downloaded."""
    backbone = cfg.backbone
    if faults := list(weights_faults(cfg, download=True)):
        found.faults += faults
        return None
    try:
        published = published_weights(backbone)
    except UserError as error:
        found.faults.append(error)
        return None
    if published is not None:
        file = published.cached()
        found.rows.append(("pretrained", str(file or f"would be downloaded {published.way}")))
        if file is None:
            cfg = copy.deepcopy(cfg)
            cfg.backbone.pretrained = False
    elif backbone.pretrained and backbone.weights is not None:
        found.rows.append(("pretrained", backbone.weights))
    model = None
    with found.noting():
        # Of these depend the sizes of a base learner and of BAM.
        data: tuple[object, ...] = (cfg.dataset.name, cfg.dataset.num_folds, cfg.shot)
        if not DatasetConfig.named(cfg.dataset.name).NUM_CLASSES:
            data += str(resolved(cfg.dataset)), cfg.fold  # classes of the disk, in folds of unequal sizes
        parts = str(resolved(cfg.backbone)), str(resolved(cfg.model))
        model = made_once(("model", *data, *parts), lambda: build_model(cfg))
        number = sum(p.numel() for p in model.parameters()) / 1e6
        found.rows.append(("model", f"{cfg.model.name} on {backbone.name}: {number:.2f} M parameters"))
        if cfg.train.enabled and model.trainable:
            parameter_groups(model, cfg.train.lr_factors)
    return model


def _base_learner(cfg: Config, model: FewShotModel | None, found: Check) -> None:
    """What the cell would start from, or what would be trained first."""
    config = base_config(resolved(cfg))
    base = typed(config)
    with found.noting():
        cell = open_cell(base, resolved(config))
        if cell.finished() is None:
            cell.check_same_settings()
            found.faults += output_faults(cell)
            found.rows.append(("base", f"{cell.directory} is not done: it would be trained first"))
        elif model is not None:
            origin = take_over(copy.deepcopy(model), cell)
            found.rows.append(("base", f"{origin.path}, step {origin.step}"))


def _room(cfg: Config, model: FewShotModel, found: Check) -> None:
    room = room_of(model, cfg, found.cell)
    if (lack := room.fault()) is not None:
        found.faults.append(lack)
    one = f"{size(room.checkpoint)} a checkpoint, " if room.checkpoint else ""
    found.rows.append(("disk", f"{one}{size(room.needed)} needed at most, {size(room.free)} free"))


def _would(cfg: Config, cell: Cell, source: Source, plans: Plans) -> str:
    """What a start would do.

    Raises:
        UserError: the cell's checkpoint does not belong to the run.
    """
    parts = []
    if plans.training is not None:
        total, start, state = steps_of(plans.training, cfg), 0, None
        if not cfg.redo:
            _, state = checkpoint.newest(cell.checkpoint, cell.previous_checkpoint)
        if state is not None:
            marks = plans.training.index_fingerprint, source.images_fingerprint("train")
            check_state(state, cell, total, marks)
            check_kept(state, cell, cfg, plans.training)
            start = state["step"]
        parts.append(f"train {total - start} steps from step {start}")
    if plans.evaluation is not None:
        parts.append(f"evaluate {plans.num_episodes} episodes")
    if plans.base is not None:
        parts.append(f"score the base classes on {len(plans.base.images)} images")
    again = "; the run that is there would be replaced" if cfg.redo and cell.directory.exists() else ""
    return f"would {', then '.join(parts)}{again}"
