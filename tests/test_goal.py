"""MetaWorld with its goal visible, and LiRE's replay buffers, which show it. On the real simulator."""

from __future__ import annotations

import os
import pickle
import subprocess
from contextlib import closing

import h5py
import numpy as np
import pytest

from common import suites
from common.arrays import read_arrays
from common.cli import parse_args
from common.data import read_preferences
from common.errors import InputError
from common.suites import SUITES, identify, labels_of, resolve
from common.suites.base import Recipe, Task
from common.suites.metaworld import HORIZON, SEEN, SEGMENT, TASKS, MetaWorld, plan
from common.suites.suite import read_rows
from common.workers import Workers
from tests.conftest import REPOSITORY, SMALL, command, environment
from tools import dataset, evaluate, teachers

PLAIN = "drawer-open-v2"
HIDDEN, TASK, METAWORLD = resolve(PLAIN), resolve(PLAIN + SEEN), SUITES["metaworld"]
GOAL = slice(-3, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder whose default dataset shows the goal, one episode of each kind: those of `data_dir`."""
    folder = tmp_path_factory.mktemp("seen")
    with closing(Workers(2)) as workers:
        small = METAWORLD.dataset(TASK, folder, workers, Recipe(episodes=1, pairs=60))
    small.rename(small.with_name(f"{PLAIN}{SEEN}_episodes-100_noise-1_pairs-10000_seed-0.hdf5"))
    return folder


def only(folder):
    (path,) = (folder / "metaworld").glob("*.hdf5")
    return path


# ---------------------------------------------------------------- the environment and its dataset
def test_names_are_metaworlds():
    from metaworld import env_dict

    for name in ("plate-slide-goal-observable", "plate-slide-v2-goal-observable", "plate-slide-v3-goal-observable"):
        assert identify(name) == ("metaworld", "plate-slide-v2-goal-observable")
    assert sorted(f"{task}-v3{SEEN}" for task in TASKS) == sorted(env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE)
    with pytest.raises(InputError, match="did you mean plate-slide-v2-goal-observable"):
        identify("plate-slid-v2-goal-observable")
    assert "released" in METAWORLD.LABELS and labels_of(resolve("plate-slide-v2"), "released").files
    with pytest.raises(InputError, match="nobody has labelled plate-slide-v2-goal-observable so"):
        labels_of(resolve("plate-slide-v2-goal-observable"), "released")


def test_the_observed_goal_is_the_simulators_and_stays():
    sim = suites.make(TASK)
    for seed in (1, 2):
        seen = [sim.reset(seed=seed)[0]] + [sim.step(sim.action_space.sample())[0] for _ in range(5)]
        goal = sim.unwrapped.sim._target_pos
        assert all((obs[GOAL] == goal).all() and sim.observation_space.contains(obs) for obs in seen) and goal.any()


def test_the_dataset_is_the_hidden_ones_with_the_goal(folder, data_dir):
    seen, hidden = read_arrays(only(folder)), read_arrays(only(data_dir))
    assert seen["protocol"] == hidden["protocol"] | {"env": TASK.env}
    assert seen["obs"].shape == hidden["obs"].shape and not hidden["obs"][:, GOAL].any()
    for name in seen.keys() - {"obs", "protocol"}:
        np.testing.assert_array_equal(seen[name], hidden[name])
    np.testing.assert_array_equal(seen["obs"][:, :-3], hidden["obs"][:, :-3])
    rows = zip(seen["episodes/row"], seen["episodes/length"], strict=True)
    goals = [seen["obs"][row : row + n + 1, GOAL] for row, n in rows]
    assert all((goal == goal[0]).all() for goal in goals) and len(np.unique([goal[0] for goal in goals], axis=0)) == 4
    assert plan(TASK.env, 5, 0) == plan(PLAIN, 5, 0)  # the policies are those of the task


def test_a_file_of_the_other_setting_is_refused(folder, data_dir):
    for file, task in ((only(folder), HIDDEN), (only(data_dir), TASK)):
        other = PLAIN if task is TASK else TASK.env
        for read in (read_preferences, METAWORLD.read_transitions, METAWORLD.read_episodes):
            with pytest.raises(InputError, match=f"was built for {other}, not for {task.env}; name"):
                read(file, task)


def test_it_is_replayed_exactly_and_described(folder):
    sim = suites.make(TASK)
    for episode in METAWORLD.read_episodes(only(folder), TASK):
        replayed = np.stack(list(METAWORLD.replay(sim, episode, len(episode.obs) - 20)))
        assert (replayed.astype(np.float32) == episode.obs[-20:]).all()
    said = METAWORLD.describe(only(folder), TASK)
    assert said[0].startswith("kind") and said[1].split()[:3] == ["expert", "1", "1.00"]
    parts, _ = evaluate.describe_spaces(TASK)
    assert parts[-1] == {"name": "goal", "size": 3, "space": "Box"} and sum(part["size"] for part in parts) == 39


def test_pairs_of_the_other_setting_are_named(folder, tmp_path, capsys):
    """Those of an NPZ, which does not say where it is from."""
    p = read_preferences(only(folder), TASK)
    assert capsys.readouterr().err == ""
    teachers.write(tmp_path / "seen.npz", p, teachers.parse(()), TASK.env)
    read_preferences(tmp_path / "seen.npz", TASK)
    assert capsys.readouterr().err == ""
    read_preferences(tmp_path / "seen.npz", HIDDEN)
    assert f"seen.npz: the pairs show the goal, the last three observed numbers, which {PLAIN} hides; are they of " + (
        f"{PLAIN}{SEEN}?") in capsys.readouterr().err  # fmt: skip
    p.obs[:, GOAL] = 0
    teachers.write(tmp_path / "hidden.npz", p, teachers.parse(()), HIDDEN.env)
    read_preferences(tmp_path / "hidden.npz", HIDDEN)
    assert capsys.readouterr().err == ""
    read_preferences(tmp_path / "hidden.npz", TASK)
    assert f"hide the goal, the last three observed numbers, which {TASK.env} shows; are they of {PLAIN}?" in (
        capsys.readouterr().err)  # fmt: skip


def test_a_run_and_its_evaluation(folder, tmp_path, capsys):
    words = [*SMALL, "--env", f"drawer-open{SEEN}", "--use-replay"]
    done = subprocess.run(command("ipl_iql", *words), **environment(folder, tmp_path))
    assert done.returncode == 0, done.stderr
    seed = tmp_path / "runs" / TASK.env / "ipl_iql/seed-1"
    evaluate.main(parse_args(evaluate.EvaluateArgs((seed / "final.pt",), episodes=2, workers=1), []))
    assert f"ipl_iql on {TASK.env} after 40 updates" in capsys.readouterr().out


# ---------------------------------------------------------------- LiRE's replay buffers
def lire(seed: int, episodes: int, env: str = TASK.env) -> dict[str, np.ndarray]:
    """The content of a pickle of LiRE's: episodes of 500 steps, of noise about a random action."""
    sim, rng = MetaWorld(env), np.random.default_rng(seed)
    rows: dict[str, list] = {name: [] for name in ("observations", "actions", "next_observations", "rewards", "dones")}
    for number in range(episodes):
        obs, mean = sim.reset(seed=1000 * seed + number)[0], rng.uniform(-1, 1, 4)
        for step in range(HORIZON):
            action = np.tanh(mean + rng.normal(size=4)).astype(np.float32)
            after, reward, *_ = sim.step(action)
            for column, item in zip(rows.values(), (obs, action, after, [reward], [step == 499]), strict=True):
                column.append(item)
            obs = after
    return {name: np.array(column, np.float32) for name, column in rows.items()}


@pytest.fixture(scope="module")
def buffers() -> list[dict]:
    return [lire(seed, 3) for seed in range(3)]


def write(folder, buffers: list, protocol: int = 4) -> list[str]:
    files = [folder / f"saved_replay_buffer_1000000_seed{seed}.pkl" for seed in range(len(buffers))]
    for file, content in zip(files, buffers, strict=True):
        file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return [str(file) for file in files]


def convert(folder, files: list[str], *words, env: str = TASK.env):
    """The dataset that the command makes of the files' first two episodes."""
    flags = ["--env", env, "--dataset", *files, "--quality", "0.01", "--out", str(folder / "new/lire.hdf5"), *words]
    dataset.main(parse_args(dataset.DatasetArgs(), flags))
    return folder / "new/lire.hdf5"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_first_rows_of_each_file_are_joined(buffers, tmp_path, capsys, protocol):
    path = convert(tmp_path, write(tmp_path, buffers, protocol), "--pairs", "200", "--tie-margin", "0.5")
    wanted = {name: np.concatenate([buffer[name][:1000] for buffer in buffers]) for name in buffers[0]}
    t = METAWORLD.read_transitions(path, TASK)
    for name, have in (("observations", t.obs), ("next_observations", t.next_obs), ("rewards", t.reward[:, None])):
        np.testing.assert_array_equal(have, wanted[name])
    np.testing.assert_allclose(t.action, wanted["actions"], atol=1e-5)
    assert not t.terminal.any()  # a time limit is none

    p = read_preferences(path, TASK)
    assert p.length == SEGMENT and p.start.shape == (200, 2)
    episode, step = np.divmod(p.start, HORIZON + 1)
    assert (step + SEGMENT <= HORIZON).all() and np.unique(episode).tolist() == list(range(6))
    reward = wanted["rewards"].reshape(6, HORIZON).astype(float)
    sums = [[reward[e, s : s + SEGMENT].sum() for e, s in zip(*pair, strict=True)]
            for pair in zip(episode, step, strict=True)]  # fmt: skip
    margin = np.subtract(*np.transpose(sums)[::-1])
    assert p.label.tolist() == [0.5 if abs(m) < 0.5 else float(m > 0) for m in margin]
    assert set(p.label) == {0, 0.5, 1}

    said = capsys.readouterr().out
    assert "6 episodes of 500 to 500 steps, 3000 in all" in said and "200 pairs of 25 steps, ties: 0." in said
    protocol_said = read_arrays(path)["protocol"]
    assert protocol_said["env"] == TASK.env and protocol_said["tie_margin"] == 0.5 and protocol_said["quality"] == 0.01
    with pytest.raises(InputError, match="seed"):
        METAWORLD.read_episodes(path, TASK)
    with pytest.raises(InputError, match=f"was built for {TASK.env}, not for {PLAIN}"):
        read_rows(path, HIDDEN)


def test_pairs_depend_on_the_seed_and_no_margin_leaves_no_tie(buffers, tmp_path):
    files = write(tmp_path, buffers)
    starts, labels = [], []
    for seed in ("0", "0", "1"):
        with h5py.File(convert(tmp_path, files, "--pairs", "50", "--seed", seed)) as file:
            starts.append(file["preferences/start"][()])
            labels.append(file["preferences/label"][()])
    assert (starts[0] == starts[1]).all() and (starts[0] != starts[2]).any()
    assert set(np.concatenate(labels)) == {0, 1}


def test_a_script_reads_what_was_made_and_no_pickle(buffers, tmp_path):
    path = convert(tmp_path, write(tmp_path, buffers), "--pairs", "60")
    done = subprocess.run(command("mr_iql", *SMALL, "--env", TASK.env, "--dataset", path, "--use-replay"),
                          **environment(tmp_path, tmp_path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = ["--env", TASK.env, "--dataset", tmp_path / "saved_replay_buffer_1000000_seed0.pkl"]
    done = subprocess.run(command("iql", *SMALL, *words), **environment(tmp_path, tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pickles are LiRE's, which tools.dataset converts" in done.stderr


def test_flat_columns_and_a_hidden_goal_are_read_as_what_they_are(tmp_path):
    buffer = lire(0, 2, PLAIN)
    buffer |= {name: buffer[name][:, 0] for name in ("rewards", "dones")}
    path = convert(tmp_path, write(tmp_path, [buffer]), "--pairs", "5", env=PLAIN)
    np.testing.assert_array_equal(METAWORLD.read_transitions(path, HIDDEN).reward, buffer["rewards"])
    with pytest.raises(InputError, match=rf"0 of 1,000 rows show the goal.* {TASK.env} all do; is it --env {PLAIN}\?"):
        convert(tmp_path, write(tmp_path, [buffer]))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


def without(name):
    return lambda buffer: {key: array for key, array in buffer.items() if key != name}


def put(name, change):
    return lambda buffer: {**buffer, name: change(buffer[name].copy())}


def at(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("dones"), r"holds observations \(1500, 39\), .*; LiRE's have observations, .*, dones"),
        (put("observations", lambda x: x[:, :17]), r"'observations' has shape \(1000, 17\), not 1000 x 39"),
        (put("actions", lambda x: x[:, :3]), r"'actions' has shape \(1000, 3\)"),
        (put("rewards", lambda x: x[:-1]), r"rewards \(1499, 1\).*one row a step"),
        (put("rewards", lambda x: np.array(1.0)), r"rewards \(\).*one row a step"),
        (put("dones", at(20, 1)), "episodes do not all have 500 steps"),
        (put("next_observations", at((20, 5), 1)), "episodes do not all have 500 steps"),
        (put("observations", at((20, 5), np.nan)), "'observations' holds NaN"),
        (put("actions", lambda x: 2 * x), "values outside"),
        (put("dones", lambda x: x.astype("S1")), r"its items are of the type \|S1"),
        (put("dones", lambda x: x.tolist()), "its 'dones' is list, not an array"),
        (put("dones", lambda x: x.astype(object)), "its items are of the type object"),
        (put("dones", lambda x: Hostile()), "it would call"),
        (lambda buffer: buffer["observations"], "holds ndarray, not a dict of arrays"),
        (lambda buffer: {}, "holds nothing; LiRE's have"),
        (lambda buffer: {name: array[:700] for name, array in buffer.items()},
         r"has 700 rows, and --quality 0.01 takes 1,000; this file has 0.005 at most"),
        (lambda buffer: pickle.dumps(buffer)[:-9], "cannot be read"),
        (lambda buffer: b"", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_pickles_are_refused_in_one_line(buffers, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    files = write(tmp_path, [buffers[0], change(buffers[1])])
    with pytest.raises(InputError, match=said) as refused:
        convert(tmp_path, files)
    assert files[1] in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("hostile")) and not list(tmp_path.rglob("*.hdf5"))


def test_wrong_words_are_refused_in_one_line(buffers, tmp_path):
    files = write(tmp_path, buffers)

    def refused(said: str, *words, **more):
        with pytest.raises(InputError, match=said) as error:
            convert(tmp_path, *words, **more)
        assert "\n" not in str(error.value)

    refused("--quality 0.012: takes 1,200 rows, and an episode has 500; take a multiple of 0.005", files,
            "--quality", "0.012")  # fmt: skip
    refused("--quality 1e-09: takes 0 rows", files, "--quality", "1e-9")
    refused("takes 100,000; this file has 0.015 at most", files, "--quality", "1")
    refused("--quality 0.0: must be in", files, "--quality", "0")
    refused("--tie-margin -1.0: must be in", files, "--tie-margin", "-1")
    refused("no such file", [*files, str(tmp_path / "saved_replay_buffer_1000000_seed3.pkl")])
    refused("is converted first, by --out FILE.hdf5", files, "--out", "pairs.npz")
    refused("is converted first, by --out FILE.hdf5", files, "--teacher", "perfect")
    refused(f"1,000 of 1,000 rows show the goal.* none do; is it --env {TASK.env}", files, env=PLAIN)
    refused(f"--env hopper-medium-v2: pickles are LiRE's, of MetaWorld: --env .*{SEEN}", files, env="hopper-medium-v2")
    refused("--quality, --tie-margin: are of LiRE's --dataset", [], "--out", "")
    assert not list(tmp_path.rglob("lire.hdf5"))


def test_where_nothing_can_be_written_it_says_so(buffers, tmp_path):
    (tmp_path / "new").touch()
    words = ["--env", TASK.env, "--dataset", *write(tmp_path, buffers[:1]), "--quality", "0.01", "--out", "new/x.hdf5"]
    done = subprocess.run(["python", "-m", "tools.dataset", *words], **environment(tmp_path, tmp_path) | {"env": {
        **os.environ, "PYTHONPATH": str(REPOSITORY)}})  # fmt: skip
    assert done.returncode and done.stderr.count("\n") == 1 and "choose another --out" in done.stderr, done.stderr


def test_a_task_of_another_suite_has_no_such_name():
    assert isinstance(resolve(f"{PLAIN}{SEEN}"), Task)
    with pytest.raises(InputError, match="no such environment"):
        identify(f"lift-ph{SEEN}")
