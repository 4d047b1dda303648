"""`python train.py` as a user types it: one cell, a sweep, evaluation of a checkpoint, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fsseg.cell.models import Result, State
from fsseg.cell.record import RunDirectory, find_runs
from fsseg.cell.uses import users
from fsseg.cli.app import app

from .conftest import SMALL, Command, command

Trained = tuple[RunDirectory, CompletedProcess[str]]


def result_in(folder: Path) -> Result:
    (run,) = find_runs([folder])
    result = run.result()
    assert result is not None
    return result


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint, weights_only=True)["model"]


def test_one_cell_from_nothing_to_a_number(trained: Trained, shapes_root: Path) -> None:
    run, done = trained
    folder = Path(str(run.directory).partition("/outputs/")[0])
    key = run.find_key()
    assert key is not None
    assert (key.name, key.dataset, key.method, key.backbone, key.shot) == ("runs", "shapes5i", "abcb", "tiny", 1)
    assert (key.fold, key.seed) == (0, 0)
    present = {str(p.relative_to(run.directory)) for p in run.directory.rglob("*") if p.is_file()}
    assert {"config.yaml", "identity.json", "status.json", "metrics.csv", "train.log", "result.json",
            "checkpoints/last.pt", "figures/episodes.png", "figures/curves.png",
            "attempts/1.json"} <= present  # fmt: skip
    assert not [p for p in present if p.endswith(".tmp")]

    result = run.result()
    assert result is not None
    assert result.metrics is not None
    assert result.training is not None
    assert (result.schema_version, result.cell) == (3, key)
    assert len(result.metrics.per_seed) == 2
    assert len(result.metrics.miou_per_round) == 3
    assert result.metrics.miou == pytest.approx(sum(s.miou for s in result.metrics.per_seed) / 2)
    assert result.training.steps == 3
    assert run.look().state == State.DONE
    assert max(run.curves()["train/loss"][0]) == 3
    Image.open(run.episodes_figure).verify()
    assert f"done: {run.directory}" in done.stderr

    again = command(folder, shapes_root)()
    assert again.returncode == 0
    assert "already done" in again.stderr
    assert len(list(run.attempts.iterdir())) == 1


@pytest.mark.parametrize("override", ["seed=0", "num_workers=2"])
def test_a_second_run_and_more_workers_give_the_same_numbers_and_weights(
    override: str, train: Command, trained: Trained, tmp_path: Path
) -> None:
    assert train(override).returncode == 0
    (second,) = find_runs([tmp_path / "outputs"])
    first = trained[0].result()
    assert first is not None
    assert result_in(tmp_path / "outputs").metrics == first.metrics
    one, two = weights(trained[0]), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_checkpoint_is_evaluated_under_another_shot_into_a_directory_of_its_own(
    train: Command, trained: Trained, tmp_path: Path
) -> None:
    before = trained[0].result_file.read_bytes()
    line = ("shot=5", "train.enabled=false", f"checkpoint={trained[0].checkpoint}", "protocol.seeds=[7]")
    done = train(*line)
    assert done.returncode == 0, done.stderr
    (other,) = find_runs([tmp_path / "outputs"])
    result = result_in(tmp_path / "outputs")
    assert result.training is None
    assert result.metrics is not None
    assert [s.seed for s in result.metrics.per_seed] == [7]
    assert (result.checkpoint is not None and result.checkpoint.fold, result.cell.shot) == (0, 5)
    assert trained[0].result_file.read_bytes() == before
    assert not other.checkpoint.exists()
    assert other.directory in users(trained[0])  # `fsseg clean` looks there


def test_a_checkpoint_is_not_scored_on_classes_it_was_trained_on(train: Command, trained: Trained) -> None:
    refused = train("fold=2", "train.enabled=false", f"checkpoint={trained[0].checkpoint}")
    assert refused.returncode == 1
    assert "was trained on" in refused.stderr
    assert "fold=0" in refused.stderr.splitlines()[-1]


def test_a_sweep_over_folds_then_the_table(train: Command, tmp_path: Path) -> None:
    done = train("-m", "fold=0,1,3", "variant=small")
    assert done.returncode == 0, done.stderr
    assert "0 of 3 cells done, 3 to run" in done.stderr
    rerun = train("-m", "fold=0,1,2,3", "variant=small")
    assert rerun.returncode == 0, rerun.stderr
    assert "3 of 4 cells done, 1 to run" in rerun.stderr
    folder = tmp_path / "outputs" / "runs"
    found = {run.find_key().fold: run for run in find_runs([folder])}  # type: ignore[union-attr]
    found[1].result_file.unlink()
    table = CliRunner().invoke(app, ["aggregate", str(folder)])
    assert table.exit_code == 0, table.output
    text = table.output
    for fold in (0, 2, 3):
        result = found[fold].result()
        assert result is not None
        assert f"{result.miou:.1f}" in text
    assert "—" in text
    assert (folder / "summary.csv").is_file()
    assert (folder / "summary.md").is_file()


def test_base_learners_of_an_experiment_over_seeds_are_run_with_their_own(train: Command, tmp_path: Path) -> None:
    line = ("-m", "experiment=methods_common", "method=bam", "fold=1", "base_training.max_steps=1", "model.channels=16")
    done = train(*line, "base_training.image_size=25")
    assert done.returncode == 0, done.stderr
    assert "0 of 4 cells done, 4 to run" in done.stderr  # seeds 0, 1 and 2 of the file, and their base learner
    keys = [run.find_key() for run in find_runs([tmp_path / "outputs"])]
    assert sorted(f"{key.method}{key.seed}" for key in keys if key) == ["bam0", "bam1", "bam2", "pspnet0"]


def test_the_sweep_goes_on_past_a_faulty_cell_and_ends_with_a_status(train: Command, tmp_path: Path) -> None:
    done = train("-m", "fold=0,7", "variant=small")
    assert done.returncode == 1
    assert "fold=7 does not exist" in done.stderr
    assert "1 of 2 cells are not done" in done.stderr
    assert "Traceback" not in done.stderr
    assert result_in(tmp_path / "outputs").cell.fold == 0


def test_two_cells_with_one_directory_are_refused_before_anything_starts(train: Command, tmp_path: Path) -> None:
    done = train("-m", "train.lr=0.1,0.2", "variant=same")
    assert done.returncode == 1
    assert "share the directory" in done.stderr
    assert "variant=" in done.stderr
    assert not (tmp_path / "outputs" / "runs").exists() or find_runs([tmp_path / "outputs"]) == []


def test_other_settings_in_the_same_directory_are_refused_and_redo_replaces_them(
    train: Command, trained: Trained, tmp_path: Path
) -> None:
    variant = f"variant={trained[0].directory.parents[1].name}"
    shutil.copytree(Path(str(trained[0].directory).partition("/outputs/")[0]) / "outputs", tmp_path / "outputs")
    before = result_in(tmp_path / "outputs")
    refused = train(variant, "train.lr=0.5")
    assert refused.returncode == 1
    assert "train.lr: 0.02 there, 0.5 now" in refused.stderr
    assert result_in(tmp_path / "outputs") == before
    assert train(variant, "train.lr=0.5", "redo=true").returncode == 0
    assert result_in(tmp_path / "outputs").fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.lrr=1", "train.lrr"),
        ("train.lr=high", "train.lr"),
        ("fold=7", "fold=7"),
        ("backbone=vgg", "backbone=vgg"),
    ],
)
def test_a_bad_override_ends_in_two_lines_and_writes_nothing(
    train: Command, tmp_path: Path, override: str, named: str
) -> None:
    done = train(override)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    what, fix = done.stderr.strip().splitlines()[-2:]
    assert what.startswith("error: ")
    assert named in what
    assert fix.startswith("  -> ")
    assert not list(tmp_path.rglob("*.json"))


def test_missing_data_names_the_folder_and_the_command_for_each_data_set(train: Command, tmp_path: Path) -> None:
    done = train("-m", "dataset=pascal5i,coco20i", "fold=0,1", f"dataset.root={tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for dataset in ("pascal5i", "coco20i"):
        assert done.stderr.count(f"fsseg prepare dataset={dataset}") == 1
    assert str(tmp_path / "nowhere") in done.stderr


def damaged(shapes_root: Path, copy: Path, train: Command) -> Path:
    """A copy of a generated data set, in PASCAL's layout with the classes of PASCAL."""
    if not list(shapes_root.rglob("generator.json")):
        assert train("train.max_steps=1").returncode == 0
    tree = next(shapes_root.rglob("generator.json")).parent
    shutil.copytree(tree, copy)
    shutil.rmtree(copy / ".fsseg", ignore_errors=True)
    return copy


