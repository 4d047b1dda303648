"""What a cell trains, episodes or the base classes of its fold (BAM's stage 1). Neither Hydra nor torch here.

`fsseg.config.base_training` makes the second kind from the first, `fsseg.cell.key` names it, reports leave it out.
"""

from __future__ import annotations

BASE_LEARNERS = ("pspnet",)
"""Methods (`model.name`) that segment the base classes of a fold, without supports; what such a cell scores on these
classes is no few-shot score."""

_RULES = ("novel_in_training", "list_rule", "min_pixels", "fit", "ignore_in_loss", "scoring_size")
_COUNT = ("dataset.", "backbone.", "model.", "train.", "fold", "seed", "shot", "eval.enabled", "eval.amp",
          *(f"protocol.{rule}" for rule in _RULES))  # fmt: skip
_EPISODES_ALONE = ("dataset.background_shift", "dataset.crop_keep")


def changes_a_base_learner(key: str) -> bool:
    """Whether a setting can change the numbers of a base learner: none that is of episodes alone can.

    Args:
        key: dotted, of the configuration.
    """
    return key not in _EPISODES_ALONE and any(key.startswith(k) if k.endswith(".") else key == k for k in _COUNT)
