"""Ray is started or joined: what a signal meanwhile does, what a wrong address is."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sparring.pipeline.execution import ray_cluster, signals
from sparring.stages.errors import ConfigError
from tests.refusals import refused


def test_a_signal_while_ray_starts_is_as_anywhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(gpus: int, dashboard: bool) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signals.stop)
    monkeypatch.setattr(ray_cluster, "_init", start)
    try:
        with pytest.raises(signals.Stopped) as caught:
            ray_cluster.start_ray(0)
        assert caught.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signals.stop
    finally:
        signal.signal(signal.SIGTERM, before)


WRONG = [
    "ray://127.0.0.1:10001",
    "http://127.0.0.1:8265",
    "127.0.0.1",
    "127.0.0.1:",
    ":6379",
    "127.0.0.1:port",
    "127.0.0.1:0",
    "127.0.0.1:99999",
    "127.0.0.1:\u0661",
    "no/where:6379",
    "a..b:6379",
    "nowhere.invalid:6379",
    "127.0.0.1:1",
    "[::1]:1",
    "local",
    "x" * 300 + ":6379",
]


@pytest.mark.parametrize("address", WRONG)
def test_a_wrong_address_is_refused_at_once(address: str) -> None:
    with refused(ConfigError, "unset RAY_ADDRESS"):
        ray_cluster.check_address(address)


def test_an_address_that_is_silent_has_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with refused(ConfigError, address, "1 s"):
            ray_cluster.check_address(address)
    assert address in capfd.readouterr().err, "said while it is waited for"


def test_another_kind_of_server_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ASK", "raise SystemExit('asked')")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        with refused(ConfigError, "RAY_ADDRESS", "b'"):
            ray_cluster.check_address(f"127.0.0.1:{web.server_port}")
        web.shutdown()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Version mismatch: The cluster was started with: Ray: 2.0 Python: 3.11.7", ("2.0", "install")),
        ("RpcError: InvalidAuthToken: Unauthenticated", ("token", "RAY_AUTH_TOKEN")),
        ("Traceback\nRpcError: it is busy", ("it is busy", "unset RAY_ADDRESS")),
        ("", ("unset RAY_ADDRESS",)),
    ],
)
def test_what_a_cluster_refuses_is_named(monkeypatch: pytest.MonkeyPatch, said: str, words: tuple[str, ...]) -> None:
    monkeypatch.setattr(
        ray_cluster, "ASK", f"import os, sys; assert 'RAY_ADDRESS' not in os.environ; sys.exit({said!r} or 1)"
    )
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with refused(ConfigError, "RAY_ADDRESS=auto", words):
        ray_cluster.check_address("auto")


def test_nothing_of_rays_follows_our_message() -> None:
    words = "_mute(); os.write(2, b'noise'); print('ours', file=sys.stderr)"
    code = f"import os, sys; from sparring.pipeline.execution.ray_cluster import _mute; {words}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "ours\n"
