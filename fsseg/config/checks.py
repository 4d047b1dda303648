"""`validate` and `faults`: all semantic faults of a composed configuration at once, which types cannot catch.

Called before anything is written or trained, by `fsseg.run`, the sweeper and the commands. Nothing here imports torch,
and of the data only the paths that the configuration names are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsseg.config.schema import STRIDES, Config, trains
from fsseg.errors import UserError, merge_errors

_CHOICES = {
    "model.layer": ("layer2", "layer3", "layer4"),
    "model.threshold": ("otsu", "background"),
    "protocol.novel_in_training": ("drop", "background", "ignore"),
    "protocol.query_order": ("cycle", "list_cycle", "class_uniform", "first_n"),
    "protocol.scoring_size": ("original", "network"),
    "train.amp": ("off", "bf16", "fp16"),
    "log_level": ("debug", "info", "warning", "error"),
    "model.vanished_mask": ("best_cell", "error"),
    "model.histogram_range": ("zero_one", "minus_one_one"),
    "model.shot_fusion": ("union", "logits"),
    "model.evolution_image": ("normalised", "rgb"),
    "dataset.year": (2014, 2017),
}
_POSITIVE = ("train.lr", "train.batch_size", "train.epochs", "train.max_steps", "eval.batch_size", "shot",
             "train.clip_grad_norm",
             "protocol.num_episodes", "dataset.image_size", "model.iterations", "model.channels", "model.heads",
             "model.neck_pool",
             "dataset.num_train", "dataset.num_val", "logger.every_steps", "lease_seconds",
             "sync.attempts", "sync.timeout_seconds")  # fmt: skip
_WITHIN = (
    ("model.histogram_bins", 2, 1024),
    ("model.histogram_width", 1, 1024),
    ("backbone.trainable_layers", 0, 5),
    ("dataset.image_size", 9, 4097),
    ("train.momentum", 0.0, 0.9999),
)
_NOT_NEGATIVE = ("train.momentum", "train.weight_decay", "train.poly_power", "train.warmup_steps",
                 "protocol.min_pixels",
                 "dataset.rotate_degrees", "logger.figures", "seed", "model.loss_weight", "train.checkpoint_minutes",
                 "train.checkpoint_epochs", "backbone.trainable_layers", "num_threads")  # fmt: skip
_PROBABILITIES = (
    "dataset.background_shift",
    "dataset.ambient",
    "dataset.flip_probability",
    "dataset.blur_probability",
    "dataset.crop_keep",
    "dataset.hue_shift",
)


def validate(cfg: Config) -> None:
    """Check everything that types cannot.

    Raises:
        UserError: with every fault found, in one go.
    """
    if found := faults(cfg):
        raise merge_errors(found)


def faults(cfg: Config) -> list[UserError]:
    """All semantic faults of a composed configuration, none of which touches the data itself but for its folder."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        return [UserError(f"{key} has no value", f"set {key}=...") for key in missing]
    return [fault for check in (_values, _unknown, _shifts, _data, _model, _run) for fault in check(cfg)]


def _get(cfg: Config, key: str) -> Any:
    return OmegaConf.select(cfg, key, default=None)  # type: ignore[arg-type]


def _values(cfg: Config) -> Iterator[UserError]:
    """Single numbers and names, whatever the others are."""
    for key in _POSITIVE:
        if (value := _get(cfg, key)) is not None and not value > 0:
            yield UserError(f"{key}={value} must be greater than 0", f"set {key} to a positive number")
    for key in _NOT_NEGATIVE:
        if (value := _get(cfg, key)) is not None and not value >= 0:
            yield UserError(f"{key}={value} must not be negative", f"set {key} to 0 or more")
    for key in _PROBABILITIES:
        if (value := _get(cfg, key)) is not None and not 0 <= value <= 1:
            yield UserError(f"{key}={value} is not within 0 and 1", f"set {key} to a share between 0 and 1")
    for key, least, most in _WITHIN:
        if (value := _get(cfg, key)) is not None and not least <= value <= most:
            yield UserError(
                f"{key}={value} is not within {least} and {most}", f"set {key} to a number from {least} to {most}"
            )
    for key, allowed in _CHOICES.items():
        if (value := _get(cfg, key)) is not None and value not in allowed:
            yield UserError(f"{key}={value} is not a choice", f"set {key} to one of: {', '.join(map(str, allowed))}")
    for key in ("train.lr", "train.weight_decay"):
        if (value := _get(cfg, key)) is not None and not math.isfinite(value):
            yield UserError(f"{key}={value} is not a finite number", f"set {key} to a finite number")


def _unknown(cfg: Config) -> Iterator[UserError]:
    """Hydra lets `+key=value` past the schema."""
    for key in _unknown_keys(cfg):
        yield UserError(
            f"{key}: there is no such configuration key", "leave it out: what the schema does not know, nothing reads"
        )


def _unknown_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    known = {f.name for f in fields(kind)} if is_dataclass(kind := OmegaConf.get_type(node)) else set(node)
    below = [key for name in node for key in _unknown_keys(node._get_node(name), f"{prefix}{name!s}.")]
    return [prefix + str(name) for name in node if name not in known] + below


