"""Which pairs of segments are asked for, on which sides, and in which order: all of it drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.seeds import LABELS
from common.suites.base import Episode

BLOCK = 10
"""after so many pairs one of them is asked again"""
NEAR = 5
"""that one is of the first so many: others come between the two times"""


@dataclass(frozen=True)
class Question:
    """One showing of a pair."""

    number: int
    pair: int
    swapped: bool  # the pair's first segment stands on the right
    again: bool = False  # asked the second time


@dataclass(frozen=True)
class Pairs:
    """The pairs to label, and the order in which they are asked for."""

    segments: np.ndarray  # (P, 2, 2): episode and first step of both segments
    steps: int  # of a segment
    questions: list[Question]


def draw_questions(episodes: list[Episode], count: int, project: dict) -> Pairs:
    """Pairs of segments, uniform over all that fit into an episode. The first ones are the same for any `count`.

    Args:
        project: seed; steps of a segment; balance: one segment is of the better half by return.

    Raises:
        InputError: no episode is as long as a segment.
    """
    steps, seed = project["steps"], project["seed"]
    windows = np.array([max(0, len(e.reward) - steps + 1) for e in episodes])
    ends = np.cumsum(windows)
    if not ends[-1]:
        raise InputError(f"the dataset has no episode as long as a segment, {steps} steps; choose another --dataset")
    draw = np.random.default_rng([LABELS, seed, 0]).integers(0, ends[-1], (count, 2))
    if project["balance"]:
        sums = [np.cumsum(np.append(0.0, e.reward.astype(np.float64))) for e in episodes if len(e.reward) >= steps]
        better = np.argsort(np.concatenate([s[steps:] - s[:-steps] for s in sums]), kind="stable")[ends[-1] // 2 :]
        chosen, coin = (np.random.default_rng([LABELS, seed, k]) for k in (1, 2))
        draw[:, 0] = better[chosen.integers(0, len(better), count)]
        draw = np.where(coin.random((count, 1)) < 0.5, draw, draw[:, ::-1])
    episode = np.searchsorted(ends, draw, side="right")
    segments = np.stack([episode, draw - (ends - windows)[episode]], -1)
    return Pairs(segments, steps, ask(count, seed))


def ask(count: int, seed: int) -> list[Question]:
    """Every pair on random sides, and after each BLOCK of them one a second time, its sides swapped."""
    rng, side, questions = np.random.default_rng([LABELS, seed, 3]), [], []
    for pair in range(count):
        side.append(bool(rng.integers(2)))
        questions.append(Question(len(questions), pair, side[pair]))
        if pair % BLOCK == BLOCK - 1:
            again = pair + 1 - BLOCK + int(rng.integers(NEAR))
            questions.append(Question(len(questions), again, not side[again], True))
    return questions
