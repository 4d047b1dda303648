"""The page of `fsseg demo` in a real Chromium: masks as by `fsseg predict`, with the mouse or the keyboard."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import events, foreign, until
from command_line import fsseg
from numpy.typing import NDArray
from PIL import Image
from runs import cell_of, composed, done, fork

import fsseg as package

pytestmark = pytest.mark.demo

PROTOTYPE = ("method=prototype", "backbone=tiny", "dataset=shapes5i", "dataset.image_size=25", "device=cpu")


@dataclass(frozen=True)
class Data:
    """Two support images with their masks, two queries, a run, and a folder for more, with another run."""

    supports: list[tuple[Path, Path]]
    queries: list[Path]
    run: Path
    folder: Path

    @property
    def image(self) -> Path:
        return self.supports[0][0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("demo")
    trained = composed(folder / "data", folder / "outputs", "train.max_steps=1", "eval.enabled=false")
    done(trained)  # it finds all or nothing
    c = composed(folder / "data", folder / "outputs", "method=prototype", "train.enabled=false")
    done(c)
    supports, queries = [], []
    for image in sorted((folder / "data").rglob("JPEGImages/val_*.jpg")):
        labels = pixels(image.parents[1] / "SegmentationClass" / f"{image.stem}.png", "P")
        if (labels == 3).sum() < 200:
            queries.append(image)
            continue
        supports.append((image, folder / f"an object, {image.stem}.png"))
        Image.fromarray(((labels == 3) * 255).astype(np.uint8)).save(supports[-1][1])
    return Data(supports[:2], queries[:2], cell_of(c).directory, folder)


def serve(*words: str) -> None:
    from fsseg.cli.app import main

    sys.argv = ["fsseg", "demo", *words]
    main()


@pytest.fixture(scope="module")
def address(data: Data) -> Iterator[str]:
    """Of the page, which offers the run and a method that trains nothing."""
    if find_spec("gradio") is None:
        if os.environ.get("FSSEG_REQUIRE_BROWSER"):
            pytest.fail("FSSEG_REQUIRE_BROWSER is set, but gradio is not installed")
        pytest.skip("gradio is not installed: pip install -e '.[test,demo]'")
    log = data.folder / "demo.log"
    words = (*PROTOTYPE, "--checkpoint", str(data.run), "--runs", str(data.folder / "outputs"), "--port", "0")
    process = fork(serve, *words, log=log, environment={"TMPDIR": str(data.folder)})
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text() if log.exists() else "")):
            process.join(0.1)
            assert process.exitcode is None, log.read_text()
        yield found[0]
    finally:
        process.terminate()
        process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM, log.read_text()
    assert "Traceback" not in log.read_text()
    assert list(data.folder.glob("fsseg-demo-*")) == []  # uploads and answers


class Page:
    """The page as a user sees it: fields by the names in `fsseg/demo/page.py`."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)
        until(driver, lambda: self.value("model input"))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", f"#{selector}")

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", f"#{selector}"))

    def value(self, selector: str) -> str:
        return str(self.find(selector).get_property("value"))

    def upload(self, field: str, *paths: Path) -> None:
        """As a drop, or a choice in the dialogue, would."""
        self.find(f"{field} input[type=file]").send_keys("\n".join(map(str, paths)))
        self.has(field, len(paths))

    def has(self, field: str, count: int) -> None:
        until(self.driver, lambda: len(self.all(f"{field} a[href]")) == count)

    def draw(self) -> None:
        """A square stroke of which one corner is the middle of the image."""
        from selenium.webdriver import ActionChains

        until(self.driver, lambda: self.find("editor button[aria-label='Undo']").is_enabled())  # the image is there
        middle = self.find("editor canvas")
        pen = ActionChains(self.driver, duration=50).move_to_element(middle).click_and_hold()
        for right, down in ((30, 0), (0, 30), (-30, 0), (0, -15)):
            pen = pen.move_by_offset(right, down)
        pen.release().perform()

    def added(self, count: int) -> None:
        """Once there are so many supports, and the fields are empty for another."""
        until(self.driver, lambda: self.value("support-told textarea").startswith(f"{count} support"))
        self.has("support-image", 0)

    def answers(self, count: int) -> dict[str, NDArray[np.uint8]]:
        """Once so many overlays are shown: name -> what can be downloaded, of those that are masks."""
        until(self.driver, lambda: len(self.all("overlays img")) >= count)
        found = until(self.driver, lambda: self.all("files a[href]"))
        links = {link.get_attribute("download"): link.get_attribute("href") for link in found}
        assert {"predictions.csv", "sheet.png"} < set(links)
        masks = {name: url for name, url in links.items() if name.endswith(".png") and name != "sheet.png"}
        return {name: pixels(io.BytesIO(urllib.request.urlopen(url).read())) for name, url in masks.items()}

    def press(self, *keys: str) -> None:
        """Keys of the keyboard, at what it is at."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            self.press("\ue004")  # Tab
            if self.driver.execute_script("return document.activeElement.matches(arguments[0])", f"#{selector}"):
                return
        raise AssertionError(f"Tab never comes to {selector}")

    def next_model(self) -> str:
        """With the keyboard at the field."""
        self.press("\ue015", "\ue007")  # down, Enter
        return self.value("model input")

    def choose(self, field: str, *paths: Path) -> None:
        """Open the dialogue of a field with the keyboard, and choose files in it, which is the browser's own work."""
        self.tab_to(f"{field} button[aria-label*=upload]")
        events(self.driver, "")
        self.press("\ue007")  # Enter
        opened = until(self.driver, lambda: events(self.driver, "Page.fileChooserOpened"))
        chosen = {"files": [str(path) for path in paths], "backendNodeId": opened[0]["backendNodeId"]}
        self.driver.execute_cdp_cmd("DOM.setFileInputFiles", chosen)
        self.has(field, len(paths))


