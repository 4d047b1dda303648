"""The correlation neck against loops, and what may and may not reach its outputs."""

from __future__ import annotations

import math

import model_reference as reference
import model_samples as samples
import numpy as np
import pytest
import torch

from fsseg.model.blocks import tokens
from fsseg.model.blocks.neck import CorrelationNeck, pool, prior_map, unpool
from fsseg.model.blocks.tokens import Shots

WIDTHS = {"layer2": 3, "layer3": 4, "layer4": 5}
C = 8


def features(count: int, side: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(count, width, side, side, dtype=torch.float64) for name, width in WIDTHS.items()}


def neck_of(seed: int = 0, **changes) -> CorrelationNeck:
    torch.manual_seed(seed)
    neck = CorrelationNeck(WIDTHS, samples.baseline(channels=C, heads=2, **changes)).double()
    with torch.no_grad():
        neck.norm.weight.uniform_(0.5, 2)
        neck.norm.bias.uniform_(-1, 1)
    return neck


def correlate(neck, support, query, masks, support_valid=None, query_valid=None, apart: bool = False):
    """f_s (B, K, C, h, w) and f_q; `apart` hands the supports over one by one, as an evaluation does."""
    kept = neck.encode(support, support_valid, "support")
    count = masks.shape[0] * masks.shape[1]
    parts = [{name: x[n : n + 1] for name, x in kept.items()} for n in range(count)] if apart else [kept]
    f_q = neck(neck.encode(query, role="query"), Shots(parts, masks), query_valid)
    return kept["refined"].permute(0, 3, 1, 2).unflatten(0, masks.shape[:2]), f_q


