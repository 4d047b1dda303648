"""Backbones: the right spacing, frozen where they should be, and weights that load or say why not."""

from __future__ import annotations

import hashlib
import os
import pickle
from functools import cache
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from fsseg.cell.weights import cached
from fsseg.cli.data import prepare
from fsseg.config.schema import BackboneConfig, ResNetConfig, TinyConfig
from fsseg.errors import UserError
from fsseg.model.backbones import ResNetBackbone, TinyBackbone, build_backbone, load_weights
from fsseg.model.backbones import torchvision as resnets


def randomise(network: nn.Module) -> None:
    """Other statistics than 0 and 1, so that a BatchNorm in the wrong mode shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(1, 2)


@cache
def resnet(name: str) -> dict[str, torch.Tensor]:
    """The state dict of one of torchvision's networks, random."""
    torch.manual_seed(3)
    network = getattr(torchvision.models, name)()
    randomise(network)
    return network.state_dict()


def save_resnet(path: Path, name: str = "resnet18", change=lambda state: state) -> dict[str, torch.Tensor]:
    torch.save(change(resnet(name)), path)
    return resnet(name)


def save_zeros(path: Path, name: str = "resnet18", change=lambda state: state) -> None:
    """Names and shapes of a network's state dict alone; one number a tensor is stored."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    torch.save(change({key: torch.zeros(()).expand(x.shape) for key, x in state.items()}), path)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_maps_agree_with_the_strided_network_where_it_has_positions(name: str, tmp_path: Path) -> None:
    """The independent implementation is torchvision's own network at stride 32 with the same weights."""
    state = save_resnet(tmp_path / "weights.pth", name)
    backbone = build_backbone(BackboneConfig(name, weights=str(tmp_path / "weights.pth")))
    with torch.device("meta"):
        original = getattr(torchvision.models, name)().eval()
    original.load_state_dict(state, assign=True)
    images = torch.randn(1, 3, 65, 65)
    ours = backbone(images)
    with torch.no_grad():
        x = original.layer1(original.maxpool(original.relu(original.bn1(original.conv1(images)))))
        for stage, every in (("layer2", 1), ("layer3", 2), ("layer4", 4)):
            x = getattr(original, stage)(x)
            assert ours[stage].shape == (1, backbone.channels[stage], 9, 9)
            torch.testing.assert_close(ours[stage][..., ::every, ::every], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*TinyConfig.NAMES, *ResNetConfig.NAMES])  # test_timm.py has the others
def test_sides_shrink_by_the_declared_stride(name: str) -> None:
    side = 3 * BackboneConfig.named(name).STRIDE + 1
    with torch.device("meta"):  # shapes alone
        backbone = build_backbone(BackboneConfig(name, pretrained=False))
        features = backbone(torch.empty(1, 3, side, side))
    assert {k: tuple(v.shape) for k, v in features.items()} == {k: (1, c, 4, 4) for k, c in backbone.channels.items()}
    assert list(features) == ["layer2", "layer3", "layer4"]


def test_a_frozen_backbone_builds_no_graph_and_keeps_its_statistics() -> None:
    backbone = build_backbone(BackboneConfig("resnet18", pretrained=False))
    assert backbone.num_frozen == 5
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    nn.Sequential(backbone).train()
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    features = backbone(torch.randn(2, 3, 33, 33))
    assert not any(x.requires_grad for x in features.values())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(("layers", "trained"), [(1, {"layer4"}), (2, {"layer3", "layer4"}), (5, None)])
def test_trainable_layers_are_the_last_ones_and_batchnorm_still_keeps_its_statistics(
    layers: int, trained: set | None
) -> None:
    backbone = build_backbone(BackboneConfig("resnet18", pretrained=False, trainable_layers=layers))
    assert backbone.num_frozen == 5 - layers
    backbone.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    sum(x.sum() for x in backbone(torch.randn(1, 3, 33, 33)).values()).backward()
    with_gradient = {name.split(".")[0] for name, p in backbone.named_parameters() if p.grad is not None}
    assert with_gradient == (trained or {"stem", "layer1", "layer2", "layer3", "layer4"})
    assert all(torch.equal(backbone.state_dict()[k], v) for k, v in before.items())


def test_frozen_features_do_not_depend_on_the_mode_or_the_neighbours() -> None:
    backbone = build_backbone(BackboneConfig("resnet18", pretrained=False))
    randomise(backbone)
    images = torch.randn(3, 3, 33, 33)
    whole = backbone.train()(images)["layer4"]
    torch.testing.assert_close(backbone.eval()(images[1:2])["layer4"], whole[1:2], rtol=1e-4, atol=1e-5)


