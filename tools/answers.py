"""The questions of tools.label, the answers to them as an append-only file, and the NPZ that is made of both.

A file of answers is JSON, one object a line. The first line says of which pairs the questions are. Each other one is an
answer; of two answers to one question the later counts. A line without an end was cut by a crash, before the page was
told that it is saved, and is dropped.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import suites
from common.arrays import fingerprint
from common.data import read_preferences
from common.errors import InputError, remedy
from common.locks import atomic, try_lock
from common.seeds import LABELS
from common.suites.base import Episode, Task

CHOICES = ("left", "right", "equal", "skip")
BLOCK = 10
"""after so many pairs one of them is asked again"""
NEAR = 5
"""that one is of the first so many: others come between the two times"""
MERGED = "merged"
"""stands for the labeller's name in the merged file"""


# ---------------------------------------------------------------- questions
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


def draw_pairs(episodes: list[Episode], count: int, project: dict) -> Pairs:
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
    rng, questions = np.random.default_rng([LABELS, seed, 3]), []
    side: list[bool] = []
    for pair in range(count):
        side.append(bool(rng.integers(2)))
        questions.append(Question(len(questions), pair, side[pair]))
        if pair % BLOCK == BLOCK - 1:
            again = pair + 1 - BLOCK + int(rng.integers(NEAR))
            questions.append(Question(len(questions), again, not side[again], True))
    return questions


# ---------------------------------------------------------------- answers
class Answers:
    """The answers of one labeller: a file that is only appended to, open in one process at a time.

    Args:
        project: what the questions depend on; it must be that of the file.

    Raises:
        InputError: the file is another project's, damaged, or open in another process.
    """

    def __init__(self, path: Path, project: dict):
        self.path, self.project, self.lock = path, project, threading.Lock()
        self.given: dict[int, dict] = {}  # number of the question -> its last answer
        self.times: Counter = Counter()  # number of the question -> how often it was answered

    def __enter__(self) -> Answers:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "a+b", buffering=0)
            alone = try_lock(self.file)
        except OSError as error:
            way = remedy(error, self.path, "--labels-dir") or "choose another --labels-dir"
            raise InputError(f"{self.path}: {error.strerror}; {way}") from None
        if not alone:
            self.file.close()
            raise InputError(f"{self.path}: is open in another process; use its page, or another --name")
        self.file.seek(0)
        content = self.file.read()
        self.end = content.rfind(b"\n") + 1
        found, self.given, self.times = parse(self.path, content[: self.end])
        if not found:
            self._append(self.project)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        elif found != self.project:
            name = next(k for k in self.project | found if found.get(k) != self.project.get(k))
            raise InputError(f"{self.path}: was begun with {name} {found.get(name)!r}, not {self.project.get(name)!r}; "
                             "give that, or choose another --name")  # fmt: skip
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _append(self, line: dict) -> None:
        """Append one line; on disk when this returns. What an error leaves half-written is cut off."""
        data = memoryview(json.dumps(line).encode() + b"\n")
        os.ftruncate(self.file.fileno(), self.end)
        try:
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
        except OSError:
            os.ftruncate(self.file.fileno(), self.end)
            raise
        self.end = os.fstat(self.file.fileno()).st_size

    def add(self, question: Question, times: int, choice: str, seconds: float, waited: float) -> bool:
        """Save an answer to a question that was answered `times` times when it was shown.

        Returns:
            False, and nothing is saved, where it was answered meanwhile: in another tab, or by the same request.
        """
        with self.lock:
            if times != self.times[question.number]:
                return False
            line = {"question": question.number, "pair": question.pair, "swapped": question.swapped, "answer": choice}
            line |= {"seconds": round(seconds, 2), "waited": round(waited, 2), "time": round(time.time(), 2)}
            self._append(line)
            self.given[question.number] = line
            self.times[question.number] += 1
            return True

    @property
    def pairs(self) -> int:
        """Pairs that must be drawn for all answers to have one."""
        return 1 + max((line["pair"] for line in self.given.values()), default=-1)

    def labels(self, pairs: Pairs) -> dict[int, float]:
        """pair -> label, by the first time that it was asked for; those that one cannot tell are left out."""
        return {q.pair: value for q in pairs.questions if not q.again and (value := self.label(q)) is not None}

    def label(self, question: Question) -> float | None:
        """1: the pair's second segment is better, 0: the first, 0.5: equal; None: not answered, or cannot tell."""
        answer = self.given[question.number]["answer"] if question.number in self.given else "skip"
        if answer in ("skip", "equal"):
            return 0.5 if answer == "equal" else None
        return float((answer == "right") != question.swapped)

    def agreement(self, pairs: Pairs) -> tuple[int, int]:
        """(equal answers, pairs that were answered both times)."""
        first = {q.pair: q for q in pairs.questions if not q.again}
        both = [q for q in pairs.questions if q.again and {q.number, first[q.pair].number} <= self.given.keys()]
        return sum(self.label(q) == self.label(first[q.pair]) for q in both), len(both)

    def seconds(self, name: str = "seconds") -> float | None:
        """Median time of an answer; `name` "waited": of waiting for its videos."""
        return float(np.median([line[name] for line in self.given.values()])) if self.given else None

    def summary(self, pairs: Pairs) -> list[str]:
        """In a few lines: how many, how fast, how sure."""
        same, both = self.agreement(pairs)
        lines = [f"{self.path}: {len(self.given)} of {len(pairs.questions)} questions, "
                 f"{len(self.labels(pairs))} labelled pairs"]  # fmt: skip
        if self.given:
            lines.append(f"{self.seconds():.1f} s a pair (median), of waiting {self.seconds('waited'):.1f} s")
        return [*lines, f"self-agreement: {same} of {both} pairs that came twice"] if both else lines


