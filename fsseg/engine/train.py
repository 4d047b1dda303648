"""The training loop: SGD with a poly schedule over episodes, resumable at every step. Called by `fsseg.run`.

On several processes (`fsseg.engine.distributed`) each loads its part of every batch; the loss stays the mean over all
valid pixels of the whole batch, and only the first process writes.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from fsseg.cell.metrics_file import MetricsFile
from fsseg.cell.models import Training
from fsseg.cell.record import Cell
from fsseg.config.schema import Config
from fsseg.data.loader import TrainingPlan, training_loader
from fsseg.data.source import IGNORE_INDEX, Source
from fsseg.engine import checkpoint, distributed
from fsseg.engine.context import Run
from fsseg.engine.loggers import MetricsLog
from fsseg.engine.progress import Progress, duration
from fsseg.engine.ready import steps_of
from fsseg.engine.validation import BaseValidation
from fsseg.errors import UserError
from fsseg.model.base import FewShotModel, training_target
from fsseg.process.files import ClaimLost
from fsseg.process.ranks import Ranks
from fsseg.process.signals import Preempted

log = logging.getLogger("fsseg")


def learning_rate(cfg: Config, step: int, total: int) -> float:
    """Poly schedule: lr * lr_scale * (1 - step / total) ** power. `step` counts from 0."""
    return cfg.train.lr * cfg.train.lr_scale * (1 - step / total) ** cfg.train.poly_power


def train(run: Run, model: FewShotModel, source: Source, plan: TrainingPlan) -> tuple[Training, str]:
    """Train `model` in place, from the cell's checkpoint if there is one.

    The batch of step s is a pure function of (data, configuration, s), the learning rate one of s; so weights,
    momentum, generators and s are all a checkpoint needs for the resumed run to equal one that was never stopped.

    Returns:
        What result.json says of the training, and the fingerprint of the training split's index.

    Raises:
        Preempted: after saving, when the run was asked to stop.
        ClaimLost: another process has taken the cell over.
        UserError: on faults of the data, or a loss that is no number.
    """
    cfg, cell, ranks, device = run.cfg, run.cell, run.ranks, run.device
    assert device is not None
    total = steps_of(plan, cfg)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, lr=cfg.train.lr, momentum=cfg.train.momentum, weight_decay=cfg.train.weight_decay
    )
    amp = cfg.train.amp if device.type == "cuda" else "off"
    if amp != cfg.train.amp:
        log.warning("train.amp=%s needs a GPU: this run is in float32", cfg.train.amp)
    scaler = torch.amp.GradScaler("cuda", enabled=amp == "fp16")
    positions = distributed.share(plan.batch_size, ranks)
    validation = BaseValidation(run, model, source, plan, total)

    step, seconds, rows, last_loss = 0, 0.0, 0, math.nan
    window: list[float] = []  # losses since the last row of metrics.csv, which holds their mean
    images = source.images_fingerprint("train")
    state = _resumable(run, total, (plan.index_fingerprint, images))
    if state is not None:
        _restore(state, cell, model, optimiser, scaler)
        step, seconds, rows, last_loss = state["step"], state["seconds"], state.get("rows", 0), state["loss"]
        window = state["window"]
        validation.restore(state)
        log.info("resuming at step %d of %d", step, total)
    distributed.broadcast_weights(model, ranks)

    started = time.monotonic() - seconds - validation.seconds
    metrics = MetricsLog(cell, cfg.logger.tensorboard, rows) if ranks.first else None

    def trained_seconds() -> float:
        return time.monotonic() - started - validation.seconds

    def save() -> None:
        if metrics is None:
            return
        run.still_ours()
        metrics.save()
        checkpoint.save(
            cell.checkpoint,
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
                "rng": checkpoint.rng_state(),
                "step": step,
                "steps": total,
                "seconds": trained_seconds(),
                "rows": metrics.rows,
                "loss": last_loss,
                "window": window,
                "fingerprint": cell.fingerprint,
                "run": run.id,
                "origin": origin(cfg, source),
                "dataset_fingerprint": plan.index_fingerprint,
                "images_fingerprint": images,
                **validation.state(),
            },
            cell.previous_checkpoint,
        )

    log.info("training on %d images, %d steps (%.1f epochs), batch %d%s",
             plan.num_images, total, total / plan.steps_per_epoch, cfg.train.batch_size,
             f" on {ranks.world} processes" if ranks.world > 1 else "")  # fmt: skip
    model.train()
    saved_at, saved_step = time.monotonic(), step
    batches = iter(training_loader(source, cfg, step, total - step, plan, positions))
    try:
        with Progress("train", total, done=step) as progress:
            while True:
                try:
                    if validation.due(step):
                        with progress.paused("validating"):
                            row = validation.score(step)
                        if metrics is not None:
                            metrics.add(row)
                    every = cfg.train.checkpoint_epochs * plan.steps_per_epoch
                    old = time.monotonic() - saved_at >= 60 * cfg.train.checkpoint_minutes
                    if saved_step < step and (old or (every and step % every == 0)):
                        save()
                        saved_at, saved_step = time.monotonic(), step
                    if step == total:
                        break
                    batch = distributed.next_batch(batches, run.should_stop, ranks, device)
                except Preempted:
                    save()
                    raise
                assert batch is not None
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(cfg, step, total)
                target = training_target(batch, cfg.protocol.ignore_in_loss)
                weight = _weight(target, ranks, device)
                batch, target = batch.to(device), target.to(device, non_blocking=True)
                kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
                with torch.autocast(device.type, dtype=kind) if kind else nullcontext():
                    loss, parts = model.loss(model(batch), target)
                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss if ranks.world == 1 else loss * weight).backward()
                distributed.add_gradients(parameters, ranks)
                if cfg.train.clip_grad_norm is not None:
                    scaler.unscale_(optimiser)
                    torch.nn.utils.clip_grad_norm_(parameters, cfg.train.clip_grad_norm)
                scaler.step(optimiser)
                scaler.update()
                step += 1
                last_loss = float(loss.detach())
                if ranks.world > 1:
                    (last_loss,) = distributed.add_up([last_loss * weight], ranks, device)
                if not math.isfinite(last_loss):
                    raise UserError(
                        f"the loss is {last_loss} at step {step} (train.lr={cfg.train.lr}, "
                        f"train.lr_scale={cfg.train.lr_scale})",
                        "lower train.lr or train.lr_scale, or set train.clip_grad_norm=1",
                    )
                window.append(last_loss)
                progress.step(f"loss {last_loss:.3f}")
                if step % cfg.logger.every_steps == 0 or step == total:
                    terms = _sum_terms({k: float(v.detach()) for k, v in parts.items()}, weight, ranks)
                    if metrics is not None:
                        metrics.add({
                            "step": step, "epoch": round(step / plan.steps_per_epoch, 4),
                            "train/loss": statistics.fmean(window),
                            **{f"train/{k}": v for k, v in terms.items()},
                            "lr": optimiser.param_groups[0]["lr"], "seconds_per_step": progress.seconds_per_step,
                        })  # fmt: skip
                    window = []
                left = progress.eta_seconds + validation.seconds_left
                run.status.update(step=step, steps=total, seconds_per_step=round(progress.seconds_per_step, 4),
                                  eta_seconds=round(left, 1))  # fmt: skip
        if saved_step < step or total == 0:
            save()
    except ClaimLost:
        raise  # the files belong to another process: not a line more
    except BaseException:
        with suppress(OSError):
            if metrics is not None:
                metrics.close()
        raise
    finally:
        batches.close()
    if metrics is not None:
        metrics.close()
    seconds = trained_seconds()
    log.info("trained %d steps in %s, last loss %.4f", total, duration(seconds), last_loss)
    made = Training(
        steps=total, epochs=total / plan.steps_per_epoch, images=plan.num_images, batch_size=cfg.train.batch_size,
        final_loss=last_loss, seconds=round(seconds, 2), base_validation=validation.record(),
    )  # fmt: skip
    return made, plan.index_fingerprint


def origin(cfg: Config, source: Source) -> dict[str, Any]:
    """Where weights come from, for whoever uses the checkpoint: above all the classes they were trained on."""
    novel = source.novel_classes(cfg.fold)
    return {
        "dataset": cfg.dataset.name,
        "fold": cfg.fold,
        "method": cfg.model.name,
        "backbone": cfg.backbone.name,
        "base_classes": [name for c, name in enumerate(source.classes) if c not in novel],
    }


def _weight(target: Tensor, ranks: Ranks, device: torch.device) -> float:
    """This rank's share of the pixels that the whole batch trains: what its mean loss counts in the mean over all."""
    if ranks.world == 1:
        return 1.0
    valid = int((target != IGNORE_INDEX).sum())
    (everywhere,) = distributed.add_up([valid], ranks, device)
    return valid / max(1.0, everywhere)


