"""The curves of a training: what is read of a metrics.csv, and which panels are drawn."""

from __future__ import annotations

import pytest
from PIL import Image

from fsseg.draw.plots import read_curves, training_curves


def test_curves_skip_empty_and_broken_cells_and_take_the_later_of_two_lines(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss,lr,val/miou\n10,1.0,0.1,\n20,0.9,0.09,40\n20,0.8,0.09,41\n30,nan,0.08,\n40,0.")
    curves = read_curves(file)
    assert curves["train/loss"] == ([10.0, 20.0, 40.0], [1.0, 0.8, 0.0])
    assert curves["lr"] == ([10.0, 20.0, 30.0], [0.1, 0.09, 0.08])
    assert curves["val/miou"] == ([20.0], [41.0])


def test_curves_have_a_panel_for_miou_only_where_it_was_recorded(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss,lr\n" + "".join(f"{s},{1 / s},{0.1}\n" for s in range(1, 200)))
    assert training_curves(tmp_path / "two.png", file)
    file.write_text("step,loss,lr,val/miou\n1,2,0.1,30\n2,1,0.1,40\n")
    assert training_curves(tmp_path / "three.png", file)
    two, three = Image.open(tmp_path / "two.png"), Image.open(tmp_path / "three.png")
    assert three.width / two.width == pytest.approx(1.5, abs=0.01)


def test_no_curves_are_drawn_of_nothing(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\n")
    assert not training_curves(tmp_path / "a.png", file)
    assert not (tmp_path / "a.png").exists()
    with pytest.raises(FileNotFoundError):
        training_curves(tmp_path / "a.png", tmp_path / "absent.csv")
