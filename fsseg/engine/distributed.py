"""One cell on several processes (ranks): how they share batches and add up gradients and counts.

Started by submitit (`tasks_per_node` > 1) or torchrun. Every rank loads its share of each global batch, so that a batch
is the same whatever the number of ranks. Gradients are summed by one all-reduce rather than by torch's
DistributedDataParallel: which parts of a method run depends on the data, and DDP's hooks would wait for ever for a rank
that skips one. With one process every function here does nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from fsseg.errors import UserError
from fsseg.process.ranks import ALONE, Ranks, submitit_tasks
from fsseg.process.signals import Preempted

log = logging.getLogger("fsseg")

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: longer than reading a large data set for the first time may take."""


def set_up(device_name: str) -> Ranks:
    """Join the other processes if the environment variables of torchrun or submitit name any; once in a process.

    Args:
        device_name: `device=` of the configuration; chooses nccl or gloo.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if "WORLD_SIZE" not in os.environ:
            _export_submitit()
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return ALONE
        gpu = device_name != "cpu" and torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        # Gradients of GPUs go over nccl, all that is on the host over gloo: nccl would make the host wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def _export_submitit() -> None:
    if submitit_tasks() < 2:
        return
    from submitit.helpers import TorchDistributedEnvironment

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def share(batch_size: int, ranks: Ranks, parts: int = 1) -> range:
    """Positions within the global batch that this rank loads; the shares differ by one at most.

    Args:
        parts: that each rank computes its share in (`train.accumulate`).

    Raises:
        UserError: there are more processes than episodes in a batch, or more parts than episodes in a share.
    """
    if batch_size < ranks.world:
        raise UserError(
            f"train.batch_size={batch_size} cannot be shared by {ranks.world} processes",
            "start fewer processes, or raise train.batch_size (it is that of all processes together)",
        )
    if batch_size // ranks.world < parts:
        raise UserError(
            f"train.accumulate={parts} cannot split the {batch_size // ranks.world} episodes of a process "
            f"(train.batch_size={batch_size} on {ranks.world})",
            f"set train.accumulate to {batch_size // ranks.world} or less",
        )
    return range(batch_size * ranks.rank // ranks.world, batch_size * (ranks.rank + 1) // ranks.world)


def next_batch(batches: Iterator[T], should_stop: Callable[[], str | None], ranks: Ranks) -> T | None:
    """The next batch of this rank; None where it has no more. All ranks call it equally often.

    Raises:
        Preempted: on every rank, if one rank was asked to stop.
        Exception: a fault while loading; the other ranks raise a `UserError` that reports it.
    """
    reason, batch, fault = None, None, None
    try:
        reason = should_stop()
        batch = next(batches, None) if reason is None else None
    except Exception as error:
        if ranks.world == 1:
            raise
        fault = error
    if ranks.world > 1:
        stops, faults = add_up([reason is not None, fault is not None], ranks)
        if faults:
            told = [text for text in gather(None if fault is None else str(fault), ranks) if text is not None]
            raise fault if fault is not None else UserError(f"another process of this run failed: {told[0]}")
        if stops:
            reason = next(text for text in gather(reason, ranks) if text is not None)
    if reason is not None:
        raise Preempted(reason)
    return batch


def broadcast_weights(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the parameters and buffers of the first."""
    if ranks.world > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def broadcast(value: T, ranks: Ranks) -> T:
    """The first rank's value; it must be picklable."""
    if ranks.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def gather(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    if ranks.world == 1:
        return [value]
    values: list[Any] = [None] * ranks.world
    dist.all_gather_object(values, value)
    return values


def add_up(numbers: Sequence[float], ranks: Ranks) -> list[float]:
    """Sums over the ranks (float64, exact for counts of pixels); between the hosts alone, no GPU waits."""
    if ranks.world == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def add_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Replace every gradient by the sum over the ranks, in one exchange.

    A parameter without gradient on every rank stays without, as on one process, and SGD does not change it.
    """
    if ranks.world == 1:
        return
    parameters = list(parameters)
    used = add_up([p.grad is not None for p in parameters], ranks)
    taken = [p for p, count in zip(parameters, used) if count]
    if not taken:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in taken])
    dist.all_reduce(flat)
    for parameter, values in zip(taken, flat.split([p.numel() for p in taken])):
        # laid out in memory as the weight is, which the optimiser's kernels ask for
        parameter.grad = torch.empty_like(parameter).copy_(values.view(parameter.shape))
