"""The files of a run directory as typed models, with their schema versions: read, checked and written as JSON.

`fsseg.cell.record` says where the files lie. A file is either understood or refused with the reason; nothing is
guessed. Files of schema version 1 are read too.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from fsseg.cell.key import CellKey
from fsseg.config.constraints import BEST
from fsseg.process.files import RECORD_BYTES, json_text, read_file, write_atomic

SCHEMA_VERSION = 3
"""Of identity, status, result and the records of sweeps. 1 had no overrides in identity.json and no `training.seconds`
in result.json; before 3 no file named its run, and a result had no checksum."""

T = TypeVar("T")

Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]  # 300 years: any clock and any duration
Shift = Annotated[str, Meta(pattern=r"^[0-9](\.[0-9]+)?(e-[0-9]+)?\Z")]


class Unreadable(Exception):
    """Why a file is not what its name says, as the end of a sentence that begins with the file's name."""


class Altered(Unreadable):
    """It was changed after it was written."""


class NotJson(Unreadable):
    """It is no JSON at all: cut short, or overwritten. Anything else may be the work of another version."""


class State(str, Enum):
    """How a cell stands.

    Most are read off a directory, PENDING, UNKNOWN and QUEUED off the record of a sweep (`fsseg.cell.sweeps`); a grid
    adds those that have none yet, and those that cannot start.
    """

    DONE = "done"
    """A result is there."""
    RUNNING = "running"
    """Heard of within its lease."""
    PENDING = "pending"
    """Its job waits in SLURM's queue."""
    UNKNOWN = "unknown"
    """Its job was handed to a queue that this machine cannot ask."""
    QUEUED = "queued"
    """The process that started its sweep lives, and has not come to it yet."""
    PREEMPTED = "preempted"
    """Saved on a signal, waiting to go on."""
    STALE = "stale"
    """Says that it runs, but is silent for longer than its lease."""
    PRUNED = "pruned"
    """Saved, and ended early by a search that it belongs to: it may be taken up again."""
    FAILED = "failed"
    BROKEN = "broken"
    """Its files cannot be read."""
    TODO = "to do"
    STOPPED = "stopped"
    """Its sweep ended before its turn: it never started."""
    FAULTY = "faulty"
    """Its configuration cannot start."""

    def __str__(self) -> str:
        return self.value


IN_HANDS = (State.RUNNING, State.PENDING, State.QUEUED)
"""States of cells that somebody works on, or will."""
LOST = (State.STALE, State.FAILED, State.BROKEN, State.PREEMPTED, State.PRUNED, State.STOPPED)
"""States of cells that have no result, and that nobody has."""


class Versioned(Struct, kw_only=True):
    """A file that says which version it is of; one that does not is of the first."""

    schema_version: int = 1


class Identity(Versioned):
    """`identity.json`: which cell this is.

    Attributes:
        identity: all settings that can change the numbers, flat.
        overrides: the cell's part of its command line; None in version 1.
        run: made anew whenever a cell starts from nothing; checkpoint and result of the run name it too.
        cell: its own name, wherever the directory is moved or copied to; None of earlier versions.
    """

    fingerprint: str
    identity: dict[str, Any] = {}
    overrides: list[str] | None = None
    run: str | None = None
    cell: CellKey | None = None

    def __post_init__(self) -> None:
        if self.cell is not None and not self.cell.is_whole:
            raise ValueError("names a cell that no run can have")


class Status(Versioned):
    """`status.json`: how far a run is; `fsseg.cell.status` writes it. One without a state says nothing."""

    state: str
    phase: str | None = None
    step: Count | None = 0
    steps: Count | None = None
    seconds_per_step: Annotated[float, Meta(ge=0)] | None = None
    eta_seconds: Annotated[float, Meta(ge=0)] | None = None
    miou: Percent | None = None
    reason: str | None = None
    host: str | None = None
    pid: int | None = None
    slurm_job: str | None = None
    started: Seconds | None = None
    heartbeat: Seconds | None = None
    peak_memory_bytes: Count | None = None
    diverged: bool = False


