"""Masks painted over their images, and sheets of them: the episodes of a run, the samples of `fsseg verify`.

Matplotlib is imported when a figure is drawn, always with the Agg canvas, so that no display is needed and no figure
stays open.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsseg.process.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any colour vision, and in print.
SUPPORT_COLOUR = (0.90, 0.62, 0.00)  # orange
TRUTH_COLOUR = (0.00, 0.62, 0.45)  # bluish green
PREDICTION_COLOUR = (0.00, 0.45, 0.70)  # blue

_PANEL_INCHES, _FOOT_INCHES = 2.1, 0.32
_DPI = 130
# Of the lines of a title: style, and inches that a letter takes at most on average, and a line.
_TITLE: tuple[dict[str, Any], float, float] = ({"fontsize": 11, "weight": "bold"}, 0.105, 0.22)
_SUBTITLE: tuple[dict[str, Any], float, float] = ({"fontsize": 9}, 0.068, 0.18)
_DRAWN_PIXELS = 420  # longer side at which panels are painted: small images are enlarged before the outline is drawn


@dataclass
class SheetRow:
    """One episode of a sheet. Images (H, W, 3) uint8, masks (H, W) uint8 in {0, 1, 255}, each mask as its image.

    Attributes:
        support_images, support_masks: K of each.
        prediction: (H, W) uint8 in {0, 1}, of the query's size.
        class_name: what was to be found.
        iou: of this episode, in percent; None leaves it out.
        note: further lines beside the row, e.g. the image's name.
        answers: names and predictions that are shown in place of `prediction`: intermediate steps, or several models'.
    """

    support_images: Sequence[NDArray[np.uint8]]
    support_masks: Sequence[NDArray[np.uint8]]
    query_image: NDArray[np.uint8]
    query_mask: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    class_name: str
    iou: float | None = None
    note: str = ""
    answers: Sequence[tuple[str, NDArray[np.uint8]]] = field(default_factory=tuple)


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


@dataclass(frozen=True)
class Tile:
    """One picture of a `sample_sheet`: (H, W, 3) uint8, its mask (H, W) uint8 in {0, 1, 255}, two lines below it.

    Without a mask the picture is shown as it is.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    caption: str
    colour: tuple[float, float, float] = TRUTH_COLOUR


def sample_sheet(
    path: Path,
    samples: Sequence[Tile],
    columns: int = 5,
    legend: Mapping[str, tuple[float, float, float]] = MappingProxyType({"mask": TRUTH_COLOUR}),
) -> None:
    """A PNG of masks over their images with captions, `columns` side by side. Written atomically.

    Args:
        legend: what the colours stand for.

    Raises:
        ValueError: a mask does not fit its image.
    """
    top, text = 0.0, 0.4  # inches; text is for a caption
    painted = [paint(sample.image, sample.mask, sample.colour) for sample in samples]
    rows = [range(start, min(start + columns, len(samples))) for start in range(0, len(samples), columns)]
    heights = [_row_inches([painted[k] for k in row]) for row in rows]
    page = _Page(columns * _PANEL_INCHES, sum(heights) + len(rows) * text + _FOOT_INCHES)
    for row, height in zip(rows, heights):
        for column, k in enumerate(row):
            left = column * _PANEL_INCHES
            page.show(painted[k], left, top, height)
            page.text(left + _PANEL_INCHES / 2, top + height, samples[k].caption, ha="center", va="top", fontsize=8)
        top += height + text
    page.legend(legend, 0.1)
    save_figure(page.figure, path)


