"""The file of an evaluation list: written by `fsseg episodes`, read where `protocol.episodes_file=` names it.

Tab-separated text with a commented head. A file of K shots serves every smaller K: readers take the first supports of
each line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from fsseg.data.episodes import episodes_fingerprint
from fsseg.data.source import ClassIndex
from fsseg.data.spec import EpisodeSpec
from fsseg.errors import Lines, UserError, merge_errors, visible
from fsseg.process.files import EPISODE_LIST_BYTES, read_file, write_atomic

_MAGIC = "# fsseg evaluation episodes, version 1"
_COLUMNS = ("seed", "episode", "class_id", "class", "query")
_WRITE_AGAIN = "write the list again with `fsseg episodes`, or take protocol.episodes_file= away"
_SHOWN = 20  # faults named in one error


@dataclass(frozen=True)
class ListHead:
    """What an episode list is made for, or what a run needs.

    Attributes:
        dataset, fold, shot: as in the configuration.
        class_names: of all classes; position = class_id.
        protocol: name of the rules that the episodes were drawn by; unused when a run states what it needs.
    """

    dataset: str
    fold: int
    shot: int
    class_names: Sequence[str]
    protocol: str = ""


def write_episodes(path: Path, episodes: Mapping[int, Sequence[EpisodeSpec]], head: ListHead) -> str:
    """Write the episodes of each seed; returns their fingerprint.

    Raises:
        OSError: the file cannot be written.
    """
    mark = episodes_fingerprint(episodes)
    lines = [_MAGIC]
    lines += [f"# {key}: {getattr(head, key)}" for key in ("dataset", "fold", "shot", "protocol")]
    lines += [f"# seeds: {','.join(map(str, sorted(episodes)))}", f"# fingerprint: {mark}"]
    lines.append("\t".join([*_COLUMNS, *(f"support_{k + 1}" for k in range(head.shot))]))
    for seed in sorted(episodes):
        for s in episodes[seed]:
            row = [seed, s.number, s.class_id, head.class_names[s.class_id], s.query_id, *s.support_ids]
            lines.append("\t".join(map(str, row)))
    write_atomic(path, "\n".join(lines) + "\n")
    return mark


def read_episodes(
    path: Path, wanted: ListHead, novel: Sequence[int], index: ClassIndex
) -> dict[int, list[EpisodeSpec]]:
    """Read a list back, checked against the data at hand; the first `wanted.shot` supports of each line are used.

    Args:
        path: a file that `write_episodes` wrote.
        wanted: what the run needs; the file must be of this data set and fold, with at least so many supports.
        novel: class_ids of the fold.
        index: of the evaluation split.

    Returns:
        seed -> its episodes, in the file's order.

    Raises:
        UserError: it names the file and the lines of the first 20 faults.
    """
    try:
        lines = read_file(path, EPISODE_LIST_BYTES).decode("utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"protocol.episodes_file={path} cannot be read: {error}", _WRITE_AGAIN) from error
    if lines[0].strip() != _MAGIC:
        raise UserError(f"{path}, line 1: not a list by `fsseg episodes` (expected {_MAGIC!r})", _WRITE_AGAIN)
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    said = head_of(lines[1:start])
    head = _checked_head(path, said, wanted)
    classes_of = _classes_of(index)
    episodes: dict[int, list[EpisodeSpec]] = {}
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    for at, line in enumerate(lines[start + 1 :], start=start + 2):  # the line after the head names the columns
        try:
            seed, number, class_id, name, query_id, *supports = line.split("\t")
            spec = EpisodeSpec(int(number), int(class_id), query_id, tuple(supports))
            key = (int(seed), spec.number)
        except ValueError:
            found.append(f"line {at}: not seed, episode, class_id, class, query, supports")
            continue
        episodes.setdefault(key[0], []).append(spec)
        if fault := _key_fault(key, seen) or _fault(spec, name, head, novel, classes_of):
            found.append(f"line {at}: {fault}")
        seen.add(key)
    if found:
        merged = merge_errors([UserError(f"{path}, {fault}", _WRITE_AGAIN) for fault in found[:_SHOWN]])
        more = f"\n(and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise UserError(Lines(visible(merged.what) + more), merged.fix)
    if (mark := episodes_fingerprint(episodes)) != said.get("fingerprint") or not episodes:
        raise UserError(
            f"{path}: its lines have the fingerprint {mark}, its head says {said.get('fingerprint')}: "
            "the list was cut or edited",
            _WRITE_AGAIN,
        )
    return {
        seed: [replace(spec, support_ids=spec.support_ids[: wanted.shot]) for spec in specs]
        for seed, specs in episodes.items()
    }


def head_of(lines: Iterable[str]) -> dict[str, str]:
    """The lines `# key: value` at the beginning of a list, as a dictionary; nothing after them is read."""
    parts = (line[1:].partition(":") for line in takewhile(lambda line: line.startswith("#"), lines))
    return {key.strip(): value.strip() for key, _, value in parts}


def _checked_head(path: Path, said: Mapping[str, str], wanted: ListHead) -> ListHead:
    """The head, checked against what was wanted, with the file's own number of supports."""
    found = []
    for key in ("dataset", "fold"):
        if said.get(key) != (value := str(getattr(wanted, key))):
            what = f"{path} is a list for {key}={said.get(key)}, this run has {key}={value}"
            found.append(UserError(what, _WRITE_AGAIN))
    shot = said.get("shot", "")
    if not shot.isdigit() or int(shot) < wanted.shot:
        what = f"{path} holds {said.get('shot')} supports an episode, this run needs shot={wanted.shot}"
        found.append(UserError(what, _WRITE_AGAIN))
    if found:
        raise merge_errors(found)
    return replace(wanted, shot=int(shot))


def _classes_of(index: ClassIndex) -> dict[str, set[int]]:
    """Image -> the classes of which it has a pixel."""
    classes: dict[str, set[int]] = {image_id: set() for image_id in index.image_ids}
    for image, class_id, pixels in zip(
        index.pair_image.tolist(), index.pair_class.tolist(), index.pair_pixels.tolist()
    ):
        if pixels:
            classes[index.image_ids[image]].add(class_id)
    return classes


def _key_fault(key: tuple[int, int], seen: set[tuple[int, int]]) -> str | None:
    """Why no single episode has this seed and number; its counts are kept by them."""
    for name, number, most in zip(("seed", "episode"), key, (2**32 - 1, 2**31 - 1)):
        if not 0 <= number <= most:
            return f"{name} {number} is not within 0 and {most}"
    return f"episode {key[1]} of seed {key[0]} comes twice" if key in seen else None


def _fault(
    spec: EpisodeSpec, name: str, head: ListHead, novel: Sequence[int], classes_of: Mapping[str, set[int]]
) -> str | None:
    names = head.class_names
    if not 0 <= spec.class_id < len(names) or names[spec.class_id] != name:
        return f"class {spec.class_id} is not {name!r} in this data set"
    if spec.class_id not in novel:
        return f"class {name} ({spec.class_id}) is not novel in this fold"
    if len(spec.support_ids) != head.shot:
        return f"{len(spec.support_ids)} supports where the head says {head.shot}"
    for image in (spec.query_id, *spec.support_ids):
        if image not in classes_of:
            return f"image {image} is not in the evaluation split"
        if spec.class_id not in classes_of[image]:
            return f"image {image} has no pixel of {name}"
    if spec.query_id in spec.support_ids:
        return f"the query {spec.query_id} is its own support"
    return None
