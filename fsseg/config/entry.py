"""The way in and out of `train.py` and `fsseg train`: faults of the user end in two lines and a non-zero status.

By itself Hydra shortens and prints exceptions, advises `+key=value` for a misspelt key, and shows only the first failed
job of a sweep. Here every exception comes through: a fault of the user is printed in two lines, any other with its
traceback.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_type_hints

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsseg.config import machine
from fsseg.config import schema as config
from fsseg.config.constraints import cut, shown
from fsseg.config.files import check_file
from fsseg.config.flags import arranged, check_single_run
from fsseg.config.history import RETIRED
from fsseg.config.hydra_internals import flags_parser, look_before_reading, look_before_running
from fsseg.config.line import as_written
from fsseg.errors import UserError
from fsseg.process.command import train_line
from fsseg.process.descriptors import allow_open_files, open_standard_streams

config.register()
machine.register()


def launch(main: Callable[[], Any]) -> None:
    """Call a `@hydra.main` function; print its faults in two lines each and exit with status 1.

    `HYDRA_FULL_ERROR=1` in the environment shows the traceback of user errors too.
    """
    open_standard_streams()
    verbose = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand exceptions on instead of formatting them itself
    try:
        with explained():
            allow_open_files()
            sys.argv[1:] = arranged(as_written(sys.argv[1:]))
            look_before_reading(check_file)
            given = flags_parser().parse_known_args(sys.argv[1:])[0]
            machine.install(multirun=given.multirun or "hydra.mode=MULTIRUN" in given.overrides)
            look_before_running(check_single_run)
            main()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # not about a file: nobody can say what to mend
        if verbose:
            traceback.print_exc()
        sys.exit(f"\nerror: {explain(error)}")


@contextmanager
def explained() -> Iterator[None]:
    """Raise every composition fault of the block as a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, _COMPOSITION_ERRORS) or _choked(error):
            raise explain(error) from error
        raise


_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


def _choked(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf failed by themselves, in code that none of ours was called from."""
    frames = traceback.walk_tb(error.__traceback__)
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
    last = max((i for i, package in enumerate(packages) if package in ("hydra", "omegaconf")), default=-1)
    return last >= 0 and {"fsseg", "hydra_plugins", "__main__"}.isdisjoint(packages[last:])


def explain(error: BaseException) -> UserError:
    """An error of Hydra or OmegaConf as one line what is wrong and one line what to do."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        what = f"{shown(error.filename or 'the folder')}: cannot be used ({error.strerror})"
        return UserError(what, "mend its permissions, or choose another: output_dir=, hydra.run.dir=, hydra.sweep.dir=")
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, UserError):  # OmegaConf wraps what a resolver raises
        behind = behind.__cause__ or behind.__context__
    if behind is not None:
        return behind
    told = _explained(error)
    return UserError(cut(told.what), told.fix)


