"""`fsseg verify --deep`: the SHA-256 of every image and mask, beside a list of an earlier day or of another machine.

The list has the form of the tool sha256sum: `cd ROOT && sha256sum -c LIST` checks it too. Called by `verify`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fsseg.data.arrays import cache_folders
from fsseg.data.faults import Fault
from fsseg.data.source import ClassIndex, Source, Split
from fsseg.data.workers import map_files
from fsseg.errors import UserError
from fsseg.process.files import write_atomic

LIST = "content.sha256"
"""Name of the list in the cache folder of a data set."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def compare_content(
    source: Source, indexes: Mapping[Split, ClassIndex], given: Path | None
) -> tuple[list[str], list[Fault]]:
    """Read all images and masks that are there; compare them with a list, or write it if there is none.

    Args:
        indexes: of the splits to read.
        given: the list; None takes the one that an earlier call has left in the cache folder, or leaves one there.

    Returns:
        What was found, as text, and a fault for every file of other content than its list says.

    Raises:
        UserError: the list cannot be read or written.
    """
    digests, paths, faults = _digests(source, indexes)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    mark = hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
    lines = [f"content of {len(digests)} image and mask files: fingerprint {mark}"]
    folders = [folder / LIST for folder in cache_folders(source.root, source.cache)]
    file = given or next((file for file in folders if file.is_file()), None)
    if file is None or not file.exists():
        return [*lines, f"  their SHA-256 are now in {_write([file] if file else folders, text)}"], faults
    then = _read(file)
    changed = [name for name in digests if name in then and then[name] != digests[name]]
    fix = f"restore these files; or, if the data are right as they are, remove {file}"
    for name in changed:
        detail = f"SHA-256 {then[name][:16]}... there, {digests[name][:16]}... here"
        faults.append(Fault(f"files of other content than in {file}", str(paths[name]), detail, fix))
    new = len(digests.keys() - then.keys())
    lines.append(
        f"  {len(digests) - len(changed) - new} as in {file}, {len(changed)} of other content, {new} not listed"
    )
    return lines, faults


def _digests(
    source: Source, indexes: Mapping[Split, ClassIndex]
) -> tuple[dict[str, str], dict[str, Path], list[Fault]]:
    """SHA-256 and path of every file by its name in the list; a fault for each that cannot be read."""
    paths = {}
    for split, index in indexes.items():
        for image_id in index.image_ids:
            for path in (source.image_path(split, image_id), *source.mask_paths(split, image_id)):
                inside = path.is_relative_to(source.root)  # masks of SBD may lie elsewhere, not the same everywhere
                paths[str(path.relative_to(source.root) if inside else Path(path.parent.name, path.name))] = path
    names = {str(path): name for name, path in paths.items() if path.is_file()}  # the others are told as missing
    digests, faults = {}, []
    for path_text, result in map_files("digest", list(names), "files"):
        if isinstance(result, str):
            faults.append(Fault("unreadable files", path_text, result, "fetch these files again"))
        else:
            digests[names[path_text]] = str(result[0])
    return digests, paths, faults


def _read(file: Path) -> dict[str, str]:
    try:
        lines = os.fsdecode(file.read_bytes()).splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", "give another list: --digests FILE") from None
    matches = [_LINE.fullmatch(line) for line in lines]
    if not matches or None in matches:
        raise UserError(f"{file} is no list of SHA-256 digests", "remove it, or give another one: --digests FILE")
    return {match[2].removeprefix("./"): match[1] for match in matches if match}


def _write(places: list[Path], text: str) -> Path:
    reasons = []
    for file in places:
        try:
            write_atomic(file, os.fsencode(text))
        except OSError as error:
            reasons.append(f"{file} ({error.strerror})")
        else:
            return file
    raise UserError(f"the digests cannot be written to {' or '.join(reasons)}", "give another file: --digests FILE")
