"""`fsseg predict`: masks, overlays and a table of many images, in the memory of a few. `fsseg.cli.predict` calls it.

Images are read one after the other, by other processes where there are many, and all of an image is written before the
next batch: what an interrupted command has written stands, and the same line goes on with the rest.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from fsseg.config.entry import resolved
from fsseg.data.images import opened
from fsseg.data.loader import one_by_one
from fsseg.data.own_files import OUT_FILES, OUT_FOLDERS, Truths, output_names
from fsseg.data.photos import photo
from fsseg.data.transforms import EvalTransform
from fsseg.draw.overlays import class_colours, overlay
from fsseg.draw.sheets import SUPPORT_COLOUR, Tile, sample_sheet
from fsseg.engine.predict import Answer, Predictor, Query, Supports, fit
from fsseg.engine.predict_table import ClassRow, PredictionTable
from fsseg.engine.predict_truth import TrueMasks
from fsseg.engine.progress import Progress, duration
from fsseg.errors import Lines, UserError, visible
from fsseg.process.files import json_text, read_json, write_atomic, write_json
from fsseg.process.version import VERSION
from fsseg.process.words import count

log = logging.getLogger("fsseg")

ON_THE_SHEET = 40
"""Images on the contact sheet."""
SUPPORTS_ON_THE_SHEET = 5
"""Of each class."""
_TILE = 420  # pixels of the longer side of a picture on the sheet
_WORKERS_FROM = 32  # images; for fewer it takes longer to start processes than to read them
_TABLE, _RECORD, _SHEET = OUT_FILES
_MASKS, _OVERLAYS, _PROBABILITIES = OUT_FOLDERS


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        out: folder for all of it.
        batch_size: images that go through the network together; None as the device does it best.
        overwrite: predict what is there already, too.
        probabilities: write them.
        truths: where true masks lie.
    """

    out: Path
    batch_size: int | None = None
    overwrite: bool = False
    probabilities: bool = False
    truths: Truths | None = None

    def mask(self, name: str) -> Path:
        return self.out / _MASKS / f"{name}.png"

    def overlay(self, name: str) -> Path:
        return self.out / _OVERLAYS / f"{name}.jpg"

    def probability(self, name: str, of_class: str | None) -> Path:
        """`of_class` is None where there is but one."""
        folder = "" if of_class is None else re.sub(r"[/\\]|^\.+", "_", of_class)
        return self.out / _PROBABILITIES / folder / f"{name}.png"

    def files(self, classes: Sequence[str], name: str) -> list[Path]:
        """All that is written for an image, given by the name of its outputs."""
        several = len(classes) > 1
        of_each = [self.probability(name, c if several else None) for c in classes] if self.probabilities else []
        return [self.mask(name), self.overlay(name), *of_each]

    @property
    def sheet(self) -> Path:
        return self.out / _SHEET

    @property
    def table(self) -> Path:
        return self.out / _TABLE


@dataclass
class Predicted:
    """What came of it.

    Attributes:
        table: the rows of all images.
        images: that were named.
        truths: what is scored by.
        new, kept: images that were segmented, and that were done before.
        faults: image -> what is wrong with it, or with its truth.
        seconds: for the new ones, reading and writing included.
    """

    table: PredictionTable
    images: int
    truths: TrueMasks | None = None
    new: int = 0
    kept: int = 0
    faults: dict[Path, UserError] = field(default_factory=dict)
    seconds: float = 0.0

    def fault(self, image: Path, error: UserError) -> None:
        """Note and tell why an image, or its truth, cannot be used."""
        self.faults[image] = error
        log.warning("%s", Lines(f"left out: {error}"))

    def text(self, wanted: Wanted, images: Sequence[Path], classes: Sequence[str]) -> str:
        """What was done, and what was found."""
        rate = f" in {duration(self.seconds)} ({self.new / self.seconds:.2f} a second)" if self.new else ""
        kept = f", {self.kept} kept from before" if self.kept else ""
        lines = [f"{wanted.out}: {count(self.new, 'image')} segmented{rate}{kept}"]
        for name in classes:
            rows = [row for image in images if (row := self.table.rows_of(image).get(name)) is not None]
            lines.append(f"  {visible(name)}: {_found(rows)}")
        if wanted.truths is not None and (bare := sum(not wanted.truths.files(image) for image in images)):
            lines.append(
                f"  no true mask for {bare} of {count(self.images, 'image')} in {visible(wanted.truths.folder)}"
            )
        parts = [*(f"{name}/" for name in OUT_FOLDERS[: 2 + wanted.probabilities]), _TABLE, _SHEET]
        lines.append("  " + " ".join(part for part in parts if (wanted.out / part).exists()))
        return "\n".join(lines)

    def failure(self) -> UserError | None:
        """That images could not be used, if so."""
        if not self.faults:
            return None
        first = next(iter(self.faults))
        return UserError(
            f"{len(self.faults)} of {count(self.images, 'image')} could not be used (named above), e.g. {first}",
            "mend them or leave them out; the same line then does only what is missing",
        )


