"""The interface between data sets and the code that uses them: `Source`, and its `ClassIndex`.

A source reads one data set in its official layout. Lists, folds, episodes, transforms, the score and the `fsseg`
commands are built on this interface and know nothing of folders or file formats. A new data set is one file in
`data/sources/` with a subclass of `Source`, a schema in `fsseg.config.schema` that names the class, and a file in
`conf/dataset/`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fsseg.config.machine import DEFAULT, LINE, set_by
from fsseg.config.schema import Config, DatasetConfig
from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Comparison, Fault, faults_error
from fsseg.data.folds import fold_classes
from fsseg.data.image_files import read_headers, sizes_fingerprint, stamps_of
from fsseg.data.images import TOO_LARGE
from fsseg.data.setup.download import Part
from fsseg.errors import UserError
from fsseg.process.memory import uncollected

Split = Literal["train", "val"]
"""`train`: images whose base classes are trained on; `val`: images whose novel classes are evaluated."""

SPLITS: tuple[Split, ...] = ("train", "val")

IGNORE_INDEX = 255

OTHER_SIZE = "images of another size than their masks"
"""A kind of faults that a run's start and `fsseg verify` find."""


def unreadable(path: str, reason: str) -> Fault:
    """The fault of an image that cannot be read.

    Args:
        reason: as reading it gave.
    """
    if TOO_LARGE in reason:
        return Fault("images that are too large", path, reason, "make image and mask smaller: more is never decoded")
    return Fault("unreadable images", path, reason, "fetch these images again")


