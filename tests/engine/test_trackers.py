"""Runs tell wandb, MLflow, Trackio and Aim, the real packages, which are then asked what they have of them.

`pip install -e '.[trackers]'` and `pytest -m trackers`: they are no part of the usual tests.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import cell_of, composed, done, fork

from fsseg.cell.models import Result, Tracked, read
from fsseg.cell.record import Cell
from fsseg.config.compose import Composed
from fsseg.engine.trackers.base import result_numbers

pytestmark = pytest.mark.trackers

NAMES = ("wandb", "mlflow", "trackio", "aim")
SECRET = "sesame-open-7"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FSSEG_TEST_SECRET", SECRET)


def tracked(root: Path, output: Path, *overrides: str) -> Composed:
    """The small cell of a few steps, followed by all four."""
    return composed(root, output, f"logger.trackers=[{','.join(NAMES)}]", "logger.figures=1", *overrides)


def run_of(cell: Cell) -> str:
    record = cell.identity_record()
    assert record is not None
    return str(record.run)


def killed_after_step_6(c: Composed) -> None:
    """Run in this process with a checkpoint at step 3 alone, and be killed when one more would be written."""
    from fsseg.engine import checkpoint
    from fsseg.run import run

    save = checkpoint.save

    def saving(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
        if state["step"] == 3:
            save(path, state, previous)
        if state["step"] == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = saving
    run(c.config, c.task_overrides)


class Seen:
    """What a tool has of its one run: (step, value) of some curves, settings, scores and names of pictures."""

    def __init__(self, curves: dict[str, list[tuple[int, float]]], config: dict[str, Any]) -> None:
        self.curves, self.config = curves, config
        self.scores: dict[str, float] = {}
        self.pictures: set[str] = set()
        self.name = self.state = ""


def seen_by_wandb(folder: Path, cell: Cell) -> Seen:
    """Of the one file of records, in LevelDB's log format, as https://github.com/google/leveldb describes it."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    seen = Seen({"train/loss": [], "lr": []}, {})
    for text in _blocks(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(text)
        for item in record.history.item:
            if (name := item.key or "/".join(item.nested_key)) in seen.curves:
                seen.curves[name].append((record.history.step.num, float(item.value_json)))
        for item in record.summary.update:
            if item.key.startswith("result/"):
                seen.scores[item.key.removeprefix("result/")] = float(item.value_json)
        for item in record.run.config.update:
            seen.config[item.key] = json.loads(item.value_json)
        if record.run.run_id:
            assert record.run.run_id == run_of(cell)
            seen.name = f"{record.run.project}/{record.run.display_name}"
        if record.WhichOneof("record_type") == "exit":
            seen.state = f"exit {record.exit.exit_code}"
    seen.pictures = {p.stem.partition("_")[0] for p in file.parent.glob("files/media/images/figures/*.png")}
    assert (file.parent / "files" / "result.json").read_bytes() == cell.result_file.read_bytes()
    return seen


def _blocks(data: bytes) -> Iterator[bytes]:
    at, part = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:
            at += left
            continue
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield part
            part = b""


def seen_by_mlflow(folder: Path, cell: Cell) -> Seen:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    experiment = client.get_experiment_by_name("runs")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    curves = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in ("train/loss", "lr")
    }
    seen = Seen(curves, {"train": {"max_steps": int(run.data.params["train.max_steps"])}, **run.data.params})
    seen.scores = {
        name.removeprefix("result/"): value for name, value in run.data.metrics.items() if name.startswith("result/")
    }
    seen.pictures = {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["figures", "result.json"]
    seen.name, seen.state = f"{experiment.name}/{run.info.run_name}", run.info.status
    assert run.data.tags["fsseg.fold"] == "0"
    return seen


def seen_by_trackio(folder: Path, cell: Cell) -> Seen:
    program = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([[r, S.get_logs('runs', r), S.get_run_config('runs', r)] for r in S.get_runs('runs')]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRACKIO_DIR": str(folder)}, capture_output=True, check=True
    )
    ((name, logs, config),) = json.loads(answer.stdout.splitlines()[-1])
    assert name.endswith(f" {run_of(cell)}")
    seen = Seen(
        {key: [(row["step"], row[key]) for row in logs if key in row] for key in ("train/loss", "lr")},
        {"train": {"max_steps": config["train.max_steps"]}, **config},
    )
    for row in logs:
        seen.scores |= {k.removeprefix("result/"): v for k, v in row.items() if k.startswith("result/")}
        for key, value in row.items():
            if key.startswith("figures/") and list(folder.rglob(Path(value["file_path"]).name)):
                seen.pictures.add(key.removeprefix("figures/"))
    seen.name = f"runs/{name.partition(' ')[0]}"
    return seen


def seen_by_aim(folder: Path, cell: Cell) -> Seen:
    import aim
    from aim.storage.context import Context

    repo = aim.Repo(str(folder))
    repo._recreate_index()  # as `aim storage reindex` does, and `aim up` while it shows runs
    (key,) = repo.list_all_runs()
    run = aim.Run(key, repo=repo, read_only=True)
    curves = {}
    for name in ("train/loss", "lr"):
        rows = run.get_metric(name, Context({})).dataframe()
        curves[name] = [(int(s), float(v)) for s, v in zip(rows["step"], rows["value"])]
    seen = Seen(curves, run["config"])
    seen.scores, seen.name, seen.state = dict(run["result"]), f"{run.experiment}/{run.name}", run["state"]
    seen.pictures = {
        name for name in ("curves", "episodes") if run.get_image_sequence(f"figures/{name}", Context({})) is not None
    }
    assert "fold=0" in run.tags
    return seen


READERS: dict[str, Callable[[Path, Cell], Seen]] = {
    "wandb": seen_by_wandb, "mlflow": seen_by_mlflow, "trackio": seen_by_trackio, "aim": seen_by_aim,
}  # fmt: skip
STATES = {"wandb": "exit 0", "mlflow": "FINISHED", "trackio": "", "aim": "done"}


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Result]:
    """A cell that was killed between two checkpoints, and went on."""
    output = tmp_path_factory.mktemp("out")
    c = tracked(root, output, "train.checkpoint_minutes=0")
    process = fork(killed_after_step_6, c, log=output / "first.log", environment={"FSSEG_TEST_SECRET": SECRET})
    process.join(240)
    assert process.exitcode == -signal.SIGKILL, (output / "first.log").read_text()
    assert cell_of(c).curves()["lr"][0][-1] >= 4, "no row came after the checkpoint: nothing would be told twice"
    return cell_of(c), done(c)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_and_resumed_cell_is_one_run_with_each_step_once(name: str, finished: tuple[Cell, Result]) -> None:
    cell, result = finished
    note = read(cell.tracker_file(name), Tracked)
    assert note is not None, cell.tracker_log(name).read_text()
    assert (note.rows, note.ended, note.error) == (8, "done", ""), cell.tracker_log(name).read_text()
    seen = READERS[name](cell.experiment.parent / ".trackers" / name, cell)

    curves = cell.curves()
    for key in ("train/loss", "lr"):
        steps, values = curves[key]
        assert [step for step, _ in seen.curves[key]] == steps == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [value for _, value in seen.curves[key]] == pytest.approx(values)
    assert seen.config["train"]["max_steps"] == 8
    assert seen.scores == pytest.approx(result_numbers(result))
    assert seen.pictures == {"curves", "episodes"}
    assert seen.name == f"runs/{cell.key.path.relative_to('runs')}"
    assert seen.state == STATES[name]


