"""The way in and out of `train.py`: configuration faults and user errors end in two lines and a non-zero status.

By itself Hydra shortens and prints exceptions, advises `+key=value` for a misspelt key, and shows only the first failed
job of a sweep. Here every exception comes through: a fault of the user is printed in two lines, any other with its
traceback.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsseg.config import schema as config
from fsseg.errors import UserError

config.register()


def launch(main: Callable[[], Any]) -> None:
    """Call a `@hydra.main` function; print its faults in two lines each and exit with status 1.

    `HYDRA_FULL_ERROR=1` in the environment shows the traceback of user errors too.
    """
    verbose = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand exceptions on instead of formatting them itself
    try:
        with explained():
            main()
    except UserError as error:
        if verbose:
            traceback.print_exc()
        sys.exit(f"\nerror: {error}")


@contextmanager
def explained() -> Iterator[None]:
    """Raise every composition fault of the block as a `UserError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise explain(error) from error


def explain(error: BaseException) -> UserError:
    """A composition error of Hydra or OmegaConf as one line what is wrong and one line what to do."""
    if isinstance(error, UserError):
        return error
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    if match := re.search(r"Could not find '([^']+)/([^']+)'", text):
        group, option = match.groups()
        available = re.findall(r"^\t(\w+)$", str(error), re.MULTILINE)
        return UserError(
            f"{group}={option}: there is no such {group}",
            f"choose {group}= one of: {', '.join(dict.fromkeys(available))}",
        )
    if match := re.search(r"Could not override '([^']+)'(?:\.\s+No match in the defaults list)", text):
        return _unknown(match.group(1))
    if "Config group override must be" in text:
        return UserError(
            "a configuration group (dataset, backbone, method, ...) has a value that names no file of it",
            "leave the group out, or choose one of its files: `python train.py --help` lists them",
        )
    key = getattr(cause, "full_key", None) or _first(r"full_key: (\S+)", text)
    if key and (match := re.search(r"In '([^']+)/([^']+)'", text)) and re.search(r"Key '[^']*' not in", text):
        group, option = match.groups()
        return UserError(
            f"{group}={option} sets {key}, which does not belong to this choice of dataset, backbone and method",
            f"leave {group}={option} out, or change the choice",
        )
    if "is not in struct" in text or re.search(r"Key '[^']*' not in", text):
        return _unknown(key or _first(r"Could not override '([^']+)'", text) or _first(r"Key '([^']+)'", text))
    if re.search(
        "could not be converted|is not a valid|Invalid type|Unsupported|Cannot convert|incompatible|not supported"
        "|not Optional|Invalid value assigned",
        text,
    ):
        first = (getattr(cause, "msg", None) or str(cause)).splitlines()[0]
        return UserError(
            f"{key or 'configuration'}: {first}",
            f"give {key or 'it'} a value of the right type (python train.py --cfg job)",
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and not any(line in str(cause) for line in lines[:1]):
        lines.append(str(cause).splitlines()[0])
    return UserError(" ".join(lines[:3]), "see `python train.py --help` and https://hydra.cc for the override grammar")


def _unknown(key: str) -> UserError:
    known = sorted(set(config_keys()))
    if key in known:
        return UserError(
            f"{key} does not belong to this choice of dataset, backbone and method",
            "leave it out, or change the choice",
        )
    if key in config.RETIRED:
        return UserError(f"{key}: there is no such setting any more", "leave it out: no published recipe uses it")
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong group
        close = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    fix = f"did you mean {close[0]}?" if close else "`python train.py --cfg job` prints every key there is"
    return UserError(f"{key}: there is no such configuration key", fix)


def config_keys() -> Iterator[str]:
    """Dotted names of all keys of all schemas, and of the configuration groups."""
    yield from ("method", "ablation", "experiment")
    for name, schema in get_type_hints(config.Config).items():
        yield name
        kinds = config.family(schema) if isinstance(schema, type) and is_dataclass(schema) else ()
        yield from (f"{name}.{field.name}" for kind in kinds for field in fields(kind))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""


def typed(cfg: DictConfig) -> config.Config:
    """The composed configuration, seen by the type checker as its schema (attribute access is the same)."""
    return cfg  # type: ignore[return-value]


def resolved(node: Any) -> dict[str, Any]:
    """A composed node, or an object of the schema, as plain mappings and lists, its interpolations resolved."""
    if is_dataclass(node):
        return {k: resolved(v) if is_dataclass(v) else copy.deepcopy(v) for k, v in vars(node).items()}
    value = OmegaConf.to_container(node, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}
