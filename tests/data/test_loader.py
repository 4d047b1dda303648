"""From a configuration to batches: what is in them, and what cannot change them."""

from __future__ import annotations

import random as python_random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_source import FakeSource
from numpy.typing import NDArray
from omegaconf import OmegaConf
from visited import evaluation_batches

from fsseg.config.schema import DatasetConfig, EvalConfig, ProtocolConfig, TrainConfig, register
from fsseg.data.episode_file import ListHead, write_episodes
from fsseg.data.loader import EpisodeLoader, evaluation_plan, resolve_workers, training_loader, training_plan
from fsseg.data.types import Batch
from fsseg.errors import UserError

REPO = Path(__file__).resolve().parents[2]


def delivered_rules() -> dict[str, dict[str, Any]]:
    """From each file under conf/protocol, the rules that decide what training sees."""
    register()  # the resolver that some values use
    rules = ("novel_in_training", "min_pixels", "repeat_support")
    found = {}
    for file in sorted((REPO / "conf/protocol").glob("*.yaml")):
        root = OmegaConf.create({"dataset": {"name": "pascal5i"}, "protocol": OmegaConf.load(file)})
        found[file.stem] = {key: root.protocol[key] for key in rules if key in root.protocol}
    assert len(found) >= 5
    return found


class Workers:
    """Stands for the iterator of a `DataLoader`: its processes end when nothing refers to it any more."""

    def __init__(self, ended: list[bool]) -> None:
        self.ended = ended

    def __iter__(self) -> Workers:
        return self

    def __next__(self) -> int:
        return 1

    def __del__(self) -> None:
        self.ended.append(True)


class Loader:
    def __init__(self) -> None:
        self.ended: list[bool] = []

    def __iter__(self) -> Workers:
        return Workers(self.ended)


def test_closing_ends_the_processes_that_load_also_while_a_failure_is_held() -> None:
    """Python 3.12 and 3.13 keep what a closed generator holds, if it was not inside a `try`, as long as the generator
    lives: that of a failed cell is in its traceback."""
    loader = Loader()
    items = iter(EpisodeLoader(loader))  # type: ignore[arg-type]
    assert next(items) == 1
    assert loader.ended == []
    items.close()
    assert loader.ended == [True]


PROTOCOLS = delivered_rules() | {"with_ignore": {"novel_in_training": "ignore"}}
"""The rules of every protocol that is delivered, and of the third choice for novel pixels."""


def make_source(seed: int = 0) -> FakeSource:
    draw = python_random.Random(seed)
    pixels = lambda: draw.randrange(1, 9000)  # noqa: E731
    images: Any = {
        split: {f"{split}{n}": {draw.randrange(8): pixels() for _ in range(draw.randrange(1, 4))} for n in range(70)}
        for split in ("train", "val")
    }
    return FakeSource(images)


def make_cfg(fold: int = 0, shot: int = 1, workers: int = 0, size: int = 33, **protocol: Any) -> Any:
    values = {"name": "standard", "num_episodes": 30, "seeds": [0, 1]} | protocol
    return SimpleNamespace(
        fold=fold,
        shot=shot,
        seed=3,
        num_workers=workers,
        dataset=DatasetConfig(name="fake", root="", image_size=size, rotate_degrees=10.0, blur_probability=0.2),
        protocol=ProtocolConfig(**values),
        train=TrainConfig(epochs=1, batch_size=4, lr=0.1),
        eval=EvalConfig(batch_size=8),
    )


TENSORS = ("support_images", "support_masks", "support_pictures", "query_image", "query_mask", "query_picture")


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.specs == other.specs
    assert one.valid_sizes == other.valid_sizes
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for a, b in zip(one.query_truths, other.query_truths):
        assert (a is None and b is None) or np.array_equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("fold", range(4))
