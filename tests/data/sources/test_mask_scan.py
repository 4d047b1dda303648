from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trees import labels_of, write_png

from fsseg.data import workers
from fsseg.data.sources import mask_scan as index_module
from fsseg.data.sources.mask_scan import MaskCount, build_index, list_files, scan_masks


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    for number in range(6):
        write_png(tmp_path / "m" / f"i{number}.png", labels_of((1, 10 + number), (5, 3), boundary=2))
    return tmp_path / "m"


def scan(folder: Path, wanted: list[str] | None = None):
    files = list_files(folder, ".png")
    return scan_masks("m", files, wanted or sorted(files), [folder.parent / "cache"])


def opened(monkeypatch) -> list[str]:
    """Names of the masks that are really read from now on."""
    names: list[str] = []

    def spy(path: str) -> list:
        names.append(Path(path).stem)
        return workers.count_values(path)

    monkeypatch.setitem(workers.TASKS, "mask", spy)
    return names


def test_counts_are_the_pixels_of_each_value(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 3, 20, 255], np.uint8), (31, 17))
    write_png(tmp_path / "a.png", labels)
    expected = [[v, int((labels == v).sum()), int(labels[1, 1] == v)] for v in (0, 3, 20, 255)]
    assert workers.count_values(str(tmp_path / "a.png")) == [31, 17, expected]


def test_a_mask_of_one_value_counts(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((4, 6), 7, np.uint8))
    assert workers.count_values(str(tmp_path / "a.png")) == [4, 6, [[7, 24, 1]]]


def test_the_grid_is_rows_and_columns_1_33_65(tmp_path: Path) -> None:
    labels = np.zeros((66, 98), np.uint8)  # on the grid: rows 1, 33, 65 and columns 1, 33, 65, 97
    labels[1, 33] = labels[33, 97] = labels[65, 97] = 4
    labels[0] = labels[32] = labels[:, 32] = labels[:, 96] = 9  # beside it, everywhere
    labels[33, 1] = labels[0, 33] = 7
    write_png(tmp_path / "a.png", labels)
    _, _, rows = workers.count_values(str(tmp_path / "a.png"))
    assert {value: grid for value, _, grid in rows} == {0: 8, 4: 3, 7: 1, 9: 0}


def test_grid_counts_are_kept_with_the_others(masks: Path, monkeypatch) -> None:
    labels = np.full((40, 50), 5, np.uint8)  # on the grid: rows 1, 33 and columns 1, 33
    labels[33, 33] = 1
    write_png(masks / "i0.png", labels)
    assert scan(masks)[0]["i0"].grid == {1: 1, 5: 3}
    names = opened(monkeypatch)
    assert scan(masks)[0]["i0"].grid == {1: 1, 5: 3}
    assert names == []


def test_second_scan_opens_nothing(masks: Path, monkeypatch) -> None:
    first, _ = scan(masks)
    names = opened(monkeypatch)
    assert scan(masks)[0] == first
    assert names == []


def test_a_changed_mask_is_counted_again_and_alone(masks: Path, monkeypatch) -> None:
    scan(masks)
    write_png(masks / "i3.png", labels_of((2, 99)))
    names = opened(monkeypatch)
    counts, _ = scan(masks)
    assert names == ["i3"]
    assert counts["i3"].pixels == {0: 40 * 50 - 99, 2: 99}


def test_a_touched_mask_is_counted_again(masks: Path, monkeypatch) -> None:
    scan(masks)
    os.utime(masks / "i2.png", ns=(0, 0))
    names = opened(monkeypatch)
    scan(masks)
    assert names == ["i2"]


def test_new_rule_version_counts_all_again(masks: Path, monkeypatch) -> None:
    scan(masks)
    monkeypatch.setattr(index_module, "RULE_VERSION", 4)
    names = opened(monkeypatch)
    scan(masks)
    assert len(names) == 6


def test_a_store_cut_short_is_made_again(masks: Path, monkeypatch) -> None:
    first, _ = scan(masks)
    store = next((masks.parent / "cache").glob("*.store"))
    store.write_bytes(store.read_bytes()[:-1])
    names = opened(monkeypatch)
    assert scan(masks)[0] == first
    assert len(names) == 6


def test_scans_of_different_lists_add_up(masks: Path, monkeypatch) -> None:
    scan(masks, ["i0", "i1"])
    scan(masks, ["i2"])
    names = opened(monkeypatch)
    scan(masks, ["i0", "i2", "i5"])
    assert names == ["i5"]


def test_workers_count_what_one_process_counts(masks: Path, monkeypatch) -> None:
    (masks / "i4.png").write_bytes(b"nonsense")
    alone, alone_faults = scan(masks)
    for store in (masks.parent / "cache").glob("*"):
        store.unlink()
    monkeypatch.setattr(workers, "_FILES_PER_WORKER", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    names = opened(monkeypatch)
    together, faults = scan(masks)
    assert names == []  # the children did it all
    assert together == alone
    assert faults == alone_faults
    assert [Path(f.path).name for f in faults] == ["i4.png"]


def test_a_worker_that_dies_loses_nothing(masks: Path, monkeypatch) -> None:
    expected, _ = scan(masks)
    for store in (masks.parent / "cache").glob("*"):
        store.unlink()
    monkeypatch.setattr(workers, "_FILES_PER_WORKER", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    assert scan(masks) == (expected, [])


def test_index_lists_pairs_by_image_and_class_and_tells_unknown_values() -> None:
    counts = {
        "b": MaskCount(2, 5, {0: 4, 2: 5, 1: 1}, {0: 1, 2: 0, 1: 0}),
        "a": MaskCount(2, 5, {0: 8, 255: 1, 9: 1}, {0: 0, 255: 0, 9: 1}),
    }
    index, unknown = build_index(["b", "a"], counts, num_classes=2)
    assert index.image_ids == ("b", "a")
    assert index.pair_image.tolist() == [0, 0]
    assert index.pair_class.tolist() == [0, 1]
    assert index.pair_pixels.tolist() == [1, 5]
    assert index.pair_grid.tolist() == [0, 0]
    assert unknown == {"a": [9]}


_SCAN = """
import os, signal, sys
from pathlib import Path
import fsseg.process.files
from fsseg.data.sources.mask_scan import list_files, scan_masks
if sys.argv[2] == "die":
    fsseg.process.files.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # it is written by then
folder = Path(sys.argv[1])
files = list_files(folder, ".png")
counts, _ = scan_masks("m", files, sorted(files), [folder.parent / "cache"])
print(sorted((name, count.pixels) for name, count in counts.items()))
"""


def child(masks: Path, mode: str) -> subprocess.Popen:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", _SCAN, str(masks), mode]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_process_killed_while_it_writes_leaves_a_usable_state(masks: Path, monkeypatch) -> None:
    process = child(masks, "die")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list((masks.parent / "cache").glob("*.store")) == []
    names = opened(monkeypatch)
    assert len(scan(masks)[0]) == 6
    assert len(names) == 6
    names.clear()
    scan(masks)
    assert names == []


def test_two_processes_that_scan_at_once_agree(masks: Path) -> None:
    running = [child(masks, "live") for _ in range(2)]
    first, second = (process.communicate()[0] for process in running)
    assert first == second == f"{sorted((name, count.pixels) for name, count in scan(masks)[0].items())}\n"
