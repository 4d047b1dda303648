"""Features that are kept change no count, are made once, stay within their budget; a crash loses a batch at most."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from runs import cell_of, composed, done, fork_ranks, numbers, run_and_print, start

from fsseg.cell.episodes import OWN, EpisodePart, PartHead, Scored
from fsseg.cell.models import Result
from fsseg.config.compose import Composed
from fsseg.config.schema import EvalConfig
from fsseg.data.loader import evaluation_plan
from fsseg.data.registry import build_source
from fsseg.engine import evaluate, features, scoring
from fsseg.engine.context import Run
from fsseg.engine.evaluate import weights_digest
from fsseg.engine.features import FeatureRoom, FeatureStore, Probe, plan_room
from fsseg.engine.pending import Pending
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.prototype import Prototype
from fsseg.process.ranks import ALONE, Ranks
from fsseg.run import run

COUNTED = ("intersection", "union", "background_intersection", "background_union")
SETTINGS = ("method=prototype", "train.enabled=false", "backbone.pretrained=false", "protocol.num_episodes=20",
            "protocol.seeds=[3,1]", "shot=2", "eval.batch_size=2", "eval.background_shifts=[1.0]")  # fmt: skip
ENTRY = 7 * 7 * 64 * 4 + 7 * 7
"""Bytes of an image of 25 pixels: layer3 of the tiny backbone in float32, and a truth value a cell."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    c = composed(root, tmp_path_factory.mktemp("whole"), *SETTINGS)
    done(c)
    return c


def result_of(c: Composed) -> Result:
    found = cell_of(c).result()
    assert found is not None
    return found


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[FeatureStore]:
    """Those that the test makes."""
    made: list[FeatureStore] = []

    class Noted(FeatureStore):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(scoring, "FeatureStore", Noted)
    return made


@pytest.mark.parametrize(
    "line",
    [
        ("eval.feature_cache_gb=0",),
        (f"eval.feature_cache_gb={2.5 * ENTRY / 1e9}",),  # less than an episode needs
        (f"eval.feature_cache_gb={3.5 * ENTRY / 1e9}",),  # just enough for one
        (f"eval.feature_cache_gb={8 * ENTRY / 1e9}", "eval.backbone_batch=3"),
        ("eval.batch_size=1", "eval.backbone_batch=5"),
        ("eval.feature_place=disk", "eval.batch_size=7"),
        ("eval.feature_place=disk", f"eval.feature_cache_gb={9 * (ENTRY + 300) / 1e9}", "num_workers=2"),
    ],
)
def test_budget_place_and_batches_change_no_count(
    line: tuple[str, ...], root: Path, tmp_path: Path, whole: Composed, stores: list[FeatureStore]
) -> None:
    given = {o.partition("=")[0] for o in line}
    rest = (o for o in SETTINGS if o.partition("=")[0] not in given)
    c = composed(root, tmp_path, *rest, f"eval.feature_folder={tmp_path}", *line)
    found = done(c)
    assert found.episodes == result_of(whole).episodes
    assert found.metrics == result_of(whole).metrics
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    budget = c.cfg.eval.feature_cache_gb
    (store,) = stores
    if budget is not None:
        assert store.peak <= budget * 1e9
        assert (store.peak > 0) == (budget * 1e9 > 3 * ENTRY)
    assert not list(tmp_path.glob("fsseg-*"))


def test_random_budgets_and_episodes_give_the_same_counts_within_the_budget(
    root: Path, tmp_path: Path, stores: list[FeatureStore]
) -> None:
    draw = random.Random(11)
    for shot in (1, 3):
        c = composed(root, tmp_path, *SETTINGS[:5], f"shot={shot}", "protocol.min_pixels=0")
        cfg, source = c.cfg, build_source(c.cfg)
        plan = evaluation_plan(source, cfg)
        model, here = build_model(cfg).eval(), Run(cfg, cell_of(c), CPU)
        with torch.inference_mode():
            cfg.eval.feature_cache_gb = 0.0
            counts = scoring.Scoring(here, model, source).counts({OWN: plan}).rows
            for _ in range(8):
                budget = draw.randrange(ENTRY * (shot + 1), ENTRY * 30)
                cfg.eval.feature_cache_gb, cfg.eval.backbone_batch = budget / 1e9, draw.choice([1, 3])
                cfg.eval.batch_size = draw.choice([1, 2, 5])
                found = scoring.Scoring(here, model, source).counts({OWN: plan})
                # Other batches may round otherwise: a pixel on the edge of an answer is then counted on the other side.
                for column in counts.dtype.names:
                    most = 2 if column in COUNTED else 0
                    np.testing.assert_allclose(found[column], counts[column], rtol=0, atol=most, err_msg=column)
                assert 0 < stores[-1].peak <= budget


