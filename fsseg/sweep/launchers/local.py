"""`hydra/launcher=local`: N cells at a time on this machine, each in its own process and with its own GPU.

submitit's local executor starts every job at once and hides the GPUs; joblib's workers die together. Here a worker is a
plain process that runs submitit's job entry, so signals, ranks (`tasks_per_node`) and pickles are as in a SLURM job. A
killed worker loses only its own cell. Each worker has its own process group: Ctrl-C reaches only the launcher, which
sends the workers TERM and waits for their checkpoints. If the launcher is killed, the workers go on, as SLURM jobs do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, setup_globals

from fsseg.cell.attempt import JOB
from fsseg.errors import UserError
from fsseg.sweep.launchers.base import (
    CellLauncher,
    CellLost,
    More,
    StopSignals,
    Submitted,
    SweepInterrupted,
    failed,
    outcome,
)

log = logging.getLogger("fsseg.sweep")

_REQUEUE = 144  # submitit's exit status for "start me again" (submitit.local.local.LOCAL_REQUEUE_RETURN_CODE)


@dataclass
class _Running:
    index: int
    slot: int
    job_id: str
    processes: list[subprocess.Popen[bytes]]
    starts: int = 1
    asked: float | None = None  # when TERM was sent to its remaining processes


@dataclass(frozen=True)
class Slots:
    """How many cells run at a time, on which groups of GPUs, each with how many threads.

    Slots take the groups of GPUs in turn; without groups the visible GPUs stay as they are.
    """

    workers: int
    gpus: list[list[str]]
    threads: int


class LocalLauncher(CellLauncher):
    """A queue of cells over a fixed number of worker slots."""

    _EXECUTOR = "local"

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every cell, `workers` at a time.

        Raises:
            UserError: more GPUs for a cell than there are.
            SweepInterrupted: INT or TERM came; all workers have ended.
        """
        from submitit.core import utils

        from fsseg.sweep import foreign

        if not self.cells:
            return foreign.launch(self, job_overrides, initial_job_idx)
        setup_globals()
        self._slots = slots(self.params)
        self._folder = Path(str(self.params["submitit_folder"])).expanduser().absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tasks = int(self.params["tasks_per_node"])
        self._launch = uuid.uuid4().hex
        returns: list[JobReturn | None] = []
        cells: list[More] = []
        ids: list[str] = []

        def take(more: Sequence[More]) -> list[int]:
            """Make jobs of cells; returns their places."""
            places = range(len(cells), len(cells) + len(more))
            for number, cell in zip(places, more):
                ids.append(f"{os.getpid()}.{initial_job_idx + number}")
                delayed = utils.DelayedSubmission(self.jobs, cell.file, cell.path, initial_job_idx + number)
                # With any but the largest time-out submitit would count a USR2 as a time-out.
                delayed.set_timeout(60 * 24 * 365, int(self.params["max_restarts"]))
                delayed.dump(utils.JobPaths(self._folder, ids[number]).submitted_pickle)
            cells.extend(more)
            returns.extend([None] * len(more))
            self.observer.submitted({i: Submitted(ids[i], self._log(ids[i])) for i in places})
            return list(places)

        waiting = take([More(file, path, overrides) for (file, path), overrides in zip(self.cells, job_overrides)])
        log.info("%d workers%s, logs in %s", self._slots.workers,
                 f" on {len(self._slots.gpus)} GPU groups" if self._slots.gpus else "", self._folder)  # fmt: skip

        running: list[_Running] = []
        with StopSignals() as signals:
            while not signals.received or running:
                free = self._slots.workers - len(running) - len(waiting)
                if free > 0 and not signals.received and (more := self.observer.more(free)):
                    waiting += take(more)
                if not (running or waiting):
                    break
                while waiting and not signals.received and len(running) < self._slots.workers:
                    slot = min(set(range(self._slots.workers)) - {r.slot for r in running})
                    index = waiting.pop(0)
                    running.append(_Running(index, slot, ids[index], self._start(ids[index], slot)))
                self._pass_on(signals, running)
                for one in list(running):
                    returned = self._reap(one, cells[one.index].overrides, stopping=bool(signals.received))
                    if returned is not None:
                        running.remove(one)
                        returns[one.index] = returned
                        self.observer.ended(one.index, returned)
                signals.sleep(0.2)
            if signals.received:
                raise SweepInterrupted(signals.received[0])
        return [r for r in returns if r is not None]

    def _log(self, job_id: str) -> Path:
        return self._folder / f"{job_id}_0_log.out"

    def _start(self, job_id: str, slot: int) -> list[subprocess.Popen[bytes]]:
        base = dict(os.environ)
        base.update(
            SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID=job_id, SUBMITIT_LOCAL_NTASKS=str(self._tasks),
            SUBMITIT_LOCAL_JOB_NUM_NODES="1", SUBMITIT_LOCAL_NODEID="0", PYTHONUNBUFFERED="1",
        )  # fmt: skip
        base[JOB] = f"{self._launch} {job_id}"
        base.setdefault("OMP_NUM_THREADS", str(self._slots.threads))
        if self._slots.gpus:
            base["CUDA_VISIBLE_DEVICES"] = ",".join(self._slots.gpus[slot % len(self._slots.gpus)])
        processes = []
        for rank in range(self._tasks):
            env = base | {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}
            with (self._folder / f"{job_id}_{rank}_log.out").open("ab") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "submitit.core._submit", str(self._folder)],
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return processes

    def _pass_on(self, signals: StopSignals, running: list[_Running]) -> None:
        """The first INT or TERM: cells have `signal_delay_s` to save a checkpoint. The second: they are killed."""
        if not signals.received:
            return
        for one in running:
            if one.asked is None:
                log.info("%s: waiting up to %d s for %d cells to save; once more kills them",
                         signal.Signals(signals.received[0]).name, self._grace, len(running))  # fmt: skip
                for other in running:
                    _terminate(other)
            if len(signals.received) > 1:
                _kill(one)

    @property
    def _grace(self) -> int:
        return int(self.params["signal_delay_s"])

    def _reap(self, one: _Running, overrides: Sequence[str], *, stopping: bool) -> JobReturn | None:
        """How a cell ended; None while it runs, or when it was started again."""
        codes = [process.poll() for process in one.processes]
        if any(code is None for code in codes):
            if any(code for code in codes) and one.asked is None:
                _terminate(one)  # the other ranks would wait for the dead one for ever
            if one.asked is not None and time.monotonic() - one.asked > self._grace:
                _kill(one)
            return None
        if _REQUEUE in codes and not stopping and one.starts <= int(self.params["max_restarts"]):
            log.info("cell %s saved on a signal; it starts again", one.job_id)
            one.processes, one.asked = self._start(one.job_id, one.slot), None
            one.starts += 1
            return None
        results = [self._folder / f"{one.job_id}_{rank}_result.pkl" for rank in range(self._tasks)]
        return outcome(results, overrides) or failed(CellLost(_how([code or 0 for code in codes])), overrides)


