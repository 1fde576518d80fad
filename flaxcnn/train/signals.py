"""Stopping in order."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and SIGINT into a flag; a second one acts as usual.

    At the end, one that came goes on to the handler that the program had for it: it
    may have come too late for the flag to be looked at.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, old[signal.Signals(number)])

    for number in old:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for came in received:
            handler = old[signal.Signals(came)]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(came, None)
