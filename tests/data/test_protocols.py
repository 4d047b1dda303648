"""Each named protocol against the code it names: what docs/data.md claims to be equal is held to a plain restatement.

The table there is read: every "=" in it has a check here, and every check a "=".
"""

from __future__ import annotations

import copy
import random as python_random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_source import index_of
from torch.nn import functional

from fsseg.config.compose import compose
from fsseg.config.schema import Config
from fsseg.data.episodes import EpisodeSampler, evaluation_episodes
from fsseg.data.lists import FoldLists, train_lists, val_lists
from fsseg.data.loader import evaluation_transform, train_transform
from fsseg.data.source import ClassIndex
from fsseg.data.transforms import TrainTransform
from fsseg.data.types import EpisodeSpec
from fsseg.engine.metrics import PooledScore
from fsseg.engine.scoring import predicted_foreground
from fsseg.model.base import training_target

PRESETS = ("hsnet", "pfenet", "bam", "hdmnet")
DATASETS = ("pascal5i", "coco20i")
NAMES = tuple(f"class{c}" for c in range(8))
NOVEL = (1, 4)
BASE = tuple(c for c in range(8) if c not in NOVEL)
Check = Callable[[str, str], None]
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {}


def point(name: str, *datasets: str) -> Callable[[Check], Check]:
    """A check of a point of the table, for each data set that it speaks of: (preset, data set)."""

    def register(check: Check) -> Check:
        CHECKS[name] = (check, datasets or DATASETS)
        return check

    return register


def table() -> dict[tuple[str, str], str]:
    """(point, preset) -> what the page says."""
    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    section = page.split("### The named protocols, point by point")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["point", *PRESETS]
    return {(row[0], preset): said for row in rows[2:] for preset, said in zip(PRESETS, row[1:], strict=True)}


# ------------------------------------------------------------------------------------------------- material


@cache
def config(preset: str, dataset: str) -> Config:
    files = ["dataset.val_list=/a/list"] if dataset == "coco20i" else []
    return compose([f"protocol={preset}", f"dataset={dataset}", "backbone.pretrained=false", *files]).cfg


@cache
def annotated() -> dict[str, dict[int, int]]:
    """Image -> pixels of each of its classes: sizes on both sides of 2048, and images with novel classes among them."""
    draw = python_random.Random(5)
    sizes = (1, 40, 2047, 2048, 2049, 9000)
    images = {f"i{n}": {c: draw.choice(sizes) for c in draw.sample(range(8), draw.randint(1, 3))} for n in range(160)}
    return images | {f"j{n}": {n % 8: 3000} for n in range(40)}


@cache
def index() -> ClassIndex:
    made = index_of(annotated())
    # a grid that knows nothing of the pixels: more than 2 for the first 110 images
    grid = np.where(made.pair_image < 110, 3, 2).astype(np.int32)
    return ClassIndex(made.image_ids, made.pair_image, made.pair_class, made.pair_pixels, grid)


@cache
def first(number: int) -> set[str]:
    return set(index().image_ids[:number])


def listed(image: str, c: int, preset: str, dataset: str) -> bool:
    """Whether the code's lists have the pair."""
    if (preset, dataset) == ("hsnet", "pascal5i"):
        return image in first(110)
    return annotated()[image][c] >= 2048


def lists(preset: str, dataset: str, split: str, shot: int = 1) -> FoldLists:
    make = train_lists if split == "train" else val_lists
    return make(index(), NOVEL, config(preset, dataset).protocol, shot, NAMES)


def drawn_at_test(preset: str, dataset: str, shot: int = 1, seed: int = 0, number: int = 500) -> list[EpisodeSpec]:
    """The first evaluation episodes of a seed."""
    rules = copy.deepcopy(config(preset, dataset).protocol)
    rules.num_episodes = number
    return evaluation_episodes(lists(preset, dataset, "val", shot), rules, shot, seed)


def sampler(preset: str, dataset: str, shot: int = 1) -> EpisodeSampler:
    return EpisodeSampler(lists(preset, dataset, "train", shot), shot, 0, config(preset, dataset).protocol)


