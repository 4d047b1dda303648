"""MLflow (https://mlflow.org), in local files unless MLFLOW_TRACKING_URI says otherwise.

The small package mlflow-skinny is enough. Its file store takes many processes at once; MLflow calls it legacy and
wants to be told that it is meant (MLFLOW_ALLOW_FILE_STORE), as must be whoever looks at it: `mlflow ui`.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from fsseg.cell.key import flatten
from fsseg.engine.trackers.base import About, Tracker, without_password

_STATES = {"done": "FINISHED", "failed": "FAILED"}  # all else may go on: KILLED
_PARAMS, _METRICS = 100, 1000  # that one request may have


class MlflowRun(Tracker):
    """A run of the experiment `name=`; its id is the tool's."""

    def __init__(self, about: About) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI") or about.folder.as_uri()
        self._client = MlflowClient(address)
        self.place, self.rows = without_password(address), about.rows
        if about.id is not None:
            self.id = about.id
            self._client.update_run(self.id, "RUNNING")
        else:
            tags = {f"fsseg.{key}": value for key, value in about.tags.items()} | {"fsseg.run": about.run}
            tags["fsseg.group"] = about.group
            experiment = self._experiment(about)
            self.id = self._client.create_run(experiment, tags=tags, run_name=about.name).info.run_id
            settings = plain_names(flatten(dict(about.config)))
            params = [Param(key, str(value)[:6000]) for key, value in settings.items()]
            for first in range(0, len(params), _PARAMS):
                self._client.log_batch(self.id, params=params[first : first + _PARAMS])
        self._last = 0

    def _experiment(self, about: About) -> str:
        """The id of the experiment. Many cells begin at once, and the file store would make one for each."""
        about.folder.mkdir(parents=True, exist_ok=True)
        with (about.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self._client.get_experiment_by_name(about.experiment)
            return str(self._client.create_experiment(about.experiment) if found is None else found.experiment_id)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now, names = int(1000 * time.time()), plain_names(numbers)
        metrics = [Metric(name, value, now, step) for name, value in names.items()]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(self.id, metrics=metrics[first : first + _METRICS])
        self._last = step

    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None:
        self.log(self._last, {f"result/{name}": value for name, value in numbers.items()})
        for path in figures.values():
            self._client.log_artifact(self.id, str(path), "figures")
        self._client.log_artifact(self.id, str(record))

    def close(self, state: str) -> None:
        self._client.set_terminated(self.id, _STATES.get(state, "KILLED"))


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with names that MLflow takes: letters, digits, `_ - . : /` and blanks, no empty parts, none twice."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        parts = [re.sub(r"[^\w.\- :]", "_", part)[:60] for part in name.split("/")]
        plain = "/".join(part if part.strip(". ") else "_" for part in parts)[:240]
        while plain in found:
            plain += "_"
        found[plain] = value
    return found
