"""Any Gymnasium environment: sizes, rescaled actions, flat observations, limits; and what cannot be trained on."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import resource
import subprocess
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from algorithms import ipl_iql
from common import seed_folder, suites
from common.cli import default_args, parse_args
from common.data import load_buffers
from common.errors import InputError
from common.rollouts import rollout
from common.workers import Workers
from tests import odd_environments as odd
from tests.conftest import REPOSITORY, command, environment

MODULE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Env(gymnasium.Env):
    '''Moves a point by its action; succeeds beyond 1.'''

    def __init__(self, observation_space=Box(-9, 9, (2, 2)), action_space=Box(np.array([-2, 0]), np.array([2, 4]))):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=(2, 2)).astype(np.float32)
        return self.x, {}

    def step(self, action):
        assert self.action_space.contains(np.float32(action)), action
        self.last, self.x = action, self.x + 0.1
        return self.x, float(action.sum()), False, False, {"is_success": bool(self.x.max() > 1)}


for name, spaces in {
    "Good": {}, "Endless": {}, "Discrete": {"action_space": Discrete(3)},
    "Unbounded": {"action_space": Box(-np.inf, np.inf, (2,))}, "Matrix": {"action_space": Box(-1, 1, (2, 2))},
    "Image": {"observation_space": Box(0, 255, (64, 64, 3), np.uint8)},
    "Words": {"observation_space": Dict({"a": gymnasium.spaces.Text(5)})},
}.items():
    gymnasium.register(f"{name}-v0", Env, max_episode_steps=None if name == "Endless" else 7, kwargs=spaces)
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module in the current folder that registers environments."""
    name = f"points_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    return name


def write_pairs(path: Path, obs_dim: int, act_dim: int, pairs: int = 30, length: int = 8, scale: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    sides = {f"obs_{k}": rng.normal(size=(pairs, length, obs_dim)) for k in (1, 2)}
    sides |= {f"action_{k}": rng.uniform(-scale, scale, (pairs, length, act_dim)) for k in (1, 2)}
    np.savez(path, label=rng.choice([0.0, 0.5, 1.0], pairs), **sides)
    return path


def test_actions_are_rescaled_and_observations_flat(module):
    task = suites.resolve(f"{module}:Good-v0")
    assert (task.suite, task.obs_dim, task.act_dim) == ("gym", 4, 2)
    sim = suites.make(task)
    assert sim.reset(seed=1)[0].shape == (4,) and sim.action_space == gymnasium.spaces.Box(-1, 1, (2,))
    sim.step(np.array([-1.0, 0.5], np.float32))
    assert sim.unwrapped.last.tolist() == [-2.0, 3.0]
    row = rollout(task, lambda obs: np.ones(2, np.float32), 3)
    assert row == {"return": 7 * 6.0, "success": 1.0, "score": None, "length": 7, "fault": ""}


@pytest.mark.parametrize("bounds", [(5, 30), (-0.5, 0.7), (0.1, 1), (-0.3, 0.6), (15, 21.5)])
def test_a_rescaled_action_is_one_of_the_environments(bounds):
    space = gymnasium.spaces.Box(*np.float32(bounds), (4,))
    sim, taken = Plain(), []
    sim.action_space, sim.observation_space = space, gymnasium.spaces.Box(-9, 9, (2,))
    sim.step = lambda action: taken.append(action) or (np.zeros(2, np.float32), 0.0, False, False, {})
    wrapped = suites.gym.wrap(sim)
    for action in np.linspace(-1, 1, 9, dtype=np.float32):
        wrapped.step(np.full(4, action))
    assert all(space.contains(action) for action in taken)
    assert taken[4] == pytest.approx(sum(bounds) / 2, rel=1e-6)


class Plain(gymnasium.Env):
    """Its spaces and its step are set by the test."""


def test_the_limit_of_an_episode(module):
    task = suites.resolve(f"{module}:Endless-v0", max_steps=5)
    assert rollout(task, lambda obs: np.ones(2, np.float32), 3)["length"] == 5


@pytest.mark.parametrize(("name", "said"), [
    ("Discrete", "Discrete actions; only continuous ones"), ("Unbounded", "bounded vector"),
    ("Matrix", "bounded vector"), ("Image", "only vectors"), ("Words", "only vectors"),
    ("Endless", "--max-episode-steps"),
    ("Goood", "does not register Goood-v0; did you mean Good-v0"),
])  # fmt: skip
def test_what_cannot_be_trained_on_is_one_line(module, name, said):
    with pytest.raises(InputError) as error:
        suites.resolve(f"{module}:{name}-v0")
    assert said in str(error.value) and f"{module}:{name}-v0" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("env", "said"), [
    ("hoper-v5", "did you mean Hopper-v5"), ("cartpole", "CartPole-v1"), ("nobody:My-v0", "cannot be imported"),
    ("qqqqqqqqqq", "as my_package:My-v0"), ("can-opener-v0", "no such environment"),
    ("ant-medium-v0", "no such environment"),
])  # fmt: skip
def test_unknown_names_are_one_line_with_the_nearest(env, said):
    with pytest.raises(InputError, match="--env") as error:
        suites.identify(env)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_module_that_fails_is_one_line(module):
    with pytest.raises(InputError, match=f"{module}_broken cannot be imported .*nothing_of_this_name"):
        suites.identify(f"{module}_broken:Good-v0")