# ------------------------------------------------------------------------------------------------- points


def _listed_pairs(preset: str, dataset: str) -> None:
    whole = {(i, c) for i, classes in annotated().items() for c in classes if listed(i, c, preset, dataset)}
    found = set(lists(preset, dataset, "val").pairs)
    assert found == {(i, c) for i, c in whole if c in NOVEL}
    kept = {i for i, classes in annotated().items() if preset in ("hsnet", "pfenet") or not set(classes) & set(NOVEL)}
    assert set(lists(preset, dataset, "train").pairs) == {(i, c) for i, c in whole if c in BASE and i in kept}


point("PASCAL, lists", "pascal5i")(_listed_pairs)


@point("COCO, masks and lists", "coco20i")
def _coco(preset: str, dataset: str) -> None:
    cfg: Any = config(preset, dataset)
    assert (cfg.dataset.coco_masks, cfg.dataset.year, cfg.dataset.contiguous_folds) == ("painted", 2014, False)
    _listed_pairs(preset, dataset)


@point("novel classes in training images")
def _novel(preset: str, dataset: str) -> None:
    images = set(lists(preset, dataset, "train").images)
    with_novel = {i for i in images if set(annotated()[i]) & set(NOVEL)}
    assert bool(with_novel) == (preset in ("hsnet", "pfenet"))
    assert config(preset, dataset).protocol.novel_in_training != "ignore"  # what is kept is background


@point("query in training")
def _train_query(preset: str, dataset: str) -> None:
    made, of_fold = sampler(preset, dataset), lists(preset, dataset, "train")
    specs = [made[number] for number in range(2 * len(made))]
    epochs = specs[: len(made)], specs[len(made) :]
    if (preset, dataset) == ("hsnet", "pascal5i"):
        for epoch in epochs:
            assert sorted((s.query_id, s.class_id) for s in epoch) == sorted(of_fold.pairs)
    elif preset == "hsnet":
        assert len(made) == len(of_fold.images)
        drawn = [made[number].class_id for number in range(3000)]
        for c in BASE:  # 500 of 3000 each, however many images it has, give or take 5 deviations
            assert abs(drawn.count(c) - 500) < 5 * 21
    else:
        for epoch in epochs:
            assert sorted(s.query_id for s in epoch) == sorted(of_fold.images)
    assert [s.query_id for s in epochs[0]] != [s.query_id for s in epochs[1]]


@point("class of a query")
def _query_class(preset: str, dataset: str) -> None:
    made = sampler(preset, dataset)
    trained: dict[str, set[int]] = {}
    for number in range(30 * len(made)):  # of three classes one is missed once in 60,000 images
        trained.setdefault(made[number].query_id, set()).add(made[number].class_id)
    evaluated: dict[str, set[int]] = {}
    for seed in range(8):
        for spec in drawn_at_test(preset, dataset, seed=seed):
            evaluated.setdefault(spec.query_id, set()).add(spec.class_id)
    for found, usable in ((trained, BASE), (evaluated, NOVEL)):
        for image, classes in found.items():
            held = set(annotated()[image]) & set(usable)
            assert classes == (held if preset != "hsnet" else {c for c in held if listed(image, c, preset, dataset)})


@point("query at test")
def _test_query(preset: str, dataset: str) -> None:
    specs = drawn_at_test(preset, dataset, seed=config(preset, dataset).protocol.seeds[0])
    order = [i for i in annotated() if any(c in NOVEL and listed(i, c, preset, dataset) for c in annotated()[i])]
    if (preset, dataset) == ("hsnet", "pascal5i"):
        pairs = [(i, c) for i in order for c in sorted(annotated()[i]) if c in NOVEL and listed(i, c, preset, dataset)]
        assert [(s.query_id, s.class_id) for s in specs] == [pairs[n % len(pairs)] for n in range(len(specs))]
    elif preset == "hsnet":
        drawn = [s.class_id for s in specs]
        assert abs(drawn.count(NOVEL[0]) - len(drawn) / 2) < 5 * (len(drawn) / 4) ** 0.5
    else:
        assert [s.query_id for s in specs] == [order[n % len(order)] for n in range(len(specs))]


