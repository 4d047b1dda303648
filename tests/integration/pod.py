"""What a pod is to the processes in it, without Kubernetes: name spaces of their own, volumes, and a grace period.

`Pod` starts one through `unshare`, which needs root. This file is also the first process in the name spaces: it mounts
the volumes and starts the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SPACES = ("unshare", "--mount", "--pid", "--fork", "--uts", "--net", "--mount-proc", "--kill-child")


def missing() -> str:
    """Why no name spaces can be made here; empty if they can."""
    try:
        done = subprocess.run([*SPACES, "true"], capture_output=True, text=True, timeout=30)
    except OSError as error:
        return f"unshare: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip() or "unshare failed"


@dataclass
class Plan:
    """What a pod holds.

    Attributes:
        command: of its container.
        hostname: what a process in it takes for its machine.
        volumes: place below /mnt -> the folder that is mounted there.
        read_only: the places where nothing can be written.
        memory: places of file systems in memory.
        environment: added to this process's.
        apart: the command is not process 1.
        grace: seconds from TERM to KILL.
    """

    command: list[str]
    hostname: str
    volumes: dict[str, str]
    read_only: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    apart: bool = True
    grace: int = 30


def of_manifest(spec: Mapping[str, Any], hostname: str, folders: Mapping[str, Path]) -> Plan:
    """The pod of a Job's `spec.template.spec`, which has one container.

    Args:
        folders: what each volume claim is, by its name.
    """
    (container,) = spec["containers"]
    claims = {v["name"]: v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    memory = {v["name"] for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == memory | set(claims)
    return Plan(
        [*container["command"], *container["args"]],
        hostname,
        {p: str(folders[claims[m["name"]]["claimName"]]) for p, m in mounts.items() if m["name"] in claims},
        [place for place, mount in mounts.items() if mount.get("readOnly")],
        [place for place, mount in mounts.items() if mount["name"] in memory],
        {entry["name"]: entry["value"] for entry in container["env"]},
        bool(spec.get("shareProcessNamespace")),
        spec["terminationGracePeriodSeconds"],
    )


class Pod:
    """A running pod; `log` receives its output."""

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan, self.log = plan, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*SPACES, sys.executable, __file__, json.dumps(asdict(plan))], stdout=output, stderr=subprocess.STDOUT
            )

    def wait(self, seconds: float = 120) -> int:
        """Exit status of the command."""
        return self._process.wait(seconds)

    def stop(self) -> int:
        """As an eviction does: TERM to the first process; exit status of the command, within the grace period."""
        first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.kill(int(first[0]), signal.SIGTERM)
        return self.wait(self.plan.grace)

    def kill(self) -> None:
        """As the loss of its machine does."""
        self._process.kill()
        self._process.wait()


def _first_process(plan: Plan) -> None:
    def mount(*words: str) -> None:
        subprocess.run(["mount", *words], check=True)

    mount("-t", "tmpfs", "none", "/mnt")
    for place, folder in plan.volumes.items():
        Path(place).mkdir(parents=True)
        mount("--bind", folder, place)
        if place in plan.read_only:
            mount("-o", "remount,ro,bind", place)
    for place in plan.memory:
        mount("-t", "tmpfs", "none", place)
    Path("/proc/sys/kernel/hostname").write_text(plan.hostname)
    os.environ.update(plan.environment)
    if not plan.apart:
        os.execvp(plan.command[0], plan.command)
    # Kubernetes has a process of its own for this, and signals the container's first process itself.
    child = subprocess.Popen(plan.command)
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    _first_process(Plan(**json.loads(sys.argv[1])))
