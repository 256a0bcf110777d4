"""The MetaWorld dataset and the reading of files, on the real simulator."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from algorithms import bc, iql
from algorithms.ipl_iql import policy
from common import data, suites
from common.actors import Actor
from common.arrays import fingerprint, read_arrays, write_hdf5
from common.cli import default_args, parse_args
from common.data import read_preferences
from common.errors import InputError
from common.rollouts import evaluate
from common.seeds import of_dataset, seed_of, start_of_evaluation
from common.suites import SUITES, identify, metaworld, resolve
from common.suites.base import Recipe, check_labels, describe_pairs, draw_pairs
from common.suites.metaworld import HORIZON, KINDS, SEEN, SEGMENT, SUCCESS_STEPS, TASKS, MetaWorld
from common.suites.suite import read_rows
from common.trees import save
from common.workers import Workers
from tests.conftest import SMALL
from tools import dataset, report, reward

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
    assert (visible.reset(seed=3)[0] == b).all()


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


def test_some_kinds_of_episodes_alone_are_those_of_the_whole_dataset(path, tmp_path, capsys):
    flags = ["--kinds", "cross", "random", "--episodes", "1", "--pairs", "20", "--data-dir", str(tmp_path)]
    dataset.main(parse_args(dataset.DatasetArgs(), flags))
    (made,) = (tmp_path / "metaworld").glob("*_seed-0_random-cross.hdf5")
    assert "expert" not in capsys.readouterr().out.split(made.name)[1]
    suite = suites.SUITES["metaworld"]
    some, whole = suite.read_episodes(made, TASK), suite.read_episodes(path, TASK)
    assert len(some) == 2 and read_rows(made, TASK)["episodes/kind"].tolist() == [2, 3]
    for own, other in zip(some, whole[2:], strict=True):
        assert own.state == other.state and (own.obs == other.obs).all() and (own.action == other.action).all()


def test_evaluation_is_the_same_for_any_number_of_workers():
    rng = np.random.default_rng(0)
    actor = {"w0": rng.normal(size=(1, 39, 4)).astype(np.float32), "b0": np.zeros((1, 1, 4), np.float32)}
    actor["log_std"] = np.zeros(4, np.float32)
    rows = []
    for count in (1, 2):
        workers = Workers(count)
        rows.append(evaluate(workers, TASK, [Actor(policy, actor)] * 2, [1, 2], 0, 2).result())
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
                               ("success", lambda x: np.zeros(3), "'success' has shape"),
                               ("episodes/policy", lambda x: np.zeros(3, int), "'episodes/policy' has shape"),
                               ("preferences/start", lambda x: x + 0.5, "float64, not whole numbers")):  # fmt: skip
        own = tmp_path / "own.hdf5"
        own.write_bytes(path.read_bytes()[512:])
        with h5py.File(own, "a") as file:
            changed = change(file[name][:] if name in file else None)
            if name in file:
                del file[name]
            file[name] = changed
        refused(said, own)
    own.write_bytes(path.read_bytes()[512:])
    with h5py.File(own, "a") as file:
        changed = file["preferences/start"][:].astype(np.uint64)
        del file["preferences/start"]
        file["preferences/start"] = changed
    p = read_preferences(own, resolve(ENV))
    assert (p.start == changed).all() and len(describe_pairs(p)) > 1


def test_no_two_streams_share_a_start():
    """Of datasets and evaluations. What is published keeps its own: dataset 0, and runs of seeds from 1 on."""
    datasets = {seed_of(*of_dataset(d, episode, which)) for d in range(4) for episode in range(50) for which in (0, 1)}
    runs = {start_of_evaluation(k, step, i) for k in range(4) for step in (0, 1, 2500) for i in range(20)}
    assert len(datasets) == 400 and len(runs) == 240 and not datasets & runs
    assert start_of_evaluation(1, 2500, 3) == seed_of(1, 2500, 3) and of_dataset(0, 7, 1) == (0, 7, 1)


# ---------------------------------------------------------------- several files
def numbered(file: Path, first: int, pairs: int, steps: int) -> Path:
    """An NPZ in which the first number of each observation counts the rows from `first` on; the labels too differ."""
    obs = np.zeros((2, pairs, steps, 39))
    obs[..., 0] = first + np.arange(2 * pairs * steps).reshape(2, pairs, steps)
    action = np.zeros((2, pairs, steps, 4))
    label = (np.arange(pairs) + first) % 2
    np.savez(file, obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1], label=label)
    return file


def episodes(file: Path, first: int, steps: int, rewards: float = 0.0) -> Path:
    """An HDF5 of one episode whose observations count as above, with two pairs of 10 steps."""
    obs = np.zeros((steps + 1, 39))
    obs[:, 0] = first + np.arange(steps + 1)
    write_hdf5(file, {"obs": obs, "action": np.zeros((steps + 1, 4)), "reward": np.full(steps + 1, rewards),
                      "episodes/row": np.array([0]), "episodes/length": np.array([steps]),
                      "preferences/start": np.array([[0, 5], [steps - 10, 1]]), "preferences/label": np.array([0, 1])},
               {"segment": 10})  # fmt: skip
    return file


def load(tmp_path, *words):
    """What `bc` loads for a command line."""
    line = ["--env", ENV, "--preference-batch-size", "1", *map(str, words)]
    args = parse_args(default_args(bc.Args, bc.DEFAULTS, line), [*line, "--data-dir", str(tmp_path)])
    return data.load_buffers(args, TASK, Workers(1), "cpu")


def one_line(match: str, action, *words) -> None:
    with pytest.raises(InputError, match=match) as error:
        action(*words)
    assert "\n" not in str(error.value)


def test_pairs_of_several_files_count_in_the_order_given(tmp_path):
    one, two = numbered(tmp_path / "one.npz", 0, 3, 20), numbered(tmp_path / "two.npz", 1001, 4, 20)
    own = episodes(tmp_path / "own.hdf5", 5000, 40)
    pairs, _, fingerprints = load(tmp_path, "--preferences", one, two)
    first = pairs.obs[:, 0][pairs.start].tolist()
    assert first == [[0, 60], [20, 80], [40, 100], [1001, 1081], [1021, 1101], [1041, 1121], [1061, 1141]]
    assert pairs.label.tolist() == [0, 1, 0, 1, 0, 1, 0] and pairs.lengths is None and pairs.length == 20
    other, _, turned = load(tmp_path, "--preferences", two, one)
    assert other.obs[:, 0][other.start].tolist() == first[3:] + first[:3]  # the same pairs
    assert fingerprints == {"preferences": fingerprint(one, two)} and turned["preferences"] == fingerprint(two, one)
    assert fingerprints != turned
    some, *_ = load(tmp_path, "--preferences", one, two, "--num-preferences", 5)
    assert some.obs[:, 0][some.start].tolist() == first[:5]
    mixed, *_ = load(tmp_path, "--preferences", own, one, "--num-preferences", 3)
    assert mixed.obs[:, 0][mixed.start].tolist() == [[5000, 5005], [5030, 5001], [0, 60]] and mixed.reward is None
    both, *_ = load(tmp_path, "--preferences", own, episodes(tmp_path / "b.hdf5", 7000, 30, 2.0))
    assert both.reward.tolist() == [0.0] * 41 + [2.0] * 31


def test_what_a_file_says_of_pairs_that_are_drawn_counts(tmp_path):
    """The segment and the discount of its protocol; and numbers of another machine's byte order."""
    path, length = tmp_path / "own.hdf5", np.array([20, 20])
    reward = np.r_[np.arange(21.0), np.arange(21.0)[::-1]]
    rows = {"obs": np.ones((42, 39), ">f4"), "action": np.zeros((42, 4), ">f4"), "reward": reward.astype(">f8")}
    of = {"episodes/row": np.array([0, 21]), "episodes/length": length, "episodes/seed": np.arange(2)}
    write_hdf5(path, rows | of, {"segment": 10, "gamma": 0.5})
    p = read_preferences(path, TASK)
    label = read_preferences(path, TASK).label.astype(">f4")
    assert check_labels(path, label, len(label)).dtype.isnative
    for wrong in ({"gamma": None}, {"gamma": "x"}, {"keys": 3}):
        write_hdf5(tmp_path / "wrong.hdf5", rows | of, {"segment": 10, **wrong})
        with pytest.raises(InputError, match=r"protocol has the discount|observations are 3"):
            read_preferences(tmp_path / "wrong.hdf5", TASK)
    assert (p.length, p.gamma) == (10, 0.5) and all(x.dtype.isnative for x in (p.obs, p.action, p.reward))
    sums = (reward[p.start[..., None] + np.arange(10)] * 0.5 ** np.arange(10)).sum(-1)
    assert (p.label == np.where(sums[:, 0] == sums[:, 1], 0.5, sums[:, 1] > sums[:, 0])).all()


