"""The base learner that a cell with `backbone.base_training=true` starts from, as a configuration of its own.

`fsseg.cell.key` asks for its identity, `fsseg.run` brings it to its end first, the sweeper and `fsseg plan` show it.
A pure function of the cell's own resolved settings: no YAML file is read, so a job of a sweep finds the same one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from fsseg.config.entry import resolved
from fsseg.config.recorded import from_recorded
from fsseg.config.schema import Config, EvalConfig, TrainConfig
from fsseg.config.tasks import BASE_LEARNERS, changes_a_base_learner

NAME = "base_training"
"""The experiment of all base learners, whichever cells start from them: each is trained once for an output folder."""


def base_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `method=pspnet` composes to with the data, backbone, fold and `base_training.*` of a cell.

    Its rate, size and augmentation are those of `base_training`, its seed too: cells of all shots and training seeds
    start from one base learner, as in the published work, and their spread is that of their own training.

    Args:
        plain: resolved configuration of the cell.
    """
    found, recipe = copy.deepcopy(dict(plain)), plain["base_training"]
    found |= {
        "name": NAME, "variant": None, "report": None, "checkpoint": None, "check": False, "redo": False, "shot": 1,
        "seed": recipe["seed"], "model": {"name": BASE_LEARNERS[0]},
    }  # fmt: skip
    found["dataset"] |= {k: recipe[k] for k in _SET_BY_THE_RECIPE}
    found["backbone"] |= {"base_training": False, "trainable_layers": 5}
    found["protocol"] |= {"query_order": "cycle", "episodes_file": None}
    kept = {k: plain["train"][k] for k in ("checkpoint_minutes", "checkpoint_epochs", "compile")}
    own = {k: recipe[k] for k in ("epochs", "max_steps", "batch_size", "lr", "amp")}
    factors = {"lr_factors": {"head": recipe["head_factor"]}}
    found["train"] = resolved(TrainConfig()) | kept | own | factors
    found["eval"] = resolved(EvalConfig())
    found["logger"] |= {"figures": 0, "steps": False}
    found["search"] = None  # of many trials one base learner, which is none itself
    found["notify"] |= {"on_end": None}  # the cell that waits for it tells
    return found


_WORDS = ("dataset", "backbone", "protocol", "fold", "output_dir")
_SET_BY_THE_RECIPE = ("image_size", "scale_range", "rotate_degrees", "blur_probability")


def base_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """The words of a cell's line that act on its base learner too, with the method in front: a line that leads there.

    What an experiment file sets is none of them.
    """

    def acts(key: str) -> bool:
        group, _, name = key.partition(".")
        if group == "backbone" and name in ("base_training", "trainable_layers"):
            return False
        if group in ("dataset", "backbone", "protocol") and name:
            return changes_a_base_learner(key) and not (group == "dataset" and name in _SET_BY_THE_RECIPE)
        return key in _WORDS or group == "base_training"

    kept = [o for o in overrides if acts(o.lstrip("+~").partition("=")[0])]
    return (f"method={BASE_LEARNERS[0]}", *kept)


def starts_from_a_base_learner(cfg: Config) -> bool:
    """Whether a cell takes its backbone from one; not where `checkpoint=` holds all weights."""
    return cfg.backbone.base_training and cfg.checkpoint is None


def base_config(plain: Mapping[str, Any]) -> DictConfig:
    """`base_settings` as `fsseg.run.run` takes a configuration."""
    return from_recorded(base_settings(plain))
