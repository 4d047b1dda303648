"""Which models the page offers, and the few of them that are in memory. `fsseg.cli.demo` says how each is opened."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from fsseg.cell.models import Unreadable
from fsseg.cell.record import Problem, RunDirectory, find_runs
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import UserError, visible
from fsseg.model import method_class
from fsseg.process.command import train_line

if TYPE_CHECKING:
    from fsseg.engine.predict import Predictor

_IN_MEMORY = 2  # models that are kept open; a third takes the place of the one that was used least recently
NO_MODEL = "no model is chosen"


class Models:
    """The models of the page; one request at a time uses them.

    Args:
        named: what the command line names: name -> how it is opened.
        folder: run directories below it are offered too.
        open_run: how one of these is opened.

    Attributes:
        busy: is held while a model works.
    """

    def __init__(
        self, named: Mapping[str, Callable[[], Predictor]], folder: Path, open_run: Callable[[Path], Predictor]
    ) -> None:
        self.named, self.folder, self._open_run = dict(named), folder, open_run
        self._open: OrderedDict[str, Predictor] = OrderedDict()
        self.busy = RLock()

    def offered(self) -> list[tuple[str, str]]:
        """(what people read, name) of each model that there is now: those of the command line, then the runs."""
        found = [(visible(name), name) for name in self.named]
        known = {os.path.realpath(name) for name in self.named}
        runs = [run for run in self._runs() if os.path.realpath(run.directory) not in known]
        return found + [(_label(run), str(run.directory)) for run in runs]

    def advice(self) -> str:
        """What to do where there is no model."""
        return (
            f"There is no run with weights below {visible(self.folder)}. `{train_line()}` trains a small model on "
            "generated images in minutes; then load this page again. Or start `fsseg demo method=prototype "
            "backbone=resnet50`, which trains nothing."
        )

    def get(self, name: str | None) -> Predictor:
        """The model of a name, opened if need be.

        Raises:
            UserError: it is none of those offered, or cannot be opened.
        """
        if not name:
            raise UserError(NO_MODEL, "choose one above; where the list is empty, train one or name one: fsseg demo -h")
        with self.busy:
            if name not in self._open:
                self._open[name] = self._opened(name)
            self._open.move_to_end(name)
            while len(self._open) > _IN_MEMORY:
                self._open.popitem(last=False)
            return self._open[name]

    def _opened(self, name: str) -> Predictor:
        if name in self.named:
            return self.named[name]()
        if name not in {str(run.directory) for run in self._runs()}:
            raise UserError(
                f"{name} is none of the models of this page", "choose one of the list, or load the page again"
            )
        return self._open_run(Path(name))

    def _runs(self) -> list[RunDirectory]:
        """Runs that can be opened, as far as their folders show."""
        left_out: list[Problem] = []
        return [run for run in find_runs([self.folder], left_out) if _usable(run)] if self.folder.is_dir() else []


def _usable(run: RunDirectory) -> bool:
    key = run.find_key()
    if key is None or key.method in BASE_LEARNERS:
        return False
    try:
        return run.checkpoint.is_file() or (run.result() is not None and not method_class(key.method).trainable)
    except (Unreadable, UserError, KeyError):
        return False


def _label(run: RunDirectory) -> str:
    """The name of the cell, and its score if it has one."""
    seen = run.look()
    return visible(seen.label) + ("" if seen.miou is None else f" (mIoU {seen.miou:.1f})")
