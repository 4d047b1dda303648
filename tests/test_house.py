"""How the code is built, held to numbers: functions of a readable size, no arrow back up, one name for one thing."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "fsseg"
Function = ast.FunctionDef | ast.AsyncFunctionDef

LONG = {("engine/train.py", "train")}
"""The training loop reads from top to bottom as one function; everything else is shorter."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def functions() -> Iterator[tuple[str, Function]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(PACKAGE).as_posix(), node


def parameters(function: Function) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [a.arg for a in every if a is not None and a.arg not in ("self", "cls")]


def test_no_function_takes_more_than_six_parameters() -> None:
    found = [f"{path}: {f.name} takes {len(parameters(f))}" for path, f in functions() if len(parameters(f)) > 6]
    assert found == []


def test_no_function_but_the_training_loop_is_longer_than_70_lines() -> None:
    lengths = {(path, f.name): (f.end_lineno or 0) - f.lineno + 1 for path, f in functions()}
    assert {where for where, length in lengths.items() if length > 70} == LONG


def test_no_two_classes_have_one_name() -> None:
    found = defaultdict(list)
    for path in modules():
        if "hydra_plugins" not in path.parts:  # Hydra wants subclasses of its own there, of the same names
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by that name, and collects nothing at all if two are the same."""
    names = [path.name for path in (REPO / "tests").rglob("*.py") if path.name not in ("__init__.py", "conftest.py")]
    assert sorted(set(names)) == sorted(names)


def test_every_module_says_what_lives_there() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), path


def prose_and_code() -> tuple[list[tuple[str, str]], set[str]]:
    """(module and line, text) of every docstring and comment, and all words of the code and of the configuration."""
    prose, words = [], set(re.findall(r"\w+", " ".join(p.read_text("utf-8") for p in (REPO / "conf").rglob("*.yaml"))))
    for path in modules():
        words |= set(path.relative_to(REPO).with_suffix("").parts)
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type == tokenize.COMMENT or token.string.lstrip("r").startswith('"""'):
                    prose.append((f"{path.relative_to(REPO)}:{token.start[0]}", token.string))
                elif token.type in (tokenize.NAME, tokenize.STRING):
                    words |= set(re.findall(r"\w+", token.string))
    return prose, words


def test_what_docstrings_and_comments_name_exists() -> None:
    prose, words = prose_and_code()
    foreign = {"searchpath", "submitit_slurm", "x__01", "p_1", "p_hat_1"}  # Hydra's, submitit's, and examples
    for where, text in prose:
        for name in re.findall(r"\bfsseg(?:\.[A-Za-z_]\w*)+", text):
            assert pkgutil.resolve_name(name), f"{where}: {name}"
        for quoted in re.findall(r"`([^`\n]+)`", text):
            if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", quoted):
                assert set(quoted.split(".")) <= words | foreign, f"{where}: {quoted}"
            elif re.fullmatch(r"(tests|conf|docs|fsseg)/[\w./-]*", quoted):
                assert (REPO / quoted).exists(), f"{where}: {quoted}"


def test_no_arrow_runs_back_up() -> None:
    """The contracts in pyproject.toml, by import-linter."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=REPO, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ["sweep", "report", "config", "cell", "process", "draw"])
def test_a_room_that_must_be_quick_imports_no_torch(room: str) -> None:
    names = [".".join(("fsseg", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in (PACKAGE / room).rglob("*.py")]
    lines = [f"import {n.removesuffix('.__init__')}" for n in names if "hydra_plugins" not in n]
    code = "\n".join(["import sys", *sorted(lines), "assert 'torch' not in sys.modules, 'torch is imported'"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
