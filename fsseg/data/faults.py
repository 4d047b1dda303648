"""`Fault`, one thing wrong with a user's data, and how many of them become one readable error.

The sources collect faults instead of stopping at the first, so that training ends with one clear message and
`fsseg verify` lists every file concerned. Called by `index`, `pascal`, `coco` and `verify`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fsseg.errors import UserError, merge_errors

SHOWN = 5
"""Files named per kind of fault in an error; `fsseg verify` names all."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one file.

    Attributes:
        kind: what sort, in the plural, as it stands in a sentence: "missing masks", "duplicate ids".
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
    """All faults as one `UserError`: per kind the count, the first few files and the way out."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    errors = []
    for kind, found in by_kind.items():
        shown = "; ".join(str(fault) for fault in found[:SHOWN])
        more = f"; and {len(found) - SHOWN} more (`fsseg verify` lists all)" if len(found) > SHOWN else ""
        errors.append(UserError(f"{kind} ({len(found)}): {shown}{more}", found[0].fix))
    return merge_errors(errors)
