"""The file of an evaluation list: what is written reads back, and what does not belong to the run is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_source import index_of
from test_episodes import NAMES, make_index

from fsseg.config.schema import ProtocolConfig
from fsseg.data.episode_file import ListHead, read_episodes, write_episodes
from fsseg.data.episodes import episodes_fingerprint, evaluation_episodes
from fsseg.data.lists import val_lists
from fsseg.data.source import ClassIndex
from fsseg.data.types import EpisodeSpec
from fsseg.errors import UserError


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, ClassIndex, dict[int, list]]:
    index = make_index(4)
    lists = val_lists(index, (2, 3), ProtocolConfig(name="p"), 5, NAMES)
    protocol = ProtocolConfig(name="p", num_episodes=12)
    episodes = {seed: evaluation_episodes(lists, protocol, 5, seed) for seed in (0, 3)}
    path = tmp_path / "list.tsv"
    mark = write_episodes(path, episodes, ListHead("fake", 1, 5, NAMES, "p"))
    assert mark == episodes_fingerprint(episodes)
    return path, index, episodes


def read(path: Path, index: ClassIndex, novel: tuple[int, ...] = (2, 3), **changes: Any) -> dict[int, list]:
    return read_episodes(path, replace(ListHead("fake", 1, 5, NAMES), **changes), novel, index)


def test_a_list_is_text_with_a_commented_head_and_a_line_an_episode(tmp_path: Path) -> None:
    episodes = {3: [EpisodeSpec(0, 2, "b", ("c", "d"))], 1: [EpisodeSpec(0, 3, "a", ("b", "c"))]}
    mark = write_episodes(tmp_path / "l.tsv", episodes, ListHead("fake", 1, 2, NAMES, "standard"))
    assert (tmp_path / "l.tsv").read_bytes().decode() == (
        "# fsseg evaluation episodes, version 1\n# dataset: fake\n# fold: 1\n# shot: 2\n# protocol: standard\n"
        f"# seeds: 1,3\n# fingerprint: {mark}\n"
        "seed\tepisode\tclass_id\tclass\tquery\tsupport_1\tsupport_2\n"
        "1\t0\t3\tclass3\ta\tb\tc\n3\t0\t2\tclass2\tb\tc\td\n"
    )


def test_a_written_list_reads_back_and_serves_fewer_shots(written) -> None:
    path, index, episodes = written
    assert read(path, index) == episodes
    one = read(path, index, shot=1)
    assert [s.support_ids for s in one[3]] == [s.support_ids[:1] for s in episodes[3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 2}, "list for fold=1, this run has fold=2"),
        ({"dataset": "coco20i"}, "list for dataset=fake"),
        ({"shot": 6}, "needs shot=6"),
        ({"novel": (3,)}, r"line \d+: class class2 \(2\) is not novel"),
        ({"class_names": NAMES[::-1]}, r"line \d+: class 2 is not 'class2'"),
    ],
)
def test_a_list_for_something_else_is_refused(written, changes: dict, message: str) -> None:
    path, index, _ = written
    with pytest.raises(UserError, match=message) as caught:
        read(path, index, **changes)
    assert str(path) in str(caught.value)


def edit(path: Path, line: int, column: int, value: str) -> None:
    lines = path.read_text().split("\n")
    cells = lines[line - 1].split("\t")
    cells[column] = value
    lines[line - 1] = "\t".join(cells)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (4, "nowhere", "line 12: image nowhere is not in the evaluation split"),
        (5, "j0", r"line 12: image j0 has no pixel of class\d"),
        (0, "x", "line 12: not seed"),
        (9, "", r"line 12: image  is not in"),
        (0, "-1", "line 12: seed -1 is not within 0 and 4294967295"),
        (0, str(2**32), "line 12: seed 4294967296 is not within"),
        (1, "-1", "line 12: episode -1 is not within 0 and 2147483647"),
        (1, str(2**31), "line 12: episode 2147483648 is not within"),
        (1, "0", "line 12: episode 0 of seed 0 comes twice"),
    ],
)
def test_a_faulty_line_is_named(written, column: int, value: str, message: str) -> None:
    path, index, _ = written
    edit(path, 12, column, value)
    with pytest.raises(UserError, match=message):
        read(path, index)


def test_an_image_with_only_a_crowd_of_the_class_is_refused(tmp_path: Path) -> None:
    index = index_of({"a": {2: 500}, "b": {2: 0}})  # 0 pixels: a crowd alone, see `ClassIndex`
    write_episodes(tmp_path / "l.tsv", {0: [EpisodeSpec(0, 2, "a", ("b",))]}, ListHead("fake", 1, 1, NAMES))
    with pytest.raises(UserError, match="image b has no pixel of class2"):
        read(tmp_path / "l.tsv", index, shot=1)


def test_a_query_that_is_its_own_support_is_refused(written) -> None:
    path, index, _ = written
    edit(path, 12, 6, path.read_text().split("\n")[11].split("\t")[4])
    with pytest.raises(UserError, match=r"line 12: the query .* is its own support"):
        read(path, index)


def test_a_list_cut_short_is_refused(written) -> None:
    path, index, _ = written
    lines = path.read_text().rstrip("\n").split("\n")
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="cut or edited"):
        read(path, index)


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "y").write_text("2007_000033\n")
    for name, message in {"x": "cannot be read", "y": "line 1: not a list", "absent": "cannot be read"}.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path / name, make_index(0))
