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
DRAWS = ("episodes", "same-start", "between", "between-same-start", "judge", "windows")
"""episodes uniformly, then a segment within; two policies from one start; two policies uniformly, then an episode of
each; both; every two policies in turn, each start once; how projects began that do not say"""
SHORTEST, LONGEST = 16, 50
"""steps of a segment that is chosen by the length of the episodes; the shortest is a window of most scripts"""


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
    steps: int  # of a segment; where whole episodes are shown, of the longest
    questions: list[Question]


def draw_questions(episodes: list[Episode], count: int, project: dict) -> Pairs:
    """Pairs of segments. The first ones are the same for any `count`.

    Args:
        project: seed; steps of a segment, 0: whole episodes; balance: one segment is of the better half by return;
            draw: one of DRAWS, of which "judge" gives fewer than `count` pairs where the episodes are used up.

    Raises:
        InputError: the episodes are too short, or lack what the draw needs.
    """
    steps, seed, draw = project["steps"], project["seed"], project.get("draw", "windows")
    length = np.array([len(e.action) for e in episodes])
    windows = np.maximum(0, length - steps + 1) if steps else np.ones_like(length)
    if not windows.any():
        raise InputError(f"the dataset has no episode as long as a segment, {steps} steps; choose another --dataset, "
                         "or a shorter --segment")  # fmt: skip
    if project["balance"] and any(e.reward is None for e in episodes):
        raise InputError("--balance: the episodes have no rewards to balance by; leave it out")
    if draw == "windows":
        return Pairs(draw_windows(episodes, windows, count, project), steps, ask(count, seed))
    draw_pairs, together = {"episodes": (two_episodes, False), "same-start": (of_one_start, True),
                            "between": (of_two_policies, False), "between-same-start": (of_one_start, True),
                            "judge": (of_every_two, True)}[draw]  # fmt: skip
    episode = draw_pairs(episodes, windows, count, project)
    share, windows = stream(seed, 4).random((len(episode), 1 if together else 2)), windows[episode]
    if together:  # at one time too
        windows = windows.min(1, keepdims=True)
    first = np.broadcast_to((share * windows).astype(int), episode.shape)
    return Pairs(np.stack([episode, first], -1), steps or int(length.max()), ask(len(episode), seed))


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
    return on_random_sides(chosen, seed)


def on_random_sides(chosen: np.ndarray, seed: int) -> np.ndarray:  # (P, 2)
    return np.where(stream(seed, 2).random((len(chosen), 1)) < 0.5, chosen, chosen[:, ::-1])


def by_policy(episodes: list[Episode], windows: np.ndarray) -> list[list[int]]:
    """The episodes of each policy that has one with a window. InputError: there are not two policies."""
    own: dict[int | None, list[int]] = {}
    for e in np.flatnonzero(windows):
        own.setdefault(episodes[e].policy, []).append(int(e))
    if len(own) < 2:
        raise InputError("--between and --judge: all episodes that are long enough are of one policy; name the "
                         "--dataset of another round too, or record several --policies with tools.record")  # fmt: skip
    return [own[policy] for policy in sorted(own)]


def of_two_policies(episodes: list[Episode], windows: np.ndarray, count: int, project: dict) -> np.ndarray:  # (P, 2)
    """Two different policies each, however many episodes they have, and one episode of each; all of it uniform."""
    own, seed = by_policy(episodes, windows), project["seed"]
    first = stream(seed, 5).integers(0, len(own), count)
    policy = np.stack([first, (first + stream(seed, 6).integers(1, len(own), count)) % len(own)], -1)
    return member(own, policy, stream(seed, 7).random((count, 2)))


def member(groups: list[list], which: np.ndarray, share: np.ndarray) -> np.ndarray:
    """One of each group that `which` names, as far into it as `share` in [0, 1) says."""
    size = np.array(list(map(len, groups)))
    return np.concatenate(groups)[(np.cumsum(size) - size)[which] + (share * size[which]).astype(int)]


def of_every_two(episodes: list[Episode], windows: np.ndarray, count: int, project: dict) -> np.ndarray:  # (P, 2)
    """Every two policies in turn, so that all of them meet equally often while their episodes last. Two policies meet
    in each of their episodes once, as an interval needs it; first in those that began with one seed.
    """
    seed = project["seed"]
    rng, turns = stream(seed, 5), []
    for own in itertools.combinations(by_policy(episodes, windows), 2):
        mine, others = (rng.permutation(group).tolist() for group in own)
        alike, alone = [], []
        for e in mine:
            start = episodes[e].state.get("seed")
            found = next((o for o in others if start is not None and episodes[o].state.get("seed") == start), None)
            if found is None:
                alone.append(e)
            else:
                others.remove(found)
                alike.append((e, found))
        turns.append(alike + list(zip(alone, others, strict=False)))
    pairs = np.array([pair for turn in itertools.zip_longest(*turns) for pair in turn if pair])
    chosen = pairs[:count]
    return on_random_sides(chosen, seed)


def of_one_start(episodes: list[Episode], windows: np.ndarray, count: int, project: dict) -> np.ndarray:  # (P, 2)
    """Two episodes of one seed and different policies each, uniform over all such pairs; with `between`, uniform over
    the policies that meet so, and then over their pairs.
    """
    seed = project["seed"]
    groups: dict[int, list[int]] = {}
    for e in np.flatnonzero(windows):
        if (start := episodes[e].state.get("seed")) is not None and episodes[e].policy is not None:
            groups.setdefault(start, []).append(int(e))
    pairs = [(a, b) for group in groups.values() for a, b in itertools.combinations(group, 2)
             if episodes[a].policy != episodes[b].policy]  # fmt: skip
    if not pairs:
        raise InputError("--same-start: no two policies of the dataset began with one seed; leave it out, or record "
                         "several --policies with tools.record")  # fmt: skip
    if project["draw"] == "between-same-start":
        met: dict[frozenset[int], list[tuple[int, int]]] = {}
        for pair in pairs:
            met.setdefault(frozenset(episodes[e].policy for e in pair), []).append(pair)
        which, share = stream(seed, 6).integers(0, len(met), count), stream(seed, 7).random(count)
        chosen = member(list(met.values()), which, share)
    else:
        chosen = np.array(pairs)[stream(seed, 5).integers(0, len(pairs), count)]
    return on_random_sides(chosen, seed)


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
