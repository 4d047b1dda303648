"""Weights & Biases (https://docs.wandb.ai), offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from fsseg.engine.trackers.base import About, Tracker


class WandbRun(Tracker):
    """A run whose id is that of identity.json.

    Offline the tool cannot go on with a run: it would leave a folder for each start, of which `wandb sync` keeps one.
    So the folder of the start before is removed, and the new one gets all rows from the first.
    """

    def __init__(self, about: About) -> None:
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        folder = Path(os.environ.get("WANDB_DIR") or about.folder)
        folder.mkdir(parents=True, exist_ok=True)
        offline = mode in ("offline", "dryrun")
        self.rows = 0 if offline else about.rows
        if offline:
            for former in (folder / "wandb").glob(f"offline-run-*-{glob.escape(about.run)}"):
                shutil.rmtree(former)
        # Nothing but what it is handed: no code, no list of packages, no look at the machine.
        quiet = wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_stats=True,
            x_disable_machine_info=True, x_save_requirements=False, silent=True,
        )  # fmt: skip
        project, group = os.environ.get("WANDB_PROJECT") or about.experiment, about.group
        tags = [tag for key, value in about.tags.items() if len(tag := f"{key}={value}") <= 64]
        self._run = wandb.init(
            project=project, name=about.name, group=group[:128], tags=tags, id=about.run, config=dict(about.config),
            dir=folder, mode=mode, resume=None if offline else "allow", settings=quiet,
        )  # fmt: skip
        self.id = about.run
        self.place = str(self._run.url or Path(self._run.dir).parent)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None:
        if figures:
            self._run.log({name: wandb.Image(str(path)) for name, path in figures.items()})
        self._run.summary.update({f"result/{name}": value for name, value in numbers.items()})
        copy = shutil.copy(record, self._run.dir)  # of a file elsewhere the tool would keep a link
        self._run.save(copy, base_path=self._run.dir, policy="now")

    def close(self, state: str) -> None:
        if state == "preempted" and not self._run.offline:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "done" else 1)
