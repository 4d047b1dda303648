"""`validate` and `faults`: find all faults of a composed configuration that types cannot catch, at once.

`fsseg.config.schema` says what a single field may be; here are the relations between fields, and the files that must
exist. A faulty value is reported once: relations that involve it are not checked. `fsseg.run`, the sweeper and the
commands call this before anything is written or trained. Nothing here imports torch, and of the data only the paths
that the configuration names are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from fsseg.config.constraints import FILE_PATH, NAME, PLAIN_TEXT, Constraint, shown
from fsseg.config.history import ACT_ELSEWHERE
from fsseg.config.schema import BackboneConfig, Config, DatasetConfig, MethodConfig, ResNetConfig, trains
from fsseg.config.tasks import BASE_LEARNERS
from fsseg.errors import UserError, merge_errors
from fsseg.process.remote import url_faults

_Relation = Callable[[Config], Iterator[UserError]]
_RELATIONS: list[tuple[tuple[str, ...], _Relation]] = []
_OF_RUNS: list[_Relation] = []  # what only a run or its episodes need


def validate(cfg: Config, of_a_run: bool = True) -> None:
    """Check everything that types cannot; without `of_a_run` what a look at data or model needs.

    Raises:
        UserError: with every fault found, in one go.
    """
    if found := faults(cfg, of_a_run):
        raise merge_errors(found)


def faults(cfg: Config, of_a_run: bool = True) -> list[UserError]:
    """All such faults of a composed configuration; of the data only the folder is looked at."""
    if isinstance(cfg, DictConfig) and (missing := sorted(OmegaConf.missing_keys(cfg))):
        return [UserError(f"{key} has no value", f"set {key}=...") for key in missing]
    alone = {**dict(field_faults(cfg)), **dict(_names(cfg))}
    alone |= {key: fault for key, fault in _places(cfg) if key not in alone}
    set_by_them = {other for key, other in ACT_ELSEWHERE.items() if key in alone}
    found = [fault for key, fault in alone.items() if key not in set_by_them]
    at_fault = {*alone, *set_by_them}
    for keys, relation in _RELATIONS:
        if not of_a_run and relation in _OF_RUNS:
            continue
        if at_fault.isdisjoint(keys) and (broken := list(relation(cfg))):
            found += broken
            at_fault.update(keys)
    return found


def field_faults(node: Any, prefix: str = "") -> Iterator[tuple[str, UserError]]:
    """Every field that is faulty by itself, by its key: a constraint does not hold, or the schema does not know it.

    Args:
        node: made of a schema, e.g. the whole configuration, or the settings of a launcher.
        prefix: of its keys, e.g. `dataset.`.
    """
    schema: Any = OmegaConf.get_type(node)
    known = _settings(schema)
    for name in vars(node) if is_dataclass(node) else node:
        key = prefix + str(name)
        if name not in known:  # Hydra lets `+key=value` past the schema
            what = f"{key}: there is no such configuration key"
            yield key, UserError(what, "leave it out: no code reads a key outside the schema")
        elif is_dataclass(OmegaConf.get_type(value := getattr(node, name))):
            yield from field_faults(value, f"{key}.")
        elif value is not None:
            rules = getattr(known[name], "__metadata__", ())
            yield from ((key, fault) for fault in setting_faults(key, value, *rules))


def setting_faults(key: str, value: Any, *rules: Constraint) -> list[UserError]:
    """What is wrong with one value, by these rules and by the one for every text; the first that it breaks."""
    rules = (PLAIN_TEXT, *rules) if isinstance(value, str) else rules
    return [fault for rule in rules if (fault := rule.fault(key, value)) is not None][:1]


_PLACE = {"output_dir": FILE_PATH, "name": NAME, "variant": NAME, "dataset.name": NAME, "backbone.name": NAME,
          "model.name": NAME}  # fmt: skip


def place_faults(cfg: Config) -> list[UserError]:
    """What is wrong with the texts that make up the path of the run directory: nobody looks there before.

    `faults` tells the same and more; this is quick.
    """
    values = {key: value for key in _PLACE if (value := _get(cfg, key)) is not None}
    return [fault for key, value in values.items() for fault in setting_faults(key, value, _PLACE[key])]


@lru_cache
def _settings(schema: type[Any]) -> dict[str, Any]:
    """Name -> type of the fields of a schema, with the constraints."""
    hints = get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in fields(schema)}


def _names(cfg: Config) -> Iterator[tuple[str, UserError]]:
    """Names of a data set, a backbone or a method that no schema has, or another schema than the one in use."""
    for key, base in (("dataset", DatasetConfig), ("backbone", BackboneConfig), ("model", MethodConfig)):
        node = getattr(cfg, key)
        try:
            base.named(node.name)
        except UserError as error:
            yield f"{key}.name", error
            continue
        schema: Any = OmegaConf.get_type(node)
        if node.name not in schema.NAMES:
            what = f"{key}.name={node.name} is not of the {base.GROUP} that was chosen: {', '.join(schema.NAMES)}"
            yield f"{key}.name", UserError(what, f"write {base.GROUP}={node.name} instead")


def _places(cfg: Config) -> Iterator[tuple[str, UserError]]:
    """Files that are not there, and an address that nothing can be sent to."""
    files = {
        "checkpoint": "give the path of a checkpoints/last.pt",
        "protocol.episodes_file": "write one with `fsseg episodes`",
        "backbone.weights": "give the path of the weights, or leave it out",
    }
    if _has_deep_stem(cfg):
        files["backbone.weights"] = f"give the path of {ResNetConfig.deep_weights(cfg.backbone.name)}"
    if getattr(
        DatasetConfig.choices().get(cfg.dataset.name), "LISTS_ARE_FILES", False
    ):  # a list of PASCAL may be a name
        fix = "give a text file with one image per line, or leave it out"
        files |= {"dataset.train_list": fix, "dataset.val_list": fix}
    for key, fix in files.items():
        path = _get(cfg, key)
        # Unlike `Path.is_file`, `isfile` is False for a name that is too long.
        if path is not None and not os.path.isfile(os.path.expanduser(path) if key.startswith("dataset.") else path):
            yield key, UserError(f"{key}={shown(path)} is not a file", fix)
    above = next((p for p in (Path(cfg.output_dir), *Path(cfg.output_dir).parents) if os.path.lexists(p)), Path())
    if not os.path.isdir(above):
        what = f"output_dir={shown(cfg.output_dir)}: {shown(above)} is not a folder"
        yield "output_dir", UserError(what, "set output_dir to a folder that is there, or can be made")
    if cfg.sync.url is not None:
        yield from (("sync.url", fault) for fault in url_faults(cfg.sync.url))


def _get(cfg: Config, key: str) -> Any:
    """The value of a key that not every data set or method has; None without it."""
    if isinstance(cfg, DictConfig):
        return OmegaConf.select(cfg, key, default=None)
    node: Any = cfg
    for name in key.split("."):
        node = getattr(node, name, None)
    return node


def _relates(*keys: str, of_runs: bool = False) -> Callable[[_Relation], _Relation]:
    """A relation between these keys; checked only if none of them is faulty by itself."""

    def register(relation: _Relation) -> _Relation:
        _RELATIONS.append((keys, relation))
        if of_runs:
            _OF_RUNS.append(relation)
        return relation

    return register


@_relates("dataset.num_folds", "dataset.name")
def _folds_are_equal_parts(cfg: Config) -> Iterator[UserError]:
    """The number of classes is a multiple of the number of folds."""
    folds, classes = cfg.dataset.num_folds, DatasetConfig.named(cfg.dataset.name).NUM_CLASSES
    if classes % folds:  # classes that only the disk knows may be cut into any: the source looks
        what = f"dataset.num_folds={folds} does not cut {classes} classes into equal parts"
        yield UserError(what, "set dataset.num_folds=4, as every published result does")


@_relates("fold", "dataset.num_folds", "dataset.novel")
def _fold_exists(cfg: Config) -> Iterator[UserError]:
    """The fold is one of the data set's; novel classes by name are fold 0."""
    if novel := _get(cfg, "dataset.novel"):
        if cfg.fold != 0:
            what = f"fold={cfg.fold}: with dataset.novel={shown(list(novel))} there is fold 0 alone"
            yield UserError(what, "leave fold out, or leave dataset.novel out and set dataset.num_folds")
    elif cfg.fold not in (folds := range(cfg.dataset.num_folds)):
        what = f"fold={cfg.fold} does not exist: {cfg.dataset.name} has folds 0 to {folds[-1]}"
        yield UserError(what, f"set fold to one of: {', '.join(map(str, folds))}")


