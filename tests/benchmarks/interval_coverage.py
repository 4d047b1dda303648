"""How often the 95 % intervals of docs/statistics.md hold the truth, and how often equal methods seem to differ.

    python tests/benchmarks/interval_coverage.py            # the table of docs/statistics.md, some minutes

Every line simulates many evaluations of made-up images through the code that reports use. Areas of objects are
log-normal, as those of PASCAL are roughly; how well an image is segmented depends on the image and, less, on the
support. The truth is
the score on a million images of each class.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from fsseg.report.resampling import Queries, Resampled, Scores, interval, scores
from fsseg.report.significance import signed_rank
from fsseg.report.statistics import Interval

PIXELS = 90_000  # of an image
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How an evaluation is made: each query is in `passes` episodes of each of `in_seeds` of the `seeds` seeds.

    Attributes:
        queries: of each class.
        image: standard deviation, in skill, of what an image has for all methods; `own`: for one method alone;
            `support`: of single episodes; `training`: of trainings.
    """

    classes: int = 5
    queries: int = 70
    seeds: int = 5
    in_seeds: int = 5
    passes: int = 3
    image: float = 0.6
    own: float = 0.25
    support: float = 0.35
    training: float = 0.0

    @property
    def episodes(self) -> int:
        """Of one seed."""
        return self.classes * self.queries * self.in_seeds * self.passes // self.seeds


PASCAL = Size()
COCO = Size(classes=20, queries=250, in_seeds=1, passes=1)
FEW = Size(queries=40, passes=1, seeds=1, in_seeds=1)
VERY_FEW = Size(queries=10, passes=4)


def _means(classes: int) -> Array:
    """(C, 1) skill at each class."""
    return np.linspace(-0.3, 1.1, classes)[:, None]


@dataclass(frozen=True)
class Images:
    """(C, Q) areas in pixels, and what each has for all methods."""

    area: Array
    ease: Array

    @classmethod
    def of(cls, size: Size, random: np.random.Generator) -> Images:
        shape = (size.classes, size.queries)
        share = np.minimum(np.exp(random.normal(-2.2, 1.0, shape)), 0.8)  # median 11 % of the image
        return cls(np.ceil(share * PIXELS), random.normal(0, size.image, shape) + 0.2 * np.log(share))


@dataclass
class Method:
    """Something that answers: `skill` is for all images, the rest is its own on these."""

    size: Size
    images: Images
    random: np.random.Generator
    skill: float = 0.0
    own: Array = field(init=False)

    def __post_init__(self) -> None:
        self.own = self.random.normal(0, self.size.own, self.images.area.shape)

    def answer(self) -> Queries:
        """One training's answers to all episodes; the supports of an episode are its own."""
        size, area, random = self.size, self.images.area, self.random
        trained = random.normal(0, size.training, (size.classes, 1))
        skill = _means(size.classes) + self.skill + trained + self.images.ease + self.own
        both = np.zeros((size.seeds, *area.shape))
        either = np.zeros_like(both)
        for _ in range(size.passes):
            hit, union = _pixels(area, skill + random.normal(0, size.support, both.shape), random)
            both += hit
            either += union
        present = np.zeros_like(both)
        turn = np.arange(size.queries)
        for s in range(size.seeds):
            present[s][:, (turn - s) % size.seeds < size.in_seeds] = 1
        return replace(_frame(size), intersection=(both * present).reshape(1, size.seeds, -1),
                       union=(either * present).reshape(1, size.seeds, -1))  # fmt: skip


