"""Cuts a grid into command lines: one for each of several servers, or short lines for scattered cells.

`fsseg plan` and `fsseg retry` call this. A box is a set of cells that is a product of choices (`dataset=a,b fold=0,1`):
one command line can run it.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fsseg.errors import UserError
from fsseg.process.command import train_words

if TYPE_CHECKING:
    from fsseg.sweep.grid import Point

GRID_KEYS = ("dataset", "method", "backbone", "shot", "fold", "seed")
Box = dict[str, tuple[str, ...]]
"""Override key -> the values it takes; all combinations are meant."""


def swept_keys(points: Sequence[Point]) -> list[str]:
    """Keys that take more than one value, in the order of the line."""
    if not points:
        return []
    return [k for k in points[0].settings if len({p.settings.get(k) for p in points}) > 1]


def cut(
    points: Sequence[Point], hours: Sequence[float], servers: int, by: Sequence[str] | None = None
) -> list[list[Box]]:
    """Divide a grid among servers: for each the boxes it runs; together they are exactly the grid.

    Consecutive groups go to one server, such that the largest sum of hours is as small as it can be.

    Args:
        points: of the grid.
        hours: expected for each point; 0 for finished ones.
        servers: how many.
        by: keys along which the grid may be cut. All swept keys give the finest cut; None chooses the keys with the
            fewest lines among the best balanced cuts.

    Raises:
        UserError: `servers` is less than 1, or `by` names a key that the line does not have.
    """
    if servers < 1:
        raise UserError(f"--servers {servers}: there must be at least one", "give the number of machines")
    swept = swept_keys(points)
    known = {*GRID_KEYS, *(points[0].settings if points else ())}
    for key in by or ():
        if key not in known:
            choices = ", ".join(swept) or "the line sweeps nothing"
            raise UserError(f"--by {key}: the line has no {key}", f"choose among: {choices}")
    if by is not None:
        return _boxes(points, _cut_along(points, hours, servers, [k for k in swept if k in by])[1])
    ways = [chosen for size in range(len(swept) + 1) for chosen in itertools.combinations(swept, size)]
    cuts = [_cut_along(points, hours, servers, chosen) for chosen in ways]
    shortest = min(longest for longest, _ in cuts)
    good = [_boxes(points, parts) for longest, parts in cuts if longest <= 1.05 * shortest]
    return min(good, key=lambda parts: sum(map(len, parts)))  # of equally many lines the first: it has the fewest keys


def _cut_along(
    points: Sequence[Point], hours: Sequence[float], servers: int, keys: Sequence[str]
) -> tuple[float, list[list[int]]]:
    """Hours of the busiest server, and the numbers of the points that each one runs."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, point in enumerate(points):
        groups.setdefault(tuple(point.settings[k] for k in keys), []).append(i)
    members = list(groups.values())
    chunks = split_evenly([sum(hours[i] for i in group) for group in members], servers)
    parts = [[i for g in chunk for i in members[g]] for chunk in chunks]
    return max(sum(hours[i] for i in part) for part in parts), parts


def _boxes(points: Sequence[Point], parts: Sequence[Sequence[int]]) -> list[list[Box]]:
    return [merge([points[i].settings for i in part]) for part in parts]


def split_evenly(weights: Sequence[float], count: int) -> list[list[int]]:
    """Cut a sequence into at most `count` runs, none empty; the largest sum is minimal, then the largest length.

    Time grows with the square of the length: numpy goes through all places where the last run may begin at once.
    """
    import numpy as np

    size = len(weights)
    count = min(count, size)
    each = np.asarray(weights, dtype=np.float64)
    # Of the first n weights in so many runs: largest sum and largest length.
    sums, lengths = np.full(size + 1, np.inf), np.full(size + 1, size)
    sums[0], lengths[0] = 0.0, 0
    begins = np.zeros((count + 1, size + 1), dtype=int)  # of the last run
    for k in range(1, count + 1):
        sums_before, lengths_before = sums, lengths
        sums, lengths = np.full(size + 1, np.inf), np.full(size + 1, size)
        for n in range(k, size + 1):
            # The last run has length 1, 2, ...; the others hold what is before it.
            largest = np.maximum(np.add.accumulate(each[k - 1 : n][::-1]), sums_before[k - 1 : n][::-1])
            sums[n] = largest.min()
            own = np.flatnonzero(largest == sums[n]) + 1
            longest = np.maximum(own, lengths_before[n - own])
            best = longest.argmin()
            lengths[n], begins[k, n] = longest[best], n - own[best]
    runs: list[list[int]] = []
    n = size
    for k in range(count, 0, -1):
        begin = int(begins[k, n])
        runs.append(list(range(begin, n)))
        n = begin
    return runs[::-1]


def merge(settings: Sequence[Mapping[str, str]]) -> list[Box]:
    """A small number of boxes that hold exactly the given points, each once.

    Two boxes that differ in one key become one; points with different sets of keys stay apart.
    """
    boxes: list[Box] = [{k: (v,) for k, v in s.items()} for s in settings]
    keys = list(dict.fromkeys(k for s in settings for k in s))
    for key in reversed(keys):  # the last key of a line varies fastest
        boxes = _merge_along(boxes, key)
    changed = True
    while changed:  # a second look: what merged along one key may now merge along another
        before = len(boxes)
        for key in keys:
            boxes = _merge_along(boxes, key)
        changed = len(boxes) < before
    return boxes


def _merge_along(boxes: Sequence[Box], key: str) -> list[Box]:
    """Boxes that differ in this key alone as one, its values in the order in which they come up."""
    merged: dict[Hashable, Box] = {}
    values: dict[Hashable, dict[str, None]] = {}
    for box in boxes:
        rest = (key in box, tuple(sorted((k, v if len(v) == 1 else _set_of(v)) for k, v in box.items() if k != key)))
        merged.setdefault(rest, box)
        values.setdefault(rest, {}).update(dict.fromkeys(box.get(key, ())))
    return [box | {key: tuple(values[rest])} if key in box else box for rest, box in merged.items()]


@lru_cache(maxsize=1024)
def _set_of(values: tuple[str, ...]) -> frozenset[str]:
    """Most boxes share the values of their other keys."""
    return frozenset(values)


def cells_of(box: Box) -> Iterator[tuple[tuple[str, str], ...]]:
    """The settings of each of a box's cells, as (key, value) in the order of the line."""
    return (tuple(zip(box, values)) for values in itertools.product(*box.values()))


def command(box: Box, extra: Sequence[str] = (), flags: Sequence[str] = ()) -> str:
    """The line that runs a box, quoted for a shell; `extra` are further overrides, `flags` options of `train.py`."""
    words = [f"{key}={','.join(values)}" for key, values in box.items()] + list(extra)
    return shlex.join([*train_words(), "-m", *flags, *words])
