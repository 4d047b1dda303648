"""What identifies a cell: its key and directory name, and the identity and fingerprint of its settings.

A cell is one (name, dataset, method, backbone, shot, fold, seed, variant). `fsseg.cell.record` puts the two together.
No torch here: asking for the state of a thousand cells must be quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell import weights as published
from fsseg.cell.variant import PATHS_BY_CONTENT, earlier_variants, is_neutral, variant_of
from fsseg.config.history import ACT_ELSEWHERE, ADDED, ADDED_TO, RETIRED, STANDARD_POOL
from fsseg.config.tasks import BASE_LEARNERS, changes_a_base_learner
from fsseg.errors import UserError
from fsseg.process.files import sha256_of

if TYPE_CHECKING:
    from fsseg.config.schema import Config

_PART_LENGTH = 255
BASE_CELL = "backbone.base_training (cell)"
"""In the identity of a cell that starts from a base learner: the fingerprint of that one."""


_LAYOUT = re.compile(r"([^/]+)/([^/]+)/([^/]+)/([^/]+)/([0-9]+)shot/([^/]+)/fold([0-9]+)/seed([0-9]+)/?\Z")


@dataclass(frozen=True)
class CellKey:
    """The eight parts of a cell's name."""

    name: str
    dataset: str
    method: str
    backbone: str
    shot: int
    fold: int
    seed: int
    variant: str

    @property
    def path(self) -> Path:
        """The run directory, relative to the output folder."""
        return Path(self.name, self.dataset, self.method, self.backbone, f"{self.shot}shot", self.variant,
                    f"fold{self.fold}", f"seed{self.seed}")  # fmt: skip

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether every part can stand in a path of this form; what a file says of itself may be anything."""
        words = (self.name, self.dataset, self.method, self.backbone, self.variant)
        numbers = (self.shot, self.fold, self.seed)
        return all(0 <= n < 1 << 64 for n in numbers) and not any(
            w in ("", ".", "..") or "/" in w or "\0" in w or len(w) > _PART_LENGTH for w in words
        )

    @classmethod
    def from_path(cls, directory: Path) -> CellKey | None:
        """The inverse of `path`; None if the directory has another form."""
        match = _LAYOUT.search(directory.as_posix())
        if match is None or ".." in match.groups():
            match = _LAYOUT.search(Path(os.path.abspath(directory)).as_posix())
        if match is None:
            return None
        name, dataset, method, backbone, shot, variant, fold, seed = match.groups()
        key = cls(name, dataset, method, backbone, int(shot), int(fold), int(seed), variant)
        return key if key.is_whole else None


LEVELS = len(CellKey("n", "d", "m", "b", 1, 0, 0, "v").path.parts)
"""Folders in a cell's path."""


def experiment_of(directory: Path) -> Path | None:
    """`outputs/<name>` of a run directory; None of a folder that is not so deep."""
    return directory.parents[LEVELS - 2] if len(directory.parents) >= LEVELS - 1 else None


def output_of(directory: Path) -> Path:
    """The output folder of a run directory whose path is a cell's; links in it are not followed."""
    return Path(os.path.abspath(directory)).parents[LEVELS - 1]


def cell_key(cfg: Config, overrides: Iterable[str] = ()) -> CellKey:
    """The key of a composed configuration and the overrides it was composed from."""
    return CellKey(
        name=cfg.name, dataset=cfg.dataset.name, method=cfg.model.name, backbone=cfg.backbone.name,
        shot=cfg.shot, fold=cfg.fold, seed=cfg.seed, variant=cfg.variant or variant_of(_naming(cfg, overrides)),
    )  # fmt: skip


def earlier_keys(cfg: Config, overrides: Iterable[str]) -> list[CellKey]:
    """The keys that earlier versions gave to the same cell, where these are others."""
    key = cell_key(cfg, overrides)
    return [] if cfg.variant else [replace(key, variant=v) for v in earlier_variants(_naming(cfg, overrides))]


def named_now(key: CellKey, overrides: Iterable[str]) -> CellKey:
    """The key that a cell has today, if an earlier version named its variant otherwise; else the key as it is.

    Args:
        overrides: that the cell was made with.
    """
    given = list(overrides)
    for naming in (given, [o for o in given if o != f"experiment={key.name}"]):
        if not any(o.startswith("variant=") for o in naming) and key.variant in earlier_variants(naming):
            return replace(key, variant=variant_of(naming))
    return key


