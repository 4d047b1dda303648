"""`python train.py --help` is ours, names everything that can be chosen, and says nothing that does not work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fsseg.config.checks import faults
from fsseg.config.compose import Composed, composer, config_folder
from fsseg.config.entry import config_keys

REPO = Path(__file__).resolve().parents[2]


def printed(*arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=REPO, capture_output=True, text=True, check=True, timeout=120
    )
    return ended.stdout


@pytest.fixture(scope="module")
def text() -> str:
    return printed("--help")


def section(text: str, title: str) -> str:
    return re.split(r"^(?=\w+( \w+)?$)", text.partition(f"\n{title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_group_is_named_with_every_choice(text: str) -> None:
    # A group's line is indented by two, its choices stand below it.
    listed = dict(re.findall(r"^  (\S+) +\S.*\n((?:    .*\n)+)", section(text, "Groups"), re.MULTILINE))
    folders = {path.parent for path in config_folder().glob("*/*.yaml")} - {config_folder() / "hydra"}
    assert set(listed) == {folder.name for folder in folders} | {"hydra/launcher"}
    folders.add(config_folder() / "hydra" / "launcher")
    for folder in folders:
        words = set(re.findall(r"\w+", listed[folder.relative_to(config_folder()).as_posix()]))
        assert {path.stem for path in folder.glob("*.yaml")} <= words


def test_every_choice_named_exists(text: str) -> None:
    for group, choices in re.findall(r"^  (\S+) +\S.*\n((?:    .*\n)+)", section(text, "Groups"), re.MULTILINE):
        named = set(re.sub(r"\(.*?\)", "", choices).split()) - {"basic"}  # Hydra's own
        assert named == {path.stem for path in (config_folder() / group).glob("*.yaml")}


def test_every_key_named_exists(text: str) -> None:
    words = [line[:39].split() for line in section(text, "Keys").splitlines()]
    keys = {word.partition("=")[0] for line in words for word in line if "=" in word or "." in word}
    assert len(keys) > 12
    assert keys <= set(config_keys())


def test_the_five_examples_compose_without_a_fault(text: str) -> None:
    lines = [shlex.split(line) for line in section(text, "Examples").splitlines() if line]
    assert len(lines) == 5
    counts = []
    with composer() as c:
        for words in lines:
            assert words[:2] == ["python", "train.py"]
            made = c.grid(words[3:]) if "-m" in words else [((), c.one(words[2:]))]
            counts.append(len(made))
            for _, composed in made:
                assert isinstance(composed, Composed), composed
                assert [fault.what for fault in faults(composed.cfg)] == []
    assert counts == [1, 1, 1, 32, 3]


def test_what_there_is_to_read_is_there(text: str) -> None:
    places = re.findall(r"[\w/]+\.(?:md|py)\b", section(text, "Read on"))
    assert len(places) >= 5
    assert [place for place in places if not (REPO / place).is_file()] == []


def test_a_line_is_no_wider_than_the_others(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 120


def test_hydras_help_is_still_there() -> None:
    assert "--multirun" in printed("--hydra-help")
