"""tools.evaluate: a saved actor on fresh goals, several compared, one taken elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro

from algorithms import ipl_iql
from common import suites
from common.arrays import read_arrays
from common.cli import parse_args, user_errors
from common.errors import InputError
from tests.conftest import REPOSITORY
from tools import evaluate
from tools.evaluate import EvaluateArgs, interval, load_actor, paired_interval, read_actor


def call(*words, **more) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "tools.evaluate", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **more})


def test_intervals():
    assert interval(np.array([1.0] * 10)) == pytest.approx((0.7225, 1.0), abs=1e-3)  # Wilson
    low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert 1 <= low < 2 < high <= 3


def test_paired_interval():
    ones, zeros = np.ones(10), np.zeros(10)
    low, high = paired_interval(ones, ones)
    # Bonett and Price by hand: one of 12 for either disagreement, 0 +- 1.96 sqrt((2 / 12) / 12)
    assert (low, high) == pytest.approx((-0.23099, 0.23099), abs=1e-4)
    low, high = paired_interval(zeros, ones)
    assert 0.5 < low < high == 1.0
    # the goals' own differences cancel: paired, a gain of 1 is seen beside a spread of 100
    goals = np.random.default_rng(0).normal(0, 100, 50)
    assert paired_interval(goals, goals + 1) == pytest.approx((1, 1))


def test_evaluate_a_saved_actor(whole):
    seed = whole()

    said = [call(seed / "final.pt", "--episodes", 4, "--workers", workers).stdout for workers in (1, 2)]
    assert said[0] == said[1] and re.search(r"ipl_iql on drawer-open-v2 after 40 updates\n4 episodes", said[0])
    assert re.search(r"\[1\] .* 0\.000 \[0\.000, 0\.490\]", said[0])  # Wilson, 0 of 4
    assert call(seed / "final.pt", "--episodes", 4, "--seed", 5).stdout != said[0]
    wrong = call(seed / "final.pt", "--video", 1, MUJOCO_GL="glx")
    assert wrong.returncode == 2 and "libosmesa6" in wrong.stderr and "--video: cannot render" in wrong.stderr


@pytest.mark.parametrize(("words", "advice"), [
    ("checkpoint.pt", "name a best.pt or final.pt\n"),  # and ends so, not: delete it
    ("none.pt", "none.pt"), ("final.pt --episodes 0", "--episodes"), ("", "best.pt or final.pt"),
])  # fmt: skip
def test_wrong_words_are_one_line(whole, monkeypatch, capsys, words, advice):
    monkeypatch.chdir(whole())
    with pytest.raises(SystemExit) as end, user_errors():
        evaluate.main(parse_args(EvaluateArgs(tyro.MISSING), words.split()))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and advice in said.lower()


def test_an_actor_of_other_sizes_is_named(whole):
    path = whole() / "final.pt"
    task = suites.resolve("drawer-open-v2")
    evaluate.require_fit(path, read_actor(path)[1], task)
    for other in ({"obs_dim": 40}, {"act_dim": 5}):
        with pytest.raises(InputError, match="it was trained before that was changed"):
            evaluate.require_fit(path, read_actor(path)[1], replace(task, **other))


def test_an_export_does_not_replace_an_actor(whole):
    path = whole() / "final.pt"
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"final.pt: must end in .onnx"):
        evaluate.main(parse_args(EvaluateArgs((path,), export=str(path)), []))
    assert path.read_bytes() == before


def test_several_actors_meet_the_same_goals(whole, tmp_path, capsys):
    seed = whole()
    twice = evaluate.main(parse_args(EvaluateArgs((seed / "final.pt", seed / "final.pt"), episodes=2, workers=1), []))
    assert all((twice[0][name] == twice[1][name]).all() for name in twice[0])
    said = capsys.readouterr().out
    assert "the same goals for all actors" in said and re.search(r"\[2\] - \[1\] +0\.000 \[0\.000, 0\.000\]", said)
    saved, _ = read_actor(seed / "final.pt")
    other = tmp_path / "other.pt"
    evaluate.torch.save({**saved, "env": "sweep-into-v2"}, other)
    wrong = call(seed / "final.pt", other)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "sweep-into-v2" in wrong.stderr


def test_load_actor(whole):
    path = whole() / "best.pt"
    act, saved = load_actor(path), torch.load(path, weights_only=True)["actor"]
    obs = np.random.default_rng(0).normal(size=(7, 39))
    batch = act(obs)
    mean, _ = ipl_iql.policy({k: p.unsqueeze(0) for k, p in saved.items()}, torch.from_numpy(obs).float().unsqueeze(0))
    assert batch.shape == (7, 4) and np.abs(batch).max() <= 1 and (batch == mean[0].clamp(-1, 1).numpy()).all()
    assert act(obs[0]).shape == (4,) and act(obs[0]) == pytest.approx(batch[0], abs=1e-6)
    with pytest.raises(InputError, match=r"name a best\.pt or final\.pt"):
        load_actor(path.parent)


@pytest.fixture
def session():
    """session(file) -> an onnxruntime session; the packages are an extra that .ci/run installs."""
    runtime = pytest.importorskip("onnxruntime", reason="pip install the line #onnx: of requirements.txt")
    pytest.importorskip("onnxscript", reason="pip install the line #onnx: of requirements.txt")
    return lambda path: runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def said_by(session) -> dict:
    """The metadata of an exported policy; lists are JSON."""
    found = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(text) if text.startswith("[") else text for name, text in found.items()}


def test_onnx_equals_act(whole, data_dir, tmp_path, session):
    """On 1,000 observations of the dataset."""
    best, path = whole() / "best.pt", tmp_path / "policy.onnx"
    done = call(best, "--export", path)
    assert done.returncode == 0 and "obs (batch, 39) -> action (batch, 4)" in done.stdout, done.stderr
    session = session(path)
    said = said_by(session)
    assert (said["algorithm"], said["env"], said["action_units"]) == ("ipl_iql", "drawer-open-v2", "rescaled")
    assert said["observation"][0] == {"name": "hand_position", "size": 3, "space": "Box"}
    assert sum(part["size"] for part in said["observation"]) == 39
    assert (said["action_low"], said["action_high"]) == ([-1.0] * 4, [1.0] * 4)
    (dataset,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    obs = read_arrays(dataset)["obs"][:1000].astype(np.float32)
    (action,) = session.run(["action"], {"obs": obs})
    assert len(obs) == 1000 and np.abs(action - load_actor(best)(obs)).max() <= 1e-6
    assert session.run(None, {"obs": obs[:1]})[0].shape == (1, 4)
    nowhere = call(best, "--export", tmp_path / "no/policy.onnx")
    assert nowhere.returncode == 2 and "no such folder" in nowhere.stderr and nowhere.stderr.count("\n") == 1


OWN = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple


class Env(gymnasium.Env):
    arm = Dict(left=Box(-1, 1, (1, 2)), flags=Tuple((Discrete(2), Box(0, 1, ()))))
    observation_space = Dict(speed=Box(-9, 9, (2,)), mode=Discrete(3), arm=arm)  # in this order: not the alphabet's
    action_space = Box(np.float32([-2, 0]), np.float32([2, 4]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.last = np.array(action)
        return self.observation_space.sample(), 0.0, False, False, {}


gymnasium.register("Parts-v0", Env, max_episode_steps=5)
"""


