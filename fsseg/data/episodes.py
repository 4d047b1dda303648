"""Which images make up an episode: the training sampler and the evaluation list.

Called by `fsseg.data.loader`; `episode_file` writes and reads lists. Every draw is a pure function of (lists, seed,
number), so machine, workers, rank and order change nothing. Only `random.Random(<str>).random()` is used: Python keeps
its stream the same in every version. For `shuffle`, `sample` and numpy's generators that is not promised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

from fsseg.config.schema import ProtocolConfig
from fsseg.data.lists import FoldLists
from fsseg.data.spec import EpisodeSpec
from fsseg.errors import UserError

T = TypeVar("T")


def permutation(count: int, key: str) -> list[int]:
    """Fisher-Yates permutation of range(count) for the random stream `key`."""
    draw = Random(key).random
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = int(draw() * (i + 1))
        order[i], order[j] = order[j], order[i]
    return order


class SupportDrawer:
    """Draws the supports of a query one after the other, so the first K - 1 of K supports are those of K - 1 shots.

    Args:
        lists: where candidates come from.
        repeat: supports may repeat (never the query).
        families: background family of each image (generated data); None where there is no such notion.
        background_shift: probability that the supports have another background family than the query; otherwise they
            have the same. If no such candidate is left, any other is taken.
    """

    def __init__(
        self,
        lists: FoldLists,
        repeat: bool,
        families: Mapping[str, int | None] | None = None,
        background_shift: float | None = None,
    ) -> None:
        self.lists, self.repeat = lists, repeat
        self.families, self.background_shift = families, background_shift
        self._position = {c: {image: i for i, image in enumerate(ids)} for c, ids in lists.candidates.items()}

    def draw(self, query_id: str, class_id: int, shot: int, random: Random) -> tuple[str, ...]:
        """`shot` supports of `class_id`, never `query_id` (which need not be one of the candidates)."""
        ids = self.lists.candidates[class_id]
        query = self._position[class_id].get(query_id)
        if self.background_shift is None or self.families is None:
            return tuple(ids[i] for i in self._any(len(ids), query, shot, random))
        shifted = random.random() < self.background_shift
        own = self.families.get(query_id)
        others = [i for i in range(len(ids)) if i != query]
        wanted = [i for i in others if (self.families.get(ids[i]) != own) == shifted]
        chosen: list[int] = []
        for _ in range(shot):
            taken = () if self.repeat else chosen
            pool = [i for i in wanted if i not in taken] or [i for i in others if i not in taken]
            chosen.append(pool[int(random.random() * len(pool))])
        return tuple(ids[i] for i in chosen)

    def _any(self, count: int, query: int | None, shot: int, random: Random) -> list[int]:
        taken, chosen = [] if query is None else [query], []
        for _ in range(shot):
            i = int(random.random() * (count - len(taken)))
            for t in sorted(taken):  # the i-th free position, without a list of all free ones
                i += i >= t
            chosen.append(i)
            if not self.repeat:
                taken.append(i)
        return chosen


class EpisodeSampler:
    """Training episodes, N in an epoch; the supports are other images of the query's class.

    `protocol.train_query` says how a query is found:

    - image: each of the N training images once an epoch, for one of its `query_classes`;
    - pair: each of the N (image, class) pairs once an epoch (HSNet on PASCAL);
    - class_uniform: a class, then one of its images, both uniformly; N is the number of images (HSNet on COCO).

    Args:
        lists: of the base classes (`fsseg.data.lists.train_lists`).
        shot: K.
        seed: the run's seed.
        protocol: the rules.
        families, background_shift: see `SupportDrawer`.
    """

    def __init__(
        self,
        lists: FoldLists,
        shot: int,
        seed: int,
        protocol: ProtocolConfig,
        families: Mapping[str, int | None] | None = None,
        background_shift: float | None = None,
    ) -> None:
        self.lists, self.shot, self.seed, self.query = lists, shot, seed, protocol.train_query
        self._drawer = SupportDrawer(lists, protocol.repeat_support, families, background_shift)
        self._pairs = lists.pairs if self.query == "pair" else ()
        self._length = epoch_length(lists, self.query)
        self._epoch, self._order = -1, [0]  # the last epoch's permutation: speed only, every value is recomputable

    def __len__(self) -> int:
        """N, episodes of one epoch."""
        return self._length

    def __getitem__(self, number: int) -> EpisodeSpec:
        """Episode `number` >= 0."""
        if number < 0:
            raise IndexError(number)
        random = Random(f"fsseg train episode {self.seed} {number}")
        if self.query == "class_uniform":
            query_id, class_id = draw_pair(self.lists, random)
        elif self.query == "pair":
            query_id, class_id = self._pairs[self._turn(number)]
        else:
            position = self._turn(number)
            query_id, class_id = self.lists.images[position], draw(self.lists.query_classes[position], random)
        return EpisodeSpec(number, class_id, query_id, self._drawer.draw(query_id, class_id, self.shot, random))

    def _turn(self, number: int) -> int:
        """Whose turn episode `number` is: every one of the N once an epoch, in an order of the epoch's own."""
        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            self._order = permutation(len(self), f"fsseg train order {self.seed} {epoch}")
            self._epoch = epoch
        return self._order[position]


