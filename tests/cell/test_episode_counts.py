"""Counts of single episodes: the same bytes in whatever order and pieces they come, and no other file is believed."""

from __future__ import annotations

import io
import logging
import os
import random
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_directories import KEY, make_run

from fsseg.cell import episodes as module
from fsseg.cell.claim import acquire
from fsseg.cell.episodes import (
    EpisodeCounts,
    EpisodePart,
    EpisodeScope,
    PartHead,
    Scored,
    read_counts,
    write_counts,
)
from fsseg.cell.fence import fenced, set_aside
from fsseg.cell.models import EpisodesRecord, Unreadable
from fsseg.cell.record import Cell
from fsseg.sweep.preflight import output_faults

SCOPE = EpisodeScope((7, 3), (1, 4), ("cat", "dog"), ("", "0.5"))
HEAD = PartHead(run="r", fingerprint="f", weights="w", episodes={"": "e", "0.5": "x"}, data="d", images="i")
IN_ORDER = [("", 7, 0), ("", 7, 1), ("", 3, 0), ("", 3, 1), ("0.5", 7, 0), ("0.5", 3, 0)]
"""(shift, seed, number) of `SCORED`: seeds as the protocol lists them, not by size."""


def scored(shift: str, seed: int, number: int) -> Scored:
    """An episode of 100 counted pixels, 30 of them true; 20 are predicted in round 0, of which 10 + number are true."""
    hits = 10 + number
    rounds = [(hits, 50 - hits, 50 + hits, 100 - hits), (30, 30, 70, 70)]
    return Scored(seed, number, 4 if seed == 3 else 1, shift, 30, rounds, None if number else 0.25)


SCORED = [scored(*key) for key in IN_ORDER]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "episodes.part"


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that write hundreds of files."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def begun(path: Path, rows: list[Scored] = SCORED, head: PartHead = HEAD) -> EpisodePart:
    part = EpisodePart(path, head, SCOPE)
    for row in rows:
        part.append([row])
    part.close()
    return part


def content(counts: EpisodeCounts, folder: Path) -> bytes:
    write_counts(folder / "episodes.npz", counts)
    return (folder / "episodes.npz").read_bytes()


def test_columns_are_what_was_counted(tmp_path: Path) -> None:
    record = write_counts(tmp_path / "episodes.npz", EpisodeCounts.of(SCOPE, SCORED[::-1]))
    assert (record.episodes, record.rounds) == (6, 2)
    with np.load(tmp_path / "episodes.npz", allow_pickle=False) as columns:
        assert columns["seed"].tolist() == [7, 7, 3, 3, 7, 3]
        assert columns["number"].tolist() == [0, 1, 0, 1, 0, 0]
        assert columns["shifts"][columns["shift"]].tolist() == ["", "", "", "", "0.5", "0.5"]
        assert columns["intersection"].tolist() == [[10, 30], [11, 30], [10, 30], [11, 30], [10, 30], [10, 30]]
        assert columns["background_union"][1].tolist() == [89, 70]
        assert columns["foreground"].tolist() == [30] * 6
        assert dict(zip(columns["classes"].tolist(), columns["class_names"].tolist())) == {1: "cat", 4: "dog"}
        assert np.isnan(columns["distance"]).tolist() == [False, True, False, True, False, False]
    counts = read_counts(tmp_path / "episodes.npz", record)
    assert counts.scope == SCOPE
    assert counts.iou(0).tolist() == [25.0, 100 * 11 / 39, 25.0, 100 * 11 / 39, 25.0, 25.0]
    assert counts.select("", 3)["number"].tolist() == [0, 1]
    assert len(counts.select("0.5")) == 2


def test_a_full_evaluation_takes_a_few_hundred_kilobytes(tmp_path: Path) -> None:
    scope = EpisodeScope(tuple(range(5)), (1,), ("cat",))
    rows = [Scored(s, n, 1, "", 9, [(5, 9, 1, 5)] * 3, 0.5) for s in scope.seeds for n in range(1000)]
    assert 300e3 < len(content(EpisodeCounts.of(scope, rows), tmp_path)) < 500e3


def test_the_clock_and_the_name_leave_no_trace_in_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content(EpisodeCounts.of(SCOPE, SCORED), tmp_path)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert content(EpisodeCounts.of(SCOPE, SCORED), tmp_path / "elsewhere") == first
    assert {m.date_time for m in zipfile.ZipFile(io.BytesIO(first)).infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.usefixtures("quick_disk")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.randoms(use_true_random=False), stops=st.lists(st.integers(0, 11), max_size=3))
