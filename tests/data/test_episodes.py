"""Which images make up an episode."""

from __future__ import annotations

import random as python_random
from collections import Counter

import pytest
from fake_source import index_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.config.schema import ProtocolConfig
from fsseg.data.episodes import EpisodeSampler, evaluation_episodes, permutation
from fsseg.data.lists import FoldLists, train_lists, val_lists
from fsseg.data.source import ClassIndex

NAMES = tuple(f"class{c}" for c in range(8))
RULES = ProtocolConfig(name="p")
ORDERS = ("cycle", "list_cycle", "class_uniform", "first_n")


def make_index(seed: int, num_images: int = 40) -> ClassIndex:
    """Every class stands in at least seven images."""
    draw = python_random.Random(seed)
    images = {f"i{n}": {n % 8: 3000, draw.randrange(8): draw.randrange(1, 6000)} for n in range(num_images)}
    images.update({f"j{n}": {n % 8: 4000} for n in range(56)})
    return index_of(images)


def make_lists(seed: int, novel: tuple[int, ...] = (0, 1), shot: int = 1) -> FoldLists:
    return train_lists(make_index(seed), novel, ProtocolConfig(name="p"), shot, NAMES)


@settings(max_examples=30, deadline=None)
@given(data=st.integers(0, 5), seed=st.integers(0, 2**40), shot=st.integers(1, 5), repeat=st.booleans())
def test_every_training_image_is_the_query_once_per_epoch(data: int, seed: int, shot: int, repeat: bool) -> None:
    lists = make_lists(data)
    sampler = EpisodeSampler(lists, shot, seed, ProtocolConfig(name="p", repeat_support=repeat))
    for epoch in (0, 1):
        specs = [sampler[epoch * len(sampler) + i] for i in range(len(sampler))]
        assert sorted(s.query_id for s in specs) == sorted(lists.images)
        for s in specs:
            assert (s.query_id, s.class_id) in lists.pairs
            assert len(s.support_ids) == shot
            assert set(s.support_ids) <= set(lists.candidates[s.class_id]) - {s.query_id}
            assert repeat or len(set(s.support_ids)) == shot


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), numbers=st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_an_episode_depends_on_seed_and_number_only(seed: int, numbers: list[int]) -> None:
    lists = make_lists(0)
    one = EpisodeSampler(lists, 2, seed, RULES)
    visited = {n: one[n] for n in numbers}  # in any order, back and forth between epochs
    for n in sorted(visited, reverse=True):
        assert EpisodeSampler(lists, 2, seed, RULES)[n] == visited[n]


def test_seeds_and_epochs_differ() -> None:
    lists = make_lists(0)
    size = len(lists.images)
    runs = [[EpisodeSampler(lists, 1, seed, RULES)[i] for i in range(size)] for seed in (0, 1)]
    assert runs[0] != runs[1]
    sampler = EpisodeSampler(lists, 1, 0, RULES)
    assert [sampler[i].query_id for i in range(size)] != [sampler[size + i].query_id for i in range(size)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), shift=st.sampled_from([None, 0.0, 0.4, 1.0]), repeat=st.booleans())
def test_fewer_shots_are_the_beginning_of_more(seed: int, shift: float | None, repeat: bool) -> None:
    lists = make_lists(1)
    families = {image: n % 3 for n, image in enumerate(lists.images)}
    rules = ProtocolConfig(name="p", repeat_support=repeat)
    one, five = (EpisodeSampler(lists, k, seed, rules, families, shift) for k in (1, 5))
    for n in range(60):
        assert (one[n].query_id, one[n].class_id) == (five[n].query_id, five[n].class_id)
        assert one[n].support_ids == five[n].support_ids[:1]


