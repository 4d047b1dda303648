"""docs/add-a-method.md, done as it says: its blocks become a method that trains and is scored."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from hydra.core.config_store import ConfigStore
from runs import SMALL

from fsseg.config import schema as config
from fsseg.config.compose import compose
from fsseg.run import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-method.md"


@pytest.mark.filterwarnings("ignore")
def test_the_method_of_the_page_trains_and_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    model, settings = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (choice,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    scope = dict(vars(config))  # it stands in that file
    exec(settings, scope)
    store = ConfigStore.instance()
    config.register()
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "cosine.yaml").write_text(choice)
    module = ModuleType("fsseg.model.cosine")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(model, "cosine.py", "exec"), module.__dict__)
    try:
        small = [o for o in SMALL if not o.startswith(("model.", "variant="))]
        made = compose([
            f"hydra.searchpath=[file://{tmp_path}/conf]", "method=cosine", "model.layer=layer2", "shot=2",
            f"dataset.root={tmp_path}/shapes", f"output_dir={tmp_path}/outputs", "eval.diagnostics=true", *small,
        ])  # fmt: skip
        result = msgspec.to_builtins(run(made.config, made.task_overrides).result)
    finally:
        del store.repo["schema"]["method"]["cosine.yaml"]
        scope["CosineConfig"].NAMES = ()
    assert result["cell"]["method"] == "cosine"
    assert result["model"] == {"name": "cosine", "layer": "layer2"}
    assert result["training"]["steps"] == 8
    assert 0 <= result["metrics"]["miou"] <= 100
    assert sum(result["metrics"]["foreground_distance"]["counts"]) == 6
