"""Evaluation episodes with their images side by side, as a `Batch`: for tests that look at what is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from fsseg.data.loader import EvaluationPlan, evaluation_loader
from fsseg.data.source import Split
from fsseg.data.types import Batch, EpisodeSpec, Tasks
from fsseg.data.visits import Planned, schedule


def evaluation_batches(
    source: Any, cfg: Any, specs: Sequence[EpisodeSpec], split: Split = "val", ignore_classes: Sequence[int] = ()
) -> Iterator[Batch]:
    """`eval.batch_size` episodes at a time, in the order given."""
    plan = EvaluationPlan({0: list(specs)}, (), (), "", "", split, tuple(ignore_classes))
    step = cfg.eval.batch_size
    listed = [[Planned("", 0, spec) for spec in specs[start : start + step]] for start in range(0, len(specs), step)]
    for loaded in evaluation_loader(source, cfg, schedule(listed, 0), plan):
        tasks, place = loaded.tasks, {load.image_id: n for n, load in enumerate(loaded.visit.loads)}
        queries = [place[spec.query_id] for spec in tasks.specs]
        supports = [place[image] for spec in tasks.specs for image in spec.support_ids]
        shape = (len(queries), -1)
        yield Batch(
            **{f.name: getattr(tasks, f.name) for f in fields(Tasks)},
            support_images=loaded.images[supports].unflatten(0, shape),
            support_pictures=loaded.pictures[supports].unflatten(0, shape),
            query_image=loaded.images[queries],
            query_picture=loaded.pictures[queries],
        )
