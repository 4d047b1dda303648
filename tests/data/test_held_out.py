"""Which training images are held back, by hand, and that nobody trains on them."""

from __future__ import annotations

import random as python_random
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_source import FakeSource
from hypothesis import given
from hypothesis import strategies as st
from visited import evaluation_batches

from fsseg.config.schema import DatasetConfig, EvalConfig, ProtocolConfig, TrainConfig
from fsseg.data import held_out
from fsseg.data.held_out import hold_back
from fsseg.data.lists import FoldLists
from fsseg.data.loader import training_plan
from fsseg.errors import UserError

# image -> its classes. Class 2 has three images: too few to train and to validate on, with one shot.
IMAGES = {"a": (0, 1), "b": (0,), "c": (1,), "d": (0,), "e": (1,), "f": (0, 1), "g": (0,), "h": (1,),
          "i": (2,), "j": (2,), "k": (2,)}  # fmt: skip


def lists_of(images: dict[str, tuple[int, ...]]) -> FoldLists:
    classes = sorted({c for own in images.values() for c in own})
    members = {c: tuple(image for image, own in images.items() if c in own) for c in classes}
    return FoldLists(tuple(images), tuple(images.values()), members, (), tuple(images.values()))


def config(share: float, every: int = 1, shot: int = 1, seed: int = 0, fold: int = 0, **protocol: Any) -> Any:
    return SimpleNamespace(
        fold=fold, shot=shot, seed=seed, num_workers=0, dataset=DatasetConfig(name="fake", root="", image_size=33),
        protocol=ProtocolConfig(**{"name": "p"} | protocol), train=TrainConfig(epochs=1, batch_size=4, lr=0.1),
        eval=EvalConfig(batch_size=8, every_epochs=every, base_share=share, base_episodes=150),
    )  # fmt: skip


@pytest.fixture
def in_list_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "permutation", lambda count, key: list(range(count)))


@pytest.mark.usefixtures("in_list_order")
def test_the_share_by_hand() -> None:
    # 0.4 of 11 images are 4. Class 0 wants two: a, b. Class 1 has a already, and takes c. Class 2 would keep only one.
    # The fourth is the next in order, d: class 0 keeps f and g.
    trained, validated = hold_back(lists_of(IMAGES), config(0.4))
    assert trained.candidates == {0: ("f", "g"), 1: ("e", "f", "h"), 2: ("i", "j", "k")}
    assert trained.images == ("e", "f", "g", "h", "i", "j", "k")
    assert trained.classes_of == trained.query_classes == ((1,), (0, 1), (0,), (1,), (2,), (2,), (2,))
    assert trained.missing_classes == ()
    assert validated is not None
    assert validated.candidates == {0: ("a", "b", "d"), 1: ("a", "c")}
    assert validated.pairs == (("a", 0), ("a", 1), ("b", 0), ("c", 1), ("d", 0))
    assert validated.missing_classes == (2,)


@pytest.mark.usefixtures("in_list_order")
def test_no_class_loses_the_images_it_needs_to_be_trained_on() -> None:
    # Up to 6 of 11: after a, b, c, d come e (class 1 keeps f and h) and, past f, g and h, i (class 2 keeps j and k).
    trained, validated = hold_back(lists_of(IMAGES), config(0.5))
    assert trained.candidates == {0: ("f", "g"), 1: ("f", "h"), 2: ("j", "k")}
    assert validated is not None
    assert validated.images == ("a", "b", "c", "d", "e")  # i is held back too, but alone of its class
    assert "i" not in trained.images
    # five shots need six images of a class: there is nothing that could be spared
    with pytest.raises(UserError, match=r"eval\.base_share=0\.5 holds 0 of 11 training images back: no base class"):
        hold_back(lists_of(IMAGES), config(0.5, shot=5))


def test_the_order_is_drawn_by_the_seed_alone() -> None:
    images = {f"i{n}": (0,) for n in range(20)}
    for seed in (0, 1, 7):
        draw, order = Random(f"fsseg held back {seed}").random, list(range(20))
        for i in range(19, 0, -1):
            j = int(draw() * (i + 1))
            order[i], order[j] = order[j], order[i]
        _, validated = hold_back(lists_of(images), config(0.25, seed=seed))
        assert validated is not None
        assert set(validated.images) == {f"i{n}" for n in order[:5]}
    assert hold_back(lists_of(images), config(0.25, every=3, seed=7)) == hold_back(
        lists_of(images), config(0.25, seed=7)
    )


