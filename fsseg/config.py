"""Dataclass schemas of every configuration group, and `validate`, which reports all semantic faults at once.

Hydra merges the YAML files under `conf/` and the command line into these classes, so that a misspelt key or a wrong
type fails at composition with the key named. `train.py` and the `fsseg` command are the callers. Nothing here imports
torch: composing and checking a grid of hundreds of cells must be quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from fsseg.errors import UserError, merge_errors

# The `documented where declared` rule: the string after a field is its documentation.


@dataclass
class DatasetConfig:
    """What every data set has; the subclasses add what only one of them needs."""

    name: str = MISSING
    """Name of the data set: a key of `fsseg.data.DATASETS`; part of the cell's identity."""
    root: str = MISSING
    """Folder that holds the data set in its official layout."""
    image_size: int = MISSING
    """Side of the square network input in pixels (473 and 641 in the literature)."""
    num_folds: int = 4
    """Folds the classes are cut into; fold f's novel classes are never trained on."""
    cache: str | None = None
    """Folder for the index; null keeps it beside the data, or under the user's cache folder if that is read-only."""
    scale_range: list[float] = field(default_factory=lambda: [0.9, 1.1])
    """Random scale of training images, relative to the fitted size: [smallest, largest]."""
    rotate_degrees: float = 0.0
    """Training images turn by a random angle within plus or minus this many degrees; 0 switches rotation off."""
    blur_probability: float = 0.0
    """Probability of a Gaussian blur (5 pixels) of a training image; 0 switches it off."""
    flip_probability: float = 0.5
    """Probability that a training image is mirrored left-right."""
    hue_shift: float = 0.0
    """All images of a training episode turn their hue by one random angle within plus or minus this share of the circle
    (0.5: any angle). It makes new classes out of few, for small data sets; 0 switches it off."""
    crop_keep: float = 0.85
    """A training crop is drawn again until it keeps this share of the foreground (at most 30 times)."""


@dataclass
class ShapesConfig(DatasetConfig):
    """`shapes5i`: generated on first use, in VOC2012's layout."""

    background_shift: float = 0.5
    """Probability that support and query of an episode stand on different background families, in [0, 1]."""
    ambient: float = 0.18
    """Share of the background's mean colour in an object's colour, in [0, 1]: how much the place an object stands in
    changes its looks."""
    num_train: int = 600
    """Training images to generate."""
    num_val: int = 400
    """Evaluation images to generate."""
    generator_seed: int = 0
    """Seed of the generated images (not of the training)."""


@dataclass
class PascalConfig(DatasetConfig):
    """`pascal5i`: VOC2012 with SBD, or with a ready-made SegmentationClassAug folder."""

    sbd_root: str | None = None
    """Folder of the SBD release (holds `cls/*.mat`); null looks in the usual places below `root`."""
    train_list: str | None = None
    """Training images: a name under ImageSets/Segmentation or a file; null derives the standard 10582 (train_aug)."""
    val_list: str = "val"
    """Evaluation images: a name under ImageSets/Segmentation or a file."""


@dataclass
class CocoConfig(DatasetConfig):
    """`coco20i`: COCO images with `instances_*.json`."""

    year: int = 2014
    """2014 (every published result) or 2017 (the same images, cut differently)."""
    contiguous_folds: bool = False
    """Fold f = classes 20f..20f+19 instead of the standard f, f+4, f+8, ..."""


@dataclass
class BackboneConfig:
    """Where features come from."""

    name: str = MISSING
    """tiny, resnet18, resnet50 or resnet101; part of the cell's identity."""
    pretrained: bool = True
    """Start from torchvision's IMAGENET1K_V1 weights; false starts from random ones (no published result does)."""
    weights: str | None = None
    """A file with the pretrained state dict; null takes torch's cache, or downloads there."""
    trainable_layers: int = 0
    """How many of the last stages train (0 freezes the backbone, as every published result does; 5 trains all)."""


@dataclass
class MethodConfig:
    """What every method has (config key `model`)."""

    name: str = MISSING
    """abcb, baseline or prototype; part of the cell's identity."""


