"""The score of an evaluation from its episodes.npz alone, with numpy and nothing of fsseg (docs/results.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def scores(file: Path, shift: str = "") -> dict[str, Any]:
    """mIoU, mIoU of each round, FB-IoU and mIoU of answering "all foreground": means over the seeds, in percent."""
    e, seeds = np.load(file), []
    for seed in e["seeds"]:
        own = (e["seed"] == seed) & (e["shifts"][e["shift"]] == shift)
        classes = [own & (e["class_id"] == c) for c in e["classes"] if (own & (e["class_id"] == c)).any()]
        both, either, true = e["intersection"], e["union"], e["foreground"]
        outside, not_both = e["background_intersection"], e["background_union"]
        rounds = np.mean([both[c].sum(0, dtype=float) / either[c].sum(0) for c in classes], axis=0)
        answer_all = np.mean([true[c].sum(dtype=float) / (either + outside)[c, -1].sum() for c in classes])
        fb = (both[own, -1].sum() / either[own, -1].sum() + outside[own, -1].sum() / not_both[own, -1].sum()) / 2
        seeds.append([rounds[-1], fb, answer_all, *rounds])
    miou, fb_iou, all_foreground, *per_round = 100 * np.mean(seeds, axis=0)
    return {"miou": miou, "fb_iou": fb_iou, "miou_all_foreground": all_foreground, "miou_per_round": per_round}
