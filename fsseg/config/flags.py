"""Flags of the command line and settings of Hydra's own, before anything starts: what fsseg cannot obey is refused.

A cell has its own directory, and relative paths are those of the folder where a line is started. So Hydra's folders and
its change of folder have no place. `fsseg.config.entry.launch` and `fsseg.sweep.preflight` call this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsseg.config.constraints import shown
from fsseg.config.hydra_internals import flags_parser
from fsseg.errors import UserError, merge_errors
from fsseg.process.command import train_line


def arranged(words: Sequence[str]) -> list[str]:
    """The words of a line, in an order that Hydra understands: it takes no overrides on both sides of a flag.

    Raises:
        UserError: a flag that there is not, or flags that say nothing together.
    """
    given, rest = flags_parser().parse_known_args(list(words))
    if unknown := [word for word in rest if word.startswith("-")]:
        raise UserError(f"{shown(unknown[0])}: there is no such flag", f"`{train_line('--hydra-help')}` lists them")
    shows = "--cfg" if given.cfg else "--info" if given.info else None
    if shows and given.multirun:
        raise UserError(
            f"{shows} shows the configuration of one cell, and -m starts a sweep",
            "leave -m and the lists of values out; `fsseg plan` takes the whole line and lists the cells of a sweep",
        )
    if shows and given.run:
        raise UserError(f"{shows} shows the configuration, and --run starts the run", "leave one of the two out")
    for flag in ("resolve", "package"):
        if getattr(given, flag) and not (given.cfg or given.help):
            raise UserError(f"--{flag} says how --cfg prints, and there is no --cfg", "add --cfg job")
    if not rest:
        return list(words)
    overrides, flags = [*given.overrides, *rest], list(words)
    for override in overrides:
        flags.remove(override)
    return [*overrides, *flags]


def hydra_faults(config: DictConfig) -> list[UserError]:
    """Settings under `hydra.` that would send a run, or files of it, to other places than its directory.

    Args:
        config: of a run or a sweep, with its `hydra` node.
    """
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)  # ${hydra.job.num} has no value yet
    where = "leave it out: output_dir=, name= and variant= say where a run lies"
    found = []
    if hydra["job"]["chdir"]:
        what = "hydra.job.chdir=true: relative paths of a run (output_dir, dataset.root, ...) would lead elsewhere"
        found.append(UserError(what, "leave it out: every run has its own directory, and stays where it was started"))
    if hydra["run"]["dir"] != ".":
        found.append(UserError(f"hydra.run.dir={shown(hydra['run']['dir'])}: nothing of a run would lie there", where))
    if hydra["sweep"]["subdir"] != ".":
        what = f"hydra.sweep.subdir={shown(hydra['sweep']['subdir'])}: nothing of a cell would lie there"
        found.append(UserError(what, where))
    if hydra["output_subdir"] is not None:
        what = f"hydra.output_subdir={shown(hydra['output_subdir'])}: each start would write over the files of the last"
        found.append(UserError(what, "leave it out: config.yaml in the run directory holds every setting"))
    return found


def check_single_run(config: DictConfig) -> None:
    """Look at a line without -m, before Hydra makes a folder.

    Raises:
        UserError: a setting of Hydra's that cannot be obeyed, or one that is for sweeps.
    """
    if found := hydra_faults(config):
        raise merge_errors(found)
    choices = config.hydra.runtime.choices
    if config.search is not None and config.search.trial is None:
        search = shown(choices.get("search"))
        raise UserError(
            f"search={search} starts many cells, and without -m this is one run",
            f"add -m: `{train_line(f'-m search={search} ...')}`",
        )
    launcher = choices["hydra/launcher"]
    if launcher not in (None, "basic"):
        raise UserError(
            f"hydra/launcher={shown(launcher)} starts the cells of a sweep, and without -m this is one run, here",
            f"add -m (`{train_line(f'-m hydra/launcher={launcher} ...')}`; a sweep may have one cell), or set "
            "hydra/launcher=basic",
        )
