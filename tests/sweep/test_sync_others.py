"""Copies onto what is there already: the folder itself, another run of the cell, an earlier run of our own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from copies import KEY, REMOTE, attempt, configured, redo, started, tree

from fsseg.process.files import write_atomic
from fsseg.sweep import sync
from fsseg.sweep.store import Store, Tries

ONCE = Tries(1, pause=0)


def places(outputs: Path, how: str) -> str:
    """An address that means the output folder, or one inside it."""
    if how == "link":
        (outputs.parent / "link").symlink_to(outputs)
        return f"file://{outputs.parent}/link"
    return {
        "plain": f"file://{outputs}",
        "dots": f"file://{outputs}/runs/../",
        "relative": f"file://{os.path.relpath(outputs)}",
        "local": f"local://{outputs}",
        "nested": f"file://{outputs}/copies",
        "inside a run": f"file://{outputs}/{REMOTE}/copies",
    }[how]


@pytest.mark.parametrize("how", ["plain", "dots", "relative", "local", "link", "nested", "inside a run"])
def test_a_run_is_never_copied_onto_itself(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    outputs = tmp_path / "outputs"
    cell = started(outputs, "a", miou=50.0)
    before = tree(outputs)
    [(_, outcome)] = sync.catch_up([outputs], places(outputs, how))
    assert "the runs themselves" in outcome.error
    assert outcome.sent == []
    after = tree(outputs)
    after.pop(f"{REMOTE}/sync.json", None)
    assert after == before
    assert cell.result() is not None


def test_a_run_that_is_a_link_to_its_copy_is_not_copied_onto_itself(tmp_path: Path) -> None:
    """Each cell of the output folder may be a link to another disk, where the store lies."""
    started(tmp_path / "store", "a", miou=50.0)
    linked = tmp_path / "outputs" / REMOTE
    linked.parent.mkdir(parents=True)
    linked.symlink_to(tmp_path / "store" / REMOTE)
    before = tree(tmp_path / "store")
    [(_, outcome)] = sync.catch_up([tmp_path / "outputs"], f"file://{tmp_path}/store")
    assert "the runs themselves" in outcome.error
    assert tree(tmp_path / "store") | {f"{REMOTE}/sync.json": ""} == before | {f"{REMOTE}/sync.json": ""}


def test_copies_that_lie_beside_the_outputs_are_no_runs_to_copy(tmp_path: Path) -> None:
    started(tmp_path / "outputs", "a", miou=50.0)
    url = f"file://{tmp_path}/copies"
    for _ in range(2):
        [(directory, outcome)] = sync.catch_up([tmp_path], url)
        assert directory == tmp_path / "outputs" / REMOTE
        assert outcome.error == ""


def test_a_result_on_the_store_is_there_at_every_moment_of_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redo=true on the same machine: sync.json says that the copy is of this directory."""
    url, there = f"file://{tmp_path}/store", tmp_path / "store" / REMOTE
    cell = started(tmp_path / "local", "a", starts=3, miou=50.0)
    sync.push(cell, url, True)
    old = (there / "result.json").read_text()
    redo(cell, "a, later", miou=60.0)
    assert (there / "attempts" / "3.json").exists()
    seen: list[tuple[str, str]] = []
    original = Store.send

    def send(store: Store, source: Path, name: str) -> None:
        seen.append((Path(name).name, (there / "result.json").read_text()))
        original(store, source, name)

    monkeypatch.setattr(Store, "send", send)
    outcome = sync.push(cell, url, False, ONCE)
    assert outcome.error == ""
    assert {text for _, text in seen} == {old}
    assert [name for name, _ in seen][-1] == "result.json"
    assert (there / "result.json").read_text() == cell.result_file.read_text()
    # Nothing of the earlier run is left under the new result, its checkpoint neither.
    names = {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}
    starts = {f"attempts/{n}.json" for n in (1, 2, 3, 4)}  # the history of the directory
    assert names == starts | {"config.yaml", "identity.json", "result.json", "status.json", "train.log"}