@pytest.mark.parametrize("order", ORDERS)
def test_one_and_five_shot_evaluation_share_query_class_and_first_support(order: str) -> None:
    lists = val_lists(make_index(2), (2, 3), ProtocolConfig(name="p"), 5, NAMES)
    protocol = ProtocolConfig(name="p", query_order=order, num_episodes=100)
    one, five = (evaluation_episodes(lists, protocol, k, 7) for k in (1, 5))
    assert [(s.number, s.query_id, s.class_id, s.support_ids[0]) for s in one] == [
        (s.number, s.query_id, s.class_id, s.support_ids[0]) for s in five
    ]
    assert all(len({s.query_id, *s.support_ids}) == 6 for s in five)
    assert one == evaluation_episodes(lists, ProtocolConfig(name="p", query_order=order, num_episodes=200), 1, 7)[:100]
    assert one != evaluation_episodes(lists, protocol, 1, 8)


def test_cycling_visits_every_pair_before_any_again() -> None:
    lists = val_lists(make_index(3), (2, 3), ProtocolConfig(name="p"), 1, NAMES)
    pairs = len(lists.pairs)
    for order in ("cycle", "list_cycle"):
        specs = evaluation_episodes(lists, ProtocolConfig(name="p", query_order=order, num_episodes=3 * pairs), 1, 0)
        for turn in range(3):
            visited = [(s.query_id, s.class_id) for s in specs[turn * pairs : (turn + 1) * pairs]]
            assert sorted(visited) == sorted(lists.pairs)
            assert (tuple(visited) == lists.pairs) == (order == "list_cycle")


def test_in_a_training_of_pairs_each_pair_is_the_query_once_an_epoch() -> None:
    lists = make_lists(4)
    assert len(lists.pairs) > len(lists.images)
    sampler = EpisodeSampler(lists, 2, 3, ProtocolConfig(name="p", train_query="pair"))
    assert len(sampler) == len(lists.pairs)
    for epoch in (0, 1):
        specs = [sampler[epoch * len(sampler) + i] for i in range(len(sampler))]
        assert sorted((s.query_id, s.class_id) for s in specs) == sorted(lists.pairs)
        assert all(s.query_id not in s.support_ids for s in specs)


def test_a_class_first_training_draws_all_classes_alike_however_many_images_they_have() -> None:
    images = {f"p{n}": {0: 9000} for n in range(90)} | {f"q{n}": {1: 9000} for n in range(10)}
    lists = train_lists(index_of(images), (2,), RULES, 1, NAMES[:3])
    sampler = EpisodeSampler(lists, 1, 0, ProtocolConfig(name="p", train_query="class_uniform"))
    assert len(sampler) == 100  # an epoch is as long as there are images
    drawn = [sampler[i] for i in range(1000)]
    assert 450 <= Counter(s.class_id for s in drawn)[1] <= 550  # sqrt(250) = 16 is one standard deviation
    assert len({s.query_id for s in drawn if s.class_id == 1}) == 10


def test_a_query_may_stand_for_a_small_object_where_the_code_takes_any_size_but_supports_are_listed() -> None:
    # image x has class 0 with 5000 px and class 1 with 3: it is listed for class 0 alone
    images = (
        {"x": {0: 5000, 1: 3}, "y": {1: 7}}
        | {f"p{n}": {0: 9000} for n in range(4)}
        | {f"q{n}": {1: 9000} for n in range(4)}
    )
    novel, first = (0, 1), {"query_order": "first_n", "num_episodes": 200}
    for rule, wanted in (("listed", {0}), ("any_size", {0, 1})):
        protocol = ProtocolConfig(name="p", query_class=rule, **first)
        lists = val_lists(index_of(images), novel, protocol, 3, NAMES)
        assert "y" not in lists.images  # it has no listed pair: it is no query, whatever the rule
        specs = evaluation_episodes(lists, protocol, 3, 0)
        of_x = [s for s in specs if s.query_id == "x"]
        assert {s.class_id for s in of_x} == wanted
        assert all(set(s.support_ids) <= {f"q{n}" for n in range(4)} for s in of_x if s.class_id == 1)
        trained = train_lists(index_of(images), (7,), protocol, 3, NAMES)
        sampler = EpisodeSampler(trained, 3, 0, protocol)
        assert {sampler[e].class_id for e in range(400) if sampler[e].query_id == "x"} == wanted
    # with a query outside the list every listed image may be a support: three of four, all four in turn
    assert {i for s in of_x if s.class_id == 1 for i in s.support_ids} == {f"q{n}" for n in range(4)}


