"""Dataclass schemas of every configuration group: each field with its type, what it may be, and what it means.

Hydra merges the YAML files under `conf/` and the command line into these classes, so that a misspelt key or a wrong
type fails at composition with the key named. `fsseg.config.checks` holds the values against the constraints. A data
set, a method and a backbone also say here which class they build. Nothing here imports torch: composing and checking a
grid of hundreds of cells must be quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Annotated, Any, ClassVar, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from fsseg.config import constraints
from fsseg.config.constraints import FILE_PATH, NAME, SEED, Share, above, one_of, within
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import UserError
from fsseg.process.command import train_line

REPORTS = ("table3_components", "table4_evolution", "table5_iterations", "table6_rounds", "figure5_distance",
           "figure7_steps", "background_bias")  # fmt: skip
"""The keys of `fsseg.report.experiments.REPORTS`, which nothing below the reports may import; a test compares them."""

T = TypeVar("T")
C = TypeVar("C", bound="Choice")


class Choice:
    """What a data set, a backbone or a method has beside its settings, as class variables: they are no keys."""

    GROUP: ClassVar[str]
    """Its folder under `conf/`."""
    NAMES: ClassVar[tuple[str, ...]] = ()
    """The names under which this class may be chosen."""
    TARGET: ClassVar[str]
    """What it builds, module:class."""

    @classmethod
    def choices(cls: type[C]) -> dict[str, type[C]]:
        """Name -> schema, for all of the group."""
        return {name: schema for schema in family(cls) for name in vars(schema).get("NAMES", ())}

    @classmethod
    def named(cls: type[C], name: str) -> type[C]:
        """The schema of a name.

        Raises:
            UserError: there is none; the advice lists the names.
        """
        if (found := cls.choices().get(name)) is None:
            key = "model" if cls.GROUP == "method" else cls.GROUP
            raise UserError(
                f"{key}.name={constraints.shown(name)} is unknown",
                f"choose {cls.GROUP}= one of: {', '.join(cls.choices())}",
            )
        return found

    @classmethod
    def target(cls, name: str) -> Any:
        """The class that the schema of a name builds, imported now.

        Raises:
            UserError: as `named`.
        """
        module, _, attribute = cls.named(name).TARGET.partition(":")
        return getattr(import_module(module), attribute)


def family(base: type[T]) -> Iterator[type[T]]:
    """A schema class and all that are derived from it."""
    yield base
    for derived in base.__subclasses__():
        yield from family(derived)


# The string after a field is its documentation.


@dataclass
class DatasetConfig(Choice):
    """What every data set has; the subclasses add what only one of them needs."""

    GROUP = "dataset"
    NUM_CLASSES: ClassVar[int] = 20
    """Classes that the folds are cut from; 0 where the source finds them on the disk."""
    FOLDER: ClassVar[str] = ""
    """Its place in a folder that holds all data sets; its name if empty."""
    LISTS_ARE_FILES: ClassVar[bool] = False
    """Whether `train_list` and `val_list` are files always; else they may be names of the data set's own lists."""
    name: Annotated[str, NAME] = MISSING
    """Name of the data set: one of `NAMES`; part of the cell's identity."""
    root: Annotated[str, FILE_PATH] = MISSING
    """Folder that holds the data set in its official layout; `${data_root:<name>}` asks `fsseg.config.machine`."""
    image_size: Annotated[int, within(9, 4097)] = MISSING
    """Side of the square network input in pixels (473 and 641 in the literature)."""
    num_folds: Annotated[int, within(2, 80)] = 4
    """Folds the classes are cut into; fold f's novel classes are never trained on."""
    cache: Annotated[str | None, FILE_PATH] = None
    """Folder for the index; null keeps it beside the data, or under the user's cache folder if that is read-only."""
    scale_range: Annotated[list[float], constraints.SCALES] = field(default_factory=lambda: [0.9, 1.1])
    """Random scale of training images, [smallest, largest]: relative to the fitted size, or with protocol.fit=pfenet to
    their own size; without effect with protocol.fit=squash."""
    rotate_degrees: Annotated[float, within(0, 360)] = 0.0
    """Training images turn by a random angle within plus or minus this many degrees; 0 switches rotation off."""
    blur_probability: Share = 0.0
    """Probability of a Gaussian blur (5 pixels) of a training image; 0 switches it off."""
    flip_probability: Share = 0.5
    """Probability that a training image is mirrored left-right."""
    crop_keep: Share = 0.85
    """A training crop is drawn again until it keeps this share of the foreground (at most 30 times)."""

    @classmethod
    def interleaved(cls, dataset: DatasetConfig) -> bool:
        """Whether fold f holds the classes f, f + num_folds, ...; else the f-th block of consecutive ones."""
        return False


@dataclass
class ShapesConfig(DatasetConfig):
    """`shapes5i`: generated on first use, in VOC2012's layout."""

    NAMES = ("shapes5i",)
    TARGET = "fsseg.data.sources.shapes:ShapesSource"
    background_shift: Share = 0.5
    """Probability that support and query of an episode stand on different background families, in [0, 1]."""
    ambient: Share = 0.18
    """Share of the background's mean colour in an object's colour, in [0, 1]: how much the place an object stands in
    changes its looks."""
    num_train: Annotated[int, within(1, 1_000_000)] = 600
    """Training images to generate."""
    num_val: Annotated[int, within(1, 1_000_000)] = 400
    """Evaluation images to generate."""
    generator_seed: Annotated[int, SEED] = 0
    """Seed of the generated images (not of the training)."""


