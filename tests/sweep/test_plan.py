"""What a grid costs: from measured cells, from published figures, or unknown, and always said which."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_directories import make_run, write_metrics
from trees import make_coco, make_voc

from fsseg.cell.record import RunDirectory
from fsseg.config.compose import compose
from fsseg.config.schema import BaselineConfig
from fsseg.data.registry import build_source
from fsseg.errors import UserError
from fsseg.sweep import plan as plans
from fsseg.sweep.estimate import measure
from fsseg.sweep.plan import plan, servers, text

SHAPES = [
    "train.epochs=50",
    "train.max_steps=100",
    "protocol.num_episodes=50",
    "protocol.seeds=[0,1]",
    "train.batch_size=4",
]


def finish(
    point: Any, train: float = 2.0, evaluate: float = 0.5, device: str = "GPU X", images: int = 40, **more: Any
) -> RunDirectory:
    """A result of 100 steps, 100 episodes and 10 seconds of everything else."""
    return make_run(point.cell, result={
        "metrics": {"per_seed": [{"seed": s, "miou": 50.0, "num_episodes": 50} for s in (0, 1)]},
        "training": {"steps": 100, "images": images, "seconds": None},
        "timing": {"prepare_seconds": 6.0, "train_seconds": 100 * train, "evaluate_seconds": 100 * evaluate,
                   "figures_seconds": 4.0},
        "peak_memory_bytes": 3_000_000_000, "provenance": {"device": device},
    }, **more)  # fmt: skip


def hours_of(line: list[str]) -> list[tuple[float, float] | None]:
    return [e.hours if e else None for e in plan(line).estimates]


def test_validation_on_base_classes_is_counted_in_episodes_not_in_steps(tmp_path: Path) -> None:
    """40 images, 20 of them held back: 5 steps of 4 an epoch; 4 epochs are 20 steps, and 2 x 30 episodes."""
    line = ["train.epochs=4", "protocol.num_episodes=50", "protocol.seeds=[0,1]", "train.batch_size=4",
            "fold=0", "eval.every_epochs=2", "eval.base_share=0.5", "eval.base_episodes=30",
            f"dataset.root={tmp_path}/absent", f"output_dir={tmp_path}"]  # fmt: skip
    finish(plan([*line, "name=other"]).points[0], images=20)
    (todo,) = plan(line).estimates
    assert todo is not None
    assert todo.steps == 20
    assert todo.hours == pytest.approx(((20 * 2 + 160 * 0.5 + 10) / 3600,) * 2)
    (without,) = plan([o for o in line if not o.startswith("eval.")]).estimates
    assert without is not None
    assert without.steps is None  # the cell that was measured held images back: nobody knows how many there are


def test_the_choice_of_a_checkpoint_is_counted_in_episodes(tmp_path: Path) -> None:
    """20 images: 5 steps of 4 an epoch, 20 in all; 2 x 30 episodes of novel classes, and 2 evaluations of 2 x 50."""
    line = ["train.epochs=4", "protocol.num_episodes=50", "protocol.seeds=[0,1]", "train.batch_size=4", "fold=0",
            f"dataset.root={tmp_path}/absent", f"output_dir={tmp_path}"]  # fmt: skip
    finish(plan([*line, "name=other"]).points[0], images=20)
    select = ["train.select=[best_novel]", "train.select_epochs=2", "train.select_episodes=30"]
    assert hours_of([*line, *select]) == [pytest.approx(((20 * 2 + (60 + 200) * 0.5 + 10) / 3600,) * 2)]


def test_the_published_lists_lose_what_is_held_back(tmp_path: Path) -> None:
    line = [
        "dataset=pascal5i",
        "dataset.train_list=null",
        f"dataset.root={tmp_path}/absent",
        f"output_dir={tmp_path}",
        "train.batch_size=16",
    ]
    (whole,) = plan(line).estimates
    (part,) = plan([*line, "eval.every_epochs=1"]).estimates
    assert whole is not None
    assert part is not None
    assert whole.steps == 7574 // 16 * 250
    assert part.steps == (7574 - 379) // 16 * 250  # 5 % of 7574 are 378.7


def test_measured_seconds_per_step_and_episode_make_the_hours(tmp_path: Path) -> None:
    line = [*SHAPES, "fold=0,1", f"output_dir={tmp_path}"]
    finish(plan(line).points[0])
    made = plan(line)
    done, todo = made.estimates
    assert done is not None
    assert todo is not None
    assert done.hours == (0.0, 0.0)
    assert todo.hours == pytest.approx((260 / 3600, 260 / 3600))  # 100 x 2 s + 100 x 0.5 s + 10 s
    assert todo.gigabytes == (3.0, 3.0)
    assert "1 finished cells on GPU X" in text(made)


@pytest.mark.parametrize(
    "other", ["shot=5", "backbone=resnet18", "dataset.image_size=97", "train.batch_size=2", "method=baseline"]
)
def test_cells_of_another_kind_tell_nothing(other: str, tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    finish(plan(line).points[0])
    assert hours_of([*line, other, "variant=other"]) == [None]


def test_the_very_same_model_counts_before_the_same_kind(tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    finish(plan([*line, "model.iterations=3"]).points[0], train=2.0)
    finish(plan([*line, "model.iterations=5"]).points[0], train=4.0)
    assert hours_of([*line, "model.iterations=5", "fold=1"]) == [pytest.approx((460 / 3600,) * 2)]


def test_a_method_that_trains_nothing_takes_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(method: str) -> int | None:
        (made,) = plan([*SHAPES, f"method={method}", f"output_dir={tmp_path}"]).estimates
        assert made is not None
        return made.steps

    assert (steps("prototype"), steps("baseline")) == (0, 100)
    monkeypatch.setattr(BaselineConfig, "TRAINS", False)
    assert steps("baseline") == 0


def test_devices_are_not_mixed(tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    for fold, (train, device) in enumerate([(2.0, "GPU X"), (2.0, "GPU X"), (50.0, "CPU (2 threads)")]):
        finish(plan([*line, f"fold={fold}"]).points[0], train=train, device=device)
    assert hours_of([*line, "fold=3"]) == [pytest.approx((260 / 3600,) * 2)]
    assert hours_of([*line, "fold=3", "device=cpu"]) == [pytest.approx((5060 / 3600,) * 2)]


def test_a_cell_that_stopped_half_way_costs_the_rest(tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    finish(plan([*line, "fold=1"]).points[0])
    stopped = plan(line).points[0].cell
    assert stopped is not None
    make_run(stopped, status={"state": "preempted", "phase": "train", "step": 75, "steps": 100})
    made = plan(line)
    assert made.points[0].state == "preempted"
    assert made.estimates[0] is not None
    assert made.estimates[0].hours == pytest.approx((110 / 3600,) * 2)  # 25 x 2 s + 50 s + 10 s
    assert "preempted (train 75/100)" in text(made)


def test_a_running_cell_of_the_same_kind_tells_too(tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    running = plan([*line, "fold=1"]).points[0].cell
    assert running is not None
    make_run(running, status={"state": "running", "phase": "train", "step": 20, "steps": 100, "seconds_per_step": 3.6})
    made = plan(line)
    assert made.estimates[0] is not None
    assert made.estimates[0].hours == pytest.approx((0.1, 0.1))
    assert "running cells" in made.estimates[0].basis


def test_the_first_steps_of_a_running_cell_tell_nothing(tmp_path: Path) -> None:
    line = [*SHAPES, f"output_dir={tmp_path}"]
    running = plan([*line, "fold=1"]).points[0].cell
    assert running is not None
    make_run(running, status={"state": "running", "phase": "train", "step": 2, "steps": 100, "seconds_per_step": 3.6})
    assert hours_of(line) == [None]


def test_episodes_under_shifted_backgrounds_count_too(tmp_path: Path) -> None:
    line = [*SHAPES, "eval.background_shifts=[0,1]", f"output_dir={tmp_path}"]
    done = finish(plan(line).points[0])
    shifted = {"miou": 1.0}
    make_run(tmp_path, done.find_key(), result={  # type: ignore[arg-type]
        "metrics": {"per_seed": [{"seed": 0, "miou": 50.0, "num_episodes": 50}],
                    "by_background_shift": {"0.0": shifted, "1.0": shifted}},
        "timing": {"evaluate_seconds": 300.0},
    })  # fmt: skip
    measured = measure(done)
    assert measured is not None
    assert measured.evaluate == 2.0  # 50 episodes, three times


def test_published_figures_stand_where_nothing_was_measured_and_are_named(tmp_path: Path) -> None:
    made = plan(["dataset=pascal5i,coco20i", f"output_dir={tmp_path}"])
    assert [e.hours for e in made.estimates if e] == [(0.5, 1.0), (0.0, 80.0)]
    # fold 0: 7574 images in the standard list, drop; 7574 // 16 = 473 steps an epoch, 250 epochs
    assert [e.steps for e in made.estimates if e] == [118250, None]
    printed = text(made)
    assert "hours of 2 cells from published figures" in printed
    assert "10-12 GB" in printed
    assert "fsseg prepare dataset=pascal5i" in printed


def steps_of(*line: str) -> list[tuple[int | None, str]]:
    return [(e.steps, e.counted) for e in plan(line).estimates if e]


def test_steps_are_counted_from_the_data_at_hand(tmp_path: Path) -> None:
    rules = ("protocol.min_pixels=0", "train.batch_size=2", "train.epochs=10", f"output_dir={tmp_path}/outputs")
    voc = ("dataset=pascal5i", f"data.roots.pascal5i={make_voc(tmp_path / 'voc')}", *rules)
    assert steps_of(*voc, "fold=3") == [(None, "")]  # nobody has looked at the masks, and a plan does not
    assert steps_of(*voc[:2], "fold=3", *rules[1:])[0][1] == "the published lists"
    build_source(compose(voc).cfg).index("train")
    # Only `person` (fold 2) is in two of the four images, t1 and s2; t1 has an aeroplane (fold 0), s2 nothing else.
    # Two images a step of two, ten epochs.
    assert steps_of(*voc, "fold=3,1") == [(10, "the data at hand")] * 2
    assert steps_of(*voc, "fold=2,0") == [(None, "")] * 2  # no class is left with two images
    assert steps_of(*voc, "fold=0", "protocol.novel_in_training=background") == [(10, "the data at hand")]
    assert "steps of 1 cell counted from the data at hand" in text(plan([*voc, "fold=3"]))

    coco = ("dataset=coco20i", f"data.roots.coco20i={make_coco(tmp_path / 'coco')}", *rules, "fold=1")
    path = tmp_path / "coco" / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["image_id"] = 9  # the dog; now 9 shows a dog and a toothbrush, 7 two people
    content["annotations"][4] |= {"image_id": 7, "category_id": 18}  # and 7 a dog too
    path.write_text(json.dumps(content))
    assert steps_of(*coco) == [(None, "")]
    build_source(compose(coco).cfg).index("train")
    assert steps_of(*coco) == [(10, "the data at hand")]  # dogs (class 16, fold 0) in both images
    path.write_text(path.read_text() + " ")
    assert steps_of(*coco) == [(None, "")]  # the index is not that of this file


def test_the_data_at_hand_count_before_a_cell_that_was_trained_on_others(tmp_path: Path) -> None:
    line = [*SHAPES[2:], "train.epochs=10", f"output_dir={tmp_path}", "dataset.num_train=60", "dataset.num_val=1"]
    line += [f"data.roots.shapes5i={tmp_path / 'data'}"]
    finish(plan([*line, "seed=1"]).points[0], images=400)
    assert steps_of(*line) == [(1000, "finished cells")]  # 400 / 4 * 10
    images = build_source(compose(line).cfg).index("train")
    assert len(images.image_ids) == 60
    ((steps, counted),) = steps_of(*line)
    assert counted == "the data at hand"
    assert steps is not None
    assert 0 < steps <= 150  # 60 / 4 * 10


def test_published_hours_shrink_with_the_recipe(tmp_path: Path) -> None:
    [estimate] = plan(["dataset=pascal5i", "train.epochs=25", f"output_dir={tmp_path}"]).estimates
    assert estimate is not None
    assert estimate.hours == pytest.approx((0.05, 0.1))


@pytest.mark.parametrize(
    "line", [["dataset=shapes5i"], ["dataset=pascal5i", "backbone=tiny"], ["dataset=pascal5i", "device=cpu"]]
)
def test_what_nothing_tells_stays_unknown(line: list[str], tmp_path: Path) -> None:
    made = plan([*line, f"output_dir={tmp_path}"])
    assert made.estimates[0] is not None
    assert made.estimates[0].hours is None
    assert "unknown" in text(made)


def test_calibration_measures_once_a_kind_and_feeds_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short run itself is replaced: what is pinned is what it is asked for and what is made of its files."""
    asked: list[list[str]] = []

    def short_run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words[:4] == [sys.executable, "-m", "fsseg", "train"]
        asked.append(words[4:])
        [point] = plans.build_grid(words[4:])
        run = finish(point, train=9.0, evaluate=9.0, status={"state": "done", "seconds_per_step": 0.25})
        means = {1: 5.0, 2: 3.0, 3: 7 / 3, 4: 2.0}
        write_metrics(run, [{"step": step, "seconds_per_step": mean} for step, mean in means.items()])
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(plans.subprocess, "run", short_run)
    made = plan([*SHAPES, "fold=0,1", f"output_dir={tmp_path}"], calibrate=True)
    assert len(asked) == 1
    assert f"train.max_steps={plans.CALIBRATION_STEPS}" in asked[0]
    assert not list(tmp_path.iterdir())  # it ran elsewhere
    # running means 3.0 after 2 steps and 2.0 after 4: the last two took 8 - 6 = 2 s, 1 s each
    expected = (100 * 1.0 + 100 * 0.25 + 10) / 3600
    assert [e.hours for e in made.estimates if e] == [pytest.approx((expected, expected))] * 2
    assert "from calibration on GPU X" in text(made)


