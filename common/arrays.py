"""Arrays in files: HDF5, NPZ, pickles. No code in a file is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from common.errors import InputError, first_line, remedy
from common.locks import atomic

ONE_ARRAY = "segments of unequal length are cut to one: np.stack([segment[:L] for segment in segments])"
USERBLOCK = 512
"""bytes ahead of the HDF5 data, which HDF5 leaves to us: they begin with the SHA-256 of what follows"""
PICKLED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")),
}
"""what the pickle of an array calls, and all that may be called"""
PLAIN = (3, None, None, None, -1, -1, 0)
"""what it says of a type of numbers, beside the byte order: version, no fields, no flags"""


def unreadable(path: Path, error: Exception, damaged: str) -> InputError:
    """What a user is told of a file that could not be read. `damaged`: what to do where its content is wrong."""
    return InputError(f"{path}: cannot be read ({first_line(error)}); {remedy(error, path) or damaged}")


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
    with memory.getbuffer() as content:
        content[:64] = hashlib.sha256(content[USERBLOCK:]).hexdigest().encode()
    with atomic(path) as partial:
        partial.write_bytes(memory.getvalue())


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
        damaged = "if a script downloaded or built it by itself, delete it; else make it again as .npz or .hdf5"
        if path.suffix == ".pkl":
            damaged = "pickles are LiRE's, which tools.dataset converts (docs/datasets.md)"
        if path.suffix == ".jsonl":
            damaged = f"answers of tools.label are kept there; the pairs are in {path.with_suffix('.npz')}"
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

    def one(made) -> np.ndarray:
        if not isinstance(made, np.ndarray | list):
            raise ValueError(f"it holds {type(made).__name__}, not an array")
        return np.asarray(made)

    return _unpickled(path, one, "delete it, so that it is downloaded again")


def read_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict. No code in it is run.

    Raises:
        InputError: no such file, or it holds anything else.
    """

    def named(made) -> dict[str, np.ndarray]:
        if not isinstance(made, dict):
            raise ValueError(f"it holds {type(made).__name__}, not a dict of arrays")
        for name, array in made.items():
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise ValueError(f"its {str(name)[:40]!r} is {type(array).__name__}, not an array")
        return made

    return _unpickled(path, named, "get it again")


def _unpickled(path: Path, checked: Callable, damaged: str):
    """What `checked` makes of a pickle's content. InputError, with `damaged`: it cannot be read, or that raises."""
    _require_readable(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            return checked(_ArrayUnpickler(file).load())
    except Exception as error:  # damaged pickles raise many kinds
        raise unreadable(path, error, damaged) from error


def _require_readable(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: you may not read it; check its permissions")


def check_own(path: Path) -> None:
    """Raises ValueError where a file of `write_hdf5` has a wrong checksum. Others have none, but MATLAB's own words."""
    with open(path, "rb") as raw:
        first, _, begin = raw.read(64), raw.seek(USERBLOCK), raw.read(4)
        raw.seek(USERBLOCK)
        if (
            begin == b"\x89HDF"
            and first[:6] != b"MATLAB"
            and first != hashlib.file_digest(raw, "sha256").hexdigest().encode()
        ):
            raise ValueError("its checksum is wrong: damaged, or changed by hand")
