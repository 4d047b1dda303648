"""Every page: listed in the index, its links resolve, the names and files it speaks of exist, its commands compose."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from fsseg.cli.app import app
from fsseg.config.compose import composer
from fsseg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for _, target in LINK.findall(index.read_text())}
    assert {page for page in PAGES if page != index} <= listed


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_resolve(page: Path) -> None:
    for text, target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"[{text}]({target})"
        if anchor:
            assert anchor in anchors(file), f"[{text}]({target})"


@cache
def defined(file: Path) -> set[str]:
    """Functions, classes, methods and module-level names of a Python file; methods also as `Class.method`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
            found |= {f"{node.name}.{n.target.id}" for n in node.body if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_names_that_link_to_a_file_are_defined_there(page: Path) -> None:
    for text, target in LINK.findall(prose(page)):
        if target.endswith(".py") and (match := re.fullmatch(r"`([A-Za-z_.]+)`", text)) and "/" not in text:
            name = match.group(1)
            if not name.endswith(".py"):
                assert name in defined((page.parent / target).resolve()), f"[{text}]({target})"


PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", PRESENT, ids=names(PRESENT))
def test_files_that_a_page_names_exist(page: Path) -> None:
    for line in prose(page).splitlines():
        if re.match(r"\*\*\d\. ", line):  # a step of an add-a-... page: the file that it creates
            continue
        for path in re.findall(r"`((?:fsseg|conf|tests|docs)/[\w./-]+)`", line):
            assert (ROOT / path).exists(), path


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines of code blocks and of code in the text, without those that leave something to the reader."""
    text = page.read_text()
    lines = [line for kind, block in BLOCK.findall(text) if not kind for line in block.splitlines()]
    lines += re.findall(r"`((?:python train\.py|fsseg) [^`]+)`", prose(page))
    for line in lines:
        line = line.partition("  #")[0].removeprefix("pip install -e . && ").strip()
        if not line.startswith(("python train.py", "fsseg ")) or re.search(
            r"\.\.\.|[A-Z]{3,}\b(?!/)|<|\[--| \| ", line
        ):
            continue
        words = shlex.split(line)
        if words[0] == "python" or len(words) > 2:  # two words are the mere name of a subcommand
            yield words


# The others add choices (each has a test of its own), or speak of what there was.
COMPLETE = [page for page in PAGES if not page.name.startswith(("add-a-", "CHANGELOG"))]


def test_the_pages_have_commands_to_try() -> None:
    assert sum(len(list(commands(page))) for page in COMPLETE) >= 40


@pytest.mark.parametrize("page", COMPLETE, ids=names(COMPLETE))
def test_commands_compose(page: Path) -> None:
    command_line = typer.main.get_command(app)
    with composer() as c:
        for words in commands(page):
            if words[:2] == ["fsseg", "train"]:
                words = ["python", "train.py", *words[2:]]
            if words[0] == "fsseg":
                root = command_line.make_context("fsseg", words[1:])  # raises for an unknown option
                name, command, rest = command_line.resolve_command(root, words[1:])  # type: ignore[attr-defined]
                assert command is not None
                command.make_context(name, rest, parent=root)
            else:
                overrides = [word for word in words[2:] if word not in ("-m", "--cfg", "job", "hydra", "-p", "--help")]
                if "-p" in words:
                    overrides.remove("hydra.launcher")
                for job, composed in c.grid(overrides):
                    assert not isinstance(composed, UserError), f"{shlex.join(words)}: {job}: {composed}"


EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=[file.stem for file in EXPERIMENTS])
def test_an_experiment_says_its_command_what_it_takes_and_what_came_out(file: Path) -> None:
    head = []
    for line in file.read_text().splitlines()[1:]:
        if not line.startswith("# "):
            break
        head.append(line.removeprefix("# "))
    assert f"experiment={file.stem}" in head[0]
    takes = next(line for line in head if line.startswith("Takes: "))
    assert any(line.startswith("Result: ") for line in head)
    with composer() as c:
        cells = len(c.grid([f"experiment={file.stem}"]))
    assert takes.startswith(f"Takes: {cells} cell{'s' if cells > 1 else ''}")
    # figures that a head quotes are those of the page
    page = (ROOT / "docs" / "results.md").read_text()
    for figure in re.findall(r"\b\d\d\.\d\d\b", " ".join(head)):
        assert figure in page


TEST = re.compile(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(\w+))?`")
NAMED = re.compile(r"`((?:tests/)?[\w/]*test_\w+\.py)?(?:::(\w+))?`")
"""The same, and `::name` alone, which is of the file named before it."""


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_the_tests_that_stand_for_a_promise_exist(page: str) -> None:
    named = [found for found in NAMED.findall((ROOT / "docs" / page).read_text()) if any(found)]
    assert len(named) > 8
    path = ""
    for given, function in named:
        path = given or path
        file = ROOT / "tests" / path.removeprefix("tests/")
        assert file.is_file(), path
        assert not function or function in defined(file), f"{path}::{function}"


def test_every_promise_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "|---"))]
    assert len(promises) > 25
    assert [row for row in promises if not TEST.search(row)] == []