def test_base_and_novel_classes_never_meet(name: str, fold: int) -> None:
    source = make_source(fold)
    cfg = make_cfg(
        fold, size=129, query_order=("cycle", "list_cycle", "class_uniform", "first_n")[fold], **PROTOCOLS[name]
    )
    novel = set(source.novel_classes(fold))
    plan = training_plan(source, cfg)
    seen = {plan.sampler[e].class_id for e in range(3 * plan.num_images)}
    assert not seen & novel
    used = {i for e in range(plan.num_images) for i in (plan.sampler[e].query_id, *plan.sampler[e].support_ids)}
    holds_novel = {i for i in used if novel & set(source.images["train"][i])}
    assert bool(holds_novel) == (cfg.protocol.novel_in_training != "drop")

    # The masks that training sees: a pixel of a novel class is never foreground.
    transform_free = 0
    for batch in training_loader(source, cfg, 0, 6, plan):
        for b, spec in enumerate(batch.specs):
            for image_id in (spec.query_id, *spec.support_ids):
                labels = source.labels("train", image_id)
                mask = source.mask("train", image_id, spec.class_id, plan.ignore_classes)
                on_novel = set(np.unique(mask[np.isin(labels, [c + 1 for c in novel])]).tolist())
                assert on_novel <= ({255} if cfg.protocol.novel_in_training == "ignore" else {0})
                transform_free += 1
            # and in the transformed query: foreground has its class's colour, red = 10 * class + 20
            red = (batch.query_image[b, 0] * 0.229 + 0.485) * 255
            inner = red[batch.query_mask[b] == 1]
            assert (inner.median() - (10 * spec.class_id + 20)).abs() < 4
    assert transform_free == 48

    evaluation = evaluation_plan(source, cfg)
    assert {s.class_id for specs in evaluation.episodes.values() for s in specs} <= novel
    assert set(evaluation.classes) | set(evaluation.missing_classes) == novel


@pytest.mark.parametrize("shot", [1, 2])
def test_workers_and_the_starting_point_change_nothing(shot: int) -> None:
    source = make_source()
    whole = list(training_loader(source, make_cfg(shot=shot), 0, 20))
    assert len(whole) == 20
    for start, workers in ((0, 2), (7, 0), (15, 1)):
        cfg = make_cfg(shot=shot, workers=workers)
        part = list(training_loader(source, cfg, start, 20 - start))
        assert len(part) == 20 - start
        for one, other in zip(whole[start:], part):
            assert_equal(one, other)
    assert [s.number for batch in whole for s in batch.specs] == list(range(80))


def test_evaluation_batches_are_equal_with_and_without_workers_and_in_any_order() -> None:
    source = make_source()
    specs = evaluation_plan(source, make_cfg(shot=2)).episodes[1]
    alone = list(evaluation_batches(source, make_cfg(shot=2), specs))
    for one, other in zip(alone, evaluation_batches(source, make_cfg(shot=2, workers=2), specs)):
        assert_equal(one, other)
    assert [len(b) for b in alone] == [8, 8, 8, 6]
    backwards = list(evaluation_batches(source, make_cfg(shot=2), specs[::-1]))
    assert torch.equal(backwards[0].query_image[0], alone[-1].query_image[-1])


def test_evaluation_keeps_the_truth_at_original_size_and_training_none() -> None:
    source = make_source()
    specs = evaluation_plan(source, make_cfg()).episodes[0][:3]
    (batch,) = evaluation_batches(source, make_cfg(), specs)
    for spec, truth, valid in zip(batch.specs, batch.query_truths, batch.valid_sizes):
        assert np.array_equal(truth, source.mask("val", spec.query_id, spec.class_id))  # type: ignore[arg-type]
        assert valid == (22, 33)  # 40 x 60 with the longer side 33
    assert next(iter(training_loader(source, make_cfg(), 0, 1))).query_truths == [None] * 4


def test_the_pictures_of_a_batch_are_those_of_its_images() -> None:
    """Padding is the mean colour exactly, 0 in all channels, and no pixel of a picture is."""
    source, cfg = make_source(), make_cfg(shot=2)
    specs = evaluation_plan(source, cfg).episodes[0]
    for batch in (*training_loader(source, cfg, 0, 3), *evaluation_batches(source, cfg, specs)):
        assert torch.equal(batch.support_pictures, (batch.support_images != 0).any(2))
        assert torch.equal(batch.query_picture, (batch.query_image != 0).any(1))
        assert not batch.query_picture.all()


@pytest.mark.parametrize(
    ("fit", "valid", "middle"),
    # 40 x 60 pixels in a square of 73. At test 48.7 x 73 are floored; in training 16 and 6 rows and columns are free.
    [("squash", (73, 73), (0, 0)), ("pfenet", (48, 72), (16, 6))],
)
def test_both_loaders_fit_images_as_the_protocol_says(
    fit: str, valid: tuple[int, int], middle: tuple[int, int]
) -> None:
    source, cfg = make_source(), make_cfg(size=73, shot=2, fit=fit)
    cfg.dataset.scale_range = [1.0, 1.0]
    specs = evaluation_plan(source, cfg).episodes[0]
    corner = torch.zeros(73, 73, dtype=torch.bool)
    corner[: valid[0], : valid[1]] = True
    for batch in evaluation_batches(source, cfg, specs):
        assert set(batch.valid_sizes) == {valid}
        assert (batch.query_picture == corner).all()
        assert (batch.support_pictures == corner).all()
    whole = list(training_loader(source, cfg, 0, 6))
    for one, other in zip(whole[3:], training_loader(source, cfg, 3, 3)):
        assert_equal(one, other)
    cfg.dataset.rotate_degrees = 0.0
    for batch in training_loader(source, cfg, 0, 3):
        for picture in (*batch.query_picture, *batch.support_pictures.flatten(0, 1)):
            rows, columns = picture.any(1).nonzero()[:, 0], picture.any(0).nonzero()[:, 0]
            assert (int(rows[0]), int(columns[0])) == middle
            assert (len(rows), len(columns)) == ((73, 73) if fit == "squash" else (40, 60))