ALL_NOVEL = (
    "leave some classes out, or evaluate alone: a method that trains nothing, or train.enabled=false checkpoint=..."
)
"""What can be done where every class is novel."""


@_relates("dataset.num_folds", "dataset.novel", "dataset.test_classes", "train.enabled", of_runs=True)
def _classes_are_left_to_train_on(cfg: Config) -> Iterator[UserError]:
    """A single fold holds all classes, unless their names say which are novel."""
    named = _get(cfg, "dataset.novel") or _get(cfg, "dataset.test_classes")
    if cfg.dataset.num_folds == 1 and not named and cfg.train.enabled and trains(cfg):
        yield UserError("dataset.num_folds=1: all classes are novel, none is left to train on", ALL_NOVEL)


@_relates("dataset.image_size", "backbone.name", "backbone.model")
def _image_size_fits_the_stride(cfg: Config) -> Iterator[UserError]:
    """The side of an image is a multiple of the backbone's stride, or one more where cells are points."""
    yield from _side_faults(cfg, "dataset.image_size", cfg.dataset.image_size)


@_relates("base_training.image_size", "backbone.base_training", "backbone.name", "backbone.model")
def _so_does_that_of_a_base_learner(cfg: Config) -> Iterator[UserError]:
    """The same of the images that its base learner is trained on."""
    if cfg.backbone.base_training:
        yield from _side_faults(cfg, "base_training.image_size", cfg.base_training.image_size)


