"""HSNet's parts and the whole of it against the float64 loops of `hsnet_reference`; its size, its recipe, edges."""

from __future__ import annotations

from types import SimpleNamespace

import hsnet_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch

from fsseg.config import schema
from fsseg.config.checks import faults
from fsseg.config.compose import compose, composer
from fsseg.config.schema import BackboneConfig, HsnetConfig
from fsseg.engine.optimiser import make_optimiser
from fsseg.engine.train import learning_rate
from fsseg.errors import UserError
from fsseg.model import build_model
from fsseg.model.blocks.conv4d import CentrePivotConv4d, resize_query
from fsseg.model.cost import cost
from fsseg.model.hsnet import Hsnet, HypercorrelationSqueeze, mask_shares, voted

LAYERS = ("layer2", "layer3", "layer4")
RESNET18 = BackboneConfig("resnet18", pretrained=False, trainable_layers=0)


def model_of(seed: int = 0, backbone: BackboneConfig | None = None) -> Hsnet:
    torch.manual_seed(seed)
    model = build_model(samples.cell(samples.hsnet(), backbone))
    assert isinstance(model, Hsnet)
    return model


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, and no scale at 1 or 0, nor shift at 0, where errors would hide."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kernel", "stride", "sides"),
    [(3, 1, (3, 2, 2, 3)), (3, 2, (2, 3, 4, 5)), (5, 4, (3, 1, 9, 6)), (5, 1, (1, 4, 1, 2))],
)
def test_the_centre_pivot_convolution_equals_the_loops(kernel: int, stride: int, sides: tuple[int, ...]) -> None:
    torch.manual_seed(kernel)
    layer = CentrePivotConv4d(3, 5, kernel, stride).double()
    maps = draw(2, 3, *sides)
    found = layer(maps).detach()
    for b in range(2):
        np.testing.assert_allclose(found[b], reference.conv4d(layer, maps[b].numpy()), atol=1e-10)


def test_the_query_sides_are_scaled_and_no_others() -> None:
    torch.manual_seed(0)
    maps = draw(2, 3, 2, 3, 2, 1)
    for size in ((4, 5), (2, 3), (1, 6)):
        for found, own in zip(resize_query(maps, size), maps):
            np.testing.assert_allclose(found, reference.resize_query(own.numpy(), *size), atol=1e-10)


def test_the_learned_part_equals_the_loops() -> None:
    """With two by one support positions at the end, which at 33 pixels would be one."""
    torch.manual_seed(0)
    blocks = {"layer2": 2, "layer3": 3, "layer4": 1}
    head = disturbed(HypercorrelationSqueeze(blocks, 32))
    sides = {"layer2": (3, 4, 33, 5), "layer3": (2, 2, 17, 3), "layer4": (1, 1, 9, 2)}
    maps = {layer: draw(2, blocks[layer], *sides[layer]).relu() for layer in LAYERS}
    found = head(maps).detach()
    assert found.shape == (2, 2, 6, 8)
    for b in range(2):
        expected = reference.head(head, {layer: x[b].numpy() for layer, x in maps.items()})
        np.testing.assert_allclose(found[b], expected, atol=1e-8)


@pytest.mark.parametrize("backbone", [None, RESNET18])
def test_one_shot_equals_the_loops(backbone: BackboneConfig | None) -> None:
    side = 33
    model = model_of(1, backbone).double()
    disturbed(model if backbone is None else model.head)
    batch = samples.batch(samples.square_masks([[9], [33]], side), side, dtype=torch.float64)
    batch.support_masks[1, 0, :12] = 255
    with torch.no_grad():
        found = model(batch).rounds[0]
        query, support = (model.backbone.blocks(x) for x in (batch.query_image, batch.support_images[:, 0]))
    for b in range(2):
        mask = (batch.support_masks[b, 0] == 1).numpy()
        maps = {
            layer: reference.correlation([x[b].numpy() for x in query[layer]], [x[b].numpy() for x in support[layer]],
                                         mask)
            for layer in LAYERS
        }  # fmt: skip
        assert all(x.max() > 0.1 for x in maps.values())
        np.testing.assert_allclose(found[b], reference.head(model.head, maps), atol=2e-5)


