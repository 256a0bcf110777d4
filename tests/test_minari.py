"""Minari: a dataset recorded with its own recorder, as docs/datasets.md shows, read, described and trained on."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import h5py
import minari
import numpy as np
import pytest

from common import suites
from common.cli import default_args
from common.errors import InputError
from common.suites import minari as suite
from common.suites.base import ACTION_LIMIT
from tests.conftest import REPOSITORY, command, environment
from tools import dataset, reward
from tools import record as record_tool

pytest.importorskip("jax", reason="recording needs the packages of #record in requirements.txt")
SUITE, MINE = suites.SUITES["minari"], "minari:me/pendulum-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MINARI_DATASETS_PATH with what the first block of docs/datasets.md records, fewer episodes of it."""
    folder = tmp_path_factory.mktemp("minari")
    text = (REPOSITORY / "docs/datasets.md").read_text()
    code = re.search(r"```python\n# record.py\n(.*?)```", text, re.DOTALL)[1].replace("range(100)", "range(40)")
    options = environment(folder, folder)
    options["env"]["MINARI_DATASETS_PATH"] = str(folder)
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def mine(folder, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    forget()
    yield suites.resolve(MINE)
    forget()


def forget() -> None:
    """Minari's datasets are another folder's."""
    suites.minari.open_dataset.cache_clear()
    suites.minari.spaces.cache_clear()


def record(id: str, sim: gymnasium.Env, steps: int = 5, **options) -> str:
    sim = minari.DataCollector(sim)
    sim.reset(seed=0)
    for _ in range(steps):
        if any(sim.step(sim.action_space.sample())[2:4]):
            break
    sim.create_dataset(id, **options)
    return f"minari:{id}"


def test_the_ten_lines_of_the_docs_train(folder, tmp_path):
    options = environment(tmp_path, tmp_path)
    options["env"]["MINARI_DATASETS_PATH"] = str(folder)
    arguments = ["--dataset", MINE, "--hidden-sizes", 16, 16, "--total-steps", 40, "--eval-every", 20,
                 "--eval-episodes", 1, "--threads", 1, "--no-compile"]  # fmt: skip
    done = subprocess.run(command("ipl_iql", *arguments), **options)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "runs/minari-me-pendulum-v0/ipl_iql/seed-1/eval.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "20", "40"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_ten_lines_of_the_docs_learn(tmp_path):
    """As they stand in the docs, but for one thread: a policy better than the data's mean return."""
    text = (REPOSITORY / "docs/datasets.md").read_text()
    options = environment(tmp_path, tmp_path) | {"timeout": 1500}
    options["env"]["MINARI_DATASETS_PATH"] = str(tmp_path)
    line = re.search(r"^python algorithms/(ipl_iql)\.py (--dataset minari:.*)$", text, re.MULTILINE)
    code = re.search(r"```python\n# record.py\n(.*?)```", text, re.DOTALL)[1]
    for words in ([sys.executable, "-c", code], command(line[1], *line[2].split(), "--threads", 1, "--no-compile")):
        done = subprocess.run(words, **options)
        assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "me/pendulum-v0/data/main_data.hdf5") as file:
        mean = np.mean([episode["rewards"][()].sum() for episode in file.values()])
    with open(tmp_path / "runs/minari-me-pendulum-v0/ipl_iql/seed-1/eval.csv") as file:
        final = float(list(csv.DictReader(file))[-1]["return_mean"])
    print(f"return: data {mean:.0f}, policy {final:.0f}")
    assert final > mean


def test_episodes_are_replayed_from_their_seeds(mine):
    """Bit for bit: in the environment's own units, with actions at their bounds."""
    sim, path = suites.make(mine), SUITE.dataset(mine, None, None)
    found = SUITE.read_episodes(path, mine)
    assert [episode.state["seed"] for episode in found] == list(range(40))
    for episode in (found[30], found[0]):
        assert (np.stack(list(SUITE.replay(sim, episode, 5))) == episode.obs[5:]).all() and len(episode.obs) == 200
    sim = minari.DataCollector(gymnasium.make("Pendulum-v1"))
    sim.reset(options={"minari_autoseed": False})
    sim.step(sim.action_space.sample())
    sim.create_dataset("me/unseeded-v0")
    task = suites.resolve("minari:me/unseeded-v0")
    with pytest.raises(InputError, match=r"1 of its 1 episodes have no seed .* tools.record --video"):
        SUITE.read_episodes(SUITE.dataset(task, None, None), task)