def test_pairs_of_another_environment_are_named_and_other_arrays_are_not_read(tmp_path, capsys):
    path = numbered(tmp_path / "p.npz", 0, 3, 20)
    arrays = dict(np.load(path))
    np.savez(path, **arrays, env="drawer-open-v2", info=np.array({"a": 1}, dtype=object))
    assert len(read_preferences(path, resolve("drawer-open-v2")).label) == 3 and not capsys.readouterr().err
    read_preferences(path, resolve("button-press-v2"))
    assert "p.npz: its pairs are of drawer-open-v2, not of button-press-v2; are they" in capsys.readouterr().err


def test_a_length_is_that_of_the_pairs_which_are_taken(tmp_path):
    one, two = numbered(tmp_path / "one.npz", 0, 3, 50), numbered(tmp_path / "two.npz", 1001, 4, 20)
    pairs, *_ = load(tmp_path, "--preferences", one, two, "--num-preferences", 3, "--segment-length", 40)
    assert pairs.length == 50 and pairs.lengths is None
    pairs, *_ = load(tmp_path, "--preferences", one, two, "--num-preferences", 4)
    assert pairs.length == 20 and pairs.lengths.tolist() == [50, 50, 50, 20]


@pytest.mark.parametrize(("script", "flag"), [(bc, "--bc-steps=1"), (iql, "--no-actor-cosine")])
def test_what_learns_from_the_dataset_needs_no_pairs(tmp_path, script, flag):
    """Of a file whose episodes are shorter than a segment; an older run, which read pairs too, resumes."""
    path, rows = tmp_path / "own.hdf5", {"obs": np.zeros((21, 39)), "action": np.zeros((21, 4)), "reward": np.ones(21)}
    write_hdf5(path, rows | {"episodes/row": np.array([0]), "episodes/length": np.array([20])}, {})
    config = tmp_path / "runs/seed-1/config.json"
    for steps in (2, 4):
        line = [*SMALL, "--dataset", str(path), "--use-replay", "--run-dir", str(tmp_path / "runs"), flag]
        line += ["--eval-episodes", "1", "--total-steps", str(steps)]
        result = script.train(parse_args(default_args(script.Args, script.DEFAULTS, line), line))
        assert result[1]["last"]["step"] == steps
        saved = json.loads(config.read_text())
        assert list(saved["dataset_fingerprint"]) == ["dataset"]
        saved["dataset_fingerprint"]["preferences"] = "of old"
        config.write_text(json.dumps(saved))


