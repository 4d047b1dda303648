"""A model as it was trained or scored, from a checkpoint or a run directory, without its data set.

`fsseg.engine.predict` segments new images with it. Settings come from the checkpoint, which holds them since
checkpoints have `config`, or from the run directory that it lies in.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fsseg.cell.finished import apply_changes, check_changes, config_here, recorded_config, take_weights_from
from fsseg.cell.key import file_digest
from fsseg.cell.models import Result, Unreadable
from fsseg.cell.record import RunDirectory, find_runs
from fsseg.config.base_training import starts_from_a_base_learner
from fsseg.config.checks import field_faults
from fsseg.config.entry import typed
from fsseg.config.schema import Config, MethodConfig
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.data.folds import base_classes
from fsseg.engine import checkpoint
from fsseg.engine.base_classes import base_cell, take_over
from fsseg.errors import UserError, merge_errors
from fsseg.model import FewShotModel, build_model, method_class

log = logging.getLogger("fsseg")

_GROUPS = {"method": "model", "dataset": "dataset", "backbone": "backbone"}


@dataclass(frozen=True)
class Restored:
    """A model with its weights.

    Attributes:
        cfg: its settings.
        model: on the CPU, in evaluation mode.
        about: what it is, in words.
        digest: of its weights; of random ones the seed that they follow from.
        base_classes: name -> class_id of the classes that it was trained on, for methods that treat those otherwise.
    """

    cfg: Config
    model: FewShotModel = field(repr=False)
    about: str
    digest: str
    base_classes: dict[str, int] = field(default_factory=dict)


def restore(place: str | Path, line: Sequence[str] = ()) -> Restored:
    """Build the model of a checkpoint or a run directory.

    Args:
        place: a checkpoint; a run directory, or a folder with one run in it.
        line: overrides; what belongs to the machine may be changed (device=), what the model is may be repeated.

    Raises:
        UserError: it is not there, damaged, of another version or method, has no weights, or the line does not fit it.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _of_run(_run_at(path), line)
    state = checkpoint.load(path)
    checkpoint.check_with_result(path, state)
    plain: dict[str, Any] = state.get("config") or {}
    if plain:
        config = config_here(plain, path)
    elif (run := _run_around(path, state)) is not None:
        config = recorded_config(run)
    else:
        raise UserError(
            f"{path} is a checkpoint of method={state['origin']['method']}, and says nothing of its other settings "
            "(an earlier version wrote it, and it is not in its run directory)",
            "name its run directory, or the checkpoints/last.pt in it",
        )
    take_weights_from(config, path)
    return _built(_changed(config, line, path), state)


def from_config(cfg: Config) -> Restored:
    """Build the model of a configuration: training-free, or with `checkpoint=`.

    Raises:
        UserError: it must be trained first, or its weights are not here.
    """
    if cfg.checkpoint is not None:
        return _built(cfg, checkpoint.load(Path(cfg.checkpoint)))
    return _built(cfg)


def _run_at(folder: Path) -> RunDirectory:
    """
    Raises:
        UserError: there is none, or several.
    """
    found = find_runs([folder])
    if not found:
        raise UserError(f"{folder} is no run directory", "name a run directory, or a checkpoints/last.pt")
    if len(found) > 1:
        what = f"{folder} holds {len(found)} runs, e.g. {found[0].directory}"
        raise UserError(what, "name one run directory, or a checkpoints/last.pt")
    return found[0]


def _of_run(run: RunDirectory, line: Sequence[str]) -> Restored:
    if run.checkpoint.is_file():
        return restore(run.checkpoint, line)
    cfg = _changed(recorded_config(run), line, run.directory)
    restored = _built(cfg, None if cfg.checkpoint is None else checkpoint.load(Path(cfg.checkpoint)), run)
    try:
        result = run.result()
    except Unreadable as error:
        raise UserError(f"{run.result_file} {error}", "bring back the file that the run wrote") from None
    if result is not None and cfg.checkpoint is None and not starts_from_a_base_learner(cfg):
        check_weights(result, restored.model, run.directory)
    return restored


