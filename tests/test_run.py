"""One cell through every kind of ending: done, killed, asked to stop, taken over, no room, other settings."""

from __future__ import annotations

import functools
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from runs import cell_of, composed, done, fork, numbers, run_and_print, start

from fsseg import run as run_module
from fsseg.cell.claim import acquire
from fsseg.cell.models import Result, State, write_record
from fsseg.cell.record import Cell, RunDirectory
from fsseg.cell.status import StatusFile
from fsseg.errors import UserError
from fsseg.process.files import write_json
from fsseg.run import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Result]:
    """The cell, never interrupted: its directory and result."""
    c = composed(root, tmp_path_factory.mktemp("whole"))
    return cell_of(c), done(c)


def wait_for(condition: Callable[[], object], process: Any = None) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited two minutes"
        assert process is None or process.is_alive(), "ended before its time"
        time.sleep(0.005)


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return torch.load(cell.checkpoint, weights_only=True)["model"]


def assert_same(cell: Cell, whole: tuple[Cell, Result]) -> None:
    assert numbers(cell.result()) == numbers(whole[1])
    theirs = weights(whole[0])
    for name, tensor in weights(cell).items():
        assert torch.equal(tensor, theirs[name]), name


def attempts(cell: Cell) -> list[str]:
    files = sorted(cell.attempts.glob("*.json"), key=lambda p: int(p.stem))
    return [json.loads(p.read_text())["ended"] for p in files]


def written(cell: Cell) -> int:
    return cell.checkpoint.stat().st_mtime_ns if cell.checkpoint.exists() else 0


def kill_often(c: Any, cell: Cell, kills: int, log: Path) -> None:
    draw = random.Random(kills)
    for _ in range(kills):
        process = start(c, log)
        # Let it come to where it works, then strike at any moment of the next few steps.
        seen, end = written(cell), time.monotonic() + 120
        while process.is_alive() and written(cell) == seen and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.15)
        process.kill()
        process.join()
    process = start(c, log)
    process.join(120)
    assert process.exitcode == 0, log.read_text()


@pytest.mark.process
def test_killed_at_any_moment_it_ends_as_if_never_killed(root: Path, tmp_path: Path, whole: Any) -> None:
    c = composed(root, tmp_path, "train.checkpoint_minutes=0")
    cell = cell_of(c)
    kill_often(c, cell, 4, tmp_path / "log")
    assert_same(cell, whole)
    assert sum(ended.startswith("without a word") for ended in attempts(cell)) >= 2  # the kills did hit
    left = [p.name for p in cell.directory.rglob("*") if p.name.startswith(".") or p.suffix == ".new"]
    assert left == []
    assert not cell.claim_file.exists()


@pytest.mark.slow
def test_killed_twenty_times_it_ends_as_if_never_killed(root: Path, tmp_path: Path) -> None:
    steps = "train.max_steps=60"
    reference = composed(root, tmp_path / "whole", steps)
    result = done(reference)
    c = composed(root, tmp_path / "killed", steps, "train.checkpoint_minutes=0")
    cell = cell_of(c)
    kill_often(c, cell, 20, tmp_path / "log")
    assert_same(cell, (cell_of(reference), result))
    assert len(attempts(cell)) >= 10


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 140), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_gives_up_the_cell_and_tells_the_shell(
    number: int, status: int, root: Path, tmp_path: Path, whole: Any
) -> None:
    c = composed(root, tmp_path, "train.checkpoint_minutes=1000", "train.checkpoint_epochs=0")
    cell = cell_of(c)
    process = start(c, tmp_path / "log")
    wait_for(lambda: cell.curves(), process)  # written with the first step
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == status
    told = cell.status()
    assert told is not None
    assert (told.state, told.reason) == ("preempted", f"signal {signal.Signals(number).name}")
    assert not cell.claim_file.exists()
    saved = torch.load(cell.checkpoint, weights_only=True)["step"]
    assert 1 <= saved <= 8
    again = done(c)
    assert again.training is not None
    assert again.training.steps == 8
    assert_same(cell, whole)
    assert attempts(cell)[0].startswith("preempted")
    assert attempts(cell)[1] == "done"


