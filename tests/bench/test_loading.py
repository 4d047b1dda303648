"""The benchmark compares like with like, and its rows say what was measured."""

from __future__ import annotations

import io
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import make_cfg, make_source

from fsseg.bench.loading import bench_loading, format_loading
from fsseg.bench.loading_orders import compare_orders, draw_pictures, format_comparison, straightforward
from fsseg.data.transforms import TrainTransform


@pytest.mark.parametrize("degrees", [0.0, 10.0])
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_both_orders_make_the_same_picture_where_nothing_is_cropped(degrees: float, blur: float) -> None:
    jpeg, png = draw_pictures(1, 0)[0]
    image, mask = (np.array(Image.open(io.BytesIO(data))) for data in (jpeg, png))
    transform = TrainTransform(193, (0.8, 1.0), degrees, blur, 0.5)
    for seed in range(6):
        ours = transform(image, mask, Random(seed))
        pixels, labels, kept = straightforward(image, mask, transform, Random(seed))
        assert kept == 1
        assert (ours.mask != labels.to(torch.uint8)).float().mean() < 0.01
        inside = (ours.mask != 255) & (labels != 255)
        difference = (ours.image - pixels).abs()[:, inside]
        # in units of the standard deviation (about 57 levels): the plain way interpolates twice when it rotates, and
        # its blur has sigma 1.1 instead of 1
        assert difference.mean() < (0.3 if degrees else 0.1)


def test_both_orders_keep_the_same_share_of_the_foreground() -> None:
    found = compare_orders(image_size=65, scale_range=(1.0, 1.8), episodes=150, pictures=draw_pictures(8, 1, (60, 80)))
    assert found.ours_kept == pytest.approx(found.straightforward_kept, abs=0.02)
    assert found.ours_below == pytest.approx(found.straightforward_below, abs=0.06)
    assert 0.5 < found.ours_kept < 0.999  # crops do cut
    assert "times as fast" in format_comparison(found)


def test_a_row_for_every_shot_and_number_of_workers() -> None:
    rows = bench_loading(make_source(), make_cfg(), shots=(1, 2), workers=(0, 1), episodes=8)
    assert [(r.shot, r.workers) for r in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert row.episodes_per_second > 0
        assert row.worker_mb > 1
        assert min(row.decode_ms, row.mask_ms, row.transform_ms) > 0
        assert row.image_size == 33
    assert len(format_loading(rows).splitlines()) == 6


def test_a_shot_that_the_lists_are_too_small_for_is_left_out() -> None:
    rows = bench_loading(make_source(), make_cfg(), shots=(1, 60), workers=(0,), episodes=4)
    assert [r.shot for r in rows] == [1]
