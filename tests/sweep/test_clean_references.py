"""A checkpoint that anything refers to stays, however it is named; odd entries are named and end nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_directories import KEY, make_run
from test_clean import abandoned_claim, old, run_folder

from fsseg.cell import uses
from fsseg.cell.record import RunDirectory
from fsseg.sweep.clean import delete, find_waste


def checkpoints(*folders: Path) -> set[Path]:
    return {item.path for item in find_waste(folders) if item.why == "checkpoint"}


OTHER = replace(KEY, fold=1)
QUOTED: dict[str, Callable[[str], Any]] = {
    "mapping": lambda path: {"checkpoint": {"path": path, "step": 8}},
    "deep": lambda path: {"checkpoint": [{"of": [{"place": path}]}]},
    "list": lambda path: {"checkpoint": [path]},
    "weights": lambda path: {"backbone": {"weights": path}},
    "broken YAML": lambda path: f"name: runs\ncheckpoint: '{path}'\nx: [\n",
    "broken YAML of a mapping": lambda path: f"name: runs\ncheckpoint:\n  path: {path}\nx: [\n",
    "not UTF-8": lambda path: f"checkpoint: {path}\nx: \udce9\n",
    "with dots": lambda path: {"checkpoint": path.replace("/checkpoints/", "/attempts/../checkpoints/")},
}


@pytest.mark.parametrize("how", QUOTED)
@pytest.mark.parametrize("finished", [False, True])
def test_a_reference_counts_however_a_configuration_writes_it(finished: bool, how: str, tmp_path: Path) -> None:
    used = run_folder(tmp_path, 0)
    config = QUOTED[how](str(used.checkpoint))
    user = make_run(tmp_path, OTHER, result={"checkpoint": None} if finished else None,
                    status=None if finished else "failed", config={"name": "x"})  # fmt: skip
    if isinstance(config, str):
        user.config_file.write_bytes(config.encode("utf-8", "surrogateescape"))
    else:
        make_run(tmp_path, OTHER, config=config)
    assert checkpoints(tmp_path) == set()


def test_overrides_tell_where_there_is_no_configuration(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path, 0), run_folder(tmp_path, 1)
    make_run(tmp_path, replace(KEY, fold=2), status="failed", identity={}, overrides=[f"checkpoint={first.checkpoint}"])
    make_run(tmp_path, replace(KEY, fold=3), status="failed", identity={}, config="",
             overrides=[f"checkpoint='{second.checkpoint}'"])  # fmt: skip
    assert checkpoints(tmp_path) == set()


def test_a_reference_through_a_link_counts(tmp_path: Path) -> None:
    used = run_folder(tmp_path, 0)
    link = tmp_path / "best.pt"
    link.symlink_to(used.checkpoint)
    run_folder(tmp_path, 1, done=False, checkpoint=str(link))
    assert checkpoints(tmp_path) == set()


def test_a_relative_path_from_a_folder_nobody_knows_keeps_what_it_may_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was started in a folder that is neither this one nor above it."""
    used, free = run_folder(tmp_path / "a" / "outputs", 0), run_folder(tmp_path / "a" / "outputs", 1)
    name = os.path.relpath(used.checkpoint, tmp_path / "a")
    for n, relative in enumerate([name, f"../there/../{name}", f"./{name}"], 2):
        user = run_folder(tmp_path / "b" / "outputs", n, done=False, checkpoint=relative)
        notes: list[str] = []
        items = find_waste([tmp_path / "a", tmp_path / "b"], notes)
        assert {i.path for i in items} == {free.checkpoint}
        assert len(notes) == 1
        assert "relative" in notes[0]
        user.config_file.write_text("name: runs\n")


def test_a_cell_in_another_output_folder_keeps_the_checkpoint_it_began_from(tmp_path: Path) -> None:
    """A run leaves a note where it takes a checkpoint: only one of the two folders is cleaned."""
    used, free = run_folder(tmp_path / "here", 0), run_folder(tmp_path / "here", 1)
    user = run_folder(tmp_path / "there", 2, checkpoint=str(used.checkpoint))
    uses.note(used.checkpoint, user.directory)
    uses.note(used.checkpoint, user.directory)
    assert checkpoints(tmp_path / "here") == {free.checkpoint}
    items = find_waste([tmp_path / "here"])
    uses.note(free.checkpoint, user.directory)
    user.config_file.write_text(f"checkpoint: {free.checkpoint}\n")
    assert delete(items) == []  # noted between the listing and the deleting
    assert free.checkpoint.exists()


def test_a_note_counts_no_more_when_its_cell_is_gone_or_began_elsewhere(tmp_path: Path) -> None:
    first, second = run_folder(tmp_path / "here", 0), run_folder(tmp_path / "here", 1)
    gone = make_run(tmp_path / "there", replace(KEY, fold=2), status="failed")
    other = make_run(tmp_path / "there", replace(KEY, fold=3), status="failed", config={"checkpoint": "/x/y.pt"})
    uses.note(first.checkpoint, gone.directory)
    uses.note(second.checkpoint, other.directory)
    gone.status_file.unlink()
    gone.directory.rmdir()
    assert checkpoints(tmp_path / "here") == {first.checkpoint, second.checkpoint}


