"""`backbone=timm`: the maps of timm's own network, at the right places, with the right weights, or two lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import composed, done
from safetensors.torch import save_file

from fsseg.config.checks import faults
from fsseg.config.compose import compose
from fsseg.config.schema import TimmConfig
from fsseg.data.pixels import MEAN, STD
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.backbones import Backbone, build_backbone, timm_models

timm = pytest.importorskip("timm")  # a part of the test extra
VIT, CONV, PATCHED = "vit_tiny_patch16_224", "mobilenetv1_100", "convnext_atto"
SMALL = "mobilenetv3_small_050"


def config(model: str, **more: Any) -> TimmConfig:
    return TimmConfig("timm", **{"model": model, "pretrained": False, **more})


def built(model: str, **more: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(config(model, **more))


def pixels(side: int, count: int = 1) -> torch.Tensor:
    """Images as the data give them."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "side", "cells", "patches", "channels"),
    [
        (CONV, 65, 9, False, (256, 512, 1024)),
        (CONV, 72, 9, False, (256, 512, 1024)),
        (PATCHED, 64, 8, True, (80, 160, 320)),
        (VIT, 48, 3, True, (192, 192, 192)),
        (VIT, 224, 14, True, (192, 192, 192)),
    ],
)
def test_three_maps_of_one_size(model: str, side: int, cells: int, patches: bool, channels: tuple[int, ...]) -> None:
    backbone = built(model)
    maps = backbone(pixels(side, 2))
    assert list(maps) == ["layer2", "layer3", "layer4"]
    assert [tuple(x.shape) for x in maps.values()] == [(2, width, cells, cells) for width in channels]
    assert tuple(backbone.channels.values()) == channels
    assert backbone.patches is patches


@pytest.mark.parametrize(("model", "side"), [(CONV, 33), (PATCHED, 32), (SMALL, 33), ("resnet10t", 33)])
def test_the_last_stage_runs_by_itself(model: str, side: int) -> None:
    backbone = built(model)
    maps = backbone(pixels(side, 2))
    assert torch.equal(backbone.layer4(maps["layer3"]), maps["layer4"])
    halved = backbone.layer4(maps["layer3"] * 0.5)
    assert halved.shape == maps["layer4"].shape
    assert not torch.allclose(halved, maps["layer4"])


@pytest.mark.parametrize("model", [VIT, PATCHED])
def test_methods_that_need_stages_refuse_cells_that_are_patches(model: str) -> None:
    line = ["method=pfenet", "backbone=timm", "dataset.image_size=80"]
    assert not faults(compose([*line, f"backbone.model={CONV}"]).cfg)
    (fault,) = faults(compose([*line, f"backbone.model={model}"]).cfg)
    assert fault.what == "method=pfenet needs stages of its backbone, which timm does not provide"
    listed = fault.fix.rpartition(": ")[2].split(", ")
    assert {"tiny", "resnet50", "mobilenet"} <= set(listed)
    assert not [name for name in listed if name.startswith(("dino", "convnext"))]


