"""The base learner of a cell, as a configuration and an identity of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsseg.cell.key import BASE_CELL, fingerprint, identity
from fsseg.cell.record import Cell, open_cell
from fsseg.config.base_training import base_config, base_overrides, base_settings, starts_from_a_base_learner
from fsseg.config.checks import faults
from fsseg.config.compose import Composed, compose, composer
from fsseg.config.entry import resolved, typed
from fsseg.config.schema import MethodConfig, PspnetConfig, family
from fsseg.config.tasks import BASE_LEARNERS

BASE = "backbone.base_training=true"


def opened(c: Composed) -> Cell:
    return open_cell(c.cfg, c.resolved, c.task_overrides)


def base_of(*line: str) -> Cell:
    """Of the cell of a line, the base learner that it starts from."""
    c = compose([*line, BASE])
    config = base_config(c.resolved)
    return open_cell(typed(config), resolved(config), base_overrides(c.task_overrides))


def test_the_methods_that_train_base_classes_are_those_of_the_schema() -> None:
    assert set(BASE_LEARNERS) == set(PspnetConfig.NAMES) <= set(MethodConfig.choices())
    assert len(list(family(PspnetConfig))) == 1


@pytest.mark.parametrize(
    "line",
    [
        ["dataset=shapes5i"],
        ["dataset=pascal5i", "fold=2", "protocol=bam"],
        ["dataset=coco20i", "backbone=resnet101", "base_training.lr=1e-3", "base_training.seed=4"],
        ["dataset=pascal5i", "protocol.novel_in_training=ignore", "dataset.flip_probability=0"],
    ],
)
def test_the_line_of_the_method_leads_to_the_very_cell_that_others_start_from(line: list[str]) -> None:
    own, found = opened(compose([*line, "method=pspnet"])), base_of(*line)
    assert own.identity == found.identity
    assert (own.directory, own.fingerprint) == (found.directory, found.fingerprint)
    assert str(own.key).startswith("base_training/")
    assert opened(compose(list(base_overrides([*line, "shot=5", BASE, "train.lr=3"])))).directory == own.directory


def test_a_base_learner_is_one_for_all_shots_seeds_methods_and_recipes_of_the_cells() -> None:
    plain = base_of("dataset=pascal5i")
    for line in (
        ["shot=5"], ["seed=3"], ["method=baseline"], ["train.lr=0.1", "train.epochs=3"], ["name=other"], ["variant=x"],
        ["method=bam"],
        ["model.iterations=2"], ["protocol.num_episodes=7", "protocol.seeds=[1]"], ["dataset.image_size=401"],
        ["eval.enabled=false"], ["dataset.scale_range=[0.7,1.3]"], ["backbone.trainable_layers=2"], ["report=null"],
        ["num_workers=3", "device=cpu", "log_level=debug"],
    ):  # fmt: skip
        assert base_of("dataset=pascal5i", *line).directory == plain.directory, line
    others = [
        base_of("dataset=pascal5i", *line).directory
        for line in (["fold=1"], ["base_training.seed=1"], ["base_training.epochs=3"], ["backbone=resnet101"],
                     ["protocol.train_pool=merged_5953"], ["protocol.novel_in_training=background"],
                     ["backbone.pretrained=false"], ["output_dir=elsewhere"])
    ]  # fmt: skip
    assert len({plain.directory, *others}) == 1 + len(others)


def test_folds_and_seeds_of_one_recipe_lie_side_by_side() -> None:
    found = {base_of("dataset=pascal5i", f"fold={fold}", f"base_training.seed={seed}").key.variant
             for fold in (0, 1) for seed in (0, 1)}  # fmt: skip
    assert len(found) == 1


def test_the_base_learner_is_part_of_the_identity_and_its_recipe_alone_is_not() -> None:
    def own(*line: str) -> dict[str, object]:
        return opened(compose(list(line))).identity

    without = own("dataset=pascal5i")
    assert BASE_CELL not in without
    assert "backbone.base_training" not in without  # as of every cell of an earlier version
    assert own("dataset=pascal5i", "base_training.epochs=7") == without
    started, other = own(BASE, "dataset=pascal5i"), own(BASE, "dataset=pascal5i", "base_training.epochs=7")
    assert started[BASE_CELL] == fingerprint(identity(base_settings(compose([BASE, "dataset=pascal5i"]).resolved)))
    assert {key for key in started if started[key] != other[key]} == {BASE_CELL}
    assert own(BASE, "dataset=pascal5i", "output_dir=elsewhere") == started  # not its place


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ([BASE, "method=pspnet"], "method=pspnet is the base learner itself"),
        (["method=pspnet", "shot=5"], "shot=5"),
        (["method=pspnet", "eval.every_epochs=2"], "eval.every_epochs=2"),
        (["method=pspnet", "train.accumulate=2"], "train.accumulate=2"),
        (["method=pspnet", "train.batch_size=1"], "train.batch_size=1"),
        ([BASE, "base_training.image_size=83"], "base_training.image_size=83 does not fit backbone tiny"),
        (["base_training.batch_size=1"], "base_training.batch_size=1"),
        (["method=bam", "backbone.base_training=false"], "method=bam needs a base learner"),
        (["method=bam", "backbone.trainable_layers=2"], "backbone.trainable_layers=2: method=bam keeps the backbone"),
        (["method=bam", "base_training.image_size=83"], "base_training.image_size=83"),
        (["method=pspnet", "backbone=resnet50", "base_training.image_size=83"], "dataset.image_size=83"),
    ],
)
def test_what_cannot_be_is_one_fault_in_two_lines(line: list[str], named: str) -> None:
    (fault,) = faults(compose(line).cfg)
    assert named in fault.what
    assert fault.fix


def test_bam_starts_from_a_base_learner_without_a_word_of_the_line(tmp_path: Path) -> None:
    for dataset in ("shapes5i", "pascal5i"):
        c = compose([f"dataset={dataset}", "method=bam"])
        assert starts_from_a_base_learner(c.cfg)
        assert c.cfg.backbone.trainable_layers == 0
        assert faults(c.cfg) == []
        assert opened(c).key.variant == "default"
    assert opened(compose(["dataset=pascal5i", "method=bam", BASE])).fingerprint == opened(c).fingerprint
    (tmp_path / "last.pt").touch()
    held = compose(["method=bam", f"checkpoint={tmp_path}/last.pt", "backbone.base_training=false"])
    assert faults(held.cfg) == []
    assert not starts_from_a_base_learner(held.cfg)


def test_the_published_recipe_of_bam() -> None:
    with composer() as c:
        made = [one for _, one in c.grid(["experiment=bam_paper"])]
    for one in made:
        assert isinstance(one, Composed)
        train, base = one.cfg.train, one.cfg.base_training
        assert (train.optimizer, train.lr * train.lr_scale, train.momentum, train.weight_decay) == (
            "sgd", pytest.approx(0.05), 0.9, 1e-4
        )  # fmt: skip
        assert (train.batch_size, train.poly_power, base.image_size, base.batch_size, base.lr) == (
            8, 0.9, 417, 12, 2.5e-4
        )  # fmt: skip
        assert (train.epochs, base.epochs) == ((200, 100) if one.cfg.dataset.name == "pascal5i" else (50, 20))


def test_without_base_training_its_size_matters_to_nobody() -> None:
    assert faults(compose(["base_training.image_size=83"]).cfg) == []


def test_the_published_recipe_of_both_data_sets() -> None:
    with composer() as c:
        made = [one for _, one in c.grid(["experiment=base_training"])]
    assert len(made) == 8
    for one in made:
        assert isinstance(one, Composed)
        cfg = one.cfg
        assert (cfg.model.name, cfg.protocol.name, cfg.backbone.trainable_layers) == ("pspnet", "bam", 5)
        assert (cfg.dataset.image_size, list(cfg.dataset.scale_range), cfg.train.batch_size) == (417, [0.5, 2.0], 12)
        assert (cfg.train.lr, dict(cfg.train.lr_factors)) == (2.5e-4, {"head": 10.0})
        assert cfg.train.epochs == (100 if cfg.dataset.name == "pascal5i" else 20)
        assert faults(cfg) == []
