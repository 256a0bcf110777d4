"""The answers as an append-only file, and the NPZ that is made of them, of one labeller or of several.

A file of answers is JSON, one object a line. The first line says of which pairs the questions are. Each other one is an
answer, or holds guesses of answers to come (tools/label/guess.py); of two to one question the later counts. A last
line that is cut was so by a crash, before the page was told that it is saved, and is dropped.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from common import suites
from common.arrays import fingerprint
from common.data import listed, read_preferences
from common.errors import InputError, remedy
from common.locks import atomic, try_lock
from common.suites.base import Episode, Task
from tools.label.clips import read_source
from tools.label.judge import names_of, unequal, verdict
from tools.label.questions import BLOCK, DRAWS, POOL, Pairs, Question, draw_questions

CHOICES = ("left", "right", "equal", "skip")
MERGED = "merged"
"""stands for the labeller's name in the merged file"""
FLAGS = {"steps": " as --segment", "draw": " (--same-start, --between and --judge, or without them)",
         "ask": " (--ask disagreement, or without it)"}  # fmt: skip
"""how a part of the project is given, where it is no flag's name"""


# ---------------------------------------------------------------- answers
class Answers:
    """The answers of one labeller, from the content of their file. `open_answers` gives one that can be added to.

    Raises:
        InputError: a line is wrong.
    """

    def __init__(self, path: Path, content: bytes, file=None):
        self.path, self.file, self.lock = path, file, threading.Lock()
        self.project: dict = {}  # the first line
        self.given: dict[int, dict] = {}  # number of the question -> its last answer
        self.times: Counter = Counter()  # number of the question -> how often it was answered
        self.guesses: dict[int, float] = {}  # number of the question -> probability that the second is better
        self.chosen: dict[int, int] = {}  # number of the question -> pair of a larger draw that it shows
        self.end = content.rfind(b"\n") + 1
        for number, text in enumerate(content[: self.end].splitlines(), start=1):
            try:
                self._read(json.loads(text))
            except (ValueError, KeyError, TypeError, AssertionError, RecursionError, OverflowError):
                raise InputError(f"{path}: line {number} is no answer; delete that line") from None
        self.unended = False  # whether the last line, a whole one, lacks its end, which editors may leave out
        with suppress(ValueError, KeyError, TypeError, AssertionError, RecursionError, OverflowError):
            self._read(json.loads(content[self.end :]))
            self.end, self.unended = len(content), True

    def _read(self, line: dict) -> None:
        """Take one line of the file, the first one first."""
        if not self.project:
            assert {type(line[name]) for name in ("seed", "steps")} == {int} and type(line["balance"]) is bool
            assert line["seed"] >= 0 <= line["steps"] and line.get("draw", "windows") in DRAWS
            assert line["steps"] or line["draw"] == "judge"  # 0: whole episodes
            self.project = line
            return
        if "guesses" in line:
            guesses, chosen = ({int(n): value for n, value in dict(line[key]).items()} for key in ("guesses", "chosen"))
            assert all(0 <= n < 1_000_000 and 0 <= p <= 1 for n, p in guesses.items())
            assert all(type(pair) is int and 0 <= pair < POOL * (n + 2 * BLOCK) for n, pair in chosen.items())
            self.guesses |= {n: p for n, p in guesses.items() if n not in self.given}
            self.chosen |= chosen
            return
        assert line["answer"] in CHOICES and min(line["question"], line["pair"], line["waited"]) >= 0
        assert math.isfinite(line["seconds"] + line["waited"]) and line["pair"] <= line["question"] < 1_000_000
        assert isinstance(line["question"] + line["pair"], int) and isinstance(line["swapped"], bool)
        self.given[line["question"]] = line
        self.times[line["question"]] += 1

    def append(self, line: dict) -> None:
        """Append one line; on disk when this returns. What an error leaves half-written is cut off."""
        data = memoryview(b"\n" * self.unended + json.dumps(line).encode() + b"\n")
        os.ftruncate(self.file.fileno(), self.end)
        try:
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
        except OSError:
            os.ftruncate(self.file.fileno(), self.end)
            raise
        self.end, self.unended = os.fstat(self.file.fileno()).st_size, False
        self._read(line)

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
            self.append(line)
            return True

    def add_guesses(self, guesses: dict[int, float], chosen: dict[int, int]) -> None:
        """Save guesses, and which pairs were chosen, both by the number of the question.

        A guess of what was answered meanwhile is left out, and a choice where the question may be on the page already.
        """
        with self.lock:
            shown = 1 + max(self.given, default=-1)
            kept = [n for n, p in guesses.items()
                    if n not in self.given and (n > shown or n not in chosen) and 0 <= p <= 1]  # fmt: skip
            if kept:
                self.append({"guesses": {n: round(guesses[n], 4) for n in kept},
                             "chosen": {n: chosen[n] for n in kept if n in chosen},
                             "time": round(time.time(), 2)})  # fmt: skip

    @property
    def pairs(self) -> int:
        """Pairs that must be drawn for all answers to have one."""
        return 1 + max((line["pair"] for line in list(self.given.values())), default=-1)

    def labels(self, pairs: Pairs) -> dict[int, float]:
        """pair -> label, by the first time that it was asked for; those that one cannot tell are left out."""
        return {q.pair: value for q in pairs.questions if not q.again and (value := self.label(q)) is not None}

    def label(self, question: Question) -> float | None:
        """1: the pair's second segment is better, 0: the first, 0.5: equal; None: not answered, or cannot tell."""
        answer = self.given.get(question.number, {}).get("answer")
        if answer in ("left", "right"):
            return float((answer == "right") != question.swapped)
        return 0.5 if answer == "equal" else None

    def guessed(self, pairs: Pairs) -> list[bool]:
        """Whether each left or right was guessed, in the order of the questions; without those asked again."""
        asked = [(self.guesses[q.number], self.label(q)) for q in pairs.questions
                 if not q.again and q.number in self.guesses]  # fmt: skip
        return [(guess > 0.5) == (label == 1) for guess, label in asked if label in (0, 1)]

    def drawn(self, pairs: Pairs) -> list[int]:  # (P,)
        """Which pair of `POOL` times as many stands in each pair's place."""
        return [self.chosen.get(q.number, q.pair) for q in pairs.questions if not q.again]

    def skipped(self, pairs: Pairs) -> int:
        """Pairs that one cannot tell."""
        return sum(self.given.get(q.number, {}).get("answer") == "skip" for q in pairs.questions if not q.again)

    def agreement(self, pairs: Pairs) -> tuple[int, int]:
        """(equal answers, pairs that were answered both times)."""
        first = {q.pair: q for q in pairs.questions if not q.again}
        both = [q for q in pairs.questions if q.again and {q.number, first[q.pair].number} <= self.given.keys()]
        return sum(self.label(q) == self.label(first[q.pair]) for q in both), len(both)

    def seconds(self, name: str = "seconds") -> float | None:
        """Median time of an answer; `name` "waited": of waiting for its videos."""
        return float(np.median([line[name] for line in list(self.given.values())])) if self.given else None

    def summary(self, pairs: Pairs) -> list[str]:
        """In a few lines: how many, how fast, how sure."""
        same, both = self.agreement(pairs)
        lines = [f"{self.path}: {len(self.given)} of {len(pairs.questions)} questions, "
                 f"{len(self.labels(pairs))} labelled pairs"]  # fmt: skip
        if self.given:
            lines.append(f"{self.seconds():.1f} s a pair (median), of waiting {self.seconds('waited'):.1f} s")
        return [*lines, f"self-agreement: {same} of {both} pairs that came twice"] if both else lines


