"""How a process of this package begins and ends: with less work for Python's garbage collector."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def begin() -> None:
    """Look for cycles of dead objects more rarely, and not at all when the process ends.

    Importing torch and transformers makes more than a million objects that all live until the end.
    The collector goes through them again and again, and a last time before the process leaves:
    2.1 of the 4.6 s that a process with both took to start and end.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


@contextmanager
def interruptible() -> Iterator[None]:
    """Leave on Ctrl-C or SIGTERM quietly, by an exception, so that drafts of files are removed.

    A second signal ends the process at once. Signals that are ignored stay so.
    """

    def leave(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if sys.stderr.isatty():
            print("ontogeny: interrupted; the same command continues", file=sys.stderr)
        sys.exit(128 + number)

    before = {}
    main = threading.current_thread() is threading.main_thread()  # others have no signals
    for each in (signal.SIGINT, signal.SIGTERM) if main else ():
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            before[each] = signal.signal(each, leave)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