@pytest.mark.parametrize("window", [0, 8, 20])
def test_windows_of_unequal_segments_stay_within_them(tmp_path, capsys, window):
    one, two = numbered(tmp_path / "one.npz", 0, 3, 20), numbered(tmp_path / "two.npz", 1001, 4, 50)
    pairs, *_ = load(tmp_path, "--preferences", one, two, "--segment-length", window)
    assert pairs.length == 20 and pairs.lengths.tolist() == [20] * 3 + [50] * 4
    said = capsys.readouterr().err
    assert ("segments have 20 to 50 steps; windows of 20 are taken from all" in said) == (window == 0)
    offsets: dict[int, set[int]] = {}
    batches, window = pairs.batches([1], 0, 7, window), window or 20
    for batch, _ in zip(batches, range(200), strict=False):
        ends = batch["last_obs"][0, :, :1].reshape(2, 7, 1)
        rows = np.concatenate([batch["obs"][0, :, 0].reshape(2, 7, -1), ends], 2)
        assert (np.diff(rows) == 1).all() and rows.shape == (2, 7, window)
        length = np.where(rows[..., 0] < 1000, 20, 50)
        offset = (np.where(rows[..., 0] < 1000, 0, -1001) + rows[..., 0]) % length
        assert (offset + window <= length).all() and (offset[0] == offset[1]).all()
        for steps, drawn in zip(length[0].tolist(), offset[0].tolist(), strict=True):
            offsets.setdefault(steps, set()).add(int(drawn))
    assert offsets == {steps: set(range(steps - window + 1)) for steps in (20, 50)}  # the end of the longer ones too
    again = next(pairs.batches([1], 30, 7, window))  # a resumed run draws the same
    batches = pairs.batches([1], 0, 7, window)
    for _ in range(30):
        next(batches)
    assert (next(batches)["obs"] == again["obs"]).all()


