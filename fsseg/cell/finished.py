"""A finished run, read so that some of its episodes can be evaluated again. `fsseg.engine.redraw` does that.

What stands in a run directory is data: interpolations in its config.yaml are refused, not evaluated. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.episodes import OWN, EpisodeCounts
from fsseg.cell.key import file_digest
from fsseg.cell.models import Result, State, Unreadable
from fsseg.cell.record import Cell, RunDirectory, find_runs, nothing_found
from fsseg.cell.variant import is_neutral
from fsseg.errors import UserError, merge_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fsseg.config.schema import Config

_BRING_BACK = "bring back the file that the run wrote, or train the cell anew with redo=true"
_HERE: dict[str, Any] = {
    "device": "auto", "num_workers": 0, "logger.steps": False,
    "eval.feature_cache_gb": None, "eval.feature_place": "auto", "eval.feature_folder": None,
}  # fmt: skip
"""Settings of the machine that a run was made on, and their values on any other; they change no number."""


@dataclass(frozen=True)
class Finished:
    """A finished run and its record.

    Attributes:
        counts: of the episodes under the run's own backgrounds.
        cfg: the recorded configuration; its data, device and checkpoint are those of this machine.
    """

    cell: Cell
    result: Result
    counts: EpisodeCounts
    cfg: Config = field(repr=False)


def find_finished(folders: Iterable[str | Path], changes: Sequence[str] = ()) -> tuple[list[Finished], list[UserError]]:
    """The finished runs among run directories and below other folders, in the order in which they are named.

    Args:
        changes: overrides of what belongs to the machine, e.g. `dataset.root=/data/VOC`.

    Returns:
        The runs; and why others below the folders cannot be used, each in words that name it.

    Raises:
        UserError: a folder does not exist or holds no run, a change is none of the machine, or a run that is named
            itself, or every run, cannot be used.
    """
    check_changes(changes)
    folders = list(folders)
    own = {os.path.realpath(folder) for folder in folders}
    found: list[Finished] = []
    left_out: list[UserError] = []
    named: list[UserError] = []
    seen: set[str] = set()
    for folder in folders:
        if not (runs := find_runs([folder])):
            raise nothing_found([folder])
        for run in runs:
            if (place := os.path.realpath(run.directory)) in seen:
                continue
            seen.add(place)
            try:
                found.append(open_finished(run, changes))
            except UserError as error:
                (named if place in own else left_out).append(error)
    if named or not found:
        raise merge_errors(named or left_out)
    return found, left_out


def check_changes(changes: Sequence[str]) -> None:
    """
    Raises:
        UserError: a change would make another run of it.
    """
    for word in changes:
        key = word.partition("=")[0]
        if "=" not in word or not is_neutral(key):
            raise UserError(
                f"{word}: only what belongs to this machine can be changed for a run that is finished",
                "give e.g. dataset.root=, data.roots.<name>=, device=, num_workers= or checkpoint=",
            )


def open_finished(run: RunDirectory, changes: Sequence[str] = ()) -> Finished:
    """Read one run.

    Raises:
        UserError: it is not finished, has no record of its episodes or another one, or its checkpoint is gone.
    """
    seen = run.look()
    if seen.state != State.DONE or seen.alive:
        state = "done, and at work again" if seen.state == State.DONE else str(seen.state)
        raise UserError(
            f"{run.directory} is not finished: {state}{f' ({seen.reason})' if seen.reason else ''}",
            "wait until it is done; `fsseg status` says how it stands, `fsseg retry` prints the line that goes on",
        )
    assert seen.result is not None
    result = seen.result
    try:
        counts = run.episodes()
    except Unreadable as error:
        raise UserError(f"{run.episodes_file} {error}", _BRING_BACK) from None
    if counts is None:
        what = "a base learner has none" if result.base_classes else "it was not evaluated, or by an earlier version"
        raise UserError(
            f"{run.directory} has no record of single episodes: {what}",
            "name a run that has an episodes.npz, or evaluate its checkpoint anew: train.enabled=false checkpoint=...",
        )
    cfg = _configuration(run, result, changes)
    cell = Cell(run.directory, result.cell, result.fingerprint, {})
    return Finished(cell, result, counts.select(OWN), cfg)


def _configuration(run: RunDirectory, result: Result, changes: Sequence[str]) -> Config:
    """The recorded configuration, as it is on this machine.

    Raises:
        UserError: it cannot be read or is of another version, a change does not fit it, or its checkpoint is gone.
    """
    from fsseg.config.checks import validate
    from fsseg.config.entry import typed

    config = recorded_config(run)
    if result.training is not None:
        take_weights_from(config, run.checkpoint)
    _change(config, changes)
    cfg = typed(config)
    _check_checkpoint(run, result, cfg)
    validate(cfg, of_a_run=False)
    return cfg


def recorded_config(run: RunDirectory) -> DictConfig:
    """What a run directory says of its settings, as `config_here` makes it.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    try:
        plain = run.config()
    except Unreadable as error:
        raise UserError(f"{run.config_file} {error}", _BRING_BACK) from None
    if not plain:
        raise UserError(f"{run.config_file} is not there", _BRING_BACK)
    return config_here(plain, run.config_file)