def _explained(error: BaseException) -> UserError:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    if (fault := machine.fault_in_file(text)) is not None:
        return fault
    if match := re.search(r"Could not find '([^']+)/([^']+)'", text):
        group, option = match.groups()
        available = re.findall(r"^\t(?!fsseg_|machine_)(\w+)$", str(error), re.MULTILINE)
        return UserError(
            f"{group}={option}: there is no such {group}",
            f"choose {group}= one of: {', '.join(dict.fromkeys(available))}",
        )
    if match := re.search(r"Could not override '([^']+)'(?:\.\s+No match in the defaults list)", text):
        return _unknown(match.group(1))
    if match := re.search(r"Ambiguous value for argument '(.+?)'\n|Sweep parameters '(.+?)' requires --multirun", text):
        word = match.group(1) or match.group(2)
        return UserError(
            f"{word} has several values, and this is one cell",
            f"add -m for a sweep (`{train_line(f'-m {shlex.quote(word)} ...')}`), or write one value (a list as [a,b])",
        )
    if isinstance(error, OverrideParseException):
        return UserError(
            f"{shown(error.override)}: Hydra cannot read this word of the line",
            "write key=value, values without blanks (fold=0,1,2,3), odd characters in quotes: 'checkpoint=\"a b.pt\"'",
        )
    if "Config group override must be" in text:
        return UserError(
            "a configuration group (dataset, backbone, method, ...) has a value that names no file of it",
            f"leave the group out, or choose one of its files: `{train_line('--help')}` lists them",
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
    if not isinstance(error, _COMPOSITION_ERRORS):
        kind = (str(error).splitlines() or [""])[0]
        return UserError(
            f"Hydra cannot read this line or its files ({type(error).__name__}: {kind})",
            "mend the line or the file; HYDRA_FULL_ERROR=1 shows where Hydra failed",
        )
    if "not Optional" in text or "is not a ListConfig" in text:
        return UserError(
            f"{key} may not be null" if "not Optional" in text else f"{key} is a list, and was given one value",
            f"leave {key} out, or write it as `{train_line('--cfg job')}` prints it",
        )
    if re.search(
        "could not be converted|is not a valid|Invalid type|Unsupported|Cannot convert|Cannot assign|incompatible"
        "|not supported|Invalid value assigned",
        text,
    ):
        first = (getattr(cause, "msg", None) or str(cause)).splitlines()[0]
        return UserError(
            f"{key or 'configuration'}: {first}",
            f"give {key or 'it'} a value of the right type ({train_line('--cfg job')})",
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and not any(line in str(cause) for line in lines[:1]):
        lines.append(str(cause).splitlines()[0])
    return UserError(" ".join(lines[:3]), f"see `{train_line('--help')}` and https://hydra.cc for the override grammar")


def _unknown(key: str) -> UserError:
    known = sorted(set(config_keys()), key=lambda k: (k.startswith("base_training."), k))  # which few mean
    if key in known:
        return UserError(
            f"{key} does not belong to this choice of dataset, backbone and method",
            "leave it out, or change the choice",
        )
    if key.startswith("hydra.launcher."):
        return UserError(
            f"{key} is no setting of the launcher of this line",
            "choose the launcher as well: hydra/launcher=slurm, or local; without one cells run one after the other",
        )
    if key.startswith("train.lr_factors."):
        name = key.removeprefix("train.lr_factors.")
        return UserError(
            f"{key}: names of modules are new keys, and need a + before the line",
            f"write '+train.lr_factors={{{name}: 0.1}}', in quotes",
        )
    if key in RETIRED:
        return UserError(f"{key}: there is no such setting any more", "leave it out: no published recipe uses it")
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
    # The right name in the wrong group, before a name that is only alike.
    close = close or [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    fix = f"did you mean {close[0]}?" if close else f"`{train_line('--cfg job')}` prints every key there is"
    return UserError(f"{key}: there is no such configuration key", fix)


def config_keys() -> Iterator[str]:
    """Dotted names of all keys of all schemas, and of the configuration groups."""
    yield from ("method", "ablation", "experiment")
    for name, schema in get_type_hints(config.Config).items():
        yield name
        if schema is config.DataConfig:
            yield from (f"data.roots.{dataset}" for dataset in config.DatasetConfig.choices())
        kinds = config.family(schema) if isinstance(schema, type) and is_dataclass(schema) else ()
        yield from (f"{name}.{field.name}" for kind in kinds for field in fields(kind))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group(1) if match else ""


def typed(cfg: DictConfig) -> config.Config:
    """The composed configuration, seen by the type checker as its schema (attribute access is the same).

    Raises:
        UserError: a part of it is not there, has no value, or cannot be resolved.
    """
    groups = ("dataset", "backbone", "model", "protocol")  # what others are interpolated from
    for name in (field.name for field in fields(config.Config)):
        if name not in cfg and not OmegaConf.is_missing(cfg, name):
            raise UserError(f"{name} was taken out of the configuration", f"leave ~{name} out of the line")
        if name in groups and OmegaConf.is_missing(cfg, name):
            raise UserError(f"{name} has no value", f"set {name}=..., or leave ~{name} out of the line")
    with explained():  # an interpolation to a value of another type is only found where it is read
        for key in cfg:
            # What Hydra keeps of a sweep's line is for each cell to resolve.
            if key != "hydra" and not OmegaConf.is_missing(cfg, key) and OmegaConf.is_config(node := cfg[key]):
                OmegaConf.to_container(node, resolve=True)
    return cfg  # type: ignore[return-value]


def resolved(node: Any) -> dict[str, Any]:
    """A composed node, or an object of the schema, as plain mappings and lists, its interpolations resolved."""
    if is_dataclass(node):
        return {k: resolved(v) if is_dataclass(v) else copy.deepcopy(v) for k, v in vars(node).items()}
    value = OmegaConf.to_container(node, resolve=True)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def plain(cfg: config.Config) -> config.Config:
    """A composed configuration as an object of the schema, for loops: OmegaConf parses an interpolation (`${...}`)
    anew whenever it is read, which takes as long as drawing an episode ten times."""
    return cast(config.Config, OmegaConf.to_object(cfg)) if isinstance(cfg, DictConfig) else cfg
