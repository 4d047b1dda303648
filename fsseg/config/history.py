"""Settings that came and went: how the cells of earlier versions are still found and compared.

`fsseg.cell.key` makes identities of it, `fsseg.report` compares protocols by it. Neither Hydra nor torch here.
"""

from __future__ import annotations

from typing import Any

RETIRED = {"dataset.hue_shift": 0.0, "train.warmup_steps": 0}
"""Settings that are gone, with the value that every run had: fingerprints of earlier runs hold them."""

ADDED = {
    "protocol.list_rule": "pixels", "protocol.train_query": "image", "protocol.query_class": "listed",
    "protocol.undrawn": "left_out", "protocol.fit": "longer_side", "train.lr_scale": 1.0,
    "eval.every_epochs": 0, "eval.base_share": 0.05, "eval.base_episodes": 200,
    "eval.amp": "off", "eval.feature_format": "float32", "train.optimizer": "sgd", "train.betas": [0.9, 0.999],
    "backbone.base_training": False, "backbone.stem": "plain",
}  # fmt: skip
"""Settings that came later, with the value that every earlier run had: with it they are no part of an identity."""

ADDED_TO = {"coco20i": {"dataset.coco_masks": "union", "dataset.train_list": None, "dataset.val_list": None}}
"""The same of one data set alone."""

ADDED_GROUPS = ("base_training",)
"""Whole groups that came later: they act on nothing in a cell that has none of them."""

BEFORE = {**ADDED, **{key: value for keys in ADDED_TO.values() for key, value in keys.items()}}
"""Every such setting, with that value."""

ACT_ELSEWHERE = {"protocol.train_pool": "dataset.train_list", "protocol.image_size": "dataset.image_size"}
"""Keys that only set another, by which a cell is known."""

STANDARD_POOL = "train_aug_10582"
"""Another name of the training list null, by which it was known first."""


def completed(protocol: dict[str, Any]) -> dict[str, Any]:
    """The rules of a recorded protocol, with those that came later as every earlier run had them, without mere words.

    Equal for a run of today and one of before that went by the same rules.
    """
    added = {key.removeprefix("protocol."): value for key, value in ADDED.items() if key.startswith("protocol.")}
    rules = {**added, "train_pool": None, "image_size": None, **protocol}
    rules.pop("unlike", None)
    return rules | {"train_pool": None} if rules["train_pool"] == STANDARD_POOL else rules
