"""The curves of a training: which panels are drawn of a metrics.csv (`tests/cell/test_record.py` says what is read)."""

from __future__ import annotations

import pytest
from PIL import Image

from fsseg.draw.plots import training_curves


def test_curves_have_a_panel_for_miou_only_where_it_was_recorded(tmp_path):
    steps = [float(s) for s in range(1, 200)]
    two = {"loss": (steps, [1 / s for s in steps]), "lr": (steps, [0.1] * len(steps))}
    assert training_curves(tmp_path / "two.png", two)
    assert training_curves(tmp_path / "three.png", two | {"val/miou": ([1.0, 2.0], [30.0, 40.0])})
    base = {"base/miou": ([1.0, 2.0], [30.0, 40.0]), "base/fb_iou": ([1.0, 2.0], [60.0, 70.0])}
    assert training_curves(tmp_path / "base.png", two | base)
    assert Image.open(tmp_path / "base.png").size == Image.open(tmp_path / "three.png").size
    narrow, wide = Image.open(tmp_path / "two.png"), Image.open(tmp_path / "three.png")
    assert wide.width / narrow.width == pytest.approx(1.5, abs=0.01)


def test_no_curves_are_drawn_of_nothing(tmp_path):
    assert not training_curves(tmp_path / "a.png", {})
    assert not training_curves(tmp_path / "a.png", {"seconds_per_step": ([1.0], [0.1])})
    assert not (tmp_path / "a.png").exists()
