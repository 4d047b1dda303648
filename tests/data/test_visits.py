"""Every episode once, never more kept than there is room, and no image encoded twice where there is room for all."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsseg.data import visits
from fsseg.data.types import EpisodeSpec
from fsseg.data.visits import Planned, Visit, distinct


def drawn(images: int, shot: int, episodes: int, seeds: int = 2, classes: int = 3, key: int = 0) -> dict[int, list]:
    """Seed -> episodes whose images are of one class each."""
    draw = random.Random(key)
    found: dict[int, list[EpisodeSpec]] = {}
    for seed in range(seeds):
        found[seed] = []
        for number in range(episodes):
            of_class = draw.randrange(classes)
            query, *supports = draw.sample(range(max(images // classes, shot + 1)), shot + 1)
            names = tuple(f"{of_class}-{n}" for n in supports)
            found[seed].append(EpisodeSpec(number, of_class, f"{of_class}-{query}", names))
    return found


def planned(
    plans: Mapping[str, Mapping[int, Sequence[EpisodeSpec]]], capacity: int, batch: int = 1, ahead: int = 1
) -> list[Visit]:
    found: list[Sequence[Planned]] = list(visits.batches(plans, batch))
    if capacity:
        found = visits.fitting(found, capacity)
        found = [found[i] for i in visits.visiting_order([distinct(b) for b in found], capacity)]
    return visits.schedule(found, capacity, ahead)


def played(found: Sequence[Visit], held: Sequence[str] = ()) -> tuple[int, Counter[str]]:
    """What an evaluation that follows the visits keeps at most, and how often it encodes each image."""
    kept, peak, encoded = set(held), 0, Counter[str]()
    for visit in found:
        assert kept.issuperset(visit.drops)
        kept.difference_update(visit.drops)
        for load in visit.loads:
            assert load.image_id not in kept
            kept.add(load.image_id)
            encoded[load.image_id] += 1
        peak = max(peak, len(kept))
        assert kept.issuperset(distinct(visit.episodes))
    return peak, encoded


@settings(max_examples=150, deadline=None)
@given(
    images=st.integers(6, 60), shot=st.integers(1, 5), episodes=st.integers(1, 25), batch=st.integers(1, 5),
    ahead=st.integers(1, 6), room=st.integers(0, 70), key=st.integers(0, 10**6),
)  # fmt: skip
def test_any_room_down_to_one_episode_is_kept_to(
    images: int, shot: int, episodes: int, batch: int, ahead: int, room: int, key: int
) -> None:
    plans = {"": drawn(images, shot, episodes, key=key), "0.5": drawn(images, shot, episodes, key=key + 1)}
    capacity = shot + 1 + room
    found = planned(plans, capacity, batch, ahead)
    peak, encoded = played(found)
    assert peak <= capacity
    every = [listed for visit in found for listed in visit.episodes]
    expected = [(shift, seed, spec) for shift, p in plans.items() for seed, specs in p.items() for spec in specs]
    assert sorted(every, key=repr) == sorted((Planned(*e) for e in expected), key=repr)
    assert all(len(visit.episodes) <= batch for visit in found)
    if capacity >= len(encoded):
        assert set(encoded.values()) == {1}
    nothing = planned(plans, 0, batch)
    assert [load.image_id for visit in nothing for load in visit.loads] == [
        image for visit in nothing for image in distinct(visit.episodes)
    ]
    played(nothing)


def test_batches_do_not_depend_on_the_order_of_the_episodes_and_group_class_and_query() -> None:
    plan = drawn(12, 2, 40)
    one = visits.batches({"": plan}, 4)
    other = visits.batches({"": {seed: specs[::-1] for seed, specs in plan.items()}}, 4)
    assert one == other
    places = [(e.spec.class_id, e.spec.query_id, e.seed, e.spec.number) for batch in one for e in batch]
    assert places == sorted(places)
    assert [len(batch) for batch in one] == [4] * 20


def test_the_batch_that_lacks_fewest_comes_next_and_what_is_wanted_last_is_given_up() -> None:
    # room for three: after ab comes bc, which lacks c alone, then ac, which lacks nothing
    assert visits.visiting_order([("a", "b"), ("d", "e"), ("b", "c"), ("a", "c")], 3) == [0, 2, 3, 1]
    assert visits.visiting_order([("a", "b"), ("d", "e"), ("b", "c")], 5) == [0, 1, 2]  # room for all
    batches = [
        [Planned("", 0, EpisodeSpec(n, 0, pair[0], (pair[1],)))] for n, pair in enumerate(("ab", "cd", "bc", "ad"))
    ]
    found = visits.schedule(batches, 3)
    # cd needs two places: a, wanted at the end, goes, and b stays; then nothing is lacking; a comes back
    assert [visit.drops for visit in found] == [(), ("a",), (), ("b", "c")]
    assert [[load.image_id for load in visit.loads] for visit in found] == [["a", "b"], ["c", "d"], [], ["a"]]


@pytest.mark.parametrize(("world", "lengths"), [(1, [7]), (2, [3, 4]), (3, [2, 2, 3]), (9, [0] * 2 + [1] * 7)])
def test_each_batch_is_of_one_process(world: int, lengths: list[int]) -> None:
    batches = visits.batches({"": drawn(12, 1, 7, seeds=1)}, 1)
    found = visits.shares(batches, world)
    assert [batch for share in found for batch in share] == batches
    assert sorted(map(len, found)) == sorted(lengths)


def test_an_image_is_what_its_episodes_make_of_it() -> None:
    pairs = [("a", "b"), ("b", "c")]
    batches = [[Planned("", 0, EpisodeSpec(n, 7, query, (support,)))] for n, (query, support) in enumerate(pairs)]
    found = [load for visit in visits.schedule(batches, 9) for load in visit.loads]
    assert [(load.image_id, load.class_id, load.role) for load in found] == [
        ("a", 7, "query"), ("b", 7, "both"), ("c", 7, "support"),
    ]  # fmt: skip


def test_free_room_is_filled_to_whole_batches_of_the_backbone() -> None:
    found = planned({"": drawn(60, 1, 60)}, 1000, ahead=8)
    sizes = [len(visit.loads) for visit in found if visit.loads]
    assert set(sizes[:-1]) == {8}
    assert set(played(found)[1].values()) == {1}


def test_what_is_kept_before_the_first_batch_is_not_encoded_again() -> None:
    batches = visits.batches({"": drawn(12, 1, 10)}, 1)
    held = distinct(batches[0])[0]
    found = visits.schedule(batches, 20, held=(held, "of no batch"))
    assert found[0].drops == ("of no batch",)
    assert held not in played(found, (held, "of no batch"))[1]


@pytest.mark.parametrize("shot", [1, 5])
def test_thousands_of_episodes_are_put_in_order_at_once(shot: int) -> None:
    plans = {"": drawn(12_000, shot, 1000, seeds=5, classes=20)}
    began = time.process_time()
    found = planned(plans, 200)
    assert time.process_time() - began < 3
    peak, encoded = played(found)
    assert peak <= 200
    assert sum(encoded.values()) < 5000 * (shot + 1)
