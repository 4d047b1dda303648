"""Attention against loops; padding, bias and samples without keys."""

from __future__ import annotations

from dataclasses import replace

import model_reference as reference
import numpy as np
import pytest
import torch

from fsseg.model.blocks.attention import Attention, Keys, attend

C = 8


@pytest.fixture
def module() -> Attention:
    torch.manual_seed(0)
    return Attention(C, heads=2).double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def biased_attention(
    module: Attention, query: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor | None, valid=None
) -> torch.Tensor:
    keys = replace(module.project(tokens, valid), bias=bias)
    return attend(module.query(query), keys, module.heads)


@pytest.mark.parametrize("biased", [False, True])
def test_equals_loops_over_heads_queries_and_keys(module: Attention, biased: bool) -> None:
    query, keys = draw(2, 5, C), draw(2, 7, C)
    bias = draw(2, 7) if biased else None
    result = biased_attention(module, query, keys, bias).detach()
    if bias is None:
        assert torch.equal(module(query, keys), result)
    for b in range(2):
        expected = reference.attention(
            module, list(query[b].numpy()), list(keys[b].numpy()), None if bias is None else bias[b].tolist()
        )
        np.testing.assert_allclose(result[b], expected, atol=1e-9)


@pytest.mark.parametrize("biased", [False, True])
def test_padded_keys_take_no_part_whatever_they_hold(module: Attention, biased: bool) -> None:
    query, keys = draw(2, 5, C), draw(2, 7, C)
    bias = draw(2, 7) if biased else None
    valid = torch.arange(7) < torch.tensor([[7], [3]])
    result = biased_attention(module, query, keys, bias, valid)
    keys[1, 3:] = 1e3
    torch.testing.assert_close(biased_attention(module, query, keys, bias, valid), result, rtol=0, atol=0)
    alone = biased_attention(module, query[1:], keys[1:, :3], None if bias is None else bias[1:, :3])
    torch.testing.assert_close(result[1:], alone)


def test_order_of_keys_changes_nothing(module: Attention) -> None:
    query, keys, bias = draw(1, 5, C), draw(1, 7, C), draw(1, 7)
    order = torch.randperm(7)
    shuffled = biased_attention(module, query, keys[:, order], bias[:, order])
    torch.testing.assert_close(shuffled, biased_attention(module, query, keys, bias))


def test_sample_without_keys_gives_zeros_and_finite_gradients(module: Attention) -> None:
    query = draw(2, 5, C).requires_grad_()
    keys = draw(2, 4, C).requires_grad_()
    valid = torch.tensor([[True, True, False, False], [False] * 4])
    result = module(query, keys, valid)
    assert (result[1] == 0).all()
    assert (result[0] != 0).any()
    result.sum().backward()
    assert query.grad is not None
    assert keys.grad is not None
    assert query.grad.isfinite().all()
    assert keys.grad.isfinite().all()
    assert (keys.grad[1] == 0).all()


def test_batch_without_any_key_or_query_gives_zeros(module: Attention) -> None:
    assert (module(draw(2, 5, C), draw(2, 0, C)) == 0).all()
    assert module(draw(2, 0, C), draw(2, 5, C)).shape == (2, 0, C)


def test_gradients_of_all_inputs_agree_with_finite_differences() -> None:
    torch.manual_seed(1)
    inputs = [draw(2, 3, 4).requires_grad_() for _ in range(3)] + [draw(2, 3).requires_grad_()]
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda q, k, v, bias: attend(q, Keys(k, v, valid, bias), 2), inputs)
    assert torch.autograd.gradcheck(lambda q, k, v, bias: attend(q, Keys(k, v, None, bias), 2), inputs)


def test_holds_three_projections_and_no_more() -> None:
    assert sum(p.numel() for p in Attention(10, 2).parameters()) == 3 * (10 * 10 + 10)
