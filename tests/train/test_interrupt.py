"""The first signal is a request, the second acts; what was there before comes back."""

from __future__ import annotations

import signal
import threading

import pytest

from hllm.train.interrupt import interruptible

main_thread_only = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread"
)


@main_thread_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with interruptible() as state:
            assert not state.requested
            signal.raise_signal(number)
            assert state.requested
            assert heard == []
            signal.raise_signal(number)  # a second one acts at once
            assert heard == [number]
        with interruptible() as state:
            assert not state.requested
        signal.raise_signal(number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with interruptible() as state:
            seen.append((state.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
