"""Cells that are made from one another are those that Hydra composes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsseg.config import compose as module
from fsseg.config.checks import faults
from fsseg.config.compose import Composed, Composer, composer, config_folder
from fsseg.config.entry import resolved, typed
from fsseg.config.schema import Config
from fsseg.errors import UserError

LINES = [
    "dataset=pascal5i,coco20i,shapes5i backbone=resnet50,tiny shot=1,5 fold=0,1,4",
    "method=abcb,baseline,prototype dataset=shapes5i,coco20i seed=0,1",
    "train.lr=0.1,1e-5,-1 train.max_steps=null,5 train.clip_grad_norm=null,1",
    "model.iterations=1,3,0 model.modulation=true,false model.cleansing=true,false dataset=shapes5i",
    "protocol=standard,pfenet,hsnet dataset=shapes5i,coco20i protocol.seeds=[0],[3,4],[]",
    "dataset.scale_range=[0.9,1.1],[1.2,1.0] eval.background_shifts=[],[0.5] fold=0,1",
    "experiment=table3_components ablation=baseline,sm,full fold=0,1",
    "fold=0,1 fold=2,3",
    "train.epochs='${train.batch_size}',3 fold=0,1",
    "+extra=1,2 fold=0,1",
    "++train.lr=0.1,0.2",
    "train={lr:0.5},{epochs:2} fold=0,1",
    "variant=a,null fold=0 name=1.10,x dataset.cache=null,/tmp/x",
]


@pytest.mark.parametrize("line", LINES)
def test_every_cell_of_a_grid_is_what_hydra_composes_alone(line: str) -> None:
    with initialize_config_dir(str(config_folder()), job_name="train", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", line.split(), run_mode=RunMode.MULTIRUN)
        cells = Composer(loader, master).grid_of_master()
        assert len(cells) > 1
        for job, mine in cells:
            assert isinstance(mine, Composed)
            theirs = loader.load_sweep_config(master, list(job))
            with open_dict(theirs):
                del theirs["hydra"]
            # The texts compare the order of keys too, and 1 with 1.0.
            assert json.dumps(mine.resolved) == json.dumps(resolved(theirs))
            assert [str(f) for f in faults(mine.cfg)] == [str(f) for f in faults(typed(theirs))]
            assert OmegaConf.get_type(mine.cfg.model) is OmegaConf.get_type(theirs.model)
            assert OmegaConf.to_yaml(mine.config, resolve=True) == OmegaConf.to_yaml(theirs, resolve=True)


def each(*jobs: Sequence[str]) -> list[Composed | UserError]:
    with composer() as c:
        return [made for _, made in c.each(jobs)]


def test_a_refused_value_leaves_nothing_behind() -> None:
    good, bad, after = each(
        *(["fold=0", f"train.lr={rate}", f"seed={n}"] for n, rate in enumerate(("0.1", "x", "0.2")))
    )
    assert isinstance(bad, UserError)
    assert "train.lr" in bad.what
    assert isinstance(good, Composed)
    assert isinstance(after, Composed)
    assert (good.cfg.train.lr, good.cfg.seed) == (0.1, 0)
    assert (after.cfg.train.lr, after.cfg.seed) == (0.2, 2)


def test_a_value_that_is_missing_is_told_by_the_cell_that_misses_it() -> None:
    first, missing, last = each(["fold=1"], ["fold=???"], ["fold=2"])
    assert isinstance(missing, Composed)
    with pytest.raises(OmegaConfBaseException):
        str(missing.cfg.fold)
    assert [f.what for f in faults(missing.cfg)] == ["fold has no value"]
    assert isinstance(first, Composed)
    assert isinstance(last, Composed)
    assert (first.cfg.fold, last.cfg.fold) == (1, 2)


def test_hydra_composes_once_for_each_choice_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[Sequence[str]] = []
    slowly = Composer._slowly
    monkeypatch.setattr(module.Composer, "_slowly", lambda self, job: composed.append(job) or slowly(self, job))
    with composer() as c:
        cells = c.grid(["dataset=pascal5i,coco20i", "fold=0,1,2,3", "seed=range(0,10)", "train.lr=0.1,0.2"])
    assert len(cells) == 160
    assert all(isinstance(made, Composed) and isinstance(made.cfg, Config) for _, made in cells)
    assert composed == [("dataset=pascal5i",), ("dataset=coco20i",)]
