"""Ends the training of a trial that scores low, as the search it belongs to has asked (`search.pruner`).

The training loop calls it after each score of base classes. Who asks is Optuna, by the scores of the trials before.
"""

from __future__ import annotations

import logging

from fsseg.config.schema import SearchConfig
from fsseg.engine.context import Run
from fsseg.process.signals import Pruned

log = logging.getLogger("fsseg")


def check(run: Run, epoch: float, scores: dict[str, float]) -> None:
    """Report a score of base classes, if the cell is a trial's; all ranks call it.

    Args:
        epoch: that has ended.
        scores: `base/miou` and `base/fb_iou` in percent.

    Raises:
        Pruned: the trial is to end.
    """
    from fsseg.engine import distributed

    search = run.cfg.search
    if search is None or search.trial is None or search.pruner == "none":
        return
    falls_behind = _falls_behind(search, epoch, scores) if run.ranks.first else False
    if distributed.broadcast(falls_behind, run.ranks):
        what = f"{search.metric} {scores[search.metric]:.2f} after epoch {epoch:g}, search.pruner={search.pruner}"
        raise Pruned(f"trial {search.trial}: {what}")


def _falls_behind(search: SearchConfig, epoch: float, scores: dict[str, float]) -> bool:
    from fsseg.sweep.search.study import report_score

    try:
        return report_score(search, round(epoch), scores[search.metric])
    except Exception as error:  # a storage that fails costs no training
        log.warning("search.pruner: trial %s is not compared (%s: %s)", search.trial, type(error).__name__, error)
        return False
