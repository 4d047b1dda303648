"""Masks as weights, prototype and prior by hand, what padding may not reach, and the draws of dropout."""

from __future__ import annotations

import model_samples as samples
import pytest
import torch
from torch import Tensor, nn

from fsseg.errors import UserError
from fsseg.model.blocks.dropout import EpisodeDropout
from fsseg.model.blocks.prototypes import PrototypeNeck, guided, masked_mean, support_weights

NAMES = [["a"]]


def mask(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)[None, None]


def everything(side: int) -> Tensor:
    return torch.ones(1, 1, side, side, dtype=torch.bool)


def test_cells_on_pixels_take_the_masks_pixel() -> None:
    rows = [[1, 0, 255, 0, 1], [0, 1, 1, 1, 0], [1, 1, 1, 0, 255], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]
    weights = support_weights(mask(rows), everything(3), NAMES)
    assert weights[0, 0].tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0]]


def test_cells_between_pixels_take_a_mean_of_them() -> None:
    # Six pixels and three cells, corner on corner: at 0, 2.5 and 5. 255 is no foreground.
    line = [1, 0, 1, 0, 255, 1]
    weights = support_weights(mask([line] * 6), everything(3), NAMES)
    torch.testing.assert_close(weights[0, 0], torch.tensor([[1.0, 0.5, 1.0]] * 3))


def test_a_cell_on_padding_has_no_weight() -> None:
    # With 36 pixels cell 5 counts as pixel 20, padding; its mean is of the pixels 21 and 22, of which 22 is picture.
    marked = torch.full((1, 1, 36, 36), 255, dtype=torch.uint8)
    marked[..., 22:] = 1
    picture = everything(9)
    assert support_weights(marked, picture, NAMES)[0, 0, 0, 5] == pytest.approx(0.875)
    picture[..., :6] = False
    assert support_weights(marked, picture, NAMES)[0, 0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 1, 1, 1])


def test_an_object_between_all_cells_keeps_its_best_one_and_the_others_stay() -> None:
    marked = torch.zeros(1, 2, 9, 9, dtype=torch.uint8)
    marked[0, 0, 2, 2] = 1  # 1/9 of the area of the corner's cell, less of the areas of its neighbours
    marked[0, 1, 4, 4] = 1  # the pixel of the middle cell, of whose area it is 1/25
    weights = support_weights(marked, torch.ones(1, 2, 3, 3, dtype=torch.bool), [["a", "b"]])
    assert weights[0].flatten(1).nonzero().tolist() == [[0, 0], [1, 4]]
    marked[0, 1] = 0
    with pytest.raises(UserError, match="image b has no foreground"):
        support_weights(marked, torch.ones(1, 2, 3, 3, dtype=torch.bool), [["a", "b"]])


def test_a_prototype_is_the_masked_mean() -> None:
    features = torch.tensor([[[[2.0, 1.0], [4.0, 0.0]]]], dtype=torch.float64)  # two cells in a row
    weights = torch.tensor([[[1.0, 0.25]]], dtype=torch.float64)
    expected = torch.tensor([[(2 + 1) / 1.2505, 1 / 1.2505]], dtype=torch.float64)
    torch.testing.assert_close(masked_mean(features, weights), expected)


def test_guidance_stands_beside_the_query_at_every_cell() -> None:
    query, prior = torch.randn(2, 3, 4, 5), torch.randn(2, 1, 4, 5)
    vector = torch.randn(2, 3)
    found = guided(query, vector, prior)
    assert found.shape == (2, 7, 4, 5)
    assert torch.equal(found[:, :3], query)
    assert torch.equal(found[1, 3:6, 2, 3], vector[1])
    assert torch.equal(found[:, 6:], prior)


def kept(neck: PrototypeNeck, count: int, picture: Tensor, role) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    widths = {"layer2": 3, "layer3": 4, "layer4": 4}
    maps = {n: torch.randn(count, w, 9, 9, generator=generator, dtype=torch.float64) for n, w in widths.items()}
    return neck.encode(maps, picture, role)


def test_padding_reaches_neither_prototype_nor_prior() -> None:
    torch.manual_seed(0)
    neck = PrototypeNeck({"layer2": 3, "layer3": 4}, 5).double()
    layer4 = nn.Conv2d(4, 4, 1).double()  # sees one cell, so that padding cannot come in by its window
    batch = samples.batch(samples.square_masks([[9, 20], [30, 12]], 33), 33)
    of_query, of_support = torch.ones(2, 9, 9, dtype=torch.bool), torch.ones(4, 9, 9, dtype=torch.bool)
    of_query[0, 5:], of_support[2, :, :3] = False, False
    query, support = kept(neck, 2, of_query, "query"), kept(neck, 4, of_support, "support")
    first = neck(query, [support], batch, layer4)
    for part, seen in ((query, of_query), (support, of_support)):
        for name in set(part) - {"picture"}:
            part[name] = torch.where(seen[..., None], part[name], 100 * torch.randn_like(part[name]))
    other = neck(query, [support], batch, layer4)
    torch.testing.assert_close(other.prototypes, first.prototypes)
    torch.testing.assert_close(other.priors, first.priors)
    assert (first.priors[0, :, 5:] == 0).all()
    seen = first.priors[0, :, :5].flatten(1)  # the range is that of the picture
    torch.testing.assert_close(seen.amin(1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(seen.amax(1), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_roles_keep_what_they_need() -> None:
    neck = PrototypeNeck({"layer2": 3, "layer3": 4}, 5).double()
    picture = torch.ones(1, 9, 9, dtype=torch.bool)
    names = {role: set(kept(neck, 1, picture, role)) - {"picture"} for role in ("query", "support", "both")}
    assert names["query"] == {"query", "layer4"}
    assert names["support"] == {"support", "layer3"}
    assert names["both"] == names["query"] | names["support"]


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop = EpisodeDropout([samples.spec(number, 1) for number in range(40)], seed=3)
    factors = drop.scale((500,), 0.2, torch.empty(0, dtype=torch.float64))
    assert factors.unique().tolist() == pytest.approx([0, 1.25])
    assert (factors == 0).double().mean().item() == pytest.approx(0.2, abs=0.02)
    assert len({tuple(row) for row in factors.tolist()}) == 40
    maps = torch.ones(40, 6, 2, 3)
    whole = drop(maps, 0.5)
    assert torch.equal(whole, whole[:, :, :1, :1].expand_as(whole))  # all of a channel, or nothing of it
    assert (drop(maps, 0.0) == 1).all()
    assert (drop(maps, 1.0) == 0).all()