def test_nothing_of_the_environment_is_told(finished: tuple[Cell, Result]) -> None:
    cell, _ = finished
    files = [p for p in (cell.experiment.parent / ".trackers").rglob("*") if p.is_file()]
    assert {p.relative_to(cell.experiment.parent / ".trackers").parts[0] for p in files} == set(NAMES)
    assert [p for p in files if SECRET.encode() in p.read_bytes()] == []


def test_redo_begins_another_run_and_two_cells_at_once_are_two(root: Path, tmp_path: Path) -> None:
    """Of a cell that is made twice, and another fold beside it, in processes of their own."""
    names = "logger.trackers=[wandb,mlflow]"
    cells = [composed(root, tmp_path, names, f"fold={fold}", "train.max_steps=2") for fold in (0, 1)]
    processes = [fork(done_quietly, c, log=tmp_path / f"{n}.log") for n, c in enumerate(cells)]
    for number, process in enumerate(processes):
        process.join(240)
        assert process.exitcode == 0, (tmp_path / f"{number}.log").read_text()
    first = read(cell_of(cells[0]).tracker_file("mlflow"), Tracked)
    done(composed(root, tmp_path, names, "fold=0", "train.max_steps=2", "redo=true"))
    again = read(cell_of(cells[0]).tracker_file("mlflow"), Tracked)
    assert first is not None
    assert again is not None
    assert first.id != again.id

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient((tmp_path / ".trackers" / "mlflow").as_uri())
    experiments = [e for e in client.search_experiments() if e.name == "runs"]
    assert len(experiments) == 1
    folds = [run.data.tags["fsseg.fold"] for run in client.search_runs([experiments[0].experiment_id])]
    assert sorted(folds) == ["0", "0", "1"]
    assert len(list((tmp_path / ".trackers" / "wandb" / "wandb").glob("offline-run-*"))) == 3


def done_quietly(c: Composed) -> None:
    done(c)


def test_mlflow_takes_hostile_names(tmp_path: Path) -> None:
    """Class names are somebody's folders: whatever they hold, no two scores become one."""
    from fsseg.engine.trackers.base import About
    from fsseg.engine.trackers.to_mlflow import MlflowRun

    names = [
        "a/../b",
        "a/./b",
        "..",
        "<script>",
        "$(id)",
        "50 %",
        'say "x"',
        "x" * 300,
        "x" * 299,
        "ünïcode 猫",
        "",
        "a//b",
    ]
    scores = {f"class/{name}": float(value) for value, name in enumerate(names)}
    about = About("abc", "cell", "runs", "group", {"fold": "0"}, {"train": {"lr": 0.1, "$(id)": "<b>"}}, tmp_path / "m")
    run = MlflowRun(about)
    run.result(scores, {}, Path(__file__))
    run.close("done")
    metrics = run._client.get_run(run.id).data.metrics
    assert sorted(metrics.values()) == sorted(scores.values())
    assert "result/class/ünïcode 猫" in metrics