def test_pairs_of_another_size_or_none(module, tmp_path):
    env = f"{module}:Good-v0"
    good, size, scale = (
        write_pairs(tmp_path / f"{name}.npz", *sizes)
        for name, *sizes in (("good", 4, 2), ("size", 3, 2), ("scale", 4, 2, 30, 8, 3.0))
    )
    for words, said in (
        ([], "--preferences FILE"),
        (["--preference-labels", "human"], "nobody has labelled"),
        (["--preferences", size], "not any x any x 4"),
        (["--preferences", scale], "rescale the actions"),
        (["--preferences", good, "--use-replay"], "--dataset FILE"),
    ):
        line = ["--env", env, *map(str, words)]
        args = parse_args(default_args(ipl_iql.Args, ipl_iql.DEFAULTS, line), line)
        with pytest.raises(InputError) as error:
            load_buffers(args, suites.resolve(env), Workers(1), "cpu")
        assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("ties", [4, 29])
def test_pairs_that_nearly_all_tie_are_named(module, tmp_path, capsys, ties):
    pairs = dict(np.load(write_pairs(tmp_path / "pairs.npz", 4, 2)))
    np.savez(tmp_path / "pairs.npz", **pairs | {"label": np.where(np.arange(30) < ties, 0.5, 1.0)})
    line = ["--env", f"{module}:Good-v0", "--preferences", str(tmp_path / "pairs.npz"), "--segment-length", "8"]
    args = parse_args(default_args(ipl_iql.Args, ipl_iql.DEFAULTS, line), line)
    load_buffers(args, suites.resolve(args.env), Workers(1), "cpu")
    assert ("29 of 30 pairs are ties" in capsys.readouterr().err) == (ties == 29)


def test_a_run_on_an_own_environment(module, tmp_path):
    """A real one, with all pairs of its file; resumed; its actor knows the limit of the episodes."""
    pairs = write_pairs(tmp_path / "pairs.npz", 4, 2)
    line = command("ipl_iql", "--env", f"{module}:Endless-v0", "--max-episode-steps", 5, "--preferences", pairs,
                   "--total-steps", 20, "--eval-every", 10, "--eval-episodes", 2, "--hidden-sizes", 8, "--threads", 1,
                   "--segment-length", 8, "--no-compile")  # fmt: skip
    for _ in range(2):
        done = subprocess.run(line, **environment(tmp_path, tmp_path))
        assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    (seed,) = (tmp_path / "runs").glob(f"{module}-Endless-v0/ipl_iql/seed-1")
    config = json.loads((seed / "config.json").read_text())
    assert config["args"]["num_preferences"] == 0 and config["args"]["env"] == f"{module}:Endless-v0"
    *_, last = csv.DictReader((seed / "eval.csv").read_text().splitlines())
    assert last["length"] == "5.0" and float(last["average_return_mean"])  # on for an environment of one's own
    call = [line[0], "-m", "tools.evaluate", str(seed / "final.pt"), "--episodes", "2"]
    done = subprocess.run(call, **environment(tmp_path, tmp_path))
    assert done.returncode == 0 and "5.000 [5.000, 5.000]" in done.stdout, done.stderr