def _found(rows: Sequence[ClassRow]) -> str:
    """A class in the images, in words."""
    if not rows:
        return "no image"
    seen = [row.share for row in rows if row.share]
    text = f"found in {len(seen)} of {count(len(rows), 'image')}"
    if seen:
        text += f", where it takes {100 * sum(seen) / len(seen):.1f} % of the pixels"
    scored = [row for row in rows if row.union is not None]
    if union := sum(row.union or 0 for row in scored):
        both = sum(row.intersection or 0 for row in scored)
        text += f"; IoU {100 * both / union:.2f} over {count(len(scored), 'true mask')}"
    return text


class _Images(Dataset[Any]):
    """Images as the network takes them; in place of one that cannot be used, the reason."""

    def __init__(self, paths: Sequence[Path], transform: EvalTransform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Query | UserError:
        try:
            return fit(self.transform, photo(self.paths[i], self.transform.longer_side))
        except UserError as error:
            return error


def predict_files(predictor: Predictor, supports: Supports, images: Sequence[Path], wanted: Wanted) -> Predicted:
    """Segment images and write masks, overlays, predictions.csv and a contact sheet.

    An image that cannot be used is named, and the others go on.

    Raises:
        UserError: the folder holds predictions of other weights or supports, or files of these names by something else.
    """
    record = _record(predictor, supports)
    same = _same_as_before(wanted, record, images)
    anew = _other_truths(wanted, record) or wanted.overwrite
    table = PredictionTable(wanted.table, fresh=not same)
    names = output_names(images, table.names)
    done = Predicted(table, len(images), None if wanted.truths is None else TrueMasks(wanted.truths, images))
    todo = [n for n in images if anew or not _is_there(wanted, supports.classes, table, n, names[n])]
    done.kept = len(images) - len(todo)
    if not same and not wanted.overwrite:
        _check_free(wanted, supports.classes, [names[image] for image in todo])
    write_json(wanted.out / _RECORD, record)
    table.forget(todo)
    log.info("%s on %s", predictor.about, predictor.device)
    log.info("supports: %s", ", ".join(f"{len(shots)} of {name}" for name, shots in supports.shots.items()))
    began = time.monotonic()
    with table, Progress("predict", len(todo)) as progress:
        for batch in _batches(predictor, todo, wanted.batch_size, done):
            for image, query, answer, seconds in _answered(predictor, supports, batch):
                table.add(_write(wanted, (image, names[image]), query, answer, seconds, done))
                done.new += 1
            progress.step(steps=len(batch))
        if left_out := len(todo) - progress.done:
            progress.step(steps=left_out)
    done.seconds = time.monotonic() - began
    if todo or not wanted.sheet.is_file():
        _sheet(wanted, supports, images, names, table)
    return done


def _batches(
    predictor: Predictor, todo: Sequence[Path], size: int | None, done: Predicted
) -> Iterator[list[tuple[Path, Query]]]:
    """The images as the network takes them, some together; what cannot be used is told and left out."""
    workers = predictor.cfg.num_workers if len(todo) >= _WORKERS_FROM else 0
    batch: list[tuple[Path, Query]] = []
    with closing(iter(one_by_one(_Images(todo, predictor.transform), workers))) as loaded:
        for image, query in zip(todo, loaded):
            if isinstance(query, UserError):
                done.fault(image, query)
                continue
            batch.append((image, predictor.told(query)))
            if len(batch) == (size or predictor.batch_size):
                yield batch
                batch = []
    if batch:
        yield batch


def _answered(
    predictor: Predictor, supports: Supports, batch: Sequence[tuple[Path, Query]]
) -> Iterator[tuple[Path, Query, Answer, float]]:
    """Each image of a batch with its answer, and its share of the seconds that the network took."""
    began = time.perf_counter()
    answers = predictor.answers([query for _, query in batch], supports)
    seconds = (time.perf_counter() - began) / len(batch)
    for (image, query), answer in zip(batch, answers):
        yield image, query, answer, seconds


def _write(
    wanted: Wanted, image: tuple[Path, str], query: Query, answer: Answer, seconds: float, done: Predicted
) -> list[ClassRow]:
    """Write the files of one image, given by its path and the name of its outputs; returns its rows of the table."""
    path, name = image
    colours, several = class_colours(len(answer.classes)), len(answer.classes) > 1
    for of_class, map_ in answer.probabilities.items() if wanted.probabilities else ():
        levels = np.rint(map_ * 65535).astype(np.uint16)
        _save(Image.fromarray(levels), wanted.probability(name, of_class if several else None))
    _save(Image.fromarray(overlay(query.photo.pixels, answer.mask, colours)), wanted.overlay(name), quality=90)
    if several:
        picture = Image.fromarray(answer.mask, mode="P")
        picture.putpalette(colours.tobytes())
    else:
        picture = Image.fromarray(answer.mask * np.uint8(255))
    _save(picture, wanted.mask(name))
    scores = {} if done.truths is None else done.truths.scores(path, query.photo, answer, done.fault)
    rows = []
    for of_class, map_ in answer.probabilities.items():
        found = answer.mask_of(of_class)
        mean = float(map_[found].mean(dtype=np.float64)) if found.any() else None
        rows.append(ClassRow(os.path.abspath(path), name, of_class, float(found.mean()), mean, seconds,
                        *scores.get(of_class, (None, None))))  # fmt: skip
    return rows


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture so that half a file is never seen."""
    out = io.BytesIO()
    picture.save(out, format="JPEG" if path.suffix == ".jpg" else "PNG", **options)
    write_atomic(path, out.getvalue())


def _other_truths(wanted: Wanted, record: dict[str, Any]) -> bool:
    """Whether the folder holds scores by other true masks than this line's; notes in `record` whose they are now."""
    before = (read_json(wanted.out / _RECORD) or {}).get("truths")
    record["truths"] = before if wanted.truths is None else os.path.abspath(wanted.truths.folder)
    return before is not None and record["truths"] != before


def _is_there(wanted: Wanted, classes: Sequence[str], table: PredictionTable, image: Path, name: str) -> bool:
    """Whether all that is wanted of an image was written before."""
    own = table.rows_of(image)
    if set(own) != set(classes) or not all(file.is_file() for file in wanted.files(classes, name)):
        return False
    if (truths := wanted.truths) is None:
        return True
    files = truths.files(image)
    written = wanted.mask(name).stat().st_mtime_ns
    # A file that was put in its place keeps the date of its content, and has that of the move as its change time.
    stats = [file.stat() for file in truths.sources(image)]
    mended = any(max(stat.st_mtime_ns, stat.st_ctime_ns) > written for stat in stats)
    return {c for c, row in own.items() if row.union is not None} == set(files) and not mended


def _check_free(wanted: Wanted, classes: Sequence[str], names: Sequence[str]) -> None:
    """That no file of another origin is replaced: own data as `dataset=folder` reads them have masks/ too.

    Raises:
        UserError: one would be.
    """
    files = [wanted.sheet, wanted.table, *(file for name in names for file in wanted.files(classes, name))]
    if (found := next((file for file in files if file.exists()), None)) is not None:
        raise UserError(
            f"--out {wanted.out} holds {found}, and no {_RECORD} says what wrote it",
            "choose another folder: --out, or replace it: --overwrite",
        )


def _record(predictor: Predictor, supports: Supports) -> dict[str, Any]:
    """What the predictions of a folder follow from, so that others are not mixed with them."""
    cfg = predictor.cfg
    digests = {
        name: [hashlib.sha256(s.photo.pixels.tobytes() + s.mask.tobytes()).hexdigest()[:16] for s in shots]
        for name, shots in supports.shots.items()
    }
    settings = {"method": resolved(cfg.model), "backbone": cfg.backbone.name, "image_size": cfg.dataset.image_size,
                "fit": cfg.protocol.fit}  # fmt: skip
    return {"fsseg": VERSION, "about": predictor.about, "weights": predictor.digest, "settings": settings,
            "supports": digests}  # fmt: skip


def _same_as_before(wanted: Wanted, record: Mapping[str, Any], images: Sequence[Path]) -> bool:
    """Whether the folder holds predictions that this line goes on with; False if it holds none. Others that all of
    this line's images are to replace are removed, so that nothing of them stays among the new ones.

    Raises:
        UserError: it holds others, which are not to be replaced.
    """
    if (before := read_json(wanted.out / _RECORD)) is None:
        return False
    # Class numbers follow from the order of the classes.
    differ = [key for key in ("weights", "settings", "supports")
              if json_text(before.get(key)) != json_text(record[key])]  # fmt: skip
    if differ and not wanted.overwrite:
        raise UserError(
            f"--out {wanted.out} holds predictions of other {' and '.join(differ)} ({before.get('about', 'unknown')})",
            "choose another folder: --out, or replace them: --overwrite",
        )
    if differ:
        _remove(wanted, list(before.get("supports") or {}), images, " and ".join(differ))
    return not differ


def _remove(wanted: Wanted, classes: Sequence[str], images: Sequence[Path], differ: str) -> None:
    """
    Raises:
        UserError: there are some of images that are not predicted anew.
    """
    names = PredictionTable(wanted.table).names
    if others := sorted(names.keys() - {os.path.abspath(image) for image in images}):
        raise UserError(
            f"--out {wanted.out} holds predictions of other {differ}, also of {count(len(others), 'image')} that this "
            f"line does not name, e.g. {others[0]}",
            "name all images, or choose another folder: --out",
        )
    for name in names.values():
        for file in replace(wanted, probabilities=True).files(classes, name):
            file.unlink(missing_ok=True)


def _sheet(
    wanted: Wanted, supports: Supports, images: Sequence[Path], names: Mapping[Path, str], table: PredictionTable
) -> None:
    """The contact sheet: the supports, then the first images with what was found in them."""
    tiles = []
    for name, shots in supports.shots.items():
        for shot in shots[:SUPPORTS_ON_THE_SHEET]:
            size = shot.photo.pixels.shape[1::-1]
            mask = np.asarray(Image.fromarray(shot.mask).resize(size, Image.Resampling.NEAREST))
            tiles.append(Tile(shot.photo.pixels, mask, f"support: {_short(name)}\n", SUPPORT_COLOUR))
    shown = 0
    for image in images:
        rows = table.rows_of(image)
        if not rows or shown == ON_THE_SHEET:
            continue
        shown += 1
        with suppress(UserError), opened(wanted.overlay(names[image])) as picture:
            picture.thumbnail((_TILE, _TILE))
            found = [f"{_short(c)} {100 * row.share:.0f} %" for c, row in rows.items() if row.share]
            tiles.append(Tile(np.asarray(picture), None, f"{_short(image.name)}\n{', '.join(found[:2]) or 'nothing'}"))
    colours = class_colours(len(supports.classes))[1:] / 255
    legend = {"support mask": SUPPORT_COLOUR}
    legend |= {_short(c): tuple(colour) for c, colour in zip(supports.classes[:6], colours.tolist())}
    sample_sheet(wanted.sheet, tiles, legend=legend)


def _short(text: str, length: int = 26) -> str:
    text = visible(text)
    return text if len(text) <= length else f"{text[: length - 3]}..."
