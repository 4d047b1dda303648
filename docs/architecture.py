"""The rooms of the package and the imports between them, read from the source, for docs/architecture.md.

    python docs/architecture.py           says whether the table and the picture are current (exit status 1 if not)
    python docs/architecture.py --write   writes both

A room is a folder or a single file directly below `fsseg/`. An arrow from A to B says that a module of A imports one of
B, at its head or inside a function. Imports for the type checker alone (`if TYPE_CHECKING:`) are no arrows, as they
never run. Only the standard library is used, so that the picture is the same on every machine.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
BEGIN, END = "<!-- begin: written by docs/architecture.py -->", "<!-- end -->"

# From top to bottom; arrows run down. The second entry is the column in the picture.
ROOMS = {
    "train.py": (2, "the command `python train.py`: one cell, or a sweep with `-m`"),
    "__main__": (1, "`python -m fsseg`: the command `fsseg`"),
    "cli": (1, "the command `fsseg`: one function a subcommand; `fsseg train` is `train.py`"),
    "run": (2, "one cell from its configuration to its result"),
    "demo": (0, "the page of `fsseg demo`: models, supports, images, and the server around them"),
    "bench": (0, "how fast loading, training steps, evaluations and sweeps are on this machine"),
    "engine": (2, "the training loop, the evaluation loop, the score, checkpoints, several processes"),
    "model": (2, "the methods, one file each; what they share in `blocks`, the networks in `backbones`"),
    "report": (0, "tables, statistics and plots from finished runs"),
    "sweep": (1, "the cells of a grid: plan, launch, status, retry, clean, copies on a remote store"),
    "data": (2, "images and masks, folds, lists, episodes, transforms; `sources` reads, `setup` fetches and checks"),
    "cell": (2, "a run directory: its name, its files, who holds it"),
    "draw": (1, "sheets of episodes, curves and plots"),
    "config": (2, "every setting, its checks, and the composition of override lines"),
    "process": (2, "files written whole, signals, logs, provenance"),
    "errors": (2, "`UserError`: what is wrong, and what to do"),
}

COLOURS = {"down": "#555", "up": "#c00"}

Graph = dict[str, set[str]]


def room_of(module: str) -> str | None:
    """`fsseg.data.sources.voc` -> `data`; None for other packages and for the package's own version number."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fsseg" and len(parts) > 1 else None


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of the modules that a syntax tree imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def read_graph(root: Path = ROOT) -> Graph:
    """Room -> the rooms it imports, for `train.py` and everything below `fsseg/`."""
    files = [(root / "train.py", "train.py")]
    for path in sorted((root / "fsseg").rglob("*.py")):
        first = path.relative_to(root / "fsseg").parts[0]
        if first != "__init__.py":
            files.append((path, first.removesuffix(".py")))
    graph: Graph = {}
    for path, room in files:
        found = map(room_of, imports(ast.parse(path.read_text(encoding="utf-8"), str(path))))
        graph.setdefault(room, set()).update(other for other in found if other not in (None, room, "__version__"))
    if unknown := sorted(set(graph) - set(ROOMS)):
        sys.exit(f"fsseg has a room that ROOMS of docs/architecture.py does not know: {', '.join(unknown)}")
    return {room: graph[room] for room in ROOMS if room in graph}


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Arrows against the order of `ROOMS`; there should be none."""
    order = list(ROOMS)
    return [(a, b) for a in graph for b in sorted(graph[a]) if order.index(b) < order.index(a)]


def reduced(graph: Graph) -> Graph:
    """The downward arrows that no path of other downward arrows implies: few enough to be drawn."""
    down = {a: {b for b in graph[a] if (a, b) not in upward(graph)} for a in graph}

    def reachable(start: str) -> set[str]:
        return set().union(*({b} | reachable(b) for b in down[start]))

    return {a: {b for b in down[a] if not any(b in reachable(c) for c in down[a] - {b})} for a in down}


def table(graph: Graph) -> str:
    """The block of the page: a row for each room."""
    lines = ["| room | what is in it | imports |", "|---|---|---|"]
    for room in graph:
        name = "`train.py`" if room == "train.py" else f"`fsseg/{room}{'.py' if is_file(room) else ''}`"
        below = ", ".join(b for b in ROOMS if b in graph[room]) or "nothing of fsseg"
        lines.append(f"| {name} | {ROOMS[room][1]} | {below} |")
    against = "; ".join(f"{a} imports {b}" for a, b in upward(graph))
    return "\n".join([*lines, "", f"Arrows that run up: {against or 'none'}."])


def is_file(room: str) -> bool:
    return (ROOT / "fsseg" / f"{room}.py").is_file()


def levels(graph: Graph) -> dict[str, int]:
    """Height of each room: one above the highest that it imports or that shares its column; 0 is the ground."""
    heights: dict[str, int] = {}
    for room in reversed(list(graph)):  # the order of ROOMS, from the ground up
        below = [heights[b] for b in heights if b in graph[room] or ROOMS[b][0] == ROOMS[room][0]]
        heights[room] = 1 + max(below, default=-1)
    return heights


def picture(graph: Graph) -> str:
    """The graph as SVG: the reduced arrows, and in red whatever runs up."""
    width, height, across, down = 130, 34, 190, 66
    heights = levels(graph)
    top = max(heights.values())
    place = {room: (20 + ROOMS[room][0] * across, 20 + (top - heights[room]) * down) for room in graph}
    w, h = 40 + 2 * across + width, 40 + top * down + height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'font-family="sans-serif" font-size="14">',
        "<title>The rooms of fsseg and the imports between them</title>",
        f'<rect width="{w}" height="{h}" fill="white"/>',
        *(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 Z" fill="{colour}"/></marker>'
            for name, colour in COLOURS.items()
        ),
    ]
    arrows = [(a, b, "down") for a, targets in reduced(graph).items() for b in sorted(targets)]
    for a, b, kind in [*arrows, *((a, b, "up") for a, b in upward(graph))]:
        (ax, ay), (bx, by) = place[a], place[b]
        rising = ay > by
        aside = (bx > ax) - (bx < ax)  # leaves near the corner towards the other room, so that it passes no third one
        x1, y1 = ax + width // 2 + 50 * aside, ay if rising else ay + height
        x2, y2 = bx + width // 2 - 50 * aside, by + height if rising else by
        path = f"M{x1} {y1} L{x2} {y2}"
        if any(x == ax == bx and min(ay, by) < y < max(ay, by) for x, y in place.values()):  # past a room between
            bend, middle = width // 2 + 22, (y1 + y2) // 2
            path = f"M{x1} {y1} C{x1 + bend} {middle} {x2 + bend} {middle} {x2} {y2}"
        line = f'fill="none" stroke="{COLOURS[kind]}" stroke-width="1.4" marker-end="url(#{kind})"'
        out.append(f'<path d="{path}" {line}/>')
    for room, (x, y) in place.items():
        out.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="#eef3fa" stroke="#37618e"/>')
        text = f'x="{x + width // 2}" y="{y + 22}" text-anchor="middle" fill="#123"'
        out.append(f"<text {text}>{escape(room)}</text>")
    return "\n".join([*out, "</svg>", ""])


def with_table(page: str, block: str) -> str:
    """The page with its block replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"


def main(arguments: list[str]) -> int:
    graph = read_graph()
    wanted = {PAGE: with_table(PAGE.read_text(encoding="utf-8"), table(graph)), PICTURE: picture(graph)}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--write" in arguments:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        print("written:", ", ".join(str(path.relative_to(ROOT)) for path in stale) or "nothing, all is current")
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current: python docs/architecture.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
