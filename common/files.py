"""Leaves of the house: errors, atomic writes, locks, downloads, and arrays read from files. No torch."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

USERBLOCK = 512
"""bytes ahead of the HDF5 data, which HDF5 leaves to us: they begin with the SHA-256 of what follows"""


class InputError(ValueError):
    """The user's input is wrong. The message is one line that says what, where and how to fix it. Exit status 2."""


class Interrupted(RuntimeError):
    """A signal asked the process to stop."""


class WorkersError(RuntimeError):
    """The worker processes died or hung, and their replacements too."""


class NotFinite(RuntimeError):
    """A loss or a weight is NaN or infinite."""


# ---------------------------------------------------------------- writing
@contextmanager
def atomic(path: Path):
    """A temporary path beside `path`, moved there when the block ends well: no reader ever sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, stop: Callable[[], bool] = lambda: False):
    """Hold `path`.lock; others wait. The lock is the kernel's: it goes with its process, however that ends."""
    with open(path.with_name(path.name + ".lock"), "a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"waiting for another process that builds {path}", file=sys.stderr)
                told = True
                if stop():
                    raise Interrupted from None
                time.sleep(0.5)
        yield


def build_once(path: Path, build: Callable[[], None], stop: Callable[[], bool] = lambda: False) -> Path:
    """`path`, written now by `build` if it is not there; two processes at once write it once.

    Raises:
        InputError: its folder cannot be written to.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, stop):
            for partial in path.parent.glob(f".{path.name}.*.partial"):
                partial.unlink()  # left by a kill in the middle of a write
            if not path.exists():
                build()
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"--data-dir: {path.parent}: {error.strerror}; choose a folder you can write to") from None
    return path


def download(url: str, path: Path, advice: str, stop: Callable[[], bool] = lambda: False, blob: str = "") -> None:
    """Write the file at `url` to `path`, with a progress bar; nothing is left of one that is cut or wrong.

    Args:
        advice: what the user can do without it.  blob: git's id of the right content, where known.

    Raises:
        InputError: it cannot be had, or is not what it should be.  Interrupted: `stop()` became true.
    """
    from pooch import HTTPDownloader

    class Bar(tqdm):
        def update(self, n=1):
            if stop():
                raise Interrupted
            return super().update(n)

    with atomic(path) as partial, Bar(desc=path.name, total=1, unit="B", unit_scale=True, disable=None) as bar:
        try:
            HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, str(partial), None)
        except OSError as error:  # all of requests' errors are
            reason = (str(error).split("Caused by ")[-1].splitlines() or [type(error).__name__])[0]
            raise InputError(f"{url}: cannot be downloaded ({reason}); {advice}") from None
        content = partial.read_bytes() if blob else b""
        if blob and hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob:
            raise InputError(f"{url}: is not the file that was released (its git blob id differs); {advice}")


# ---------------------------------------------------------------- arrays
def fingerprint(path: Path) -> str:
    """SHA-256 of a file, first 16 digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_hdf5(path: Path, arrays: dict[str, np.ndarray], protocol: dict) -> None:
    """Write `arrays` and, as a JSON attribute, the `protocol` that made them; atomically.

    The file's first 64 bytes are the SHA-256, in hexadecimal digits, of all from byte 512 on, where HDF5 begins.
    """
    memory = io.BytesIO()  # written directly, a full disk would end the process within the HDF5 library
    with h5py.File(memory, "w", userblock_size=USERBLOCK) as file:
        file.attrs["protocol"] = json.dumps(protocol)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    content = memory.getbuffer()
    content[:64] = hashlib.sha256(content[USERBLOCK:]).hexdigest().encode()
    with atomic(path) as partial:
        partial.write_bytes(content)


def read_arrays(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays of an HDF5 or NPZ file whose name is `wanted`, in the file's order; nothing is unpickled.

    Of an HDF5 file also its `protocol` and, where robomimic made it, `env_args`: dicts.

    Raises:
        InputError: no such file, or not readable as one.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: you may not read it; check its permissions")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if damaged := file.zip.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
                return {name: file[name] for name in file.files if wanted(name)}
        _check_sum(path)
        arrays: dict[str, np.ndarray] = {}
        with h5py.File(path, "r") as file:

            def take(name: str | bytes, item) -> None:  # bytes: a damaged name
                if isinstance(item, h5py.Dataset) and isinstance(name, str) and wanted(name):
                    arrays[name] = item[()]

            file.visititems(take)
            arrays["protocol"] = json.loads(file.attrs.get("protocol", "{}"))
            if "data" in file and "env_args" in file["data"].attrs:
                arrays["env_args"] = json.loads(file["data"].attrs["env_args"])
        return arrays
    except Exception as error:  # damaged files raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "delete it if this code built or downloaded it, else make it again as .npz or .hdf5"
        raise InputError(f"{path}: cannot be read ({reason}); {remedy}") from error


def _check_sum(path: Path) -> None:
    """Raises ValueError where a file of `write_hdf5` has changed. The library may loop for ever over a damaged one."""
    with open(path, "rb") as raw:
        first, _, begin = raw.read(64), raw.seek(USERBLOCK), raw.read(4)
        raw.seek(USERBLOCK)
        # `write_hdf5` wrote it if HDF5 begins here
        if begin == b"\x89HDF" and first != hashlib.file_digest(raw, "sha256").hexdigest().encode():
            raise ValueError("its checksum is wrong: damaged, or changed by hand")
