"""The sweep behind `python train.py -m ...`: looks before it launches, and says in the end how every cell fared.

Hydra's own sweeper launches every job, shows the first exception and forgets the rest. This one composes the whole grid
first: two cells that would share a directory are refused, finished cells are dropped, cells with faults are reported
together; the others go to whatever launcher is configured. Hydra finds it through `hydra_plugins.fsseg_sweeper`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.cell import Cell, open_cell, read_json
from fsseg.errors import UserError, merge_errors

log = logging.getLogger("fsseg.sweep")


@dataclass
class Job:
    """One point of the grid.

    Attributes:
        overrides: as Hydra's launcher takes them.
        cell: its directory and fingerprint; None if it could not be composed.
        faults: why it cannot start; empty if it can.
        state: done, todo, faulty before the launch; done, failed, running after it.
    """

    overrides: list[str]
    cell: Cell | None
    faults: list[UserError]
    state: str
    note: str = ""

    @property
    def label(self) -> str:
        return str(self.cell.key) if self.cell else " ".join(self.overrides)


class FssegSweeper(Sweeper):
    """Cartesian product of the overrides, one job a cell, in the order given."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launch what is not done yet.

        Raises:
            UserError: two cells with one directory (nothing is started then), or cells that failed.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        from fsseg.run import configure_logging

        configure_logging(self.config.log_level)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        batches = BasicSweeper.split_arguments(parser.parse_overrides(arguments), max_batch_size=None)
        jobs = [self._examine(overrides) for overrides in batches[0]]
        _refuse_shared_directories(jobs)

        faulty = [job for job in jobs if job.state == "faulty"]
        for text, labels in _grouped(faulty).items():
            log.error("%s\n  (%s)", text, f"{len(labels)} cells: {labels[0]} ..." if len(labels) > 1 else f"cell {labels[0]}")
        todo = [job for job in jobs if job.state == "todo"]
        done = sum(job.state == "done" for job in jobs)
        extra = f", {len(faulty)} cannot start" if faulty else ""
        log.info("%d of %d cells done, %d to run%s", done, len(jobs), len(todo), extra)

        returns: Sequence[JobReturn] = []
        if todo:
            Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
            # A plain launcher returns one JobReturn a job, failures included; the directory has the last word on each.
            returns = self.launcher.launch([job.overrides for job in todo], initial_job_idx=0)
            configure_logging(self.config.log_level)
            for job, returned in zip(todo, returns):
                _settle(job, returned)
        print(_summary(jobs))
        if failed := [job for job in jobs if job.state != "done"]:
            raise UserError(
                f"{len(failed)} of {len(jobs)} cells are not done (listed above)",
                "mend the cause and run the same line again: it runs just what is missing",
            )
        return returns

    def _examine(self, overrides: Sequence[str]) -> Job:
        from fsseg.data.registry import folder_faults
        from fsseg.entry import explain, typed
        from fsseg.config import faults

        assert self.hydra_context is not None
        try:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            task_overrides = list(composed.hydra.overrides.task)
            with open_dict(composed):
                del composed["hydra"]
            cfg = typed(composed)
            found = faults(cfg)
            if not found:
                cell = open_cell(cfg, _plain(composed), task_overrides)
                if not cfg.redo and cell.finished() is not None:
                    return Job(list(overrides), cell, [], "done")
                found = folder_faults(cfg)
                if not cfg.redo and not found:
                    cell.check_same_settings()
                return Job(list(overrides), cell, found, "faulty" if found else "todo")
            return Job(list(overrides), None, found, "faulty")
        except UserError as error:
            return Job(list(overrides), None, [error], "faulty")
        except (HydraException, OmegaConfBaseException) as error:
            return Job(list(overrides), None, [explain(error)], "faulty")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    value = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def _refuse_shared_directories(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        if job.cell is None:
            continue
        other = seen.setdefault(job.cell.directory, job)
        if other is not job:
            raise UserError(
                f"two cells of this sweep share the directory {job.cell.directory}: "
                f"[{' '.join(other.overrides)}] and [{' '.join(job.overrides)}]",
                "take the duplicate out of the sweep, or set variant= to tell them apart",
            )


def _grouped(jobs: Sequence[Job]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for job in jobs:
        groups.setdefault(str(merge_errors(job.faults)), []).append(job.label)
    return groups


def _settle(job: Job, returned: JobReturn) -> None:
    assert job.cell is not None
    status = read_json(job.cell.status) or {}
    if job.cell.finished() is not None:
        job.state = "done"
    elif returned.status == JobStatus.FAILED:
        job.state, job.note = "failed", str(returned._return_value).splitlines()[0]
    else:
        job.state, job.note = str(status.get("state", "unknown")), str(status.get("reason") or "")


def _summary(jobs: Sequence[Job]) -> str:
    lines = [f"\n{'cell':<64} {'state':<8} result"]
    for job in jobs:
        if job.state == "done" and job.cell and (result := job.cell.finished()):
            metrics = result.get("metrics") or {}
            note = f"mIoU {metrics['miou']:.2f}" if metrics else "trained"
        elif job.state == "faulty":
            note = "cannot start, see above"
        else:
            note = f"{job.note}  (log: {job.cell.directory / 'train.log'})" if job.cell else job.note
        lines.append(f"{job.label:<64} {job.state:<8} {note}")
    return "\n".join(lines)
