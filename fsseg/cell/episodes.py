"""The counts of every evaluated episode: `episodes.npz`, from which the score follows, and `episodes.part`.

`fsseg.engine.evaluate` keeps the part while it evaluates, so that an interrupted evaluation goes on where it stood:

    part = EpisodePart(cell.episodes_part, PartHead(run=..., ...), scope)  # what was evaluated before is in it
    part.have                                                            # {(shift, seed, number)}: not again
    part.append([Scored(seed, number, class_id, shift, foreground, rounds, distance), ...])  # a batch
    counts = part.counts()                                               # in order, each episode once
    part.close()
    record = write_counts(cell.episodes_file, counts)                    # names the digest, for result.json

`fsseg.run` removes the part once result.json is there. `RunDirectory.episodes` reads the file for reports. Only one
process writes, the one that holds the claim.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fsseg.cell.models import EpisodesRecord, Unreadable
from fsseg.process.files import EPISODES_BYTES, open_anew, read_file, write_atomic

log = logging.getLogger("fsseg")

FORMAT = 1
OWN = ""
"""The shift of the episodes that are evaluated under the run's own `dataset.background_shift`."""

_SYNC_SECONDS = 10.0  # between two waits for the disk; what a failing host loses is evaluated again
_SCOPE = {"format": ("<i4", 0), "seeds": ("<i8", 1), "shifts": ("U", 1), "classes": ("<i4", 1), "class_names": ("U", 1)}
_COUNTS = ("intersection", "union", "background_intersection", "background_union")


class Scored(NamedTuple):
    """One evaluated episode.

    Attributes:
        seed, number: which one of the protocol.
        class_id: its class.
        shift: the key of `by_background_shift`, or `OWN`.
        foreground: pixels of true foreground.
        rounds: (intersection, union, background intersection, background union) in pixels of each round's answer.
        distance: cosine distance of support and query foreground; None where it was not measured or has none.
    """

    seed: int
    number: int
    class_id: int
    shift: str
    foreground: int
    rounds: Sequence[Sequence[int]]
    distance: float | None = None


