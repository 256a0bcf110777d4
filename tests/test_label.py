"""tools.label: a person in a real browser, kills at random moments, hostile requests, what the answers come to."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import h5py
import imageio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import suites
from common.arrays import fingerprint, read_arrays
from common.cli import default_data_dir
from common.data import read_preferences
from common.errors import InputError
from common.rollouts import count_frames, require_rendering, write_video
from common.suites.base import Episode
from common.suites.metaworld import ABOUT, BALLS, TASKS
from common.workers import Workers
from tests.conftest import REPOSITORY, command, environment
from tests.test_suites import episode as roll
from tests.test_suites import write_d4rl, write_robomimic
from tools.label import __main__ as label_main
from tools.label.__main__ import mark_of
from tools.label.answers import kappa, majority, open_answers, write_pairs
from tools.label.clips import Clips, check_videos, cut, make_clip, read_source, task_of
from tools.label.questions import Pairs, ask, draw_questions, example_of, segment_steps
from tools.label.server import Session, make_app, named, serve

TASK = suites.resolve("drawer-open-v2")
CHROME, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
KEYS = {"left": "\ue012", "right": "\ue014", "equal": "\ue015", "skip": " ", "back": "\ue003"}  # WebDriver's codes
needs_browser = pytest.mark.skipif(
    not (CHROME and DRIVER and importlib.util.find_spec("selenium")), reason="needs Debian's chromium, chromium-driver"
)


@pytest.fixture(scope="module")
def can_render():
    with closing(Workers(1)) as workers:
        try:
            require_rendering(workers, TASK)
        except InputError as error:
            pytest.skip(str(error))


def rendering(data_dir: Path, folder: Path) -> dict:
    """Options of a process that renders."""
    options = environment(data_dir, folder)
    return options | {"env": options["env"] | {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}}


SHORT = "--use-replay --total-steps 10000 --eval-every 1000 --actor-average 0.002"
"""of the command for a suite whose defaults are for many labels"""


# ---------------------------------------------------------------- a person
class Label:
    """The command, running; `stop(signal)` ends it. `variables`: of its environment."""

    def __init__(self, data_dir: Path, folder: Path, *arguments, **variables: str):
        options = rendering(data_dir, folder)
        call = [sys.executable, "-m", "tools.label", *map(str, arguments)]
        env = options["env"] | {"PYTHONPATH": str(REPOSITORY)} | variables
        self.process = subprocess.Popen(call, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("http"):
                self.url = line.strip()
                return
        raise AssertionError(f"it ended with {self.process.wait()}: {self.said}")

    def stop(self, signum: int = signal.SIGINT) -> str:
        self.process.send_signal(signum)
        return self.process.communicate(timeout=60)[0]


class Person:
    """A labeller at the page, in Chromium."""

    def __init__(self, width: int = 1366, height: int = 850):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROME
        for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"window-size={width},{height}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def close(self) -> None:
        self.driver.quit()

    def script(self, text: str, *arguments):
        return self.driver.execute_script(f"return {text}", *arguments)

    def wait(self, condition: str, seconds: float = 120):
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.script(condition):
            assert time.monotonic() < end, (condition, self.script("document.body.innerText"))
            time.sleep(0.02)

    def open(self, url: str) -> None:
        """The page; at its first question it shows a good one first."""
        self.driver.get(url)
        self.wait("state !== null")
        if self.script("$('example').open"):
            self.wait("$('video-example').readyState >= 4")
            self.driver.find_element("id", "close").send_keys("\ue007")
            self.wait("!$('example').open && $('video-example').paused")

    def number(self) -> int:
        return self.script("state.number")

    def answer(self, choice: str, click: bool = False) -> None:
        """By its key or its button; returns when the next question is there."""
        self.wait("playing")
        before = self.script("asked")
        if click:
            self.driver.find_element("id", choice).click()
        else:
            self.driver.find_element("tag name", "body").send_keys(KEYS[choice])
        self.wait(f"asked !== {before}")

    def picture(self, side: str) -> np.ndarray:
        """(64, 64, 3) the first frame of a video."""
        text = """(function (side) {
            const video = document.getElementById("video-" + side), canvas = document.createElement("canvas");
            canvas.width = canvas.height = 64;
            const paint = canvas.getContext("2d");
            paint.drawImage(video, 0, 0, 64, 64);
            return Array.from(paint.getImageData(0, 0, 64, 64).data);
        })(arguments[0])"""
        self.script("(videos.forEach(v => { v.pause(); v.currentTime = 0; }), 1)")
        self.wait("videos.every(v => !v.seeking)")
        return np.array(self.script(text, side)).reshape(64, 64, 4)[..., :3].astype(float)

    def console(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


def small(picture: np.ndarray) -> np.ndarray:
    """(480, 480, 3) -> (64, 64, 3)."""
    import cv2

    return cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(float)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


DOT = "tests.dots:Dot-v0"
LONG = "Not saved: the command does not answer. Start it again, and open the address that it prints. " * 3


@needs_browser
def test_a_person_labels_ten_pairs(data_dir, tmp_path, can_render):
    """By keys and clicks, one answer taken back, a reload, a kill; then the NPZ, and a run that trains on it."""
    arguments = ["--env", "drawer-open-v2", "--pairs", 10, "--frames", 4]
    dataset = next((data_dir / "metaworld").glob("*.hdf5"))
    episodes = suites.SUITES["metaworld"].read_episodes(dataset, TASK)
    pairs = draw_questions(episodes, 10, {"steps": 25, "seed": 0, "balance": False, "draw": "episodes"})
    answers = "left right equal skip left right right left equal right left".split()
    label, person = Label(data_dir, tmp_path, *arguments), Person()
    try:
        person.open(label.url)
        person.wait("playing")
        first, sim = pairs.questions[0], suites.make(TASK, render=True)
        for side, k in (("left", int(first.swapped)), ("right", int(not first.swapped))):
            episode, step = pairs.segments[0][k]
            next(suites.SUITES["metaworld"].replay(sim, episodes[episode], step))
            there, other = small(sim.render()), person.picture({"left": "right", "right": "left"}[side])
            own, elsewhere = (np.abs(picture - there).mean() for picture in (person.picture(side), other))
            assert own < min(2, elsewhere / 1.5), (own, elsewhere)  # compression alone makes them differ
        person.script("(start(), 1)")
        person.wait("videos.every(v => v.currentTime > 0.2)", 20)
        place = "videos.concat($('left')).map(v => JSON.stringify(v.getBoundingClientRect())).join()"
        before = person.script(place)
        for number, choice in enumerate(answers[:4]):
            assert person.number() == number
            person.answer(choice, click=number % 2 == 1)
        person.script("(answer('skip'), 1)")  # a second tap, before the next pair is seen
        assert person.number() == 4 and not person.script("busy")
        assert "3 labelled, 1 skipped, 0 asked twice" in person.script("$('status').textContent")
        person.script(f"($('message').textContent = '{LONG}', 1)")
        assert person.script(place) == before
        person.wait("playing && videos.every(v => v.ended)")  # a still, and then from the start
        person.wait("$('time').value === 1")
        person.wait("videos.every(v => !v.ended)")
        person.driver.find_element("tag name", "body").send_keys("g")
        person.wait("$('example').open && $('video-example').readyState >= 4")
        person.driver.find_element("tag name", "body").send_keys(KEYS["left"])
        assert person.number() == 4 and "green ball is the goal" in person.script("$('example').innerText")
        person.driver.find_element("id", "close").click()
        person.wait("!$('example').open && playing && $('video-example').paused")  # what closing sets off has run
        person.answer("back")
        assert person.number() == 3 and person.script("document.getElementById('skip').ariaPressed") == "true"
        answers[3] = "right"
        person.answer("right")
        person.script("(show({...state, guessed: 'guessed 8 of your last 10'}), 1)")
        assert "guessed 8 of your last 10" in person.script("$('status').textContent")
        person.driver.refresh()
        person.wait("state !== null")
        assert person.number() == 4
        person.answer(answers[4], click=True)
        errors, killed = person.console(), label.url
        label.stop(signal.SIGKILL)
        label = Label(data_dir, tmp_path, *arguments)
        assert label.said[0] == "5 of 11 questions are answered\n"
        person.open(label.url)
        for number, choice in enumerate(answers[5:], start=5):
            assert person.number() == number
            person.answer(choice)
        person.wait("state.done")
        shown = person.driver.find_element("id", "command").text
        assert shown.endswith(f"--preferences labels/drawer-open-v2.npz --preference-batch-size 5 {SHORT}")
        clone = person.driver.find_element("id", "clone").text
        assert clone.endswith(f"algorithms/bc.py --env drawer-open-v2 {SHORT}")
        errors += [line for line in person.console() if killed not in line]  # what its kill cut off
        assert not errors
        said = label.stop()
    finally:
        person.driver.quit()
        label.process.kill()
    assert "11 of 11 questions, 10 labelled pairs" in said and "self-agreement" in said
    lines = read_lines(tmp_path / "labels/drawer-open-v2.jsonl")[1:]
    assert [line["question"] for line in lines] == [0, 1, 2, 3, 3, *range(4, 11)]
    found = read_arrays(tmp_path / "labels/drawer-open-v2.npz")
    want = [{"equal": 0.5}.get(choice, float((choice == "right") != q.swapped))
            for q, choice in zip(pairs.questions, answers, strict=True) if not q.again]  # fmt: skip
    assert found["label"].tolist() == want
    for k in (0, 1):
        for i, (episode, step) in enumerate(pairs.segments[:, k]):
            assert (found[f"obs_{k + 1}"][i] == episodes[episode].obs[step : step + 25]).all()
    words = shlex.split(shown)[2:]
    words += "--total-steps 4 --eval-episodes 1 --hidden-sizes 8 --threads 1 --no-compile".split()
    done = subprocess.run(command("ipl_iql", *words), **environment(data_dir, tmp_path))
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- questions and answers
def made_up(lengths=(40, 10, 60)) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [Episode(rng.normal(size=(n, 39)).astype(np.float32), rng.uniform(-1, 1, (n, 4)).astype(np.float32),
                    np.arange(n, dtype=np.float32), {}) for n in lengths]  # fmt: skip


PROJECT = {"env": "drawer-open-v2", "dataset": "0", "seed": 3, "balance": False, "steps": 25}


def test_pairs_are_drawn_uniformly_and_stay_when_more_are_asked_for():
    few, many = (draw_questions(made_up(), n, PROJECT) for n in (20, 2000))
    assert (few.segments == many.segments[:20]).all() and few.questions == many.questions[: len(few.questions)]
    episode, first = many.segments.reshape(-1, 2).T
    assert set(episode) == {0, 2} and first[episode == 0].max() == 15 and first[episode == 2].max() == 35
    assert abs((episode == 0).mean() - 16 / 52) < 0.03
    balanced = draw_questions(made_up(), 2000, PROJECT | {"balance": True}).segments[..., 1]
    assert (balanced.max(1) >= 13).all() and abs((balanced[:, 0] > balanced[:, 1]).mean() - 0.5) < 0.05
    with pytest.raises(InputError, match="25 steps"):
        draw_questions(made_up((24, 3)), 4, PROJECT)


def test_projects_that_name_no_draw_keep_theirs(tmp_path):
    assert draw_questions(made_up(), 2, PROJECT).segments.tolist() == [[[0, 11], [2, 18]], [[2, 4], [0, 13]]]
    assert draw_questions(made_up(), 2, PROJECT | {"balance": True}).segments[1].tolist() == [[0, 13], [2, 30]]
    for path in (tmp_path / "old.jsonl", tmp_path / "new.jsonl"):
        with open_answers(path, PROJECT | {"seed": 9}):
            pass  # without an answer, the next project takes its place
        with open_answers(path, PROJECT | ({"draw": "same-start"} if path.stem == "new" else {})) as answers:
            answers.add(ask(1, 0)[0], 0, "left", 1.0, 0.0)
    with open_answers(tmp_path / "old.jsonl", PROJECT | {"draw": "episodes"}) as answers:
        assert answers.project == PROJECT
    with (pytest.raises(InputError, match=r"begun with draw 'same-start', not 'episodes'; give that .--same-start"),
          open_answers(tmp_path / "new.jsonl", PROJECT | {"draw": "episodes"})):  # fmt: skip
        pass


def test_episodes_are_drawn_first_and_segments_within():
    """However long an episode is; the two of a pair differ, and the first pairs stay."""
    episodes, project = made_up((40, 10, 60, 400)), PROJECT | {"draw": "episodes"}
    few, many = (draw_questions(episodes, n, project).segments for n in (20, 3000))
    assert (few == many[:20]).all() and (many[:, 0, 0] != many[:, 1, 0]).all()
    for side in (0, 1):
        assert np.abs(np.bincount(many[:, side, 0]) / 3000 - [1 / 3, 0, 1 / 3, 1 / 3]).max() < 0.03
    first = many[many[..., 0] == 3][:, 1]
    assert first.min() == 0 and first.max() == 375 and abs(first.mean() - 187.5) < 10
    assert (draw_questions(made_up((30,)), 9, project).segments[..., 0] == 0).all()  # one alone
    balanced = draw_questions(episodes, 2000, project | {"balance": True}).segments[..., 0]
    better = np.isin(balanced, (2, 3))  # of three by return
    assert better.any(1).all() and abs(better[:, 0].mean() - better[:, 1].mean()) < 0.05
    for episode in episodes:
        episode.reward = None
    with pytest.raises(InputError, match="--balance: the episodes have no rewards"):
        draw_questions(episodes, 2, project | {"balance": True})


def test_two_policies_from_one_start_are_paired_at_one_time():
    episodes, project = made_up((40, 30, 60, 25, 50, 20)), PROJECT | {"draw": "same-start"}
    with pytest.raises(InputError, match="--same-start: no two policies"):
        draw_questions(episodes, 2, project)
    for episode, (seed, policy) in zip(episodes, [(7, 0), (7, 1), (7, 1), (8, 0), (9, 1), (8, 1)], strict=True):
        episode.state, episode.policy = {"seed": seed}, policy
    drawn = draw_questions(episodes, 500, project).segments
    assert {frozenset(pair) for pair in drawn[..., 0].tolist()} == {frozenset((0, 1)), frozenset((0, 2))}
    assert (drawn[:, 0, 1] == drawn[:, 1, 1]).all() and {0, 5} <= set(drawn[:, 0, 1]) and drawn[..., 1].max() == 15
    assert 0.4 < (drawn[:, 0, 0] == 0).mean() < 0.6


def test_the_segment_and_the_example_suit_the_data():
    assert [segment_steps(made_up(n)) for n in ((100, 100, 400), (20,), (1000,))] == [25, 16, 50]
    episodes = made_up((40, 10, 60))
    assert example_of(episodes, -1) == 2 and example_of(episodes, 1) == 1  # of the largest return
    episodes[1].success = True
    assert example_of(episodes, -1) == 1
    for episode in episodes:
        episode.reward, episode.success = None, False
    assert example_of(episodes, -1) is None
    with pytest.raises(InputError, match="--example 3: the dataset has episodes 0 to 2"):
        example_of(episodes, 3)


def test_commands_that_train(tmp_path, monkeypatch):
    """Those of a built-in suite and of one's own data, as typed in the current folder."""
    monkeypatch.chdir(REPOSITORY)
    args = label_main.LabelArgs(env="drawer-open-v2", data_dir=default_data_dir())
    assert label_main.training_commands(args, TASK, Path("labels/x.npz"), 40, 25) == [
        f"python algorithms/ipl_iql.py --env drawer-open-v2 --preferences labels/x.npz {SHORT}",
        f"python algorithms/bc.py --env drawer-open-v2 {SHORT}"]  # fmt: skip
    args = label_main.LabelArgs(dataset=("data/my file.hdf5", "more.hdf5"), data_dir=default_data_dir())
    own = "--env tests.dots:Dot-v0 --dataset 'data/my file.hdf5' more.hdf5"
    pairs = " --preferences x.npz --preference-batch-size 3 --segment-length 10"
    for limit, said in ((0, ""), (30, " --max-episode-steps 30")):
        found = label_main.training_commands(args, suites.resolve(DOT, limit), Path("x.npz"), 6, 10)
        assert found == [f"python algorithms/ipl_iql.py {own}{said}{pairs} --use-replay",
                         f"python algorithms/bc.py {own}{said} --use-replay"]  # fmt: skip
    args.dataset = ("minari:my/data-v0",)
    found = label_main.training_commands(args, suites.resolve(DOT), Path("x.npz"), 16, 25)[0]
    assert found == "python algorithms/ipl_iql.py --dataset minari:my/data-v0 --preferences x.npz --use-replay"


