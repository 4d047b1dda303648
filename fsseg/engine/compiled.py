"""`train.compile`: the parts of a model whose shapes are the same in every step, through torch.compile.

The training loop asks for it. Checkpoints know nothing of it: modules keep their names. Evaluation and validation run
as without, so that a score does not depend on it but through the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from fsseg.errors import UserError

log = logging.getLogger("fsseg")

STATIC = ("backbone",)
"""Names of such parts. What follows the backbone counts the foreground's tokens, which differ from step to step."""


@contextmanager
def compiled(model: nn.Module, device: torch.device, on: bool) -> Iterator[None]:
    """Within the block the static parts of `model` are compiled at their first call, if `on`.

    Raises:
        UserError: torch.compile does not work on this machine.
    """
    parts = [part for name in STATIC if (part := getattr(model, name, None)) is not None] if on else []
    if parts:
        _try(device)
        log.info("compiling %s at the first step: this takes a while", ", ".join(STATIC))
    for part in parts:
        part.compile(dynamic=False)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # the inverse of `compile`, for which torch has no name


def uncompiled(on: bool) -> AbstractContextManager[object]:
    """A block within that one in which everything runs as it would without it."""
    return torch.compiler.set_stance("force_eager") if on else nullcontext()


def _try(device: torch.device) -> None:
    """Compile a sum, to tell a machine without a compiler before the first step."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of many types, by what is missing
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"train.compile=true: torch.compile does not work here ({lines[0][:200]})",
            "install a C++ compiler (and on a GPU triton), or leave train.compile out",
        ) from None
