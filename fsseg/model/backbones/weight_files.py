"""Weights of other programs: which are published, reading a state dict from a file, and filling a network with it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from fsseg.errors import UserError


class PublishedWeights(Protocol):
    """Weights that somebody publishes under a name, and the place in a cache where they come to lie."""

    @property
    def way(self) -> str:
        """In words: from where they would be fetched, and to where."""

    def cached(self) -> Path | None:
        """The file, if it was fetched before."""

    def fetch(self) -> Path:
        """The file, downloaded if it was not.

        Raises:
            UserError: it cannot be had, or is not the one that was published.
        """


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_state(file: Path, fix: str) -> dict[str, Any]:
    """The state dict in a file of torch (nothing in it is run) or of safetensors.

    Raises:
        UserError: it cannot be read, or holds something else; `fix` is the advice.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file, and they differ between versions
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's words advise to load it as code
            reason = "it holds other objects than tensors"
        raise UserError(f"{file} cannot be read as weights: {reason}", fix) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise UserError(f"{file} holds no state dict", fix)
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def fill(network: nn.Module, state: Mapping[str, Any], file: Path, name: str, fix: str) -> None:
    """Copy a state dict into a network; every tensor of the two must have its place in the other.

    Raises:
        UserError: it is of another network, or has numbers that are not finite; `fix` is the advice.
    """
    own = network.state_dict()
    # Files from before 2018 lack num_batches_tracked; nothing here uses it.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and tuple(getattr(state[k], "shape", ())) != tuple(own[k].shape)]
    for keys, what in ((missing, "lacks"), (foreign, "has the foreign"), (shapes, "has another shape for")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{file} is not a {name}: it {what} {keys[0]}{more}", fix)
    if sick := [k for k in own if k in state and not bool(torch.isfinite(state[k]).all())]:
        raise UserError(f"{file}: the weights {sick[0]} are no finite numbers", fix)
    network.load_state_dict(dict(state), strict=False)
