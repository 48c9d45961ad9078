"""Locks on files, by which processes that share an output folder keep off each other's runs.

The kernel lets go of a lock when its owner dies.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fastvim.errors import UserError


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Try to hold the lock at `path`, which is created; yields whether it worked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise UserError(f"cannot lock {path}: {error.strerror or error}") from error
        # Someone may have deleted the file between opening and locking it.
        yield path.exists() and os.fstat(handle).st_ino == path.stat().st_ino
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock at `path`. Creates nothing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
