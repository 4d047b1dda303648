"""Where a number comes from: code, packages, machine, command line. Written into every attempt and result."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "hydra-core", "omegaconf", "pycocotools")


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit of the checkout that fsseg runs from, and whether files differ from it; None where there is no git."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def code_state() -> dict[str, Any]:
    """What tells whether the code is the same in two processes: `git_state`, and a digest of fsseg's source files."""
    return {**git_state(), "source": _source()}


@lru_cache(maxsize=1)
def _source() -> str:
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def slurm_name() -> str | None:
    """This job as squeue names it, `12_3` for a task of an array; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def provenance(device: str | None = None) -> dict[str, Any]:
    """Code, packages, machine and command line of this process, ready for JSON."""
    from fsseg.process.version import VERSION

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "fsseg": VERSION,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": packages,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": os.environ.get("SLURM_RESTART_COUNT"),
    }
