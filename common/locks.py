"""Files that other processes may read or write at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, Interrupted, remedy


@contextmanager
def atomic(path: Path):
    """A temporary path beside `path`, moved there when the block ends well: no reader ever sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write does not say where
        raise
    finally:
        partial.unlink(missing_ok=True)


def try_lock(file) -> bool:
    """Take the kernel's lock on an open file; it goes with its process, however that ends. False: another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        error.filename = file.name
        raise


@contextmanager
def locked(path: Path, stop: Callable[[], bool] = lambda: False, flag: str = "--data-dir"):
    """Hold `path`.lock, in a folder that is made; others wait. InputError, with `flag`: no file can be had there."""
    told = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(path.name + ".lock"), "a")  # noqa: SIM115 (held below)
        while not try_lock(file):
            if not told:
                print(f"waiting for another process that builds {path}", file=sys.stderr)
            told = True
            if stop():
                raise Interrupted
            time.sleep(0.5)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        way = remedy(error, flag=flag) or f"choose another {flag}"
        raise InputError(f"{flag} {path.parent}: {error.strerror}; {way}") from None
    with file:
        yield


def build_once(path: Path, build: Callable[[], None], stop: Callable[[], bool] = lambda: False) -> Path:
    """`path`, written now by `build` if it is not there; two processes at once write it once.

    Raises:
        InputError: its folder cannot be written to.
    """
    if path.exists():
        return path
    with locked(path, stop):
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink()  # left by a kill in the middle of a write
        if not path.exists():
            build()
    return path
