"""Pictures of a run: sheets of support | query | truth | prediction, and the curves of its training.

`run` calls both after evaluation. Matplotlib is imported when a figure is drawn, always with the Agg canvas, so that no
display is needed and no figure stays open.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsseg.process.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in print.
SUPPORT_COLOUR = (0.90, 0.62, 0.00)  # orange
TRUTH_COLOUR = (0.00, 0.62, 0.45)  # bluish green
PREDICTION_COLOUR = (0.00, 0.45, 0.70)  # blue
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

_PANEL_INCHES = 2.1
_DPI = 130
_DRAWN_PIXELS = 420  # longer side at which panels are painted: small images are enlarged before the outline is drawn


@dataclass
class SheetRow:
    """One episode of a sheet. Images (H, W, 3) uint8, masks (H, W) uint8 in {0, 1, 255}, each mask as its image.

    Attributes:
        support_images, support_masks: K of each.
        prediction: (H, W) uint8 in {0, 1}, of the query's size.
        class_name: what was to be found.
        iou: of this episode, in percent; None leaves it out.
        note: a second line beside the row, e.g. the image's name.
        steps: predictions on the way, with their names; where rows have them they stand in place of `prediction`.
    """

    support_images: Sequence[NDArray[np.uint8]]
    support_masks: Sequence[NDArray[np.uint8]]
    query_image: NDArray[np.uint8]
    query_mask: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    class_name: str
    iou: float | None = None
    note: str = ""
    steps: Sequence[tuple[str, NDArray[np.uint8]]] = field(default_factory=tuple)


def paint(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    colour: tuple[float, float, float],
    side: int = _DRAWN_PIXELS,
) -> NDArray[np.uint8]:
    """An image with its mask as tint and outline, enlarged so that the longer side has at least `side` pixels.

    The image is enlarged smoothly, the mask by repeating pixels, so that the outline runs where the mask ends. Pixels
    of 255 are greyed and hatched.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 in {0, 1, 255}, or None for the bare image.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: image and mask differ in size, or have other shapes.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3), not {image.shape}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} and image {image.shape[:2]} differ in size")
    height, width = image.shape[:2]
    scale = max(1.0, side / max(height, width))
    size = (round(width * scale), round(height * scale))
    canvas = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    if mask is None:
        return _to_bytes(canvas)
    large = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    foreground, ignored = large == 1, large == 255
    tint = np.asarray(colour, dtype=np.float32)
    # A light tint, and everything else dimmed: what the object looks like, its colour too, must stay visible.
    canvas = np.where(foreground[..., None], 0.85 * canvas + 0.15 * tint, 0.5 * canvas)
    thickness = max(2, max(size) // 140)
    rows, columns = np.indices(large.shape)
    period = 3 * thickness
    hatch = ignored & ((rows + columns) % period < thickness)
    canvas = np.where(ignored[..., None], 0.45 * canvas + 0.55 * 0.75, canvas)
    canvas = np.where(hatch[..., None], 0.35, canvas)
    # A light line outside, a coloured one inside: the border shows on any background.
    outside = _dilate(foreground, thickness) & ~foreground & ~ignored
    inside = foreground & _dilate(~foreground, thickness)
    canvas = np.where(outside[..., None], 1.0, canvas)
    canvas = np.where(inside[..., None], tint, canvas)
    return _to_bytes(canvas)


def episode_sheet(path: str | Path, rows: Sequence[SheetRow | dict[str, Any]], title: str = "") -> None:
    """A PNG with one episode a row: its supports with their masks, the query, the truth, the prediction or its steps.

    Images of any sizes are fitted into equal panels. Written atomically.

    Args:
        rows: `SheetRow`s, or dicts of its fields; rows may differ in their number of supports, not in their steps.

    Raises:
        ValueError: no rows, or a mask that does not fit its image.
    """
    episodes = [row if isinstance(row, SheetRow) else SheetRow(**row) for row in rows]
    if not episodes:
        raise ValueError("a sheet needs at least one episode")
    shots = max(len(e.support_images) for e in episodes)
    headings = ["support" if shots == 1 else f"support {k + 1}" for k in range(shots)]
    headings += ["query", "truth"] + ([name for name, _ in episodes[0].steps] or ["prediction"])
    columns = len(headings)
    top, side = 0.62 if title else 0.3, 1.25  # inches for headings, and for the labels at the left
    foot = 0.32
    gap = 0.04
    painted = [_panels(episode, shots) for episode in episodes]
    row_inches = [_row_inches(panels) for panels in painted]
    width, height = side + columns * _PANEL_INCHES, top + foot + sum(row_inches)
    figure = new_figure(width, height)
    bottom = height - top
    for episode, panels, inches in zip(episodes, painted, row_inches):
        bottom -= inches
        for column, panel in enumerate(panels):
            left = side + column * _PANEL_INCHES
            box = (
                (left + gap) / width,
                (bottom + gap) / height,
                (_PANEL_INCHES - 2 * gap) / width,
                (inches - 2 * gap) / height,
            )
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if panel is not None:
                axes.imshow(panel, interpolation="antialiased")
        middle = (bottom + inches / 2) / height
        figure.text(
            0.1 / width,
            middle + 0.1 / height,
            _wrapped(episode.class_name),
            fontsize=10,
            weight="bold",
            va="bottom",
            parse_math=False,
        )
        lines = ([f"IoU {episode.iou:.1f}"] if episode.iou is not None else []) + (
            [episode.note] if episode.note else []
        )
        figure.text(
            0.1 / width,
            middle + 0.04 / height,
            "\n".join(lines),
            fontsize=9,
            va="top",
            parse_math=False,
            linespacing=1.5,
        )
    for column, heading in enumerate(headings):
        centre = (side + (column + 0.5) * _PANEL_INCHES) / width
        figure.text(centre, 1 - (top - 0.06) / height, heading, fontsize=10, ha="center", va="bottom", parse_math=False)
    if title:
        figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=11, weight="bold", va="top", parse_math=False)
    _legend(figure, side / width, foot / 2 / height)
    save_figure(figure, Path(path))


Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def training_curves(path: str | Path, curves: Curves, title: str = "") -> bool:
    """Loss, learning rate and, where recorded, validation mIoU over the steps of a metrics.csv, as a PNG.

    The columns are found by name: those that contain `loss`, `lr`, and those that contain `miou`; a prefix such as
    `train/` may stand before each. Written atomically.

    Args:
        curves: column -> (steps, values), as `RunDirectory.curves` reads them.

    Returns:
        False, with nothing written, if there is no loss, learning rate or mIoU.
    """
    groups = [
        ("loss", {k: v for k, v in curves.items() if "loss" in k.lower()}),
        ("learning rate", {k: v for k, v in curves.items() if k.rsplit("/", 1)[-1].lower() == "lr"}),
        ("mIoU in percent", {k: v for k, v in curves.items() if "miou" in k.lower()}),
    ]
    groups = [(label, group) for label, group in groups if group]
    if not groups:
        return False
    figure = new_figure(4.6 * len(groups), 3.4)
    for index, (label, group) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), index + 1)
        for colour, (name, (steps, values)) in zip(_LINE_COLOURS * len(group), group.items()):
            _draw_curve(axes, steps, values, colour, name, smooth=label == "loss")
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if label == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
        if label != "mIoU in percent":
            axes.set_ylim(bottom=0)
        if len(group) > 1 or label == "loss":
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    figure.tight_layout()
    save_figure(figure, Path(path))
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


