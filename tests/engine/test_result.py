"""What result.json says of the rules that a run went by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fsseg.cell.key import identity
from fsseg.config.compose import compose
from fsseg.engine.result import rules_followed


@pytest.mark.parametrize(
    ("line", "pool", "size"),
    [
        (["protocol=pfenet"], "merged_5953", None),
        (["protocol=pfenet", "dataset.train_list=mine"], "mine", None),
        (["protocol=standard"], "train_aug_10582", None),
        (["protocol=hsnet"], "train_aug_10582", 400),
        (["protocol=hsnet", "dataset.image_size=201", "dataset.train_list=mine"], "mine", 201),
    ],
)
def test_the_recorded_protocol_has_the_pool_and_the_size_that_the_run_had(
    line: list[str], pool: str, size: int | None
) -> None:
    composed = compose(["dataset=pascal5i", "backbone.pretrained=false", *line])
    run: Any = SimpleNamespace(
        cfg=composed.cfg, cell=SimpleNamespace(identity=identity(composed.resolved), overrides=line)
    )
    rules = rules_followed(run)
    assert (rules["train_pool"], rules["image_size"]) == (pool, size)
    changed = [words for words in rules["unlike"] if "changed by the line" in words]
    assert changed == [f"changed by the line: {o}" for o in line if not o.startswith("protocol=")]


def test_what_a_preset_is_not_is_said_of_the_data_and_the_backbone_in_use() -> None:
    def unlike(*line: str) -> str:
        composed = compose(["backbone.pretrained=false", *line])
        run: Any = SimpleNamespace(cfg=composed.cfg, cell=SimpleNamespace(identity={}, overrides=list(line)))
        return "; ".join(rules_followed(run)["unlike"])

    for name in ("hsnet", "pfenet", "bam", "hdmnet"):
        assert "backbone" not in unlike(f"protocol={name}")  # tiny: nobody's
        assert "backbone" in unlike(f"protocol={name}", "dataset=pascal5i")
    for name in ("bam", "hdmnet"):
        line = (f"protocol={name}", "dataset=pascal5i")
        assert "trained on the base classes" in unlike(*line)
        assert "a base learner has" in unlike(*line)
        assert "trained on the base classes" not in unlike(*line, "backbone.base_training=true")
        assert "a base learner has" in unlike(*line, "backbone.base_training=true")
        assert "base" not in unlike(*line, "method=bam")
    for name in ("pfenet", "bam"):
        line = (f"experiment={name}_paper", "fold=0", "shot=1", "dataset=pascal5i", f"protocol={name}")
        assert "the recipe" not in unlike(*line)
        assert "the recipe" in unlike(*line, "train.batch_size=3")
        assert "the recipe" in unlike(*line[1:])
    assert "the lists differ" in unlike("protocol=hsnet", "dataset=pascal5i")
    assert "the lists differ" not in unlike("protocol=hsnet", "dataset=coco20i")
    assert unlike("protocol=standard", "protocol.min_pixels=9") == ""
