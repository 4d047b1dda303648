"""The device of a run: choice, name and peak memory. Called by `fsseg.run`."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

from fsseg.errors import UserError
from fsseg.process.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of `device=`; each of several processes on a machine takes its own GPU.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name} is no device", "set device to auto, cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"device={name}: runs are on a CPU or a CUDA GPU", "set device to auto, cpu, cuda or cuda:<number>"
        )
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs", "set device=auto or device=cpu")
    if device.type == "cuda" and ranks.world > 1:
        return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    return device


def describe_device(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or on a CPU the largest resident size of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
