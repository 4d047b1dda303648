"""Dropout whose draws belong to an episode, for the methods that drop channels in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fsseg.data.spec import EpisodeSpec


class EpisodeDropout:
    """Dropout of whole channels, as torch's Dropout2d, drawn for every episode by its number and the run's seed.

    So an episode's draws do not depend on the others of its batch, nor on the parts and processes that share a batch,
    nor on where a run was interrupted; they are made on the host. A method asks for them in one order.

    Args:
        specs: of the B episodes.
        seed: of the run.
    """

    def __init__(self, specs: Sequence[EpisodeSpec], seed: int) -> None:
        self._draws = [np.random.default_rng((seed, spec.number)) for spec in specs]

    def scale(self, shape: tuple[int, ...], share: float, like: Tensor) -> Tensor:
        """(B, *shape), of the device and type of `like`: 0 with probability `share`, else 1 / (1 - share)."""
        kept = np.stack([draw.random(shape) >= share for draw in self._draws])
        factors = torch.from_numpy(kept / max(1 - share, 1e-9))
        return factors.to(like.device, like.dtype, non_blocking=True)

    def __call__(self, maps: Tensor, share: float) -> Tensor:
        """(B, C, h, w) without that share of its channels; what is left is scaled up to make up for it."""
        return maps * self.scale((maps.shape[1], 1, 1), share, maps)
