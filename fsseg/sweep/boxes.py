"""Cuts a grid into command lines: one for each of several servers, or short lines for scattered cells.

`fsseg plan` and `fsseg retry` call this. A box is a set of cells that is a product of choices (`dataset=a,b fold=0,1`):
one command line can run it.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from fsseg.errors import UserError

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
        return _cut_along(points, hours, servers, [k for k in swept if k in by])[1]
    best: list[tuple[float, int, int, list[list[Box]]]] = []
    for size in range(len(swept) + 1):
        for chosen in itertools.combinations(swept, size):
            longest, parts = _cut_along(points, hours, servers, chosen)
            best.append((longest, sum(map(len, parts)), size, parts))
    shortest = min(entry[0] for entry in best)
    good = [entry for entry in best if entry[0] <= 1.05 * shortest]
    return min(good, key=lambda entry: (entry[1], entry[2]))[3]


def _cut_along(
    points: Sequence[Point], hours: Sequence[float], servers: int, keys: Sequence[str]
) -> tuple[float, list[list[Box]]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, point in enumerate(points):
        groups.setdefault(tuple(point.settings[k] for k in keys), []).append(i)
    members = list(groups.values())
    chunks = split_evenly([sum(hours[i] for i in group) for group in members], servers)
    parts = [merge([points[i].settings for g in chunk for i in members[g]]) for chunk in chunks]
    longest = max(sum(hours[i] for g in chunk for i in members[g]) for chunk in chunks)
    return longest, parts


def split_evenly(weights: Sequence[float], count: int) -> list[list[int]]:
    """Cut a sequence into at most `count` runs, none empty; the largest sum is minimal, then the largest length."""
    size = len(weights)
    count = min(count, size)
    # best[k][n]: (largest sum, largest length) of the first n weights in k runs, and where the last run begins
    best: list[list[tuple[float, int, int]]] = [[(float("inf"), size, 0)] * (size + 1) for _ in range(count + 1)]
    best[0][0] = (0.0, 0, 0)
    for k in range(1, count + 1):
        for n in range(k, size + 1):
            total = 0.0
            for begin in range(n - 1, k - 2, -1):
                total += weights[begin]
                before = best[k - 1][begin]
                candidate = (max(before[0], total), max(before[1], n - begin), begin)
                if candidate[:2] < best[k][n][:2]:
                    best[k][n] = candidate
    runs: list[list[int]] = []
    n = size
    for k in range(count, 0, -1):
        begin = best[k][n][2]
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
    merged: dict[Hashable, Box] = {}
    for box in boxes:
        rest = (key in box, tuple(sorted((k, frozenset(v)) for k, v in box.items() if k != key)))
        if rest in merged and key in box:
            values = merged[rest][key]
            merged[rest][key] = values + tuple(v for v in box[key] if v not in values)
        elif rest in merged:
            continue  # the same point twice
        else:
            merged[rest] = dict(box)
    return list(merged.values())


def command(box: Box, extra: Sequence[str] = ()) -> str:
    """The line that runs a box, quoted for a shell; `extra` are further overrides."""
    words = [f"{key}={','.join(values)}" for key, values in box.items()] + list(extra)
    return shlex.join(["python", "train.py", "-m", *words])
