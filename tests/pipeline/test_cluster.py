"""Ray is started: what a signal meanwhile does."""

from __future__ import annotations

import signal

import pytest

from pipeline import cluster, stopping


def test_a_signal_while_ray_starts_is_as_anywhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(gpus: int) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stopping.terminate)
    monkeypatch.setattr(cluster, "_init", start)
    try:
        with pytest.raises(stopping.Stopped) as caught:
            cluster.start_ray(0)
        assert caught.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is stopping.terminate
    finally:
        signal.signal(signal.SIGTERM, before)
