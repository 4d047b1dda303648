"""docs/add-a-report.md, done as it says: runs that ask for the report get its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import SMALL

from fsseg.config import checks, schema
from fsseg.report import experiments
from fsseg.report.aggregate import aggregate
from fsseg.report.formats import MISSING


@pytest.mark.filterwarnings("ignore")
def test_the_report_of_the_page_makes_its_table(tmp_path: Path, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page.read("add-a-report.md")
    report, entry = page.python
    monkeypatch.setattr(experiments, "REPORTS", dict(experiments.REPORTS))
    monkeypatch.setattr(schema, "REPORTS", (*schema.REPORTS, "per_class"))
    monkeypatch.setattr(checks, "_settings", checks._settings.__wrapped__)  # which were read before the name was there
    exec(entry, vars(page.module(page.file_of(1), report)) | {"REPORTS": experiments.REPORTS})

    small = [o for o in SMALL if not o.startswith(("variant=", "protocol.num_episodes", "train.max_steps"))]
    found: dict[str, dict[str, list[float]]] = {}
    for model, fold in (("full", 0), ("baseline", 0), ("full", 1)):
        result = page.run(
            "name=classes", "report=per_class", f"ablation={model}", f"fold={fold}", "train.max_steps=2",
            "protocol.num_episodes=15", f"dataset.root={tmp_path}/shapes", f"output_dir={tmp_path}/outputs",
            f"variant={model}", *small,
        )  # fmt: skip
        for name, iou in result["metrics"]["per_class"].items():
            found.setdefault(name, {}).setdefault(model, []).append(iou)

    text = aggregate([tmp_path / "outputs" / "classes"])
    page_written = (tmp_path / "outputs" / "classes" / "per_class.md").read_text()
    assert "IoU of each class in percent" in text
    for name, models in found.items():
        (line,) = [line for line in page_written.splitlines() if line.startswith(f"| {name} |")]
        expected = [f"{models[m][0]:.2f}" if m in models else MISSING for m in ("baseline", "full")]
        assert [part.strip() for part in line.strip("|").split("|")][1:] == expected