def _side_faults(cfg: Config, key: str, size: int) -> Iterator[UserError]:
    name = _get(cfg, "backbone.model") or cfg.backbone.name
    stride, patches = BackboneConfig.named(cfg.backbone.name).cells(cfg.backbone)
    if size % stride > (0 if patches else 1):
        more = "" if patches else ", or one more"
        what = f"{key}={size} does not fit backbone {name}: it must be a multiple of {stride}{more}"
        low = size // stride * stride + (0 if patches else 1)  # of points, one lies on each corner
        yield UserError(what, f"set {key} to {low or stride} or {low + stride}")


@_relates("model.name", "backbone.base_training")
def _a_base_learner_starts_from_none(cfg: Config) -> Iterator[UserError]:
    """What others start from does not start from itself."""
    if cfg.backbone.base_training and cfg.model.name in BASE_LEARNERS:
        what = f"backbone.base_training=true: method={cfg.model.name} is the base learner itself"
        yield UserError(what, "leave backbone.base_training out, or choose a few-shot method")


@_relates("model.name", "backbone.base_training", "backbone.trainable_layers", "checkpoint", of_runs=True)
def _what_takes_a_base_learner_whole_has_one(cfg: Config) -> Iterator[UserError]:
    """It is there, or a checkpoint that holds it; and its head stays on the backbone that it was trained on."""
    method = cfg.model.name
    if not MethodConfig.named(method).TAKES_HEAD:
        return
    if not cfg.backbone.base_training and cfg.checkpoint is None:
        what = f"backbone.base_training=false: method={method} needs a base learner, backbone and head"
        yield UserError(what, f"leave backbone.base_training out, or give checkpoint= of a training of {method}")
    if number := cfg.backbone.trainable_layers:
        what = f"backbone.trainable_layers={number}: method={method} keeps the backbone of its base learner as it is"
        yield UserError(what, "leave backbone.trainable_layers out, for the head of that one is of no use elsewhere")


@_relates("model.name", "shot", "eval.every_epochs", "eval.background_shifts", "protocol.episodes_file")
def _a_base_learner_has_no_episodes(cfg: Config) -> Iterator[UserError]:
    """What only episodes have is left alone: else equal base learners had several directories."""
    if cfg.model.name not in BASE_LEARNERS:
        return
    given = {"shot": (cfg.shot, 1), "eval.every_epochs": (cfg.eval.every_epochs, 0),
             "eval.background_shifts": (list(cfg.eval.background_shifts), []),
             "protocol.episodes_file": (cfg.protocol.episodes_file, None)}  # fmt: skip
    for key, (value, neutral) in given.items():
        if value != neutral:
            what = f"{key}={shown(value)}: method={cfg.model.name} segments base classes, and has no episodes"
            yield UserError(what, f"leave {key} out")