def _naming(cfg: Config, overrides: Iterable[str]) -> list[str]:
    """The overrides that the variant is made of.

    A paper experiment gives the cell its own name, which begins the directory name: the variant does not repeat it. Any
    other file under experiment/ may change anything, so its name is part of the variant.
    """
    return [o for o in overrides if cfg.name not in ("paper", cfg.report) or o != f"experiment={cfg.name}"]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """The settings that can change the numbers, flat; files are replaced by digests of their content.

    Of a base learner these are fewer. A cell that starts from one (`backbone.base_training`) holds the fingerprint of
    that one, which stands for its weights wherever they lie, and whether they are there yet or not.
    """
    flat = flatten(resolved)
    added = ADDED | ADDED_TO.get(flat.get("dataset.name", ""), {})
    unnamed = {"name", "variant", *ACT_ELSEWHERE, *(k for k, value in added.items() if flat.get(k) == value)}
    unnamed |= {k for k in flat if k.startswith("base_training.")}  # acts on the base learner alone
    if flat.get("model.name") in BASE_LEARNERS:
        unnamed |= {k for k in flat if not changes_a_base_learner(k)}
    kept = RETIRED | {k: v for k, v in flat.items() if not is_neutral(k) and k not in unnamed}
    if kept.get("dataset.train_list") == STANDARD_POOL:
        kept["dataset.train_list"] = None
    for key in PATHS_BY_CONTENT:
        if flat.get(key) is not None:
            kept[f"{key} (content)"] = file_digest(Path(flat[key]))
    if (weights := flat.get("backbone.weights")) is not None and flat.get("backbone.pretrained"):
        found, name = file_digest(Path(weights)), flat["backbone.name"]
        if name not in published.FILES or not found.startswith(published.digest(name)):
            kept["backbone.weights (content)"] = found
    for key in ("dataset.train_list", "dataset.val_list"):  # a list may be a file: its place does not matter
        if not isinstance(value := flat.get(key), str):
            continue
        path = Path(value).expanduser() if _lists_are_files(flat.get("dataset.name")) else list_file(value)
        if path is not None and path.is_file():
            kept[key] = f"content {file_digest(path)}"
    if flat.get("backbone.base_training"):
        from fsseg.config.base_training import base_settings  # Hydra: whoever only looks at runs starts quicker without

        kept[BASE_CELL] = fingerprint(identity(base_settings(resolved)))
    return kept


def _lists_are_files(name: Any) -> bool:
    """Whether a data set's lists are files always; False of one that this code does not know."""
    from fsseg.config.schema import DatasetConfig  # Hydra, as above

    schema = DatasetConfig.choices().get(name)
    return schema is not None and schema.LISTS_ARE_FILES


def base_learner_variant(identity_: dict[str, Any]) -> str:
    """The variant of a base learner: 8 hex digits over its settings, equal for all folds and seeds.

    Which words of a line led to them does not count, for the cells that start from it are of other lines.
    """
    return fingerprint({k: v for k, v in identity_.items() if k not in ("fold", "seed")})[:8]


PUBLISHED_FOLDS = 4
"""Folds of every published result."""


def number_of_folds(identity_: Mapping[str, Any]) -> int:
    """Folds of a cell's data set: one where its novel classes are named; as published where nobody knows."""
    if identity_.get("dataset.novel") or "dataset.test_classes" in identity_:
        return 1
    number = identity_.get("dataset.num_folds")
    return number if type(number) is int and number > 0 else PUBLISHED_FOLDS


def list_file(name: str) -> Path | None:
    """The file that a list's name stands for, whether it is there or not; None for a name of the data set's own lists.

    A file of the current folder is written `./list.txt`: without a folder it is a name, which the identity keeps.
    """
    return Path(name).expanduser() if os.sep in name else None


def fingerprint(identity_: dict[str, Any]) -> str:
    """16 hex digits of a SHA-256 over an identity."""
    text = json.dumps(identity_, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        about = path.stat()
        return _digest(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Read once in a process as long as size and time stay: the cells of a grid name the same files."""
    return sha256_of(path)[:16]