@dataclass
class NeckConfig(MethodConfig):
    """What the methods with a correlation neck share."""

    channels: int = 528
    """Width C of the features after the neck. 528 reproduces the paper's parameter counts."""
    heads: int = 4
    """Attention heads. OPEN in the paper; changes neither parameters nor MACs."""
    neck_prior: bool = True
    """Neck holds the layer4 cosine prior map (maximum over support foreground). OPEN in the paper."""
    neck_cross_attention: bool = True
    """Neck holds cross-attention from the query to the support's foreground. OPEN in the paper."""
    neck_self_attention: bool = True
    """Neck holds self-attention on the support. OPEN in the paper."""
    neck_pool: int = 2
    """The neck's attentions run on maps average-pooled by this factor (budget: 35 GMACs). OPEN in the paper."""
    vanished_mask: str = "best_cell"
    """What a support mask too small for one feature cell keeps: best_cell (its best covered one) or error. OPEN."""


@dataclass
class BaselineConfig(NeckConfig):
    """`method=baseline`: backbone, neck and query prediction; the paper's baseline."""


@dataclass
class AbcbConfig(NeckConfig):
    """`method=abcb`: the baseline with support modulation and information cleansing in `iterations` rounds."""

    iterations: int = 3
    """Rounds T; the answer is P of round T."""
    loss_weight: float = 0.2
    """lambda: weight of the losses of the P_hat predictions."""
    modulation: bool = True
    """Support modulation (SM). Off, with cleansing off: the baseline."""
    cleansing: bool = True
    """Information cleansing (IC)."""
    pixel_evolution: bool = True
    """E_p, the pixel-wise evolution, in support modulation."""
    structure_evolution: bool = True
    """E_s, the structure-wise evolution, in support modulation."""
    histogram_bins: int = 16
    """L, bins of the structure histograms."""
    histogram_range: str = "zero_one"
    """Range of the cosine histogram: zero_one clamps negative cosines into bin 0, minus_one_one spans all. OPEN."""
    shot_fusion: str = "union"
    """K shots: union (S_QP is the foreground tokens of all shots, query features averaged). OPEN in the paper."""


@dataclass
class PrototypeConfig(MethodConfig):
    """`method=prototype`: training-free cosine matching with the mean support foreground feature."""

    layer: str = "layer3"
    """Backbone stage whose features are matched."""
    threshold: str = "otsu"
    """How the similarity map is cut: otsu (per query image) or background (nearer to the foreground mean)."""


@dataclass
class ProtocolConfig:
    """Rules on which published codes differ; all of them are recorded with every result."""

    name: str = MISSING
    """Name of the protocol; cells of different protocols are never averaged together."""
    novel_in_training: str = "drop"
    """Training images with novel pixels: drop the image, or keep it with them as background, or as ignore."""
    min_pixels: int = 2048
    """Smallest object, in pixels at original size, for support and query lists (2*32*32); 0 lists everything."""
    query_order: str = "cycle"
    """Queries at test: cycle or list_cycle over (image, class) pairs, class_uniform, or first_n images of the list."""
    repeat_support: bool = False
    """Whether the K supports of an episode may repeat."""
    num_episodes: int = 1000
    """Evaluation episodes per seed."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Evaluation seeds; mean and standard deviation are over them."""
    scoring_size: str = "original"
    """Where predictions are compared with the truth: original or network size."""
    ignore_in_loss: bool = True
    """Pixels of 255 are left out of the loss (they never count in the score); false trains them as background."""
    episodes_file: str | None = None
    """A file written by `fsseg episodes`: evaluate exactly these episodes."""


@dataclass
class TrainConfig:
    """The training recipe."""

    enabled: bool = True
    """false evaluates `checkpoint` (or, for a training-free method, the method itself)."""
    epochs: int = MISSING
    """Epochs; in one epoch each training image is the query once."""
    max_steps: int | None = None
    """Stop after this many steps (the schedule then ends there too); null trains all epochs."""
    batch_size: int = MISSING
    """Episodes per step."""
    lr: float = MISSING
    """Learning rate of SGD at the start."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD."""
    poly_power: float = 0.9
    """lr falls as (1 - step / steps) ** poly_power, per step."""
    warmup_steps: int = 0
    """Steps over which lr rises linearly from 0; no published recipe here uses it."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; null leaves it alone."""
    amp: str = "off"
    """Mixed precision on a GPU: off, bf16 or fp16."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is written when the last one is this old; 0 writes one after every step."""
    checkpoint_epochs: int = 1
    """A checkpoint is also written at the end of every n-th epoch; 0 leaves it to checkpoint_minutes alone."""