def test_a_signal_while_preparing_ends_the_run_at_once(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path)
    cell = cell_of(c)

    def slow(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(run_module, "build_source", slow)
    with pytest.raises(SystemExit) as caught:
        run(c.config, c.task_overrides)
    assert caught.value.code == 128 + signal.SIGTERM
    assert cell.look().state == State.PREEMPTED
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_submitits_handler_is_called_after_all_is_saved(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path)
    cell = cell_of(c)
    seen: list[Any] = []

    def requeue(number: int, frame: Any) -> None:
        seen.append((number, cell.look().state, cell.checkpoint.exists(), cell.claim_file.exists()))
        sys.exit(-1)

    import fsseg.engine.train as train_module

    rate = train_module.learning_rate

    def signal_at_third(cfg: Any, step: int, total: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", signal_at_third)
    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as caught:
            run(c.config, c.task_overrides)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert caught.value.code == -1
    assert seen == [(signal.SIGUSR2, State.PREEMPTED, True, False)]
    assert torch.load(cell.checkpoint, weights_only=True)["step"] == 3


def test_a_finished_cell_is_not_touched(whole: Any, root: Path) -> None:
    cell, result = whole
    before = {p: p.stat().st_mtime_ns for p in cell.directory.rglob("*")}
    c = composed(root, Path(str(cell.directory).split("/runs/")[0]))
    assert cell_of(c).directory == cell.directory
    assert done(c) == result
    assert {p: p.stat().st_mtime_ns for p in cell.directory.rglob("*")} == before


def test_a_held_cell_is_left_alone(root: Path, tmp_path: Path, caplog: Any) -> None:
    c = composed(root, tmp_path)
    cell = cell_of(c)
    cell.directory.mkdir(parents=True)
    claim = acquire(cell.claim_file, 300)
    try:
        left = run(c.config, c.task_overrides)
        assert (left.state, left.result) == (State.RUNNING, None)
        assert f"process {os.getpid()}" in left.holder
        assert [p.name for p in cell.directory.iterdir()] == ["claim.json"]
        redo = composed(root, tmp_path, "redo=true")
        with pytest.raises(UserError, match="held by process"):
            run(redo.config, redo.task_overrides)
    finally:
        claim.release()


def test_the_result_another_process_wrote_meanwhile_counts(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path)
    cell = cell_of(c)

    def finished_meanwhile(path: Path, lease: float) -> Any:
        write_record(cell.result_file, Result(cell.key, cell.fingerprint, {}, finished_at="by the other"))
        return acquire(path, lease)

    monkeypatch.setattr(run_module, "acquire", finished_meanwhile)
    assert done(c).finished_at == "by the other"
    assert not cell.claim_file.exists()


def test_a_holder_that_lost_its_cell_stops_and_writes_nothing(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path, "train.checkpoint_minutes=0")
    cell = cell_of(c)
    import fsseg.engine.train as train_module

    rate, kept = train_module.learning_rate, {}

    def others_take_it(cfg: Any, step: int, total: int) -> float:
        if step == 3:
            os.replace(cell.claim_file, tmp_path / "old claim")
            write_json(cell.claim_file, {"host": "elsewhere", "pid": 7})
            kept.update({p: p.read_bytes() for p in cell.directory.rglob("*") if p.is_file()})
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", others_take_it)
    left = run(c.config, c.task_overrides)
    assert (left.state, left.holder) == (State.RUNNING, "taken over by process 7 on elsewhere")
    assert {p: p.read_bytes() for p in cell.directory.rglob("*") if p.is_file()} == kept


def _asleep(c: Any, module: str, call: str, name: str, times: int) -> None:
    """The small run in a process that stops itself at the n-th such call that concerns a file of this name."""
    import importlib

    owner = importlib.import_module(module)
    target = owner if hasattr(owner, call) else owner.os
    original, seen = getattr(target, call), []

    def asleep(*arguments: Any, **options: Any) -> Any:
        if any(Path(a).name == name for a in arguments if isinstance(a, (str, Path))):
            seen.append(1)
            if len(seen) == times:
                os.kill(os.getpid(), signal.SIGSTOP)
        return original(*arguments, **options)

    setattr(target, call, asleep)
    run_and_print(c)


def stopped(process: Any) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


SLEEPY = ("train.checkpoint_minutes=0", "lease_seconds=2")


@pytest.mark.process
@pytest.mark.parametrize("redo", [False, True])
@pytest.mark.parametrize(
    ("call", "name", "times"),
    [("replace", "last.pt", 3), ("replace", "status.json", 2), ("replace", "result.json", 1),
     ("replace", "identity.json", 1), ("link", "1.json", 1), ("replace", "metrics.csv", 1)],
)  # fmt: skip
def test_who_slept_past_its_lease_changes_nothing_of_what_others_made_meanwhile(
    call: str, name: str, times: int, redo: bool, root: Path, tmp_path: Path, whole: Any
) -> None:
    """It sleeps after its look at the claim, right before a file is renamed; another finishes the cell and gives it
    up, in one case with other settings after that."""
    c = composed(root, tmp_path, *SLEEPY)
    cell = cell_of(c)
    sleeper = fork(_asleep, c, "fsseg.process.files", call, name, times, log=tmp_path / "log")
    try:
        wait_for(lambda: stopped(sleeper), sleeper)
        os.utime(cell.claim_file, (1000, 1000))  # as if it slept for a day
        other = composed(root, tmp_path, *SLEEPY, "train.max_steps=2", "redo=true") if redo else c
        theirs = done(other)
        before = {p: p.read_bytes() for p in cell.directory.rglob("*") if p.is_file()}
    finally:
        assert sleeper.pid is not None
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(60)
    assert sleeper.exitcode == 0
    assert '"running"' in (tmp_path / "log").read_text()
    after = {p: p.read_bytes() for p in cell.directory.rglob("*") if p.is_file()}
    log = cell.log_file
    assert {p: data for p, data in after.items() if p != log} == {p: data for p, data in before.items() if p != log}
    assert cell_of(other).finished() == theirs
    if not redo:
        assert_same(cell, whole)


@pytest.mark.process
def test_redo_that_slept_past_its_lease_leaves_the_result_of_others_alone(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, *SLEEPY)
    cell, first = cell_of(c), done(c)
    again = composed(root, tmp_path, *SLEEPY, "redo=true")
    sleeper = fork(_asleep, again, "fsseg.cell.fence", "rename", "result.json", 1, log=tmp_path / "log")
    try:
        wait_for(lambda: stopped(sleeper), sleeper)
        os.utime(cell.claim_file, (1000, 1000))  # as if it slept for a day
        second = done(again)
        assert second.run != first.run
    finally:
        assert sleeper.pid is not None
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(60)
    assert sleeper.exitcode == 0
    assert cell.finished() == second
    assert cell.checkpoint.exists()


def test_redo_that_cannot_start_leaves_the_old_result(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path, "train.max_steps=1")
    cell, first = cell_of(c), done(c)

    def broken(*_: object) -> None:
        raise UserError("the weights are gone", "bring them back")

    monkeypatch.setattr("fsseg.model.build_model", broken)
    again = composed(root, tmp_path, "train.max_steps=1", "redo=true")
    with pytest.raises(UserError, match="the weights are gone"):
        run(again.config, again.task_overrides)
    assert cell.look().state == State.DONE
    assert done(c) == first
    status = cell.status()
    assert status is not None
    assert status.state == State.DONE
    assert cell.checkpoint.exists()
    assert "the weights are gone" in cell.log_file.read_text()


def test_redo_that_is_interrupted_keeps_the_old_result_aside_until_there_is_a_new_one(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import fsseg.engine.train as train_module

    c = composed(root, tmp_path)
    cell, first = cell_of(c), done(c)
    rate = train_module.learning_rate

    def stopping(cfg: Any, step: int, total: int) -> float:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, step, total)

    monkeypatch.setattr(train_module, "learning_rate", stopping)
    again = composed(root, tmp_path, "redo=true")
    with pytest.raises(SystemExit):
        run(again.config, again.task_overrides)
    monkeypatch.undo()
    assert cell.finished() is None
    assert RunDirectory(cell.replaced).result() == first
    second = done(c)
    assert second.run != first.run
    assert numbers(second) == numbers(first)
    assert not cell.replaced.exists()


def test_other_settings_are_refused_and_redo_replaces_them(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.max_steps=1")
    cell = cell_of(c)
    run(c.config, c.task_overrides)
    (cell.directory / "left.txt").write_text("of the old run")
    other = composed(root, tmp_path, "train.max_steps=2")
    with pytest.raises(UserError, match=r"train\.max_steps: 1 there, 2 now"):
        run(other.config, other.task_overrides)
    redo = composed(root, tmp_path, "train.max_steps=2", "redo=true")
    training = done(redo).training
    assert training is not None
    assert training.steps == 2
    assert not (cell.directory / "left.txt").exists()
    assert attempts(cell) == ["done", "done"]
    assert [p.name for p in cell.directory.iterdir() if p.name.startswith(".")] == []


def test_redo_replaces_a_result_of_the_same_settings(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.max_steps=1")
    done(c)
    left = cell_of(c).directory / "left.txt"
    left.write_text("of the old run")
    done(c)
    assert left.exists()
    done(composed(root, tmp_path, "train.max_steps=1", "redo=true"))
    assert not left.exists()


def test_another_file_of_weights_is_another_setting_and_a_copy_is_not(root: Path, tmp_path: Path) -> None:
    """Which file it is decides, not where it lies: the second file once found the first one's result."""
    for name, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / f"{name}.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "copy.pth")

    def cell_with(name: str) -> Any:
        weights = f"backbone.weights={tmp_path / name}.pth"
        return composed(root, tmp_path / "out", "backbone=resnet18", weights, "train.max_steps=1", "eval.enabled=false")

    first = done(cell_with("a"))
    assert done(cell_with("copy")) == first
    other = cell_with("b")
    with pytest.raises(UserError, match=r"backbone\.weights \(content\): [0-9a-f]{16} there, [0-9a-f]{16} now"):
        run(other.config, other.task_overrides)


def test_redo_is_obeyed_once_by_a_requeued_job(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    c = composed(root, tmp_path, "train.max_steps=1", "redo=true")
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    first = done(c)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert done(c) == first
    monkeypatch.setenv("SLURM_JOB_ID", "56")
    assert done(c).run != first.run
    assert attempts(cell_of(c)) == ["done", "done"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(root: Path, tmp_path: Path, whole: Any) -> None:
    c = composed(root, tmp_path, "train.checkpoint_minutes=0")
    cell = cell_of(c)
    run(c.config, c.task_overrides)
    cell.result_file.unlink()
    shutil.copy(cell.checkpoint, cell.previous_checkpoint)
    cell.checkpoint.write_bytes(cell.checkpoint.read_bytes()[:5000])
    run(c.config, c.task_overrides)
    log = cell.log_file.read_text()
    assert f"{cell.checkpoint}: the checkpoint is damaged" in log
    assert f"going on from the checkpoint before it, {cell.previous_checkpoint}" in log
    assert_same(cell, whole)

    cell.result_file.unlink()
    cell.checkpoint.write_bytes(b"")
    run(c.config, c.task_overrides)
    assert "no checkpoint here is usable: training starts anew" in cell.log_file.read_text()
    assert_same(cell, whole)


def test_a_fault_of_the_run_is_a_failed_state_with_its_traceback_in_the_log(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    c = composed(root, tmp_path)
    cell = cell_of(c)
    monkeypatch.setattr(run_module, "build_source", lambda cfg: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(c.config, c.task_overrides)
    told = cell.look()
    assert (told.state, told.reason[:17]) == (State.FAILED, "ZeroDivisionError")
    assert "Traceback" in cell.log_file.read_text()
    assert not cell.claim_file.exists()
    assert attempts(cell)[0].startswith("failed: ZeroDivisionError")


@pytest.mark.parametrize("file", ["metrics.csv", "last.pt", "status.json", "train.log"])
def test_no_room_for_a_file_is_told_with_the_folder_and_keeps_the_checkpoint(
    file: str, root: Path, tmp_path: Path, monkeypatch: Any, whole: Any
) -> None:
    """The disk is full from the fifth step on, for one file."""
    import fsseg.engine.train as train_module
    import fsseg.process.files as files
    from fsseg.cell import metrics_file

    c = composed(root, tmp_path, "train.checkpoint_minutes=0")
    cell = cell_of(c)
    rate, replace, full = train_module.learning_rate, os.replace, []

    def watch(cfg: Any, step: int, total: int) -> float:
        full[:] = [True] if step >= 4 else []
        if full and file == "train.log":
            run_module.log.info("a line")
        return rate(cfg, step, total)

    def no_room_for_rows(self: Any, row: Any) -> None:
        if full:
            raise OSError(28, "No space left on device", str(self.path))
        append(self, row)

    if file == "metrics.csv":
        append = metrics_file.MetricsFile.append
        monkeypatch.setattr(metrics_file.MetricsFile, "append", no_room_for_rows)

    def no_room(source: Any, target: Any) -> None:
        if full and Path(target).name == file:
            raise OSError(28, "No space left on device")
        replace(source, target)

    if file == "train.log":
        import logging

        emit = logging.FileHandler.emit

        def broken(self: Any, record: Any) -> None:
            if full:
                try:
                    raise OSError(28, "No space left on device")
                except OSError:
                    self.handleError(record)
            else:
                emit(self, record)

        monkeypatch.setattr(logging.FileHandler, "emit", broken)
    monkeypatch.setattr(train_module, "learning_rate", watch)
    monkeypatch.setattr(files.os, "replace", no_room)
    if file == "status.json":
        monkeypatch.setattr(run_module, "StatusFile", functools.partial(StatusFile, interval=0.0))
    with pytest.raises(UserError) as caught:
        run(c.config, c.task_overrides)
    assert str(cell.directory) in caught.value.what
    assert "No space left" in caught.value.what
    assert not cell.result_file.exists()
    assert not cell.claim_file.exists()
    monkeypatch.undo()
    run(c.config, c.task_overrides)
    assert "resuming at step" in cell.log_file.read_text()
    assert_same(cell, whole)


_SCRIPT = """
import os, shutil, sys, types
from pathlib import Path
from runs import composed, cell_of
from fsseg.run import run
from fsseg.errors import UserError
if "ROOM_AT_START" in os.environ:
    shutil.disk_usage = lambda path: types.SimpleNamespace(free=10**9)
c = composed(Path(sys.argv[1]), Path(sys.argv[2]), "train.checkpoint_minutes=0", *sys.argv[3:])
cell = cell_of(c)
try:
    run(c.config, c.task_overrides)
except UserError as error:
    print("UserError", error.what)
print("result", cell.result_file.exists())
for path in (cell.checkpoint, cell.previous_checkpoint):
    if path.exists():
        from fsseg.engine.checkpoint import load
        print("usable", load(path)["step"])
"""


def in_mounted(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run shell lines in a mount namespace of their own, then the small run; skips where that is not allowed."""
    spaces = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    try:
        allowed = (
            subprocess.run([*spaces, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
        )
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no mount namespaces here")
    repo = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [*spaces, "sh", "-c", f'{script}\nexec "$0" -c "$@"', sys.executable, _SCRIPT, *arguments],
        capture_output=True, text=True, cwd=repo, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{repo}:{repo / 'tests'}"},
    )  # fmt: skip


def test_a_full_disk_stops_the_run_with_the_folder_named(root: Path, tmp_path: Path, whole: Any) -> None:
    """One that was filled by others meanwhile: at the start there was room."""
    size = whole[0].checkpoint.stat().st_size
    room = int(size * 1.5) + 60_000  # one checkpoint fits, a second beside it does not
    done = in_mounted(
        f"mount -t tmpfs -o size={room} tmpfs {tmp_path}; export ROOM_AT_START=1", str(root), str(tmp_path)
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines[0].startswith(f"UserError {tmp_path}"), done.stdout + done.stderr
    assert "No space left on device" in lines[0]
    assert "result False" in lines
    assert any(line.startswith("usable") for line in lines)


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(
    root: Path, tmp_path: Path, whole: Any
) -> None:
    done = in_mounted(f"mount -t tmpfs -o size=4m tmpfs {tmp_path}", str(root), str(tmp_path))
    lines = done.stdout.splitlines()
    assert re.match(
        rf"UserError output_dir={tmp_path}: the run \(up to 3 checkpoints of 1\.\d+ MB, and logs\) "
        r"needs about 2\d\.\d MB, and \d\.\d+ MB are free", lines[0],
    ), done.stdout + done.stderr  # fmt: skip
    assert lines[1:] == ["result False"]


def test_a_read_only_folder_is_refused_with_its_name(root: Path, tmp_path: Path) -> None:
    script = f"mount -t tmpfs tmpfs {tmp_path}; mount -o remount,ro {tmp_path}"
    done = in_mounted(script, str(root), str(tmp_path))
    assert done.stdout.startswith(f"UserError {tmp_path}"), done.stdout + done.stderr
    assert "Read-only" in done.stdout
    assert "result False" in done.stdout


def test_a_start_imports_no_torch_before_there_is_work() -> None:
    # done cells, held cells and sweeps of them must cost milliseconds, not an import of seconds
    code = "import sys, fsseg.run, fsseg.config.entry, fsseg.sweep.sweeper; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.process
def test_a_terminal_that_closes_saves_the_run(root: Path, tmp_path: Path, whole: Any) -> None:
    """HUP comes, and from then on nothing can be written to the terminal, the progress bar neither."""
    c = composed(root, tmp_path, "train.checkpoint_minutes=1000", "train.checkpoint_epochs=0")
    cell = cell_of(c)
    process, terminal = pty.fork()
    if process == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        repo = Path(__file__).resolve().parents[1]
        os.environ["PYTHONPATH"] = f"{repo}:{repo}/fsseg/sweep/plugin"
        os.execv(sys.executable, [sys.executable, "-m", "fsseg", "train", *c.overrides])
    os.set_blocking(terminal, False)

    def far_enough() -> bool:
        with suppress(BlockingIOError):
            os.read(terminal, 100_000)  # a terminal that nobody reads stops who writes to it
        return bool(cell.curves())

    wait_for(far_enough)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    told = cell.status()
    assert told is not None
    assert (told.state, told.reason) == ("preempted", "signal SIGHUP")
    assert os.waitstatus_to_exitcode(status) == 129
    assert cell.checkpoint.exists()
    assert not cell.claim_file.exists()
    assert numbers(done(c)) == numbers(whole[1])


@pytest.mark.process
def test_a_signal_saves_though_nobody_reads_what_is_said(root: Path, tmp_path: Path) -> None:
    c = composed(root, tmp_path, "train.checkpoint_minutes=1000", "train.checkpoint_epochs=0")
    cell = cell_of(c)
    process = fork(_to_a_closed_pipe, c, log=tmp_path / "log")
    wait_for(cell.curves, process)
    os.kill(int(process.pid or 0), signal.SIGTERM)
    process.join(60)
    told = cell.status()
    assert told is not None
    assert (told.state, told.reason) == ("preempted", "signal SIGTERM")
    assert process.exitcode == 143


def _to_a_closed_pipe(c: Any) -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(reading)
    run_and_print(c)