def test_too_small_a_share_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(UserError, match=r"eval\.base_share=0\.05 holds 1 of 11 training images back") as caught:
        hold_back(lists_of(IMAGES), config(0.05))
    assert "raise eval.base_share" in caught.value.fix


def test_without_validation_nothing_is_held_back() -> None:
    lists = lists_of(IMAGES)
    trained, validated = hold_back(lists, config(0.5, every=0))
    assert trained is lists
    assert validated is None


@given(
    images=st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=8, max_size=60),
    share=st.floats(0.02, 0.5),
    shot=st.integers(1, 3),
)
def test_held_back_is_apart_from_trained(images: list[set[int]], share: float, shot: int) -> None:
    every = {f"i{n}": tuple(sorted(own)) for n, own in enumerate(images)}
    counts = {c: sum(c in own for own in images) for c in range(6)}
    usable = {c for c in counts if counts[c] > shot}  # K supports and the query
    named = {name: own for name, given in every.items() if (own := tuple(c for c in given if c in usable))}
    if not named:
        return
    try:
        trained, validated = hold_back(lists_of(named), config(share, shot=shot))
    except UserError:
        return
    assert validated is not None
    of_training = {i for ids in trained.candidates.values() for i in ids}
    of_validation = {i for ids in validated.candidates.values() for i in ids}
    assert of_training == set(trained.images)
    assert of_validation == set(validated.images)
    assert not of_training & of_validation
    assert len(named) - len(of_training) <= max(1, round(share * len(named)))
    assert set(trained.candidates) == usable  # no class is lost
    assert all(len(ids) > shot for ids in (*trained.candidates.values(), *validated.candidates.values()))


def source(seed: int = 0) -> FakeSource:
    draw = python_random.Random(seed)
    images = {
        f"train{n}": {draw.randrange(8): draw.choice((9, 9000, 9000)) for _ in range(draw.randrange(1, 4))}
        for n in range(90)
    }
    return FakeSource({"train": images, "val": {}})


@pytest.mark.parametrize("rule", ["drop", "background", "ignore"])
@pytest.mark.parametrize(
    ("fold", "shot", "rules"),
    [
        (0, 1, {}),
        (1, 1, {"query_class": "any_size"}),
        (2, 1, {"train_query": "class_uniform"}),
        (3, 2, {"train_query": "pair", "repeat_support": True}),
    ],
)
def test_no_image_of_the_validation_is_in_a_training_episode(
    rule: str, fold: int, shot: int, rules: dict[str, Any]
) -> None:
    data, rules = source(fold), rules | {"novel_in_training": rule}
    cfg = config(0.3, shot=shot, fold=fold, **rules)
    plan = training_plan(data, cfg)
    assert plan.validation is not None
    assert plan.validation.split == "train"
    (specs,) = plan.validation.episodes.values()
    assert len(specs) == 150
    validated = {i for s in specs for i in (s.query_id, *s.support_ids)}
    trained = [plan.sampler[e] for e in range(3 * plan.num_images)]
    assert not validated & {i for s in trained for i in (s.query_id, *s.support_ids)}
    novel = set(data.novel_classes(fold))
    assert {s.class_id for s in specs} == set(plan.validation.classes) <= set(range(8)) - novel
    assert all(s.class_id in data.images["train"][i] for s in specs for i in (s.query_id, *s.support_ids))
    assert all(s.query_id not in s.support_ids for s in specs)
    assert training_plan(data, cfg).validation == plan.validation
    assert all(s.class_id in data.images["train"][i] for s in trained for i in (s.query_id, *s.support_ids))
    alone = training_plan(data, config(0.3, every=0, shot=shot, fold=fold, **rules))
    assert alone.num_images == plan.num_images + plan.held_out


@pytest.mark.parametrize(("rule", "expected"), [("background", 0), ("ignore", 255)])
def test_novel_pixels_are_in_the_truth_what_they_are_in_training(rule: str, expected: int) -> None:
    data = source()
    cfg = config(0.4, novel_in_training=rule)
    plan = training_plan(data, cfg).validation
    assert plan is not None
    seen: set[int] = set()
    for batch in evaluation_batches(data, cfg, plan.episodes[0], plan.split, plan.ignore_classes):  # type: ignore[arg-type]
        for spec, truth in zip(batch.specs, batch.query_truths):
            assert truth is not None
            labels = data.labels("train", spec.query_id)
            assert (truth == 1).sum() == (labels == spec.class_id + 1).sum() > 0
            seen |= set(np.unique(truth[np.isin(labels, [c + 1 for c in data.novel_classes(0)])]).tolist())
    assert seen == {expected}
