"""Memory of this process: what is free, and Python's garbage collector where it costs more than it gives back.

The collector is paused where a data set is checked; an evaluation asks what is free.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collector for a block that makes hundreds of thousands of objects that stay.

    It would walk all of them again and again: a fifth of the time that the check of 120,000 images takes.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: what the machine has free, or less where its control group (a job of
    SLURM, a container) may have less."""
    found = [_machine_free(proc)]
    for folder, names in _groups_of(proc, groups):
        with suppress(OSError, ValueError):
            limit, used, cached = names
            most = (folder / limit).read_text().strip()
            if most != "max":
                held = int((folder / used).read_text())
                found.append(int(most) - held + _field(folder / "memory.stat", cached))
    return max(0, min(found))


def _machine_free(proc: Path) -> int:
    with suppress(OSError, ValueError):
        return 1024 * _field(proc / "meminfo", "MemAvailable:")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no Linux: nobody says what is free


def _groups_of(proc: Path, groups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's control groups, the outer ones too, and the names of limit, use and cache there."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / name.strip("/")
        for folder in (own, *own.parents):
            yield folder, names
            if folder == root:
                break


def _field(path: Path, name: str) -> int:
    """The number after a word in a file of one pair a line.

    Raises:
        ValueError: it is not there.
    """
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == name:
            return int(words[1])
    raise ValueError(name)
