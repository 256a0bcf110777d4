"""Files that others host."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
from tqdm import tqdm

from common.errors import REMEDIES, InputError, Interrupted, first_line
from common.locks import atomic, build_once

TIMEOUT = 30
"""seconds without an answer, or without a byte, after which the next address is tried"""


@dataclass(frozen=True)
class Remote:
    """A file that others host."""

    name: str  # its place in the data folder
    urls: tuple[str, ...]  # its addresses, in the order in which they are tried
    blob: str = ""  # git's id of the right content, where known


def on_github(repository: str, commit: str, path: str, name: str, blob: str = "") -> Remote:
    """A file of a commit of a public repository."""
    return Remote(name, (f"https://raw.githubusercontent.com/{repository}/{commit}/{path}",), blob)


def fetch_file(remote: Remote, folder: Path, stop: Callable[[], bool] = lambda: False) -> Path:
    """Its path in `folder` or IPL_DATA_DIR; to `folder` it is downloaded if need be. InputError: it cannot be had."""
    path = folder / remote.name
    return at_hand(remote, folder) or build_once(path, lambda: download(remote, path, stop), stop)


def at_hand(remote: Remote, folder: Path) -> Path | None:
    """Where the file lies: in `folder` or IPL_DATA_DIR, with or without the first folder of its name.

    Raises:
        InputError: what lies there is another one.
    """
    short = remote.name.split("/", 1)[1]
    folders = (folder, Path(os.environ.get("IPL_DATA_DIR") or folder).expanduser())
    path = next((at / name for at in folders for name in (remote.name, short) if (at / name).exists()), None)
    if path and not is_released(path, remote):
        raise InputError(f"{path}: is not the file that was released (its git blob id differs); move it away, and put "
                         f"{remote.urls[0]} there, or let it be downloaded")  # fmt: skip
    return path


def download(remote: Remote, path: Path, stop: Callable[[], bool] = lambda: False) -> None:
    """Write a remote file to `path`, from the first of its addresses that gives the right one.

    Raises:
        InputError: no address has it; names all that were tried.  Interrupted: `stop()` became true.
    """
    failures = []
    for url in remote.urls:
        try:
            with atomic(path) as partial:
                _stream(url, partial, path.name, stop)
                _check_content(partial, remote)
            return
        except _Unusable as error:
            failures.append(f"{url}: {error}")
    raise InputError(f"{'; '.join(failures)}; put a copy at {path}")


class _Unusable(ValueError):
    """An address has no such file, or a wrong one."""


def _stream(url: str, partial: Path, shown: str, stop: Callable[[], bool]) -> None:
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
        except Exception as error:
            raise _Unusable(f"is not a whole HDF5 file ({first_line(error)})") from None


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
