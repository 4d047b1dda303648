"""The training loop: SGD with a poly schedule over episodes, resumable at every step. Called by `fsseg.run`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fsseg.cell import Cell, Status
from fsseg.config import Config
from fsseg.data.loader import training_loader, training_plan
from fsseg.data.source import Source
from fsseg.engine import checkpoint
from fsseg.engine.loggers import MetricsLog
from fsseg.engine.progress import Progress, duration
from fsseg.errors import UserError
from fsseg.model.base import FewShotModel

log = logging.getLogger("fsseg")


class Preempted(Exception):
    """Training was asked to stop and has saved its state; the cell can be resumed."""


@dataclass
class TrainingRecord:
    """What result.json says of the training."""

    steps: int
    epochs: float
    images: int
    seconds: float
    final_loss: float
    dataset_fingerprint: str


def learning_rate(cfg: Config, step: int, total: int) -> float:
    """Poly schedule: lr * (1 - step / total) ** power, after an optional linear warm-up. `step` counts from 0."""
    rate = cfg.train.lr * (1 - step / total) ** cfg.train.poly_power
    if step < cfg.train.warmup_steps:
        rate *= (step + 1) / cfg.train.warmup_steps
    return rate


def train(
    model: FewShotModel, source: Source, cfg: Config, cell: Cell, status: Status, device: torch.device, should_stop: Callable[[], str | None]
) -> TrainingRecord:
    """Train `model` in place, from the cell's checkpoint if there is one.

    The batch of step s is a pure function of (data, configuration, s), the learning rate one of s; so weights, momentum,
    generators and s are all a checkpoint needs for the resumed run to equal one that was never stopped.

    Raises:
        Preempted: after saving, when `should_stop` names a reason.
        UserError: on faults of the data, or a loss that is no number.
    """
    plan = training_plan(source, cfg)
    total = plan.steps_per_epoch * cfg.train.epochs
    if cfg.train.max_steps is not None:
        total = min(total, cfg.train.max_steps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, lr=cfg.train.lr, momentum=cfg.train.momentum, weight_decay=cfg.train.weight_decay
    )
    amp = cfg.train.amp if device.type == "cuda" else "off"
    scaler = torch.amp.GradScaler("cuda", enabled=amp == "fp16")

    step, seconds, rows, last_loss = 0, 0.0, [], math.nan
    if (state := _resumable(cell, plan.index_fingerprint, device)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        checkpoint.set_rng_state(state["rng"])
        step, seconds, rows, last_loss = state["step"], state["seconds"], state["metrics"], state["loss"]
        log.info("resuming at step %d of %d", step, total)

    started = time.monotonic() - seconds
    metrics = MetricsLog(cell.directory, cfg.logger.tensorboard, rows)

    def save() -> None:
        checkpoint.save(
            cell.checkpoint,
            {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
                "rng": checkpoint.rng_state(),
                "step": step,
                "seconds": time.monotonic() - started,
                "metrics": metrics.rows,
                "loss": last_loss,
                "fingerprint": cell.fingerprint,
                "dataset_fingerprint": plan.index_fingerprint,
            },
        )

    log.info("training on %d images, %d steps (%.1f epochs), batch %d",
             plan.num_images, total, total / plan.steps_per_epoch, cfg.train.batch_size)  # fmt: skip
    model.train()
    saved_at = time.monotonic()
    try:
        with Progress("train", total, done=step) as progress:
            for batch in training_loader(source, cfg, start_step=step, num_steps=total - step, plan=plan):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(cfg, step, total)
                batch = batch.to(device)
                kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)
                with torch.autocast(device.type, dtype=kind) if kind else nullcontext():
                    loss, parts = model.loss(model(batch), batch.query_mask, cfg.protocol.ignore_in_loss)
                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                if cfg.train.clip_grad_norm is not None:
                    scaler.unscale_(optimiser)
                    torch.nn.utils.clip_grad_norm_(parameters, cfg.train.clip_grad_norm)
                scaler.step(optimiser)
                scaler.update()
                step += 1
                last_loss = float(loss.detach())
                if not math.isfinite(last_loss):
                    raise UserError(
                        f"the loss is {last_loss} at step {step} (train.lr={cfg.train.lr})",
                        "lower train.lr, or set train.clip_grad_norm=1",
                    )
                progress.step(f"loss {last_loss:.3f}")
                if step % cfg.logger.every_steps == 0 or step == total:
                    metrics.add({
                        "step": step, "epoch": round(step / plan.steps_per_epoch, 4), "train/loss": last_loss,
                        **{f"train/{k}": float(v.detach()) for k, v in parts.items()},
                        "lr": optimiser.param_groups[0]["lr"], "seconds_per_step": progress.seconds_per_step,
                    })  # fmt: skip
                status.update(step=step, steps=total, seconds_per_step=round(progress.seconds_per_step, 4),
                              eta_seconds=round(progress.eta_seconds, 1))  # fmt: skip
                if (reason := should_stop()) is not None:
                    save()
                    raise Preempted(reason)
                if time.monotonic() - saved_at > 60 * cfg.train.checkpoint_minutes:
                    save()
                    saved_at = time.monotonic()
        save()
    finally:
        metrics.close()
    seconds = time.monotonic() - started
    log.info("trained %d steps in %s, last loss %.4f", total, duration(seconds), last_loss)
    return TrainingRecord(
        steps=total, epochs=total / plan.steps_per_epoch, images=plan.num_images, seconds=round(seconds, 2),
        final_loss=last_loss, dataset_fingerprint=plan.index_fingerprint,
    )  # fmt: skip


def _resumable(cell: Cell, dataset_fingerprint: str, device: torch.device) -> dict[str, Any] | None:
    if not cell.checkpoint.is_file():
        return None
    state = checkpoint.load(cell.checkpoint, device)
    if state["fingerprint"] != cell.fingerprint:
        raise UserError(f"{cell.checkpoint} belongs to a run with other settings", "set redo=true to train anew, or name=")
    if state["dataset_fingerprint"] != dataset_fingerprint:
        raise UserError(
            f"the training data changed since {cell.checkpoint} was written "
            f"(index {state['dataset_fingerprint']} then, {dataset_fingerprint} now)",
            "bring the data back, or set redo=true to train anew",
        )
    return state