@dataclass
class PascalConfig(DatasetConfig):
    """`pascal5i`: VOC2012 with SBD, or with a ready-made SegmentationClassAug folder."""

    NAMES = ("pascal5i",)
    TARGET = "fsseg.data.sources.voc:PascalSource"
    FOLDER = "VOCdevkit/VOC2012"
    sbd_root: Annotated[str | None, FILE_PATH] = None
    """Folder of the SBD release (holds `cls/*.mat`); null looks in the usual places below `root`."""
    train_list: Annotated[str | None, FILE_PATH] = None
    """Training images: train_aug_10582 or merged_5953 (derived from the official lists), a name under
    ImageSets/Segmentation, or a file; null is train_aug_10582. `protocol.train_pool` sets it."""
    val_list: Annotated[str, FILE_PATH] = "val"
    """Evaluation images: a name under ImageSets/Segmentation or a file."""


@dataclass
class CocoConfig(DatasetConfig):
    """`coco20i`: COCO images with `instances_*.json`."""

    NAMES = ("coco20i",)
    TARGET = "fsseg.data.sources.coco:CocoSource"
    FOLDER = "coco"
    NUM_CLASSES = 80
    LISTS_ARE_FILES = True
    year: Annotated[int, one_of(2014, 2017)] = 2014
    """2014 (every published result) or 2017 (the same images, cut differently)."""
    contiguous_folds: bool = False
    """Fold f = classes 20f..20f+19 instead of the standard f, f+4, f+8, ..."""
    coco_masks: Annotated[str, one_of("painted", "union", "maps")] = "painted"
    """How masks are made: painted (instances in file order over each other, crowds left out: the published lists),
    union (all instances of a class; pixels that only a crowd covers are 255), or maps (the label PNGs of
    `label_maps`, as they are)."""
    label_maps: Annotated[str | None, FILE_PATH] = None
    """With coco_masks=maps: the folder that holds `{train,val}{year}/<image id>.png`; null takes annotations/."""
    train_list: Annotated[str | None, FILE_PATH] = None
    """A file that names the training images to use, in its order; null takes all."""
    val_list: Annotated[str | None, FILE_PATH] = None
    """The same for evaluation; `protocol.query_order=first_n` needs it, because the published list is shuffled."""

    @classmethod
    def interleaved(cls, dataset: DatasetConfig) -> bool:
        return not getattr(dataset, "contiguous_folds", False)


@dataclass
class OwnConfig(DatasetConfig):
    """What a user's own data sets share: classes are found on the disk, novel ones and splits are chosen here."""

    NUM_CLASSES = 0
    LISTS_ARE_FILES = True
    num_folds: Annotated[int, within(1, 1000)] = 2
    """Folds that the classes, sorted by name, are cut into; the first ones hold one class more if it does not come out
    even. 1: all classes are novel, for evaluations without training."""
    novel: list[str] = field(default_factory=list)
    """Names of the novel classes, in place of folds; fold is then 0."""
    train_list: Annotated[str | None, FILE_PATH] = None
    """A file that names the training images, one a line; null takes those that are not evaluated."""
    val_list: Annotated[str | None, FILE_PATH] = None
    """The same for evaluation; null takes those that `train_list` does not name, or else `val_share` of all images."""
    val_share: Annotated[float, above(0, 1)] = 0.3
    """Without lists: share of the images that are evaluated, drawn by `split_seed`; the others are trained on. 1
    evaluates all of them, and leaves none to train on."""
    split_seed: Annotated[int, SEED] = 0
    """Seed of that draw."""


@dataclass
class FolderConfig(OwnConfig):
    """`folder`: a folder of the user's own, with `images/`, and `masks/<class>/<name>.png` or indexed PNGs."""

    NAMES = ("folder",)
    TARGET = "fsseg.data.sources.folder:FolderSource"


@dataclass
class CocoJsonConfig(OwnConfig):
    """`coco_json`: a file in COCO's format, as annotation tools export it."""

    NAMES = ("coco_json",)
    TARGET = "fsseg.data.sources.coco_json:CocoJsonSource"
    annotations: Annotated[str, FILE_PATH] = MISSING
    """The JSON file."""
    val_annotations: Annotated[str | None, FILE_PATH] = None
    """A second one: its images are evaluated, and those of `annotations` trained on."""
    images: Annotated[str | None, FILE_PATH] = None
    """Folder that the file names in them are relative to; null takes the folder `images` beside each file, or else the
    file's own."""
    crowds: Annotated[str, one_of("ignore", "object")] = "ignore"
    """Annotations with iscrowd=1: ignore (255, as COCO means it) or object (some tools mark every brush mask so)."""


@dataclass
class CrossDomainConfig(OwnConfig):
    """Data sets of cross-domain few-shot segmentation: all classes novel, all images evaluated."""

    NAMES = ("isic", "deepglobe", "chest_xray", "suim")
    TARGET = "fsseg.data.sources.cross_domain:CrossDomainSource"


@dataclass
class Fss1000Config(OwnConfig):
    """`fss1000`: 1000 classes of ten images; 240 are tested on, and the others may be trained on."""

    NAMES = ("fss1000",)
    TARGET = "fsseg.data.sources.cross_domain:Fss1000Source"
    test_classes: Annotated[str, FILE_PATH] = "fss_test_set.txt"
    """A file with the names of the novel classes, one a line; also relative to `root`."""
    val_classes: Annotated[str | None, FILE_PATH] = None
    """The same for the classes that are neither trained on nor tested; null trains on them as well."""


