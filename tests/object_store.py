"""A real S3 server on loopback, moto's, that fails as object stores do: it throttles, drops connections, breaks off.

Every request passes one lock: moto looks whether an object is there and then writes it, which S3 does at once.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import flask
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

# vLLM, when it is imported, reads what every module holds, and flask's names raise outside of a request.
flask.Flask(__name__).test_request_context().push()

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We had an internal error.</Message></Error>"
ERRORS = {
    "slow_down": ("503 Slow Down", SLOW_DOWN),
    "broken": ("500 Internal Server Error", BROKEN),
    "denied": ("403 Forbidden", DENIED),
}
WRITES = ("PUT", "POST", "DELETE")
SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY", "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-store"}
ENVIRONMENT = {
    **SECRETS,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Fault = Callable[[int, str], str]
"""(number of the request, its method) -> '', a key of ERRORS, `dropped` before it is done, `lost` after, the
client `killed_before` or `killed_after`, or `unconditional`: done as a server does it that knows no conditions."""


def none(number: int, method: str) -> str:
    """No request fails."""
    return ""


@dataclass
class Server:
    """The server, what it has been asked for, and how it fails."""

    url: str = ""
    fault: Fault = none
    client: int = 0
    """Process to kill."""
    requests: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    moto: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))

    @property
    def environment(self) -> dict[str, str]:
        """What AWS's tools read to find it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def watch(self, client: int) -> None:
        """Take a process as the one to kill."""
        self.client = client

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket, unless it is there."""
        account = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        if name not in account.buckets:
            account.create_bucket(name, "us-east-1")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or fail."""
        with self.lock:
            self.requests += 1
            fault = self.fault(self.requests, environ["REQUEST_METHOD"])
            if fault:
                self.failed[fault] = self.failed.get(fault, 0) + 1
            if fault in ERRORS:
                status, body = ERRORS[fault]
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(status, [("Content-Type", "text/xml")])
                return [body]
            if fault.startswith("killed"):
                if fault == "killed_after":
                    list(self.moto(environ, start_response))
                os.kill(self.client, signal.SIGKILL)
                _drop(environ)
            if fault == "unconditional":
                environ.pop("HTTP_IF_NONE_MATCH", None)
            if fault == "dropped":
                _drop(environ)
            answer = list(self.moto(environ, start_response))
            if fault == "lost":
                _drop(environ)
            return answer

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Fail in some way for a while; requests are counted from one."""
        with self.lock:
            self.fault, self.requests, self.failed = fault, 0, {}
        try:
            yield
        finally:
            with self.lock:
                self.fault = none


def _drop(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def use(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Have this process find the server, and no other."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


class _Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of loopback until the end."""
    server = Server()
    listening = make_server("127.0.0.1", 0, server, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
