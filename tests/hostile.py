"""Random hostile inputs for `test_fuzz`: each is a function of its kind and number alone, so that a failure can be
repeated with `python tests/hostile.py KIND NUMBER FOLDER`.

A case gives what it came to: "ok", "refused" (two lines for the user), or raises. What is accepted must be right: every
kind knows an answer that does not come from the code under test.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from run_directories import KEY, make_run

from fsseg.cell.key import CellKey
from fsseg.cell.models import State, Unreadable
from fsseg.cell.record import look_at
from fsseg.errors import UserError

NUMBERS = (-1, 0, 1, 2, 7, 255, 256, 2**31, 2**63, 2**64, -(2**63), 10**18, 10**30, 0.5, -0.5, 1e-300, 1e300)
ODD_TEXT = (
    "", " ", "null", "nan", "inf", "-inf", "1e999", "true", "no", "0x10", "1_000", "é", "\u202e", "\x1b[31m",
    "a\nb", "a\tb",
    "..", "../..", "/", "/etc/passwd", "~", "$HOME", "${oc.env:HOME}", "${name}", "${", "{", "}", "[", "]", "[]", "{}",
    "[1,2", "[nan]", "[[[]]]", "{a:1}", "{a:{b:{c:1}}}", "a,b", "'", '"', "\\", "a=b", "=", "+", "~", "@", "*", "&a",
    "%s", "%(x)s", "{0}", "-1", "+1", "01", "1.10", "1,5", "range(0,3)", "choice(1,2)", "x" * 300, "[" * 60, "{a:" * 40,
)  # fmt: skip


def odd_json(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = draw.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return None
    if kind == 1:
        return draw.choice((True, False))
    if kind in (2, 3):
        return draw.choice(NUMBERS)
    if kind in (4, 5):
        return draw.choice(ODD_TEXT)
    if kind == 6:
        return [odd_json(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {draw.choice(ODD_TEXT): odd_json(draw, depth + 1) for _ in range(draw.randrange(4))}
    return NESTED


NESTED = "*nested*"


def as_text(value: Any) -> str:
    """As JSON; what is nested too deeply for Python's own writer stands where `NESTED` was."""
    return json.dumps(value).replace(f'"{NESTED}"', "[" * 20_000 + "]" * 20_000)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


