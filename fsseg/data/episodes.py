"""Which images make up an episode: the training sampler, the evaluation list, and its file.

Called by `fsseg.data.loader` and by `fsseg episodes`. Every draw is a pure function of (lists, seed, number), so that
machine, workers, rank and order change nothing. Only `random.Random(<str>).random()` is used: its stream is the same in
every version of Python, which is not promised for `shuffle`, `sample` or numpy's generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from random import Random

from fsseg.config.schema import ProtocolConfig
from fsseg.data.lists import FoldLists
from fsseg.data.source import ClassIndex
from fsseg.data.types import EpisodeSpec
from fsseg.errors import UserError, merge_errors
from fsseg.process.files import write_atomic


def permutation(count: int, key: str) -> list[int]:
    """Fisher-Yates permutation of range(count) for the random stream `key`."""
    draw = Random(key).random
    order = list(range(count))
    for i in range(count - 1, 0, -1):
        j = int(draw() * (i + 1))
        order[i], order[j] = order[j], order[i]
    return order


class SupportDrawer:
    """Draws the supports of a query, one after the other, so that K supports begin with the K-1 drawn for less shots.

    Args:
        lists: where candidates come from.
        repeat: supports may repeat (never the query).
        families: background family of each image (generated data); None where there is no such notion.
        background_shift: probability that the supports stand on another background family than the query, else on the
            same one. Where no candidate of the wanted kind is left, any other is taken.
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
        """`shot` supports of `class_id`, never `query_id`."""
        ids = self.lists.candidates[class_id]
        query = self._position[class_id][query_id]
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

    def _any(self, count: int, query: int, shot: int, random: Random) -> list[int]:
        taken, chosen = [query], []
        for _ in range(shot):
            i = int(random.random() * (count - len(taken)))
            for t in sorted(taken):  # i-th of the positions not yet taken, without building the list of them
                i += i >= t
            chosen.append(i)
            if not self.repeat:
                taken.append(i)
        return chosen


class EpisodeSampler:
    """Training episodes. In epoch p = e // N each of the N training images is the query exactly once.

    The class is drawn from the query's base classes, the supports from the other images of that class.

    Args:
        lists: of the base classes (`fsseg.data.lists.train_lists`).
        shot: K.
        seed: the run's seed.
        repeat_support: `protocol.repeat_support`.
        families, background_shift: see `SupportDrawer`.
    """

    def __init__(
        self,
        lists: FoldLists,
        shot: int,
        seed: int,
        repeat_support: bool = False,
        families: Mapping[str, int | None] | None = None,
        background_shift: float | None = None,
    ) -> None:
        self.lists, self.shot, self.seed = lists, shot, seed
        self._drawer = SupportDrawer(lists, repeat_support, families, background_shift)
        self._epoch, self._order = -1, [0]  # the last epoch's permutation: speed only, every value is recomputable

    def __len__(self) -> int:
        """N, episodes of one epoch."""
        return len(self.lists.images)

    def __getitem__(self, number: int) -> EpisodeSpec:
        """Episode `number` >= 0."""
        if number < 0:
            raise IndexError(number)
        epoch, position = divmod(number, len(self))
        if epoch != self._epoch:
            self._order = permutation(len(self), f"fsseg train order {self.seed} {epoch}")
            self._epoch = epoch
        query = self._order[position]
        random = Random(f"fsseg train episode {self.seed} {number}")
        classes = self.lists.classes_of[query]
        class_id = classes[int(random.random() * len(classes))]
        query_id = self.lists.images[query]
        return EpisodeSpec(number, class_id, query_id, self._drawer.draw(query_id, class_id, self.shot, random))


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
      the image's novel classes (PFENet, BAM, HDMNet). Biased: only the first N images ever are queries.

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
            class_id = lists.classes[int(random.random() * len(lists.classes))]
            images = lists.candidates[class_id]
            query_id = images[int(random.random() * len(images))]
        elif protocol.query_order == "first_n":
            position = number % len(lists.images)
            query_id, classes = lists.images[position], lists.classes_of[position]
            class_id = classes[int(random.random() * len(classes))]
        else:
            raise UserError(
                f"protocol.query_order={protocol.query_order} is unknown",
                "set it to one of: cycle, list_cycle, class_uniform, first_n",
            )
        specs.append(EpisodeSpec(number, class_id, query_id, drawer.draw(query_id, class_id, shot, random)))
    return specs


