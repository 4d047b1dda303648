"""A real SLURM of one node for the tests: munged, slurmctld and slurmd below a temporary folder, on ports of their own.

Needs root and Debian's packages `slurm-wlm` and `munge` (no systemd, no cgroups, no running services). `conftest.py`
starts one for a test run and ends just the processes it started.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


class Cluster:
    """Start with `up`, end with `down`; `environment` goes to every process that should see it.

    Args:
        folder: for everything it writes; its path must be short enough for a socket's name.
        cpus: to advertise, which may be more than there are.
    """

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder = folder
        self.cpus = cpus
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{_SEARCH}"}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._sent: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Raises:
        RuntimeError: a daemon does not start; with the ends of the logs.
        """
        for name in ("munge", "state", "spool", "log", "bin"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge/key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._configuration())
        sacct = self.folder / "bin/sacct"
        sacct.write_text(_SACCT)
        sacct.chmod(0o755)
        # In the foreground, as children of ours: no pid files, and nothing else can be hit when they are ended.
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._socket}",
            f"--pid-file={self.folder / 'munge/pid'}", f"--seed-file={self.folder / 'munge/seed'}",
            f"--log-file={self.folder / 'log/munged.log'}",
        )  # fmt: skip
        self._wait(self._socket.exists, "munged")
        self._start("slurmctld", "-D", "-c")
        self._wait(lambda: "UP" in self.ask("scontrol", "ping"), "slurmctld")
        self._start("slurmd", "-D", "-N", self.host)
        self._wait(lambda: self.ask("sinfo", "-h", "-o", "%T").strip() in ("idle", "mixed"), "slurmd")

    def down(self) -> None:
        if self._daemons:
            for options in (["--state=PENDING"], ["--signal=KILL", "--full"], []):
                self.send("scancel", "--user=root", *options)
                time.sleep(0.3)
            end = time.monotonic() + 15
            while self.ask("squeue", "-h").strip() and time.monotonic() < end:
                time.sleep(0.2)
        for one in self._sent:
            one.kill()
            one.wait()
        self._sent.clear()
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def ask(self, *command: str) -> str:
        """What a command of SLURM's prints; nothing if it fails."""
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def send(self, *command: str) -> None:
        """Start a command and go on: `scancel` does not return while its job is between two states."""
        self._sent.append(
            subprocess.Popen(
                command, env={**os.environ, **self.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )

    @property
    def _socket(self) -> Path:
        return self.folder / "munge/socket"

    def _start(self, *command: str) -> None:
        program = shutil.which(command[0], path=_SEARCH)
        assert program is not None
        with (self.folder / f"log/{command[0]}.out").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            )

    def _wait(self, condition: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + 30
        while not condition():
            if time.monotonic() > end or self._daemons[-1].poll() is not None:
                logs = "\n".join(
                    f"{path.name}: {path.read_text(errors='replace')[-600:]}"
                    for path in (self.folder / "log").iterdir()
                )
                self.down()
                raise RuntimeError(f"{name} does not start\n{logs}")
            time.sleep(0.1)

    def _configuration(self) -> str:
        ports = _free_ports(2)
        memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 * 9 // 10
        folder = self.folder
        return f"""\
ClusterName=fsseg{os.getpid()}
SlurmctldHost={self.host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self._socket}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=5,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
EnforcePartLimits=ALL
FirstJobId={int(time.time()) % 50_000_000 + 1000}
MinJobAge=86400
MailProg=/bin/true
MpiDefault=none
NodeName={self.host} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes={self.host} Default=YES MaxTime=INFINITE State=UP
"""


def _end_with_parent() -> None:
    """In a daemon before it starts: TERM when the tests are killed (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


# Without slurmdbd there is no accounting: answers `sacct -o JobID,State,... -j ID` from what slurmctld remembers.
_SACCT = r"""#!/usr/bin/env bash
header=1
for argument in "$@"; do [ "$argument" = --noheader ] && header=0; done
[ $header = 1 ] && echo "JobID|State|ExitCode"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    scontrol -o show job "$2" 2>/dev/null | awk '{
      delete f
      for (i = 1; i <= NF; i++) { k = $i; sub(/=.*/, "", k); v = $i; sub(/^[^=]*=/, "", v); if (!(k in f)) f[k] = v }
      id = f["JobId"]; if ("ArrayJobId" in f) id = f["ArrayJobId"] "_" f["ArrayTaskId"]
      print id "|" f["JobState"] "|" f["ExitCode"] }'
    shift
  fi
  shift
done
"""
