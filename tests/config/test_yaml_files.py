"""YAML files that are no files, no text, too large, or stand for more than they hold: two lines, at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fsseg.config.compose import compose, config_folder
from fsseg.config.files import check_file
from fsseg.errors import UserError

_LEVELS = [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)]
CONTENT = {
    "bomb": ("# @package _global_\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(_LEVELS)).encode(),
    "endless": b"a: &a [*a]\n",
    "deep": b"a: " + b"[" * 5000 + b"]" * 5000,
    "deep_map": b"a: " + b"{b: " * 60 + b"1" + b"}" * 60,
    "latin": b"name: \xe9t\xe9\n",
    "nul": b"name: a\0b\n",
    "large": b"name: x\n#" + b"x" * (1 << 21),
    "broken": b"name: [1,\n",
    "tag": b"name: !!python/object/apply:os.system ['true']\n",
    "in_itself": b"defaults:\n  - in_itself\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "experiment"
    place.mkdir()
    for name, content in CONTENT.items():
        (place / f"{name}.yaml").write_bytes(content)
    os.mkfifo(place / "fifo.yaml")
    (place / "folder.yaml").mkdir()
    return place


@pytest.mark.parametrize("name", [*CONTENT, "fifo", "folder"])
def test_an_experiment_file_that_cannot_be_ends_in_two_lines(name: str, folder: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        compose([f"experiment={name}", f"hydra.searchpath=[file://{folder.parent}]"])
    assert time.monotonic() - started < 30
    assert len(str(caught.value).splitlines()) == 2
    assert name in str(caught.value) or name in ("tag", "in_itself")


def test_a_name_with_a_line_break_or_a_nul_in_a_file_is_a_fault(folder: Path) -> None:
    from fsseg.config.checks import faults

    (folder / "lines.yaml").write_text('# @package _global_\nname: "a\\nb"\noutput_dir: "x\\0y"\n')
    found = faults(compose(["experiment=lines", f"hydra.searchpath=[file://{folder.parent}]"]).cfg)
    assert sorted(fault.what.partition("=")[0] for fault in found) == ["name", "output_dir"]
    assert all("\n" not in fault.what and "\0" not in fault.what for fault in found)


@pytest.mark.parametrize("path", sorted(config_folder().rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_files_of_the_project_are_within_the_limits(path: Path) -> None:
    check_file(str(path))


def test_aliases_that_stand_for_little_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a [1, 2]\nb: [*a, *a, *a]\n")
    check_file(str(file))
