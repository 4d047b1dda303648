"""Training curves of all cells as small multiples: one picture for each shot and fold, a line for each training seed.

`contents` calls it. The templates draw the lines as SVG: a thousand pictures of matplotlib would take minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fsseg.cell.record import RunDirectory
from fsseg.process.words import several
from fsseg.report.collect import CellResult

WIDTH, HEIGHT = 220, 90
"""Of a picture, in its own units."""
_MOST_POINTS = 60  # of a line
_SERIES = 6  # colours in style.css

Curve = tuple[list[float], list[float]]
"""Steps, rising, and a value at each."""


@dataclass(frozen=True)
class Path:
    """A line of a picture: `points` as the `points` of an SVG polyline, `colour` the number of its colour."""

    points: str
    colour: int
    score: bool = False


@dataclass
class Multiple:
    """A small picture: its heading, the lines in it, and what they show in words."""

    heading: str
    words: str
    paths: list[Path] = field(default_factory=list)


@dataclass
class Strip:
    """The pictures of one row of the tables, on the same axes.

    Attributes:
        steps, loss: what the axes end at.
        loss_name, score_name: columns of metrics.csv; empty where there is none.
    """

    label: str
    multiples: list[Multiple]
    steps: float
    loss: float
    loss_name: str
    score_name: str


def strips(cells: Mapping[str, Sequence[CellResult]]) -> list[Strip]:
    """The curves of the cells of each row, as far as they have any.

    Args:
        cells: label of a row -> its cells, finished or not.
    """
    return [strip for label, of_row in cells.items() if (strip := _strip(label, of_row)) is not None]


def _strip(label: str, cells: Sequence[CellResult]) -> Strip | None:
    losses: dict[tuple[int, int], dict[int, Curve]] = defaultdict(dict)
    scores: dict[tuple[int, int], dict[int, Curve]] = defaultdict(dict)
    loss_name = score_name = ""
    for cell in cells:
        curves, key = RunDirectory(cell.path).curves(_is_drawn), cell.key
        if name := next(filter(_is_loss, curves), ""):
            loss_name, losses[key.shot, key.fold][key.seed] = name, thinned(curves[name])
        if name := next(filter(_is_score, curves), ""):
            score_name, scores[key.shot, key.fold][key.seed] = name, thinned(curves[name])
    if not losses:
        return None
    every = [curve for of_place in losses.values() for curve in of_place.values()]
    steps = max(curve[0][-1] for curve in every)
    top = max(max(_smooth(curve[1])[1:] or curve[1]) for curve in every) or 1.0
    several_shots = len({shot for shot, _ in losses}) > 1
    strip = Strip(label, [], steps, top, loss_name, score_name)
    for (shot, fold), of_seeds in sorted(losses.items()):
        heading = f"{shot}-shot fold {fold}" if several_shots else f"fold {fold}"
        multiple = Multiple(heading, f"{loss_name} of {label}, {heading}: {_in_words(of_seeds)}")
        for place, curve in enumerate(of_seeds[seed] for seed in sorted(of_seeds)):
            multiple.paths.append(Path(_points(curve, steps, top), place % _SERIES))
        for curve in scores[shot, fold].values():
            multiple.paths.append(Path(_points(curve, steps, 100.0), 0, score=True))
        if scores[shot, fold]:
            multiple.words += f"; {score_name}: {_in_words(scores[shot, fold])}"
        strip.multiples.append(multiple)
    return strip


def thinned(curve: Curve) -> Curve:
    """At most `_MOST_POINTS` points of a curve: the means of as many stretches of the same number of points."""
    steps, values = curve
    size = -(-len(values) // _MOST_POINTS)
    if size <= 1:
        return curve
    parts = [slice(i, i + size) for i in range(0, len(values), size)]
    return [steps[part][-1] for part in parts], [sum(values[part]) / len(values[part]) for part in parts]


def _smooth(values: Sequence[float]) -> list[float]:
    return [sum(values[max(0, i - 1) : i + 1]) / len(values[max(0, i - 1) : i + 1]) for i in range(len(values))]


def _is_loss(name: str) -> bool:
    return "loss" in name.lower()


def _is_score(name: str) -> bool:
    return name.lower().endswith("miou")


def _is_drawn(name: str) -> bool:
    return _is_loss(name) or _is_score(name)


def _points(curve: Curve, steps: float, top: float) -> str:
    """A polyline from the lower left corner; what is above the picture is drawn at its upper edge."""
    return " ".join(
        f"{WIDTH * x / (steps or 1.0):.1f},{HEIGHT * (1 - min(max(y / top, 0.0), 1.0)):.1f}" for x, y in zip(*curve)
    )


def _in_words(of_seeds: Mapping[int, Curve]) -> str:
    """Where each curve starts and ends."""
    told = [
        f"seed {seed} from {values[0]:.3g} at step {steps[0]:.0f} to {values[-1]:.3g} at step {steps[-1]:.0f}"
        for seed, (steps, values) in sorted(of_seeds.items())
    ]
    return several(told, 5)