def config_here(plain: Mapping[str, Any], file: Path) -> DictConfig:
    """A recorded configuration for use on this machine, whose device and memory may be others.

    Args:
        plain: its resolved values.
        file: that they stood in, for messages.

    Raises:
        UserError: it is of another version of the code, or holds an interpolation.
    """
    from omegaconf import OmegaConf

    from fsseg.config.recorded import from_recorded

    if "${" in str(plain):
        raise UserError(f"{file} holds an interpolation ${{...}}, and what is stored is not evaluated", _BRING_BACK)
    try:
        config = from_recorded(plain)
    except UserError as error:
        raise UserError(f"{file}: {error.what}", error.fix) from None
    for key, value in _HERE.items():
        OmegaConf.update(config, key, value)
    return config


def take_weights_from(config: DictConfig, checkpoint: Path) -> None:
    """A checkpoint holds all weights: those of ImageNet need not be on this machine."""
    config.checkpoint, config.backbone.pretrained, config.backbone.weights = str(checkpoint), False, None


def apply_changes(config: DictConfig, changes: Sequence[str]) -> None:
    """Put overrides into a recorded configuration.

    Raises:
        UserError: one does not fit.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fsseg.config.entry import explained
    from fsseg.config.hydra_internals import apply_overrides

    with explained():
        apply_overrides(OverridesParser.create().parse_overrides(list(changes)), config)


def _change(config: DictConfig, changes: Sequence[str]) -> None:
    """Put the changes in, and the folder of the data: the line's, else the recorded one, else this machine's.

    Raises:
        UserError: a change does not fit.
    """
    from fsseg.config.machine import data_root

    for name in config.data.roots:
        config.data.roots[name] = None
    apply_changes(config, changes)
    keys, name = {word.partition("=")[0] for word in changes}, config.dataset.name
    recorded = os.path.isdir(os.path.expanduser(config.dataset.root))
    if "dataset.root" not in keys and (f"data.roots.{name}" in keys or not recorded):
        config.dataset.root = data_root(name, _root_=config)


def _check_checkpoint(run: RunDirectory, result: Result, cfg: Config) -> None:
    """
    Raises:
        UserError: the checkpoint that the weights come from is gone, or has another content than it had.
    """
    if cfg.checkpoint is None:
        return
    if not (path := Path(cfg.checkpoint)).is_file():
        fix = "bring it back (`fsseg sync --pull URL DIR --checkpoints`), name its place with --also checkpoint=FILE"
        raise UserError(f"{path}: the checkpoint of {run.directory} is gone", f"{fix}, or train anew with redo=true")
    if result.training is None:
        try:
            stored = run.identity_record()
        except Unreadable as error:
            raise UserError(f"{run.identity_file} {error}", _BRING_BACK) from None
        then = None if stored is None else stored.identity.get("checkpoint (content)")
        if then is not None and then != (now := file_digest(path)):
            raise UserError(
                f"{path} is not the checkpoint that {run.directory} was evaluated from (SHA-256 {now}, then {then})",
                "name the right one with --also checkpoint=FILE",
            )