@dataclass
class DataConfig:
    """Where data lie on this machine; see `fsseg.config.machine`."""

    roots: Annotated[dict[str, str | None], constraints.FOLDERS] = field(
        default_factory=lambda: dict.fromkeys(DatasetConfig.choices())
    )
    """Folder of each data set, for lines of several: `data.roots.pascal5i=/a data.roots.coco20i=/b`. null takes the
    environment's FSSEG_DATA, machine.yaml, or the folder data/. `dataset.root=` wins."""


@dataclass
class BackboneConfig(Choice):
    """Where features come from."""

    GROUP = "backbone"
    STRIDE: ClassVar[int] = 8
    """Pixels per feature cell; an image side fits if it, or (side - 1), is a multiple of it."""
    PROVIDES: ClassVar[frozenset[str]] = frozenset()
    """What it can do besides giving its three stages: `stages` (layer4 can run again on other input, and cells are
    points, see `Backbone.patches`),
    `blocks` (the output of every residual block, without dilation)."""
    name: Annotated[str, NAME] = MISSING
    """Name of the backbone: one of `NAMES`; part of the cell's identity."""
    pretrained: bool = True
    """Start from published weights (of a ResNet torchvision's IMAGENET1K_V1); false starts from random ones, which no
    published result does."""
    weights: Annotated[str | None, FILE_PATH] = None
    """A file with the pretrained state dict; null takes torch's cache (timm's for its models), or downloads there. A
    deep stem (`ResNetConfig.stem`) needs a file."""
    trainable_layers: Annotated[int, within(0, 5)] = 0
    """How many of the last stages train (0 freezes the backbone, as every published result does; 5 trains all)."""
    base_training: bool = False
    """Start from the backbone of a base learner, which was trained on the base classes of the fold (BAM's stage 1). It
    is a cell of its own, made first if it is not there, by the recipe of `base_training`."""

    @classmethod
    def cells(cls, backbone: BackboneConfig) -> tuple[int, bool]:
        """Pixels from one feature cell to the next, and whether cells are patches (see `Backbone.patches`)."""
        return cls.STRIDE, False

    @classmethod
    def provides(cls, backbone: BackboneConfig) -> frozenset[str]:
        """`PROVIDES`, for these settings."""
        return cls.PROVIDES


@dataclass
class TinyConfig(BackboneConfig):
    """`backbone=tiny`: a small CNN for CPUs."""

    NAMES = ("tiny",)
    TARGET = "fsseg.model.backbones.tiny:TinyBackbone"
    STRIDE = 4
    PROVIDES = frozenset({"stages", "blocks"})


@dataclass
class ResNetConfig(BackboneConfig):
    """torchvision's ResNets at stride 8."""

    NAMES = ("resnet18", "resnet50", "resnet101")
    TARGET = "fsseg.model.backbones.torchvision:ResNetBackbone"
    PROVIDES = frozenset({"stages", "blocks"})
    DEEP: ClassVar[tuple[str, ...]] = ("resnet50", "resnet101")
    """Those made of bottlenecks, of which there are weights with a deep stem."""
    stem: Annotated[str, one_of("plain", "deep")] = "plain"
    """First layers: plain (torchvision's 7x7 convolution) or deep (three of 3x3, and PSPNet's dilations: the layout of
    resnet50_v2.pth, from which PFENet, BAM, HDMNet and SCCAN start; weights by `weights`)."""

    @staticmethod
    def deep_weights(name: str) -> str:
        """In words: the file of a deep stem, and where it is to be had. torchvision has none."""
        return f"{name}_v2.pth, to which the repositories of PFENet and BAM link on their pages"


@dataclass
class TimmConfig(BackboneConfig):
    """Models of the package timm: convolutional ones at stride 8, and plain vision transformers."""

    NAMES = ("timm", "mobilenet", "convnext_tiny", "dinov2_s", "dinov2_b", "dinov3_b")
    TARGET = "fsseg.model.backbones.timm_models:TimmBackbone"
    PROVIDES = frozenset({"stages"})
    model: Annotated[str, NAME] = MISSING
    """Name of the model in timm, with or without the tag of its weights, e.g. vit_base_patch14_dinov2.lvd142m."""
    depths: Annotated[list[int] | None, constraints.DEPTHS] = None
    """Of a transformer: after how many blocks its three maps are taken; null: half, three quarters, and all."""
    normalisation: Annotated[str, one_of("model", "imagenet")] = "model"
    """Mean and deviation that images are normalised with: those that timm states for the model, or ImageNet's."""

    @classmethod
    def cells(cls, backbone: BackboneConfig) -> tuple[int, bool]:
        """By the model's name, for nothing here may import timm; `TimmBackbone` compares it with the model."""
        name = str(getattr(backbone, "model", ""))
        if (patch := re.search(r"patch(\d+)", name)) is not None:
            return int(patch[1]), True
        return cls.STRIDE, name.startswith("convnext")  # its first layers cut the image into patches

    @classmethod
    def provides(cls, backbone: BackboneConfig) -> frozenset[str]:
        """No stages where cells are patches: a transformer's blocks are none, and what runs ConvNeXt's again reads its
        masks with corners aligned. Where the model is not known yet, the backbone's name says so."""
        patches = cls.cells(backbone)[1] or backbone.name.startswith(("dino", "convnext"))
        return frozenset() if patches else cls.PROVIDES


@dataclass
class MethodConfig(Choice):
    """What every method has (config key `model`)."""

    GROUP = "method"
    TRAINS: ClassVar[bool] = True
    """Whether the method has anything to train."""
    NEEDS: ClassVar[frozenset[str]] = frozenset()
    """What its backbone must provide (`BackboneConfig.PROVIDES`)."""
    TAKES_HEAD: ClassVar[bool] = False
    """Whether it takes over a base learner's head with its backbone, and keeps both as they are."""
    name: Annotated[str, NAME] = MISSING
    """Name of the method: one of `NAMES`; part of the cell's identity."""


