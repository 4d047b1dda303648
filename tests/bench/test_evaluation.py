"""The measurement compares what it says it compares; how fast is not asserted."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from runs import composed

from fsseg.bench.common import Spread
from fsseg.bench.evaluation import EvaluationRow, bench_evaluation, format_evaluation
from fsseg.config.compose import Composed

CPU = torch.device("cpu")
LINE = ("protocol.num_episodes=6", "protocol.seeds=[0,1]", "backbone.pretrained=false")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def cell(root: Path, tmp_path: Path, *more: str) -> Composed:
    return composed(root, tmp_path, *more, *LINE)


@pytest.mark.parametrize(
    "line", [("eval.batch_size=1",), ("shot=2", "eval.batch_size=3"), ("method=prototype", "eval.batch_size=1")]
)
def test_all_sides_are_measured_and_count_the_same(line: tuple[str, ...], root: Path, tmp_path: Path) -> None:
    row = bench_evaluation(cell(root, tmp_path, *line), CPU, sample=5)
    assert (row.episodes, row.seeds, row.sample, row.equal) == (12, 2, 5, 5)
    assert row.encoded == row.images  # each once
    assert row.without.number == 2
    assert row.bare_episode.number == row.bare_image.number == (5 if "eval.batch_size=3" not in line else 2)
    assert min(row.kept_seconds, row.without.least, row.bare_episode.least, row.bare_image.least) > 0
    assert row.kept_gb > 0
    assert not list(tmp_path.iterdir())  # no cell is begun
    assert "the counts of 5 of 5 episodes are equal" in format_evaluation([row])


def test_a_difference_in_a_count_is_seen(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsseg.bench import evaluation

    without = evaluation._Sides.without

    def altered(self, episodes) -> None:
        without(self, episodes)
        self.others[-1].rows["union"][0] += 1

    monkeypatch.setattr(evaluation._Sides, "without", altered)
    row = bench_evaluation(cell(root, tmp_path), CPU, sample=6)
    assert row.equal == 4  # of 6, one altered in each half


def test_the_ratios_follow_from_the_times() -> None:
    row = EvaluationRow(
        method="abcb", backbone="tiny", dataset="shapes5i", image_size=81, shot=1, amp="off", feature_format="float32",
        seeds=5, episodes=1000, images=400, kept_seconds=990.0, encoded=400, kept_gb=1.0, peak_gb=3.0,
        spent={"wait": 10.0, "encode": 420.0}, sample=2, without=Spread.of([2.0, 4.0]),
        bare_episode=Spread.of([0.4, 0.6]), bare_image=Spread.of([1.0, 1.0]), equal=2, predicted_share=(0.2, 0.3),
    )  # fmt: skip
    assert row.bare_seconds == pytest.approx(1000 * 0.5 + 400)
    assert row.over_bare == pytest.approx(0.1)
    assert row.gain == pytest.approx(3000 / 990)
    assert asdict(row)["spent"] == {"wait": 10.0, "encode": 420.0}
    text = format_evaluation([row, replace(row, shot=5)])
    assert text.count("+10.0% over bare; 3.0 times less than with nothing kept") == 2
    assert text.count("predicted foreground by round: 20%, 30%") == 2


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_random_weights_predict_the_wanted_share(share: float, root: Path, tmp_path: Path) -> None:
    row = bench_evaluation(cell(root, tmp_path, "method=abcb"), CPU, sample=12, share=share)
    assert len(row.predicted_share) == 3
    assert sum(row.predicted_share) / 3 == pytest.approx(share, abs=0.08)  # set on half of the sample


def test_weights_of_a_checkpoint_stay_as_they_are(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsseg.bench import evaluation

    def never(*_: object) -> None:
        raise AssertionError("these weights were trained")

    monkeypatch.setattr(evaluation, "predict_share", never)
    monkeypatch.setattr(evaluation.checkpoint, "start_from", lambda *_: None)
    weights = tmp_path / "some.pt"
    weights.write_bytes(b"")
    row = bench_evaluation(cell(root, tmp_path, f"checkpoint={weights}"), CPU, sample=4)
    assert row.equal == 4
