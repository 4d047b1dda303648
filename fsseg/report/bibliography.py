"""`summary.bib`: the publications of the methods, data sets and backbones in the tables. For `fsseg.report.aggregate`.

The facts stand in `fsseg/report/facts/references.json`. A field that is not known there is left out here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsseg.cell.key import CellKey
from fsseg.errors import visible
from fsseg.report.latex import latex

_FACTS = Path(__file__).parent / "facts" / "references.json"
_KINDS = ("method", "dataset", "backbone")
_OWN = ("shapes5i", "tiny", "prototype", "folder", "coco_json")
"""Of fsseg, or of the user: nothing to cite."""
_FIELDS = ("author", "title", "booktitle", "journal", "howpublished", "year")


@lru_cache(maxsize=1)
def references() -> list[dict[str, Any]]:
    """The entries, as the file has them."""
    entries: list[dict[str, Any]] = json.loads(_FACTS.read_text(encoding="utf-8"))["entries"]
    return entries


def to_bib(keys: Iterable[CellKey]) -> str:
    """BibTeX of what the cells are made of; a comment names what has no entry."""
    every = list(keys)
    shown = {kind: sorted({str(getattr(key, kind)) for key in every}) for kind in _KINDS}
    found = [e for e in references() if any(name in e["of"].get(kind, ()) for kind in _KINDS for name in shown[kind])]
    known = {(kind, name) for e in references() for kind, names in e["of"].items() for name in names}
    lacking = [
        f"{kind} {name}" for kind in _KINDS for name in shown[kind] if (kind, name) not in known and name not in _OWN
    ]
    # outside entries BibTeX reads over everything but an @
    notes = [f"No entry here: {visible(what)}.".replace("@", "(at)") for what in lacking]
    return "\n".join(["Of the methods, data sets and backbones in summary.tex.", *notes, "", *map(_entry, found)])


def _entry(facts: dict[str, Any]) -> str:
    values = {name: facts[name] for name in _FIELDS if name in facts}
    written = {
        name: " and ".join(map(latex, value)) if isinstance(value, list) else latex(value)
        for name, value in values.items()
    }
    if "title" in written:  # as printed: styles would make small letters of names
        written["title"] = f"{{{written['title']}}}"
    fields = [f"  {name} = {{{value}}}," for name, value in written.items()]
    return "\n".join([f"@{facts['type']}{{{facts['key']},", *fields, "}"]) + "\n"
