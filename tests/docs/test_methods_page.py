"""The tables of published figures in docs/methods.md are those of the data that the reports show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fsseg.report.paper import published
from fsseg.report.published import published_results

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
SECTIONS = {
    match[1]: section
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)
    if (match := re.search(r"`method=(\w+)`", section)) is not None
}
ENTRIES: list[dict[str, Any]] = published_results()["entries"]
METHODS = sorted(SECTIONS.keys() & {entry["method"] for entry in ENTRIES})


def rows(section: str) -> dict[tuple[str, ...], str]:
    """Of the lines of a table that are of a data set and a number of shots: what they print, and the whole line."""
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) > 7 and cells[2].isdecimal():
            names = (cells[0].lower().replace("-", ""), cells[1].lower().replace("-", ""))
            found[names + tuple(cells[2:8])] = line
    return found


def test_the_page_has_a_section_for_each() -> None:
    assert {"pfenet", "hsnet"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_the_figures_of_a_method_are_those_of_the_data(method: str) -> None:
    found, expected = rows(SECTIONS[method]), {}
    for e in (e for e in ENTRIES if e["method"] == method):
        printed = [f"{v}" for v in e["folds"]] if e["folds"] else [""] * 4
        figures = (e["dataset"], e["backbone"], str(e["shot"]), *printed, f"{e['mean']}")
        expected[figures] = e
    assert found.keys() == expected.keys()
    introduction = SECTIONS[method].partition("**Published figures**")[2].partition("\n|")[0]
    for figures, line in found.items():
        entry = expected[figures]
        for word in re.findall(r"[A-Z]{3,}", entry["source"]):  # the codes in whose READMEs they were read
            assert word in (line + introduction).upper(), line
        kept = line if "note" in entry and entry["folds"] else ""
        for word in re.findall(r"[a-z]{5,}", entry.get("note", "") if kept else "")[:1]:
            assert word in kept, line


def test_the_figures_without_training_are_those_of_the_data() -> None:
    lines = re.findall(r"^\| (.+?) \| (\d\d\.\d+) \| (.+) \|$", SECTIONS["dino"], re.MULTILINE)
    free = published_results()["training_free"]
    given = [(e["method"], f"{e['mean']}", e["source"]) for e in free]
    own = [(name, figure, source) for name, figure, source in lines if not name.startswith("ABCB")]
    assert [(name, figure) for name, figure, _ in own] == [(name, figure) for name, figure, _ in given]
    assert all(words in " ".join(source.replace(",", "").split()) for (*_, source), (*_, words) in zip(own, given))
    abcb = published("coco20i", "resnet50", 1)
    assert abcb is not None
    assert [figure for name, figure, _ in lines if name.startswith("ABCB, ResNet-50")] == [f"{abcb.mean}"]