# ---------------------------------------------------------------- the defaults
def swing_up(obs):
    """Adds energy to a pendulum, and balances it near the top."""
    cos, sin, speed = obs
    u = -(12 * np.arctan2(sin, cos) + 3 * speed) if cos > 0.85 else 3 * (speed or 0.1) * (5 - speed**2 / 6 - 5 * cos)
    return [u / 2]


def balance(obs):
    return [obs @ np.array([2.0, 30.0, 2.5, 5.0]) / 3]


def upright(obs, reward):
    """A judge for InvertedPendulum: its reward is 1 a step, so returns of segments tie; the smaller angle is better."""
    return -np.square(obs[:, 1]).sum()


def reach(obs):
    """Pulls the fingertip towards the target: the transposed Jacobian times their distance, and damping."""
    first, second = np.arctan2(obs[2:4], obs[:2])
    tip = 0.11 * np.array([-np.sin(first + second), np.cos(first + second)])
    jacobian = np.stack([0.1 * np.array([-np.sin(first), np.cos(first)]) + tip, tip], 1)
    return -20 * jacobian.T @ obs[8:10] - 0.08 * obs[6:8]


def draw_segments(env: str, controller, judge, path: Path, pairs: int = 300, length: int = 25) -> tuple[float, float]:
    """Pairs from episodes in which the controller acts, or with a chance of 0.3, 0.6 or 1 a random action. Labelled by
    `judge`, (obs, rewards) of a segment to a number. Returns mean returns of the controller and of random actions."""
    sim, rng, episodes = suites.make(suites.resolve(env)), np.random.default_rng(1), []
    for number in range(80):
        obs, rows, done, chance = sim.reset(seed=1000 + number)[0], [], False, (0.0, 0.3, 0.6, 1.0)[number % 4]
        while not done:
            action = (
                rng.uniform(-1, 1, sim.action_space.shape) if rng.random() < chance else np.asarray(controller(obs))
            )
            action = np.clip(action + rng.normal(0, 0.1, action.shape), -1, 1).astype(np.float32)
            following, reward, terminated, truncated, _ = sim.step(action)
            rows.append((obs, action, reward))
            obs, done = following, terminated or truncated
        episodes.append([np.array(column) for column in zip(*rows, strict=True)])
    good, bad = (np.mean([episode[2].sum() for episode in episodes[k::4]]) for k in (0, 3))
    long = [episode for episode in episodes if len(episode[2]) >= length]
    sides: list[list] = [[], []]
    for side in sides:
        for episode in rng.integers(len(long), size=pairs):
            first = rng.integers(len(long[episode][2]) - length + 1)
            side.append([column[first : first + length] for column in long[episode]])
    first, second = (np.array([judge(obs, rewards) for obs, _, rewards in side]) for side in sides)
    np.savez(path, label=0.5 + 0.5 * np.sign(second - first),
             **{f"{name}_{k + 1}": np.stack([segment[column] for segment in sides[k]])
                for k in (0, 1) for column, name in enumerate(("obs", "action"))})  # fmt: skip
    return good, bad


# Seen: seeds at 498, 1,000 and 327 of 1,000; with labels by return, which nearly all tie, at 68, 577 and 146.
UNSTABLE = pytest.mark.xfail(reason="the last evaluation of InvertedPendulum swings", strict=True)


