"""Launchers of Hydra's own packages, chosen by habit: those of submitit become fsseg's; it is told what others lack.

Hydra's plugins call `ready` before any sweeper makes its launcher, `fsseg.sweep.grid` before it plans.

By themselves submitit's launchers submit waiting cells once more when the line is started again, give up at the first
job that is lost, and take the result of an older job with the same number for a new one's. No torch here.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import DictConfig, OmegaConf, open_dict

from fsseg.config.compose import config_folder
from fsseg.config.hydra_internals import BasicLauncher
from fsseg.config.machine import machine
from fsseg.errors import merge_errors
from fsseg.process.logs import configure_logging
from fsseg.sweep.preflight import launch_faults

log = logging.getLogger("fsseg.sweep")


class _Habit(NamedTuple):
    """Settings of another launcher, the name of fsseg's, and whose defaults fsseg's preset replaces."""

    settings: type
    name: str
    replaced: tuple[str, ...]


_HABITS = {
    # Without these a cell ends at its first time limit, which is an hour, or at a preemption, and seems complete.
    SlurmQueueConf._target_: _Habit(
        SlurmQueueConf, "slurm",
        ("submitit_folder", "timeout_min", "max_num_timeout", "stderr_to_stdout", "additional_parameters"),
    ),
    LocalQueueConf._target_: _Habit(LocalQueueConf, "local", ("submitit_folder",)),
}  # fmt: skip
_OURS = ("hydra_plugins.fsseg_launchers.", f"{BasicLauncher.__module__}.{BasicLauncher.__qualname__}")


def ready(config: DictConfig) -> None:
    """What every sweep goes through before its launcher is made, whoever's sweeper it has: `adopt`, then the checks.

    Raises:
        UserError: what `fsseg.sweep.preflight.launch_faults` finds.
    """
    adopt(config)
    if found := launch_faults(config):
        raise merge_errors(found)


def adopt(config: DictConfig) -> None:
    """Put fsseg's launcher in the place of submitit's, with the settings that were given; say what others lack.

    Args:
        config: of the sweep, with Hydra's own part; `hydra.launcher` is changed in place.
    """
    chosen = config.hydra.runtime.choices.get("hydra/launcher")
    launcher: dict[str, Any] = OmegaConf.to_container(config.hydra.launcher)  # type: ignore[assignment]
    habit = _HABITS.get(launcher["_target_"])
    configure_logging(str(config.log_level))
    if habit is None:
        if not launcher["_target_"].startswith(_OURS):
            log.warning(
                "hydra/launcher=%s is not fsseg's: a cell that is killed may end the sweep (the same line goes on); "
                "with hydra/launcher=local or slurm it costs only itself",
                chosen,
            )
        return
    node = ConfigStore.instance().load(f"hydra/launcher/fsseg_{habit.name}.yaml").node
    preset: Any = OmegaConf.load(config_folder() / f"hydra/launcher/{habit.name}.yaml")
    given = _given(config, launcher, habit)
    unknown = [key for key in given if key not in node]
    kept = {key: value for key, value in given.items() if key in node}
    usual = machine().launchers.get(habit.name, {})
    with open_dict(config.hydra):
        config.hydra.launcher = OmegaConf.merge(node, OmegaConf.masked_copy(preset, list(habit.replaced)), usual, kept)
    changed = [f"{key}={config.hydra.launcher[key]}" for key in habit.replaced[1:] if key not in kept]
    log.info(
        "hydra/launcher=%s: fsseg's own runs the cells, as with hydra/launcher=%s%s%s", chosen, habit.name,
        f", with {', '.join(changed)}" if changed else "",
        f"; it has no {', '.join(unknown)}" if unknown else "",
    )  # fmt: skip


def _given(config: DictConfig, launcher: dict[str, Any], habit: _Habit) -> dict[str, Any]:
    """The settings that somebody chose: those of the line, and all that differ from the launcher's defaults."""
    default: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(habit.settings))  # type: ignore[assignment]
    words = [str(word).lstrip("+~").partition("=")[0] for word in config.hydra.overrides.hydra]
    named = {word.removeprefix("hydra.launcher.").partition(".")[0] for word in words if "launcher." in word}
    return {
        key: value
        for key, value in launcher.items()
        if key != "_target_" and (key in named or key not in default or value != default[key])
    }