@_relates("model.name", "train.batch_size", "train.accumulate")
def _a_base_learner_normalises_over_its_batch(cfg: Config) -> Iterator[UserError]:
    """BatchNorm of its head needs more than one image, and all of a step at once."""
    if cfg.model.name not in BASE_LEARNERS:
        return
    for key, bad in (("train.batch_size", cfg.train.batch_size < 2), ("train.accumulate", cfg.train.accumulate > 1)):
        if bad:
            value = _get(cfg, key)
            yield UserError(
                f"{key}={value}: the head of method={cfg.model.name} normalises over the whole batch of a step",
                "set train.batch_size to 2 or more (base_training.batch_size=), and leave train.accumulate out",
            )


@_relates("backbone.name")
def _timm_is_installed(cfg: Config) -> Iterator[UserError]:
    """The package of the backbone's models is there."""
    if hasattr(cfg.backbone, "model") and find_spec("timm") is None:
        what = f"backbone={cfg.backbone.name} is a model of the package timm, which is not installed"
        yield UserError(what, "pip install 'fsseg[timm]', or choose another backbone")


@_relates("logger.trackers", of_runs=True)
def _trackers_are_installed(cfg: Config) -> Iterator[UserError]:
    """The package of each tracker is there; a folder of its name in the current one is none."""
    for name in cfg.logger.trackers:
        if (found := find_spec(name)) is None or found.origin is None:
            what = f"logger.trackers=[{name}]: the package {name} is not installed"
            yield UserError(what, f"pip install 'fsseg[{name}]', or leave {name} out")


@_relates("backbone.trainable_layers", "backbone.name")
def _timm_models_train_whole_or_not(cfg: Config) -> Iterator[UserError]:
    """The stages of timm's models are not told apart."""
    if hasattr(cfg.backbone, "model") and (number := cfg.backbone.trainable_layers) not in (0, 5):
        what = f"backbone.trainable_layers={number}: backbone={cfg.backbone.name} is frozen or trains as a whole"
        yield UserError(what, "set backbone.trainable_layers to 0 or 5")


def _has_deep_stem(cfg: Config) -> bool:
    return bool(_get(cfg, "backbone.stem") == "deep")


@_relates("backbone.stem", "backbone.name")
def _a_deep_stem_is_of_bottlenecks(cfg: Config) -> Iterator[UserError]:
    """Nobody has published weights of the others with such a stem."""
    if _has_deep_stem(cfg) and cfg.backbone.name not in ResNetConfig.DEEP:
        what = f"backbone.stem=deep: {cfg.backbone.name} has no such stem, for it is not made of bottlenecks"
        yield UserError(what, f"choose backbone= one of: {', '.join(ResNetConfig.DEEP)}, or leave backbone.stem out")


@_relates("backbone.stem", "backbone.name", "backbone.weights", "backbone.pretrained")
def _weights_of_a_deep_stem_are_a_file(cfg: Config) -> Iterator[UserError]:
    """They cannot be fetched by name."""
    if _has_deep_stem(cfg) and cfg.backbone.pretrained and cfg.backbone.weights is None:
        what = "backbone.stem=deep starts from a file that backbone.weights names: torchvision has none of this stem"
        where = ResNetConfig.deep_weights(cfg.backbone.name)
        yield UserError(what, f"set backbone.weights=/path/to/{where}; or set backbone.pretrained=false")


@_relates("model.name", "backbone.name")
def _the_backbone_has_what_the_method_needs(cfg: Config) -> Iterator[UserError]:
    """What a method asks of its backbone besides the three stages is there."""
    needs, name = MethodConfig.named(cfg.model.name).NEEDS, cfg.backbone.name
    if lacking := sorted(needs - BackboneConfig.named(name).provides(cfg.backbone)):
        choices = BackboneConfig.choices().items()
        fitting = [other for other, schema in choices if needs <= schema.provides(schema(name=other))]
        what = f"method={cfg.model.name} needs {' and '.join(lacking)} of its backbone, which {name} does not provide"
        yield UserError(what, f"choose backbone= one of: {', '.join(fitting)}")


@_relates("eval.background_shifts")
def _the_data_set_has_backgrounds_to_shift(cfg: Config) -> Iterator[UserError]:
    """The images of the data set are known to stand on families of backgrounds."""
    shifts = list(cfg.eval.background_shifts)
    if shifts and not hasattr(cfg.dataset, "background_shift"):
        what = f"eval.background_shifts={shifts}: {cfg.dataset.name} knows no background families"
        yield UserError(what, "leave eval.background_shifts out, or choose dataset=shapes5i")


