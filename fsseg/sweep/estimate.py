"""Estimates the cost of a cell from measured cells of its kind, or from published figures. For `fsseg plan`.

A kind is (dataset, method, backbone, shot, image size, batch); the device is that of the measured cells. If cells
with the same model settings were measured, only those count. What cannot be estimated stays unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsseg.cell.models import Result, State, Unreadable
from fsseg.cell.record import RunDirectory, Snapshot, find_runs
from fsseg.config.schema import Config, trains

Kind = tuple[str, str, str, int, int, int]

# Hours a fold on one GPU, GB of GPU memory, MB a checkpoint: reported for this family of methods.
PUBLISHED_HOURS = {"pascal5i": (0.5, 1.0), "coco20i": (0.0, 80.0)}
PUBLISHED_GB = (10.0, 12.0)
PUBLISHED_CHECKPOINT_MB = 500.0
_PUBLISHED_EPOCHS = {"pascal5i": 250, "coco20i": 70}


@dataclass(frozen=True)
class Measured:
    """The measurements of one run directory.

    Attributes:
        settings: digest of the other settings that affect speed (model settings, trainable layers, mixed precision).
        device: name of the GPU, or `CPU (<n> threads)`; None if unknown, for a running cell.
        train: seconds per training step; None if it did not train.
        evaluate: seconds per evaluation episode.
        extra: seconds of everything else.
        images: number of training images; `pool` is a digest of the settings that determine it.
        memory, disk: bytes.
        origin: "finished cells", "running cells" or "calibration".
    """

    kind: Kind
    settings: str
    device: str | None
    train: float | None
    evaluate: float | None
    extra: float
    images: int | None
    pool: str
    memory: int | None
    disk: int | None
    origin: str


@dataclass(frozen=True)
class Estimate:
    """What one cell still costs; None where it is unknown.

    Attributes:
        steps: training steps in all.
        hours: (low, high) still to go.
        gigabytes: (low, high) of GPU memory, or of main memory if measured on a CPU.
        disk: bytes of its directory when done.
        basis: source of the hours, in words.
        counted: source of the steps, in words; empty if they need no images, or none are known.
    """

    steps: int | None
    hours: tuple[float, float] | None
    gigabytes: tuple[float, float] | None
    disk: float | None
    basis: str
    counted: str = ""


@dataclass(frozen=True)
class Usual:
    """What cells alike took: medians, but for the memory, which is the most; None where none tells.

    Attributes:
        count: how many they are.
        device: of the first that names one.
        origins: of the measurements, in words.
    """

    count: int
    train: float | None
    evaluate: float | None
    extra: float
    memory: int | None
    disk: float | None
    device: str | None
    origins: tuple[str, ...]

    @classmethod
    def of(cls, alike: Sequence[Measured]) -> Usual:
        return cls(
            len(alike),
            _median(m.train for m in alike),
            _median(m.evaluate for m in alike),
            statistics.median([m.extra for m in alike]) if alike else 0.0,
            max((m.memory for m in alike if m.memory), default=None),
            _median(m.disk for m in alike),
            next((m.device for m in alike if m.device), None),
            tuple(o for o in ("finished cells", "calibration", "running cells") if any(m.origin == o for m in alike)),
        )


def _median(values: Iterable[float | None]) -> float | None:
    """Of those that are neither absent nor 0."""
    known = [v for v in values if v]
    return statistics.median(known) if known else None


class Known:
    """All measured cells, looked through once for each kind, settings and device, not once for each cell of a grid.

    Attributes:
        at_hand: counts training images where the data are on this machine.
    """

    def __init__(self, measured: Iterable[Measured]) -> None:
        from fsseg.data.registry import DataAtHand

        self.at_hand = DataAtHand()
        self._of_kind: dict[Kind, list[Measured]] = {}
        self._images: dict[str, int] = {}
        self._usual: dict[tuple[Kind, str, str], Usual] = {}
        for m in measured:
            self._of_kind.setdefault(m.kind, []).append(m)
            if m.images is not None:
                self._images.setdefault(m.pool, m.images)

    def images(self, pool: str) -> int | None:
        """Training images of the first cell that trained on the same ones."""
        return self._images.get(pool)

    def usual(self, kind: Kind, settings: str, device: str) -> Usual:
        """Of the cells of a kind, or of those with the same settings if there are any, on one device."""
        mark = kind, settings, device
        if mark not in self._usual:
            alike = self._of_kind.get(kind, [])
            exact = [m for m in alike if m.settings == settings]
            self._usual[mark] = Usual.of(_one_device(exact or alike, device))
        return self._usual[mark]


def kind_of(cfg: Config) -> Kind:
    return (cfg.dataset.name, cfg.model.name, cfg.backbone.name, cfg.shot, cfg.dataset.image_size, cfg.train.batch_size)


def settings_of(identity: dict[str, Any]) -> str:
    """Digest of the settings beside the kind that change the speed."""
    others = ("backbone.trainable_layers", "backbone.stem", "train.amp")
    return _digest({k: v for k, v in identity.items() if k.startswith("model.") or k in others})


def pool_of(identity: dict[str, Any]) -> str:
    """Digest of the settings that determine the training images."""
    kept = {k: v for k, v in identity.items() if k.startswith("dataset.") and not k.startswith("dataset.image_size")}
    keys = ["fold", "shot", "protocol.novel_in_training", "protocol.list_rule", "protocol.min_pixels",
            "protocol.repeat_support"]  # fmt: skip
    if identity.get("eval.every_epochs"):  # some of the images are held back
        keys.append("eval.base_share")
    return _digest(kept | {k: identity.get(k) for k in keys})


def measurements(output_dir: Path) -> list[Measured]:
    """The measurements of all run directories below the output folder; empty if there is no such folder."""
    if not output_dir.is_dir():
        return []
    return [m for run in find_runs([output_dir]) if (m := measure(run)) is not None]


def measure(run: RunDirectory, calibration: bool = False) -> Measured | None:
    """The measurements of one run directory; None if it has none."""
    try:
        record, status, result = run.identity_record(), run.status(), run.result()
        identity = record.identity if record else {}
        kind: Kind = (
            identity["dataset.name"], identity["model.name"], identity["backbone.name"], identity["shot"],
            identity["dataset.image_size"], identity["train.batch_size"],
        )  # fmt: skip
        hash(kind)  # a file may say anything
    except (Unreadable, KeyError, TypeError):
        return None
    settings, pool = settings_of(identity), pool_of(identity)
    pace = status.seconds_per_step if status else None
    if result is None:
        if status is None or status.phase != "train" or not pace or (status.step or 0) < 3:
            return None
        memory = status.peak_memory_bytes
        return Measured(kind, settings, None, pace, None, 0.0, None, pool, memory, None, "running cells")
    timing, training = result.timing, result.training
    train = result.train_seconds / training.steps if training and training.steps and result.train_seconds else None
    episodes = _episodes(result)
    evaluate = timing.evaluate_seconds / episodes if episodes and timing.evaluate_seconds else None
    if calibration:  # few steps: leave out the start-up of workers and kernels
        train, evaluate = _steady_seconds(run) or train, pace or evaluate
    device = result.provenance.get("device")
    return Measured(
        kind, settings, device if isinstance(device, str) else None, train, evaluate,
        (timing.prepare_seconds or 0.0) + (timing.figures_seconds or 0.0), training.images if training else None, pool,
        result.peak_memory_bytes, run.size(), "calibration" if calibration else "finished cells",
    )  # fmt: skip


def _episodes(result: Result) -> int:
    """Episodes that were evaluated, those under background shifts included."""
    if result.metrics is None:
        return 0
    return sum(s.num_episodes for s in result.metrics.per_seed) * (1 + len(result.metrics.by_background_shift))


def _steady_seconds(run: RunDirectory) -> float | None:
    """Seconds per step of the later half of a short run, from its running means."""
    steps, means = run.curves().get("seconds_per_step", ([], []))
    if len(steps) < 2:
        return None
    middle = len(steps) // 2 - 1
    seconds = (steps[-1] * means[-1] - steps[middle] * means[middle]) / (steps[-1] - steps[middle])
    return seconds if seconds > 0 else None


def estimate(cfg: Config, identity: dict[str, Any], found: Snapshot | None, known: Known) -> Estimate:
    """The cost of a cell from its present state on.

    Args:
        cfg: of the cell.
        identity: of the cell (`Cell.identity`).
        found: its directory; None if there is none.
        known: measured cells of any kind.
    """
    to_train = cfg.train.enabled and trains(cfg)
    images, counted = training_images(cfg, identity, known) if to_train else (None, "")
    steps = _steps(cfg, images, found) if to_train else 0
    usual = _usual(cfg, identity, known)
    if found is not None and found.state == State.DONE:
        return Estimate(steps, (0.0, 0.0), None, float(found.run.size()), "done", counted)

    memory = None if usual.memory is None else (usual.memory / 1e9, usual.memory / 1e9)
    hours, basis = _measured_hours(cfg, steps, found, usual, _validated_episodes(cfg, steps, images))
    published = _is_published(cfg)
    if hours is None and published:
        low, high = PUBLISHED_HOURS[cfg.dataset.name]
        share = _share_left(steps, found) * _share_of_recipe(cfg, steps, images)
        hours, basis = (low * share, high * share), "published figures"
    if published:
        memory = memory or PUBLISHED_GB
    return Estimate(steps, hours, memory, disk_bytes(cfg, identity, known), basis or "unknown", counted)


def disk_bytes(cfg: Config, identity: dict[str, Any], known: Known) -> float | None:
    """What the directory of a cell takes when it is done: as cells like it, or as published; None if unknown."""
    return _usual(cfg, identity, known).disk or (PUBLISHED_CHECKPOINT_MB * 1e6 if _is_published(cfg) else None)


def _usual(cfg: Config, identity: dict[str, Any], known: Known) -> Usual:
    return known.usual(kind_of(cfg), settings_of(identity), cfg.device)


def _measured_hours(
    cfg: Config, steps: int | None, found: Snapshot | None, usual: Usual, validated: int
) -> tuple[tuple[float, float] | None, str]:
    seconds = usual.extra
    if steps:
        if usual.train is None:
            return None, ""
        seconds += _share_left(steps, found) * (steps * usual.train + validated * (usual.evaluate or 0.0))
    elif steps is None:
        return None, ""
    if cfg.eval.enabled and usual.evaluate is not None:
        evaluations = 1 + len(cfg.eval.background_shifts) + (len(cfg.train.select) if steps else 0)
        episodes = cfg.protocol.num_episodes * len(cfg.protocol.seeds) * evaluations
        seconds += episodes * usual.evaluate
    elif cfg.eval.enabled and not steps:
        return None, ""
    count = "" if usual.origins == ("calibration",) else f"{usual.count} "
    without = "" if usual.evaluate is not None or not cfg.eval.enabled else ", without evaluation"
    basis = f"{count}{' and '.join(usual.origins)} on {usual.device or 'a device they do not name'}{without}"
    return (seconds / 3600, seconds / 3600), basis


def _validated_episodes(cfg: Config, steps: int | None, images: int | None) -> int:
    """Episodes of all validations during training: of base classes (`eval.every_epochs`), of novel (`train.select`)."""
    if not steps:
        return 0
    epoch = steps / cfg.train.epochs if images is None else max(1, images // cfg.train.batch_size)
    number = math.ceil(steps / (epoch * cfg.eval.every_epochs)) * cfg.eval.base_episodes if cfg.eval.every_epochs else 0
    if "best_novel" in cfg.train.select:
        each = min(cfg.train.select_episodes or cfg.protocol.num_episodes, cfg.protocol.num_episodes)
        number += math.ceil(steps / (epoch * cfg.train.select_epochs)) * each
    return number


def _one_device(alike: Sequence[Measured], wanted: str) -> list[Measured]:
    """Cells measured on one device: the one asked for, else the one most cells ran on."""
    if wanted == "cpu":
        return [m for m in alike if m.device is None or m.device.startswith("CPU")]
    if wanted.startswith("cuda"):
        alike = [m for m in alike if m.device is None or not m.device.startswith("CPU")]
    names = [m.device for m in alike if m.device is not None]
    if not names:
        return list(alike)
    most = Counter(names).most_common(1)[0][0]
    return [m for m in alike if m.device == most]


def training_images(cfg: Config, identity: dict[str, Any], known: Known) -> tuple[int | None, str]:
    """Queries of an epoch (`protocol.train_query`), and where they were counted, in words."""
    from fsseg.data.held_out import count_held_back
    from fsseg.data.registry import source_class

    if cfg.protocol.train_query == "pair":  # only the lists themselves tell, finished cells record images
        count = known.at_hand.training_images(cfg)
        return count, "" if count is None else "the data at hand"
    published = source_class(cfg.dataset.name).training_images(cfg)
    if published is not None and cfg.eval.every_epochs:
        published -= count_held_back(published, cfg.eval.base_share)
    for count, origin in (
        (known.at_hand.training_images(cfg), "the data at hand"),
        (known.images(pool_of(identity)), "finished cells"),
        (published, "the published lists"),
    ):
        if count is not None:
            return count, origin
    return None, ""


def _steps(cfg: Config, images: int | None, found: Snapshot | None) -> int | None:
    if images is not None:
        total = max(1, images // cfg.train.batch_size) * cfg.train.epochs
        return total if cfg.train.max_steps is None else min(total, cfg.train.max_steps)
    if found is not None and found.progress and found.progress[0] == "train":
        return found.progress[2]
    return cfg.train.max_steps  # an upper bound; None if there is none


def _share_left(steps: int | None, found: Snapshot | None) -> float:
    if found is None or found.status is None:
        return 1.0
    if found.status.phase in ("evaluate", "record"):
        return 0.0
    if found.status.phase == "train" and found.status.step and (total := steps or found.status.steps):
        return max(0.0, 1 - found.status.step / total)
    return 1.0


def _share_of_recipe(cfg: Config, steps: int | None, images: int | None) -> float:
    """Factor for the published hours, which are for the published number of epochs."""
    epochs = _PUBLISHED_EPOCHS[cfg.dataset.name]
    if cfg.train.max_steps is None:
        return cfg.train.epochs / epochs
    return steps / (max(1, images // cfg.train.batch_size) * epochs) if steps and images else 1.0


def _is_published(cfg: Config) -> bool:
    return (
        cfg.dataset.name in PUBLISHED_HOURS
        and cfg.backbone.name in ("resnet50", "resnet101")
        and cfg.model.name in ("abcb", "baseline")
        and cfg.train.enabled
        and cfg.device != "cpu"
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