@pytest.mark.parametrize("failing", ["train.log", "identity.json", "result.json"])
def test_a_replacement_cut_short_goes_on(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, there = f"file://{tmp_path}/store", tmp_path / "store" / REMOTE
    cell = started(tmp_path / "local", "a", starts=2, miou=50.0)
    write_atomic(cell.episodes_figure, "of the old run")
    sync.push(cell, url)
    old = (there / "result.json").read_text()
    redo(cell, "a, later", miou=60.0)
    original = Store.send

    def send(store: Store, source: Path, name: str) -> None:
        if name.endswith(failing):
            raise ConnectionResetError("reset")
        original(store, source, name)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "send", send)
        assert "ConnectionResetError" in sync.push(cell, url, tries=ONCE).error
    assert (there / "result.json").read_text() == old
    assert sync.push(cell, url, tries=ONCE).error == ""
    assert (there / "result.json").read_text() == cell.result_file.read_text()
    assert not (there / "figures").exists() or list((there / "figures").iterdir()) == []


def test_a_copy_stays_whole_until_the_run_that_replaces_it_is_finished(tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    url = f"file://{tmp_path}/store"
    sync.push(cell, url, True)
    before = tree(tmp_path / "store")
    redo(cell, "a, later", miou=None)
    outcome = sync.push(cell, url, True, ONCE)
    assert "holds a finished run of this cell" in outcome.error
    assert tree(tmp_path / "store") == before


@pytest.mark.parametrize("finished", [False, True])
def test_two_machines_with_one_address_do_not_replace_each_others_results(finished: bool, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    sync.push(started(tmp_path / "a", "a", miou=50.0), url, True)
    before = tree(tmp_path / "store")
    outcome = sync.push(started(tmp_path / "b", "b", miou=60.0 if finished else None), url, True, ONCE)
    assert "run of this cell" in outcome.error
    assert outcome.sent == []
    assert tree(tmp_path / "store") == before


def test_a_finished_run_replaces_the_files_of_an_unfinished_one_of_another_machine(tmp_path: Path) -> None:
    """A server is lost, another trains the cell anew: its result must not stay behind for the sake of half a run."""
    url = f"file://{tmp_path}/store"
    sync.push(started(tmp_path / "a", "a", starts=3), url, True)
    b = started(tmp_path / "b", "b", miou=60.0)
    assert sync.push(b, url, False, ONCE).error == ""
    assert "checkpoints/last.pt" not in {n.removeprefix(f"{REMOTE}/") for n in tree(tmp_path / "store")}
    assert {n for n in tree(tmp_path / "store") if "attempts" in n} == {f"{REMOTE}/attempts/1.json"}
    started(tmp_path / "a", "a", starts=3, miou=50.0)  # the first one was not lost after all
    [(_, outcome)] = sync.catch_up([tmp_path / "a"], url, tries=ONCE)
    assert "run of this cell" in outcome.error
    assert (tmp_path / "store" / REMOTE / "result.json").read_text() == b.result_file.read_text()


@pytest.mark.parametrize("newer", [False, True], ids=["another run", "the same run, further"])
def test_half_a_run_does_not_replace_half_of_another_or_a_newer_one(newer: bool, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    sync.push(started(tmp_path / "a", "a", starts=2), url, True)
    before = tree(tmp_path / "store")
    outcome = sync.push(started(tmp_path / "b", "a" if newer else "b", starts=1), url, True, ONCE)
    assert "run of this cell" in outcome.error
    assert tree(tmp_path / "store") == before


def test_a_run_that_went_on_elsewhere_from_its_copy_is_the_same_run(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    sync.push(started(tmp_path / "a", "a", starts=2), url, True)
    b = started(tmp_path / "b", "a", starts=2, miou=60.0)
    attempt(b, 3, "b")
    assert sync.push(b, url, True, ONCE).error == ""
    assert (tmp_path / "store" / REMOTE / "result.json").read_text() == b.result_file.read_text()


def test_another_run_that_comes_while_files_are_sent_is_seen_before_the_result_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, there = f"file://{tmp_path}/store", tmp_path / "store" / REMOTE
    theirs = started(tmp_path / "a", "a", miou=50.0)
    ours = started(tmp_path / "b", "b", miou=60.0)
    original = Store.send

    def send(store: Store, source: Path, name: str) -> None:
        if source.name == "last.pt" and source.is_relative_to(tmp_path / "b"):
            with monkeypatch.context() as usual:
                usual.setattr(Store, "send", original)
                sync.push(theirs, url, tries=ONCE)
        original(store, source, name)

    monkeypatch.setattr(Store, "send", send)
    outcome = sync.push(ours, url, True, ONCE)
    # Both sent at the same time: the store keeps the result that came first.
    assert "run of this cell" in outcome.error
    assert (there / "result.json").read_text() == theirs.result_file.read_text()


@pytest.mark.parametrize("content", ["", "{}", "[]", "{"])
def test_a_result_that_says_nothing_is_none(content: str, tmp_path: Path) -> None:
    url, there = f"file://{tmp_path}/store", tmp_path / "store" / REMOTE
    good = started(tmp_path / "a", "a", miou=50.0)
    sync.push(good, url)
    before = tree(there)
    bad = started(tmp_path / "b", "a", miou=None)
    bad.result_file.write_text(content)
    outcome = sync.push(bad, url, tries=ONCE)
    assert "finished run of this cell" in outcome.error
    assert tree(there) == before
    # On an empty store it does not go along, and is named.
    outcome = sync.push(bad, f"file://{tmp_path}/empty", tries=ONCE)
    assert "result.json" in outcome.error
    assert not (tmp_path / "empty" / REMOTE / "result.json").exists()
    assert (tmp_path / "empty" / REMOTE / "train.log").exists()
    # One on the store does not count either.
    (there / "result.json").write_text(content)
    assert sync.push(started(tmp_path / "c", "a", miou=60.0), url, tries=ONCE).error == ""


def test_a_sync_json_that_says_nothing_counts_as_nothing_copied(tmp_path: Path) -> None:
    cell = started(tmp_path / "a", "a", miou=50.0)
    cell.sync_file.write_text("{}")
    assert "result.json" in sync.push(cell, f"file://{tmp_path}/store").sent


def test_temporary_files_never_travel(tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    for name in (".work-1/result.json", ".work-1/deep/x", "figures/.half/a.png", ".hidden", "train.log.tmp",
                 "checkpoints/last.pt.new", "checkpoints/.last.pt.x.tmp", "deep/.git/config",
                 "cut.tmp/inside", "used_by/1.json"):  # fmt: skip
        path = cell.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    sync.push(cell, f"file://{tmp_path}/store", True)
    assert {n.removeprefix(f"{REMOTE}/") for n in tree(tmp_path / "store")} == {
        "attempts/1.json", "config.yaml", "identity.json", "result.json", "status.json", "train.log",
        "checkpoints/last.pt",
    }  # fmt: skip


def test_links_out_of_a_run_are_not_followed_and_named(tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    secret = tmp_path / "secret"
    (secret / "folder").mkdir(parents=True)
    (secret / "key").write_text("secret")
    (secret / "folder" / "key").write_text("secret")
    (cell.directory / "notes.txt").symlink_to(secret / "key")
    (cell.directory / "figures").symlink_to(secret / "folder")
    (cell.directory / "up").symlink_to(cell.directory.parent)
    (cell.directory / "circle").symlink_to(cell.directory / "circle")
    (cell.directory / "inside.log").symlink_to("train.log")
    outcome = sync.push(cell, f"file://{tmp_path}/store", True)
    found = tree(tmp_path / "store")
    assert "secret" not in found.values()
    assert outcome.error == ""
    assert sorted(outcome.left_out) == ["circle", "figures", "notes.txt", "up"]
    assert found[f"{REMOTE}/inside.log"] == "log of a\n"
    assert "notes.txt" in sync.text([(cell.directory, outcome)])


def test_the_result_and_the_settings_are_not_read_through_a_link_out_of_the_run(tmp_path: Path) -> None:
    other = started(tmp_path / "other", "b", miou=60.0)
    cell = started(tmp_path / "local", "a", miou=50.0)
    cell.result_file.unlink()
    cell.result_file.symlink_to(other.result_file)
    outcome = sync.push(cell, f"file://{tmp_path}/store")
    assert "result.json" in outcome.left_out
    assert not (tmp_path / "store" / REMOTE / "result.json").exists()


def test_a_linked_output_folder_is_no_link_out_of_the_run(tmp_path: Path) -> None:
    started(tmp_path / "disk", "a", miou=50.0)
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    [(_, outcome)] = sync.catch_up([tmp_path / "outputs"], f"file://{tmp_path}/store")
    assert outcome.left_out == []
    assert f"{REMOTE}/result.json" in tree(tmp_path / "store")


def test_one_bad_entry_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the odd runs is named with its reason or copied; the good one is copied."""
    outputs = tmp_path / "outputs"
    cells = [started(outputs, "a", miou=50.0, key=replace(KEY, seed=seed)) for seed in range(9)]
    cells[0].config_file.write_text("sync: 5\n")
    cells[1].config_file.write_text("sync: {url: [1, 2], checkpoints: {}}\n")
    cells[2].config_file.write_text("sync: [url]\n")
    cells[3].config_file.write_text("a: [\n")
    cells[4].sync_file.write_text('{"url": 7}')
    os.mkfifo(cells[5].directory / "pipe")
    (cells[6].directory / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    cells[7].sync_file.mkdir()
    outcomes = dict(sync.catch_up([outputs], f"file://{tmp_path}/store", tries=ONCE))
    assert len(outcomes) == 9
    assert [o.error for o in outcomes.values()] == [""] * 9
    assert outcomes[cells[6].directory].left_out == ["caf\\udce9.txt"]
    assert len([n for n in tree(tmp_path / "store") if n.endswith("result.json")]) == 9
    # And again, with records of starts that say nothing, here and there.
    for number, content in enumerate(("", "{}", "[]", "null", '{"started_at": 5}')):
        cells[number].log_file.write_text("more")
        (cells[number].attempts / "1.json").write_text(content)
        (tmp_path / "store" / cells[number].key.path / "attempts" / "1.json").write_text(content)
    outcomes = dict(sync.catch_up([outputs], f"file://{tmp_path}/store", tries=ONCE))
    assert [o.error for o in outcomes.values()] == [""] * 9

    def unreadable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "the run")

    with monkeypatch.context() as broken:
        broken.setattr(sync, "push", unreadable)
        outcomes = dict(sync.catch_up([outputs], f"file://{tmp_path}/second", tries=ONCE))
    assert {o.error for o in outcomes.values()} == {"PermissionError: [Errno 13] Permission denied: 'the run'"}


def test_a_file_that_vanishes_while_it_is_listed_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    fleeting = cell.directory / "fleeting"
    fleeting.write_text("x")
    original = Path.stat

    def stat(path: Path, **kwargs: bool) -> os.stat_result:
        about = original(path, **kwargs)
        if path == fleeting:
            fleeting.unlink(missing_ok=True)
        return about

    monkeypatch.setattr(Path, "stat", stat)
    assert sync.push(cell, f"file://{tmp_path}/store", tries=ONCE).error == ""


def test_an_address_in_a_stored_configuration_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    cell = started(tmp_path / "local", "a", miou=50.0)
    cell.config_file.write_text(f"sync:\n  url: file://{tmp_path}/store/${{oc.env:SECRET_TOKEN}}\n")
    sync.catch_up([tmp_path / "local"])
    assert not (tmp_path / "store" / "hunter2").exists()
    assert (tmp_path / "store" / "${oc.env:SECRET_TOKEN}").is_dir()


def test_a_run_is_copied_under_its_configured_address(tmp_path: Path) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    sync.sync_cell(configured(f"file://{tmp_path}/store"), cell)
    assert (tmp_path / "store" / REMOTE / "result.json").is_file()


def test_a_store_in_memory_is_told_from_another_run_too(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/store"
    first = started(tmp_path / "a", "a", miou=50.0)
    assert sync.push(first, url, True).error == ""
    assert "run of this cell" in sync.push(started(tmp_path / "b", "b", miou=60.0), url, tries=ONCE).error
    root = sync.mirror(url, tmp_path / "mirror")
    assert (root / REMOTE / "result.json").read_bytes() == first.result_file.read_bytes()


def test_a_huge_record_on_the_store_is_not_read(tmp_path: Path) -> None:
    url, there = f"file://{tmp_path}/store", tmp_path / "store" / REMOTE
    there.mkdir(parents=True)
    with (there / "result.json").open("wb") as file:
        file.truncate(10**12)
    assert "1000000000000 bytes" in sync.push(started(tmp_path / "a", "a", miou=50.0), url, tries=ONCE).error
    assert (there / "result.json").exists()