def pooled_blocks(side: int, factor: int) -> list[list[tuple[int, int]]]:
    """The cells of each pooled cell, in raster order."""
    small = math.ceil(side / factor)
    return [
        [(y, x) for y in range(side) for x in range(side) if (y // factor, x // factor) == (row, column)]
        for row in range(small)
        for column in range(small)
    ]


def interpolate(small: np.ndarray, factor: int, side: int) -> np.ndarray:
    """Bilinear, pixel centres: (h, h, C) -> (side, side, C)."""

    def weights(place: int) -> list[tuple[int, float]]:
        source = max(0.0, (place + 0.5) / factor - 0.5)
        low = min(int(source), len(small) - 1)
        high = min(low + 1, len(small) - 1)
        return [(low, 1 - (source - low)), (high, source - low)]

    out = np.zeros((side, side, small.shape[2]))
    for y in range(side):
        for x in range(side):
            for row, a in weights(y):
                for column, b in weights(x):
                    out[y, x] += a * b * small[row, column]
    return out


def neck_reference(
    neck: CorrelationNeck,
    support: dict,
    query: dict,
    mask: np.ndarray,
    of_support: np.ndarray | None = None,
    of_query: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """f_s and f_q of one shot, (side, side, C) each; `of_support` and `of_query` mark what is picture."""
    side, factor = len(mask), neck.pool
    of_support = np.ones_like(mask) if of_support is None else of_support
    of_query = np.ones_like(mask) if of_query is None else of_query

    def embed(maps: dict) -> np.ndarray:
        out = np.zeros((side, side, C))
        for y in range(side):
            for x in range(side):
                value = reference.linear(
                    neck.reduce, np.concatenate((maps["layer2"][:, y, x], maps["layer3"][:, y, x]))
                )
                value = (value - value.mean()) / math.sqrt(value.var() + neck.norm.eps)
                out[y, x] = reference.relu(value * neck.norm.weight.detach().numpy() + neck.norm.bias.detach().numpy())
        return out

    s, q = embed(support), embed(query)
    blocks = pooled_blocks(side, factor)
    small = math.ceil(side / factor)
    keys = []
    for block in blocks:
        inside = [s[y, x] for y, x in block if mask[y, x]]
        if inside:
            keys.append(reference.mean(inside))
    queries = [reference.mean([q[y, x] for y, x in block]) for block in blocks]
    cross = interpolate(
        np.array(reference.attention(neck.cross_attention, queries, keys)).reshape(small, small, C), factor, side
    )

    foreground = [support["layer4"][:, y, x] for y in range(side) for x in range(side) if mask[y, x]]
    prior = np.array(
        [
            [max(reference.cosine(query["layer4"][:, y, x], other) for other in foreground) for x in range(side)]
            for y in range(side)
        ]
    )
    shown = prior[of_query]
    prior = np.where(of_query, (prior - shown.min()) / (shown.max() - shown.min()), 0)

    f_q = np.zeros((side, side, C))
    for y in range(side):
        for x in range(side):
            merged = reference.relu(reference.linear(neck.merge, np.concatenate((q[y, x], cross[y, x], [prior[y, x]]))))
            f_q[y, x] = reference.relu(q[y, x] + reference.two_layers(neck.ffn[0], neck.ffn[2], merged))

    tokens = [reference.mean([s[y, x] for y, x in block]) for block in blocks]
    pictured = [[s[y, x] for y, x in block if of_support[y, x]] for block in blocks]
    others = [reference.mean(inside) for inside in pictured if inside]
    own = np.array(reference.attention(neck.self_attention, tokens, others)).reshape(small, small, C)
    return np.maximum(s + interpolate(own, factor, side), 0), f_q


@pytest.mark.parametrize("form", ["together", "apart", "as on a GPU"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_equals_the_loops_for_every_shot(factor: int, padded: bool, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "as on a GPU":
        monkeypatch.setattr(tokens, "waits_for_nothing", lambda _: True)
        monkeypatch.setattr(tokens, "_MULTIPLE", 7)
    neck = neck_of(neck_pool=factor)
    side, shots = 5, 2
    support, query = features(2 * shots, side), features(2, side)
    masks = torch.rand(2, shots, side, side) > 0.6
    masks[0, 0] = False
    masks[0, 0, 4, 4] = True  # one token, in a pooled cell that the map's edge cuts
    masks[1, 1] = True
    pictures = [torch.ones(count, side, side, dtype=torch.bool) for count in (2 * shots, 2)]
    if padded:
        pictures[0][1, 3:], pictures[0][2, :, 2:], pictures[1][1, 4:] = False, False, False
        masks &= pictures[0].unflatten(0, (2, shots))
    f_s, f_q = correlate(neck, support, query, masks, *(pictures if padded else (None, None)), form == "apart")
    for b in range(2):
        for k in range(shots):
            one = {name: x[b * shots + k].numpy() for name, x in support.items()}
            other = {name: x[b].numpy() for name, x in query.items()}
            shown = pictures[0][b * shots + k].numpy(), pictures[1][b].numpy()
            expected_s, expected_q = neck_reference(neck, one, other, masks[b, k].numpy(), *shown)
            np.testing.assert_allclose(f_s[b, k].detach().permute(1, 2, 0), expected_s, atol=1e-6)
            np.testing.assert_allclose(f_q[b, k].detach().permute(1, 2, 0), expected_q, atol=1e-6)


@pytest.mark.parametrize("case", ["one", "all", "padded"])
def test_gradients_agree_with_finite_differences(case: str) -> None:
    neck = neck_of(neck_pool=2)
    torch.manual_seed(7)
    support, query = features(1, 3), features(1, 3)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 1] = True
    pictures: list[torch.Tensor | None] = [None, None]
    if case == "all":
        mask[:] = True
    if case == "padded":
        mask[0, 0, 0] = True
        pictures = [torch.ones(1, 3, 3, dtype=torch.bool) for _ in range(2)]
        pictures[0][0, 2:], pictures[1][0, :, 2:] = False, False

    def run(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ours, theirs = leaves[:3], leaves[3:6]
        return correlate(neck, dict(zip(support, ours)), dict(zip(query, theirs)), mask, *pictures)

    leaves = [x.requires_grad_() for x in (*support.values(), *query.values())]
    assert samples.gradients_agree(run, [*leaves, *neck.parameters()])


def test_support_background_reaches_f_s_but_not_f_q() -> None:
    neck = neck_of()
    support, query = features(1, 6), features(1, 6)
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 1:4, 2:5] = True
    f_s, f_q = correlate(neck, support, query, mask)
    changed = {name: torch.where(mask[:, 0, None], x, torch.randn_like(x)) for name, x in support.items()}
    other_s, other_q = correlate(neck, changed, query, mask)
    torch.testing.assert_close(other_q, f_q, rtol=0, atol=1e-12)
    outside = ~mask[0, 0]
    assert (other_s[0, 0][:, outside] - f_s[0, 0][:, outside]).abs().max() > 0.1
    assert (f_s[0, 0][:, outside]).abs().max() > 0.1


def test_features_are_not_negative() -> None:
    """The histograms of E_s run over [0, 1]: cosines of f_q must lie there."""
    f_s, f_q = correlate(neck_of(), features(2, 5), features(2, 5), torch.ones(2, 1, 5, 5, dtype=torch.bool))
    assert f_s.min() >= 0
    assert f_q.min() >= 0


@pytest.mark.parametrize("switch", ["neck_prior", "neck_cross_attention", "neck_self_attention"])
def test_every_part_can_be_switched_off(switch: str) -> None:
    full, part = neck_of(), neck_of(**{switch: False})
    fewer = {"neck_prior": C, "neck_cross_attention": 3 * (C * C + C) + C * C, "neck_self_attention": 3 * (C * C + C)}
    count = {neck: sum(p.numel() for p in neck.parameters()) for neck in (full, part)}
    assert count[full] - count[part] == fewer[switch]
    f_s, f_q = correlate(part, features(1, 5), features(1, 5), torch.ones(1, 1, 5, 5, dtype=torch.bool))
    assert f_s.isfinite().all()
    assert f_q.isfinite().all()


@pytest.mark.parametrize("channels", [64, 528])
def test_the_prior_starts_with_as_much_weight_as_all_other_channels_together(channels: int) -> None:
    torch.manual_seed(0)
    neck = CorrelationNeck(WIDTHS, samples.baseline(channels=channels, heads=2))
    squares = neck.merge.weight.detach().square().sum(0).flatten()
    assert squares[-1].item() == pytest.approx(squares[:-1].sum().item(), rel=0.3)


def prior_of(query: torch.Tensor, support: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    q, s = (torch.nn.functional.normalize(x.permute(0, 2, 3, 1), dim=3) for x in (query, support))
    shots = Shots([{"layer4": s}], masks[:, None])
    return prior_map(q, shots.tokens("layer4"), shots.counts)


def test_prior_map_is_the_largest_cosine_with_the_foreground_scaled_to_one() -> None:
    axis = torch.eye(3, dtype=torch.float64)
    query = torch.stack((axis[0], axis[0] + axis[1], axis[1], 5 * axis[2])).T.view(1, 3, 2, 2)
    support = torch.stack((2 * axis[0], axis[0] + axis[1], axis[2], axis[2])).T.view(1, 3, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]]])
    # Cosines with the one foreground vector (1, 0, 0): 1, 0.7071, 0, 0.
    np.testing.assert_allclose(prior_of(query, support, mask).flatten(), [1, 0.70710678, 0, 0], atol=1e-7)


def test_prior_map_of_a_batch_in_parts_is_that_of_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, support = torch.randn(3, 6, 4, 4), torch.randn(3, 6, 4, 4)
    masks = torch.rand(3, 4, 4) > torch.tensor([0.9, 0.5, 0.1])[:, None, None]
    masks[:, 0, 0] = True
    whole = prior_of(query, support, masks)
    for b in range(3):
        torch.testing.assert_close(prior_of(query[b : b + 1], support[b : b + 1], masks[b : b + 1])[0], whole[b])
    monkeypatch.setattr("fsseg.model.blocks.neck._SIMILARITIES", 1)
    torch.testing.assert_close(prior_of(query, support, masks), whole, rtol=0, atol=0)


def test_prior_map_of_several_shots_is_that_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many samples are in memory together; shots have different numbers of cells."""
    torch.manual_seed(0)
    query, support = torch.randn(3, 6, 4, 4), torch.randn(3, 2, 6, 4, 4)
    masks = torch.rand(3, 2, 4, 4) > torch.tensor([[0.9, 0.5], [0.1, 0.6], [0.3, 0.2]])[..., None, None]
    masks[..., 0, 0] = True
    alone = [prior_of(query, support[:, k], masks[:, k])[:, 0] for k in (0, 1)]
    q, s = (torch.nn.functional.normalize(x.movedim(-3, -1), dim=-1) for x in (query, support))
    shots = Shots([{"layer4": s.flatten(0, 1)}], masks)
    for similarities in (2**26, 1):
        monkeypatch.setattr("fsseg.model.blocks.neck._SIMILARITIES", similarities)
        torch.testing.assert_close(prior_map(q, shots.tokens("layer4"), shots.counts), torch.stack(alone, 1))


def test_prior_map_of_equal_features_is_finite() -> None:
    maps = torch.ones(1, 3, 2, 2, requires_grad=True)
    result = prior_of(maps, maps, torch.ones(1, 2, 2, dtype=torch.bool))
    result.sum().backward()
    assert result.isfinite().all()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("side", [4, 5])
def test_unpool_returns_a_constant_map_unchanged_and_keeps_positions(side: int) -> None:
    constant = torch.full((1, 1, side, side), 3.0)
    torch.testing.assert_close(unpool(pool(constant, 2), 2, constant), constant)
    ramp = torch.arange(float(side)).view(1, 1, 1, side).expand(1, 1, side, side)
    inner = unpool(pool(ramp, 2), 2, ramp)[..., 1:3]
    torch.testing.assert_close(inner, ramp[..., 1:3])  # a straight line stays where it is, away from the edges
