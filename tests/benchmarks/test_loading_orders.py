"""The benchmark compares like with like: both orders of work make the same pictures and crops."""

from __future__ import annotations

import io
import re
from random import Random

import numpy as np
import pytest
import torch
from loading_orders import compare_orders, draw_pictures, main, straightforward
from PIL import Image

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
    transform = TrainTransform(65, (1.0, 1.8), 10.0, 1.0)
    found = compare_orders(transform, draw_pictures(8, 1, (60, 80)), episodes=150)
    assert found.ours.kept == pytest.approx(found.straightforward.kept, abs=0.02)
    assert found.ours.below == pytest.approx(found.straightforward.below, abs=0.06)
    assert 0.5 < found.ours.kept < 0.999  # crops do cut


def test_it_runs_as_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["loading_orders.py", "--size", "65", "--episodes", "2"])
    main()
    out = capsys.readouterr().out
    assert "at 65 px" in out
    assert re.search(r"\d\.\d\d times as fast", out)
