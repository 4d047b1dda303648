"""The variant in a cell's name: made of the overrides that are not part of the grid, and shown in tables.

`fsseg.cell.key` names cells by it, `fsseg.report` and `fsseg status` label the rows of their tables with it. Truth
values and numbers have one name, however a line writes them: they are spelled as Hydra hands them on in a `-m` line.
Lists and texts stand as they are written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache

# Overrides that already have their own place in the directory name.
_GRID_KEYS = ("name", "dataset", "method", "backbone", "shot", "fold", "seed", "variant",
              "dataset.name", "backbone.name", "model.name")  # fmt: skip
# Keys that name a file: the fingerprint takes the digest of its content, the variant the digest of its path.
PATHS_BY_CONTENT = ("checkpoint", "protocol.episodes_file")

_LENGTH = 96  # a file name may have 255 bytes; tools that add to it should fit too
_LONGEST_VALUE = 24  # of a part that stands whole in a name that is too long
_SWEPT = re.compile(r"(model|train|backbone)\.|[^.]*\Z")  # what one sweeps: the model, the training, and whole groups
_DIGEST = re.compile(r"(?:^|-)[0-9a-f]{8}\Z")
_OTHER_SPELLING = re.compile(r"-(?:true|false)(?:\+|\Z)|-[+-]?[0-9._]*(?:[eE_][0-9+-]|\.(?:\+|\Z))", re.IGNORECASE)
_NEXT_PART = re.compile(r"\+(?=[A-Za-z_][\w./@]*-)")  # a value may hold a plus too: 1e+5
_WHOLE, _DIGITS = "(?:0|[1-9](?:_?[0-9])*)", "(?:[0-9](?:_?[0-9])*)"
_NUMBER = re.compile(rf"[+-]?(?:{_WHOLE}\.?|{_WHOLE}?\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?")  # as in Hydra's grammar
_LONGEST_NUMBER = 40


def variant_of(overrides: Iterable[str]) -> str:
    """A short, file-system-safe name made of the overrides that can change the numbers, without the grid keys.

    `train.lr=0.004 model.iterations=5` gives `model.iterations-5+train.lr-0.004` in any order; none gives `default`.
    Only characters that need no quoting on Hydra's command line are used. In a name that would be too long no key and
    no value is cut: what one sweeps comes first (settings of model and training, short values), a long value becomes a
    digest, and what does not fit any more is one digest (`more-1a2b3c4d`).
    """
    return _name(_settings(overrides))


def earlier_variants(overrides: Iterable[str]) -> list[str]:
    """The names that earlier versions gave to the same settings, where these are others.

    They took values as the line wrote them (`false`, `1e-3`), and cut long names in the middle of a part.
    """
    overrides = list(overrides)
    spelled = _settings(overrides)
    written = [
        _settings(overrides, as_written=True),
        spelled,
        *({k: _otherwise(v, kinds) for k, v in spelled.items()} for kinds in ("b", "n", "bn")),
    ]
    return [name for name in dict.fromkeys(map(_cut_name, written)) if name != _name(spelled)]


def may_be_earlier(variant: str) -> bool:
    """Whether an earlier version may have given this name to settings that have another one now."""
    return is_shortened(variant) or _OTHER_SPELLING.search(variant) is not None


def labels(variants: Mapping[str, Sequence[str] | None], rows: int = 1) -> tuple[dict[str, str], str]:
    """What tells variants of one table from each other.

    Args:
        variants: name -> overrides of one of its cells, which tell what a shortened name does not hold; None if they
            are unknown or not needed.
        rows: of the table; if they differ in something else, and have one variant, it tells none of them apart.

    Returns:
        Name -> the parts that not all variants have, empty for none; and the parts that all have, as one text.
    """
    own = {name: _parts(name, overrides) for name, overrides in variants.items() if name != "default"}
    if rows > len(variants) == len(own) == 1:
        ((name, parts),) = own.items()
        return {name: ""}, "+".join(parts)
    shared = set.intersection(*map(set, own.values())) if len(own) > 1 else set()
    found = {name: "+".join(p for p in parts if p not in shared) for name, parts in own.items()}
    first = next(iter(own.values()), [])
    found = {name: label if len(label) <= _LENGTH and shared else name for name, label in found.items()}
    found |= {name: "" for name in variants if name == "default"}
    if len(set(found.values())) < len(found):  # a variant may have nothing beside what all have
        return {name: "" if name == "default" else name for name in variants}, ""
    return found, "+".join(p for p in first if p in shared)


def is_shortened(variant: str) -> bool:
    """Whether a digest stands for a part of the settings."""
    return _DIGEST.search(variant) is not None


def _parts(name: str, overrides: Sequence[str] | None) -> list[str]:
    if not overrides or not is_shortened(name) or any(o.startswith("variant=") for o in overrides):
        return _NEXT_PART.split(name)
    return [f"{key}-{value}" for key, value in sorted(_settings(overrides).items())]


def _settings(overrides: Iterable[str], as_written: bool = False) -> dict[str, str]:
    """Key -> value of the overrides that make a variant; the last of a key counts."""
    last: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith("~"):
            key, value = key[1:], "removed"
        if key in _GRID_KEYS or key.startswith("hydra"):
            continue
        if is_neutral(key) and key not in PATHS_BY_CONTENT:
            continue
        last[key] = _short(value) if key in PATHS_BY_CONTENT else value if as_written else _spelled(value)
    return last


def _name(settings: Mapping[str, str]) -> str:
    full, safe = _full_and_safe(settings)
    if _is_cut(full, safe):
        return _fitted(settings)
    return _cut_name(settings)


def _cut_name(settings: Mapping[str, str]) -> str:
    """The name that all versions give to settings whose name is not too long; earlier ones cut the others."""
    if not settings:
        return "default"
    full, safe = _full_and_safe(settings)
    if safe != full or len(safe) > _LENGTH:
        # Replaced or cut characters must not make two variants equal: a digest tells them apart.
        return f"{safe[: _LENGTH - 10].rstrip('_.+-')}-{_short(full)}"
    return safe


def _full_and_safe(settings: Mapping[str, str]) -> tuple[str, str]:
    full = "+".join(f"{key}-{value}" for key, value in sorted(settings.items()))
    return full, _safe(full)


def _is_cut(full: str, safe: str) -> bool:
    return len(safe) > (_LENGTH if safe == full else _LENGTH - 10)


def _fitted(settings: Mapping[str, str]) -> str:
    """A name of whole parts for settings that are too many or too long for `_cut_name`."""
    whole, digested = [], []
    for key, value in sorted(settings.items(), key=lambda s: (_SWEPT.match(s[0]) is None, len(s[1]), s[0])):
        part = f"{key}-{value}"
        if _safe(part) == part and len(value) <= _LONGEST_VALUE:
            whole.append(part)
        else:
            digested.append(f"{_safe(key)}-{_short(part)}")
    if len("+".join(whole + digested)) <= _LENGTH:
        return "+".join(whole + digested)
    parts: list[str] = []
    rest = f"more-{_short(_full_and_safe(settings)[0])}"
    for part in whole + digested:
        if len("+".join([*parts, part, rest])) <= _LENGTH:
            parts.append(part)
    return "+".join([*parts, rest])


def _safe(text: str) -> str:
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9._+\-]", "_", text)).strip("_.")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _spelled(value: str) -> str:
    """A truth value or a number as Hydra writes it anew in a `-m` line; anything else as it is."""
    if value.lower() in ("true", "false"):
        return value.capitalize()
    if len(value) > _LONGEST_NUMBER or not _NUMBER.fullmatch(value):
        return value
    return str(int(value)) if re.fullmatch(r"[+-]?[0-9_]+", value) else str(float(value))


def _otherwise(value: str, kinds: str) -> str:
    """The value as people write it: truth values in small letters (b), small and large numbers with an exponent (n)."""
    if "b" in kinds and value in ("True", "False"):
        return value.lower()
    if "n" in kinds and re.search(r"\.|e", value) and _NUMBER.fullmatch(value):
        try:
            _, digits, exponent = Decimal(value).normalize().as_tuple()
        except InvalidOperation:
            return value
        power = len(digits) - 1 + int(exponent)
        if not -3 < power < 5:
            mantissa = "".join(map(str, digits))
            return f"{'-' * value.startswith('-')}{mantissa[0]}{'.' * (len(digits) > 1)}{mantissa[1:]}e{power}"
    return value


@lru_cache(maxsize=4096)  # every cell of a grid asks for the same keys
def is_neutral(key: str) -> bool:
    """Whether a configuration key cannot change the numbers of a cell."""
    from fsseg.config.schema import NEUTRAL_KEYS

    return any(key == k or (k.endswith(".") and (key.startswith(k) or key == k[:-1])) for k in NEUTRAL_KEYS)
