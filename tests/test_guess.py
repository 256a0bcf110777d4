"""tools.label.guess: guesses that come before their answers, what they count to, and pairs that are chosen."""

from __future__ import annotations

import json
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from common import suites
from common.arrays import fingerprint, read_arrays
from common.errors import InputError
from common.suites.base import Episode
from common.workers import Workers, available_cpus
from tests.test_label import DOT, GOOD, PROJECT, Label, get, post, read_lines, record
from tools.label import __main__ as label_main
from tools.label import guess
from tools.label.answers import Answers, merge, open_answers
from tools.label.clips import read_source
from tools.label.questions import POOL, Pairs, ask, draw_questions

TWO_CORES = {"SLURM_CPUS_PER_TASK": "2"}
needs_cores = pytest.mark.skipif(available_cpus() == 1, reason="needs two cores")
DRAW = PROJECT | {"draw": "episodes"}


@pytest.fixture
def workers(monkeypatch):
    """One, that does not let the other tests go first."""
    monkeypatch.setattr(guess, "predict_niced", guess.predict)
    with closing(Workers(1)) as one:
        yield one


def simple(count: int = 20) -> list[Episode]:
    """Of a reward that is the first observation."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(count, 60, 3)).astype(np.float32) + rng.normal(size=(count, 1, 3)).astype(np.float32)
    return [Episode(o, rng.uniform(-1, 1, (60, 2)).astype(np.float32), o[:, 0], {}) for o in obs]


def better(episodes: list[Episode], pairs: Pairs, pair: int) -> float:
    """The label by return."""
    first, second = (episodes[e].reward[t : t + pairs.steps].sum() for e, t in pairs.segments[pair])
    return float(second > first)


def label_by(answers: Answers, pairs: Pairs, workers: Workers, episodes: list[Episode], choose, pool=None) -> None:
    """Answer all questions, with a look ahead after every ten. `choose`: question, its label by return -> answer."""
    inputs = guess.Inputs(episodes)
    for q in pairs.questions:
        if q.number and q.number % guess.EVERY == 0:
            guess.look_ahead(answers, pairs, pool, inputs, workers)
        answers.add(q, 0, choose(q, better(episodes, pairs, q.pair)), 1.0, 0.0)


def truthful(q, label: float) -> str:
    return "right" if (label == 1) != q.swapped else "left"


def test_what_is_learnt_is_guessed_and_what_is_random_is_not(tmp_path, workers):
    """Counted by hand from the lines, in which a guess stands ahead of its answer, and knows nothing of it."""
    episodes, rng, firsts = simple(), np.random.default_rng(1), []
    people = {"sure": truthful,
              "unsure": lambda q, label: truthful(q, label) if q.number < 10 else ["left", "right"][rng.integers(2)],
              "often": lambda q, label: ["equal", "skip", truthful(q, label)][q.number % 3]}  # fmt: skip
    for name, choose in people.items():
        pairs = draw_questions(episodes, 40, DRAW)
        with open_answers(tmp_path / f"{name}.jsonl", DRAW) as answers:
            label_by(answers, pairs, workers, episodes, choose)
        guesses, right, line_of = {}, [], {q.number: q for q in pairs.questions}
        lines = read_lines(answers.path)[1:]
        assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
        for line in lines:
            if "guesses" in line:
                guesses |= line["guesses"]
            elif str(line["question"]) in guesses and line["answer"] in ("left", "right"):
                assert not line_of[line["question"]].again
                second = (line["answer"] == "right") != line["swapped"]
                right.append((guesses[str(line["question"])] > 0.5) == second)
        with open_answers(answers.path, DRAW) as again:
            assert again.guessed(pairs) == answers.guessed(pairs) == right
            assert len(right) == (30 if name != "often" else sum(q.number % 3 == 2 for q in pairs.questions[10:]
                                                                 if not q.again))  # fmt: skip
        share = np.mean(right)
        low, high = {"sure": (0.8, 1), "unsure": (0.25, 0.75), "often": (0.65, 1)}[name]
        assert low < share <= high, (name, share)
        firsts.append(next(line for line in lines if "guesses" in line)["guesses"])
    assert firsts[0] == firsts[1] != firsts[2] and list(firsts[0]) == [str(q.number) for q in pairs.questions[10:32]
                                                                       if not q.again]  # fmt: skip


def test_what_is_said_of_guesses():
    right = [True] * 33 + [False] * 17 + [True] * 8 + [False] * 2
    said = "guessed 8 of your last 10, 41 of 60 (95 % interval 0.56 to 0.79)"  # Wilson's
    assert guess.shown(right) == said and guess.shown([]) == "" and guess.summary([]) == []
    assert guess.summary(right)[0].startswith(f"{said}; of every ten: 10 10 10 3 0 8: stop where")
    assert guess.shown([True]).startswith("guessed 1 of your last 1, 1 of 1 (")


def test_files_with_guesses(tmp_path):
    """A damaged line is named; a guess that comes too late, is no number, or is of what is on the page, is left out."""
    path, questions = tmp_path / "a.jsonl", ask(30, 0)
    with open_answers(path, DRAW) as answers:
        answers.add(questions[0], 0, "left", 1.0, 0.0)
        whole = path.read_bytes()
        answers.add_guesses({0: 0.5, 1: 0.25, 2: 0.75, 3: float("nan")}, {1: 15, 2: 25})
        answers.add_guesses({0: 0.5}, {})
    assert read_lines(path)[2]["guesses"] == {"2": 0.75} and read_lines(path)[2]["chosen"] == {"2": 25}
    with open_answers(path, DRAW) as answers:
        assert answers.guesses == {2: 0.75} and answers.chosen == {2: 25} and len(read_lines(path)) == 3
    for wrong in ('{"guesses": {"1": 2}, "chosen": {}}', '{"guesses": [1], "chosen": {}}', '{"guesses": {"1": 0.5}}',
                  '{"guesses": {"x": 0.5}, "chosen": {}}', '{"guesses": {}, "chosen": {"1": 500}}'):  # fmt: skip
        path.write_bytes(whole + wrong.encode() + b"\n")
        with pytest.raises(InputError, match="line 3 is no answer"), open_answers(path, DRAW):
            pass


def test_pairs_are_chosen_by_disagreement(tmp_path, workers):
    """From the 21st on, ten of a hundred; what is on the page stays; the file brings all of it back."""
    episodes, project = simple(), DRAW | {"ask": "disagreement"}
    uniform, pairs = (draw_questions(episodes, 40, project) for _ in range(2))
    inputs = guess.Inputs(episodes)
    with open_answers(tmp_path / "a.jsonl", project) as answers:
        pool = guess.open_pool(answers, pairs, episodes)
        assert len(pool) == 400 and (pool[:40] == uniform.segments).all() and (pairs.segments == pool[:40]).all()
        for q in pairs.questions[:10]:
            answers.add(q, 0, truthful(q, better(episodes, pairs, q.pair)), 1.0, 0.0)
        guess.look_ahead(answers, pairs, pool, inputs, workers)
        labels = answers.labels(pairs)
        x, others = (inputs.segments(part, 25) for part in (pool[:10], pool[200:300]))
        p = guess.predict(x, np.array([labels[pair] for pair in range(10)]), others)
        want = 200 + np.argsort(-p.std(0), kind="stable")[:10]
        assert answers.drawn(pairs) == [*range(20), *want, *range(30, 40)]
        assert (pairs.segments[20:30] == pool[want]).all() and (pairs.segments[:20] == uniform.segments[:20]).all()
        number = next(q.number for q in pairs.questions if q.pair == 20)
        assert answers.guesses[number] == pytest.approx(p[:, want[0] - 200].mean(), abs=1e-3)
        label_by(answers, pairs, workers, episodes, truthful, pool)
        assert not set(answers.drawn(pairs)[30:]) & set(range(100)) and np.mean(answers.guessed(pairs)) > 0.7
    again = draw_questions(episodes, 40, project)
    with open_answers(answers.path, project) as answers:
        assert (guess.open_pool(answers, again, episodes) == pool).all() and (again.segments == pairs.segments).all()
    with pytest.raises(InputError, match="begun with ask 'disagreement', not None"), open_answers(answers.path, DRAW):
        pass


def test_a_merge_knows_what_each_was_shown(tmp_path):
    """Guesses change no label; a chosen pair is that of the larger draw, which the other labeller may not have seen."""
    record(tmp_path / "d.hdf5")
    project = {"env": DOT, "dataset": fingerprint(tmp_path / "d.hdf5"), "seed": 0, "balance": False,
               "draw": "episodes", "steps": 10, "ask": "disagreement"}  # fmt: skip
    args = label_main.LabelArgs(env=DOT, dataset=(str(tmp_path / "d.hdf5"),), labels_dir=tmp_path)
    for name, chosen in (("anna", {2: 25}), ("ben", {2: 29})):
        with open_answers(tmp_path / f"Dot-v0-{name}.jsonl", project) as answers:
            for q in ask(3, 0):
                if q.number == 1:
                    answers.add_guesses({1: 0.9, 2: 0.2}, chosen)
                answers.add(q, 0, "left", 1.0, 0.0)
    task = suites.resolve(DOT)
    path, count, _ = merge(args, task, Workers(1))
    found, pool = read_arrays(path), draw_questions(read_source([tmp_path / "d.hdf5"], task)[0], 30, project)
    assert count == 4 and found["pair"].tolist() == [0, 1, 25, 29]
    assert found["label"].tolist() == [float(q.swapped) for q in (*pool.questions[:3], pool.questions[2])]
    episodes = read_source([tmp_path / "d.hdf5"], task)[0]
    for i, pair in enumerate(found["pair"]):
        e, t = pool.segments[pair, 0]
        assert (found["obs_1"][i] == episodes[e].obs[t : t + 10]).all()


def test_what_fails_is_silent(tmp_path, capfd):
    """No episodes, so no fit; it ends by itself, and the answers stay."""
    pairs = Pairs(np.zeros((20, 2, 2), int), 25, ask(20, 0))
    with open_answers(tmp_path / "a.jsonl", DRAW) as answers:
        for q in pairs.questions[:10]:
            answers.add(q, 0, "left", 1.0, 0.0)
        guess.keep_guessing(answers, pairs, None, [], lambda: False)
    assert not answers.guesses and capfd.readouterr() == ("", "")


def answer_all(label: Label, numbers: range, choices: list[str]) -> dict:
    """Without a browser; what the page is told then."""
    for number in numbers:
        assert post(label.url, GOOD | {"number": number, "answer": choices[number]}) == 200
    return json.loads(get(label.url, "question"))


def wait_for_guesses(path: Path, number: int) -> None:
    """Until there is a line of the fit that guesses question `number` on."""
    end = time.monotonic() + 240
    while not any(str(number) == next(iter(line.get("guesses", {})), "") for line in read_lines(path)[1:]):
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_cores
@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.slow), ("--ask", "disagreement")],
                         ids=["uniform", "disagreement"])  # fmt: skip
def test_guesses_of_a_labeller_outlive_a_kill(tmp_path, more):
    """Nothing is shown before the answer; the killed command's guesses count, and the end says what they come to."""
    record(tmp_path / "d.hdf5")
    choices = list(np.random.default_rng(0).choice(["left", "right"], 33))
    arguments = ("--dataset", "d.hdf5", "--pairs", 30, "--workers", 1, "--frames", 2, *more)
    path, label = tmp_path / "labels/Dot-v0.jsonl", Label(tmp_path, tmp_path, *arguments, **TWO_CORES)
    try:
        assert answer_all(label, range(10), choices)["guessed"] == ""
        wait_for_guesses(path, 11)  # question 10 is asked again
        state = json.loads(get(label.url, "question"))
        assert state["guessed"] == "" and "guesses" not in state
        assert "guessed 1 of your last 1" in (said := answer_all(label, range(10, 12), choices)["guessed"]) or (
            "guessed 0 of your last 1" in said)  # fmt: skip
        label.stop(signal.SIGKILL)
        label = Label(tmp_path, tmp_path, *arguments, **TWO_CORES)
        assert label.said[0] == "12 of 33 questions are answered\n"
        assert json.loads(get(label.url, "question"))["guessed"] == said
        wait_for_guesses(path, 12)
        answer_all(label, range(12, 20), choices)
        wait_for_guesses(path, 20)
        answer_all(label, range(20, 33), choices)
        said = label.stop()
    finally:
        label.process.kill()
    lines = read_lines(path)[1:]
    assert [line["question"] for line in lines if "question" in line] == list(range(33))
    assert f"{sum(Answers(path, path.read_bytes()).guessed(Pairs(None, 10, ask(30, 0))))} of 20 (95 %" in said
    chosen = [pair for line in lines for pair in line.get("chosen", {}).values()]
    assert len(chosen) == (10 if more else 0) and all(POOL * 20 <= pair < POOL * 30 for pair in chosen)


@pytest.mark.parametrize("more", [("--no-guess",), ()], ids=["no-guess", "one core"])
def test_no_guesses(tmp_path, monkeypatch, more):
    record(tmp_path / "d.hdf5")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1" if not more else "2")
    arguments = ("--dataset", "d.hdf5", "--pairs", 30, "--workers", 1, "--frames", 2, *more)
    label = Label(tmp_path, tmp_path, *arguments, **TWO_CORES if more else {})
    try:
        answer_all(label, range(10), ["left"] * 10)
        time.sleep(5)
        assert answer_all(label, range(10, 14), ["left"] * 14)["guessed"] == ""
        assert "guessed" not in label.stop()
    finally:
        label.process.kill()
    assert not any("guesses" in line for line in read_lines(tmp_path / "labels/Dot-v0.jsonl"))
    args = label_main.LabelArgs(dataset=(str(tmp_path / "d.hdf5"),), ask="disagreement", guess=not more)
    with pytest.raises(InputError, match="--ask disagreement: needs answers one by one, guesses and a second core"):
        label_main.main(args)
