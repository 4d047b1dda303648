"""The page of `fsseg report` in a real Chromium, opened as a file: it works, asks for nothing, and obeys no name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from browser import events
from html_page import parsed
from PIL import Image
from run_directories import KEY, make_run, write_metrics
from test_page import HOSTILE

from fsseg.cell.key import CellKey
from fsseg.report.collect import collect
from fsseg.report.page.contents import Standing, contents
from fsseg.report.page.render import render
from fsseg.report.tables import build
from fsseg.sweep.status import look_around


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of nine rows, one for each hostile text, and of a failed cell each."""
    folder = tmp_path_factory.mktemp("runs")
    for i, text in enumerate(HOSTILE):
        variant = f"{i} {text}".replace("/", "|")[:90]
        key = CellKey(KEY.name, "folder", "abcb", "tiny", 1, 0, 0, variant)
        run = make_run(
            folder, key, identity={"train.lr": i, text: text}, overrides=[text],
            result={"metrics": {"miou": 10.0 + i, "per_class": {text: 10.0 + i, "cat": 50.0}},
                    "provenance": {"host": text}},
        )  # fmt: skip
        write_metrics(run, [{"step": 1, f"{text}loss": 1.0}, {"step": 9, f"{text}loss": 0.5}])
        run.figures.mkdir()
        Image.new("RGB", (1200, 600), "red").save(run.episodes_figure)
        failed = CellKey(KEY.name, "folder", "abcb", "tiny", 1, 1, 0, variant)
        make_run(folder, failed, status={"state": "failed", "reason": text})
    out = tmp_path_factory.mktemp("page") / 'a "page" & more%20.html'
    standing = Standing(look_around([folder]).cells, list(HOSTILE), {text: [text] for text in HOSTILE})
    out.write_text(render(contents(build(collect([folder], whole=True)), standing, [folder])))
    return out


@pytest.fixture
def opened(chromium: Any, page: Path) -> Any:
    """The page as a desktop shows it."""
    shown(chromium, page)
    return chromium


def shown(driver: Any, page: Path, width: int = 1280, dark: bool = False) -> None:
    driver.get_log("browser")
    driver.get_log("performance")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(page.as_uri())


def test_it_asks_for_nothing_and_no_name_is_obeyed(opened: Any) -> None:
    urls = [event["request"]["url"] for event in events(opened, "Network.requestWillBeSent")]
    assert urls
    assert all(url.startswith(("file:", "data:image/")) for url in urls)
    assert sum(url.startswith("file:") for url in urls) == 1
    assert opened.get_log("browser") == []  # an alert would have ended the test by itself
    assert opened.execute_script("return [...document.images].every((i) => i.naturalWidth === 1000)")
    assert opened.execute_script("return document.scripts.length + document.styleSheets.length") == 2


def test_a_script_that_came_in_anyway_would_not_run(opened: Any) -> None:
    opened.execute_script("""
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<b id=own onclick="window.ran = 1" style="color: red">b</b>');
        document.getElementById("own").click();
    """)
    assert opened.execute_script("return window.ran") is None
    assert opened.execute_script("return getComputedStyle(document.getElementById('own')).color") != "rgb(255, 0, 0)"
    assert len(opened.get_log("browser")) >= 2  # and it is told


def column(driver: Any, table: Any, number: int) -> list[str]:
    return driver.execute_script(  # type: ignore[no-any-return]
        "return [...arguments[0].tBodies].flatMap((b) => [...b.rows]).filter((r) => !r.hidden)"
        ".map((r) => r.cells[arguments[1]].textContent)",
        table, number,
    )  # fmt: skip


def test_a_table_is_sorted_with_mouse_and_keyboard(opened: Any) -> None:
    table = opened.find_element("css selector", "#cells table")
    (button,) = [b for b in table.find_elements("css selector", "thead button") if b.text.startswith("mIoU")]
    heading = button.find_element("xpath", "..")
    before = column(opened, table, 8)
    scores = [f"{10 + i:.2f}" for i in range(len(HOSTILE))]
    assert sorted(before) == sorted([*scores, *["—"] * len(HOSTILE)])
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(opened, table, 8) == [*scores[::-1], *["—"] * len(HOSTILE)]
    button.send_keys("\ue007")  # Enter
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(opened, table, 8) == [*scores, *["—"] * len(HOSTILE)]
    others = table.find_elements("css selector", "th[aria-sort]:not([aria-sort=none])")
    assert others == [heading]


def test_rows_are_filtered_by_words(opened: Any) -> None:
    listing = opened.find_element("css selector", "#cells .listing")
    field = listing.find_element("css selector", "input")
    table = listing.find_element("css selector", "table")
    field.send_keys("failed JAVASCRIPT")
    assert column(opened, table, 7) == ["failed"]
    assert listing.find_element("css selector", ".found").text == f"1 of {2 * len(HOSTILE)}"
    field.clear()
    field.send_keys("=done")
    assert set(column(opened, table, 7)) == {"done"}


def background(driver: Any) -> str:
    return driver.execute_script("return getComputedStyle(document.body).backgroundColor")  # type: ignore[no-any-return]


def test_light_and_dark_follow_the_system_and_the_button(chromium: Any, page: Path) -> None:
    shown(chromium, page, dark=True)
    assert background(chromium) == "rgb(21, 23, 26)"
    chromium.find_element("id", "theme").click()
    assert background(chromium) == "rgb(255, 255, 255)"
    shown(chromium, page, dark=True)  # it is remembered
    assert background(chromium) == "rgb(255, 255, 255)"
    chromium.execute_script("localStorage.clear()")
    shown(chromium, page)
    assert background(chromium) == "rgb(255, 255, 255)"


def test_on_a_phone_tables_scroll_in_their_own_boxes(chromium: Any, page: Path) -> None:
    shown(chromium, page, width=390)
    assert chromium.execute_script("return document.documentElement.scrollWidth") == 390
    wide = chromium.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter((s) => s.scrollWidth > s.clientWidth).length"
    )
    assert wide > 0


def test_a_dark_page_is_printed_light(chromium: Any, page: Path) -> None:
    shown(chromium, page, dark=True)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    ink = "return getComputedStyle(document.querySelector('h1')).color"
    try:
        assert (background(chromium), chromium.execute_script(ink)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_print_shows_what_is_folded(opened: Any) -> None:
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = opened.execute_script(folded)
    opened.execute_script("window.opened = -1; addEventListener('beforeprint', () => { window.opened ="
                          " document.querySelectorAll('details:not([open])').length; })")  # fmt: skip
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert before > 0
    assert opened.execute_script("return window.opened") == 0
    assert opened.execute_script(folded) == before


def test_the_browser_sees_the_texts_that_the_parser_sees(opened: Any, page: Path) -> None:
    cells = [cell.text for cell in parsed(page.read_text()).one("section", id="classes").all("th")]
    found = opened.execute_script("return [...document.querySelectorAll('#classes th')].map((e) => e.textContent)")
    assert found == cells
    assert "<script>alert(1)</script>" in found
