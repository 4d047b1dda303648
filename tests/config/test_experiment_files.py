"""Every file under conf/experiment: what its line expands to, and all of it run at a tiny size, up to its table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from runs import SMALL, cell_of, composed, done

from fsseg.cell.key import BASE_CELL
from fsseg.cell.models import Metrics
from fsseg.cell.record import find_runs, open_cell
from fsseg.config.checks import faults
from fsseg.config.compose import Composed, composer, config_folder
from fsseg.errors import UserError
from fsseg.report.aggregate import aggregate
from fsseg.run import _hydra_overrides

pytestmark = pytest.mark.filterwarnings("ignore")

CELLS = {
    "paper": 2 * 2 * 2 * 4, "table3_components": 3, "table4_evolution": 3, "table5_iterations": 5, "table6_rounds": 1,
    "figure5_distance": 2, "figure7_steps": 1, "background_bias": 3 * 4 * 3, "smoke": 1,
    "learning_rate": 2, "pfenet_paper": 2 * 2 * 2 * 4, "hsnet_paper": 2 * 2 * 4, "dino_paper": 2 * 2 * 4,
    "bam_paper": 2 * 2 * 4, "methods_common": 7 * 4 * 3, "base_training": 2 * 4, "voc_light": 6 * 3 * 2,
}  # fmt: skip
OTHERS = {"learning_rate": "train.lr_scale-10", "pfenet_paper": "2-shot", "bam_paper": "2-shot", "dino_paper": "dino",
          "hsnet_paper": "hsnet", "methods_common": "baseline", "voc_light": "dino"}  # fmt: skip
"""Those that are no table or figure of the paper, and something that tells their rows in the summary."""


def cells(*line: str) -> list[Composed]:
    with composer() as c:
        found = [made for _, made in c.grid(line)]
    assert not [made for made in found if isinstance(made, UserError)]
    return [made for made in found if isinstance(made, Composed)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def test_every_file_is_counted_here() -> None:
    assert {p.stem for p in (config_folder() / "experiment").glob("*.yaml")} == set(CELLS)


@pytest.mark.parametrize("experiment", CELLS)
def test_an_experiment_is_one_line(experiment: str) -> None:
    found = cells(f"experiment={experiment}")
    assert len(found) == CELLS[experiment]
    assert [fault.what for made in found for fault in faults(made.cfg)] == []
    keys = [open_cell(made.cfg, made.resolved, made.task_overrides).key for made in found]
    assert len(set(keys)) == len(keys)
    assert {key.name for key in keys} == {experiment}
    # The folder's name says so already; but a file that is no table of the paper must not look like a default run.
    others = ("smoke", *OTHERS)
    assert [key for key in keys if "experiment" in key.variant] == (keys if experiment in others else [])


def test_directories_say_which_cell_is_which() -> None:
    def variants(experiment: str) -> list[str]:
        found = cells(f"experiment={experiment}")
        return [open_cell(made.cfg, made.resolved, made.task_overrides).key.variant for made in found]

    assert variants("table3_components") == ["ablation-baseline", "ablation-sm", "ablation-full"]
    assert variants("table5_iterations")[:2] == ["model.iterations-1", "model.iterations-2"]
    assert set(variants("paper")) == {"default"}  # what the tables compare with the paper's figures


def test_the_papers_experiments_are_on_its_data_and_backbone() -> None:
    for experiment in ("table3_components", "table4_evolution", "table5_iterations", "table6_rounds"):
        for made in cells(f"experiment={experiment}"):
            cfg = made.cfg
            assert (cfg.dataset.name, cfg.backbone.name, cfg.fold, cfg.shot) == ("pascal5i", "resnet50", 0, 1)


def test_the_command_line_wins_over_the_file() -> None:
    assert len(cells("experiment=paper", "fold=2", "shot=1")) == 4
    assert len(cells("experiment=table5_iterations", "model.iterations=2,7")) == 2
    (made,) = cells("experiment=table6_rounds", "dataset=shapes5i", "fold=3")
    assert (made.cfg.dataset.name, made.cfg.backbone.name, made.cfg.fold) == ("shapes5i", "tiny", 3)


@pytest.mark.parametrize(
    ("line", "method", "told"),
    [
        (["experiment=table3_components"], "abcb", "sweep over ablation=baseline,sm,full"),
        (["experiment=background_bias", "ablation=sm"], "abcb", "sweep over fold=0,1,2,3 seed=0,1,2"),
        (["experiment=background_bias", "ablation=sm"], "pspnet", "sweep over fold=0,1,2,3"),  # has its own seed
    ],
)
def test_a_sweep_started_without_m_says_so(line: list[str], method: str, told: str) -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = hydra_compose("train", line, return_hydra_config=True)
        whole = hydra_compose("train", ["experiment=table3_components", "ablation=sm"], return_hydra_config=True)
    holder = HydraConfig.instance()
    before = holder.cfg
    try:
        holder.set_config(config)
        with pytest.raises(UserError) as caught:
            _hydra_overrides(method)
        holder.set_config(whole)
        assert _hydra_overrides(method) == ["experiment=table3_components", "ablation=sm"]  # one cell of it is fine
    finally:
        holder.cfg = before
    assert caught.value.what.endswith(told)
    assert "-m" in caught.value.fix


SMOKE = {
    "paper": ["fold=0", "shot=1,2"], "background_bias": ["fold=0", "seed=0"], "figure7_steps": ["logger.figures=2"],
    "table5_iterations": ["model.iterations=1,3"], "hsnet_paper": ["fold=0", "model.channels=32"],
    "methods_common": ["method=baseline,abcb", "fold=0", "seed=0"],
    "pfenet_paper": ["fold=0", "shot=2"], "dino_paper": ["fold=0", "shot=1,2"],
    "bam_paper": ["fold=0", "shot=2", "base_training.max_steps=1", "base_training.batch_size=2",
                  "base_training.image_size=25"],
}  # fmt: skip


def test_the_common_recipe_is_the_same_for_all_methods() -> None:
    """Beside the model's own settings the identities are equal; but the untrained ones train nothing."""
    for dataset in ("shapes5i", "pascal5i"):
        found = cells("experiment=methods_common", f"dataset={dataset}", "fold=1", "seed=2")
        kept = [open_cell(made.cfg, made.resolved, made.task_overrides).identity for made in found]
        alike = [{k: v for k, v in of_cell.items() if not k.startswith("model.")} for of_cell in kept]
        assert [of_cell.pop("train.enabled") for of_cell in alike] == [False, False, True, True, True, True, True]
        methods = ["prototype", "dino", "baseline", "pfenet", "bam", "hsnet", "abcb"]
        assert [of_cell["model.name"] for of_cell in kept] == methods
        # BAM alone starts from a base learner, and keeps its backbone.
        bam = alike.pop(methods.index("bam"))
        assert bam.pop("backbone.base_training") is True
        assert BASE_CELL in bam
        bam["backbone.trainable_layers"] = 5 if dataset == "shapes5i" else 0
        assert all(of_cell == alike[0] for of_cell in [*alike, {k: v for k, v in bam.items() if k != BASE_CELL}])