def epoch_length(lists: FoldLists, train_query: str) -> int:
    """Episodes of one epoch under `protocol.train_query`."""
    return len(lists.pairs) if train_query == "pair" else len(lists.images)


def draw(values: Sequence[T], random: Random) -> T:
    """One of the values, uniformly."""
    return values[int(random.random() * len(values))]


def draw_pair(lists: FoldLists, random: Random) -> tuple[str, int]:
    """(image, class): a class, then one of its images, both uniformly."""
    class_id = draw(lists.classes, random)
    return draw(lists.candidates[class_id], random), class_id


def evaluation_episodes(
    lists: FoldLists,
    protocol: ProtocolConfig,
    shot: int,
    seed: int,
    families: Mapping[str, int | None] | None = None,
    background_shift: float | None = None,
) -> list[EpisodeSpec]:
    """The `protocol.num_episodes` evaluation episodes of one evaluation seed.

    `protocol.query_order`:

    - cycle: passes over all (image, class) pairs, each pass in an order of its own drawn from (seed, pass), so that
      the last, incomplete pass is a random part and not the list's beginning;
    - list_cycle: the same in list order, as HSNet does on PASCAL (its data set indexes modulo the number of pairs);
    - class_uniform: a class, then one of its images, both uniformly (HSNet on COCO);
    - first_n: the list's images one after the other, from the beginning again after the last; the class is drawn from
      the image's `query_classes` (PFENet, BAM, HDMNet). Biased: only the first N images ever are queries.

    For the same lists, K-shot episodes have the queries and classes of the 1-shot ones, and begin with their support.
    """
    drawer = SupportDrawer(lists, protocol.repeat_support, families, background_shift)
    pairs = lists.pairs
    specs = []
    order: list[int] = []
    for number in range(protocol.num_episodes):
        random = Random(f"fsseg evaluation episode {seed} {number}")
        if protocol.query_order in ("cycle", "list_cycle"):
            turn, position = divmod(number, len(pairs))
            if protocol.query_order == "cycle":
                if position == 0:
                    order = permutation(len(pairs), f"fsseg evaluation order {seed} {turn}")
                position = order[position]
            query_id, class_id = pairs[position]
        elif protocol.query_order == "class_uniform":
            query_id, class_id = draw_pair(lists, random)
        elif protocol.query_order == "first_n":
            position = number % len(lists.images)
            query_id, class_id = lists.images[position], draw(lists.query_classes[position], random)
        else:
            raise UserError(
                f"protocol.query_order={protocol.query_order} is unknown",
                "set it to one of: cycle, list_cycle, class_uniform, first_n",
            )
        specs.append(EpisodeSpec(number, class_id, query_id, drawer.draw(query_id, class_id, shot, random)))
    return specs


def episodes_fingerprint(episodes: Mapping[int, Sequence[EpisodeSpec]]) -> str:
    """16 hex digits over seeds, classes, queries and supports, in order."""
    digest = hashlib.sha256()
    for seed in sorted(episodes):
        for spec in episodes[seed]:
            row = (str(seed), str(spec.number), str(spec.class_id), spec.query_id, *spec.support_ids)
            digest.update(("\t".join(row) + "\n").encode())
    return digest.hexdigest()[:16]