def test_one_pair_in_ten_comes_again_with_its_sides_swapped():
    questions = ask(100, 0)
    again = [q for q in questions if q.again]
    assert len(again) == 10 and [q.number for q in questions] == list(range(110))
    for q in again:
        first = next(other for other in questions if other.pair == q.pair)
        assert first.swapped != q.swapped and 5 < q.number - first.number < 11
    assert 30 < sum(q.swapped for q in questions) < 80


def test_sides_are_put_right_and_answers_counted_once(tmp_path):
    pairs = Pairs(np.zeros((10, 2, 2), int), 25, ask(10, 0))
    with open_answers(tmp_path / "a.jsonl", PROJECT) as answers:
        for q in pairs.questions:
            assert answers.add(q, 0, "right", 1.0, 0.0) and not answers.add(q, 0, "left", 1.0, 0.0)
        assert answers.labels(pairs) == {q.pair: float(not q.swapped) for q in pairs.questions if not q.again}
        assert answers.agreement(pairs) == (0, 1)  # always "right": its own opposite
        assert answers.add(pairs.questions[-1], 1, "left", 1.0, 0.0) and answers.agreement(pairs) == (1, 1)
        assert answers.add(pairs.questions[0], 1, "skip", 1.0, 0.0) and len(answers.labels(pairs)) == 9
        with pytest.raises(InputError, match="open in another process"), open_answers(answers.path, PROJECT):
            pass
    with open_answers(tmp_path / "a.jsonl", PROJECT) as again:
        assert again.labels(pairs) == answers.labels(pairs) and again.times == answers.times
    with pytest.raises(InputError, match="begun with seed 3, not 4"), open_answers(answers.path, PROJECT | {"seed": 4}):
        pass