@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_mixed_precision_keeps_what_it_computes_in(
    format: str, root: Path, tmp_path: Path, stores: list[FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring.precision, "_cpu_has_bf16", lambda: True)
    line = ("train.max_steps=3", "protocol.num_episodes=12", "eval.diagnostics=true", f"eval.feature_format={format}")
    found = done(composed(root, tmp_path, *line, "eval.amp=bf16"))
    assert found.metrics is not None
    assert found.metrics.foreground_distance is not None
    assert stores[-1].peak > 0
    exact = done(composed(root, tmp_path, *line, "name=exact"))
    assert exact.metrics is not None
    assert found.metrics.miou == pytest.approx(exact.metrics.miou, abs=3.0)


def test_each_image_is_read_and_encoded_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: Counter[bytes] = Counter()
    read: Counter[str] = Counter()
    encode = Prototype.encode

    def counting(self: Any, images: torch.Tensor, *rest: Any) -> Any:
        encoded.update(one.numpy().tobytes() for one in images)
        return encode(self, images, *rest)

    monkeypatch.setattr(Prototype, "encode", counting)
    c = composed(root, tmp_path, *SETTINGS)
    kind = type(build_source(c.cfg))
    image = kind.image

    def reading(self: Any, split: Any, image_id: str, *rest: Any) -> Any:
        read[image_id] += 1
        return image(self, split, image_id, *rest)

    monkeypatch.setattr(kind, "image", reading)
    spent: list[scoring.Spent] = []
    prepared = scoring.Scoring._prepared
    monkeypatch.setattr(scoring.Scoring, "_prepared", lambda s, *a: spent.append(s.spent) or prepared(s, *a))
    done(c)
    assert set(encoded.values()) == set(read.values()) == {1}
    assert spent[0].images == spent[0].distinct == len(encoded) == len(read)
    assert spent[0].episodes == 2 * 2 * 20
    assert spent[0].kept_bytes <= len(read) * ENTRY
    assert {"wait", "encode", "decode", "score"} == set(spent[0].seconds)


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
def test_half_formats_need_half_the_room_and_read_back_rounded(
    format: str, root: Path, tmp_path: Path, whole: Composed, stores: list[FeatureStore]
) -> None:
    room = FeatureRoom("host", tmp_path, 0, 5, 1, 1)
    exact, half = (FeatureStore(room, torch.device("cpu"), f) for f in ("float32", format))
    kept = {"features": torch.randn(1, 7, 7, 64), "picture": torch.ones(1, 7, 7, dtype=torch.bool)}
    for store in (exact, half):
        store.put("a", kept)
    assert (exact.bytes, half.bytes) == (ENTRY, 7 * 7 * 64 * 2 + 7 * 7)
    assert torch.equal(exact.get("a")["features"], kept["features"])
    assert torch.equal(half.get("a")["features"], kept["features"].to(getattr(torch, format)).float())
    assert half.get("a")["features"].dtype == torch.float32
    assert torch.equal(half.get("a")["picture"], kept["picture"])

    found = done(composed(root, tmp_path, *SETTINGS, f"eval.feature_format={format}"))
    nothing = composed(root, tmp_path, *SETTINGS, f"eval.feature_format={format}", "eval.feature_cache_gb=0", "name=no")
    assert done(nothing).episodes == found.episodes  # whether an image is kept changes no count
    assert found.metrics is not None
    exactly = result_of(whole).metrics
    assert exactly is not None
    assert found.metrics.miou == pytest.approx(exactly.miou, abs=1.0)


class Crash(Exception):
    pass


def interrupted(c: Composed, monkeypatch: pytest.MonkeyPatch, after: int, how: Any) -> None:
    """Run until `after` batches are counted."""
    check, calls = scoring._check_finite, []

    def counting(*arguments: Any) -> None:
        if len(calls) == after:
            how()
        calls.append(1)
        check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_check_finite", counting)
        run(c.config, c.task_overrides)


def test_twenty_crashes_at_random_moments_end_in_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Composed
) -> None:
    draw, c = random.Random(5), composed(root, tmp_path, *SETTINGS)

    def crash() -> None:
        raise Crash

    decoded: list[int] = []
    decode = Prototype.decode
    monkeypatch.setattr(Prototype, "decode", lambda self, *rest: (decoded.append(len(rest[2])), decode(self, *rest))[1])
    for _ in range(20):
        with pytest.raises(Crash):
            interrupted(c, monkeypatch, draw.randrange(3), crash)
        if draw.random() < 0.3:  # what a kill in the middle of a write leaves
            with cell_of(c).episodes_part.open("ab") as file:
                file.write(b"half a reco")
    done(c)
    assert sum(decoded) == 2 * 2 * 20 + 20 * 2  # a crash loses the batch that was to be counted
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    assert numbers(result_of(c)) == numbers(result_of(whole))
    assert not cell_of(c).episodes_part.exists()


