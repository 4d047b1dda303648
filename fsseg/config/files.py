"""Limits of the YAML files that Hydra reads: `conf/`, `--config-dir`, `hydra.searchpath`.

A file of a few lines can stand for thousands of millions of values, by aliases of aliases; Hydra would copy them all.
"""

from __future__ import annotations

import os

import yaml

from fsseg.errors import UserError

_MOST_BYTES = 1 << 20
_DEEPEST = 50
_MOST_VALUES = 100_000


def check_file(path: str) -> None:
    """Look at a configuration file without building what it stands for.

    Raises:
        UserError: it is no YAML in UTF-8, or larger, deeper or with more values than any experiment.
    """
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise UserError(f"{path}: has more than {_MOST_BYTES >> 20} MB", "no configuration file is so long")
        with open(path, encoding="utf-8") as file:
            fault = _fault(file.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8", "save the file as UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise UserError(f"{path}{place}: is no YAML ({what})", "mend the file") from None
    if fault:
        raise UserError(f"{path}: {fault}", "write the values out: no configuration file needs so many")


def _fault(text: str) -> str:
    """What of the text is beyond the limits; empty if nothing is."""
    counts, anchors, names = [0], dict[str, int](), list[str | None]()
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            counts[-1] += anchors.get(str(event.anchor), _MOST_VALUES + 1)  # one within itself has no end
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            names.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            inner, name = counts.pop(), names.pop()
            counts[-1] += inner
            if name is not None:
                anchors[name] = inner
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor is not None:
                anchors[event.anchor] = 1
        if len(names) > _DEEPEST:
            return f"is nested more than {_DEEPEST} levels deep"
        if counts[-1] > _MOST_VALUES:
            return f"stands for more than {_MOST_VALUES} values"
    return ""
