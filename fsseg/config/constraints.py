"""What a single configuration field may be: the vocabulary of `fsseg.config.schema`, asked by `fsseg.config.checks`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fsseg.errors import UserError

T = TypeVar("T")


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
        if self.holds(value):
            return None
        return UserError(f"{key}={value or repr(value)} {self.what}", f"set {key} to {self.fix}")


def at_least(least: int) -> Constraint:
    """A number of at least `least`."""
    return Constraint(lambda v: v >= least, f"must be {least} or more", f"{least} or more")


def within(least: float, most: float) -> Constraint:
    """A number in [least, most]."""
    return Constraint(
        lambda v: least <= v <= most, f"is not within {least} and {most}", f"a number from {least} to {most}"
    )


def one_of(*allowed: object) -> Constraint:
    """One of these values."""
    return Constraint(lambda v: v in allowed, "is not a choice", f"one of: {', '.join(map(str, allowed))}")


FINITE = Constraint(math.isfinite, "is not a finite number", "a finite number")
FOLDER_NAME = Constraint(
    lambda v: v and "/" not in v and not v.startswith(".") and len(v) <= 200,
    "is no folder name", "a plain name without slashes",
)  # fmt: skip
NOT_DEFAULT = Constraint(
    lambda v: v != "default", "is the name of a cell without overrides", "another name, or leave it out"
)
DIFFERENT = Constraint(lambda v: 0 < len(v) == len(set(v)), "must be different numbers, at least one", "e.g. [0,1,2]")
SHARES = Constraint(lambda v: all(0 <= share <= 1 for share in v), "are not within 0 and 1", "e.g. [0,1]")
SCALES = Constraint(
    lambda v: len(v) == 2 and 0 < v[0] <= v[1] < math.inf, "is not [smallest, largest]", "e.g. [0.9,1.1]"
)

Positive = Annotated[T, Constraint(lambda v: v > 0, "must be greater than 0", "a positive number")]
NotNegative = Annotated[T, at_least(0)]
Share = Annotated[float, within(0, 1)]