@dataclass
class NeckConfig(MethodConfig):
    """What the methods with a correlation neck share."""

    channels: Annotated[int, within(1, 4096)] = 528
    """Width C of the features after the neck. 528 reproduces the paper's parameter counts."""
    heads: Annotated[int, within(1, 4096)] = 4
    """Attention heads. OPEN in the paper; changes neither parameters nor MACs."""
    neck_prior: bool = True
    """Neck holds the layer4 cosine prior map (maximum over support foreground). OPEN in the paper."""
    neck_cross_attention: bool = True
    """Neck holds cross-attention from the query to the support's foreground. OPEN in the paper."""
    neck_self_attention: bool = True
    """Neck holds self-attention on the support. OPEN in the paper."""
    neck_pool: Annotated[int, within(1, 128)] = 2
    """The neck's attentions run on maps average-pooled by this factor (budget: 35 GMACs). OPEN in the paper."""
    vanished_mask: Annotated[str, one_of("best_cell", "error")] = "best_cell"
    """What a support mask too small for one feature cell keeps: best_cell (its best covered one) or error. OPEN."""
    shot_fusion: Annotated[str, one_of("union", "logits")] = "union"
    """K shots: union (S_QP is the foreground tokens of all shots, query features averaged) or logits (each shot answers
    on its own, logits averaged in every round). OPEN in the paper."""


@dataclass
class BaselineConfig(NeckConfig):
    """`method=baseline`: backbone, neck and query prediction; the paper's baseline."""

    NAMES = ("baseline",)
    TARGET = "fsseg.model.baseline:Baseline"


@dataclass
class AbcbConfig(NeckConfig):
    """`method=abcb`: the baseline with support modulation and information cleansing in `iterations` rounds."""

    NAMES = ("abcb",)
    TARGET = "fsseg.model.abcb:Abcb"
    iterations: Annotated[int, within(1, 100)] = 3
    """Rounds T; the answer is P of round T."""
    loss_weight: Annotated[float, within(0, 1000)] = 0.2
    """lambda: weight of the losses of the P_hat predictions."""
    modulation: bool = True
    """Support modulation (SM). Off, with cleansing off: the baseline."""
    cleansing: bool = True
    """Information cleansing (IC)."""
    pixel_evolution: bool = True
    """E_p, the pixel-wise evolution, in support modulation."""
    structure_evolution: bool = True
    """E_s, the structure-wise evolution, in support modulation."""
    histogram_bins: Annotated[int, within(2, 1024)] = 16
    """L, bins of the structure histograms."""
    histogram_range: Annotated[str, one_of("zero_one", "minus_one_one")] = "zero_one"
    """Range of the cosine histogram: zero_one clamps negative cosines into bin 0, minus_one_one spans all. OPEN."""
    histogram_width: Annotated[int, within(1, 1024)] = 1
    """Half the base of the histogram's triangular kernel, in bins: 1 shares a value between its two neighbours. OPEN in
    the paper."""
    evolution_image: Annotated[str, one_of("normalised", "rgb")] = "normalised"
    """The query image that E_p and E_s see: normalised (as the backbone gets it; cosines may be negative) or rgb (in
    [0, 1]). OPEN in the paper."""
    cleansing_scaled: bool = True
    """IC divides its scores by sqrt(d) before it adds V, as every other attention here; false takes the paper's
    equation to the letter. OPEN."""


@dataclass
class PfenetConfig(MethodConfig):
    """`method=pfenet`: prior map, prototype, and feature enrichment at several sizes."""

    NAMES = ("pfenet",)
    TARGET = "fsseg.model.pfenet:Pfenet"
    NEEDS = frozenset({"stages"})
    channels: Annotated[int, within(1, 4096)] = 256
    """Width of the features after the neck; the published one is 256."""
    sides: Annotated[list[float], constraints.SIDES] = field(default_factory=lambda: [1.0, 0.5, 0.25, 0.125])
    """Sides of the maps that the features are enriched at, one after the other, as shares of the feature map's side:
    with 60 cells (473 pixels) 60, 30, 15 and 8."""
    dropout: Share = 0.5
    """Share of the reduced features' channels that training drops; the published one is 0.5."""
    strong_prior: bool = False
    """The weights of the prior map start as large as all others together, as in ABCB's neck, so that a backbone that
    trains from random weights along with them learns to use the support; false is the published start."""


@dataclass
class BamConfig(MethodConfig):
    """`method=bam`: a meta learner of PFENet's parts, whose background a frozen base learner corrects."""

    NAMES = ("bam",)
    TARGET = "fsseg.model.bam:Bam"
    NEEDS = frozenset({"stages"})
    TAKES_HEAD = True
    channels: Annotated[int, within(1, 4096)] = 256
    """Width of the features after the neck; the published one is 256."""
    dropout: Share = 0.5
    """Share of the reduced features' channels that training drops; the published one is 0.5."""


@dataclass
class HsnetConfig(MethodConfig):
    """`method=hsnet`: 4D convolutions over correlations of all residual blocks' features (Min et al., ICCV 2021)."""

    NAMES = ("hsnet",)
    TARGET = "fsseg.model.hsnet:Hsnet"
    NEEDS = frozenset({"blocks"})
    channels: Annotated[int, one_of(32, 64, 128, 256)] = 128
    """Width of the 4D maps after squeezing; an eighth and a half of it on the way there. 128 as published."""


