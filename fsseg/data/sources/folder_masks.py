"""The two forms of masks below a folder of the user's own: `ClassMasks`, a folder of black and white PNGs for each
class, and `IndexedMasks`, one PNG of class numbers an image, with `classes.txt`. `folder` is the caller, and the
cross-domain sets.

A mask is known by its path without ending, below `masks/` or `masks/<class>/`: that is the id of its image.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsseg.data.binary_masks import WHITE, marked, read_binary
from fsseg.data.faults import Fault
from fsseg.data.images import read_labels
from fsseg.data.own_files import CLASSES, MASKS
from fsseg.data.source import IGNORE_INDEX, ClassIndex, label_table
from fsseg.data.sources.mask_scan import MaskCount, MaskFile, build_index, kept_counts, scan_masks, unknown_faults
from fsseg.data.sources.own import same_names, some
from fsseg.errors import UserError, visible

_BACKGROUND = {"background", "_background_", "__background__", "bg"}

Counts = dict[str, MaskCount]


class MaskForm(ABC):
    """The masks of a data set.

    Attributes:
        classes: names, sorted; position = class_id.
        rule: how masks are made of the files, in words.
        files: all mask files, by a name of their own.
    """

    rule: str
    task: str
    """How the files are counted: a key of `fsseg.data.workers.TASKS`."""

    def __init__(self, classes: Sequence[str], files: Mapping[str, MaskFile]) -> None:
        if twice := same_names(sorted(classes)):
            pairs = ", ".join(f"{visible(a)} and {visible(b)}" if a != b else visible(a) for a, b in twice)
            raise UserError(f"{self.named_in}: class named twice: {pairs}", "give each class one name")
        self.classes, self.files = tuple(sorted(classes)), dict(files)

    named_in: str
    """What names the classes, for messages."""

    @abstractmethod
    def image_ids(self) -> list[str]:
        """Ids of the images that have a mask, sorted."""

    @abstractmethod
    def of_image(self, image_id: str) -> list[str]:
        """The names in `files` of an image's masks."""

    @abstractmethod
    def index(self, image_ids: Sequence[str], counts: Counts) -> tuple[ClassIndex, list[Fault]]:
        """The index of the images whose masks are all counted, and the faults that the counts show."""

    @abstractmethod
    def mask(
        self, image_id: str, class_id: int, ignore_classes: Sequence[int], size: tuple[int, int] | None
    ) -> tuple[NDArray[np.uint8], Path | None]:
        """As `Source.mask`, and a file that it comes from; without any it is empty, of the image's size.

        Raises:
            UserError: a mask is missing or faulty.
        """

    def count(self, image_ids: Sequence[str], folders: list[Path]) -> tuple[Counts, list[Fault]]:
        """What the masks of some images hold, by their names in `files`, and a fault for each that cannot be read."""
        return scan_masks("the folder", self.files, self._wanted(image_ids), folders, self.task)

    def kept(self, image_ids: Sequence[str], folders: list[Path]) -> Counts | None:
        """The same as an earlier scan left it; None if one of them is new."""
        counts = kept_counts("the folder", self.files, folders, self.task)
        wanted = self._wanted(image_ids)
        return {name: counts[name] for name in wanted} if counts.keys() >= set(wanted) else None

    def _wanted(self, image_ids: Sequence[str]) -> list[str]:
        return [name for image_id in image_ids for name in self.of_image(image_id)]


class IndexedMasks(MaskForm):
    """`masks/<id>.png` of class numbers, and `classes.txt`: line n is the class of value n; 255 is ignored."""

    rule = "pixels of the class's number in the indexed mask; 255 is ignored"
    task = "own mask"

    def __init__(self, root: Path) -> None:
        self.named_in, self.folder = str(root / CLASSES), root / MASKS
        by_value = read_classes(root / CLASSES)
        super().__init__(by_value, files_below(self.folder, (".png",)))
        ranks = [self.classes.index(name) + 1 for name in by_value]
        self._rank = np.array([0, *ranks, *range(len(ranks) + 1, 256)], dtype=np.uint8)  # of a value -> class_id + 1

    def image_ids(self) -> list[str]:
        return sorted(self.files)

    def of_image(self, image_id: str) -> list[str]:
        return [image_id] if image_id in self.files else []

    def index(self, image_ids: Sequence[str], counts: Counts) -> tuple[ClassIndex, list[Fault]]:
        ranked = {name: self._ranked(count) for name, count in counts.items()}
        index, unknown = build_index([i for i in image_ids if i in ranked], ranked, len(self.classes))
        paths = {name: Path(self.files[name].path) for name in unknown}
        faults = unknown_faults(paths, unknown, len(self.classes))
        return index, [Fault(f.kind, f.path, f.detail, f"mend these masks, or complete {CLASSES}") for f in faults]

    def _ranked(self, count: MaskCount) -> MaskCount:
        pixels, grid = ({int(self._rank[v]): n for v, n in values.items()} for values in (count.pixels, count.grid))
        return MaskCount(count.height, count.width, pixels, grid)

    def mask(
        self, image_id: str, class_id: int, ignore_classes: Sequence[int], size: tuple[int, int] | None
    ) -> tuple[NDArray[np.uint8], Path | None]:
        path = self.folder / f"{image_id}.png" if image_id not in self.files else Path(self.files[image_id].path)
        return np.take(label_table(class_id, ignore_classes)[self._rank], read_labels(path, own=True)), path


