"""`train.py` whose cells do not train: the real configuration, sweeper, launchers, claims and signals, without torch.

What a cell does is asked of FAKE_<fold>, and of FAKE_TRIAL_<number> if it is a trial of a search: nothing special,
raise, raise_early, usererror, diverge, nothing, exit, kill,
hang (until a signal; started again it finishes), sleep:<seconds>, part:<name> (waits for the file FAKE_GO/<name>),
raise:<name> (waits likewise, then raises).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fsseg.cell.claim import Busy, acquire
from fsseg.cell.models import BaseScores, Metrics, Result, State, Training, write_record
from fsseg.cell.record import Cell, open_cell
from fsseg.cell.status import StatusFile
from fsseg.config.entry import launch, typed
from fsseg.errors import Diverged, UserError
from fsseg.process.signals import Signals


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[2] / "conf"), config_name="train")
def main(config: DictConfig) -> None:
    cfg = typed(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    cell = open_cell(cfg, resolved, list(HydraConfig.get().overrides.task))
    what = os.environ.get(f"FAKE_{cfg.fold}", "")
    if cfg.search is not None:  # a trial
        what = os.environ.get(f"FAKE_TRIAL_{cfg.search.trial}", what)
    if what == "raise_early":
        raise RuntimeError("no disk")
    if what == "nothing" or (not cfg.redo and cell.finished() is not None):
        return
    with Signals() as signals:
        try:
            claim = acquire(cell.claim_file, cfg.lease_seconds)
        except Busy:
            return
        if not cfg.redo and cell.finished() is not None:  # another process had it until a moment ago
            claim.release()
            return
        claim.start()
        run, _ = cell.begin(OmegaConf.to_yaml(config, resolve=True))
        status = StatusFile(cell.status_file)
        status.update(state=State.RUNNING)
        started = time.time()
        try:
            stopped = act(what, cell, signals)
            if stopped:
                status.update(state=State.PREEMPTED, reason=signals.reason())
            else:
                starts = [*_starts(cell), [started, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()]]
                (cell.directory / "starts.json").write_text(json.dumps(starts))
                result = Result(cell.key, cell.fingerprint, protocol={}, metrics=Metrics(50.0 + cfg.fold), run=run)
                if not cfg.eval.enabled:  # a trial of a search: best at a rate of 0.03 and three rounds
                    score = (
                        90 - 20 * abs(math.log10(cfg.train.lr / 0.03)) - 3 * abs(cfg.model.iterations - 3) - cfg.fold
                    )
                    base = BaseScores(score, score, 10, 20)
                    result.metrics, result.training = None, Training(steps=1, base_validation=base)
                write_record(cell.result_file, result)
                status.update(state=State.DONE)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            status.update(state=State.FAILED, reason=reason, diverged=isinstance(error, Diverged))
            raise
        finally:
            claim.release()
    if stopped:
        signals.hand_over()


def act(what: str, cell: Cell, signals: Signals) -> bool:
    """Misbehave; whether a signal stopped the cell."""
    if what == "usererror":
        raise UserError("the image is bad", "mend it")
    if what == "diverge":
        raise Diverged("the loss is nan at step 4", "lower train.lr")
    if what == "exit":
        sys.exit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("sleep:"):
        time.sleep(float(what[6:]))
    if what.startswith(("part:", "raise:")):
        while not Path(os.environ["FAKE_GO"], what.partition(":")[2]).exists():
            if signals.reason() is not None:
                return True
            time.sleep(0.05)
    if what.partition(":")[0] == "raise":
        raise RuntimeError("a bad image")
    if what == "hang" and not (cell.directory / "hung").exists():
        (cell.directory / "hung").write_text(str(os.getpid()))
        while signals.reason() is None:
            time.sleep(0.05)
        return True
    return False


def _starts(cell: Cell) -> list[Any]:
    path = cell.directory / "starts.json"
    value: list[Any] = json.loads(path.read_text()) if path.exists() else []
    return value


if __name__ == "__main__":
    launch(main)
