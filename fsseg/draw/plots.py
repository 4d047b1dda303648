"""Plots: training curves; for the experiments, shares of episodes by distance, and mIoU against background shift."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fsseg.draw.sheets import new_figure, save_figure
from fsseg.process.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE_COLUMN, DOUBLE_COLUMN = 3.25, 6.875
"""Inches of a column of a paper of two columns, and of both."""

# Okabe and Ito's palette, in the order of the rows: baseline first, the full method last.
COLOURS = ("#999999", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7")
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = "os^Dvp"  # lines are told apart without colours too
_SCORE = "score in percent"


def training_curves(path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bool:
    """Loss, learning rate and, where recorded, the scores of validation over the steps of a metrics.csv, as a PNG.

    The columns are found by name: those that contain `loss`, `lr`, and those that end in `miou` or `fb_iou`; a prefix
    such as `train/` or `base/` may stand before each. Written atomically.

    Args:
        curves: column -> (steps, values), as `RunDirectory.curves` reads them.

    Returns:
        False, with nothing written, if there is no loss, learning rate or score.
    """
    groups = [
        ("loss", {k: v for k, v in curves.items() if "loss" in k.lower()}),
        ("learning rate", {k: v for k, v in curves.items() if k.rsplit("/", 1)[-1].lower() == "lr"}),
        (_SCORE, {k: v for k, v in curves.items() if k.lower().endswith(("miou", "fb_iou"))}),
    ]
    groups = [(label, group) for label, group in groups if group]
    if not groups:
        return False
    figure = new_figure(4.6 * len(groups), 3.4)
    for index, (label, group) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), index + 1, sharex=figure.axes[0] if figure.axes else None)
        for colour, (name, (steps, values)) in zip(_LINE_COLOURS * len(group), group.items()):
            _draw_curve(axes, steps, values, colour, name, smooth=label == "loss")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        _tidy(axes, "both")
        if label == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
        if label != _SCORE:
            axes.set_ylim(bottom=0)
        elif all(name.startswith("base/") for name in group):
            axes.set_title("base classes, images held back", fontsize=9)
        if len(group) > 1 or label == "loss":
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
    return True


def _draw_curve(
    axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, name: str, smooth: bool
) -> None:
    window = len(values) // 20
    if not smooth or window < 3:
        axes.plot(
            steps, values, color=colour, linewidth=1.4, label=name, marker="o" if len(values) < 20 else "", markersize=3
        )
        return
    axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    means = (sums[window:] - sums[:-window]) / window
    axes.plot(steps[window - 1 :], means, color=colour, linewidth=1.6, label=f"{name} (mean of {window} rows)")


_LEAST_HEIGHT = 2.1  # inches of a panel


@dataclass(frozen=True)
class _Form:
    """How a plot is drawn: for a screen as PNG, or for a paper at the width of a column.

    Attributes:
        width: inches of a single panel; `wide` of several side by side in all, None for a multiple of `width`.
        text, small: sizes of the letters in points.
        titled: it says what it is; in a paper the caption does.
    """

    width: float
    wide: float | None
    ratio: float
    text: float
    small: float
    titled: bool

    def figure(self, panels: int, legend: int = 0) -> Figure:
        """An empty figure for so many panels, with room for so many lines of a legend below them."""
        width = self.width * panels if panels == 1 or self.wide is None else self.wide
        height = max(width / panels * self.ratio, _LEAST_HEIGHT)
        return new_figure(width, height + legend * 1.8 * self.small / 72)


_SCREEN = _Form(5.4, None, 3.6 / 5.4, 10, 8.5, True)
_PAPER = _Form(SINGLE_COLUMN, DOUBLE_COLUMN, 0.62, 8, 7, False)


def for_paper(path: Path, draw: Callable[[_Form], Figure]) -> list[Path]:
    """Write a plot as PNG, and as PDF and SVG at the width of a column; returns the last two.

    Fonts are in the PDF (type 42, as publishers ask), letters are outlines in the SVG, and neither holds a date.
    """
    save_figure(draw(_SCREEN), path)
    import matplotlib

    with matplotlib.rc_context(
        {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "fsseg", "lines.linewidth": 1}
    ):
        figure = draw(_PAPER)
        files = [path.with_suffix(".pdf"), path.with_suffix(".svg")]
        for file, date in zip(files, ("CreationDate", "Date")):
            out = io.BytesIO()
            figure.savefig(out, format=file.suffix[1:], metadata={date: None})
            write_atomic(file, out.getvalue())
    return files


def distance_histograms(
    path: Path, labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]], title: str
) -> list[Path]:
    """Figure 5 of the paper: one panel a setting, bars side by side for each model. Files as `for_paper` writes them.

    Args:
        labels: names of the bins.
        panels: heading of a panel -> model -> share of episodes in each bin, in percent.
    """
    return for_paper(path, partial(_histograms, labels, panels, title))


def _histograms(
    labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, form: _Form
) -> Figure:
    models = list(dict.fromkeys(model for of_panel in panels.values() for model in of_panel))
    columns = len(models) if form.titled or len(panels) > 1 else 2
    lines = -(-len(models) // max(1, columns))
    figure = form.figure(len(panels), lines)
    tallest = max((share for models in panels.values() for shares in models.values() for share in shares), default=1.0)
    for index, (heading, of_panel) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        width = 0.8 / max(1, len(of_panel))
        for place, (model, shares) in enumerate(of_panel.items()):
            left = [i - 0.4 + (place + 0.5) * width for i in range(len(labels))]
            axes.bar(left, shares, width * 0.94, color=COLOURS[place % len(COLOURS)], label=model)
        axes.set_xticks(range(len(labels)), labels, fontsize=form.small, rotation=0 if form.titled else 45)
        axes.tick_params(axis="y", labelsize=form.small)
        long = form.titled or len(panels) == 1
        axes.set_xlabel("cosine distance" + " of mean foreground features" * long, fontsize=form.text)
        axes.set_ylim(0, 1.08 * tallest)
        if form.titled or len(panels) > 1:
            axes.set_title(heading, fontsize=form.text, parse_math=False)
        _tidy(axes)
        if index == 0:
            axes.set_ylabel(f"{'share of ' * form.titled}episodes in percent", fontsize=form.text)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=columns, frameon=False, fontsize=form.small, loc="lower center")
    if form.titled:
        figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    figure.tight_layout(rect=(0, lines * 1.8 * form.small / 72 / figure.get_figheight(), 1, 1))
    return figure


def miou_against_shift(
    path: Path, series: Mapping[str, Sequence[tuple[float, float, float | None]]], title: str
) -> list[Path]:
    """Lines of mIoU over background shift, with the spread over training seeds as error bars. Files as `for_paper`
    writes them.

    Args:
        series: model -> (shift, mIoU, standard deviation or None), by rising shift.
    """
    return for_paper(path, partial(_lines_over_shift, series, title))


def _lines_over_shift(
    series: Mapping[str, Sequence[tuple[float, float, float | None]]], title: str, form: _Form
) -> Figure:
    figure = form.figure(1)
    axes = figure.add_subplot(1, 1, 1)
    scale = form.width / _SCREEN.width
    for place, (model, points) in enumerate(series.items()):
        axes.errorbar(
            [shift + 0.006 * (place - (len(series) - 1) / 2) for shift, _, _ in points],  # no bar hides another
            [miou for _, miou, _ in points],
            [std or 0.0 for _, _, std in points],
            color=COLOURS[place % len(COLOURS)], marker=_MARKERS[place % len(_MARKERS)], markersize=5 * scale,
            linewidth=1.8 * scale, capsize=3 * scale, label=model,
        )  # fmt: skip
    axes.set_xticks(sorted({shift for points in series.values() for shift, _, _ in points}))
    axes.tick_params(labelsize=form.small)
    of_both = " of support and query" * form.titled
    axes.set_xlabel(f"background shift{of_both} (0: one family, 1: two)", fontsize=form.text)
    axes.set_ylabel("mIoU in percent", fontsize=form.text)
    axes.legend(frameon=False, fontsize=form.small)
    _tidy(axes)
    if form.titled:
        figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    figure.tight_layout()
    return figure


def _tidy(axes: Axes, grid: Literal["both", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis=grid)
    axes.set_axisbelow(True)
