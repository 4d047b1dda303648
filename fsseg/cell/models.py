"""The files of a run directory as typed models, with their schema versions: read, checked and written as JSON.

`fsseg.cell.record` says where the files lie. A file is either understood or refused with the reason; nothing is
guessed. Files of schema version 1 are read too.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from fsseg.cell.key import CellKey
from fsseg.process.files import write_json

SCHEMA_VERSION = 2
"""Of identity, status and result. 1 had no overrides in identity.json and no `training.seconds` in result.json."""

T = TypeVar("T")

Percent = Annotated[float, Meta(ge=0, le=100)]


class Unreadable(Exception):
    """Why a file is not what its name says, as the end of a sentence that begins with the file's name."""


class NotJson(Unreadable):
    """It is no JSON at all: cut short, or overwritten. Anything else may be the work of another version."""


class State(str, Enum):
    """How a cell stands.

    The first seven are read off a directory; a grid adds those that have none yet, and those that cannot start.
    """

    DONE = "done"
    """A result is there."""
    RUNNING = "running"
    """Heard of within its lease."""
    QUEUED = "queued"
    """Handed to a launcher."""
    PREEMPTED = "preempted"
    """Saved on a signal, waiting to go on."""
    STALE = "stale"
    """Says that it runs, but is silent for longer than its lease."""
    FAILED = "failed"
    BROKEN = "broken"
    """Its files cannot be read."""
    TODO = "to do"
    STOPPED = "stopped"
    """The sweep ended before its turn."""
    FAULTY = "faulty"
    """Its configuration cannot start."""

    def __str__(self) -> str:
        return self.value


class Versioned(Struct, kw_only=True):
    """A file that says which version it is of; one that does not is of the first."""

    schema_version: int = 1


class Identity(Versioned):
    """`identity.json`: which cell this is.

    Attributes:
        identity: all settings that can change the numbers, flat.
        overrides: the cell's part of its command line; None in version 1.
    """

    fingerprint: str
    identity: dict[str, Any] = {}
    overrides: list[str] | None = None


class Status(Versioned):
    """`status.json`: how far a run is; `fsseg.cell.status` writes it. One without a state says nothing."""

    state: str
    phase: str | None = None
    step: int | None = 0
    steps: int | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    miou: float | None = None
    reason: str | None = None
    host: str | None = None
    pid: int | None = None
    slurm_job: str | None = None
    started: float | None = None
    heartbeat: float | None = None
    peak_memory_bytes: int | None = None


class Attempt(Struct):
    """`attempts/<n>.json`: one start, and why it ended. `provenance` is `fsseg.process.provenance.provenance()`."""

    started_at: str
    ended: str | None = None
    ended_at: str | None = None
    pid: int | None = None
    fsseg: str | None = None
    git: dict[str, Any] = {}
    python: str | None = None
    packages: dict[str, str | None] = {}
    host: str | None = None
    platform: str | None = None
    cpus: int | None = None
    device: str | None = None
    command: list[str] = []
    slurm_job: str | None = None
    slurm_restarts: str | None = None


class SeedScore(Struct):
    """The score of one evaluation seed, in percent."""

    seed: int
    miou: float
    fb_iou: float | None = None
    miou_all_foreground: float | None = None
    num_episodes: int = 0
    episodes_fingerprint: str | None = None
    classes_without_episode: list[str] = []


class Distances(Struct):
    """Cosine distances between support and query foreground (Figure 5 of the paper): counts a bin, mean, spread."""

    bins: list[float]
    counts: list[int]
    mean: float
    std: float
    episodes: int
    without_foreground: int


class Metrics(Struct):
    """The score, in percent: means over the evaluation seeds, and what they are means of."""

    miou: Percent
    miou_std: float | None = None
    miou_all_foreground: float | None = None
    fb_iou: float | None = None
    fb_iou_std: float | None = None
    per_seed: list[SeedScore] = []
    per_class: dict[str, float | None] = {}
    miou_per_round: list[float] = []
    foreground_distance: Distances | None = None
    by_background_shift: dict[str, Metrics] = {}


class DataRecord(Struct):
    """Which data the numbers are of."""

    name: str | None = None
    novel_classes: list[str] = []
    num_val_images: int | None = None
    train_list: str | None = None
    val_list: str | None = None
    mask_rule: str | None = None
    fingerprint_train: str | None = None
    fingerprint_val: str | None = None
    episodes_fingerprint: str | None = None


