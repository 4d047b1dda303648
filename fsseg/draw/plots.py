"""Plots: training curves; for the experiments, shares of episodes by distance, and mIoU against background shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fsseg.draw.sheets import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, in the order of the rows: baseline first, the full method last.
COLOURS = ("#999999", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7")
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
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


def distance_histograms(
    path: Path, labels: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]], title: str
) -> None:
    """Figure 5 of the paper: one panel a setting, bars side by side for each model.

    Args:
        labels: names of the bins.
        panels: heading of a panel -> model -> share of episodes in each bin, in percent.
    """
    figure = new_figure(5.4 * len(panels), 3.6)
    tallest = max((share for models in panels.values() for shares in models.values() for share in shares), default=1.0)
    for index, (heading, models) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        width = 0.8 / max(1, len(models))
        for place, (model, shares) in enumerate(models.items()):
            left = [i - 0.4 + (place + 0.5) * width for i in range(len(labels))]
            axes.bar(left, shares, width * 0.94, color=COLOURS[place % len(COLOURS)], label=model)
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_xlabel("cosine distance of mean foreground features")
        axes.set_ylim(0, 1.08 * tallest)
        axes.set_title(heading, fontsize=10, parse_math=False)
        _tidy(axes)
        if index == 0:
            axes.set_ylabel("share of episodes in percent")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, ncols=len(names), frameon=False, fontsize=8.5, loc="lower center")
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    save_figure(figure, path)


def miou_against_shift(
    path: Path, series: Mapping[str, Sequence[tuple[float, float, float | None]]], title: str
) -> None:
    """Lines of mIoU over background shift, with the spread over training seeds as error bars.

    Args:
        series: model -> (shift, mIoU, standard deviation or None), by rising shift.
    """
    figure = new_figure(5.4, 3.8)
    axes = figure.add_subplot(1, 1, 1)
    for place, (model, points) in enumerate(series.items()):
        axes.errorbar(
            [shift + 0.006 * (place - (len(series) - 1) / 2) for shift, _, _ in points],  # no bar hides another
            [miou for _, miou, _ in points],
            [std or 0.0 for _, _, std in points],
            color=COLOURS[place % len(COLOURS)], marker="o", markersize=5, linewidth=1.8, capsize=3, label=model,
        )  # fmt: skip
    axes.set_xticks(sorted({shift for points in series.values() for shift, _, _ in points}))
    axes.set_xlabel("background shift of support and query (0: one family, 1: two)")
    axes.set_ylabel("mIoU in percent")
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    figure.tight_layout()
    save_figure(figure, path)


def _tidy(axes: Axes, grid: Literal["both", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis=grid)
    axes.set_axisbelow(True)
