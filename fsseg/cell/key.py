"""What identifies a cell: its key and directory name, and the identity and fingerprint of its settings.

A cell is one (name, dataset, method, backbone, shot, fold, seed, variant). `fsseg.cell.record` puts the two together.
No torch here: asking for the state of a thousand cells must be quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell import weights as published
from fsseg.errors import UserError
from fsseg.process.files import sha256_of

if TYPE_CHECKING:
    from fsseg.config.schema import Config

# Overrides that already have their own place in the directory name.
_GRID_KEYS = ("name", "dataset", "method", "backbone", "shot", "fold", "seed", "variant",
              "dataset.name", "backbone.name", "model.name")  # fmt: skip
_VARIANT_LENGTH = 96  # a file name may have 255 bytes; tools that add to it should fit too
_PART_LENGTH = 255


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


def cell_key(cfg: Config, overrides: Iterable[str] = ()) -> CellKey:
    """The key of a composed configuration and the overrides it was composed from."""
    # A paper experiment gives the cell its own name, which begins the directory name: the variant does not repeat it.
    # Any other file under experiment/ may change anything, so its name is part of the variant.
    if cfg.name in ("paper", cfg.report):
        overrides = [o for o in overrides if o != f"experiment={cfg.name}"]
    return CellKey(
        name=cfg.name, dataset=cfg.dataset.name, method=cfg.model.name, backbone=cfg.backbone.name,
        shot=cfg.shot, fold=cfg.fold, seed=cfg.seed, variant=cfg.variant or variant_of(overrides),
    )  # fmt: skip


def variant_of(overrides: Iterable[str]) -> str:
    """A short, file-system-safe name made of the overrides that can change the numbers, without the grid keys.

    `train.lr=0.004 model.iterations=5` gives `model.iterations-5+train.lr-0.004` in any order; none gives `default`.
    Only characters that need no quoting on Hydra's command line are used. Long names end in a digest of the whole.
    """
    last: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith("~"):
            key, value = key[1:], "removed"
        if key in _GRID_KEYS or key.startswith("hydra"):
            continue
        if is_neutral(key) and key not in _PATHS_BY_CONTENT:
            continue
        last[key] = _short(value) if key in _PATHS_BY_CONTENT else value
    if not last:
        return "default"
    full = "+".join(f"{key}-{value}" for key, value in sorted(last.items()))
    safe = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9._+\-]", "_", full)).strip("_.")
    if safe != full or len(safe) > _VARIANT_LENGTH:
        # Replaced or cut characters must not make two variants equal: a digest tells them apart.
        safe = f"{safe[: _VARIANT_LENGTH - 10].rstrip('_.+-')}-{_short(full)}"
    return safe


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# Keys that name a file: the fingerprint takes the digest of its content, the variant the digest of its path.
_PATHS_BY_CONTENT = ("checkpoint", "protocol.episodes_file")


@lru_cache(maxsize=4096)  # every cell of a grid asks for the same keys
def is_neutral(key: str) -> bool:
    """Whether a configuration key cannot change the numbers of a cell."""
    from fsseg.config.schema import NEUTRAL_KEYS

    return any(key == k or (k.endswith(".") and (key.startswith(k) or key == k[:-1])) for k in NEUTRAL_KEYS)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """The settings that can change the numbers, flat; files are replaced by digests of their content."""
    from fsseg.config.schema import RETIRED

    flat = flatten(resolved)
    kept = RETIRED | {k: v for k, v in flat.items() if not is_neutral(k) and k not in ("name", "variant")}
    for key in _PATHS_BY_CONTENT:
        if flat.get(key) is not None:
            kept[f"{key} (content)"] = file_digest(Path(flat[key]))
    if (weights := flat.get("backbone.weights")) is not None and flat.get("backbone.pretrained"):
        found, name = file_digest(Path(weights)), flat["backbone.name"]
        if name not in published.FILES or not found.startswith(published.digest(name)):
            kept["backbone.weights (content)"] = found
    for key in ("dataset.train_list", "dataset.val_list"):  # a list may be a file: its place does not matter
        value = flat.get(key)
        if isinstance(value, str) and os.sep in value and Path(value).is_file():
            kept[key] = f"content {file_digest(Path(value))}"
    return kept


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