def test_a_note_of_a_place_that_is_not_seen_from_here_counts(tmp_path: Path) -> None:
    used = run_folder(tmp_path / "here", 0)
    uses.note(used.checkpoint, Path("/not/mounted/here") / KEY.path)
    notes: list[str] = []
    assert find_waste([tmp_path / "here"], notes) == []
    assert "/not/mounted/here" in notes[0]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"directory": 5}', '{"directory": "a\\u0000b"}', "\\xff"])
def test_an_odd_note_ends_nothing(content: str, tmp_path: Path) -> None:
    used = run_folder(tmp_path, 0)
    folder = used.directory / "used_by"
    folder.mkdir()
    (folder / "x.json").write_text(content)
    assert checkpoints(tmp_path) == {used.checkpoint}


def test_a_checkpoint_outside_of_run_directories_gets_no_note(tmp_path: Path) -> None:
    user = run_folder(tmp_path, 0)
    (tmp_path / "checkpoints").mkdir()
    for path in (tmp_path / "last.pt", tmp_path / "checkpoints" / "last.pt", user.checkpoint, tmp_path / "absent.pt"):
        uses.note(path, user.directory)
    assert not list(tmp_path.rglob("used_by"))


def test_nothing_outside_of_a_finished_run_is_deleted(tmp_path: Path) -> None:
    """Its folder of checkpoints, or a file in it, is a link to a run that still needs them."""
    theirs = run_folder(tmp_path, 0, done=False)
    linked = make_run(tmp_path, replace(KEY, fold=1), result=50.0)
    linked.checkpoints.symlink_to(theirs.checkpoints)
    second = run_folder(tmp_path, 2)
    second.checkpoint.unlink()
    second.checkpoint.symlink_to(theirs.checkpoint)
    (second.checkpoints / "circle").symlink_to("circle")
    assert find_waste([tmp_path]) == []


def test_checkpoints_that_an_unfinished_run_shares_by_a_link_stay(tmp_path: Path) -> None:
    done = run_folder(tmp_path, 0)
    sharing = make_run(tmp_path, replace(KEY, fold=1), status="failed")
    sharing.checkpoints.symlink_to(done.checkpoints)
    assert find_waste([tmp_path]) == []


@pytest.mark.parametrize("name", ["result.json", "status.json", "identity.json", "sync.json", "config.yaml"])
def test_a_record_that_says_nothing_is_neither_done_nor_alive(name: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0, done=False)
    temporary = old(run.directory / ".status.json.x.tmp")
    (run.directory / name).write_text("{}")
    # No checkpoint of it goes, for it is not done; what a killed process left goes, for nobody is at work.
    assert [i.path for i in find_waste([tmp_path])] == [temporary]


def test_an_empty_result_and_an_empty_status_together_are_neither(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 0, done=False)
    run.result_file.write_text("{}")
    run.status_file.write_text("{}")
    assert find_waste([tmp_path]) == []
    assert run.look().state == "broken"
    assert not run.look().alive


def test_a_run_that_was_copied_out_of_its_tree_ends_nothing(tmp_path: Path) -> None:
    """Its name comes from its configuration, and says nothing about the folders above it."""
    run = make_run(tmp_path, result=50.0)
    run.checkpoints.mkdir()
    run.checkpoint.write_bytes(b"x")
    run.config_file.write_text("name: r\ndataset: {name: d}\nmodel: {name: m}\nbackbone: {name: b}\n"
                               "shot: 1\nfold: 0\nseed: 0\n")  # fmt: skip
    copied = tmp_path / "copied"
    run.directory.rename(copied)
    short = Path("/") / copied.relative_to("/")
    assert checkpoints(short) == {RunDirectory(short).checkpoint}
    from fsseg.sweep import clean

    assert clean._outputs([RunDirectory(Path("/copied"))]) == set()


def test_one_odd_run_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run_folder(tmp_path, 0), run_folder(tmp_path, 1, done=False)
    claim = abandoned_claim(second)
    glob = Path.glob

    def refuse(path: Path, pattern: str) -> Any:
        if path == first.checkpoints:
            raise PermissionError(13, "Permission denied", str(path))
        return glob(path, pattern)

    monkeypatch.setattr(Path, "glob", refuse)
    notes: list[str] = []
    assert [i.path for i in find_waste([tmp_path], notes)] == [claim]
    assert notes == [f"{first.directory}: Permission denied"]


def test_a_configuration_that_cannot_be_read_holds_checkpoints_back_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it began from is not known, and a deletion cannot be undone."""
    run_folder(tmp_path, 0)
    dark = run_folder(tmp_path, 1, done=False)
    claim = abandoned_claim(dark)
    opening = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if path == dark.config_file:
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    notes: list[str] = []
    assert [i.path for i in find_waste([tmp_path], notes)] == [claim]
    assert str(dark.config_file) in notes[0]


@pytest.mark.parametrize("odd", ["pipe", "folder", "link"])
def test_a_configuration_that_is_no_file_names_nothing(odd: str, tmp_path: Path) -> None:
    done = run_folder(tmp_path, 0)
    run = run_folder(tmp_path, 1, done=False)
    run.config_file.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda p: os.symlink(p, p)}[odd](run.config_file)
    assert checkpoints(tmp_path) == {done.checkpoint}
