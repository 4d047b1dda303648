"""`backbone.stem=deep`: the layout of resnet50_v2.pth, PSPNet's dilations, and what is not of that layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from fsseg.cell.key import identity
from fsseg.config.checks import faults
from fsseg.config.compose import compose
from fsseg.config.entry import resolved
from fsseg.config.schema import PrototypeConfig, ResNetConfig
from fsseg.errors import UserError
from fsseg.model.backbones import build_backbone, load_weights
from fsseg.model.backbones.torchvision import ResNetBackbone

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
State = dict[str, Tensor]


def layout(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the published file, written down here by its description."""

    def norm(key: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{key}.{part}", (width,)

    for number, (inputs, outputs) in enumerate(((3, 64), (64, 64), (64, 128)), start=1):
        yield f"conv{number}.weight", (outputs, inputs, 3, 3)
        yield from norm(f"bn{number}", outputs)
    channels = 128
    for stage, (count, width) in enumerate(zip(BLOCKS[name], WIDTHS), start=1):
        for block in range(count):
            key = f"layer{stage}.{block}"
            for number, (inputs, outputs, side) in enumerate(
                ((channels, width, 1), (width, width, 3), (width, 4 * width, 1)), start=1
            ):
                yield f"{key}.conv{number}.weight", (outputs, inputs, side, side)
                yield from norm(f"{key}.bn{number}", outputs)
            if block == 0:
                yield f"{key}.downsample.0.weight", (4 * width, channels, 1, 1)
                yield from norm(f"{key}.downsample.1", 4 * width)
            channels = 4 * width
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def zeros(name: str) -> State:
    """Names and shapes alone; one number a tensor is stored."""
    return {key: torch.zeros(()).expand(shape) for key, shape in layout(name)}


@cache
def random() -> State:
    """resnet50 with weights that keep the size of what passes through them, and norms that do something."""
    generator = torch.Generator().manual_seed(5)
    state: State = {}
    for key, shape in layout("resnet50"):
        if len(shape) == 4:
            state[key] = torch.randn(shape, generator=generator) * (2 / prod(shape[1:])) ** 0.5
        elif key.endswith(("running_mean", "bias")):
            state[key] = torch.rand(shape, generator=generator) * 0.2 - 0.1
        else:
            state[key] = torch.rand(shape, generator=generator) + 0.5
    return state


def unit(state: State, x: Tensor, conv: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
    """A convolution and its BatchNorm, by the formula."""
    weight = state[f"{conv}.weight"]
    y = F.conv2d(x, weight, stride=stride, dilation=dilation, padding=weight.shape[2] // 2 * dilation)
    mean, variance = (state[f"{norm}.running_{what}"][:, None, None] for what in ("mean", "var"))
    gain, shift = (state[f"{norm}.{what}"][:, None, None] for what in ("weight", "bias"))
    return (y - mean) / (variance + 1e-5).sqrt() * gain + shift


def reference(state: State, images: Tensor, dilated: bool) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The maps of layer2 to layer4, and their blocks before the last ReLU."""
    x = images
    for number in (1, 2, 3):
        x = unit(state, x, f"conv{number}", f"bn{number}", stride=2 if number == 1 else 1).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    maps: dict[str, Tensor] = {}
    found: dict[str, list[Tensor]] = {}
    for stage, count in enumerate(BLOCKS["resnet50"], start=1):
        dilation = {3: 2, 4: 4}.get(stage, 1) if dilated else 1
        for block in range(count):
            key = f"layer{stage}.{block}"
            stride = 2 if block == 0 and (stage == 2 or (stage > 2 and not dilated)) else 1
            y = unit(state, x, f"{key}.conv1", f"{key}.bn1").relu()
            y = unit(state, y, f"{key}.conv2", f"{key}.bn2", stride, dilation).relu()
            y = unit(state, y, f"{key}.conv3", f"{key}.bn3")
            if block == 0:
                x = unit(state, x, f"{key}.downsample.0", f"{key}.downsample.1", stride)
            found.setdefault(f"layer{stage}", []).append(x + y)
            x = (x + y).relu()
        maps[f"layer{stage}"] = x
    return maps, found


@pytest.mark.parametrize(("dilated", "prefix"), [(True, ""), (False, "module.")])
def test_the_published_layout_loads_and_gives_the_maps_of_its_description(
    dilated: bool, prefix: str, tmp_path: Path
) -> None:
    state = random()
    file = tmp_path / "resnet50_v2.pth"
    kept = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save({"state_dict": kept} if prefix else kept, file)
    backbone = build_backbone(ResNetConfig("resnet50", weights=str(file), stem="deep"), dilated=dilated)
    assert backbone.weights == {"file": str(file), "digest": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}
    images = torch.randn(1, 3, 49, 49, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, blocks = reference(state, images, dilated)
    for stage, maps in backbone(images).items():
        scale = float(expected[stage].abs().max())
        assert maps.shape[2] == (7 if dilated else {"layer2": 7, "layer3": 4, "layer4": 2}[stage])
        torch.testing.assert_close(maps, expected[stage], rtol=1e-3, atol=1e-4 * scale)
    if not dilated:
        for stage, found in backbone.blocks(images).items():
            assert len(found) == len(blocks[stage])
            for map_, wanted in zip(found, blocks[stage]):
                torch.testing.assert_close(map_, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_parameters_spacing_and_sizes(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(ResNetConfig(name, pretrained=False, stem="deep"))
        maps = backbone(torch.empty(1, 3, 473, 473))
    learnt = sum(prod(s) for key, s in layout(name) if key.endswith(("weight", "bias")) and not key.startswith("fc."))
    assert sum(p.numel() for p in backbone.parameters()) == learnt
    if name == "resnet50":  # torchvision's without its fc and first convolution, by hand
        plain = 25_557_032 - 2_049_000 - 64 * 3 * 49 - 2 * 64
        stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
        assert learnt == plain + stem + 64 * 64 + 64 * 256  # 64 channels more into layer1
    assert {stage: tuple(x.shape[1:]) for stage, x in maps.items()} == {
        "layer2": (512, 60, 60), "layer3": (1024, 60, 60), "layer4": (2048, 60, 60)
    }  # fmt: skip
    assert backbone.channels == {"layer2": 512, "layer3": 1024, "layer4": 2048}
    for stage, dilation in ((backbone.layer3, 2), (backbone.layer4, 4)):
        for block in stage:
            assert (block.conv2.dilation, block.conv2.padding, block.conv2.stride) == (
                (dilation, dilation), (dilation, dilation), (1, 1)
            )  # fmt: skip
            assert block.downsample is None or block.downsample[0].stride == (1, 1)
    first = backbone.layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


@pytest.mark.parametrize("layers", [0, 4, 5])
def test_freezing_covers_the_three_convolutions(layers: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(ResNetConfig("resnet50", pretrained=False, stem="deep", trainable_layers=layers))
    assert [p.requires_grad for p in backbone.stem.parameters()] == [layers == 5] * 9
    assert all(p.requires_grad == (layers > 0) for p in backbone.layer1.parameters())
    assert not any(m.training for m in backbone.train().modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_plain_stem_stays_torchvisions() -> None:
    with torch.device("meta"):
        backbone = build_backbone(ResNetConfig("resnet50", pretrained=False))
        original = torchvision.models.resnet50()
    assert {key: x.shape for key, x in backbone.layer1.state_dict().items()} == {
        key: x.shape for key, x in original.layer1.state_dict().items()
    }
    assert backbone.stem[0].kernel_size == (7, 7)
    assert (backbone.layer3[0].conv2.dilation, backbone.layer3[1].conv2.dilation) == ((1, 1), (2, 2))


def plain(name: str) -> State:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    return {key: torch.zeros(()).expand(x.shape) for key, x in state.items()}


@pytest.fixture(scope="module")
def stems() -> dict[str, ResNetBackbone]:
    with torch.device("meta"):
        return {stem: ResNetBackbone("resnet50", deep_stem=stem == "deep") for stem in ("plain", "deep")}


@pytest.mark.parametrize(
    ("stem", "content", "what", "fix"),
    [
        ("deep", lambda: plain("resnet50"), "is a ResNet with a plain stem", "resnet50_v2.pth"),
        ("plain", lambda: zeros("resnet50"), "is a ResNet with a stem of three", "set backbone.stem=deep"),
        ("deep", lambda: zeros("resnet101"), "it has the foreign layer3.6", "resnet50_v2.pth"),
        ("deep", lambda: {k: v for k, v in zeros("resnet50").items() if "bn2.running_var" not in k}, "it lacks", "v2"),
        ("deep", lambda: [torch.zeros(1)], "holds no state dict", "resnet50_v2.pth"),
        ("deep", lambda: b"no weights", "cannot be read as weights", "resnet50_v2.pth"),
        ("deep", None, "is not a file", "resnet50_v2.pth"),
    ],
)
def test_a_file_of_another_kind_is_told_in_two_lines(
    stem: str, content: Callable[[], object] | None, what: str, fix: str, tmp_path: Path,
    stems: dict[str, ResNetBackbone],
) -> None:  # fmt: skip
    file = tmp_path / "w.pth"
    made = content() if content is not None else None
    if isinstance(made, bytes):
        file.write_bytes(made)
    elif made is not None:
        torch.save(made, file)
    with pytest.raises(UserError) as caught:
        load_weights(stems[stem], "resnet50", str(file))
    assert str(file) in caught.value.what
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert "\n" not in caught.value.what + caught.value.fix


def test_nothing_is_fetched_by_name(stems: dict[str, ResNetBackbone], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(UserError, match="torchvision has none of this stem") as caught:
        load_weights(stems["deep"], "resnet50")
    assert "resnet50_v2.pth" in caught.value.fix
    assert "PFENet and BAM" in caught.value.fix


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("backbone=resnet50", "backbone.stem=deep starts from a file that backbone.weights names"),
        ("backbone=resnet18 backbone.pretrained=false", "backbone.stem=deep: resnet18 has no such stem"),
        ("backbone=resnet18", "backbone.stem=deep: resnet18 has no such stem"),
        ("backbone=resnet101 backbone.weights=no.pth", "backbone.weights=no.pth is not a file"),
        ("backbone=resnet50 backbone.pretrained=false", None),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_built(line: str, what: str | None) -> None:
    cfg = compose([*line.split(), "backbone.stem=deep", "dataset.image_size=81"]).cfg
    found = [fault.what for fault in faults(cfg)]
    assert len(found) == (what is not None)
    assert all(text.startswith(str(what)) for text in found)


@pytest.mark.parametrize("line", ["backbone=tiny", "backbone=mobilenet"])
def test_a_backbone_without_such_a_choice_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"backbone\.stem does not belong to this choice"):
        compose([line, "backbone.stem=deep"])


@pytest.mark.parametrize("name", ResNetConfig.NAMES)
def test_the_names_with_a_deep_stem_are_those_made_of_bottlenecks(name: str) -> None:
    with torch.device("meta"):
        first = getattr(torchvision.models, name)().layer1[0]
    assert (name in ResNetConfig.DEEP) == isinstance(first, Bottleneck)


def test_only_the_deep_stem_is_part_of_an_identity(tmp_path: Path) -> None:
    def of(*line: str) -> dict[str, object]:
        return identity(resolved(compose(["backbone=resnet50", *line]).cfg))

    assert of("backbone.stem=plain") == of()
    assert "backbone.stem" not in of()
    (tmp_path / "w.pth").write_bytes(b"any")
    deep = of("backbone.stem=deep", f"backbone.weights={tmp_path}/w.pth")
    assert deep["backbone.stem"] == "deep"
    assert "backbone.weights (content)" in deep


@pytest.mark.parametrize("name", ["pfenet", "bam", "hdmnet"])
def test_protocols_say_what_is_unlike_their_code(name: str) -> None:
    def said(*line: str) -> list[str]:
        unlike = compose([f"protocol={name}", "backbone.pretrained=false", *line]).cfg.protocol.unlike
        return [words for words in unlike if "the backbone" in words]

    assert any("torchvision" in words for words in said("backbone=resnet50"))
    rest = " ".join(said("backbone=resnet50", "backbone.stem=deep"))
    assert "stem" not in rest
    assert ("trained on the base classes" in rest) == (name != "pfenet")


def test_its_cost_is_counted() -> None:
    """By hand, at 473 pixels: maps of 237 x 237 in the stem, 119 x 119 after the pooling; two images."""
    from types import SimpleNamespace

    from fsseg.model.cost import cost

    def macs(stem: str) -> int:
        cfg = SimpleNamespace(
            model=PrototypeConfig("prototype"), backbone=ResNetConfig("resnet50", stem=stem, weights="not read"),
            dataset=SimpleNamespace(image_size=473), shot=1,
        )  # fmt: skip
        return cost(cfg)[0].macs  # type: ignore[arg-type]

    stem = 237**2 * (9 * (3 * 64 + 64 * 64 + 64 * 128) - 49 * 3 * 64)
    assert macs("deep") - macs("plain") == 2 * (stem + 119**2 * 64 * (64 + 256))
