"""The lines of docs/runs.md that make the score from episodes.npz."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fsseg.cell.episodes import EpisodeCounts, EpisodeScope, Scored, write_counts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runs.md"


def test_the_lines_print_the_miou(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 7: cat (1 + 3) of (10 + 10), no dog. Seed 3: cat 5 of 10, dog 1 of 10. Mean of 20 and of (50 + 10) / 2."""
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope = EpisodeScope((7, 3), (1, 4, 6), ("cat", "dog", "cow"), ("", "0.5"))
    answers = [(7, 0, 1, "", 1), (7, 1, 1, "", 3), (3, 0, 1, "", 5), (3, 1, 4, "", 1), (3, 1, 4, "0.5", 9)]
    rows = [Scored(*which, 10, [(0, 10, 0, 10), (hits, 10, 0, 10 - hits)]) for *which, hits in answers]
    write_counts(tmp_path / "episodes.npz", EpisodeCounts.of(scope, rows))
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert float(capsys.readouterr().out) == pytest.approx(25.0)