def test_a_calibration_finds_the_files_that_the_line_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my files"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\ntrain: {batch_size: 7}\n")

    def short_run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        found = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
        composed.append(compose([o for o in words[4:] if "=" in o], found).cfg.train.batch_size)
        return subprocess.CompletedProcess(words, 1, "", "")

    composed: list[int] = []
    monkeypatch.setattr(plans.subprocess, "run", short_run)
    line = ["experiment=mine", f"output_dir={tmp_path}/outputs"]
    plan(line, calibrate=True, config_dir=str(folder))
    plan([*line, f"hydra.searchpath=['{folder}']"], calibrate=True)
    assert composed == [7, 7]


def test_only_what_has_still_to_run_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.subprocess, "run", lambda *_, **__: pytest.fail("a calibration was started"))
    line = ["fold=0", f"output_dir={tmp_path}"]
    done = plan(line).points[0].cell
    assert done is not None
    make_run(done, result={"metrics": None, "training": None})
    done.identity_file.unlink()  # so that it measures nothing
    assert plan(["fold=0,9", f"output_dir={tmp_path}"], calibrate=True).notes == []


def test_a_calibration_that_fails_is_told_and_leaves_the_published_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "log\nerror: no data\n  -> prepare it\n")
    monkeypatch.setattr(plans.subprocess, "run", lambda *_, **__: failed)
    made = plan(["dataset=pascal5i", f"output_dir={tmp_path}"], calibrate=True)
    assert made.estimates[0] is not None
    assert made.estimates[0].basis == "published figures"
    assert "failed: error: no data" in text(made)