def test_tiny_trains_and_an_image_does_not_see_its_neighbours() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("tiny", trainable_layers=5))  # pretrained says nothing to it
    assert isinstance(backbone, TinyBackbone)
    assert backbone.num_frozen == 0
    images = torch.randn(3, 3, 33, 33)
    whole = backbone.train()(images)
    for stage, x in backbone.eval()(images[1:2]).items():
        torch.testing.assert_close(x, whole[stage][1:2], rtol=1e-4, atol=1e-5)
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1)
    for _ in range(3):  # a layer behind one that starts at zero feels nothing in the first step
        optimiser.zero_grad()
        backbone(images)["layer4"].square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


@pytest.mark.parametrize(("layers", "trained"), [(0, set()), (1, {"layer4"}), (3, {"layer2", "layer3", "layer4"})])
def test_tiny_keeps_the_first_stages_as_they_are(layers: int, trained: set[str]) -> None:
    backbone = build_backbone(BackboneConfig("tiny", trainable_layers=layers)).train()
    assert backbone.num_frozen == 5 - layers
    features = backbone(torch.randn(1, 3, 33, 33))
    assert {stage for stage, x in features.items() if x.requires_grad} == trained
    if trained:
        sum(x.sum() for x in features.values()).backward()
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if p.grad is not None} == trained


def test_tiny_starts_from_the_callers_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build_backbone(BackboneConfig("tiny")).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k},
    ],
)
def test_weights_come_from_the_given_file_in_its_common_forms(tmp_path: Path, change) -> None:
    state = save_resnet(tmp_path / "w.pth", change=change)
    backbone = build_backbone(BackboneConfig("resnet18", weights=str(tmp_path / "w.pth")))
    own = backbone.state_dict()
    assert torch.equal(own["stem.0.weight"], state["conv1.weight"])
    assert torch.equal(own["stem.1.running_var"], state["bn1.running_var"])
    assert torch.equal(own["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_weights_come_from_torchs_cache_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    state = save_resnet(cached)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(UserError, match="is not the file that its name says") as caught:
        build_backbone(BackboneConfig("resnet18"))  # the fingerprint of a run takes it for torchvision's
    assert str(cached) in caught.value.what
    assert hashlib.sha256(cached.read_bytes()).hexdigest()[:8] in caught.value.what
    assert "backbone.weights=" in caught.value.fix
    monkeypatch.setattr(resnets, "file_digest", lambda path: "f37072fd" + 8 * "0")
    backbone = build_backbone(BackboneConfig("resnet18"))
    assert torch.equal(backbone.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_absent_weights_are_downloaded_into_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def download(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, Path(target).name, hash_prefix))
        save_resnet(Path(target))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    build_backbone(BackboneConfig("resnet18"))
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "resnet18-f37072fd.pth", "f37072fd")]


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "~/cache"}, {"TORCH_HOME": "~/torch"}])
def test_torchs_cache_is_where_torch_says(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cached("resnet50").parent) == os.path.join(torch.hub.get_dir(), "checkpoints")


def test_prepare_fetches_the_weights_of_all_cells_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target, **_: Path(target).write_text(url))
    prepare(["dataset=shapes5i,pascal5i", "backbone=tiny,resnet18,resnet50", "fold=0,1"], weights=True)
    folder = tmp_path / "hub" / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"resnet18-f37072fd.pth", "resnet50-0676ba61.pth"}
    assert capsys.readouterr().out.splitlines() == [
        "tiny: starts from no published weights",
        f"resnet18: {folder}/resnet18-f37072fd.pth",
        f"resnet50: {folder}/resnet50-0676ba61.pth",
    ]
    with pytest.raises(UserError, match="there is no such backbone"):
        prepare(["backbone=resnet5"], weights=True)


@pytest.mark.parametrize(
    ("name", "file"),
    [("resnet50", "resnet50-0676ba61.pth"), ("resnet101", "resnet101-63fe2227.pth")],
)
@pytest.mark.parametrize("error", [URLError("no route"), OSError("disk full"), RuntimeError("invalid hash value")])
def test_offline_and_absent_names_file_folder_and_switch(
    name: str, file: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def download(*args, **kwargs) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(UserError) as caught:
        load_weights(ResNetBackbone.__new__(ResNetBackbone), name)
    assert file in caught.value.what
    for part in (file, str(tmp_path / "hub" / "checkpoints"), "backbone.weights="):
        assert part in caught.value.fix


class _Harmful:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def bad_file(path: Path, kind: str) -> None:
    if kind == "truncated":
        save_resnet(path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "other network":
        save_zeros(path, "resnet34")
    elif kind == "deeper blocks":
        save_zeros(path, "resnet50")
    elif kind == "shape":
        save_zeros(path, change=lambda state: {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)})
    elif kind == "missing":
        save_zeros(path, change=lambda state: {k: v for k, v in state.items() if k != "bn1.running_mean"})


@pytest.fixture(scope="module")
def plain() -> ResNetBackbone:
    return ResNetBackbone("resnet18")


def test_names_and_shapes_are_all_that_a_file_needs(tmp_path: Path, plain: ResNetBackbone) -> None:
    """So that the files refused below are refused for what is changed in them."""
    save_zeros(tmp_path / "w.pth")
    load_weights(plain, "resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "kind", ["truncated", "text", "pickle", "list", "other network", "deeper blocks", "shape", "missing", "absent"]
)
def test_a_file_that_is_not_the_weights_is_refused_by_name(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture, plain: ResNetBackbone
) -> None:
    path = tmp_path / "w.pth"
    bad_file(path, kind)
    with pytest.raises(UserError) as caught:
        load_weights(plain, "resnet18", str(path))
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.fix
    assert "ran" not in capsys.readouterr().out


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="vgg16"):
        build_backbone(BackboneConfig("vgg16"))


