"""Reads thousands of files in parallel: the tasks, and the child processes that do them.

`mask_scan` counts masks with it, `image_files` looks at headers, `verify` decodes images, `digests` reads whole files.
Run as `python -m fsseg.data.workers TASK` this module is a worker: paths on stdin, one JSON line per file on stdout.
Plain child processes, unlike multiprocessing's, neither import the user's main module again nor fork a process with
threads.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.data.binary_masks import read_binary
from fsseg.data.images import check_image, image_size, read_labels
from fsseg.errors import UserError
from fsseg.process.files import sha256_of

log = logging.getLogger(__name__)

GRID = slice(1, None, 32)
"""Rows and columns 1, 33, 65, ... of a mask: HSNet's lists of PASCAL look at these alone (`protocol.list_rule`)."""

_FILES_PER_WORKER = 400  # fewer are done faster than a worker starts
_PROGRESS_SECONDS = 3.0


def count_values(path: str, read: Callable[[str], NDArray[np.uint8]] = read_labels) -> list[Any]:
    """[height, width, [[value, pixels, pixels on the grid], ...]] of a label mask, values rising; see `GRID`.

    Raises:
        UserError: it cannot be read.
    """
    labels = read(path)
    # Counting runs of equal pixels is several times as fast as counting pixels: masks have large flat areas, and a
    # counter raised by one pixel after the other stalls the processor.
    flat = labels.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    histogram = np.bincount(flat[starts], weights=np.diff(starts, append=flat.size), minlength=256)
    on_grid = np.bincount(labels[GRID, GRID].ravel(), minlength=256)
    return [*labels.shape, [[int(v), int(histogram[v]), int(on_grid[v])] for v in np.flatnonzero(histogram)]]


_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""First bytes of a JPEG and of a PNG -> the last ones."""


def check_header(path: str, upright: bool = False) -> list[int]:
    """[height, width] of an image, by its header; its last bytes must be those of a whole JPEG or PNG.

    Other formats are judged by the header alone. Bytes behind the end are no fault if the image can be decoded.

    Raises:
        UserError: it is missing, no image, or cut short.
    """
    size = image_size(path, upright)
    try:
        with open(path, "rb") as file:
            end = _ENDS.get(file.read(2), b"")
            file.seek(-len(end), os.SEEK_END)
            if file.read() != end:
                file.seek(0)
                # Zeros in place of the rest, which a broken copy leaves, would be decoded without a word.
                if end not in file.read():
                    raise UserError(f"image {path} is cut short: its end is not there", "fetch the file again")
                check_image(path)
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror}", "check the file's permissions") from error
    return list(size)


def digest(path: str) -> list[str]:
    """[SHA-256] of a file, in hex.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return [sha256_of(Path(path))]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error


TASKS: dict[str, Callable[[str], Any]] = {
    "mask": count_values,
    "header": check_header,
    "image": lambda path: list(check_image(path)),
    "digest": digest,
    # of data sets whose images are turned by EXIF
    "upright header": partial(check_header, upright=True),
    "upright image": lambda path: list(check_image(path, upright=True)),
    "own mask": partial(count_values, read=partial(read_labels, own=True)),
    "binary mask": partial(count_values, read=read_binary),
    "grey mask": partial(count_values, read=partial(read_binary, grey=True)),
}
"""What can be done to a file; a result is any JSON value except text, which stands for a reason."""


def map_files(task: str, paths: Sequence[str], what: str) -> Iterator[tuple[str, Any]]:
    """Each path with the task's result, or with the reason (text) why there is none; in any order.

    Args:
        task: a key of `TASKS`.
        what: kind of the files, for progress lines: "masks".
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, 8, len(paths) // _FILES_PER_WORKER)
    left = dict.fromkeys(paths)
    if workers > 1:
        done: list[tuple[str, Any]] = []
        with ThreadPoolExecutor(workers) as pool:
            running = [pool.submit(_drive, task, paths[start::workers], done) for start in range(workers)]
            while not _finished(running):
                log.info("%s: %d of %d looked at", what, len(done), len(paths))
            for job in running:
                job.result()
        for path, result in done:
            del left[path]
            yield path, result
    # Few files, or those that a dead worker left undone.
    for path in left:
        yield path, _done_to(task, path)


def _finished(running: list[Future[None]]) -> bool:
    return not wait(running, timeout=_PROGRESS_SECONDS).not_done


def _done_to(task: str, path: str) -> Any:
    try:
        return TASKS[task](path)
    except UserError as error:
        return error.what


def _drive(task: str, share: Sequence[str], done: list[tuple[str, Any]]) -> None:
    """Have one child process do a share; results are appended to `done` as they come."""
    package = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([package, *filter(None, sys.path)]), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", __name__, task]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True) as child:
            assert child.stdin
            assert child.stdout
            try:
                child.stdin.write(json.dumps(list(share)))
                child.stdin.close()
                for path, line in zip(share, child.stdout):
                    done.append((path, json.loads(line)))
            except (BrokenPipeError, ValueError):
                child.kill()  # it died or printed something else; the caller does the rest
        if child.returncode:
            errors.seek(0)
            text = errors.read().strip()[-500:]
            log.warning("a worker that looks at files ended with status %d: %s", child.returncode, text)


def _serve(task: str) -> None:
    for path in json.loads(sys.stdin.read()):
        sys.stdout.write(json.dumps(_done_to(task, path)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(sys.argv[1])