@pytest.mark.process
def test_a_calibration_is_a_real_run(tmp_path: Path) -> None:
    """What the short run is asked for is what `python -m fsseg train` takes."""
    small = ["dataset.num_train=60", "dataset.num_val=60", "dataset.image_size=25", "model.channels=16",
             "train.batch_size=2", "num_workers=0", "num_threads=1", "device=cpu"]  # fmt: skip
    made = plan([*small, f"dataset.root={tmp_path}", f"output_dir={tmp_path}/outputs"], calibrate=True)
    [estimate] = made.estimates
    assert "s a step, " in made.notes[0]
    assert estimate is not None
    assert estimate.basis.startswith("calibration on CPU")


def test_totals_count_states_and_sum_what_is_left(tmp_path: Path) -> None:
    line = [*SHAPES, "fold=0,1,2", f"output_dir={tmp_path}"]
    finish(plan(line).points[0], train=36.0, evaluate=0.0)  # 3600 s + 10 s a cell
    total = next(t for t in text(plan(line)).splitlines() if t.startswith("3 cells"))
    assert total.startswith("3 cells: 1 done, 2 to do; 2.0 h to go")


def test_servers_get_lines_with_their_hours_and_hydras_own_overrides(tmp_path: Path) -> None:
    made = plan(["dataset=pascal5i", "fold=0,1,2,3", "hydra/launcher=basic", f"output_dir={tmp_path}"])
    printed = servers(made, 2, ["fold"], ["hydra/launcher=basic"])
    lines = [t for t in printed.splitlines() if t.startswith("python")]
    assert lines == [
        f"python train.py -m dataset=pascal5i fold={f} output_dir={tmp_path} hydra/launcher=basic"
        for f in ("0,1", "2,3")
    ]
    assert "# server 1: 2 cells, 1.0-2.0 h" in printed  # 30 to 60 min a fold


