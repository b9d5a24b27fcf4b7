"""How a process of this package begins and ends, with less work for Python's garbage collector."""

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
    """Look for cycles of dead objects less often, and not at all when the process ends.

    Importing torch and transformers creates more than a million objects that exist until the end.
    The collector visits them again and again, and once more before the process ends. This took 2.1
    of the 4.6 s that a process with both needed to start and end.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


@contextmanager
def interruptible() -> Iterator[None]:
    """End quietly on Ctrl-C or SIGTERM, by an exception, so that drafts of files are removed.

    A second signal ends the process at once. Ignored signals remain ignored.
    """

    def leave(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if sys.stderr.isatty():
            print("ontogeny: interrupted; the same command continues", file=sys.stderr)
        sys.exit(128 + number)

    before = {}
    main = threading.current_thread() is threading.main_thread()  # other threads get no signals
    for each in (signal.SIGINT, signal.SIGTERM) if main else ():
        if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
            before[each] = signal.signal(each, leave)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