def test_an_exported_policy_says_its_observation_and_acts_in_the_environments_units(tmp_path, monkeypatch, session):
    """Of an environment of one's own: what its simulator gets from the file is what it gets in an evaluation."""
    module = f"parts_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    env = f"{module}:Parts-v0"
    task = suites.resolve(env)
    actor = ipl_iql.init(ipl_iql.Args(hidden_sizes=(8,)), 1, task.obs_dim, task.act_dim)["actor"]
    actor = {name: 9 * p for name, p in actor.items()}  # so that some actions are at the bounds
    saved, sim = {"algorithm": "ipl_iql", "env": env, "step": 7}, suites.make(task)
    obs = np.float32([sim.reset(seed=seed)[0] for seed in range(50)])
    acting = evaluate.Actor(ipl_iql.policy, {name: p.numpy() for name, p in actor.items()})
    rescaled = []
    for units in ("rescaled", "environment"):
        evaluate.export(tmp_path / f"{units}.onnx", saved, acting, task, units)
        policy = session(tmp_path / f"{units}.onnx")
        said = said_by(policy)
        assert (said["action_units"], said["action_low"], said["action_high"]) == (units, [-2.0, 0.0], [2.0, 4.0])
        assert [(part["name"], part["size"], part["space"]) for part in said["observation"]] == [
            ("speed", 2, "Box"), ("mode", 3, "Discrete"), ("arm/left", 2, "Box"), ("arm/flags/0", 2, "Discrete"),
            ("arm/flags/1", 1, "Box")]  # fmt: skip
        raw = sim.unwrapped.reset(seed=3)[0]  # the parts, laid out as the metadata say, are the observation
        own = [raw["speed"], np.eye(3)[raw["mode"]], raw["arm"]["left"].ravel(), np.eye(2)[raw["arm"]["flags"][0]],
               raw["arm"]["flags"][1].ravel()]  # fmt: skip
        assert np.concatenate(own) == pytest.approx(obs[3])
        rescaled.append(policy.run(None, {"obs": obs})[0])
    sim.reset(seed=0)
    for action, wanted in zip(*rescaled, strict=True):
        sim.step(action)
        assert sim.unwrapped.last == pytest.approx(wanted, abs=1e-5)
    assert (np.abs(rescaled[0]) > 0.999).any() and (np.abs(rescaled[0]) < 0.9).any()
    assert set(np.round(rescaled[1].max(0))) == {2.0, 4.0}


@pytest.mark.parametrize("env", ["drawer-open-v2", "lift-ph"])
def test_the_parts_of_an_observation_are_where_they_are_said_to_be(env):
    task = suites.resolve(env)
    parts, box = evaluate.describe_spaces(task)
    assert sum(part["size"] for part in parts) == task.obs_dim and box.shape == (task.act_dim,)
    sim = suites.make(task)
    obs, at, found = sim.reset(seed=1)[0], 0, {}
    for part in parts:
        found[part["name"]] = obs[at : at + part["size"]]
        at += part["size"]
    name, hand = (
        ("hand_position", sim.sim.get_endeff_pos()) if env == "drawer-open-v2" else
        ("robot0_eef_pos", sim.sim.sim.data.site_xpos[sim.sim.robots[0].eef_site_id])
    )  # fmt: skip
    assert found[name] == pytest.approx(hand, abs=1e-6)


def test_export_without_its_packages_names_them(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    saved, actor = read_actor(whole() / "best.pt")
    with pytest.raises(InputError, match=r"pip install onnxscript==\S+ onnxruntime==\S+$"):
        evaluate.export(tmp_path / "policy.onnx", saved, actor, suites.resolve(saved["env"]))
    assert not list(tmp_path.iterdir())
