"""One cell from configuration to result.json: claim, resume, train, evaluate, draw, record. `train.py` calls `run`.

Read from the top: `run` checks the configuration, `_lead` decides whether there is anything to do and takes the claim,
`_attempt` keeps the records of one start, `_work` trains and evaluates, `fsseg.engine.result` says what came out.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fsseg.cell.attempt import Attempt, disk_fault, is_disk_fault, redone_by_this_job
from fsseg.cell.claim import CellBusy, Claim, ClaimLost, acquire
from fsseg.cell.record import Cell, open_cell
from fsseg.cell.status import Status
from fsseg.config.checks import faults
from fsseg.config.entry import typed
from fsseg.config.schema import Config
from fsseg.data.registry import build_source, folder_faults, needed_splits
from fsseg.engine.devices import choose_device, describe_device
from fsseg.engine.result import Work, build_result
from fsseg.errors import UserError, merge_errors
from fsseg.process.files import write_atomic, write_json
from fsseg.process.logs import RunLog, configure_logging
from fsseg.process.ranks import ALONE, Ranks, several_expected
from fsseg.process.signals import Preempted, Signals
from fsseg.sweep.sync import sync_cell

if TYPE_CHECKING:
    import torch

    from fsseg.data.source import Source


log = logging.getLogger("fsseg")


def run(config: DictConfig, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Bring one cell to its end and return its result.

    A cell that is done already returns at once; one that was interrupted goes on from its checkpoint; one that another
    process holds is left to it.

    Args:
        config: composed from `conf/`.
        overrides: what it was composed with; None asks Hydra.

    Returns:
        What result.json holds; or {"state": "busy", "holder": ...} if another process holds the cell or has taken it.

    Raises:
        UserError: for every fault that the user can mend.
        SystemExit: 128 + signal, after a signal by which the run was stopped and saved.
    """
    cfg = typed(config)
    configure_logging(cfg.log_level)
    if overrides is None:
        overrides = _hydra_overrides()
    if found := faults(cfg):
        raise merge_errors(found + folder_faults(cfg))  # all in one go
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    cell = open_cell(cfg, {str(k): v for k, v in resolved.items()}, overrides)
    if not several_expected():
        return _lead(cell, config, cfg, ALONE)

    from fsseg.engine import distributed

    ranks = distributed.set_up(cfg.device)
    if ranks.first:
        return _lead(cell, config, cfg, ranks)
    configure_logging("warning" if cfg.log_level == "info" else cfg.log_level)
    return _follow(cell, cfg, ranks)


def _lead(cell: Cell, config: DictConfig, cfg: Config, ranks: Ranks) -> dict[str, Any]:
    """The first process, or the only one: it alone looks at the directory and writes there."""
    announce = _Announcement(ranks)
    try:
        redo = cfg.redo and not redone_by_this_job(cell)
        if not redo and (result := cell.finished()) is not None:
            return _already_done(cell, result)
        if found := folder_faults(cfg):
            raise merge_errors(found)
        if not redo:
            cell.check_same_settings()
        with Signals() as signals:
            result = _claimed(cell, config, cfg, ranks, signals, redo, announce)
        # Here the claim is given up and the former handlers are back.
        if result is None:
            signals.hand_over()
            raise AssertionError("hand_over never returns")
        signals.leave_if_asked()
        return result
    finally:
        announce(False)


def _claimed(
    cell: Cell,
    config: DictConfig,
    cfg: Config,
    ranks: Ranks,
    signals: Signals,
    redo: bool,
    announce: Callable[[bool], None],
) -> dict[str, Any] | None:
    """Take the claim, work, give it up. None if a signal stopped the work."""
    try:
        claim = acquire(cell.claim, cfg.lease_seconds)
    except CellBusy as busy:
        if redo:
            raise UserError(f"redo=true: {cell.directory} is {busy}", "stop that run, or wait for its end") from None
        log.info("left alone: %s is %s", cell.directory, busy)
        return {"state": "busy", "holder": str(busy.holder)}
    except OSError as error:
        raise disk_fault(error, cell.directory) from None
    try:
        if redo:
            cell.clear()
        elif (result := cell.finished()) is not None:  # another process had it until a moment ago
            return _already_done(cell, result)
        cell.check_same_settings()
        return _attempt(cell, config, cfg, ranks, claim, signals, announce)
    except ClaimLost as lost:
        log.warning("stopped, nothing more is written: %s (%s)", lost, cell.directory)
        return {"state": "busy", "holder": str(lost)}
    except OSError as error:
        if is_disk_fault(error):
            raise disk_fault(error, cell.directory) from error
        raise
    finally:
        claim.release()


