"""docs/add-a-backbone.md, done as it says: a network under the methods, with its weights and its stride."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SMALL
from torchvision.models.vgg import cfgs, make_layers

from fsseg.errors import UserError
from fsseg.model.backbones import build_backbone


@pytest.fixture
def vgg(page: Any) -> Any:
    page.read("add-a-backbone.md")
    network, settings = page.python
    page.module(page.file_of(1), network)
    page.settings(settings)
    page.choice(page.file_of(3), page.yaml[0])
    return page


@pytest.mark.filterwarnings("ignore")
def test_the_backbone_of_the_page_is_trained_on_and_scored(vgg: Any, tmp_path: Path) -> None:
    result = vgg.run(
        "backbone=vgg16", "backbone.pretrained=false", f"dataset.root={tmp_path}/shapes",
        f"output_dir={tmp_path}/outputs", "train.max_steps=2",
        *(o for o in SMALL if not o.startswith("train.max_steps")),
    )  # fmt: skip
    assert result["cell"]["backbone"] == "vgg16"
    assert result["training"]["steps"] == 2
    assert 0 <= result["metrics"]["miou"] <= 100


def test_its_maps_have_one_size_and_the_channels_it_names(vgg: Any) -> None:
    backbone = build_backbone(vgg.compose("backbone=vgg16", "backbone.pretrained=false").cfg.backbone)
    features = backbone(torch.zeros(2, 3, 41, 41))
    shapes = {name: tuple(maps.shape) for name, maps in features.items()}
    assert shapes == {"layer2": (2, 256, 6, 6), "layer3": (2, 512, 6, 6), "layer4": (2, 512, 6, 6)}  # 40 / 8 + 1
    assert not any(p.requires_grad for p in backbone.parameters())


def test_it_reads_torchvisions_weights(vgg: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = make_layers(cfgs["D"])
    state = {f"features.{k}": v for k, v in original.state_dict().items()} | {"classifier.0.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "vgg16.pth")
    made = vgg.compose("backbone=vgg16", f"backbone.weights={tmp_path}/vgg16.pth", "dataset.image_size=65")
    backbone = build_backbone(made.cfg.backbone)
    images = torch.rand(1, 3, 64, 64)
    # up to the first pooling that differs, torchvision's network and ours are the same
    torch.testing.assert_close(backbone(images)["layer2"], original[:17](images))
    torch.testing.assert_close(backbone(images)["layer3"], original[:23](images))


def test_a_size_that_does_not_fit_its_stride_is_refused(vgg: Any) -> None:
    with pytest.raises(UserError, match=r"dataset\.image_size=83 does not fit backbone vgg16"):
        vgg.run("backbone=vgg16", "backbone.pretrained=false", "dataset.image_size=83")
