"""What a search may choose: `search.space` held against its own rules, and a choice written as overrides.

Nothing here needs Optuna; `fsseg.sweep.search.study` makes its distributions of these parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsseg.cell.variant import is_neutral
from fsseg.config.constraints import shown
from fsseg.config.schema import ParameterConfig, SearchConfig
from fsseg.errors import UserError, merge_errors

_DIGITS = 4  # of a number that is searched: a rate of 0.01234 needs no more, and its directory is named by it
_OF_A_TRIAL = {"fold": "several folds", "seed": "several training seeds"}
_COMPARED_BY = ("shot", "dataset", "protocol", "protocol.", "eval.")
_NAMES = ("name", "variant", "search", "search.", "experiment")

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Parameter:
    """One key of the space.

    Attributes:
        values: to choose from; empty for a range.
        low, high, step, log, whole: of a range.
        when: other keys, each with the values that it may have for this one to be searched.
    """

    key: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    whole: bool = False
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    @property
    def is_range(self) -> bool:
        return not self.values

    @property
    def ends(self) -> tuple[Value, ...]:
        """What must be possible if the whole range is to be: its two ends, or every value."""
        return self.values or tuple(dict.fromkeys((self.rounded(self.low), self.rounded(self.high))))

    @property
    def grid(self) -> tuple[Value, ...] | None:
        """All its values; None if they cannot be counted."""
        if self.values:
            return self.values
        step = self.step or (1 if self.whole else 0)
        if not step:
            return None
        return tuple(
            self.rounded(self.low + i * step) for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)
        )

    def rounded(self, number: float) -> int | float:
        """A number of the range as it is tried: of four digits, unless steps or its ends say otherwise."""
        if self.whole:
            return round(number)
        short = float(f"{number:.{_DIGITS if self.step is None else 12}g}")
        return min(max(short, self.low), self.high)

    def applies(self, chosen: Mapping[str, Value]) -> bool:
        """Whether it is searched beside what was chosen for the keys before it."""
        return all(key in chosen and chosen[key] in allowed for key, allowed in self.when)


@dataclass(frozen=True)
class Space:
    """All parameters; those that others depend on come first."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, cfg: SearchConfig) -> Space:
        """
        Raises:
            UserError: with every fault found, in one go.
        """
        if not cfg.space:
            what = "search.space is empty: there is nothing to search"
            raise UserError(
                what, "name keys with their ranges in the file: train.lr: {low: 0.001, high: 0.1, log: true}"
            )
        found = [fault for key, given in cfg.space.items() for fault in (*_key_faults(key), *_faults(key, given))]
        if found:
            raise merge_errors(found)
        made = {key: _parameter(key, given) for key, given in cfg.space.items()}
        found = [fault for parameter in made.values() for fault in _when_faults(parameter, made)]
        if found:
            raise merge_errors(found)
        return cls(tuple(_in_order(made)))

    def corners(self) -> Iterator[dict[str, Value]]:
        """Choices that together have both ends of every range and every value; first the first of everything."""
        first = self.completed({})
        yield first
        for parameter in self.parameters:
            for value in parameter.ends:
                known = {**dict(_with(parameter, self.parameters)), parameter.key: value}
                if (corner := self.completed(known)) != first:
                    yield corner

    def completed(self, known: Mapping[str, Value]) -> dict[str, Value]:
        """A whole choice: what is known, and of the other keys that apply the first value."""
        chosen: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.applies(chosen):
                chosen[parameter.key] = known.get(parameter.key, parameter.ends[0])
        return chosen

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every choice once.

        Raises:
            UserError: a range has no steps.
        """
        if endless := [p.key for p in self.parameters if p.grid is None]:
            raise UserError(
                f"search.sampler=grid: {endless[0]} is a range without steps, which has no end of values",
                f"give {endless[0]} a step or choices, or take another sampler: tpe, random",
            )
        return self._rest_of({})

    def _rest_of(self, chosen: dict[str, Value], at: int = 0) -> Iterator[dict[str, Value]]:
        """Every choice that begins with what is chosen for the parameters before `at`."""
        if at == len(self.parameters):
            yield chosen
            return
        parameter = self.parameters[at]
        if not parameter.applies(chosen):
            yield from self._rest_of(chosen, at + 1)
            return
        for value in parameter.grid or ():
            yield from self._rest_of({**chosen, parameter.key: value}, at + 1)


def sets(override: str, keys: Sequence[str]) -> bool:
    """Whether an override is of one of these keys; one that ends in a dot stands for all below it."""
    return _is_among(override.partition("=")[0].lstrip("+~").partition("@")[0], keys)


def without(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides of other keys than these."""
    return [override for override in overrides if not sets(override, keys)]


def _is_among(key: str, keys: Sequence[str]) -> bool:
    return any(key == k or (k.endswith(".") and key.startswith(k)) for k in keys)


def words(chosen: Mapping[str, Value]) -> list[str]:
    """The overrides of a choice, as Hydra's grammar has them."""
    from hydra.core.override_parser.types import Quote, QuotedString

    def written(value: Value) -> str:
        if isinstance(value, str):
            plain = value.replace("_", "").replace("-", "").replace(".", "").isalnum() and value[:1].isalpha()
            reserved = value.lower() in ("true", "false", "null", "nan", "inf")
            return value if plain and not reserved else QuotedString(value, Quote.single).with_quotes()
        if value is None:
            return "null"
        return repr(value) if not isinstance(value, bool) else str(value).lower()

    return [f"{key}={written(value)}" for key, value in chosen.items()]