def test_a_batch_moves_with_its_images_and_masks_stay_on_the_host() -> None:
    batch = next(iter(training_loader(make_source(), make_cfg(), 0, 1)))
    moved = batch.to("meta")
    there = {name for name in TENSORS if getattr(moved, name).device.type == "meta"}
    assert there == {"support_images", "query_image"}
    assert moved.specs == batch.specs
    assert_equal(batch.to("cpu"), batch)


def test_resumed_training_runs_across_epochs_without_skipping() -> None:
    source = make_source()
    plan = training_plan(source, make_cfg())
    steps = plan.num_images // 4
    assert plan.steps_per_epoch == steps
    numbers = [s.query_id for batch in training_loader(source, make_cfg(), 0, steps + 2) for s in batch.specs]
    assert sorted(numbers[: plan.num_images]) == sorted(plan.lists.images)


class Broken(FakeSource):
    """One image cannot be read, or has a mask without foreground or of another size."""

    def __init__(self, kind: str) -> None:
        super().__init__(make_source().images)
        self.kind = kind

    def image(self, split: Any, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        if self.kind == "image" and image_id == "train7":
            raise UserError("JPEGImages/train7.jpg is cut short", "fetch it again")
        return super().image(split, image_id)

    def mask(self, split: Any, image_id: str, class_id: int, ignore_classes: Any = ()) -> NDArray[np.uint8]:
        mask = super().mask(split, image_id, class_id, ignore_classes)
        if self.kind == "empty":
            return np.zeros_like(mask)
        return mask[:-1] if self.kind == "size" else mask


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "what", "fix"),
    [
        ("image", "JPEGImages/train7.jpg is cut short", "fetch it again"),
        ("empty", r"train image train\d+: support mask of class class\d has no foreground pixel", "fsseg prepare"),
        ("size", r"train image train\d+: image of 60 x 40 pixels, mask of 60 x 39", "fsseg verify"),
    ],
)
def test_a_users_fault_reaches_the_main_process_as_itself(workers: int, kind: str, what: str, fix: str) -> None:
    cfg = make_cfg(workers=workers, novel_in_training="background", min_pixels=0)
    with pytest.raises(UserError, match=what) as caught:
        list(training_loader(Broken(kind), cfg, 0, 40))
    assert fix in caught.value.fix


def test_an_episode_file_replaces_the_drawn_episodes(tmp_path: Path) -> None:
    source = make_source()
    drawn = evaluation_plan(source, make_cfg(shot=5, min_pixels=0))
    path = tmp_path / "episodes.tsv"
    write_episodes(path, drawn.episodes, ListHead("fake", 0, 5, source.classes, "p"))
    cfg = make_cfg(shot=1, num_episodes=999, seeds=[8], episodes_file=str(path))
    read = evaluation_plan(source, cfg)
    assert {seed: len(specs) for seed, specs in read.episodes.items()} == {0: 30, 1: 30}
    assert read.fingerprint == evaluation_plan(source, make_cfg(shot=1, min_pixels=0)).fingerprint != drawn.fingerprint


def test_a_novel_class_without_images_is_missing() -> None:
    source = make_source()
    for pairs in source.images["val"].values():
        pairs.pop(1, None)  # type: ignore[attr-defined]
    plan = evaluation_plan(source, make_cfg(min_pixels=0))
    assert (plan.classes, plan.missing_classes) == ((0,), (1,))


def test_workers_are_as_asked_or_one_less_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert [resolve_workers(n) for n in (-1, 0, 5)] == [3, 0, 5]


def test_a_class_without_an_episode_because_few_are_drawn_is_not_called_too_small() -> None:
    images: Any = {
        "train": {},
        "val": {**{f"a{n}": {0: 9000} for n in range(3)}, **{f"b{n}": {1: 9000} for n in range(3)}},
    }
    plan = evaluation_plan(FakeSource(images), make_cfg(num_episodes=1, seeds=[0], query_order="list_cycle"))
    assert (plan.classes, plan.missing_classes) == ((0, 1), ())
