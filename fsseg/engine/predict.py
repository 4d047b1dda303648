"""`Predictor`: masks of new images, by a checkpoint or a training-free method, from images and masks of a user's own.

`fsseg.load` makes one in Python; `fsseg predict` (`fsseg.engine.predict_files`) feeds it files. A mask is what an
evaluation would have scored for the same images: they come into the network by the same transform, and the answer to
the original size by the same function.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsseg.config.schema import BackboneConfig, Config
from fsseg.data.loader import evaluation_transform
from fsseg.data.photos import Photo, Picture, mask_of, photo
from fsseg.data.placement import below_a_cell
from fsseg.data.source import IGNORE_INDEX
from fsseg.data.transforms import EvalTransform
from fsseg.data.types import EpisodeSpec, Tasks
from fsseg.engine import precision
from fsseg.engine.devices import choose_device
from fsseg.engine.features import rounded
from fsseg.engine.restore import Restored, from_config, restore
from fsseg.engine.scoring import logits_at_scoring_size, margins
from fsseg.errors import UserError, merge_errors
from fsseg.model.base import Kept
from fsseg.process.words import count

log = logging.getLogger("fsseg")

Pair = tuple[Picture, Picture]
"""An image and its mask."""
GivenSupports = Sequence[Pair] | Mapping[str, Sequence[Pair]]
"""What a user gives: pairs of one class, or of several by name."""

ONE_CLASS = "object"
"""The name of the class of supports that come without one."""
MOST_CLASSES = 254
"""Class numbers of a mask of 8 bits, without 0 and 255."""

_KEPT_SUPPORTS = 64  # images whose features a predictor keeps between two calls
_GPU_BATCH = 8
_PAIRS = 'give pairs [(image, mask), ...], or by class {"cat": [(image, mask), ...]}'


@dataclass(frozen=True)
class Answer:
    """What was found in one image; all at its original size.

    Attributes:
        mask: (H, W) uint8: 0 is background, else the number of a class, from 1 in the order of `classes`.
        probabilities: of the foreground of each class alone, (H, W) float32.
    """

    mask: NDArray[np.uint8]
    probabilities: Mapping[str, NDArray[np.float32]] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.probabilities)

    @property
    def probability(self) -> NDArray[np.float32]:
        """Of the foreground, (H, W) float32; of several classes that of the most probable one at each pixel."""
        maps = list(self.probabilities.values())
        return maps[0] if len(maps) == 1 else np.maximum.reduce(maps)

    def mask_of(self, name: str) -> NDArray[np.bool_]:
        """Where a class was found, (H, W)."""
        return self.mask == self.classes.index(name) + 1


@dataclass(frozen=True)
class Query:
    """An image that is ready for the network.

    Attributes:
        image: (3, S, S) float32.
        picture: (S, S) bool, picture and not padding.
    """

    photo: Photo
    image: Tensor
    picture: Tensor


@dataclass(frozen=True)
class Shot:
    """A support image with its mask, encoded.

    Attributes:
        mask: (H, W) uint8 in {0, 1, 255}, at original size.
        small: (S, S) uint8, likewise, as the network has it.
        kept: what the method keeps of the image.
    """

    photo: Photo
    mask: NDArray[np.uint8] = field(repr=False)
    small: Tensor = field(repr=False)
    kept: Kept = field(repr=False)


@dataclass(frozen=True)
class Supports:
    """Supports that `Predictor.prepare` has encoded: name of the class -> its shots."""

    shots: Mapping[str, Sequence[Shot]]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.shots)


class Predictor:
    """Segments images by the example of a few supports.

    Args:
        restored: the model with its settings.
        device: as `device=` of a run.

    Attributes:
        cfg: its settings; `cfg.dataset.image_size` and `cfg.protocol.fit` say how images come into the network.
        about: what it is, in words.
    """

    def __init__(self, restored: Restored, device: str = "auto") -> None:
        self.cfg, self.about, self.digest = restored.cfg, restored.about, restored.digest
        self.device = choose_device(device)
        self.model = restored.model.to(self.device)
        self.transform: EvalTransform = evaluation_transform(self.cfg)
        self._amp = precision.usable(self.cfg.eval.amp, self.device, "eval.amp")
        self._base_classes = restored.base_classes
        self._cell = BackboneConfig.named(self.cfg.backbone.name).cells(self.cfg.backbone)[0]
        self._any_size = restored.any_size
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._turn_told = False
        precision.prepare(self.model, self.device, self._amp)

    @classmethod
    def from_checkpoint(cls, place: str | Path, device: str = "auto", line: Sequence[str] = ()) -> Predictor:
        """Of a checkpoint, or of a run directory.

        Args:
            line: as of `fsseg.engine.restore.restore`.

        Raises:
            UserError: it is not there, cannot be read, or needs what is not here.
        """
        return cls(restore(place, line), device)

    @classmethod
    def from_config(cls, cfg: Config) -> Predictor:
        """Of a composed configuration: a training-free method, or one with `checkpoint=`.

        Raises:
            UserError: it must be trained first, or its weights are not here.
        """
        return cls(from_config(cfg), cfg.device)

    @property
    def batch_size(self) -> int:
        """Images that go through the network together if nothing else is said."""
        return _GPU_BATCH if self.device.type == "cuda" else 1

    @overload
    def predict(self, query: Picture, supports: GivenSupports | Supports, batch_size: int | None = None) -> Answer: ...

    @overload
    def predict(
        self, query: list[Picture], supports: GivenSupports | Supports, batch_size: int | None = None
    ) -> list[Answer]: ...

    def predict(
        self, query: Picture | list[Picture], supports: GivenSupports | Supports, batch_size: int | None = None
    ) -> Answer | list[Answer]:
        """Segment an image, or each of a list.

        Args:
            query: a path, a PIL image or an array (H, W, 3) uint8; or a list of them.
            supports: pairs (image, mask), or {"cat": [(image, mask), ...], "dog": [...]}, which are segmented each
                alone; a pixel is of the class whose foreground is most probable there, if that is above 0.5.
            batch_size: images that go through the network together.

        Raises:
            UserError: an image or mask cannot be used; it is named.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} is no number of images", "give 1 or more, or leave it out")
        ready = supports if isinstance(supports, Supports) else self.prepare(supports)
        if isinstance(query, list | tuple):
            return list(self.stream(query, ready, batch_size))
        return self.answers([self.query(query)], ready)[0]

    def stream(self, queries: Iterable[Picture], supports: Supports, batch_size: int | None = None) -> Iterator[Answer]:
        """The answers one by one, so that any number of images needs the memory of a batch.

        Raises:
            UserError: an image cannot be used; it is named.
        """
        named = ((query, f"query {n}") for n, query in enumerate(queries, start=1))
        while batch := [self.query(query, name) for query, name in islice(named, batch_size or self.batch_size)]:
            yield from self.answers(batch, supports)

    def prepare(self, supports: GivenSupports) -> Supports:
        """Read and encode supports, for many calls; each image is encoded once.

        Raises:
            UserError: an image or mask cannot be used, or its object is smaller than a feature cell; all are named.
        """
        by_name = supports if isinstance(supports, Mapping) else {ONE_CLASS: supports}
        if bad := [pairs for pairs in by_name.values() if isinstance(pairs, str) or not isinstance(pairs, Sequence)]:
            raise UserError(f"supports are given as {type(bad[0]).__name__}", _PAIRS)
        if not 1 <= len(by_name) <= MOST_CLASSES or not all(map(len, by_name.values())):
            what = "there are no supports" if not any(map(len, by_name.values())) else "a class has no support"
            if len(by_name) > MOST_CLASSES:
                what = f"{len(by_name)} classes are more than the {MOST_CLASSES} that a mask can number"
            raise UserError(what, _PAIRS)
        faults: list[UserError] = []
        shots = {str(name): self._shots(str(name), pairs, faults) for name, pairs in by_name.items()}
        if faults:
            raise merge_errors(faults)
        return Supports(shots)

    def query(self, given: Picture, name: str = "the query") -> Query:
        """An image made ready for the network.

        Raises:
            UserError: it cannot be used.
        """
        return self.told(fit(self.transform, photo(given, self.transform.longer_side, name)))

    def told(self, query: Query) -> Query:
        """The same; that a photo was turned is said once."""
        self._tell(query.photo)
        return query

    @torch.inference_mode()
    def answers(self, queries: Sequence[Query], supports: Supports) -> list[Answer]:
        """Segment some images together: each goes through the backbone once, whatever the number of classes.

        Raises:
            UserError: a support's object fills no cell (`model.vanished_mask=error`), or an answer is not finite.
        """
        kept = self._encoded(queries, "query")
        found = {name: self._margins(queries, kept, name, shots) for name, shots in supports.shots.items()}
        answers = []
        for n in range(len(queries)):
            own = torch.stack([of_class[n] for of_class in found.values()])
            best = own.max(0)
            mask = torch.where(best.values > 0, best.indices + 1, 0).to(torch.uint8).cpu().numpy()
            probable = own.sigmoid().cpu().numpy()
            answers.append(Answer(mask, dict(zip(found, probable))))
        return answers

    def _shots(self, name: str, pairs: Sequence[Pair], faults: list[UserError]) -> list[Shot]:
        """The supports of a class; what is wrong with the others goes to `faults`."""
        found = []
        for n, pair in enumerate(pairs, start=1):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                what = f"support {n} of class {name} is no pair of an image and a mask"
                raise UserError(what, "give pairs: [(image, mask), ...]")
            try:
                image = photo(pair[0], self.transform.longer_side, f"support image {n} of class {name}")
                mask = mask_of(pair[1], image, f"support mask {n} of class {name}")
                self._check_size(mask, image)
            except UserError as error:
                faults.append(error)
                continue
            self._tell(image)
            if not faults:  # else nothing comes of it
                small = self.transform.mask(mask, keep_foreground=True)
                found.append(Shot(image, mask, small, self._support(image)))
        return found

    def _check_size(self, mask: NDArray[np.uint8], image: Photo) -> None:
        """
        Raises:
            UserError: the object of a support is smaller than a feature cell, so that its features are of what is
                around it.
        """
        pixels, scaled = int((mask == 1).sum()), self.transform.place(image.size).scaled
        if not below_a_cell(pixels, image.size, scaled, self._cell):
            return
        size, least = image.size, math.ceil(self._cell**2 * math.prod(image.size) / math.prod(scaled))
        fix = "take an example that shows a larger object, or cut image and mask out around this one"
        if self._any_size:
            fix += f", or set a larger dataset.image_size than {self.cfg.dataset.image_size}"
        raise UserError(
            f"the object in {image.name} ({size[1]} x {size[0]}) is smaller than a feature cell: "
            f"{count(pixels, 'pixel')}, and a cell takes {least}",
            fix,
        )

    def _support(self, image: Photo) -> Kept:
        """What is kept of a support image; of the images of the last calls it is there already."""
        mark = hashlib.sha256(f"{image.pixels.shape} {image.size}".encode() + image.pixels.tobytes()).digest()
        if mark not in self._kept:
            self._kept[mark] = self._encoded([fit(self.transform, image)], "support")
        self._kept.move_to_end(mark)
        while len(self._kept) > _KEPT_SUPPORTS:
            self._kept.popitem(last=False)
        return self._kept[mark]

    @torch.inference_mode()
    def _encoded(self, queries: Sequence[Query], role: str) -> Kept:
        images, pictures = torch.stack([q.image for q in queries]), torch.stack([q.picture for q in queries])
        with precision.autocast(self.device, self._amp):
            kept = self.model.encode(images.to(self.device, non_blocking=True), pictures, role)  # type: ignore[arg-type]
        return rounded(kept, self.cfg.eval.feature_format)

    def _margins(self, queries: Sequence[Query], kept: Kept, name: str, shots: Sequence[Shot]) -> list[Tensor]:
        """Of each query how far the foreground of a class lies above background, (H, W) at original size."""
        count, places = len(queries), [self.transform.place(q.photo.size) for q in queries]
        blank = torch.stack([torch.where(q.picture, 0, IGNORE_INDEX) for q in queries]).to(torch.uint8)
        number = self._base_classes.get(name, -1)
        names = tuple(shot.photo.name for shot in shots)
        tasks = Tasks(
            support_masks=torch.stack([shot.small for shot in shots]).expand(count, -1, -1, -1),
            query_mask=blank,
            specs=[EpisodeSpec(n, number, q.photo.name, names) for n, q in enumerate(queries)],
            valid_sizes=[place.window for place in places],
            query_truths=[None] * count,
        )
        supports = [shot.kept for shot in shots] * count
        if self.device.type != "cpu":  # as `Scoring` does
            supports = [{key: torch.cat([one[key] for one in supports]) for key in supports[0]}]
        with precision.autocast(self.device, self._amp):
            prediction = self.model.decode(supports, kept, tasks)
        logits = prediction.rounds[-1]
        if not bool(torch.isfinite(logits).all()):
            raise UserError(
                f"the answer for class {name} holds numbers that are not finite",
                "the weights have diverged: give another checkpoint",
            )
        return [
            margins(logits_at_scoring_size(logits[n : n + 1], tasks.size, place.window, query.photo.size,
                                           self.cfg.protocol.fit, prediction.patches))[0]
            for n, (query, place) in enumerate(zip(queries, places))
        ]  # fmt: skip

    def _tell(self, image: Photo) -> None:
        if image.was_turned and not self._turn_told:
            self._turn_told = True
            log.warning("%s is turned as its EXIF orientation says, as people see it, and so is its mask; others alike",
                        image.name)  # fmt: skip


def fit(transform: EvalTransform, image: Photo) -> Query:
    """A photo as the network takes it."""
    pixels, picture = transform.image(image.pixels, image.size)
    return Query(image, pixels, picture)
