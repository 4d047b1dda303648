"""Batch normalisation over a batch that several processes share. Called by the base learner's head.

torch has one for GPUs alone. The backbones need none: their statistics are fixed (`fsseg.model.backbones`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sum of a tensor over the processes; so is its gradient, for each of them has used all of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of the whole batch, on however many processes its parts are.

    All processes must call it equally often. On one process, and in evaluation, it is `BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); N may differ between the processes."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        values, axes = x.float(), (0, 2, 3)
        number = values.new_tensor([values.numel() / values.shape[1]])
        *sums, total = _Sum.apply(torch.cat((values.sum(axes), number))).split([values.shape[1], 1])
        mean = sums[0] / total
        centred = values - mean[:, None, None]
        variance = _Sum.apply((centred * centred).sum(axes)) / total  # from the centred values: no cancellation
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum or 0.0)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
