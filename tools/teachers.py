"""Simulated teachers: labels with the faults of people, drawn from rewards (B-Pref, Lee et al. 2021, arXiv 2111.03026).

python -m tools.dataset --env drawer-open-v2 --teacher mistake=0.1 --out pairs.npz
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.locks import atomic
from common.suites.base import Preferences, segment_returns


@dataclass(frozen=True)
class Teacher:
    """The defaults are the perfect teacher. Returns are sums of a segment's rewards, discounted as the suite does."""

    mistake: float = 0.0  # probability that a label is flipped
    equal: float = 0.0  # a tie where the returns differ by less
    skip: float = -np.inf  # no label, and no pair, where both returns are below it
    beta: float = np.inf  # P(second preferred) = sigmoid(beta (second return - first)); inf: the larger return
    myopic: float = 1.0  # step t of L counts myopic^(L - 1 - t): below 1 the last steps count most
    seed: int = 0  # of `mistake` and `beta`


RANGES = {"mistake": (0, 1), "equal": (0, np.inf), "skip": (-np.inf, np.inf), "beta": (0, np.inf), "myopic": (0, 1),
          "seed": (0, 2**32 - 1)}  # fmt: skip


def parse(words: tuple[str, ...]) -> Teacher:
    """The teacher of NAME=VALUE words; `perfect` changes nothing. InputError: a word is none, or out of range."""
    values: dict[str, float] = {}
    for word in words:
        if word == "perfect":
            continue
        name, _, text = word.partition("=")
        if name not in RANGES or name in values:
            raise InputError(f"--teacher {word}: must be perfect, or NAME=VALUE, each once, with {', '.join(RANGES)}")
        low, high = RANGES[name]
        try:
            values[name] = int(text) if name == "seed" else float(text)
        except ValueError:
            raise InputError(f"--teacher {word}: {text!r} is not a {'whole ' * (name == 'seed')}number") from None
        if not low <= values[name] <= high:
            raise InputError(f"--teacher {word}: must be in [{low:g}, {high:g}]")
    return Teacher(**values)


def labelled_by(p: Preferences, teacher: Teacher) -> Preferences:
    """The pairs of `p` as `teacher` labels them, without those that it skips.

    As in B-Pref, `skip` and `equal` look at the plain returns, and a tie is decided after a mistake. Draws depend on
    `seed` alone: more mistakes are the same ones and others.

    Raises:
        InputError: `p` has no rewards, or the teacher skips all pairs.
    """
    if p.reward is None:
        raise InputError("--teacher: these pairs have no rewards to label them by")
    steps = np.arange(p.length)
    plain = segment_returns(p.reward, p.start, p.gamma**steps)
    seen = segment_returns(p.reward, p.start, p.gamma**steps * teacher.myopic ** steps[::-1])
    better = seen[:, 1] - seen[:, 0]
    choice, slip = np.random.default_rng(teacher.seed).random((2, len(better)))
    if np.isinf(teacher.beta):
        label = 0.5 + 0.5 * np.sign(better)
    else:
        label = (choice < 0.5 + 0.5 * np.tanh(teacher.beta * better / 2)).astype(float)  # the sigmoid, no overflow
    label = np.where(slip < teacher.mistake, 1 - label, label)
    label[np.abs(plain[:, 1] - plain[:, 0]) < teacher.equal] = 0.5
    keep = plain.max(1) >= teacher.skip
    if not keep.any():
        raise InputError(f"--teacher skip={teacher.skip:g}: skips all pairs; the largest return is {plain.max():g}")
    return dataclasses.replace(p, start=p.start[keep], label=label[keep].astype(np.float32))


def write(path: Path, p: Preferences, teacher: Teacher, env: str) -> None:
    """An NPZ for --preferences, with `env` and `teacher` (JSON). InputError: its folder cannot be written to."""
    rows = p.start.T[..., None] + np.arange(p.length)  # (2, P, L)
    arrays = {
        f"{name}_{k + 1}": array[rows[k]] for k in (0, 1) for name, array in (("obs", p.obs), ("action", p.action))
    }
    said = json.dumps({name: str(v) if np.isinf(v) else v for name, v in dataclasses.asdict(teacher).items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays, label=p.label, env=np.array(env), teacher=np.array(said))
    except OSError as error:
        raise InputError(f"--out {path}: {error.strerror}; choose a file you can write") from None