class Training(Struct):
    """What was trained; `seconds` is None in version 1, where `Timing.train_seconds` says it."""

    steps: int
    epochs: float | None = None
    images: int | None = None
    batch_size: int | None = None
    final_loss: float | None = None
    seconds: float | None = None


class Timing(Struct):
    prepare_seconds: float | None = None
    train_seconds: float | None = None
    evaluate_seconds: float | None = None
    figures_seconds: float | None = None


class Cost(Struct):
    """Parameters, and multiply-adds of an episode in 1e9."""

    parameters: int | None = None
    gmacs: float | None = None
    gmacs_dense: float | None = None


class Origin(Struct):
    """The checkpoint that a run began from, and what it had been trained on."""

    path: str
    step: int | None = None
    fingerprint: str | None = None
    dataset: str | None = None
    fold: int | None = None
    method: str | None = None
    backbone: str | None = None
    base_classes: list[str] = []


class Result(Versioned):
    """`result.json`: written once, last; its presence means done."""

    cell: CellKey
    fingerprint: str
    protocol: dict[str, Any]
    report: str | None = None
    model: dict[str, Any] = {}
    metrics: Metrics | None = None
    partial: bool = False
    missing_classes: list[str] = []
    dataset: DataRecord = msgspec.field(default_factory=DataRecord)
    training: Training | None = None
    cost: Cost | None = None
    checkpoint: Origin | None = None
    timing: Timing = msgspec.field(default_factory=Timing)
    peak_memory_bytes: int | None = None
    provenance: dict[str, Any] = {}
    finished_at: str | None = None

    @property
    def miou(self) -> float | None:
        return None if self.metrics is None else self.metrics.miou

    @property
    def is_partial(self) -> bool:
        """Whether a novel class could not be evaluated."""
        return self.partial or bool(self.missing_classes)

    @property
    def train_seconds(self) -> float | None:
        own = self.training.seconds if self.training else None
        return self.timing.train_seconds if own is None else own

    def score_line(self) -> str:
        """`mIoU 72.66  FB-IoU 84.51`, or `trained` for a cell that was not evaluated."""
        if self.metrics is None:
            return "trained"
        foreground = "" if self.metrics.fb_iou is None else f"  FB-IoU {self.metrics.fb_iou:.2f}"
        return f"mIoU {self.metrics.miou:.2f}{foreground}"


class _Head(Struct):
    schema_version: Any = 1


class Copied(Struct):
    """`sync.json`: what of the directory has arrived on a remote store.

    Attributes:
        files: name -> [bytes, time of change in ns] of each file that arrived.
        run: mark of the newest start that was copied in full (`fsseg.sweep.held.start_mark`).
    """

    url: str | None = None
    checkpoints: bool = False
    at: float = 0.0
    error: str = ""
    pending: list[str] = []
    files: dict[str, list[int]] = {}
    run: str | None = None


def read(path: Path, kind: type[T]) -> T | None:
    """A JSON file as its model; None if there is none.

    Raises:
        NotJson: it is no JSON.
        Unreadable: it cannot be opened, is of an unknown version, or a field makes no sense.
    """
    try:
        data = path.read_bytes()
        if isinstance(kind, type) and issubclass(kind, Versioned):
            version = msgspec.json.decode(data, type=_Head).schema_version
            if version not in range(1, SCHEMA_VERSION + 1):
                raise Unreadable(f"has schema_version {version!r}; this fsseg reads versions 1 to {SCHEMA_VERSION}")
        return msgspec.json.decode(data, type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        raise Unreadable(_in_words(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"is not JSON ({error})") from None


def _in_words(text: str) -> str:
    """msgspec's "Expected `float`, got `str` - at `$.metrics.miou`", with the field first."""
    what, _, where = text.partition(" - at `$")
    name = where.rstrip("`").lstrip(".")
    return f"has a wrong {name}: {what[0].lower()}{what[1:]}" if name else what[0].lower() + what[1:]


def write_record(path: Path, record: Struct) -> None:
    """Write a model as its JSON file, atomically, in the newest version. Numbers of numpy and torch become plain ones.

    Raises:
        ValueError: it holds NaN or infinity.
        OSError: it cannot be written.
    """
    if isinstance(record, Versioned):
        record.schema_version = SCHEMA_VERSION
    write_json(path, msgspec.to_builtins(record, enc_hook=lambda value: value.item()))
