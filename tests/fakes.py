"""Stand-ins that several tests share."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stages.core.context import NullProgress
from stages.core.text import normalise
from stages.pairs.cells import text_digest


def text_id(text: str) -> str:
    """The id that the pairs stage gives a text which came without one."""
    return text_digest(normalise(text)).hex()


class RecordedProgress(NullProgress):
    """A progress that records its calls: `messages`, and `reports` as (done, total, unit, tokens).

    `on_report` is called with the count of each report, and may end the process there.
    """

    def __init__(self, on_report: Callable[[int], None] | None = None) -> None:
        self.messages: list[str] = []
        self.reports: list[tuple[int, int | None, str, int]] = []
        self.on_report = on_report

    def advance(self, done: int, total: int | None, unit: str, tokens: int = 0) -> None:
        """Keep a report."""
        self.reports.append((done, total, unit, tokens))
        if self.on_report:
            self.on_report(done)

    def log(self, message: str) -> None:
        """Keep a message."""
        self.messages.append(message)


Body = dict[str, Any]
Reply = tuple[int, str] | tuple[int, str, dict[str, str]]
Behave = Callable[[Body, int], Reply]
"""(request body, how many came before it) -> status, body and headers of the reply."""


class APIServer:
    """An API on a free port that answers as `behave` says and records the requests."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.bodies: list[Body] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    before = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.heads.append((self.path, dict(self.headers)))
                status, text, *more = outer.behave(body, before)
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **(more[0] if more else {})}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass  # the client timed out, as the test intends

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End the server, and the replies that wait for `closing`."""
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
