"""The optimiser of a training: SGD or AdamW, with parameter groups by module name. Called by the training loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fsseg.config.schema import TrainConfig
from fsseg.errors import UserError

log = logging.getLogger("fsseg")

_HOW = ("fused", "foreach", "capturable")
"""Settings of a parameter group that say how a step is computed, and not what: they follow the device of the day."""


def make_optimiser(model: nn.Module, train: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of all weights that train.

    On a GPU a step is one kernel: others would make a `GradScaler` wait for the device.

    Raises:
        UserError: `train.lr_factors` names a module that is not there.
    """
    groups = parameter_groups(model, train.lr_factors)
    fused = True if device.type == "cuda" else None
    if train.optimizer == "adamw":
        betas = (train.betas[0], train.betas[1])
        return torch.optim.AdamW(groups, lr=train.lr, betas=betas, weight_decay=train.weight_decay, fused=fused)
    sgd = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=fused)
    _start_momentum(sgd)
    return sgd


def _start_momentum(sgd: torch.optim.Optimizer) -> None:
    """Give every weight of a fused SGD a momentum of zero, which the first gradient makes that gradient.

    torch's own start leaves whatever was in memory if a `GradScaler` skips the first step, as in fp16 it does, and it
    cannot take a weight whose first gradient comes later.
    """
    for group in sgd.param_groups:
        if group["fused"] and group.get("momentum"):
            for parameter in group["params"]:
                sgd.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def parameter_groups(model: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The weights that train, in one group for each module name with a factor, and one for all others, which is first.

    Without factors there is one group, and it has no `factor`, as in checkpoints of earlier versions.

    Args:
        factors: module name -> what its rate is multiplied by; it holds for all below it that no longer name holds for.

    Raises:
        UserError: a name that no module of the model has.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not factors:
        return [{"params": [p for _, p in trained]}]
    there = {name for name, _ in model.named_modules()} - {""}
    if strangers := [name for name in factors if name not in there]:
        names = ", ".join(name for name, _ in model.named_children())
        raise UserError(
            f"train.lr_factors: the model has no module {', '.join(strangers)}",
            f"name one of: {names}; or a part of one, as in backbone.layer4",
        )
    for idle in (name for name in factors if not any(own.startswith(f"{name}.") for own, _ in trained)):
        log.warning("train.lr_factors: nothing of %s trains, so its factor changes nothing", idle)
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in ("", *factors)}
    for name, parameter in trained:
        fitting = [prefix for prefix in factors if name.startswith(f"{prefix}.")]
        groups[max(fitting, key=len, default="")].append(parameter)
    return [{"params": found, "factor": factors.get(name, 1.0)} for name, found in groups.items() if found]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the schedule's rate of this step, in each group times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"] if "factor" in group else rate


def restore(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> bool:
    """Go on from a checkpoint's state; whether its settings are those of now.

    It may have been written on another device: what is kept of a weight takes the weight's memory layout, which the
    kernels of a GPU ask for.

    Raises:
        Exception: of several types, if it is no such state or does not fit.
    """
    settings = _settings(optimiser)
    how = [{key: group[key] for key in _HOW if key in group} for group in optimiser.param_groups]
    groups = [{**group, **how[i % len(how)]} for i, group in enumerate(state["param_groups"])]
    optimiser.load_state_dict({**state, "param_groups": groups})
    for parameter, kept in optimiser.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    _start_momentum(optimiser)
    return _settings(optimiser) == settings


def _settings(optimiser: torch.optim.Optimizer) -> list[dict[str, Any]]:
    aside = ("lr", "params", *_HOW)
    return [{key: value for key, value in group.items() if key not in aside} for group in optimiser.param_groups]