def test_first_n_takes_the_first_images_only_and_class_uniform_does_not() -> None:
    images = {f"p{n}": {0: 9000} for n in range(60)} | {f"q{n}": {1: 9000} for n in range(30)}
    lists = val_lists(index_of(images), (0, 1), ProtocolConfig(name="p"), 1, NAMES)
    first, uniform = (
        evaluation_episodes(lists, ProtocolConfig(name="p", query_order=order, num_episodes=50), 1, 0)
        for order in ("first_n", "class_uniform")
    )
    assert [s.query_id for s in first] == [f"p{n}" for n in range(50)]  # never a query of class 1
    assert 15 <= Counter(s.class_id for s in uniform)[1] <= 35


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 60, 140)])
def test_background_shift_is_the_share_of_episodes_across_families(shift: float, low: int, high: int) -> None:
    images = {f"i{n}": {0: 9000} for n in range(40)}
    lists = val_lists(index_of(images), (0,), ProtocolConfig(name="p"), 3, NAMES)
    families = {image: n % 4 for n, image in enumerate(lists.images)}
    protocol = ProtocolConfig(name="p", num_episodes=400)
    across = 0
    for s in evaluation_episodes(lists, protocol, 3, 0, families, shift):
        differs = {families[s.query_id] != families[i] for i in s.support_ids}
        assert len(differs) == 1  # all supports of an episode are of one kind
        across += differs.pop()
    assert low <= across <= high  # 0.25: 100 expected, standard deviation 9


def test_where_no_image_of_the_wanted_family_is_left_any_other_is_taken() -> None:
    lists = val_lists(index_of({f"i{n}": {0: 9000} for n in range(4)}), (0,), ProtocolConfig(name="p"), 3, NAMES)
    families = {"i0": 0, "i1": 1, "i2": 1, "i3": 1}
    for s in evaluation_episodes(lists, ProtocolConfig(name="p", num_episodes=20), 3, 0, families, 0.0):
        assert {s.query_id, *s.support_ids} == {"i0", "i1", "i2", "i3"}


def test_draws_are_uniform() -> None:
    lists = val_lists(index_of({f"i{n}": {0: 9000} for n in range(5)}), (0,), ProtocolConfig(name="p"), 2, NAMES)
    specs = evaluation_episodes(lists, ProtocolConfig(name="p", num_episodes=4000), 2, 0)
    counts = Counter((s.query_id, s.support_ids) for s in specs)
    assert len(counts) == 60  # 5 queries x 4 x 3 ordered supports
    chi_square = sum((n - 4000 / 60) ** 2 / (4000 / 60) for n in counts.values())
    assert chi_square < 99  # 59 degrees of freedom: exceeded with probability 0.001


@given(st.integers(0, 200), st.text(max_size=5))
def test_permutation_holds_every_number_once(count: int, key: str) -> None:
    assert sorted(permutation(count, key)) == list(range(count))


def test_random_streams_are_those_of_sha512_seeding_in_every_python() -> None:
    # Independent of `random`: version 2 seeding is the int of (bytes + sha512(bytes)), fed to the Mersenne twister,
    # which numpy implements as well; random() takes 53 bits of two outputs.
    import hashlib

    import numpy as np

    text = b"fsseg train order 0 0"
    number = int.from_bytes(text + hashlib.sha512(text).digest(), "big")
    words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range((number.bit_length() + 31) // 32)]
    twister = np.random.RandomState(np.array(words, dtype=np.uint32))
    order = list(range(10))
    for i in range(9, 0, -1):
        j = int(twister.random_sample() * (i + 1))
        order[i], order[j] = order[j], order[i]
    assert permutation(10, text.decode()) == order
