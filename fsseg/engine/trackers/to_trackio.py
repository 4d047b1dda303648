"""Trackio (https://github.com/gradio-app/trackio), in a local folder; TRACKIO_SPACE_ID and others say otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fsseg.cell.key import flatten
from fsseg.engine.trackers.base import About, Tracker


class TrackioRun(Tracker):
    """A run of the project `name=`. The tool knows runs by name: that has the id of identity.json at its end."""

    def __init__(self, about: About) -> None:
        folder = os.environ.setdefault("TRACKIO_DIR", str(about.folder))
        import trackio  # which looks for the folder when it is imported

        self._image = trackio.Image
        config = {**{f"cell.{key}": value for key, value in about.tags.items()}, **flatten(dict(about.config))}
        self._run = trackio.init(
            about.experiment, name=f"{about.name} {about.run}", group=about.group, config=config, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self.id, self._last = self._run.id, 0
        self.rows = about.rows if about.id == self.id else 0  # of a name it does not know it begins a run
        self.place = str(self._run.url or folder)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)
        self._last = step

    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None:
        scores = {f"result/{name}": value for name, value in numbers.items()}
        self._run.log(scores | {name: self._image(str(path)) for name, path in figures.items()}, step=self._last)

    def close(self, state: str) -> None:
        self._run.finish()
