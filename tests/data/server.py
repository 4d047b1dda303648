"""A web server on loopback that can misbehave, for the tests of downloading."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is served, and how badly.

    Attributes:
        files: by path.
        break_after: close the connection after this many bytes of each answer's body.
        claim: make of the true total size what headers state.
        spoil: change the bytes of an answer (given the number of answers before it).
        ranges: whether Range requests are honoured.
        silent: state no size at all; the body ends with the connection.
        refuse: answer this many requests with status 503 first.
        etag: of all files; None sends none.
        requests: Range headers received (None: a request for all).
    """

    files: dict[str, bytes] = field(default_factory=dict)
    break_after: int | None = None
    claim: Callable[[int], int] = lambda total: total
    spoil: Callable[[bytes, int], bytes] = lambda body, number: body
    ranges: bool = True
    silent: bool = False
    refuse: int = 0
    etag: str | None = '"one"'
    requests: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            span = self.headers.get("Range")
            site.requests.append(span)
            if site.refuse > 0:
                site.refuse -= 1
                self.send_error(503)
                return
            if self.path not in site.files:
                self.send_error(404)
                return
            whole = site.files[self.path]
            body, begin = site.spoil(whole, len(site.requests) - 1), 0
            condition = self.headers.get("If-Range")
            if span and site.ranges and (condition is None or condition == site.etag):
                begin = int(re.fullmatch(r"bytes=(\d+)-", span)[1])  # type: ignore[index]
                if begin >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                last, total = len(body) - 1, site.claim(len(body))
                self.send_header("Content-Range", f"bytes {begin}-{last}/{total}")
                self.send_header("Content-Length", str(len(body) - begin))
            else:
                self.send_response(200)
                if not site.silent:
                    self.send_header("Content-Length", str(site.claim(len(body))))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            self.wfile.write(body[begin:][: site.break_after])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