@pytest.mark.parametrize("experiment", sorted(set(CELLS) - {"smoke", "base_training", "voc_light"}))
def test_an_experiment_runs_and_ends_in_its_table(experiment: str, root: Path, tmp_path: Path) -> None:
    """Not base_training, which has no table, nor voc_light, whose settings are those of real images only: its methods
    run on some in integration/test_real_images.py."""
    own = [*SMOKE.get(experiment, []), "dataset=shapes5i", "backbone=tiny", "train.max_steps=1"]
    keys = {o.partition("=")[0] for o in own} | {"variant"}
    if experiment == "dino_paper":
        keys.add("model.channels")  # it has no neck
    small = [o for o in (*SMALL, f"dataset.root={root}", f"output_dir={tmp_path}") if o.partition("=")[0] not in keys]
    made = cells(f"experiment={experiment}", *own, *small)
    for cell in made:
        assert done(cell).report == (None if experiment in ("paper", *OTHERS) else experiment)
    folder = tmp_path / experiment
    text = aggregate([folder])
    assert len(find_runs([folder])) == len(made)
    if experiment in ("paper", *OTHERS):
        assert {"paper": "2-shot", **OTHERS}[experiment] in text
        return
    table = [line for line in (folder / f"{experiment}.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) >= 3
    missing = sum("—" in line for line in table)
    assert missing == (3 if experiment == "table5_iterations" else 0)  # T = 2, 4, 5 were not run
    pictures = {p.name for p in folder.glob("*.png")}
    assert pictures == {
        "figure5_distance": {"figure5_distance.png"},
        "figure7_steps": {"figure7_steps.png"},
        "background_bias": {"background_bias.png", "background_bias-distance.png"},
    }.get(experiment, set())
    if experiment == "table5_iterations":
        results = [run.result() for run in find_runs([folder])]
        costs = [result.cost.gmacs for result in results if result and result.cost and result.cost.gmacs]
        assert len(costs) == 2
        assert 0 < costs[0] < costs[1]


def scores(metrics: Metrics | None) -> Metrics:
    assert metrics is not None
    return msgspec.structs.replace(metrics, by_background_shift={}, foreground_distance=None)


def test_scores_by_shift_are_those_of_a_run_at_that_shift(root: Path, tmp_path: Path) -> None:
    line = ("eval.background_shifts=[0,1]", "eval.diagnostics=true", "train.max_steps=4", "protocol.num_episodes=12")
    trained = composed(root, tmp_path, *line, "variant=whole")
    metrics = done(trained).metrics
    assert metrics is not None
    assert list(metrics.by_background_shift) == ["0.0", "1.0"]
    weights = cell_of(trained).checkpoint
    for shift in ("0.0", "1.0"):
        evaluated = composed(
            root, tmp_path, "train.enabled=false", f"checkpoint={weights}", f"dataset.background_shift={shift}",
            "protocol.num_episodes=12", f"variant=at{shift}",
        )  # fmt: skip
        assert scores(metrics.by_background_shift[shift]) == done(evaluated).metrics
    prints = {m.per_seed[0].episodes_fingerprint for m in metrics.by_background_shift.values()}
    assert len(prints) == 2
    # Recording more changes no number.
    bare = composed(root, tmp_path, "train.max_steps=4", "protocol.num_episodes=12", "variant=bare")
    assert done(bare).metrics == scores(metrics)
    assert cell_of(bare).fingerprint != cell_of(trained).fingerprint


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (["eval.background_shifts=[0,2]"], "not within 0 and 1"),
        (["dataset=pascal5i", "eval.background_shifts=[1]"], "no background families"),
    ],
)
def test_a_shift_that_cannot_be_is_a_fault(line: list[str], named: str) -> None:
    with composer() as c:
        found = [fault.what for fault in faults(c.one(line).cfg)]
    assert len(found) == 1
    assert named in found[0]


def test_the_estimate_counts_the_episodes_of_every_shift(root: Path, tmp_path: Path) -> None:
    from fsseg.sweep.estimate import measure

    made = composed(root, tmp_path, "eval.background_shifts=[0,1]", "variant=measured")
    seconds = done(made).timing.evaluate_seconds
    assert seconds is not None
    found = measure(cell_of(made))
    assert found is not None
    assert found.evaluate == pytest.approx(seconds / (3 * 6))  # 6 episodes, 3 times
