"""Progress that is readable on a terminal and in a log: a bar, or a line every few seconds."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_hidden = False


def hide() -> None:
    """Show no bar in this process; of several with the same work, one shows the progress."""
    global _hidden
    _hidden = True


class _Lines:
    """A stream for tqdm that writes each state of the bar on a new line instead of redrawing it."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def bar(
    what: str,
    total: int | None,
    unit: str,
    initial: int = 0,
    every: float = 10.0,
) -> tqdm[Any]:
    """A progress bar that counts `unit`s, with rate and time left, up to `total` if it is known."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        disable=_hidden,
        initial=initial,
        unit=" " + unit,
        unit_scale=total is None or total >= 10_000,
        mininterval=0.2 if terminal else every,
        maxinterval=max(every, 10.0),
        file=None if terminal else _Lines(),
        position=None if terminal else 0,  # with several bars, none moves the cursor
        bar_format=None
        if terminal or total is None  # tqdm's own format shows the count without a total
        else "{desc}: {n_fmt} of {total_fmt}{unit} ({percentage:.0f}%), {rate_fmt}, "
        "{remaining} left{postfix}",
    )
