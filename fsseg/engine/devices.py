"""The device of a run: choice, name and peak memory. Called by `fsseg.run`."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fsseg.errors import UserError
from fsseg.process.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device of `device=`; each of several processes on a machine takes its own GPU.

    `auto` takes the CPU only where nothing says that there is a GPU for this process.

    Raises:
        UserError: a GPU is asked for, or was given to this job, and torch sees none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and (given := given_gpus()) is not None:
            raise UserError(
                f"{given} says that this process was given a GPU, but torch sees none ({_why_no_gpu()})",
                "mend the driver or the installation of torch (python -c 'import torch; torch.cuda.init()'), or set "
                "device=cpu to run on the CPU",
            )
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


def given_gpus() -> str | None:
    """The environment variable by which SLURM or a launcher gave this process a GPU, as `NAME=value`; None without.

    CUDA_VISIBLE_DEVICES decides alone where it is set: empty, it hides the GPUs of a job on purpose.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (
        ("CUDA_VISIBLE_DEVICES",)
        if visible is not None
        else ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")
    )
    for name in names:
        value = os.environ.get(name, "").strip()
        if value and value not in ("-1", "NoDevFiles") and (name, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return f"{name}={value}"
    return None


def _why_no_gpu() -> str:
    """torch's own words."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no driver; or a torch that was built without CUDA
        return (str(error).splitlines() or [type(error).__name__])[0]
    return "it names none of the GPUs of this machine"


def describe_device(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"


_EARLIER: dict[torch.device, int] = {}
"""Peak of a GPU before `taken_by` began to count anew."""


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or on a CPU the largest resident size of this process."""
    import torch

    if device.type == "cuda":
        return max(_EARLIER.get(device, 0), int(torch.cuda.max_memory_allocated(device)))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` of a GPU begin anew."""
    import torch

    _EARLIER.pop(device, None)
    torch.cuda.reset_peak_memory_stats(device)


def taken_by(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of a GPU that `work` takes at most beyond those that are in use; `peak_memory` stays what it is."""
    import torch

    before, peak = int(torch.cuda.memory_allocated(device)), peak_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    _EARLIER[device] = peak
    work()
    return int(torch.cuda.max_memory_allocated(device)) - before
