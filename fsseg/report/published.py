"""The published figures of the methods beside ABCB: which runs they stand beside, and what is told of them there.

`fsseg.report.tables` is the caller. The figures are in facts/published_results.json, as printed, each with where it was
read. A method may have several rows for one setting, by other lists or other hands: all of them are shown, none is
chosen. Those of ABCB are in `fsseg.report.paper`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

from fsseg.cell.models import Unreadable
from fsseg.cell.record import RunDirectory
from fsseg.config.history import ADDED, ADDED_TO, STANDARD_POOL
from fsseg.process.words import several
from fsseg.report.collect import CellResult
from fsseg.report.paper import Published, is_whole_split

SELECTED = ("pfenet", "hsnet", "bam", "sccan", "hdmnet")
"""Methods whose code keeps the checkpoint that scores best on the novel test classes."""

_UNREAD = "memory"  # how the source of a figure begins that could not be read again
_TRAINING_FREE = {("dino", "dinov3_b"): "FSSDINO"}
"""Method and backbone here -> how the name of the published one begins, which lies among those without training."""
_CODES = ("pfenet", "hsnet", "bam", "hdmnet")  # methods for whose code there is a protocol of that name
_SHOWN = 3  # of many rows or settings in one note

Recipe = Mapping[str, Container[Any]]
"""Setting -> the values that it may have."""

_RATE = "train.lr x train.lr_scale"
_ALWAYS: Recipe = {
    "dataset.num_folds": (4,), "dataset.contiguous_folds": (False,), "dataset.year": (2014,),
    "backbone.pretrained": (True,), "backbone.trainable_layers": (0,), "eval.every_epochs": (0,),
    "train.max_steps": (None,), "train.clip_grad_norm": (None,), "backbone.base_training": (False,),
}  # fmt: skip
_SGD: Recipe = {
    "train.optimizer": ("sgd",), "train.momentum": (0.9,), "train.weight_decay": (1e-4,), "train.poly_power": (0.9,),
    "dataset.rotate_degrees": (10,), "dataset.blur_probability": (0.5,), "dataset.flip_probability": (0.5,),
}  # fmt: skip
"""What PFENet and the methods after it share."""
_PASCAL: Recipe = {"dataset.train_list": ("merged_5953",), "dataset.val_list": ("val",)}
_COCO: Recipe = {"dataset.coco_masks": ("painted",)}
_SCALED_A_LITTLE: Recipe = {"dataset.scale_range": ([0.9, 1.1],)}
_SCALED: Recipe = {"dataset.scale_range": ([0.8, 1.25],)}
_BASE_TRAINED: Recipe = {
    "backbone.base_training": (True,), "base_training.image_size": (417,), "base_training.batch_size": (12,),
    "base_training.lr": (2.5e-4,), "base_training.head_factor": (10,), "base_training.scale_range": ([0.5, 2.0],),
    "base_training.max_steps": (None,),
}  # fmt: skip
"""No `base_training.*` is part of an identity: they are read in config.yaml."""
_HSNET: Recipe = {
    "protocol.fit": ("squash",),  # the others scale or crop, and it has no augmentation
    "train.optimizer": ("adamw",), "train.weight_decay": (0,), "train.poly_power": (0,), _RATE: (0.001,),
    "train.epochs": range(350, 1_000_001), "dataset.image_size": (400,), "dataset.flip_probability": (0,),
}  # fmt: skip
_RECIPES: dict[tuple[str, str], Recipe] = {
    ("pfenet", "pascal5i"): {
        **_SGD, **_PASCAL, **_SCALED_A_LITTLE, _RATE: (0.025,), "train.batch_size": (4,), "train.epochs": (200,),
        "dataset.image_size": (473,),
    },
    ("pfenet", "coco20i"): {
        **_SGD, **_COCO, **_SCALED, _RATE: (0.025,), "train.batch_size": range(8, 33), "train.epochs": (50,),
        "dataset.image_size": (641,),
    },
    ("bam", "pascal5i"): {
        **_SGD, **_PASCAL, **_SCALED_A_LITTLE, **_BASE_TRAINED, "base_training.epochs": (100,),
        _RATE: (0.05,), "train.batch_size": (8,), "train.epochs": (200,), "dataset.image_size": (473,),
    },
    ("bam", "coco20i"): {
        **_SGD, **_COCO, **_SCALED, **_BASE_TRAINED, "base_training.epochs": (20,),
        _RATE: (0.05,), "train.batch_size": (8,), "train.epochs": (50,), "dataset.image_size": (641,),
    },
    ("hsnet", "pascal5i"): {
        **_HSNET, **_PASCAL, "train.batch_size": (20,), "dataset.train_list": (None, STANDARD_POOL),
    },
    ("hsnet", "coco20i"): {**_HSNET, **_COCO, "train.batch_size": (40,)},
    ("dino", "coco20i"): {**_COCO, "dataset.image_size": (512,)},
}  # fmt: skip
"""By method and data set: the settings of the published run, as far as they are known. The experiments `<method>_paper`
set them."""
_PFENET_RULES: Recipe = {
    "protocol.list_rule": ("pixels",), "protocol.min_pixels": (2048,), "protocol.train_query": ("image",),
    "protocol.query_order": ("first_n",), "protocol.query_class": ("any_size",), "protocol.repeat_support": (False,),
    "protocol.undrawn": ("zero",), "protocol.fit": ("pfenet",), "protocol.scoring_size": ("original",),
    "protocol.ignore_in_loss": (True,), "protocol.episodes_file (content)": (None,),
}  # fmt: skip
_HSNET_RULES: Recipe = {
    "protocol.min_pixels": (2048,), "protocol.novel_in_training": ("background",), "protocol.query_class": ("listed",),
    "protocol.repeat_support": (True,), "protocol.num_episodes": (1000,), "protocol.seeds": ([0],),
    "protocol.undrawn": ("zero",), "protocol.fit": ("squash",), "protocol.scoring_size": ("network",),
    "protocol.ignore_in_loss": (False,), "protocol.episodes_file (content)": (None,),
}  # fmt: skip
_PFENET: Recipe = {**_PFENET_RULES, "protocol.novel_in_training": ("background",), "protocol.seeds": ([321],)}
_BAM: Recipe = {
    **_PFENET_RULES, "protocol.novel_in_training": ("drop",), "protocol.seeds": ([510, 365, 382, 322, 988],),
    "protocol.num_episodes": (1000,),
}  # fmt: skip
_RULES: dict[tuple[str, str], Recipe] = {
    ("pfenet", "pascal5i"): {**_PFENET, "protocol.num_episodes": (5000,)},
    ("pfenet", "coco20i"): {**_PFENET, "protocol.num_episodes": (20000,)},
    ("bam", "pascal5i"): _BAM,
    ("bam", "coco20i"): _BAM,
    ("hsnet", "pascal5i"): {
        **_HSNET_RULES, "protocol.list_rule": ("grid",), "protocol.train_query": ("pair",),
        "protocol.query_order": ("list_cycle",),
    },
    ("hsnet", "coco20i"): {
        **_HSNET_RULES, "protocol.list_rule": ("pixels",), "protocol.train_query": ("class_uniform",),
        "protocol.query_order": ("class_uniform",),
    },
}  # fmt: skip
"""By method and data set: what `protocol=<method>` sets. A line may have changed it since, and kept the name."""
_ONE_SHOT_TRAINS = ("hsnet",)  # more shots are the answer of the same weights
_UNKNOWN_TRAINING = "the training of the checkpoint is not known"
_UNKNOWN_MODEL = ("dino",)  # the settings of the published model are not known


@lru_cache(maxsize=1)
def published_results() -> dict[str, Any]:
    """The whole file: `entries` of methods that train, and `training_free` ones."""
    text = (resources.files("fsseg.report") / "facts" / "published_results.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def published_rows(method: str, dataset: str, backbone: str, shot: int) -> list[Published]:
    """All published rows of a method; none that was written down from memory."""
    found = [e for e in published_results()["entries"] if (e["method"], e["backbone"]) == (method, backbone)]
    if (name := _TRAINING_FREE.get((method, backbone))) is not None:
        found += [e for e in published_results()["training_free"] if e["method"].startswith(name)]
    return [
        Published(
            e["method"], "", tuple(folds) if (folds := e.get("folds")) else None, e["mean"], e["source"],
            e.get("note", ""),
        )
        for e in found
        if (e["dataset"], e["shot"]) == (dataset, shot) and not e["source"].startswith(_UNREAD)
    ]  # fmt: skip


def figures_beside(cells: Sequence[CellResult], rules: Any) -> tuple[list[Published], list[str]]:
    """The published rows that some cells may stand beside, and the settings by which they may not.

    The cells are of the whole evaluation split and, as far as is known, of the published recipe. A row counts as
    `compared` if the rules of the runs are those of its code, by name and each by itself, and no note sets it apart.

    Args:
        cells: of one method, data set, backbone and number of shots, which may differ in fold and seed.
        rules: name of their protocol.

    Returns:
        The rows; or none, and `key=value` of each setting that differs. Both are empty where nothing is published.
    """
    key = cells[0].key
    rows = published_rows(key.method, key.dataset, key.backbone, key.shot)
    if not rows or not all(is_whole_split(key.dataset, c.result.dataset.num_val_images) for c in cells):
        return [], []
    if unlike := {setting for cell in cells for setting in _unlike(cell)}:
        return [], sorted(unlike, key=lambda setting: (not setting.startswith("train."), setting))
    if (
        any(cell.identity and cell.identity.get("train.enabled") is False for cell in cells)
        and key.method in _ONE_SHOT_TRAINS
    ):
        rows = [replace(row, note="; ".join(filter(None, (row.note, _UNKNOWN_TRAINING)))) for row in rows]
    by_its_rules = rules == key.method and not any(map(_other_rules, cells))
    return [replace(row, compared=by_its_rules and not row.note) for row in rows], []


def _other_rules(cell: CellResult) -> bool:
    """Whether a cell goes by other rules than the code of its method."""
    if (rules := _RULES.get((cell.key.method, cell.key.dataset))) is None or cell.identity is None:
        return True
    known: dict[str, Any] = {**ADDED, **ADDED_TO.get(cell.key.dataset, {}), **cell.identity}
    return any(known.get(rule) not in allowed for rule, allowed in rules.items())


def _unlike(cell: CellResult) -> list[str]:
    """The settings of a cell that are not those of the published run."""
    key, identity = cell.key, cell.identity
    if identity is None:
        return ["settings unknown, without identity.json"]
    if (own := _RECIPES.get((key.method, key.dataset))) is None:
        return ["the published settings are not known"]
    recipe = {**_ALWAYS, **own, **_of_the_model(key.method)}
    if key.method not in _UNKNOWN_MODEL:
        recipe["train.enabled"] = (not (key.method in _ONE_SHOT_TRAINS and key.shot > 1),)
    known = {**ADDED, **ADDED_TO.get(key.dataset, {}), **identity}
    rate, scale = known.get("train.lr"), known["train.lr_scale"]
    readable = isinstance(rate, float | int) and isinstance(scale, float | int)
    known[_RATE] = round(rate * scale, 12) if readable else "unknown"
    if _BASE_TRAINED.keys() <= recipe.keys():
        known |= _base_training(cell, recipe)
    if key.method in _UNKNOWN_MODEL or known.get("train.enabled") is False:
        recipe = {k: allowed for k, allowed in recipe.items() if k == "train.enabled" or not k.startswith("train.")}
    unlike = [k for k, allowed in recipe.items() if k in known and known[k] not in allowed]
    unlike += [k for k in known if k.startswith("train.lr_factors.")]
    return [f"{k}={json.dumps(known[k], default=str)}".replace('"', "") for k in unlike]


def _base_training(cell: CellResult, recipe: Recipe) -> dict[str, Any]:
    """The recipe of the base learner that a cell starts from, as far as the published one is known."""
    try:
        found = RunDirectory(cell.path).config().get("base_training")
    except Unreadable:
        found = None
    recorded: dict[str, Any] = found if isinstance(found, dict) else {}
    keys = [key for key in recipe if key.startswith("base_training.")]
    return {key: recorded.get(key.removeprefix("base_training."), "unknown") for key in keys}


@lru_cache
def _of_the_model(method: str) -> Recipe:
    """Its own settings: the defaults of its schema are the published ones."""
    if method in _UNKNOWN_MODEL:
        return {}
    from fsseg.config.schema import MethodConfig  # Hydra: tables without such figures are quicker without

    schema = MethodConfig.choices().get(method)  # of a method that is gone a result may still be there
    settings = {} if schema is None else vars(schema())
    return {f"model.{name}": (value,) for name, value in settings.items() if name != "name"}


def as_printed(value: float | None) -> str:
    """A published figure with the decimals that it has, at least one; empty for None."""
    return "" if value is None else f"{value:.1f}" if round(value, 1) == value else f"{value}"


def label_of(row: Published) -> str:
    """Whose figures they are, where they were read, and what sets them apart."""
    return f"{row.method}, read in: {row.source}" + (f"; {row.note}" if row.note else "")


def notes_on(marks: Mapping[str, int], rows: Collection[Published], methods: Iterable[str]) -> list[str]:
    """What must stand under a table with published figures.

    Args:
        marks: what `label_of` says of a row -> its number in the table.
        rows: all of them.
        methods: that have some.
    """
    notes = [f"published ({mark}): {label}" for label, mark in marks.items()]
    apart = [row for row in rows if not row.compared]
    codes = [f"protocol={method}" for method in _CODES if any(not row.note and row.method == method for row in apart)]
    if apart:
        others = f", nor to those of other rules than this table's ({', '.join(codes)}, unchanged)" if codes else ""
        notes.append(f"no difference is told to a published figure with a note{others}")
    if chosen := [method for method in SELECTED if method in set(methods)]:
        notes.append(
            f"published figures of {', '.join(chosen)} are of checkpoints selected on the novel test classes; ours are "
            "of the last one, unless a row says otherwise"
        )
    return notes


def note_of_unlike(unlike: Mapping[str, Sequence[str]]) -> list[str]:
    """The note that names the rows without published figures, as other settings were published.

    Args:
        unlike: row and shots -> its settings that differ.
    """
    if not unlike:
        return []
    told = [f"{where} ({several(settings, _SHOWN)})" for where, settings in unlike.items()]
    more = f"; and {len(told) - _SHOWN} more rows" if len(told) > _SHOWN else ""
    return [f"no published figures beside what has other settings: {'; '.join(told[:_SHOWN])}{more}"]
