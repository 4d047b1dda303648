"""The paper's tables and figures, from made-up results and figures worked out by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiment_files import BASELINE, FULL, SM, Add, report, rows

from fsseg.cell.key import identity
from fsseg.config.compose import compose
from fsseg.report.aggregate import aggregate
from fsseg.report.collect import collect
from fsseg.report.experiments import REPORTS, experiment_report
from fsseg.report.paper import unlike_ablation


def test_table_3_stands_beside_the_papers_figures(tmp_path: Path, add: Add) -> None:
    add("table3_components", "ablation-baseline", 60.0, BASELINE)
    add("table3_components", "ablation-full", 73.5, FULL)
    text = report(tmp_path)
    table = rows(tmp_path, "table3_components")
    assert table[""] == ["ours", "paper", "difference"]
    assert table["baseline (backbone + QP)"] == ["60.00", "61.48", "-1.48"]
    assert table["baseline + SM"] == ["—", "68.20", ""]  # no result yet
    assert table["baseline + SM + IC"] == ["73.50", "72.92", "+0.58"]
    assert "another task" not in text


def test_another_task_gets_no_differences(tmp_path: Path, add: Add) -> None:
    add("table3_components", "ablation-full", 73.5, FULL, dataset="shapes5i", backbone="tiny")
    assert "another task" in report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"] == ["73.50", "72.92", ""]


@pytest.mark.parametrize(
    "changes", [{"fold": 1}, {"shot": 5}, {"data": {"num_val_images": 100}}, {"missing_classes": ["x"]}]
)
def test_neither_does_another_fold_shot_sample_or_a_partial_result(
    tmp_path: Path, add: Add, changes: dict[str, Any]
) -> None:
    add("table3_components", "ablation-full", 73.5, FULL, **changes)
    assert "another task" in report(tmp_path)


RECIPE = {
    "protocol.name": "standard", "protocol.num_episodes": 1000, "backbone.pretrained": True,
    "backbone.trainable_layers": 0, "dataset.image_size": 473, "train.epochs": 250, "train.max_steps": None,
    "dataset.train_list": "merged_5953",
}  # fmt: skip


def test_the_recipe_itself_is_compared_at_any_rate(tmp_path: Path, add: Add) -> None:
    add("table3_components", "ablation-full", 73.5, FULL, identity=RECIPE | {"train.lr": 0.004})
    assert "another task" not in report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"] == ["73.50", "72.92", "+0.58"]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("protocol.name", "bam", "protocol.name=bam"),
        ("protocol.num_episodes", 10, "protocol.num_episodes=10"),
        ("backbone.pretrained", False, "backbone.pretrained=false"),
        ("backbone.trainable_layers", 5, "backbone.trainable_layers=5"),
        ("dataset.image_size", 81, "dataset.image_size=81"),
        ("train.epochs", 1, "train.epochs=1"),
        ("train.max_steps", 1, "train.max_steps=1"),
        ("dataset.train_list", None, "dataset.train_list=train_aug_10582"),
        ("dataset.train_list", "content 0123456789abcdef", "dataset.train_list=content 0123456789abcdef"),
    ],
)
def test_a_setting_that_is_not_the_recipes_takes_the_difference_away_and_is_named(
    tmp_path: Path, add: Add, key: str, value: Any, shown: str
) -> None:
    add("table3_components", "ablation-full", 73.5, FULL, identity=RECIPE | {key: value})
    assert f"no differences; unlike the paper, they have {shown}\n" in report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"] == ["73.50", "72.92", ""]


@pytest.mark.parametrize("damage", [None, "{", '{"fingerprint": "f", "identity": 3}'])
def test_a_result_without_identity_has_unknown_settings_and_no_differences(
    tmp_path: Path, add: Add, damage: str | None
) -> None:
    run = add("table3_components", "ablation-full", 73.5, FULL, identity=RECIPE)
    run.identity_file.unlink()
    if damage is not None:
        run.identity_file.write_text(damage)
    text = report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"] == ["73.50", "72.92", ""]
    assert "no identity.json that can be read" in text
    assert "nothing is compared with the paper" in text
    assert "another task" not in text


def test_results_without_identity_mix_no_rates(tmp_path: Path, add: Add) -> None:
    for lr, seed in ((0.1, 0), (0.1, 1), (0.2, 2)):
        run = add("table3_components", f"full-{lr}", 50.0 + 10 * lr, FULL, seed=seed, identity={"train.lr": lr})
        run.identity_file.unlink()
    report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"][0] == "51.00 ±0.00"
    assert rows(tmp_path, "table3_components-2")["baseline + SM + IC"][0] == "52.00"


def test_models_of_unknown_settings_share_a_table_that_says_so(tmp_path: Path, add: Add) -> None:
    for name, model in (("baseline", BASELINE), ("full", FULL)):
        add("table3_components", name, 50.0, model).identity_file.unlink()
    text = report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline (backbone + QP)"] == ["50.00", "61.48", ""]
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"] == ["50.00", "72.92", ""]
    assert "rows may differ in more than the model" in text
    assert "train.lr is each model's own" not in text  # nobody knows


def test_another_lr_scale_is_another_table(tmp_path: Path, add: Add) -> None:
    """Not a rate of a model's own: without it in the table's head, runs of both scales would be averaged."""
    for scale, miou in (({}, 50.0), ({"train.lr_scale": 10.0}, 60.0)):
        add("table3_components", f"full-{miou}", miou, FULL, identity={"train.lr": 0.002, "seed": 0} | scale)
    report(tmp_path)
    found = [[row for row in path.read_text().splitlines() if "SM + IC |" in row] for path in tmp_path.glob("*.md")]
    assert sorted(row.split("|")[2].strip() for lines in found for row in lines) == ["50.00", "60.00"]


@pytest.mark.parametrize("identity", [RECIPE, {}])
def test_a_result_without_identity_stands_in_no_table_of_known_settings(
    tmp_path: Path, add: Add, identity: dict[str, Any]
) -> None:
    for name, model in (("baseline", BASELINE), ("full", FULL)):
        run = add("table3_components", name, 50.0, model, identity=identity)
    run.identity_file.unlink()
    report(tmp_path)
    tables = [rows(tmp_path, stem) for stem in ("table3_components", "table3_components-2")]
    assert [t["baseline (backbone + QP)"] for t in tables] == [["50.00", "61.48", "-11.48"], ["—", "61.48", ""]]
    assert [t["baseline + SM + IC"] for t in tables] == [["—", "72.92", ""], ["50.00", "72.92", ""]]


def test_the_recipe_of_the_ablations_is_what_their_files_compose() -> None:
    settings = identity(compose(["experiment=table3_components", "ablation=sm"]).resolved)
    assert {key: settings[key] for key in RECIPE} == RECIPE
    assert unlike_ablation(settings) == []


@pytest.mark.parametrize("name", ["paper", *sorted(REPORTS.keys() - {"background_bias"})])
def test_the_papers_experiments_train_pascal_on_the_merged_pool(name: str) -> None:
    def settings(dataset: str) -> dict[str, Any]:
        return identity(compose([f"experiment={name}", f"dataset={dataset}", "ablation=full"]).resolved)

    pascal = settings("pascal5i")
    assert (pascal["dataset.train_list"], pascal["protocol.name"]) == ("merged_5953", "standard")
    assert settings("coco20i").get("dataset.train_list") is None
    assert "dataset.train_list" not in settings("shapes5i")
    named = compose([f"experiment={name}", "protocol=hsnet", "dataset=pascal5i", "ablation=full"]).cfg.protocol
    assert (named.train_pool, named.list_rule) == ("train_aug_10582", "grid")  # the protocol of the line wins


def test_table_4_has_its_rows_by_what_the_model_lacks(tmp_path: Path, add: Add) -> None:
    add("table4_evolution", "a", 70.0, FULL | {"structure_evolution": False})
    add("table4_evolution", "b", 69.0, FULL | {"pixel_evolution": False})
    add("table4_evolution", "c", 72.0, FULL)
    report(tmp_path)
    table = rows(tmp_path, "table4_evolution")
    assert table["full"] == ["72.00", "72.92", "-0.92"]
    assert table["without E_p"] == ["69.00", "68.85", "+0.15"]
    assert table["without E_s"] == ["70.00", "70.29", "-0.29"]


def test_table_5_shows_macs_beside_the_papers(tmp_path: Path, add: Add) -> None:
    for t in (1, 3):
        cost = {"gmacs": 200.0 + t, "gmacs_dense": 220.0 + t}
        add("table5_iterations", f"t{t}", 60.0 + t, FULL | {"iterations": t}, cost=cost)
    report(tmp_path)
    table = rows(tmp_path, "table5_iterations")
    assert table["T = 1"] == ["61.00", "61.48", "-0.48", "201.0", "221.0", "225.8"]
    assert table["T = 2"] == ["—", "69.82", "", "-", "-", "241.3"]
    assert table["T = 3"] == ["63.00", "72.92", "-9.92", "203.0", "223.0", "257.0"]


def test_table_6_follows_one_model_through_its_rounds(tmp_path: Path, add: Add) -> None:
    add("table6_rounds", "default", 71.5, FULL, metrics={"miou_per_round": [61.25, 70.0, 71.5]})
    report(tmp_path)
    table = rows(tmp_path, "table6_rounds")
    assert table == {
        "": ["ours, T = 3", "paper, T = 3"],
        "P_1": ["61.25", "63.08"],
        "P_2": ["70.00", "70.76"],
        "P_3": ["71.50", "72.92"],
    }


def test_rows_are_compared_on_the_folds_and_seeds_that_all_of_them_have(tmp_path: Path, add: Add) -> None:
    for fold, seed, miou in ((0, 0, 10.0), (1, 0, 20.0), (0, 1, 14.0), (1, 1, 24.0), (0, 2, 99.0)):
        add("table3_components", "b", miou, BASELINE, fold, seed=seed)
    for fold, seed, miou in ((0, 0, 30.0), (1, 0, 30.0), (0, 1, 30.0), (1, 1, 30.0), (1, 2, 99.0)):
        add("table3_components", "s", miou, SM, fold, seed=seed)
    text = report(tmp_path)
    table = rows(tmp_path, "table3_components")
    # seed 0: (10 + 20) / 2 = 15; seed 1: (14 + 24) / 2 = 19; mean 17, sample deviation sqrt((4 + 4) / 1) = 2.83
    assert table["baseline (backbone + QP)"][0] == "17.00 ±2.83"
    assert table["baseline + SM"][0] == "30.00 ±0.00"
    assert "fold 0 seed 0, fold 0 seed 1, fold 1 seed 0, fold 1 seed 1" in text


def test_seeds_of_different_folds_are_compared_too(tmp_path: Path, add: Add) -> None:
    for fold, seed in ((0, 0), (1, 1)):
        add("table3_components", "b", 10.0 + fold, BASELINE, fold, seed=seed)
        add("table3_components", "s", 20.0 + fold, SM, fold, seed=seed)
    report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM"][0] == "20.50 ±0.71"  # 20 and 21: sqrt(0.5)


def test_other_settings_make_a_table_of_their_own(tmp_path: Path, add: Add) -> None:
    for lr in (0.1, 0.2):
        for name, model in (("baseline", BASELINE), ("full", FULL)):
            identity = {"train.lr": lr, "model.cleansing": model["cleansing"], "seed": 0}
            add("table3_components", f"{name}-{lr}", 50.0 + lr, model, identity=identity)
    report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"][0] == "50.10"
    assert rows(tmp_path, "table3_components-2")["baseline (backbone + QP)"][0] == "50.20"


def test_each_model_at_its_own_rate_is_one_table_that_says_so(tmp_path: Path, add: Add) -> None:
    for name, lr, model in (("baseline", 0.06, BASELINE), ("sm", 0.02, SM), ("full", 0.02, FULL)):
        for seed in (0, 1):
            identity = {"train.lr": lr, "seed": seed} | {f"model.{k}": v for k, v in model.items()}
            add("table3_components", name, 50.0 + lr, model, seed=seed, identity=identity)
    text = report(tmp_path)
    table = rows(tmp_path, "table3_components")
    assert table["baseline (backbone + QP)"][0] == "50.06 ±0.00"
    assert table["baseline + SM + IC"][0] == "50.02 ±0.00"
    note = "train.lr is each model's own: baseline (backbone + QP): 0.06; baseline + SM: 0.02; baseline + SM + IC: 0.02"
    assert note in text
    assert not (tmp_path / "table3_components-2.md").exists()


def test_the_rates_of_table_5_are_told_apart_by_t(tmp_path: Path, add: Add) -> None:
    for t, lr in ((3, 0.02), (1, 0.06), (2, 0.02)):
        add(
            "table5_iterations",
            f"t{t}",
            60.0,
            FULL | {"iterations": t},
            identity={"train.lr": lr, "model.iterations": t},
        )
    assert (
        "train.lr is each model's own: baseline + SM + IC, T = 1: 0.06; baseline + SM + IC, T = 2: 0.02; baseline + SM "
        "+ IC, T = 3: 0.02\n"
    ) in report(tmp_path)


def test_two_results_for_one_place_are_left_out_and_named(tmp_path: Path, add: Add) -> None:
    add("table3_components", "heads4", 50.0, FULL | {"heads": 4})
    add("table3_components", "heads8", 51.0, FULL | {"heads": 8})
    text = report(tmp_path)
    assert rows(tmp_path, "table3_components")["baseline + SM + IC"][0] == "—"
    assert "heads4" in text
    assert "heads8" in text


def test_figure_7_brings_the_sheets_of_the_runs(tmp_path: Path, add: Add) -> None:
    for seed in (0, 1):
        run = add("figure7_steps", "default", 50.0 + seed, FULL, seed=seed)
        run.steps_figure.parent.mkdir()
        run.steps_figure.write_bytes(b"sheet %d" % seed)
    add("figure7_steps", "default", 55.0, FULL, seed=2)
    text = report(tmp_path)
    assert (tmp_path / "figure7_steps.png").read_bytes() == b"sheet 0"
    assert (tmp_path / "figure7_steps-2.png").read_bytes() == b"sheet 1"
    assert "seed2/figures/steps.png is missing" in text


def test_aggregate_writes_experiments_beside_the_summary_and_says_so(tmp_path: Path, add: Add) -> None:
    add("table6_rounds", "default", 71.5, FULL, metrics={"miou_per_round": [61.25, 70.0, 71.5]})
    text = aggregate([tmp_path])
    assert "P_2" in text
    assert "table6_rounds.md" in text.splitlines()[-1]
    assert (tmp_path / "table6_rounds.md").is_file()


def test_runs_of_no_experiment_get_none(tmp_path: Path, make_cell: Callable[..., Path]) -> None:
    make_cell(0, 50.0)
    assert experiment_report(collect([tmp_path]).cells, tmp_path) is None


def test_every_report_that_an_experiment_file_names_exists() -> None:
    import yaml

    files = sorted((Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))
    named = {yaml.safe_load(f.read_text()).get("report") for f in files} - {None}
    assert named == set(REPORTS)


def test_rounds_that_no_model_has_make_no_rows(tmp_path: Path, add: Add) -> None:
    for number, rounds in enumerate((3, 10**15, -1)):
        add(
            "table6_rounds", f"t{number}", 60.0, FULL | {"iterations": rounds}, metrics={"miou_per_round": [50.0, 60.0]}
        )
    report(tmp_path)
    assert list(rows(tmp_path, "table6_rounds")) == ["", "P_1", "P_2", "P_3"]


def test_a_learning_rate_of_any_kind_tells_models_apart(tmp_path: Path, add: Add) -> None:
    for number, rate in enumerate((0.1, [1], {"a": 2}, None)):
        add("table3_components", f"v{number}", 60.0, FULL, identity={"train.lr": rate}, seed=number)
    report(tmp_path)
    assert len(list(tmp_path.glob("table3_components*.md"))) == 4


DISTANCE = {
    "foreground_distance": {
        "bins": [0.1], "counts": [1] * 7, "mean": 0.1, "std": 0.1, "episodes": 7, "without_foreground": 0,
    }
}  # fmt: skip


def test_names_of_runs_lead_to_no_other_file(tmp_path: Path, add: Add) -> None:
    """Two names of one experiment: each file is called after its own."""
    out = tmp_path / "out"
    for name in ("summary", "a\nb$c^$", "x" * 250):
        add("figure5_distance", "v", 60.0, FULL, name=name, root=tmp_path / "runs", metrics=DISTANCE)
    aggregate([tmp_path / "runs"], out)
    stems = {"summary-2", "a_b_c__", "x" * 100}
    assert {p.stem for p in out.glob("*.png")} == stems
    assert {p.stem for p in out.glob("*.md")} == stems | {"summary"}
    assert (out / "summary.md").read_text().startswith("### pascal5i (mIoU in percent")


def test_a_sheet_that_is_no_file_is_named(tmp_path: Path, add: Add) -> None:
    run = add("figure7_steps", "v", 60.0, FULL)
    run.steps_figure.parent.mkdir()
    os.mkfifo(run.steps_figure)
    text = report(tmp_path)
    assert "steps.png cannot be read (a FIFO, no file)" in text


def test_a_formula_in_a_name_is_drawn_as_it_is(tmp_path: Path, add: Add) -> None:
    """matplotlib takes what stands between dollars for a formula, and ends at one that is wrong."""
    add("figure5_distance", "v", 60.0, FULL, dataset=r"a$\frac{$", metrics=DISTANCE)
    report(tmp_path)
    assert (tmp_path / "figure5_distance.png").stat().st_size > 1000