@contextmanager
def open_answers(path: Path, project: dict) -> Iterator[Answers]:
    """The answers in a file that is only appended to, open in one process at a time.

    Args:
        project: what the questions depend on; it must be that of the file, once there are answers.

    Raises:
        InputError: the file is another project's, damaged, or open in another process.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
        alone = try_lock(file)
    except OSError as error:
        way = remedy(error, path, "--labels-dir") or "choose another --labels-dir"
        raise InputError(f"{path}: {error.strerror}; {way}") from None
    with file:
        if not alone:
            raise InputError(f"{path}: is open in another process; use its page, or another --name")
        file.seek(0)
        content = file.read()
        if content and content[:1] != b"{":
            raise InputError(f"{path}: is no file of answers; choose another --name or --labels-dir")
        answers = Answers(path, content, file)
        if not answers.given:  # nor is there anything to lose of a project that was begun
            answers.project, answers.end, answers.unended = {}, 0, False
            answers.append(project)
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        found = answers.project
        if "draw" not in found and project.get("draw") == DRAWS[0]:  # it keeps the draw that it began with
            project = {key: value for key, value in project.items() if key != "draw"}
        if found != project:
            name = next(k for k in project | found if found.get(k) != project.get(k))
            if name == "dataset":
                raise InputError(f"{path}: was begun with another dataset, or before this one was changed; name that, "
                                 "or choose another --name or --labels-dir")  # fmt: skip
            raise InputError(f"{path}: was begun with {name} {found.get(name)!r}, not {project.get(name)!r}; "
                             f"give that{FLAGS.get(name, '')}, or choose another --name or --labels-dir")  # fmt: skip
        yield answers


# ---------------------------------------------------------------- the file that is trained on
def write_pairs(path: Path, episodes: list[Episode], pairs: Pairs, labels: Iterable[tuple[int, float]],
                task: Task) -> int:  # fmt: skip
    """Write labelled pairs as the NPZ of --preferences, atomically, and read it as training will.

    Args:
        labels: (pair, label); a pair may have several.

    Returns:
        Labelled pairs; without any, or of whole episodes that differ in length, no file is written.
    """
    items = list(labels)
    if not items or unequal(episodes, pairs):
        return 0
    arrays = {"label": np.array([value for _, value in items], np.float32),
              "pair": np.array([pair for pair, _ in items]), "env": np.array(task.env)}  # fmt: skip
    for k in (0, 1):
        cut = [(episodes[e], slice(t, t + pairs.steps)) for e, t in (pairs.segments[pair, k] for pair, _ in items)]
        arrays[f"obs_{k + 1}"] = np.stack([episode.obs[part] for episode, part in cut])
        arrays[f"action_{k + 1}"] = np.stack([episode.action[part] for episode, part in cut])
    with atomic(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return len(read_preferences(path, task).label)


def stem_of(env: str) -> str:
    """What files of an environment are called: `My-v0` of `my_package:My-v0`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", env.rpartition(":")[2])


