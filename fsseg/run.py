"""One cell from configuration to result.json: claim, resume, train, evaluate, draw, record.

`train.py` and `fsseg train` call `run`. Read from the top: `run` checks the configuration, `_check` answers
check=true, `_lead` decides whether there is anything to do, `_claimed` takes the cell, `_attempt` keeps the records of
one start, `_work` trains and evaluates. A cell that starts from a base learner brings that cell to its end first
(`_base_learner`), which then goes the same way from `_claimed` on.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsseg.cell import uses
from fsseg.cell.attempt import AttemptFile, redone_by_this_job
from fsseg.cell.claim import Busy, acquire
from fsseg.cell.fence import drop, fenced, set_aside
from fsseg.cell.models import Result, State, write_record
from fsseg.cell.record import Cell, open_cell
from fsseg.cell.status import StatusFile
from fsseg.config.base_training import base_config, base_overrides, starts_from_a_base_learner
from fsseg.config.checks import faults
from fsseg.config.compose import compose
from fsseg.config.constraints import BEST
from fsseg.config.entry import resolved, typed
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.data.registry import DataNow, checked_source, folder_faults
from fsseg.engine.context import Run
from fsseg.engine.devices import choose_device, describe_device
from fsseg.engine.endings import Ending, disk_fault, ending_of, is_disk_fault
from fsseg.engine.result import Work, build_result
from fsseg.errors import UserError, merge_errors, visible
from fsseg.process import hook
from fsseg.process.command import train_line
from fsseg.process.files import ClaimLost
from fsseg.process.logs import RunLog, configure_logging
from fsseg.process.ranks import first_of_several, several_expected
from fsseg.process.signals import Preempted, Pruned
from fsseg.sweep.preflight import leaves, output_faults, scratch_faults
from fsseg.sweep.sync import sync_cell

log = logging.getLogger("fsseg")

_WAIT_SECONDS = 5.0  # between two looks at a base learner that another process trains


@dataclass(frozen=True)
class Outcome:
    """What a call of `run` came to.

    Attributes:
        state: DONE, or RUNNING where another process has the cell.
        result: of a finished cell.
        holder: who has it.
    """

    state: State
    result: Result | None = None
    holder: str = ""

    @property
    def score(self) -> float | None:
        """The mIoU in percent, for sweepers that look for the best; None where nothing was evaluated here."""
        return None if self.result is None else self.result.miou


def run(config: DictConfig, overrides: Sequence[str] | None = None) -> Outcome:
    """Bring one cell to its end.

    A cell that is done already returns at once; one that was interrupted goes on from its checkpoint; one that another
    process holds is left to it.

    Args:
        config: composed from `conf/`.
        overrides: what it was composed with; None asks Hydra.

    Raises:
        UserError: for every fault that the user can mend.
        SystemExit: 128 + signal, after a signal by which the run was stopped and saved.
    """
    cfg = typed(config)
    configure_logging(cfg.log_level)
    if overrides is None:
        overrides = _hydra_overrides(cfg.model.name)
    if found := faults(cfg):
        raise merge_errors(found + folder_faults(cfg))  # all in one go
    here = Run(cfg, open_cell(cfg, resolved(config), overrides))
    if cfg.check:
        return _check(here)
    if not several_expected():
        return _lead(here)

    from fsseg.engine import distributed

    here.ranks = distributed.set_up(cfg.device)
    if not here.ranks.first:
        configure_logging("warning" if cfg.log_level == "info" else cfg.log_level)
        return _follow(here)
    return _lead(here)


def _check(run: Run) -> Outcome:
    """check=true: say what a start would do, and write nothing. Of several processes the first one answers."""
    if not first_of_several():
        return Outcome(State.TODO)
    from fsseg.engine.check import check_cell

    sweep = _sweep()
    try:
        with run.signals, run.signals.at_once():
            report = check_cell(run.cfg, run.cell, here=sweep is None or not leaves(sweep))
    except Preempted:
        run.signals.hand_over()
        raise
    if sweep is None:
        print(report.text(), flush=True)
    elif report.would:
        print(visible(f"{run.cell.key}: {report.would}"), flush=True)
    report.verdict()
    return Outcome(State.TODO if report.result is None else State.DONE)


def _lead(run: Run) -> Outcome:
    """The first process, or the only one: it alone looks at the directory and writes there."""
    cfg, cell = run.cfg, run.cell
    try:
        redo = cfg.redo and not redone_by_this_job(cell)
        if not redo and (result := cell.finished()) is not None:
            return _already_done(run, result)
        if found := folder_faults(cfg) + output_faults(cell) + scratch_faults(cfg):
            raise merge_errors(found)
        if not redo:
            cell.check_same_settings()
        with run.signals:
            outcome = _claimed(run, redo)
        # Here the claim is given up and the former handlers are back.
        if outcome is None:
            run.signals.hand_over()
            raise AssertionError("hand_over never returns")
        run.signals.leave_if_asked()
        return outcome
    finally:
        _announce(run, False)


def _claimed(run: Run, redo: bool) -> Outcome | None:
    """Take the claim, work, give it up. None if a signal stopped the work."""
    cell = run.cell
    try:
        run.claim = acquire(cell.claim_file, run.cfg.lease_seconds)
    except Busy as busy:
        if redo:
            raise UserError(f"redo=true: {cell.directory} is {busy}", "stop that run, or wait for its end") from None
        log.info("left alone: %s is %s", cell.directory, busy)
        return Outcome(State.RUNNING, holder=str(busy.holder))
    except OSError as error:
        raise disk_fault(error, cell.directory) from None
    try:
        with fenced(cell, run.claim) as run.work:
            if not redo:
                if (result := cell.finished()) is not None:  # another process had it until a moment ago
                    return _already_done(run, result)
                cell.check_same_settings()
            return _attempt(run, redo)
    except ClaimLost as lost:
        log.warning("stopped, nothing more is written: %s (%s)", lost, cell.directory)
        return Outcome(State.RUNNING, holder=str(lost))
    except OSError as error:
        if is_disk_fault(error):
            raise disk_fault(error, cell.directory) from error
        raise
    finally:
        run.claim.release()


def _attempt(run: Run, redo: bool) -> Outcome | None:
    """One start of the cell, with its records: status, train.log, attempts/<n>.json. None if a signal stopped it."""
    cell = run.cell
    assert run.claim is not None
    assert run.work is not None
    try:
        if not redo:  # else the former run stays as it is until the new one can start
            run.id, run.fresh = cell.begin(OmegaConf.to_yaml(run.cfg, resolve=True))
        if run.cfg.checkpoint is not None:
            uses.note(run.cfg.checkpoint, cell.directory)
        attempt = AttemptFile(cell, run.id)
        handler = RunLog(cell.log_file)
    except OSError as error:
        raise disk_fault(error, cell.directory) from None
    run.status = StatusFile(None if redo else cell.status_file, guard=run.claim.check)
    logging.getLogger("fsseg").addHandler(handler)
    run.claim.start(run.status.beat)
    try:
        run.status.update(state=State.RUNNING, phase="prepare")
        log.info("cell %s", cell.key)
        if attempt.change:
            log.warning("%s", attempt.change)
        _announce(run, True)
        done = _work(run, attempt if redo else None)
        run.status.update(phase="record")
        result = build_result(run, done)
        run.still_ours()
        write_record(cell.result_file, result)
        # The cell is done, whatever happens to the records from here on.
        _close(run, attempt, handler, Ending(State.DONE), eta_seconds=0, peak_memory_bytes=result.peak_memory_bytes)
        _clear(run)
        run.trackers.end(State.DONE, run.asked_to_stop)
        sync_cell(run.cfg, cell)
        if _sweep() is None and not attempt.of_a_sweep:
            miou = "" if result.miou is None else f"{result.miou:.2f}"
            _notify(run, "cell_done", MIOU=miou, SECONDS=attempt.seconds)
        log.info("done: %s%s", cell.directory, _score(result))
        if run.ranks.world > 1:
            from fsseg.engine import distributed

            distributed.broadcast(Outcome(State.DONE, result), run.ranks)  # they leave when it is written
        return Outcome(State.DONE, result)
    except (Exception, KeyboardInterrupt) as error:
        ending = ending_of(error, cell.directory, run.signals)
        if ending.recorded:
            handler.note(ending.note)
            _close(run, attempt, handler, ending)
            run.trackers.end(ending.state, run.asked_to_stop)
        run.trackers.drop()
        if ending.copied:
            sync_cell(run.cfg, cell, final=False)
        if ending.state == State.PREEMPTED:
            log.info("stopped by %s; the next start goes on from the last checkpoint", ending.reason)
        if ending.state == State.PRUNED:
            log.info("ended early: %s", ending.reason)
        if ending.state == State.FAILED:
            _notify(run, "cell_failed", REASON=ending.reason, SECONDS=attempt.seconds)
        if ending.error is error:
            raise
        if ending.error is not None:
            raise ending.error from error
        return Outcome(State.PRUNED) if ending.state == State.PRUNED else None
    finally:
        logging.getLogger("fsseg").removeHandler(handler)
        try:
            handler.close()
        except OSError as error:
            log.debug("train.log: %s", error)


def _clear(run: Run) -> None:
    """Remove what only an unfinished cell needs."""
    cell = run.cell
    assert run.work is not None
    with suppress(OSError, ClaimLost):
        drop(cell.previous_checkpoint, run.work)
        drop(cell.episodes_part, run.work)
        for kind in BEST:
            drop(cell.best_part(kind), run.work)
        drop(cell.replaced, run.work)


def _close(run: Run, attempt: AttemptFile, handler: RunLog, ending: Ending, **fields: Any) -> None:
    """Record how the attempt ended, as far as that can be written."""
    handler.strict = False
    try:
        told = {"state": ending.state, "reason": ending.reason or None, "diverged": ending.diverged, **fields}
        run.status.update(phase=None, **told)
        attempt.end(f"{ending.state}: {ending.reason}" if ending.reason else str(ending.state))
    except (OSError, ClaimLost) as error:
        log.debug("the end could not be recorded: %s", error)


def _notify(run: Run, event: str, **facts: str) -> None:
    """Tell how the cell ended, by the command of `notify.on_end`."""
    what = {"EVENT": event, "DIR": run.cell.directory.absolute(), "CELL": run.cell.key, **facts}
    hook.call(run.cfg.notify.on_end, run.cfg.notify.timeout_seconds, what)


def _follow(run: Run) -> Outcome:
    """A process other than the first: works along, writes nothing, and learns the outcome from the first."""
    from fsseg.engine import distributed

    if not distributed.broadcast(False, run.ranks):
        return Outcome(State.RUNNING, holder="the first process")
    with run.signals:
        try:
            done: Work | None = _work(run)
        except Pruned:
            return Outcome(State.PRUNED)
        except Preempted:
            done = None
    if done is None:
        if run.signals.received is not None:
            run.signals.hand_over()
        raise SystemExit(0)  # another process was asked to stop
    return distributed.broadcast(Outcome(State.RUNNING), run.ranks)


def _work(run: Run, redone: AttemptFile | None = None) -> Work:
    """Prepare, train, evaluate, draw; every process of the cell does this.

    Args:
        redone: record of a start that puts the former run aside, once all is prepared.
    """
    cfg, started = run.cfg, time.monotonic()
    base = _base_learner(run) if starts_from_a_base_learner(cfg) else None
    with run.signals.at_once():
        import torch

        from fsseg.engine import checkpoint
        from fsseg.engine.base_classes import evaluate_base, take_over
        from fsseg.engine.evaluate import evaluate, evaluate_chosen
        from fsseg.engine.pictures import draw_figures
        from fsseg.engine.ready import make_plans, room_of
        from fsseg.engine.train import train
        from fsseg.model import build_model

        device = run.device = choose_device(cfg.device, run.ranks)
        if cfg.num_threads:
            torch.set_num_threads(cfg.num_threads)
        source = checked_source(cfg)
        plans = make_plans(source, cfg)
        checkpoint.seed_everything(cfg.seed)
        model = build_model(cfg).to(device)
        done = Work(source, weights=getattr(getattr(model, "backbone", None), "weights", None))
        done.came_from = checkpoint.start_from(model, cfg, source) if cfg.checkpoint is not None else None
        done.base_learner = None if base is None else take_over(model, base)
        if run.ranks.first and (lack := room_of(model, cfg, run.cell).fault()) is not None:
            raise lack
    if redone is not None:
        _put_aside(run, redone)
    if run.ranks.first:
        run.trackers.start(run.cell, cfg.logger.trackers)
    done.timing.prepare_seconds = round(time.monotonic() - started, 2)
    sizes = [p.numel() for p in model.parameters()], [p.numel() for p in model.parameters() if p.requires_grad]
    log.info(
        "%s on %s, %s: %.2f M parameters, %.2f M of them train",
        cfg.model.name, cfg.backbone.name, describe_device(device), sum(sizes[0]) / 1e6, sum(sizes[1]) / 1e6,
    )  # fmt: skip

    trained = None
    if plans.training is not None and model.trainable:
        run.status.update(phase="train")
        trained = train(run, model, source, plans.training)
        done.training, done.train_data = trained.record, trained.data
        done.timing.train_seconds = trained.record.seconds
    if cfg.eval.enabled:
        run.status.update(phase="evaluate")
        began = time.monotonic()
        if plans.base is not None:
            done.base_classes = evaluate_base(run, model, source, plans.base)
        else:
            done.evaluation = evaluate(run, model, source, plans)
        done.timing.evaluate_seconds = round(time.monotonic() - began, 2)
    if trained is not None and plans.base is None:
        done.best = evaluate_chosen(run, model, source, plans, trained.chosen, done.evaluation)
    if run.ranks.first:
        run.still_ours()
        started = time.monotonic()
        draw_figures(run, source, done.evaluation, curves=done.training is not None)
        done.timing.figures_seconds = round(time.monotonic() - started, 2)
    return done


def _base_learner(run: Run) -> Cell:
    """Bring the base learner that a cell starts from to its end, before the cell's own work; every process does this.

    Of all the cells that start from it, in any process on any machine of the folder, the one that comes first trains
    it. The others wait, each with its cell in hand: nobody else could go on with it, and the status says so.

    Raises:
        Preempted: a signal stopped its training, or the waiting.
        UserError: it cannot be trained.
    """
    from fsseg.engine import distributed

    config = base_config(resolved(run.cfg))
    cfg, told = typed(config), ""
    cell = open_cell(cfg, resolved(config), base_overrides(run.cell.overrides))
    while True:
        base = Run(cfg, cell, ranks=run.ranks, signals=run.signals)
        holder = None
        if run.ranks.first:
            holder = _base_trained(run, base)
        elif distributed.broadcast(False, run.ranks):
            _work(base)
            distributed.broadcast(None, run.ranks)  # as in `_follow`: they go on when it is written
        holder = distributed.broadcast(holder, run.ranks)
        if holder is None:
            if run.ranks.first:
                run.status.update(phase="prepare", reason=None)
            return cell
        if run.ranks.first:
            run.still_ours()
            run.status.update(phase="waiting for its base learner", reason=f"{cell.directory} is held by {holder}")
            if told != holder:
                log.info("waiting for its base learner: %s is held by %s", cell.directory, holder)
                told = holder
            with run.signals.at_once():
                time.sleep(_WAIT_SECONDS)


def _base_trained(run: Run, base: Run) -> str | None:
    """Train the base learner of a run if it is not done, in the first process; who else has it, None if it is done.

    Raises: as `_base_learner`.
    """
    cell = base.cell
    try:
        if (result := cell.finished()) is not None:
            _already_done(base, result)
            return None
        if (claim := cell.claim()) is not None and claim.alive():
            return str(claim.holder)
        if found := folder_faults(base.cfg) + output_faults(cell):
            raise merge_errors(found)
        cell.check_same_settings()
        _check_model(run)
        run.status.update(phase="base learner", reason=None)
        log.info("first its base learner, which others start from too: %s", cell.directory)
        outcome = _claimed(base, redo=False)
    finally:
        _announce(base, False)
    if outcome is None:
        raise Preempted(str(base.signals.reason()))
    return None if outcome.state == State.DONE else outcome.holder


def _check_model(run: Run) -> None:
    """That the cell's own model can be built, before hours go into its base learner.

    Raises:
        UserError: it cannot.
    """
    with run.signals.at_once():
        from fsseg.model import build_model

        build_model(run.cfg)


def _put_aside(run: Run, attempt: AttemptFile) -> None:
    """redo=true: everything could be prepared, so the former run makes room; it goes when a new result is there."""
    cell = run.cell
    assert run.work is not None
    set_aside(cell, run.work)
    run.id, _ = cell.begin(OmegaConf.to_yaml(run.cfg, resolve=True))
    attempt.redone(run.id)
    run.status.show(cell.status_file)


def _announce(run: Run, work: bool) -> None:
    """Tell the other processes, once, whether there is work for them; they wait for it in `_follow`."""
    if run.ranks.world > 1 and not run.announced:
        from fsseg.engine import distributed

        run.announced = True
        distributed.broadcast(work, run.ranks)


def _already_done(run: Run, result: Result) -> Outcome:
    wanted = run.cfg.train.select if result.training is not None else []
    if lacking := [kind for kind in wanted if kind not in result.best]:
        log.warning("%s was trained without train.select=[%s]: redo=true trains it anew", run.cell.directory,
                    ",".join(lacking))  # fmt: skip
    if (fault := DataNow().fault(run.cfg, resolved(run.cfg.dataset), result.dataset)) is not None:
        raise UserError(f"{run.cell.directory} is {fault.what}", fault.fix)
    log.info("already done: %s%s", run.cell.directory, _score(result))
    return Outcome(State.DONE, result)


def _score(result: Result) -> str:
    return f"  {result.score_line()}" if result.metrics or result.base_classes else ""


def _sweep() -> DictConfig | None:
    """The configuration of the sweep that this cell belongs to, by its `hydra` node; None without a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    found: Any = HydraConfig.instance().cfg
    return found if found is not None and found.hydra.mode == RunMode.MULTIRUN else None