@_relates("eval.background_shifts", "protocol.episodes_file")
def _shifts_can_change_the_episodes(cfg: Config) -> Iterator[UserError]:
    """Other backgrounds are other episodes: they are not given by a file."""
    shifts = list(cfg.eval.background_shifts)
    if shifts and hasattr(cfg.dataset, "background_shift") and cfg.protocol.episodes_file is not None:
        what = f"eval.background_shifts={shifts} cannot change the episodes of protocol.episodes_file"
        yield UserError(what, "leave one of the two out")


@_relates("protocol.train_pool", "dataset.name")
def _the_data_set_has_training_pools(cfg: Config) -> Iterator[UserError]:
    """A pool is one of PASCAL's."""
    if (pool := cfg.protocol.train_pool) is not None and cfg.dataset.name != "pascal5i":
        what = f"protocol.train_pool={shown(pool)} is of pascal5i, and changes nothing of {cfg.dataset.name}"
        other = "; dataset.train_list=FILE names images of coco20i" if cfg.dataset.name == "coco20i" else ""
        yield UserError(what, f"leave protocol.train_pool out{other}")


@_relates("train.select", "eval.every_epochs")
def _base_classes_are_scored_to_choose_by(cfg: Config) -> Iterator[UserError]:
    """The best on base classes is known where these are validated; a method that trains nothing has none."""
    if cfg.train.enabled and trains(cfg) and "best_base" in cfg.train.select and not cfg.eval.every_epochs:
        what = "train.select=[best_base] chooses by base classes, which eval.every_epochs=0 does not score"
        yield UserError(what, "set eval.every_epochs=1 as well, which holds training images back, or leave it out")


@_relates("train.select", "eval.enabled")
def _novel_classes_are_scored_to_choose_by(cfg: Config) -> Iterator[UserError]:
    """The best on novel classes needs their episodes."""
    if cfg.train.enabled and trains(cfg) and "best_novel" in cfg.train.select and not cfg.eval.enabled:
        what = "train.select=[best_novel] chooses by novel classes, which eval.enabled=false does not score"
        yield UserError(what, "set eval.enabled=true, or leave best_novel out")


@_relates("dataset.label_maps", "dataset.coco_masks")
def _label_maps_are_read(cfg: Config) -> Iterator[UserError]:
    """A folder of label maps is given to be used."""
    if (maps := _get(cfg, "dataset.label_maps")) is not None and (rule := _get(cfg, "dataset.coco_masks")) != "maps":
        what = f"dataset.label_maps={shown(maps)} is not read with dataset.coco_masks={rule}"
        yield UserError(what, "set dataset.coco_masks=maps as well, or leave dataset.label_maps out")


@_relates("dataset.name", "dataset.val_list", "protocol.query_order", "protocol.episodes_file", of_runs=True)
def _the_first_n_of_coco_are_those_of_a_list(cfg: Config) -> Iterator[UserError]:
    """The published list of COCO is shuffled: without its file the first N are other images."""
    if cfg.model.name in BASE_LEARNERS:
        return
    drawn = cfg.eval.enabled and cfg.protocol.episodes_file is None and cfg.protocol.query_order == "first_n"
    if drawn and cfg.dataset.name == "coco20i" and _get(cfg, "dataset.val_list") is None:
        yield UserError(
            "protocol.query_order=first_n takes the first images of the published list, which is shuffled: "
            "dataset.val_list does not name its file",
            "set dataset.val_list to lists/coco/val.txt of PFENet or BAM, or choose protocol.query_order=class_uniform "
            "or protocol=standard",
        )


@_relates("protocol.novel_in_training", "protocol.ignore_in_loss")
def _what_is_ignored_is_left_out_of_the_loss(cfg: Config) -> Iterator[UserError]:
    """Novel pixels marked as 255 are not trained as background."""
    if cfg.protocol.novel_in_training == "ignore" and not cfg.protocol.ignore_in_loss:
        yield UserError(
            "protocol.novel_in_training=ignore needs protocol.ignore_in_loss=true: 255 would be trained as background",
            "set protocol.ignore_in_loss=true, or protocol.novel_in_training=background",
        )


