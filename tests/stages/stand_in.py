"""Servers on loopback: vLLM's own, and stand-ins that answer as told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from sparring.stages import servers

START_S = 300
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

Reply = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""(path, body and `key`) -> (status, answer)."""


@contextmanager
def vllm_server(folder: Path, name: str, log: Path, *more: str) -> Iterator[str]:
    """vLLM's server with a model as `name`, one engine process without workers of its own."""
    url = f"http://127.0.0.1:{free_port()}"
    command = f"""{sys.executable} -m vllm.entrypoints.openai.api_server --model {folder} --served-model-name {name}
        --host 127.0.0.1 --port {url.rpartition(":")[2]} --dtype float32 --enforce-eager
        --distributed-executor-backend uni"""
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*command.split(), *more], env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vLLM's server did not start:\n{log.read_text(encoding='utf-8')[-4000:]}")
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def stand_ins() -> Iterator[Callable[[Reply], str]]:
    """Start stand-ins that answer as told; gives the URL of each."""
    started: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send({})

            def do_POST(self) -> None:
                self.send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def send(self, body: dict[str, Any]) -> None:
                status, answer = reply(self.path, {**body, "key": self.headers.get("Authorization")})
                text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # connections that wait; one more than that is reset

        started.append(Server(("127.0.0.1", 0), Handler))
        Thread(target=started[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between tries; the patience is the real one, so that a loaded machine fails no test."""
    for name, seconds in (("FIRST_WAIT_S", 0.02), ("LONGEST_WAIT_S", 0.1), ("LEFT_S", 0.05)):
        monkeypatch.setattr(servers, name, seconds)


def dead_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
