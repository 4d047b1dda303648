"""What the page does between an upload and an overlay, without a browser: the page (`fsseg/demo/page.py`) calls it.

Masks come from `fsseg.engine.predict_files`, as those of `fsseg predict`: supports and images are files here too, and a
drawing becomes the PNG that a user would have saved.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.data.own_files import FilePair
from fsseg.data.photos import mask_of, photo
from fsseg.demo.models import Models
from fsseg.draw.overlays import class_colours, overlay
from fsseg.engine.predict import ONE_CLASS
from fsseg.engine.predict_files import Wanted, predict_files
from fsseg.errors import UserError, visible
from fsseg.process.words import count

MOST_SUPPORTS = 20
MOST_QUERIES = 100
"""At one press of the button; `fsseg predict` takes any number."""
_CANVAS = 800  # pixels of the longer side that a mask is drawn on; a larger photo is shown smaller
_LEAST_CANVAS = 400  # likewise; a smaller photo is shown larger, so that a brush has a size that people can use
_DRAWN = "drawn-"  # begins the name of a folder with a drawing; those of uploads are digests
_OPAQUE = 128  # the edge of a stroke is smooth: from here on a pixel is drawn


@dataclass(frozen=True)
class Shown:
    """What the page shows after images were segmented.

    Attributes:
        pictures: (overlay, what is written below it).
        files: to download: the masks, the table, the sheet; and the masks of the supports that were drawn.
        text: what was done, and what could not be.
    """

    pictures: list[tuple[str, str]]
    files: list[str]
    text: str


def told(error: UserError, folder: Path) -> str:
    """An error as the command line tells it, with the names that files have for people.

    Args:
        folder: where uploads lie, each in a folder of its own.
    """
    return re.sub(re.escape(str(folder)) + r"/(?:[^/\s]+/)*", "", str(error))


def canvas_of(image: str) -> NDArray[np.uint8]:
    """A support image to draw on, upright, (h, w, 3) uint8.

    Raises:
        UserError: it cannot be used.
    """
    pixels = photo(image, _CANVAS).pixels
    longer = max(pixels.shape[:2])
    scale = max(min(1.0, _CANVAS / longer), _LEAST_CANVAS / longer)
    if scale == 1.0:
        return pixels
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def drawn(value: dict[str, Any] | None) -> NDArray[np.bool_] | None:
    """What was drawn in an editor, (h, w) of its canvas; None if nothing was.

    Args:
        value: of a `gr.ImageEditor`: its `layers` are (h, w, 4) uint8.
    """
    layers = [layer[..., 3] >= _OPAQUE for layer in (value or {}).get("layers") or []]
    whole = np.logical_or.reduce(layers) if layers else None
    return whole if whole is not None and whole.any() else None


def add_support(
    image: str | None, drawing: NDArray[np.bool_] | None, mask: str | None, folder: Path
) -> tuple[FilePair, str]:
    """A support of an image and its mask, which is drawn or a file; and the path of a picture of both.

    Args:
        folder: a drawing is saved below it.

    Raises:
        UserError: one of them is missing or cannot be used.
    """
    if not image:
        raise UserError("there is no support image", "drop one, or choose a file")
    if (drawing is None) == (not mask):
        if mask:
            raise UserError("there are a drawing and a mask file", "erase the drawing, or take the mask file away")
        raise UserError("there is no mask", "draw over the object, or give a mask file: 0 background, 255 object")
    support = photo(image)
    own = Path(tempfile.mkdtemp(prefix="" if drawing is None else _DRAWN, dir=folder))
    if drawing is not None:
        height, width = support.size
        whole = Image.fromarray(drawing).resize((width, height), Image.Resampling.NEAREST)
        mask = str(own / f"{Path(image).stem}_mask.png")
        whole.save(mask)
    labels = mask_of(str(mask), support)
    picture = overlay(support.pixels, (labels == 1).astype(np.uint8), class_colours(1))
    Image.fromarray(picture).save(own / "support.jpg", quality=90)
    return (Path(image), Path(str(mask))), str(own / "support.jpg")


def segment(
    models: Models, name: str | None, supports: Sequence[FilePair], queries: Sequence[str], folder: Path
) -> Shown:
    """Segment images, as `fsseg predict` does with the same files.

    Args:
        folder: outputs go to a new folder below it.

    Raises:
        UserError: there is no model, support or image, there are too many, or they cannot be used.
    """
    if not supports:
        raise UserError("there is no support", "add an image with its mask first")
    if not queries:
        raise UserError("there is no image to segment", "drop some, or choose files")
    for what, given, most in (("support", supports, MOST_SUPPORTS), ("image", queries, MOST_QUERIES)):
        if len(given) > most:
            raise UserError(
                f"{count(len(given), what)} are more than the {most} of this page", "take fewer, or use `fsseg predict`"
            )
    wanted = Wanted(Path(tempfile.mkdtemp(dir=folder)))
    images = [Path(query) for query in queries]
    with models.busy:
        predictor = models.get(name)
        ready = predictor.prepare({ONE_CLASS: list(supports)})
        done = predict_files(predictor, ready, images, wanted)
    pictures, files = [], []
    for image in images:
        if (row := done.table.rows_of(image).get(ONE_CLASS)) is not None:
            share = f"{100 * row.share:.1f} %" if row.share else "nothing found"
            pictures.append((str(wanted.overlay(row.name)), f"{visible(row.name)}: {share}"))
            files.append(str(wanted.mask(row.name)))
    files += [str(mask) for _, mask in supports if mask.parent.name.startswith(_DRAWN)]
    lines = [f"{count(done.new, 'image')} segmented by {visible(predictor.about)}, on {predictor.device}"]
    lines += [f"left out: {told(error, folder)}" for error in done.faults.values()]
    return Shown(pictures, [*files, str(done.table.path), str(wanted.sheet)], "\n".join(lines))