@dataclass
class EvalConfig:
    """How evaluation runs, and what it records besides the score; nothing here changes the score."""

    enabled: bool = True
    """Evaluate on the novel classes after training."""
    batch_size: int = 8
    """Episodes evaluated together."""
    background_shifts: list[float] = field(default_factory=list)
    """shapes5i: evaluate the model once more at each of these values of dataset.background_shift; the result holds the
    scores under metrics.by_background_shift."""
    diagnostics: bool = False
    """Also record the distance between support and query foreground features (Figure 5 of the paper) and the model's
    cost."""


@dataclass
class LoggerConfig:
    """What is written besides result.json."""

    tensorboard: bool = True
    """Write TensorBoard events into the run directory."""
    every_steps: int = 10
    """Steps between two rows of metrics.csv."""
    figures: int = 8
    """Episodes drawn as support | query | truth | prediction sheets; 0 draws none."""
    steps: bool = False
    """Also draw those episodes with the prediction after every step: QP, SM, IC (Figure 7 of the paper)."""


@dataclass
class SyncConfig:
    """Copies of run directories on a remote store; a store that fails never fails a run."""

    url: str | None = None
    """Where copies go: s3://bucket/folder, gs://..., sftp://host/folder, file:///folder; null keeps none."""
    checkpoints: bool = False
    """Copy checkpoints of finished cells too (up to 500 MB each); on preemption the newest one is copied anyway."""
    attempts: int = 4
    """How often a file is tried, with growing pauses, before it is left to `fsseg sync`."""
    timeout_seconds: float = 100.0
    """Time that the end of a run spends on copying at most; what is left over is for `fsseg sync`."""


@dataclass
class Config:
    """One cell: everything `fsseg.run.run` needs to know."""

    name: str = "runs"
    """Name of the experiment: the folder under `output_dir`, and what `fsseg aggregate` is pointed at."""
    output_dir: str = "outputs"
    """Folder that holds all experiments."""
    fold: int = MISSING
    """Fold whose classes are novel."""
    shot: int = MISSING
    """K, annotated support images per episode."""
    seed: int = 0
    """Seed of everything random in training. Evaluation has its own: protocol.seeds."""
    variant: str | None = None
    """Name of this variant in the run directory; null makes one from the overrides that are not grid keys."""
    report: str | None = None
    """Which table or plot `fsseg aggregate` makes of these runs besides the usual tables: a key of
    `fsseg.report.experiments.REPORTS`. The files under conf/experiment set it."""
    checkpoint: str | None = None
    """A checkpoint to evaluate (with train.enabled=false) or to start from."""
    redo: bool = False
    """true trains a finished cell again, and replaces a cell made with other settings."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    num_workers: int = -1
    """Processes that load data; -1 chooses from the machine's cores, 0 loads in the main process."""
    num_threads: int = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    lease_seconds: float = 300.0
    """A run that has given no sign of life for so long has lost its cell: another process may take it over."""
    log_level: str = "info"
    """Level of train.log and of the terminal: debug, info, warning or error."""
    dataset: DatasetConfig = MISSING
    backbone: BackboneConfig = MISSING
    model: MethodConfig = MISSING
    protocol: ProtocolConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)


# Keys that cannot change the numbers of a cell: left out of its fingerprint and of the `variant` in its directory name.
# A trailing dot means everything below.
NEUTRAL_KEYS = (
    "output_dir", "redo", "report", "device", "num_workers", "num_threads", "log_level", "logger.", "eval.batch_size",
    "dataset.root", "dataset.sbd_root", "dataset.cache", "backbone.weights", "train.checkpoint_minutes",
    "train.checkpoint_epochs", "lease_seconds",
    "sync.",
    "protocol.episodes_file", "checkpoint",
)  # fmt: skip
# The last two are paths as well; what they hold enters the fingerprint by content (see fsseg.cell).


def register() -> None:
    """Put the schemas where the files under `conf/` find them, and the resolvers they use."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, node in {"shapes5i": ShapesConfig, "pascal5i": PascalConfig, "coco20i": CocoConfig}.items():
        store.store(group="schema/dataset", name=name, node=node)
    for name, node in {"abcb": AbcbConfig, "baseline": BaselineConfig, "prototype": PrototypeConfig}.items():
        store.store(group="schema/method", name=name, node=node)
    store.store(group="schema/backbone", name="backbone", node=BackboneConfig)
    store.store(group="schema/protocol", name="protocol", node=ProtocolConfig)
    if not OmegaConf.has_resolver("by_dataset"):
        OmegaConf.register_new_resolver("by_dataset", _by_dataset)
        OmegaConf.register_new_resolver("by_backbone", _by_backbone)
        OmegaConf.register_new_resolver("by_rounds", _by_rounds)


def _by_dataset(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_dataset:{coco20i: 2, other: 1}}`: the value for the data set at hand; the key `other` is the rest."""
    name = _root_.dataset.name
    return values[name] if name in values else values["other"]


