"""Fetching of the official archives: resumable and checked. Called by `prepare`; `unpack` does what follows.

`Part`, `Need` and `Archive` are how a source says what it is made of (`Source.parts`).

A download lives in `<name>.part` until size and digest are right and only then gets its name: an archive that has its
name is whole.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsseg.errors import UserError
from fsseg.process.files import write_json

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0
ATTEMPTS = 6
"""Attempts in a row that bring not a single byte before a download gives up."""
_BLOCK = 1 << 20
_PROGRESS_SECONDS = 10.0
_FREE_MARGIN = 512 << 20
_LARGEST_UNKNOWN = 16 << 20
"""Bytes that a file may have whose size nobody publishes."""


@dataclass(frozen=True)
class Archive:
    """An official archive, or a plain file.

    Attributes:
        name: its file name.
        urls: where it is; tried in turn.
        size: in bytes, as published; None where nobody publishes it: then it is small, and the digest decides.
        md5: as published; None where nobody publishes one.
        strip: leading folder of the archive that is left out.
        into: folder below the data root that it unpacks into ("" is the root itself).
        unpacked: rough size in bytes once unpacked, for the check of disk space.
        only: paths below `strip` that are wanted (prefixes); empty takes everything.
        plain: it is no archive but itself the file that goes into `into`.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None
    md5: str | None
    strip: str = ""
    into: str = ""
    unpacked: int = 0
    only: tuple[str, ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class Need:
    """Files that must be there: at least `count` in `folder`, which is absolute or below the root.

    Their names end in `suffix`; one that begins with no dot is a whole name.
    """

    folder: str
    suffix: str
    count: int

    def found(self, root: Path) -> int:
        """How many there are."""
        folder = root / self.folder
        if not folder.is_dir():
            return 0
        if not self.suffix.startswith("."):
            return int((folder / self.suffix).is_file())
        return sum(p.name.endswith(self.suffix) and not p.name.startswith(".") for p in folder.iterdir())


@dataclass(frozen=True)
class Part:
    """A piece of a data set that comes in one archive.

    Attributes:
        needs: files that show it is complete.
        instead: files that replace the part if all of them are there.
        only_for: the setting that alone needs it; the data set is complete without it. Empty: every run needs it.
    """

    archive: Archive
    needs: tuple[Need, ...]
    instead: tuple[Need, ...] = ()
    only_for: str = ""

    def lacking(self, root: Path) -> list[tuple[Need, int]]:
        """Needs that are not met, with the number of files found; empty if the part is complete or unnecessary."""
        if self.instead and all(need.found(root) >= need.count for need in self.instead):
            return []
        counted = [(need, need.found(root)) for need in self.needs]
        return [(need, found) for need, found in counted if found < need.count]


class _Broken(Exception):
    """The transfer ended too early; the bytes received are kept and the next attempt continues there."""


def download(archive: Archive, folder: Path, pause: float = 1.0) -> Path:
    """Fetch an archive into a folder; continues where an earlier attempt stopped.

    Args:
        pause: seconds before the second attempt; doubles with every attempt without progress, up to a minute.

    Raises:
        UserError: no room on the disk, no server delivers it, or the file is not the official archive.
    """
    path = folder / archive.name
    if path.is_file():
        _check_present(archive, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    have = part.stat().st_size if part.is_file() else 0
    check_room(folder, max((archive.size or 0) - have, 0), f"download {archive.name}")
    for last in (False, True):
        _fetch(archive, part, pause)
        found = _md5(part) if archive.md5 else None
        if found == archive.md5:
            os.replace(part, path)
            return path
        part.unlink()
        if last:
            raise UserError(
                f"{archive.name}: what {archive.urls[0]} sends has MD5 {found}, the official file has {archive.md5}",
                f"fetch it by other means, put it at {path.absolute()} and start again",
            )
        log.warning("%s arrived damaged (MD5 %s, expected %s); fetching it again", archive.name, found, archive.md5)
    raise AssertionError("unreachable")


def _check_present(archive: Archive, path: Path) -> None:
    """Refuse an archive that is there already, perhaps from the user, if it is not the official one."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        wrong = f"has {size} bytes, the official file {archive.size}"
    elif archive.md5 and (found := _md5(path)) != archive.md5:
        wrong = f"has MD5 {found}, the official file {archive.md5}"
    else:
        return
    raise UserError(f"{path.absolute()} {wrong}", "remove it and start again")


def _fetch(archive: Archive, part: Path, pause: float) -> None:
    """Download until `part` has the archive's size, or all that a server has where the size is unknown."""
    idle, reasons = 0, []
    while (have := part.stat().st_size if part.is_file() else 0) != archive.size:
        if have > (archive.size or _LARGEST_UNKNOWN):
            part.unlink()
            continue
        url = archive.urls[idle % len(archive.urls)]
        try:
            return _transfer(archive, url, part, have)
        except (_Broken, OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"no room left on the disk of {part.parent.absolute()}", "free some, start again"
                ) from error
            now = part.stat().st_size if part.is_file() else 0
            idle = 0 if now > have else idle + 1
            reasons.append(f"{url}: {error}")
            if idle >= ATTEMPTS * len(archive.urls):
                raise UserError(
                    f"{archive.name} cannot be fetched: {'; '.join(dict.fromkeys(reasons[-ATTEMPTS:]))}",
                    f"try again later (it goes on at byte {now}), or put the file at "
                    f"{(part.parent / archive.name).absolute()} yourself",
                ) from error
            log.info("%s: %s; going on at byte %d", archive.name, error, now)
            time.sleep(min(pause * 2 ** max(idle - 1, 0), 60.0))


def _transfer(archive: Archive, url: str, part: Path, have: int) -> None:
    """One request; the bytes received are appended to `part`.

    Raises:
        _Broken: the server refused, gave another size, or stopped early.
        OSError, HTTPException: the connection failed.
    """
    headers = {"User-Agent": "fsseg", "Accept-Encoding": "identity"}
    stamp = part.with_name(part.name + ".json")
    validator = _validator(stamp, url) if have else None
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator  # another version of the file comes whole, not as a tail of the old one
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.unlink(missing_ok=True)
        raise _Broken(f"HTTP status {error.code}") from error
    with response:
        total = _total(response, have)
        if archive.size is not None and total not in (None, archive.size):
            raise _Broken(f"it has {total} bytes there, the official file {archive.size}")
        limit = archive.size or min(total or _LARGEST_UNKNOWN, _LARGEST_UNKNOWN)
        if response.status != 206:
            have = 0  # the server sends the whole file
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            write_json(stamp, {"url": url, "validator": tag})
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            _copy(response, file, have, archive.name, limit)
    if part.stat().st_size < (archive.size or total or 0):
        raise _Broken("the connection ended early")
    stamp.unlink(missing_ok=True)


def _copy(response: Any, file: IO[bytes], have: int, name: str, limit: int) -> None:
    start = told = time.monotonic()
    begin = have
    while True:
        try:
            block = response.read(_BLOCK)
        except http.client.IncompleteRead as error:
            block = error.partial
            if not block:
                raise
        if not block:
            file.flush()
            os.fsync(file.fileno())
            return
        if have + len(block) > limit:
            file.truncate(0)
            raise _Broken(f"more than {limit} bytes came")
        file.write(block)
        have += len(block)
        now = time.monotonic()
        if now - told > _PROGRESS_SECONDS:
            told = now
            speed = (have - begin) / (now - start)
            log.info(
                "%s: %.0f of %.0f MB, %.1f MB/s, %.0f min left", name, have / 1e6, limit / 1e6,
                speed / 1e6, (limit - have) / speed / 60,
            )  # fmt: skip


def _total(response: Any, have: int) -> int | None:
    """Size of the whole file as the answer states it, None if it does not."""
    if response.status == 206:
        unit, _, rest = (response.headers.get("Content-Range") or "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or span.partition("-")[0] != str(have):
            raise _Broken(f"asked to go on at byte {have}, the server sends {rest or 'an unnamed part'}")
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _validator(stamp: Path, url: str) -> str | None:
    try:
        content = json.loads(stamp.read_text())
        return content["validator"] if content["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_room(folder: Path, needed: int, purpose: str) -> None:
    """Check that the disk has room.

    Raises:
        UserError: it does not.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed + _FREE_MARGIN:
        raise UserError(
            f"to {purpose} takes {needed / 1e9:.1f} GB, the disk of {folder.absolute()} has {free / 1e9:.1f} GB free",
            "free some room, or set dataset.root to another disk",
        )
