"""In which order the episodes of an evaluation are visited, and which images are kept meanwhile. Pure functions.

Called by `fsseg.engine.scoring`, and read by the loader. What an image comes to in the backbone may be kept for later
episodes, as far as there is room. All episodes are known beforehand, so it is too when each image is wanted again:

- `batches` cuts the episodes into batches, in an order that depends on nothing but the episodes: the same episodes are
  always decoded together;
- `visiting_order` puts the batches into an order in which the next one lacks few images;
- `schedule` says which images are given up before each batch, those that are wanted again last (Belady), and which are
  encoded for it; no other choice would encode fewer.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from fsseg.data.spec import EpisodeSpec

Role = Literal["support", "query", "both"]
"""What an image is in the episodes of an evaluation."""

_FAR = 64  # batches that are looked ahead for images to fill a batch of the backbone


class Planned(NamedTuple):
    """An episode of an evaluation: of which shift (`fsseg.cell.episodes`) and which seed."""

    shift: str
    seed: int
    spec: EpisodeSpec

    @property
    def key(self) -> tuple[str, int, int]:
        return self.shift, self.seed, self.spec.number

    @property
    def images(self) -> tuple[str, ...]:
        return (self.spec.query_id, *self.spec.support_ids)


class Load(NamedTuple):
    """An image to be encoded, a class of it by whose mask it is checked, and what it is in the episodes to come."""

    image_id: str
    class_id: int
    role: Role


@dataclass(frozen=True)
class Visit:
    """A batch of episodes.

    Attributes:
        episodes: to be decoded together.
        drops: images that are given up first.
        loads: images that are encoded then, for this visit or for one soon after it.
    """

    episodes: tuple[Planned, ...]
    drops: tuple[str, ...]
    loads: tuple[Load, ...]


def batches(plans: Mapping[str, Mapping[int, Sequence[EpisodeSpec]]], size: int) -> list[list[Planned]]:
    """All episodes, `size` in a batch: by class and query, so that neighbours share images.

    Args:
        plans: shift -> seed -> its episodes.
        size: of a batch; the last one may be smaller.
    """
    every = [
        ((spec.class_id, spec.query_id, shift, seed, spec.number), Planned(name, number, spec))
        for shift, (name, seeds) in enumerate(plans.items())
        for seed, (number, specs) in enumerate(seeds.items())
        for spec in specs
    ]
    every.sort(key=lambda pair: pair[0])
    return [[listed for _, listed in every[start : start + size]] for start in range(0, len(every), size)]


def distinct(episodes: Iterable[Planned]) -> list[str]:
    """The images of some episodes, each once, in the order in which they come."""
    return list(dict.fromkeys(image for listed in episodes for image in listed.images))


def fitting(found: Sequence[Sequence[Planned]], capacity: int) -> list[Sequence[Planned]]:
    """The batches, cut where one has more images than can be kept; `capacity` is at least what one episode needs."""
    out: list[Sequence[Planned]] = []
    for batch in found:
        part: list[Planned] = []
        for listed in batch:
            if part and len(distinct([*part, listed])) > capacity:
                out.append(part)
                part = []
            part.append(listed)
        out.append(part)
    return out


def visiting_order(sets: Sequence[Sequence[str]], capacity: int) -> list[int]:
    """An order of batches, given by their images: always the one that lacks fewest of those kept so far.

    What is given up meanwhile is what fewest of the batches to come need. Where there is room for all images, the order
    stays as it is.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for batch, images in enumerate(sets):
        for image in images:
            holders[image].append(batch)
    if len(holders) <= capacity:
        return list(range(len(sets)))
    left = {image: len(own) for image, own in holders.items()}
    lacking = [len(images) for images in sets]
    to_visit = [(count, batch) for batch, count in enumerate(lacking)]
    heapq.heapify(to_visit)
    kept: set[str] = set()
    to_drop: list[tuple[int, str]] = []
    visited: list[int] = []
    done = [False] * len(sets)

    def change(image: str, by: int) -> None:
        holders[image] = own = [batch for batch in holders[image] if not done[batch]]
        for batch in own:
            lacking[batch] += by
            heapq.heappush(to_visit, (lacking[batch], batch))

    while len(visited) < len(sets):
        count, batch = heapq.heappop(to_visit)
        if done[batch] or lacking[batch] != count:
            continue
        done[batch] = True
        visited.append(batch)
        wanted = set(sets[batch])
        for image in sets[batch]:
            if image not in kept:
                kept.add(image)
                change(image, -1)
            left[image] -= 1
        while len(kept) > capacity and to_drop:
            uses, image = heapq.heappop(to_drop)
            if image in kept and left[image] == uses and image not in wanted:
                kept.remove(image)
                change(image, 1)
        for image in sets[batch]:
            if not left[image]:
                kept.discard(image)
            else:
                heapq.heappush(to_drop, (left[image], image))
    return visited


