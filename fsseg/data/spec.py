"""`EpisodeSpec`: which images make up an episode. Without torch, so that lists of episodes are checked quickly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EpisodeSpec:
    """Which images an episode is made of; a pure function of (index, split, fold, seed, number)."""

    number: int
    class_id: int
    query_id: str
    support_ids: tuple[str, ...]