@point("supports")
def _supports(preset: str, dataset: str) -> None:
    shot, repeats = 5, 0
    made = sampler(preset, dataset, shot)
    for spec in (*(made[number] for number in range(600)), *drawn_at_test(preset, dataset, shot)):
        assert spec.query_id not in spec.support_ids
        assert all(listed(i, spec.class_id, preset, dataset) for i in spec.support_ids)
        repeats += len(set(spec.support_ids)) < shot
    assert (repeats > 0) == (preset == "hsnet")


@point("episodes x seeds")
def _episodes(preset: str, dataset: str) -> None:
    number = {"hsnet": 1000, "bam": 1000, "hdmnet": {"pascal5i": 1000, "coco20i": 10000}}[preset]
    rules = config(preset, dataset).protocol
    assert rules.num_episodes == (number if isinstance(number, int) else number[dataset])
    assert len(rules.seeds) == {"hsnet": 1, "bam": 5, "hdmnet": 10}[preset]
    if preset != "hsnet":
        rng = np.random.RandomState(123)
        assert list(rules.seeds) == rng.randint(0, 1000, len(rules.seeds)).tolist()


@point("class never drawn")
def _undrawn(preset: str, dataset: str) -> None:
    assert config(preset, dataset).protocol.undrawn == "zero"  # what that does: tests/engine/test_evaluate.py


@point("network input")
def _size(preset: str, dataset: str) -> None:
    sizes = {"hsnet": (400, 400), "pfenet": (473, 641), "bam": (473, 641), "hdmnet": (473, 633)}
    assert config(preset, dataset).dataset.image_size == sizes[preset][DATASETS.index(dataset)]


@point("PASCAL, training pool", "pascal5i")
def _pool(preset: str, dataset: str) -> None:
    cfg: Any = config(preset, dataset)
    assert cfg.dataset.train_list == "merged_5953"  # what that is: tests/data/sources/test_voc.py


def sample(size: tuple[int, int]) -> tuple[Any, Any]:
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = ((abs(rows - size[0] / 2) < size[0] / 5) & (abs(columns - size[1] / 2) < size[1] / 5)).astype(np.uint8)
    return np.full((*size, 3), 200, np.uint8), mask