def test_order_pieces_and_interruptions_do_not_change_a_byte(draw: random.Random, stops: list[int], path: Path) -> None:
    path.unlink(missing_ok=True)
    whole = content(EpisodeCounts.of(SCOPE, SCORED), path.parent)
    rows = SCORED * 2  # every episode may come twice
    draw.shuffle(rows)
    part = EpisodePart(path, HEAD, SCOPE)
    for at, row in enumerate(rows):
        if at in stops:
            with path.open("ab") as file:
                file.write(b"a torn record")
            part = EpisodePart(path, HEAD, SCOPE)
        part.append([row])
    assert content(part.counts(), path.parent) == whole
    assert content(EpisodePart(path, HEAD, SCOPE).counts(), path.parent) == whole


@pytest.mark.usefixtures("quick_disk")
def test_cut_at_any_byte_whole_records_stay_and_the_rest_ends_in_the_same_bytes(path: Path) -> None:
    begun(path)
    whole, data = content(EpisodeCounts.of(SCOPE, SCORED), path.parent), path.read_bytes()
    head = data.index(b"\n") + 1
    size = (len(data) - head) // len(SCORED)
    assert head + size * len(SCORED) == len(data)
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        part = EpisodePart(path, HEAD, SCOPE)
        assert part.have == set(IN_ORDER[: max(0, cut - head) // size]), cut
        part.append([row for row, key in zip(SCORED, IN_ORDER) if key not in part.have])
        assert content(part.counts(), path.parent) == whole


@pytest.mark.usefixtures("quick_disk")
def test_a_changed_byte_costs_no_more_than_its_record(path: Path) -> None:
    begun(path)
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    size = (len(data) - head) // len(SCORED)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        part = EpisodePart(path, HEAD, SCOPE)
        if at >= head:
            assert part.have == set(IN_ORDER) - {IN_ORDER[(at - head) // size]}
        else:
            assert part.have in (set(), set(IN_ORDER))
        assert not len(part.counts()) or content(part.counts(), path.parent)


@pytest.mark.parametrize("other", [{"run": "s"}, {"fingerprint": "g"}, {"weights": "v"}, {"data": None},
                                   {"images": None}, {"episodes": {"": "f", "0.5": "x"}}, {"format": 2}])  # fmt: skip
def test_a_part_of_something_else_is_not_believed(
    other: dict[str, Any], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun(path, head=msgspec.structs.replace(HEAD, **other))
    with caplog.at_level(logging.INFO, "fsseg"):
        part = EpisodePart(path, HEAD, SCOPE)
    assert part.have == set()
    assert f"other {next(iter(other))}" in caplog.text
    part.append(SCORED[:1])
    assert EpisodePart(path, HEAD, SCOPE).have == {IN_ORDER[0]}


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[" * 10**5, b"\0" * 500, b"\x80\n", b'{"head":{},"rounds":1}'])
def test_a_part_that_is_none_is_replaced(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    assert EpisodePart(path, HEAD, SCOPE).have == set()
    begun(path)
    assert EpisodePart(path, HEAD, SCOPE).have == set(IN_ORDER)


@pytest.mark.parametrize("rounds", [0, -1, 1001, 10**18])
def test_a_part_with_an_odd_number_of_rounds_is_not_believed(rounds: int, path: Path) -> None:
    begun(path)
    path.write_bytes(path.read_bytes().replace(b'"rounds":2', b'"rounds":%d' % rounds))
    assert EpisodePart(path, HEAD, SCOPE).have == set()


def test_a_record_that_contradicts_itself_is_evaluated_again_though_its_checksum_is_right(path: Path) -> None:
    rows = EpisodeCounts.of(SCOPE, SCORED).rows
    rows["intersection"][1] = 31  # more than is true
    rows["seed"][2] = 5  # not of the protocol
    part = EpisodePart(path, HEAD, SCOPE)
    part._open(2, rows)
    assert EpisodePart(path, HEAD, SCOPE).have == set(IN_ORDER) - {IN_ORDER[1], IN_ORDER[2]}


def test_who_has_lost_the_run_writes_where_nobody_looks(path: Path) -> None:
    sleeper = EpisodePart(path, HEAD, SCOPE)
    sleeper.append(SCORED[:2])
    holder = EpisodePart(path, HEAD, SCOPE)
    sleeper.append(SCORED[2:])
    holder.append(SCORED[5:])
    assert EpisodePart(path, HEAD, SCOPE).have == {*IN_ORDER[:2], IN_ORDER[5]}


def test_episodes_are_with_the_system_at_once_and_now_and_then_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    part = EpisodePart(path, HEAD, SCOPE)
    part.append(SCORED[:1])
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(now[0]))
    for second, row in enumerate(SCORED[1:], start=1):
        now[0] = second * 4.0
        part.append([row])
        assert len(path.read_bytes()) == path.stat().st_size
    assert synced == [12.0]
    assert EpisodePart(path, HEAD, SCOPE).have == set(IN_ORDER)


@pytest.mark.parametrize(("row", "what"), [
    (SCORED[0]._replace(rounds=[(31, 50, 50, 69)] * 2), "no possible counts"),  # more hits than true pixels
    (SCORED[0]._replace(rounds=[(10, 40, 61, 90)] * 2), "no possible counts"),  # 101 pixels and 100
    (SCORED[0]._replace(rounds=[(10, 40, 60, 90), (10, 40, 61, 91)]), "no possible counts"),  # rounds of two sizes
    (SCORED[0]._replace(seed=5), "no possible counts"),
    (SCORED[0]._replace(distance=2.5), "no possible counts"),
    (SCORED[0]._replace(rounds=[(10, 40, 60, 90)]), "one number of rounds"),
    (SCORED[0]._replace(number=2**31), "a number is too large"),
])  # fmt: skip
def test_impossible_counts_are_never_recorded(row: Scored, what: str, path: Path) -> None:
    part = begun(path, SCORED[1:3])
    with pytest.raises(ValueError, match=what):
        part.append([SCORED[3], row])
    assert EpisodePart(path, HEAD, SCOPE).have == set(IN_ORDER[1:3])


def test_other_rounds_than_before_are_refused(path: Path) -> None:
    one_round = SCORED[1]._replace(rounds=[(10, 40, 60, 90)])
    with pytest.raises(ValueError, match="1 rounds after 2"):
        begun(path, [SCORED[0], one_round])
    with pytest.raises(ValueError, match="one number of rounds"):
        EpisodeCounts.concat([EpisodeCounts.of(SCOPE, SCORED[:1]), EpisodeCounts.of(SCOPE, [one_round])])


# ----------------------------------------------------------------------------------------------------- files by others


def arrays(tmp_path: Path) -> dict[str, Any]:
    with np.load(io.BytesIO(content(EpisodeCounts.of(SCOPE, SCORED), tmp_path))) as found:
        return dict(found)


def column(name: str, at: Any, value: Any) -> Any:
    def change(a: dict[str, Any]) -> None:
        a[name][at] = value

    return change


@pytest.mark.parametrize(("change", "words"), [
    (lambda a: a.pop("union"), "other parts"),
    (lambda a: a.update(more=np.zeros(3)), "other parts"),
    (lambda a: a.update(format=np.array(2, "<i4")), "format 2; this fsseg reads format 1"),
    (lambda a: a.update(union=a["union"][:, :1]), "union is of another kind"),
    (lambda a: a.update(union=a["union"].astype("<i8")), "union is of another kind"),
    (lambda a: a.update(number=a["number"].astype(">i4")), "number is of another kind"),
    (lambda a: a.update(distance=a["distance"][:-1]), "distance is of another kind"),
    (lambda a: a.update(seed=np.array([{}] * 6, dtype=object)), "no plain numbers"),
    (lambda a: a.update(classes=np.array([1, 4, 5], "<i4")), "contradict each other"),
    (lambda a: a.update(seeds=np.array([7, 3, 7], "<i8")), "contradict each other"),
    (lambda a: a.update(class_names=np.array([1, 2])), "class_names is of another kind"),
    (lambda a: a.update(intersection=np.zeros(6, "<i4")), "intersection is of another kind"),
    (column("intersection", (2, 0), 31), "episode 2 of it has impossible counts"),
    (column("union", (3, 1), 29), "episode 3 of it has impossible counts"),
    (column("background_union", (0, 0), 2**31 - 1), "episode 0 of it has impossible counts"),
    (column("intersection", (1, 0), -1), "episode 1 of it has impossible counts"),
    (column("shift", 1, 2), "episode 1 of it has impossible counts"),
    (column("class_id", 1, 2), "episode 1 of it has impossible counts"),
    (column("distance", 1, np.inf), "episode 1 of it has impossible counts"),
    (column("number", 1, 0), "out of order"),  # the first one twice
    (column("number", 0, 5), "out of order"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    found = arrays(tmp_path)
    change(found)
    np.savez(tmp_path / "other.npz", **found)
    with pytest.raises(Unreadable, match=words):
        read_counts(tmp_path / "other.npz")


@given(picked=st.lists(st.integers(0, len(SCORED) - 1), max_size=4))
def test_what_is_in_order_is_what_sorting_would_not_change(picked: list[int]) -> None:
    counts = EpisodeCounts.of(SCOPE, [SCORED[i] for i in picked])
    assert counts.is_in_order() == (picked == sorted(set(picked)))
    assert counts.is_in_order() == (counts.in_order().rows.tobytes() == counts.rows.tobytes())


def test_a_part_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        for name, array in arrays(tmp_path).items():
            stream = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                stream, {"descr": array.dtype.str, "fortran_order": False, "shape": (10**15, *array.shape[1:])}
            )
            archive.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(Unreadable, match="is no record of episodes"):
        read_counts(tmp_path / "other.npz")


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "other.npz", **arrays(tmp_path))
    with pytest.raises(Unreadable, match="compressed"):
        read_counts(tmp_path / "other.npz")


@pytest.mark.parametrize("data", [b"", b"PK\5\6" + bytes(18), b"{}", b"\x93NUMPY\1\0"])
def test_a_file_of_another_kind_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.npz").write_bytes(data)
    with pytest.raises(Unreadable, match="is no record of episodes"):
        read_counts(tmp_path / "other.npz")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "episodes.npz")
    with pytest.raises(Unreadable, match="a FIFO, no file"):
        read_counts(tmp_path / "episodes.npz")
    os.mkfifo(tmp_path / "episodes.part")
    assert EpisodePart(tmp_path / "episodes.part", HEAD, SCOPE).have == set()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content(EpisodeCounts.of(SCOPE, SCORED), tmp_path)
    monkeypatch.setattr(module, "EPISODES_BYTES", 100)
    with pytest.raises(Unreadable, match="more than"):
        read_counts(tmp_path / "episodes.npz")


# --------------------------------------------------------------------------------------------------- in a run directory


def test_a_run_gives_the_counts_of_which_its_result_names_the_digest(tmp_path: Path) -> None:
    cell = Cell(tmp_path, KEY, "f", {})
    assert cell.episodes() is None
    record = write_counts(cell.episodes_file, EpisodeCounts.of(SCOPE, SCORED))
    assert cell.episodes() is None  # nobody says yet what it is of
    make_run(cell, result={"episodes": msgspec.to_builtins(record)})
    found = cell.episodes()
    assert found is not None
    assert found.keys() == set(IN_ORDER)

    write_counts(cell.episodes_file, EpisodeCounts.of(SCOPE, SCORED[:5]))
    with pytest.raises(Unreadable, match=r"is not the one of result\.json"):
        cell.episodes()
    cell.episodes_file.unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        cell.episodes()


def test_a_result_of_an_earlier_version_has_no_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, result=50.0, version=2)
    run.episodes_file.write_bytes(b"whatever")
    assert run.episodes() is None


def test_numbers_that_the_result_does_not_name_are_refused(tmp_path: Path) -> None:
    record = write_counts(tmp_path / "episodes.npz", EpisodeCounts.of(SCOPE, SCORED))
    with pytest.raises(Unreadable, match="other numbers"):
        read_counts(tmp_path / "episodes.npz", EpisodesRecord(record.sha256, 7, 2))


def test_a_redo_puts_the_counts_aside_with_the_run(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "seed0", KEY, "f", {})
    cell.begin("a: 1\n")
    begun(cell.episodes_part)
    make_run(cell, result={"episodes": msgspec.to_builtins(
        write_counts(cell.episodes_file, EpisodeCounts.of(SCOPE, SCORED)))})  # fmt: skip
    claim = acquire(cell.claim_file, 300)
    with fenced(cell, claim) as work:
        set_aside(cell, work)
        assert not cell.episodes_file.exists()
        assert not cell.episodes_part.exists()
        assert replace(cell, directory=cell.replaced).episodes() is not None
    claim.release()


def test_a_part_copied_from_another_run_of_the_cell_is_not_believed(tmp_path: Path) -> None:
    """identity.json lost, say: the next start is another run, whatever lies beside it."""
    begun(tmp_path / "a.part")
    shutil.copy(tmp_path / "a.part", tmp_path / "b.part")
    assert EpisodePart(tmp_path / "b.part", msgspec.structs.replace(HEAD, run="new"), SCOPE).have == set()


@pytest.mark.parametrize("name", ["episodes.npz", "episodes.part"])
def test_a_folder_of_that_name_is_told_before_the_first_step(name: str, tmp_path: Path) -> None:
    cell = Cell(tmp_path, KEY, "f", {})
    (tmp_path / name).mkdir()
    assert [fault.what for fault in output_faults(cell)] == [
        f"{tmp_path / name} is a folder, and the run writes a file of this name"
    ]