def test_a_transformers_last_map_is_what_timm_computes() -> None:
    backbone = built(VIT)
    images = pixels(48)
    network = backbone.network
    with torch.no_grad():
        raw = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        tokens = network.forward_features((raw - 0.5) / 0.5)[
            :, 1:
        ]  # timm's configuration of this model; no class token
    expected = tokens.transpose(1, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(backbone(images)["layer4"], expected, rtol=1e-4, atol=1e-4)


def test_the_depths_of_a_transformer_are_numbers_of_blocks() -> None:
    images = pixels(48)
    half, most, whole = built(VIT)(images).values()  # of 12 blocks: 6, 9, 12
    again = built(VIT, depths=[9, 9, 12])(images)
    assert torch.equal(again["layer2"], most)
    assert torch.equal(again["layer3"], most)
    assert torch.equal(again["layer4"], whole)
    assert not torch.equal(half, most)
    with pytest.raises(UserError, match=r"depths=\[6, 9, 13\]: vit_tiny_patch16_224 has 12 blocks"):
        built(VIT, depths=[6, 9, 13])


def test_images_can_stay_normalised_as_imagenet() -> None:
    images = pixels(65)
    backbone = built(CONV, normalisation="imagenet")
    with torch.no_grad():
        expected = backbone.network(images)[-1]
    assert torch.equal(backbone(images)["layer4"], expected)
    assert not torch.allclose(built(CONV)(images)["layer4"], expected)  # timm's configuration has mean 0.5


@pytest.mark.parametrize("model", [CONV, VIT])
def test_a_frozen_model_builds_no_graph_and_the_other_trains(model: str) -> None:
    images = pixels(64)
    frozen, trained = built(model).train(), built(model, trainable_layers=5).train()
    assert not frozen(images)["layer4"].requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(m.training for m in frozen.network.modules())
    trained(images)["layer2"].sum().backward()
    assert any(p.grad is not None for p in trained.parameters())
    norms = [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(m.training for m in norms)


@pytest.mark.parametrize("model", [PATCHED, VIT])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_whole_model_load_from_a_file(model: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    whole, file = timm.create_model(model), tmp_path / f"weights{suffix}"
    save_file(whole.state_dict(), file) if suffix == ".safetensors" else torch.save(whole.state_dict(), file)
    backbone = built(model, pretrained=True, weights=str(file), normalisation="imagenet")
    images = pixels(224)
    with torch.no_grad():
        expected = whole.eval().forward_intermediates(images, norm=model == VIT, intermediates_only=True)
    if model == VIT:  # ConvNeXt keeps its strides there
        torch.testing.assert_close(backbone(images)["layer4"], expected[-1], rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(backbone(images)["layer2"], expected[1], rtol=1e-4, atol=1e-4)


def two_lines(error: pytest.ExceptionInfo[UserError]) -> str:
    text = f"{error.value.what}\n{error.value.fix}"
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "vit_tiny_patch16_225"}, "is no model of timm"),
        ({"model": f"{VIT}.none"}, "knows no weights none"),
        ({"model": "swin_tiny_patch4_window7_224"}, "backbone.model=swin_tiny"),
        ({"model": "vgg11"}, "backbone.model=vgg11"),
    ],
)
def test_a_model_that_does_not_serve_is_refused(change: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        built(**change)
    assert words in two_lines(error)


def test_a_similar_name_is_proposed() -> None:
    with pytest.raises(UserError, match="is no model") as error:
        built("vit_tiny_patch16_225")
    assert VIT in error.value.fix


def test_faulty_files_are_told_in_two_lines(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"

    def told() -> str:
        with pytest.raises(UserError) as error:
            built(CONV, pretrained=True, weights=str(file))
        return two_lines(error)

    assert "weights.pth is not a file" in told()
    file.write_bytes(b"no weights")
    assert "cannot be read as weights" in told()
    torch.save([1, 2], file)
    assert "holds no state dict" in told()
    state = timm.create_model(VIT).state_dict()
    torch.save(state, file)
    assert f"is not a {CONV}: it lacks " in told()
    state = built(CONV).network.state_dict()
    first = next(iter(state))
    torch.save({**state, first: torch.zeros(1)}, file)
    assert f"it has another shape for {first}" in told()
    torch.save({**state, first: torch.full_like(state[first], float("nan"))}, file)
    assert f"the weights {first} are no finite numbers" in told()


@pytest.mark.parametrize("model", ["resnet18", PATCHED, SMALL])
def test_a_file_of_a_deeper_model_is_refused_and_a_head_is_not(model: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    whole = timm.create_model(model).state_dict()
    torch.save(whole, file)
    built(model, pretrained=True, weights=str(file))
    last, key = {
        "resnet18": ("layer3.1.", "layer3.2."), PATCHED: ("stages.2.blocks.5.", "stages.2.blocks.6."),
        SMALL: ("blocks.3.1.", "blocks.3.2."),
    }[model]  # fmt: skip
    deeper = {key + name.removeprefix(last): value for name, value in whole.items() if name.startswith(last)}
    assert deeper
    torch.save(whole | deeper, file)
    with pytest.raises(UserError) as error:
        built(model, pretrained=True, weights=str(file))
    assert f"is not a {model}: it has the foreign {key.replace('stages.2', 'stages_2')}" in two_lines(error)


@pytest.mark.parametrize("method", ["pfenet", "bam"])
def test_a_model_without_a_last_stage_is_refused_when_the_method_is_built(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_models, "_last_stage", lambda _: ())
    line = ["backbone=timm", f"backbone.model={SMALL}", "backbone.pretrained=false"]
    with pytest.raises(UserError, match="timm keeps no layers between the last two maps") as error:
        build_model(compose([f"method={method}", *line]).cfg)
    assert error.value.fix == "choose another backbone or method"
    build_model(compose(["method=abcb", *line]).cfg)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="the package timm, which cannot be imported") as error:
        built(CONV)
    assert "pip install 'fsseg[timm]'" in error.value.fix
    from fsseg.config import checks

    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    found = faults(compose(["backbone=mobilenet"]).cfg)
    assert [fault.what for fault in found] == [
        "backbone=mobilenet is a model of the package timm, which is not installed"
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("backbone=dinov2_s dataset=pascal5i", "must be a multiple of 14"),
        ("backbone=dinov3_b dataset=pascal5i", "must be a multiple of 16"),
        ("backbone=convnext_tiny dataset=pascal5i", "must be a multiple of 8"),
        ("backbone=mobilenet dataset=pascal5i protocol.image_size=475", "must be a multiple of 8, or one more"),
        ("backbone=mobilenet backbone.trainable_layers=3", "is frozen or trains as a whole"),
        ("backbone=dinov2_s protocol.image_size=84 backbone.depths=[3,2,1]", "is not three numbers of blocks"),
        ("backbone=mobilenet method=hsnet", "needs blocks of its backbone"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(line: str, what: str) -> None:
    if "hsnet" in line:
        pytest.importorskip("fsseg.model.hsnet")
    found = [fault for fault in faults(compose(line.split()).cfg) if "dataset.root" not in fault.what]
    assert len(found) == 1
    assert what in found[0].what


@pytest.mark.parametrize(
    "line",
    [
        "backbone=mobilenet protocol.image_size=472",
        "backbone=mobilenet",
        "backbone=dinov2_b protocol.image_size=476",
        "backbone=dinov3_b protocol.image_size=480",
        "backbone=convnext_tiny protocol.image_size=472",
    ],
)
def test_sizes_that_fit(line: str) -> None:
    found = [fault for fault in faults(compose([*line.split(), "dataset=pascal5i"]).cfg) if "root" not in fault.what]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        ("method=abcb", f"backbone.model={VIT}", "dataset.image_size=48"),
        ("method=abcb", f"backbone.model={PATCHED}", "dataset.image_size=32"),
        ("method=prototype", f"backbone.model={VIT}", "dataset.image_size=64"),
        ("method=baseline", f"backbone.model={SMALL}", "dataset.image_size=33", "backbone.trainable_layers=5"),
    ],
)
def test_methods_train_and_score(line: tuple[str, ...], tmp_path: Path) -> None:
    common = ("backbone=timm", "backbone.pretrained=false", "train.max_steps=2", "eval.diagnostics=true")
    result = done(composed(tmp_path / "data", tmp_path / "out", *common, *line))
    assert result.metrics is not None
    assert 0 <= result.metrics.miou <= 100


@pytest.mark.shared
def test_real_weights_load_and_tell_objects_from_background(shared_dir: Path) -> None:
    file = shared_dir / "weights" / "mobilenetv1_100_cut12.pth"
    backbone = built(CONV, pretrained=True, weights=str(file), normalisation="imagenet")
    state = torch.load(file, weights_only=True)
    own = backbone.network.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())
