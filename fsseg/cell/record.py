"""A cell on disk: its directory and what is in it. `fsseg.run` works there; `fsseg.sweep` and `fsseg.report` read."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.key import CellKey, cell_key, fingerprint, identity
from fsseg.errors import UserError
from fsseg.process.files import read_json

if TYPE_CHECKING:
    from fsseg.config.schema import Config

SCHEMA_VERSION = 1


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