def test_servers_without_work_are_mentioned(tmp_path: Path) -> None:
    made = plan(["dataset=pascal5i", "fold=0,1", f"output_dir={tmp_path}"])
    assert "2 of 4 servers have work" in servers(made, 4, ["finest"])


def test_a_line_with_cells_that_cannot_start_is_not_shared_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot start"):
        servers(plan(["fold=0,9", f"output_dir={tmp_path}"]), 2, None)


def test_a_folder_that_is_no_run_measures_nothing(tmp_path: Path) -> None:
    assert measure(RunDirectory(tmp_path)) is None


def test_a_group_that_is_given_a_number_is_told_and_the_others_are_planned() -> None:
    made = plan(["backbone=1,tiny"])
    assert len(made.points) == 2
    assert "configuration group" in text(made)


def test_settings_and_devices_of_any_kind_measure_nothing_or_count_as_unknown(tmp_path: Path) -> None:
    identity = {
        "dataset.name": "d", "model.name": "m", "backbone.name": "b", "shot": 1, "dataset.image_size": 81,
        "train.batch_size": 4,
    }  # fmt: skip
    odd = make_run(tmp_path / "odd", result=50.0, identity=identity | {"shot": [1]})
    assert measure(odd) is None
    measured = measure(make_run(tmp_path / "x", result={"provenance": {"device": ["GPU"]}}, identity=identity))
    assert measured is not None
    assert measured.device is None
