"""Each named protocol against the code it names: what docs/data.md claims to be equal is held to a plain restatement.

The table there is read: every "=" in it has a check here, and every check a "=".
"""

from __future__ import annotations

import random as python_random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_source import index_of

from fsseg.config.compose import compose
from fsseg.config.schema import Config
from fsseg.data.episodes import EpisodeSampler, evaluation_episodes
from fsseg.data.lists import FoldLists, train_lists, val_lists
from fsseg.data.source import ClassIndex

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
    """As many points as the table has: seeds and episodes may share a line with others, none is left out."""
    unlike = list(config(preset, "pascal5i").protocol.unlike)
    words = {
        "PASCAL, training pool": "lists differ", "PASCAL, lists": "lists differ", "episodes x seeds": "one episode more",
        "seeds": "generator", "scaling of images": "scaled", "which weights are scored": "final weights",
        "training recipe": "recipe", "backbone": "backbone",
    }  # fmt: skip
    different = {name for (name, of), said in table().items() if of == preset and said[0] == "≠"}
    for name in different:
        assert any(words[name] in line for line in unlike), (name, unlike)
    assert len(unlike) == len({words[name] for name in different})
    assert list(config("standard", "pascal5i").protocol.unlike) == []


# -------------------------------------------------------------------------------------------------------------- material


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


def listed(image: str, c: int, preset: str, dataset: str) -> bool:
    """Whether the code's lists have the pair."""
    if (preset, dataset) == ("hsnet", "pascal5i"):
        return index().image_ids.index(image) < 110
    return annotated()[image][c] >= 2048


def lists(preset: str, dataset: str, split: str, shot: int = 1) -> FoldLists:
    make = train_lists if split == "train" else val_lists
    return make(index(), NOVEL, config(preset, dataset).protocol, shot, NAMES)


def sampler(preset: str, dataset: str, shot: int = 1) -> EpisodeSampler:
    return EpisodeSampler(lists(preset, dataset, "train", shot), shot, 0, config(preset, dataset).protocol)


# ---------------------------------------------------------------------------------------------------------------- points


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
        drawn = [made[number].class_id for number in range(6000)]
        for c in BASE:  # uniform over classes, however many images each has: 1000 of 6000, give or take 5 deviations
            assert abs(drawn.count(c) - 1000) < 5 * 29
    else:
        for epoch in epochs:
            assert sorted(s.query_id for s in epoch) == sorted(of_fold.images)
    assert [s.query_id for s in epochs[0]] != [s.query_id for s in epochs[1]]


@point("class of a query")
def _query_class(preset: str, dataset: str) -> None:
    made = sampler(preset, dataset)
    trained: dict[str, set[int]] = {}
    for number in range(60 * len(made)):
        trained.setdefault(made[number].query_id, set()).add(made[number].class_id)
    tested: dict[str, set[int]] = {}
    for seed in range(40):
        for spec in evaluation_episodes(lists(preset, dataset, "val"), config(preset, dataset).protocol, 1, seed)[:400]:
            tested.setdefault(spec.query_id, set()).add(spec.class_id)
    for found, usable in ((trained, BASE), (tested, NOVEL)):
        for image, classes in found.items():
            held = set(annotated()[image]) & set(usable)
            assert classes == (held if preset != "hsnet" else {c for c in held if listed(image, c, preset, dataset)})


@point("query at test")
def _test_query(preset: str, dataset: str) -> None:
    of_fold, rules = lists(preset, dataset, "val"), config(preset, dataset).protocol
    specs = evaluation_episodes(of_fold, rules, 1, rules.seeds[0])
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
    tested = evaluation_episodes(lists(preset, dataset, "val", shot), config(preset, dataset).protocol, shot, 0)[:600]
    for spec in (*(made[number] for number in range(600)), *tested):
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
