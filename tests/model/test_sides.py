"""Images whose side is a multiple of the stride (HSNet's 400), not one pixel more: every method takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_samples import abcb, bam, baseline, batch, cell, dino, pfenet, prototype, square_masks

from fsseg.config.schema import BackboneConfig
from fsseg.model import build_model
from fsseg.model.base import upsample
from fsseg.model.blocks.tokens import area_average, picture_cells

RESNET = BackboneConfig(name="resnet18", pretrained=False, trainable_layers=0)
TINY = BackboneConfig(name="tiny", pretrained=False, trainable_layers=5)


@pytest.mark.parametrize(
    ("backbone", "side", "cells"),
    [(TINY, 80, 20), (TINY, 81, 21), (TINY, 84, 21), (TINY, 16, 4), (RESNET, 72, 9), (RESNET, 73, 10), (RESNET, 40, 5)],
)
def test_every_method_runs_forward_and_backward(backbone: BackboneConfig, side: int, cells: int) -> None:
    data = batch(square_masks([[9, 12], [5, 10]], side), side)
    data.query_picture[0, :, side // 2 :] = False  # padding, right
    data.support_pictures[1, 0, : side // 4] = False  # and above
    for model in (abcb(iterations=2), baseline(), baseline(shot_fusion="logits"), pfenet(), bam(), prototype(), dino()):
        method = build_model(cell(model, backbone, shot=2))
        prediction = method(data)
        assert prediction.rounds[-1].shape == (2, 2, cells, cells)
        assert prediction.logits.shape == (2, 2, side, side)
        assert bool(torch.isfinite(prediction.logits).all())
        if method.trainable:
            loss, _ = method.loss(prediction, data.query_mask)
            loss.backward()
            gradients = [p.grad for p in method.parameters() if p.grad is not None]
            assert gradients
            assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize(("side", "stride"), [(400, 8), (80, 4), (72, 8), (401, 8), (81, 4), (633, 8)])
def test_cells_lie_at_multiples_of_the_stride(side: int, stride: int) -> None:
    positions = np.arange(0, side, stride)
    cells = (len(positions), len(positions))
    values = np.random.default_rng(side).random(side)
    line = torch.tensor(values, dtype=torch.float32)[None, None, None].expand(1, 1, side, side)
    half = stride // 2
    expected = [values[max(0, p - half) : p + half + 1].mean() for p in positions]
    assert area_average(line, cells)[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)
    picture = torch.zeros(1, side, side, dtype=torch.bool)
    picture[:, :, side // 3 : side // 2] = True
    found = picture_cells(picture, cells)
    assert found is not None
    assert found[0, 0].tolist() == [side // 3 <= p < side // 2 for p in positions]


def test_answers_of_400_pixels_reach_from_corner_to_corner() -> None:
    line = torch.arange(50.0)[None, None, None].expand(1, 1, 50, 50)
    assert upsample(line, (400, 400))[0, 0, 0].tolist() == pytest.approx((np.arange(400) * 49 / 399).tolist(), abs=1e-4)


def test_answers_of_patches_lie_at_their_middles() -> None:
    line = torch.tensor([0.0, 1.0, 2.0])[None, None, None].expand(1, 1, 3, 3)
    # patches of 4 pixels have their middles at 1.5, 5.5 and 9.5; nothing is known beyond the first and the last
    expected = [min(2.0, max(0.0, (pixel - 1.5) / 4)) for pixel in range(12)]
    assert upsample(line, (12, 12), patches=True)[0, 0, 0].tolist() == pytest.approx(expected)
