"""Stores: files of arrays, each whole or ignored; an index is kept in one. Called by the sources.

A store holds named arrays, a key of everything they depend on, and a checksum. A store that is cut short, damaged, or
made from other annotations counts as absent and is made again. Arrays are memory-mapped: the loader processes of a host
share one copy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsseg.errors import UserError
from fsseg.process.files import write_atomic

log = logging.getLogger(__name__)

_MAGIC = b"fsseg-store-1\n"
_ALIGN = 64

Arrays = dict[str, NDArray[Any]]


def cache_folders(root: Path, cache: str | Path | None) -> list[Path]:
    """Folders an index may lie in, the preferred one first.

    With `cache` given: a folder below it that belongs to `root`. Else `<root>/.fsseg`, and for read-only data a folder
    of the user's cache (`$XDG_CACHE_HOME`, or `~/.cache`). An index prepared beside read-only data is read from there.
    """
    own = f"{root.name}-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}"
    if cache is not None:
        return [Path(cache).expanduser() / own]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / ".fsseg", user / "fsseg" / own]


def write_store(path: Path, key: dict[str, Any], arrays: Arrays) -> None:
    """Write a store atomically.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    table, blocks, offset = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        blocks.append(data.tobytes() + bytes(-data.nbytes % _ALIGN))
        table[name] = [data.dtype.str, list(data.shape), offset]
        offset += len(blocks[-1])
    body = b"".join(blocks)
    header = json.dumps({"key": key, "arrays": table, "length": len(body), "crc32": zlib.crc32(body)}).encode()
    head = _MAGIC + f"{len(header):08x} {zlib.crc32(header):08x}\n".encode() + header
    write_atomic(path, head + bytes(-len(head) % _ALIGN) + body)


def read_store(path: Path, key: dict[str, Any], verify: bool = True) -> Arrays | None:
    """Arrays of a store as read-only memory maps, or None if it is absent, damaged, or has another key.

    Args:
        verify: check the body's checksum too; without it only header and length are checked.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC) + 18)
            if len(start) < len(_MAGIC) + 18 or not start.startswith(_MAGIC):
                return None
            size, crc = (int(word, 16) for word in start[len(_MAGIC) :].split())
            raw = file.read(size)
            if len(raw) != size or zlib.crc32(raw) != crc:
                return None
            header = json.loads(raw)
            if header["key"] != key:
                return None
            begin = len(start) + size
            begin += -begin % _ALIGN
            if os.fstat(file.fileno()).st_size != begin + header["length"]:
                return None
            if header["length"] == 0:
                body = np.zeros(0, np.uint8)
            else:
                body = np.asarray(np.memmap(file, dtype=np.uint8, mode="r", offset=begin, shape=(header["length"],)))
            if verify and zlib.crc32(body.data) != header["crc32"]:
                return None
    except (OSError, ValueError, KeyError):
        return None
    arrays: Arrays = {}
    for name, (kind, shape, offset) in header["arrays"].items():
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = body[offset : offset + count * dtype.itemsize].view(dtype).reshape(shape)
    return arrays


def find_store(folders: list[Path], name: str, key: dict[str, Any], verify: bool = True) -> Arrays | None:
    """The first usable store called `name` in the folders."""
    for folder in folders:
        if (arrays := read_store(folder / name, key, verify)) is not None:
            return arrays
    return None


def keep_store(folders: list[Path], name: str, key: dict[str, Any], arrays: Arrays) -> Path:
    """Write a store into the first folder that can be written, unless an equal one is there by now.

    An equal store is not replaced, because another host may have mapped it from a network folder.

    Raises:
        UserError: no folder can be written.
    """
    reasons = []
    for folder in folders:
        path = folder / name
        present = read_store(path, key)
        if present is not None and _same(present, arrays):
            return path
        try:
            write_store(path, key, arrays)
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
        else:
            return path
    raise UserError(f"the index cannot be written to {' or '.join(reasons)}", "set dataset.cache to a writable folder")


def _same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def pack_names(names: list[str]) -> NDArray[np.uint8]:
    """Names (without line breaks) as one array of bytes."""
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def unpack_names(packed: NDArray[np.uint8]) -> list[str]:
    """Inverse of `pack_names`."""
    text = packed.tobytes().decode()
    return text.split("\n") if text else []
