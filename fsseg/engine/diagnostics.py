"""What an evaluation records besides the score: foreground distances (Figure 5 of the paper), predictions step by step
(Figure 7), and the model's cost (Table 5). `fsseg.engine.evaluate` and `fsseg.engine.result` call it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fsseg.cell.models import Cost, Distances
from fsseg.model.base import Prediction
from fsseg.model.blocks.tokens import downsample_masks

if TYPE_CHECKING:
    from fsseg.config.schema import Config

log = logging.getLogger("fsseg")

DISTANCE_BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Lower edges of the bins of Figure 5: 0-0.1, 0.1-0.2, ..., 0.5-0.6, and everything above."""


def foreground_distances(prediction: Prediction, query_mask: Tensor) -> list[float | None]:
    """Cosine distance between mean support and mean query foreground feature of each episode, in [0, 2].

    The support's feature is the one that the last round predicted from; the query's is the mean of f_q over the true
    foreground at feature size, by the same rule as for support masks.

    Args:
        prediction: with `support_foreground` (B, C) and `query_features` (B, C, h, w).
        query_mask: the truth at network size, (B, H, W) in {0, 1, 255}, on the host.

    Returns:
        B numbers; None for an episode whose truth has no foreground at network size, or a method without these
        features.
    """
    support, features = prediction.support_foreground, prediction.query_features
    found: list[float | None] = [None] * len(query_mask)
    present = (query_mask == 1).flatten(1).any(1).nonzero().flatten()
    if support is None or features is None or not len(present):
        return found
    cells = (features.shape[2], features.shape[3])
    inside = downsample_masks(query_mask[present, None], cells, patches=prediction.patches)[:, 0]
    weights = inside.to(features.device, torch.float32)
    total = torch.einsum("bchw,bhw->bc", features[present].float(), weights)
    mean = total / weights.sum((1, 2))[:, None]
    cosine = F.cosine_similarity(support[present].float(), mean, dim=1).clamp(-1, 1)
    for position, value in zip(present.tolist(), (1 - cosine).tolist()):
        found[position] = value
    return found


def distance_summary(distances: list[float | None]) -> Distances | None:
    """Counts a bin of `DISTANCE_BINS`, mean and spread of the distances; None if there is none."""
    known = sorted(d for d in distances if d is not None)  # sorted: the sum must not depend on the order of the ranks
    if not known:
        return None
    counts = [0] * len(DISTANCE_BINS)
    for distance in known:
        counts[sum(distance >= edge for edge in DISTANCE_BINS[1:])] += 1
    mean = math.fsum(known) / len(known)
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in known) / (len(known) - 1)) if len(known) > 1 else 0.0
    return Distances(list(DISTANCE_BINS), counts, mean, spread, len(known), len(distances) - len(known))


def steps(prediction: Prediction) -> list[tuple[str, Tensor]]:
    """The predictions in the order in which the method makes them, named for the headings of a picture.

    Returns:
        ("QP, round 1", P_1), ("SM, round 1", P_hat_1), ("IC, round 1", P_2), ("SM, round 2", P_hat_2), ...; logits
        (B, 2, h, w) each. Without IC there is no P_hat, and P_2 is what SM led to.
    """
    found = [("QP, round 1", prediction.rounds[0])]
    for t, answer in enumerate(prediction.rounds[1:], start=1):
        if t <= len(prediction.hats):
            found.append((f"SM, round {t}", prediction.hats[t - 1]))
        found.append((f"{'IC' if prediction.hats else 'SM'}, round {t}", answer))
    return found


def cost_summary(cfg: Config) -> Cost | None:
    """Parameters and GMACs of one episode as the model runs, and in the paper's dense form; None if not countable.

    `fsseg.model.cost` counts them and explains the two forms.
    """
    from fsseg.model.cost import cost

    iterations = getattr(cfg.model, "iterations", None) if getattr(cfg.model, "modulation", False) else None
    try:
        rows = {row.part: row for row in cost(cfg)}
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:  # a method that the count does not know
        log.warning("the model's cost is not recorded: %s", error)
        return None
    row = rows.get(f"T = {iterations}") or rows.get(cfg.model.name) or rows.get("baseline")
    if row is None:
        return None
    return Cost(row.parameters, row.macs / 1e9, row.dense_macs / 1e9)
