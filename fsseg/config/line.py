"""Overrides before Hydra reads them: refuses what would choke its parser, and keeps texts as they were written.

Called wherever a line comes in: `fsseg.config.entry.launch` and `fsseg.config.compose`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from typing import get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser

from fsseg.config import schema
from fsseg.config.constraints import shown
from fsseg.errors import UserError

_DEEPEST = 20  # brackets in brackets; a list of lists has 2


def as_written(line: Sequence[str]) -> list[str]:
    """The overrides, with quotes around what Hydra would take for a number where the setting is a text.

    `name=1.10` would name the run 1.1, and `variant=true` True.

    Raises:
        UserError: bytes that are not UTF-8, or values nested deeper than any setting.
    """
    for word in line:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{shown(word)}: is not UTF-8", "write the override in plain characters") from None
        depth = deepest = 0
        for bracket in re.findall(r"[][{}()]", word):
            depth += 1 if bracket in "[{(" else -1
            deepest = max(deepest, depth)
        if deepest > _DEEPEST:
            raise UserError(f"{shown(word)}: {deepest} brackets in one another", "no setting has such a value")
    return [_as_text(word) for word in line]


def _as_text(word: str) -> str:
    key, _, value = word.partition("=")
    if key.lstrip("+") not in _text_keys() or not re.fullmatch(r"[\w.+,-]+", value):
        return word
    return f"{key}={','.join(map(_quoted, value.split(',')))}"


def _quoted(element: str) -> str:
    """One value of a sweep; with quotes if Hydra would read something that looks another way when written again."""
    if not re.match(r"[+-]?(\d|\.\d|inf|nan|true|false)", element, re.IGNORECASE):
        return element
    read = OverridesParser.create().parse_override(f"key={element}").value()
    return element if isinstance(read, str) or str(read) == element else f"'{element}'"


@lru_cache(maxsize=1)
def _text_keys() -> frozenset[str]:
    """Dotted names of all settings that are texts."""
    found = {f"data.roots.{name}" for name in schema.DatasetConfig.choices()}
    for name, hint in get_type_hints(schema.Config).items():
        if isinstance(hint, type) and is_dataclass(hint):
            kinds = [get_type_hints(kind) for kind in schema.family(hint)]
            found |= {f"{name}.{key}" for kind in kinds for key, inner in kind.items() if _is_text(inner)}
        elif _is_text(hint):
            found.add(name)
    return frozenset(found)


def _is_text(hint: object) -> bool:
    return hint is str or set(get_args(hint)) == {str, type(None)}
