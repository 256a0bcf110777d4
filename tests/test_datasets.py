"""The MetaWorld dataset and the reading of files, on the real simulator."""

from __future__ import annotations

import multiprocessing
import shutil

import h5py
import numpy as np
import pytest

from algorithms.ipl_iql import policy
from common import suites
from common.actors import Actor
from common.arrays import read_arrays
from common.cli import parse_args
from common.data import read_preferences
from common.errors import InputError
from common.rollouts import evaluate
from common.seeds import of_dataset, seed_of, start_of_evaluation
from common.suites import SUITES, identify, metaworld, resolve
from common.suites.base import Recipe, draw_pairs
from common.suites.metaworld import HORIZON, KINDS, SEEN, SEGMENT, SUCCESS_STEPS, TASKS, MetaWorld
from common.suites.suite import read_rows
from common.workers import Workers
from tools import dataset

ENV = "drawer-open-v2"
TASK, METAWORLD = resolve(ENV), SUITES["metaworld"]


@pytest.fixture(scope="module")
def path(data_dir):
    return next((data_dir / "metaworld").glob("*.hdf5"))


def test_names_are_metaworlds():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert sorted(f"{task}-v3" for task in TASKS) == sorted(ALL_V3_ENVIRONMENTS)
    assert identify("drawer-open") == identify("drawer-open-v3") == ("metaworld", ENV)
    with pytest.raises(InputError, match="drawer-open-v2"):
        identify("drawr-open-v2")


def test_the_goal_is_hidden_and_drawn_by_the_seed():
    hidden, visible = MetaWorld(ENV), MetaWorld(ENV + SEEN)
    a, b, c = (sim.reset(seed=seed)[0] for sim, seed in ((hidden, 3), (visible, 3), (visible, 4)))
    assert (a[-3:] == 0).all() and (b[-3:] != 0).any() and (a[:-3] == b[:-3]).all()
    assert (b[-3:] != c[-3:]).any()
    goal = {"goal": visible.goal}
    assert (visible.reset(seed=5, options=goal)[0] == c).all()  # the goal asked for, whatever the seed


def test_protocol(path):
    arrays = read_rows(path, TASK)
    length, row, kind = (arrays[f"episodes/{name}"] for name in ("length", "row", "kind"))
    assert kind.tolist() == [0, 1, 2, 3]
    success = [arrays["success"][r : r + n] for r, n in zip(row, length, strict=True)]
    for n, s in zip(length, success, strict=True):
        assert n == HORIZON or s.sum() == SUCCESS_STEPS
    assert success[0].max() == 1 and length[0] < HORIZON  # the expert does the task
    assert (arrays["obs"][:, -3:] == 0).all()
    assert np.abs(arrays["action"]).max() <= 1
    assert (arrays["action"][row + length] == 0).all()  # beside the final observation


def test_expert_actions_replay_to_the_stored_observations(path):
    """obs[t + 1] is what action[t] leads to from obs[t], and reward[t] what it earns."""
    arrays = read_rows(path, TASK)
    sim = suites.make(TASK)
    obs = sim.reset(seed=seed_of(0, 0, 0))[0]
    for t in range(int(arrays["episodes/length"][0])):
        np.testing.assert_array_equal(arrays["obs"][t], obs.astype(np.float32))
        obs, reward, *_ = sim.step(arrays["action"][t])
        assert arrays["reward"][t] == np.float32(reward)


def test_labels_are_the_discounted_returns(path):
    arrays, p = read_rows(path, TASK), read_preferences(path, TASK)
    for (a, b), label in zip(p.start, p.label, strict=True):
        first, second = (sum(0.99**t * float(arrays["reward"][r + t]) for t in range(SEGMENT)) for r in (a, b))
        assert label == (0.5 if first == second else float(second > first))
    end = arrays["episodes/row"] + arrays["episodes/length"]
    episode = np.searchsorted(end, p.start, side="right")
    assert (p.start + SEGMENT <= end[episode]).all() and (p.start >= arrays["episodes/row"][episode]).all()


def test_ties_are_half():
    _, label = draw_pairs(np.array([60]), np.array([0]), np.zeros(61), 20, 0, SEGMENT, 0.99)
    assert (label == 0.5).all()


def test_transitions_do_not_cross_episodes(path):
    arrays, t = read_rows(path, TASK), METAWORLD.read_transitions(path, TASK)
    assert len(t.obs) == arrays["episodes/length"].sum() and not t.terminal.any()
    n = int(arrays["episodes/length"][0])
    np.testing.assert_array_equal(t.next_obs[n - 1], arrays["obs"][n])  # the final observation of episode 0
    np.testing.assert_array_equal(t.obs[n], arrays["obs"][n + 1])  # the first one of episode 1
    inside = np.ones(len(t.obs) - 1, bool)
    inside[np.cumsum(arrays["episodes/length"])[:-1] - 1] = False
    np.testing.assert_array_equal(t.next_obs[:-1][inside], t.obs[1:][inside])


def test_same_data_for_any_number_of_workers(tmp_path):
    files = []
    for count in (1, 2, 3):
        workers = Workers(count)
        recipe = Recipe(episodes=2, pairs=20, seed=5)
        files.append(read_arrays(METAWORLD.dataset(TASK, tmp_path / str(count), workers, recipe)))
        workers.close()
    for other in files[1:]:
        assert other.keys() == files[0].keys()
        for name in files[0]:
            np.testing.assert_array_equal(files[0][name], other[name])
    assert files[0]["protocol"]["kinds"] == list(KINDS) and files[0]["protocol"]["seed"] == 5


