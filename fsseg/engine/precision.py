"""Number formats of a run: which mixed precision a device can do, and the memory layout that suits it.

Training (`train.amp`), evaluation (`eval.amp`) and the benchmarks ask here, so that a setting means the same to all.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

log = logging.getLogger("fsseg")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a mixed precision -> what its convolutions and products compute in; `off` is none of them."""


def usable(amp: str, device: torch.device, key: str = "train.amp") -> str:
    """`amp` if the device computes in it, else `off`, with a warning.

    fp16 is for GPUs. bf16 is also for CPUs that have instructions for it: without them it is slower than float32.

    Args:
        amp: off, bf16 or fp16.
        key: of the configuration, for the warning.
    """
    if amp == "off" or device.type == "cuda" or (amp == "bf16" and _cpu_has_bf16()):
        return amp
    needs = "a GPU, or a CPU with instructions for it" if amp == "bf16" else "a GPU"
    log.warning("%s=%s needs %s: this run is in float32", key, amp, needs)
    return "off"


def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
    """A context in which a model computes in `amp`, which is one that the device can do (see `usable`)."""
    if amp == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[amp])


def prepare(model: nn.Module, device: torch.device, amp: str) -> None:
    """Put the weights into the memory layout that is quickest there; answers stay the same up to rounding.

    Convolutions take their layout from the weights: images need no change. On two CPU cores a training step of
    `method=baseline` (ResNet-50, 473 px, batch 1) takes in bf16 0.74 s with channels last and 1.96 s without. In
    float32 it takes 2.1 s with both, and keeps the usual layout, in which a run gives the bits of earlier versions. So
    it does on a GPU that is not allowed TF32: with channels last 48 images took the backbone 17 times as long (H100).
    """
    last = amp != "off" or (device.type == "cuda" and torch.backends.cudnn.allow_tf32)
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)  # type: ignore[call-overload]


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers; torch has no public word for it."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)