def _attempt(
    cell: Cell,
    config: DictConfig,
    cfg: Config,
    ranks: Ranks,
    claim: Claim,
    signals: Signals,
    announce: Callable[[bool], None],
) -> dict[str, Any] | None:
    """One start of the cell, with its records: status, train.log, attempts/<n>.json. None if a signal stopped it."""
    try:
        cell.tidy()
        write_json(cell.identity_file, {"fingerprint": cell.fingerprint, "identity": cell.identity})
        write_atomic(cell.config, OmegaConf.to_yaml(config, resolve=True))
        attempt = Attempt(cell)
        handler = RunLog(cell.log)
    except OSError as error:
        raise disk_fault(error, cell.directory) from None
    status = Status(cell.status, guard=claim.check)

    def close(state: str, reason: str | None, **fields: Any) -> None:
        handler.strict = False
        try:
            status.update(state=state, phase=None, reason=reason, **fields)
            attempt.end(state if reason is None else f"{state}: {reason}")
        except (OSError, ClaimLost) as error:
            log.debug("the end could not be recorded: %s", error)

    def should_stop() -> str | None:
        claim.check()
        return signals.reason()

    logging.getLogger("fsseg").addHandler(handler)
    claim.start(status.beat)
    try:
        status.update(state="running", phase="prepare")
        log.info("cell %s", cell.key)
        announce(True)
        done = _work(cell, cfg, ranks, status, signals, should_stop, claim.check)
        status.update(phase="record")
        result = build_result(cell, cfg, done)
        claim.check()
        write_json(cell.result, result)
        # The cell is done, whatever happens to the records from here on.
        close("done", None, eta_seconds=0, peak_memory_bytes=result["peak_memory_bytes"])
        with suppress(OSError):
            cell.previous_checkpoint.unlink(missing_ok=True)
        sync_cell(cfg, cell)
        log.info("done: %s%s", cell.directory, _score_line(result))
        if ranks.world > 1:
            from fsseg.engine import distributed

            distributed.broadcast(result, ranks)  # they leave when it is written
        return result
    except ClaimLost:
        raise
    except Preempted as reason:
        close("preempted", str(reason))
        sync_cell(cfg, cell, final=False)
        log.info("stopped by %s; the next start goes on from here", reason)
        return None
    except KeyboardInterrupt:
        close("preempted", "interrupted twice at the keyboard")
        log.info("stopped at once; the next start goes on from the last checkpoint")
        if signals.received is None:  # not in the main thread
            raise
        return None
    except UserError as error:
        handler.note(f"error: {error}\n{traceback.format_exc()}")
        close("failed", error.what)
        raise
    except Exception as error:
        if signals.received is not None and "DataLoader worker" in str(error):  # the signal hit it as well
            close("preempted", str(signals.reason()))
            return None
        handler.note(traceback.format_exc())
        if isinstance(error, OSError) and is_disk_fault(error):
            fault = disk_fault(error, cell.directory)
            close("failed", fault.what)
            raise fault from error
        if type(error).__name__ == "OutOfMemoryError":  # torch's; not imported for its name
            fault = UserError(
                f"out of GPU memory: {(str(error).splitlines() or [''])[0]}",
                "lower train.batch_size or eval.batch_size, or dataset.image_size",
            )
            close("failed", fault.what)
            raise fault from error
        close("failed", f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        logging.getLogger("fsseg").removeHandler(handler)
        try:
            handler.close()
        except OSError as error:
            log.debug("train.log: %s", error)


def _follow(cell: Cell, cfg: Config, ranks: Ranks) -> dict[str, Any]:
    """A process other than the first: works along, writes nothing, and learns the result from the first."""
    from fsseg.engine import distributed

    if not distributed.broadcast(False, ranks):
        return {"state": "left to the first process"}
    with Signals() as signals:
        try:
            done = _work(cell, cfg, ranks, Status(None), signals, signals.reason, lambda: None)
        except Preempted:
            done = None
    if done is None:
        if signals.received is not None:
            signals.hand_over()
        raise SystemExit(0)  # another process was asked to stop
    return distributed.broadcast({}, ranks)


def _work(
    cell: Cell,
    cfg: Config,
    ranks: Ranks,
    status: Status,
    signals: Signals,
    should_stop: Callable[[], str | None],
    still_ours: Callable[[], None],
) -> Work:
    """Prepare, train, evaluate, draw; every process of the cell does this."""
    started = time.monotonic()
    with signals.at_once():
        import torch

        from fsseg.engine import checkpoint
        from fsseg.engine.evaluate import evaluate
        from fsseg.engine.train import train
        from fsseg.model import build_model

        device = choose_device(cfg.device, ranks)
        if cfg.num_threads:
            torch.set_num_threads(cfg.num_threads)
        source = build_source(cfg)
        source.check(needed_splits(cfg))
        checkpoint.seed_everything(cfg.seed)
        model = build_model(cfg).to(device)
        came_from = None
        if cfg.checkpoint is not None:
            came_from = _load_weights(model, cfg, source)
    sizes = [p.numel() for p in model.parameters()], [p.numel() for p in model.parameters() if p.requires_grad]
    log.info(
        "%s on %s, %s: %.2f M parameters, %.2f M of them train",
        cfg.model.name, cfg.backbone.name, describe_device(device), sum(sizes[0]) / 1e6, sum(sizes[1]) / 1e6,
    )  # fmt: skip
    done = Work(source, device, started, came_from)

    if cfg.train.enabled and model.trainable:
        status.update(phase="train")
        done.training = train(model, source, cfg, cell, status, device, should_stop, ranks, still_ours)
        done.timing["train_seconds"] = done.training.seconds
    if cfg.eval.enabled:
        status.update(phase="evaluate")
        done.evaluation = evaluate(model, source, cfg, status, device, should_stop, ranks)
        done.timing["evaluate_seconds"] = done.evaluation.seconds
    if ranks.first:
        still_ours()
        started = time.monotonic()
        _draw(cell, cfg, done)
        done.timing["figures_seconds"] = round(time.monotonic() - started, 2)
    return done


def _draw(cell: Cell, cfg: Config, done: Work) -> None:
    if done.evaluation is not None and cfg.logger.figures:
        from fsseg.engine.pictures import draw_sheets

        draw_sheets(cell, cfg, done.source, done.evaluation)
    if done.training is not None:
        from fsseg.draw.plots import training_curves

        training_curves(cell.directory / "figures" / "curves.png", cell.directory / "metrics.csv")


class _Announcement:
    """Tells the other processes, once, whether there is work for them; they wait for it in `_follow`."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.made = ranks, ranks.world == 1

    def __call__(self, work: bool) -> None:
        if not self.made:
            from fsseg.engine import distributed

            self.made = True
            distributed.broadcast(work, self.ranks)


def _already_done(cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    log.info("already done: %s%s", cell.directory, _score_line(result))
    return result


def _hydra_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    given = {o.lstrip("+~").partition("=")[0] for o in overrides}
    # What an experiment file sweeps comes to a cell as overrides; a cell without them would be none of its cells.
    if lacking := [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items() if key not in given]:
        raise UserError(
            f"this experiment is a sweep over {' '.join(lacking)}",
            "add -m (python train.py -m experiment=..., one experiment a line), or choose one value of each",
        )
    return overrides


def _score_line(result: dict[str, Any]) -> str:
    metrics = result.get("metrics")
    return f"  mIoU {metrics['miou']:.2f}  FB-IoU {metrics['fb_iou']:.2f}" if metrics else ""


def _load_weights(model: torch.nn.Module, cfg: Config, source: Source) -> dict[str, Any]:
    """Fill the model from `checkpoint=`; returns where it came from, for the record.

    Raises:
        UserError: it does not fit, or was trained on classes that are novel here.
    """
    from fsseg.engine import checkpoint

    path = str(cfg.checkpoint)
    state = checkpoint.load(Path(path))
    trained = set(state["origin"]["base_classes"])
    if seen := [source.classes[c] for c in source.novel_classes(cfg.fold) if source.classes[c] in trained]:
        raise UserError(
            f"checkpoint={path} was trained on {', '.join(seen)}, novel in fold {cfg.fold} of {cfg.dataset.name}",
            f"evaluate it on the fold it was trained for: fold={state['origin']['fold']}",
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise UserError(
            f"checkpoint={path} does not fit this model: {line[:200]}",
            "give the method, backbone and model.* settings it was trained with",
        ) from None
    log.info("weights from %s (step %s)", path, state["step"])
    return {"path": path, "step": state["step"], "fingerprint": state["fingerprint"], **state["origin"]}
