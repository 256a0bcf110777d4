"""What made a run: the code, the packages, the device."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from common.arrays import fingerprint


def git_state() -> dict[str, str | bool | None]:
    """Commit of the code and whether algorithms/ or common/ differ from it; None outside a git checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        dirty = bool(git("status", "--porcelain", "--", "../algorithms", "."))
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}


@functools.cache
def code_mark(args: type) -> str:
    """A fingerprint of the script that defines these arguments, and of common/: it tells of uncommitted changes too."""
    script = getattr(sys.modules[args.__module__], "__file__", None)  # none in a notebook
    files = [Path(script)] * bool(script) + sorted(Path(__file__).resolve().parent.rglob("[!.]*.py"))  # no editor's
    return fingerprint(*filter(Path.is_file, files))


def versions() -> dict[str, str]:
    """Versions of what can change a number."""
    found = {"python": sys.version.split()[0], "torch": torch.__version__}  # with its CUDA
    for name in ("numpy", "gymnasium", "metaworld", "mujoco", "robosuite", "h5py"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def describe(device: torch.device) -> str:
    """The device's name and, for a GPU, its model."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