@dataclass(frozen=True)
class EpisodeScope:
    """What an evaluation visits, in the order of its protocol.

    Attributes:
        seeds: evaluation seeds.
        classes: ids of the classes whose mean is the score, and `class_names` their names.
        shifts: `OWN`, then those of `eval.background_shifts`.
    """

    seeds: tuple[int, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    shifts: tuple[str, ...] = (OWN,)


@dataclass(frozen=True)
class EpisodeCounts:
    """The counts of E episodes of R rounds. `counts["union"]` is a column.

    Attributes:
        rows: (E,) with the fields seed, number, class_id, shift (its place in `scope.shifts`), foreground; distance
            (NaN where there is none); and (E, R) intersection, union, background_intersection, background_union.
            Counted pixels are union + background_intersection.
    """

    scope: EpisodeScope
    rows: NDArray[Any] = field(repr=False)

    @classmethod
    def of(cls, scope: EpisodeScope, scored: Iterable[Scored]) -> EpisodeCounts:
        """The counts of these episodes, in the order given.

        Raises:
            ValueError: they differ in the number of rounds, or a count is no possible one.
        """
        scored = list(scored)
        return cls(scope, _packed(scope, scored, len(scored[0].rounds) if scored else 0))

    @classmethod
    def concat(cls, parts: Sequence[EpisodeCounts]) -> EpisodeCounts:
        """Parts of one evaluation, one after the other; those without an episode say nothing of the rounds.

        Raises:
            ValueError: there is no part, or they differ in the number of rounds.
        """
        held = [part for part in parts if len(part)] or list(parts[:1])
        if len({part.rounds for part in held}) != 1:
            raise ValueError("parts of one evaluation have one number of rounds")
        return cls(held[0].scope, np.concatenate([part.rows for part in held]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return np.asarray(self.rows[column])

    @property
    def rounds(self) -> int:
        return int(self.rows.dtype["intersection"].shape[0])

    def select(self, shift: str, seed: int | None = None) -> EpisodeCounts:
        """The episodes of one shift, and of one seed if that is given."""
        wanted = self["shift"] == self.scope.shifts.index(shift)
        return EpisodeCounts(self.scope, self.rows[wanted if seed is None else wanted & (self["seed"] == seed)])

    def keys(self) -> set[tuple[str, int, int]]:
        """(shift, seed, number) of every episode."""
        names = self.scope.shifts
        columns = (self[name].tolist() for name in ("shift", "seed", "number"))
        return {(names[shift], seed, number) for shift, seed, number in zip(*columns)}

    def iou(self, round: int = -1) -> NDArray[np.float64]:
        """(E,) IoU of every episode alone, in percent; NaN where foreground is neither predicted nor true."""
        union = self["union"][:, round].astype(np.float64)
        return 100.0 * self["intersection"][:, round] / np.where(union > 0, union, np.nan)

    def unlike(self, other: EpisodeCounts) -> list[tuple[str, int, int]]:
        """(shift, seed, number) of the episodes of `other`, in its order, whose pixels are others here or not here."""
        names = [name for name in self.rows.dtype.names or () if name not in ("shift", "distance")]
        found = {key: [row[name].tolist() for name in names] for key, row in self._by_key()}
        return [key for key, row in other._by_key() if found.get(key) != [row[name].tolist() for name in names]]

    def _by_key(self) -> Iterator[tuple[tuple[str, int, int], Any]]:
        for row in self.rows:
            yield (self.scope.shifts[row["shift"]], row["seed"].item(), row["number"].item()), row

    def in_order(self) -> EpisodeCounts:
        """Each episode once, by shift, place of its seed in the protocol, and number."""
        _, first = np.unique(self._places(), axis=0, return_index=True)
        return EpisodeCounts(self.scope, self.rows[first])

    def is_in_order(self) -> bool:
        """Whether `in_order` would change nothing."""
        shift, seed, number = np.diff(self._places(), axis=0).T
        return bool(((shift > 0) | ((shift == 0) & ((seed > 0) | ((seed == 0) & (number > 0))))).all())

    def _places(self) -> NDArray[np.int64]:
        """(E, 3) shift, place of the seed in the protocol, and number."""
        seeds = np.zeros(len(self), dtype=np.int64)
        for place, seed in enumerate(self.scope.seeds):
            seeds[self["seed"] == seed] = place
        return np.stack([self["shift"], seeds, self["number"]], axis=1, dtype=np.int64)


def write_counts(path: Path, counts: EpisodeCounts) -> EpisodesRecord:
    """Write episodes.npz; the same counts give the same bytes, in whatever order they come.

    Raises:
        OSError: it cannot be written.
        ClaimLost: another process has the run by now.
    """
    content = _content(ordered := counts.in_order())
    write_atomic(path, content)
    return EpisodesRecord(hashlib.sha256(content).hexdigest(), len(ordered), ordered.rounds)


def read_counts(path: Path, record: EpisodesRecord | None = None) -> EpisodeCounts:
    """The counts in an episodes.npz.

    Args:
        record: what result.json says of it; None checks the file alone.

    Raises:
        Unreadable: it is not there, not what was written, or its counts contradict each other.
    """
    try:
        content = read_file(path, EPISODES_BYTES)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    if record is not None and (found := hashlib.sha256(content).hexdigest()) != record.sha256:
        raise Unreadable(f"is not the one of result.json (SHA-256 {found[:16]}, it names {record.sha256[:16]})")
    try:
        counts = _parsed(content)
    except (ValueError, TypeError, EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile) as error:
        raise Unreadable(f"is no record of episodes ({(str(error).splitlines() or [''])[0]})") from None
    if record is not None and (len(counts), counts.rounds) != (record.episodes, record.rounds):
        raise Unreadable("has other numbers of episodes or rounds than result.json says")
    return counts


class PartHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the episodes of a part are of; one with another head says nothing of this evaluation.

    Attributes:
        run: id of the run, and `fingerprint` that of its cell.
        weights: digest of the weights that are evaluated.
        episodes: shift -> fingerprint of its episodes.
        data: fingerprint of the split's index, and `images` that of the sizes of its image files.
    """

    run: str | None
    fingerprint: str
    weights: str
    episodes: dict[str, str]
    data: str | None
    images: str | None
    format: int = FORMAT


class _Line(msgspec.Struct):
    """The first line of a part."""

    head: PartHead
    rounds: int


class EpisodePart:
    """`episodes.part` while a run evaluates: a line that says what it is of, then a record of fixed size an episode.

    Each record has a checksum of its own, so that what a kill or a failing disk leaves counts for nothing. The file is
    always written anew under its name first (`open_anew`).

    Attributes:
        have: (shift, seed, number) of the episodes in it.
    """

    def __init__(self, path: Path, head: PartHead, scope: EpisodeScope) -> None:
        self.path, self._head, self._scope = path, head, scope
        self._file: Any = None
        self._synced = time.monotonic()
        found = _read_part(path, head, scope)
        self._parts = [] if found is None else [found]
        self.have = set() if found is None else found.keys()
        if found is not None:
            self._open(found.rounds, found.rows)

    def append(self, scored: Sequence[Scored]) -> None:
        """Add episodes; the system has them when this returns, the disk a little later.

        Raises:
            ValueError: as `EpisodeCounts.of`; or they have another number of rounds than those before.
            OSError: it cannot be written.
            ClaimLost: another process has the run by now.
        """
        if not scored:
            return
        counts = EpisodeCounts.of(self._scope, scored)
        if self._parts and counts.rounds != self._parts[0].rounds:
            raise ValueError(f"{counts.rounds} rounds after {self._parts[0].rounds}")
        if self._file is None:
            self._open(counts.rounds, counts.rows)
        else:
            self._file.write(_records(counts.rows))
            self._file.flush()
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self._parts.append(counts)
        self.have |= counts.keys()

    def counts(self) -> EpisodeCounts:
        """All episodes so far, each once and in order."""
        return EpisodeCounts.concat(self._parts or [EpisodeCounts.of(self._scope, [])]).in_order()

    def close(self) -> None:
        """Hand everything to the disk; the file stays.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _open(self, rounds: int, rows: NDArray[Any]) -> None:
        self._file = open_anew(self.path, msgspec.json.encode(_Line(self._head, rounds)) + b"\n" + _records(rows))


def _read_part(path: Path, head: PartHead, scope: EpisodeScope) -> EpisodeCounts | None:
    """The whole records of a part of this head; None if there is none, or it is of something else."""
    try:
        first, _, rest = read_file(path, EPISODES_BYTES).partition(b"\n")
        line = msgspec.json.decode(first, type=_Line)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("%s cannot be read: the evaluation starts from its first episode (%s)", path.name, error)
        return None
    if line.head != head or not 0 < line.rounds <= 1000:
        differ = [f for f in PartHead.__struct_fields__ if getattr(line.head, f) != getattr(head, f)]
        log.info("%s is of an evaluation with other %s: this one starts from its first episode",
                 path.name, ", ".join(differ))  # fmt: skip
        return None
    kind = np.dtype([("row", _row(line.rounds)), ("check", "<u4")])
    whole = np.frombuffer(rest[: len(rest) // kind.itemsize * kind.itemsize], kind)
    sums = np.array([zlib.crc32(row.tobytes()) for row in whole["row"]], dtype="<u4")
    rows = whole["row"][sums == whole["check"]]
    counts = EpisodeCounts(scope, rows[~_faulty(scope, rows)])
    return counts.in_order() if len(counts) else None


def _row(rounds: int) -> np.dtype[Any]:
    single = [("seed", "<i8"), ("number", "<i4"), ("class_id", "<i4"), ("shift", "<i4"), ("foreground", "<i4")]
    return np.dtype([*single, ("distance", "<f8"), *((name, "<i4", (rounds,)) for name in _COUNTS)])


def _packed(scope: EpisodeScope, scored: Sequence[Scored], rounds: int) -> NDArray[Any]:
    rows = np.zeros(len(scored), _row(rounds))
    if any(len(s.rounds) != rounds for s in scored):
        raise ValueError("episodes of one evaluation have one number of rounds")
    columns = {name: [getattr(s, name) for s in scored] for name in ("seed", "number", "class_id", "foreground")}
    columns["shift"] = [scope.shifts.index(s.shift) for s in scored]
    wide = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    pixels = np.array([s.rounds for s in scored], dtype=np.int64).reshape(len(scored), rounds, len(_COUNTS))
    wide |= {name: pixels[:, :, place] for place, name in enumerate(_COUNTS)}
    for name, values in wide.items():
        rows[name] = values
        if not np.array_equal(rows[name], values):
            raise ValueError(f"a {name} is too large")
    rows["distance"] = [math.nan if s.distance is None else s.distance for s in scored]
    if (bad := _faulty(scope, rows)).any():
        raise ValueError(f"no possible counts: {scored[int(bad.argmax())]}")
    return rows


def _faulty(scope: EpisodeScope, rows: NDArray[Any]) -> NDArray[np.bool_]:
    """(E,) bool: rows that no evaluation of this scope can lead to."""
    both, either, neither, not_both = (rows[name].astype(np.int64) for name in _COUNTS)
    true, distance = rows["foreground"][:, None].astype(np.int64), rows["distance"]
    counted = (either + neither)[:, :1]
    pixels = (both >= 0) & (both <= true) & (true <= either) & (neither >= 0)
    pixels &= (either + neither == counted) & (both + not_both == counted)
    known = np.isin(rows["seed"], scope.seeds) & np.isin(rows["class_id"], scope.classes) & (rows["number"] >= 0)
    known &= (rows["shift"] >= 0) & (rows["shift"] < len(scope.shifts))
    near = np.isnan(distance) | ((distance >= -1e-6) & (distance <= 2 + 1e-6))
    return ~(pixels.all(axis=1) & known & near)


def _records(rows: NDArray[Any]) -> bytes:
    """Rows as the records of a part: each with its CRC-32."""
    parts = [row.tobytes() for row in rows]
    return b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in parts)


def _content(counts: EpisodeCounts) -> bytes:
    """The bytes of episodes.npz. Nothing is compressed: the bytes must not depend on a version of zlib."""
    scope = counts.scope
    arrays = {
        "format": np.array(FORMAT, "<i4"),
        "seeds": np.array(scope.seeds, "<i8"),
        "shifts": np.array(scope.shifts, "<U"),
        "classes": np.array(scope.classes, "<i4"),
        "class_names": np.array(scope.class_names, "<U"),
    }
    arrays |= {name: np.ascontiguousarray(counts[name]) for name in counts.rows.dtype.names or ()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _parsed(content: bytes) -> EpisodeCounts:
    """Raises: ValueError, and what zipfile and numpy raise for what is none of theirs."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        wanted = {f"{name}.npy" for name in (*_SCOPE, *(_row(1).names or ()))}
        if len(members) != len(wanted) or {m.filename for m in members} != wanted:
            raise ValueError("it has other parts")
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError("it is compressed")
        arrays = {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}
    for name, (kind, dimensions) in _SCOPE.items():
        array = arrays[name]
        if array.ndim != dimensions or not (array.dtype == kind or kind == array.dtype.kind == "U"):
            raise ValueError(f"its {name} is of another kind")
    if (version := int(arrays["format"])) != FORMAT:
        raise ValueError(f"it has format {version}; this fsseg reads format {FORMAT}")
    if arrays["intersection"].ndim != 2:
        raise ValueError("its intersection is of another kind")
    episodes, rounds = arrays["intersection"].shape
    rows = np.zeros(episodes, _row(rounds))
    for name in rows.dtype.names or ():
        if arrays[name].dtype != rows[name].dtype or arrays[name].shape != rows[name].shape:
            raise ValueError(f"its {name} is of another kind")
        rows[name] = arrays[name]
    scope = EpisodeScope(*(tuple(arrays[name].tolist()) for name in ("seeds", "classes", "class_names", "shifts")))
    if len(scope.class_names) != len(scope.classes) or any(
        len(set(values)) != len(values) for values in (scope.seeds, scope.classes, scope.shifts)
    ):
        raise ValueError("its seeds, classes or shifts contradict each other")
    if (bad := _faulty(scope, rows)).any():
        raise ValueError(f"episode {int(bad.argmax())} of it has impossible counts")
    counts = EpisodeCounts(scope, rows)
    if not counts.is_in_order():
        raise ValueError("its episodes are out of order")
    return counts


def _array(data: bytes) -> NDArray[Any]:
    """An array of an npz, as far as its head claims no more than there is."""
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, kind = _head(data[:length])
    if kind.hasobject or (fortran and len(shape) > 1):
        raise ValueError("a part of it holds no plain numbers")
    return np.frombuffer(data[length:], kind).reshape(shape)


@lru_cache(64)
def _head(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array of an npz; the runs of a sweep have the same ones."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a part of it has another version")
    return np.lib.format.read_array_header_1_0(stream)
