"""Aim (https://aimstack.readthedocs.io), in a local repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aim

from fsseg.engine.trackers.base import About, Tracker


class AimRun(Tracker):
    """A run of the experiment `name=`; its id is the tool's."""

    def __init__(self, about: About) -> None:
        about.folder.mkdir(parents=True, exist_ok=True)
        # The lock of a start that was killed says nothing: only one process follows a run (`fsseg.engine.trackers`).
        self._run = aim.Run(
            about.id, repo=str(about.folder), experiment=about.experiment, force_resume=about.id is not None,
            system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False,
        )  # fmt: skip
        self.id, self.place, self.rows, self._last = str(self._run.hash), str(about.folder), about.rows, 0
        if about.id is None:
            self._run.name = about.name
            self._run["config"] = dict(about.config)
            self._run["cell"] = dict(about.tags) | {"group": about.group, "run": about.run}
            for key, value in about.tags.items():
                self._run.add_tag(f"{key}={value}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._run.track(value, name=name, step=step)
        self._last = step

    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None:
        self._run["result"] = dict(numbers)
        for name, path in figures.items():
            self._run.track(aim.Image(str(path)), name=name, step=self._last)

    def close(self, state: str) -> None:
        self._run["state"] = state
        self._run.close()
