"""Random weights that predict as much foreground as trained ones: what rounds of ABCB take depends on it.

Untouched, they often predict one class everywhere, which is far too dear or far too cheap.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsseg.model.base import Prediction
from fsseg.model.baseline import Baseline


@torch.no_grad()
def predict_share(model: Baseline, share: float, run: Callable[[], object]) -> None:
    """Set QP's last layer so that all it predicts while `run` predicts about `share` of the cells as foreground.

    It is made to answer 0 to the mean of its inputs, and 1 to a standard deviation, so that a threshold means the same
    in every number format.
    """
    seen: list[Tensor] = []
    watch = model.qp.second.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    run()
    watch.remove()
    inputs = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in seen])
    mean = inputs.mean(0)
    weight, bias = model.qp.second.weight[:, :, 0, 0], model.qp.second.bias
    assert isinstance(bias, Tensor)
    weight -= (weight @ mean / (mean @ mean))[:, None] * mean
    margin = inputs @ (weight[1] - weight[0])
    weight /= margin.std()
    bias.zero_()
    bias[0] = (margin / margin.std()).sort(descending=True).values[round(share * margin.numel())]


def shares(prediction: Prediction) -> tuple[float, ...]:
    """The share of foreground that each round predicts."""
    return tuple((p[:, 1] > p[:, 0]).float().mean().item() for p in prediction.rounds)
