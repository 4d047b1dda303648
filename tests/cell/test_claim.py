"""Claims: one holder at a time, whatever the number of contenders, dead holders and jumping clocks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fsseg.cell import claim as claims
from fsseg.cell.claim import Busy, Claim, acquire, held, is_gone, is_stale, look, read_holder, take_away
from fsseg.process.files import ClaimLost, create_exclusive, write_json

LEASE = 0.5  # renewed every 0.05 s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claim.json"


def foreign(path: Path, seconds_ago: float = 0.0, **fields: Any) -> None:
    """A claim of a process on another machine, last renewed then."""
    write_json(path, {"host": "elsewhere", "pid": 1, "lease_seconds": LEASE, "interval_seconds": LEASE / 10, **fields})
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_a_claim_is_one_file_that_names_its_holder_and_goes_at_release(path: Path) -> None:
    claim = acquire(path, 300)
    assert names(path) == ["claim.json"]
    with pytest.raises(Busy, match=f"process {os.getpid()} on "):
        acquire(path, 300)
    claim.release()
    claim.release()
    assert names(path) == []
    acquire(path, 300).release()


def test_a_claim_renewed_within_its_lease_is_respected_at_once(path: Path) -> None:
    foreign(path, seconds_ago=100, lease_seconds=300, interval_seconds=10)
    with pytest.raises(Busy, match="process 1 on elsewhere"):
        acquire(path, 300)
    assert names(path) == ["claim.json"]


def test_a_claim_older_than_its_lease_is_taken_over(path: Path) -> None:
    foreign(path, seconds_ago=10)
    claim = acquire(path, LEASE)
    claim.check()
    assert names(path) == ["claim.json"]
    claim.release()


def test_a_living_holder_keeps_its_claim_though_the_clock_jumps(path: Path) -> None:
    """Its last renewal is made to look a day old, or to lie in the future, between two renewals."""
    claim = acquire(path, LEASE)
    claim.start()
    try:
        for jump in (-86400, 86400):
            holder = read_holder(path)
            assert holder is not None
            moment = time.time() + jump
            os.utime(path, (moment, moment))
            assert not is_stale(path, holder)
            with pytest.raises(Busy):
                acquire(path, LEASE)
        claim.check()
    finally:
        claim.release()


def test_a_dead_holder_whose_claim_lies_in_the_future_is_found_out(path: Path) -> None:
    foreign(path, seconds_ago=-86400)
    acquire(path, LEASE).release()


def test_a_renewal_sets_the_time_of_the_file_and_calls_back(path: Path) -> None:
    claim = acquire(path, LEASE)
    beats = threading.Semaphore(0)
    os.utime(path, (0, 0))
    claim.start(lambda: beats.release())
    assert beats.acquire(timeout=30)
    assert path.stat().st_mtime > 0
    claim.release()


def test_a_dead_process_of_this_machine_is_known_at_once(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fsseg.cell.claim import acquire;"
        "acquire(Path(sys.argv[1]), 300); import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env={**os.environ, "PYTHONPATH": _repo()})
    holder = read_holder(path)
    assert holder is not None
    assert is_gone(holder)
    acquire(path, 300).release()


def test_a_zombie_and_a_recycled_process_number_count_as_dead() -> None:
    process = subprocess.Popen(["true"])
    while claims.process_start(process.pid) is not None:
        time.sleep(0.01)
    mine = claims._this_process()
    assert is_gone(claims.Holder("", {**mine, "pid": process.pid, "pid_start": "1"}))  # not yet waited for
    process.wait()
    assert not is_gone(claims.Holder("", mine))
    assert is_gone(claims.Holder("", {**mine, "pid_start": "1"}))
    assert not is_gone(claims.Holder("", {**mine, "pid_start": "1", "boot": "another machine's"}))
    assert not is_gone(claims.Holder("", {**mine, "pid_start": "1", "pid_namespace": "a container's"}))


def test_an_earlier_start_of_the_same_slurm_job_is_known_to_be_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"host": "node1", "slurm_job": "7", "slurm_cluster": None, "slurm_restart": None}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not is_gone(claims.Holder("", before))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_gone(claims.Holder("", before))
    assert not is_gone(claims.Holder("", {**before, "slurm_job": "8"}))


def test_an_unreadable_claim_is_judged_by_its_age(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(Busy, match="unknown process"):
        acquire(path, 300)
    assert names(path) == ["claim.json"]
    holder = read_holder(path)
    assert holder is not None
    assert (holder.lease, holder.interval) == (300, 10)
    assert take_away(path, holder)
    assert names(path) == []


def test_taking_away_spares_any_other_claim(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(path, token="old")
    old = read_holder(path)
    assert old is not None
    foreign(path, token="new")
    assert not take_away(path, old)
    # replaced between looking and renaming
    rename = os.rename

    def replaced_meanwhile(source: Any, target: Any) -> None:
        foreign(path, token="newest")
        rename(source, target)

    foreign(path, token="old")
    monkeypatch.setattr(claims.os, "rename", replaced_meanwhile)
    assert not take_away(path, old)
    kept = read_holder(path)
    assert kept is not None
    assert kept.fields["token"] == "newest"
    assert names(path) == ["claim.json"]


def test_the_holder_notices_that_its_claim_is_anothers(path: Path) -> None:
    claim = acquire(path, LEASE)
    path.unlink()
    foreign(path)
    with pytest.raises(ClaimLost, match="taken over by process 1 on elsewhere"):
        claim.check()
    path.unlink()
    with pytest.raises(ClaimLost):  # lost stays lost
        claim.check()
    foreign(path)
    claim.release()
    assert names(path) == ["claim.json"]  # the other's


def test_a_claim_that_is_gone_is_lost(path: Path) -> None:
    """Another process may have taken it, finished, and given it up."""
    claim = acquire(path, LEASE)
    path.unlink()
    with pytest.raises(ClaimLost, match=r"claim.json was removed"):
        claim.check()
    assert names(path) == []
    claim.release()


def test_renewals_of_a_lost_claim_do_not_keep_the_new_one_alive(path: Path) -> None:
    claim = acquire(path, LEASE)
    os.rename(path, path.with_name("taken"))
    foreign(path, seconds_ago=1000)
    os.utime(claim._file)
    assert time.time() - path.stat().st_mtime > 900
    claim.release()


def test_a_folder_without_hard_links_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("fsseg.process.files.os.link", refused)
    assert create_exclusive(path, "one")
    assert not create_exclusive(path, "two")
    assert path.read_text() == "one"
    assert names(path) == ["claim.json"]


def test_the_lost_answer_of_an_nfs_server_is_seen_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link was made, but the client repeated the request and was told that it exists."""
    link = os.link

    def made_but_denied(source: Any, target: Any) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr("fsseg.process.files.os.link", made_but_denied)
    assert create_exclusive(path, "one")


