"""What a single configuration field may be: the vocabulary of `fsseg.config.schema`, asked by `fsseg.config.checks`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fsseg.errors import UserError


@dataclass(frozen=True)
class Constraint:
    """A condition on a value that is not null.

    Attributes:
        holds: the condition.
        what: what is wrong if it does not hold; follows `key=value` in the message.
        fix: what to do then; follows `set key to`.
    """

    holds: Callable[[Any], bool]
    what: str
    fix: str

    def fault(self, key: str, value: Any) -> UserError | None:
        """What is wrong with `key=value`, if anything is."""
        try:
            if self.holds(value):
                return None
        except TypeError:  # OmegaConf lets a list pass where a list of numbers has another list in it
            pass
        return UserError(f"{key}={shown(value)} {self.what}", f"set {key} to {self.fix}")


def is_plain(text: str) -> bool:
    """Whether a text has one line and no control characters, nor bytes that were no UTF-8 (surrogates in Python)."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def shown(value: Any) -> str:
    """A value for a message: in one line, without the end of a very long one."""
    text = str(value)
    return cut(text if text and is_plain(text) else repr(value))


def cut(text: str) -> str:
    """A text, without the end of a very long one."""
    return text if len(text) <= 500 else f"{text[:200]}... ({len(text)} characters)"


def within(least: float, most: float) -> Constraint:
    """A number in [least, most]."""
    return Constraint(
        lambda v: least <= v <= most, f"is not within {least} and {most}", f"a number from {least} to {most}"
    )


def above(least: float, most: float) -> Constraint:
    """A number greater than `least`, at most `most`."""
    return Constraint(
        lambda v: least < v <= most,
        f"is not above {least:g} and at most {most:g}", f"a number above {least:g}, up to {most:g}",
    )  # fmt: skip


def one_of(*allowed: object) -> Constraint:
    """One of these values."""
    return Constraint(lambda v: v in allowed, "is not a choice", f"one of: {', '.join(map(str, allowed))}")


def _is_path(value: str) -> bool:
    """Whether a file could have this name: no part of it has more than 255 bytes, nor the whole more than Linux takes.

    Below a folder there is room left for a run directory and its files.
    """
    return 0 < len(value.encode()) <= 3000 and all(len(part.encode()) <= 255 for part in value.split("/"))


NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
"""What names a folder: no separator, no blank, nothing that a shell, SLURM or a file system reads as more than text."""

PLAIN_TEXT = Constraint(
    is_plain, "has characters that are no text (line breaks, NUL, ESC, or bytes that are not UTF-8)",
    "plain text in one line",
)  # fmt: skip
"""Every text of the configuration is held against this, whatever else its field says."""
NAME = Constraint(
    lambda v: NAME_PATTERN.fullmatch(v) is not None, "is no name",
    "letters, digits and . _ + - (at most 100, the first a letter or a digit)",
)  # fmt: skip
FILE_PATH = Constraint(_is_path, "is no path, or too long for one", "a shorter path")
FOLDERS = Constraint(
    lambda v: all(f is None or (is_plain(f) and _is_path(f)) for f in v.values()),
    "has a value that is no path, or too long for one", "shorter paths, in plain text",
)  # fmt: skip
NOT_DEFAULT = Constraint(
    lambda v: v != "default", "is the name of a cell without overrides", "another name, or leave it out"
)
SEED = within(0, 2**32 - 1)
SEEDS = Constraint(
    lambda v: 0 < len(v) == len(set(v)) <= 1000 and all(map(SEED.holds, v)),
    f"must be different numbers from 0 to {2**32 - 1}, at least one, at most 1000", "e.g. [0,1,2]",
)  # fmt: skip
SHARES = Constraint(
    lambda v: len(v) <= 100 and all(0 <= share <= 1 for share in v),
    "are not within 0 and 1, or more than 100", "e.g. [0,1]",
)  # fmt: skip
SIDES = Constraint(
    lambda v: 0 < len(v) <= 16 and all(0 < share <= 1 for share in v),
    "are not shares above 0 and at most 1, at least one, at most 16", "e.g. [1,0.5,0.25,0.125]",
)  # fmt: skip
SCALES = Constraint(
    lambda v: len(v) == 2 and 0.1 <= v[0] <= v[1] <= 10,
    "is not [smallest, largest], each from 0.1 to 10", "e.g. [0.9,1.1]",
)  # fmt: skip
BETAS = Constraint(
    lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v),
    "is not two numbers from 0 to below 1",
    "e.g. [0.9,0.999]",
)
BEST = {"best_novel": "best on novel classes", "best_base": "best on base classes"}
"""Checkpoints that may be kept beside the last one (`train.select`), with their names in tables."""
SELECT = Constraint(
    lambda v: len(set(v)) == len(v) and set(v) <= set(BEST),
    f"is no list of {' and '.join(BEST)}, each once at most (the last checkpoint is the result always)",
    "e.g. [best_novel], or [] for none",
)
COMMAND = Constraint(lambda v: 0 < len(v.strip()) <= 5000, "is no command", "a line for the shell, or leave it out")
TRACKERS = Constraint(
    lambda v: len(set(v)) == len(v) and set(v) <= {"wandb", "mlflow", "trackio", "aim"},
    "is no list of wandb, mlflow, trackio and aim, each once at most", "e.g. [wandb], or [] for none",
)  # fmt: skip
DEPTHS = Constraint(
    lambda v: len(v) == 3 and 0 < v[0] <= v[1] <= v[2] <= 1000,
    "is not three numbers of blocks, none smaller than the one before", "e.g. [6,9,12]",
)  # fmt: skip
FACTORS = Constraint(
    lambda v: len(v) <= 100 and all(is_plain(name) and 0 <= factor <= 1000 for name, factor in v.items()),
    "has a factor that is not within 0 and 1000, or more than 100", "e.g. {backbone: 0.1}",
)  # fmt: skip

Share = Annotated[float, within(0, 1)]