def test_what_was_recorded_of_its_environment_is_read_instead(mine, folder, tmp_path, monkeypatch):
    """By the file's own rows, pairs, episodes and actions."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    path = tmp_path / "more.hdf5"
    record_tool.main(record_tool.RecordArgs(MINE, path, episodes=2, workers=1))
    assert len(SUITE.read_transitions(path, mine).obs) == 400
    episodes, sim = SUITE.read_episodes(path, mine), suites.make(mine)
    assert len(episodes) == 2 and SUITE.describe(path, mine)[1].split()[:2] == ["random", "2"]
    assert (np.stack(list(SUITE.replay(sim, episodes[1], 0))) == episodes[1].obs).all()
    assert len(SUITE.read_pairs(path, mine).obs) == 402
    with pytest.raises(InputError, match=r"none\.hdf5: is no file in the layout .* nor the data of minari:me/pendulum"):
        SUITE.read_pairs(tmp_path / "none.hdf5", mine)


def test_a_download_that_was_cut_begins_anew(folder, monkeypatch):
    """Minari takes a folder that is there for the dataset, and one that another process fills for a whole one."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    path, asked = folder / "me/cut-v0", []

    def download(name: str) -> None:
        asked.append(name)
        assert not path.exists() and suite.unfinished(path).exists()
        (path / "data").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(minari, "download_dataset", download)
    (path / "data").mkdir(parents=True)
    suite.unfinished(path).touch()  # of a kill
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            suite.open_dataset.__wrapped__("minari:me/cut-v0")
    assert len(asked) == 2 and not path.exists() and not suite.unfinished(path).exists()


def test_relabelled_as_another_dataset(mine, tmp_path):
    options = environment(tmp_path, tmp_path)
    small = "--hidden-sizes 16 --total-steps 4 --eval-episodes 1 --threads 1 --no-compile".split()
    done = subprocess.run(command("ipl_iql", "--dataset", MINE, "--use-replay", *small), **options)
    assert done.returncode == 0, done.stderr
    seed, target = tmp_path / "runs/minari-me-pendulum-v0/ipl_iql/seed-1", "minari:me/relabelled-v0"
    reward.main(reward.RewardArgs((seed,), relabel=target))
    new = suites.resolve(target)
    was, now = (SUITE.read_transitions(SUITE.dataset(t, None, None), t) for t in (mine, new))
    assert (now.obs == was.obs).all() and (now.action == was.action).all()
    run = reward.read_run(seed, tmp_path)
    assert now.reward == pytest.approx(reward.reward_of(run, was), abs=1e-5) and now.reward.std() > 0
    metadata = suites.minari.open_dataset(target).storage.metadata
    assert metadata["run"] == str(seed) and metadata["dataset_id"] == "me/relabelled-v0" and "git_commit" in metadata
    for wrong in (target, MINE, "minari:no version", "minari:me/none", str(tmp_path / "a.hdf5")):
        with pytest.raises(InputError, match="must be minari:NAMESPACE/NAME-v0, and no dataset"):
            reward.main(reward.RewardArgs((seed,), relabel=wrong))
    done = subprocess.run(command("iql", "--dataset", target, "--use-replay", *small), **options)
    assert done.returncode == 0, done.stderr


def test_read_as_recorded(mine):
    path = SUITE.dataset(mine, None, None)
    t, p = SUITE.read_transitions(path, mine), SUITE.read_pairs(path, mine)
    episodes = list(suites.minari.open_dataset(MINE).iterate_episodes())
    assert (mine.obs_dim, mine.act_dim) == (3, 1) and len(t.obs) == 200 * 40 and not t.terminal.any()
    np.testing.assert_array_equal(t.next_obs[:200], episodes[0].observations[1:])
    np.testing.assert_allclose(t.action[:200], (episodes[0].actions / 2).clip(-ACTION_LIMIT, ACTION_LIMIT), atol=1e-7)
    sim = suites.make(mine)
    obs = sim.reset(seed=1)[0]
    for row in range(200, 240):  # the recorded actions, rescaled, lead to the recorded observations
        np.testing.assert_allclose(t.obs[row], obs, atol=1e-4)
        obs = sim.step(t.action[row])[0]
    rows = p.start[..., None] + np.arange(p.length)
    assert (rows[..., 0] // 200 == rows[..., -1] // 200).all()
    returns = t.reward.astype(np.float64)[rows].sum(-1)
    assert np.array_equal(p.label, 0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0]))


def test_env_is_left_out_or_checked(mine):
    from algorithms.ipl_iql import DEFAULTS, Args

    assert default_args(Args, DEFAULTS, ["--dataset", MINE]).env == MINE
    assert suites.resolve("Pendulum-v1", 0, MINE) == mine
    with pytest.raises(InputError, match="was recorded in Pendulum-v1"):
        suites.resolve("Hopper-v5", 0, MINE)