@dataclass
class PrototypeConfig(MethodConfig):
    """`method=prototype`: training-free cosine matching with the mean support foreground feature."""

    NAMES = ("prototype",)
    TARGET = "fsseg.model.prototype:Prototype"
    TRAINS = False
    layer: Annotated[str, one_of("layer2", "layer3", "layer4")] = "layer3"
    """Backbone stage whose features are matched."""
    threshold: Annotated[str, one_of("otsu", "background")] = "otsu"
    """How the similarity map is cut: otsu (per query image) or background (nearer to the foreground mean)."""


@dataclass
class DinoConfig(MethodConfig):
    """`method=dino`: training-free; prototypes by k-means, and a Gram map of the query that spreads their answer."""

    NAMES = ("dino",)
    TARGET = "fsseg.model.dino:Dino"
    TRAINS = False
    layer: Annotated[str, one_of("layer2", "layer3", "layer4")] = "layer4"
    """Backbone stage whose features are matched; of a vision transformer the depth that bears this name."""
    foreground_prototypes: Annotated[int, within(1, 1024)] = 1
    """Clusters of the foreground cells of all shots; 1 is their mean direction."""
    background_prototypes: Annotated[int, within(0, 1024)] = 1
    """Clusters of the background cells of all shots; 0 cuts each query's similarity by Otsu's threshold instead."""
    kmeans_iterations: Annotated[int, within(1, 10_000)] = 10
    """Iterations of k-means."""
    gram_passes: Annotated[int, within(0, 100)] = 1
    """How often the answer is spread over alike cells of the query; 0 leaves it as it is."""
    gram_temperature: Annotated[float, within(0.001, 1000)] = 0.03
    """Temperature of the softmax over the cosines of a query cell with all others; a larger one spreads further."""


@dataclass
class PspnetConfig(MethodConfig):
    """`method=pspnet`: the base learner of BAM's stage 1. It segments the base classes, and has no supports."""

    NAMES = BASE_LEARNERS
    TARGET = "fsseg.model.base_learner:BaseLearner"


@dataclass
class ProtocolConfig:
    """Rules on which published codes differ; all of them are recorded with every result."""

    name: Annotated[str, NAME] = MISSING
    """Name of the protocol; cells of different protocols are never averaged together."""
    train_pool: Annotated[str | None, FILE_PATH] = None
    """PASCAL's training images, before the fold takes its part: train_aug_10582, merged_5953 (PFENet and all that
    follow it), the name of a list, or a file. Sets `dataset.train_list`."""
    list_rule: Annotated[str, one_of("pixels", "grid")] = "pixels"
    """Which (image, class) pairs are listed: pixels (objects of `min_pixels` or more) or grid (HSNet on PASCAL: more
    than 2 pixels of the class among the rows and columns 1, 33, 65, ... of the mask)."""
    min_pixels: Annotated[int, within(0, 100_000_000)] = 2048
    """Smallest object, in pixels at original size, for support and query lists (2*32*32); 0 lists everything."""
    novel_in_training: Annotated[str, one_of("drop", "background", "ignore")] = "drop"
    """Training images with novel pixels: drop the image, or keep it with them as background, or as ignore."""
    train_query: Annotated[str, one_of("image", "pair", "class_uniform")] = "image"
    """Queries in training: image (each once an epoch, then one of its classes), pair (each (image, class) pair once an
    epoch) or class_uniform (a class, then one of its images)."""
    query_order: Annotated[str, one_of("cycle", "list_cycle", "class_uniform", "first_n")] = "cycle"
    """Queries at test: cycle or list_cycle over (image, class) pairs, class_uniform, or first_n images of the list."""
    query_class: Annotated[str, one_of("listed", "any_size")] = "listed"
    """Classes that a query image may stand for: listed (those of its pairs) or any_size (all that it holds a pixel of,
    also below `min_pixels`). Supports are listed pairs always."""
    repeat_support: bool = False
    """Whether the K supports of an episode may repeat."""
    num_episodes: Annotated[int, within(1, 1_000_000)] = 1000
    """Evaluation episodes per seed."""
    seeds: Annotated[list[int], constraints.SEEDS] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Evaluation seeds; mean and standard deviation are over them."""
    undrawn: Annotated[str, one_of("left_out", "zero")] = "left_out"
    """What a class that no episode of a seed draws counts in that seed's mean: left_out, or zero as in the published
    codes. The result gives both figures."""
    image_size: Annotated[int | None, within(9, 4097)] = None
    """Side of the network input, where the code has another than the data set's. Sets `dataset.image_size`."""
    fit: Annotated[str, one_of("longer_side", "squash", "pfenet")] = "longer_side"
    """How an image comes into the square: longer_side (aspect kept, padded right and below with the mean colour),
    squash (both sides scaled to the square) or pfenet (training: scaled from its own size, cropped, padded around;
    test: sides floored to multiples of 8, padded right and below with black)."""
    scoring_size: Annotated[str, one_of("original", "network")] = "original"
    """Where predictions are compared with the truth: original or network size."""
    ignore_in_loss: bool = True
    """Pixels of 255 are left out of the loss (they never count in the score); false trains them as background."""
    episodes_file: Annotated[str | None, FILE_PATH] = None
    """A file written by `fsseg episodes`: evaluate exactly these episodes."""
    unlike: list[str] = field(default_factory=list)
    """What the code of this name does, and this protocol does not: in words, for the record."""


