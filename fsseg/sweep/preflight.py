"""What can be known before a job is spent: the settings of a launcher, weights, room on the disk, folders.

`launch_faults` looks at a sweep as a whole, `cell_faults` and `disk_fault` at its cells. The sweeper and
`fsseg.sweep.grid` call them before anything is written or submitted. No torch here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fsseg.cell import weights
from fsseg.cell.key import file_digest
from fsseg.cell.record import RunDirectory
from fsseg.config.checks import field_faults, place_faults, setting_faults
from fsseg.config.constraints import FILE_PATH, shown
from fsseg.config.entry import typed
from fsseg.config.flags import hydra_faults
from fsseg.config.hydra_internals import BasicLauncher
from fsseg.errors import UserError
from fsseg.process.words import count, size
from fsseg.sweep.estimate import PUBLISHED_CHECKPOINT_MB, Known, disk_bytes, measurements

if TYPE_CHECKING:
    from fsseg.config.schema import Config
    from fsseg.sweep.grid import Point


SMALL_FILES = 20e6
"""Bytes that everything but the checkpoints of a run may take: logs, figures, records."""


def launch_faults(config: DictConfig) -> list[UserError]:
    """What is wrong with the folder of a sweep, or with the settings of its launcher: nothing is made before that.

    Only launchers whose settings have a schema are known. A line break in a name would be one in SLURM's script.
    """
    if found := hydra_faults(config) or place_faults(typed(config)):
        return found
    if found := setting_faults("hydra.sweep.dir", str(config.hydra.sweep.dir), FILE_PATH):
        return found
    if config.check and not config.hydra.sweeper._target_.startswith("hydra_plugins.fsseg_sweeper."):
        what = f"check=true: hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']} would write and submit"
        return [UserError(what, "leave hydra/sweeper= out, or check one cell, without -m")]
    launcher = config.hydra.launcher
    known = is_dataclass(OmegaConf.get_type(launcher))
    found = list(dict(field_faults(launcher, "hydra.launcher.")).values()) if known else []
    return found or list(_signal_faults(launcher))


def _signal_faults(launcher: DictConfig) -> Iterator[UserError]:
    """A signal that comes as long before the time limit as the limit is long would come at the start."""
    delay, minutes = launcher.get("signal_delay_s"), launcher.get("timeout_min")
    if delay is not None and minutes is not None and delay >= 60 * minutes:
        yield UserError(
            f"hydra.launcher.signal_delay_s={delay} leaves no time to train: hydra.launcher.timeout_min={minutes} is "
            f"{60 * minutes} s",
            "lower signal_delay_s (the seconds that a cell has for its checkpoint), or raise timeout_min",
        )


def runs_here(config: DictConfig) -> bool:
    """Whether the cells of a sweep run in this very process, one after the other (`hydra/launcher=basic`)."""
    return bool(config.hydra.launcher._target_ == f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}")


def leaves(config: DictConfig) -> bool:
    """Whether the cells of a sweep run on other machines: the devices of this one say nothing about them."""
    return not runs_here(config) and config.hydra.launcher._target_ != "hydra_plugins.fsseg_launchers.LocalLauncher"


def cell_faults(cfg: Config, directory: Path, download: bool) -> list[UserError]:
    """What a cell lacks that is not in its configuration: pretrained weights, and a folder to write to.

    Args:
        directory: of the run.
        download: whether weights that are not there may be fetched when the cell starts.
    """
    return [*weights_faults(cfg, download), *output_faults(RunDirectory(directory))]


def output_faults(run: RunDirectory) -> list[UserError]:
    """What stands in the way of the files that a run writes: each must go into a folder, and must not be one."""
    files = (
        run.status_file, run.result_file, run.metrics_file, run.log_file, run.config_file, run.identity_file,
        run.checkpoint, run.previous_checkpoint, run.episodes_figure, run.attempts / "1.json", run.tensorboard / "x",
        run.episodes_file, run.episodes_part,
    )  # fmt: skip
    places = dict.fromkeys(map(nearest, dict.fromkeys(file.parent for file in files)))
    found = [fault for place in places if (fault := folder_fault(place)) is not None]
    return found or [
        UserError(f"{shown(file)} is a folder, and the run writes a file of this name", "move it away, or set name=")
        for file in files
        if file.is_dir()
    ]


def weights_faults(cfg: Config, download: bool) -> Iterator[UserError]:
    """What is wrong with torchvision's weights in torch's cache; `download` as for `cell_faults`."""
    name = cfg.backbone.name
    if not cfg.backbone.pretrained or cfg.backbone.weights is not None or name not in weights.FILES:
        return
    file = weights.cached(name)
    if os.path.isfile(file):
        if (fault := weights.mismatch(name, file_digest(file))) is not None:
            yield fault
    elif not download:
        yield UserError(
            f"the pretrained weights of {name} are not in torch's cache: {file} is not there",
            f"fetch them once with `fsseg prepare --weights backbone={name}`, or name a file by backbone.weights=",
        )


def scratch_faults(cfg: Config) -> list[UserError]:
    """What stands in the way of `eval.feature_folder`, on the machine that evaluates."""
    folder = cfg.eval.feature_folder
    used = cfg.eval.feature_place == "disk" and (cfg.eval.enabled or cfg.eval.every_epochs > 0)
    if folder is None or not used or (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        return []
    why = "nothing can be written there" if os.path.isdir(folder) else "there is no such folder"
    fix = "make it, or set eval.feature_folder= to another one; without it the system's is taken"
    return [UserError(f"eval.feature_folder={shown(folder)}: {why}", fix)]


def nearest(directory: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    return next((place for place in (directory, *directory.parents) if os.path.lexists(place)), Path())


def folder_fault(place: Path) -> UserError | None:
    """Why nothing can be written into a folder; None if something can."""
    if not os.path.isdir(place):
        return UserError(f"{shown(place)} is not a folder", "set output_dir= or name= elsewhere")
    if os.access(place, os.W_OK | os.X_OK):
        return None
    reason = " (Read-only file system)" if os.statvfs(place).f_flag & os.ST_RDONLY else ""
    return UserError(
        f"{shown(place)}: nothing can be written there{reason}, and the cell's files go there or below it",
        "mend its permissions, or set output_dir= or name= elsewhere",
    )


def disk_fault(points: Iterable[Point]) -> UserError | None:
    """Whether the cells to run need clearly more room than there is: twice what is free.

    A cell needs what cells like it took, or the published 500 MB; where neither is known, its small files alone.
    """
    folders: dict[Path, list[Point]] = {}
    for point in points:
        if point.composed is not None:
            folders.setdefault(Path(point.composed.cfg.output_dir), []).append(point)
    for folder, cells in folders.items():
        try:
            free = shutil.disk_usage(nearest(folder)).free
        except OSError:
            continue
        if 2 * free >= len(cells) * PUBLISHED_CHECKPOINT_MB * 1e6:
            continue  # hardly a cell takes more: no need to look at all that is there
        known = Known(measurements(folder))
        sizes = (disk_bytes(p.composed.cfg, p.cell.identity, known) for p in cells if p.composed and p.cell)
        each = [SMALL_FILES if found is None else found for found in sizes]
        if (needed := sum(each)) > 2 * free or max(each, default=0) > free:
            return room_fault(folder, count(len(cells), "cell"), needed, free)
    return None


def room_fault(folder: Path, who: str, needed: float, free: int) -> UserError:
    """What is said where a disk is too small; bytes."""
    return UserError(
        f"output_dir={shown(folder)}: {who} need{'s' * (not who.endswith('cells'))} about {size(needed)}, "
        f"and {size(free)} are free",
        "make room (`fsseg clean` lists what is not needed), or set output_dir= to another disk",
    )