def episode_sheet(path: Path, rows: Sequence[SheetRow], title: str = "") -> None:
    """A PNG with one episode a row: its supports with their masks, the query, the truth, the prediction or `answers`.

    Images of any sizes are fitted into equal panels. Written atomically.

    Args:
        rows: they may differ in their number of supports, not in their answers.
        title: what does not fit into the width goes on in the next line; lines after the first are in small letters.

    Raises:
        ValueError: no rows, or a mask that does not fit its image.
    """
    if not rows:
        raise ValueError("a sheet needs at least one episode")
    shots = max(len(row.support_images) for row in rows)
    headings = ["support" if shots == 1 else f"support {k + 1}" for k in range(shots)]
    headings += ["query", "truth"] + ([name for name, _ in rows[0].answers] or ["prediction"])
    side = 1.25  # inches for the labels at the left
    width = side + len(headings) * _PANEL_INCHES
    lines = _title_lines(title, width)
    top = 0.3 + sum(height for *_, height in lines) + (0.1 if lines else 0)  # inches for title and headings
    painted = [_panels(row, shots) for row in rows]
    heights = [_row_inches(panels) for panels in painted]
    page = _Page(width, top + sum(heights) + _FOOT_INCHES)
    down = 0.1
    for line, style, height in lines:
        page.text(0.1, down, line, va="top", **style)
        down += height
    for column, heading in enumerate(headings):
        page.text(side + (column + 0.5) * _PANEL_INCHES, top - 0.06, heading, fontsize=10, ha="center", va="bottom")
    for row, panels, height in zip(rows, painted, heights):
        for column, panel in enumerate(panels):
            if panel is not None:
                page.show(panel, side + column * _PANEL_INCHES, top, height)
        about = ([f"IoU {row.iou:.1f}"] if row.iou is not None else []) + ([row.note] if row.note else [])
        name = "\n".join(textwrap.wrap(row.class_name, 13) or [row.class_name])
        page.text(0.1, top + height / 2 - 0.1, name, fontsize=10, weight="bold", va="bottom")
        page.text(0.1, top + height / 2 - 0.04, "\n".join(about), fontsize=9, va="top", linespacing=1.5)
        top += height
    page.legend({"support mask": SUPPORT_COLOUR, "truth": TRUTH_COLOUR, "prediction": PREDICTION_COLOUR}, side)
    save_figure(page.figure, path)


def _title_lines(title: str, width: float) -> list[tuple[str, dict[str, Any], float]]:
    """The lines of a title on a page of `width` inches: text, style, and height in inches."""
    found: list[tuple[str, dict[str, Any], float]] = []
    for text in title.splitlines():
        style, letter, height = _TITLE if not found else _SUBTITLE
        wrapped = textwrap.wrap(text, int((width - 0.2) / letter), break_on_hyphens=False)
        found += [(line, style, height) for line in wrapped]
    return found


class _Page:
    """A figure that is filled in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height, self.figure = width, height, new_figure(width, height)

    def show(self, panel: NDArray[np.uint8], left: float, top: float, height: float) -> None:
        """A picture, fitted into a panel of `height` with its upper left corner there."""
        gap = 0.04
        x, width = (left + gap) / self.width, (_PANEL_INCHES - 2 * gap) / self.width
        y = 1 - (top + height - gap) / self.height
        axes = self.figure.add_axes((x, y, width, (height - 2 * gap) / self.height))
        axes.set_axis_off()
        axes.imshow(panel, interpolation="antialiased")

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - top / self.height, text, parse_math=False, **style)

    def legend(self, colours: Mapping[str, tuple[float, float, float]], left: float) -> None:
        """Legend of the mask colours, at the foot of the page."""
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=(*colour, 0.6), edgecolor=colour, label=name) for name, colour in colours.items()]
        handles.append(Patch(facecolor="0.8", edgecolor="0.35", hatch="////", label="ignored (255)"))
        self.figure.legend(
            handles=handles, ncols=len(handles), frameon=False, fontsize=8.5, loc="center left", borderaxespad=0,
            bbox_to_anchor=(left / self.width, _FOOT_INCHES / 2 / self.height),
        )  # fmt: skip


def _panels(episode: SheetRow, shots: int) -> list[NDArray[np.uint8] | None]:
    pairs = list(zip(episode.support_images, episode.support_masks))
    supports: list[NDArray[np.uint8] | None] = [paint(image, mask, SUPPORT_COLOUR) for image, mask in pairs]
    supports += [None] * (shots - len(pairs))
    predictions = [mask for _, mask in episode.answers] or [episode.prediction]
    return [
        *supports,
        paint(episode.query_image, None, TRUTH_COLOUR),
        paint(episode.query_image, episode.query_mask, TRUTH_COLOUR),
        *(paint(episode.query_image, (mask == 1).astype(np.uint8), PREDICTION_COLOUR) for mask in predictions),
    ]


def _row_inches(panels: Sequence[NDArray[np.uint8] | None]) -> float:
    """Height of a row: that of its tallest picture at a panel's width, within limits that keep labels legible."""
    tallest = max(panel.shape[0] / panel.shape[1] for panel in panels if panel is not None)
    return _PANEL_INCHES * min(max(tallest, 0.5), 1.0)


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
