"""docs/architecture.md and its picture are what docs/architecture.py reads from the imports."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_script", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_arrows_are_imports_at_the_head_and_in_functions_but_not_for_the_type_checker(
    script: ModuleType, tmp_path: Path
) -> None:
    root = files(
        tmp_path,
        train="from fsseg.run import run\n",
        fsseg__run="import torch\n\ndef run():\n    from fsseg.engine.train import train\n    return train\n",
        fsseg__engine__train="import fsseg.data.loader as loader\nfrom fsseg.engine import metrics\n"
        "if TYPE_CHECKING:\n    from fsseg.cell.record import Cell\nelse:\n    from fsseg.errors import UserError\n",
        fsseg__engine__metrics="",
        fsseg__data__loader="from fsseg import data, errors\n",
        fsseg__errors="",
    )
    assert script.read_graph(root) == {
        "train.py": {"run"}, "run": {"engine"}, "engine": {"data", "errors"}, "data": {"errors"}, "errors": set(),
    }  # fmt: skip


def test_an_arrow_up_is_named_and_drawn_in_red(script: ModuleType) -> None:
    graph = {"run": {"data", "engine"}, "engine": {"data"}, "data": {"errors"}, "errors": {"run"}}
    assert script.upward(graph) == [("errors", "run")]
    assert "Arrows that run up: errors imports run." in script.table(graph)
    picture = script.picture(graph)
    assert picture.count("url(#up)") == 1
    assert picture.count("url(#down)") == 3  # run-engine, engine-data, data-errors: run-data follows from the others


def test_a_room_that_nobody_described_is_refused(script: ModuleType, tmp_path: Path) -> None:
    root = files(tmp_path, train="", fsseg__attic__old="")
    with pytest.raises(SystemExit, match="attic"):
        script.read_graph(root)


def test_page_and_picture_are_current(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 0, capsys.readouterr().out


def test_the_order_of_the_rooms_is_the_one_that_ci_enforces(script: ModuleType) -> None:
    contract = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]
    layers = [re.findall(r"\w+", layer) for layer in re.findall(r'"([^"]+)"', contract)]
    rank = {room: number for number, layer in enumerate(layers) for room in layer}
    rooms = [room for room in script.ROOMS if room != "train.py"]
    assert set(rooms) == set(rank)
    assert [rank[room] for room in rooms] == sorted(rank.values())


def test_the_picture_shows_every_room_of_the_table(script: ModuleType) -> None:
    found = (ROOT / "fsseg").iterdir()
    rooms = {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    drawn = set(re.findall(r"<text [^>]*>([^<]+)</text>", script.PICTURE.read_text()))
    assert drawn == rooms | {"train.py"}
    for room in rooms:
        assert f"`fsseg/{room}" in script.PAGE.read_text()


def points(path: str) -> list[tuple[float, float]]:
    """Points along a line `M x y L x y` or a cubic curve `M x y C x y x y x y` of an SVG."""
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    corners = list(zip(numbers[::2], numbers[1::2]))
    if len(corners) == 2:  # a line is a curve with its inner corners on the line
        corners = [corners[0], corners[0], corners[1], corners[1]]
    steps = [n / 200 for n in range(201)]
    weights = [((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3) for t in steps]
    return [
        (sum(w * x for w, (x, _) in zip(ws, corners)), sum(w * y for w, (_, y) in zip(ws, corners))) for ws in weights
    ]


def test_no_line_of_the_picture_passes_under_a_box(script: ModuleType) -> None:
    picture = script.picture(script.read_graph())
    boxes = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', picture)
    lines = re.findall(r'<path d="([^"]+)" fill="none"', picture)
    assert len(boxes) == len(script.ROOMS)
    assert lines
    for line in lines:
        for x, y, width, height in (map(int, box) for box in boxes):
            inside = [(a, b) for a, b in points(line) if x < a < x + width and y < b < y + height]
            assert not inside, f"{line} passes under the box at {x}, {y}"