def _by_backbone(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_backbone:{tiny: 64, other: 528}}`: likewise for the backbone."""
    name = _root_.backbone.name
    return values[name] if name in values else values["other"]


def _by_rounds(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_rounds:{one: 0.06, several: 0.02}}`: one value for ABCB of T > 1, one for all that predict once."""
    model = _root_.model
    several = OmegaConf.select(model, "modulation", default=False) and model.iterations > 1
    return values["several" if several else "one"]


STRIDES = {"tiny": 4, "resnet18": 8, "resnet50": 8, "resnet101": 8}
"""Pixels per feature cell of each backbone; an image side fits if (side - 1) is a multiple of it."""

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
    "model.shot_fusion": ("union",),
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


def faults(cfg: Config) -> list[UserError]:
    """All semantic faults of a composed configuration, none of which touches the data itself but for its folder."""
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        return [UserError(f"{key} has no value", f"set {key}=...") for key in missing]
    found: list[UserError] = []

    def add(what: str, fix: str) -> None:
        found.append(UserError(what, fix))

    def get(key: str) -> Any:
        return OmegaConf.select(cfg, key, default=None)  # type: ignore[arg-type]

    for key in _POSITIVE:
        if (value := get(key)) is not None and not value > 0:
            add(f"{key}={value} must be greater than 0", f"set {key} to a positive number")
    for key in _NOT_NEGATIVE:
        if (value := get(key)) is not None and not value >= 0:
            add(f"{key}={value} must not be negative", f"set {key} to 0 or more")
    if shifts := list(cfg.eval.background_shifts):
        if not all(0 <= shift <= 1 for shift in shifts):
            add(f"eval.background_shifts={shifts} are not within 0 and 1", "set e.g. eval.background_shifts=[0,1]")
        if get("dataset.background_shift") is None:
            add(
                f"eval.background_shifts={shifts}: {cfg.dataset.name} knows no background families",
                "leave eval.background_shifts out, or choose dataset=shapes5i",
            )
        elif cfg.protocol.episodes_file is not None:
            add(
                f"eval.background_shifts={shifts} cannot change the episodes of protocol.episodes_file",
                "leave one of the two out",
            )
    for key in _PROBABILITIES:
        if (value := get(key)) is not None and not 0 <= value <= 1:
            add(f"{key}={value} is not within 0 and 1", f"set {key} to a share between 0 and 1")
    for key, allowed in _CHOICES.items():
        if (value := get(key)) is not None and value not in allowed:
            add(f"{key}={value} is not a choice", f"set {key} to one of: {', '.join(map(str, allowed))}")
    for key in ("train.lr", "train.weight_decay"):
        if (value := get(key)) is not None and not math.isfinite(value):
            add(f"{key}={value} is not a finite number", f"set {key} to a finite number")

    for key in _unknown_keys(cfg):  # Hydra lets `+key=value` past the schema
        add(f"{key}: there is no such configuration key", "leave it out: what the schema does not know, nothing reads")
    if cfg.sync.url is not None:
        from fsseg.sweep.store import url_faults

        found += url_faults(cfg.sync.url)
    classes = {"coco20i": 80}.get(cfg.dataset.name, 20)
    if cfg.dataset.num_folds < 2 or classes % cfg.dataset.num_folds:
        add(
            f"dataset.num_folds={cfg.dataset.num_folds} does not cut {classes} classes into equal parts",
            "set dataset.num_folds=4, as every published result does",
        )
    if not 0 <= cfg.fold < cfg.dataset.num_folds:
        add(
            f"fold={cfg.fold} does not exist: {cfg.dataset.name} has folds 0 to {cfg.dataset.num_folds - 1}",
            f"set fold to one of: {', '.join(map(str, range(cfg.dataset.num_folds)))}",
        )
    stride = STRIDES.get(cfg.backbone.name)
    if stride is None:
        add(f"backbone.name={cfg.backbone.name} is unknown", f"choose backbone= one of: {', '.join(STRIDES)}")
    elif cfg.dataset.image_size > 0 and (cfg.dataset.image_size - 1) % stride:
        low = (cfg.dataset.image_size - 1) // stride * stride + 1
        add(
            f"dataset.image_size={cfg.dataset.image_size} does not fit backbone {cfg.backbone.name}: "
            f"size - 1 must be a multiple of {stride}",
            f"set dataset.image_size to {low if low > 1 else low + stride} or {low + stride}",
        )
    low_high = list(cfg.dataset.scale_range)
    if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
        add(f"dataset.scale_range={low_high} is not [smallest, largest]", "set e.g. dataset.scale_range=[0.9,1.1]")
    if not cfg.protocol.seeds or len(set(cfg.protocol.seeds)) != len(cfg.protocol.seeds):
        add(
            f"protocol.seeds={list(cfg.protocol.seeds)} must be different numbers, at least one",
            "set e.g. protocol.seeds=[0,1,2]",
        )
    if (heads := get("model.heads")) and (channels := get("model.channels")) and heads > 0 and channels % heads:
        add(
            f"model.heads={heads} does not divide model.channels={channels}",
            "choose a number of heads that divides the width",
        )
    if get("model.cleansing") and not get("model.modulation"):
        add(
            "model.cleansing=true needs model.modulation=true: IC cleans what SM added",
            "set model.cleansing=false as well",
        )
    if get("model.modulation") and not (get("model.pixel_evolution") or get("model.structure_evolution")):
        add(
            "support modulation has neither E_p nor E_s",
            "switch one of model.pixel_evolution, model.structure_evolution on",
        )
    if not cfg.train.enabled and cfg.checkpoint is None and cfg.model.name != "prototype":
        add(
            "train.enabled=false has nothing to evaluate",
            "name a checkpoint: checkpoint=outputs/.../checkpoints/last.pt",
        )
    if not cfg.train.enabled and not cfg.eval.enabled:
        add("train.enabled=false and eval.enabled=false leave nothing to do", "switch one of them on")
    if cfg.checkpoint is not None and not Path(cfg.checkpoint).is_file():
        add(f"checkpoint={cfg.checkpoint} is not a file", "give the path of a checkpoints/last.pt")
    if cfg.protocol.episodes_file is not None and not Path(cfg.protocol.episodes_file).is_file():
        add(f"protocol.episodes_file={cfg.protocol.episodes_file} is not a file", "write one with `fsseg episodes`")
    if cfg.backbone.weights is not None and not Path(cfg.backbone.weights).is_file():
        add(f"backbone.weights={cfg.backbone.weights} is not a file", "give the path of the weights, or leave it out")
    for key, value in (("name", cfg.name), ("variant", cfg.variant)):
        if value is not None and (not value or "/" in value or value.startswith(".") or len(value) > 200):
            add(f"{key}={value!r} is no folder name", f"set {key} to a plain name without slashes")
    if cfg.variant == "default":
        add("variant=default is the name of a cell without overrides", "leave it out, or set another name")
    if cfg.protocol.novel_in_training == "ignore" and not cfg.protocol.ignore_in_loss:
        add(
            "protocol.novel_in_training=ignore needs protocol.ignore_in_loss=true: 255 would be trained as background",
            "set protocol.ignore_in_loss=true, or protocol.novel_in_training=background",
        )
    if len(get("dataset.scale_range")) == 2 and not all(math.isfinite(s) for s in get("dataset.scale_range")):
        add(f"dataset.scale_range={low_high} is not finite", "set e.g. dataset.scale_range=[0.9,1.1]")
    for key, least, most in _WITHIN:
        if (value := get(key)) is not None and not least <= value <= most:
            add(f"{key}={value} is not within {least} and {most}", f"set {key} to a number from {least} to {most}")
    return found


def _unknown_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    known = {f.name for f in fields(kind)} if is_dataclass(kind := OmegaConf.get_type(node)) else set(node)
    below = [key for name in node for key in _unknown_keys(node._get_node(name), f"{prefix}{name!s}.")]
    return [prefix + str(name) for name in node if name not in known] + below


def validate(cfg: Config) -> None:
    """Check everything that types cannot.

    Raises:
        UserError: with every fault found, in one go.
    """
    if found := faults(cfg):
        raise merge_errors(found)