@point("fit at test")
def _test_fit(preset: str, dataset: str) -> None:
    side = config(preset, dataset).dataset.image_size
    for height, width in ((375, 500), (500, 334), (480, 640), (640, 640), (90, 50)):
        made = evaluation_transform(config(preset, dataset))(*sample((height, width)))
        if preset in ("hsnet", "hdmnet"):
            assert made.picture.all()
            continue
        longer = max(height, width)
        down, across = (int((side if s == longer else int(s * (side / longer))) / 8) * 8 for s in (height, width))
        picture = torch.zeros(side, side, dtype=torch.bool)
        picture[:down, :across] = True
        assert torch.equal(made.picture, picture)
        black = [-m / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
        assert torch.allclose(made.image[:, ~picture], torch.tensor(black)[:, None])
        assert (made.mask[~picture] == 255).all()


@point("fit in training")
def _train_fit(preset: str, dataset: str) -> None:
    cfg: Any = config(preset, dataset)
    side, (low, high) = cfg.dataset.image_size, cfg.dataset.scale_range
    for seed in range(6):
        height, width = ((375, 500), (300, 400), (700, 900))[seed % 3]
        made = train_transform(cfg)(*sample((height, width)), python_random.Random(seed))
        if preset in ("hsnet", "hdmnet"):
            assert made.picture.all()
            assert abs(float((made.mask == 1).float().mean()) - 0.16) < 0.01  # 2/5 of each side: nothing was cut off
            continue
        rows, columns = np.flatnonzero(made.picture.any(1)), np.flatnonzero(made.picture.any(0))
        assert min(int(low * height), side) <= len(rows) <= min(int(high * height) + 1, side)
        assert min(int(low * width), side) <= len(columns) <= min(int(high * width) + 1, side)
        assert (rows[0], columns[0]) == ((side - len(rows)) // 2, (side - len(columns)) // 2)
        assert (made.image[:, ~made.picture] == 0).all()  # the mean, normalised


@point("padding in the model")
def _padding(preset: str, dataset: str) -> None:
    for transform in (evaluation_transform(config(preset, dataset)), train_transform(config(preset, dataset))):
        of_random = (python_random.Random(0),) if isinstance(transform, TrainTransform) else ()
        assert transform(*sample((300, 500)), *of_random).picture.all()


@point("scoring")
def _scoring(preset: str, dataset: str) -> None:
    rules, side = config(preset, dataset).protocol, 41
    logits = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(1))
    network = functional.interpolate(logits[None], (side, side), mode="bilinear", align_corners=True)
    own = (30, 50)
    if preset == "hsnet":
        assert rules.scoring_size == "network"
        found = predicted_foreground(logits[None], (side, side), (side, side), None, rules.fit)
        assert torch.equal(found, network[:, 1] > network[:, 0])
        return
    assert rules.scoring_size == "original"
    square = own if preset == "hdmnet" else (50, 50)
    whole = functional.interpolate(network, square, mode="bilinear", align_corners=True)[..., :30, :50]
    found = predicted_foreground(logits[None], (side, side), (24, 40), own, rules.fit)
    assert torch.equal(found, whole[:, 1] > whole[:, 0])


@point("pixels of 255")
def _ignored(preset: str, dataset: str) -> None:
    mask = torch.tensor([[[0, 1, 255, 255]]], dtype=torch.uint8)
    batch: Any = SimpleNamespace(query_mask=mask, query_picture=torch.tensor([[[True, True, True, False]]]))
    target = training_target(batch, config(preset, dataset).protocol.ignore_in_loss)
    assert target.tolist() == [[[0, 1, 0 if preset == "hsnet" else 255, 255]]]  # the last pixel is padding
    score = PooledScore(1)
    score.add(0, np.array([[True, True, True]]), np.array([[0, 1, 255]], np.uint8))
    assert (score.intersection[0], score.union[0]) == (1, 2)


# ---------------------------------------------------------------------------------------------- the table


def test_the_table_says_of_every_point_whether_it_is_equal() -> None:
    assert {said[0] for said in table().values()} == {"=", "≠"}


def test_every_claim_of_the_table_has_a_check_and_every_check_a_claim() -> None:
    assert {name for (name, _), said in table().items() if said[0] == "="} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "preset", "dataset"),
    [
        (name, preset, dataset)
        for (name, preset), said in table().items()
        if said[0] == "="
        for dataset in CHECKS.get(name, (None, ()))[1]
    ],
)
def test_what_is_claimed_equal_is_equal(name: str, preset: str, dataset: str) -> None:
    CHECKS[name][0](preset, dataset)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_does_not_do_stands_in_its_file(preset: str) -> None:
    """Every point of the table has a line, and every line belongs to one: several points may share a line."""
    unlike = list(config(preset, "pascal5i").protocol.unlike)
    words = {
        "PASCAL, training pool": ["lists differ"], "PASCAL, lists": ["lists differ"],
        "episodes x seeds": ["one episode more"], "seeds": ["generator"], "scaling": ["scaled"],
        "padding in the model": ["padding"],
        "which weights are scored": ["final weights"],
        "training recipe": ["recipe", "base learner"],
        "backbone": ["of torchvision", "dilated", "trained on the base classes"],
    }  # fmt: skip
    different = {name for (name, of), said in table().items() if of == preset and said[0] == "≠"}
    for name in different:
        assert any(word in line for line in unlike for word in words[name]), (name, unlike)
    known = {word for name in different for word in words[name]}
    assert [line for line in unlike if sum(word in line for word in known) != 1] == []
    assert list(config("standard", "pascal5i").protocol.unlike) == []
