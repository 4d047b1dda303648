"""Findings about a user's data: `Fault`, one thing wrong, and `Comparison`, the lists beside the published ones.

The sources collect faults instead of stopping at the first, so that training ends with one clear message and
`fsseg verify` lists every file concerned. Called by the sources and by `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fsseg.errors import UserError, merge_errors

SHOWN = 5
"""Files named per kind of fault in an error; `fsseg verify` names all."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one file.

    Attributes:
        kind: the sort of fault, a plural in lower case: "missing masks", "duplicate ids".
        path: the file concerned.
        detail: what is wrong with it, beyond the kind; may be empty.
        fix: what the user can do; the same for all faults of a kind.
    """

    kind: str
    path: str
    detail: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}" if self.detail else self.path


def faults_error(faults: Iterable[Fault]) -> UserError:
    """All faults as one `UserError`: for each kind the count, the first few files and the fix."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    errors = []
    for kind, found in by_kind.items():
        shown = "; ".join(str(fault) for fault in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more (`fsseg verify` lists all)" if len(found) > SHOWN else ""
        errors.append(UserError(f"{kind} ({len(found)}): {shown}{more}", found[0].fix))
    return merge_errors(errors)


@dataclass(frozen=True)
class Difference:
    """One number that is not the published one; `where` is a list ("fold 0 val"), `what` a class or "images"."""

    where: str
    what: str
    published: int
    found: int

    def __str__(self) -> str:
        return f"{self.where}, {self.what}: {self.found}, published {self.published} ({self.found - self.published:+d})"


@dataclass
class Comparison:
    """The lists of a data set beside the published ones.

    Attributes:
        published: what the lists were compared with, in words; empty if nothing is published.
        checked: numbers compared.
        differences: those that differ.
        causes: probable causes of the differences.
        notes: what else the user should know.
    """

    published: str = ""
    checked: int = 0
    differences: list[Difference] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def standard(self) -> bool:
        """Whether the data are the standard benchmark."""
        return bool(self.checked) and not self.differences and not self.causes

    def add(self, where: str, what: str, published: int, found: int) -> None:
        """Compare one number."""
        self.checked += 1
        if found != published:
            self.differences.append(Difference(where, what, published, found))
