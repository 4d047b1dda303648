"""Blocks of a method that compute in float32 whatever the precision around them (`train.amp`, `eval.amp`)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact(x: Tensor) -> AbstractContextManager[object]:
    """A block without autocast on x's device; there is none on `meta`, which only counts (`fsseg.model.cost`)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