# ---------------------------------------------------------------- several labellers
def datasets_of(args, task: Task, workers) -> list[Path]:
    """Those of --dataset, or the environment's own. InputError: they cannot be had."""
    return suites.find_datasets(args.dataset, task, args.data_dir, workers, "name one with --dataset FILE.hdf5")


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
    """The label that more than half gave; 0.5 where there is none."""
    label, votes = Counter(values).most_common(1)[0]
    return label if 2 * votes > len(values) else 0.5


def merge(args, task: Task, workers) -> tuple[Path, int, int]:
    """Write the answers of all labellers of an environment as one NPZ, and print how far they agree.

    Returns:
        Its path, the labelled pairs in it, and the steps of a segment.

    Raises:
        InputError: there are none, or they are of different pairs.
    """
    found: dict[Path, Answers] = {}
    for path in sorted(args.labels_dir.glob("*.jsonl")):
        answers = Answers(path, path.read_bytes())
        judged = answers.project.get("draw") == "judge"
        if answers.given and answers.project.get("env") == task.env and judged == args.judge:
            found[path] = answers
    if not found:
        raise InputError(f"--merge: {args.labels_dir}: holds no answers for {task.env}; label some first")
    project, datasets = next(iter(found.values())).project, datasets_of(args, task, workers)
    episodes, _ = read_source(datasets, task)
    for path, answers in found.items():
        if answers.project != project | {"dataset": fingerprint(*datasets)}:
            raise InputError(f"--merge: {path}: is not of the same pairs as {next(iter(found))} and {listed(datasets)}")
    pairs = draw_questions(episodes, max(answers.pairs for answers in found.values()), project)
    drawn = {path: answers.drawn(pairs) for path, answers in found.items()}
    pool = draw_questions(episodes, 1 + max(map(max, drawn.values())), project)  # what --ask chose from, or `pairs`
    labels = {path: {drawn[path][pair]: label for pair, label in answers.labels(pairs).items()}
              for path, answers in found.items()}  # fmt: skip
    for answers in found.values():
        print(*answers.summary(pairs), sep="\n")
    for (a, first), (b, second) in itertools.combinations(labels.items(), 2):
        number, equal, value = kappa(first, second)
        print(f"{a.stem}, {b.stem}: {number} pairs of both, equal {equal:.2f}, Cohen's kappa {value:.2f}")
    votes = sorted((pair, value) for one in labels.values() for pair, value in one.items())
    agreed = {pair: majority([value for _, value in group])
              for pair, group in itertools.groupby(votes, lambda vote: vote[0])}  # fmt: skip
    path = args.labels_dir / f"{stem_of(task.env)}-{'judge-' * args.judge}{MERGED}.npz"
    if args.judge:
        print(*unequal(episodes, pool), *verdict(episodes, pool, agreed, names_of(datasets)), sep="\n")
    return path, write_pairs(path, episodes, pool, votes if args.keep_all else agreed.items(), task), pairs.steps
