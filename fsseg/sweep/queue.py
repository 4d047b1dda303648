"""What SLURM's commands tell of jobs: which are in the queue, and how those that left it ended.

Asked by the launcher while it waits, by `fsseg.sweep.elsewhere` for everybody else, and by `fsseg cancel`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

log = logging.getLogger("fsseg.sweep")

JOB_ID = re.compile(r"[0-9]{1,12}(_[0-9]{1,9})?")
"""A job as squeue names it: `12`, or `12_3` for a task of an array."""
_NO_TASK = "4294967294"  # how scontrol writes the number of the task that stands for all others of an array
_GONE = "gone from the queue, and neither sacct nor scontrol knows how"
_OVER = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL")  # fmt: skip
"""States in which a job does nothing any more; some settings make squeue list them."""
_TRIES = 3  # of a command that does not answer: a busy controller drops some calls
_PAUSE = 1.0  # seconds between them


@dataclass(frozen=True)
class Queued:
    """A job in SLURM's queue.

    Attributes:
        state: PENDING, RUNNING, COMPLETING, ...
        reason: why it waits.
        restarts: how often it was requeued.
    """

    state: str
    reason: str
    restarts: int = 0

    @property
    def works(self) -> bool:
        """Whether it has a node, rather than to wait for one."""
        return self.state in ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT")

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return "held" in self.reason.lower() or self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT")

    def __str__(self) -> str:
        requeued = ", requeued" if self.restarts and not self.works else ""
        return self.state + requeued + (f" ({self.reason})" if self.reason not in ("None", "") else "")


def queue(users: Collection[int] = ()) -> dict[str, Queued] | None:
    """Jobs in the queue, under both names of an array's task (`12_3` and its own number).

    None if there is no SLURM or it does not answer. That is not an empty queue: the jobs are then unknown.

    Args:
        users: numbers of the users whose jobs are asked for; this user's are in any case.
    """
    names = ",".join(map(str, sorted({os.getuid(), *users})))
    fields = "jobarrayid:40,jobid:20,state:20,restartcnt:8,reason:80"
    # --all: a partition may be hidden from those whose jobs are in it.
    text = _ask("squeue", "--all", "--noheader", "--array", f"--user={names}", f"--Format={fields}")
    if text is None:
        return None
    jobs: dict[str, Queued] = {}
    for line in text.splitlines():
        name, number, state, restarts, reason = (*line.split(maxsplit=4), *[""] * 5)[:5]
        if JOB_ID.fullmatch(name) and JOB_ID.fullmatch(number) and state not in _OVER:
            entry = Queued(state, reason.strip(), int(restarts) if restarts.isdecimal() else 0)
            jobs[name] = jobs[number] = entry
    return jobs


def still_there(job_id: str) -> bool:
    """Whether scontrol knows a job as one that is not over, whatever squeue lists."""
    found = re.search(r"\bJobState=(\S+)", _ask("scontrol", "-o", "show", "job", job_id, tries=1) or "")
    return found is not None and found.group(1) not in _OVER


def cluster_name() -> str | None:
    """Name of the cluster that `squeue` queries; None if there is none."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _ask("scontrol", "show", "config") or "", re.MULTILINE)
    return found.group(1) if found else None


def last_states(job_ids: Iterable[str]) -> dict[str, str]:
    """SLURM's account of how jobs that left the queue ended, in words for a table; an array is asked for once."""
    wanted = [job_id for job_id in job_ids if JOB_ID.fullmatch(job_id)]
    found: dict[str, str] = {}
    for array in dict.fromkeys(job_id.partition("_")[0] for job_id in wanted):
        listing = (
            _ask("sacct", "--noheader", "--parsable2", "-X", "-o", "JobID,State,ExitCode", "-j", array, tries=1) or ""
        )
        for line in listing.splitlines():
            fields = [part.strip() for part in line.split("|")]
            if len(fields) > 1:
                found.update((name, _ending(fields[1], (*fields, "")[2])) for name in _tasks(fields[0]))
        if all(job_id in found for job_id in wanted if job_id.partition("_")[0] == array):
            continue
        for line in (_ask("scontrol", "-o", "show", "job", array, tries=1) or "").splitlines():
            about = dict(re.findall(r"\b(\w+)=(\S+)", line))
            task = about.get("ArrayTaskId")
            name = f"{about.get('ArrayJobId')}_{task}" if task is not None else about.get("JobId", "")
            for one in _tasks(name) if "JobState" in about else ():
                found.setdefault(one, _ending(about["JobState"], about.get("ExitCode", "")))
    return {job_id: found.get(job_id) or found.get(_rest(job_id), _GONE) for job_id in wanted}


def _rest(job_id: str) -> str:
    """The name under which `last_states` keeps those tasks of a job's array that never became jobs of their own."""
    return f"{job_id.partition('_')[0]}_{_NO_TASK}"


def _tasks(name: str) -> list[str]:
    """The jobs that one line of sacct or scontrol stands for: tasks that never started share one, as `12_[3,5-7%4]`."""
    array, _, tasks = name.partition("_")
    if not tasks or tasks.isdecimal():
        return [name]
    found = []
    for part in tasks.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found += [f"{array}_{number}" for number in range(int(first), min(int(last or first), 10**6) + 1)]
    return found


def _ending(state: str, code: str) -> str:
    exit_code, _, number = code.partition(":")
    how = ""
    if number not in ("", "0") and number.isdigit():
        name = signal.Signals(int(number)).name if int(number) in signal.valid_signals() else f"signal {number}"
        how = f", killed by {name}"
    elif exit_code.isdigit() and exit_code != "0":
        how = f", exit status {exit_code}"
        if exit_code == "137":
            how += " (killed by SIGKILL)"
    return state + how


def cancel(job_ids: Iterable[str]) -> str:
    """End jobs; returns what scancel says against it, empty if it obeys."""
    names = [job_id for job_id in job_ids if JOB_ID.fullmatch(job_id)]
    try:
        done = subprocess.run(["scancel", *names], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0] if done.returncode else ""


def _ask(*command: str, tries: int = _TRIES) -> str | None:
    """What a command prints; None if it is not there, or fails each time."""
    if shutil.which(command[0]) is None:
        return None
    # A user's own choice of what squeue shows would hide jobs here.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    for left in reversed(range(tries)):
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=True, env=environment
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            log.debug("%s: %s", command[0], error)
        if left:
            time.sleep(_PAUSE)
    return None
