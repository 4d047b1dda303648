"""The page of `fsseg demo` in a real Chromium: its masks are those of `fsseg predict`, with the mouse or the keyboard."""

from __future__ import annotations

import io
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import events, requests_elsewhere, until
from command_line import fsseg
from numpy.typing import NDArray
from PIL import Image
from runs import cell_of, composed, done, fork

import fsseg as package

pytestmark = pytest.mark.demo

PROTOTYPE = ("method=prototype", "backbone=tiny", "dataset=shapes5i", "dataset.image_size=25", "device=cpu")


@dataclass(frozen=True)
class Data:
    """A support image with its mask, two queries, and a trained run; and a folder for more."""

    image: Path
    mask: Path
    queries: list[Path]
    run: Path
    folder: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("demo")
    c = composed(folder / "data", folder / "outputs", "train.max_steps=4", "dataset=shapes5i")
    done(c)
    images = sorted((folder / "data").rglob("JPEGImages/val_*.jpg"))
    labels = {image: np.array(Image.open(mask_file(image))) for image in images}
    image = max(images, key=lambda i: (labels[i] == 3).sum())
    mask = folder / "an object.png"
    Image.fromarray(((labels[image] == 3) * 255).astype(np.uint8)).save(mask)
    return Data(image, mask, [i for i in images if i != image][:2], cell_of(c).directory, folder)


def mask_file(image: Path) -> Path:
    return image.parents[1] / "SegmentationClass" / f"{image.stem}.png"


def serve(*words: str) -> None:
    from fsseg.cli.app import main

    sys.argv = ["fsseg", "demo", *words]
    main()


@pytest.fixture(scope="module")
def address(data: Data) -> Iterator[str]:
    """Of the page, which offers the run, by its checkpoint and as one found below a folder, and a training-free method."""
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
        driver.get("about:blank")
        events(driver, "")
        driver.get(address)
        until(driver, lambda: self.value("model input"))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", f"#{selector}")

    def value(self, selector: str) -> str:
        return str(self.find(selector).get_property("value"))

    def upload(self, field: str, *paths: Path) -> None:
        self.find(f"{field} input[type=file]").send_keys("\n".join(map(str, paths)))
        self.has_uploaded(field, len(paths))

    def has_uploaded(self, field: str, count: int) -> None:
        until(self.driver, lambda: len(self.driver.find_elements("css selector", f"#{field} a[href]")) == count)

    def press(self, button: str) -> None:
        self.find(button).click()

    def add(self, count: int) -> None:
        """Add a support, of which there are then so many."""
        self.press("add")
        until(self.driver, lambda: self.value("support-told textarea").startswith(f"{count} support"))

    def answers(self, count: int) -> dict[str, NDArray[np.uint8]]:
        """Once so many overlays are shown: name -> what can be downloaded, of those that are masks."""
        until(self.driver, lambda: len(self.driver.find_elements("css selector", "#overlays img")) >= count)
        found = until(self.driver, lambda: self.driver.find_elements("css selector", "#files a[href]"))
        links = {link.get_attribute("download"): link.get_attribute("href") for link in found}
        assert {"predictions.csv", "sheet.png"} < set(links)
        masks = {name: url for name, url in links.items() if name.endswith(".png") and name != "sheet.png"}
        return {name: np.array(Image.open(io.BytesIO(urllib.request.urlopen(url).read()))) for name, url in masks.items()}


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Page]:
    yield Page(chromium, address)
    assert requests_elsewhere(chromium) == []


def predicted(data: Data, mask: Path, out: Path) -> dict[str, NDArray[np.uint8]]:
    """Masks of the queries by the command line, and by Python: they are the same."""
    words = ("--checkpoint", str(data.run), "device=cpu", "--support", f"{data.image}:{mask}", "--out", str(out))
    ended = fsseg("predict", *words, *map(str, data.queries))
    assert ended.returncode == 0, ended.stderr
    masks = {f"{query.stem}.png": np.array(Image.open(out / "masks" / f"{query.stem}.png")) for query in data.queries}
    answers = package.load(data.run, "cpu").predict([str(q) for q in data.queries], [(str(data.image), str(mask))])
    for answer, of_command in zip(answers, masks.values()):
        assert np.array_equal(answer.mask * 255, of_command)
    return masks


def test_a_support_drawn_with_the_mouse(page: Page, data: Data, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    page.upload("support-image", data.image)
    canvas = until(page.driver, lambda: page.find("editor .image-container canvas"))
    until(page.driver, lambda: (page.find("editor button[aria-label='Brush']").get_attribute("outerHTML"), True))
    page.driver.save_screenshot(str(data.folder / "drawn0.png"))
    pen = ActionChains(page.driver).move_to_element(canvas).click_and_hold()
    for dx, dy in ((20, 0), (0, 20), (-20, 0), (0, -10)):
        pen = pen.move_by_offset(dx, dy)
    pen.release().perform()
    page.driver.save_screenshot(str(data.folder / "drawn.png"))
    page.add(1)
    page.upload("queries", *data.queries)
    page.press("segment")
    page.driver.save_screenshot(str(data.folder / "drawn1.png"))
    masks = page.answers(2)
    page.driver.save_screenshot(str(data.folder / "drawn2.png"))
    drawing = masks.pop(f"{data.image.stem}_mask.png")
    print(drawing.shape, drawing.sum())
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    expected = predicted(data, tmp_path / "drawing.png", tmp_path / "out")
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert np.array_equal(mask, expected[name])
