"""What a store holds is foreign: names that lead out of the folder, huge files, refused ones."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from copies import KEY, REMOTE, started, tree

from fsseg.cli.report import aggregate
from fsseg.errors import UserError
from fsseg.sweep import sync
from fsseg.sweep.store import Store

BAD = ["../../out/result.json", "a/../../../out/result.json", "/out/result.json", "//out/result.json",
       "a//result.json", "a/./result.json", "..\\..\\out\\result.json", "a/b\\result.json", "a\nb/result.json",
       "\x1b[31m/result.json", "n" * 300 + "/result.json"]  # fmt: skip


class Odd:
    """Makes a `Store` claim further files; they can be read as if they were there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes | OSError | int]) -> None:
        listed, read = Store.list, Store.read

        def sizes(store: Store, below: str = "") -> dict[str, int]:
            return listed(store, below) | {n: v if isinstance(v, int) else 3 for n, v in files.items()}

        def content(store: Store, names: Any) -> dict[str, Any]:
            assert not any(isinstance(files.get(n), int) for n in names)  # never even asked for
            return read(store, [n for n in names if n not in files]) | {n: files[n] for n in names if n in files}

        monkeypatch.setattr(Store, "list", sizes)
        monkeypatch.setattr(Store, "read", content)


@pytest.fixture
def store(tmp_path: Path) -> str:
    url = f"file://{tmp_path}/store"
    sync.push(started(tmp_path / "local", "a", miou=50.0), url)
    return url


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("fsseg").propagate = True
    caplog.set_level("WARNING", logger="fsseg.sync")
    return caplog


@pytest.mark.parametrize("name", [*BAD, "nul\0/result.json", "\udce9/result.json"], ids=lambda name: ascii(name)[1:25])
def test_no_name_leads_out_of_the_folder(
    name: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    Odd(monkeypatch, {name: b"{}"})
    target = tmp_path / "deep" / "er" / "mirror"
    before = set(tmp_path.rglob("*"))
    root = sync.mirror(store, target)
    assert (root / REMOTE / "result.json").is_file()
    new = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert all(p.is_relative_to(root / REMOTE) for p in new), new
    assert not Path("/out").exists()
    [record] = warned.records
    assert "1 files are left out" in record.getMessage()
    assert record.getMessage().isprintable()


def place(bucket: str, key: str) -> None:
    """Put an object past the client, which would tidy up its name."""
    from moto.s3.models import s3_backends

    s3_backends["123456789012"]["aws"].put_object(bucket, key, b"{}")


def test_no_key_of_a_bucket_leads_out_of_the_folder(
    bucket: str, tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    sync.push(started(tmp_path / "local", "a", miou=50.0), f"s3://{bucket}/exp")
    for name in BAD:
        place(bucket, f"exp/{name}")
    root = sync.mirror(f"s3://{bucket}/exp", tmp_path / "deep" / "er" / "mirror")
    assert (root / REMOTE / "result.json").is_file()
    assert not list(tmp_path.rglob("out"))
    [record] = warned.records
    assert f"{len(BAD)} files are left out" in record.getMessage()


def test_a_store_of_bad_names_alone_holds_no_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Store, "list", lambda *_: {"../x/result.json": 2})
    with pytest.raises(UserError, match="no run found"):
        sync.mirror(store, tmp_path / "mirror")
    assert "../x/result.json" in warned.text


def test_refused_and_huge_files_and_names_in_each_others_way_are_named_and_the_others_read(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    Odd(monkeypatch, {"secret/result.json": PermissionError(13, "Permission denied"), "huge/result.json": 10**12,
                      f"{REMOTE}/result.json/status.json": b"{}"})  # fmt: skip
    root = sync.mirror(store, tmp_path / "mirror")
    assert (root / REMOTE / "result.json").is_file()
    [record] = warned.records
    for part in ("secret/result.json (Permission denied)", "huge/result.json", "result.json/status.json"):
        assert part in record.getMessage()


def test_hidden_and_temporary_files_of_a_store_are_not_read(store: str, tmp_path: Path) -> None:
    for name in (".work-1/result.json", "cut.tmp/result.json", f"{REMOTE}/.old-1/result.json"):
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    root = sync.mirror(store, tmp_path / "mirror")
    assert {n for n in tree(root) if n.endswith("result.json")} == {f"{REMOTE}/result.json"}


def test_a_pipe_in_a_store_does_not_block(store: str, tmp_path: Path) -> None:
    (tmp_path / "store" / "odd").mkdir()
    os.mkfifo(tmp_path / "store" / "odd" / "result.json")
    assert (sync.mirror(store, tmp_path / "mirror") / REMOTE / "result.json").is_file()


def test_aggregate_of_an_address_with_bad_names_makes_its_tables(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for fold in range(4):
        sync.push(started(tmp_path / "local", "a", miou=50.0, key=replace(KEY, fold=fold)), f"s3://{bucket}/exp")
    place(bucket, "exp/../../../out/result.json")
    aggregate([f"s3://{bucket}/exp"], tmp_path / "tables")
    assert "| 50.0 |" in (tmp_path / "tables" / "summary.md").read_text()
    assert "out/result.json" in warned.text
