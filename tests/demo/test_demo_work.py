"""What the page of `fsseg demo` does, without a browser and without Gradio: models, supports, masks, who may ask."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import advice, fsseg
from numpy.typing import NDArray
from PIL import Image
from run_directories import KEY, make_run

from fsseg.cli.predict import predictor_of
from fsseg.demo.models import Models
from fsseg.demo.serve import bound, guarded
from fsseg.demo.work import MOST_QUERIES, add_support, canvas_of, drawn, segment, told
from fsseg.engine.predict import Predictor
from fsseg.errors import UserError

LINE = ["method=prototype", "dataset=shapes5i", "dataset.image_size=25", "backbone=tiny", "device=cpu", "num_workers=0"]


def nothing_opens(_: Path) -> Predictor:
    raise AssertionError("no run was to be opened")


def picture(path: Path, height: int, width: int, **options: Any) -> Path:
    pixels = np.random.default_rng(height * width).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def strokes(shape: tuple[int, int], rows: slice, columns: slice, alpha: int = 255) -> NDArray[np.uint8]:
    layer = np.zeros((*shape, 4), np.uint8)
    layer[rows, columns] = (213, 94, 0, alpha)
    return layer


def test_masks_are_those_of_the_command_for_the_same_files(tmp_path: Path) -> None:
    image, first, second = (picture(tmp_path / f"{n}.png", 40 + n, 50) for n in range(3))
    canvas = canvas_of(str(image))
    drawing = drawn({"layers": [strokes(canvas.shape[:2], np.s_[:200], np.s_[:100])]})
    pair, shown = add_support(str(image), drawing, None, tmp_path)
    with Image.open(shown) as over:
        assert over.size == (50, 40)
    found = segment(Models({"model": lambda: predictor_of(None, LINE)}, tmp_path / "none", nothing_opens), "model",
                    [pair], [str(first), str(second)], tmp_path)  # fmt: skip
    ended = fsseg(
        "predict", *LINE, "--support", f"{pair[0]}:{pair[1]}", "--out", str(tmp_path / "out"), str(first), str(second)
    )
    assert ended.returncode == 0, ended.stderr
    of_page = {Path(file).name: Path(file).read_bytes() for file in found.files}
    masks = {p.name: p.read_bytes() for p in (tmp_path / "out" / "masks").iterdir()}
    assert set(masks) == {"1.png", "2.png"}
    assert {name: of_page[name] for name in masks} == masks
    assert of_page.keys() == {*masks, "0_mask.png", "predictions.csv", "sheet.png"}
    overlays = [Path(path).read_bytes() for path, _ in found.pictures]
    assert overlays == [(tmp_path / "out" / "overlays" / f"{n}.jpg").read_bytes() for n in (1, 2)]
    assert found.text.startswith("2 images segmented by prototype on tiny")


@pytest.mark.parametrize(
    ("height", "width", "canvas"), [(40, 50, (320, 400)), (500, 600, (500, 600)), (1000, 1600, (500, 800))]
)
def test_a_drawing_comes_to_the_size_of_its_image(
    height: int, width: int, canvas: tuple[int, int], tmp_path: Path
) -> None:
    image = picture(tmp_path / "a.png", height, width)
    assert canvas_of(str(image)).shape == (*canvas, 3)
    layer = strokes(canvas, np.s_[: canvas[0] // 2], np.s_[canvas[1] // 4 :])
    layer[0, 0, 3] = 100  # the smooth edge of a stroke
    (_, mask), _ = add_support(str(image), drawn({"layers": [layer]}), None, tmp_path)
    expected = np.zeros((height, width), bool)
    expected[: height // 2, width // 4 :] = True
    with Image.open(mask) as saved:
        unlike = np.array(saved.convert("L")) != 255 * expected
    assert unlike.sum() <= height + width  # where half a pixel decides


def test_a_photo_on_its_side_is_drawn_on_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(tmp_path / "a.jpg", 500, 700, exif=exif)
    assert canvas_of(str(image)).shape == (700, 500, 3)
    (_, mask), _ = add_support(
        str(image), drawn({"layers": [strokes((700, 500), np.s_[:10], np.s_[:10])]}), None, tmp_path
    )
    with Image.open(mask) as saved:
        assert saved.size == (500, 700)


def test_an_empty_drawing_is_none() -> None:
    assert drawn(None) is None
    assert drawn({"layers": []}) is None
    assert drawn({"layers": [strokes((4, 4), np.s_[:], np.s_[:], alpha=90)]}) is None
    both = drawn({"layers": [strokes((2, 2), np.s_[:1], np.s_[:1]), strokes((2, 2), np.s_[1:], np.s_[1:])]})
    assert both is not None
    assert both.tolist() == [[True, False], [False, True]]


def test_what_is_missing_or_wrong_is_told_in_two_lines(tmp_path: Path) -> None:
    image, mask = str(picture(tmp_path / "a.png", 40, 50)), tmp_path / "folder" / "m\n<b>.png"
    mask.parent.mkdir()
    Image.fromarray(np.full((3, 4), 255, np.uint8)).save(mask)
    models = Models({"model": lambda: predictor_of(None, LINE)}, tmp_path / "none", nothing_opens)
    here = np.ones((4, 5), bool)
    pair = (Path(image), mask)
    for attempt, what in (
        (lambda: add_support(None, here, None, tmp_path), "there is no support image"),
        (lambda: add_support(image, None, None, tmp_path), "there is no mask"),
        (lambda: add_support(image, here, str(mask), tmp_path), "there are a drawing and a mask file"),
        (
            lambda: add_support(image, None, str(mask), tmp_path),
            "m\\n<b>.png has 4 x 3 pixels, and its image a.png 50 x 40",
        ),
        (lambda: segment(models, "model", [], [image], tmp_path), "there is no support"),
        (lambda: segment(models, "model", [pair], [], tmp_path), "there is no image to segment"),
        (lambda: segment(models, "model", [pair], [image] * (MOST_QUERIES + 1), tmp_path), "101 images are more than"),
        (lambda: segment(models, None, [pair], [image], tmp_path), "no model is chosen"),
        (lambda: segment(models, "../other", [pair], [image], tmp_path), "../other is none of the models of this page"),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        lines = told(error.value, tmp_path).split("\n")
        assert lines[0].startswith(what), lines
        assert len(lines) == 2
        assert lines[1].startswith("  -> ")


def test_an_image_that_cannot_be_used_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    image, other = picture(tmp_path / "a.png", 40, 50), picture(tmp_path / "b.png", 41, 50)
    (tmp_path / "x").mkdir()
    broken = tmp_path / "x" / "<script>.jpg"
    broken.write_bytes(b"no image")
    mask = tmp_path / "m.png"
    Image.fromarray(np.pad(np.ones((25, 30), np.uint8), ((5, 10), (10, 10)))).save(mask)
    models = Models({"model": lambda: predictor_of(None, LINE)}, tmp_path / "none", nothing_opens)
    found = segment(models, "model", [(image, mask)], [str(broken), str(other)], tmp_path)
    assert [caption.split(":")[0] for _, caption in found.pictures] == ["b"]
    assert "1 image segmented" in found.text
    assert "\nleft out: image <script>.jpg cannot be read" in found.text
    assert str(tmp_path) not in found.text


def test_runs_with_weights_are_offered_and_opened_once(tmp_path: Path) -> None:
    opened: list[str] = []

    def one(name: str) -> Any:
        opened.append(name)
        return object()

    models = Models({"named": lambda: one("named")}, tmp_path, lambda path: one(str(path)))
    assert models.offered() == [("named", "named")]
    run = make_run(tmp_path, result=72.66)
    assert models.offered() == [("named", "named")]  # no weights
    run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    run.checkpoint.touch()
    (_, (label, name)) = models.offered()
    assert label == f"{KEY} (mIoU 72.7)"
    assert name == str(run.directory)
    for _ in range(2):
        models.get("named")
        models.get(name)
    assert opened == ["named", name]
    same = Models({os.path.relpath(run.directory): lambda: one("same")}, tmp_path, nothing_opens)
    assert len(same.offered()) == 1  # also under another name of the same place


def test_a_new_user_is_told_how_to_come_by_a_model(tmp_path: Path) -> None:
    models = Models({}, tmp_path / "outputs", nothing_opens)
    assert models.offered() == []
    assert "trains a small model" in models.advice()
    assert "fsseg demo method=prototype backbone=resnet50" in models.advice()


def test_a_port_in_use_is_told_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsseg.demo.serve.check_packages", lambda: None)
    with bound(0) as taken:
        port = taken.getsockname()[1]
        ended = fsseg("demo", *LINE[:-1], "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-2].startswith(f"error: --port {port}: it cannot be used on 127.0.0.1 (")
    assert ended.stderr.splitlines()[-1].startswith("  -> choose another port")


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    ended = fsseg("demo", *LINE)
    assert ended.returncode == 1
    what, fix = ended.stderr.splitlines()
    assert what.startswith("error: fsseg demo needs the package gradio, which cannot be imported")
    assert fix == "  -> pip install 'fsseg[demo]'"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--checkpoint", "nowhere.pt"], "nowhere.pt: there is no such checkpoint"),
        (["method=abcb", "backbone=tiny"], "method=abcb is nothing without training"),
        (["method=prototype", "model.treshold=1"], "model.treshold"),
    ],
)
def test_a_model_that_cannot_be_opened_is_told_at_the_start(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsseg.demo.serve.check_packages", lambda: None)
    ended = fsseg("demo", *words, "--port", "0")
    assert told in advice(ended)[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "https://elsewhere.org"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "elsewhere.org"}, 403),
        ({"host": "[::1"}, 403),
        ({}, 403),
    ],
)
def test_only_the_page_itself_may_ask(headers: dict[str, str], status: int) -> None:
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(guarded(app)(scope, receive, send))
    assert sent[0]["status"] == status
    policy = dict(sent[0]["headers"]).get(b"content-security-policy", b"").decode()
    assert ("default-src 'self'" in policy) == (status == 200)
