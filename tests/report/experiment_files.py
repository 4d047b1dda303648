"""Models of the paper's ablations, and reading back what an experiment's report wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fsseg.cell.record import RunDirectory
from fsseg.report.collect import collect
from fsseg.report.experiments import experiment_report

FULL = {
    "modulation": True, "cleansing": True, "pixel_evolution": True, "structure_evolution": True, "iterations": 3,
}  # fmt: skip
BASELINE = FULL | {"modulation": False, "cleansing": False}
SM = FULL | {"cleansing": False}

Add = Callable[..., RunDirectory]


def rows(folder: Path, stem: str) -> dict[str, list[str]]:
    """The table of a Markdown file: first column -> the others."""
    lines = [line for line in (folder / f"{stem}.md").read_text().splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {line[0]: line[1:] for line in [cells[0], *cells[2:]]}


def report(tmp_path: Path) -> str:
    written = experiment_report(collect([tmp_path]).cells, tmp_path)
    assert written is not None
    assert all(f.is_file() for f in written.files)
    return written.text