def test_dictionaries_are_flattened_and_references_score(mine):
    class Grouped(gymnasium.ObservationWrapper):
        def __init__(self, sim):
            super().__init__(sim)
            box = gymnasium.spaces.Box
            self.observation_space = gymnasium.spaces.Dict({"b": box(-9, 9, (2,)), "a": gymnasium.spaces.Discrete(2)})

        def observation(self, obs):
            return {"b": obs[:2], "a": int(obs[2] > 0)}

    steps = 4
    space = Grouped(gymnasium.make("Pendulum-v1")).observation_space
    samples = [space.sample() for _ in range(steps)]
    columns = {key: np.array([sample[key] for sample in samples]) for key in ("a", "b")}
    want = [gymnasium.spaces.flatten(space, sample) for sample in samples]
    np.testing.assert_array_equal(suites.minari.flatten(space, columns, steps), want)
    assert suites.score(mine, -100.0) is None
    low, high = {"ref_min_score": -1000.0}, {"ref_max_score": -200.0}
    suites.minari.open_dataset(MINE).storage.update_metadata(low | high)
    assert suites.score(mine, -600.0) == pytest.approx(50)


def test_keys_are_flattened_in_the_environments_order(mine, monkeypatch):
    """Cloning reads what the policy will see, whatever order the dataset keeps; other keys are refused."""
    name = record("me/follow-v0", gymnasium.make("tests.odd_environments:Follow-v0"), steps=60)
    task = suites.resolve(name)
    space = suites.minari.open_dataset(name).observation_space
    assert list(space) != list(suites.minari.spaces(name)[0]) == ["target", "noise"]
    t = SUITE.read_transitions(SUITE.dataset(task, None, None), task)
    sim = suites.make(task)
    assert (sim.reset(seed=0)[0] == t.obs[0]).all()
    assert (sim.step(t.action[0])[0] == t.next_obs[0]).all()
    other = gymnasium.spaces.Dict({"target": space["target"], "goal": space["noise"]})
    monkeypatch.setattr(suites.minari.open_dataset(name), "_observation_space", other)
    with pytest.raises(InputError, match="its observations are not those of Follow-v0"):
        suites.resolve(name)


def test_described(mine, tmp_path, capsys):
    dataset.main(dataset.DatasetArgs(env=MINE, data_dir=tmp_path))
    said = capsys.readouterr().out
    assert "40 episodes of 200 to 200 steps" in said and "10000 pairs of 50 steps" in said


@pytest.mark.parametrize("change", [
    {"env_spec": {"entry_point": "os:mkdir", "kwargs": {"path": "HERE"}}},
    {"env_spec": {"additional_wrappers": [{"name": "A", "entry_point": "os:mkdir", "kwargs": {"mode": "HERE"}}]}},
    {"env_spec": {"entry_point": "os:mkdir", "kwargs": {"path": "HERE"}}, "observation_space": None},
    {"ref_min_score": "low", "ref_max_score": 0.0}, {"ref_min_score": 1.0, "ref_max_score": 1.0},
    {"action_space": {"high": [1e400]}}, {"action_space": {"shape": [2], "low": [-1, -1], "high": [1, 1]}},
])  # fmt: skip
def test_hostile_metadata_are_refused_and_call_nothing(mine, folder, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "copy"))
    suites.minari.open_dataset.cache_clear()
    path = tmp_path / "copy/me/pendulum-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    for name, value in change.items():
        inner = isinstance(value, dict)
        metadata[name] = json.dumps(json.loads(metadata[name]) | value) if inner else value
    path.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))
    with pytest.raises(InputError, match=MINE) as error:
        suites.resolve(MINE)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("HERE"))


def test_what_cannot_be_trained_on_is_refused_in_one_line(mine, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as on a machine without a network
    discrete = record("me/discrete-v0", gymnasium.make("CartPole-v1"))
    short = record("me/short-v0", gymnasium.make("Pendulum-v1", max_episode_steps=5))
    cases = [("minari:me/none-v0", "cannot be had"), ("minari:x/y", "x/y-v0"), (discrete, "Discrete actions")]
    for env, said in cases:
        with pytest.raises(InputError, match=said) as error:
            suites.resolve(env)
        assert "\n" not in str(error.value)
    task = suites.resolve(short)
    with pytest.raises(InputError, match="no episode is as long as a segment"):
        SUITE.read_pairs(SUITE.dataset(task, None, None), task)
    wild = SimpleNamespace(**{**vars(next(iter(suites.minari.open_dataset(short).iterate_episodes())))})
    wild.actions = np.full_like(wild.actions, 3.0)
    monkeypatch.setattr(type(suites.minari.open_dataset(short)), "iterate_episodes", lambda self: iter([wild]))
    with pytest.raises(InputError, match="outside the bounds"):
        SUITE.read_transitions(SUITE.dataset(task, None, None), task)
