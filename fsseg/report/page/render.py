"""The page as HTML: templates of Jinja2 in this folder, everything escaped, nothing fetched.

A policy in the page's head forbids the browser all but the page's own style, script and pictures, whatever a name of a
run may hold.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from fsseg.errors import visible
from fsseg.report.page.contents import Contents
from fsseg.report.page.curves import HEIGHT, WIDTH
from fsseg.report.page.listing import HEAT_STEPS

if TYPE_CHECKING:
    from jinja2 import Environment


def render(page: Contents, refresh: float | None = None) -> str:
    """The page.

    Args:
        refresh: seconds after which it loads itself anew; None never.
    """
    style, script = _part("style.css"), _part("script.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template("page.html").render(
        page=page, policy=policy, style=style, script=script, refresh=refresh and max(1, round(refresh)),
        heat_steps=HEAT_STEPS, width=WIDTH, height=HEIGHT,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters["as_is"] = _as_is
    return made


def _shown(value: Any) -> Any:
    """What stands in the page for a value: a text with each of its characters visible."""
    return visible(value) if type(value) is str else value


def _as_is(text: str) -> Any:
    """Our own style and script, which hold no foreign text."""
    from markupsafe import Markup

    return Markup(text)


@lru_cache
def _part(name: str) -> str:
    return (resources.files("fsseg.report.page") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
