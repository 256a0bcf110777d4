"""Which of several policies is better: what the answers to blind pairs of them come to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from common.arrays import read_arrays
from common.errors import InputError
from common.suites.base import Episode
from tools.label.questions import Pairs

WHOLE = 4
"""times as many frames has the video of a whole episode as that of a segment"""
UNTOLD = "the result is told when all questions are answered; --merge tells it earlier"


def check_flags(args) -> None:
    """Raises InputError where flags say two draws, or a judgement is to do what it does not."""
    if args.segment == 1:
        raise InputError("--segment 1: a segment has two steps or more; choose 0 or at least 2")
    if args.balance and (args.same_start or args.between or args.judge):
        raise InputError("--balance: leave out --same-start, --between and --judge, which draw by policy, or --balance")
    if args.judge and (args.same_start or args.teacher):
        why = "takes a person's answers" if args.teacher else "takes one start for both wherever it can"
        raise InputError(f"--judge: {why}; leave out {'--teacher' if args.teacher else '--same-start'}")


def draw_of(args) -> str:
    """Which of questions.DRAWS the flags say."""
    words = ["between"] * args.between + ["same-start"] * args.same_start
    return "judge" if args.judge else "-".join(words) or "episodes"


def names_of(datasets: list[Path]) -> list[str]:
    """What the policies are called, in the order of their numbers in `read_source`: as the file says, with the file
    where two have one name; where it does not say, as the file.
    """
    names = []
    for dataset in datasets:
        arrays = read_arrays(dataset, lambda name: name == "episodes/policy")
        known = arrays["protocol"].get("policies") if "episodes/policy" in arrays else [dataset]
        known = list(map(str, known)) if isinstance(known, list) else []
        number = range(1 + int(max(arrays.get("episodes/policy", [0]))))
        names += [(known[k] if k < len(known) else f"policy {k}", str(dataset)) for k in number]
    plain = [name for name, _ in names]
    return [name if plain.count(name) == 1 else f"{name} of {file}" for name, file in names]


def unequal(episodes: list[Episode], pairs: Pairs) -> list[str]:
    """A line that says why there is no NPZ of the pairs; none where there is one."""
    length = np.array([len(e.action) for e in episodes])
    shown = np.minimum(pairs.steps, length[pairs.segments[..., 0]] - pairs.segments[..., 1])
    if shown.min() == shown.max():
        return []
    return [f"no NPZ is written: the episodes have {shown.min()} to {shown.max()} steps, and those of an NPZ have one "
            "length; --segment STEPS gives such"]  # fmt: skip


def described(episodes: list[Episode], pairs: Pairs, wanted: int) -> list[str]:
    """What a judgement is of, before it begins."""
    starts = [[episodes[e].state.get("seed") for e in pair] for pair in pairs.segments[..., 0]]
    alike, number = sum(a == b is not None for a, b in starts), len(starts)
    few = f"; the dataset has no more for --pairs {wanted}" if number < wanted else ""
    return [f"{number} pairs, {alike} of them of one start{few}", *unequal(episodes, pairs)]


def verdict(episodes: list[Episode], pairs: Pairs, labels: dict[int, float], names: list[str]) -> list[str]:
    """A line for every two policies: how often which is preferred, and how sure that is.

    Args:
        labels: pair -> 1, the second is better, 0, the first is, 0.5: equal.  names: of the policies, by number.
    """
    counts: dict[tuple[int, int], list[int]] = {}
    for pair, label in labels.items():
        a, b = (episodes[e].policy for e in pairs.segments[pair, :, 0])
        kind = int(2 * label)
        counts.setdefault((min(a, b), max(a, b)), [0, 0, 0])[kind if a < b else 2 - kind] += 1
    return [compared(names[a], names[b], *counts[a, b]) for a, b in sorted(counts)] or ["no pair could be told apart"]


def compared(first: str, second: str, first_won: int, ties: int, second_won: int) -> str:
    """The one of two policies that won more often: its share of the pairs that are no ties with the exact interval of
    Clopper and Pearson (1934), and the probability that this share is above a half where all shares were as likely.
    """
    from scipy.stats import beta, binomtest  # a second's import, which labelling does not need

    equal = f"{ties} tie{'s' * (ties != 1)}"
    if not first_won + second_won:
        return f"{first} and {second}: {equal}, and no other pair"
    won, lost = max(first_won, second_won), min(first_won, second_won)
    better, other = (first, second) if first_won > second_won else (second, first)
    low, high = binomtest(won, won + lost).proportion_ci(0.95, method="exact")
    sure = min(0.999, math.floor(1000 * beta.sf(0.5, 1 + won, 1 + lost)) / 1000)  # never 1
    return (f"{better} is preferred to {other} in {won} of {won + lost} pairs ({equal}), 95 % interval {low:.2f} "
            f"to {high:.2f}; it is better with probability {sure:.3f} (prior: Beta(1, 1))")  # fmt: skip
