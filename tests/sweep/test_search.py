"""Searches of cells that do not train: what is told, what is shared out, and what a kill leaves behind."""

from __future__ import annotations

import html
import json
import random
import re
import shlex
import signal
from pathlib import Path

import pytest
from command_line import fsseg
from sweeps import Sweep, wait_until

from fsseg.config.schema import SearchConfig
from fsseg.errors import UserError
from fsseg.process.files import read_yaml
from fsseg.report.collect import collect
from fsseg.report.summary import to_text
from fsseg.report.tables import build
from fsseg.sweep.search import view
from fsseg.sweep.search.study import Study, Trial

pytestmark = pytest.mark.process
LINE = ("-m", "search=lr_and_rounds", "search.trials=6", "search.startup_trials=3")


def study(sweep: Sweep) -> Study:
    (found,) = view.studies_of([sweep.folder / "outputs/s"])
    return found


def starts(sweep: Sweep) -> list[int]:
    """How often each finished cell was brought to its end."""
    return [len(json.loads(file.read_text())) for file in (sweep.folder / "outputs").rglob("starts.json")]


def expected(trial: Trial) -> float:
    """What fake_train.py scores: best at a rate of 0.03 and three rounds."""
    import math

    rate, rounds = trial.chosen["train.lr"], trial.chosen["model.iterations"]
    assert isinstance(rate, float)
    assert isinstance(rounds, int)
    return 90 - 20 * abs(math.log10(rate / 0.03)) - 3 * abs(rounds - 3)


def test_trials_are_scored_on_base_classes_and_the_first_is_the_line_itself(sweep: Sweep) -> None:
    code, output = sweep.run(*LINE)
    assert code == 0, output
    trials = study(sweep).trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert trials[0].chosen == {"train.lr": 0.02, "model.iterations": 3}
    assert [trial.value for trial in trials] == pytest.approx([expected(trial) for trial in trials])
    assert starts(sweep) == [1] * 6
    results = [json.loads(file.read_text()) for file in (sweep.folder / "outputs").rglob("result.json")]
    assert all(result["metrics"] is None for result in results)  # no novel class was looked at
    best = max(trials, key=lambda trial: trial.value or 0)
    assert f"best: trial {best.number}, base/miou {best.value:.2f}" in output
    (line,) = re.findall(r"the novel classes with it: (.*)", output)
    words = shlex.split(line)
    assert {f"train.lr={best.chosen['train.lr']}", "fold=0,1,2,3"} <= set(words)
    assert not any(word.startswith(("search", "eval.")) for word in words)


def test_started_again_it_adds_trials_and_repeats_none(sweep: Sweep) -> None:
    sweep.run(*LINE)
    before = study(sweep).trials()
    code, output = sweep.run(*LINE)
    assert code == 0, output
    assert study(sweep).trials() == before
    code, _ = sweep.run("-m", "search=lr_and_rounds", "search.trials=8", "search.startup_trials=3")
    assert code == 0
    after = study(sweep).trials()
    assert after[:6] == before
    assert len(after) == 8
    assert starts(sweep) == [1] * 8


def test_a_trial_is_the_mean_of_its_folds(sweep: Sweep) -> None:
    code, output = sweep.run(*LINE, "search.trials=2", "fold=0,1")
    assert code == 0, output
    for trial in study(sweep).trials():
        assert len(trial.cells) == 2
        assert trial.value == pytest.approx(expected(trial) - 0.5)  # fake_train.py: fold 1 scores one less