class Attempt(Struct):
    """`attempts/<n>.json`: one start, and why it ended; most fields are `fsseg.process.provenance.provenance()`.

    Attributes:
        run: see `Identity`.
        job: names the job of a launcher, the same over all its restarts.
        redone: this start has put a former run aside, as `redo=true` wants.
        sweep: the record of the sweep whose configuration it runs.
        submitted: the code when that was written; `change`: how it has changed since, in words.
    """

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
    run: str | None = None
    job: str | None = None
    redone: bool = False
    sweep: str | None = None
    submitted: dict[str, Any] = {}
    change: str = ""


class Undrawn(Struct):
    """The mIoU where a seed drew no episode of classes that have the images: without them, and with 0 for them."""

    left_out: Percent
    zero: Percent
    classes: list[str] = []


class SeedScore(Struct):
    """The score of one evaluation seed, in percent; `miou_undrawn` where there are `classes_without_episode`."""

    seed: int
    miou: Percent
    fb_iou: Percent | None = None
    miou_all_foreground: Percent | None = None
    num_episodes: Count = 0
    episodes_fingerprint: str | None = None
    classes_without_episode: list[str] = []
    miou_undrawn: Undrawn | None = None


class Distances(Struct):
    """Cosine distances between support and query foreground (Figure 5 of the paper): counts a bin, mean, spread."""

    bins: list[float]
    counts: list[Count]
    mean: float
    std: float
    episodes: Count
    without_foreground: Count


class Metrics(Struct):
    """The score, in percent: means over the evaluation seeds, and what they are means of.

    `miou` treats a class that a seed draws no episode of as `protocol.undrawn` says; `miou_undrawn` has both figures
    where there is one. Such a class has no score of its own in that seed.
    """

    miou: Percent
    miou_std: Percent | None = None
    miou_all_foreground: Percent | None = None
    fb_iou: Percent | None = None
    fb_iou_std: Percent | None = None
    per_seed: list[SeedScore] = []
    per_class: dict[str, Percent | None] = {}
    miou_per_round: list[Percent] = []
    miou_undrawn: Undrawn | None = None
    foreground_distance: Distances | None = None
    by_background_shift: dict[Shift, Metrics] = {}


class DataRecord(Struct):
    """Which data the numbers are of.

    `fingerprint_*` are over image ids and pixels of the classes (`ClassIndex.fingerprint`), `images_*` over image ids
    and sizes of the image files (`Source.images_fingerprint`); None where a split was not read, or by an earlier fsseg.
    """

    name: str | None = None
    novel_classes: list[str] = []
    num_val_images: Count | None = None
    train_list: str | None = None
    val_list: str | None = None
    mask_rule: str | None = None
    fingerprint_train: str | None = None
    fingerprint_val: str | None = None
    images_train: str | None = None
    images_val: str | None = None
    episodes_fingerprint: str | None = None


class ValidationScore(Struct):
    """The score of one validation during training, in percent."""

    step: Count
    epoch: Annotated[float, Meta(ge=0)]
    miou: Percent
    fb_iou: Percent


class BaseScores(Struct):
    """Validation on base classes (`eval.every_epochs`), always on the same episodes; `miou` and `fb_iou` are the last.

    Attributes:
        images: training images that were held back for it.
        episodes: of each validation.
        classes_without_episode: base classes that could be trained on, but not validated.
        seconds: of all validations; they are no part of `Training.seconds`.
        scores: of every validation, the first one first.
    """

    miou: Percent
    fb_iou: Percent
    images: Count
    episodes: Count
    episodes_fingerprint: str | None = None
    classes_without_episode: list[str] = []
    seconds: Seconds | None = None
    scores: list[ValidationScore] = []


class NovelScores(Struct):
    """The scores of the novel classes during training, by which `train.select=[best_novel]` chooses.

    The attributes are as of `BaseScores`; `every_epochs` is `train.select_epochs`.
    """

    every_epochs: Count
    episodes: Count
    episodes_fingerprint: str | None = None
    classes_without_episode: list[str] = []
    seconds: Seconds | None = None
    scores: list[ValidationScore] = []


