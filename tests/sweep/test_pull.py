"""`fsseg sync --pull`: a run that began elsewhere goes on here, nothing here is lost, no part is taken for a run."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from copies import KEY, REMOTE, attempt, redo, started, tree
from run_directories import make_run
from runs import cell_of, composed, done, numbers
from test_mirror import BAD, place

from fsseg.cell.claim import acquire
from fsseg.cell.models import Attempt, Identity, State, read, write_record
from fsseg.cell.record import Cell, RunDirectory, find_runs
from fsseg.cli.sweep import sync as command
from fsseg.errors import UserError
from fsseg.sweep import copies as module
from fsseg.sweep import sync
from fsseg.sweep.pull import Pulled, pull, text
from fsseg.sweep.store import Store, Tries

ONCE = Tries(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes5i")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run in this process gets a signal at this step."""
    import fsseg.engine.train as train_module

    rate = train_module.learning_rate

    def stopping(cfg: Any, now: int, total: int) -> float:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(cfg, now, total)

    monkeypatch.setattr(train_module, "learning_rate", stopping)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_a_preempted_run_goes_on_elsewhere_and_ends_in_the_same_numbers(
    kind: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = request.getfixturevalue("bucket") if kind == "s3" else ""
    url = f"s3://{bucket}/exp" if bucket else f"file://{tmp_path}/store"
    whole = done(composed(root, tmp_path / "whole"))
    first = composed(root, tmp_path / "one", f"sync.url={url}")
    with monkeypatch.context() as stopping:
        stop_at(3, stopping)
        with pytest.raises(SystemExit):
            done(first)
    (pulled,) = pull(url, tmp_path / "other")
    c = composed(root, tmp_path / "other", f"sync.url={url}")
    cell = cell_of(c)
    assert (pulled.directory, pulled.state, pulled.kept, pulled.error) == (cell.directory, State.PREEMPTED, "", "")
    assert cell.checkpoint.read_bytes() == cell_of(first).checkpoint.read_bytes()
    assert not {"claim.json", "sync.json"} & {path.name for path in cell.directory.rglob("*")}
    assert numbers(done(c)) == numbers(whole)
    assert cell.last_attempt()[0] == 2
    assert cell.metrics_file.read_text().count("\n") == 1 + 8  # a line for each step, none twice
    # Back on the first machine the cell counts as done.
    (back,) = pull(url, tmp_path / "one")
    assert (back.state, back.kept, back.error) == (State.DONE, "", "")
    assert numbers(cell_of(first).finished()) == numbers(whole)
    assert pull(url, tmp_path / "one")[0].fetched == 0


def pulled(url: str, output: Path, checkpoints: bool = False) -> Pulled:
    (one,) = pull(url, output, checkpoints, ONCE)
    return one


def with_run(cell: Cell, run: str | None, number: int = 1, host: str = "a") -> Cell:
    """The records of a run of this id, as a start leaves them."""
    write_record(cell.identity_file, Identity(cell.fingerprint, cell.identity, [], run, cell.key))
    attempt(cell, number, host)
    known = read(cell.attempts / f"{number}.json", Attempt)
    assert known is not None
    write_record(cell.attempts / f"{number}.json", msgspec.structs.replace(known, run=run))
    if (result := cell.result()) is not None:
        write_record(cell.result_file, msgspec.structs.replace(result, run=run))
    return cell


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def test_a_finished_cell_comes_with_the_same_bytes_and_its_checkpoints_only_on_request(
    url: str, tmp_path: Path
) -> None:
    cell = started(tmp_path / "local", "a", miou=50.0)
    sync.push(cell, url, checkpoints=True)
    cell.sync_file.unlink()
    expected = tree(cell.directory)
    assert pulled(url, tmp_path / "here").fetched == len(expected) - 1
    there = tmp_path / "here" / REMOTE
    assert tree(there) == {name: content for name, content in expected.items() if name != "checkpoints/last.pt"}
    assert RunDirectory(there).look().state == State.DONE
    assert pulled(url, tmp_path / "here").fetched == 0
    assert pulled(url, tmp_path / "here", checkpoints=True).fetched == 1
    assert tree(there) == expected


def test_an_address_below_the_output_folder_leads_to_the_same_place(url: str, tmp_path: Path) -> None:
    sync.push(started(tmp_path / "local", "a", miou=50.0), url)
    assert pulled(f"{url}/runs/shapes5i", tmp_path / "here").directory == tmp_path / "here" / REMOTE
    assert pulled(f"{url}/{REMOTE}", tmp_path / "there").directory == tmp_path / "there" / REMOTE
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def newer_there(cell: Cell) -> None:
    """The run went on elsewhere."""
    with_run(cell, "one", number=2, host="b")
    cell.checkpoint.write_text("later weights")


def test_a_later_state_of_the_same_run_replaces_what_is_here_and_an_earlier_does_not(url: str, tmp_path: Path) -> None:
    cell = with_run(started(tmp_path / "local", "a"), "one")
    sync.push(cell, url, checkpoints=True)
    assert pulled(url, tmp_path / "here").error == ""
    here = RunDirectory(tmp_path / "here" / REMOTE)
    newer_there(cell)
    sync.push(cell, url, checkpoints=True)
    assert pulled(url, tmp_path / "here").error == ""
    assert here.checkpoint.read_text() == "later weights"
    mine = Cell(here.directory, KEY, "f" * 16, {"fold": 2})
    with_run(mine, "one", number=3, host="c")
    assert pulled(url, tmp_path / "here").kept == "it went on here"
    make_run(mine, result=50.0, identity={"fold": 2})
    with_run(mine, "one", number=3, host="c")
    before = tree(here.directory)
    assert pulled(url, tmp_path / "here").kept == "it is done here"
    assert tree(here.directory) == before


def test_progress_within_one_start_decides_too(url: str, tmp_path: Path) -> None:
    """A copy that was made while the run was at work, and one made later; then the other way round."""
    cell = with_run(started(tmp_path / "local", "a"), "one")
    sync.push(cell, url, checkpoints=True)
    pulled(url, tmp_path / "here")
    make_run(cell, status={"state": "preempted", "step": 8, "steps": 10}, identity={"fold": 2})
    with_run(cell, "one")
    cell.checkpoint.write_text("step 8")
    sync.push(cell, url, checkpoints=True)
    assert pulled(url, tmp_path / "here").error == ""
    here = Cell(tmp_path / "here" / REMOTE, KEY, "f" * 16, {"fold": 2})
    assert here.checkpoint.read_text() == "step 8"
    make_run(here, status={"state": "preempted", "step": 9, "steps": 10}, identity={"fold": 2})
    with_run(here, "one")
    assert pulled(url, tmp_path / "here").kept == "it went on here"


@pytest.mark.parametrize("run", ["two", None])
@pytest.mark.parametrize(("mine", "theirs"), [(None, None), (50.0, None), (None, 50.0), (40.0, 50.0)])
def test_another_run_here_is_never_touched(
    run: str | None, mine: float | None, theirs: float | None, url: str, tmp_path: Path
) -> None:
    own = "one" if run else None
    sync.push(with_run(started(tmp_path / "local", "a", miou=theirs), own), url, checkpoints=True)
    here = with_run(started(tmp_path / "here", "b", miou=mine), run, host="b")
    before = tree(here.directory)
    assert "another" in pulled(url, tmp_path / "here").error
    assert tree(here.directory) == before
    with pytest.raises(UserError, match="1 of 1 cells are not fetched in full"):
        command([tmp_path / "here"], pull=url)


def test_a_run_that_went_on_in_both_places_is_named(url: str, tmp_path: Path) -> None:
    cell = with_run(started(tmp_path / "local", "a"), "one")
    shutil.copytree(tmp_path / "local", tmp_path / "here")
    newer_there(cell)
    sync.push(cell, url, checkpoints=True)
    here = with_run(Cell(tmp_path / "here" / REMOTE, KEY, "f" * 16, {"fold": 2}), "one", number=2, host="c")
    before = tree(here.directory)
    assert "each for itself" in pulled(url, tmp_path / "here").error
    assert tree(here.directory) == before


def test_a_cell_at_work_here_is_left_alone(url: str, tmp_path: Path) -> None:
    cell = with_run(started(tmp_path / "local", "a"), "one")
    shutil.copytree(tmp_path / "local", tmp_path / "here")
    newer_there(cell)
    sync.push(cell, url, checkpoints=True)
    here = RunDirectory(tmp_path / "here" / REMOTE)
    claim = acquire(here.claim_file, 300)
    before = tree(here.directory)
    assert "works on it here" in pulled(url, tmp_path / "here").kept
    assert tree(here.directory) == before
    claim.release()
    assert pulled(url, tmp_path / "here").kept == ""
    assert not here.claim_file.exists()


def test_what_runs_elsewhere_or_has_not_begun_stays_there(url: str, tmp_path: Path, capsys: Any) -> None:
    running = started(tmp_path / "local", "a")
    make_run(running, status={"state": "running", "host": "node7"}, identity={"fold": 2})
    queued = make_run(tmp_path / "local", replace(KEY, fold=3), status="queued")
    for run in (running, queued):
        sync.push(run, url, checkpoints=True)
    command([tmp_path / "here"], pull=url)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 cells: 0 files fetched, 0 done, 0 to go on"
    assert lines[1].endswith("kept as it is: it runs on node7, heard of 0 s ago")
    assert lines[2].endswith("kept as it is: it has not begun there")
    assert not (tmp_path / "here").exists()


class Cut(Exception):
    pass


@pytest.mark.parametrize("after", range(12))
def test_a_pull_that_is_cut_short_anywhere_leaves_no_run_and_the_next_goes_on(
    after: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = with_run(started(tmp_path / "local", "a", miou=50.0), "one")
    sync.push(cell, url, checkpoints=True)
    fetch, names = Store.fetch, []

    def cut(store: Store, name: str, target: Path) -> None:
        if len(names) == after:
            target.write_text("half")
            raise Cut
        names.append(name)
        fetch(store, name, target)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "fetch", cut)
        first = pulled(url, tmp_path / "here", checkpoints=True)
    assert bool(first.error) == (after < 7)
    assert bool(find_runs([tmp_path / "here"])) == (after >= 7)
    monkeypatch.setattr(Store, "fetch", lambda *a: (names.append(a[1]), fetch(*a)))
    assert pulled(url, tmp_path / "here", checkpoints=True).error == ""
    assert len(names) == len(set(names)) == 7  # nothing was fetched twice
    cell.sync_file.unlink()
    assert tree(tmp_path / "here" / REMOTE) == tree(cell.directory)


@pytest.mark.parametrize("placed", range(7))
@pytest.mark.parametrize("miou", [None, 50.0])
def test_a_pull_that_dies_while_it_puts_files_into_place_is_taken_for_nothing_else(
    placed: int, miou: float | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an earlier state of the run: what is there is still the earlier state, or no state, and never done."""
    cell = with_run(started(tmp_path / "local", "a"), "one")
    shutil.copytree(tmp_path / "local", tmp_path / "here")
    here = Cell(tmp_path / "here" / REMOTE, KEY, "f" * 16, {"fold": 2})
    newer_there(cell)
    make_run(cell, result=miou, status={"state": "done" if miou else "preempted", "step": 9}, identity={"fold": 2})
    with_run(cell, "one", number=2, host="b")
    sync.push(cell, url, checkpoints=True)
    put, calls = module.put, []

    def cut(source: Path, target: Path, work: Path) -> None:
        if target.parent != work:
            if len(calls) == placed:
                raise Cut
            calls.append(target)
        put(source, target, work)

    with monkeypatch.context() as broken:
        broken.setattr(module, "put", cut)
        assert pulled(url, tmp_path / "here", checkpoints=True).error
    assert here.finished() is None
    here.check_same_settings()
    assert pulled(url, tmp_path / "here", checkpoints=True).error == ""
    cell.sync_file.unlink()
    assert tree(here.directory) == tree(cell.directory)


def test_a_copy_that_changes_while_it_is_fetched_is_not_taken(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = started(tmp_path / "local", "a")
    sync.push(cell, url, checkpoints=True)
    fetch = Store.fetch

    def changing(store: Store, name: str, target: Path) -> None:
        fetch(store, name, target)
        if name.endswith("last.pt"):
            (tmp_path / "store" / REMOTE / "train.log").write_text("more\n")

    monkeypatch.setattr(Store, "fetch", changing)
    assert "changed meanwhile: train.log" in pulled(url, tmp_path / "here").error
    assert find_runs([tmp_path / "here"]) == []


def test_a_copy_that_is_not_whole_is_named_and_not_fetched(url: str, tmp_path: Path) -> None:
    cell = with_run(started(tmp_path / "local", "a", miou=50.0), "one")
    sync.push(cell, url, checkpoints=True)
    there = tmp_path / "store" / REMOTE
    whole = {p: p.read_bytes() for p in there.rglob("*") if p.is_file()}

    def refused(change: Callable[[], object], why: str) -> None:
        change()
        assert why in pulled(url, tmp_path / "here").error
        assert not (tmp_path / "here" / REMOTE / "identity.json").exists()
        for path, content in whole.items():
            path.write_bytes(content)

    refused(lambda: (there / "result.json").write_text("{"), "result.json is not JSON")
    refused(lambda: (there / "result.json").unlink(), "status.json says done")
    redo(cell, "b", 50.0)
    with_run(cell, "two", number=2, host="b")
    for path in (cell.attempts / "2.json", cell.log_file):
        shutil.copy(path, there / path.relative_to(cell.directory))
    assert "parts of two runs (one and two)" in pulled(url, tmp_path / "here").error
    (there / "attempts" / "2.json").unlink()
    assert pulled(url, tmp_path / "here").error == ""


def test_an_unfinished_copy_without_its_settings_is_not_whole(url: str, tmp_path: Path) -> None:
    sync.push(started(tmp_path / "local", "a"), url, checkpoints=True)
    (tmp_path / "store" / REMOTE / "identity.json").unlink()
    assert "has no identity.json yet" in pulled(url, tmp_path / "here").error


def test_names_that_lead_elsewhere_are_left_out_and_the_rest_comes(
    bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("fsseg").propagate = True
    sync.push(started(tmp_path / "local", "a", miou=50.0), f"s3://{bucket}/exp")
    for name in BAD:
        place(bucket, f"exp/{name}")
        place(bucket, f"exp/{REMOTE}/{name}")
    for name in ("claim.json", "sync.json", ".work-1/x", "used_by/x.json", "figures/.x.tmp", "a.tmp"):
        place(bucket, f"exp/{REMOTE}/{name}")
    here = tmp_path / "deep" / "er"
    found = pull(f"s3://{bucket}/exp", here, tries=ONCE)
    assert [p.error for p in found] == [""]
    assert set(tree(here)) == {f"{REMOTE}/{name}" for name in (
        "attempts/1.json", "config.yaml", "identity.json", "result.json", "status.json", "train.log"
    )}  # fmt: skip
    assert not list(tmp_path.rglob("out"))
    assert f"{2 * len(BAD)} files are left out" in caplog.text


def test_names_in_each_others_way_fail_that_cell_alone(bucket: str, tmp_path: Path) -> None:
    for fold in (1, 2):
        sync.push(started(tmp_path / "local", "a", miou=50.0, key=replace(KEY, fold=fold)), f"s3://{bucket}/exp")
    place(bucket, f"exp/{REMOTE}/train.log/x")
    one, two = pull(f"s3://{bucket}/exp", tmp_path / "here", tries=ONCE)
    assert (one.error, bool(two.error)) == ("", True)
    assert RunDirectory(two.directory).look().state != State.DONE


def test_a_record_that_no_run_has_written_is_not_even_read(url: str, tmp_path: Path) -> None:
    sync.push(started(tmp_path / "local", "a", miou=50.0), url)
    with (tmp_path / "store" / REMOTE / "identity.json").open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes" in pulled(url, tmp_path / "here").error


@pytest.mark.parametrize(
    ("folder", "what"),
    [("store", "itself"), ("store/below", "itself"), ("local/runs", "is the folder of one experiment"),
     ("local/train.log", "is no folder")],
)  # fmt: skip
def test_a_wrong_folder_is_refused(folder: str, what: str, url: str, tmp_path: Path) -> None:
    sync.push(started(tmp_path / "local", "a", miou=50.0), url)
    (tmp_path / "local" / "train.log").write_text("")
    with pytest.raises(UserError, match=what):
        pull(url, tmp_path / folder, tries=ONCE)


def test_a_wrong_address_is_told_in_two_lines(tmp_path: Path) -> None:
    for address, what in (("s3:/x", "is no address"), (f"file://{tmp_path}/none", "no run found")):
        with pytest.raises(UserError, match=what):
            pull(address, tmp_path / "here", tries=ONCE)
    with pytest.raises(UserError, match="one address and one folder"):
        command([tmp_path, tmp_path], pull="file:///x")


def test_the_text_tells_what_came_and_what_did_not(url: str, tmp_path: Path) -> None:
    here = tmp_path / "o"
    found = [
        Pulled(here / "a", 7, State.DONE), Pulled(here / "b", 0, State.DONE), Pulled(here / "c", 8, State.PREEMPTED),
        Pulled(here / "d", 0, State.PREEMPTED, kept="it went on here"), Pulled(here / "e", error="OSError: no"),
    ]  # fmt: skip
    assert text(found, Path("outputs")).splitlines() == [
        "5 cells: 15 files fetched, 2 done, 2 to go on, 1 not fetched",
        f"  {here}/d: kept as it is: it went on here",
        f"  {here}/e: not fetched: OSError: no",
        "to go on, start the line of these cells here (output_dir=outputs)",
    ]


@pytest.mark.parametrize("finished", [False, True])
def test_a_part_of_the_evaluation_comes_until_there_is_a_result(finished: bool, tmp_path: Path) -> None:
    there = with_run(started(tmp_path / "there", "a", miou=50.0 if finished else None), "r")
    there.episodes_part.write_bytes(b"part")
    there.episodes_file.write_bytes(b"counts")
    shutil.copytree(tmp_path / "there", tmp_path / "store")
    if finished:  # it was stopped here, and went on there
        old = with_run(started(tmp_path / "here", "a"), "r")
        old.episodes_part.write_bytes(b"less")
    here = RunDirectory(pulled(f"file://{tmp_path}/store", tmp_path / "here").directory)
    assert here.episodes_part.exists() is not finished
    assert here.episodes_file.read_bytes() == b"counts"