def test_transitions_of_several_datasets(tmp_path, path):
    one, two = episodes(tmp_path / "one.hdf5", 0, 20, 1.0), episodes(tmp_path / "two.hdf5", 1000, 30, 2.0)
    pairs, replay, fingerprints = load(tmp_path, "--dataset", one, two, "--use-replay", "--num-preferences", 0)
    assert replay.obs[:, 0].tolist() == [*range(20), *range(1000, 1030)] and len(pairs) == 4  # pairs of both
    assert replay.reward.tolist() == [1.0] * 20 + [2.0] * 30 and (replay.next_obs - replay.obs)[:, 0].unique() == 1
    assert fingerprints == {"preferences": fingerprint(one, two), "dataset": fingerprint(one, two)}
    own = tmp_path / "metaworld/drawer-open-v2_episodes-100_noise-1_pairs-10000_seed-0.hdf5"
    own.parent.mkdir()
    shutil.copy(path, own)
    words = ["--dataset", one, ENV, "--use-replay", "--num-preferences", 9]  # the id: the environment's own
    assert resolve(ENV, 0, (ENV, str(one))) == TASK
    _, beside, fingerprints = load(tmp_path, *words)
    assert len(beside) == 20 + len(METAWORLD.read_transitions(path, TASK).obs)
    assert fingerprints["dataset"] == fingerprint(one, path)
    assert data.joined([np.ones(2), None]) is None  # rewards: where all files have them


def test_one_wrong_file_of_several_is_refused_in_one_line(tmp_path, path):
    one, wide = numbered(tmp_path / "one.npz", 0, 3, 20), tmp_path / "wide.npz"
    zeros = {f"{name}_{k}": np.zeros((2, 20, n)) for k in (1, 2) for name, n in (("obs", 17), ("action", 4))}
    np.savez(wide, **zeros, label=np.zeros(2))
    longer = numbered(tmp_path / "longer.npz", 0, 3, 30)
    other = tmp_path / "other.hdf5"
    write_hdf5(other, {k: v for k, v in read_arrays(path).items() if k != "protocol"}, {"env": "button-press-v2"})
    for words, said in (
        (["--preferences", one, tmp_path / "none.npz"], "none.npz: no such file"),
        (["--preferences", one, wide], r"wide.npz: 'obs_1' has shape .*is it a file of this environment\?"),
        (["--dataset", path, other, "--use-replay"], "other.hdf5: was built for button-press-v2"),
        (["--preferences", longer, one, "--segment-length", 21], "the shortest segments have 20 steps; choose 2 to 20"),
        (["--preferences", one, longer, "--num-preferences", 7], "there are 6 pairs in .*one.npz .*longer.npz; 0"),
    ):
        one_line(said, load, tmp_path, *words)
    names = ("minari:me/mine-v0", "more.hdf5")
    one_line("minari:me/mine-v0 is a dataset of Minari, which is read without others", resolve, names[0], 0, names)
    two = (str(episodes(tmp_path / "a.hdf5", 0, 30)), str(path))
    args = dataset.DatasetArgs(ENV, dataset=two, teacher=("perfect",), out=str(tmp_path / "x.npz"))
    one_line("have segments of unequal length", dataset.main, args)
    hopper = ["--env", "hopper-medium-expert-v2", "--preference-labels", "crowd", "--dataset", "a.hdf5", "b.hdf5"]
    args = parse_args(default_args(bc.Args, bc.DEFAULTS, hopper), [*hopper, "--data-dir", str(tmp_path)])
    one_line("rows of one dataset; name one", data.find_files, args, resolve(args.env), None)


