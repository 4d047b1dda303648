"""Configurations that differ in the values of the same keys, as the cells of a grid do: each is made from the first.

`fsseg.config.compose` uses it. OmegaConf takes 10 ms to copy, resolve and check one configuration. Here one stays in
OmegaConf's hands: it takes the values of each cell, so that they are converted and refused as ever, and answers for
them and for what is interpolated. All the rest is the same in every cell, and shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from fsseg.config.entry import resolved
from fsseg.config.hydra_internals import apply_overrides, interpolation
from fsseg.config.schema import Config

T = TypeVar("T")

Path = tuple[str, ...]
"""A dotted key in its parts."""


def sets_a_value(override: Override) -> bool:
    """Whether an override gives a value to a key that is there: nothing is added, removed, merged or referred to."""
    if override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override():
        return False
    value = override.value()
    items = value if isinstance(value, list) else [value]
    return "${" not in str(override.input_line) and not any(isinstance(item, (dict, list)) for item in items)


class Series:
    """The configurations that the same keys lead to.

    Args:
        config: composed with some values of the keys; the series owns it.
        keys: dotted.

    Raises:
        OmegaConfBaseException: a value is missing or cannot be resolved.
    """

    def __init__(self, config: DictConfig, keys: Sequence[str]) -> None:
        self._config = config
        first: Any = OmegaConf.to_object(config)
        whole = is_dataclass(first) and resolved(first) == resolved(config)  # no keys beyond the schema
        self._first: Config | None = first if whole else None
        self._readers: dict[Path, Callable[[], Any]] = dict(_interpolated(config))
        for key in keys:
            *parents, name = path = tuple(key.split("."))
            node: Any = config
            for part in parents:
                node = node[part] if isinstance(node, DictConfig) and part in node else None
            if isinstance(node, DictConfig) and name in node and not isinstance(node[name], DictConfig):
                self._readers[path] = partial(node.__getitem__, name)
            else:  # part of a list, or a whole node
                self._first = None
        if not all(_stands_in_the_schema(first, path) for path in self._readers):
            self._first = None

    def one(self, overrides: Sequence[Override]) -> Config | None:
        """The configuration that overrides of just these keys give; None if only OmegaConf can make it.

        Raises:
            HydraException: a value is refused.
            OmegaConfBaseException: a value is missing or cannot be resolved.
        """
        if self._first is None:
            return None
        apply_overrides(overrides, self._config)
        found = self._first
        for path, read in self._readers.items():
            value = read()
            found = _with(found, path, OmegaConf.to_object(value) if OmegaConf.is_config(value) else value)
        return found


def _interpolated(node: DictConfig, above: Path = ()) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Every value that is interpolated, or a list that holds such values, with what gives its value as it is then."""
    for key in map(str, node):
        path = (*above, key)
        if OmegaConf.is_interpolation(node, key):
            yield path, interpolation(node, key)
        elif isinstance(child := node[key], DictConfig):
            yield from _interpolated(child, path)
        elif isinstance(child, ListConfig) and any(OmegaConf.is_interpolation(child, i) for i in range(len(child))):
            yield path, partial(node.__getitem__, key)


def _stands_in_the_schema(config: Any, path: Path) -> bool:
    """Whether all nodes above a value are made of a schema, or are mappings that a schema names."""
    for part in path:
        if isinstance(config, dict):
            config = config.get(part)
        elif is_dataclass(config):
            config = getattr(config, part)
        else:
            return False
    return True


def _with(node: T, path: Path, value: Any) -> T:
    """A node with another value somewhere below; everything else is that of the old node."""
    name, *below = path
    if isinstance(node, dict):
        return {**node, name: _with(node[name], tuple(below), value) if below else value}  # type: ignore[return-value]
    changed: T = object.__new__(type(node))
    changed.__dict__.update(node.__dict__)
    changed.__dict__[name] = _with(getattr(node, name), tuple(below), value) if below else value
    return changed