@dataclass
class TrainConfig:
    """The training recipe."""

    enabled: bool = True
    """false evaluates `checkpoint` (or, for a training-free method, the method itself)."""
    epochs: Annotated[int, within(1, 1_000_000)] = MISSING
    """Epochs; in one epoch each training image is the query once."""
    max_steps: Annotated[int | None, within(1, 1_000_000_000)] = None
    """Stop after this many steps (the schedule then ends there too); null trains all epochs."""
    batch_size: Annotated[int, within(1, 4096)] = MISSING
    """Episodes per step."""
    accumulate: Annotated[int, within(1, 4096)] = 1
    """Parts that a step's batch is computed in, one after the other, to save memory: the gradient stays that of the
    whole batch, up to rounding."""
    lr: Annotated[float, above(0, 1000)] = MISSING
    """Learning rate at the start."""
    lr_scale: Annotated[float, above(0, 1000)] = 1.0
    """Multiplies `lr`. The published codes that ABCB builds on (PFENet, BAM, SCCAN) multiply the rate of their files by
    10 inside their schedule; whether the paper's rate carries that factor is OPEN."""
    optimizer: Annotated[str, one_of("sgd", "adamw")] = "sgd"
    """sgd (with `momentum`), as ABCB and its predecessors; or adamw (with `betas`), as transformer methods."""
    momentum: Annotated[float, within(0.0, 0.9999)] = 0.9
    """Momentum of SGD."""
    betas: Annotated[list[float], constraints.BETAS] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of AdamW's two running means."""
    weight_decay: Annotated[float, within(0, 1000)] = 1e-4
    """Weight decay of the optimiser."""
    lr_factors: Annotated[dict[str, float], constraints.FACTORS] = field(default_factory=dict)
    """Module name -> what its learning rate is multiplied by: `'+train.lr_factors={backbone: 0.1}'` (names are
    new keys, hence the +). The longest name that fits counts; 0 leaves the module as it is."""
    poly_power: Annotated[float, within(0, 1000)] = 0.9
    """lr falls as (1 - step / steps) ** poly_power, per step."""
    clip_grad_norm: Annotated[float | None, above(0, 1e9)] = None
    """Largest norm of the gradient; null leaves it alone."""
    amp: Annotated[str, one_of("off", "bf16", "fp16")] = "off"
    """Mixed precision: off, bf16, or on a GPU fp16."""
    compile: bool = False
    """Compile the backbone with torch.compile for the training steps: a minute at the start, then quicker steps; the
    loss stays the same up to rounding."""
    profile: bool = False
    """Trace some early steps of the training and write where their time goes into the run directory."""
    checkpoint_minutes: Annotated[float, within(0, 1_000_000)] = 10.0
    """A checkpoint is written when the last one is this old; 0 writes one after every step."""
    checkpoint_epochs: Annotated[int, within(0, 1_000_000)] = 1
    """A checkpoint is also written at the end of every n-th epoch; 0 leaves it to checkpoint_minutes alone."""
    select: Annotated[list[str], constraints.SELECT] = field(default_factory=list)
    """Checkpoints that are kept and scored beside the last one, which is the result always: best_novel (the best on the
    novel test classes, which published codes report: optimistic) and best_base (the best on the images that
    `eval.every_epochs` holds back)."""
    select_epochs: Annotated[int, within(1, 1_000_000)] = 1
    """With best_novel: the novel classes are scored every n-th epoch, and after the last step."""
    select_episodes: Annotated[int | None, within(1, 1_000_000)] = None
    """With best_novel: on how many episodes of the first evaluation seed; null takes all of that seed."""


@dataclass
class BaseTrainingConfig:
    """How the base learner of `backbone.base_training=true` is trained, and so the recipe of `method=pspnet`.

    The defaults are BAM's: SGD with momentum, a poly schedule, a scale of 0.5 to 2.
    """

    epochs: Annotated[int, within(1, 1_000_000)] = 100
    """Passes over the images of the base classes (BAM: 100 on PASCAL, 20 on COCO)."""
    max_steps: Annotated[int | None, within(1, 1_000_000_000)] = None
    """Stop after this many steps; null trains all epochs."""
    batch_size: Annotated[int, within(2, 4096)] = 12
    """Images in a step; at least 2, for the head normalises over them."""
    lr: Annotated[float, above(0, 1000)] = 2.5e-4
    """Learning rate of the backbone at the start."""
    head_factor: Annotated[float, above(0, 1_000_000)] = 10.0
    """What the rate of the head is multiplied by."""
    amp: Annotated[str, one_of("off", "bf16", "fp16")] = "off"
    """Mixed precision, as train.amp."""
    image_size: Annotated[int, within(9, 4097)] = 417
    """Side of the network input in pixels."""
    scale_range: Annotated[list[float], constraints.SCALES] = field(default_factory=lambda: [0.5, 2.0])
    """Random scale of the images, as dataset.scale_range."""
    rotate_degrees: Annotated[float, within(0, 360)] = 10.0
    """Images turn by a random angle within plus or minus this many degrees."""
    blur_probability: Share = 0.5
    """Probability of a Gaussian blur of an image."""
    seed: Annotated[int, SEED] = 0
    """Seed of its training, whatever the seed of the cells that start from it."""


