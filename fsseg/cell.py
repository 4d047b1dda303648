"""A cell on disk: its key, its directory and what is in it, its fingerprint.

A cell is one (name, dataset, method, backbone, shot, fold, seed, variant). `fsseg.run` works in its directory;
`fsseg.sweep` and `fsseg.report` only read there. No torch here: asking for the state of a thousand cells must be quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.errors import UserError
from fsseg.files import create_exclusive, json_text, read_json, write_atomic, write_json
from fsseg.status import Status

if TYPE_CHECKING:
    from fsseg.config import Config

__all__ = [
    "SCHEMA_VERSION", "Cell", "CellKey", "Status", "cell_key", "create_exclusive", "file_digest", "fingerprint",
    "flatten", "identity", "is_neutral", "json_text", "key_dict", "open_cell", "read_json", "variant_of",
    "write_atomic", "write_json",
]  # fmt: skip

SCHEMA_VERSION = 1

# Overrides that already have their own place in the directory name.
_GRID_KEYS = ("name", "dataset", "method", "backbone", "shot", "fold", "seed", "variant",
              "dataset.name", "backbone.name", "model.name")  # fmt: skip
_VARIANT_LENGTH = 96  # a file name may have 255 bytes; tools that add to it should fit too


@dataclass(frozen=True)
class CellKey:
    """Who a cell is."""

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


def cell_key(cfg: Config, overrides: Iterable[str] = ()) -> CellKey:
    """The key of a composed configuration and the overrides it was composed from."""
    # The paper's experiments name their cells after themselves and change no setting silently: that one was chosen
    # need not be said twice. Any other file under experiment/ may change anything, so it is a variant.
    if cfg.name in ("paper", cfg.report):
        overrides = [o for o in overrides if o != f"experiment={cfg.name}"]
    return CellKey(
        name=cfg.name, dataset=cfg.dataset.name, method=cfg.model.name, backbone=cfg.backbone.name,
        shot=cfg.shot, fold=cfg.fold, seed=cfg.seed, variant=cfg.variant or variant_of(overrides),
    )  # fmt: skip


def variant_of(overrides: Iterable[str]) -> str:
    """A short, file-system-safe name made of the overrides that are neither grid keys nor unable to change the numbers.

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
        # What was replaced or cut must not make two variants one; plain lists keep their looks.
        safe = f"{safe[: _VARIANT_LENGTH - 10].rstrip('_.+-')}-{_short(full)}"
    return safe


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# Paths that stand for what the file holds: their content is in the fingerprint, a digest of their name in the variant.
_PATHS_BY_CONTENT = ("checkpoint", "protocol.episodes_file")


def is_neutral(key: str) -> bool:
    """Whether a configuration key cannot change the numbers of a cell."""
    from fsseg.config import NEUTRAL_KEYS

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
    """What of a resolved configuration can change the numbers: flat, files replaced by digests of their content."""
    flat = flatten(resolved)
    kept = {k: v for k, v in flat.items() if not is_neutral(k) and k not in ("name", "variant")}
    for key in _PATHS_BY_CONTENT:
        if flat.get(key) is not None:
            kept[f"{key} (content)"] = file_digest(Path(flat[key]))
    for key in ("dataset.train_list", "dataset.val_list"):  # a list may be a file: where it lies cannot change anything
        value = flat.get(key)
        if isinstance(value, str) and os.sep in value and Path(value).is_file():
            kept[key] = f"content {file_digest(Path(value))}"
    return kept


def fingerprint(identity_: dict[str, Any]) -> str:
    """16 hex digits over what can change the numbers."""
    text = json.dumps(identity_, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None


@dataclass(frozen=True)
class Cell:
    """A cell's directory and the files in it."""

    key: CellKey
    directory: Path
    fingerprint: str
    identity: dict[str, Any]

    @property
    def config(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def identity_file(self) -> Path:
        return self.directory / "identity.json"

    @property
    def result(self) -> Path:
        return self.directory / "result.json"

    @property
    def status(self) -> Path:
        return self.directory / "status.json"

    @property
    def claim(self) -> Path:
        return self.directory / "claim.json"

    @property
    def log(self) -> Path:
        return self.directory / "train.log"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / "last.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last, for the case that the last one is damaged."""
        return self.directory / "checkpoints" / "previous.pt"

    def clear(self) -> None:
        """Empty the directory, but for the claim, which the caller holds.

        The result goes first and the identity last: whenever this is cut short, what is left is neither taken for a
        result nor for a run with other settings than its own.
        """
        old = self.directory / f".old-{uuid.uuid4().hex}"
        old.mkdir()
        entries = [p for p in self.directory.iterdir() if not p.name.startswith((".old-", f".{self.claim.name}"))]
        turn = {self.result: 0, self.identity_file: 2}
        for path in sorted((p for p in entries if p != self.claim), key=lambda p: turn.get(p, 1)):
            os.rename(path, old / path.name)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a killed process left half-written. The caller holds the claim, so nobody is writing."""
        for path in [*self.directory.glob(".*"), *self.directory.glob("*/.*.tmp"), *self.directory.glob("*/*.new")]:
            if path.name.startswith(".old-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix in (".tmp", ".new") and not path.name.startswith((f".{self.claim.name}", ".clock")):
                path.unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """The result, if this very cell (same fingerprint) is done."""
        result = read_json(self.result)
        return result if result is not None and result.get("fingerprint") == self.fingerprint else None

    def check_same_settings(self) -> None:
        """Refuse a directory that holds a run with other settings.

        Raises:
            UserError: naming the keys that differ, and the ways out.
        """
        stored = read_json(self.identity_file)
        if stored is None:
            return
        if stored.get("fingerprint") == self.fingerprint:
            return
        theirs = stored.get("identity", {})
        differing = [
            f"{key}: {theirs.get(key, '(absent)')} there, {self.identity.get(key, '(absent)')} now"
            for key in sorted(set(theirs) | set(self.identity))
            if theirs.get(key) != json.loads(json.dumps(self.identity.get(key), default=str))
        ]
        raise UserError(
            f"{self.directory} holds a run with other settings: " + "; ".join(differing),
            "keep both with name=<another name> or variant=<a name>, or replace that run with redo=true",
        )


def open_cell(cfg: Config, resolved: dict[str, Any], overrides: Iterable[str] = ()) -> Cell:
    """The cell of a composed configuration; nothing is written."""
    key = cell_key(cfg, overrides)
    kept = identity(resolved)
    return Cell(key, Path(cfg.output_dir, key.path), fingerprint(kept), kept)


def key_dict(key: CellKey) -> dict[str, Any]:
    """A key as it stands in result.json."""
    return asdict(key)
