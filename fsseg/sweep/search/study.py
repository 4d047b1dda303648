"""The study of a search in Optuna's storage: which settings are tried, by whom they were scored, and what is next.

Several processes on several machines work on one study. Whoever asks for a trial holds a claim meanwhile, so two never
ask at once; a trial is told by whoever sees its cells finished first. Optuna is imported here and nowhere else before
a search begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.claim import LEASE_SECONDS, process_start
from fsseg.cell.claim import held as held_claim
from fsseg.config.schema import SearchConfig
from fsseg.errors import UserError
from fsseg.process.command import train_words
from fsseg.process.words import count
from fsseg.sweep.search.space import Space, Value, without, words

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

FOLDER = "search"
"""Below the experiment's folder: the journal of its studies, and what `fsseg search` draws."""
JOURNAL = "journal.log"
LINE, FOLDS, METRIC = "line", "folds", "metric"
"""Attributes of a study."""
CELLS, CHOSEN, REPEATS, DIVERGED = "cells", "chosen", "repeats", "diverged"
"""Attributes of a trial: its run directories with their fingerprints; its settings; the failed trial it repeats; why
its training ended, if numbers were not finite."""
BEGUN = "begun"
"""Attribute of a trial: who has begun it, and when."""
_LAUNCH_SECONDS = 60.0  # until whoever has begun a trial has recorded its cells, an sbatch that hangs included
_EXTRA = {"cmaes": "cmaes", "gp": "torch"}  # samplers whose package Optuna does not bring


@dataclass(frozen=True)
class Trial:
    """One set of settings, as the storage has it.

    Attributes:
        chosen: key -> value.
        cells: run directory below the experiment's folder -> fingerprint.
        state: running, complete, pruned or fail.
        repeats: number of the failed trial whose settings it tries again.
        diverged: a training of it had numbers that are not finite, and scores nothing.
    """

    number: int
    chosen: dict[str, Value]
    cells: dict[str, str]
    state: str
    value: float | None = None
    repeats: int | None = None
    diverged: bool = False

    @property
    def is_open(self) -> bool:
        return self.state == "running"

    @property
    def word(self) -> str:
        """How it stands."""
        return "diverged" if self.diverged else _WORDS[self.state]


_WORDS = {"complete": "scored", "pruned": "ended early", "fail": "failed", "running": "open"}


def counted(trials: Sequence[Trial]) -> str:
    """`20 trials: 18 scored, 2 failed`."""
    words = [trial.word for trial in trials]
    each = [f"{words.count(word)} {word}" for word in ("scored", "diverged", "ended early", "failed", "open")]
    return f"{count(len(trials), 'trial')}: {', '.join(part for part in each if not part.startswith('0 '))}"


