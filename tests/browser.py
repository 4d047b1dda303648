"""A real Chromium without a window, for tests of pages; `conftest.py` makes a fixture of it.

It finds no host but this machine: a page that needs another one fails its test, and `foreign` names what it asked for.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

SECONDS = 60
"""To wait for what a page does; a busy machine is slow."""
LOOPBACK = ("127.0.0.1", "localhost")


def missing() -> str | None:
    """Why there is no Chromium to test with; None if there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    lacking = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not found" if lacking else None


@contextmanager
def started(folder: Path) -> Iterator[Any]:
    """A driver of Chromium.

    Args:
        folder: for its profile and downloads.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    hosts = ", ".join(f"EXCLUDE {host}" for host in LOOPBACK)
    options.add_argument(f"--host-resolver-rules=MAP * ~NOTFOUND, {hosts}")
    for word in (
        "--headless=new", "--window-size=1300,1500", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader",
        "--disable-background-networking", "--no-first-run", "--no-proxy-server",
        f"--user-data-dir={folder / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(shutil.which("chromedriver")))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(SECONDS)
        yield driver
    finally:
        driver.quit()


def until(driver: Any, condition: Callable[[], T]) -> T:
    """Wait for a condition, and give what it says; an element that is not there (yet) is no fault."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (NoSuchElementException, StaleElementReferenceException)
    return WebDriverWait(driver, SECONDS, poll_frequency=0.1, ignored_exceptions=ignored).until(lambda _: condition())


def events(driver: Any, method: str) -> list[dict[str, Any]]:
    """What DevTools has told under this name since anybody asked; everything else is forgotten."""
    told = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"] for event in told if event["method"] == method]


def foreign(asked: list[dict[str, Any]]) -> list[str]:
    """Addresses on other machines among requests, which are events `Network.requestWillBeSent`."""
    urls = [event["request"]["url"] for event in asked]
    return [url for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")
            and urlsplit(url).hostname not in LOOPBACK]  # fmt: skip
