"""What an evaluation takes beside what it must take: the measurement behind `fsseg bench evaluate`.

Three sides in one process: the evaluation as it is, which keeps what it computed of each image; the same code that
keeps nothing, one episode at a time; and the method's decoding of every episode and the backbone on every different
image, bare. The last two are measured on a sample of the episodes, half of it before the evaluation and half after.
Called by the `fsseg` command.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fsseg.bench.common import Spread, forget_peak, peak_bytes, seconds
from fsseg.bench.foreground import predict_share, shares
from fsseg.cell.episodes import OWN, EpisodeCounts
from fsseg.cell.record import open_cell
from fsseg.data.loader import EvaluationPlan, Loaded, VisitDataset, evaluation_plan
from fsseg.data.registry import build_source
from fsseg.data.source import Source
from fsseg.data.spec import EpisodeSpec
from fsseg.data.visits import Load, Planned, Role, Visit
from fsseg.engine import checkpoint, precision
from fsseg.engine.context import Run
from fsseg.engine.progress import Progress
from fsseg.engine.scoring import Scoring, Spent
from fsseg.errors import UserError
from fsseg.model import FewShotModel, build_model
from fsseg.model.base import Kept, Prediction
from fsseg.model.baseline import Baseline
from fsseg.model.cost import OBJECT_SHARE
from fsseg.process.tables import aligned
from fsseg.process.words import count

if TYPE_CHECKING:
    from fsseg.config.compose import Composed
    from fsseg.config.schema import Config

_TOGETHER_ON_GPU = 8  # bare episodes, if eval.batch_size says nothing
_FITTED = 12  # episodes on which random weights are made to predict the wanted share


@dataclass(frozen=True)
class EvaluationRow:
    """One configuration.

    Attributes:
        method, backbone, dataset, image_size, shot, amp, feature_format: of it.
        seeds, episodes, images: evaluated; episodes of all seeds, different images of them.
        kept_seconds: of the whole evaluation.
        encoded: images that it passed through the backbone.
        kept_gb, peak_gb: most that it kept of images, and the most memory meanwhile, in 1e9 bytes.
        spent: seconds of it on waiting for data, encoding, decoding and scoring.
        sample: episodes of the other sides.
        without: seconds an episode if nothing is kept, one value for each half of the sample.
        bare_episode: seconds an episode of the decoding alone.
        bare_image: seconds an image of the backbone alone.
        equal: episodes of the sample of which all counts are the same with and without.
        predicted_share: foreground share of the query that each round predicts, mean of the sample; the cost of SM
            depends on it.
    """

    method: str
    backbone: str
    dataset: str
    image_size: int
    shot: int
    amp: str
    feature_format: str
    seeds: int
    episodes: int
    images: int
    kept_seconds: float
    encoded: int
    kept_gb: float
    peak_gb: float
    spent: Mapping[str, float]
    sample: int
    without: Spread
    bare_episode: Spread
    bare_image: Spread
    equal: int
    predicted_share: tuple[float, ...]

    @property
    def bare_seconds(self) -> float:
        """Bare decoding of every episode, and one bare pass of the backbone for every different image."""
        return self.episodes * self.bare_episode.mean + self.images * self.bare_image.mean

    @property
    def over_bare(self) -> float:
        """What the evaluation takes more than that, as a share of it."""
        return self.kept_seconds / self.bare_seconds - 1

    @property
    def gain(self) -> float:
        """How many times as long it takes if nothing is kept."""
        return self.without.mean * self.episodes / self.kept_seconds


def bench_evaluation(
    composed: Composed, device: torch.device, sample: int = 24, share: float = OBJECT_SHARE
) -> EvaluationRow:
    """Measure the evaluation of one cell; nothing is written.

    Args:
        composed: the cell; its `protocol.seeds` and `protocol.num_episodes` say how many episodes are evaluated.
        sample: episodes of the sides that are not measured in full; two at least.
        share: foreground that random weights are made to predict; a checkpoint's stay as they are.

    Raises:
        UserError: faulty data, or a method without a backbone.
    """
    cfg = composed.cfg
    source = build_source(cfg)
    source.check(["val"])
    plan = evaluation_plan(source, cfg)
    checkpoint.seed_everything(cfg.seed)
    model = build_model(cfg).to(device).eval()
    if not hasattr(model, "backbone"):
        raise UserError(f"method={cfg.model.name} has no backbone to compare with", "choose another method")
    if cfg.checkpoint is not None:
        checkpoint.start_from(model, cfg, source)
    precision.prepare(model, device, precision.usable(cfg.eval.amp, device, "eval.amp"))
    sides = _Sides(composed, device, source, model, plan)
    before, after = _halves(plan, sample)
    with torch.inference_mode():
        if cfg.checkpoint is None and isinstance(model, Baseline):
            for _ in range(2):  # rounds after the first depend on what the first one predicts
                predict_share(model, share, lambda: sides.bare(_first(before, _FITTED), keep=False))
        sides.bare(_first(before, 1), keep=False)  # a warm-up
        sides.bare(before)
        sides.without(before)
        counts, spent, taken, peak = sides.kept()
        sides.bare(after)
        sides.without(after)
    others = EpisodeCounts.concat(sides.others)
    return EvaluationRow(
        method=cfg.model.name, backbone=cfg.backbone.name, dataset=cfg.dataset.name, image_size=cfg.dataset.image_size,
        shot=cfg.shot, amp=cfg.eval.amp, feature_format=cfg.eval.feature_format, seeds=len(plan.episodes),
        episodes=len(counts), images=spent.distinct, kept_seconds=taken, encoded=spent.images,
        kept_gb=spent.kept_bytes / 1e9, peak_gb=peak / 1e9, spent=dict(spent.seconds), sample=len(others),
        without=Spread.of(sides.times["without"]), bare_episode=Spread.of(sides.times["episode"]),
        bare_image=Spread.of(sides.times["image"]), equal=len(others) - len(counts.unlike(others)),
        predicted_share=tuple(map(statistics.fmean, zip(*sides.shares))),
    )  # fmt: skip


Episodes = dict[int, list[EpisodeSpec]]
"""Seed -> some of its episodes."""


def _halves(plan: EvaluationPlan, sample: int) -> tuple[Episodes, Episodes]:
    """Two parts of a sample that is spread evenly over all episodes of all seeds."""
    every = _listed(plan.episodes)
    size = min(max(2, sample), len(every))
    if size < 2:
        raise UserError("there is one episode to evaluate: nothing can be compared", "raise protocol.num_episodes")
    chosen = [every[number * len(every) // size] for number in range(size)]
    return _by_seed(chosen[::2]), _by_seed(chosen[1::2])


def _first(episodes: Episodes, number: int) -> Episodes:
    """At most so many of them."""
    return _by_seed(_listed(episodes)[:number])


def _listed(episodes: Mapping[int, Sequence[EpisodeSpec]]) -> list[tuple[int, EpisodeSpec]]:
    """Each with its seed, one seed after the other."""
    return [(seed, spec) for seed, specs in episodes.items() for spec in specs]


def _by_seed(listed: Sequence[tuple[int, EpisodeSpec]]) -> Episodes:
    """The inverse."""
    found: Episodes = {}
    for seed, spec in listed:
        found.setdefault(seed, []).append(spec)
    return found


class _Sides:
    """The sides of one cell, and what was measured of them: `times` in seconds, an episode or an image each, and
    `shares` of foreground by round, a batch each."""

    def __init__(
        self, composed: Composed, device: torch.device, source: Source, model: FewShotModel, plan: EvaluationPlan
    ) -> None:
        self.composed, self.device, self.source, self.model, self.plan = composed, device, source, model, plan
        self.times: dict[str, list[float]] = {"without": [], "episode": [], "image": []}
        self.shares: list[tuple[float, ...]] = []
        self.others: list[EpisodeCounts] = []
        self.amp = precision.usable(composed.cfg.eval.amp, device, "eval.amp")

    def kept(self) -> tuple[EpisodeCounts, Spent, float, int]:
        """The evaluation: counts, what it spent, seconds, and its most memory in bytes."""
        forget_peak(self.device)
        total = sum(map(len, self.plan.episodes.values()))
        with Progress("evaluate", total) as progress:
            counts, spent, taken = self._scored(self.composed.cfg, self.plan.episodes, progress)
        return counts, spent, taken, peak_bytes(self.device)

    def without(self, episodes: Episodes) -> None:
        """The same code that keeps nothing, one episode at a time."""
        cfg = copy.deepcopy(self.composed.cfg)
        cfg.eval.feature_cache_gb, cfg.eval.batch_size, cfg.eval.backbone_batch = 0.0, 1, 1
        counts, _, taken = self._scored(cfg, episodes)
        self.times["without"].append(taken / len(counts))
        self.others.append(counts)

    def _scored(
        self, cfg: Config, episodes: Mapping[int, Sequence[EpisodeSpec]], progress: Progress | None = None
    ) -> tuple[EpisodeCounts, Spent, float]:
        cell = open_cell(cfg, self.composed.resolved, self.composed.task_overrides)
        scoring = Scoring(Run(cfg, cell, self.device), self.model, self.source, progress)
        plan = replace(self.plan, episodes={seed: list(specs) for seed, specs in episodes.items()})
        start = time.perf_counter()
        counts = scoring.counts({OWN: plan})
        return counts, scoring.spent, time.perf_counter() - start

    def bare(self, episodes: Episodes, keep: bool = True) -> None:
        """Decoding alone and the backbone alone, one after the other, for each batch of the episodes."""
        cfg = self.composed.cfg
        size = cfg.eval.batch_size or (1 if self.device.type == "cpu" else _TOGETHER_ON_GPU)
        listed = [Planned(OWN, seed, spec) for seed, spec in _listed(episodes)]
        batches = [tuple(listed[start : start + size]) for start in range(0, len(listed), size)]
        loading = VisitDataset(self.source, cfg, [_visit(batch) for batch in batches], self.plan)
        for number in range(len(batches)):
            item = loading[number]
            bare = _Bare(self.model, self.amp, item, self.device)
            for name, run in (("episode", bare.decode), ("image", bare.backbone)):
                taken = seconds(run, self.device) / len(item.tasks)
                if keep:
                    self.times[name].append(taken)
            if keep and bare.prediction is not None:
                self.shares.append(shares(bare.prediction))


def _visit(episodes: tuple[Planned, ...]) -> Visit:
    """All images of some episodes: the supports, then the queries."""
    supports = [Load(i, e.spec.class_id, "support") for e in episodes for i in e.spec.support_ids]
    return Visit(episodes, (), (*supports, *(Load(e.spec.query_id, e.spec.class_id, "query") for e in episodes)))


class _Bare:
    """A batch of episodes whose images are encoded."""

    def __init__(self, model: FewShotModel, amp: str, item: Loaded, device: torch.device) -> None:
        assert item.images is not None
        assert item.pictures is not None
        self.model, self.amp, self.tasks, self.device = model, amp, item.tasks, device
        self.prediction: Prediction | None = None
        images, pictures = item.images.to(device), item.pictures
        number = len(images) - len(item.tasks)
        one = 1 if device.type == "cpu" else number  # as an evaluation hands supports to the method
        parts = [slice(start, start + one) for start in range(0, number, one)]
        self.supports = [self._encode(images[part], pictures[part], "support") for part in parts]
        self.queries = images[number:]
        self.query = self._encode(self.queries, pictures[number:], "query")

    def _encode(self, images: Tensor, pictures: Tensor, role: Role) -> Kept:
        with precision.autocast(self.device, self.amp):
            return self.model.encode(images, pictures, role)

    def decode(self) -> None:
        with precision.autocast(self.device, self.amp):
            self.prediction = self.model.decode(self.supports, self.query, self.tasks)

    def backbone(self) -> None:
        network = self.model.backbone
        assert isinstance(network, torch.nn.Module)
        with precision.autocast(self.device, self.amp):
            network(self.queries)


def format_evaluation(rows: Sequence[EvaluationRow]) -> str:
    """The rows in plain text, a block each."""
    return "\n\n".join(_block(row) for row in rows)


def _block(row: EvaluationRow) -> str:
    n = row.episodes
    kept = f"amp {row.amp}, kept in {row.feature_format}"
    head = f"{row.method} on {row.backbone}, {row.dataset} at {row.image_size} px, {count(row.shot, 'shot')}, {kept}"
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in row.spent.items())
    bare = f"decode {row.bare_episode} an episode, backbone {row.bare_image} an image, from {row.sample} episodes"

    def line(name: str, total: float, what: str) -> tuple[str, str, str, str]:
        return name, f"{total:.1f}", f"{total / n:.3f}", what

    lines = [
        ("", "seconds", "an episode", ""),
        line("this evaluation", row.kept_seconds, f"{parts}; {row.encoded} images encoded"),
        line("nothing kept, one at a time", row.without.mean * n, f"from {row.sample} episodes"),
        line("bare decoding and backbone", row.bare_seconds, bare),
    ]
    notes = [
        f"{n} episodes of {count(row.seeds, 'seed')}, {row.images} different images; kept at most "
        f"{row.kept_gb:.2f} GB, most memory {row.peak_gb:.2f} GB",
        f"{row.over_bare:+.1%} over bare; {row.gain:.1f} times less than with nothing kept; the counts of {row.equal} "
        f"of {row.sample} episodes are equal",
    ]
    notes.append("predicted foreground by round: " + ", ".join(f"{share:.0%}" for share in row.predicted_share))
    return "\n".join([head, aligned(lines, left=(0, 3)), *notes])
