"""Two copies of a cell: which is the later state of the same run, and what differs where they are two runs.

`fsseg.sweep.copies` asks `compare` before it puts a copy in the place of another, for `fsseg sync --pull` and `fsseg
merge`. A run is known by its id; runs of earlier versions have none, and are known by their starts
(`attempts/<n>.json`).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from fsseg.cell.models import Identity, NotJson, Result, Unreadable
from fsseg.cell.record import RunDirectory, settings_that_differ
from fsseg.errors import UserError
from fsseg.sweep.held import own_result, start_of

MOVE_AWAY = "move it away, and pull again; or leave it, it goes on without the store"
AGAIN = "run the same command again when the copy there is complete (`fsseg sync` where it ran completes it)"
_LONGEST_VALUE = 60  # characters of a setting


class Order(str, Enum):
    """What another copy of a cell is, compared with the one here; the value says why the one here stays."""

    NEW = "nothing is here"
    LATER = "the other is the later state"
    SAME = "both are in the same state"
    DONE_HERE = "it is done here"
    WENT_ON = "it went on here"

    @property
    def stays(self) -> bool:
        """Whether what is here is the later state."""
        return self in (Order.DONE_HERE, Order.WENT_ON)


class AnotherRun(UserError):
    """The two are no states of one run: neither may take the place of the other."""


def compare(here: RunDirectory, there: RunDirectory) -> Order:
    """How another copy of a cell compares with what is here.

    Raises:
        AnotherRun: they are of two runs, or two results, or the run went on in both places.
        UserError: one of them cannot be read.
    """
    ours, theirs = identity_of(here), identity_of(there)
    mine, fault = own_result(here)
    if fault:
        raise UserError(f"here {fault}", MOVE_AWAY)
    their_result, _ = own_result(there)
    (number, last), (their_number, _) = here.last_attempt(), there.last_attempt()
    if mine is None and ours is None and not number and not here.checkpoint.exists():
        return Order.NEW
    known = bool(start_of(there)) and start_of(there) == start_of(here, their_number)  # their newest start is here
    later = last is not None and start_of(here) == start_of(there, number)  # our newest start is there
    ids = [run for run in (_run_of(here, ours), _run_of(there, theirs)) if run is not None]
    if len(set(ids)) > 1 or (len(ids) < 2 and number and not (known or later or mine == their_result is not None)):
        raise AnotherRun("another run of this cell lies here", MOVE_AWAY)
    if mine is not None:
        if their_result is None:
            return Order.DONE_HERE
        if mine != their_result:
            raise AnotherRun("another result of this cell lies here", MOVE_AWAY)
        return Order.SAME
    if their_result is not None:
        return Order.LATER
    if known or not (number or their_number):
        steps, their_steps = _step(here), _step(there)
        if number > their_number or steps > their_steps:
            return Order.WENT_ON
        return Order.SAME if steps == their_steps else Order.LATER
    if later or not number:
        return Order.LATER
    raise AnotherRun("the run went on here and elsewhere, each for itself", MOVE_AWAY)


def identity_of(run: RunDirectory) -> Identity | None:
    """None where there is none, or it was cut short.

    Raises:
        UserError: it cannot be understood.
    """
    try:
        return run.identity_record()
    except NotJson:
        return None
    except Unreadable as error:
        raise UserError(f"{run.identity_file.name} {error}", AGAIN) from None


def _run_of(run: RunDirectory, identity: Identity | None) -> str | None:
    """The id of the run in a directory; None if nothing tells, as in those of earlier versions."""
    if identity is not None:
        return identity.run
    result = _result_of(run)
    return result.run if result is not None else None


def _result_of(run: RunDirectory) -> Result | None:
    try:
        return run.result()
    except Unreadable:
        return None


def _step(run: RunDirectory) -> int:
    """How far its status says it is; -1 without one."""
    try:
        status = run.status()
    except Unreadable:
        return -1
    return -1 if status is None or status.step is None else status.step


def differences(one: RunDirectory, other: RunDirectory) -> list[str]:
    """What tells two copies of a cell apart, each as `what: of the one | of the other`; the score comes first."""
    first, second = _facts(one), _facts(other)
    score = f"{first.pop('score')} | {second.pop('score')}"
    lines = [f"{k}: {first.get(k)} | {second.get(k)}" for k in first | second if first.get(k) != second.get(k)]
    settings = settings_that_differ(_settings(one), _settings(other))
    told = [f"{k}: {a!s:.{_LONGEST_VALUE}} | {b!s:.{_LONGEST_VALUE}}" for k, (a, b) in settings.items() if a != b]
    return [score, *told, *lines]


def _facts(run: RunDirectory) -> dict[str, Any]:
    """What a copy says of itself, for people; `score` in any case."""
    result = _result_of(run)
    try:
        identity = identity_of(run)
    except UserError:
        identity = None
    facts: dict[str, Any] = {}
    if result is not None:
        git = result.provenance.get("git")
        git = git if isinstance(git, dict) else {}
        facts["score"] = result.score_line()
        facts["fingerprint"] = result.fingerprint
        facts["commit"] = f"{git.get('commit') or 'unknown'!s:.10}{' with changes' * (git.get('dirty') is True)}"
        facts |= {key: result.provenance.get(key) for key in ("fsseg", "host", "device")}
        facts["finished"] = result.finished_at
    else:
        facts["score"] = f"no result, step {max(0, _step(run))}"
        facts["fingerprint"] = identity.fingerprint if identity is not None else None
    facts["run"] = _run_of(run, identity)
    _, start = run.last_attempt()
    facts["last start"] = f"{start.started_at} on {start.host}" if start is not None else None
    return facts


def _settings(run: RunDirectory) -> dict[str, Any]:
    try:
        record = run.identity_record()
    except Unreadable:
        record = None
    return {} if record is None else record.identity
