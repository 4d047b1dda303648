"""Who calls the command of `notify.on_end`, when, and with which facts."""

from __future__ import annotations

import shlex
import stat
import sys
from pathlib import Path

import pytest
from runs import cell_of, composed, done
from sweeps import Sweep, wait_until

from fsseg.config.checks import faults
from fsseg.run import run

FACTS = ("EVENT", "CELL", "CELLS", "DONE", "FAILED", "STOPPED", "MIOU", "REASON", "DIR", "SECONDS")


def teller(folder: Path) -> str:
    """A command that adds the facts of each call, one a line, to `folder/told`."""
    script = folder / "tell.sh"
    names = " ".join(f'"${{FSSEG_{name}-unset}}"' for name in FACTS)
    script.write_text(f"#!/bin/sh\n{{ printf '%s\\n' {names}; echo --; }} >> {shlex.quote(str(folder / 'told'))}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"notify.on_end={script}"


def calls(folder: Path) -> list[dict[str, str]]:
    if not (folder / "told").exists():
        return []
    parts = (folder / "told").read_text().split("\n--\n")[:-1]
    return [dict(zip(FACTS, part.split("\n"), strict=True)) for part in parts]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def test_a_cell_by_itself_tells_that_it_is_done_and_once(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.max_steps=1", teller(tmp_path), "variant=null")
    result = done(c)
    (call,) = calls(tmp_path)
    assert (call["EVENT"], call["MIOU"], call["REASON"]) == ("cell_done", f"{result.miou:.2f}", "")
    assert call["CELL"] == str(cell_of(c).key)
    assert call["DIR"] == str(cell_of(c).directory)
    assert call["SECONDS"].isdigit()
    assert "notify" not in str(cell_of(c).directory)
    assert cell_of(c).fingerprint == cell_of(composed(root, tmp_path, "train.max_steps=1", "variant=null")).fingerprint
    done(c)
    assert len(calls(tmp_path)) == 1


def test_a_cell_that_fails_tells_why(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "a file `touch owned` $(touch owned) '; touch owned; #"

    def broken(*arguments: object) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr("fsseg.engine.train.train", broken)
    monkeypatch.chdir(tmp_path)
    c = composed(root, tmp_path, "train.max_steps=1", teller(tmp_path))
    with pytest.raises(RuntimeError):
        run(c.config, c.task_overrides)
    (call,) = calls(tmp_path)
    assert (call["EVENT"], call["REASON"], call["MIOU"]) == ("cell_failed", f"RuntimeError: {reason}", "")
    assert not (tmp_path / "owned").exists()


@pytest.mark.process
def test_a_sweep_tells_its_counts_once_at_its_end(sweep: Sweep) -> None:
    tell = teller(sweep.folder)
    code, output = sweep.run("-m", "fold=0,1,2,9", tell, FAKE_1="usererror")
    assert code == 1, output
    (call,) = calls(sweep.folder)
    assert call["EVENT"] == "sweep_ended"
    assert [call[name] for name in ("CELLS", "DONE", "FAILED", "STOPPED")] == ["4", "2", "2", "0"]
    assert call["DIR"] == str(sweep.folder / "outputs" / "s")
    assert call["REASON"] == ""

    sweep.run("-m", "fold=0", tell)  # nothing to do, nothing to tell
    assert len(calls(sweep.folder)) == 1


@pytest.mark.process
def test_a_cell_that_was_killed_is_told_by_its_sweep(sweep: Sweep) -> None:
    code, output = sweep.run("-m", "fold=0,1", "hydra/launcher=local", teller(sweep.folder), FAKE_1="kill")
    assert code == 1, output
    first, last = calls(sweep.folder)
    assert (first["EVENT"], first["CELL"]) == ("cell_failed", "s/shapes5i/abcb/tiny/1shot/default/fold1/seed0")
    assert "SIGKILL" in first["REASON"]
    assert [last[name] for name in ("EVENT", "DONE", "FAILED")] == ["sweep_ended", "1", "1"]


@pytest.mark.process
def test_of_two_sweeps_of_one_folder_the_last_one_tells(sweep: Sweep) -> None:
    go = sweep.folder / "go"
    go.mkdir()
    tell, environment = teller(sweep.folder), {"FAKE_0": "part:zero", "FAKE_1": "part:one", "FAKE_GO": str(go)}
    first = sweep.start("-m", "fold=0,1", tell, **environment)
    wait_until(lambda: sweep.cell(0).claim_file.exists())
    second = sweep.start("-m", "fold=0,2", tell, **environment)  # leaves fold 0 to the first
    second.communicate()
    assert second.returncode == 0
    assert sweep.cell(2).result_file.exists()
    assert calls(sweep.folder) == []
    for name in ("zero", "one"):
        (go / name).touch()
    first.communicate()
    (call,) = calls(sweep.folder)
    assert [call[name] for name in ("EVENT", "CELLS", "DONE")] == ["sweep_ended", "2", "2"]


@pytest.mark.process
def test_a_command_that_fails_changes_nothing_of_the_sweep(sweep: Sweep) -> None:
    script = sweep.folder / "bad.sh"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no mail today')\n")
    script.chmod(0o755)
    code, output = sweep.run("-m", "fold=0", f"notify.on_end={script}")
    assert code == 0, output
    assert "notify.on_end: status 1: no mail today" in output


@pytest.mark.parametrize("given", ["notify.on_end='  '", "notify.timeout_seconds=0"])
def test_what_is_no_command_or_time_is_refused(given: str, root: Path, tmp_path: Path) -> None:
    (found,) = faults(composed(root, tmp_path, given).cfg)
    assert found.what.startswith(given.partition("=")[0])