class Study:
    """The trials of one search.

    Args:
        cfg, space: of the search.
        storage: Optuna's.
        name: of the study in it.
        folder: that holds the claim of whoever asks.
    """

    def __init__(self, cfg: SearchConfig, space: Space, storage: Any, name: str, folder: Path) -> None:
        self.cfg, self.space, self.name, self.folder = cfg, space, name, folder
        optuna = _optuna()
        self._study: OptunaStudy = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )

    @classmethod
    def all_in(cls, storage: Any, folder: Path) -> list[Study]:
        """Every study of a storage, to be looked at."""
        optuna = _optuna()
        found = []
        for name in sorted(optuna.study.get_all_study_names(storage)):
            study = optuna.load_study(study_name=name, storage=storage)
            if METRIC in study.user_attrs:  # which is noted last: one that is just being made is not there yet
                cfg = SearchConfig(metric=study.user_attrs[METRIC])
                found.append(cls(cfg, Space(()), storage, name, folder))
        return found

    def note(self, line: Sequence[str], folds: int) -> None:
        """Note what the winner is run by: the settings of the line that are not searched, and the number of folds."""
        for key, value in ((LINE, list(line)), (FOLDS, folds), (METRIC, self.cfg.metric)):
            if self._study.user_attrs.get(key) != value:
                self._study.set_user_attr(key, value)

    def winner(self, best: Trial) -> str:
        """The line that trains settings on all images and scores them on the novel classes of all folds."""
        noted = self._study.user_attrs
        folds = ",".join(map(str, range(noted[FOLDS])))
        settings = [*without(noted[LINE], tuple(best.chosen)), *words(best.chosen)]
        return shlex.join([*train_words(), "-m", *settings, f"fold={folds}"])

    @property
    def as_optuna(self) -> OptunaStudy:
        """The study as Optuna has it, for its pictures."""
        return self._study

    def trials(self) -> list[Trial]:
        """All of them, in their order; one that is being asked for just now is left out."""
        return [_trial(t) for t in self._study.get_trials(deepcopy=False) if CHOSEN in t.user_attrs]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Nobody else asks meanwhile, on any machine that shares the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with held_claim(self.folder / f"{self.name}.claim", LEASE_SECONDS):
            yield

    def ask(
        self, first: Mapping[str, Value] | None = None, repeats: Trial | None = None
    ) -> tuple[int, dict[str, Value]]:
        """A new trial; within `asking`. `begin` completes it, otherwise the next one who asks takes it up.

        Args:
            first: settings to try, as far as the space has them, in place of what the sampler would choose.
            repeats: a failed trial that is tried again.
        """
        optuna = _optuna()
        left = [t for t in self._study.get_trials(deepcopy=False)
                if t.state == optuna.trial.TrialState.RUNNING and CHOSEN not in t.user_attrs]  # fmt: skip
        number = left[0].number if left else len(self._study.get_trials(deepcopy=False))
        # Of each trial its own, so that it does not matter which process asks, or how often it was started.
        self._study.sampler = _sampler(self.cfg, self.space, number)
        wanted = repeats.chosen if repeats is not None else first
        if left:
            trial = optuna.trial.Trial(self._study, left[0]._trial_id)
        else:
            # What a process that was killed here has put in line is there already.
            waiting = any(t.state == optuna.trial.TrialState.WAITING for t in self._study.get_trials(deepcopy=False))
            if wanted is not None and not waiting:
                self._study.enqueue_trial(dict(wanted))
            trial = self._study.ask()
        if repeats is not None and not left:
            trial.set_user_attr(REPEATS, repeats.number)
        return trial.number, self._suggested(trial)

    def _suggested(self, trial: OptunaTrial) -> dict[str, Value]:
        chosen: dict[str, Value] = {}
        for p in self.space.parameters:
            if not p.applies(chosen):
                continue
            if p.values:
                chosen[p.key] = trial.suggest_categorical(p.key, list(p.values))
            elif p.whole:
                chosen[p.key] = trial.suggest_int(p.key, int(p.low), int(p.high), step=int(p.step or 1), log=p.log)
            else:
                chosen[p.key] = p.rounded(trial.suggest_float(p.key, p.low, p.high, step=p.step, log=p.log))
        return chosen

    def begin(self, number: int, chosen: Mapping[str, Value], cells: Mapping[str, str]) -> None:
        """Note the settings and cells of a trial that was asked for: from now on others may work on it."""
        trial = self._trial(number)
        trial.set_user_attr(CELLS, dict(cells))
        trial.set_user_attr(BEGUN, {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()})
        trial.set_user_attr(CHOSEN, dict(chosen))

    def is_being_launched(self, trial: Trial) -> bool:
        """Whether another process may be about to launch a trial that it has just begun."""
        begun = self._study.get_trials(deepcopy=False)[trial.number].user_attrs.get(BEGUN)
        if begun is None or time.time() - begun["time"] > _LAUNCH_SECONDS:
            return False
        if begun["host"] != socket.gethostname():
            return True
        return begun["pid"] != os.getpid() and process_start(begun["pid"]) is not None

    def tell(self, trial: Trial, value: float | None, state: str = "complete", diverged: str = "") -> bool:
        """Tell how a trial ended; False if somebody else has told it.

        Args:
            diverged: why a training of it has no score.
        """
        optuna = _optuna()
        states = optuna.trial.TrialState
        try:
            if diverged:
                self._trial(trial.number).set_user_attr(DIVERGED, diverged)
            if state == "complete":
                self._study.tell(trial.number, value)
            else:
                self._study.tell(trial.number, state={"pruned": states.PRUNED, "fail": states.FAIL}[state])
        except (ValueError, RuntimeError, optuna.exceptions.UpdateFinishedTrialError):
            now = self._study.get_trials(deepcopy=False)[trial.number]
            if now.state.is_finished():
                return False
            raise
        return True

    @property
    def best(self) -> Trial | None:
        """The trial with the highest score, of equal ones the first."""
        done = [trial for trial in self.trials() if trial.state == "complete" and not trial.diverged]
        return max(done, key=lambda trial: trial.value or 0.0, default=None)

    def _trial(self, number: int) -> OptunaTrial:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return _optuna().trial.Trial(self._study, frozen._trial_id)