class BestCheckpoint(Struct):
    """The checkpoint that scored best in the validations of one kind (`train.select`). The last one is the result.

    Attributes:
        step, epoch: of the checkpoint; of several that score alike, the first.
        chosen_by: the mIoU that it was chosen by, which is the best of `validations`.
        every_epochs, episodes: how often was looked, and on how many episodes.
        metrics: under the protocol, on the same episodes as `Result.metrics`; None without evaluation.
        seconds: that this evaluation took; it is no part of `Timing`.
    """

    step: Count
    epoch: Annotated[float, Meta(ge=0)]
    chosen_by: Percent
    validations: Count
    every_epochs: Count
    episodes: Count
    metrics: Metrics | None = None
    seconds: Seconds | None = None


class Training(Struct):
    """What was trained; `seconds` is None in version 1, where `Timing.train_seconds` says it.

    A field of type `UnsetType` is in the file of those runs alone that have it, here and below.
    """

    steps: Count
    epochs: Annotated[float, Meta(ge=0)] | None = None
    images: Count | None = None
    batch_size: Count | None = None
    final_loss: float | None = None
    seconds: Seconds | None = None
    base_validation: BaseScores | None = None
    novel_validation: NovelScores | UnsetType = UNSET


class Timing(Struct):
    prepare_seconds: Seconds | None = None
    train_seconds: Seconds | None = None
    evaluate_seconds: Seconds | None = None
    figures_seconds: Seconds | None = None


class Cost(Struct):
    """Parameters, and multiply-adds of an episode in 1e9."""

    parameters: Count | None = None
    gmacs: Annotated[float, Meta(ge=0)] | None = None
    gmacs_dense: Annotated[float, Meta(ge=0)] | None = None


class Origin(Struct):
    """The checkpoint that a run began from, and what it had been trained on.

    `selected` says that it was chosen, and how: a kind of `train.select`.
    `digest`: first 16 hex digits of the file's SHA-256; of a base learner's alone.
    """

    path: str
    step: int | None = None
    fingerprint: str | None = None
    dataset: str | None = None
    fold: int | None = None
    method: str | None = None
    backbone: str | None = None
    base_classes: list[str] = []
    selected: str | UnsetType = UNSET
    digest: str | None = None


class BaseClassMetrics(Struct):
    """What a base learner scores on its own classes, in percent: no few-shot score, and in no table of such.

    Attributes:
        base_miou: mean over the base classes that are in an image.
        per_class: IoU of each; `background`: that of everything else.
        images: of the evaluation split, each with a base class.
        absent: base classes that are in none of them.
    """

    base_miou: Percent
    per_class: dict[str, Percent] = {}
    background: Percent | None = None
    images: Count = 0
    absent: list[str] = []


