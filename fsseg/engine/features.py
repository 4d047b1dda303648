"""What is kept of the images while an evaluation runs: how much of it, where, and in which number format.

`fsseg.engine.scoring` asks `plan_room` before the first episode, once it knows how large one image's share is, and puts
every encoded image into a `FeatureStore`. Which images are kept when is decided beforehand (`fsseg.data.visits`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fsseg.config.schema import EvalConfig
from fsseg.engine.devices import taken_by
from fsseg.errors import UserError
from fsseg.model.base import Kept
from fsseg.process.memory import free_memory
from fsseg.process.ranks import Ranks
from fsseg.process.words import size

SHARE = 0.5
"""Of the memory or disk that is free, the part that may be kept in if `eval.feature_cache_gb` says nothing."""
MOST = 0.9
"""Of the memory or disk that is free, the most that is kept in, whatever is asked for."""
LARGEST_BATCH = 16
"""Episodes, and images, that a GPU computes together if the settings say nothing; more gain nothing at 473 pixels."""

_ALIGNED = 64  # bytes: where in a file a tensor may begin
_FORMATS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FeatureRoom:
    """Where and how much is kept, and how much is computed together.

    Attributes:
        place: device, host or disk.
        folder: of the file, if the place is disk.
        entry: bytes that one image takes there at most.
        images: how many of them can be kept at once; 0 keeps nothing.
        batch_size: episodes that are decoded together.
        backbone_batch: images that are encoded together.
    """

    place: str
    folder: Path
    entry: int
    images: int
    batch_size: int
    backbone_batch: int

    def for_need(self, images: int) -> FeatureRoom:
        """The same, or where there is no room for the images of one episode, without keeping any."""
        return self if self.images >= images else replace(self, images=0)

    @classmethod
    def of_all(cls, rooms: Sequence[FeatureRoom]) -> FeatureRoom:
        """What several processes can do alike: the smallest of all, and on the host if one has no room elsewhere."""
        least = min(rooms, key=lambda room: (room.place == "device", room.images))
        return replace(
            least,
            images=min(room.images for room in rooms),
            batch_size=min(room.batch_size for room in rooms),
            backbone_batch=min(room.backbone_batch for room in rooms),
        )


@dataclass(frozen=True)
class Probe:
    """The least that a device has to do at once: `encode` one image, `decode` the most costly episode that can be."""

    encode: Callable[[], object]
    decode: Callable[[], object]


def stored(value: Tensor, format: str) -> Tensor:
    """A tensor in the number format of what is kept (`eval.feature_format`)."""
    kind = _FORMATS[format]
    return value.to(kind) if kind is not None and value.dtype == torch.float32 else value


def rounded(kept: Kept, format: str) -> Kept:
    """What was encoded, in its own number format, as it comes back from a `FeatureStore` of that format."""
    return {name: stored(value, format).to(value.dtype) for name, value in kept.items()}


def plan_room(
    settings: EvalConfig, device: torch.device, kept: Kept, distinct: int, probe: Probe, ranks: Ranks
) -> FeatureRoom:
    """Choose, for `null` and `auto` by what is free now.

    Args:
        settings: of the evaluation.
        device: that computes.
        kept: of one image, in both roles.
        distinct: different images of all episodes.
        probe: what its memory is measured by, on a GPU.
        ranks: that share this machine's memory.
    """
    sizes = [stored(value[:0], settings.feature_format).element_size() * value.numel() for value in kept.values()]
    entry, folder = sum(sizes), Path(settings.feature_folder or tempfile.gettempdir())
    if device.type == "cuda":
        batch = settings.batch_size or _fitting(device, probe.decode)
        backbone = settings.backbone_batch or _fitting(device, probe.encode)
    else:
        batch, backbone = settings.batch_size or 1, settings.backbone_batch or 1
    place, wanted = settings.feature_place, distinct * entry
    if place == "device" and device.type == "cpu":
        place = "host"
    if place == "auto":
        place = "host"
        if device.type == "cuda" and wanted <= _budget(settings, "device", device, folder, ranks):
            place = "device"
    if place == "disk":
        entry = sum(map(_padded, sizes))
    elif place == "host" and device.type == "cuda":
        entry = sum(map(_pinned, sizes))
    budget = _budget(settings, place, device, folder, ranks)
    return FeatureRoom(place, folder, entry, min(distinct, int(budget // max(1, entry))), batch, backbone)


def _budget(settings: EvalConfig, place: str, device: torch.device, folder: Path, ranks: Ranks) -> float:
    """Bytes that this process may keep there. More than there is would be an error, or the end of the process: then
    there are fewer hits."""
    wanted, sharing = settings.feature_cache_gb, int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    if place == "device":
        free: float = _gpu_free(device)
    elif place == "host":
        free = free_memory() / sharing
    else:
        try:
            free = shutil.disk_usage(folder).free / sharing
        except OSError as error:
            raise _folder_fault(folder, error) from None
    return SHARE * free if wanted is None else min(wanted * 1e9, MOST * free)


def _gpu_free(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that torch holds without use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _fitting(device: torch.device, one: Callable[[], object]) -> int:
    """How many of these a GPU computes together: what fits into a quarter of what is free."""
    needed = max(1, taken_by(one, device))
    return max(1, min(LARGEST_BATCH, _gpu_free(device) // 4 // needed))


class FeatureStore:
    """What was encoded of images, by name of the image.

    Args:
        room: where, and how much.
        device: that computes; what is read is there.
        format: of the numbers (`eval.feature_format`); what is read has the format that was encoded.

    Attributes:
        bytes, peak: that are kept now, and that were kept at most. What is held for one visit alone is not counted.
    """

    def __init__(self, room: FeatureRoom, device: torch.device, format: str) -> None:
        self.room, self.device, self.format = room, device, format
        self.bytes = self.peak = 0
        self._entries: dict[str, tuple[Kept, dict[str, torch.dtype]]] = {}
        self._file = _MappedFile(room) if room.place == "disk" and room.images else None

    def __contains__(self, image: str) -> bool:
        return image in self._entries

    def put(self, image: str, kept: Kept) -> None:
        """Keep what was encoded of an image; tensors (1, ...), which may be parts of larger ones.

        Raises:
            UserError: there is no memory left.
        """
        kinds = {name: value.dtype for name, value in kept.items()}
        # Rounded also where nothing is kept: how much room there is must not change a count.
        entry = {name: stored(value, self.format) for name, value in kept.items()}
        if not self.room.images:
            self._entries[image] = (entry, kinds)
            return
        try:
            entry = {name: self._placed(value) for name, value in entry.items()}
            if self._file is not None:
                entry = self._file.put(image, entry)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise UserError(
                f"no memory left to keep image {image} in ({size(self.bytes)} are kept)",
                "lower eval.feature_cache_gb (0 keeps nothing), or set eval.feature_place=disk",
            ) from None
        self._entries[image] = (entry, kinds)
        self.bytes += self._taken(entry)
        self.peak = max(self.peak, self.bytes)

    def get(self, image: str) -> Kept:
        """What was encoded, tensors (1, ...) on the computing device; what is encoded on the host stays there."""
        entry, kinds = self._entries[image]
        return {
            name: value if kinds[name] == torch.bool else value.to(self.device, kinds[name], non_blocking=True)
            for name, value in entry.items()
        }

    def drop(self, image: str) -> None:
        entry, _ = self._entries.pop(image)
        if self.room.images:
            self.bytes -= self._taken(entry)
        if self._file is not None:
            self._file.free(image)

    def close(self) -> None:
        """Give everything up; the peak stays known."""
        self._entries.clear()
        self._file = None
        self.bytes = 0

    def _taken(self, entry: Kept) -> int:
        pinned = self.room.place == "host" and self.device.type == "cuda"
        return sum(_pinned(value.nbytes) if pinned else value.nbytes for value in entry.values())

    def _placed(self, value: Tensor) -> Tensor:
        """The same in memory of its own, at its place."""
        if self.room.place == "host" and value.device.type == "cuda":
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            return host.copy_(value, non_blocking=True)  # read again on the same stream
        if self.room.place == "disk":
            return value.cpu()
        return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


class _MappedFile:
    """Places of equal size in a file that is mapped into memory. It has no name: nothing of it outlives this process.

    Raises:
        UserError: the folder has no room for it.
    """

    def __init__(self, room: FeatureRoom) -> None:
        self._entry = room.entry
        self._places: dict[str, int] = {}
        self._free = list(range(room.images))
        total = self._entry * room.images
        try:
            with tempfile.TemporaryFile(dir=room.folder, prefix="fsseg-features-") as file:
                _reserve(file, total)
                self._bytes = np.memmap(file, dtype=np.uint8, mode="r+", shape=(total,))
        except OSError as error:
            raise _folder_fault(room.folder, error, total) from None

    def put(self, image: str, entry: Kept) -> Kept:
        """Copy the tensors into a free place."""
        self._places[image] = place = self._free.pop()
        start, found = place * self._entry, {}
        for name, value in entry.items():
            there = torch.from_numpy(self._bytes[start : start + value.nbytes]).view(value.dtype).view(value.shape)
            found[name] = there.copy_(value)
            start += _padded(value.nbytes)
        return found

    def free(self, image: str) -> None:
        with suppress(KeyError):
            self._free.append(self._places.pop(image))


def _reserve(file: BinaryIO, total: int) -> None:
    """All of it at once: a mapped page for which the disk has no room would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, total)
        return
    part = bytes(2**20)  # macOS
    for start in range(0, total, len(part)):
        file.write(part[: total - start])
    file.flush()


def _padded(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


def _pinned(count: int) -> int:
    """What torch takes for so many bytes of pinned memory: a power of two."""
    return 1 << (count - 1).bit_length() if count else 0


def _folder_fault(folder: Path, error: OSError, wanted: int | None = None) -> UserError:
    much = "" if wanted is None else f" of {size(wanted)}"
    return UserError(
        f"eval.feature_place=disk: no file{much} can be made in {folder} ({error.strerror})",
        "set eval.feature_folder to a folder with more room, or lower eval.feature_cache_gb",
    )
