"""`--config-dir`, for every command that takes a line of overrides: as `train.py` takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Annotated, Any

import typer

_given: ContextVar[str | None] = ContextVar("config_dir", default=None)

Folder = Annotated[str | None, typer.Option(metavar="FOLDER", help="More configuration files, as train.py takes them")]


def takes_line(function: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--config-dir`; `config_dir` tells its value."""

    @wraps(function)
    def command(*args: Any, config_dir: str | None = None, **more: Any) -> None:
        token = _given.set(config_dir)
        try:
            function(*args, **more)
        finally:
            _given.reset(token)

    own = inspect.signature(function, eval_str=True)
    option = inspect.Parameter("config_dir", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Folder)
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    return command


def config_dir() -> str | None:
    """The folder that the command which runs now was given."""
    return _given.get()
