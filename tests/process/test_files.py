"""Readers beside writers: no state of a file that a reader can see is a part of one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fsseg.process.files import (
    CONFIG_BYTES,
    Refused,
    json_text,
    open_regular,
    read_file,
    read_json,
    read_yaml,
    write_atomic,
    write_json,
)

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
@pytest.mark.parametrize("duration", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_two_processes_write_and_one_reads_without_one_broken_read(duration: int, tmp_path: Path) -> None:
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
        end = time.monotonic() + duration
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


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("[1]")
    here = os.getcwd()
    os.chdir(tmp_path)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.chdir(here)
    for name, why in (("fifo", "a FIFO"), ("device", "a device"), ("socket", "a socket"), (".", "a folder")):
        with pytest.raises(Refused) as caught:
            read_file(tmp_path / name, 10)
        assert caught.value.strerror == f"{why}, no file"
        assert read_json(tmp_path / name) is None
    with pytest.raises(OSError, match="symbolic links"):
        read_file(tmp_path / "circle", 10)
    assert read_file(tmp_path / "link", 10) == b"[1]"


def test_no_more_is_read_than_a_file_of_its_kind_may_have(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(Refused, match="more than"):
        read_file(path, 4)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no place
    with pytest.raises(Refused, match=r"1099511\.6 MB, more than the 1\.0 MB"):
        read_file(path, CONFIG_BYTES)
    os.close(open_regular(path))
    path.write_bytes(b"")
    assert read_file(path, 4) == b""


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(Refused):
            read_file(tmp_path / "fifo", 10)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff", b"", b"nul", b'{"a": 1}{']
)
def test_read_json_takes_no_damage_for_an_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") is None


def test_yaml_is_read_as_json_would_say_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: [1, 2.5, x, null, true], 3: y}\nc: '2026-01-01'\nd: ${oc.env:HOME}\n")
    assert read_yaml(path) == {
        "a": {"b": [1, 2.5, "x", None, True], "3": "y"},
        "c": "2026-01-01",
        "d": "${oc.env:HOME}",
    }
    path.write_text("[" * 64 + "]" * 64)
    assert json.dumps(read_yaml(path)) == "[" * 64 + "]" * 64


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (BOMB, "anchors or tags"),
        ("a: &x 1", "anchors or tags"),
        ('a: !!int ""', "anchors or tags"),
        ("a: !!timestamp foo", "anchors or tags"),
        ("!!python/object/apply:os.getcwd []", "anchors or tags"),
        ("[" * 65 + "]" * 65, "too deeply"),
        ("{a: " * 65 + "1" + "}" * 65, "too deeply"),
        ("- " * 900 + "1", "too deeply"),
        ("[" * 100_000, "."),
        ("- " * 100_000, "."),
        ("a: .nan", "."),
        ("a: -.inf", "."),
        ("a: 2026-01-01", "no configuration"),
        ("? [a, b]\n: 1", "."),
        ("a: 0x" + "f" * 9000, "."),
        ("a: [", "."),
        ("a: 1\n---\nb: 2", "."),
        ("a: \ud800", "."),
    ],
)
def test_yaml_that_no_run_writes_is_refused_in_one_line(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=why) as caught:
        read_yaml(path)
    assert len(str(caught.value).splitlines()) == 1


PIECES = [
    "a: 1", "b: x", "true: 2", "yes: 3", "null: 4", "  c: 3", "  - 1", "- 2", "a:", "b: |", "  text", "text", "a: 'x",
    "b: 1'", "'q: 1", "d: {x: 1,", "y: 2}", "e: [1,", "2]", "---", "...", "%YAML 1.1", "# c", "", "f: &x 1", "g: *x",
    "h: !!int 3", "<<: {a: 1}", "k : 1", "? a", ": b", "t: 2024-01-01", "n: .nan", "x: 1e5", "\tq: 1", "0: 1",
    "z: 1: 2",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_yaml_that_is_read_in_parts_says_what_it_says_as_a_whole(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "x.yaml").write_text(text := "\n".join(lines))
    try:
        mine = json.dumps(read_yaml(tmp_path / "x.yaml"))
    except ValueError:
        return  # what is refused, other tests say
    assert mine == json.dumps(yaml.safe_load(text))


def test_parts_that_many_files_share_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = yaml.load
    monkeypatch.setattr(yaml, "load", lambda text, **kind: read.append(text) or whole(text, **kind))
    for seed in range(5):
        (tmp_path / "x.yaml").write_text(f"seed: {seed}\nmodel:\n  of_this_test: 3\n  seeds:\n  - 0\n")
        found = read_yaml(tmp_path / "x.yaml")
        assert found == {"seed": seed, "model": {"of_this_test": 3, "seeds": [0]}}
        found["model"]["seeds"].append(1)  # which is nobody else's
    assert sum("of_this_test" in text for text in read) == 1