def _contend(path: str, start: Any, held: Any, answers: Any) -> None:
    start.wait()
    for _ in range(10):
        try:
            claim = acquire(Path(path), 30.0)
        except Busy:
            answers.put("busy")
            continue
        with held.get_lock():
            held.value += 1
            alone = held.value == 1
        time.sleep(0.01)
        claim.check()
        with held.get_lock():
            held.value -= 1
        answers.put("alone" if alone else "together")
        claim.release()


def test_of_many_contenders_for_a_stale_claim_one_has_it_at_a_time(path: Path) -> None:
    foreign(path, seconds_ago=1000)
    context = multiprocessing.get_context("fork")
    start, held, answers = context.Event(), context.Value("i", 0), context.Queue()
    processes = [context.Process(target=_contend, args=(str(path), start, held, answers)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    got = [answers.get(timeout=60) for _ in range(60)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert "together" not in got
    assert got.count("alone") >= 1
    assert names(path) == []


def _take_once(path: str, start: Any, answers: Any) -> None:
    start.wait()
    try:
        claim: Claim | None = acquire(Path(path), 30.0)
    except Busy:
        claim = None
    answers.put(claim is not None)
    time.sleep(0.5)  # still held when the last one asks
    if claim is not None:
        claim.check()


def test_a_stale_claim_goes_to_exactly_one(path: Path) -> None:
    foreign(path, seconds_ago=1000)
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_take_once, args=(str(path), barrier, answers)) for _ in range(8)]
    for process in processes:
        process.start()
    got = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert got.count(True) == 1


def _repo() -> str:
    return str(Path(__file__).resolve().parents[2])


def test_of_many_that_wait_one_at_a_time_holds_it_and_nobody_is_left_out(path: Path) -> None:
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, turns
        with held(path, LEASE):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1
                turns += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 6)
    assert names(path) == []


def test_who_waits_says_for_whom_and_a_stale_one_is_not_waited_for(path: Path, caplog: Any) -> None:
    claims.log.propagate = True
    foreign(path, seconds_ago=LEASE * 0.6)  # renewed a moment ago, and never again
    with caplog.at_level("INFO"), held(path, LEASE) as claim:
        claim.check()
    assert f"{path.parent} is held by process 1 on elsewhere; waiting for it" in caplog.text
    assert f"taking {path.parent} over from process 1 on elsewhere" in caplog.text


def test_a_look_tells_who_holds_it_and_whether_he_lives(path: Path) -> None:
    assert look(path) is None
    foreign(path, seconds_ago=LEASE / 2)
    view = look(path)
    assert view is not None
    assert (str(view.holder), view.gone) == ("process 1 on elsewhere", False)
    assert view.alive()
    assert not view.alive(now=view.renewed + LEASE + 0.01)
    claim = acquire(path.with_name("mine.json"), 300)
    mine = look(claim.path)
    assert mine is not None
    assert mine.alive()
    claim.release()
