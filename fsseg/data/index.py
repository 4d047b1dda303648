"""The scan of mask files behind `ClassIndex`: which values each mask holds, with how many pixels, kept on disk.

A scan is kept per mask folder and file by file (size and time), so that another list costs nothing and a changed
mask costs one file. `pascal.VocSource` is the caller; COCO, annotated in one JSON file, has its own store in `coco`.

Run as `python -m fsseg.data.index` this module is a scan worker: paths on stdin, one JSON line per file on stdout.
Plain child processes, unlike multiprocessing's, neither import the user's main module again nor fork threads.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsseg.data.faults import Fault
from fsseg.data.images import read_labels
from fsseg.data.source import IGNORE_INDEX, ClassIndex
from fsseg.data.store import Arrays, load, pack_names, save, unpack_names
from fsseg.errors import UserError

log = logging.getLogger(__name__)

RULE_VERSION = 1
"""Raised whenever what a scan records changes: older scans are then made again."""

_FILES_PER_WORKER = 400  # fewer are scanned faster than a worker starts
_PROGRESS_SECONDS = 3.0


@dataclass(frozen=True)
class MaskFile:
    """A mask on disk with what tells whether it changed: size in bytes and time in nanoseconds."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class MaskCount:
    """What one mask holds: size at original resolution and pixels per value (0 and 255 included)."""

    height: int
    width: int
    pixels: dict[int, int]


def list_files(folder: Path, suffix: str) -> dict[str, MaskFile]:
    """Files of a folder by their name without `suffix`, in one pass over the directory; {} if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            found = {}
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.name.startswith(".") and entry.is_file():
                    stat = entry.stat()
                    found[entry.name[: -len(suffix)]] = MaskFile(folder / entry.name, stat.st_size, stat.st_mtime_ns)
            return found
    except (FileNotFoundError, NotADirectoryError):
        return {}


def scan_masks(
    label: str, files: Mapping[str, MaskFile], wanted: Sequence[str], folders: list[Path]
) -> tuple[dict[str, MaskCount], list[Fault]]:
    """Count the wanted masks of one folder, reading from disk only those that are new or changed.

    Args:
        label: names the mask folder in the store's file name and key.
        files: all masks of the folder, by image id.
        wanted: image ids to count, all of them in `files`.
        folders: where the store is looked for and kept (see `store.cache_folders`).

    Returns:
        counts by image id, and a fault for every mask that cannot be read.
    """
    key = {"rule": RULE_VERSION, "masks": label}
    name = f"masks-{label.replace('/', '_')}.store"
    known = _unpack(load(folders, name, key), files)
    todo = [image_id for image_id in wanted if image_id not in known]
    faults = []
    if todo:
        start = time.monotonic()
        for image_id, result in _count(todo, files):
            if isinstance(result, MaskCount):
                known[image_id] = result
            else:
                faults.append(Fault("unreadable masks", str(files[image_id].path), result, "restore these files"))
        log.info("scanned %d masks of %s in %.1f s", len(todo), label, time.monotonic() - start)
        # Another process may have scanned other masks of this folder meanwhile: keep its work.
        merged = {**_unpack(load(folders, name, key), files), **known}
        try:
            save(folders, name, key, _pack(merged, files))
        except UserError as error:
            log.warning("%s; the masks are scanned again at every start", error)
    return {image_id: known[image_id] for image_id in wanted if image_id in known}, faults


def build_index(
    image_ids: Sequence[str], counts: Mapping[str, MaskCount], num_classes: int
) -> tuple[ClassIndex, dict[str, list[int]]]:
    """The index of images whose masks are counted, and the values no class has, by image id.

    A mask value v in 1..num_classes is class_id v - 1; 0 is background, 255 ignore.
    """
    image, class_id, pixels = [], [], []
    unknown: dict[str, list[int]] = {}
    for position, image_id in enumerate(image_ids):
        for value, number in sorted(counts[image_id].pixels.items()):
            if 1 <= value <= num_classes:
                image.append(position)
                class_id.append(value - 1)
                pixels.append(number)
            elif value not in (0, IGNORE_INDEX):
                unknown.setdefault(image_id, []).append(value)
    index = ClassIndex(
        image_ids=tuple(image_ids),
        pair_image=np.array(image, dtype=np.int32),
        pair_class=np.array(class_id, dtype=np.int16),
        pair_pixels=np.array(pixels, dtype=np.int64),
    )
    return index, unknown


def count_mask(path: Path | str) -> MaskCount:
    """Count one mask.

    Raises:
        UserError: it cannot be read.
    """
    labels = read_labels(path)
    # Counting runs is several times as fast as counting pixels: masks are flat, and a counter that is raised again and
    # again by neighbouring pixels stalls the processor.
    flat = labels.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    histogram = np.bincount(flat[starts], weights=np.diff(starts, append=flat.size), minlength=256)
    return MaskCount(*labels.shape, pixels={int(v): int(histogram[v]) for v in np.flatnonzero(histogram)})


def _count(image_ids: list[str], files: Mapping[str, MaskFile]) -> Iterator[tuple[str, MaskCount | str]]:
    """Each id with its count, or with the reason why there is none, in any order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 8, len(image_ids) // _FILES_PER_WORKER)
    left = dict.fromkeys(image_ids)
    if workers > 1:
        done: list[tuple[str, MaskCount | str]] = []
        with ThreadPoolExecutor(workers) as pool:
            shares = [image_ids[start::workers] for start in range(workers)]
            running = [pool.submit(_drive_worker, share, files, done) for share in shares]
            while not all(job.done() for job in running):
                _wait_and_report(running, len(done), len(image_ids))
            for job in running:
                job.result()
        for image_id, result in done:
            del left[image_id]
            yield image_id, result
    # Few files, or what a dead worker left behind.
    for image_id in left:
        yield image_id, _try_count(files[image_id].path)


