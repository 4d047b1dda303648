"""The command of `notify.on_end`: what it is told, and that nothing it does harms who calls it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from fsseg.process import hook
from fsseg.process.logs import configure_logging

HOSTILE = (
    "$(touch owned)", "`touch owned`", "'; touch owned; '", '"; touch owned; "', "a\ntouch owned\n",
    "%s %n {0} ${name}", "\x1b[31mred\x00\u202e", "<script>", "猫 é", "\udcff", "\ud800", "-rf /", "x" * 300_000,
)  # fmt: skip


def told(folder: Path, facts: dict[str, object]) -> dict[str, str]:
    """What a command of its own language finds in its environment."""
    program = "import json,os;json.dump({k:v for k,v in os.environ.items() if k.startswith('FSSEG_')},open('told','w'))"
    hook.call(f'cd "{folder}" && "{sys.executable}" -c "{program}"', 30, facts)
    found: dict[str, str] = json.loads((folder / "told").read_text())
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_one_line_in_the_environment_and_never_runs(text: str, tmp_path: Path) -> None:
    found = told(tmp_path, {"EVENT": "cell_failed", "REASON": text})
    assert found["FSSEG_EVENT"] == "cell_failed"
    assert found["FSSEG_REASON"].isprintable()
    assert 0 < len(found["FSSEG_REASON"]) <= 2000
    if text.isprintable():
        assert found["FSSEG_REASON"] == text[:2000]
    assert {p.name for p in tmp_path.iterdir()} == {"told"}


def test_every_fact_is_there_and_empty_where_it_does_not_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSEG_MIOU", "of another command that this one is part of")
    found = told(tmp_path, {"EVENT": "sweep_ended", "DONE": 3, "FAILED": 0})
    assert {found[f"FSSEG_{name}"] for name in ("CELL", "MIOU", "REASON", "DIR", "SECONDS", "CELLS", "STOPPED")} == {""}
    assert (found["FSSEG_DONE"], found["FSSEG_FAILED"]) == ("3", "0")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo first >&2; echo the mail server is away >&2; exit 7", "status 7: the mail server is away"),
        ("exit 3", "status 3: no words"),
        ("no-such-command-here", "status 127"),
        ("kill -9 $$", "status -9"),
        ("sleep 60", "not done after 0.5 s"),
        ("sleep 60 & wait", "not done after 0.5 s"),
        ("trap '' TERM INT HUP; sleep 60; sleep 60", "not done after 0.5 s"),
        ("printf '\\377\\033[31m' >&2; exit 1", "status 1: "),
    ],
)
def test_a_command_that_fails_or_hangs_is_told_in_one_line(
    command: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    began = time.monotonic()
    hook.call(command, 0.5 if "sleep" in command else 30, {})
    assert time.monotonic() - began < 20
    (line,) = capsys.readouterr().err.splitlines()
    assert f"notify.on_end: {told}" in line
    assert line.isprintable()


def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    hook.call(f'(sleep 2; touch "{tmp_path}/late") &', 30, {})
    assert time.monotonic() - began < 1.9
    assert not (tmp_path / "late").exists()


def test_without_a_command_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("something was run"))
    hook.call(None, 30, {"EVENT": "sweep_ended"})