def _hydra_overrides(method: str) -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    given = {o.lstrip("+~").partition("=")[0] for o in overrides}
    # What an experiment file sweeps comes to a cell as overrides; a cell without them would be none of its cells.
    swept = {key: f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()}
    if method in BASE_LEARNERS:  # a base learner of the sweep has its own seed, and is of all shots
        swept = {key: text for key, text in swept.items() if text in base_overrides([text])}
    if lacking := [text for key, text in swept.items() if key not in given]:
        raise UserError(
            f"this experiment is a sweep over {' '.join(lacking)}",
            f"add -m ({train_line('-m experiment=...')}, one experiment a line), or choose one value of each",
        )
    return overrides


class _Callable(ModuleType):
    """This module, which is called in Python as it is by `train.py`'s command line."""

    def __call__(self, line: str | Sequence[str] = ()) -> Result | None:
        """Run a cell in this process: `fsseg.run("dataset=shapes5i fold=1")`.

        Args:
            line: what may follow `python train.py`, without flags; as one text, quoted as for a shell, or a list.

        Returns:
            Its result; None where another process has the cell, or `check=true` only asked.

        Raises:
            UserError, SystemExit: as `run`.
        """
        composed = compose(shlex.split(line) if isinstance(line, str) else list(line))
        return run(composed.config, composed.task_overrides).result


sys.modules[__name__].__class__ = _Callable
