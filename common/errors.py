"""What stops a command: errors of the user, of the machine, of numbers, and the way out of each. No torch."""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path


class InputError(ValueError):
    """The user's input is wrong. The message is one line that says what, where and how to fix it. Exit status 2."""


class Interrupted(RuntimeError):
    """A signal asked the process to stop."""


class WorkersError(RuntimeError):
    """The worker processes died or hung, and their replacements too."""


class NotFinite(RuntimeError):
    """A loss or a weight is NaN or infinite."""


def first_line(error: BaseException) -> str:
    """Of its message; its kind where that is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def said(error: BaseException, file: str = "") -> str:
    """The kind of an error and the first line of its message; with `file`, which called, also where else it arose."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"; {Path(at.filename).name}:{at.lineno}" if file and at.filename != file else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{where}"


# ---------------------------------------------------------------- the way out
SHARED_MEMORY = ("/dev/shm is missing, full or too small for worker processes: remove what lies there, or start the "
                 "container with --shm-size=1g")  # fmt: skip
REMEDIES = {
    errno.ENOSPC: "the disk is full: make room there, or {elsewhere}",
    errno.EDQUOT: "your quota there is used up (`quota -s`): remove files of yours, or {elsewhere}",
    errno.EROFS: "{elsewhere} that can be written to",
    errno.EACCES: "change its permissions, or {elsewhere} that is yours",
    errno.EPERM: "change its permissions, or {elsewhere} that is yours",
    errno.EAGAIN: "another process has it open: wait for that one",
    errno.ENOLCK: "its file system has no locks: {elsewhere} on a local disk",
    errno.EOPNOTSUPP: "its file system has no locks: {elsewhere} on a local disk",
    errno.ENOTDIR: "a file stands where a folder is wanted: {elsewhere}",
    errno.EEXIST: "a file stands where a folder is wanted: {elsewhere}",
    errno.ENAMETOOLONG: "{elsewhere} with a shorter name",
    errno.EPIPE: "whatever read the output has ended",
    errno.EMFILE: "too many files are open: ulimit -n 4096",
    errno.EIO: "the disk or network drive failed: try again, or {elsewhere}",
    errno.ESTALE: "the network drive was mounted again: try again",
    errno.ENOMEM: "it needs more memory than there is",
}
"""what a user can do about a fault of the machine; any other OSError is a fault of the code"""
GL = re.compile(r"\b(e?gl|glx|glfw\w*|glad\w*|osmesa|opengl|x11|display)\b|attribute '(e?gl|OSMesa)|GLError", re.I)
"""what the errors of OpenGL's libraries name"""


def remedy(error: BaseException, path: str | Path | None = None, flag: str = "") -> str:
    """The way out of a fault of the machine, in a few words; empty where none is known: wrong content, or a bug.

    Args:
        path: the file, where the error does not name it.  flag: what chooses its folder, such as --data-dir.
    """
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if not isinstance(error, OSError):
        return ""
    if locked := re.search(r"unable to lock file, errno = (\d+)", str(error)):  # HDF5's own
        if int(locked[1]) == errno.EAGAIN:
            return f"{writer(path or error.filename)} writes it: wait, or, if none does, HDF5_USE_FILE_LOCKING=FALSE"
        return "its file system has no locks: set HDF5_USE_FILE_LOCKING=FALSE"
    if str(path or error.filename).startswith("/dev/shm/") and error.errno == errno.ENOSPC:
        return SHARED_MEMORY
    return REMEDIES.get(error.errno, "").format(elsewhere=f"choose another {flag or 'folder'}")


def writer(path: str | Path | None) -> str:
    """Who holds a lock on `path`, as far as this machine's kernel knows."""
    try:
        inode, locks = os.stat(path).st_ino, Path("/proc/locks").read_text().splitlines()
    except (OSError, TypeError):
        return "another process"
    found = (line.split() for line in locks)
    return next((f"process {words[4]}" for words in found if words[5].endswith(f":{inode}")), "another process")


def simulator_remedy(said: str) -> str:
    """The way out of what stops an environment that is made or rendered, by the error's text; empty: none is known."""
    gl, device = (os.environ.get(name, "") for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID"))
    if "MUJOCO_EGL_DEVICE_ID" in said or re.search(r"invalid literal for int\(\).*'(GPU-.*|MIG-.*|)'$", said):
        return ("EGL numbers its own devices, whatever CUDA_VISIBLE_DEVICES says: set MUJOCO_EGL_DEVICE_ID=0, or "
                "another of them")  # fmt: skip
    if "PYOPENGL_PLATFORM" in said:
        return f"unset PYOPENGL_PLATFORM, which does not fit MUJOCO_GL={gl}"
    if "MUJOCO_GL" in said and gl != "glx":  # which setup_shell.sh sets where there is no library
        return "unset MUJOCO_GL and source setup_shell.sh again"
    if missing := re.search(r"No module named '(\w+)|(\w+) is not installed", said):
        return f"pip install {missing[1] or missing[2]}"
    if "cannot cache function" in said:  # numba's, which robosuite takes
        return "set NUMBA_CACHE_DIR to a folder that can be written to"
    if "RecordConstructorArgs" in said:
        return "Gymnasium cannot make that wrapper again: record without it, or give it that base class"
    if "render_mode" in said or said.startswith("it renders "):
        return 'its constructor must take render_mode="rgb_array", and its render() return (height, width, 3) uint8'
    if GL.search(said.replace("_", " ")):
        other = f"; or unset MUJOCO_EGL_DEVICE_ID={device}" if device else ""
        return ("install libegl1, libopengl0 and libgl1-mesa-dri, or libosmesa6, unset MUJOCO_GL and source "
                f"setup_shell.sh again{other}")  # fmt: skip
    return ""
