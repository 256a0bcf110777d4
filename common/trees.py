"""Nested dicts of tensors, and the files that hold them."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from common.arrays import unreadable
from common.errors import InputError
from common.errors import remedy as way_out
from common.locks import atomic

SCHEMA = 1
"""version of the files that `save` writes"""


def tree_map(function, *trees):
    """Apply `function` to the corresponding leaves of nested dicts."""
    if isinstance(trees[0], dict):
        return {name: tree_map(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, leaf) of nested dicts; names joined by dots."""
    for name, item in tree.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def unstack(tree: dict, count: int) -> list[dict]:
    """The state of each seed: leaves (S, ...) -> S times (...)."""
    return [tree_map(lambda leaf, k=k: leaf[k], tree) for k in range(count)]


def read_saved(path: Path, names: tuple[str, ...], remedy: str = "delete it, or start from scratch with --overwrite"):
    """What `save` wrote, on the CPU: a dict; no code in the file is run. `remedy`: what the error tells the user to do.

    Raises:
        InputError: the file is damaged, lacks one of `names`, or has another schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at the checksums
                raise ValueError(damaged)
        with warnings.catch_warnings(action="ignore"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
        schema, _ = saved["schema"], [saved[name] for name in names]
    except Exception as error:  # torch raises many kinds for a damaged file, with advice to load it unsafely
        if way_out(error):
            raise unreadable(path, error, "") from None
        reason = f"no {error}" if isinstance(error, KeyError) else type(error).__name__
        raise InputError(f"{path}: damaged, or another kind of file ({reason}); {remedy}") from None
    if schema != SCHEMA:
        raise InputError(f"{path}: has schema {schema}, this code writes {SCHEMA}; {remedy}")
    return saved


def check_alike(path: Path, saved, fresh) -> None:
    """Raises InputError where the nested dicts `saved`, read from `path`, have not the names and shapes of `fresh`."""

    def form(tree, at: str = "") -> dict[str, tuple | bool]:
        if isinstance(tree, dict):
            return {place: leaf for name, sub in tree.items() for place, leaf in form(sub, f"{at}/{name}").items()}
        return {at[1:]: isinstance(tree, torch.Tensor) and (tree.shape, tree.dtype)}

    if differ := form(saved).items() ^ form(fresh).items():
        first = min(place for place, _ in differ)
        raise InputError(f"{path}: holds other networks ({first}); start from scratch with --overwrite")


def save(path: Path, content: dict) -> None:
    """torch.save of `content` and the schema, atomically."""
    memory = io.BytesIO()  # written directly, a full disk would not be an OSError
    torch.save({"schema": SCHEMA, **content}, memory)
    with atomic(path) as partial:
        partial.write_bytes(memory.getvalue())
