"""Interrupting a workflow: its jobs end with it within seconds, and one line says what is kept.

On SIGTERM, Snakemake waits for running jobs, which may take hours, and reports each interrupted job
as a failure. Here nothing has to be finished or cleaned up: files are written atomically, and a
training continues from its last state.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 4.0  # seconds for a job to remove its drafts
WAKES = 10  # attempts, a tenth of a second apart, to wake the main thread


def end_with_jobs(local: bool) -> None:
    """From now on, Ctrl-C, SIGTERM or a closed terminal ends this process and all its jobs.

    Signals that this process was started to ignore, for example by nohup, remain ignored.

    Parameters
    ----------
    local : whether jobs are processes on this machine. Snakemake cancels jobs on a cluster when a
        KeyboardInterrupt reaches it.
    """
    noticed = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        noticed.set()
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        if local:
            end(number)
        _close()
        raise KeyboardInterrupt

    def end(number: int) -> None:
        _close()
        end_children(GRACE)
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return  # another program calls Snakemake and handles the signals
    for each in SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, stop)
    _watch(noticed, end if local else None)


def _watch(noticed: threading.Event, end: Callable[[int], None] | None) -> None:
    """Make sure that the main thread notices a signal; if it does not, call `end`.

    The system may deliver a signal in any thread. Python runs its handler in the main thread, but
    does not wake it, and Snakemake's main thread waits for a lock as long as jobs run.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        number, attempts = os.read(read, 1)[0], 0
        while not noticed.wait(0.1):
            attempts += 1
            if end is not None and attempts > WAKES:
                end(number)
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _close() -> None:
    """Print the last message of an interrupted run; nothing follows it."""
    logging.disable(logging.CRITICAL)  # jobs that end now have not failed
    print(closing_line(), file=sys.stderr, flush=True)


def closing_line() -> str:
    """The last message of an interrupted run."""
    program, *words = sys.argv
    path = Path(program)
    command = f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name
    again = "" if "MAKELEVEL" in os.environ else f": {shlex.join([*command.split(), *words])}"
    return f"Interrupted. Finished work is kept; the same command continues from here{again}"


def end_children(grace: float) -> None:
    """End all processes below this one: by SIGTERM, and after `grace` seconds by SIGKILL."""
    own, asked = psutil.Process(), set[psutil.Process]()
    deadline = time.monotonic() + grace
    while True:
        # A job that a thread is just starting is found in the next iteration.
        left = {p for p in asked if _runs(p)}
        new = _stopped_below(own, left)
        if not left | new:
            return
        late = time.monotonic() > deadline
        for process in left | new if late else new:
            # Shells need no clean-up, and would report how their children ended.
            ends = late or _is_shell(process)
            _send(process, signal.SIGKILL if ends else signal.SIGTERM)
            _send(process, signal.SIGCONT)
        asked |= new
        time.sleep(0.05)


def _stopped_below(own: psutil.Process, known: set[psutil.Process]) -> set[psutil.Process]:
    """The processes below this one that are not known, each stopped.

    A process may start another while they are listed, and if it ended before that one is found,
    nothing would lead to it. Stopped processes start no more.
    """
    found = set[psutil.Process]()
    while new := {p for p in own.children(recursive=True) if _runs(p)} - known - found:
        for process in new:
            _send(process, signal.SIGSTOP)
        found |= new
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_shell(process: psutil.Process) -> bool:
    try:
        return process.name() in ("sh", "bash", "dash")
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass  # it has ended


def at_work(folder: str | Path) -> list[tuple[int, str]]:
    """Commands of this package that run on an experiment's folder on this machine: process and
    command."""
    place, own = Path(folder).resolve(), {os.getpid(), os.getppid()}
    commands = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.pid in own or not _is_ours(words) or process.status() == "zombie":
                continue
            if any(Path(process.cwd(), word).resolve() == place for word in words[2:]):
                commands.append((process.pid, shlex.join(_said(words))))
        except (psutil.Error, OSError, ValueError):
            continue
    return commands


def _is_ours(words: list[str]) -> bool:
    return any(Path(w).name == "ontogeny" for w in words[:2]) or words[1:3] == ["-m", "ontogeny"]


def _said(words: list[str]) -> list[str]:
    """A command as it was typed, without Python and the path of the program."""
    if words[1:3] == ["-m", "ontogeny"]:
        return words[2:]
    return ["ontogeny", *words[[Path(word).name for word in words].index("ontogeny") + 1 :]]


def wait_for_others(folder: str | Path) -> None:
    """Wait until no job left by a killed run works on an experiment's folder any more."""
    told: set[int] = set()
    while others := at_work(folder):
        for process, command in others:
            if process not in told:
                told.add(process)
                print(
                    f"{folder}: waiting for `{command}`, process {process}, which an earlier run "
                    f"left running; `kill {process}` ends it",
                    file=sys.stderr,
                    flush=True,
                )
        time.sleep(0.5)