def _build(folder, results):
    builds = []
    real = metaworld.build
    metaworld.build = lambda *args: (builds.append(1), real(*args))
    workers = Workers(1)
    METAWORLD.dataset(TASK, folder, workers, Recipe(episodes=1, pairs=5))
    workers.close()
    results.put(len(builds))


def test_two_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=_build, args=(tmp_path, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(results.get(timeout=120) for _ in both) == [0, 1]
    for process in both:
        process.join()
    assert not list(tmp_path.rglob("*.partial"))


def test_build_command(tmp_path, capsys):
    dataset.main(dataset.DatasetArgs(env=ENV, episodes=1, pairs=10, data_dir=tmp_path, noise=0.0))
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS) and "10 pairs" in printed
    with pytest.raises(InputError, match="--episodes 0"):
        parse_args(dataset.DatasetArgs(), ["--episodes", "0"])


def test_evaluation_is_the_same_for_any_number_of_workers():
    rng = np.random.default_rng(0)
    actor = {"w0": rng.normal(size=(1, 39, 4)).astype(np.float32), "b0": np.zeros((1, 1, 4), np.float32)}
    actor["log_std"] = np.zeros(4, np.float32)
    rows = []
    for count in (1, 2):
        workers = Workers(count)
        rows.append(evaluate(workers, TASK, [Actor(policy, actor)] * 2, [1, 2], 0, 2))
        workers.close()
    assert rows[0] == rows[1]
    assert rows[0][0] != rows[0][1]  # seeds meet other goals
    assert rows[0][0]["episodes"] == 2 and rows[0][0]["length"] == 500


# ---------------------------------------------------------------- wrong files
def npz(tmp_path, **changes):
    """A file of the released format; None removes a key."""
    rng = np.random.default_rng(0)
    arrays = {"obs_1": rng.normal(size=(6, 25, 39)), "obs_2": rng.normal(size=(6, 25, 39))}
    arrays["label"] = np.arange(6) % 3 / 2
    arrays |= {"action_1": rng.uniform(-1, 1, (6, 25, 4)), "action_2": rng.uniform(-1, 1, (6, 25, 4)), **changes}
    file = tmp_path / "pairs.npz"
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file, arrays


def test_released_format(tmp_path):
    file, arrays = npz(tmp_path)
    p = read_preferences(file, TASK)
    assert p.length == 25 and p.start.shape == (6, 2)
    for k in range(6):
        for side in (0, 1):
            rows = slice(p.start[k, side], p.start[k, side] + 25)
            np.testing.assert_array_equal(p.obs[rows], arrays[f"obs_{side + 1}"][k].astype(np.float32))
            np.testing.assert_allclose(p.action[rows], arrays[f"action_{side + 1}"][k], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obs_2": None}, "obs_2"),
        ({"label": np.full(6, 0.3)}, "label"),
        ({"label": np.zeros(5)}, "label"),
        ({"obs_1": np.full((6, 25, 39), np.nan)}, "NaN"),
        ({"action_2": np.zeros((6, 24, 4))}, "action_2"),
        ({"obs_1": np.zeros((6, 25, 17)), "obs_2": np.zeros((6, 25, 17))}, "obs_1"),  # another environment's
        ({"label": np.array([{}] * 6)}, "holds Python objects"),  # would have to be unpickled
    ],
)
def test_wrong_preferences_are_refused_in_one_line(tmp_path, changes, said):
    file, _ = npz(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as refused:
        read_preferences(file, TASK)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_wrong_datasets_are_refused_in_one_line(path, tmp_path):
    def refused(said: str, file, env=ENV):
        with pytest.raises(InputError, match=said) as error:
            read_preferences(file, resolve(env))
        assert "\n" not in str(error.value)

    refused("no such file", tmp_path / "nowhere.hdf5")
    refused("built for drawer-open-v2", path, "button-press-v2")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(npz(tmp_path)[0].read_bytes()[:-50])
    refused("cannot be read", cut)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:5000])
    refused("cannot be read", cut)
    without = tmp_path / "without.hdf5"
    shutil.copy(path, without)
    with h5py.File(without, "a") as file:
        del file["preferences/label"]
    refused("checksum is wrong", without)
    without.write_bytes(without.read_bytes()[512:])  # one's own file has none
    refused("preferences/label", without)
    for name, change, said in (("episodes/row", lambda x: x.astype(float), "float64, not whole numbers"),
                               ("episodes/row", lambda x: x[:0], "'episodes/length' has shape"),
                               ("preferences/start", lambda x: x + 0.5, "float64, not whole numbers")):  # fmt: skip
        own = tmp_path / "own.hdf5"
        own.write_bytes(path.read_bytes()[512:])
        with h5py.File(own, "a") as file:
            changed = change(file[name][:])
            del file[name]
            file[name] = changed
        refused(said, own)


def test_no_two_streams_share_a_start():
    """Of datasets and evaluations. What is published keeps its own: dataset 0, and runs of seeds from 1 on."""
    datasets = {seed_of(*of_dataset(d, episode, which)) for d in range(4) for episode in range(50) for which in (0, 1)}
    runs = {start_of_evaluation(k, step, i) for k in range(4) for step in (0, 1, 2500) for i in range(20)}
    assert len(datasets) == 400 and len(runs) == 240 and not datasets & runs
    assert start_of_evaluation(1, 2500, 3) == seed_of(1, 2500, 3) and of_dataset(0, 7, 1) == (0, 7, 1)
