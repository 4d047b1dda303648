"""The side lengths that published codes use: which backbones take them, and that every method does with a ResNet."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fsseg.config.checks import faults
from fsseg.config.compose import composer
from fsseg.config.schema import MethodConfig
from fsseg.model.cost import cost

SIDES = (400, 417, 473, 633, 641)
TAKEN = {
    "tiny": SIDES, "resnet18": SIDES, "resnet50": SIDES, "resnet101": SIDES,  # 4m, 4m + 1; 8m, 8m + 1
    "mobilenet": SIDES,  # 8m, 8m + 1
    "convnext_tiny": (400,),  # 8m
    "dinov2_s": (), "dinov2_b": (),  # 14m: 28 * 14 = 392, 34 * 14 = 476
    "dinov3_b": (400,),  # 16m: 25 * 16
}  # fmt: skip


@pytest.mark.parametrize("backbone", TAKEN)
def test_a_backbone_takes_the_sides_that_fit_its_stride_and_names_others(backbone: str) -> None:
    with composer() as c:
        for side in SIDES:
            found = faults(c.one(["dataset=pascal5i", f"backbone={backbone}", f"dataset.image_size={side}"]).cfg)
            assert [fault.what.partition(" ")[0] for fault in found] == (
                [] if side in TAKEN[backbone] else [f"dataset.image_size={side}"]
            )
            if found:
                low, high = (int(word) for word in found[0].fix.rpartition(" to ")[2].split(" or "))
                assert low < side < high
                again = c.one(["dataset=pascal5i", f"backbone={backbone}", f"dataset.image_size={high}"]).cfg
                assert faults(again) == []


@pytest.mark.parametrize("method", sorted(MethodConfig.choices()))
def test_every_method_runs_at_them(method: str) -> None:
    """On shapes alone: the multiply-adds grow with the side."""
    with composer() as c:
        cells = [
            c.one([f"method={method}", "dataset=pascal5i", "backbone=resnet18", f"dataset.image_size={side}"]).cfg
            for side in SIDES
        ]
    assert [fault for cfg in cells for fault in faults(cfg)] == []
    macs = [cost(cfg)[-1].macs for cfg in cells]
    assert all(small < large for small, large in pairwise(macs))
