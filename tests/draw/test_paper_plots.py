"""Plots for a paper: width, letters, what of them is inside the picture, and that they are the same twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fsseg.draw import plots

BINS = [f"0.{i}-0.{i + 1}" for i in range(7)]
MODELS: Mapping[str, Sequence[float]] = {
    f"baseline + {name}": [20.0, 30, 9, 9, 9, 9, 14] for name in ("a", "SM", "SM + IC")
}
SERIES = {name: [(0.0, 60.0, 1.0), (0.5, 50.0, 1.0), (1.0, 40.0, None)] for name in MODELS}


def drawings() -> dict[str, tuple[float, Callable[[plots._Form], Figure]]]:
    panels = {f"background shift {i}": MODELS for i in range(4)}
    return {
        "one panel": (3.25, partial(plots._histograms, BINS, {"x": MODELS}, "title")),
        "four panels": (6.875, partial(plots._histograms, BINS, panels, "title")),
        "lines": (3.25, partial(plots._lines_over_shift, SERIES, "title")),
    }


@pytest.mark.parametrize("name", drawings())
def test_a_plot_for_a_paper_has_the_width_of_a_column_and_letters_that_can_be_read(name: str) -> None:
    width, draw = drawings()[name]
    figure = draw(plots._PAPER)
    assert figure.get_figwidth() == width
    letters = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text().strip()]
    assert len(letters) > 10
    assert min(t.get_fontsize() for t in letters) >= 7
    drawn = figure.get_tightbbox()
    assert drawn.x0 > -0.01
    assert drawn.y0 > -0.01
    assert drawn.x1 < figure.get_figwidth() + 0.01
    assert drawn.y1 < figure.get_figheight() + 0.01


def test_pdf_and_svg_stand_beside_the_png_with_fonts_and_without_a_date(tmp_path: Path) -> None:
    files = plots.miou_against_shift(tmp_path / "p.png", SERIES, "title")
    assert [f.name for f in files] == ["p.pdf", "p.svg"]
    pdf, svg = (f.read_bytes() for f in files)
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([0-9.]+) ([0-9.]+) \]", pdf)
    assert float(box[0]) == pytest.approx(3.25 * 72)
    assert b"/CIDFontType2" in pdf  # what type 42 is in a PDF
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"<text" not in svg
    assert b"<dc:date>" not in svg
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    plots.miou_against_shift(tmp_path / "p.png", SERIES, "title")
    assert [f.read_bytes() for f in files] == [pdf, svg]
