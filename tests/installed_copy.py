"""fsseg as a wheel installs it, laid out without a build: by the lines of pyproject.toml that the build reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def lay_out(folder: Path) -> Path:
    """Fill a folder with what the wheel would put into site-packages."""
    tomllib = pytest.importorskip("tomllib")  # came with Python 3.11
    wheel = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel["only-include"]:
        if name not in wheel["sources"]:
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["sources"].items():
        shutil.copytree(REPO / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(folder / source, ignore_errors=True)
    return folder


def environment(site: Path) -> dict[str, str]:
    """Of a process that takes fsseg from there."""
    made = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    made.pop("HYDRA_FULL_ERROR", None)
    return made