@dataclass
class EvalConfig:
    """How evaluation runs, and what it records besides the score. Of these `every_epochs` and `base_share` change the
    score, which hold training images back, and `amp` and `feature_format` may change single pixels."""

    enabled: bool = True
    """Evaluate on the novel classes after training."""
    batch_size: Annotated[int | None, within(1, 4096)] = None
    """Episodes evaluated together; null chooses: 1 on a CPU, where that is quickest, on a GPU by its memory."""
    backbone_batch: Annotated[int | None, within(1, 4096)] = None
    """Images that pass through the backbone together; null chooses likewise."""
    amp: Annotated[str, one_of("off", "bf16", "fp16")] = "off"
    """Mixed precision of the evaluation: off, bf16, or on a GPU fp16."""
    feature_cache_gb: Annotated[float | None, within(0, 1_000_000)] = None
    """Room for what is kept of the images, so that each passes through the backbone once, in 1e9 bytes; null takes a
    share of the memory that is free, 0 keeps nothing."""
    feature_place: Annotated[str, one_of("auto", "device", "host", "disk")] = "auto"
    """Where that is kept: on the computing device, in host memory, or in a file that is mapped into memory."""
    feature_folder: Annotated[str | None, FILE_PATH] = None
    """With feature_place=disk: folder of the file, gone at the end; null takes the system's folder for such files."""
    feature_format: Annotated[str, one_of("float32", "bfloat16", "float16")] = "float32"
    """Number format of what is kept; the halves need half the room."""
    every_epochs: Annotated[int, within(0, 1_000_000)] = 0
    """Every n-th epoch, score episodes of base classes on training images that are held back; 0 holds none back."""
    base_share: Annotated[float, constraints.above(0, 0.5)] = 0.05
    """With every_epochs: share of the training images that are held back, drawn by the run's seed."""
    base_episodes: Annotated[int, within(1, 100_000)] = 200
    """With every_epochs: episodes of each such evaluation."""
    background_shifts: Annotated[list[float], constraints.SHARES] = field(default_factory=list)
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
    trackers: Annotated[list[str], constraints.TRACKERS] = field(default_factory=list)
    """Tools that get settings, curves, result and figures too: wandb, mlflow, trackio, aim (`pip install
    'fsseg[wandb]'`). One that fails never fails a run."""
    every_steps: Annotated[int, within(1, 1_000_000_000)] = 10
    """Steps between two rows of metrics.csv."""
    figures: Annotated[int, within(0, 200)] = 8
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
    attempts: Annotated[int, within(1, 100)] = 4
    """How often a file is tried, with growing pauses, before it is left to `fsseg sync`."""
    timeout_seconds: Annotated[float, above(0, 86_400)] = 100.0
    """Time that the end of a run spends on copying at most; what is left over is for `fsseg sync`."""


@dataclass
class NotifyConfig:
    """A command that is run when a sweep ends, a cell fails, or a cell outside a sweep is done."""

    on_end: Annotated[str | None, constraints.COMMAND] = None
    """A line for the shell; what ended, and how, is in its environment: FSSEG_EVENT, FSSEG_DIR, FSSEG_REASON, ..."""
    timeout_seconds: Annotated[float, above(0, 3600)] = 60.0
    """Time after which the command is ended."""


@dataclass
class ParameterConfig:
    """What a search may choose for one key: a range of numbers, or one of several values."""

    low: float | None = None
    """The least number."""
    high: float | None = None
    """The largest one."""
    log: bool = False
    """Numbers are spread by their logarithm: as many from 0.001 to 0.01 as from 0.01 to 0.1."""
    whole: bool = False
    """Whole numbers alone."""
    step: float | None = None
    """Distance between two numbers, counted from `low`."""
    choices: list[Any] | None = None
    """Values to choose from, instead of a range; each as it would stand on the line."""
    when: dict[str, Any] = field(default_factory=dict)
    """Other keys of the space, each with a value or a list of values: only with these it is searched, and otherwise
    left as the line has it."""


@dataclass
class SearchConfig:
    """A search for settings, whose trials are cells: `python train.py -m search=FILE ...`."""

    space: dict[str, ParameterConfig] = field(default_factory=dict)
    """What is searched, by key of the configuration or name of a group."""
    trials: Annotated[int, within(1, 100_000)] = 20
    """How many sets of settings are tried."""
    parallel: Annotated[int, within(1, 10_000)] = 1
    """Trials that are under way at a time, with hydra/launcher=local or slurm."""
    metric: str = "base/miou"
    """What is maximised, of held-out images of base classes: base/miou or base/fb_iou."""
    sampler: Annotated[str, one_of("tpe", "random", "grid", "cmaes", "gp")] = "tpe"
    """How the next settings are chosen."""
    seed: Annotated[int, SEED] = 0
    """Of the sampler."""
    startup_trials: Annotated[int, within(1, 100_000)] = 10
    """Random trials before tpe, cmaes and gp begin to choose."""
    pruner: Annotated[str, one_of("none", "median", "hyperband")] = "none"
    """Whether trials end early whose base classes score low: below the median of the trials before at the same epoch,
    or by successive halving."""
    prune_after_epochs: Annotated[int, within(0, 1_000_000)] = 1
    """Epochs that every trial has, whatever it scores."""
    storage: str | None = None
    """Where Optuna keeps the study: null is a journal in the experiment's folder, which may be shared by machines; or
    another file, or a URL that Optuna knows, sqlite:///..., postgresql://..."""
    final: bool = False
    """At the end the best settings are trained once more, on all training images, and scored on the novel classes."""
    every_epochs: Annotated[int, within(1, 1_000_000)] = 1
    """Every n-th epoch base classes are scored (`eval.every_epochs` of the trials)."""
    study: str | None = None
    """Of a trial: the study that it belongs to; a search sets it."""
    trial: int | None = None
    """Of a trial: its number; a search sets it."""


