"""One tree of everything that may lie in the place of a run, beside two good cells: no command stops at any of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY, make_run

from fsseg.cell.record import RunDirectory

GOOD = {"fold0": 41.25, "fold1": 43.75}
DEEP = 200_000


def edited(**fields: Any) -> Callable[[RunDirectory], None]:
    """A whole result with other values; a dotted name stands for a nested field."""

    def make(run: RunDirectory) -> None:
        make_run(run.directory.parents[len(KEY.path.parts) - 1], replace(KEY, name=name_of(run)), result=50.0)
        result = json.loads(run.result_file.read_bytes())
        for dotted, value in fields.items():
            *path, last = dotted.split("__")
            block = result
            for part in path:
                block = block[part]
            block[last] = value
        run.result_file.write_text(json.dumps(result))

    return make


def name_of(run: RunDirectory) -> str:
    return run.directory.parts[-len(KEY.path.parts)]


def holding(name: str, content: bytes | str) -> Callable[[RunDirectory], None]:
    """A failed run in which one file has this content."""

    def make(run: RunDirectory) -> None:
        failed(run)
        (run.directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def failed(run: RunDirectory) -> None:
    root = run.directory.parents[len(KEY.path.parts) - 1]
    make_run(root, replace(KEY, name=name_of(run)), status="failed", identity={}, config={"protocol": {"name": "p"}})


def instead(name: str, put: Callable[[Path], Any]) -> Callable[[RunDirectory], None]:
    """A failed run in which something else lies in the place of a file."""

    def make(run: RunDirectory) -> None:
        failed(run)
        (run.directory / name).unlink(missing_ok=True)
        put(run.directory / name)

    return make


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket has 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def a_link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 20)


def superscript(run: RunDirectory) -> None:
    failed(run)
    run.attempts.mkdir()
    (run.attempts / "².json").write_text("{}")


NAMED: dict[str, Callable[[RunDirectory], None]] = {
    "result-fifo": instead("result.json", os.mkfifo),
    "status-fifo": instead("status.json", os.mkfifo),
    "result-socket": instead("result.json", a_socket),
    "result-folder": instead("result.json", os.mkdir),
    "status-folder": instead("status.json", os.mkdir),
    "result-device": instead("result.json", a_link("/dev/zero")),
    "result-circle": instead("result.json", a_link("result.json")),
    "result-large": instead("result.json", sparse),
    "result-deep": holding("result.json", '{"a":' * DEEP),
    "result-deep-inside": edited(protocol={"a": "DEEP"}),
    "status-deep": holding("status.json", '{"a":' * DEEP),
    "result-list": holding("result.json", "[]"),
    "result-object": holding("result.json", "{}"),
    "result-empty": holding("result.json", ""),
    "result-nan": holding("result.json", '{"schema_version": NaN}'),
    "result-utf16": holding("result.json", '{"schema_version": 2}'.encode("utf-16")),
    "result-binary": holding("result.json", bytes(range(256))),
    "result-digits": holding("result.json", '{"schema_version": 2, "fingerprint": ' + "9" * 5000 + "}"),
    "result-version": edited(schema_version=[[[]]]),
    "score-101": edited(metrics__miou=101.0),
    "score-of-seed": edited(metrics__per_seed=[{"seed": 0, "miou": -3.0}]),
    "score-of-class": edited(metrics__per_class={"cat": 1e300}),
    "score-text": edited(metrics__fb_iou="80"),
    "seconds-negative": edited(timing__train_seconds=-1.0),
    "steps-negative": edited(training__steps=-10),
    "seed-1e300": edited(cell__seed=1e300),
    "seed-negative": edited(cell__seed=-1),
    "classes-1e6": edited(metrics__per_class={f"c{i}": 1.0 for i in range(1_000_000)}),
    "shift-text": edited(metrics__by_background_shift={"left": {"miou": 5.0}}),
    "name-up": edited(cell__name="../../../up"),
    "name-root": edited(cell__name="/root/up"),
    "name-long": edited(cell__name="n" * 5000),
    "status-negative": holding("status.json", '{"state": "failed", "step": -5, "steps": 10}'),
    "status-number": holding("status.json", '{"state": 5}'),
    "config-fifo": instead("config.yaml", os.mkfifo),
    "config-deep": holding("config.yaml", "[" * 900 + "]" * 900),
    "config-bomb": holding(
        "config.yaml", "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    ),
    "config-tag": holding("config.yaml", 'protocol: {name: !!int ""}'),
    "config-python": holding("config.yaml", "protocol: !!python/object/apply:os.getcwd []"),
    "config-nan": holding("config.yaml", "protocol: {name: .nan}"),
    "config-date": holding("config.yaml", "protocol: {name: 2026-01-01}"),
    "config-binary": holding("config.yaml", b"protocol: \xff\xfe\x80"),
    "config-large": holding("config.yaml", "#" * (2 << 20)),
}
"""Each is named by `fsseg aggregate` as a file that cannot be read."""

SURVIVED: dict[str, Callable[[RunDirectory], None]] = {
    "result-nowhere": instead("result.json", a_link("nowhere")),
    "config-keys": holding("config.yaml", "protocol: {1: a, x: b, null: c}"),
    "identity-fifo": instead("identity.json", os.mkfifo),
    "identity-deep": holding("identity.json", '{"identity":' * DEEP),
    "claim-fifo": instead("claim.json", os.mkfifo),
    "claim-deep": holding("claim.json", "[" * DEEP),
    "claim-lease": holding("claim.json", '{"lease_seconds": ' + "9" * 400 + ', "interval_seconds": Infinity}'),
    "claim-types": holding("claim.json", '{"pid": "../self", "slurm_job": "7", "slurm_restart": "x", "host": []}'),
    "sync-fifo": instead("sync.json", os.mkfifo),
    "sync-types": holding("sync.json", '{"files": {"result.json": "x"}, "pending": 5}'),
    "metrics-fifo": instead("metrics.csv", os.mkfifo),
    "attempt-superscript": superscript,
    "host-escape": holding(
        "status.json", json.dumps({"state": "failed", "reason": "\x1b[2J\u202egone\nforged line", "host": "a\rb"})
    ),
}
"""Each is a cell that did not end, or one of whose less important files is damaged."""


FOREIGN = {
    b"not-\xff-utf8": r"not-\xff-utf8",
    b"two\nlines": r"two\nlines",
    b"\x1b[31mred": r"\x1b[31mred",
    "\u202eright".encode(): r"\u202eright",
    rb"\input{x}%$_^~&#": r"\input{x}%$_^~&#",
    b"a|b`<i>": "a|b`<i>",
}
"""Names of runs, and how they are shown."""


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """The two good cells under `good`, and everything else beside them."""
    root = tmp_path / "runs"
    for fold, miou in enumerate(GOOD.values()):
        run = make_run(root, replace(KEY, name="good", fold=fold), result=miou, identity={"train.lr": 0.1})
        run.checkpoint.parent.mkdir()
        run.checkpoint.write_bytes(b"weights")
    for name, make in {**NAMED, **SURVIVED}.items():
        run = RunDirectory(root / replace(KEY, name=name).path)
        run.directory.mkdir(parents=True)
        make(run)
    deep_inside = RunDirectory(root / replace(KEY, name="result-deep-inside").path).result_file
    deep_inside.write_text(deep_inside.read_text().replace('"DEEP"', "[" * DEEP + "]" * DEEP))
    for raw in FOREIGN:
        make_run(root, replace(KEY, name=os.fsdecode(raw)), status="failed", identity={}, config={})
    links = root / "links"
    links.mkdir()
    for i in range(12):  # 12 folders of 12 links to all of them: 12^12 ways
        (links / f"d{i}").mkdir()
        for j in range(12):
            (links / f"d{i}" / f"l{j}").symlink_to(links / f"d{j}")
    (links / "circle").symlink_to("circle")
    (links / "up").symlink_to(tmp_path)
    older = root / "older"
    for name, content in {
        "deep": "[" * DEEP,
        "digits": json.dumps({"results": {"pascal5i_resnet50_1shot": {"9" * 5000: {"miou": 0.5}}}}),
        "shots": json.dumps({"results": {f"pascal5i_resnet50_{'9' * 5000}shot": {"0": {"miou": 0.5}}}}),
    }.items():
        (older / name).mkdir(parents=True)
        (older / name / "replication_results.json").write_text(content)
    for name, put in {"fifo": os.mkfifo, "folder": os.mkdir}.items():
        (older / name).mkdir()
        put(older / name / "replication_results.json")
    elsewhere = tempfile.mkdtemp()  # not below tmp_path: pytest itself cannot delete it
    (root / "deep").symlink_to(elsewhere)
    below = os.open(elsewhere, os.O_RDONLY)
    for _ in range(3000):  # a path longer than the system takes, and deeper than Python calls itself
        os.mkdir("d", dir_fd=below)
        deeper = os.open("d", os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = deeper
    os.close(below)
    yield root
    subprocess.run(["rm", "-rf", elsewhere], check=True)


def fsseg(*words: str) -> subprocess.CompletedProcess[bytes]:
    """In a process of its own: what hangs is ended, and standard output is strict about what it can encode."""
    command = [sys.executable, "-m", "fsseg", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, timeout=100, env=environment)


def plain(done: subprocess.CompletedProcess[bytes]) -> str:
    """What was printed, all of it printable."""
    text = (done.stdout + done.stderr).decode()
    assert "Traceback" not in text, text[-3000:]
    assert all(line.isprintable() for line in text.split("\n")), [x for x in text.split("\n") if not x.isprintable()]
    assert not any(line.startswith(("lines", "forged line")) for line in text.split("\n"))
    return text


def test_status_names_every_bad_entry_and_shows_the_good_cells(tree: Path) -> None:
    text = plain(done := fsseg("status", str(tree)))
    assert done.returncode == 0, text[-2000:]
    assert f"{2 + len(NAMED) + len(SURVIVED) + len(FOREIGN)} cells: 2 done, " in text
    assert "41.25" in text
    assert "File name too long" in text
    assert "links/up: is a link to a folder above" in text
    names = [*NAMED, *SURVIVED, *map(os.fsdecode, FOREIGN)]
    shown = [*NAMED, *SURVIVED, *FOREIGN.values()]
    for some in (slice(0, 35), slice(35, None)):  # a section shows the first 40
        text = plain(fsseg("status", *(str(tree / name) for name in names[some])))
        for name in shown[some]:
            assert f"{name}/pascal5i" in text, name
    assert r"\x1b[2J\u202egone\nforged line" in text


def test_aggregate_names_every_bad_entry_and_tabulates_the_good_cells(tree: Path, tmp_path: Path) -> None:
    done = fsseg("aggregate", str(tree), "--out", str(tmp_path / "tables"))
    text = plain(done)
    assert done.returncode == 0, text[-2000:]
    tables = json.loads((tmp_path / "tables" / "summary.json").read_text())["tables"]
    shots = {row["name"]: row["shots"]["1shot"] for table in tables for row in table["rows"]}
    assert {fold: shots["good"][fold[-1]]["miou"] for fold in GOOD} == GOOD
    assert not any(entry for name, row in shots.items() if name != "good" for entry in row.values())
    unreadable = text.partition("Could not be read")[2]
    for name in NAMED:
        assert f"{name}/pascal5i" in unreadable, name
    for name in ("deep", "digits", "shots", "fifo", "folder"):
        assert f"older/{name}/replication_results.json" in unreadable, name
    assert not (tmp_path / "up").exists()
    for kind in ("csv", "md", "tex"):
        lines = (tmp_path / "tables" / f"summary.{kind}").read_text(encoding="utf-8").split("\n")
        assert all(line.isprintable() for line in lines), kind


def test_retry_goes_on_past_every_bad_entry(tree: Path) -> None:
    done = fsseg("retry", str(tree))
    text = plain(done)
    assert done.returncode == 0, text[-2000:]
    for name in ("status-fifo", "config-bomb", "attempt-superscript", "result-fifo"):
        assert f"{name}/pascal5i" in text, name


def test_clean_goes_on_past_every_bad_entry(tree: Path) -> None:
    done = fsseg("clean", str(tree))
    text = plain(done)
    assert done.returncode == 0, text[-2000:]
    assert "2 checkpoints of finished cells" in text


def test_sync_goes_on_past_every_bad_entry(tree: Path, tmp_path: Path) -> None:
    done = fsseg("sync", str(tree), "--url", f"file://{tmp_path}/store")
    plain(done)
    for fold in range(2):
        copied = tmp_path / "store" / replace(KEY, name="good", fold=fold).path / "result.json"
        assert copied.read_bytes() == (tree / replace(KEY, name="good", fold=fold).path / "result.json").read_bytes()


def test_a_terminal_that_knows_few_characters_shows_the_others_as_escapes(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, replace(KEY, name="ü", seed=seed), result=50.0 + seed)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, "-m", "fsseg", "aggregate", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert rb"50.5 \xb10.7" in done.stdout  # the mean of 50 and 51 and their deviation


def test_a_fault_names_foreign_text_in_two_lines(tmp_path: Path) -> None:
    done = fsseg("status", str(tmp_path / "no\nsuch\x1b[2J"))
    assert done.stderr.decode().split("\n") == [
        f"error: {tmp_path}/no\\nsuch\\x1b[2J is no folder",
        "  -> name a folder that holds runs, e.g. outputs/runs",
        "",
    ]
