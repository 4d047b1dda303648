"""Serves the page on loopback: to this machine alone, and to pages of its own alone. `fsseg.cli.demo` calls it."""

from __future__ import annotations

import importlib
import os
import re
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsseg.demo.models import Models
from fsseg.errors import UserError
from fsseg.process.signals import exiting_on

HOST = "127.0.0.1"
MOST_BYTES = 100 * 2**20
"""Of an upload."""
_OWN_NAMES = ("127.0.0.1", "localhost")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Send], Awaitable[None]]

_HEADERS = {
    # The browser itself then refuses whatever would be fetched from elsewhere.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for uploads and answers, deleted when the process is told to end, which a Ctrl-C does quietly.

    All that Gradio would take from the environment is left out: an address, a share link, folders to serve.
    """
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("GRADIO_")}
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        with exiting_on(("SIGTERM", "SIGHUP")), tempfile.TemporaryDirectory(prefix="fsseg-demo-") as name:
            os.environ["GRADIO_TEMP_DIR"] = str(folder := Path(name).resolve())  # it looks when it is imported
            yield folder
    except KeyboardInterrupt:
        pass
    finally:
        del os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_TEMP_DIR"]
        os.environ.update(own)


def check_packages() -> None:
    """
    Raises:
        UserError: Gradio is not there.
    """
    try:
        importlib.import_module("gradio")
    except ImportError as error:
        what = f"fsseg demo needs the package gradio, which cannot be imported ({error})"
        raise UserError(what, "pip install 'fsseg[demo]'") from None


def bound(port: int) -> socket.socket:
    """A socket on loopback; port 0 is any that is free.

    Raises:
        UserError: it is in use, or not allowed.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        what = f"--port {port}: it cannot be used on {HOST} ({error.strerror})"
        raise UserError(what, "choose another port: --port N; --port 0 takes one that is free") from None
    return listener


def serve(models: Models, listener: socket.socket, folder: Path, browser: bool) -> None:
    """Show the page until the process is told to end.

    Args:
        folder: as of `workplace`.
        browser: open the page.
    """
    import uvicorn

    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    # Its warnings are of pages that are open at the end.
    config = uvicorn.Config(
        application(models, folder), log_level="critical", timeout_graceful_shutdown=1, proxy_headers=False
    )
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if browser:
        threading.Timer(1, webbrowser.open, [address]).start()
    uvicorn.Server(config).run(sockets=[listener])


def application(models: Models, folder: Path) -> Application:
    """The page with what surrounds it.

    Args:
        folder: as of `workplace`.
    """
    import gradio as gr
    from fastapi import FastAPI

    from fsseg.demo.page import CSS, page, theme

    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page(models, folder), "/", server_name=HOST, max_file_size=MOST_BYTES,
        footer_links=[], run_history=False, ssr_mode=False, pwa=False, mcp_server=False, theme=theme(), css=CSS,
    )  # fmt: skip
    return guarded(app)


def guarded(app: Application) -> Application:
    """The application for its own page alone: no other site can use it through the browser of whoever runs it.

    A request under another name (an address that a foreign name resolves to) or of another site's page is refused.
    """

    async def answer(scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] == "http":
            given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            host = given.get("host", "")
            own = re.fullmatch(rf"(?:{'|'.join(map(re.escape, _OWN_NAMES))})(?::\d+)?", host)
            if not own or given.get("origin", f"http://{host}") != f"http://{host}":
                await send(
                    {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
                )
                await send({"type": "http.response.body", "body": b"only for pages of fsseg demo on this machine\n"})
                return
        await app(scope, receive, _with_headers(send))

    return answer


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *more]
        await send(message)

    return sending