def fingerprint(episodes: Mapping[int, Sequence[EpisodeSpec]]) -> str:
    """16 hex digits over seeds, classes, queries and supports, in order."""
    digest = hashlib.sha256()
    for seed in sorted(episodes):
        for spec in episodes[seed]:
            row = (str(seed), str(spec.number), str(spec.class_id), spec.query_id, *spec.support_ids)
            digest.update(("\t".join(row) + "\n").encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------- the episode file

_MAGIC = "# fsseg evaluation episodes, version 1"


def write_episodes(
    path: Path,
    episodes: Mapping[int, Sequence[EpisodeSpec]],
    *,
    dataset: str,
    fold: int,
    shot: int,
    protocol: str,
    class_names: Sequence[str],
) -> str:
    """Write an evaluation list as tab-separated text with a commented head; returns its fingerprint.

    A file of K shots serves every smaller K: readers take the first supports of each line.
    """
    mark = fingerprint(episodes)
    head = {
        "dataset": dataset,
        "fold": fold,
        "shot": shot,
        "protocol": protocol,
        "seeds": ",".join(map(str, sorted(episodes))),
        "fingerprint": mark,
    }
    lines = [_MAGIC, *(f"# {key}: {value}" for key, value in head.items())]
    lines.append(
        "\t".join(["seed", "episode", "class_id", "class", "query", *(f"support_{k + 1}" for k in range(shot))])
    )
    for seed in sorted(episodes):
        for s in episodes[seed]:
            row = [seed, s.number, s.class_id, class_names[s.class_id], s.query_id, *s.support_ids]
            lines.append("\t".join(map(str, row)))
    write_atomic(path, "\n".join(lines) + "\n")
    return mark


def read_episodes(
    path: Path,
    *,
    dataset: str,
    fold: int,
    shot: int,
    class_names: Sequence[str],
    novel: Sequence[int],
    index: ClassIndex,
) -> dict[int, list[EpisodeSpec]]:
    """Read a list back, checked against the data at hand; the first `shot` supports of each line are used.

    Args:
        path: of a file by `write_episodes`.
        dataset, fold, shot: of the run; the file must be of this data set and fold, with at least `shot` supports.
        class_names: of all classes; position = class_id.
        novel: class_ids of the fold.
        index: of the evaluation split.

    Returns:
        seed -> its episodes, in the file's order.

    Raises:
        UserError: naming the file and the lines; the first 20 faults in one go.
    """
    write_again = "write the list again with `fsseg episodes`, or take protocol.episodes_file= away"
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"protocol.episodes_file={path} cannot be read: {error}", write_again) from error
    if lines[0].strip() != _MAGIC:
        raise UserError(f"{path}, line 1: not a list by `fsseg episodes` (expected {_MAGIC!r})", write_again)
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = head_of(lines[1:start])
    _check_head(path, head, dataset, fold, shot, write_again)

    seen = index.pair_pixels > 0
    listed = {(index.image_ids[i], c) for i, c in zip(index.pair_image[seen].tolist(), index.pair_class[seen].tolist())}
    images = set(index.image_ids)
    episodes: dict[int, list[EpisodeSpec]] = {}
    found: list[UserError] = []
    for at, line in enumerate(lines[start + 1 :], start=start + 2):  # the line after the head names the columns
        try:
            seed, number, class_id, name, query_id, *supports = line.split("\t")
            spec = EpisodeSpec(int(number), int(class_id), query_id, tuple(supports))
            episodes.setdefault(int(seed), []).append(spec)
        except ValueError:
            found.append(
                UserError(f"{path}, line {at}: not seed, episode, class_id, class, query, supports", write_again)
            )
            continue
        if fault := _fault(spec, name, int(head["shot"]), class_names, novel, images, listed):
            found.append(UserError(f"{path}, line {at}: {fault}", write_again))
    if found:
        more = f"\n(and {len(found) - 20} more)" if len(found) > 20 else ""
        merged = merge_errors(found[:20])
        raise UserError(merged.what + more, merged.fix)
    if (mark := fingerprint(episodes)) != head.get("fingerprint") or not episodes:
        raise UserError(
            f"{path}: its lines have the fingerprint {mark}, its head says {head.get('fingerprint')}: "
            "the list was cut or edited",
            write_again,
        )
    return {
        seed: [EpisodeSpec(s.number, s.class_id, s.query_id, s.support_ids[:shot]) for s in specs]
        for seed, specs in episodes.items()
    }


def head_of(lines: Iterable[str]) -> dict[str, str]:
    """What the lines `# key: value` say that a list begins with; nothing after them is read."""
    parts = (line[1:].partition(":") for line in takewhile(lambda line: line.startswith("#"), lines))
    return {key.strip(): value.strip() for key, _, value in parts}


def _check_head(path: Path, head: Mapping[str, str], dataset: str, fold: int, shot: int, fix: str) -> None:
    found = []
    for key, value in {"dataset": dataset, "fold": str(fold)}.items():
        if head.get(key) != value:
            found.append(UserError(f"{path} is a list for {key}={head.get(key)}, this run has {key}={value}", fix))
    if not head.get("shot", "").isdigit() or int(head["shot"]) < shot:
        found.append(UserError(f"{path} holds {head.get('shot')} supports an episode, this run needs shot={shot}", fix))
    if found:
        raise merge_errors(found)


def _fault(
    spec: EpisodeSpec,
    name: str,
    shot: int,
    class_names: Sequence[str],
    novel: Sequence[int],
    images: set[str],
    listed: set[tuple[str, int]],
) -> str | None:
    if not 0 <= spec.class_id < len(class_names) or class_names[spec.class_id] != name:
        return f"class {spec.class_id} is not {name!r} in this data set"
    if spec.class_id not in novel:
        return f"class {name} ({spec.class_id}) is not novel in this fold"
    if len(spec.support_ids) != shot:
        return f"{len(spec.support_ids)} supports where the head says {shot}"
    for image in (spec.query_id, *spec.support_ids):
        if image not in images:
            return f"image {image} is not in the evaluation split"
        if (image, spec.class_id) not in listed:
            return f"image {image} has no pixel of {name}"
    if spec.query_id in spec.support_ids:
        return f"the query {spec.query_id} is its own support"
    return None
