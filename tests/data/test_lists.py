"""Lists of one fold: which images and classes an episode may use."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_source import index_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.config.schema import PascalConfig, ProtocolConfig
from fsseg.data.lists import eligible_pairs, train_lists, val_lists
from fsseg.data.sources.voc import PascalSource
from fsseg.errors import UserError

NAMES = ("aeroplane", "bicycle", "bird", "boat")


def test_objects_below_the_smallest_size_are_not_listed_but_still_drop_the_image() -> None:
    index = index_of({"a": {2: 2048, 0: 1}, "b": {2: 2048, 3: 2047}, "c": {2: 5000}, "d": {3: 9000}, "e": {3: 2048}})
    lists = train_lists(index, (0, 1), ProtocolConfig(name="standard"), 1, NAMES)
    assert lists.candidates == {2: ("b", "c"), 3: ("d", "e")}  # a holds one novel pixel; b's boat is too small
    assert lists.images == ("b", "c", "d", "e")
    assert lists.pairs == (("b", 2), ("c", 2), ("d", 3), ("e", 3))


@pytest.mark.parametrize("rule", ["background", "ignore"])
def test_images_with_novel_pixels_stay_unless_dropped(rule: str) -> None:
    index = index_of({"a": {0: 9000, 2: 9000}, "b": {2: 9000}})
    lists = train_lists(index, (0, 1), ProtocolConfig(name="p", novel_in_training=rule), 1, NAMES)
    assert lists.candidates == {2: ("a", "b")}


def test_a_novel_class_without_enough_images_is_missing_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    index = index_of({"a": {0: 9000, 1: 9000}, "b": {0: 9000}, "c": {2: 9000}})
    lists = val_lists(index, (0, 1), ProtocolConfig(name="standard"), 1, NAMES)
    assert lists.missing_classes == (1,)
    assert lists.pairs == (("a", 0), ("b", 0))
    assert "bicycle (1)" in caplog.text


def test_five_shots_need_six_images_unless_supports_may_repeat() -> None:
    index = index_of({f"i{n}": {0: 9000} for n in range(5)})
    with pytest.raises(UserError, match="no novel class has the 6 images"):
        val_lists(index, (0,), ProtocolConfig(name="standard"), 5, NAMES)
    assert val_lists(index, (0,), ProtocolConfig(name="hsnet", repeat_support=True), 5, NAMES).classes == (0,)


GRID = ProtocolConfig(name="hsnet", list_rule="grid", novel_in_training="background")


def test_the_grid_rule_takes_more_than_two_grid_pixels_whatever_the_size() -> None:
    index = index_of({"a": {2: 5, 3: 90_000}, "b": {2: 2048, 0: 1}, "c": {2: 3}, "d": {3: 4}})
    on_grid = replace(index, pair_grid=np.array([3, 2, 0, 3, 3, 40], np.int32))  # a2, a3, b0, b2, c2, d3
    assert eligible_pairs(on_grid, (2, 3), GRID) == [(0, 2), (1, 2), (2, 2), (3, 3)]
    lists = train_lists(on_grid, (0, 1), GRID, 1, NAMES)
    assert lists.candidates == {2: ("a", "b", "c")}  # one image of a boat is too few
    dropped = train_lists(on_grid, (0, 1), replace(GRID, novel_in_training="drop"), 1, NAMES)
    assert dropped.candidates == {2: ("a", "c")}  # b holds a pixel of a novel class, though none on the grid
    assert on_grid.fingerprint == index.fingerprint


def test_a_data_set_without_grid_counts_refuses_the_rule() -> None:
    with pytest.raises(UserError, match=r"protocol\.list_rule=grid") as caught:
        val_lists(index_of({"a": {0: 9000}, "b": {0: 9000}}), (0,), GRID, 1, NAMES)
    assert "list_rule=pixels" in caught.value.fix


@pytest.mark.shared
def test_drop_keeps_what_bam_trains_on_of_the_published_5953_names(shared_dir: Path, voc_cache: Path) -> None:
    root = shared_dir / "data/voc_part"
    cfg = PascalConfig(name="pascal5i", root=str(root), cache=str(voc_cache), train_list="pfenet_train")
    source, rules = PascalSource(cfg), ProtocolConfig(name="p", min_pixels=2048, novel_in_training="drop")
    index = source.index("train")
    assert len(index.image_ids) == 5953
    lists = [train_lists(index, source.novel_classes(fold), rules, 1, source.classes) for fold in range(4)]
    assert [len(found.images) for found in lists] == [4208, 3726, 2752, 4510]
    # The pool lies in the other one, and holds all of VOC's own train list, whose masks alone have a boundary of 255.
    whole = PascalSource(replace(cfg, train_list=None))
    assert set(index.image_ids) < set(whole.index("train").image_ids)
    counts = whole.mask_counts("train")
    bounded = {i for i in whole.index("train").image_ids if 255 in counts[i].pixels}
    assert len(bounded) == 1464
    assert bounded < set(index.image_ids)


@pytest.mark.shared
def test_the_grid_gives_hsnets_lists_but_for_the_published_remainder(shared_dir: Path, voc_cache: Path) -> None:
    """Sizes are what is known of the lists; differences are summed class by class, so that none cancel out."""
    theirs = json.loads((shared_dir / "facts/folds.json").read_text())["pascal5i"]["hsnet_image_class_pairs"]
    sizes = json.loads((shared_dir / "facts/published_lists.json").read_text())["pascal5i_hsnet"]
    cfg = PascalConfig(name="pascal5i", root=str(shared_dir / "data/voc_part"), cache=str(voc_cache))
    source, off = PascalSource(cfg), {}
    for split, key in (("val", "val"), ("train", "train_file_of_fold")):
        off[split] = {}
        for fold in range(4):
            fact = theirs[key][str(fold)]
            assert fact["pairs"] == sizes[f"{split}_pairs_per_fold"][fold]
            found = Counter(c for _, c in eligible_pairs(source.index(split), source.novel_classes(fold), GRID))
            for c in source.novel_classes(fold):
                off[split][source.classes[c]] = found[c] - fact["per_class"][source.classes[c]]
    total = {split: sum(map(abs, classes.values())) for split, classes in off.items()}
    print(total, {split: {n: d for n, d in classes.items() if d} for split, classes in off.items()})
    assert total["val"] <= 8
    assert total["train"] <= 102


@settings(max_examples=100, deadline=None)
@given(
    images=st.lists(st.dictionaries(st.integers(0, 7), st.integers(1, 5000), max_size=4), max_size=25),
    fold=st.integers(0, 3),
    rule=st.sampled_from(["drop", "background", "ignore"]),
    min_pixels=st.sampled_from([0, 2048]),
    shot=st.sampled_from([1, 5]),
    repeat=st.booleans(),
)
def test_training_lists_agree_with_the_definition(
    images: list[dict[int, int]], fold: int, rule: str, min_pixels: int, shot: int, repeat: bool
) -> None:
    named = {f"i{n}": pairs for n, pairs in enumerate(images)}
    novel = {2 * fold, 2 * fold + 1}
    protocol = ProtocolConfig(name="p", novel_in_training=rule, min_pixels=min_pixels, repeat_support=repeat)
    expected: dict[int, list[str]] = {}
    for name, pairs in named.items():
        if rule == "drop" and novel & set(pairs):
            continue
        for c, pixels in pairs.items():
            if c not in novel and pixels >= min_pixels:
                expected.setdefault(c, []).append(name)
    usable = {c: tuple(ids) for c, ids in expected.items() if len(ids) >= (2 if repeat else shot + 1)}
    if not usable:
        with pytest.raises(UserError):
            train_lists(index_of(named), novel, protocol, shot, tuple("abcdefgh"))
        return
    lists = train_lists(index_of(named), novel, protocol, shot, tuple("abcdefgh"))
    assert lists.candidates == usable
    assert set(lists.pairs) == {(i, c) for c, ids in usable.items() for i in ids}
    assert set(lists.missing_classes) == set(range(8)) - novel - set(usable)


@pytest.mark.shared
def test_lists_from_the_real_masks_have_the_published_sizes(shared_dir: Path, voc_cache: Path) -> None:
    facts = json.loads((shared_dir / "facts/folds.json").read_text())["pascal5i"]["list_sizes_from_masks"]["folds"]
    root = str(shared_dir / "data/voc_part")
    pools = {"train_aug_10582": "train_aug_10582", "pfenet_list_5953": "pfenet_train"}
    for pool, name in pools.items():
        cfg = PascalConfig(name="pascal5i", root=root, image_size=473, cache=str(voc_cache), train_list=name)
        source = PascalSource(cfg)
        for fold in range(4):
            novel, fact = source.novel_classes(fold), facts[str(fold)]
            for rule in ("drop", "background"):
                protocol = ProtocolConfig(name="p", novel_in_training=rule)
                lists = train_lists(source.index("train"), novel, protocol, 1, source.classes)
                assert len(lists.images) == fact[pool]["images_drop" if rule == "drop" else "images_keep"]
                if rule == "drop":
                    per_class = {source.classes[c]: len(ids) for c, ids in lists.candidates.items()}
                    assert per_class == fact[pool]["per_class_drop"]
            val = val_lists(source.index("val"), novel, ProtocolConfig(name="p"), 1, source.classes)
            assert (len(val.pairs), len(val.images)) == (fact["val"]["pairs"], fact["val"]["images"])
            assert len(eligible_pairs(source.index("val"), novel, ProtocolConfig(name="p"))) == fact["val"]["pairs"]
            assert {source.classes[c]: len(ids) for c, ids in val.candidates.items()} == fact["val"]["per_class"]
