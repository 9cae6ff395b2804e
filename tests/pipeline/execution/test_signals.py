"""Signals beside a step that can save its state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from sparring.pipeline.execution import signals


@pytest.fixture(autouse=True)
def signals_raise() -> Iterator[None]:
    """Also where the tests run in the background, with SIGINT ignored."""
    handlers = {signal.SIGTERM: signals.stop, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_waits_for_the_end_of_the_block() -> None:
    done = False
    with pytest.raises(signals.Stopped) as caught, signals.held() as asked:
        assert asked() == 0
        signal.raise_signal(signal.SIGTERM)
        assert asked() == signal.SIGTERM
        done = True
    assert done and caught.value.number == signal.SIGTERM and "again" in str(caught.value)


def test_a_second_signal_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), signals.held() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not ended")
    assert signal.getsignal(signal.SIGTERM) is signals.stop


def test_what_the_block_raises_comes_first() -> None:
    with pytest.raises(ValueError), signals.held():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.held() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_elsewhere_than_on_the_main_thread_nothing_is_held() -> None:
    found: list[int] = []

    def look() -> None:
        with signals.held() as asked:
            found.append(asked())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [0]