class ClassMasks(MaskForm):
    """A file for each class that an image shows, read by `fsseg.data.binary_masks`. Objects of two classes may overlap.

    Args:
        by_class: name of a class -> its mask files by the id of their image.
        grey: values between black and white are cut, see `read_binary`.
    """

    def __init__(self, by_class: Mapping[str, Mapping[str, MaskFile]], named_in: str, grey: bool = False) -> None:
        self.named_in, self.grey = named_in, grey
        self.rule = (
            "grey levels of the mask from 128 on"
            if grey
            else "pixels of the one value beside 0 in the class's mask; 255 beside 1 is ignored"
        )
        self.task = "grey mask" if grey else "binary mask"
        super().__init__(
            list(by_class), {f"{c}\t{i}": file for c, files in by_class.items() for i, file in files.items()}
        )
        self._rank = {name: class_id for class_id, name in enumerate(self.classes)}
        self._of_image: dict[str, list[str]] = defaultdict(list)
        for name in self.classes:
            for image_id in by_class[name]:
                self._of_image[image_id].append(f"{name}\t{image_id}")

    def image_ids(self) -> list[str]:
        return sorted(self._of_image)

    def of_image(self, image_id: str) -> list[str]:
        return self._of_image.get(image_id, [])

    def index(self, image_ids: Sequence[str], counts: Counts) -> tuple[ClassIndex, list[Fault]]:
        merged: Counts = {}
        faults = []
        for image_id in image_ids:
            names = self.of_image(image_id)
            if not names or not all(name in counts for name in names):
                continue
            pixels: dict[int, int] = {}
            grid: dict[int, int] = {}
            for name in names:
                count, value = counts[name], self._rank[name.partition("\t")[0]] + 1
                own = 1 if 1 in count.pixels else WHITE
                if own in count.pixels:
                    pixels[value], grid[value] = count.pixels[own], count.grid[own]
                elif not self.grey:
                    fix = "mark the object with 255, or delete the file: an image without one does not show the class"
                    faults.append(Fault("empty masks", self.files[name].path, "all of it is 0", fix))
            merged[image_id] = MaskCount(counts[names[0]].height, counts[names[0]].width, pixels, grid)
        return build_index(list(merged), merged, len(self.classes))[0], [*faults, *self._boundary_alone(counts)]

    def _boundary_alone(self, counts: Counts) -> Iterator[Fault]:
        """Masks with 255 alone where another one has it beside 1: are they of a whole object, or of a boundary?"""
        beside = next((name for name, count in counts.items() if {1, WHITE} <= count.pixels.keys()), None)
        if beside is None:
            return
        why = f"255 is its only value beside 0, but in {self.files[beside].path} it stands beside 1, and is ignored"
        fix = "mark objects by 1 in all masks, and delete masks that show none"
        for name, count in counts.items():
            if WHITE in count.pixels and 1 not in count.pixels:
                yield Fault("masks of which 255 may be object or boundary", self.files[name].path, why, fix)

    def mask(
        self, image_id: str, class_id: int, ignore_classes: Sequence[int], size: tuple[int, int] | None
    ) -> tuple[NDArray[np.uint8], Path | None]:
        own = self._read(image_id, class_id)
        others = [m for c in ignore_classes if c != class_id and (m := self._read(image_id, c)) is not None]
        shape = next((m.shape for m in (own, *others) if m is not None), size)
        if shape is None:
            raise UserError(f"image {image_id} has no mask", "take it off the list")
        found = np.zeros(shape, dtype=np.uint8)
        if own is not None:
            found[:] = own
        for other in others:
            if other.shape != shape:
                what = f"masks of {image_id} are of two sizes: {shape[::-1]} and {other.shape[::-1]}"
                raise UserError(what, "save all masks of an image at its size")
            found[other == 1] = IGNORE_INDEX
        held = self.of_image(image_id)
        name = f"{self.classes[class_id]}\t{image_id}"
        path = self.files[name if name in self.files else held[0]].path if held else None
        return found, None if path is None else Path(path)

    def _read(self, image_id: str, class_id: int) -> NDArray[np.uint8] | None:
        file = self.files.get(f"{self.classes[class_id]}\t{image_id}")
        return None if file is None else marked(read_binary(file.path, grey=self.grey))


