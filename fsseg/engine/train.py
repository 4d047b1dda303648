"""The training loop: a poly schedule over episodes, resumable at every step. Called by `fsseg.run`.

Within a step this process never waits for a GPU: numbers are read some steps later (`fsseg.engine.pending`).

On several processes (`fsseg.engine.distributed`) each loads its part of every batch; the loss stays the mean over all
valid pixels of the whole batch, and only the first process writes.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from fsseg.cell.metrics_file import MetricsFile
from fsseg.cell.models import Training
from fsseg.cell.record import Cell
from fsseg.config.entry import resolved
from fsseg.config.schema import Config
from fsseg.data.loader import TrainingPlan, training_loader
from fsseg.data.source import IGNORE_INDEX, Source
from fsseg.data.types import Batch
from fsseg.engine import checkpoint, distributed, precision, pruning
from fsseg.engine.checkpoint import Chosen
from fsseg.engine.compiled import compiled, uncompiled
from fsseg.engine.context import Run
from fsseg.engine.loggers import MetricsLog
from fsseg.engine.optimiser import make_optimiser, restore, set_rate
from fsseg.engine.pending import Pending
from fsseg.engine.profile import part, profiling
from fsseg.engine.progress import Progress, duration
from fsseg.engine.ready import steps_of
from fsseg.engine.validation import BASE, Validations
from fsseg.errors import Diverged, UserError
from fsseg.model.base import FewShotModel, training_target
from fsseg.process.files import ClaimLost
from fsseg.process.ranks import Ranks
from fsseg.process.signals import Preempted, Pruned

log = logging.getLogger("fsseg")


def learning_rate(cfg: Config, step: int, total: int) -> float:
    """Poly schedule: lr * lr_scale * (1 - step / total) ** power. `step` counts from 0."""
    return cfg.train.lr * cfg.train.lr_scale * (1 - step / total) ** cfg.train.poly_power


class Trained(NamedTuple):
    """What comes of a training beside the weights after its last step.

    Attributes:
        record: what result.json says of it.
        data: fingerprint of the training split's index.
        chosen: the best checkpoints of `train.select`.
    """

    record: Training
    data: str
    chosen: list[Chosen]


def train(run: Run, model: FewShotModel, source: Source, plan: TrainingPlan) -> Trained:
    """Train `model` in place, from the cell's checkpoint if there is one.

    The batch of step s is a pure function of (data, configuration, s), the learning rate one of s; so weights,
    momentum, generators and s are all a checkpoint needs for the resumed run to equal one that was never stopped.

    Raises:
        Preempted: after saving, when the run was asked to stop.
        ClaimLost: another process has taken the cell over.
        UserError: on faults of the data, or a loss that is no number.
    """
    cfg, cell, ranks, device = run.cfg, run.cell, run.ranks, run.device
    assert device is not None
    total = steps_of(plan, cfg)
    positions = distributed.share(plan.batch_size, ranks, cfg.train.accumulate)
    amp = precision.usable(cfg.train.amp, device)
    precision.prepare(model, device, amp)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = make_optimiser(model, cfg.train, device)
    scaler = torch.amp.GradScaler("cuda", enabled=amp == "fp16")
    validations = Validations(run, model, source, plan, total)

    step, seconds, rows, last_loss, waited = 0, 0.0, 0, math.nan, 0.0
    window: list[float] = []  # losses since the last row of metrics.csv, which holds their mean
    images = source.images_fingerprint("train")
    state = _resumable(run, total, (plan.index_fingerprint, images))
    if state is not None:
        _restore(state, cell, model, optimiser, scaler)
        step, seconds, rows, last_loss = state["step"], state["seconds"], state.get("rows", 0), state["loss"]
        window = state["window"]
        validations.restore(state, run)
        log.info("resuming at step %d of %d", step, total)
        run.trackers.saved(rows)
    distributed.broadcast_weights(model, ranks)

    earlier, settings = seconds, resolved(cfg)
    started = time.monotonic() - seconds - validations.seconds
    metrics = MetricsLog(cell, cfg.logger.tensorboard, rows) if ranks.first else None

    def trained_seconds() -> float:
        return time.monotonic() - started - validations.seconds

    def content(**more: Any) -> dict[str, Any]:
        """What a checkpoint holds: `more`, and else the model as it is now, without what only going on needs."""
        return {
            "model": model.state_dict(),
            "optimiser": {},
            "scaler": {},
            "rng": {},
            "step": step,
            "steps": total,
            "seconds": trained_seconds(),
            "loss": last_loss,
            "window": [],
            "fingerprint": cell.fingerprint,
            "run": run.id,
            "origin": origin(cfg, source),
            "dataset_fingerprint": plan.index_fingerprint,
            "images_fingerprint": images,
            "config": settings,
            **more,
        }

    def read(everything: bool = False) -> None:
        """Record the steps whose numbers are there; all ranks call it at the same steps."""
        nonlocal last_loss, window
        for done, numbers in pending.read(everything):
            last_loss, terms = _whole(done, numbers, ranks)
            if not math.isfinite(last_loss):
                raise Diverged(
                    f"the loss is {last_loss} at step {done.step} (train.lr={cfg.train.lr}, "
                    f"train.lr_scale={cfg.train.lr_scale})",
                    "lower train.lr or train.lr_scale, or set train.clip_grad_norm=1",
                )
            window.append(last_loss)
            progress.step(f"loss {last_loss:.3f}")
            if done.has_row:
                if metrics is not None:
                    metrics.add({
                        "step": done.step, "epoch": round(done.step / plan.steps_per_epoch, 4),
                        "train/loss": statistics.fmean(window),
                        **{f"train/{name}": value for name, value in terms.items()},
                        "lr": done.rate, "seconds_per_step": progress.seconds_per_step,
                    })  # fmt: skip
                window = []
            left = progress.eta_seconds + validations.seconds_left
            run.status.update(step=done.step, steps=total, seconds_per_step=round(progress.seconds_per_step, 4),
                              eta_seconds=round(left, 1))  # fmt: skip

    def save() -> None:
        read(everything=True)
        if metrics is None:
            return
        run.still_ours()
        metrics.save()
        whole = content(
            optimiser=optimiser.state_dict(), scaler=scaler.state_dict(), rng=checkpoint.rng_state(),
            rows=metrics.rows, window=window, **validations.state(),
        )  # fmt: skip
        checkpoint.save(cell.checkpoint, whole, cell.previous_checkpoint)
        run.trackers.saved(metrics.rows)

    log.info("training on %d images, %d steps (%.1f epochs), batch %d%s",
             plan.num_images, total, total / plan.steps_per_epoch, cfg.train.batch_size,
             f" on {ranks.world} processes" if ranks.world > 1 else "")  # fmt: skip
    model.train()
    saved_at, saved_step = time.monotonic(), step
    batches = iter(training_loader(source, cfg, step, total - step, plan, positions))
    pending: Pending[_Step] = Pending(device)
    try:
        with (
            Progress("train", total, done=step) as progress,
            compiled(model, device, cfg.train.compile),
            profiling(run, total - step) as profile,
        ):
            while True:
                try:
                    for validation in validations.due(step):
                        read(everything=True)
                        with progress.paused("validating"), uncompiled(cfg.train.compile):
                            row = validation.score(step)
                        if metrics is not None:
                            metrics.add(row)
                        if validation.classes == BASE and step < total:
                            pruning.check(run, row["epoch"], row)
                    every = cfg.train.checkpoint_epochs * plan.steps_per_epoch
                    old = distributed.broadcast(time.monotonic() - saved_at >= 60 * cfg.train.checkpoint_minutes, ranks)
                    if saved_step < step and (old or (every and step % every == 0)):
                        save()
                        saved_at, saved_step = time.monotonic(), step
                    if step == total:
                        break
                    asked = time.monotonic()
                    with part("data"):
                        batch = distributed.next_batch(batches, run.should_stop, ranks)
                    waited += time.monotonic() - asked
                except (Preempted, Pruned):
                    save()
                    raise
                except UserError:
                    if ranks.world == 1:  # of several processes some may be gone
                        read(everything=True)
                    raise
                assert batch is not None
                step += 1
                rate = learning_rate(cfg, step - 1, total)
                has_row = step % cfg.logger.every_steps == 0 or step == total
                set_rate(optimiser, rate)
                optimiser.zero_grad(set_to_none=True)
                # On the host each part's share of the step, on the device its loss, and for a row the terms of it.
                batch_parts = batch.split(cfg.train.accumulate)
                weights, names, numbers = _weights(batch_parts, cfg, ranks), [], []
                for some, weight in zip(batch_parts, weights):
                    with part("forward"), precision.autocast(device, amp):
                        some = some.to(device)
                        target = training_target(some, cfg.protocol.ignore_in_loss).to(device, non_blocking=True)
                        loss, terms = model.loss(model(some), target)
                    with part("backward"):
                        scaler.scale(loss * weight).backward()
                    names.append(["loss", *(terms if has_row else ())])
                    numbers += [loss.detach(), *(terms.values() if has_row else ())]
                with part("optimiser"):
                    distributed.add_gradients(parameters, ranks)
                    if cfg.train.clip_grad_norm is not None:
                        scaler.unscale_(optimiser)
                        torch.nn.utils.clip_grad_norm_(parameters, cfg.train.clip_grad_norm)
                    scaler.step(optimiser)
                    scaler.update()
                pending.put(_Step(step, rate, has_row, weights, names), torch.stack([x.double() for x in numbers]))
                read()
                profile.step()
            read(everything=True)
        if saved_step < step or total == 0:
            save()
        for best in validations.chosen() if ranks.first else ():  # until now their weights were in last.pt alone
            run.still_ours()
            theirs = content(model=model.state_dict() | best.weights, step=best.record.step, selected=best.kind)
            checkpoint.save(cell.best_checkpoint(best.kind), theirs)
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
    here = trained_seconds() - earlier
    log.info("trained %d steps in %s, last loss %.4f; waiting for data %.1f %% of the time",
             total, duration(seconds), last_loss, 100 * waited / max(here, 1e-9))  # fmt: skip
    made = Training(
        steps=total, epochs=total / plan.steps_per_epoch, images=plan.num_images, batch_size=cfg.train.batch_size,
        final_loss=last_loss, seconds=round(seconds, 2), base_validation=validations.base_scores(),
        novel_validation=validations.novel_scores(),
    )  # fmt: skip
    return Trained(made, plan.index_fingerprint, validations.chosen())


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


class _Step(NamedTuple):
    """What is known of a step before its numbers are there.

    Attributes:
        step: it and those before it, counted.
        rate: learning rate of the schedule.
        has_row: whether metrics.csv gets a row with this step.
        weights: of each part of the batch, its share of the pixels that the whole batch trains.
        names: of the numbers of each part: `loss`, and with a row those of its terms.
    """

    step: int
    rate: float
    has_row: bool
    weights: list[float]
    names: list[list[str]]


def _weights(parts: list[Batch], cfg: Config, ranks: Ranks) -> list[float]:
    """Each part's share of the pixels that the whole batch trains: what its mean loss counts in the mean over all."""
    if len(parts) == ranks.world == 1:
        return [1.0]
    valid = [int((training_target(part, cfg.protocol.ignore_in_loss) != IGNORE_INDEX).sum()) for part in parts]
    (everywhere,) = distributed.add_up([sum(valid)], ranks)
    return [number / max(1.0, everywhere) for number in valid]


def _whole(done: _Step, numbers: list[float], ranks: Ranks) -> tuple[float, dict[str, float]]:
    """Loss of the whole batch, and with a row its terms: the weighted sums over all parts on all ranks."""
    sums: dict[str, float] = {}
    values = iter(numbers)
    for weight, names in zip(done.weights, done.names):
        for name in names:
            sums[name] = sums.get(name, 0.0) + weight * next(values)
    (loss,) = distributed.add_up([sums.pop("loss")], ranks)
    if done.has_row and ranks.world > 1:
        everywhere = distributed.gather(sums, ranks)
        sums = {name: sum(other.get(name, 0.0) for other in everywhere) for name in sums}
    return loss, sums


def _restore(
    state: dict[str, Any],
    cell: Cell,
    model: FewShotModel,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    try:
        model.load_state_dict(state["model"])
        same = restore(optimiser, state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        checkpoint.set_rng_state(state["rng"])
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
    else:
        reason = "" if same else "other settings of the optimiser"
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
