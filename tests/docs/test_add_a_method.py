"""docs/add-a-method.md, done as it says: its blocks become a method that trains and is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import SMALL


@pytest.mark.filterwarnings("ignore")
def test_the_method_of_the_page_trains_and_is_scored(tmp_path: Path, page: Any) -> None:
    page.read("add-a-method.md")
    model, settings = page.python
    (choice,) = page.yaml
    page.module(page.file_of(1), model)
    page.settings(settings)
    page.choice(page.file_of(3), choice)

    small = [o for o in SMALL if not o.startswith(("model.", "variant="))]
    result = page.run(
        "method=cosine", "model.layer=layer2", "shot=2", f"dataset.root={tmp_path}/shapes",
        f"output_dir={tmp_path}/outputs", "eval.diagnostics=true", *small,
    )  # fmt: skip
    assert result["cell"]["method"] == "cosine"
    assert result["model"] == {"name": "cosine", "layer": "layer2"}
    assert result["training"]["steps"] == 8
    assert 0 <= result["metrics"]["miou"] <= 100
    assert sum(result["metrics"]["foreground_distance"]["counts"]) == 6
