"""The best checkpoint beside the last: which one it is, what it scores, and that the last one does not notice it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from runs import cell_of, composed, done, numbers

from fsseg.cell.episodes import EpisodePart
from fsseg.cell.models import Metrics, Result
from fsseg.cell.record import Cell
from fsseg.config.checks import faults
from fsseg.config.compose import Composed, composer
from fsseg.data.loader import EvaluationPlan
from fsseg.data.types import EpisodeSpec
from fsseg.engine import train as train_module
from fsseg.engine import validation as validation_module
from fsseg.engine.check import check_cell
from fsseg.errors import UserError
from fsseg.run import run

# 12 of 30 images are held back: 3 steps of 6 make an epoch. Validations after steps 3, 6 and 8.
SETTINGS = ("eval.every_epochs=1", "eval.base_share=0.4", "eval.base_episodes=3", "train.batch_size=6",
            "train.max_steps=8", "train.checkpoint_minutes=1000", "eval.batch_size=2")  # fmt: skip
SELECT = ("train.select=[best_novel,best_base]", "train.select_episodes=4")
SCORES = {"novel": {3: 10.0, 6: 30.0, 8: 30.0}, "base": {3: 20.0, 6: 5.0, 8: 19.0}}
BEST = {"best_novel": 6, "best_base": 3}  # of two that score 30 the first


class Scores:
    """Puts `SCORES` in place of what validations find, and keeps the weights that they saw.

    Attributes:
        seen: step -> weights of the model there.
        crash: (classes, step) of a validation that fails.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[int, dict[str, torch.Tensor]] = {}
        self.crash: tuple[str, int] | None = None
        score, now = validation_module.Validation.score, SimpleNamespace(classes="", step=0)

        def noting(validation: Any, step: int) -> dict[str, Any]:
            now.classes, now.step = validation.classes, step
            self.seen[step] = {name: value.clone() for name, value in validation.model.state_dict().items()}
            if (now.classes, step) == self.crash:
                raise MemoryError
            return score(validation, step)

        patch.setattr(validation_module.Validation, "score", noting)
        patch.setattr(validation_module, "metrics_of", lambda *_: Metrics(SCORES[now.classes][now.step], fb_iou=50.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Scores:
    return Scores(monkeypatch)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Composed, Scores]:
    """A run with both kinds, and the weights that its validations saw."""
    with pytest.MonkeyPatch.context() as patch:
        seen = Scores(patch)
        c = composed(root, tmp_path_factory.mktemp("whole"), *SETTINGS, *SELECT)
        done(c)
    return c, seen


def state(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def result_of(cell: Cell) -> Result:
    found = cell.result()
    assert found is not None
    return found


def test_the_best_checkpoints_are_those_of_the_best_scores(whole: tuple[Composed, Scores]) -> None:
    c, seen = whole
    cell, result = cell_of(c), result_of(cell_of(c))
    assert {kind: best.step for kind, best in result.best.items()} == BEST
    assert {k: (b.chosen_by, b.epoch, b.validations, b.every_epochs, b.episodes) for k, b in result.best.items()} == {
        "best_novel": (30.0, 2.0, 3, 1, 4), "best_base": (20.0, 1.0, 3, 1, 3),
    }  # fmt: skip
    for kind, step in BEST.items():
        kept = state(cell.best_checkpoint(kind))
        assert (kept["step"], kept["selected"], kept["run"]) == (step, kind, result.run)
        assert all(torch.equal(kept["model"][name], value) for name, value in seen.seen[step].items())
    last = state(cell.checkpoint)["model"]
    assert all(torch.equal(last[name], value) for name, value in seen.seen[8].items())
    assert any(not torch.equal(last[name], value) for name, value in seen.seen[6].items())
    assert sorted(path.name for path in cell.checkpoints.iterdir()) == ["best_base.pt", "best_novel.pt", "last.pt"]
    assert result.training is not None
    novel = result.training.novel_validation
    assert novel
    assert [(s.step, s.miou) for s in novel.scores] == list(SCORES["novel"].items())
    assert cell.curves()["novel/miou"] == ([3.0, 6.0, 8.0], [10.0, 30.0, 30.0])


def test_the_last_checkpoint_does_not_notice_them(whole: tuple[Composed, Scores], root: Path, tmp_path: Path) -> None:
    """Neither its weights nor its score, nor what the cell is."""
    plain = composed(root, tmp_path, *SETTINGS)
    ours, theirs = cell_of(whole[0]), cell_of(plain)
    assert (ours.fingerprint, ours.key) == (theirs.fingerprint, theirs.key)
    with pytest.MonkeyPatch.context() as patch:
        Scores(patch)
        result = done(plain)
    assert result.metrics == result_of(ours).metrics
    first, second = state(ours.checkpoint), state(theirs.checkpoint)
    assert all(torch.equal(first["model"][name], value) for name, value in second["model"].items())
    assert torch.equal(first["rng"]["torch"], second["rng"]["torch"])
    assert first["rng"]["python"] == second["rng"]["python"]


@pytest.mark.parametrize("kind", BEST)
def test_it_scores_what_its_file_scores(
    kind: str, whole: tuple[Composed, Scores], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = cell_of(whole[0]).best_checkpoint(kind)
    caplog.set_level("WARNING", "fsseg")
    again = done(composed(root, tmp_path, "train.enabled=false", f"checkpoint={path}"))
    assert again.metrics == result_of(cell_of(whole[0])).best[kind].metrics
    assert again.checkpoint is not None
    assert (again.checkpoint.selected, again.checkpoint.step) == (kind, BEST[kind])
    assert f"{path} is not the last of its training, but best on {kind.removeprefix('best_')} classes" in caplog.text


@pytest.mark.parametrize("crash", [("novel", 6), ("novel", 8), "step 7"])
def test_a_run_that_was_killed_ends_with_the_same_best(
    crash: Any, whole: tuple[Composed, Scores], root: Path, tmp_path: Path, scores: Scores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    c = composed(root, tmp_path, *SETTINGS, *SELECT)
    rate = train_module.learning_rate

    def failing(cfg: Any, step: int, total: int) -> float:
        if step == 7 and crash == "step 7":  # from 0: after the checkpoint of step 6
            raise MemoryError
        return rate(cfg, step, total)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "learning_rate", failing)
        scores.crash = None if crash == "step 7" else crash
        with pytest.raises(MemoryError):
            run(c.config, c.task_overrides)
    scores.crash = None
    result, expected = done(c), result_of(cell_of(whole[0]))
    assert numbers(result) == numbers(expected)
    for kind in BEST:
        ours, theirs = (state(cell_of(made).best_checkpoint(kind))["model"] for made in (c, whole[0]))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_an_evaluation_of_it_that_was_cut_short_goes_on(
    whole: tuple[Composed, Scores], root: Path, tmp_path: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = composed(root, tmp_path, *SETTINGS, *SELECT)
    append, counted = EpisodePart.append, []

    def failing(part: EpisodePart, scored: Any) -> None:
        if scored and part.path == cell_of(c).best_part("best_base"):
            if counted:
                raise MemoryError
            counted.append(len(scored))
        append(part, scored)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodePart, "append", failing)
        with pytest.raises(MemoryError):
            run(c.config, c.task_overrides)
    assert cell_of(c).best_part("best_base").exists()
    assert numbers(done(c)) == numbers(result_of(cell_of(whole[0])))
    told = [line for line in cell_of(c).log_file.read_text().splitlines() if "were evaluated before" in line]
    assert [line.split(" ", 1)[1] for line in told] == [
        f"{number} of 6 episodes were evaluated before" for number in (6, counted[0])
    ]
    assert not list(cell_of(c).checkpoints.glob("*.part"))


@pytest.fixture(scope="module")
def begun(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of two runs, without a choice and with one, that failed after the checkpoint of step 6."""
    folders, rate = {}, train_module.learning_rate
    for name, line in (("plain", ()), ("select", SELECT)):
        folders[name] = tmp_path_factory.mktemp(name)
        c = composed(root, folders[name], *SETTINGS, *line)
        with pytest.MonkeyPatch.context() as patch:
            Scores(patch)
            patch.setattr(train_module, "learning_rate", lambda cfg, step, total: rate(cfg, step, total) / (step != 7))
            with pytest.raises(ZeroDivisionError):
                run(c.config, c.task_overrides)
    return folders


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("plain", ["train.select=[best_novel]"], "best_novel"),
        ("plain", ["train.select=[best_base]"], "best_base"),
        ("select", [SELECT[0], "train.select_episodes=3"], "best_novel"),
        ("select", [*SELECT, "train.select_epochs=2"], "best_novel"),
    ],
)
def test_another_choice_in_the_middle_of_a_training_is_refused(
    before: str, after: list[str], kind: str, root: Path, begun: dict[str, Path]
) -> None:
    c = composed(root, begun[before], *SETTINGS, *after)
    with pytest.raises(UserError, match=f"until step 6 this training has not looked for {kind} as") as caught:
        run(c.config, c.task_overrides)
    assert "redo=true" in caught.value.fix
    assert [fault.what for fault in check_cell(c.cfg, cell_of(c), here=True).faults] == [caught.value.what]


def test_a_training_that_goes_on_without_a_choice_has_none(
    root: Path, begun: dict[str, Path], tmp_path: Path, scores: Scores
) -> None:
    folder = shutil.copytree(begun["select"], tmp_path / "copy")
    result = done(composed(root, folder, *SETTINGS))
    assert result.best == {}
    assert result.training is not None
    assert result.training.novel_validation is msgspec.UNSET


def test_a_cell_that_is_done_stays_as_it_is_and_says_what_it_lacks(
    whole: tuple[Composed, Scores], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(whole[0].cfg.output_dir)
    before = cell_of(whole[0]).result_file.read_bytes()
    caplog.set_level("WARNING", "fsseg")
    done(composed(root, folder, *SETTINGS, *SELECT))
    assert "train.select" not in caplog.text
    plain = composed(root, folder.parent / "plain", *SETTINGS, "eval.every_epochs=0", "train.max_steps=1")
    done(plain)
    done(composed(root, folder.parent / "plain", *SETTINGS, "eval.every_epochs=0", "train.max_steps=1",
                  "train.select=[best_novel]"))  # fmt: skip
    assert "was trained without train.select=[best_novel]" in caplog.text
    assert cell_of(whole[0]).result_file.read_bytes() == before


def test_the_beginning_of_a_plan_is_of_its_first_seed_and_of_the_classes_drawn_there() -> None:
    def spec(number: int, class_id: int) -> EpisodeSpec:
        return EpisodeSpec(number, class_id, f"q{number}", (f"s{number}",))

    episodes = {7: [spec(0, 4), spec(1, 5), spec(2, 6)], 3: [spec(0, 6)]}
    plan = EvaluationPlan(episodes, classes=(4, 5, 6), missing_classes=(8,), fingerprint="f", index_fingerprint="i")
    first = plan.beginning(2)
    assert first.episodes == {7: [spec(0, 4), spec(1, 5)]}
    assert (first.classes, first.missing_classes) == ((4, 5), (6, 8))
    assert plan.beginning(None).episodes == plan.beginning(9).episodes == {7: episodes[7]}
    assert len({plan.beginning(n).fingerprint for n in (1, 2, None)}) == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["train.select=[best_base]"], "eval.every_epochs=0 does not score"),
        (["train.select=[best_novel]", "eval.enabled=false"], "eval.enabled=false does not score"),
        (["train.select=[last]"], "is no list of best_novel and best_base"),
        (["train.select=[best_base]", "method=prototype"], None),  # a sweep over methods has one that trains nothing
        (["train.select=[best_base]", "eval.every_epochs=1", "eval.enabled=false"], None),
    ],
)
def test_a_choice_that_nothing_can_be_chosen_by_is_a_fault(line: list[str], told: str | None) -> None:
    with composer() as made:
        found = faults(made.one(line).cfg)
    assert [told in fault.what for fault in found] == ([] if told is None else [True])


def test_a_result_of_before_reads_as_one_without(whole: tuple[Composed, Scores]) -> None:
    plain = msgspec.to_builtins(result_of(cell_of(whole[0])))
    del plain["best_novel"], plain["best_base"], plain["training"]["novel_validation"]
    assert msgspec.convert(plain, Result).best == {}
