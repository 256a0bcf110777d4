"""Damaged copies of files, each read as the commands read it: python -m tests.fuzz KIND FILE CASES [KIND FILE CASES]...

A copy must be refused in one line that names it, or be read: as it was, where its format has a checksum. FILE itself is
overwritten meanwhile. tests/test_faults.py makes the files and runs this as a process of its own, since a library may
crash or hang over one: the last line of the output is then the copy at which it did.

A new kind of file is a function of its name here, and a line in `good_files` of tests/test_faults.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import common.files
from common import suites
from common.data import read_preferences
from common.files import InputError, fingerprint
from common.states import read_saved
from common.suites.base import Labels, Preferences, pairs_by_index
from tools.answers import Answers, draw_pairs, merge

TASK = suites.resolve("drawer-open-v2")
MINARI = "minari:me/fuzzed-v0"
"""below MINARI_DATASETS_PATH"""
PROJECT = {"env": TASK.env, "dataset": "", "seed": 0, "balance": False, "steps": 25}
WORDS = (b"null", b"true", b"-1", b"0.5", b"1e999", b"9" * 400, b'"x"', b"[]", b"{}")
"""instead of a word of a JSON file"""
CHECKED = ("checkpoint", "pairs", "dataset")
"""kinds with a checksum"""
SEVERAL = ("merged", "minari")
"""kinds of several files: their folder is named, or their id"""
LIMIT = 60
"""seconds for a copy"""


# ---------------------------------------------------------------- kinds: a file -> what was read of it
def arrays_of(*found) -> list:
    return [value for one in found for value in vars(one).values() if value is not None]


def checkpoint(path: Path) -> list:
    saved = read_saved(path, ("step", "state", "args"))
    return [saved["step"], *(p.numpy() for name in ("actor", "critic") for p in saved["state"][name].values())]


def pairs(path: Path) -> list:
    return arrays_of(read_preferences(path, TASK))


def dataset(path: Path) -> list:
    return arrays_of(read_preferences(path, TASK), suites.metaworld.read_transitions(path, TASK))


def relabelled(path: Path) -> list:
    """A D4RL dataset."""
    return arrays_of(read_preferences(path, suites.resolve("hopper-medium-v2")))


def labels(path: Path) -> list:
    """One of the three pickles of labels by index, of a dataset of two episodes of 250 steps."""
    files = [path.with_name(f"{name}.pkl") for name in ("labels", "first", "second")]
    rows = Preferences(np.zeros((500, 3)), np.zeros((500, 1)), np.empty((0, 2)), np.empty(0), 100)
    return arrays_of(pairs_by_index(Labels((), 100), files, path, rows, np.arange(500) // 250))


def answers(path: Path) -> list:
    """Of a labeller who resumes; beside the file lies its dataset."""
    data = path.with_name("dataset.hdf5")
    with Answers(path, PROJECT | {"dataset": fingerprint(data)}) as found:
        asked = draw_pairs(suites.metaworld.read_episodes(data, TASK), max(20, found.pairs), found.project)
        return [*found.labels(asked).items(), *found.summary(asked)]


def merged(path: Path) -> list:
    """The same file, made an NPZ."""
    args = SimpleNamespace(labels_dir=path.parent, dataset=path.with_name("dataset.hdf5"), keep_all=False)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        return pairs(merge(args, TASK, None)[0])


def minari(path: Path) -> list:
    """The data or the metadata of MINARI."""
    suites.minari.load.cache_clear()
    task = suites.resolve(MINARI)
    data = suites.minari.dataset(task, path, None)
    return [suites.score(task, 0.0), *arrays_of(suites.minari.read_transitions(data, task))]


# ---------------------------------------------------------------- damage
def damage(content: bytes, case: int, draw: random.Random, json: bool) -> bytes:
    """Bytes are changed, anywhere or more often near the start, or there and the end is cut off; or a word of JSON."""
    if json and draw.random() < 0.5:
        word = draw.choice(list(re.finditer(rb'"?[\w.+-]+"?', content)))
        return content[: word.start()] + draw.choice(WORDS) + content[word.end() :]
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 4, 32])):
        at = int(len(content) ** draw.random()) - 1 if case % 3 else draw.randrange(len(content))
        damaged[at] = damaged[at] ^ 1 << draw.randrange(8) if draw.random() < 0.5 else draw.randrange(256)
    return bytes(damaged[: draw.randrange(len(damaged))] if case % 3 == 2 else damaged)


def fuzz(kind: str, path: Path, cases: int) -> None:
    read, content, draw = globals()[kind], path.read_bytes(), random.Random(0)
    right, refused, same = read(path), 0, 0
    for case in range(cases):
        print(kind, path.name, case, flush=True)
        path.write_bytes(damage(content, case, draw, path.suffix.startswith(".json")))
        signal.alarm(LIMIT)
        try:
            found = read(path)
        except InputError as error:
            names = (str(path.parent), MINARI) if kind in SEVERAL else (str(path),)
            assert any(name in str(error) for name in names) and "\n" not in str(error), error
            refused += 1
            continue
        same += len(found) == len(right) and all(map(np.array_equal, found, right))
    path.write_bytes(content)
    other = cases - refused - same
    print(f"{kind} {path.name}: {refused} refused, {same} read as they were, {other} otherwise, of {cases}")
    assert refused > cases / 4 and not (other and kind in CHECKED)


if __name__ == "__main__":
    warnings.simplefilter("error")  # it would be another line
    warnings.simplefilter("ignore", ResourceWarning)
    common.files.READ_TIMEOUT = 10
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    for kind, path, cases in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        fuzz(kind, Path(path), int(cases))
