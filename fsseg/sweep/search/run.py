"""`python train.py -m search=FILE ...`: a sweep whose next cells depend on the results of those before.

A trial is one set of settings, on every fold and training seed of the line. Its cells are those of any sweep: found
again by their fingerprints, held by claims, resumed from checkpoints. So a search that was killed tells the trials that
are finished meanwhile and goes on with the others, and the same line on several machines shares the trials out. Trials
are scored on training images of base classes that are held back; the novel classes are not looked at.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from fsseg.cell.models import Result, State
from fsseg.cell.status import status_of
from fsseg.cell.sweeps import sweeps_of
from fsseg.config.checks import field_faults
from fsseg.config.compose import Composed, Composer
from fsseg.config.schema import SearchConfig, trains
from fsseg.errors import UserError, merge_errors
from fsseg.sweep.elsewhere import Elsewhere
from fsseg.sweep.grid import examine, split_overrides
from fsseg.sweep.launchers.base import SweepInterrupted
from fsseg.sweep.preflight import runs_here
from fsseg.sweep.search.space import Space, Value, sets, without, words
from fsseg.sweep.search.study import FOLDER, JOURNAL, Study, Trial, counted, open_storage, study_name

if TYPE_CHECKING:
    from fsseg.sweep.sweeper import FssegSweeper, Job

log = logging.getLogger("fsseg.sweep")

METRICS = {"base/miou": "miou", "base/fb_iou": "fb_iou"}
"""What a search may maximise, and its name in `Training.base_validation`."""
_PER_TRIAL = ("fold", "seed")
_POLL_SECONDS = 2.0  # between looks at the trials of other machines
_LOST = (State.FAILED, State.FAULTY)
_HELD = (State.RUNNING, State.PENDING)
_OURS = ("eval.enabled", "eval.every_epochs")
_HELD_OUT = ("eval.base_share", "eval.base_episodes")


class Search:
    """One start of a search line.

    Args:
        sweeper: that launches the cells.
        composer: whose master configuration is that of the line.
    """

    def __init__(self, sweeper: FssegSweeper, composer: Composer) -> None:
        assert sweeper.config is not None
        self.sweeper, self.composer = sweeper, composer
        self.cfg: SearchConfig = OmegaConf.to_object(sweeper.config.search)  # type: ignore[assignment]
        if found := [fault for _, fault in field_faults(sweeper.config.search, "search.")]:
            raise merge_errors(found)
        if sweeper._leaves:
            what = "search= with hydra.launcher.wait=false: what is tried next depends on what was scored"
            raise UserError(what, "leave hydra.launcher.wait=false out; the same line goes on after an interruption")
        check_metric(self.cfg.metric)
        self._jobs: dict[int, list[Job]] = {}
        self._mine: set[int] = set()  # trials whose cells this process launches
        self._launched: set[int] = set()
        self.space = Space.of(self.cfg)
        if self.cfg.sampler == "grid":
            self.space.grid()
        self.line = self._cells_of_the_line()
        if self.cfg.pruner != "none" and len(self.line) > 1:
            raise UserError(
                f"search.pruner={self.cfg.pruner} with {len(self.line)} cells a trial: the easiest fold or seed would "
                "decide",
                "give one fold and one seed, or search.pruner=none",
            )
        self.default = default = self._check()
        if self._composed(default[0]).cfg.check:
            return  # nothing is written
        folder = default[0].place.experiment / FOLDER
        choice = str(sweeper.config.hydra.runtime.choices.get("search"))
        name = study_name(choice, self.cfg, [job.place.identity for job in default])
        self.study = Study(self.cfg, self.space, open_storage(self.cfg, folder), name, folder)
        self.first = self._settings_of(default[0])
        seeds = dict.fromkeys(o for own in self.line for o in own if sets(o, ("seed",)))
        settings = without(self.line[0], (*_PER_TRIAL, *_HELD_OUT))
        if seeds:
            settings.append(f"seed={','.join(o.partition('=')[2] for o in seeds)}")
        self.study.note(settings, self._composed(default[0]).cfg.dataset.num_folds)

    def run(self) -> Sequence[JobReturn]:
        """Try until all trials are told, by this process or others.

        Raises:
            UserError: no trial has a score, or some are left open.
            SystemExit: INT or TERM ended it; 128 + signal.
        """
        sweeper, began = self.sweeper, time.monotonic()
        sweeper.returns = []
        if self._composed(self.default[0]).cfg.check:
            sweeper._check(self.default)
            return []
        self._look_around()
        self._sync()
        self._announce()
        interrupted, winner = None, []
        with ExitStack() as sweeper.claims:
            try:
                self._try_all()
                winner = self._run_winner()
            except KeyboardInterrupt as error:
                interrupted = error if isinstance(error, SweepInterrupted) else SweepInterrupted(signal.SIGINT)
            except UserError as error:
                sweeper._notify(self._begun(), time.monotonic() - began, error.what)
                raise
        sweeper._notify(
            [*self._begun(), *winner],
            time.monotonic() - began,
            f"ended by {interrupted}" if interrupted is not None else "",
        )
        if interrupted is not None:
            log.warning("ended by %s%s", interrupted, f"; {interrupted.advice}" if interrupted.advice else "")
            raise SystemExit(128 + interrupted.signum)
        return self._end(winner)

    def _begun(self) -> list[Job]:
        """The cells that this start has launched."""
        return [job for number in self._launched for job in self._jobs[number]]

    def _try_all(self) -> None:
        """Launch trials until all are told; wait for those of other processes."""
        while True:
            if todo := self._next(1):
                self.sweeper._launch(todo, self._next)
                self._sync()
                # What another process turned out to hold is its own again; should that one die, it is taken over.
                self._mine -= {n for n in self._mine if any(job.state in _HELD for job in self._jobs[n])}
            elif self._waits():
                time.sleep(_POLL_SECONDS)
            else:
                break

    # ------------------------------------------------------------------------------------------------------- the line

    def _cells_of_the_line(self) -> list[list[str]]:
        """The overrides of each cell of a trial.

        Raises:
            UserError: the line sweeps something else than folds and training seeds.
        """
        found = []
        for overrides, _ in self.composer.grid_of_master():
            found.append(without(overrides, ("search", "search.", *_OURS)))
        settings = [split_overrides(overrides) for overrides in found]
        swept = {k for k in settings[0] if len({s.get(k) for s in settings}) > 1} - set(_PER_TRIAL)
        if swept:
            key = sorted(swept)[0]
            raise UserError(
                f"search= with {key}={','.join(dict.fromkeys(s[key] for s in settings))}: every trial has one {key}",
                f"start a search for each {key}; fold=0,1 and seed=0,1 may have several values",
            )
        return found

    def _check(self) -> list[Job]:
        """That the line and both ends of every range can run; returns the cells of the line as it stands.

        Raises:
            UserError: with all faults.
        """
        default = self._made({}, data=False)
        if (made := default[0].composed) is not None and not trains(made.cfg):
            what = f"search= with method={made.cfg.model.name}: it trains nothing that base classes could score"
            raise UserError(what, "search with a method that is trained")
        found = [fault for job in default[:1] for fault in job.faults]
        if not found:
            for corner in self.space.corners():
                found += [f for job in self._made(corner, data=False)[:1] for f in job.faults]
        if found:
            raise merge_errors(list({str(fault): fault for fault in found}.values()))
        if lacks := [fault for job in self._made({}, data=True) for fault in job.faults]:
            raise merge_errors(lacks[:1])
        return default

    def _made(self, chosen: Mapping[str, Value], data: bool, trial: bool = True) -> list[Job]:
        """The cells of some settings; an empty choice leaves the line as it is.

        Args:
            data: look for what the cells need beside their configuration.
            trial: scored on held-out images of base classes; otherwise as `train.py` would run them.
        """
        from fsseg.sweep.sweeper import Job

        held_out = ["eval.enabled=false", f"eval.every_epochs={self.cfg.every_epochs}"]
        # The winner is trained on all images.
        of_trial, of_line = (held_out, tuple(chosen)) if trial else ([], (*chosen, *_HELD_OUT))
        lines = [self.composer.swept([*without(own, of_line), *words(chosen), *of_trial]) for own in self.line]
        assert self.sweeper.config is not None
        points = examine(self.composer.each(lines), data=data, download=runs_here(self.sweeper.config))
        return [Job(**vars(point)) for point in points]

    def _composed(self, job: Job) -> Composed:
        assert job.composed is not None
        return job.composed

    def _settings_of(self, job: Job) -> dict[str, Value]:
        """What the line itself has for the keys of the space, as far as the space has that too."""
        found: dict[str, Value] = {}
        for p in self.space.parameters:
            key = "model" if p.key == "method" else p.key
            value = OmegaConf.select(OmegaConf.create(self._composed(job).resolved), key)
            if isinstance(value, DictConfig):
                value = value.get("name")
            if p.applies(found) and (value in p.values if p.values else _within(value, p.low, p.high)):
                found[p.key] = value
        return found

    # ------------------------------------------------------------------------------------------------------ the trials

    def _look_around(self) -> None:
        experiment = self.study.folder.parent
        self.sweeper.elsewhere = Elsewhere(sweeps_of([experiment]))

    def _jobs_of(self, trial: Trial) -> list[Job]:
        if trial.number not in self._jobs:
            self._jobs[trial.number] = self._of_trial(self._made(trial.chosen, data=False), trial.number)
        return self._jobs[trial.number]

    def _of_trial(self, jobs: list[Job], number: int) -> list[Job]:
        """Let cells know that they are a trial's, so that they can compare their scores with those of others."""
        storage = self.cfg.storage or os.path.abspath(self.study.folder / JOURNAL)
        told = asdict(replace(self.cfg, storage=storage, study=self.study.name, trial=number))
        for job in jobs:
            job.added = {"search": told}
        return jobs

    def _sync(self) -> None:
        """Tell the trials whose cells have ended."""
        for trial in self.study.trials():
            if not trial.is_open:
                continue
            jobs = self._jobs_of(trial)
            if faults := [fault for job in jobs for fault in job.faults]:
                if self.study.tell(trial, None, "fail"):
                    log.warning("trial %d cannot start: %s  %s", trial.number, faults[0].what, _shown(trial.chosen))
                continue
            endings = [self._ending(job) for job in jobs]
            if all(ending is not None for ending in endings):
                score = sum(score for score, _ in filter(None, endings)) / len(endings)
                why = next((why for _, why in filter(None, endings) if why), "")
                if self.study.tell(trial, score, diverged=why):
                    log.info("trial %d: %s %.2f%s  %s", trial.number, self.cfg.metric, score,
                             f" ({why})" if why else "", _shown(trial.chosen))  # fmt: skip
                continue
            if _is_pruned(jobs):
                if self.study.tell(trial, None, "pruned"):
                    log.info("trial %d ended early  %s", trial.number, _shown(trial.chosen))
                continue
            lost = [job for job in jobs if trial.number in self._mine and job.state in _LOST]
            if lost and self.study.tell(trial, None, "fail"):
                log.warning("trial %d failed: %s  %s", trial.number, lost[0].note, _shown(trial.chosen))

    def _ending(self, job: Job) -> tuple[float, str] | None:
        """Score of a cell, and why it has none; None if it has not ended.

        A training that diverges scores 0: that is a fact about its settings, which a sampler has to know. Told as
        failed, they would be tried again and again, for samplers leave failures out.
        """
        if (result := job.result()) is not None:
            return self._score(result), ""
        status = status_of(job.place)
        if status.state == State.FAILED and status.diverged:
            return 0.0, status.reason or "numbers are not finite"
        return None

    def _score(self, result: Result) -> float:
        base = result.training.base_validation if result.training is not None else None
        if base is None:
            raise UserError(f"{result.cell}: its result has no score of base classes", "set redo=true for it")
        return float(getattr(base, METRICS[self.cfg.metric]))

    def _next(self, free: int | None) -> list[Job]:
        """Cells to launch: of trials that nobody works on any more, then of new ones."""
        self._look_around()
        self._sync()
        busy = {trial.number for trial in self.study.trials() if trial.is_open} & self._mine
        room = self.cfg.parallel - len(busy) if free is None else free
        found: list[Job] = []
        while len(found) < room if free is not None else room > 0:
            jobs = self._left_open() or self._asked()
            if not jobs:
                break
            found += jobs
            room -= 1 if free is None else 0
        return found

    def _left_open(self) -> list[Job]:
        """The cells to do of a trial that was begun, by this start or an earlier one, and that nobody has now."""
        for trial in self.study.trials():
            if not trial.is_open or trial.number in self._mine:
                continue
            if self.study.is_being_launched(trial):
                continue  # until its cells are in a record or have a claim, nothing else says that somebody has it
            left = [job for job in self._jobs_of(trial) if self._ending(job) is None]
            free = [job for job in left if self._is_free(job, of_ours=False)]
            if free:
                self._take(trial.number)
                return free
        return []

    def _take(self, number: int) -> None:
        self._mine.add(number)
        self._launched.add(number)

    def _has_results(self, trial: Trial) -> bool:
        return all(not job.faults and job.result() is not None for job in self._jobs_of(trial))

    def _is_free(self, job: Job, of_ours: bool = True) -> bool:
        """Whether nobody has a cell, or is going to.

        Args:
            of_ours: whether what this process has still to do counts too. A record of a launch that is over names its
                cells on; one that another process had by then, and has lost since, waits for nobody.
        """
        elsewhere = self.sweeper.elsewhere
        if elsewhere.owner(job.place) is not None:
            return False
        if (sweep := elsewhere.awaited(job.place.directory, 0.0)) is None:
            return True
        return not of_ours and (sweep.record.host, sweep.record.pid) == (socket.gethostname(), os.getpid())

    def _asked(self) -> list[Job]:
        """The cells of a new trial; none when there are enough."""
        while self._lacks(self.study.trials()):  # no claim for each look of a process that only waits
            with self.study.asking():
                trials = self.study.trials()
                if not self._lacks(trials):
                    break
                again = self._again(trials)
                number, chosen = self.study.ask(self._wanted(trials), again[0] if again else None)
                jobs = self._made(chosen, data=False)
                faulty = [fault for job in jobs for fault in job.faults]
                experiment = self.study.folder.parent
                cells = {job.place.directory.relative_to(experiment).as_posix(): job.place.fingerprint
                         for job in jobs if not job.faults}  # fmt: skip
                self.study.begin(number, chosen, cells)
            self._jobs[number] = self._of_trial(jobs, number)
            self._take(number)
            log.info("trial %d: %s", number, _shown(chosen))
            if not faulty and not _is_pruned(jobs):
                left = [job for job in jobs if job.state == State.TODO and self._ending(job) is None]
                if todo := [job for job in left if self._is_free(job)]:
                    return todo
            self._sync()  # settings that were tried before have their score; those that cannot start have none
        return []

    def _lacks(self, trials: Sequence[Trial]) -> bool:
        """Whether a new trial is due."""
        repeated = {trial.repeats for trial in trials} - {None}
        return len(trials) - len(repeated) < self._most() or bool(self._again(trials))

    def _again(self, trials: Sequence[Trial]) -> list[Trial]:
        """Failed trials whose cells have had a result since (`fsseg retry`): told once, they come as new ones."""
        repeated = {trial.repeats for trial in trials}
        return [t for t in trials if t.state == "fail" and t.number not in repeated and self._has_results(t)]

    def _wanted(self, trials: Sequence[Trial]) -> Mapping[str, Value] | None:
        """Settings that are to be tried next, whatever the sampler would choose: those of the line, or the next of a
        grid."""
        if self.cfg.sampler != "grid":
            return self.first if not trials else None
        tried = [trial.chosen for trial in trials]
        if not trials and self.first in self.space.grid():
            return self.first
        return next((choice for choice in self.space.grid() if choice not in tried), None)

    def _most(self) -> int:
        if self.cfg.sampler != "grid":
            return self.cfg.trials
        return sum(1 for _ in islice(self.space.grid(), self.cfg.trials))

    def _waits(self) -> bool:
        """Whether trials are not told yet that this start can do something for, now or later."""
        self._look_around()
        self._sync()
        for trial in self.study.trials():
            if trial.is_open and trial.number not in self._mine:
                return True  # others have it; or it was let go a moment ago, and the next look takes it
            left = [job for job in self._jobs_of(trial) if job.result() is None] if trial.is_open else []
            # Of its own, whose job is gone without a result, the next start makes another try.
            if any(self.sweeper.elsewhere.owner(job.place) is not None for job in left):
                return True
        return False

    # --------------------------------------------------------------------------------------------------------- the end

    def _announce(self) -> None:
        trials = self.study.trials()
        told = sum(not trial.is_open for trial in trials)
        log.info("search %s: %d of %d trials told, %d begun; %s of %s, the novel classes are not looked at",
                 self.study.name, told, self._most(), len(trials) - told, self.cfg.sampler,
                 ", ".join(p.key for p in self.space.parameters))  # fmt: skip

    def _end(self, winner: Sequence[Job]) -> Sequence[JobReturn]:
        from fsseg.sweep.sweeper import FINE, text

        trials = self.study.trials()
        left = [trial for trial in trials if trial.is_open]
        best = self.study.best
        if best is not None:
            print(self._summary(trials, best), flush=True)
        if left:
            raise UserError(
                f"{len(left)} of {len(trials)} trials without a score yet: {_shown(left[0].chosen)}",
                "mend the cause (`fsseg status` tells it) and run the same line again",
            )
        if best is None:
            raise UserError("no trial has a score", "look at the reasons above, mend them and run the same line again")
        if winner:
            print(text(winner), flush=True)
        if any(job.state not in FINE for job in winner):
            raise UserError("the winner has no score", "mend the cause (listed above) and run the same line again")
        return self.sweeper.returns

    def _run_winner(self) -> list[Job]:
        """With `search.final`, and no trial open: train the best settings on all images, score the novel classes."""
        best = self.study.best
        if not self.cfg.final or best is None or any(trial.is_open for trial in self.study.trials()):
            return []
        jobs = self._made(best.chosen, data=True, trial=False)
        self._look_around()
        for _ in range(2):  # the second time what another process had, and has lost since
            if todo := [job for job in jobs if job.state == State.TODO and self._is_free(job, of_ours=False)]:
                self.sweeper._launch(todo)
        for job in jobs:
            if job.state == State.TODO:
                job.settle(None, self.sweeper.elsewhere)
        return jobs

    def _summary(self, trials: Sequence[Trial], best: Trial) -> str:
        lines = [f"\n{counted(trials)}"]
        lines.append(f"best: trial {best.number}, {self.cfg.metric} {best.value:.2f}  {_shown(best.chosen)}")
        own = next(
            (t for t in trials if t.number == 0 and t.value is not None and self.first.items() <= t.chosen.items()),
            None,
        )
        if own is not None and own.number != best.number:
            lines.append(f"the line's own settings: {own.value:.2f}  {_shown(own.chosen)}")
        lines.append(f"the novel classes with it: {self.study.winner(best)}")
        lines.append(f"more: {shlex.join(['fsseg', 'search', str(self.study.folder.parent)])}")
        return "\n".join(lines)


def check_metric(metric: str) -> None:
    """
    Raises:
        UserError: it is none, or of the novel classes.
    """
    if metric in METRICS:
        return
    if "novel" in metric or metric in ("miou", "fb_iou", "metrics.miou", "mIoU"):
        raise UserError(
            f"search.metric={metric}: settings that are chosen by the score of the novel classes have seen them, and "
            "what they score is no result on new classes any more",
            f"search by {' or '.join(METRICS)}; search.final=true scores the winner on the novel classes, once",
        )
    raise UserError(f"search.metric={metric} is not a choice", f"set it to one of: {', '.join(METRICS)}")


def _is_pruned(jobs: Sequence[Job]) -> bool:
    return any(status_of(job.place).state == State.PRUNED for job in jobs)


def _within(value: object, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


def _shown(chosen: Mapping[str, Value]) -> str:
    return " ".join(words(chosen))