def _shifts(cfg: Config) -> Iterator[UserError]:
    if not (shifts := list(cfg.eval.background_shifts)):
        return
    if not all(0 <= shift <= 1 for shift in shifts):
        yield UserError(
            f"eval.background_shifts={shifts} are not within 0 and 1", "set e.g. eval.background_shifts=[0,1]"
        )
    if _get(cfg, "dataset.background_shift") is None:
        yield UserError(
            f"eval.background_shifts={shifts}: {cfg.dataset.name} knows no background families",
            "leave eval.background_shifts out, or choose dataset=shapes5i",
        )
    elif cfg.protocol.episodes_file is not None:
        yield UserError(
            f"eval.background_shifts={shifts} cannot change the episodes of protocol.episodes_file",
            "leave one of the two out",
        )


def _data(cfg: Config) -> Iterator[UserError]:
    """Folds, image sizes and what the protocol says of images and masks."""
    classes = {"coco20i": 80}.get(cfg.dataset.name, 20)
    if cfg.dataset.num_folds < 2 or classes % cfg.dataset.num_folds:
        yield UserError(
            f"dataset.num_folds={cfg.dataset.num_folds} does not cut {classes} classes into equal parts",
            "set dataset.num_folds=4, as every published result does",
        )
    if not 0 <= cfg.fold < cfg.dataset.num_folds:
        yield UserError(
            f"fold={cfg.fold} does not exist: {cfg.dataset.name} has folds 0 to {cfg.dataset.num_folds - 1}",
            f"set fold to one of: {', '.join(map(str, range(cfg.dataset.num_folds)))}",
        )
    stride = STRIDES.get(cfg.backbone.name)
    if stride is None:
        yield UserError(
            f"backbone.name={cfg.backbone.name} is unknown", f"choose backbone= one of: {', '.join(STRIDES)}"
        )
    elif cfg.dataset.image_size > 0 and (cfg.dataset.image_size - 1) % stride:
        low = (cfg.dataset.image_size - 1) // stride * stride + 1
        yield UserError(
            f"dataset.image_size={cfg.dataset.image_size} does not fit backbone {cfg.backbone.name}: "
            f"size - 1 must be a multiple of {stride}",
            f"set dataset.image_size to {low if low > 1 else low + stride} or {low + stride}",
        )
    scales = list(cfg.dataset.scale_range)
    if len(scales) != 2 or not 0 < scales[0] <= scales[1] or not all(map(math.isfinite, scales)):
        yield UserError(
            f"dataset.scale_range={scales} is not [smallest, largest]", "set e.g. dataset.scale_range=[0.9,1.1]"
        )
    if not cfg.protocol.seeds or len(set(cfg.protocol.seeds)) != len(cfg.protocol.seeds):
        yield UserError(
            f"protocol.seeds={list(cfg.protocol.seeds)} must be different numbers, at least one",
            "set e.g. protocol.seeds=[0,1,2]",
        )
    if cfg.protocol.episodes_file is not None and not Path(cfg.protocol.episodes_file).is_file():
        yield UserError(
            f"protocol.episodes_file={cfg.protocol.episodes_file} is not a file", "write one with `fsseg episodes`"
        )
    if cfg.protocol.novel_in_training == "ignore" and not cfg.protocol.ignore_in_loss:
        yield UserError(
            "protocol.novel_in_training=ignore needs protocol.ignore_in_loss=true: 255 would be trained as background",
            "set protocol.ignore_in_loss=true, or protocol.novel_in_training=background",
        )


def _model(cfg: Config) -> Iterator[UserError]:
    heads, channels = _get(cfg, "model.heads"), _get(cfg, "model.channels")
    if heads and channels and heads > 0 and channels % heads:
        yield UserError(
            f"model.heads={heads} does not divide model.channels={channels}",
            "choose a number of heads that divides the width",
        )
    if _get(cfg, "model.cleansing") and not _get(cfg, "model.modulation"):
        yield UserError(
            "model.cleansing=true needs model.modulation=true: IC cleans what SM added",
            "set model.cleansing=false as well",
        )
    evolutions = _get(cfg, "model.pixel_evolution") or _get(cfg, "model.structure_evolution")
    if _get(cfg, "model.modulation") and not evolutions:
        yield UserError(
            "support modulation has neither E_p nor E_s",
            "switch one of model.pixel_evolution, model.structure_evolution on",
        )
    if cfg.backbone.weights is not None and not Path(cfg.backbone.weights).is_file():
        yield UserError(
            f"backbone.weights={cfg.backbone.weights} is not a file", "give the path of the weights, or leave it out"
        )


def _run(cfg: Config) -> Iterator[UserError]:
    """What is to be done, and where it is kept."""
    if not cfg.train.enabled and cfg.checkpoint is None and trains(cfg):
        yield UserError(
            "train.enabled=false has nothing to evaluate",
            "name a checkpoint: checkpoint=outputs/.../checkpoints/last.pt",
        )
    if not cfg.train.enabled and not cfg.eval.enabled:
        yield UserError("train.enabled=false and eval.enabled=false leave nothing to do", "switch one of them on")
    if cfg.checkpoint is not None and not Path(cfg.checkpoint).is_file():
        yield UserError(f"checkpoint={cfg.checkpoint} is not a file", "give the path of a checkpoints/last.pt")
    if cfg.sync.url is not None:
        from fsseg.process.remote import url_faults

        yield from url_faults(cfg.sync.url)
    for key, value in (("name", cfg.name), ("variant", cfg.variant)):
        if value is not None and (not value or "/" in value or value.startswith(".") or len(value) > 200):
            yield UserError(f"{key}={value!r} is no folder name", f"set {key} to a plain name without slashes")
    if cfg.variant == "default":
        yield UserError("variant=default is the name of a cell without overrides", "leave it out, or set another name")
