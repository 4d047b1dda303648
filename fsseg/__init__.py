"""fsseg: few-shot segmentation experiments that can be trusted.

For Python and notebooks: `load` for masks of images, `read_results` for tables of runs, and `fsseg.run`, a module that
can be called: `fsseg.run("dataset=shapes5i fold=1")` runs a cell. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from fsseg.process.version import VERSION

if TYPE_CHECKING:
    import pandas as pd

    from fsseg.engine.predict import Predictor

__version__ = VERSION


def load(place: str | PathLike[str], device: str = "auto", overrides: Sequence[str] = ()) -> Predictor:
    """The model of a checkpoint or a run directory, for masks of other images.

    `fsseg.load("outputs/.../last.pt").predict("query.jpg", [("support.jpg", "support.png")]).mask`

    Args:
        place: a checkpoint, or a run directory.
        device: auto, cpu, cuda or cuda:<number>.
        overrides: what is otherwise on this machine, e.g. `["backbone.weights=FILE"]`.

    Raises:
        fsseg.errors.UserError: it is not there, cannot be read, or needs what is not here.
    """
    from fsseg.engine.predict import Predictor

    return Predictor.from_checkpoint(str(place), device, overrides)


def read_results(*folders: str | PathLike[str]) -> pd.DataFrame:
    """One row for each cell below output folders, with a score or without; what cannot be read is told and left out.

    Raises:
        fsseg.errors.UserError: a folder does not exist, or there is no run.
    """
    import logging

    from fsseg.report.collect import collect, to_frame

    found = collect(map(str, folders))
    for problem in found.problems:
        logging.getLogger("fsseg").warning("left out: %s", problem)
    return to_frame(found)


def __getattr__(name: str) -> Any:
    """`fsseg.run`, without an import of it before."""
    if name != "run":
        raise AttributeError(f"module 'fsseg' has no attribute {name!r}")
    from importlib import import_module

    return import_module("fsseg.run")