@_relates("dataset.image_size", "shot", "train.batch_size", "eval.batch_size")
def _a_batch_fits_into_memory(cfg: Config) -> Iterator[UserError]:
    """The images of a batch alone leave room for a model: 2**31 pixels are 26 GB."""
    for key, size in (("train.batch_size", cfg.train.batch_size), ("eval.batch_size", cfg.eval.batch_size)):
        if size is not None and (pixels := size * (cfg.shot + 1) * cfg.dataset.image_size**2) > 2**31:
            what = f"{key}={size} episodes of {cfg.shot + 1} images are {pixels:.3g} pixels: no memory holds them"
            yield UserError(what, f"lower {key}, shot or dataset.image_size")


@_relates("train.accumulate", "train.batch_size")
def _a_batch_has_an_episode_for_each_part(cfg: Config) -> Iterator[UserError]:
    """No part of a batch is empty; with several processes each has its share to split."""
    parts, episodes = cfg.train.accumulate, cfg.train.batch_size
    if parts > episodes:
        what = f"train.accumulate={parts} cannot split a batch of {episodes} (train.batch_size)"
        yield UserError(what, f"set train.accumulate to {episodes} or less")


@_relates("protocol.num_episodes", "protocol.seeds", "eval.background_shifts")
def _the_episodes_can_be_counted(cfg: Config) -> Iterator[UserError]:
    """All of them are listed before the first is evaluated; published protocols have 100,000 at most."""
    seeds, evaluations = len(cfg.protocol.seeds), 1 + len(cfg.eval.background_shifts)
    if (number := cfg.protocol.num_episodes * seeds * evaluations) > 1_000_000:
        what = f"protocol.num_episodes={cfg.protocol.num_episodes} with {seeds} seeds makes {number} episodes"
        yield UserError(what, "lower protocol.num_episodes, or give fewer protocol.seeds: 1000000 are the most")


@_relates("logger.figures", "logger.steps", "model.iterations")
def _a_sheet_fits_into_an_image(cfg: Config) -> Iterator[UserError]:
    """With the predictions after all steps, a sheet has a column for each step and a row for each episode."""
    figures, rounds = cfg.logger.figures, _get(cfg, "model.iterations") or 1
    if cfg.logger.steps and figures * rounds > 1000:
        what = f"logger.figures={figures} with the steps of {rounds} rounds are more pictures than one sheet holds"
        yield UserError(what, f"set logger.figures to {1000 // rounds} or less, or logger.steps=false")


@_relates("model.heads", "model.channels")
def _heads_divide_the_channels(cfg: Config) -> Iterator[UserError]:
    """Every attention head is equally wide."""
    heads, channels = _get(cfg, "model.heads"), _get(cfg, "model.channels")
    if heads and channels % heads:
        what = f"model.heads={heads} does not divide model.channels={channels}"
        yield UserError(what, "choose a number of heads that divides the width")


@_relates("model.cleansing", "model.modulation")
def _cleansing_follows_modulation(cfg: Config) -> Iterator[UserError]:
    """Information cleansing has something to cleanse."""
    if _get(cfg, "model.cleansing") and not _get(cfg, "model.modulation"):
        what = "model.cleansing=true needs model.modulation=true: IC cleans what SM added"
        yield UserError(what, "set model.cleansing=false as well")


@_relates("model.modulation", "model.pixel_evolution", "model.structure_evolution")
def _modulation_has_an_evolution(cfg: Config) -> Iterator[UserError]:
    """Support modulation has at least one of its two parts."""
    evolution = _get(cfg, "model.pixel_evolution") or _get(cfg, "model.structure_evolution")
    if _get(cfg, "model.modulation") and not evolution:
        fix = "switch one of model.pixel_evolution, model.structure_evolution on"
        yield UserError("support modulation has neither E_p nor E_s", fix)


@_relates("train.enabled", "eval.enabled")
def _there_is_something_to_do(cfg: Config) -> Iterator[UserError]:
    """A run trains, or evaluates, or both."""
    if not cfg.train.enabled and not cfg.eval.enabled:
        yield UserError("train.enabled=false and eval.enabled=false leave nothing to do", "switch one of them on")


@_relates("train.enabled", "checkpoint")
def _there_are_weights_to_evaluate(cfg: Config) -> Iterator[UserError]:
    """What is not trained has a checkpoint, or needs no training."""
    if not cfg.train.enabled and cfg.checkpoint is None and trains(cfg):
        fix = "name a checkpoint: checkpoint=outputs/.../checkpoints/last.pt"
        yield UserError("train.enabled=false has nothing to evaluate", fix)