def _sum_terms(terms: dict[str, float], weight: float, ranks: Ranks) -> dict[str, float]:
    if ranks.world == 1:
        return terms
    weighted = distributed.gather({k: v * weight for k, v in terms.items()}, ranks)
    return {k: sum(other.get(k, 0.0) for other in weighted) for k in terms}


def _restore(
    state: dict[str, Any],
    cell: Cell,
    model: FewShotModel,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    settings = [{k: v for k, v in group.items() if k not in ("lr", "params")} for group in optimiser.param_groups]
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        checkpoint.set_rng_state(state["rng"])
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
    else:
        restored = [{k: v for k, v in group.items() if k not in ("lr", "params")} for group in optimiser.param_groups]
        reason = "" if restored == settings else "other settings of the optimiser"
    if reason:
        raise UserError(
            f"{cell.checkpoint} does not fit the model as it is now, although the settings are equal: {reason[:200]}",
            "bring the code back that wrote it, or set redo=true to train anew",
        )


def _resumable(run: Run, total: int, data: tuple[str, str | None]) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one.

    Args:
        total: steps of the whole run.
        data: fingerprints of the training data's index and of the sizes of its images.
    """
    cell, ranks, device = run.cell, run.ranks, run.device
    assert device is not None
    state = checkpoint.recover(cell.checkpoint, cell.previous_checkpoint, device) if ranks.first else None
    if not distributed.broadcast(state is not None, ranks):
        return None
    if state is None:  # the first process has put the one to use into its place
        state = checkpoint.load(cell.checkpoint, device)
    check_state(state, cell, total, data)
    if ranks.first and run.fresh and state.get("run") is not None:  # identity.json was lost
        run.id, run.fresh = str(state["run"]), False
        cell.write_identity(run.id, cell.find_key())
    if ranks.first and state.get("run") not in (None, run.id):
        raise UserError(
            f"{cell.checkpoint} is of run {state['run']}, identity.json beside it of run {run.id}",
            "set redo=true to train anew, or bring the identity.json of that run back",
        )
    if ranks.first and state["format"] == 1:
        _write_rows(cell, state)
    return state


def check_state(state: dict[str, Any], cell: Cell, total: int, data: tuple[str, str | None]) -> None:
    """Refuse a checkpoint that does not belong to the run; the arguments as for `_resumable`.

    Raises:
        UserError: naming what differs.
    """
    if state["fingerprint"] != cell.fingerprint:
        raise UserError(
            f"{cell.checkpoint} belongs to a run with other settings", "set redo=true to train anew, or name="
        )
    if state["step"] > total:
        raise UserError(
            f"{cell.checkpoint} is of step {state['step']} of a run of {total} steps", "set redo=true to train anew"
        )
    for what, then, now in (
        ("index", state["dataset_fingerprint"], data[0]),
        ("sizes of the images", state.get("images_fingerprint"), data[1]),  # None in earlier checkpoints
    ):
        if then is not None and then != now:
            raise UserError(
                f"the training data changed since {cell.checkpoint} was written ({what}: {then} then, {now} now)",
                "bring the data back, or set redo=true to train anew",
            )


def _write_rows(cell: Cell, state: dict[str, Any]) -> None:
    """Write metrics.csv from a checkpoint of format 1, which holds the rows."""
    table = MetricsFile(cell.metrics_file)
    for row in state["metrics"]:
        table.append(row)
    table.close()
    state["rows"] = table.rows