def _pixels(area: Array, skill: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Intersections and unions of answers with this skill."""
    recall = ndtr(skill)
    false = np.exp(random.normal(-0.5, 0.8, skill.shape)) * (1.1 - recall) * area
    return np.round(area * recall), area + np.round(np.minimum(false, PIXELS - area))


@lru_cache
def _frame(size: Size) -> Queries:
    """What is the same in all evaluations of a size; so are the draws, which saves most of the time."""
    queries = size.classes * size.queries
    ids, none = np.arange(size.classes).repeat(size.queries), np.zeros((1, size.seeds, queries))
    truth = np.stack([ids, np.arange(queries), np.full(queries, PIXELS)], axis=1)
    names = tuple(f"class {c}" for c in range(size.classes))
    drawn = np.ones((size.seeds, size.classes), dtype=bool)
    bounds = tuple(range(0, queries + 1, size.queries))
    return Queries(names, truth, bounds, none, none, drawn, False, size.classes, size.episodes * size.seeds, "d")


def truth(size: Size) -> tuple[float, ...]:
    """The IoU of each class on a million images of it, in percent."""
    return _truth(replace(PASCAL, classes=size.classes))


@lru_cache
def _truth(size: Size) -> tuple[float, ...]:
    random = np.random.default_rng(1)
    many = replace(size, queries=50_000)
    both = either = np.zeros(size.classes)
    for _ in range(20):
        method = Method(many, Images.of(many, random), random)
        own = random.normal(0, size.support, method.own.shape)
        skill = _means(size.classes) + method.images.ease + method.own + own
        hit, union = _pixels(method.images.area, skill, random)
        both, either = both + hit.sum(axis=1), either + union.sum(axis=1)
    return tuple((100 * both / either).tolist())


def scored(method: Method, fold: int = 0) -> Scores:
    return scores([(fold, method.answer(), -1)])[0]


@dataclass
class Rate:
    """How often something was so, in percent, with the mean width of the intervals it is about."""

    hits: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, hit: bool, found: Interval) -> None:
        self.hits.append(hit)
        self.widths.append(found.high - found.low)

    @property
    def percent(self) -> float:
        return 100 * float(np.mean(self.hits))

    @property
    def error(self) -> float:
        """Standard error of `percent`, had it been 95."""
        return 100 * (0.95 * 0.05 / len(self.hits)) ** 0.5

    @property
    def width(self) -> float:
        return float(np.mean(self.widths))


def coverage(size: Size, simulations: int, seed: int = 0) -> tuple[Rate, Rate]:
    """How often the interval of the mIoU of one run holds that of all images; and the same of the single classes."""
    random, miou, classes = np.random.default_rng(seed), Rate(), Rate()
    true = truth(size)
    for _ in range(simulations):
        found = scored(Method(size, Images.of(size, random), random))
        _add(miou, [found.miou], float(np.mean(true)))
        for run, value in zip(found.classes.values(), true):
            _add(classes, [run], value)
    return miou, classes


def difference(size: Size, simulations: int, seed: int = 0) -> tuple[Rate, Rate]:
    """Two methods that are equal over all images: how often the interval of their difference holds 0. And the same of
    the interval that takes their runs for unpaired."""
    random, paired, unpaired = np.random.default_rng(seed), Rate(), Rate()
    for _ in range(simulations):
        images = Images.of(size, random)
        one, two = (scored(Method(size, images, random)).miou for _ in range(2))
        _add(paired, [one.less(two)], 0.0)
        # other draws for the second: the resamples in another order
        _add(unpaired, [one.less(two._replace(resampled=two.resampled[::-1]))], 0.0)
    return paired, unpaired


def rows(size: Size, simulations: int, folds: int = 4, trainings: int = 3, seed: int = 0) -> tuple[Rate, Rate, Rate]:
    """Two rows of one recipe, which differ by the trainings alone: how often the interval of the difference holds 0,
    over images and training seeds, and over images alone; and how often Wilcoxon's p is above 0.05."""
    random = np.random.default_rng(seed)
    both, alone, wilcoxon = Rate(), Rate(), Rate()
    for _ in range(simulations):
        runs: list[Resampled] = []
        for fold in range(folds):
            images = Images.of(size, random)
            one = Method(size, images, random)
            two = Method(size, images, random)
            two.own = one.own
            runs += [scored(one, fold).miou.less(scored(two, fold).miou) for _ in range(trainings)]
        _add(both, runs, 0.0)
        _add(alone, runs[::trainings], 0.0)
        test = signed_rank([run.value for run in runs])
        wilcoxon.hits.append(test is None or test.p > 0.05)
    return both, alone, wilcoxon


def _add(rate: Rate, runs: list[Resampled], true: float) -> None:
    found = interval(runs)
    assert found is not None
    rate.add(found.low <= true <= found.high, found)


def coverage_by_episode(size: Size, simulations: int, seed: int = 0) -> Rate:
    """`coverage` of the mIoU if every episode was drawn by itself, as if each had an image of its own."""
    random, rate = np.random.default_rng(seed), Rate()
    each, true = size.in_seeds * size.passes, truth(size)
    apart = replace(size, queries=size.queries * each, passes=1, in_seeds=1)
    for _ in range(simulations):
        method = Method(size, Images.of(size, random), random)
        images = Images(method.images.area.repeat(each, axis=1), method.images.ease.repeat(each, axis=1))
        of_episodes = Method(apart, images, random)
        of_episodes.own = method.own.repeat(each, axis=1)
        _add(rate, [scored(of_episodes).miou], float(np.mean(true)))
    return rate


def lines(simulations: int) -> Iterator[str]:
    for name, size, number in (
        ("200 episodes, one seed: 5 classes of 40 images", FEW, simulations),
        ("10 images a class, 5 x 200 episodes", VERY_FEW, simulations),
        ("PASCAL: 5 classes of 70 images, 5 x 1050 episodes", PASCAL, simulations),
    ):
        miou, classes = coverage(size, number)
        paired, unpaired = difference(size, number)
        yield f"| {name} | {_shown(miou)} | {_shown(classes)} | {_shown(paired)} | {_shown(unpaired)} |"
    yield f"| PASCAL, each episode by itself | {_shown(coverage_by_episode(PASCAL, simulations // 4))} |"
    for trainings in (2, 3):
        both, alone, wilcoxon = rows(replace(PASCAL, training=0.1), simulations // 2, trainings=trainings)
        yield f"| 4 folds, {trainings} seeds | {_shown(both)} | {_shown(alone)} | {wilcoxon.percent:.1f} |"
    miou, classes = coverage(COCO, simulations // 4)
    paired, unpaired = difference(COCO, simulations // 4)
    name = "COCO: 20 classes of 250 images, 5 x 1000 episodes"
    yield f"| {name} | {_shown(miou)} | {_shown(classes)} | {_shown(paired)} | {_shown(unpaired)} |"


def _shown(rate: Rate) -> str:
    """`94.6 (5.3)`: percent, and mean width of the interval."""
    return f"{rate.percent:.1f} ({rate.width:.1f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--simulations", type=int, default=1000)
    for line in lines(options.parse_args().simulations):
        print(line, flush=True)


if __name__ == "__main__":
    main()
