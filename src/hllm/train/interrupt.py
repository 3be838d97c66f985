"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hllm.ranks import launched


class Interruption:
    """Whether the user has asked to stop."""

    requested = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts at once.

    One of several processes may get the signal from the terminal and from what started it: it goes on to the end of
    the step, at which all stop together. Only the main thread may set signal handlers; elsewhere nothing is changed.
    """
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        state.requested = True
        if launched():
            return
        for s, handler in previous.items():
            signal.signal(s, handler)

    for s in previous:
        signal.signal(s, request)
    try:
        yield state
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
