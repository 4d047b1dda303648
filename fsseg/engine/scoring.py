"""Scores episodes with one model: encodes each image once, decodes batches of episodes, counts pixels.

Called by `fsseg.engine.evaluate` and by the validation during training. What is kept, visited and computed together is
chosen at the start (`fsseg.engine.features`, `fsseg.data.visits`) and changes no count.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fsseg.cell.episodes import EpisodeCounts, EpisodePart, EpisodeScope, Scored
from fsseg.data import visits
from fsseg.data.loader import EvaluationPlan, Loaded, VisitDataset, evaluation_loader
from fsseg.data.source import Source
from fsseg.data.types import EpisodeSpec, Tasks
from fsseg.data.visits import Load, Planned, Visit
from fsseg.engine import diagnostics, distributed, precision
from fsseg.engine.context import Run
from fsseg.engine.features import FeatureRoom, FeatureStore, Probe, plan_room
from fsseg.engine.metrics import PixelCounts, PooledScore, count_pixels
from fsseg.engine.pending import Pending
from fsseg.engine.progress import Progress
from fsseg.errors import Diverged
from fsseg.model.base import FewShotModel, Kept, Prediction, upsample
from fsseg.process.signals import Preempted
from fsseg.process.words import count, size

log = logging.getLogger("fsseg")

Episodes = Mapping[str, Mapping[int, Sequence[EpisodeSpec]]]
"""Shift -> seed -> its episodes."""

TOGETHER = 8
"""Batches between two times at which several processes put their counts together."""


@dataclass
class Picture:
    """One evaluated episode, kept for the figures: predicted foreground at scoring size and its IoU in percent.

    `seed` is that of the evaluation; `steps` are the intermediate predictions with their names (`logger.steps`).
    """

    seed: int
    spec: EpisodeSpec
    prediction: NDArray[np.bool_]
    iou: float
    steps: list[tuple[str, NDArray[np.bool_]]] = field(default_factory=list)


@dataclass
class Spent:
    """What an evaluation cost this process.

    Attributes:
        images, episodes: how many were encoded and decoded.
        distinct: different images among them.
        kept_bytes: most that was kept at any time.
        seconds: of the host, by what it did: wait (for data), encode, decode, score.
    """

    images: int = 0
    episodes: int = 0
    distinct: int = 0
    kept_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def text(self) -> str:
        took = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in self.seconds.items())
        again = f" of {self.distinct} different ones" if self.images != self.distinct else ""
        return f"{count(self.images, 'image')}{again} encoded, {size(self.kept_bytes)} kept at most; {took}"

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began


@dataclass
class _Answered:
    """A batch whose counts are on their way, with the masks of those episodes that are to be drawn."""

    episodes: Sequence[Planned]
    distances: Sequence[float | None]
    drawn: dict[int, tuple[Tensor, list[tuple[str, Tensor]]]]


def predicted_foreground(
    logits: Tensor,
    size: tuple[int, int],
    valid_size: tuple[int, int],
    truth_size: tuple[int, int] | None,
    fit: str = "longer_side",
    patches: bool = False,
) -> Tensor:
    """Foreground at the size used for scoring, by the rule of `protocol.fit`; where the logits are.

    Args:
        logits: (R, 2, h, w) at feature size.
        size: (H, W) of the network input.
        valid_size: upper left part of the input that is image.
        truth_size: original size, or None to stay at network size: the padding is then cut off.
        fit: longer_side cuts the padding off before scaling, so that it has no influence; squash scales all of the
            input, its corners aligned; pfenet likewise, to a square of the original's longer side, and cuts afterwards.
        patches: what the cells of the logits are, see `Backbone.patches`.

    Returns:
        bool, (R, H0, W0) or (R, valid height, valid width).
    """
    return margins(logits_at_scoring_size(logits, size, valid_size, truth_size, fit, patches)) > 0


def margins(logits: Tensor) -> Tensor:
    """How far foreground lies above background, (R, 2, H, W) -> (R, H, W).

    Above 0 is foreground; the logistic function of it is the foreground's probability, the softmax of the logits.
    """
    return logits[:, 1] - logits[:, 0]


def logits_at_scoring_size(
    logits: Tensor,
    size: tuple[int, int],
    valid_size: tuple[int, int],
    truth_size: tuple[int, int] | None,
    fit: str = "longer_side",
    patches: bool = False,
) -> Tensor:
    """Logits (R, C, h, w) at the size used for scoring; the arguments as for `predicted_foreground`."""
    full = upsample(logits, size, patches)
    if fit == "longer_side" or truth_size is None:
        full = full[..., : valid_size[0], : valid_size[1]]
        if truth_size is not None and tuple(full.shape[-2:]) != tuple(truth_size):
            # images are fitted by pixel areas, not corners, so predictions are scaled back likewise
            full = F.interpolate(full, size=truth_size, mode="bilinear", align_corners=False)
    elif fit == "squash":
        full = upsample(full, truth_size)
    else:
        longer = max(truth_size)
        full = upsample(full, (longer, longer))[..., : truth_size[0], : truth_size[1]]
    return full


class Scoring:
    """Counts the episodes of plans with one model.

    Args:
        run, model, source: of the evaluation.
        progress: counts the episodes, and the run's status shows it; None counts and shows nothing.
        part: the record that is kept meanwhile, in the process that writes; what it holds is not counted again.
        beside: the score is not that of the run, so its status does not show it.

    Attributes:
        pictures: of the episodes that were asked for.
        spent: what it cost.
    """

    def __init__(
        self, run: Run, model: FewShotModel, source: Source, progress: Progress | None = None,
        part: EpisodePart | None = None, beside: bool = False,
    ) -> None:  # fmt: skip
        assert run.device is not None
        self.run, self.model, self.source, self.progress, self.part = run, model, source, progress, part
        self.beside = beside
        self.device, self.amp = run.device, precision.usable(run.cfg.eval.amp, run.device, "eval.amp")
        self.pictures: list[Picture] = []
        self.spent = Spent()
        self._rows: list[Scored] = []  # counted and not yet handed on
        self._counted: list[Scored] = []  # in a process without a part
        self._so_far = PooledScore(len(source.classes))

    def counts(self, plans: Mapping[str, EvaluationPlan], wanted: Iterable[tuple[int, int]] = ()) -> EpisodeCounts:
        """The counts of all episodes, in every process.

        Args:
            plans: shift -> plan, of the same images.
            wanted: (seed, number) of the episodes of the first plan that are added to `pictures`; even if they were
                counted before.

        Raises:
            UserError: the data is faulty, or an answer holds numbers that are not finite.
            Preempted: when the run was asked to stop; what was counted is in the record then.
        """
        (own, plan), ranks = next(iter(plans.items())), self.run.ranks
        self._drawn = {(own, seed, number) for seed, number in wanted}
        self._have = distributed.broadcast(set() if self.part is None else self.part.have, ranks)
        if self.part is not None and self._have:
            self._so_far = PooledScore.of_rounds(self.part.counts(), len(self.source.classes))[-1]
        every = {shift: of_shift.episodes for shift, of_shift in plans.items()}
        if any(self._open(batch) for batch in visits.batches(every, 1)):
            self._visit(plan, every)
        scope = scope_of(plans, self.source)
        found = EpisodeCounts.of(scope, self._counted).in_order() if self.part is None else self.part.counts()
        return distributed.broadcast(found, ranks)

    def _open(self, batch: Sequence[Planned]) -> bool:
        """Whether a batch has an episode that is still to be counted, or drawn."""
        return any(listed.key not in self._have or listed.key in self._drawn for listed in batch)

    def _visit(self, plan: EvaluationPlan, every: Episodes) -> None:
        """Visit all batches that are open, each process its share of them."""
        ranks = self.run.ranks
        left = [listed for batch in visits.batches(every, 1) if self._open(batch) for listed in batch]
        store, shares = self._prepared(plan, every, left)
        with closing(iter(evaluation_loader(self.source, self.run.cfg, shares[ranks.rank], plan))) as loaded:
            try:
                self._loop(loaded, store, max(len(share) for share in shares))
            finally:
                self.spent.kept_bytes = store.peak
                store.close()
        if self.progress is not None:
            log.info("%s", self.spent.text())

    def _prepared(
        self, plan: EvaluationPlan, every: Episodes, left: Sequence[Planned]
    ) -> tuple[FeatureStore, list[list[Visit]]]:
        """Encode a first image, by whose size the room is planned; it is kept. And the visits of each process."""
        run, spec = self.run, left[0].spec
        first = Load(spec.query_id, spec.class_id, "both")
        image, picture = VisitDataset(self.source, run.cfg, (), plan).image(first)
        (kept,) = self._encoded([first], image[None], picture[None])
        probe = Probe(
            lambda: self._encoded([first], image[None], picture[None]),
            lambda: self._decoded([kept] * len(spec.support_ids), [kept], _all_foreground(spec, picture)),
        )
        distinct = len(visits.distinct(left))
        rooms = distributed.gather(plan_room(run.cfg.eval, self.device, kept, distinct, probe, run.ranks), run.ranks)
        self.spent.images = 1  # what a probe encodes is not kept
        room = FeatureRoom.of_all(rooms).for_need(max(len(set(listed.images)) for listed in left))
        self._report(room, distinct)
        store = FeatureStore(room, self.device, run.cfg.eval.feature_format)
        store.put(first.image_id, kept)
        return store, self._visits(every, room, first.image_id)

    def _visits(self, every: Episodes, room: FeatureRoom, held: str) -> list[list[Visit]]:
        """The visits of each process."""
        found: list[Sequence[Planned]] = [b for b in visits.batches(every, room.batch_size) if self._open(b)]
        if room.images:
            found = visits.fitting(found, room.images)
            order = visits.visiting_order([visits.distinct(batch) for batch in found], room.images)
            found = [found[place] for place in order]
        return [
            visits.schedule(share, room.images, room.backbone_batch, (held,))
            for share in visits.shares(found, self.run.ranks.world)
        ]

    def _loop(self, loaded: Iterator[Loaded], store: FeatureStore, turns: int) -> None:
        pending: Pending[_Answered] = Pending(self.device, behind=1 if self.device.type == "cuda" else 0)
        try:
            for turn in range(turns):
                with self.spent.on("wait"):
                    item = distributed.next_batch(loaded, self.run.should_stop, self.run.ranks)
                if item is not None:  # in the last turn only some processes have one
                    self._answer(item, store, pending)
                    self._read(pending)
                if self.run.ranks.world == 1 or turn % TOGETHER == TOGETHER - 1:
                    self._hand_on()
        except Preempted:  # of all processes at once
            self._read(pending, everything=True)
            self._hand_on()
            raise
        self._read(pending, everything=True)
        self._hand_on()

    def _answer(self, item: Loaded, store: FeatureStore, pending: Pending[_Answered]) -> None:
        """Encode, decode and count one visit."""
        visit, tasks = item.visit, item.tasks
        for image in visit.drops:
            store.drop(image)
        with self.spent.on("encode"):
            step = store.room.backbone_batch
            for start in range(0, len(visit.loads), step):
                assert item.images is not None
                assert item.pictures is not None
                some = slice(start, start + step)
                loads = visit.loads[some]
                for load, kept in zip(loads, self._encoded(loads, item.images[some], item.pictures[some])):
                    if load.image_id not in store:
                        store.put(load.image_id, kept)
        with self.spent.on("decode"):
            entries = {image: store.get(image) for image in visits.distinct(visit.episodes)}
            supports = [entries[image] for listed in visit.episodes for image in listed.spec.support_ids]
            prediction = self._decoded(supports, [entries[e.spec.query_id] for e in visit.episodes], tasks)
            self.spent.episodes += len(tasks)
        with self.spent.on("score"):
            pending.put(*self._counts(visit.episodes, prediction, tasks))

    def _encoded(self, loads: Sequence[Load], images: Tensor, pictures: Tensor) -> list[Kept]:
        """Of each of N images (N, 3, H, W), tensors (1, ...)."""
        roles = {load.role for load in loads}
        with precision.autocast(self.device, self.amp):
            images = images.to(self.device, non_blocking=True)
            kept = self.model.encode(images, pictures, roles.pop() if len(roles) == 1 else "both")
        self.spent.images += len(loads)
        return [{name: value[n : n + 1] for name, value in kept.items()} for n in range(len(loads))]

    def _decoded(self, supports: Sequence[Kept], queries: Sequence[Kept], tasks: Tasks) -> Prediction:
        """On a CPU supports go in one by one, without a copy of all that lies outside their masks."""
        with precision.autocast(self.device, self.amp):
            together = supports if self.device.type == "cpu" else [_joined(supports)]
            return self.model.decode(together, _joined(queries), tasks)

    def _counts(self, episodes: Sequence[Planned], prediction: Prediction, tasks: Tasks) -> tuple[_Answered, Tensor]:
        """The counts of every episode and round, (B, R, 6): `PixelCounts`, and whether the answer is finite."""
        cfg, found = self.run.cfg, []
        answer = _Answered(episodes, [None] * len(tasks), {})
        if cfg.eval.diagnostics:
            answer.distances = diagnostics.foreground_distances(prediction, tasks.query_mask)
        for b, listed in enumerate(episodes):
            logits = torch.stack([of_round[b] for of_round in prediction.rounds])
            truth, valid = tasks.query_truths[b], tasks.valid_sizes[b]
            assert truth is not None
            true, own_size = torch.from_numpy(truth), (truth.shape[0], truth.shape[1])
            if cfg.protocol.scoring_size == "network":
                true, own_size = tasks.query_mask[b, : valid[0], : valid[1]], None  # type: ignore[assignment]
            where = (tasks.size, valid, own_size, cfg.protocol.fit, prediction.patches)
            masks = predicted_foreground(logits, *where)
            pixels = count_pixels(masks, true.to(self.device, non_blocking=True))
            finite = torch.isfinite(logits).flatten(1).all(1)
            found.append(torch.cat((pixels, finite[:, None]), 1))
            if listed.key in self._drawn:
                ways = diagnostics.steps(prediction) if cfg.logger.steps else []
                steps = [(name, predicted_foreground(p[b : b + 1], *where)[0]) for name, p in ways]
                answer.drawn[b] = (masks[-1], steps)
        return answer, torch.stack(found)

    def _read(self, pending: Pending[_Answered], everything: bool = False) -> None:
        """Take the counts that are there.

        Raises:
            UserError: an answer is not finite.
        """
        for answer, found in pending.read(everything):
            numbers: Any = found
            _check_finite(answer.episodes, numbers)
            new = 0
            for b, listed in enumerate(answer.episodes):
                pixels = [PixelCounts(*row[:-1]) for row in numbers[b]]
                if b in answer.drawn:
                    mask, steps = answer.drawn[b]
                    drawn = [(name, step.cpu().numpy()) for name, step in steps]
                    shown = mask.cpu().numpy()
                    self.pictures.append(Picture(listed.seed, listed.spec, shown, pixels[-1].iou, drawn))
                if listed.key not in self._have:
                    new += 1
                    self._rows.append(
                        Scored(listed.seed, listed.spec.number, listed.spec.class_id, listed.shift,
                               pixels[-1].foreground, [row[1:] for row in pixels], answer.distances[b])
                    )  # fmt: skip
                    self._so_far.count(listed.spec.class_id, pixels[-1])
            self._show(new * self.run.ranks.world)

    def _hand_on(self) -> None:
        """Put the counts of all processes into the record; all of them call it at the same turns."""
        rows = [row for part in distributed.gather(self._rows, self.run.ranks) for row in part]
        self._rows = []
        if self.part is not None:
            self.part.append(rows)
        else:
            self._counted += rows

    def _report(self, room: FeatureRoom, distinct: int) -> None:
        self.spent.distinct = distinct
        if self.progress is None:
            return
        where = {"device": "on the device", "host": "in memory", "disk": f"in {room.folder}"}[room.place]
        if room.images:
            kept = f"{room.images} of {distinct} images are kept at most, {size(room.entry)} each, {where}"
        else:
            kept = f"nothing of the {count(distinct, 'image')} is kept, {size(room.entry)} each"
        log.info("%s; %s and %s at a time", kept, count(room.batch_size, "episode"),
                 count(room.backbone_batch, "image"))  # fmt: skip

    def _show(self, episodes: int) -> None:
        if (progress := self.progress) is None or not episodes:
            return
        miou = self._so_far.miou(np.flatnonzero(self._so_far.episodes).tolist())
        progress.step(f"mIoU {miou:.1f}", min(episodes, progress.total - progress.done))
        score = {} if self.beside else {"miou": round(miou, 3)}
        self.run.status.update(
            phase="evaluate", step=progress.done, steps=progress.total, **score,
            seconds_per_step=round(progress.seconds_per_step, 4), eta_seconds=round(progress.eta_seconds, 1),
        )  # fmt: skip


def _check_finite(episodes: Sequence[Planned], numbers: Sequence[Sequence[Sequence[int]]]) -> None:
    """Raises: Diverged: an answer holds NaN or infinity; its arg max would be scored like any other."""
    for listed, rounds in zip(episodes, numbers):
        if not all(finite for *_, finite in rounds):
            raise Diverged(
                f"the answer to evaluation episode {listed.spec.number} of seed {listed.seed} holds numbers that are "
                "not finite",
                "the weights have diverged: train anew with a lower train.lr, or give another checkpoint",
            )


def scope_of(plans: Mapping[str, EvaluationPlan], source: Source) -> EpisodeScope:
    """What an evaluation of these plans visits."""
    plan = next(iter(plans.values()))
    return EpisodeScope(
        tuple(plan.episodes), plan.classes, tuple(source.classes[c] for c in plan.classes), tuple(plans)
    )


def _joined(entries: Sequence[Kept]) -> Kept:
    """Of N images as one; what one of them lacks, whose role is another, is left out."""
    if len(entries) == 1:
        return entries[0]
    names = [name for name in entries[0] if all(name in entry for entry in entries)]
    return {name: torch.cat([entry[name] for entry in entries]) for name in names}


def _all_foreground(spec: EpisodeSpec, picture: Tensor) -> Tasks:
    """A task whose supports are foreground throughout: there is none that takes more memory."""
    masks = torch.where(picture, 1, 255).to(torch.uint8)
    return Tasks(masks.expand(1, len(spec.support_ids), -1, -1), masks[None], [spec], [tuple(picture.shape)], [None])  # type: ignore[list-item]