def _run_around(path: Path, state: dict[str, Any]) -> RunDirectory | None:
    """The run directory that a checkpoint lies in, if the checkpoint is of that run."""
    run = RunDirectory(path.absolute().parent.parent)
    try:
        stored = run.identity_record()
    except Unreadable:
        return None
    return run if stored is not None and stored.fingerprint == state["fingerprint"] else None


def _changed(config: DictConfig, line: Sequence[str], place: Path) -> Config:
    """
    Raises:
        UserError: the line speaks of another model, or a setting is none that it may have.
    """
    changes = []
    for word in line:
        key, _, value = word.partition("=")
        if key not in _GROUPS:
            changes.append(word)
        elif (own := config[_GROUPS[key]].name) != value:
            what = f"{place} is of {key}={own}, and the line says {key}={value}"
            raise UserError(what, f"leave {key}= out: the checkpoint says what it is, or name another checkpoint")
    check_changes(changes)
    apply_changes(config, changes)
    cfg = typed(config)
    if found := [fault for _, fault in field_faults(cfg)]:
        raise merge_errors(found)
    return cfg


def _built(cfg: Config, state: dict[str, Any] | None = None, run: RunDirectory | None = None) -> Restored:
    """
    Raises:
        UserError: the method has no supports, or needs weights that are not there.
    """
    name = cfg.model.name
    if name in BASE_LEARNERS:
        what = f"method={name} segments the classes that it was trained on, and takes no supports"
        raise UserError(what, "name a checkpoint of a few-shot method")
    if state is None and method_class(name).trainable:
        where = f"{run.directory} has no checkpoint" if run is not None else f"method={name} has no weights here"
        fix = "name a checkpoint of it (--checkpoint), or a method that trains nothing: method=prototype, method=dino"
        raise UserError(f"{where}, and method={name} is nothing without training", fix)
    generators = checkpoint.rng_state()
    checkpoint.seed_everything(cfg.seed)  # random weights of a backbone are those of a run
    try:
        model = build_model(cfg)
    finally:
        checkpoint.set_rng_state(generators)
    head = f"{name} on {cfg.backbone.name}"
    if state is None:
        if starts_from_a_base_learner(cfg):
            take_over(model, base_cell(cfg))
        weights = getattr(getattr(model, "backbone", None), "weights", None)
        about = f"{head}, nothing trained, {cfg.dataset.image_size} px"
        return Restored(cfg, model.eval(), about, weights["digest"] if weights else f"random, seed {cfg.seed}")
    path, origin = str(cfg.checkpoint), state["origin"]
    if origin["method"] != name or origin["backbone"] != cfg.backbone.name:
        raise UserError(
            f"{path} is a checkpoint of method={origin['method']} backbone={origin['backbone']}, and the configuration "
            f"is of method={name} backbone={cfg.backbone.name}",
            "leave method= and backbone= as the checkpoint has them",
        )
    checkpoint.fill(model, state, path)
    steps = f"step {state['step']}" + (f" of {state['steps']}" if state.get("steps") else "")
    about = f"{head}, trained on {origin['dataset']} fold {origin['fold']}, {steps}, {cfg.dataset.image_size} px"
    knows_them = MethodConfig.named(name).TAKES_HEAD  # type: ignore[attr-defined]
    ids = dict(zip(origin["base_classes"], base_classes(cfg.dataset, cfg.fold))) if knows_them else {}
    return Restored(cfg, model.eval(), about, str(file_digest(Path(path))), ids)


def check_weights(result: Result, model: FewShotModel, directory: Path, option: str = "") -> None:
    """That a training-free model has the weights that its run was scored with.

    Args:
        option: of the caller, which comes before an override.

    Raises:
        UserError: it has others.
    """
    then, now = result.provenance.get("weights"), getattr(getattr(model, "backbone", None), "weights", None)
    if isinstance(then, dict) and (now is None or now["digest"] != then["digest"]):
        here = "random weights are" if now is None else f"{now['file']} (SHA-256 {now['digest']}) is"
        raise UserError(
            f"{directory} was scored with the weights {then['file']} (SHA-256 {then['digest']}), and {here} loaded "
            "here",
            f"name the file of the run: {option}backbone.weights=FILE",
        )
