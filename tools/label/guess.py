"""Is it enough, and which pair next? A reward that is learned from the answers so far guesses those to come, and says
where it is unsure.

    python -m tools.label.guess --env drawer-open-v2 --draws 5     # does asking where it is unsure help?

The reward model of algorithms/mr_iql.py (Christiano et al. 2017, arXiv 1706.03741), smaller, and three of them, each
with its own initial weights and batches. They are fitted after every ten answers, in a process of its own.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import suites
from common.cli import default_data_dir, parse_args, user_errors
from common.errors import InputError
from common.suites.base import Episode
from common.workers import Workers, available_cpus
from tools.label.answers import Answers
from tools.label.clips import Clips, read_source
from tools.label.questions import POOL, Pairs, draw_questions

MEMBERS, HIDDEN, STEPS, BATCH, LR = 3, 64, 200, 16, 3e-3
"""networks, their width, updates of a fit, pairs an update, Adam's learning rate: half a second on one core"""
EVERY, AHEAD = 10, 20
"""answers between two fits, and pairs that a fit guesses: the first ten may be answered before the next fit is ready"""


# ---------------------------------------------------------------- the reward
def fit(x: Tensor, label: Tensor, seed: int = 0) -> list[nn.Module]:
    """Networks that give a step its reward, by Bradley-Terry on whole segments.

    Args:
        x: (P, 2, L, D) both segments of labelled pairs; label: (P,) 1 the second is better, 0 the first, 0.5 equal.
    """
    torch.manual_seed(seed)
    members = [nn.Sequential(nn.Linear(x.shape[-1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
                             nn.Linear(HIDDEN, 1)) for _ in range(MEMBERS)]  # fmt: skip
    adam = torch.optim.Adam([p for member in members for p in member.parameters()], LR)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (MEMBERS, min(BATCH, len(x))))
        losses = [F.binary_cross_entropy_with_logits(logits(member, x[own]), label[own])
                  for member, own in zip(members, rows, strict=True)]  # fmt: skip
        adam.zero_grad()
        sum(losses).backward()
        adam.step()
    return members


def logits(member: nn.Module, x: Tensor) -> Tensor:  # (P, 2, L, D) -> (P,)
    """Of the second segment being better: the difference of the summed rewards."""
    first, second = member(x).sum((-1, -2)).unbind(-1)
    return second - first


def predict(x: np.ndarray, label: np.ndarray, others: np.ndarray, seed: int = 0) -> np.ndarray:  # -> (E, Q)
    """What each member, fitted to (P, 2, L, D) and (P,), takes for the probability that the second of `others`
    (Q, 2, L, D) is better.
    """
    torch.set_num_threads(1)
    x, label, others = (torch.as_tensor(array, dtype=torch.float32) for array in (x, label, others))
    members = fit(x, label, seed)
    with torch.no_grad():
        return torch.stack([logits(member, others).sigmoid() for member in members]).numpy()


def predict_niced(*arguments: np.ndarray) -> np.ndarray:
    """`predict`, in a process that lets those that render go first."""
    os.nice(max(0, 10 - os.nice(0)))
    return predict(*arguments)


def unsure(p: np.ndarray, count: int) -> np.ndarray:  # (E, Q) -> (count,)
    """The pairs on which the members disagree most."""
    return np.argsort(-p.std(0), kind="stable")[:count]


class Inputs:
    """What the networks see of an episode's steps: standardised observations, and actions."""

    def __init__(self, episodes: list[Episode]):
        obs = np.concatenate([episode.obs for episode in episodes])
        self.episodes, self.mean, std = episodes, obs.mean(0, dtype=np.float64), obs.std(0, dtype=np.float64)
        self.std = np.where(std > 1e-6, std, 1.0)

    def segments(self, segments: np.ndarray, steps: int) -> np.ndarray:  # (P, 2, 2) -> (P, 2, L, O + A)
        """Of pairs: (episode, first step) of both segments."""
        cut = [(self.episodes[e], slice(t, t + steps)) for e, t in segments.reshape(-1, 2)]
        x = np.stack([np.hstack([(e.obs[part] - self.mean) / self.std, e.action[part]]) for e, part in cut])
        return x.astype(np.float32).reshape(*segments.shape[:2], *x.shape[1:])


# ---------------------------------------------------------------- beside the page
def wanted(args) -> bool:
    """Whether answers are guessed. InputError: --ask needs that."""
    guessing = args.guess and not args.judge and available_cpus() > 1
    if args.ask != "uniform" and (args.teacher or not guessing):
        raise InputError(f"--ask {args.ask}: needs answers one by one, guesses and a second core; leave it out, or "
                         "--teacher, --judge and --no-guess")  # fmt: skip
    return guessing


def keep_guessing(answers: Answers, pairs: Pairs, pool: np.ndarray | None, episodes: list[Episode],
                  stop: Callable[[], bool]) -> None:  # fmt: skip
    """Guess the answers to come after every EVERY answers, until `stop`; any failure ends it, and nothing else.

    Args:
        pool: (POOL * P, 2, 2) the pairs to choose from, where the members' disagreement chooses; else None.
    """
    with suppress(Exception), closing(Workers(1, stop)) as workers:  # labels are worth more than guesses
        done, inputs = 0, None
        while not stop():
            if (now := len(answers.given) // EVERY) > done:
                done, inputs = now, inputs or Inputs(episodes)
                look_ahead(answers, pairs, pool, inputs, workers)
            time.sleep(0.2)


def look_ahead(answers: Answers, pairs: Pairs, pool: np.ndarray | None, inputs: Inputs, workers: Workers) -> None:
    """Fit the answers; save guesses of the next AHEAD pairs and, from the second ten of them on, which pairs these are.

    The first ten stay, since their videos are being made.
    """
    labels = answers.labels(pairs)
    ahead = [q for q in pairs.questions if not q.again and q.number not in answers.given][:AHEAD]
    if not labels or not ahead:
        return
    free = [q for q in ahead[EVERY:] if q.number not in answers.chosen] if pool is not None else []
    fixed = [q for q in ahead if q not in free]
    candidates = [POOL * q.pair + i for q in free for i in range(POOL)]
    others = np.concatenate([pairs.segments[[q.pair for q in fixed]], *(pool[[c]] for c in candidates)])
    x, y = (inputs.segments(part, pairs.steps) for part in (pairs.segments[list(labels)], others))
    p = workers.run(predict_niced, [(x, np.array(list(labels.values())), y)])[0]
    best = unsure(p[:, len(fixed) :], len(free))
    guess = np.append(p.mean(0)[: len(fixed)], p.mean(0)[len(fixed) + best])
    numbers = [q.number for q in fixed + free]
    answers.add_guesses(dict(zip(numbers, guess.tolist(), strict=True)),
                        {q.number: candidates[i] for q, i in zip(free, best, strict=True)})  # fmt: skip
    if pool is not None:
        pairs.segments[:] = pool[answers.drawn(pairs)]


def open_pool(answers: Answers, pairs: Pairs, episodes: list[Episode]) -> np.ndarray:  # (POOL * P, 2, 2)
    """The segments to choose from. Those that were chosen before are put in their places."""
    count = max(POOL * len(pairs.segments), *(1 + pair for pair in answers.drawn(pairs)))
    pool = draw_questions(episodes, count, answers.project).segments
    pairs.segments[:] = pool[answers.drawn(pairs)]
    return pool


def render_chosen(clips: Clips, answers: Answers, stop: Callable[[], bool]) -> None:
    """Make the videos of pairs as it is settled which they are: the next ten, and those that were chosen."""
    while not stop():
        ahead = [q for q in clips.pairs.questions if q.number not in answers.given][:AHEAD]
        settled = [q.pair for i, q in enumerate(ahead) if i < EVERY or q.number in answers.chosen]
        clips.render_all([pair for pair in settled
                          if not all(path.exists() or path in clips.failed for path in clips.paths(pair))])  # fmt: skip
        time.sleep(0.2)


# ---------------------------------------------------------------- what is said
def shown(right: list[bool]) -> str:
    """How many of the answers so far were guessed, for the page; empty without any."""
    if not right:
        return ""
    last, (low, high) = right[-EVERY:], wilson(sum(right), len(right))
    return (f"guessed {sum(last)} of your last {len(last)}, {sum(right)} of {len(right)} "
            f"(95 % interval {low:.2f} to {high:.2f})")  # fmt: skip


def wilson(won: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927). scipy's costs a second's import, and a later answer would wait for it."""
    centre, half = won + z * z / 2, z * math.sqrt(won * (count - won) / count + z * z / 4)
    return (centre - half) / (count + z * z), (centre + half) / (count + z * z)


def summary(right: list[bool]) -> list[str]:
    """The same at the end, with the curve."""
    if not right:
        return []
    tens = [str(sum(right[i : i + EVERY])) for i in range(0, len(right) - EVERY + 1, EVERY)]
    curve = f"; of every ten: {' '.join(tens)}" if tens else ""
    return [f"{shown(right)}{curve}: stop where that no longer rises; near a half, the question is unclear"]


# ---------------------------------------------------------------- does asking where it is unsure help?
@dataclass
class GuessArgs:
    """Measure the reward's accuracy on pairs of other episodes, answers by return: uniform pairs, and chosen ones."""

    env: str = "drawer-open-v2"
    """environment whose own dataset is built or downloaded where it is missing"""
    draws: Annotated[int, "[1, inf)"] = 5
    """times that the episodes are split, four fifths to ask about and one to judge by, and pairs are drawn"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""


ANSWERS, JUDGES = (25, 50, 100, 200), 400
"""numbers of answers at which it is judged, pairs to judge by"""


def measure(inputs: Inputs, steps: int, draw: int) -> Iterator[list[float]]:
    """Shares of held-out pairs that are guessed after each of ANSWERS: of uniform pairs, then of chosen ones."""
    episodes, most = inputs.episodes, ANSWERS[-1]
    order = np.random.default_rng(draw).permutation(len(episodes))
    parts = []
    for numbers, count in ((order[len(order) // 5 :], POOL * most), (order[: len(order) // 5], JUDGES)):
        project = {"seed": draw, "steps": steps, "balance": False, "draw": "episodes"}
        segments = draw_questions([episodes[e] for e in numbers], count, project).segments
        segments[..., 0] = numbers[segments[..., 0]]
        returns = np.array([[episodes[e].reward[t : t + steps].sum(dtype=float) for e, t in pair] for pair in segments])
        parts += [inputs.segments(segments, steps), 0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0])]
    x, label, other, want = parts
    for choose in (False, True):
        asked = np.arange(most)
        for n in range(EVERY, most - EVERY, EVERY) if choose else ():  # as `look_ahead` does
            block = np.arange(n + EVERY, n + 2 * EVERY)
            pool = np.arange(POOL * block[0], POOL * (block[-1] + 1))
            asked[block] = pool[unsure(predict(x[asked[:n]], label[asked[:n]], x[pool], draw), EVERY)]
        p = [predict(x[asked[:n]], label[asked[:n]], other, draw).mean(0) for n in ANSWERS]
        yield [float(((p > 0.5) == (want == 1))[want != 0.5].mean()) for p in p]


def main(args: GuessArgs) -> None:
    """Print a line a way of asking: means over the draws."""
    task = suites.resolve(args.env)
    with closing(Workers(available_cpus())) as workers:
        datasets = suites.find_datasets((), task, args.data_dir, workers, "choose another --env")
    inputs = Inputs(read_source(datasets, task)[0])
    steps = suites.SUITES[task.suite].segment(task)
    found = np.array([list(measure(inputs, steps, draw)) for draw in range(args.draws)])
    print("answers      ", *(f"{n:5}" for n in ANSWERS))
    for name, accuracy in zip(("uniform", "disagreement"), found.mean(0), strict=True):
        print(f"{name:13}", *(f"{value:5.3f}" for value in accuracy))
    better = (found[:, 1] - found[:, 0] > 0).sum(0)
    print("draws with the second better:", *better, "of", args.draws)


if __name__ == "__main__":
    sys.argv[0] = "tools.label.guess"
    with user_errors():
        main(parse_args(GuessArgs(data_dir=default_data_dir())))