@pytest.mark.parametrize("behind", [0, 1])
def test_a_signal_saves_what_was_counted_and_figures_are_drawn_all_the_same(
    behind: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Composed
) -> None:
    """Also where counts are read a batch late, as on a GPU."""
    monkeypatch.setattr(scoring, "Pending", lambda device, **_: Pending(device, behind))
    recorded: list[Scored] = []
    append = EpisodePart.append
    monkeypatch.setattr(EpisodePart, "append", lambda part, rows: (recorded.extend(rows), append(part, rows))[1])
    c = composed(root, tmp_path, *SETTINGS, "logger.figures=3")
    with pytest.raises(SystemExit):
        interrupted(c, monkeypatch, 25, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status = cell_of(c).status()
    assert status is not None
    assert (status.step, status.steps) == (52 + 2 * behind, 80)
    assert len(recorded) == status.step
    drawn: list[Any] = []
    monkeypatch.setattr("fsseg.engine.pictures._sheets", lambda run, source, evaluation: drawn.append(evaluation))
    done(c)
    assert len(recorded) == 80  # those that were drawn again too count once
    fresh = composed(root, tmp_path, *SETTINGS, "logger.figures=3", "name=fresh")
    done(fresh)
    assert result_of(c).episodes == result_of(fresh).episodes == result_of(whole).episodes
    shown = [status.miou for each in (c, fresh) if (status := cell_of(each).status()) is not None]
    assert shown[0] == shown[1] is not None  # what was counted before the signal is in it
    again, once = (evaluation.pictures for evaluation in drawn)
    assert [p.spec for p in again] == [p.spec for p in once]
    assert [p.iou for p in again] == [p.iou for p in once]
    assert all(np.array_equal(a.prediction, b.prediction) for a, b in zip(again, once))
    assert len(again) == 3


@pytest.mark.process
def test_killed_processes_end_in_the_same_bytes(root: Path, tmp_path: Path, whole: Composed) -> None:
    c = composed(root, tmp_path, *SETTINGS, "lease_seconds=2")
    part, draw, killed = cell_of(c).episodes_part, random.Random(1), 0
    for attempt in range(4):
        process = start(c, tmp_path / f"log{attempt}")
        before = part.stat().st_size if part.exists() else 0
        more = draw.randrange(200, 900)
        while process.is_alive() and not (part.exists() and part.stat().st_size > before + more):
            time.sleep(0.001)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
    done(c)
    assert killed >= 2
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    assert numbers(result_of(c)) == numbers(result_of(whole))


def run_until_a_signal(c: Composed, batches: int) -> None:
    """The second of two processes is asked to stop."""
    check, calls = scoring._check_finite, []

    def counting(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == batches and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        check(*arguments)

    scoring._check_finite = counting
    run_and_print(c)


@pytest.mark.process
def test_several_processes_that_are_stopped_go_on_where_they_stood(root: Path, tmp_path: Path, whole: Composed) -> None:
    c = composed(root, tmp_path, *SETTINGS)
    ends = fork_ranks(run_until_a_signal, c, 6, folder=tmp_path / "stopped")
    assert [status for status, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    status = cell_of(c).status()
    assert status is not None
    assert status.state == "preempted"
    ends = fork_ranks(run_and_print, c, folder=tmp_path / "again")
    assert [status for status, _ in ends] == [0, 0], ends
    assert "24 of 80 episodes were evaluated before" in ends[0][1]  # of two processes six batches of two
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    assert numbers(result_of(c)) == numbers(result_of(whole))


def test_other_weights_have_another_digest_and_another_layout_has_not() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    before = weights_digest(model)
    assert weights_digest(model.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
    model[1].num_batches_tracked += 1
    assert weights_digest(model) != before
    model[1].num_batches_tracked -= 1
    model[0].weight.data[0, 0, 0, 0] += 1e-6
    assert weights_digest(model) != before


def test_a_part_names_the_weights_and_the_episodes_of_every_shift(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[PartHead] = []

    def noting(path: Path, head: PartHead, scope: Any) -> None:
        heads.append(head)
        raise Crash

    monkeypatch.setattr(evaluate, "EpisodePart", noting)
    for name, line in {
        "one": (),
        "again": (),
        "weights": ("seed=1",),
        "episodes": ("protocol.num_episodes=19",),
    }.items():
        given = {o.partition("=")[0] for o in line}
        c = composed(root, tmp_path, *(o for o in SETTINGS if o.partition("=")[0] not in given), f"name={name}", *line)
        with pytest.raises(Crash):
            run(c.config, c.task_overrides)
    one, again, weights, episodes = heads
    assert (one.weights, one.episodes, one.data, one.images) == (
        again.weights,
        again.episodes,
        again.data,
        again.images,
    )
    assert set(one.episodes) == {"", "1.0"}
    assert (weights.weights != one.weights, weights.episodes) == (True, one.episodes)
    assert (episodes.weights, episodes.episodes.keys()) == (one.weights, one.episodes.keys())
    assert not set(episodes.episodes.values()) & set(one.episodes.values())


# ---------------------------------------------------------------------------------------------- room


KEPT = {"features": torch.zeros(1, 10, 10, 25), "picture": torch.ones(1, 10, 10, dtype=torch.bool)}  # 10,100 bytes
CPU = torch.device("cpu")


def room_of(ranks: Ranks = ALONE, distinct: int = 1000, **settings: Any) -> FeatureRoom:
    return plan_room(EvalConfig(**settings), CPU, KEPT, distinct, Probe(bool, bool), ranks)


def test_room_is_what_the_setting_says_or_a_share_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(features, "free_memory", lambda: 10_100 * 200)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert room_of() == FeatureRoom("host", room_of().folder, 10_100, 100, 1, 1)
    assert room_of(Ranks(0, 4)).images == 25
    assert room_of(distinct=40).images == 40
    assert room_of(feature_place="device").place == "host"
    assert room_of(feature_cache_gb=10_100 * 7.9 / 1e9).images == 7
    assert room_of(feature_cache_gb=1.0).images == 180  # more than there is
    assert room_of(feature_cache_gb=0).images == 0
    assert room_of(feature_format="bfloat16").entry == 5_100
    assert (room_of(batch_size=4, backbone_batch=3).batch_size, room_of(backbone_batch=3).backbone_batch) == (4, 3)
    free = SimpleNamespace(free=10**6)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: free)
    disk = room_of(feature_place="disk", feature_folder=str(tmp_path))
    assert (disk.place, disk.folder) == ("disk", tmp_path)
    assert 10_100 <= disk.entry <= 10_100 + 4 * 64
    assert disk.images == 10**6 // 2 // disk.entry
    more = room_of(feature_place="disk", feature_folder=str(tmp_path), feature_cache_gb=1)
    assert more.images == 9 * 10**5 // disk.entry  # what the disk has, and no error


def test_pinned_memory_counts_as_torch_takes_it() -> None:
    """In powers of two: 10,000 and 100 bytes are 16,384 and 128."""
    settings = EvalConfig(batch_size=1, backbone_batch=1, feature_place="host", feature_cache_gb=2 * 16_512 / 1e9)
    room = plan_room(settings, torch.device("cuda"), KEPT, 9, Probe(bool, bool), ALONE)
    assert (room.entry, room.images) == (16_512, 2)


def test_processes_agree_on_what_the_least_of_them_can_do() -> None:
    one, two = FeatureRoom("device", Path("x"), 10, 50, 4, 8), FeatureRoom("host", Path("x"), 10, 70, 8, 2)
    both = FeatureRoom.of_all([one, two])
    assert both == FeatureRoom.of_all([two, one]) == FeatureRoom("host", Path("x"), 10, 50, 4, 2)
    assert one.for_need(50) == one
    assert one.for_need(51).images == 0


def test_a_folder_without_room_is_named_before_the_first_episode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no file can be made in /nowhere") as caught:
        room_of(feature_place="disk", feature_folder="/nowhere")
    assert "eval.feature_folder" in caught.value.fix

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=f"no file of 200 kB can be made in {tmp_path} .No space left on device."):
        FeatureStore(FeatureRoom("disk", tmp_path, 20_000, 10, 1, 1), CPU, "float32")
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_is_not_there_is_told_before_the_training(root: Path, tmp_path: Path) -> None:
    line = ("eval.feature_place=disk", f"eval.feature_folder={tmp_path}/no")
    c = composed(root, tmp_path, *line)
    with pytest.raises(UserError, match=r"eval\.feature_folder=.*/no: there is no such folder"):
        run(c.config, c.task_overrides)
    assert not cell_of(c).status_file.exists()
    checked = composed(root, tmp_path, *line, "check=true")
    with pytest.raises(UserError, match=r"eval\.feature_folder=.*/no: there is no such folder"):
        run(checked.config, checked.task_overrides)
    (tmp_path / "no").mkdir()
    run(checked.config, checked.task_overrides)


def test_memory_that_ends_is_told_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(FeatureRoom("host", Path(), 10_100, 10, 1, 1), CPU, "float32")
    parts = {name: value.repeat(2, 1, 1, 1)[:1] if value.ndim == 4 else value for name, value in KEPT.items()}
    store.put("a", parts)

    def none_left(self: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes")

    monkeypatch.setattr(torch.Tensor, "clone", none_left)
    with pytest.raises(UserError, match=r"no memory left to keep image b in \(10 kB are kept\)") as caught:
        store.put("b", parts)
    assert "eval.feature_cache_gb" in caught.value.fix


def test_what_is_kept_holds_no_batch_in_memory() -> None:
    store = FeatureStore(FeatureRoom("host", Path(), 10_100, 10, 1, 1), CPU, "float32")
    store.put("a", {"features": torch.zeros(8, 10, 10, 25)[2:3]})
    assert store.get("a")["features"].untyped_storage().nbytes() == 10_000
    store.drop("a")
    assert (store.bytes, store.peak) == (0, 10_000)
    assert "a" not in store


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_places_of_the_file_are_used_again(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "macos":
        monkeypatch.delattr(os, "posix_fallocate")
    store = FeatureStore(FeatureRoom("disk", tmp_path, 10_304, 2, 1, 1), CPU, "float32")
    draw = torch.Generator().manual_seed(0)
    values = {n: torch.randn(1, 10, 10, 25, generator=draw) for n in "abcdef"}
    kept: list[str] = []
    for name, value in values.items():
        if len(kept) == 2:
            store.drop(kept.pop(0))
        store.put(name, {"features": value, "picture": KEPT["picture"]})
        kept.append(name)
        assert all(torch.equal(store.get(n)["features"], values[n]) for n in kept)
    assert not list(tmp_path.iterdir())