def pixels(file: Any, mode: str = "L") -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.array(image.convert(mode))


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Page]:
    chromium.get("about:blank")
    events(chromium, "")
    yield Page(chromium, address)
    asked = events(chromium, "Network.requestWillBeSent")
    assert any(event["request"]["url"].startswith(address) for event in asked)
    assert foreign(asked) == []


def predicted(data: Data, supports: list[tuple[Path, Path]], out: Path) -> dict[str, NDArray[np.uint8]]:
    """Masks of the queries by the command line, and by Python: they are the same."""
    words = [word for image, mask in supports for word in ("--support", f"{image}:{mask}")]
    ended = fsseg(
        "predict", "--checkpoint", str(data.run), "device=cpu", *words, "--out", str(out), *map(str, data.queries)
    )
    assert ended.returncode == 0, ended.stderr
    masks = {f"{query.stem}.png": pixels(out / "masks" / f"{query.stem}.png") for query in data.queries}
    answers = package.load(data.run, "cpu").predict([str(query) for query in data.queries], supports)
    for answer, of_command in zip(answers, masks.values()):
        assert np.array_equal(answer.mask * 255, of_command)
    return masks


def same(found: dict[str, NDArray[np.uint8]], expected: dict[str, NDArray[np.uint8]]) -> None:
    assert found.keys() == expected.keys()
    for name, mask in found.items():
        assert np.array_equal(mask, expected[name]), name
    assert any(0 < mask.mean() < 255 for mask in found.values())


def test_a_support_drawn_with_the_mouse(page: Page, data: Data, tmp_path: Path) -> None:
    page.upload("support-image", data.image)
    page.draw()
    page.find("add").click()
    page.added(1)
    page.upload("queries", *data.queries)
    page.find("segment").click()
    masks = page.answers(2)
    assert page.value("told textarea").startswith("2 images segmented by prototype on tiny")
    drawing = masks.pop(f"{data.image.stem}_mask.png")
    height, width = drawing.shape
    assert (height, width) == pixels(data.image).shape
    assert drawing[height // 2, width // 2] == 255
    assert drawing[height // 2 - 20].max() == drawing[:, width // 2 - 20].max() == 0
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    same(masks, predicted(data, [(data.image, tmp_path / "drawing.png")], tmp_path / "out"))


def test_segment_pressed_right_after_a_support_waits_for_it(page: Page, data: Data) -> None:
    page.upload("queries", *data.queries)
    page.upload("support-image", data.image)
    page.draw()
    segment = page.find("segment")
    page.find("add").click()
    until(page.driver, segment.is_enabled)
    segment.click()
    page.answers(2)
    page.find("add").click()  # a mistake: there is no image now
    until(page.driver, lambda: page.value("support-told textarea").startswith("there is no support image"))
    until(page.driver, segment.is_enabled)


def test_two_supports_with_the_keyboard_alone(page: Page, address: str, data: Data, tmp_path: Path) -> None:
    page.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    first = page.value("model input")
    page.tab_to("model input")
    until(page.driver, lambda: page.next_model() != first)
    page = Page(page.driver, address)  # with the first model again
    for count, (image, mask) in enumerate(data.supports, start=1):
        page.choose("support-image", image)
        page.choose("support-mask", mask)
        page.tab_to("add")
        page.press("\ue007")
        page.added(count)
    page.choose("queries", *data.queries)
    page.tab_to("segment")
    page.press(" ")
    same(page.answers(2), predicted(data, data.supports, tmp_path / "out"))
    page.tab_to("files a")  # what is to be downloaded can be reached


def test_a_mistake_is_told_as_text(page: Page, data: Data, tmp_path: Path) -> None:
    page.find("segment").click()
    until(
        page.driver, lambda: page.value("told textarea") == "there is no support\n  -> add an image with its mask first"
    )
    hostile = tmp_path / "<img src=x onerror=document.title='taken'>.jpg"
    hostile.write_bytes(b"no image")
    page.upload("support-image", hostile)
    told = until(page.driver, lambda: page.value("support-told textarea"))
    what, fix = told.split("\n")
    assert what.startswith("image img src=x onerror=document.title='taken'.jpg cannot be read: not an image of")
    assert hostile.stem in page.find("support-image").text  # without < and > in the name that it is stored by
    assert fix.startswith("  -> save it in one of these formats")
    assert page.driver.title == "fsseg demo"
    assert not page.driver.find_elements("css selector", "img[src=x]")


def test_a_page_that_needs_another_machine_is_noticed(chromium: Any) -> None:
    events(chromium, "")
    chromium.get("data:text/html,<link rel=stylesheet href=https://fonts.example.org/a.css>")
    assert foreign(events(chromium, "Network.requestWillBeSent")) == ["https://fonts.example.org/a.css"]
