"""Whatever a tracker does, the run ends as without it. The packages here are broken ones, put in the place of wandb."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf
from runs import cell_of, composed, done, numbers
from test_pull import stop_at

from fsseg.cell.models import Result, State, Tracked, read
from fsseg.config.checks import faults
from fsseg.config.compose import Composed
from fsseg.engine import checkpoint
from fsseg.engine.trackers import follow, processes
from fsseg.engine.trackers.base import About, Tracker
from fsseg.engine.trackers.follow import CLASSES, opened, rows_of
from fsseg.engine.trackers.processes import Trackers
from fsseg.errors import UserError
from fsseg.process.logs import configure_logging
from fsseg.run import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


_RUN = """
class Settings:
    def __init__(self, **settings): pass
class Run:
    url = None
    dir = "/nowhere/run/files"
    offline = True
    def log(self, *a, **k): {log}
    def finish(self, *a, **k): {finish}
def init(**settings): return Run()
"""
BROKEN = {
    "import": ("raise RuntimeError('no such luck')", "no such luck"),
    "init": ("", "has no attribute 'Settings'"),
    "log": (
        _RUN.format(log="raise OSError('https://ada:sesame@there/api: disk full')", finish="pass"),
        "https://there/api: disk full",
    ),
    "dies": (_RUN.format(log="import os; os._exit(7)", finish="pass"), "ended with status 7"),
    "hangs": (_RUN.format(log="import time; time.sleep(100)", finish="pass"), "not done after"),
}


def with_package(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package of this text in front of all others, here and in the processes that start from here."""
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.setattr(processes, "PATIENCE", 3.0 if "sleep" in text else 60.0)


def short(root: Path, output: Path, *overrides: str) -> Composed:
    return composed(root, output, "train.max_steps=3", "train.checkpoint_minutes=0", *overrides)


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Of the same cell without a tracker."""
    return done(short(root, tmp_path_factory.mktemp("plain")))


class OnlyHere(Tracker):
    """Of a tool whose runs lie in its folder, which did not come along with the run directory."""

    def __init__(self, about: About) -> None:
        if about.id is not None and not (about.folder / about.id).exists():
            raise KeyError(f"no run {about.id}")
        self.id, self.place, self.rows = about.id or "new", str(about.folder), about.rows
        (about.folder / self.id).mkdir(parents=True, exist_ok=True)

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def result(self, numbers: Mapping[str, float], figures: Mapping[str, Path], record: Path) -> None: ...

    def close(self, state: str) -> None: ...


def test_a_run_that_went_on_in_another_folder_begins_anew_in_a_local_tool_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `fsseg merge` and `fsseg sync --pull`: its note names a run that the folder there has."""
    monkeypatch.setitem(CLASSES, "aim", "test_tracker_faults:OnlyHere")
    c = composed(tmp_path / "data", tmp_path / "b")
    cell, folder = cell_of(c), tmp_path / "b" / ".trackers" / "aim"
    cell.directory.mkdir(parents=True)
    cell.config_file.write_text(OmegaConf.to_yaml(c.config, resolve=True))
    for place in (tmp_path / "a" / ".trackers" / "aim", (tmp_path / "a").as_uri()):
        note = Tracked("r", "old", 5, str(place))
        tracker = opened(cell, "aim", note)
        assert (tracker.id, tracker.rows, tracker.place) == ("new", 0, str(folder))
    for place in (folder, folder.as_uri(), "https://there/of/all"):
        with pytest.raises(KeyError, match="no run old"):
            opened(cell, "aim", Tracked("r", "old", 5, str(place)))
    (folder / "old").mkdir()
    assert opened(cell, "aim", Tracked("r", "old", 5, str(folder))).rows == 5


