"""Locks on files, which the system releases when their process ends in any way.

Some file systems of clusters are mounted without locks. Locked operations are also safe without
them: files are written atomically, and downloads are verified.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from ontogeny.files import InputError

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def hold(file: int | IO[str], wait: bool = False) -> bool | None:
    """Lock an open file until it is closed or this process ends.

    Returns whether this process holds it: False if another process does, None if the file system
    has no locks.

    Parameters
    ----------
    wait : whether to wait for the process that holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return True


def claim(folder: Path) -> IO[str]:
    """Lock an experiment, so that no other run uses its folder until the file is closed.

    Raises
    ------
    InputError : another run holds it. OSError : the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "a+")  # keep its content until this process holds the lock
    try:
        held = hold(lock)
    except OSError:
        lock.close()
        raise
    if held is False:
        lock.seek(0)
        process = lock.read()
        lock.close()
        how = f" (`kill {process}`)" if process else ""
        raise InputError(f"{folder}: another run works here; wait for it or end it{how}")
    if held is None:
        print(
            f"{folder}: this file system has no locks; make sure that no other run works here",
            file=sys.stderr,
        )
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