def shares(found: Sequence[Sequence[Planned]], world: int) -> list[Sequence[Sequence[Planned]]]:
    """The batches of each of `world` processes: neighbours in the order, so that each needs few images."""
    bounds = [len(found) * rank // world for rank in range(world + 1)]
    return [found[start:end] for start, end in pairwise(bounds)]


class _Kept:
    """The images that are kept while a schedule is made, and when each is wanted again."""

    def __init__(self, sets: Sequence[Sequence[str]]) -> None:
        self.uses: dict[str, deque[int]] = defaultdict(deque)
        for visit, images in enumerate(sets):
            for image in images:
                self.uses[image].append(visit)
        self.images: set[str] = set()
        self._latest: list[tuple[int, str]] = []

    def add(self, image: str) -> None:
        self.images.add(image)
        self._note(image)

    def used(self, image: str) -> bool:
        """One use is over; whether it was the last."""
        self.uses[image].popleft()
        if self.uses[image]:
            self._note(image)
            return False
        self.images.remove(image)
        return True

    def give_up(self, later_than: int) -> str | None:
        """Take out the image that is wanted last, if that is later than a visit."""
        while self._latest:
            wanted, image = -self._latest[0][0], self._latest[0][1]
            if image not in self.images or self.uses[image][0] != wanted:
                heapq.heappop(self._latest)
                continue
            if wanted <= later_than:
                return None
            heapq.heappop(self._latest)
            self.images.remove(image)
            return image
        return None

    def _note(self, image: str) -> None:
        heapq.heappush(self._latest, (-self.uses[image][0], image))


def schedule(
    found: Sequence[Sequence[Planned]], capacity: int, ahead: int = 1, held: Sequence[str] = ()
) -> list[Visit]:
    """What to encode and what to give up, batch by batch in the order given.

    Args:
        found: the batches in the order in which they are visited, none with more than `capacity` images.
        capacity: images that can be kept at any time; 0 keeps nothing from one batch to the next.
        ahead: images that pass through the backbone together. Where a batch lacks fewer, images that are wanted soon
            come with them, if there is room.
        held: images that are kept already; those that no batch needs are to be given up by the caller.
    """
    sets, classes, roles = [distinct(batch) for batch in found], _classes(found), _roles(found)
    if not sets:
        return []
    if capacity == 0:
        drops, loads = [list(held), *sets[:-1]], sets
    else:
        drops, loads = _kept_at_most(sets, capacity, ahead, held)
    return [
        Visit(tuple(batch), tuple(old), tuple(Load(i, classes[i], roles[i]) for i in new))
        for batch, old, new in zip(found, drops, loads)
    ]


def _kept_at_most(
    sets: Sequence[Sequence[str]], capacity: int, ahead: int, held: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """What is given up before each batch, and what is encoded then."""
    kept = _Kept(sets)
    loads: list[list[str]] = []
    drops: list[list[str]] = [[] for _ in range(len(sets) + 1)]
    for image in held:
        if image in kept.uses:
            kept.add(image)
        else:
            drops[0].append(image)
    for now, images in enumerate(sets):
        missing = [image for image in images if image not in kept.images]
        while len(kept.images) + len(missing) > capacity:
            victim = kept.give_up(now)
            assert victim is not None, "a batch has more images than can be kept"
            drops[now].append(victim)
        if missing:
            _fill(sets, now, kept.images, missing, (capacity, ahead))
        for image in missing:
            kept.add(image)
        loads.append(missing)
        drops[now + 1] += [image for image in images if kept.used(image)]
    return drops[:-1], loads


def _fill(sets: Sequence[Sequence[str]], now: int, kept: set[str], missing: list[str], sizes: tuple[int, int]) -> None:
    """Add to `missing` images that are wanted soon, until they fill a batch of the backbone or all room."""
    capacity, ahead = sizes
    for soon in range(now + 1, min(now + 1 + _FAR, len(sets))):
        for image in sets[soon]:
            if len(missing) % ahead == 0 or len(kept) + len(missing) == capacity:
                return
            if image not in kept and image not in missing:
                missing.append(image)


def _classes(found: Iterable[Iterable[Planned]]) -> dict[str, int]:
    """A class that each image has in one of the episodes."""
    return {image: listed.spec.class_id for batch in found for listed in batch for image in listed.images}


def _roles(found: Iterable[Iterable[Planned]]) -> dict[str, Role]:
    queries = {listed.spec.query_id for batch in found for listed in batch}
    supports = {image for batch in found for listed in batch for image in listed.spec.support_ids}
    return {image: "both" if image in queries and image in supports else "query" if image in queries else "support"
            for image in queries | supports}  # fmt: skip