@pytest.mark.process
def test_a_tool_that_hangs_does_not_outlive_a_killed_run_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would keep the lock for which the next start's tracker waits."""
    slow = (
        "import os, __main__, time\n__main__._LAST_WORDS = 0.5\n"
        "open(os.environ['PID'], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    with_package(slow, tmp_path / "packages", monkeypatch)
    c = composed(tmp_path / "data", tmp_path / "out")
    cell, pid = cell_of(c), tmp_path / "pid"
    cell.directory.mkdir(parents=True)
    cell.begin("name: runs\n")
    monkeypatch.setenv("PID", str(pid))
    code = (
        "import os, sys, time; from pathlib import Path; from fsseg.cell.record import RunDirectory\n"
        "from fsseg.engine.trackers.processes import Trackers\n"
        "Trackers().start(RunDirectory(Path(sys.argv[1])), ['wandb'])\n"
        "while not os.path.exists(os.environ['PID']): time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(cell.directory)], timeout=60, check=False)
    until = time.monotonic() + 20
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < until, "the process of the tracker is still there"
        time.sleep(0.1)


@pytest.mark.process
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tracker_is_told_once_and_changes_nothing(
    fault: str, root: Path, plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, reason = BROKEN[fault]
    with_package(text, tmp_path / "packages", monkeypatch)
    c, began = short(root, tmp_path / "out", "logger.trackers=[wandb]"), time.monotonic()
    with_it = done(c)
    assert time.monotonic() - began < 60
    assert numbers(with_it) == numbers(plain)
    told = [line for line in cell_of(c).log_file.read_text().splitlines() if "tracker wandb" in line]
    assert len(told) == 1
    assert reason in told[0]
    assert "trackers/wandb.log" in told[0]
    assert cell_of(c).status().state == State.DONE  # type: ignore[union-attr]
    assert b"sesame" not in b"".join(p.read_bytes() for p in cell_of(c).directory.rglob("*") if p.is_file())
    if fault in ("import", "log"):
        note = read(cell_of(c).tracker_file("wandb"), Tracked)
        assert note is not None
        assert reason in note.error
        assert "Traceback" in cell_of(c).tracker_log("wandb").read_text()


def test_a_missing_package_is_refused_in_two_lines_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsseg.config.checks.find_spec", lambda name: None)
    for more in ((), ("check=true",)):
        c = composed(root, tmp_path / "out", "logger.trackers=[mlflow]", *more)
        with pytest.raises(UserError, match=r"logger\.trackers=\[mlflow\]") as caught:
            run(c.config, c.task_overrides)
        assert "pip install 'fsseg[mlflow]'" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_package_s_name_is_no_package(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tools leave such folders where one works."""
    import importlib.util

    (tmp_path / "mlflow").mkdir()
    spec = importlib.util.spec_from_loader("mlflow", None, is_package=True)
    monkeypatch.setattr("fsseg.config.checks.find_spec", lambda name: spec)
    assert spec is not None
    assert spec.origin is None
    (found,) = faults(composed(root, tmp_path, "logger.trackers=[mlflow]").cfg)
    assert "not installed" in found.what


@pytest.mark.parametrize("given", ["[tensorbord]", "[wandb,wandb]"])
def test_an_unknown_or_repeated_name_is_refused(given: str, root: Path, tmp_path: Path) -> None:
    (found,) = faults(composed(root, tmp_path, f"logger.trackers={given}").cfg)
    assert found.what.startswith("logger.trackers=")
    assert "wandb, mlflow, trackio and aim" in found.what


def test_trackers_do_not_change_which_cell_it_is(root: Path, tmp_path: Path) -> None:
    with_them = composed(root, tmp_path, "logger.trackers=[wandb,aim]", "variant=null")
    without = composed(root, tmp_path, "variant=null")
    assert cell_of(with_them).fingerprint == cell_of(without).fingerprint
    assert cell_of(with_them).directory == cell_of(without).directory


def test_a_process_that_cannot_start_is_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = cell_of(composed(root, tmp_path))
    cell.directory.mkdir(parents=True)
    configure_logging("info")
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    trackers = Trackers()
    trackers.start(cell, ["wandb"])
    trackers.saved(3)
    trackers.end(State.DONE, lambda: False)
    (line,) = capsys.readouterr().err.splitlines()
    assert "tracker wandb: [Errno 2]" in line
    assert "no-python" in line


def test_rows_are_held_back_until_a_checkpoint_on_the_disk_counts_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 steps, a row each, and a checkpoint at step 3, where a signal stops the run, and at the end."""
    events: list[tuple[str, int]] = []
    save = checkpoint.save

    def saving(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        save(path, state, previous)
        events.append(("written", state["rows"]))

    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(Trackers, "saved", lambda self, rows: events.append(("told", rows)))
    c = composed(root, tmp_path, "train.checkpoint_minutes=1000")
    with monkeypatch.context() as stopping:
        stop_at(3, stopping)
        with pytest.raises(SystemExit):
            done(c)
    assert events == [("written", 4), ("told", 4)]  # steps 0 to 3
    done(c)
    assert events[2:] == [("told", 4), ("written", 8), ("told", 8)]


@pytest.mark.parametrize("run_id", ["*", "[ab]", "?"])
def test_the_id_of_a_foreign_run_removes_no_other_run_of_wandb(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline the folder of the start before is removed; an id comes from identity.json, which may hold anything."""
    package = ModuleType("wandb")
    exec(_RUN.format(log="pass", finish="pass"), package.__dict__)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delitem(sys.modules, "fsseg.engine.trackers.to_wandb", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    from fsseg.engine.trackers.to_wandb import WandbRun

    for name in ("a", run_id):
        (tmp_path / "wandb" / f"offline-run-20260101-{name}").mkdir(parents=True)
    WandbRun(About(run_id, "cell", "runs", "group", {}, {}, tmp_path))
    assert [path.name for path in (tmp_path / "wandb").iterdir()] == ["offline-run-20260101-a"]
    monkeypatch.delitem(sys.modules, "fsseg.engine.trackers.to_wandb")


def test_rows_are_read_from_the_file_by_number(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss,val/miou\n10,2.5,\n20,1.5,\n20,,31\n30,0.5,\n")
    assert rows_of(file, 0, 0) == []
    assert rows_of(file, 1, 3) == [(20, {"train/loss": 1.5}), (20, {"val/miou": 31.0})]
    assert rows_of(file, 3, 9) == [(30, {"train/loss": 0.5})]


def test_rows_that_are_gone_when_they_are_told_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run's process of a tracker is slow: the next start, from an older checkpoint, took rows back before."""
    monkeypatch.setitem(CLASSES, "aim", "test_tracker_faults:OnlyHere")
    c = composed(tmp_path / "data", tmp_path / "out")
    cell = cell_of(c)
    cell.directory.mkdir(parents=True)
    cell.config_file.write_text(OmegaConf.to_yaml(c.config, resolve=True))
    cell.tracker_log("aim").parent.mkdir()
    cell.metrics_file.write_text("step,train/loss\n1,2.5\n2,1.5\n3,0.5\n")
    monkeypatch.setattr(follow, "_messages", lambda: iter([("rows", "3"), ("rows", "5")]))
    follow._follow(cell, "aim", note := Tracked("r"))
    assert (note.rows, note.ended) == (3, "killed")
    assert read(cell.tracker_file("aim"), Tracked) == note
