"""`ShapesSource`, shapes5i: a data set without download. It is generated on first use, then read as PASCAL is.

`shapes_draw` draws the pictures. Each setting (counts, seed, recipe) has its own folder below the root, in VOC2012's
layout, which appears whole by one rename. Its `generator.json` holds the settings, the files that must be there, and
their checksums.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsseg.config.schema import ShapesConfig
from fsseg.data.faults import Fault, faults_error
from fsseg.data.images import voc_palette
from fsseg.data.source import SPLITS, ClassIndex, Split
from fsseg.data.sources.shapes_backgrounds import FAMILY_NAMES
from fsseg.data.sources.shapes_checksums import Checksums, checksums_of, compare_with_drawn
from fsseg.data.sources.shapes_draw import CLASSES, VERSION, Recipe, deal, draw_image
from fsseg.data.sources.voc_layout import IMAGES, LISTS, MASKS, VocSource
from fsseg.errors import UserError
from fsseg.process.files import UMASK, write_json

log = logging.getLogger(__name__)

JPEG_QUALITY = 95
STALE_SECONDS = 3600
"""A temporary folder unchanged for so long was left by a killed process and is removed."""

BACKGROUNDS = "backgrounds.txt"
"""Beside the lists: a line `image_id family` for each image of both splits."""

RECORD = "generator.json"

_PARTS = (IMAGES, MASKS, LISTS)
_CHANGED = "generated files that were changed"


class ShapesSource(VocSource):
    """`shapes5i` as `conf/dataset/shapes5i.yaml` describes it; generated here if it is not there yet.

    Raises:
        UserError: `dataset.root` cannot be written to.
    """

    def __init__(self, cfg: ShapesConfig) -> None:
        folder = _folder_of(cfg)
        try:
            generate(folder.parent, cfg.num_train, cfg.num_val, cfg.generator_seed, _recipe_of(cfg))
        except OSError as error:
            what = f"dataset.root={cfg.root}: shapes5i cannot be generated there: {error}"
            raise UserError(what, "set dataset.root to a folder you can write to, with 30 MB free") from error
        super().__init__(cfg, CLASSES, folder)
        self._settings = cfg.num_train, cfg.num_val, cfg.generator_seed, _recipe_of(cfg)
        self._checksums: Checksums = json.loads((folder / RECORD).read_text()).get("crc32") or {}
        self._changed: list[Fault] | None = None
        self._advice = f"remove {folder}: the next start makes it anew"
        for split in SPLITS:
            self.content(folder / LISTS / f"{split}.txt", "list")
        self._families = self._read_families(folder / LISTS / BACKGROUNDS)

    def _read_families(self, path: Path) -> dict[str, int]:
        try:
            lines = self.content(path, "list").decode().splitlines()
            return {image_id: FAMILY_NAMES.index(family) for image_id, family in map(str.split, lines)}
        except ValueError as error:
            raise UserError(f"list {path} is not the file that was written: {error}", self._advice) from None

    def content(self, path: Path | str, kind: str) -> bytes:
        """As in `VocSource`; it must have the recorded checksum, if there is one."""
        data = super().content(path, kind)
        expected = self._checksums.get(Path(path).relative_to(self.root).as_posix())
        if expected is not None and zlib.crc32(data) != expected:
            what = f"{kind} {path} is not the file that was written: its checksum differs"
            raise UserError(what, self._advice)
        return data

    def check(self, splits: Sequence[Split] = SPLITS) -> None:
        """As in `Source`; and all files must have their checksums."""
        super().check(splits)
        if self._checksums and (faults := [fault for split in splits for fault in self.changed_files(split)]):
            raise faults_error(faults)

    def changed_files(self, split: Split) -> list[Fault]:
        """As in `Source`. Without checksums the data set is drawn again, which takes as long as making it did."""
        if not self._checksums and self._changed is None:
            self._changed = self._compare_with_drawn()
        if not self._checksums:
            return [fault for fault in self._changed or [] if _split_of(fault.path) == split]
        faults = []
        for name in self._checksums:
            if _split_of(name) == split:
                try:
                    self.content(self.root / name, "file")
                except UserError as error:
                    faults.append(Fault(_CHANGED, str(self.root / name), error.what, error.fix))
        return faults

    def _compare_with_drawn(self) -> list[Fault]:
        """What differs; if nothing does, the checksums are recorded, so that this happens once."""
        log.info("%s was made by an earlier version: it is drawn again, to compare", self.root)
        with tempfile.TemporaryDirectory() as drawn:
            _write(Path(drawn), *self._settings)
            checksums, changed = compare_with_drawn(self.root, Path(drawn), _PARTS)
        if not changed:
            self._checksums = checksums
            try:
                write_json(self.root / RECORD, {**json.loads((self.root / RECORD).read_text()), "crc32": checksums})
            except OSError as error:
                log.warning("%s: its checksums cannot be recorded (%s)", self.root, error.strerror)
        detail = "not what is drawn by the same settings"
        return [Fault(_CHANGED, str(self.root / name), detail, self._advice) for name in changed]

    def kept_index(self, split: Split) -> ClassIndex | None:
        """As in `Source`; the masks are few and small, so they are scanned."""
        return self.index(split)

    def background_family(self, split: Split, image_id: str) -> int | None:
        """Position of the image's background family in `shapes_backgrounds.FAMILY_NAMES`."""
        return self._families[image_id]

    @classmethod
    def layout(cls, cfg: ShapesConfig, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        return {"the generated data set": is_whole(_folder_of(cfg))}

    @classmethod
    def check_folder(cls, cfg: ShapesConfig, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """Whether the data set is there or can be made there; nothing is generated."""
        if all(cls.layout(cfg).values()):
            return []
        place = Path(cfg.root).expanduser().absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            return [UserError(f"dataset.root={cfg.root}: {place} is not a folder", "set dataset.root to a folder")]
        if not os.access(place, os.W_OK | os.X_OK):
            what = f"dataset.root={cfg.root}: shapes5i is generated on first use, but {place} cannot be written to"
            return [UserError(what, "set data.roots.shapes5i= (or dataset.root=) to a folder you can write to")]
        return []


def _split_of(name: str) -> Split:
    """The split that a file belongs to; of both, for the list of backgrounds, the first."""
    return "val" if Path(name).name.startswith("val") else "train"


def _folder_of(cfg: ShapesConfig) -> Path:
    root = Path(cfg.root).expanduser()
    return dataset_folder(root, cfg.num_train, cfg.num_val, cfg.generator_seed, _recipe_of(cfg))


def _recipe_of(cfg: ShapesConfig) -> Recipe:
    return Recipe(ambient=cfg.ambient)


def settings(num_train: int, num_val: int, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Everything that determines the pixels, as JSON values."""
    return {
        "generator_version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "seed": seed,
        "jpeg_quality": JPEG_QUALITY,
        "recipe": json.loads(json.dumps(asdict(recipe))),
    }


def dataset_folder(root: Path, num_train: int, num_val: int, seed: int, recipe: Recipe | None = None) -> Path:
    """Where these settings live: `<root>/<8 hex digits over the settings>`."""
    text = json.dumps(settings(num_train, num_val, seed, recipe or Recipe()), sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:8]


def generate(root: Path | str, num_train: int, num_val: int, seed: int, recipe: Recipe | None = None) -> None:
    """Make the data set in `dataset_folder(...)`, unless it is there already.

    Equal arguments give equal pixels on any machine before JPEG (an encoder may round differently) and equal masks.
    Two processes may start at once: each works in a temporary folder, the first to finish wins, the other uses that.

    Raises:
        OSError: the root cannot be written to.
    """
    recipe = recipe or Recipe()
    final = dataset_folder(Path(root), num_train, num_val, seed, recipe)
    if is_whole(final):
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final.parent)
    log.info("generating shapes5i in %s (%d images, once, some seconds)", final, num_train + num_val)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        _write(temporary, num_train, num_val, seed, recipe)
        temporary.chmod(0o777 & ~UMASK)  # mkdtemp makes it private; colleagues read the same folder
        _publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a finished data set stands there: every file that was written, none of them cut short."""
    try:
        record = json.loads((folder / RECORD).read_text())
        return bool(record["files"] == _inventory(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, num_train: int, num_val: int, seed: int, recipe: Recipe) -> None:
    images, masks, lists = (folder / part for part in _PARTS)
    for part in (images, masks, lists):
        part.mkdir(parents=True)
    families = []
    for split, count in (("train", num_train), ("val", num_val)):
        layouts = deal(count, Random(f"shapes5i/{VERSION}/{seed}/{split}"), recipe)
        ids = [f"{split}_{number:05d}" for number in range(count)]
        for image_id, layout in zip(ids, layouts, strict=True):
            pixels, labels = draw_image(layout, Random(f"shapes5i/{VERSION}/{seed}/{image_id}"), recipe)
            (images / f"{image_id}.jpg").write_bytes(_jpeg(pixels))
            (masks / f"{image_id}.png").write_bytes(_palette_png(labels))
            families.append(f"{image_id} {FAMILY_NAMES[layout.family]}\n")
        (lists / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    (lists / BACKGROUNDS).write_text("".join(families))
    record = settings(num_train, num_val, seed, recipe)
    record |= {"classes": list(CLASSES), "families": list(FAMILY_NAMES), "files": _inventory(folder)}
    record["crc32"] = checksums_of(folder, _PARTS)
    write_json(folder / RECORD, record)


def _publish(temporary: Path, final: Path) -> None:
    """Give the finished folder its name; if another process was first, its result stays."""
    for _ in range(10):
        try:
            os.rename(temporary, final)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        if is_whole(final):
            return
        # An incomplete folder has the name: rename it first, so that no process reads it.
        broken = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        try:
            os.rename(final, broken / "incomplete")
            log.warning("%s was incomplete: it is made anew", final)
        except FileNotFoundError:
            pass  # another process has just done the same
        shutil.rmtree(broken, ignore_errors=True)
    raise OSError(errno.EBUSY, "other processes keep writing here", str(final))


def _remove_stale(root: Path) -> None:
    for left in root.glob(".????????.*.tmp"):
        try:
            newest = max(path.stat().st_mtime for path in (left, *(left / part for part in _PARTS)) if path.exists())
        except (OSError, ValueError):
            continue
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _inventory(folder: Path) -> dict[str, list[int]]:
    """Number of files and bytes of each part. An index that readers add is in another folder and does not count."""
    found = {}
    for part in _PARTS:
        with os.scandir(folder / part) as entries:
            sizes = [e.stat().st_size for e in entries if e.name.endswith((".jpg", ".png", ".txt"))]
        found[part] = [len(sizes), sum(sizes)]
    return found


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _palette_png(labels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())  # turns mode L into P, values unchanged
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