@pytest.mark.parametrize(("name", "counts"), [("resnet18", [2, 2, 2]), ("resnet50", [4, 6, 3])])
def test_blocks_are_those_of_the_strided_network_before_their_last_relu(
    name: str, counts: list[int], tmp_path: Path
) -> None:
    """Of torchvision's own network with the same weights: what the last ReLU of each residual block gets."""
    state = save_resnet(tmp_path / "weights.pth", name)
    backbone = build_backbone(BackboneConfig(name, weights=str(tmp_path / "weights.pth")), dilated=False)
    with torch.device("meta"):
        original = getattr(torchvision.models, name)().eval()
    original.load_state_dict(state, assign=True)
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for stage in ("layer2", "layer3", "layer4"):
        for number, block in enumerate(getattr(original, stage)):

            def keep(_: nn.Module, inputs: tuple, key: tuple[str, int] = (stage, number)) -> None:
                seen[key] = inputs[0].clone()  # a block's ReLUs are one module, and work in place: the last call stays

            block.relu.register_forward_pre_hook(keep)
    images = torch.randn(2, 3, 72, 72)
    with torch.no_grad():
        original(images)
    found = backbone.blocks(images)
    assert {stage: len(maps) for stage, maps in found.items()} == dict(zip(("layer2", "layer3", "layer4"), counts))
    for (stage, number), expected in seen.items():
        torch.testing.assert_close(found[stage][number], expected, rtol=1e-4, atol=1e-4)
        assert (found[stage][number] < 0).any()
        assert not found[stage][number].requires_grad
    assert [maps[0].shape[2] for maps in found.values()] == [9, 5, 3]
    for stage, maps in backbone(images).items():
        torch.testing.assert_close(maps, found[stage][-1].relu())


def test_weights_are_the_same_dilated_or_not(tmp_path: Path) -> None:
    save_resnet(tmp_path / "weights.pth")
    for name in ("resnet18", "tiny"):
        cfg = BackboneConfig(name, weights=str(tmp_path / "weights.pth"))
        dilated, strided = build_backbone(cfg), build_backbone(cfg, dilated=False)
        if name == "tiny":  # it has none
            strided.load_state_dict(dilated.state_dict())
        for key, x in dilated.state_dict().items():
            assert torch.equal(x, strided.state_dict()[key])
        images = torch.randn(1, 3, 33, 33)
        assert torch.equal(dilated(images)["layer2"], strided(images)["layer2"])  # no stride before that


@pytest.mark.parametrize(("layers", "trained"), [(0, set()), (1, {"layer4"}), (2, {"layer3", "layer4"})])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_blocks_of_frozen_stages_build_no_graph(name: str, layers: int, trained: set[str]) -> None:
    cfg = BackboneConfig(name, pretrained=False, trainable_layers=layers)
    found = build_backbone(cfg, dilated=False).blocks(torch.randn(1, 3, 33, 33))
    assert {stage for stage, maps in found.items() for x in maps if x.requires_grad} == trained


def test_tiny_has_one_block_a_stage_and_strides_where_it_is_not_dilated() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("tiny", trainable_layers=0), dilated=False)
    images = torch.randn(2, 3, 33, 33)
    found = {stage: maps[0] for stage, maps in backbone.blocks(images).items()}
    assert {stage: tuple(x.shape) for stage, x in found.items()} == {
        "layer2": (2, 48, 9, 9), "layer3": (2, 64, 5, 5), "layer4": (2, 64, 3, 3)
    }  # fmt: skip
    for stage, maps in backbone(images).items():
        assert torch.equal(maps, found[stage].relu())
    # The second norm starts at zero, so that a new stage is its shortcut: every second cell of the stage before.
    torch.testing.assert_close(found["layer4"], found["layer3"].relu()[..., ::2, ::2])
    dilated = build_backbone(BackboneConfig("tiny"))
    assert [maps[0].shape[2] for maps in dilated.blocks(images).values()] == [9, 9, 9]
