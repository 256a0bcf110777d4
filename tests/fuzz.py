"""Damaged copies of files, each read as the commands read it: python -m tests.fuzz KIND FILE CASES [KIND FILE CASES]...

A copy must be refused in one line that names it, or be read: as it was, where its format has a checksum. FILE itself is
overwritten meanwhile. tests/test_faults.py makes the files and runs this as a process of its own. Where a library
crashes or hangs, the last line of the output is the copy at which it did. HDF5's may, over a file without our checksum:
each copy of those is read by a child, and those at which it ended are counted.

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
import traceback
import warnings
from collections import Counter
from itertools import starmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from common import suites
from common.arrays import fingerprint
from common.data import read_preferences
from common.errors import InputError
from common.rollouts import count_frames
from common.suites.base import Episode, Labels, Preferences, pairs_by_index
from common.trees import read_saved
from tools.label.__main__ import LabelArgs
from tools.label.answers import merge, open_answers
from tools.label.clips import check_videos, make_clip
from tools.label.questions import draw_questions
from tools.lire import read_lire

TASK = suites.resolve("drawer-open-v2")
MINARI = "minari:me/fuzzed-v0"
"""below MINARI_DATASETS_PATH"""
PROJECT = {"env": TASK.env, "dataset": "", "seed": 0, "balance": False, "steps": 25}
WORDS = (b"null", b"true", b"-1", b"0.5", b"1e999", b"9" * 400, b'"x"', b"[]", b"{}")
"""instead of a word of a JSON file"""
CHECKED = ("checkpoint", "pairs", "dataset")
"""kinds with a checksum"""
FOREIGN = ("relabelled", "minari")
"""kinds of HDF5 that we do not check before h5py reads them"""
SEVERAL = ("merged", "minari")
"""kinds of several files: their folder is named, or their id"""
LIMIT = 20
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
    return arrays_of(read_preferences(path, TASK), suites.SUITES["metaworld"].read_transitions(path, TASK))


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
    with open_answers(path, PROJECT | {"dataset": fingerprint(data)}) as found:
        episodes = suites.SUITES["metaworld"].read_episodes(data, TASK)
        asked = draw_questions(episodes, max(20, found.pairs), found.project)
        return [*found.labels(asked).items(), *found.summary(asked)]


def merged(path: Path) -> list:
    """The same file, made an NPZ."""
    args = LabelArgs(labels_dir=path.parent, dataset=(str(path.with_name("dataset.hdf5")),))
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        return pairs(merge(args, TASK, None)[0])


def lire(path: Path) -> list:
    """A replay buffer of one episode."""
    return list(read_lire(path, suites.resolve("drawer-open-v2-goal-observable"), 500))


def video(path: Path) -> list:
    """Of an episode of eight steps: whether it is taken, and a clip of its first four."""
    episode = Episode(np.zeros((9, 1)), np.zeros((8, 1)), None, {})
    check_videos([path], [episode], [0], SimpleNamespace(run=lambda task, items: list(starmap(task, items))))
    if reason := make_clip(TASK, episode, 0, 4, 4, path.with_name("clip.webm"), path):
        raise InputError(f"{path}: {reason}")
    return [count_frames(path.with_name("clip.webm"))]


def minari(path: Path) -> list:
    """The data or the metadata of MINARI."""
    suites.minari.open_dataset.cache_clear()
    task = suites.resolve(MINARI)
    data = suites.SUITES["minari"].dataset(task, path, None)
    return [suites.score(task, 0.0), *arrays_of(suites.SUITES["minari"].read_transitions(data, task))]


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


def outcome(kind: str, path: Path, right: list) -> str:
    """Of a damaged copy: "refused", "same" or "other"."""
    signal.alarm(LIMIT)
    try:
        found = globals()[kind](path)
    except InputError as error:
        names = (str(path.parent), MINARI) if kind in SEVERAL else (str(path),)
        assert any(name in str(error) for name in names) and "\n" not in str(error), error
        return "refused"
    finally:
        signal.alarm(0)
    return "same" if len(found) == len(right) and all(map(np.array_equal, found, right)) else "other"


def in_a_child(kind: str, path: Path, right: list) -> str:
    """`outcome`, or "lost" where HDF5's library crashed or hung."""
    names = ("refused", "same", "other")
    if not (child := os.fork()):
        try:
            os._exit(names.index(outcome(kind, path, right)))
        except BaseException:
            traceback.print_exc()
            os._exit(9)
    status = os.waitpid(child, 0)[1]
    assert status != 9 << 8, "see above"
    return "lost" if os.WIFSIGNALED(status) else names[os.WEXITSTATUS(status)]


def fuzz(kind: str, path: Path, cases: int) -> None:
    content, draw, counts = path.read_bytes(), random.Random(0), Counter()
    right = globals()[kind](path)
    for case in range(cases):
        print(kind, path.name, case, flush=True)
        path.write_bytes(damage(content, case, draw, path.suffix.startswith(".json")))
        foreign = kind in FOREIGN and path.suffix == ".hdf5"
        counts[in_a_child(kind, path, right) if foreign else outcome(kind, path, right)] += 1
    path.write_bytes(content)
    print(f"{kind} {path.name}: {counts['refused']} refused, {counts['same']} read as they were, {counts['other']} "
          f"otherwise, {counts['lost']} lost by h5py, of {cases}")  # fmt: skip
    assert counts["refused"] > cases / 4 and not (counts["other"] and kind in CHECKED)
    assert counts["lost"] <= cases / 4


if __name__ == "__main__":
    warnings.simplefilter("error")  # it would be another line
    warnings.simplefilter("ignore", ResourceWarning)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    for kind, path, cases in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        fuzz(kind, Path(path), int(cases))