def open_storage(cfg: SearchConfig, folder: Path) -> Any:
    """Optuna's storage of a search.

    Args:
        folder: of the journal.

    Raises:
        UserError: Optuna or what a sampler needs is not installed; the storage cannot be used.
    """
    optuna = _optuna()
    if (package := _EXTRA.get(cfg.sampler)) is not None and find_spec(package) is None:
        what = f"search.sampler={cfg.sampler} needs the package {package}, which is not installed"
        raise UserError(what, f"pip install {package}, or choose another: tpe, random, grid")
    try:
        if cfg.storage is not None and "://" in cfg.storage:
            return optuna.storages.get_storage(cfg.storage)
        file = folder / JOURNAL if cfg.storage is None else Path(cfg.storage).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(file))
        return optuna.storages.JournalStorage(backend)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used ({error.strerror})", "set output_dir= elsewhere") from error
    except Exception as error:  # whatever a driver of a data base raises
        what = f"search.storage={cfg.storage}: {type(error).__name__}: {str(error).splitlines()[0]}"
        raise UserError(what, "give a URL that Optuna knows, or leave it out: a journal in the folder") from error


def report_score(cfg: SearchConfig, epoch: int, score: float) -> bool:
    """Report what the trial that `cfg` names scored after an epoch; returns whether it is to end."""
    optuna = _optuna()
    assert cfg.storage is not None
    assert cfg.trial is not None
    storage = open_storage(cfg, Path())
    study = optuna.load_study(study_name=cfg.study, storage=storage, pruner=_pruner(cfg))
    trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[cfg.trial]._trial_id)
    trial.report(score, epoch)
    return bool(trial.should_prune())


def study_name(choice: str, cfg: SearchConfig, cells: Sequence[Mapping[str, Any]]) -> str:
    """A name by which the same search is found again, and another one is not taken for it.

    Args:
        choice: of the group, `search=<choice>`.
        cells: identities of the cells of the line as it stands; what is searched is no part of them.
    """
    space = {key: _plain(value) for key, value in cfg.space.items()}
    always = {key for key, parameter in cfg.space.items() if not parameter.when}  # others are the line's, too
    fixed = [{k: v for k, v in cell.items() if k not in always} for cell in cells]
    text = json.dumps([space, cfg.metric, cfg.every_epochs, fixed], sort_keys=True, default=str)
    return f"{choice}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else vars(value)


def _trial(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    return Trial(
        frozen.number, attributes[CHOSEN], attributes.get(CELLS, {}), frozen.state.name.lower(),
        frozen.value if frozen.state.name == "COMPLETE" else None, attributes.get(REPEATS), DIVERGED in attributes,
    )  # fmt: skip


def _sampler(cfg: SearchConfig, space: Space, number: int) -> Any:
    """The sampler of one trial."""
    samplers = _optuna().samplers
    seed = int.from_bytes(hashlib.sha256(f"{cfg.seed} {number}".encode()).digest()[:4], "big") >> 1
    match cfg.sampler:
        case "random" | "grid":  # whose choices `Search` names
            return samplers.RandomSampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=cfg.startup_trials)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=cfg.startup_trials)
        case _:
            return samplers.TPESampler(
                seed=seed, n_startup_trials=cfg.startup_trials, multivariate=True, constant_liar=True,
                # of a space in which some keys are searched beside others alone
                group=any(p.when for p in space.parameters),
            )  # fmt: skip


def _pruner(cfg: SearchConfig) -> Any:
    pruners = _optuna().pruners
    least = cfg.prune_after_epochs
    if cfg.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(least, 1))
    return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=least)


def _optuna() -> Any:
    """
    Raises:
        UserError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise UserError("search= needs Optuna, which is not installed", "pip install 'fsseg[search]'")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