def _key_faults(key: str) -> Iterator[UserError]:
    if key in _OF_A_TRIAL:
        what = f"search.space has {key}: it is no setting to choose, for the best {key} would be the easiest one"
        yield UserError(what, f"take it out of the space; {key}=0,1 on the line gives every trial {_OF_A_TRIAL[key]}")
    elif _is_among(key, _NAMES):
        yield UserError(f"search.space has {key}, which names cells and changes none", f"take {key} out of the space")
    elif _is_among(key, _COMPARED_BY):
        what = f"search.space has {key}: trials that differ in it are scored by different rules"
        yield UserError(what, f"take {key} out of the space, and search for each value by itself")
    elif _is_among(key, ("base_training", "base_training.")):
        what = f"search.space has {key}: a base learner is trained on the images, too, that score a trial"
        yield UserError(what, f"take {key} out of the space")
    elif is_neutral(key):
        yield UserError(f"search.space has {key}, which changes no number", f"take {key} out of the space")


def _faults(key: str, given: ParameterConfig) -> Iterator[UserError]:
    place = f"search.space: {key}"
    low, high = given.low, given.high
    if given.choices is not None:
        if low is not None or high is not None or given.log or given.whole or given.step is not None:
            yield UserError(f"{place} has both choices and a range", "give choices, or low and high")
        elif not given.choices:
            yield UserError(f"{place} has no choices", "give two values or more: choices: [a, b]")
        elif not all(value is None or isinstance(value, bool | int | float | str) for value in given.choices):
            yield UserError(f"{place} has a choice that is no plain value", "give numbers, texts, true, false or null")
        elif len({repr(value) for value in given.choices}) < len(given.choices):
            yield UserError(f"{place} has a choice twice", "name each value once")
        return
    if low is None or high is None:
        yield UserError(f"{place} has neither choices nor a range", "give low and high, or choices: [a, b]")
        return
    if not (math.isfinite(low) and math.isfinite(high)):
        yield UserError(f"{place} has an end that is no number", "give two finite numbers")
    elif low > high:
        yield UserError(f"{place} has low={low:g} above high={high:g}", "exchange them")
    elif given.log and low <= 0:
        yield UserError(f"{place} has log: true and low={low:g}, which has no logarithm", "set low above 0")
    if given.whole and not (low == int(low) and high == int(high)):
        yield UserError(f"{place} has whole: true, and an end that is no whole number", "give whole numbers")
    if given.step is not None and not 0 < given.step < math.inf:
        yield UserError(f"{place} has step={given.step:g}", "set step above 0, or leave it out")
    elif given.step is not None and given.log:
        yield UserError(f"{place} has both log and step", "leave one of them out")
    elif given.step is not None and given.whole and given.step != int(given.step):
        yield UserError(f"{place} has whole: true and step={given.step:g}", "set step to a whole number")


def _parameter(key: str, given: ParameterConfig) -> Parameter:
    when = tuple((other, tuple(v) if isinstance(v, list) else (v,)) for other, v in _plain(given.when).items())
    if given.choices is not None:
        return Parameter(key, tuple(given.choices), when=when)
    assert given.low is not None
    assert given.high is not None
    return Parameter(key, (), given.low, given.high, given.step, given.log, given.whole, when)


def _plain(node: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node  # type: ignore[return-value]


def _when_faults(parameter: Parameter, every: Mapping[str, Parameter]) -> Iterator[UserError]:
    place = f"search.space: {parameter.key} has when: {{"
    for key, allowed in parameter.when:
        if (other := every.get(key)) is None:
            yield UserError(f"{place}{key}: ...}}, which the space does not have", f"add {key} to the space")
        elif other.is_range:
            yield UserError(f"{place}{key}: ...}}, which is a range", f"give {key} choices: [a, b]")
        elif unknown := [value for value in allowed if value not in other.values]:
            what = f"{place}{key}: {shown(unknown[0])}}}, which {key} never is"
            yield UserError(what, f"name some of: {', '.join(map(str, other.values))}")
    if parameter.key in _needs(parameter, every, set()):
        yield UserError(f"{place}...}} of which one waits for the other", "let no key depend on itself")


def _needs(parameter: Parameter, every: Mapping[str, Parameter], seen: set[str]) -> set[str]:
    for key, _ in parameter.when:
        if key in every and key not in seen:
            seen.add(key)
            _needs(every[key], every, seen)
    return seen


def _in_order(every: Mapping[str, Parameter]) -> Iterator[Parameter]:
    left = dict(every)
    while left:
        for key in [k for k, p in left.items() if not any(other in left for other, _ in p.when)]:
            yield left.pop(key)


def _with(parameter: Parameter, every: Sequence[Parameter]) -> Iterator[tuple[str, Value]]:
    """What must be chosen for this one to be searched."""
    known = {p.key: p for p in every}
    for key, allowed in parameter.when:
        yield from _with(known[key], every)
        yield key, allowed[0]