PASCAL = ("dataset=pascal5i", "dataset.train_list=train", "backbone=tiny", "protocol.min_pixels=150",
          *(o for o in SMALL if not o.startswith("dataset.num")))  # fmt: skip


@pytest.mark.parametrize("fault", ["truncated_image", "mask_of_another_size", "empty_folder", "unreadable_mask"])
def test_a_broken_tree_names_the_file_and_leaves_nothing_that_looks_done(
    train: Command, tmp_path: Path, shapes_root: Path, fault: str
) -> None:
    tree = tmp_path / "tree"
    if fault == "empty_folder":
        tree.mkdir()
        named = str(tree)
    else:
        damaged(shapes_root, tree, train)
        names = (tree / "ImageSets/Segmentation/train.txt").read_text().split()
        for name in names:  # whichever image an episode meets first is named
            image, mask = tree / f"JPEGImages/{name}.jpg", tree / f"SegmentationClass/{name}.png"
            if fault == "truncated_image":
                image.write_bytes(image.read_bytes()[:500])
            elif fault == "mask_of_another_size":
                Image.open(mask).resize((31, 17), Image.Resampling.NEAREST).save(mask)
            else:
                mask.write_bytes(b"no picture")
        named = "JPEGImages" if fault == "truncated_image" else "SegmentationClass"
    overrides = [o for o in PASCAL if not (fault == "mask_of_another_size" and "min_pixels" in o)]
    if fault == "mask_of_another_size":
        overrides.append("protocol.min_pixels=1")
    done = train(*overrides, f"dataset.root={tree}", "name=broken")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "\n  -> " in done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert named in error
    broken = tmp_path / "outputs" / "broken"  # beside it lies the run that generated the images
    assert all(run.look().state == State.FAILED for run in (find_runs([broken]) if broken.exists() else []))


@pytest.mark.parametrize("content", ["not json at all", '{"images": 3}', "[]"])
def test_a_json_that_is_not_coco_is_named(train: Command, tmp_path: Path, content: str) -> None:
    root = tmp_path / "coco"
    for folder in ("annotations", "train2017", "val2017"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}2017.json").write_text(content)
        Image.new("RGB", (64, 64)).save(root / f"{split}2017/000000000001.jpg")
    done = train("dataset=coco20i", "dataset.year=2017", "backbone=tiny", "num_workers=0", f"dataset.root={root}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "instances_train2017.json" in done.stderr
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.process
@pytest.mark.shared
def test_smoke_on_real_coco_images(train: Command, tmp_path: Path, shared_dir: Path) -> None:
    done = train(
        "dataset=coco20i", f"dataset.root={shared_dir / 'data/coco_tiny'}", "dataset.year=2017", "experiment=smoke",
        "backbone=resnet50", "backbone.pretrained=false", "num_workers=0", f"dataset.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = result_in(tmp_path / "outputs")
    assert result.partial
    assert result.training is not None
    assert result.metrics is not None
    assert result.training.steps == 4
    assert {s.num_episodes for s in result.metrics.per_seed} == {8}