def answers_of(*votes: list[list[int]], shots: int) -> list[torch.Tensor]:
    """K logits of one sample for each table of votes: shot k marks the pixels with more than k votes."""
    count = torch.tensor(votes)
    return [torch.stack((torch.zeros(count.shape), torch.where(count > k, 1.5, -0.5)), 1) for k in range(shots)]


def tasks_of(side: int, count: int, valid: tuple[int, int] | None = None) -> SimpleNamespace:
    return SimpleNamespace(size=(side, side), valid_sizes=[valid or (side, side)] * count)


def test_votes_by_hand() -> None:
    answers = answers_of([[3, 1], [2, 0]], [[2, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [1, 1]], shots=3)
    logits = voted(answers, tasks_of(2, 4))
    found = (logits[:, 1] > logits[:, 0]).int().tolist()
    # 1 of 3 is below half, 1 of 2 is half; with no vote at all nothing is foreground
    assert found == [[[1, 0], [1, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [1, 1]]]


@pytest.mark.parametrize("shots", [2, 3, 5])
def test_votes_equal_the_loops(shots: int) -> None:
    torch.manual_seed(shots)
    answers = [torch.randn(3, 2, 7, 7) - torch.tensor([0.0, 0.7])[:, None, None] for _ in range(shots)]
    logits = voted(answers, tasks_of(7, 3))
    for b in range(3):
        expected = reference.votes([p[b].numpy() for p in answers])
        assert (logits[b, 1] > logits[b, 0]).tolist() == expected


def test_votes_on_padding_are_no_maximum_and_what_is_not_finite_stays_so() -> None:
    answers = answers_of([[1, 0], [3, 0]], shots=3)
    assert voted(answers, tasks_of(2, 1))[0, 1, 0, 0] < 0  # one of three
    assert voted(answers, tasks_of(2, 1, (1, 2)))[0, 1, 0, 0] > 0  # one of one
    answers = answers_of([[1, 0], [3, 0]], [[1, 0], [3, 0]], shots=3)
    answers[1][0, 0, 1, 1] = torch.inf
    finite = torch.isfinite(voted(answers, tasks_of(2, 2))).flatten(1).all(1)
    assert finite.tolist() == [False, True]


def test_several_shots_are_answered_one_by_one() -> None:
    model = model_of().double().eval()  # so that no vote hangs on rounding
    whole = samples.batch(samples.square_masks([[9, 20, 14], [30, 11, 8]], 33), 33, dtype=torch.float64)
    ones = []
    for k in range(3):
        ones.append(samples.batch(whole.support_masks[:, k : k + 1], 33))
        ones[k].support_images, ones[k].query_image = whole.support_images[:, k : k + 1], whole.query_image
    with torch.no_grad():
        first = model(ones[0]).rounds[0]
        model.head.decode_large[2].bias[0] += (first[:, 1] - first[:, 0]).median()  # about half is foreground
        alone = [model(one).rounds[0] for one in ones]
        found = model(whole)
    assert found.rounds[0].shape == (2, 2, 33, 33)
    assert torch.equal(found.logits, voted(alone, whole))
    assert 0 < (found.logits[:, 1] > 0).double().mean() < 1
    model.train()
    torch.testing.assert_close(model(whole).rounds[0], torch.stack(alone).mean(0))


def test_masks_are_read_bilinearly_with_aligned_corners() -> None:
    masks = samples.square_masks([[20, 9], [33, 14]], 33)
    masks[0, 0, 12:16] = 255
    for size in ((9, 9), (5, 5), (3, 3), (4, 6)):
        found = mask_shares(masks, size)
        assert found.shape == (2, 2, *size)
        for b, k in np.ndindex(2, 2):
            expected = reference.resize((masks[b, k] == 1).numpy()[None].astype(float), *size)[0]
            if expected.any():
                np.testing.assert_allclose(found[b, k], expected, atol=1e-6)
    assert ((found > 0) & (found < 1)).any()


def test_an_object_between_the_points_that_are_read_keeps_a_cell() -> None:
    masks = torch.zeros(1, 2, 33, 33, dtype=torch.uint8)
    masks[0, 0, 20:22, 13:15] = 1
    masks[0, 1, :, 16:] = 1
    shares = mask_shares(masks, (3, 3))  # reads pixels 0, 16 and 32
    assert shares[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert shares[0, 1].tolist() == [[0, 1, 1]] * 3
    with pytest.raises(UserError, match="support_0_1"):
        mask_shares(masks * torch.tensor([1, 0])[:, None, None], (3, 3), [["support_0_0", "support_0_1"]])
    model = model_of().eval()
    one = samples.batch(masks[:, :1], 33)
    with torch.no_grad():
        first = model(one).rounds[0]
        one.support_images[..., 12:24, 6:22] *= -1
        assert not torch.allclose(model(one).rounds[0], first)


def test_the_background_of_a_support_is_left_out() -> None:
    """Features where the mask is 0 change nothing."""
    model = model_of().eval()
    batch = samples.batch(samples.square_masks([[16]], 33), 33)
    query = model.encode(batch.query_image, batch.query_picture, "query")
    support = model.encode(batch.support_images[:, 0], batch.support_pictures[:, 0], "support")
    other = {name: x.clone() for name, x in support.items()}
    for layer in LAYERS:
        outside = mask_shares(batch.support_masks, tuple(other[layer].shape[2:4]))[:, 0] == 0
        assert outside.any()
        other[layer][outside[:, None]] = torch.randn_like(other[layer])[outside[:, None]]
    with torch.no_grad():
        assert torch.equal(model.decode([support], query, batch).logits, model.decode([other], query, batch).logits)


@pytest.mark.parametrize("shots", [1, 2])
def test_an_episode_does_not_see_its_neighbours_and_supports_may_come_one_by_one(shots: int) -> None:
    model = model_of().eval()
    sides = [[9, 30], [20, 12], [33, 7]]
    batch = samples.batch(samples.square_masks([row[:shots] for row in sides], 33), 33)
    with torch.no_grad():
        whole = model(batch).logits
        for b in range(3):
            torch.testing.assert_close(model(samples.only(batch, b)).logits, whole[b : b + 1], rtol=1e-4, atol=1e-4)
        kept = model.encode(batch.support_images.flatten(0, 1), batch.support_pictures.flatten(0, 1))
        query = model.encode(batch.query_image, batch.query_picture)
        each = [{name: x[n : n + 1] for name, x in kept.items()} for n in range(3 * shots)]
        torch.testing.assert_close(model.decode(each, query, batch).logits, whole, rtol=1e-4, atol=1e-4)


def test_what_is_kept_of_an_image() -> None:
    """Features of length 1, zero on padding; how long they were for supports alone."""
    model = model_of()
    batch = samples.batch(samples.square_masks([[9], [9]], 33), 33)
    batch.query_picture[0, :, 18:] = False
    kept = model.encode(batch.query_image, batch.query_picture, "query")
    assert {name: tuple(x.shape) for name, x in kept.items()} == {
        "layer2": (2, 1, 9, 9, 48), "layer3": (2, 1, 5, 5, 64), "layer4": (2, 1, 3, 3, 64)
    }  # fmt: skip
    for layer, stride in zip(LAYERS, (4, 8, 16)):
        length = kept[layer].norm(dim=4)
        columns = [column for column in range(length.shape[3]) if column * stride >= 18]
        assert columns
        assert not length[0, ..., columns].any()
        torch.testing.assert_close(length[1], torch.ones_like(length[1]), rtol=0, atol=1e-4)
    supports = model.encode(batch.query_image, batch.query_picture, "support")
    assert set(supports) == {*LAYERS, *(f"{layer}_length" for layer in LAYERS)}
    maps = model.backbone.blocks(batch.query_image)["layer3"][0]
    torch.testing.assert_close(supports["layer3_length"][:, 0], maps.norm(dim=1))


@pytest.mark.parametrize(
    ("backbone", "side", "cells"),
    [(None, 80, 20), (None, 81, 21), (None, 25, 7), (None, 16, 4), (RESNET18, 72, 9), (RESNET18, 73, 10)],
)
def test_any_legal_size_runs_forward_and_backward(backbone: BackboneConfig | None, side: int, cells: int) -> None:
    model = model_of(0, backbone)
    batch = samples.batch(samples.square_masks([[9, 12], [5, 10]], side), side)
    batch.query_picture[0, :, side // 2 :] = False
    prediction = model(batch)
    assert prediction.rounds[-1].shape == (2, 2, 2 * cells, 2 * cells)
    model.loss(prediction, batch.query_mask)[0].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained)
    assert model.eval()(batch).logits.shape == (2, 2, side, side)


def test_a_frozen_backbone_leaves_the_graph_to_the_learned_part() -> None:
    model = model_of(0, RESNET18).train()
    batch = samples.batch(samples.square_masks([[9]], 33), 33)
    assert not any(x.requires_grad for x in model.encode(batch.query_image, batch.query_picture).values())
    model.loss(model(batch), batch.query_mask)[0].backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"head"}


def test_every_parameter_gets_a_gradient() -> None:
    model = model_of(1)
    batch = samples.batch(samples.square_masks([[9], [20]], 33), 33)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    # A layer behind one that starts at zero feels nothing in the first step.
    samples.losses_of_steps(model, batch, optimiser, 2)
    silent = samples.silent_parameters(model)
    assert silent == []


def test_learns_to_copy_the_marked_colour() -> None:
    model = model_of()
    batch = samples.marked_batch()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001)
    losses = samples.losses_of_steps(model, batch, optimiser, 24)
    assert losses[-1] < 0.3 * losses[0]


def convolution(kernel: int, inputs: int, outputs: int) -> int:
    """Parameters of a centre-pivot convolution and of the GroupNorm after it."""
    return 2 * (kernel**2 * inputs * outputs + outputs) + 2 * outputs


@pytest.mark.parametrize(
    ("name", "blocks", "millions"), [("resnet50", (4, 6, 3), 2.57), ("resnet101", (4, 23, 3), 2.59)]
)
def test_parameters_are_the_published_ones(name: str, blocks: tuple[int, int, int], millions: float) -> None:
    with torch.device("meta"):
        model = build_model(samples.cell(HsnetConfig("hsnet"), BackboneConfig(name, pretrained=False)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, rel=0.01)
    kernels = ((5, 5, 3), (5, 3, 3), (3, 3, 3))
    widths = ((16, 64), (64, 128))
    squeeze = sum(
        convolution(first, count, 16) + sum(convolution(k, *width) for k, width in zip(rest, widths))
        for count, (first, *rest) in zip(blocks, kernels)
    )
    decoder = sum(9 * i * o + o for i, o in ((128, 128), (128, 64), (64, 64), (64, 2)))
    assert trained == squeeze + 6 * convolution(3, 128, 128) + decoder


def test_an_episode_takes_the_published_multiply_adds() -> None:
    """33 GMACs at 400 px: the cosines, and the convolutions, worked out from sides, kernels and channels."""
    setting = SimpleNamespace(model=HsnetConfig("hsnet"), backbone=BackboneConfig("resnet50"), shot=1,
                              dataset=SimpleNamespace(image_size=400))  # fmt: skip
    rows = {row.part: row for row in cost(setting)}
    queries = (50**2, 25**2, 13**2)
    cosines = sum(n * q * q * c for n, q, c in zip((4, 6, 3), queries, (512, 1024, 2048)))
    kept = ((13, 4, 2), (7, 4, 2), (7, 4, 2))  # support sides after each squeezing block
    kernels, channels = ((5, 5, 3), (5, 3, 3), (3, 3, 3)), ((4, 16, 64, 128), (6, 16, 64, 128), (3, 16, 64, 128))
    squeeze = sum(
        2 * q * side**2 * k**2 * i * o
        for q, sides, ks, widths in zip(queries, kept, kernels, channels)
        for side, k, i, o in zip(sides, ks, widths, widths[1:])
    )
    mix = sum(3 * 2 * q * 2**2 * 9 * 128 * 128 for q in queries[:2])
    decoder = 9 * (50**2 * (128 * 128 + 128 * 64) + 100**2 * (64 * 64 + 64 * 2))
    assert rows["decode"].macs == cosines + squeeze + mix + decoder
    assert rows["decode"].macs / 1e9 == pytest.approx(33, rel=0.01)
    assert rows["decode"].parameters == pytest.approx(2.57e6, rel=0.01)
    assert rows["encode, 2 images"].parameters == pytest.approx(23.508e6, rel=1e-4)  # torchvision's, less its fc
    assert rows["hsnet"].macs == rows["decode"].macs + rows["encode, 2 images"].macs
    setting.shot = 5
    assert {row.part: row for row in cost(setting)}["decode"].macs == 5 * rows["decode"].macs


def test_a_backbone_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(["method=hsnet", "dataset=pascal5i", "backbone=resnet18"]).cfg
    assert faults(cfg) == []
    monkeypatch.setattr(schema.ResNetConfig, "PROVIDES", frozenset({"stages"}))
    (fault,) = faults(cfg)
    assert fault.what == "method=hsnet needs blocks of its backbone, which resnet18 does not provide"
    assert fault.fix == "choose backbone= one of: tiny"


def test_the_paper_is_trained_with_adam_at_a_constant_rate() -> None:
    with composer() as c:
        cfg, coco = (
            c.one(["experiment=hsnet_paper", f"dataset={dataset}", "backbone=resnet50", "fold=0"]).cfg
            for dataset in ("pascal5i", "coco20i")
        )
    assert (cfg.model.name, cfg.protocol.name, cfg.protocol.fit, cfg.protocol.ignore_in_loss) == (
        "hsnet", "hsnet", "squash", False
    )  # fmt: skip
    assert (cfg.dataset.image_size, cfg.dataset.flip_probability, cfg.dataset.rotate_degrees) == (400, 0, 0)
    assert (cfg.dataset.blur_probability, cfg.train.batch_size, cfg.shot) == (0, 20, 1)
    assert [learning_rate(cfg, step, 7) for step in (0, 3, 6)] == [0.001] * 3
    assert (coco.dataset.image_size, coco.train.batch_size, coco.train.lr) == (400, 40, 0.001)
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(4, 5)
    optimisers = (make_optimiser(ours, cfg.train, torch.device("cpu")), torch.optim.Adam(theirs.parameters(), lr=0.001))
    for _ in range(4):
        for model, optimiser in zip((ours, theirs), optimisers):
            optimiser.zero_grad()
            model(inputs).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_what_its_protocol_says_of_the_code_goes_with_the_method() -> None:
    cells = (["protocol=hsnet"], ["protocol=hsnet", "method=hsnet"], ["experiment=hsnet_paper", "fold=0"])
    with composer() as c:
        abcb, hsnet, paper = (
            c.one(["dataset=pascal5i", "backbone=resnet50", *own]).cfg.protocol.unlike for own in cells
        )
    assert any("dilated" in words for words in abcb)
    assert any("recipe" in words for words in abcb)
    assert set(abcb) - set(hsnet) == {words for words in abcb if "dilated" in words}
    assert set(hsnet) - {""} - set(paper) == {words for words in abcb if "recipe" in words}
    assert set(paper) < set(abcb)
