"""Leaves of the house: errors, atomic writes, locks, downloads, and arrays read from files. No torch."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
from tqdm import tqdm

from common.remedies import REMEDIES, remedy

ONE_ARRAY = "segments of unequal length are cut to one: np.stack([segment[:L] for segment in segments])"
USERBLOCK = 512
"""bytes ahead of the HDF5 data, which HDF5 leaves to us: they begin with the SHA-256 of what follows"""
TIMEOUT = 30
"""seconds without an answer, or without a byte, after which the next address is tried"""
PICKLED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")),
}
"""what the pickle of an array calls, and all that `read_pickle` lets it call"""
PLAIN = (3, None, None, None, -1, -1, 0)
"""what it says of a type of numbers, beside the byte order: version, no fields, no flags"""


class InputError(ValueError):
    """The user's input is wrong. The message is one line that says what, where and how to fix it. Exit status 2."""


class Interrupted(RuntimeError):
    """A signal asked the process to stop."""


class WorkersError(RuntimeError):
    """The worker processes died or hung, and their replacements too."""


class NotFinite(RuntimeError):
    """A loss or a weight is NaN or infinite."""


def unreadable(path: Path, error: Exception, damaged: str) -> InputError:
    """What a user is told of a file that could not be read. `damaged`: what to do where its content is wrong."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path}: cannot be read ({reason}); {remedy(error, path) or damaged}")


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


@dataclass(frozen=True)
class Remote:
    """A file that others host."""

    name: str  # its place in the data folder
    urls: tuple[str, ...]  # its addresses, in the order in which they are tried
    blob: str = ""  # git's id of the right content, where known


def on_github(repository: str, commit: str, path: str, name: str, blob: str = "") -> Remote:
    """A file of a commit of a public repository."""
    return Remote(name, (f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",), blob)


def download(remote: Remote, path: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """Write a remote file to `path`, from the first of its addresses that gives the right one.

    Raises:
        InputError: no address has it; names all that were tried.  Interrupted: `stop()` became true.
    """
    failures = []
    for url in remote.urls:
        try:
            with atomic(path) as partial:
                _fetch(url, partial, path.name, stop)
                _check_content(partial, remote)
            return
        except _Unusable as error:
            failures.append(f"{url}: {error}")
    raise InputError(f"{'; '.join(failures)}; put a copy at {path}")


class _Unusable(ValueError):
    """An address has no such file, or a wrong one."""


def _fetch(url: str, partial: Path, shown: str, stop: Callable[[], bool]) -> None:
    """Write what `url` gives to `partial`, with a progress bar."""
    from pooch import HTTPDownloader

    class Bar(tqdm):
        def update(self, n=1):
            if stop():
                raise Interrupted
            return super().update(n)

    with Bar(desc=shown, total=1, unit="B", unit_scale=True, disable=None) as bar:
        try:
            HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT)(url, str(partial), None)
        except OSError as error:  # all of requests' errors are
            if error.errno in REMEDIES:
                raise  # the disk's
            reason = (str(error).split("Caused by ")[-1].splitlines() or [type(error).__name__])[0]
            raise _Unusable(f"cannot be downloaded ({reason})") from None


def _check_content(partial: Path, remote: Remote) -> None:
    if not is_released(partial, remote):
        raise _Unusable("is not the file that was released (its git blob id differs)")
    if remote.name.endswith(".hdf5"):
        try:
            h5py.File(partial, "r").close()  # HDF5 knows its own size; a page of text is none
        except OSError as error:
            raise _Unusable(f"is not a whole HDF5 file ({str(error).splitlines()[0]})") from None


def is_released(path: Path, remote: Remote) -> bool:
    """Whether the content of `path` has the git blob id of `remote`, where that is known."""
    content = path.read_bytes() if remote.blob else b""
    return not remote.blob or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob


def probe(url: str) -> tuple[bool, str]:
    """Whether a file is at `url`, and what the host says: "12.3 MB", or why not. Downloads nothing."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as answer:
            size = answer.headers.get("Content-Length", "")
            said = f"{int(size) / 1e6:.1f} MB" if size.isdigit() else "size unknown"
            return answer.ok, said if answer.ok else f"{answer.status_code} {answer.reason}"
    except OSError as error:
        return False, (str(error).split("Caused by ")[-1].splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------- arrays
def fingerprint(*paths: Path) -> str:
    """SHA-256 of a file, or of several in a row, first 16 digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:16]


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

    Of an HDF5 file also its `protocol` and, where robomimic made it, `env_args`: dicts; and `model_file`, a str, of a
    demonstration.

    Raises:
        InputError: no such file, or not readable as one.
    """
    _require_readable(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if damaged := file.zip.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
                return {name: _no_objects(path, name, file) for name in file.files if wanted(name)}
        check_own(path)
        arrays: dict[str, np.ndarray] = {}
        with h5py.File(path, "r") as file:

            def take(name: str | bytes, item) -> None:  # bytes: a damaged name
                if isinstance(item, h5py.Dataset) and isinstance(name, str) and wanted(name):
                    arrays[name] = np.asarray(item[()])  # a lone string is none
                elif isinstance(name, str) and wanted(f"{name}/model_file") and "model_file" in item.attrs:
                    arrays[f"{name}/model_file"] = item.attrs["model_file"]

            file.visititems(take)
            arrays["protocol"] = json.loads(file.attrs.get("protocol", "{}"))
            if "data" in file and "env_args" in file["data"].attrs:
                arrays["env_args"] = json.loads(file["data"].attrs["env_args"])
        for name in ("protocol", "env_args"):
            if not isinstance(arrays.get(name, {}), dict):
                raise ValueError(f"its attribute {name} is no JSON object")
        return arrays
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds
        damaged = "delete it if this code built or downloaded it, else make it again as .npz or .hdf5"
        raise unreadable(path, error, damaged) from error


def _no_objects(path: Path, name: str, file) -> np.ndarray:
    """An array of an NPZ. InputError: it is one of Python objects, as numpy makes of segments of unequal length."""
    try:
        return file[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise InputError(f"{path}: '{name}' holds Python objects, not numbers; {ONE_ARRAY}") from None


class _ArrayUnpickler(pickle._Unpickler):
    """Calls what makes an array, and nothing else. Written in Python: the one in C fills the memory as far as an index
    in the pickle says."""

    def find_class(self, module: str, name: str):
        module = module.replace("numpy.core", "numpy._core")  # numpy's name for it until 2.0
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        state, made = self.stack[-1], self.stack[-2]
        if isinstance(made, np.dtype):  # numpy crashes over dates without a unit, and over numbers flagged as pointers
            version, order, *rest = state
            if made.kind not in "biuf" or order not in ("<", ">", "|", "=") or (version, *rest) != PLAIN:
                raise pickle.UnpicklingError(f"its items are of the type {made} {state}")
        super().load_build()

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def read_pickle(path: Path) -> np.ndarray:
    """The array, or list of numbers, that a pickle holds. No code in it is run.

    Raises:
        InputError: no such file, or it holds anything else.
    """
    _require_readable(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            array = _ArrayUnpickler(file).load()
        if not isinstance(array, np.ndarray | list):
            raise ValueError(f"it holds {type(array).__name__}, not an array")
        return np.asarray(array)
    except Exception as error:  # damaged pickles raise many kinds
        raise unreadable(path, error, "delete it, so that it is downloaded again") from error


def _require_readable(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: you may not read it; check its permissions")


def check_own(path: Path) -> None:
    """Raises ValueError where a file of `write_hdf5` has a wrong checksum. Others have none."""
    with open(path, "rb") as raw:
        first, _, begin = raw.read(64), raw.seek(USERBLOCK), raw.read(4)
        raw.seek(USERBLOCK)
        if begin == b"\x89HDF" and first != hashlib.file_digest(raw, "sha256").hexdigest().encode():
            raise ValueError("its checksum is wrong: damaged, or changed by hand")