def test_a_cut_line_is_dropped_and_a_wrong_one_named(tmp_path):
    path, question = tmp_path / "a.jsonl", ask(10, 0)
    with open_answers(path, PROJECT) as answers:
        answers.add(question[0], 0, "left", 1.0, 0.0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"question": 1, "pai')
    with open_answers(path, PROJECT) as answers:
        assert list(answers.given) == [0]
        answers.add(question[1], 0, "left", 1.0, 0.0)
    assert [line["question"] for line in read_lines(path)[1:]] == [0, 1]
    path.write_bytes(path.read_bytes()[:-1])  # as an editor leaves it: whole, but without an end
    with open_answers(path, PROJECT) as answers:
        assert list(answers.given) == [0, 1]
        answers.add(question[2], 0, "left", 1.0, 0.0)
    assert [line["question"] for line in read_lines(path)[1:]] == [0, 1, 2]
    path.write_bytes(b"my notes")
    with pytest.raises(InputError, match="is no file of answers"), open_answers(path, PROJECT):
        pass
    assert path.read_bytes() == b"my notes"
    path.write_bytes(whole)
    long = json.dumps(read_lines(path)[1] | {"seconds": 10**400}).encode()
    steps = json.dumps(PROJECT | {"steps": "x"}).encode()
    for content, line in ((whole + b'{"question": 1}', 3), (whole + long, 3), (steps, 1), (b'{"env": "x"}', 1)):
        path.write_bytes(content + b"\n")
        with pytest.raises(InputError, match=f"line {line} is no answer"), open_answers(path, PROJECT):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_nothing(tmp_path):
    """The file-size limit of the process stands for the disk's end: the line does not fit whole."""
    code = f"""
import resource, signal, sys
from tools.label.answers import open_answers
from tools.label.questions import ask
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
with open_answers(Path("a.jsonl"), {PROJECT!r}) as answers:
    questions = ask(10, 0)
    answers.add(questions[0], 0, "left", 1.0, 0.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (answers.end + 20, -1))
    try:
        answers.add(questions[1], 0, "right", 1.0, 0.0)
    except OSError as error:
        print(error.strerror, answers.times[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert answers.add(questions[1], 0, "equal", 1.0, 0.0)
"""
    options = environment(tmp_path, tmp_path)
    options["env"] = options["env"] | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout == "File too large 0\n", done.stderr
    assert [line["answer"] for line in read_lines(tmp_path / "a.jsonl")[1:]] == ["left", "equal"]


def test_kappa_and_majority():
    """The example of Cohen's kappa: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no give 0.4."""
    rows = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
    a, b = (dict(enumerate(column)) for column in zip(*rows, strict=True))
    assert kappa(a, b) == (50, 0.7, pytest.approx(0.4))
    votes = [1.0], [0.0, 0.0, 1.0], [0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.5], [1.0, 1.0, 1.0, 0.0]
    assert [majority(v) for v in votes] == [1.0, 0.0, 0.5, 0.5, 0.5, 1.0]


def test_labellers_are_merged(data_dir, tmp_path):
    dataset = next((data_dir / "metaworld").glob("*.hdf5"))
    from common.arrays import fingerprint

    project = PROJECT | {"dataset": fingerprint(dataset)}
    votes = {"anna": "left left equal", "ben": "left right skip", "eva": "right left left"}
    questions = ask(3, project["seed"])
    for name, choices in votes.items():
        with open_answers(tmp_path / f"labels/drawer-open-v2-{name}.jsonl", project) as answers:
            for question, choice in zip(questions, choices.split(), strict=True):
                answers.add(question, 0, choice, 1.0, 0.0)
    options = environment(data_dir, tmp_path)
    options["env"] = options["env"] | {"PYTHONPATH": str(REPOSITORY)}
    call = [sys.executable, "-m", "tools.label", "--merge", "--env", "drawer-open-v2"]
    done = subprocess.run(call, **options)
    assert done.returncode == 0 and done.stdout.count("Cohen's kappa") == 3, done.stderr
    left = [float(q.swapped) for q in questions]  # the label of "left"
    path = tmp_path / "labels/drawer-open-v2-merged.npz"
    assert read_preferences(path, TASK).label.tolist() == [left[0], left[1], 0.5]
    done = subprocess.run([*call, "--keep-all"], **options)
    assert done.returncode == 0 and len(read_preferences(path, TASK).label) == 8
    path.unlink()
    for name in ("anna", "eva"):
        (tmp_path / f"labels/drawer-open-v2-{name}.jsonl").unlink()
    ben = tmp_path / "labels/drawer-open-v2-ben.jsonl"
    ben.write_text(ben.read_text().replace('"left"', '"skip"').replace('"right"', '"skip"'))
    done = subprocess.run(call, **options)  # no pair has a label: no file, and no command that reads one
    assert done.returncode == 0 and "algorithms/" not in done.stdout and not path.exists(), done.stderr


# ---------------------------------------------------------------- who gets in
@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Ten made-up pairs without videos: the session, its application, the answers."""
    folder, episodes = tmp_path_factory.mktemp("app"), made_up()
    pairs = draw_questions(episodes, 10, PROJECT)
    with open_answers(folder / "a.jsonl", PROJECT) as answers:

        def save() -> list[str]:
            return [f"train {write_pairs(folder / 'a.npz', episodes, pairs, answers.labels(pairs).items(), TASK)}"]

        session = Session(answers, pairs, Clips(TASK, episodes, pairs, folder, 2, Workers(1)), save)
        yield session, make_app("token", ["127.0.0.1:80"], {"QUESTION": "Which <b>?"}, session), answers


GOOD = {"number": 0, "times": 0, "answer": "left", "seconds": 1.5, "waited": 0}
text = st.text(max_size=20)
# no hostile request is a right answer by chance: `times` is never 0
junk = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text, lambda x: st.lists(x, max_size=3))
fields = {key: junk | st.just(value) for key, value in GOOD.items()} | {"times": text | st.just(7)}
near = st.fixed_dictionaries({}, optional=fields)
bodies = st.binary(max_size=2000) | (near | junk).map(lambda x: json.dumps(x).encode())
paths = st.sampled_from(["/token/", "/token/answer", "/token/question", "/token/video/0/left", "/", "/Token/answer",
                         "/token/video/../../a.jsonl", "/token/video/0/..%2f..%2fa.jsonl", "/token/question/99999",
                         "/token//etc/passwd", "//evil/token/"]) | text.map(lambda x: f"/token/{x}")  # fmt: skip


@pytest.fixture(scope="module")
def port(app):
    """A real server of the same session."""
    with serve("127.0.0.1", 0, "token", {}, app[0]) as number:
        yield number


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "X"]),
    path=paths,
    body=bodies,
    host=st.sampled_from(["127.0.0.1:PORT", "evil.example", ""]),
    origin=st.sampled_from([None, "http://127.0.0.1:PORT", "http://evil.example", "null"]),
    kind=st.sampled_from(["application/json", "text/plain", ""]),
    length=st.sampled_from([None, 0, 10**12, -1, "x"]),
)
def test_hostile_requests_change_nothing(app, port, capfd, method, path, body, host, origin, kind, length):
    answers = app[2]
    before = answers.path.read_bytes()
    host, origin = host.replace("PORT", str(port)), origin and origin.replace("PORT", str(port))
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}",
             f"Content-Length: {len(body) if length is None else length}"]  # fmt: skip
    head = "\r\n".join(lines + ([f"Origin: {origin}"] if origin else []))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        try:
            peer.sendall(head.encode(errors="replace") + b"\r\n\r\n" + body)
            peer.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda: peer.recv(65536), b""))
        except ConnectionError:  # it hangs up on what it will not read
            reply = b""
    assert b"Traceback" not in reply and "Traceback" not in capfd.readouterr().err
    assert answers.path.read_bytes() == before
    status = re.match(rb"HTTP/1.\d (\d+)", reply)
    assert not status or int(status[1]) < 500 or (status[1] == b"501" and method == "X")
    if host != f"127.0.0.1:{port}" or origin not in (None, f"http://127.0.0.1:{port}"):
        assert not status or int(status[1]) >= 400 or int(status[1]) == 308


def test_who_gets_in(app):
    _, app, answers = app
    client, headers = app.test_client(), {"Host": "127.0.0.1:80"}
    page = client.get("/token/", headers=headers)
    assert page.status_code == 200 and not re.search(rb"(src|href)=.?https?:|@import|url\(", page.data)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert client.get("/wrong/", headers=headers).status_code == 403
    assert client.get("/token/", headers={"Host": "evil.example"}).status_code == 403
    assert client.post("/token/answer", json=GOOD, headers=headers | {"Origin": "null"}).status_code == 403
    assert client.post("/token/answer", data=b"x" * 1001, headers=headers).status_code in (413, 415)
    big = json.dumps(GOOD | {"answer": "x" * 1000})
    assert client.post("/token/answer", data=big, content_type="application/json", headers=headers).status_code == 413
    assert not answers.given
    assert client.post("/token/answer", json=GOOD, headers=headers).status_code == 200
    assert client.post("/token/answer", json=GOOD, headers=headers).status_code == 409  # a second tab, or a retry
    assert len(answers.given) == 1 and sum(answers.times.values()) == 1


# ---------------------------------------------------------------- replays
def test_a_replay_that_differs_is_refused(data_dir, tmp_path, can_render, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    dataset = next((data_dir / "metaworld").glob("*.hdf5"))
    episode = suites.SUITES["metaworld"].read_episodes(dataset, TASK)[0]
    episode.action[3] = -episode.action[3]
    with closing(Workers(1)) as workers:
        (why,) = workers.run(make_clip, [(TASK, episode, 0, 25, 2, tmp_path / "a.webm")])
    assert why.startswith("the replay of an episode differs from its recording") and not (tmp_path / "a.webm").exists()


def test_metaworld_is_replayed_exactly(data_dir):
    suite, dataset = suites.SUITES["metaworld"], next((data_dir / "metaworld").glob("*.hdf5"))
    sim = suites.make(TASK)
    for episode in suite.read_episodes(dataset, TASK):
        replayed = np.stack(list(suite.replay(sim, episode, 10)))
        assert (replayed.astype(np.float32) == episode.obs[10:]).all()


@pytest.mark.parametrize(
    "env", ["hopper-medium-expert-v2", "walker2d-medium-replay-v2", "halfcheetah-medium-expert-v2"]
)
def test_d4rl_is_replayed_from_its_observations(env):
    task, suite = suites.resolve(env), suites.SUITES["d4rl"]
    sim, rng = suites.make(task), np.random.default_rng(0)
    obs, x = [sim.reset(seed=0)[0]], [sim.unwrapped.data.qpos[0]]
    for _ in range(15):
        obs.append(sim.step(rng.uniform(-1, 1, task.act_dim))[0])
        x.append(sim.unwrapped.data.qpos[0])
    episode, moved = Episode(np.array(obs, np.float32), np.zeros((16, task.act_dim)), np.zeros(16), {}), []
    for t, again in enumerate(suite.replay(sim, episode, 0)):
        assert np.abs(again - obs[t]).max() < 1e-5
        moved.append(sim.unwrapped.data.qpos[0])
    assert np.abs(np.array(moved) - (np.array(x) - x[0])).max() < 0.1  # metres: the sum of the speeds


def test_robomimic_is_replayed_from_its_states():
    """Observations as robomimic makes them: those of the recorded states, one by one."""
    task, suite = suites.resolve("lift-ph"), suites.SUITES["robomimic"]
    sim, rng = suites.make(task), np.random.default_rng(0)
    sim.reset(seed=3)
    inner = sim.unwrapped.sim
    model, states = inner.sim.model.get_xml(), []
    for _ in range(12):
        states.append(inner.sim.get_state().flatten())
        sim.step(rng.uniform(-1, 1, 7))
    episode = Episode(np.zeros((12, 49), np.float32), np.zeros((12, 7)), np.zeros(12),
                      {"states": np.array(states), "model_file": model})  # fmt: skip
    recorded = np.stack(list(suite.replay(sim, episode, 0)))
    other = suites.make(task)
    assert np.abs(np.stack(list(suite.replay(other, episode, 4))) - recorded[4:]).max() < 1e-9
    assert np.abs(np.diff(recorded[:, :3], axis=0)).max() < 0.05 and np.ptp(recorded[:, -10:]) > 0


def test_episodes_are_read_from_files(tmp_path):
    """With their ends, and with what robomimic keeps beside the steps."""
    parts = [roll("lift-ph", seed, 4 + seed) for seed in range(2)]
    write_robomimic(tmp_path / "lift.hdf5", parts)
    with h5py.File(tmp_path / "lift.hdf5", "r+") as file:
        for name, demo in file["data"].items():
            demo.attrs["model_file"] = f"<{name}/>"
    found = suites.SUITES["robomimic"].read_episodes(tmp_path / "lift.hdf5", suites.resolve("lift-ph"))
    assert [(len(e.reward), e.state["states"].shape, e.state["model_file"]) for e in found] == [
        (4, (4, 32), "<demo_0/>"), (5, (5, 32), "<demo_1/>")]  # fmt: skip
    assert all((e.obs == p["obs"].astype(np.float32)).all() for e, p in zip(found, parts, strict=True))
    parts = [roll("hopper-medium-expert-v2", seed, 1000) for seed in range(3)]
    write_d4rl(tmp_path / "hopper.hdf5", parts)
    found = suites.SUITES["d4rl"].read_episodes(tmp_path / "hopper.hdf5", suites.resolve("hopper-medium-expert-v2"))
    assert [len(e.reward) for e in found] == [len(p["reward"]) for p in parts]
    assert all((e.obs == p["obs"].astype(np.float32)).all() for e, p in zip(found, parts, strict=True))


# ---------------------------------------------------------------- data of one's own
def record(path: Path, env: str = "Dot", length: int = 40, **more) -> list[list[np.ndarray]]:
    """Four episodes in the documented layout, of which the third comes to the middle; the pictures of each."""
    sim, rng, rows, pictures = suites.make(suites.resolve(f"tests.dots:{env}-v0")), np.random.default_rng(0), [], []
    for seed in range(4):
        obs, frames = sim.reset(seed=seed)[0], []
        for t in range(length + 1):
            action = -5 * obs if seed == 2 else rng.uniform(-1, 1, 2)
            action = (action * (t < length)).clip(-0.9, 0.9).astype(np.float32)
            frames.append(sim.unwrapped.render())
            rows.append((obs, action, -np.linalg.norm(obs), np.linalg.norm(obs) < 0.1))
            obs = sim.step(action)[0]
        pictures.append(frames)
    with h5py.File(path, "w") as file:
        for name, column in zip(("obs", "action", "reward", "success"), zip(*rows, strict=True), strict=True):
            file[name] = np.array(column, np.float32)
        file["episodes/row"], file["episodes/length"] = np.arange(4) * (length + 1), [length] * 4
        file.attrs["protocol"] = json.dumps({"env": f"tests.dots:{env}-v0"} | more)
        file["episodes/seed"] = np.arange(4)
    return pictures


def film(path: Path, pictures: list[list[np.ndarray]], kind: str = "webm") -> Path:
    for number, frames in enumerate(pictures):
        write_video(path.with_name(f"{path.name}.videos") / f"episode-{number}.{kind}", frames, 20)
    return path.with_name(f"{path.name}.videos")


def said_by(tmp_path: Path, **flags) -> str:
    """The one line that the command ends with."""
    flags = {"dataset": (str(tmp_path / "d.hdf5"),), "workers": 1} | flags
    with pytest.raises(InputError) as error:
        label_main.main(label_main.LabelArgs(labels_dir=tmp_path / "l", data_dir=tmp_path, **flags))
    assert "\n" not in str(error.value)
    return str(error.value)


def label_all(label: Label, answer: str = "left") -> list[str]:
    """Answer all questions without a browser; the last lines of the command: the two that train."""
    number = 0
    while post(label.url, GOOD | {"number": number, "answer": answer}) == 200:
        number += 1
    return label.stop().splitlines()[-2:]


def test_own_data_are_replayed_from_their_seeds_and_trained_on(tmp_path):
    """No --env: the file says it. The printed commands train, and know the steps that suit 40 of an episode."""
    record(tmp_path / "d.hdf5")
    label = Label(tmp_path, tmp_path, "--dataset", "d.hdf5", "--pairs", 10, "--workers", 1)
    try:
        page = get(label.url, "")
        assert "Which one is better?" in page and "16 steps, 0.8 s of simulated time." in page
        end = time.monotonic() + 60
        while json.loads(get(label.url, "question"))["example"] != "ready":
            assert time.monotonic() < end
            time.sleep(0.1)
        assert list(tmp_path.glob("videos/Dot-v0_*/episode-2_first-0_steps-40_frames-40.webm"))  # it has the success
        commands = label_all(label)
    finally:
        label.process.kill()
    for line in commands:
        words = shlex.split(line)
        assert words[2:4] == ["--env", DOT] and words[-1] == "--use-replay"
        words = [*words[2:], *"--total-steps 4 --eval-episodes 1 --hidden-sizes 8 --threads 1 --no-compile".split()]
        options = environment(tmp_path, tmp_path)
        options["env"] = options["env"] | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command(Path(shlex.split(line)[1]).stem, *words), **options)
        assert done.returncode == 0, done.stderr
    assert len(read_preferences(tmp_path / "labels/Dot-v0.npz", suites.resolve(DOT)).label) == 10


@pytest.mark.parametrize("kind", ["webm", "mp4"])
def test_clips_are_cut_from_videos_frame_by_frame(tmp_path, kind):
    """The seeds of the file do not replay, and need not."""
    pictures, path = record(tmp_path / "d.hdf5", "Unseeded"), tmp_path / "d.hdf5"
    film(path, pictures, kind)
    task = task_of("", (str(path),))
    episodes, videos = read_source([path], task)
    with closing(Workers(1)) as workers:
        check_videos(videos, episodes, [0, 1, 2, 3], workers)
    cuts = list(cut(videos[1], {7, 8, 20}))
    assert all(np.abs(a.astype(int) - pictures[1][t]).mean() < 6 for a, t in zip(cuts, (7, 8, 20), strict=True))
    assert make_clip(task, episodes[1], 7, 10, 4, tmp_path / "clip.webm", videos[1]) == ""
    assert count_frames(tmp_path / "clip.webm") == 4
    odd = np.full((5, 33, 35, 3), 200, np.uint8)
    write_video(tmp_path / "odd.webm", list(odd))  # a pixel more, not scaled
    assert [frame.shape for frame in imageio.get_reader(tmp_path / "odd.webm")] == [(34, 36, 3)] * 5


def test_a_teacher_answers_the_questions_of_two_files(tmp_path, capsys):
    """Policies of two files are different ones; the label names the larger return of the drawn segments."""
    files = tuple(str(tmp_path / f"{name}.hdf5") for name in "ab")
    for file in files:
        record(Path(file))
    args = label_main.LabelArgs(dataset=files, pairs=30, teacher=("perfect",), labels_dir=tmp_path, workers=1)
    label_main.main(args)
    task, paths = suites.resolve(DOT), list(map(Path, files))
    assert f" --dataset {files[0]} {files[1]} --preferences {tmp_path}/Dot-v0.npz " in capsys.readouterr().out
    episodes, _ = read_source(paths, task)
    assert [e.policy for e in episodes] == [0] * 4 + [1] * 4
    project = {"seed": 0, "steps": 16, "balance": False, "draw": "episodes"}
    segments = draw_questions(episodes, 30, project).segments
    assert {e // 4 for e in segments[..., 0].flat} == {0, 1}
    returns = np.array([[episodes[e].reward[t : t + 16].astype(float).sum() for e, t in pair] for pair in segments])
    found = read_arrays(tmp_path / "Dot-v0.npz")
    assert found["label"].tolist() == (0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0])).tolist()
    (tmp_path / "Dot-v0.jsonl").write_text("{}\n")  # a person's answers
    with pytest.raises(InputError, match=r"Dot-v0\.npz: holds the labels of .*Dot-v0\.jsonl, which --teacher would"):
        label_main.main(args)
    assert read_arrays(tmp_path / "Dot-v0.npz")["label"].tolist() == found["label"].tolist()
    film(paths[0], [[np.zeros((32, 32, 3), np.uint8)] * 40] * 4)
    with pytest.raises(InputError, match=r"b\.hdf5: has no videos beside it, unlike .*a\.hdf5; bring them for all"):
        read_source(paths, task)


def test_a_robot_that_nobody_simulates_is_labelled_from_its_videos(tmp_path):
    path = tmp_path / "d.hdf5"
    pictures = record(path)
    with h5py.File(path, "r+") as file:
        file.attrs["protocol"] = json.dumps({"env": "our-robot"})
        del file["episodes/seed"]
    film(path, pictures)
    label = Label(tmp_path, tmp_path, "--dataset", "d.hdf5", "--pairs", 4, "--workers", 1)
    try:
        assert "A clip shows 16 steps." in get(label.url, "")
        assert " --env our-robot --dataset d.hdf5 --preferences labels/our-robot.npz " in label_all(label)[0]
    finally:
        label.process.kill()


def test_a_pair_that_cannot_be_shown_is_left_out_by_the_person(tmp_path):
    """Once others could be shown, the command starts, and says which pair and why."""
    path = tmp_path / "d.hdf5"
    record(path)
    arguments = ("--dataset", "d.hdf5", "--pairs", 4, "--workers", 1, "--frames", 2)
    label = Label(tmp_path, tmp_path, *arguments)
    try:
        assert post(label.url, GOOD | {"number": 0, "answer": "left"}) == 200
    finally:
        label.stop()
    with h5py.File(path, "r+") as file:
        file["obs"][:] += 1
    lines = (tmp_path / "labels/Dot-v0.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"dataset": fingerprint(path)}
    (tmp_path / "labels/Dot-v0.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    label = Label(tmp_path, tmp_path, *arguments)
    try:
        state = json.loads(get(label.url, "question"))
        assert state["number"] == 1 and "the replay of an episode differs" in state["error"]
    finally:
        label.stop()


def test_clips_are_those_of_the_environment_as_it_is(tmp_path, monkeypatch):
    module = tmp_path / "drawn.py"
    module.write_text("import gymnasium\nfrom tests.dots import Dot\n\n\nclass Mine(Dot):\n    pass\n\n\n"
                      "gymnasium.register('Mine-v0', 'drawn:Mine', max_episode_steps=9)\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    task = suites.resolve("drawn:Mine-v0")
    first = mark_of([], task)
    module.write_text(module.read_text() + "# another camera\n")
    assert first and mark_of([], task) not in ("", first) and mark_of([], TASK) == ""


def test_a_host_is_written_as_browsers_do():
    assert [named(host) for host in ("127.0.0.1", "DESKTOP-AB12", "::1")] == ["127.0.0.1", "desktop-ab12", "[::1]"]


def test_the_environments_own_dataset_has_its_name_in_any_order(tmp_path):
    record(tmp_path / "d.hdf5")
    for names in ((DOT, str(tmp_path / "d.hdf5")), (str(tmp_path / "d.hdf5"), DOT)):
        assert task_of(DOT, names).env == DOT
    assert task_of("drawer-open", ("drawer-open-v2",)) == TASK


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path):
    path = tmp_path / "d.hdf5"
    pictures = record(path, "Unseeded")
    said = said_by(tmp_path)
    assert "the replay of an episode differs from its recording" in said and "--video of tools.record" in said
    assert "was built for tests.dots:Unseeded-v0, not for tests.dots:Dot-v0" in said_by(
        tmp_path, env="tests.dots:Dot-v0"
    )
    with h5py.File(path, "r+") as file:  # a file that does not say whose it is
        del file.attrs["protocol"]
    assert "d.hdf5 does not say which environment it is of" in said_by(tmp_path)
    assert "is it a file of this environment?" in said_by(tmp_path, env="Pendulum-v1")
    assert "the replay of an episode differs" in said_by(tmp_path, env=DOT)
    with h5py.File(path, "r+") as file:
        del file["episodes/seed"]
    assert "has no 'episodes/seed' to replay" in (said := said_by(tmp_path, env=DOT)) and "--video" in said
    record(path, "Blind")
    assert "cannot render" in (said := said_by(tmp_path)) and 'render_mode="rgb_array"' in said
    folder = film(path, pictures)
    (folder / "episode-3.webm").rename(folder / "episode-5.webm")
    assert "has no video of episode 3, the dataset has episodes 0 to 3" in said_by(tmp_path)
    write_video(folder / "episode-3.webm", pictures[3])
    assert "has a video of episode 5, the dataset has episodes 0 to 3" in said_by(tmp_path)
    (folder / "episode-5.webm").unlink()
    write_video(folder / "episode-3.webm", pictures[3][:30])
    assert "episode-3.webm: has 30 frames, and its episode 40 steps" in said_by(tmp_path)
    (folder / "episode-3.webm").write_bytes(b"no video")
    assert "episode-3.webm: cannot be read" in said_by(tmp_path)


def test_what_a_person_is_told_of_metaworld_is_so():
    """A sentence of each task; the colour of the ball, and the time of a step, are the simulator's."""
    assert ABOUT.keys() == set(TASKS) and {name for names in BALLS.values() for name in names.split()} <= set(TASKS)
    for name, colour in (("drawer-open", "green"), ("reach", "red"), ("sweep-into", "blue")):
        task = suites.resolve(f"{name}-v2")
        sim = suites.make(task)
        sim.reset(seed=0)
        shown = sim.sim.model.site("goal").rgba[:3]
        assert ["red", "green", "blue"][shown.argmax()] == colour and sim.dt == 0.0125
        assert suites.SUITES["metaworld"].about(task) == f"{ABOUT[name]} The {colour} ball is the goal."
    assert suites.SUITES["metaworld"].about(suites.resolve("button-press-v2")) == "Press the button."


# ---------------------------------------------------------------- kills
def get(url: str, what: str) -> str:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    connection.request("GET", f"{place.path}{what}")
    return connection.getresponse().read().decode()


def post(url: str, body: dict) -> int:
    """The status of an answer; 0: no reply."""
    place = urlsplit(url)
    try:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
        connection.request("POST", f"{place.path}answer", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (TimeoutError, OSError, http.client.HTTPException):
        return 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_moments_lose_nothing(data_dir, tmp_path, can_render):
    """50 times: answers one after the other until SIGKILL falls. What was acknowledged is there, and nothing twice."""
    rng, saved, total = np.random.default_rng(0), 0, 0
    path = tmp_path / "labels/drawer-open-v2.jsonl"
    for _ in range(50):
        label = Label(data_dir, tmp_path, "--pairs", 20_000, "--workers", 1, "--frames", 2)
        assert int(label.said[0].split()[0]) >= saved
        saved = total = int(label.said[0].split()[0])
        end = time.monotonic() + rng.uniform(0.05, 1.0)
        killer = subprocess.Popen(["sh", "-c", f"sleep {end - time.monotonic():.3f}; kill -9 {label.process.pid}"])
        while post(label.url, GOOD | {"number": total, "answer": "equal"}) == 200:
            total += 1
        killer.wait()
        label.process.wait()
        lines = path.read_bytes().split(b"\n")[1:-1]
        numbers = [json.loads(line)["question"] for line in lines]
        assert numbers == list(range(len(numbers))) and len(numbers) - total in (0, 1)
        saved = len(numbers)
    assert saved > 100
