"""Doing what an add-a-... page says: its code blocks become modules, settings and files of a configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hydra.core.config_store import ConfigStore

from fsseg.config import schema
from fsseg.config.compose import Composed, compose
from fsseg.run import run

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Page:
    """A page and what was installed from it; `undo` takes all of it away again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.schemas: list[Any] = []

    def read(self, name: str) -> None:
        self.text = (DOCS / name).read_text()
        self.python = re.findall(r"^```python\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)
        self.yaml = re.findall(r"^```yaml\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    def file_of(self, step: int) -> str:
        """The file that a step of the page names first."""
        match = re.search(rf"^\*\*{step}\. [^`\n]*`([\w/.]+)`", self.text, re.MULTILINE)
        assert match is not None
        return match.group(1)

    def module(self, path: str, code: str) -> ModuleType:
        """A new file of the package, with its code."""
        module = ModuleType(path.removesuffix(".py").replace("/", "."))
        self.monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, path, "exec", dont_inherit=True), module.__dict__)
        return module

    def settings(self, code: str) -> Any:
        """A class at the end of fsseg/config/schema.py."""
        scope = dict(vars(schema))
        exec(code, scope)
        (made,) = [value for name, value in scope.items() if name not in vars(schema) and isinstance(value, type)]
        self.monkeypatch.setattr(schema, made.__name__, made, raising=False)
        self.schemas.append(made)
        schema.register()
        return made

    def choice(self, path: str, text: str) -> None:
        """A file below conf/."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def compose(self, *overrides: str) -> Composed:
        return compose([f"hydra.searchpath=[file://{self.folder}/conf]", *overrides])

    def run(self, *overrides: str) -> dict[str, Any]:
        """Train and evaluate a cell; what its result.json holds."""
        made = self.compose(*overrides)
        return msgspec.to_builtins(run(made.config, made.task_overrides).result)

    def undo(self) -> None:
        store = ConfigStore.instance()
        for made in self.schemas:
            for name in made.NAMES:
                del store.repo["schema"][made.GROUP][f"{name}.yaml"]
            made.NAMES = ()  # the class itself stays known to its base until it is collected


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    made = Page(tmp_path / "page", monkeypatch)
    try:
        yield made
    finally:
        made.undo()