def open_masks(root: Path) -> MaskForm:
    """The masks of a folder in the form that they have: with `classes.txt` they are indexed.

    Raises:
        UserError: there are none, or their classes are not told.
    """
    masks = root / MASKS
    if not masks.is_dir():
        what = f"there is no folder {masks.absolute()}"
        raise UserError(what, "point dataset.root at the folder that holds images/ and masks/")
    if (root / CLASSES).is_file():
        form: MaskForm = IndexedMasks(root)
        if not form.files:
            raise UserError(f"{masks} holds no PNG", f"put <name>.png there, with the numbers of {CLASSES}")
        return form
    loose = [entry.name for entry in _entries(masks) if entry.is_file() and entry.name.lower().endswith(".png")]
    if loose:
        raise UserError(
            f"{masks} holds {some(sorted(loose), 3)}, but {root} has no {CLASSES}, which names their values",
            f"write {CLASSES} (line 1: the class of value 1), or put black and white masks into masks/<class>/",
        )
    folders = sorted(entry.name for entry in _entries(masks) if entry.is_dir())
    by_class = {name: files_below(masks / name, (".png",)) for name in folders}
    if empty := [name for name, files in by_class.items() if not files]:
        what = f"{masks}: no PNG in the folder of class {some(empty, 5)}"
        raise UserError(what, "put the class's masks there as PNG (JPEG changes their values), or delete the folder")
    if not by_class:
        raise UserError(f"{masks} is empty", f"put masks/<class>/<name>.png there, or masks/<name>.png and {CLASSES}")
    return ClassMasks(by_class, str(masks))


def read_classes(path: Path) -> list[str]:
    """Names of the classes of an indexed data set: line n is value n. Empty lines at the end do not count.

    Raises:
        UserError: it cannot be read, or a line is empty or names the background.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(what, "write the name of one class a line, as UTF-8") from None
    names = [line.strip() for line in lines]
    if not names:
        raise UserError(f"{path} is empty", "write the name of one class a line: line 1 is that of value 1")
    if names[0].casefold() in _BACKGROUND:
        raise UserError(
            f"{path}: line 1 is {visible(names[0])}, but line 1 names the class of value 1",
            "take the line out: 0 is the background without one",
        )
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} is empty", "give each value a name, also one not in use")
    if len(names) > IGNORE_INDEX - 1:
        what = f"{path}: {len(names)} classes, but a PNG holds the values 1 to {IGNORE_INDEX - 1} beside 255"
        raise UserError(what, "use a folder of black and white masks for each class instead")
    return names


def files_below(folder: Path, suffixes: Sequence[str]) -> dict[str, MaskFile]:
    """Files with one of these endings, in either case, by their path below the folder, without the ending.

    Hidden files and folders do not count. Of two files of one name and different endings the first of the endings is
    taken; `twins` names both.
    """
    found: dict[str, MaskFile] = {}
    for name, path in sorted(_walk(folder, suffixes), key=lambda pair: suffixes.index(pair[1].suffix.lower())):
        stat = path.stat()
        found.setdefault(name, MaskFile(str(path), stat.st_size, stat.st_mtime_ns))
    return dict(sorted(found.items()))


def twins(folder: Path, suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """Files that differ in their ending alone, as (one, other)."""
    first: dict[str, Path] = {}
    pairs = []
    for name, path in sorted(_walk(folder, suffixes)):
        if name in first:
            pairs.append((str(first[name]), str(path)))
        first.setdefault(name, path)
    return pairs


def _walk(folder: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for path in all_files(folder):
        if path.suffix.lower() in suffixes and "\n" not in str(path) and path.is_file():
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def all_files(folder: Path) -> Iterator[Path]:
    """What lies in a folder and in those below it, without hidden files and folders."""
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in names if not name.startswith("."))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return []