def _panels(episode: SheetRow, shots: int) -> list[NDArray[np.uint8] | None]:
    pairs = list(zip(episode.support_images, episode.support_masks))
    supports: list[NDArray[np.uint8] | None] = [paint(image, mask, SUPPORT_COLOUR) for image, mask in pairs]
    supports += [None] * (shots - len(pairs))
    predictions = [mask for _, mask in episode.steps] or [episode.prediction]
    return [
        *supports,
        paint(episode.query_image, None, TRUTH_COLOUR),
        paint(episode.query_image, episode.query_mask, TRUTH_COLOUR),
        *(paint(episode.query_image, (mask == 1).astype(np.uint8), PREDICTION_COLOUR) for mask in predictions),
    ]


def _row_inches(panels: list[NDArray[np.uint8] | None]) -> float:
    """Height of a row: that of its tallest picture at a panel's width, within limits that keep labels legible."""
    tallest = max(panel.shape[0] / panel.shape[1] for panel in panels if panel is not None)
    return _PANEL_INCHES * min(max(tallest, 0.5), 1.0)


def _legend(figure: Figure, left: float, middle: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=(*SUPPORT_COLOUR, 0.6), edgecolor=SUPPORT_COLOUR, label="support mask"),
        Patch(facecolor=(*TRUTH_COLOUR, 0.6), edgecolor=TRUTH_COLOUR, label="truth"),
        Patch(facecolor=(*PREDICTION_COLOUR, 0.6), edgecolor=PREDICTION_COLOUR, label="prediction"),
        Patch(facecolor="0.8", edgecolor="0.35", hatch="////", label="ignored (255)"),
    ]
    figure.legend(
        handles=handles,
        ncols=4,
        frameon=False,
        fontsize=8.5,
        loc="center left",
        bbox_to_anchor=(left, middle),
        borderaxespad=0,
    )


def _wrapped(name: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, 13) or [name])


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Every pixel within `radius` rows and columns of the mask; the picture's edge adds nothing."""
    for axis in (0, 1):
        grown = mask.copy()
        for shift in range(1, radius + 1):
            here: list[slice] = [slice(None), slice(None)]
            there: list[slice] = [slice(None), slice(None)]
            here[axis], there[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(here)] |= mask[tuple(there)]
            grown[tuple(there)] |= mask[tuple(here)]
        mask = grown
    return mask


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)  # not pyplot: nothing global is left open, and no display is asked for
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write it as a PNG, atomically."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    write_atomic(path, out.getvalue())


def _to_bytes(canvas: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
