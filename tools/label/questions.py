"""Which pairs of segments are asked for, on which sides, and in which order: all of it drawn from the seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.seeds import LABELS
from common.suites.base import Episode

BLOCK = 10
"""after so many pairs one of them is asked again"""
NEAR = 5
"""that one is of the first so many: others come between the two times"""
POOL = 10
"""pairs of which one is chosen, where tools/label/guess.py chooses"""
DRAWS = ("episodes", "same-start", "windows")
"""episodes uniformly, then a segment within; two policies from one start; how projects began that do not say"""
SHORTEST, LONGEST = 10, 50
"""steps of a segment that is chosen by the length of the episodes"""


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
    """Pairs of segments. The first ones are the same for any `count`.

    Args:
        project: seed; steps of a segment; balance: one segment is of the better half by return; draw: one of DRAWS.

    Raises:
        InputError: the episodes are too short, or lack what the draw needs.
    """
    steps, seed, draw = project["steps"], project["seed"], project.get("draw", "windows")
    windows = np.array([max(0, len(e.action) - steps + 1) for e in episodes])
    if not windows.any():
        raise InputError(f"the dataset has no episode as long as a segment, {steps} steps; choose another --dataset, "
                         "or a shorter --segment")  # fmt: skip
    if project["balance"] and any(e.reward is None for e in episodes):
        raise InputError("--balance: the episodes have no rewards to balance by; leave it out")
    if draw == "windows":
        return Pairs(draw_windows(episodes, windows, count, project), steps, ask(count, seed))
    if draw == "same-start":
        episode = of_one_start(episodes, windows, count, seed)
        share = np.repeat(stream(seed, 4).random((count, 1)), 2, 1)  # at one time too
        windows = np.minimum(windows[episode], windows[episode[:, ::-1]])
    else:
        episode = two_episodes(episodes, windows, count, project)
        share, windows = stream(seed, 4).random((count, 2)), windows[episode]
    return Pairs(np.stack([episode, (share * windows).astype(int)], -1), steps, ask(count, seed))


def stream(seed: int, what: int) -> np.random.Generator:
    """Of what is drawn: each has numbers of its own, so that the first ones stay when more are drawn."""
    return np.random.default_rng([LABELS, seed, what])


def two_episodes(episodes: list[Episode], windows: np.ndarray, count: int, project: dict) -> np.ndarray:  # (P, 2)
    """Two different episodes each, uniform over those with a window; with `balance` one of the better half."""
    fit, seed = np.flatnonzero(windows), project["seed"]
    if project["balance"]:
        fit = fit[np.argsort([episodes[e].reward.sum() for e in fit], kind="stable")]
    half = len(fit) // 2 if project["balance"] else 0
    first = stream(seed, 5).integers(half, len(fit), count)
    other = (first + stream(seed, 6).integers(1, max(2, len(fit)), count)) % len(fit)  # one alone is its own other
    chosen = fit[np.stack([first, other], -1)]
    return np.where(stream(seed, 2).random((count, 1)) < 0.5, chosen, chosen[:, ::-1])


def of_one_start(episodes: list[Episode], windows: np.ndarray, count: int, seed: int) -> np.ndarray:  # (P, 2)
    """Two episodes of one seed and different policies each, uniform over all such pairs."""
    groups: dict[int, list[int]] = {}
    for e in np.flatnonzero(windows):
        if (start := episodes[e].state.get("seed")) is not None and episodes[e].policy is not None:
            groups.setdefault(start, []).append(int(e))
    pairs = [(a, b) for group in groups.values() for a, b in itertools.combinations(group, 2)
             if episodes[a].policy != episodes[b].policy]  # fmt: skip
    if not pairs:
        raise InputError("--same-start: no two policies of the dataset began with one seed; leave it out, or record "
                         "several --policies with tools.record")  # fmt: skip
    chosen = np.array(pairs)[stream(seed, 5).integers(0, len(pairs), count)]
    return np.where(stream(seed, 2).random((count, 1)) < 0.5, chosen, chosen[:, ::-1])


def draw_windows(episodes: list[Episode], windows: np.ndarray, count: int, project: dict) -> np.ndarray:  # (P, 2, 2)
    """As projects were drawn that name no draw: uniform over all windows, so most are of long episodes."""
    steps, seed, ends = project["steps"], project["seed"], np.cumsum(windows)
    draw = stream(seed, 0).integers(0, ends[-1], (count, 2))
    if project["balance"]:
        sums = [np.cumsum(np.append(0.0, e.reward.astype(np.float64))) for e in episodes if len(e.reward) >= steps]
        better = np.argsort(np.concatenate([s[steps:] - s[:-steps] for s in sums]), kind="stable")[ends[-1] // 2 :]
        chosen, coin = (stream(seed, k) for k in (1, 2))
        draw[:, 0] = better[chosen.integers(0, len(better), count)]
        draw = np.where(coin.random((count, 1)) < 0.5, draw, draw[:, ::-1])
    episode = np.searchsorted(ends, draw, side="right")
    return np.stack([episode, draw - (ends - windows)[episode]], -1)


def segment_steps(episodes: list[Episode]) -> int:
    """Steps of a segment where nothing fixes them: a quarter of the median episode, but within SHORTEST and LONGEST."""
    return int(np.clip(np.median([len(e.action) for e in episodes]) / 4, SHORTEST, LONGEST))


def example_of(episodes: list[Episode], chosen: int) -> int | None:
    """The episode that shows the task done: `chosen`, or for -1 the best by success, then return, then shortness.

    Returns:
        None: `chosen` is -1, and the episodes do not say how good they are.

    Raises:
        InputError: there is no episode `chosen`.
    """
    if chosen >= len(episodes):
        raise InputError(f"--example {chosen}: the dataset has episodes 0 to {len(episodes) - 1}; choose one of them")
    if chosen >= 0:
        return chosen
    marks = [(bool(e.success), float("-inf") if e.reward is None else float(e.reward.sum()), -len(e.action))
             for e in episodes]  # fmt: skip
    best = max(range(len(marks)), key=lambda number: marks[number])
    return best if marks[best][:2] > (False, float("-inf")) else None


def ask(count: int, seed: int) -> list[Question]:
    """Every pair on random sides, and after each BLOCK of them one a second time, its sides swapped."""
    rng, side, questions = stream(seed, 3), [], []
    for pair in range(count):
        side.append(bool(rng.integers(2)))
        questions.append(Question(len(questions), pair, side[pair]))
        if pair % BLOCK == BLOCK - 1:
            again = pair + 1 - BLOCK + int(rng.integers(NEAR))
            questions.append(Question(len(questions), again, not side[again], True))
    return questions