def test_a_run_on_several_files_resumes_on_the_same_ones_alone(run, tmp_path, data_dir, path):
    """And `tools.reward` reads all of them."""
    one, two = numbered(tmp_path / "one.npz", 0, 30, 20), numbered(tmp_path / "two.npz", 1001, 30, 30)
    more = episodes(tmp_path / "more.hdf5", 0, 60)
    words = [*SMALL, "--num-preferences", 55, "--use-replay", "--dataset", path, more, "--preferences", one, two]
    done = run("ipl_iql", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"runs/{ENV}/ipl_iql/seed-1"
    config = json.loads((folder / "config.json").read_text())
    assert config["args"]["dataset"] == [str(path), str(more)] and config["args"]["preferences"] == [str(one), str(two)]
    assert config["dataset_fingerprint"] == {"preferences": fingerprint(one, two), "dataset": fingerprint(path, more)}
    reward.main(parse_args(reward.RewardArgs((folder,), data_dir=data_dir, out=tmp_path / "out"), []))
    learned = reward.read_run(folder, data_dir)
    p, *_ = reward.read_data(learned)
    sums = reward.sums_of(learned, p, 10, 40)["learned"]  # 20 pairs of the shorter segments and 10 of the longer ones
    for pair, steps in ((10, 20), (39, 30)):
        for side in (0, 1):
            rows = slice(p.start[pair, side], p.start[pair, side] + steps - 1)
            following = slice(rows.start + 1, rows.stop + 1)
            each = learned.reward(p.obs[rows], p.action[rows], p.obs[following], np.zeros(steps - 1))
            assert sums[pair - 10, side] == pytest.approx(each.sum(), rel=1e-5)
    one_line("was trained on several datasets", reward.main,
             reward.RewardArgs((folder,), data_dir=data_dir, relabel=str(tmp_path / "x.hdf5")))  # fmt: skip
    again = run("ipl_iql", *words, "--total-steps", 60)
    assert again.returncode == 0, again.stderr
    turned = run("ipl_iql", *words, "--total-steps", 80, "--preferences", two, one)
    numbered(two, 1003, 30, 30)
    changed = run("ipl_iql", *words, "--total-steps", 80)
    for refused in (turned, changed):
        assert refused.returncode == 2 and refused.stderr.strip().count("\n") == 0
        assert "was started on other data, or on its files in another order" in refused.stderr


@pytest.mark.thorough
def test_runs_from_before_there_were_several_files_resume(whole, run, tmp_path, data_dir, path, capsys):
    """Their config.json and checkpoint.pt hold a string: one name or none."""
    for k, names in enumerate(({"dataset": "", "preferences": ""}, {"dataset": str(path), "preferences": str(path)})):
        folder = tmp_path / f"old-{k}/ipl_iql/seed-1"
        shutil.copytree(whole("ipl_iql"), folder)
        config = json.loads((folder / "config.json").read_text())
        config["args"] |= names
        (folder / "config.json").write_text(json.dumps(config))
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        save(folder / "checkpoint.pt", checkpoint | {"args": checkpoint["args"] | names})
        reward.main(parse_args(reward.RewardArgs((folder,), data_dir=data_dir, out=tmp_path / f"o{k}"), []))
        assert "10 pairs held out of the same episodes | accuracy" in capsys.readouterr().out
        report.main(report.ReportArgs((folder,), tmp_path / f"r{k}"))
        assert "ipl_iql" in (tmp_path / f"r{k}/tables.md").read_text()
        flags = [word for name, value in names.items() if value for word in (f"--{name}", value)]
        done = run("ipl_iql", *SMALL, *flags, "--total-steps", 60, "--run-dir", folder.parent)
        assert done.returncode == 0 and "60" in (folder / "eval.csv").read_text().splitlines()[-1], done.stderr
        written = json.loads((folder / "config.json").read_text())
        assert written["args"]["dataset"] == ([names["dataset"]] if names["dataset"] else [])
        assert written["dataset_fingerprint"] == config["dataset_fingerprint"]
    assert suites.several("") == suites.several(()) == () and suites.several("a b") == ("a b",)


def test_tools_dataset_takes_several(tmp_path):
    one, two = episodes(tmp_path / "one.hdf5", 0, 20, 1.0), episodes(tmp_path / "two.hdf5", 1000, 30, 2.0)
    line = [sys.executable, "-m", "tools.dataset", "--env", ENV, "--dataset", str(one), str(two)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "1 episodes of 20 to 20 steps" in done.stdout, done.stderr
    assert "1 episodes of 30 to 30 steps" in done.stdout and done.stdout.count("2 pairs of 10 steps") == 2
    out = tmp_path / "x.npz"
    args = dataset.DatasetArgs(ENV, dataset=(str(one), str(two)), teacher=("perfect",), out=str(out))
    dataset.main(args)
    assert read_preferences(out, TASK).obs[::10, 0].tolist() == [0, 10, 1000, 1020, 5, 1, 1005, 1001]
