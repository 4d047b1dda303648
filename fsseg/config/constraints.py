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
        what: what is wrong where it does not hold, after `key=value`.
        fix: what to do then, after `set key to`.
    """

    holds: Callable[[Any], bool]
    what: str
    fix: str

    def fault(self, key: str, value: Any) -> UserError | None:
        """What is wrong with `key=value`, if anything is."""
        return None if self.holds(value) else UserError(f"{key}={value} {self.what}", f"set {key} to {self.fix}")


def at_least(least: int) -> Constraint:
    return Constraint(lambda value: value >= least, f"is less than {least}", f"{least} or more")


def within(least: float, most: float) -> Constraint:
    return Constraint(
        lambda value: least <= value <= most, f"is not within {least} and {most}", f"a number from {least} to {most}"
    )


def one_of(*allowed: object) -> Constraint:
    return Constraint(
        lambda value: value in allowed, "is not a choice", f"one of: {', '.join(str(value) for value in allowed)}"
    )


FINITE = Constraint(math.isfinite, "is not a finite number", "a finite number")
FOLDER_NAME = Constraint(
    lambda value: value and "/" not in value and not value.startswith(".") and len(value) <= 200,
    "is no folder name",
    "a plain name without slashes",
)
NOT_DEFAULT = Constraint(
    lambda name: name != "default", "is the name of a cell without overrides", "another name, or leave it out"
)
DIFFERENT = Constraint(
    lambda values: 0 < len(values) == len(set(values)), "must be different numbers, at least one", "e.g. [0,1,2]"
)
SHARES = Constraint(lambda values: all(0 <= value <= 1 for value in values), "are not within 0 and 1", "e.g. [0,1]")
SCALES = Constraint(
    lambda values: len(values) == 2 and 0 < values[0] <= values[1] < math.inf,
    "is not [smallest, largest]",
    "e.g. [0.9,1.1]",
)

Positive = Annotated[T, Constraint(lambda value: value > 0, "must be greater than 0", "a positive number")]
NotNegative = Annotated[T, at_least(0)]
Share = Annotated[float, within(0, 1)]