def with_change(draw: random.Random, value: Any) -> Any:
    """A copy in which one part is another value, is gone, or is there twice."""
    changed = copy.deepcopy(value)
    place = draw.choice(places(value))
    if not place:
        return odd_json(draw)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    how = draw.random()
    if how < 0.75:
        holder[place[-1]] = odd_json(draw)
    elif how < 0.9:
        del holder[place[-1]]
    elif isinstance(holder, list):
        holder.append(holder[place[-1]])
    else:
        holder[draw.choice(ODD_TEXT)] = holder[place[-1]]
    return changed


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, doubled, or others among them."""
    data, how = bytearray(data), draw.randrange(6)
    at = draw.randrange(len(data) + 1)
    if how == 0:
        for _ in range(draw.choice((1, 1, 5, 50))):
            if data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == 1:
        del data[at:]
    elif how == 2:
        del data[:at]
    elif how == 3:
        data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 10, 1000))))
    elif how == 4:
        data[at : at + draw.choice((1, 8, 500))] = b"\0" * draw.choice((0, 1, 8))
    else:
        data += data[at:]
    return bytes(data)


# ------------------------------------------------------------------------------------------------- configuration values


def config(draw: random.Random, folder: Path) -> str:
    """One to three overrides with any value; what is composed must be a cell, and what it is must be repeatable."""
    from fsseg.cell.record import open_cell
    from fsseg.config.checks import validate
    from fsseg.config.compose import compose

    groups = draw.choice(([], ["dataset=pascal5i"], ["dataset=coco20i"], ["method=prototype"], ["method=baseline"]))
    keys = _keys(compose(groups).resolved)
    line = list(groups)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        plausible = draw.choice(("0.5", "1", "2", "3", "8", "true", "null", "[0,1]", "tiny", "cpu", "a_name", "1.10"))
        value = plausible if draw.random() < 0.5 else draw.choice([str(n) for n in NUMBERS] + list(ODD_TEXT) * 2)
        line.append(f"{draw.choice(('', '', '', '+', '++', '~'))}{draw.choice(keys)}={value}")
    try:
        composed = compose(line)
        validate(composed.cfg)
        cell = open_cell(composed.cfg, composed.resolved, composed.task_overrides)
    except UserError:
        return "refused"
    again = compose(line)
    assert open_cell(again.cfg, again.resolved, again.task_overrides).fingerprint == cell.fingerprint, line
    output = Path(composed.cfg.output_dir)
    assert cell.directory.resolve().is_relative_to(output.resolve()), (line, cell.directory)
    assert len(cell.directory.relative_to(output).parts) == 8, (line, cell.directory)
    assert cell.directory.as_posix().isprintable() or not output.as_posix().isprintable(), (line, cell.directory)
    json.dumps(composed.resolved, allow_nan=False, default=str)  # no number that no file can hold
    return "ok"


def _keys(tree: Any, prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _keys(value, f"{prefix}{key}.")
    return found


# ---------------------------------------------------------------------------------------- files of run directories


def record(draw: random.Random, folder: Path) -> str:
    """One file of a finished and of an unfinished cell changed: commands go on, and no other score is believed."""
    good, finished, unfinished = _cells(folder)
    run = draw.choice((finished, unfinished))
    file = draw.choice([p for p in sorted(run.directory.rglob("*")) if p.is_file()])
    if file.suffix == ".json" and draw.random() < 0.6:
        changed = with_change(draw, json.loads(file.read_text()))
        if isinstance(changed, dict) and draw.random() < 0.1:
            file.write_text(as_text(changed)[:-1] + f', "{next(iter(changed), "a")}": 7}}')  # a key twice
        else:
            file.write_text(as_text(changed))
    else:
        file.write_bytes(damaged(draw, file.read_bytes()))
    _look_with_every_command(folder)
    states = {s.directory: s for s in look_at([folder])}
    assert states[good.directory].state == State.DONE
    assert states[good.directory].miou == 61.5
    told = states.get(finished.directory)
    if told is not None and told.state == State.DONE:
        assert told.miou == 43.25, (file, told)
        return "ok"
    return "refused"


def _cells(folder: Path) -> list[Any]:
    keys = [CellKey(*(KEY.name, KEY.dataset, KEY.method, KEY.backbone, 1, fold, 0, "default")) for fold in range(3)]
    identity = {"train.lr": 0.1, "fold": 0, "shot": 1}
    names = {"dataset": {"name": "pascal5i"}, "model": {"name": "abcb"}, "backbone": {"name": "resnet50"}}
    config_ = {"name": "runs", "fold": 1, "shot": 1, "seed": 0, "sync": {"url": None}, **names}
    runs = [
        make_run(folder, keys[0], result=61.5, identity=identity, overrides=["fold=0"]),
        make_run(folder, keys[1], result=43.25, identity=identity, overrides=["fold=1"], config=config_),
        make_run(folder, keys[2], status="failed", identity=identity, overrides=["fold=2"], config=config_),
    ]
    for run in runs[1:]:
        run.metrics_file.write_text("step,train/loss\n1,0.5\n2,0.25\n")
        run.attempts.mkdir()
        (run.attempts / "1.json").write_text('{"started_at": "2026-01-01T00:00:00+00:00", "command": ["train.py"]}')
        run.claim_file.write_text('{"host": "elsewhere", "pid": 7, "token": "a", "lease_seconds": 300}')
        os.utime(run.claim_file, (1000, 1000))
    return runs


def _look_with_every_command(folder: Path) -> None:
    from fsseg.report.aggregate import aggregate
    from fsseg.sweep import clean, retry, status, sync

    store = folder.parent / f"{folder.name}-store"
    commands: tuple[Callable[[], Any], ...] = (
        lambda: status.text(look_at([folder])),
        lambda: aggregate([folder], folder.parent / f"{folder.name}-tables"),
        lambda: retry.text(retry.find_retries([folder])),
        lambda: clean.text(clean.find_waste([folder]), deleted=False),
        lambda: sync.text(sync.catch_up([folder], f"file://{store}")),
    )
    for command in commands:
        text = str(command())
        text.encode()
        assert not any(c in text for c in "\x1b\u202e\x00"), "unescaped"


def tree(draw: random.Random, folder: Path) -> str:
    """Odd entries all over a tree with three cells: every command goes on and sees the good ones."""
    good, *_ = _cells(folder)
    inside = [p for p in folder.rglob("*") if p.is_dir() and good.directory not in (p, *p.parents)]
    for number in range(draw.choice((1, 3, 8))):
        place = draw.choice(inside)
        names = (
            "result.json", "status.json", "identity.json", "config.yaml", "sync.json", "claim.json", "attempts",
            f"odd{number}", f"odd\n{number}", f"odd\x1b[1m{number}", b"odd\xff\xfe", f".work-{number}", "fold9",
        )  # fmt: skip
        _odd_entry(draw, Path(os.fsdecode(os.path.join(os.fsencode(place), os.fsencode(draw.choice(names))))), folder)
    _look_with_every_command(folder)
    seen = {s.directory: s for s in look_at([folder])}[good.directory]
    assert (seen.state, seen.miou) == (State.DONE, 61.5)
    return "ok"


def _odd_entry(draw: random.Random, path: Path, folder: Path) -> None:
    how = draw.randrange(7)
    if os.path.lexists(path):
        if path.is_dir() and not path.is_symlink():
            return
        path.unlink()
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(draw.choice((folder, path, Path("/"), Path("/dev/zero"), Path("nowhere"))))
    elif how == 2:
        path.mkdir()
    elif how == 3:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket may have 107 bytes
        try:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)
        finally:
            os.chdir(here)
    elif how == 4:
        path.write_text(as_text(odd_json(draw)))
    elif how == 5:
        path.write_bytes(bytes(draw.randrange(256) for _ in range(draw.choice((0, 1, 100)))))
    else:
        path.write_text(draw.choice(("{}", "[]", "null", "[" * 100_000, '{"a":' * 50_000, "a: &a [*a, *a]\nb: *a")))


# --------------------------------------------------------------------------------------------------------- data sets


def coco(draw: random.Random, folder: Path) -> str:
    """An annotation file with one change: refused, or every mask and count is what the remaining annotations say."""
    from trees import coco_json, make_coco

    from fsseg.config.compose import compose
    from fsseg.data.registry import build_source

    root = make_coco(folder)
    content = coco_json()
    wanted = draw.choice(("images", "annotations", "annotations", "annotations", "categories"))
    content[wanted] = with_change(draw, content[wanted])
    text = as_text(content)
    for file in sorted((root / "annotations").glob("*.json")):
        file.write_bytes(damaged(draw, text.encode()) if draw.random() < 0.1 else text.encode())
    source = build_source(compose(["dataset=coco20i", f"dataset.root={root}"]).cfg)
    try:
        source.check(["val"])
        index = source.index("val")
        masks = {
            (i, c): source.mask("val", index.image_ids[i], c)
            for i, c in zip(index.pair_image, index.pair_class.tolist())
        }
    except UserError:
        return "refused"
    for (i, c), pixels in zip(masks, index.pair_pixels):
        mask = masks[i, c]
        assert mask.shape == (20, 30)
        assert int((mask == 1).sum()) == int(pixels)
        assert set(np.unique(mask)) <= {0, 1, 255}
    return "ok"


def image(draw: random.Random, folder: Path) -> str:
    """An image and a mask with damaged bytes: refused, or of their size, with the values that a mask may have."""
    from PIL import Image
    from trees import labels_of, write_jpeg

    from fsseg.data.images import read_image, read_labels

    picture, mask = folder / "a.jpg", folder / "a.png"
    write_jpeg(picture, seed=draw.randrange(9))
    Image.fromarray(labels_of((1, 500), (15, 30), boundary=20)).save(mask)
    file = draw.choice((picture, mask))
    sound = file.read_bytes()
    formats = io.BytesIO()
    Image.new("RGB", (50, 40)).save(formats, draw.choice(("EPS", "GIF", "TIFF", "BMP", "PDF")))
    file.write_bytes(formats.getvalue() if draw.random() < 0.2 else damaged(draw, sound))
    try:
        if file is picture:
            assert read_image(file).dtype == np.uint8
        else:
            labels = read_labels(file)
            # the checksum of each piece of a PNG shows any other content
            if labels.shape != (40, 50) or not np.array_equal(labels, labels_of((1, 500), (15, 30), boundary=20)):
                assert file.read_bytes() != sound
                raise AssertionError("another mask was read")
    except UserError:
        return "refused"
    return "ok"


# ------------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(draw: random.Random, folder: Path) -> str:
    """A checkpoint with damaged bytes or one other part: refused, or, byte for byte, what was saved."""
    import torch

    from fsseg.engine.checkpoint import load, save

    trained = {"dataset": "shapes5i", "fold": 0, "method": "abcb", "backbone": "tiny", "base_classes": ["cat"]}
    state: dict[str, Any] = {
        "model": {"w": torch.arange(100.0), "b": torch.ones(3)}, "step": 3, "steps": 9, "optimiser": {"state": {}},
        "scaler": {}, "rng": {"python": [3, [1, 2], None]}, "seconds": 1.5, "loss": 0.5, "window": [0.5, 0.25],
        "rows": 2, "run": "r", "fingerprint": "f", "dataset_fingerprint": "d", "origin": trained,
    }  # fmt: skip
    file = folder / "last.pt"
    by_bytes = draw.random() < 0.7
    if by_bytes:
        save(file, state)
        file.write_bytes(damaged(draw, file.read_bytes()))
    else:
        changed = {**state, draw.choice(list(state)): odd_json(draw)}
        torch.save({"format": draw.choice((1, 2, 2, 2, odd_json(draw))), **changed}, file)
    words = ""
    try:
        found = load(file)
    except UserError as error:
        words = str(error)
    if words:
        assert "weights_only" not in words
        assert words.count("\n") <= 1, words
        return "refused"
    if by_bytes:
        assert found.keys() == {"format", *state}
        assert all(torch.equal(found["model"][k], v) for k, v in state["model"].items())
        assert {k: v for k, v in found.items() if k not in ("format", "model")} == {
            k: v for k, v in state.items() if k != "model"
        }
    assert isinstance(found["step"], int)
    assert found["step"] >= 0
    return "ok"


# ------------------------------------------------------------------------------------------------- counts of episodes


def episodes(draw: random.Random, folder: Path) -> str:
    """Counts of episodes, finished or in part, with damaged bytes: those that are believed are right ones."""
    from fsseg.cell.episodes import (
        EpisodeCounts,
        EpisodePart,
        EpisodeScope,
        PartHead,
        Scored,
        read_counts,
        write_counts,
    )

    scope = EpisodeScope((3, 1), (2,), ("cat",))
    sound = EpisodeCounts.of(scope, [Scored(s, n, 2, "", 9, [(n, 9, 1, 10 - n)] * 2) for s in (3, 1) for n in range(9)])
    head = PartHead(run="r", fingerprint="f", weights="w", episodes={"": "e"}, data="d", images="i")
    file = folder / "episodes"
    finished = draw.random() < 0.5
    if finished:
        write_counts(file, sound)
    else:
        part = EpisodePart(file, head, scope)
        part._open(2, sound.rows)
        part.close()
    file.write_bytes(damaged(draw, file.read_bytes()))
    try:
        found = read_counts(file) if finished else EpisodePart(file, head, scope).counts()
    except Unreadable:
        return "refused"
    if not len(found):
        return "refused"
    wanted = {row.tobytes() for row in sound.rows}
    assert {row.tobytes() for row in found.rows} <= wanted
    assert not finished or (found.scope == scope and len(found) == len(sound))
    return "ok"


KINDS: dict[str, tuple[Callable[[random.Random, Path], str], int]] = {
    "config": (config, 500),
    "record": (record, 400),
    "episodes": (episodes, 100),
    "coco": (coco, 300),
    "checkpoint": (checkpoint, 400),
    "tree": (tree, 150),
    "image": (image, 150),
}
"""Each kind, and how many of its cases make up the 2,000."""


def play(kind: str, number: int, folder: Path) -> str:
    """One case; `folder` is empty and its own.

    Raises:
        Exception: whatever a user would have seen as a traceback, or a wrong answer.
    """
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind][0](random.Random(f"{kind} {number}"), folder)


if __name__ == "__main__":
    print(play(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