def _wait_and_report(running: list[Future[None]], done: int, total: int) -> None:
    if wait(running, timeout=_PROGRESS_SECONDS).not_done:
        log.info("scanning masks: %d of %d", done, total)


def _try_count(path: Path) -> MaskCount | str:
    try:
        return count_mask(path)
    except UserError as error:
        return error.what


def _drive_worker(share: list[str], files: Mapping[str, MaskFile], done: list[tuple[str, MaskCount | str]]) -> None:
    """Have one child process count a share; results are appended to `done` as they come."""
    package = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([package, *filter(None, sys.path)]), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "fsseg.data.index"]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True) as child:
            assert child.stdin
            assert child.stdout
            try:
                child.stdin.write(json.dumps([str(files[image_id].path) for image_id in share]))
                child.stdin.close()
                for image_id, line in zip(share, child.stdout):
                    done.append((image_id, _from_line(line)))
            except (BrokenPipeError, ValueError):
                child.kill()  # it died or babbles; what it left is counted by the caller
        if child.returncode:
            errors.seek(0)
            text = errors.read().strip()[-500:]
            log.warning("a mask scan worker ended with status %d: %s", child.returncode, text)


def _from_line(line: str) -> MaskCount | str:
    result = json.loads(line)
    if isinstance(result, str):
        return result
    height, width, pixels = result
    return MaskCount(height, width, dict(pixels))


def _pack(counts: Mapping[str, MaskCount], files: Mapping[str, MaskFile]) -> Arrays:
    names = sorted(counts)
    values = [list(counts[name].pixels) for name in names]
    return {
        "names": pack_names(names),
        "file": np.array([[files[n].size, files[n].mtime_ns] for n in names], dtype=np.int64).reshape(-1, 2),
        "shape": np.array([[counts[n].height, counts[n].width] for n in names], dtype=np.int32).reshape(-1, 2),
        "begin": np.cumsum([0, *map(len, values)], dtype=np.int64),
        "value": np.array([v for row in values for v in row], dtype=np.uint8),
        "pixels": np.array([p for name in names for p in counts[name].pixels.values()], dtype=np.int64),
    }


def _unpack(arrays: Arrays | None, files: Mapping[str, MaskFile]) -> dict[str, MaskCount]:
    """Stored counts of the files that are still as they were when counted."""
    if arrays is None:
        return {}
    begin, value, pixels = (arrays[name].tolist() for name in ("begin", "value", "pixels"))
    rows: list[tuple[list[int], list[int]]] = list(zip(arrays["file"].tolist(), arrays["shape"].tolist()))
    counts = {}
    for position, (name, (stamp, shape)) in enumerate(zip(unpack_names(arrays["names"]), rows)):
        file = files.get(name)
        if file is not None and [file.size, file.mtime_ns] == stamp:
            span = slice(begin[position], begin[position + 1])
            counts[name] = MaskCount(shape[0], shape[1], dict(zip(value[span], pixels[span])))
    return counts


def _serve() -> None:
    for path in json.loads(sys.stdin.read()):
        result = _try_count(Path(path))
        row: Any = result
        if isinstance(result, MaskCount):
            row = [result.height, result.width, list(result.pixels.items())]
        sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