@dataclass(frozen=True)
class ClassIndex:
    """Which images hold which classes, with how many pixels at original size.

    A pair is listed when the class has at least one pixel (255 never counts). A pair of 0 pixels means that the
    class is in the image only as pixels of 255 (a crowd of COCO). Such a pair is in no list, but the image counts as
    holding the class when images with novel classes are left out. Pairs are sorted by (image, class).

    Attributes:
        image_ids: (I,) names of all images of the split, in list order, those without any object included.
        pair_image: (P,) int32, position in `image_ids`.
        pair_class: (P,) int16, 0-based class_id.
        pair_pixels: (P,) int64, pixels of the class at original size.
        pair_grid: (P,) int32, those of them in rows and columns 1, 33, 65, ... of the mask, for `list_rule=grid`;
            None where a source does not count them.
    """

    image_ids: tuple[str, ...]
    pair_image: NDArray[np.int32]
    pair_class: NDArray[np.int16]
    pair_pixels: NDArray[np.int64]
    pair_grid: NDArray[np.int32] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over names, pairs and pixels: equal for equal annotations, on any machine."""
        digest = hashlib.sha256("\n".join(self.image_ids).encode())
        for array, kind in ((self.pair_image, "<i4"), (self.pair_class, "<i2"), (self.pair_pixels, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()[:16]

    def take(self, positions: Sequence[int]) -> ClassIndex:
        """The index of some images alone, in the order given.

        Args:
            positions: of those images in `image_ids`, each once.
        """
        place = np.full(len(self.image_ids), -1, dtype=np.int64)
        place[np.asarray(positions, dtype=np.int64)] = np.arange(len(positions))
        kept = np.flatnonzero(place[self.pair_image] >= 0)
        kept = kept[np.lexsort((self.pair_class[kept], place[self.pair_image[kept]]))]
        return ClassIndex(
            image_ids=tuple(self.image_ids[position] for position in positions),
            pair_image=place[self.pair_image[kept]].astype(np.int32),
            pair_class=self.pair_class[kept],
            pair_pixels=self.pair_pixels[kept],
            pair_grid=None if self.pair_grid is None else self.pair_grid[kept],
        )


def label_table(class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
    """What each label of a mask file becomes in the binary mask of a class, (256,): see `Source.mask`.

    Label v is class_id v - 1; 0 is background, 255 ignore.
    """
    table = np.zeros(256, dtype=np.uint8)
    table[class_id + 1] = 1
    for other in (*(c + 1 for c in ignore_classes if c != class_id), IGNORE_INDEX):
        table[other] = IGNORE_INDEX
    return table


def prepare_command(name: str, root: str) -> str:
    """The command that fetches a data set into its folder."""
    given = f" dataset.root={root}" if set_by(name, root) == LINE else ""
    return f"fsseg prepare dataset={name}{given} --download"


class Source(ABC):
    """One data set on disk. Picklable and cheap to pickle: loader processes get a copy.

    A data set must have the abstract methods. The others serve every data set that follows the common rules; a data set
    with other rules overrides them. `registry` builds a source from its configuration alone: `source_class(name)(cfg)`.
    An image id is a string that names one image of a split.

    Attributes:
        name: of the data set, e.g. "pascal5i".
        root: folder that it lies in.
        classes: class names; position = class_id.
        num_folds: equal parts that the classes are cut into.
        cache: folder for what a scan finds; None keeps it beside the data (see `arrays.cache_folders`).
        mask_rule: how masks are made from the annotations, in words; recorded with every result.
        one_pool: both splits are the same images, and only their classes tell what is trained on and what is scored.
        upright: images are turned as their EXIF orientation says; `image` and the sizes of masks have to agree.
    """

    mask_rule: str
    one_pool: ClassVar[bool] = False
    upright: ClassVar[bool] = False

    def __init__(self, cfg: DatasetConfig, classes: Sequence[str], root: Path | None = None) -> None:
        self.name = cfg.name
        self.root = root or Path(cfg.root).expanduser()
        self.classes = tuple(classes)
        self.num_folds = cfg.num_folds
        self.cache = cfg.cache
        self._indexes: dict[Split, ClassIndex] = {}
        self._image_fingerprints: dict[Split, str | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}, "_image_fingerprints": {}}  # a loader process needs none

    # ------------------------------------------------------------------------------------ what loaders and models see

    @abstractmethod
    def image(self, split: Split, image_id: str, longer_side: int | None = None) -> NDArray[np.uint8]:
        """The image as RGB, (H, W, 3) uint8.

        Args:
            longer_side: pixels that suffice on the longer side. A source may then return a larger image reduced by 2, 4
                or 8, sides rounded up, with at least so many pixels (see `images.decode_image`).

        Raises:
            UserError: naming the file, if it is missing or cannot be decoded.
        """

    @abstractmethod
    def mask(self, split: Split, image_id: str, class_id: int, ignore_classes: Sequence[int] = ()) -> NDArray[np.uint8]:
        """The class as a binary mask at original size, (H, W) uint8 in {0, 1, 255}.

        255 where the annotation says "ignore" (VOC boundary, COCO crowd of this class), and where another class of
        `ignore_classes` stands; 0 at any other class.

        Raises:
            UserError: naming the file, if it is missing, cannot be decoded, or its size differs from the image's.
        """

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """class_ids held out in `fold`, a block of consecutive ones; the others are the base classes.

        It has to agree with `DatasetConfig.interleaved`, by which models know the base classes without the data.

        Raises:
            UserError: there is no such fold.
        """
        return fold_classes(len(self.classes), self.num_folds, fold)

    def background_family(self, split: Split, image_id: str) -> int | None:
        """Background family of a generated image (shapes5i); None where there is no such notion."""
        return None

    # -------------------------------------------------------------------------------------- what lists and checks see

    @abstractmethod
    def scan(self, split: Split) -> tuple[ClassIndex | None, list[Fault]]:
        """The index of the sound part of a split, and every fault of its list and annotations.

        From the annotations alone: images may be absent. None if there is nothing to index.

        Raises:
            UserError: there is no list, or no annotations at all.
        """

    @abstractmethod
    def list_origin(self, split: Split) -> str:
        """The list that the split's images come from, in words, for the record."""

    @abstractmethod
    def image_path(self, split: Split, image_id: str) -> Path:
        """The file of an image, whether it exists or not."""

    def image_paths(self, split: Split, image_ids: Sequence[str]) -> dict[str, Path]:
        """`image_path` of many images."""
        return {image_id: self.image_path(split, image_id) for image_id in image_ids}

    @abstractmethod
    def mask_path(self, split: Split, image_id: str) -> Path:
        """The file that an image's masks come from; the first of several."""

    def mask_paths(self, split: Split, image_id: str) -> Sequence[Path]:
        """All files that they come from."""
        return [self.mask_path(split, image_id)]

    @abstractmethod
    def mask_sizes(self, split: Split) -> dict[str, tuple[int, int]]:
        """(height, width) of every image of a split by its annotations, by image id."""

    @abstractmethod
    def missing_images(self, split: Split) -> list[str]:
        """Ids of a split's list without an image file, found by file names alone."""

    def changed_files(self, split: Split) -> list[Fault]:
        """For `fsseg verify`: files that are not what the data set was made of, where that is known."""
        return []

    def completion(self, split: Split) -> str:
        """What a user can do about missing images."""
        return f"complete the images below {self.root}"

    def index(self, split: Split) -> ClassIndex:
        """The index of a split; scans once and keeps it.

        Raises:
            UserError: missing folders, unreadable or inconsistent annotations, all in one go.
        """
        if split not in self._indexes:
            index, faults = self.scan(split)
            if index is None or faults:
                raise faults_error(faults)
            self._indexes[split] = index
        return self._indexes[split]

    def kept_index(self, split: Split) -> ClassIndex | None:
        """The index as an earlier scan left it, for `fsseg plan`: nothing is scanned. None if there is none that fits.

        Raises:
            UserError: as `index`.
        """
        return self._indexes.get(split)

    def images_fingerprint(self, split: Split) -> str | None:
        """16 hex digits over ids and sizes in bytes of a split's images; None if one is missing. Looks once, keeps it.

        Raises:
            UserError: as `index`.
        """
        if split not in self._image_fingerprints:
            paths = self.image_paths(split, self.index(split).image_ids)
            self._image_fingerprints[split] = sizes_fingerprint(paths, stamps_of(paths.values()))
        return self._image_fingerprints[split]

    @uncollected()
    def check(self, splits: Sequence[Split] = SPLITS) -> None:
        """Before a run: index the splits, and check that all their images are there, whole by their headers and ends,
        and of the size that the annotations say; and that none that is trained on is evaluated.

        Raises:
            UserError: with everything that is missing or at fault, in one go.
        """
        faults: list[Fault] = []
        for split in splits:
            index, found = self.scan(split)
            faults += found
            if index is None:
                continue
            if not found:
                self._indexes[split] = index
            kind, fix = f"missing images of the {split} list", self.completion(split)
            missing = self.missing_images(split)
            faults += [Fault(kind, str(self.image_path(split, i)), "", fix) for i in missing]
            faults += self._header_faults(split, index, set(missing))
        if "train" in splits:
            faults += self.shared_images(self.listed("train"), self.listed("val"))
        if faults:
            raise faults_error(dict.fromkeys(faults))  # splits of one file share its faults

    def shared_images(self, train: Sequence[str], val: Sequence[str]) -> list[Fault]:
        """A fault for each image that both splits list: it would be trained on, and then evaluated.

        Args:
            train, val: ids of the splits' images.
        """
        both = [] if self.one_pool else sorted(i for i in set(train) & set(val) if self.is_one_image(i))
        if not both:
            return []
        origins = f"the training list ({self.list_origin('train')}) and the evaluation list ({self.list_origin('val')})"
        fix = "take them off one of the two (dataset.train_list=, dataset.val_list=): else the score is of seen images"
        return [Fault(f"images of both {origins}", str(self.image_path("train", i)), "", fix) for i in both]

    def is_one_image(self, image_id: str) -> bool:
        """Whether an id that both splits have is one image, and not two of the same name in two folders."""
        return self.image_path("train", image_id) == self.image_path("val", image_id)

    def listed(self, split: Split) -> Sequence[str]:
        """Ids of a split's list, as far as they are known without a scan; else none."""
        try:
            index = self._indexes.get(split) or self.kept_index(split)
        except (UserError, OSError):  # told by whoever needs the split
            return ()
        return () if index is None else index.image_ids

    def _header_faults(self, split: Split, index: ClassIndex, missing: set[str]) -> list[Fault]:
        """Faults that the headers of the images show; their sizes in bytes go into the fingerprint."""
        paths = self.image_paths(split, index.image_ids)
        stamps = stamps_of(paths.values())
        self._image_fingerprints[split] = sizes_fingerprint(paths, stamps)
        folders = cache_folders(self.root, self.cache)
        shapes, reasons = read_headers(split, self.root, stamps, folders, self.upright)
        unread = {i: reasons[path] for i, path in paths.items() if path in reasons}
        gone = [i for i, path in paths.items() if path not in stamps and i not in missing]
        unread |= dict.fromkeys(gone, "no file, or a link to none")
        return [
            *(unreadable(str(paths[i]), reason) for i, reason in unread.items()),
            *self.size_faults(split, {i: shapes[path] for i, path in paths.items() if path in shapes}),
        ]

    def size_faults(self, split: Split, found: Mapping[str, tuple[int, int]]) -> list[Fault]:
        """A fault for every image whose size is not that of its masks.

        Args:
            found: (height, width) of the images, by image id.
        """
        annotated, faults = self.mask_sizes(split), []
        for image_id, size in found.items():
            if size != (expected := annotated[image_id]):
                detail = f"{size[1]}x{size[0]} pixels, its mask in {self.mask_path(split, image_id)} "
                detail += f"{expected[1]}x{expected[0]}"
                path = str(self.image_path(split, image_id))
                faults.append(Fault(OTHER_SIZE, path, detail, "restore both from one release"))
        return faults

    def compare(self, indexes: Mapping[Split, ClassIndex]) -> Comparison:
        """For `fsseg verify`: compare the lists with the published ones, if there are any.

        Args:
            indexes: of those splits that could be read.
        """
        return Comparison(notes=[f"{self.name} has no published lists to compare with"])

    # ------------------------------------------------------------ what is asked of a configuration, before any source

    @classmethod
    @abstractmethod
    def layout(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> dict[str, bool]:
        """What `splits` need below the root, in words, and whether it is there; looks at names, reads nothing.

        Args:
            cfg: the data set's own configuration; the same in the methods below.
        """

    def setting_faults(self, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """Settings that do not fit the data that are there; of data sets whose classes are fixed there are none."""
        return []

    @classmethod
    def check_folder(cls, cfg: Any, splits: Sequence[Split] = SPLITS) -> list[UserError]:
        """What the folder lacks for `splits`; looks at names only."""
        root, by = Path(cfg.root).expanduser(), set_by(cfg.name, str(cfg.root))
        layout = cls.layout(cfg, splits)
        expected = ", ".join(layout)
        key = f"dataset.root={cfg.root}" + {LINE: "", DEFAULT: " (the default)"}.get(by, f" (set by {by})")
        command = cls.fetching(cfg)
        fetch = f", or run `{command}`" if command else ""
        ways = f" (for all lines: data.roots.{cfg.name}=, FSSEG_DATA or machine.yaml, see `fsseg where`)"
        if not root.is_dir():
            what = f"{key}: there is no folder {root.absolute()}; expected there: {expected}"
            return [UserError(what, f"point dataset.root at the data{ways}{fetch}")]
        lacking = ", ".join(what for what, there in layout.items() if not there)
        if not lacking:
            return []
        found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        holds = f"it holds {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}" if found else "it is empty"
        what = f"{key}: {root.absolute()} lacks {lacking}; {holds}"
        fix = f"point dataset.root at the folder with {expected}{ways}{fetch}"
        return [UserError(what, fix)]

    @classmethod
    def fetching(cls, cfg: Any) -> str:
        """The command that fetches what the folder lacks; empty for a data set that is not fetched."""
        if not cls.parts(cfg):
            return ""
        return prepare_command(cfg.name, str(cfg.root))

    @classmethod
    def parts(cls, cfg: Any, fetch: bool = False) -> tuple[Part, ...]:
        """For `fsseg prepare`: the official archives that the data set is made of; none where it is not fetched.

        Raises:
            UserError: `fetch` is set, but nothing can be fetched for this configuration.
        """
        return ()

    @classmethod
    def training_images(cls, cfg: Config) -> int | None:
        """For `fsseg plan`, where the data are not at hand: images that a run trains on, if they were published."""
        return None