class EpisodesRecord(Struct):
    """What result.json says of `episodes.npz` (`fsseg.cell.episodes`): digest of the file, and what it holds."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    episodes: Count
    rounds: Count


class Result(Versioned):
    """`result.json`: written once, last; its presence means done.

    Attributes:
        episodes: the counts of the single episodes; None without evaluation, and of earlier versions.
        best_novel, best_base: other checkpoints of the same training (`train.select`); `metrics` is of the last one.
        base_classes: the score of a base learner, which has no `metrics`.
        base_learner: what its backbone came from (`backbone.base_training`).
        run: see `Identity`.
        checksum: of everything else in it (`checksum`); None before version 3.
    """

    cell: CellKey
    fingerprint: str
    protocol: dict[str, Any]
    report: str | None = None
    model: dict[str, Any] = {}
    metrics: Metrics | None = None
    episodes: EpisodesRecord | None = None
    best_novel: BestCheckpoint | UnsetType = UNSET
    best_base: BestCheckpoint | UnsetType = UNSET
    partial: bool = False
    missing_classes: list[str] = []
    dataset: DataRecord = msgspec.field(default_factory=DataRecord)
    training: Training | None = None
    cost: Cost | None = None
    checkpoint: Origin | None = None
    base_classes: BaseClassMetrics | None = None
    base_learner: Origin | None = None
    timing: Timing = msgspec.field(default_factory=Timing)
    peak_memory_bytes: Count | None = None
    provenance: dict[str, Any] = {}
    finished_at: str | None = None
    run: str | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        if not self.cell.is_whole:
            raise ValueError("names a cell that no run can have")

    @property
    def miou(self) -> float | None:
        return None if self.metrics is None else self.metrics.miou

    @property
    def best(self) -> dict[str, BestCheckpoint]:
        """The checkpoints beside the last one, by kind."""
        return {kind: found for kind in BEST if isinstance(found := getattr(self, kind), BestCheckpoint)}

    @property
    def is_partial(self) -> bool:
        """Whether a novel class could not be evaluated."""
        return self.partial or bool(self.missing_classes)

    @property
    def train_seconds(self) -> float | None:
        own = self.training.seconds if self.training else None
        return self.timing.train_seconds if own is None else own

    def score_line(self) -> str:
        """`mIoU 72.66  FB-IoU 84.51`, or `trained` for a cell that was not evaluated; of a base learner its own."""
        if self.base_classes is not None:
            return f"mIoU of base classes {self.base_classes.base_miou:.2f}"
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


class Tracked(Struct):
    """`trackers/<name>.json`: what a tracker has of a run (`fsseg.engine.trackers`).

    Attributes:
        run: see `Identity`.
        id: of the run in the tool; `place`: where people find it.
        rows: how many rows of metrics.csv it has.
        ended: state of the cell when the last start ended; None before.
        error: why the tracker was dropped in the last start.
    """

    run: str
    id: str | None = None
    rows: Count = 0
    place: str = ""
    ended: str | None = None
    error: str = ""


def read(path: Path, kind: type[T], limit: int = RECORD_BYTES) -> T | None:
    """A JSON file of at most `limit` bytes as its model; None if there is none.

    Raises:
        NotJson: it is no JSON.
        Unreadable: it cannot be opened, is of an unknown version, or a field makes no sense.
    """
    try:
        data = read_file(path, limit)
        if isinstance(kind, type) and issubclass(kind, Versioned):
            version = msgspec.json.decode(data, type=_Head).schema_version
            if version not in range(1, SCHEMA_VERSION + 1):
                raise Unreadable(f"has schema_version {version!r:.40}; this fsseg reads versions 1 to {SCHEMA_VERSION}")
        record = msgspec.json.decode(data, type=kind)
        if isinstance(record, Result) and record.schema_version >= 3:
            _check(msgspec.json.decode(data, type=dict[str, Any]))
        return record
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        raise Unreadable(_in_words(str(error))) from None
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJson(f"is not JSON ({error})") from None


def checksum(content: dict[str, Any]) -> str:
    """16 hex digits of a SHA-256 over a file's content, however it is indented; `checksum` itself does not count."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()[:16]


def _check(content: dict[str, Any]) -> None:
    if (named := content.get("checksum")) != (found := checksum(content)):
        raise Altered(f"was changed after it was written (checksum {found}, it names {named})")


def _in_words(text: str) -> str:
    """msgspec's "Expected `float`, got `str` - at `$.metrics.miou`", with the field first."""
    what, _, where = text.partition(" - at `$")
    name = where.rstrip("`").lstrip(".")
    return f"has a wrong {name}: {what[0].lower()}{what[1:]}" if name else what[0].lower() + what[1:]


def _plain(value: Any) -> Any:
    """What msgspec does not know: a kind of text (`fsseg.errors.Lines`), or a number of numpy or torch."""
    return str(value) if isinstance(value, str) else value.item()


def record_text(record: Struct) -> str:
    """A model as the content of its JSON file, in the newest version; a result gets its checksum.

    Numbers of numpy and torch become plain ones.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if isinstance(record, Versioned):
        record.schema_version = SCHEMA_VERSION
    text = json_text(msgspec.to_builtins(record, enc_hook=_plain))
    if isinstance(record, Result):
        # over what will be read back
        record.checksum = checksum(content := msgspec.json.decode(text, type=dict[str, Any]))
        text = json_text(content | {"checksum": record.checksum})
    return text


def write_record(path: Path, record: Struct) -> None:
    """Write a model as its JSON file, atomically (`record_text`).

    Raises:
        ValueError: it holds NaN or infinity.
        OSError: it cannot be written.
    """
    write_atomic(path, record_text(record))