def parse(path: Path, content: bytes) -> tuple[dict, dict[int, dict], Counter]:
    """The first line, the last answer to each question, and how often each was answered. InputError: a wrong line."""
    project: dict = {}
    given: dict[int, dict] = {}
    times: Counter = Counter()
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
            if number == 1:
                assert {type(line[name]) for name in ("seed", "steps")} == {int} and type(line["balance"]) is bool
                assert line["seed"] >= 0 < line["steps"]
                project = dict(line)
                continue
            assert line["answer"] in CHOICES and min(line["question"], line["pair"], line["waited"]) >= 0
            assert math.isfinite(line["seconds"] + line["waited"]) and line["pair"] <= line["question"] < 1_000_000
            assert isinstance(line["question"] + line["pair"], int) and isinstance(line["swapped"], bool)
            given[line["question"]] = line
            times[line["question"]] += 1
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError, OverflowError):
            raise InputError(f"{path}: line {number} is no answer; delete that line") from None
    return project, given, times


# ---------------------------------------------------------------- the file that is trained on
def write_pairs(path: Path, episodes: list[Episode], pairs: Pairs, labels, task: Task) -> int:
    """Write labelled pairs as the NPZ of --preferences, atomically, and read it as training will.

    Args:
        labels: pair -> label, or (pair, label) where a pair has several.

    Returns:
        Labelled pairs; without any, no file is written.
    """
    items = sorted(labels.items()) if isinstance(labels, dict) else labels
    if not items:
        return 0
    arrays = {"label": np.array([value for _, value in items], np.float32),
              "pair": np.array([pair for pair, _ in items])}  # fmt: skip
    for k in (0, 1):
        cut = [(episodes[e], slice(t, t + pairs.steps)) for e, t in (pairs.segments[pair, k] for pair, _ in items)]
        arrays[f"obs_{k + 1}"] = np.stack([episode.obs[part] for episode, part in cut])
        arrays[f"action_{k + 1}"] = np.stack([episode.action[part] for episode, part in cut])
    with atomic(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return len(read_preferences(path, task).label)


# ---------------------------------------------------------------- several labellers
def find_dataset(args, task: Task, workers) -> Path:
    """--dataset, or the environment's own. InputError: it cannot be had."""
    if args.dataset:
        return Path(args.dataset)
    return suites.own_dataset(task, args.data_dir, workers, "name one with --dataset FILE.hdf5")


def kappa(a: dict[int, float], b: dict[int, float]) -> tuple[int, float, float]:
    """Cohen's kappa (1960) of two labellers, over the pairs that both labelled.

    Returns:
        Pairs; share of equal labels; kappa, NaN where chance alone would agree always.
    """
    both = sorted(a.keys() & b.keys())
    x, y = (np.array([labels[pair] for pair in both]) for labels in (a, b))
    if not both:
        return 0, float("nan"), float("nan")
    equal = float((x == y).mean())
    chance = float(sum((x == value).mean() * (y == value).mean() for value in (0.0, 0.5, 1.0)))
    return len(both), equal, (equal - chance) / (1 - chance) if chance < 1 else float("nan")


def majority(values: list[float]) -> float:
    """The label that most gave; 0.5 where no label has more votes than every other."""
    (label, votes), *others = Counter(values).most_common()
    return 0.5 if others and others[0][1] == votes else label


def merge(args, task: Task, workers) -> tuple[Path, int]:
    """Write the answers of all labellers of an environment as one NPZ, and print how far they agree.

    Returns:
        Its path, and the labelled pairs in it.

    Raises:
        InputError: there are none, or they are of different pairs.
    """
    found: dict[Path, Answers] = {}
    for path in sorted(args.labels_dir.glob("*.jsonl")):
        content = path.read_bytes()
        project, given, times = parse(path, content[: content.rfind(b"\n") + 1])
        if given and project.get("env") == task.env:
            found[path] = Answers(path, project)
            found[path].given, found[path].times = given, times
    if not found:
        raise InputError(f"--merge: {args.labels_dir}: holds no answers for {task.env}; label some first")
    suite, project = suites.SUITES[task.suite], next(iter(found.values())).project
    dataset = find_dataset(args, task, workers)
    for path, answers in found.items():
        if answers.project != project | {"dataset": fingerprint(dataset), "steps": suite.segment(task)}:
            raise InputError(f"--merge: {path}: is not of the same pairs as {next(iter(found))} and {dataset}")
    episodes = suite.read_episodes(dataset, task)
    pairs = draw_pairs(episodes, max(answers.pairs for answers in found.values()), project)
    labels = {path: answers.labels(pairs) for path, answers in found.items()}
    for answers in found.values():
        print(*answers.summary(pairs), sep="\n")
    for (a, first), (b, second) in itertools.combinations(labels.items(), 2):
        number, equal, value = kappa(first, second)
        print(f"{a.stem}, {b.stem}: {number} pairs of both, equal {equal:.2f}, Cohen's kappa {value:.2f}")
    votes = sorted((pair, value) for one in labels.values() for pair, value in one.items())
    if not args.keep_all:
        votes = [(pair, majority([value for _, value in group]))
                 for pair, group in itertools.groupby(votes, lambda vote: vote[0])]  # fmt: skip
    path = args.labels_dir / f"{task.env.replace('/', '-')}-{MERGED}.npz"
    return path, write_pairs(path, episodes, pairs, votes, task)
