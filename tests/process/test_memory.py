"""The collector is paused for a block, and as it was afterwards; free memory is what the kernel files say."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from fsseg.process.memory import free_memory, uncollected


def test_the_collector_is_as_it_was_afterwards_whatever_happens() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def machine(folder: Path, available_kb: int, group: str) -> Path:
    """A /proc in which this process is in a control group."""
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 7 kB\nMemAvailable: {available_kb} kB\n")
    (folder / "self" / "cgroup").write_text(group)
    return folder


def limited(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_free_memory_is_what_the_machine_has_or_what_a_control_group_leaves(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    new = ("memory.max", "memory.current", "inactive_file")
    proc = machine(tmp_path / "proc", 1000, "0::/job/step\n")
    assert free_memory(proc, groups) == 1_024_000
    limited(groups / "job" / "step", new, "max", 10, 0)
    assert free_memory(proc, groups) == 1_024_000
    limited(groups / "job", new, "500000", 300_000, 50_000)  # the outer one limits; its page cache can be given up
    assert free_memory(proc, groups) == 250_000
    limited(groups / "job" / "step", new, "400000", 399_999, 0)
    assert free_memory(proc, groups) == 1
    limited(groups / "job" / "step", new, "400000", 500_000, 0)
    assert free_memory(proc, groups) == 0


def test_free_memory_in_a_control_group_of_the_older_kind(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    proc = machine(tmp_path / "proc", 1000, "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/x\n")
    limited(groups / "memory" / "docker" / "abc", old, "9223372036854771712", 10, 0)
    assert free_memory(proc, groups) == 1_024_000
    limited(groups / "memory", old, "700000", 100_000, 0)  # a container sees its own group as the root
    assert free_memory(proc, groups) == 600_000


def test_free_memory_of_this_machine_is_a_number() -> None:
    assert 0 < free_memory() < 1 << 50
    assert free_memory(Path("/nowhere"), Path("/nowhere")) > 0