def by_return(obs, reward):
    return reward.sum()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("env", "controller", "judge"),
    [
        ("Pendulum-v1", swing_up, by_return),
        ("Reacher-v5", reach, by_return),
        pytest.param("InvertedPendulum-v5", balance, upright, marks=UNSTABLE),
    ],
)
def test_the_defaults_learn(env, controller, judge, tmp_path):
    """300 pairs of 25 steps, the defaults but for 5,000 updates: most of the way from random to the controller."""
    good, bad = draw_segments(env, controller, judge, tmp_path / "pairs.npz")
    line = command("ipl_iql", "--env", env, "--preferences", "pairs.npz", "--total-steps", 5000, "--eval-every", 5000,
                   "--num-seeds", 3, "--run-dir", "run")  # fmt: skip
    done = subprocess.run(line, **{**environment(tmp_path, tmp_path), "timeout": 3000})
    assert done.returncode == 0, done.stderr
    ends = [float(path.read_text().splitlines()[-1].split(",")[2]) for path in tmp_path.glob("run/seed-*/eval.csv")]
    print(f"{env}: controller {good:.1f}, random {bad:.1f}, seeds {ends}")
    assert len(ends) == 3 and np.mean(ends) > bad + 0.7 * (good - bad)


# ---------------------------------------------------------------- environments that are seeds of trouble
def odd_run(folder: Path, name: str, *more, obs_dim: int = 3, **options) -> tuple[subprocess.CompletedProcess, list]:
    """A run on an environment of tests/odd_environments.py, and its rows of eval.csv."""
    pairs = write_pairs(folder / "pairs.npz", obs_dim, 2, scale=0.9)
    options = environment(folder, folder) | options
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    arguments = ["--env", f"tests.odd_environments:{name}-v0", "--preferences", pairs, "--hidden-sizes", 8,
                 "--segment-length", 3, "--preference-batch-size", 4, "--total-steps", 20, "--eval-every", 10,
                 "--threads", 1, "--no-compile", "--device", "cpu", "--run-dir", "run", *more]  # fmt: skip
    done = subprocess.run(command("ipl_iql", *arguments), **options)
    table = folder / "run/seed-1/eval.csv"
    return done, list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []


def test_an_episode_without_a_success_counts_as_none_where_others_have_one(tmp_path):
    done, rows = odd_run(tmp_path, "SuccessWhenSolved")
    assert done.returncode == 0 and "success" in done.stdout, done.stderr
    assert all(0.2 < float(row["success"]) < 0.8 for row in rows) and len(rows) == 3


def test_a_first_success_makes_earlier_evaluations_ones_without(tmp_path):
    """Also after a restart; and the best is never one by its return."""
    args = default_args(ipl_iql.Args, ipl_iql.DEFAULTS, ["--env", "Pendulum-v1"])
    row = {"episodes": 2, "return_mean": 5.0, "return_std": 0.0, "success": None, "score": None, "length": 7.0}
    actor = {"w0": torch.zeros(1)}

    def start() -> seed_folder.SeedFolder:
        run = seed_folder.SeedFolder(tmp_path / "seed-1", args, "ipl_iql")
        run.begin({}, torch.device("cpu"), track=False)
        return run

    run = start()
    run.log_eval(0, row | {"faults": []}, actor)
    assert run.describe_eval() == "return_mean 5.0"
    run.log_eval(10, row | {"return_mean": 1.0, "success": 0.5, "faults": []}, actor)
    assert seed_folder.read_saved(tmp_path / "seed-1/best.pt", ())["step"] == 10
    run.save_checkpoint(10, {"actor": actor})
    run.close()
    run = start()
    run.log_eval(20, row | {"return_mean": 9.0, "faults": []}, actor)
    assert [r["success"] for r in run.log.rows["eval"]] == ["0.0", "0.5", "0.0"]
    assert (run.summary()["best"]["step"], run.summary()["last"]["success"]) == (10, 0.0)
    run.close()


