"""The loss by hand, and the prediction at image size."""

from __future__ import annotations

import math
from random import Random

import model_samples as samples
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsseg.data.transforms import TrainTransform
from fsseg.data.types import Batch
from fsseg.model.base import FewShotModel, Prediction, cross_entropy, training_target

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


def padded() -> Batch:
    """Two 9 x 9 queries: 6 x 9 of the first and 9 x 4 of the second are image; in each a row of 3 pixels is 255."""
    batch = samples.batch(torch.ones(2, 1, 9, 9), 9)
    batch.query_picture[0, 6:] = False
    batch.query_picture[1, :, 4:] = False
    batch.query_mask[:] = 255
    batch.query_mask[0, :6] = 1
    batch.query_mask[1, :, :4] = 0
    batch.query_mask[:, 2, :3] = 255
    return batch


def test_padding_is_never_trained() -> None:
    batch = padded()
    assert torch.equal(training_target(batch), batch.query_mask)
    target = training_target(batch, ignore_in_loss=False)
    expected = batch.query_mask.clone()
    expected[:, 2, :3] = 0  # annotated as 255, inside the image
    assert torch.equal(target, expected)
    assert (batch.query_mask[:, 2, :3] == 255).all()  # the batch is left as it was
    # Foreground logit ln 3: of 54 + 36 pixels 51 are foreground and cost ln(4/3), 36 + 3 background ones cost ln 4.
    total, _ = Plain().loss(prediction(1, 0, math.log(3)), target)
    assert total.item() == pytest.approx((51 * math.log(4 / 3) + 39 * math.log(4)) / 90, rel=1e-5)


def test_a_picture_in_the_mean_colour_is_no_padding() -> None:
    batch = padded()
    batch.query_image[:] = 0
    expected = batch.query_mask.clone()
    expected[:, 2, :3] = 0
    assert torch.equal(training_target(batch, ignore_in_loss=False), expected)


def test_the_corners_of_a_rotated_image_are_padding_too() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[10:14, 15:25] = 1
    transform = TrainTransform(41, (1.0, 1.0), rotate_degrees=60.0, flip_probability=0.5, crop_keep=0.0)
    corners = 0
    for seed in range(4):
        batch = samples.batch(torch.ones(1, 1, 41, 41), 41)
        plain = transform(image, mask, Random(seed))  # every 255 is padding: nothing is annotated so
        batch.query_image, batch.query_mask, batch.query_picture = (
            plain.image[None],
            plain.mask[None],
            plain.picture[None],
        )
        assert torch.equal(training_target(batch, ignore_in_loss=False), batch.query_mask)
        corners += int((plain.mask[: plain.valid_size[0], : plain.valid_size[1]] == 255).sum())

        # the same place with all background annotated as 255: only the padding stays so
        ignored = transform(image, np.where(mask == 1, 1, 255).astype(np.uint8), Random(seed))
        batch.query_mask, batch.query_picture = ignored.mask[None], ignored.picture[None]
        assert torch.equal(training_target(batch, ignore_in_loss=False), plain.mask[None])
    assert corners > 0


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
