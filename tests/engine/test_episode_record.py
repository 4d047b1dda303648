"""episodes.npz of a whole run: the score follows from it, and no interruption changes a byte of it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from episode_scores import scores
from runs import cell_of, composed, done, numbers, start

from fsseg.cell.episodes import EpisodePart
from fsseg.config.compose import Composed

FIELDS = ("miou", "fb_iou", "miou_all_foreground", "miou_per_round")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def job(root: Path, output: Path, episodes: int = 20) -> Composed:
    """ABCB of three rounds, on episodes of two seeds under three backgrounds, with Figure 5's distances."""
    return composed(
        root, output, "train.max_steps=2", f"protocol.num_episodes={episodes}", "protocol.seeds=[4,0]",
        "eval.batch_size=3", "eval.background_shifts=[0.0,1.0]", "eval.diagnostics=true",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_the_score_follows_from_the_file_alone(root: Path, tmp_path: Path) -> None:
    c = job(root, tmp_path)
    result, cell = done(c), cell_of(c)
    assert result.metrics is not None
    assert result.episodes is not None
    assert (result.episodes.episodes, result.episodes.rounds) == (3 * 2 * 20, 3)
    assert result.episodes.sha256 == hashlib.sha256(cell.episodes_file.read_bytes()).hexdigest()
    assert not cell.episodes_part.exists()
    for shift, metrics in {"": result.metrics, **result.metrics.by_background_shift}.items():
        found = scores(cell.episodes_file, shift)
        for name in FIELDS:
            assert found[name] == pytest.approx(getattr(metrics, name), rel=1e-12), (shift, name)
    counts = cell.episodes()
    assert counts is not None
    distances, recorded = counts.select("")["distance"], result.metrics.foreground_distance
    assert recorded is not None
    assert distances[distances == distances].mean() == pytest.approx(recorded.mean)


def stop_after(appends: int, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next evaluation in this process ends at its n-th batch."""
    append, count = EpisodePart.append, 0

    def stopping(part: EpisodePart, scored: Any) -> None:
        nonlocal count
        append(part, scored)
        count += 1
        if count == appends:
            how(part)

    monkeypatch.setattr(EpisodePart, "append", stopping)


def tear(part: EpisodePart) -> None:
    """As a kill in the middle of a write leaves it."""
    with part.path.open("r+b") as file:
        file.truncate(part.path.stat().st_size - 30)
    raise MemoryError("killed")


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_stopped_at_random_moments_ends_in_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job(root, tmp_path / "whole")
    result = done(whole)
    c, draw, evaluated = job(root, tmp_path / "stopped"), random.Random(1), 0
    for how in (lambda part: os.kill(os.getpid(), signal.SIGTERM), tear, tear):
        with monkeypatch.context() as stopping:
            stop_after(draw.randint(2, 9), how, stopping)
            with pytest.raises((SystemExit, MemoryError)):
                done(c)
        left = cell_of(c).episodes_part.stat().st_size
        assert left > evaluated  # it went on where it stood
        evaluated = left
    assert numbers(done(c)) == numbers(result)
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    assert not cell_of(c).episodes_part.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_twenty_times_an_evaluation_ends_in_the_same_bytes(root: Path, tmp_path: Path) -> None:
    whole, c, draw = job(root, tmp_path / "whole", 200), job(root, tmp_path / "killed", 200), random.Random(2)
    result, part, size = done(whole), cell_of(c).episodes_part, 0
    for number in range(20):
        process, target = start(c, tmp_path / "log"), size + draw.randint(1, 3000)
        while process.is_alive() and (not part.exists() or part.stat().st_size <= target):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        assert process.is_alive(), f"done before it was killed {number + 1} times"
        process.kill()
        process.join()
        size = part.stat().st_size
    assert numbers(done(c)) == numbers(result)
    assert cell_of(c).episodes_file.read_bytes() == cell_of(whole).episodes_file.read_bytes()
    assert not part.exists()