def test_four_processes_share_one_study(sweep: Sweep) -> None:
    line = ("-m", "search=lr_and_rounds", "search.trials=12")
    processes = [sweep.start(*line) for _ in range(4)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    trials = study(sweep).trials()
    assert len(trials) == 12
    assert [trial.state for trial in trials] == ["complete"] * 12
    assert starts(sweep) == [1] * len(starts(sweep))
    told = re.findall(r"trial (\d+): base/miou", "".join(outputs))
    assert sorted(map(int, told)) == list(range(12))  # each once, by one of the four
    assert len({tuple(trial.chosen.items()) for trial in trials}) > 8


def test_killed_again_and_again_it_tells_each_trial_once(sweep: Sweep) -> None:
    moments = random.Random(3)
    for _ in range(10):
        process = sweep.start(*LINE, FAKE_0="sleep:0.3")
        try:
            process.communicate(timeout=moments.uniform(2.5, 6))
            break
        except Exception:
            process.kill()
            process.communicate()
    code, output = sweep.run(*LINE)
    assert code == 0, output
    trials = study(sweep).trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert starts(sweep) == [1] * 6
    assert [trial.value for trial in trials] == pytest.approx([expected(trial) for trial in trials])


def test_a_failed_trial_costs_itself_and_may_come_later(sweep: Sweep) -> None:
    code, output = sweep.run(*LINE, "fold=1", FAKE_1="usererror")
    assert code == 1
    assert "no trial has a score" in output
    trials = study(sweep).trials()
    assert [trial.state for trial in trials] == ["fail"] * 6
    code, output = sweep.run(*LINE, "fold=1")
    assert code == 1
    assert study(sweep).trials() == trials  # told once


def test_a_training_that_diverges_scores_nothing_and_is_told(sweep: Sweep) -> None:
    """A sampler leaves failures out, and would try such settings again and again."""
    code, output = sweep.run(*LINE, FAKE_TRIAL_1="diverge")
    assert code == 0, output
    trials = study(sweep).trials()
    assert [trial.word for trial in trials] == ["scored", "diverged", *["scored"] * 4]
    assert [t.state.name for t in study(sweep).as_optuna.get_trials()] == ["COMPLETE"] * 6
    assert trials[1].value == 0.0
    assert "6 trials: 5 scored, 1 diverged" in output
    assert "the loss is nan at step 4" in output
    code, _ = sweep.run(*LINE)
    assert code == 0
    assert study(sweep).trials() == trials  # told once, and not tried again
    assert len(starts(sweep)) == 5


def test_a_fold_that_diverges_counts_as_nothing_in_the_mean(sweep: Sweep) -> None:
    code, output = sweep.run(*LINE, "search.trials=1", "fold=0,1", FAKE_1="diverge")
    assert code == 1, output
    assert "no trial has a score" in output
    (trial,) = study(sweep).trials()
    assert trial.value == pytest.approx(expected(trial) / 2)
    assert trial.word == "diverged"


def test_several_at_a_time_without_waiting_for_the_slowest(sweep: Sweep) -> None:
    code, output = sweep.run(*LINE, "hydra/launcher=local", "hydra.launcher.workers=3")
    assert code == 0, output
    assert [trial.state for trial in study(sweep).trials()] == ["complete"] * 6
    assert starts(sweep) == [1] * 6


def test_a_signal_ends_it_and_the_same_line_goes_on(sweep: Sweep) -> None:
    process = sweep.start(*LINE, FAKE_0="hang")
    wait_until(lambda: any((sweep.folder / "outputs").rglob("status.json")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    (trial,) = study(sweep).trials()
    assert trial.is_open
    code, output = sweep.run(*LINE)
    assert code == 0, output
    assert [t.state for t in study(sweep).trials()] == ["complete"] * 6
    assert study(sweep).trials()[0].chosen == trial.chosen


GRID = """defaults:
  - /schema/search@_here_: search
  - _self_
space:
  model.iterations: {choices: [1, 2, 3]}
  train.lr: {choices: [0.01, 0.03], when: {model.iterations: [2, 3]}}
sampler: grid
"""


def test_a_grid_is_tried_once_each(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "mine/search").mkdir(parents=True)
    (tmp_path / "mine/search/all.yaml").write_text(GRID)
    line = ("-m", "--config-dir", str(tmp_path / "mine"), "search=all")
    for trials, expected in (("search.trials=2", 2), ("search.trials=20", 5)):
        code, output = sweep.run(*line, trials)
        assert code == 0, output
        assert len(study(sweep).trials()) == expected
    assert [tuple(trial.chosen.values()) for trial in study(sweep).trials()] == [
        (1,), (2, 0.01), (2, 0.03), (3, 0.01), (3, 0.03)
    ]  # fmt: skip


def test_the_winner_is_run_once_at_the_end_on_the_novel_classes(sweep: Sweep) -> None:
    line = (*LINE, "search.trials=2", "search.final=true")
    for _ in range(2):
        code, output = sweep.run(*line)
        assert code == 0, output
        results = [json.loads(file.read_text()) for file in (sweep.folder / "outputs").rglob("result.json")]
        (final,) = [result for result in results if result["metrics"] is not None]
        assert len(results) == 3
    best = study(sweep).best
    assert best is not None
    assert f"model.iterations-{best.chosen['model.iterations']}" in final["cell"]["variant"]
    assert starts(sweep) == [1] * 3


def test_a_winner_that_fails_is_told(sweep: Sweep) -> None:
    trials = {"FAKE_TRIAL_0": "", "FAKE_TRIAL_1": ""}
    code, output = sweep.run(*LINE, "search.trials=2", "search.final=true", FAKE_0="usererror", **trials)
    assert code == 1
    assert "2 trials: 2 scored" in output
    assert "the winner has no score" in output


def test_what_the_line_sets_stays_where_a_trial_chooses_nothing(sweep: Sweep, tmp_path: Path) -> None:
    code, output = sweep.run(*LINE, "search.trials=2", "train.lr=0.05", "seed=1,2", "eval.base_share=0.2")
    assert code == 0, output
    assert study(sweep).trials()[0].chosen == {"train.lr": 0.05, "model.iterations": 3}
    (line,) = re.findall(r"the novel classes with it: (.*)", output)
    words = shlex.split(line)
    assert {"seed=1,2", "fold=0,1,2,3"} <= set(words)
    assert [word.partition("=")[0] for word in words].count("train.lr") == 1
    assert not any(word.startswith("eval.") for word in words)

    (tmp_path / "mine/search").mkdir(parents=True)
    (tmp_path / "mine/search/decays.yaml").write_text(GRID.replace("model.iterations", "train.optimizer").replace(
        "[1, 2, 3]", "[sgd, adamw]").replace("train.lr", "train.weight_decay").replace("[2, 3]", "adamw"))  # fmt: skip
    code, output = sweep.run("-m", "--config-dir", str(tmp_path / "mine"), "search=decays", "train.weight_decay=0.0777")
    assert code == 0, output
    folder = sweep.folder / "outputs/s"
    (decays,) = [found for found in view.studies_of([folder]) if found.name.startswith("decays")]
    configs = [read_yaml(folder / cell / "config.yaml") for trial in decays.trials() for cell in trial.cells]
    used = {(config["train"]["optimizer"], config["train"]["weight_decay"]) for config in configs}
    assert used == {("sgd", 0.0777), ("adamw", 0.01), ("adamw", 0.03)}


def test_a_look_before_it_writes_nothing(sweep: Sweep) -> None:
    _, output = sweep.run(*LINE, "check=true")
    assert not (sweep.folder / "outputs/s/search").exists(), output


def test_a_data_base_holds_the_study_as_well(sweep: Sweep, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/studies.db"
    for trials in (2, 3):
        code, output = sweep.run(*LINE, f"search.trials={trials}", f"search.storage={storage}")
        assert code == 0, output
    (found,) = view.studies_of([sweep.folder / "outputs/s"], storage)
    assert [trial.state for trial in found.trials()] == ["complete"] * 3
    assert not (sweep.folder / "outputs/s/search/journal.log").exists()


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search/journal.log").touch()
    monkeypatch.setattr("fsseg.sweep.search.study.find_spec", lambda name: None)
    with pytest.raises(UserError) as told:
        view.studies_of([tmp_path])
    assert str(told.value) == "search= needs Optuna, which is not installed\n  -> pip install 'fsseg[search]'"


def test_what_was_found_is_listed_drawn_and_in_the_report(sweep: Sweep, tmp_path: Path) -> None:
    sweep.run(*LINE, FAKE_TRIAL_1="diverge", FAKE_TRIAL_2="usererror")
    folder = sweep.folder / "outputs/s"
    printed = fsseg("search", str(folder)).stdout.splitlines()
    assert printed[0].endswith(": 6 trials: 4 scored, 1 diverged, 1 failed")
    assert printed[2].split() == ["trial", "base/miou", "state", "train.lr", "model.iterations"]
    scores = [float(line.split()[1]) for line in printed[3:8]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == 0
    (winner,) = [line for line in printed if line.endswith("fold=0,1,2,3")]
    assert "search" not in winner
    pictures = [line.removeprefix("written: ") for line in printed if line.startswith("written: ")]
    assert [Path(file).name.rpartition("-")[2] for file in pictures] == [
        "history.png", "importance.png", "parallel.png", "slice.png"
    ]  # fmt: skip
    told = fsseg("report", str(folder), "--out", str(tmp_path / "page.html")).stdout
    assert "6 cells (4 done, 2 failed)" in told  # other folds of a trial are not missing
    page = (tmp_path / "page.html").read_text()
    assert "Search for settings" in page
    assert winner in html.unescape(page)
    report = build(collect([folder]))
    assert report.tables == []
    assert len(report.trials) == 6
    assert "s: 6 cells (`fsseg search` lists them)" in to_text(report)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search.metric=miou"], "have seen them"),
        (["method=prototype"], "trains nothing"),
        (["shot=1,5"], "every trial has one shot"),
        (["search.pruner=median", "fold=0,1"], "2 cells a trial"),
        (["search=nowhere"], "search=nowhere: there is no such search"),
        (["search.trials=0"], "search.trials=0"),
        (["search.sampler=best"], "search.sampler=best"),
        (["search.sampler=grid"], "train.lr is a range without steps"),
        (["hydra/launcher=slurm", "hydra.launcher.wait=false"], "wait=false"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_runs(words: list[str], told: str, sweep: Sweep) -> None:
    code, output = sweep.run("-m", "search=lr_and_rounds", *words)
    assert code == 1
    assert told in output
    assert not list((sweep.folder / "outputs").rglob("*")) if (sweep.folder / "outputs").exists() else True


def test_another_space_is_another_study(sweep: Sweep, tmp_path: Path) -> None:
    sweep.run(*LINE, "search.trials=1")
    sweep.run(*LINE, "search.trials=1", "train.momentum=0.5")
    found = view.studies_of([sweep.folder / "outputs"])
    assert len(found) == 2
    assert all(one.cfg == SearchConfig(metric="base/miou") for one in found)
