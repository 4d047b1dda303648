"""Readers beside writers: no state of a file that a reader can see is a part of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsseg.process.files import json_text, read_json, write_atomic, write_json

WRITER = """
import json, sys, zlib
from pathlib import Path
from fsseg.process.files import write_json
folder, who = Path(sys.argv[1]), sys.argv[2]
number = 0
while not (folder / "stop").exists():
    number += 1
    for name in ("status.json", "result.json"):
        body = [who, number, "x" * (number * 7919 % 50000)]
        write_json(folder / name, {"body": body, "crc": zlib.crc32(json.dumps(body).encode())})
print(number)
"""


@pytest.mark.process
def test_two_processes_write_and_one_reads_for_30_seconds_without_one_broken_read(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), who], stdout=subprocess.PIPE, text=True)
        for who in ("a", "b")
    ]
    files = [tmp_path / "status.json", tmp_path / "result.json"]
    try:
        patience = time.monotonic() + 60
        while not all(file.exists() for file in files):
            assert time.monotonic() < patience, "the writers never wrote"
            time.sleep(0.05)
        reads, seen = 0, set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for file in files:
                value = json.loads(file.read_bytes())
                assert zlib.crc32(json.dumps(value["body"]).encode()) == value["crc"]
                seen.add(value["body"][0])
                reads += 1
    finally:
        (tmp_path / "stop").touch()
        written = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers)
    assert seen == {"a", "b"}
    assert reads > 100
    assert min(written) > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "status.json", "stop"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "status.json", threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write_json(path, {"number": number, "filler": [number] * 2000})

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        seen = 0
        while seen < 300:
            if path.exists():
                value = json.loads(path.read_text())
                assert set(value["filler"]) == {value["number"]}
                seen += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_read_json_takes_only_objects(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json") is None


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(PLAIN, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20))
def test_json_is_indented_as_by_the_standard_library(value: object) -> None:
    assert json_text(value) == json.dumps(value, indent=2) + "\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_json_is_not_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"miou": value})
    assert not list(tmp_path.iterdir())