def _terminate(one: _Running) -> None:
    one.asked = time.monotonic()
    for process in one.processes:
        if process.poll() is None:
            process.terminate()


def _kill(one: _Running) -> None:
    for process in one.processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its data workers too


def _how(codes: Sequence[int]) -> str:
    code = next((c for c in codes if c), 0)
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (the kernel does that when memory runs out)"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code} and no result"


def slots(params: dict[str, Any]) -> Slots:
    """Workers, their GPUs and threads, from the launcher's settings and what the machine has.

    Raises:
        UserError: `gpus_per_node` exceeds the GPUs of the machine, or `workers` is not positive.
    """
    gpus = visible_gpus()
    tasks = int(params["tasks_per_node"])
    each = params["gpus_per_node"]
    if each is None:
        each = min(tasks, len(gpus))
    if each > len(gpus):
        raise UserError(
            f"hydra.launcher.gpus_per_node={each}: this machine shows {len(gpus)} GPUs",
            "ask for fewer, or leave it out (0 runs on the CPU)",
        )
    groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)] if each else []
    workers = params["workers"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is None:
        workers = len(groups) or max(1, cores // 4)
    if workers < 1:
        raise UserError(f"hydra.launcher.workers={workers} runs nothing", "set it to 1 or more, or leave it out")
    if params["gpus_per_node"] == 0:
        groups = [[]]  # 0 hides them
    return Slots(workers, groups, max(1, cores // (workers * tasks)))


def visible_gpus() -> list[str]:
    """The GPUs a process started here may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    if (value := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in value.split(",") if name.strip() and name.strip() != "-1"]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listing.splitlines() if line.startswith("GPU "))]
