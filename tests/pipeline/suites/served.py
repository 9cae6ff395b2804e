"""A stand-in for a server that speaks OpenAI's protocol: what it says to a request is the test's own."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Row = dict[str, Any]


class Server(ThreadingHTTPServer):
    """Serves one model on loopback; `reply` makes the body of an answer."""

    def __init__(self, model: str, reply: Callable[[Server, Row], Row]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.reply = model, reply
        self.asked: list[Row] = []
        self.mumbles: str | None = None
        """What it has no answer to: requests that hold this text."""

    def no_answer_to(self, asked: Row) -> bool:
        """Return whether it mumbles at a request."""
        return self.mumbles is not None and self.mumbles in asked["messages"][-1]["content"]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": self.server.model}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self._send(self.server.reply(self.server, asked))

    def _send(self, body: Row) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextlib.contextmanager
def serving(model: str, reply: Callable[[Server, Row], Row]) -> Iterator[Server]:
    """Serve until the block ends."""
    found = Server(model, reply)
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        thread.join()
        found.server_close()
