"""The loss by hand, and the prediction at image size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fsseg.model.base import FewShotModel, Prediction, cross_entropy

LN2 = math.log(2)


class Plain(FewShotModel):
    loss_weight = 0.2


def prediction(rounds: int, hats: int, value: float = 0.0) -> Prediction:
    logits = [
        torch.tensor([0.0, value]).view(1, 2, 1, 1).repeat(2, 1, 3, 3).requires_grad_() for _ in range(rounds + hats)
    ]
    return Prediction(logits[:rounds], (9, 9), logits[rounds:])


def test_loss_sums_all_rounds_and_weighs_the_hats() -> None:
    total, terms = Plain().loss(prediction(3, 2), torch.ones(2, 9, 9, dtype=torch.uint8))
    assert total.item() == pytest.approx((3 + 0.2 * 2) * LN2, rel=1e-6)
    assert list(terms) == ["p_1", "p_2", "p_3", "p_hat_1", "p_hat_2"]
    assert all(term.item() == pytest.approx(LN2, rel=1e-6) and not term.requires_grad for term in terms.values())


def test_ignored_pixels_do_not_count() -> None:
    # Foreground logit ln 3: p = 3/4. Foreground pixels cost ln(4/3), background ones ln 4.
    mask = torch.full((2, 9, 9), 255, dtype=torch.uint8)
    mask[0, :, 0] = 1
    mask[1, 0, 0] = 0
    total, _ = Plain().loss(prediction(1, 0, math.log(3)), mask)
    assert total.item() == pytest.approx((9 * math.log(4 / 3) + math.log(4)) / 10, rel=1e-5)


def test_ignored_pixels_are_background_where_asked_for() -> None:
    mask = torch.full((2, 9, 9), 255, dtype=torch.uint8)
    mask[0] = 1
    total, _ = Plain().loss(prediction(1, 0, math.log(3)), mask, ignore_in_loss=False)
    assert total.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-5)


def test_a_batch_of_ignored_pixels_costs_nothing_and_pulls_nowhere() -> None:
    given = prediction(2, 1)
    total, _ = Plain().loss(given, torch.full((2, 9, 9), 255, dtype=torch.uint8))
    total.backward()
    assert total.item() == 0
    for logits in given.rounds + given.hats:
        assert logits.grad is not None
        assert (logits.grad == 0).all()


def test_cross_entropy_is_torchs_mean_where_that_is_defined() -> None:
    logits = torch.randn(2, 2, 5, 5)
    target = torch.randint(0, 2, (2, 5, 5))
    target[0, :2] = 255
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target, ignore_index=255))


def test_cells_lie_at_multiples_of_the_stride() -> None:
    logits = torch.randn(1, 2, 3, 3)
    full = Prediction([torch.zeros(1, 2, 3, 3), logits], (17, 17)).logits
    assert full.shape == (1, 2, 17, 17)
    torch.testing.assert_close(full[..., ::8, ::8], logits)
    torch.testing.assert_close(full[..., 0, 4], (logits[..., 0, 0] + logits[..., 0, 1]) / 2)


def test_rounds_count_from_one() -> None:
    given = Prediction([torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)], (5, 5))
    assert given.logits_of_round(1).sum() == 0
    assert torch.equal(given.logits_of_round(2), given.logits)
    for t in (0, 3, -1):
        with pytest.raises(IndexError):
            given.logits_of_round(t)


def test_half_precision_logits_are_compared_in_single_precision() -> None:
    given = Prediction([torch.zeros(1, 2, 3, 3, dtype=torch.bfloat16)], (9, 9))
    assert given.logits.dtype == torch.float32
