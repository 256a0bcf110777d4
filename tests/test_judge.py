"""tools.label: a second round that meets the first, and which of two policies is better."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from math import comb
from pathlib import Path

import h5py
import numpy as np
import pytest

from common import suites
from common.arrays import fingerprint, read_arrays
from common.data import read_preferences
from common.errors import InputError
from common.suites.base import Episode
from common.workers import Workers
from tests.conftest import REPOSITORY, command, environment
from tests.test_docs import blocks
from tests.test_label import DOT, GOOD, PROJECT, Label, Person, get, made_up, needs_browser, post, read_lines, said_by
from tests.test_label import record as record_dots
from tools import record
from tools.label import __main__ as label_main
from tools.label.answers import open_answers, write_pairs
from tools.label.clips import Clips
from tools.label.judge import compared, described, names_of, unequal, verdict
from tools.label.questions import draw_questions

STILL, DICE = "tests.odd_environments:still", "tests.odd_environments:dice"
BETWEEN, JUDGE = PROJECT | {"draw": "between"}, PROJECT | {"draw": "judge", "steps": 0}


def of_policies(*kinds: tuple[int | None, int | None, int]) -> list[Episode]:
    """Episodes of (policy, seed, length)."""
    episodes = made_up([length for *_, length in kinds])
    for episode, (policy, seed, _) in zip(episodes, kinds, strict=True):
        episode.policy, episode.state = policy, {} if seed is None else {"seed": seed}
    return episodes


# ---------------------------------------------------------------- which pairs
def test_between_draws_two_policies_then_an_episode_of_each():
    """However many episodes a policy has: 1 of policy 0, 3 of policy 1, 2 of policy 2, and one that is too short."""
    episodes = of_policies(*((p, None, n) for p, n in ((0, 40), (1, 30), (1, 25), (1, 90), (2, 50), (2, 60), (3, 20))))
    few, many = (draw_questions(episodes, n, BETWEEN).segments for n in (20, 6000))
    assert (few == many[:20]).all()
    policy = np.array([e.policy for e in episodes])[many[..., 0]]
    assert (policy[:, 0] != policy[:, 1]).all()
    met = Counter(map(tuple, policy.tolist()))
    assert met.keys() == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert all(abs(number / 6000 - 1 / 6) < 0.02 for number in met.values())
    share = np.bincount(many[..., 0].ravel(), minlength=7) / 12000
    assert np.abs(share - [1 / 3, 1 / 9, 1 / 9, 1 / 9, 1 / 6, 1 / 6, 0]).max() < 0.015
    first = many[many[..., 0] == 3][:, 1]
    assert first.min() == 0 and first.max() == 65 and abs(first.mean() - 32.5) < 2
    for alone in (of_policies((0, 1, 40), (0, 2, 40), (1, 1, 20)), made_up()):
        with pytest.raises(InputError, match=r"--between and --judge: all .* of one policy; name the"):
            draw_questions(alone, 2, BETWEEN)


def test_between_and_same_start():
    """Policies 0 and 1 share three starts, 1 and 2 one: both couples come equally often, at one time."""
    kinds = [(0, 7, 40), (1, 7, 50), (0, 8, 40), (1, 8, 60), (0, 9, 40), (1, 9, 40), (1, 3, 40), (2, 3, 30), (2, 4, 40)]
    episodes, project = of_policies(*kinds), PROJECT | {"draw": "between-same-start"}
    drawn = draw_questions(episodes, 3000, project).segments
    met = Counter(frozenset(pair) for pair in drawn[..., 0].tolist())
    want = {frozenset((0, 1)): 1 / 6, frozenset((2, 3)): 1 / 6, frozenset((4, 5)): 1 / 6, frozenset((6, 7)): 1 / 2}
    assert met.keys() == want.keys() and all(abs(met[pair] / 3000 - want[pair]) < 0.03 for pair in want)
    assert (drawn[:, 0, 1] == drawn[:, 1, 1]).all() and 0.45 < (drawn[:, 0, 0] < drawn[:, 1, 0]).mean() < 0.55
    args = label_main.LabelArgs(between=True, same_start=True)
    with pytest.raises(InputError, match="--segment 1"):  # which no script can train on
        label_main.check_flags(label_main.LabelArgs(segment=1))
    assert label_main.draw_of(args) == "between-same-start" and label_main.draw_of(label_main.LabelArgs()) == "episodes"


def test_a_judgement_shows_each_start_once_and_all_policies_equally_often():
    kinds = [(p, 10 + k, 20 + 10 * p + k) for p in range(3) for k in range(4)]
    episodes = of_policies(*kinds)
    pairs = draw_questions(episodes, 100, JUDGE)
    assert len(pairs.segments) == 12 and not pairs.segments[..., 1].any() and pairs.steps == 43
    assert (draw_questions(episodes, 5, JUDGE).segments == pairs.segments[:5]).all()
    for begin in range(0, 12, 3):  # in turn
        met = {frozenset(episodes[e].policy for e in pair) for pair in pairs.segments[begin : begin + 3, :, 0]}
        assert len(met) == 3
    assert len({frozenset(pair) for pair in pairs.segments[..., 0].tolist()}) == 12
    assert all(len({episodes[e].state["seed"] for e in pair}) == 1 for pair in pairs.segments[..., 0])
    cut = draw_questions(episodes, 100, JUDGE | {"steps": 15}).segments
    assert (cut[:, 0, 1] == cut[:, 1, 1]).all() and cut[..., 1].any()
    some = of_policies((0, 1, 30), (0, 2, 30), (0, 3, 30), (1, 9, 30), (1, 2, 30), (1, None, 30), (1, None, 30))
    drawn = draw_questions(some, 100, JUDGE)  # one start of both comes first, then each other episode once
    assert set(drawn.segments[0, :, 0]) == {1, 4} and len(drawn.segments) == len(set(drawn.segments[..., 0].flat)) / 2
    assert described(some, drawn, 100) == ["3 pairs, 1 of them of one start; the dataset has no more for --pairs 100"]


def test_clips_of_whole_episodes_have_one_pace(tmp_path):
    episodes = of_policies((0, 1, 320), (1, 1, 80), (0, 2, 10), (1, 2, 10))
    with closing(Workers(1)) as workers:
        clips = Clips(None, episodes, draw_questions(episodes, 2, JUDGE), tmp_path, 64, workers)
    assert {clip for pair in (0, 1) for clip in clips.clips(pair)} == {(0, 0, 320, 64), (1, 0, 80, 16), (2, 0, 10, 2),
                                                                       (3, 0, 10, 2)}  # fmt: skip


# ---------------------------------------------------------------- what they come to
def test_the_interval_is_that_of_clopper_and_pearson():
    """R's binom.test(17, 20): 0.6210732 to 0.9679291. With the prior Beta(1, 1), P(share > 1/2) is that of at most 17
    heads in 21 throws of a coin.
    """
    sure = sum(comb(21, k) for k in range(18)) / 2**21
    assert compared("a", "b", 3, 4, 17) == (
        "b is preferred to a in 17 of 20 pairs (4 ties), 95 % interval 0.62 to 0.97; it is better with probability "
        f"{int(1000 * sure) / 1000:.3f} (prior: Beta(1, 1))")  # fmt: skip
    assert "a is preferred to b in 10 of 10 pairs (1 tie), 95 % interval 0.69 to 1.00" in compared("a", "b", 10, 1, 0)
    assert "in 5 of 10 pairs (0 ties), 95 % interval 0.19 to 0.81; it is better with probability 0.500" in (
        compared("a", "b", 5, 0, 5))  # fmt: skip
    assert "probability 0.999" in compared("a", "b", 60, 0, 0) and compared("a", "b", 0, 2, 0).endswith("no other pair")


def test_a_verdict_puts_sides_right_and_counts_every_two_policies():
    episodes = of_policies((0, 1, 9), (1, 1, 9), (2, 1, 9))
    pairs = draw_questions(episodes, 3, JUDGE)
    pairs.segments[:, :, 0] = [[0, 1], [1, 0], [2, 1]]
    lines = verdict(episodes, pairs, {0: 1.0, 1: 0.0, 2: 0.5}, ["x", "y", "z"])  # y twice; y and z tie
    assert lines[0].startswith("y is preferred to x in 2 of 2 pairs (0 ties), 95 % interval 0.16 to 1.00")
    assert lines[1:] == ["y and z: 1 tie, and no other pair"]
    assert verdict(episodes, pairs, {}, []) == ["no pair could be told apart"]


def test_an_npz_has_one_length(tmp_path):
    """Whole episodes of several lengths are none, and a line says so; their segments are."""
    episodes, task = of_policies((0, 1, 30), (1, 1, 40)), suites.resolve("drawer-open-v2")
    whole, cut = (draw_questions(episodes, 1, JUDGE | {"steps": steps}) for steps in (0, 25))
    assert write_pairs(tmp_path / "a.npz", episodes, whole, [(0, 1.0)], task) == 0 and not (tmp_path / "a.npz").exists()
    assert unequal(episodes, cut) == [] and "have 30 to 40 steps" in unequal(episodes, whole)[0]
    assert write_pairs(tmp_path / "a.npz", episodes, cut, [(0, 1.0)], task) == 1


# ---------------------------------------------------------------- wrong input
def test_files_that_do_not_belong_together_are_one_line(tmp_path):
    for name in "ab":
        record_dots(tmp_path / f"{name}.hdf5")
    both = tuple(str(tmp_path / f"{name}.hdf5") for name in "ab")
    said = said_by(tmp_path, dataset=both[:1], between=True)
    assert "of one policy; name the --dataset of another round too" in said
    assert "--balance: leave out" in said_by(tmp_path, dataset=both, between=True, balance=True)
    assert "--judge: takes one start for both" in said_by(tmp_path, dataset=both, judge=True, same_start=True)
    assert "leave out --teacher" in said_by(tmp_path, dataset=both, judge=True, teacher=("perfect",))
    for change, said in (({"env": "tests.dots:Blind-v0"}, "b.hdf5: was built for tests.dots:Blind-v0, not"),
                         ({"env": DOT, "keys": ["place"]}, "b.hdf5: its observations are place, those")):  # fmt: skip
        with h5py.File(both[1], "r+") as file:
            file.attrs["protocol"] = json.dumps(change)
        assert said in said_by(tmp_path, dataset=both, between=True)
    with h5py.File(both[1], "r+") as file:
        file.attrs["protocol"] = json.dumps({"env": DOT})
        file["episodes/policy"], wide = [0, 1, 1, 3], np.zeros((len(file["obs"]), 3))
        del file["obs"]
        file["obs"] = wide
    assert "'obs' has shape" in said_by(tmp_path, dataset=both, between=True)
    assert names_of([Path(both[0]), Path(both[1])]) == [both[0], "policy 0", "policy 1", "policy 2", "policy 3"]


# ---------------------------------------------------------------- two rounds
def documented(*words: str) -> list[list[str]]:
    """The words of the commands of a block of docs/labelling.md, in small, for the dot."""
    block = next(b for b in blocks(REPOSITORY / "docs/labelling.md", "bash") if all(word in b for word in words))
    block = block.replace("\\\n", " ").replace("my_package:controller", STILL).replace("my_package:My-v0", DOT)
    few = "--total-steps 4 --eval-episodes 1 --hidden-sizes 8 --threads 1 --no-compile --preference-batch-size 3"
    small = {"tools.record": "--episodes 3 --workers 1", "tools.label": "--workers 1",
             "ipl_iql": few}  # fmt: skip
    lines = [line + " " + next(more for name, more in small.items() if name in line) for line in block.splitlines()]
    return [shlex.split(line.replace("--pairs 50", "--pairs 6").replace("My-v0", "Dot-v0")) for line in lines]


def carry_out(words: list[str], folder: Path) -> None:
    options = environment(folder / "data", folder)
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    call = [sys.executable, *words[1:]] if words[1] == "-m" else command(Path(words[1]).stem, *words[2:])
    done = subprocess.run(call, **options)
    assert done.returncode == 0, (words, done.stderr)


def answer_all(label: Label, first: int = 0, last: int = 10_000, choose=lambda number: "left") -> int:
    """Answer questions without a browser; the number of the first without an answer."""
    last = min(last, json.loads(get(label.url, "question"))["total"])
    while first < last and post(label.url, GOOD | {"number": first, "answer": choose(first)}) == 200:
        first += 1
    return first


@needs_browser
def test_the_two_rounds_of_the_docs(tmp_path):
    """Its six commands, with kills of the labelling, which a person ends in Chromium; then both policies are judged."""
    (tmp_path / "data").mkdir()
    commands = documented("--between", "--labels-dir")
    assert len(commands) == 6
    for words in commands:
        if "tools.label" not in words:
            carry_out(words, tmp_path)
            continue
        label = Label(tmp_path / "data", tmp_path, *words[3:])
        try:
            assert answer_all(label, last=4) == 4
            label.stop(signal.SIGKILL)
            label = Label(tmp_path / "data", tmp_path, *words[3:])
            assert label.said[0] == "4 of 6 questions are answered\n"
            with closing(Person()) as person:
                person.open(label.url)
                person.answer("right")
                person.answer("equal", click=True)
                person.wait("state.done")
                assert "--use-replay" in person.script("$('command').innerText") and not person.console()
            label.stop(signal.SIGKILL)
        finally:
            label.process.kill()
    first, second = (tmp_path / f"labels/{name}/Dot-v0.jsonl" for name in ("round-1", "round-2"))
    assert [line["question"] for line in read_lines(first)[1:]] == list(range(6)) and len(read_lines(second)) == 7
    assert read_lines(second)[0]["draw"] == "between"
    task, total = suites.resolve(DOT), 0
    for path in (first, second):
        total += len(read_preferences(path.with_suffix(".npz"), task).label)
    made = json.loads((tmp_path / "runs/two/seed-1/config.json").read_text())
    assert total == 12 and made["args"]["preferences"] == ["labels/round-1/Dot-v0.npz", "labels/round-2/Dot-v0.npz"]
    for words in documented("--judge"):
        if "tools.label" not in words:
            carry_out(words, tmp_path)
            continue
        label = Label(tmp_path / "data", tmp_path, *words[3:])
        try:
            assert label.said[0] == "3 pairs, 3 of them of one start; the dataset has no more for --pairs 100\n"
            assert answer_all(label, choose=lambda _: "equal") == 3
            assert "runs/one/seed-1/final.pt and runs/two/seed-1/final.pt: 3 ties, and no other pair" in label.stop()
        finally:
            label.process.kill()


# ---------------------------------------------------------------- a judgement
@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A folder with data/both.hdf5: six episodes each of two policies, of the same starts."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "data").mkdir()
    record.main(record.RecordArgs(DOT, folder / "data/both.hdf5", (STILL, DICE), 6, workers=1))
    return folder


CALL = "--dataset data/both.hdf5 --judge --workers 1".split()


def preferring(folder: Path, labels: list[float]) -> list[str]:
    """The answers that give every pair its label: 1 where the second policy, DICE, is better."""
    path = folder / "data/both.hdf5"
    episodes = suites.SUITES["gym"].read_episodes(path, suites.resolve(DOT))
    pairs = draw_questions(episodes, len(labels), {"seed": 0, "steps": 0, "balance": False, "draw": "judge"})
    choices = []
    for question, label in zip(pairs.questions, labels, strict=True):
        dice = int(np.argmax([episodes[e].policy for e in pairs.segments[question.pair, :, 0]]))  # first or second
        right = (dice == 1) != question.swapped
        choices.append("equal" if label == 0.5 else "right" if right == (label == 1) else "left")
    return choices


def test_a_judgement_is_blind_until_its_end(both, tmp_path):
    """Without a browser: half of it, an end that tells nothing, the rest; then a second person, and both merged."""
    votes = [1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    choices = preferring(both, votes)
    result = f"{DICE} is preferred to {STILL} in 4 of 5 pairs (1 tie), 95 % interval 0.28 to 0.99; it is better with "
    result += "probability 0.890 (prior: Beta(1, 1))"
    assert sum(comb(6, k) for k in range(5)) / 2**6 == 0.890625
    label = Label(both / "data", tmp_path, *CALL, "--name", "anna", "--dataset", both / "data/both.hdf5")
    try:
        seen = get(label.url, "") + "".join(get(label.url, f"question/{n}") for n in range(7))
        assert answer_all(label, last=3, choose=choices.__getitem__) == 3
        seen += "".join(get(label.url, f"question/{n}") for n in range(7))
        said = label.stop()
        assert "the result is told when all questions are answered" in said and "is preferred" not in said
        label = Label(both / "data", tmp_path, *CALL, "--name", "anna", "--dataset", both / "data/both.hdf5")
        assert answer_all(label, 3, last=5, choose=choices.__getitem__) == 5
        seen += get(label.url, "question")
        for name in ("still", "dice", "odd_environments", "policy", "both.hdf5", "python", "preferred to"):
            assert name not in seen.replace("Content-Security-Policy", ""), name
        assert "A clip shows a whole episode." in seen and json.loads(get(label.url, "question"))["example"] == "none"
        assert answer_all(label, 5, choose=choices.__getitem__) == 6
        assert json.loads(get(label.url, "question"))["commands"] == [result]
        assert label.stop().splitlines()[-1] == result
    finally:
        label.process.kill()
    path, task = tmp_path / "labels/Dot-v0-judge-anna.jsonl", suites.resolve(DOT)
    found = read_arrays(path.with_suffix(".npz"))
    assert len(found["label"]) == 6 and found["obs_1"].shape == (6, 40, 2) and (found["label"] == 0.5).sum() == 1
    still = (found["action_2"] == 0).all((1, 2))  # the second of the pair
    assert [0.5 if x == 0.5 else x if not s else 1 - x for x, s in zip(found["label"], still, strict=True)] == votes
    project = read_lines(path)[0]
    assert project["dataset"] == fingerprint(both / "data/both.hdf5") and project["steps"] == 0
    others = dict.fromkeys(("ben", "eva"), preferring(both, [1.0, 0.0, 0.0, 1.0, 1.0, 0.5]))
    pairs = draw_questions(suites.SUITES["gym"].read_episodes(both / "data/both.hdf5", task), 6, project)
    for name, given in others.items():
        with open_answers(tmp_path / f"labels/Dot-v0-judge-{name}.jsonl", project) as answers:
            for question, choice in zip(pairs.questions, given, strict=True):
                answers.add(question, 0, choice, 1.0, 0.0)
    options = environment(both / "data", tmp_path)
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    call = [sys.executable, "-m", "tools.label", "--judge", "--merge", "--dataset", str(both / "data/both.hdf5")]
    done = subprocess.run(call, **options)
    assert done.returncode == 0, done.stderr
    assert "Dot-v0-judge-anna, Dot-v0-judge-ben: 6 pairs of both, equal 0.50, Cohen's kappa" in done.stdout
    assert "in 3 of 5 pairs (1 tie), 95 % interval 0.15 to 0.95" in done.stdout.splitlines()[-1]
    merged = read_preferences(tmp_path / "labels/Dot-v0-judge-merged.npz", task)
    assert (merged.label == 0.5).sum() == 1 and len(merged.label) == 6
    with pytest.raises(InputError, match=r"holds no answers for tests.dots:Dot-v0"):  # a judgement's are none of them
        label_main.main(label_main.LabelArgs(DOT, merge=True, labels_dir=tmp_path / "labels", data_dir=both / "data",
                                             dataset=(str(both / "data/both.hdf5"),)))  # fmt: skip


@needs_browser
def test_a_person_judges(both, tmp_path):
    """In Chromium: nothing is told until the end, and then the result, and no command that trains."""
    choices = preferring(both, [1.0] * 6)
    label, person = Label(both / "data", both, *CALL, "--frames", 4, "--labels-dir", tmp_path), Person()
    try:
        person.open(label.url)
        for choice in choices:
            assert "preferred" not in person.script("document.body.innerText")
            assert person.script("$('training').hidden && $('good').hidden && $('verdict').innerText === ''")
            person.answer(choice)
        person.wait("state.done")
        assert f"{DICE} is preferred to {STILL} in 6 of 6 pairs" in person.script("$('finished').innerText")
        assert "python" not in person.script("document.body.innerText") and not person.console()
    finally:
        person.driver.quit()
        label.process.kill()