@dataclass
class Config:
    """One cell: everything `fsseg.run.run` needs to know."""

    name: Annotated[str, NAME] = "runs"
    """Name of the experiment: the folder under `output_dir`, and what `fsseg aggregate` is pointed at."""
    output_dir: Annotated[str, FILE_PATH] = "outputs"
    """Folder that holds all experiments."""
    fold: int = MISSING
    """Fold whose classes are novel."""
    shot: Annotated[int, within(1, 1000)] = MISSING
    """K, annotated support images per episode."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random in training. Evaluation has its own: protocol.seeds."""
    variant: Annotated[str | None, NAME, constraints.NOT_DEFAULT] = None
    """Name of this variant in the run directory; null makes one from the overrides that are not grid keys."""
    report: Annotated[str | None, one_of(*REPORTS)] = None
    """Which table or plot `fsseg aggregate` makes of these runs besides the usual tables: one of
    `REPORTS`. The files under conf/experiment set it."""
    checkpoint: Annotated[str | None, FILE_PATH] = None
    """A checkpoint to evaluate (with train.enabled=false) or to start from."""
    check: bool = False
    """true checks everything that a run needs, says what it would do, and neither trains nor writes anything."""
    redo: bool = False
    """true trains a finished cell again, and replaces a cell made with other settings."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    num_workers: Annotated[int, within(-1, 256)] = -1
    """Processes that load data; -1 chooses from the machine's cores, 0 loads in the main process."""
    num_threads: Annotated[int, within(0, 256)] = 0
    """CPU threads of torch; 0 leaves torch's own choice."""
    lease_seconds: Annotated[float, within(1, 1_000_000)] = 300.0
    """A run that has given no sign of life for so long has lost its cell: another process may take it over."""
    log_level: Annotated[str, one_of("debug", "info", "warning", "error")] = "info"
    """Level of train.log and of the terminal: debug, info, warning or error."""
    data: DataConfig = field(default_factory=DataConfig)
    dataset: DatasetConfig = MISSING
    backbone: BackboneConfig = MISSING
    model: MethodConfig = MISSING
    protocol: ProtocolConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    base_training: BaseTrainingConfig = field(default_factory=BaseTrainingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    search: SearchConfig | None = None
    """A search for settings, or null: none."""


# Keys that cannot change the numbers of a cell: left out of its fingerprint and of the `variant` in its directory name.
# A trailing dot means everything below.
NEUTRAL_KEYS = (
    "output_dir", "check", "redo", "report", "device", "num_workers", "num_threads", "log_level", "logger.",
    "eval.batch_size", "data.", "dataset.root", "dataset.sbd_root", "dataset.cache", "backbone.weights",
    "train.checkpoint_minutes", "train.checkpoint_epochs", "lease_seconds", "sync.", "notify.",
    "protocol.episodes_file", "protocol.unlike", "checkpoint", "dataset.label_maps", "train.accumulate",
    "train.compile", "train.profile", "eval.backbone_batch", "eval.feature_cache_gb", "eval.feature_place",
    "eval.feature_folder", "train.select", "train.select_epochs", "train.select_episodes", "dataset.annotations",
    "dataset.images", "dataset.val_annotations", "search.",
)  # fmt: skip
# What is recorded beside the last checkpoint changes nothing of it, which is the result: a cell keeps its name and its
# fingerprint, with and without `train.select`. A training that goes on under another `train.select` is refused by
# `fsseg.engine.validation`.
# Of weights, episodes and a checkpoint only the path is neutral: the fingerprint includes a digest of the file
# (see `fsseg.cell.key`).


def register() -> None:
    """Register the schemas and resolvers that the files under `conf/` use."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group in Choice.__subclasses__():
        for name, schema in group.choices().items():
            store.store(group=f"schema/{group.GROUP}", name=name, node=schema)
    store.store(group="schema/protocol", name="protocol", node=ProtocolConfig)
    store.store(group="schema/search", name="search", node=SearchConfig)
    for node in ("dataset", "backbone", "model"):
        OmegaConf.register_new_resolver(f"by_{node}", partial(_by_name, node), replace=True)
    OmegaConf.register_new_resolver("by_rounds", _by_rounds, replace=True)
    OmegaConf.register_new_resolver("by_stem", _by_stem, replace=True)
    OmegaConf.register_new_resolver("by_base_training", _by_base_training, replace=True)
    OmegaConf.register_new_resolver("unless", _unless, replace=True)
    OmegaConf.register_new_resolver("given", _given, replace=True)
    OmegaConf.register_new_resolver("train_line", train_line, replace=True)


def _by_name(node: str, values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_dataset:{coco20i: 2, other: 1}}`: the value for the chosen data set; `other` is for all others."""
    name = _root_[node].name
    return values[name] if name in values else values["other"]


def _given(value: Any, otherwise: Any) -> Any:
    """`${given:${protocol.image_size},473}`: a value, or another where it is null."""
    return otherwise if value is None else value


def _by_rounds(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_rounds:{one: 0.06, several: 0.02}}`: one value for ABCB of T > 1, one for all that predict once."""
    model = _root_.model
    several = OmegaConf.select(model, "modulation", default=False) and model.iterations > 1
    return values["several" if several else "one"]


def _by_stem(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_stem:{plain: ..., deep: ..., other: ...}}`: one value for each stem of a ResNet, one for all others."""
    return values[OmegaConf.select(_root_.backbone, "stem", default="other")]


def _by_base_training(values: DictConfig, *, _root_: DictConfig) -> Any:
    """`${by_base_training:{given: ..., none: ...}}`: by whether the backbone is that of a base learner."""
    return values["given" if _root_.backbone.base_training else "none"]


def _unless(settings: DictConfig, words: str, *, _root_: DictConfig) -> str:
    """`${unless:{train.batch_size: 8},words}`: words, but none where all these settings have these values."""
    return "" if all(OmegaConf.select(_root_, str(key)) == value for key, value in settings.items()) else words


def trains(cfg: Config) -> bool:
    """Whether the method has anything to train."""
    return bool(getattr(OmegaConf.get_type(cfg.model), "TRAINS", True))
