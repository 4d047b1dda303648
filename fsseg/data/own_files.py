"""The files that a line of `fsseg predict` names: images to segment, supports with their masks, truths.

`fsseg.cli.predict` finds them here before anything heavy is imported. No torch here.
"""

from __future__ import annotations

import glob
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fsseg.errors import UserError, merge_errors, visible
from fsseg.process.words import count

log = logging.getLogger("fsseg")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Endings of the images that a folder or a pattern stands for."""
MASK_SUFFIX = ".png"
CLASSES, MASKS = "classes.txt", "masks"
_MASK_ENDINGS = ("", "_mask")  # of the name of a mask, after that of its image

OUT_FOLDERS, OUT_FILES = (MASKS, "overlays", "probabilities"), ("predictions.csv", "predict.json", "sheet.png")
"""What `fsseg predict` writes into its folder."""

FilePair = tuple[Path, Path]
"""An image and its mask."""


def find_queries(words: Sequence[str], listed: Iterable[str] = ()) -> list[Path]:
    """The images that words stand for, each once: files, folders, patterns (`*`, `?`, `**`), and `-` for a list.

    Args:
        listed: lines of the list, one file each.

    Raises:
        UserError: a word stands for nothing. What is on the list is looked at when its turn comes.
    """
    found: list[Path] = []
    faults: list[UserError] = []
    for word in words:
        try:
            found += _listed(listed) if word == "-" else _of_word(word)
        except UserError as error:
            faults.append(error)
    if faults:
        raise merge_errors(faults)
    if not found:
        raise UserError("no image to segment is named", "name files, folders or patterns: fsseg predict ... 'a/*.jpg'")
    return list({os.path.abspath(path): path for path in found}.values())


def _listed(lines: Iterable[str]) -> list[Path]:
    return [Path(line.rstrip("\r\n")) for line in lines if line.strip()]


def _of_word(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        if found := images_in(path):
            _tell_others(path, _entries(path))
            return found
        raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)})", "name the folder with the images itself")
    if path.exists():
        return [path]
    if not glob.has_magic(word):
        raise UserError(f"{path}: there is no such file or folder", "check the path; patterns such as 'a/*.jpg' work")
    matches = sorted(Path(name) for name in glob.iglob(os.path.expanduser(word), recursive=True))
    if found := [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]:
        _tell_others(word, matches)
        return found
    raise UserError(f"{word!r} matches no image", "check the folder and the ending; Linux tells .jpg from .JPG")


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, by name; hidden ones and those in folders below are left out.

    Raises:
        UserError: it cannot be read.
    """
    return [path for path in _entries(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _tell_others(place: Path | str, entries: Sequence[Path]) -> None:
    """Say which files are left out because of their kind."""
    if told := other_kinds(entries):
        log.warning("%s: %s; convert what is to be segmented to JPEG or PNG", place, told)


def other_kinds(files: Iterable[Path]) -> str:
    """How many files are of kinds that are not read, such as HEIC, in words; empty if there are none."""
    kinds = Counter(p.suffix.lower() or "no ending" for p in files if p.suffix.lower() not in SUFFIXES and p.is_file())
    named = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{count(kinds.total(), 'file')} left out, of kinds that are not read ({named})" if kinds else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})", "name a folder that can be read") from None


def find_supports(pairs: Sequence[str], folders: Sequence[Path], name: str) -> dict[str, list[FilePair]]:
    """Class -> its images with their masks.

    Args:
        pairs: `IMAGE:MASK`, all of the class `name`.
        folders: each holds a folder for each class; or images and masks of one class, which is called as the folder.

    Raises:
        UserError: a file is not there, a mask is missing, or a class is named twice.
    """
    found: dict[str, list[FilePair]] = {}
    places: dict[str, str] = {}
    if pairs:
        found[name], places[name] = [_pair(word) for word in pairs], "--support"
    for folder in folders:
        for class_name, place in _class_folders(folder):
            if class_name in found:
                raise UserError(
                    f"class {class_name} is named twice: by {places[class_name]} and {place}",
                    "put all supports of a class into one folder, or call the class of --support otherwise: --class",
                )
            found[class_name], places[class_name] = _pairs_in(place), str(place)
    if not found:
        raise UserError("no supports are given", "give --support IMAGE:MASK, or --support-dir FOLDER")
    return found


def _pair(word: str) -> FilePair:
    """Cut `IMAGE:MASK` at the colon that has a file on both sides: paths may hold colons themselves.

    Raises:
        UserError: no colon has, or several have.
    """
    cuts = [(Path(word[:n]).expanduser(), Path(word[n + 1 :]).expanduser()) for n, c in enumerate(word) if c == ":"]
    whole = [cut for cut in cuts if cut[0].is_file() and cut[1].is_file()]
    if len(whole) == 1:
        return whole[0]
    if not cuts:
        raise UserError(
            f"--support {word}: there is no colon", "write an image and its mask: --support cat.jpg:cat.png"
        )
    if whole:
        what = f"--support {word}: it can be cut at {len(whole)} colons"
        raise UserError(what, "rename the files, or use --support-dir")
    if len(cuts) == 1:
        missing = next(path for path in cuts[0] if not path.is_file())
        raise UserError(f"--support {word}: {missing} is no file", "check the path: --support IMAGE:MASK")
    what = f"--support {word}: no colon has a file on both sides"
    raise UserError(what, "check both paths: --support IMAGE:MASK; paths may hold colons")


def _class_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    if not folder.is_dir():
        raise UserError(f"--support-dir {folder} is no folder", "name a folder with one folder for each class in it")
    below = [path for path in _entries(folder) if path.is_dir()]
    if images_in(folder):
        if below:
            what = f"--support-dir {folder} holds both images and folders"
            raise UserError(what, "put the images of each class into a folder: supports/cat/, supports/dog/")
        yield folder.resolve().name, folder
    elif below:
        yield from ((path.name, path) for path in below)
    else:
        raise UserError(f"--support-dir {folder} holds no image", "put images and masks into it: cat/1.jpg, cat/1.png")


def _pairs_in(folder: Path) -> list[FilePair]:
    """1.jpg with 1.png or 1_mask.png; 1.png with 1_mask.png.

    Raises:
        UserError: an image has no mask, or there is none.
    """
    images = images_in(folder)
    _tell_others(folder, _entries(folder))
    by_name = {path.name: path for path in images}
    masks: dict[Path, Path] = {}
    for image in images:
        names = (f"{image.stem}{ending}{MASK_SUFFIX}" for ending in _MASK_ENDINGS)
        mask = next((by_name[name] for name in names if name in by_name and name != image.name), None)
        if mask is not None:
            masks[image] = mask
    alone = [image for image in images if image not in masks and image not in masks.values()]
    if alone:
        name = f"{alone[0].stem}{'_mask' if alone[0].suffix == MASK_SUFFIX else ''}{MASK_SUFFIX}"
        raise UserError(f"{alone[0]} has no mask", f"put one beside it: {name}, 0 background, 255 object")
    pairs = [(image, mask) for image, mask in masks.items() if image not in masks.values()]
    if not pairs:
        raise UserError(f"{folder} holds no image with a mask", "put images and masks into it: 1.jpg, 1.png")
    return pairs


@dataclass(frozen=True)
class Truths:
    """Where the true masks of images lie: `<class>/<name>.png`; without the class where there is but one.

    Or `<name>.png` with numbers of classes, where a `classes.txt` lies beside them, as in `dataset=folder`: also beside
    the folder `masks` that holds them.

    Args:
        folder: of `--truth-dir`.
        classes: that are predicted.
    """

    folder: Path
    classes: Sequence[str]

    def check(self) -> None:
        """
        Raises:
            UserError: the folder is none, or nothing says which class its masks are of.
        """
        if not self.folder.is_dir():
            raise UserError(f"--truth-dir {self.folder} is no folder", "name the folder of the true masks")
        if self.named_in is not None:
            if lacking := [visible(name) for name in self.classes if name not in self.numbers]:
                names = ", ".join(map(visible, self.numbers))
                what = f"{self.named_in} names no class {', '.join(lacking)}: it has {names}"
                raise UserError(what, "call the folders of the examples (or --class) as the classes are called there")
        elif len(self.classes) > 1 and not any((self.folder / name).is_dir() for name in self.classes):
            what = f"--truth-dir {self.folder} has no folder of a class ({', '.join(map(visible, self.classes))})"
            fix = (
                "put masks into <class>/<name>.png, or beside <name>.png a classes.txt: line n is the class of value n"
            )
            raise UserError(what, fix)

    def check_images(self, images: Sequence[Path]) -> None:
        """
        Raises:
            UserError: none of the images has a true mask.
        """
        if not any(map(self.files, images)):
            name = f"{images[0].stem}{MASK_SUFFIX}"
            what = f"--truth-dir {self.folder} has no true mask of any image: e.g. no {name}"
            raise UserError(what, "call the masks as the images, and end them in .png; or leave --truth-dir out")

    @cached_property
    def named_in(self) -> Path | None:
        """The classes.txt, if the masks hold numbers of classes."""
        above = [self.folder.absolute().parent] if self.folder.absolute().name == MASKS else []
        return next((file for place in (self.folder, *above) if (file := place / CLASSES).is_file()), None)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Class -> its number in the masks, of all that `named_in` names; empty without one.

        Raises:
            UserError: the file cannot be read, or names no classes.
        """
        if self.named_in is None:
            return {}
        from fsseg.data.sources.folder_masks import read_classes

        return {name: number for number, name in enumerate(read_classes(self.named_in), 1)}

    def sources(self, image: Path) -> list[Path]:
        """The files that an image's score follows from."""
        return [*self.files(image).values(), *([] if self.named_in is None else [self.named_in])]

    def files(self, image: Path) -> dict[str, Path]:
        """Class -> the true mask of an image, as far as there are any."""
        name = image.stem + MASK_SUFFIX
        if self.named_in is not None:
            path = next((p for p in (self.folder / name, self.folder / MASKS / name) if p.is_file()), None)
            return {} if path is None else dict.fromkeys(self.classes, path)
        places = {c: self.folder / c / name for c in self.classes}
        found = {c: path for c, path in places.items() if path.is_file()}
        if not found and len(self.classes) == 1 and (flat := self.folder / name).is_file():
            return {self.classes[0]: flat}
        return found


def output_names(images: Sequence[Path], known: Mapping[str, str]) -> dict[Path, str]:
    """A name, without ending, for the outputs of each image: its own, and with its folder's in front where that is
    taken. No two are the same, on a disk that does not tell capitals either.

    Args:
        known: absolute path of an image -> the name that it had before; it keeps that.
    """
    taken = {name.casefold() for name in known.values()}
    found = {}
    for image in images:
        place = os.path.abspath(image)
        if (name := known.get(place)) is None:
            own = image.stem or image.name
            folder = os.path.basename(os.path.dirname(place))
            tries = [own, f"{folder}_{own}", *(f"{folder}_{own}_{n}" for n in range(2, len(images) + len(known) + 3))]
            name = next(wanted for wanted in tries if wanted.casefold() not in taken)
            taken.add(name.casefold())
        found[image] = name
    return found


def folder_for(out: Path) -> None:
    """Make a folder for predictions and see that files can be written there, before any work is done for it.

    Raises:
        UserError: they cannot.
    """
    for path, kind, wrong in (
        *((out / name, "folder", lambda p: p.exists() and not p.is_dir()) for name in OUT_FOLDERS),
        *((out / name, "file", Path.is_dir) for name in OUT_FILES),
    ):
        if wrong(path):
            what = f"--out {out}: {path} is {'a file' if kind == 'folder' else 'a folder'}, and a {kind} of that name"
            raise UserError(f"{what} is to be written", "choose another folder: --out FOLDER, or rename what is there")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        what = f"--out {out}: nothing can be written there ({error.strerror})"
        raise UserError(what, "name a folder that can be written: --out FOLDER") from None
