"""`fsseg verify`: is this the standard benchmark, what is missing, and everything that is wrong, in one go.

Lists are compared with the published ones (`compare`), every image is decoded, every mask's size is held against its
image's, and a sheet of masks over their images is drawn to look at. Called by the `fsseg` command and by `prepare`.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fsseg.data.faults import Fault
from fsseg.data.setup.published import Comparison, compare
from fsseg.data.source import IGNORE_INDEX, ClassIndex, Source, Split
from fsseg.data.workers import look_at
from fsseg.errors import UserError
from fsseg.process.files import write_atomic

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val")


class Verifiable(Source, Protocol):
    """What `verify` asks of a source beyond `Source`; `VocSource` and `CocoSource` have it."""

    root: Path

    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]: ...
    def missing_images(self, split: Split) -> list[str]: ...
    def image_path(self, split: Split, image_id: str) -> Path: ...
    def mask_path(self, split: Split, image_id: str) -> Path: ...
    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]: ...
    def list_origin(self, split: Split) -> str: ...


@dataclass
class VerifyReport:
    """What was found.

    Attributes:
        dataset, root: what was looked at.
        lists: per split, where its list comes from and how many images it has.
        comparison: with the published lists.
        faults: everything wrong with lists, annotations, masks and the images that are there.
        missing_images: per split, paths of the images that are not there.
        decoded: images that were read to their end.
        sheet: the picture of sample masks, if one was drawn.
    """

    dataset: str
    root: Path
    lists: dict[str, tuple[str, int]] = field(default_factory=dict)
    comparison: Comparison = field(default_factory=Comparison)
    faults: list[Fault] = field(default_factory=list)
    missing_images: dict[str, list[str]] = field(default_factory=dict)
    decoded: int = 0
    sheet: Path | None = None

    @property
    def standard(self) -> bool:
        """Whether the lists are those of the standard benchmark and nothing is faulty (images may be missing)."""
        return self.comparison.standard and not self.faults

    @property
    def ready(self) -> bool:
        """Whether a run can start: nothing faulty, nothing missing."""
        return not self.faults and not any(self.missing_images.values())

    def text(self, limit: int | None = 20) -> str:
        """The report to read; at most `limit` files per kind, None for all."""
        lines = [f"{self.dataset} in {self.root.absolute()}"]
        lines += [f"  {split}: {number} images, from {origin}" for split, (origin, number) in self.lists.items()]
        lines += _comparison_lines(self.comparison, bool(self.faults), limit)
        for split, paths in self.missing_images.items():
            total = self.lists[split][1] if split in self.lists else len(paths)
            if paths:
                lines.append(f"missing: {len(paths)} of {total} {split} images are not there:")
                lines += _some([f"  {path}" for path in paths], limit)
        kinds: dict[str, list[Fault]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.kind, []).append(fault)
        for kind, faults in kinds.items():
            lines.append(f"fault: {kind} ({len(faults)}):")
            lines += _some([f"  {fault}" for fault in faults], limit)
            lines.append(f"  -> {faults[0].fix}")
        lines.append(f"{self.decoded} images decoded, {len(self.faults)} faults")
        if self.sheet is not None:
            lines.append(f"masks over their images to look at: {self.sheet}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            "dataset": self.dataset,
            "root": str(self.root.absolute()),
            "standard": self.standard,
            "ready": self.ready,
            "lists": {split: {"origin": o, "images": n} for split, (o, n) in self.lists.items()},
            "published": self.comparison.published,
            "numbers_compared": self.comparison.checked,
            "differences": [vars(d) for d in self.comparison.differences],
            "causes": self.comparison.causes,
            "notes": self.comparison.notes,
            "missing_images": self.missing_images,
            "faults": [vars(f) for f in self.faults],
            "images_decoded": self.decoded,
        }


def _comparison_lines(comparison: Comparison, faulty: bool, limit: int | None) -> list[str]:
    lines = [f"note: {note}" for note in comparison.notes]
    if not comparison.checked:
        return lines
    if comparison.standard:
        verdict = "standard benchmark" if not faulty else "the lists are the standard ones, but see the faults below"
        agree = f"all {comparison.checked} numbers agree with the published ones ({comparison.published})"
        lines.append(f"{verdict}: {agree}")
        return lines
    lines.append(
        f"not the standard benchmark: {len(comparison.differences)} of {comparison.checked} numbers differ "
        f"from the published ones ({comparison.published})"
    )
    lines += [f"  likely cause: {cause}" for cause in comparison.causes]
    return lines + _some([f"  {difference}" for difference in comparison.differences], limit)


def _some(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit:
        return lines
    return [*lines[:limit], f"  ... and {len(lines) - limit} more"]


def verify(source: Verifiable, sheet: Path | None = None, decode: bool = True, num_samples: int = 20) -> VerifyReport:
    """Look at a data set and say everything there is to say about it; nothing found is raised.

    Args:
        source: the data set.
        sheet: PNG to draw `num_samples` masks over their images into; None draws none.
        decode: read every image to its end; false trusts the images that are there.
    """
    report = VerifyReport(dataset=source.name, root=source.root)
    indexes: dict[Split, ClassIndex] = {}
    for split in SPLITS:
        try:
            index, faults = source.scan(split)
            report.faults += faults
            if index is None:
                continue
            indexes[split] = index
            report.lists[split] = (source.list_origin(split), len(index.image_ids))
            missing = source.missing_images(split)
        except UserError as error:
            report.faults.append(
                Fault("lists or annotations that cannot be used", str(source.root), error.what, error.fix)
            )
            continue
        report.missing_images[split] = [str(source.image_path(split, image_id)) for image_id in missing]
        if decode:
            report.faults += _check_images(source, split, index, set(missing), report)
    report.comparison = compare(source, indexes)
    if sheet is not None and indexes:
        report.sheet = draw_sheet(source, indexes, sheet, num_samples)
    return report


def _check_images(
    source: Verifiable, split: Split, index: ClassIndex, missing: set[str], report: VerifyReport
) -> list[Fault]:
    """Decode the images of a split that are there; their sizes must be those of their masks."""
    sizes = source.mask_sizes(split)
    ids = {str(source.image_path(split, i)): i for i in index.image_ids if i not in missing}
    faults = []
    for path, result in look_at("image", list(ids), f"{split} images"):
        report.decoded += 1
        if isinstance(result, str):
            faults.append(Fault("unreadable images", path, result, "fetch these images again"))
        elif tuple(result) != sizes[ids[path]]:
            (height, width), mask = sizes[ids[path]], source.mask_path(split, ids[path])
            detail = f"{result[1]}x{result[0]} pixels, its mask in {mask} {width}x{height}"
            faults.append(
                Fault("images of another size than their masks", path, detail, "restore both from one release")
            )
    return sorted(faults, key=lambda fault: fault.path)


_TILE, _COLUMNS, _CAPTION = 240, 5, 14
_TINT = np.array([0, 158, 115])  # bluish green of Okabe and Ito's palette


def draw_sheet(source: Source, indexes: dict[Split, ClassIndex], path: Path, num_samples: int = 20) -> Path | None:
    """Draw sample masks over their images: class pixels tinted and outlined, ignored ones grey.

    The samples are the same every time, spread over the classes; images that are missing or unreadable are passed over.

    Returns:
        the PNG's path, or None if there was nothing to draw.
    """
    tiles = []
    rng = np.random.default_rng(0)
    for split, index in indexes.items():
        wanted = num_samples // len(indexes)
        by_class: dict[int, list[int]] = {}
        for pair in rng.permutation(np.flatnonzero(index.pair_pixels)).tolist():
            by_class.setdefault(int(index.pair_class[pair]), []).append(pair)
        while wanted and by_class:  # one tile of each class, then a second of each, ...
            for class_id in list(by_class):
                tile = None
                while tile is None and by_class[class_id]:
                    image_id = index.image_ids[index.pair_image[by_class[class_id].pop()]]
                    tile = _sample(source, split, image_id, class_id)
                if tile is None:
                    del by_class[class_id]
                elif wanted:
                    tiles.append(tile)
                    wanted -= 1
    if not tiles:
        return None
    rows = math.ceil(len(tiles) / _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + _CAPTION)), "white")
    for number, tile in enumerate(tiles):
        canvas.paste(tile, (number % _COLUMNS * _TILE, number // _COLUMNS * (_TILE + _CAPTION)))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())
    return path


def _sample(source: Source, split: Split, image_id: str, class_id: int) -> Image.Image | None:
    try:
        image, mask = source.image(split, image_id), source.mask(split, image_id, class_id)
    except UserError:
        return None
    if image.shape[:2] != mask.shape:
        return None
    return _tile(image, mask, f"{split} {image_id} {source.classes[class_id]}")


def _tile(image: NDArray[np.uint8], mask: NDArray[np.uint8], caption: str) -> Image.Image:
    painted = image.astype(np.float32)
    inside = mask == 1
    painted[inside] = 0.5 * painted[inside] + 0.5 * _TINT
    painted[mask == IGNORE_INDEX] = 0.3 * painted[mask == IGNORE_INDEX] + 0.7 * 200
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    painted[edge] = 255
    picture = Image.fromarray(painted.astype(np.uint8))
    picture.thumbnail((_TILE - 4, _TILE - 4))
    tile = Image.new("RGB", (_TILE, _TILE + _CAPTION), "white")
    tile.paste(picture, (2, 2))
    ImageDraw.Draw(tile).text((2, _TILE), caption[:44], fill="black")
    return tile