def test_the_untrained_actor_is_the_best_only_where_there_is_no_other(tmp_path):
    """Ties in success go by the return, then to the later step."""
    args = default_args(ipl_iql.Args, ipl_iql.DEFAULTS, ["--env", "Pendulum-v1"])
    run = seed_folder.SeedFolder(tmp_path / "seed-1", args, "ipl_iql")
    run.begin({}, torch.device("cpu"), track=False)
    best, row = [], {"episodes": 2, "return_std": 0.0, "score": None, "length": 7.0, "faults": []}
    for step, success, total in ((0, 0.5, 9.0), (10, 0.0, 1.0), (20, 0.0, 0.0), (30, 0.0, 1.0), (40, 0.1, -5.0)):
        run.log_eval(step, row | {"return_mean": total, "success": success}, {"w0": torch.zeros(1)})
        best.append(seed_folder.read_saved(tmp_path / "seed-1/best.pt", ())["step"])
    assert best == [0, 10, 10, 30, 40] and run.summary()["best"]["step"] == 40
    run.close()


@pytest.mark.parametrize("name", ["SuccessArray", "RewardArray", "FinalInfo"])
def test_arrays_of_one_element_and_final_info_are_read(tmp_path, name):
    done, rows = odd_run(tmp_path, name)
    assert done.returncode == 0 and not done.stderr.count("Traceback"), done.stderr
    assert [row["success"] for row in rows] == ["" if name == "RewardArray" else "1.0"] * 3


@pytest.mark.parametrize(
    ("name", "what"), [("NanReward", "reward of step 3"), ("NanObservation", "observation of step 3")]
)
def test_what_is_not_finite_is_said_once_and_never_the_best(tmp_path, name, what):
    done, rows = odd_run(tmp_path, name)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "not finite" in line]
    assert len(said) == 1 and re.search(rf"seed-1: step \d+, episode \d+ \(reset\(seed=\d+\)\): the {what}", said[0])
    finite = [row["step"] for row in rows if row["return_mean"] != "nan"]
    best = tmp_path / "run/seed-1/best.pt"
    assert len(finite) < 3 and best.exists() == bool(finite)
    assert not finite or str(seed_folder.read_saved(best, ())["step"]) in finite


def test_an_action_that_is_not_finite_ends_the_episode():
    task = suites.resolve("Pendulum-v1")
    row = rollout(task, lambda obs: np.array([np.nan], np.float32), 1)
    assert math.isnan(row["return"]) and (row["length"], row["fault"]) == (0, "the action of step 0 is not finite")


@pytest.mark.parametrize(("name", "said"), [
    ("OldReset", r"reset\(\) returned ndarray, not \(observation, info\)"),
    ("OldStep", r"step\(\) returned 4 values, not \(observation, reward, terminated, truncated, info\)"),
    ("NoSeed", "unexpected keyword argument 'seed'"), ("WrongShape", r"shape \(2,\), where .* says \(3,\)"),
    ("LockedGripper", "action 1 has the bounds 0.5 and 0.5"), ("WholeNumbers", "whole numbers as actions"),
    ("WholeRange", r"action 0 has the bounds -3.40282e\+38 and 3.40282e\+38"),
])  # fmt: skip
def test_an_environment_is_tried_out_when_it_is_resolved(name, said):
    with pytest.raises(InputError, match=said):
        suites.resolve(f"{odd.__name__}:{name}-v0")


@pytest.mark.parametrize("cores", [1, 2])  # on two it is met beside training
def test_a_success_that_is_no_number_is_one_line(tmp_path, cores):
    done, _ = odd_run(tmp_path, "DictSuccess", env=environment(tmp_path, tmp_path, cores)["env"])
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "info['success'] is {'reached': True} (dict)" in done.stderr


def test_nested_spaces_and_many_seeds_with_few_files_no_home_and_another_jobs_variables(tmp_path):
    env = {**os.environ, "SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_CPUS_PER_TASK": "1"}
    env.pop("HOME", None)
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # noqa: E731
    more = ("--num-seeds", 64, "--eval-episodes", 1)
    done, rows = odd_run(tmp_path, "Nested", *more, obs_dim=15, env=env, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert [(row["length"], row["return_mean"]) for row in rows] == [("1.0", "1.0")] * 3
    assert len(list(tmp_path.glob("run/seed-*/final.pt"))) == 64
