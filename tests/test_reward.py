"""tools.reward: numbers of the learned reward, its pictures, its film, and the dataset labelled with it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from algorithms import pt_iql
from common import suites
from common.arrays import write_hdf5
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import parse_args
from common.data import read_preferences
from common.errors import InputError
from common.suites.base import Recipe
from common.workers import Workers
from tests.conftest import SMALL
from tools import dataset, report, reward
from tools.film import draw_film, write_film
from tools.reward import RewardArgs, correlations, read_run, score_pairs


def args(data_dir, *runs, **changes) -> RewardArgs:
    return parse_args(RewardArgs(runs, data_dir=data_dir, **changes), [])


def test_scores_by_hand():
    # logits 2, -1, 1 of labels 1, 1, and a tie, which the accuracy leaves out
    found = {"learned": np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]]), "label": np.array([1.0, 1.0, 0.5])}
    scores = score_pairs(found)
    assert scores["accuracy"][0] == 0.5
    by_hand = (np.log1p(np.exp(-2)) + np.log1p(np.exp(1)) + (np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2) / 3
    assert scores["log-loss"][0] == pytest.approx(by_hand)


def test_correlations_are_scipys_and_their_interval_covers():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=n) for n in (5, 40, 60, 80)]
    y = [part + rng.normal(size=len(part)) for part in x]
    found, (a, b) = correlations(x, y), (np.concatenate(v) for v in (x, y))
    assert found["pearson"][0] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found["spearman"][0] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert all(low < value < high for value, low, high in found.values())


def test_names_with_dots_have_pictures_of_their_own(tmp_path):
    """As gamma-0.9 and gamma-0.97 of sweeps/reward.sh."""
    for name in ("gamma-0.9", "gamma-0.97"):
        reward.write_figure(reward.Figure(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["gamma-0.9.png", "gamma-0.97.png"]


@pytest.mark.parametrize("script", ["ipl_iql", "mr_iql", "pt_iql"])
def test_a_run_is_looked_at(whole, data_dir, tmp_path, capsys, script):
    reward.main(args(data_dir, whole(script), out=tmp_path))
    said = capsys.readouterr().out
    assert "10 pairs held out of the same episodes | accuracy" in said and "by episode | spearman" in said
    assert ("log-loss" in said) == (script != "pt_iql")  # its rewards are no log-odds
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".pdf", ".png"]
    assert min(Image.open(next(tmp_path.glob("*.png"))).size) > 500


def test_several_runs_are_compared_and_join_the_report(whole, data_dir, tmp_path, capsys):
    folders = [whole(script) for script in ("ipl_iql", "mr_iql", "pt_iql")]
    reward.main(args(data_dir, *folders, out=tmp_path))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 5 and rows[0][3] == "accuracy, pairs held out of the same episodes"
    assert rows[0][2] == "pairs held out of the same episodes" and rows[2][2] == "10"
    assert "spearman by episode" in rows[0][-1]
    assert rows[-1][4] == "" and rows[-2][4] != ""  # log-loss
    assert min(Image.open(tmp_path / "compare.png").size) > 200 and (tmp_path / "compare.pdf").exists()
    report.main(report.ReportArgs((folders[0].parents[3],), tmp_path / "o", reward=str(tmp_path / "reward.csv")))
    table = (tmp_path / "o/tables.md").read_text().partition("Learned reward")[2]
    assert "| ipl_iql | 1 | 40 | success, % |" in table and rows[2][3].split(" ")[0] in table
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "reward.csv").read_text().replace("/seed-1,", "/seed-9,"))
    for wrong, words in ((other, "none of these runs"), (folders[0] / "eval.csv", "not a reward.csv")):
        with pytest.raises(InputError, match=words):
            report.main(report.ReportArgs((folders[0].parents[3],), tmp_path / "o", reward=str(wrong)))


def measured(folder) -> dict[tuple[str, str], dict]:
    """reward.csv: (what, measure) -> its row."""
    with open(folder / "reward.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "updates", "what", "measure", "value", "low", "high", "pairs"]
    return {(row["what"], row["measure"]): row for row in rows}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A small dataset of other episodes."""
    workers, folder = Workers(2), tmp_path_factory.mktemp("others")
    path = suites.SUITES["metaworld"].dataset(suites.resolve("drawer-open-v2"), folder, workers, Recipe(1, 1.0, 1, 30))
    workers.close()
    return path


@pytest.mark.parametrize("script", ["ipl_iql", "pt_iql"])
def test_a_reward_is_judged_by_episodes_that_the_run_never_saw(whole, data_dir, others, tmp_path, capsys, script):
    reward.main(args(data_dir, whole(script), out=tmp_path, preferences=(str(others),)))
    said, found = capsys.readouterr().out, measured(tmp_path)
    assert "30 pairs of other episodes | accuracy" in said and "10 pairs held out of the same" in said
    accuracy = found["pairs of other episodes", "accuracy"]
    run = read_run(whole(script), data_dir)
    reward.read_data(run)
    p = read_preferences(others, run.task)
    rows = p.start[..., None] + np.arange(24)  # a segment's transitions
    flat = rows.ravel()
    each = run.reward(p.obs[flat], p.action[flat], p.obs[flat + 1], np.zeros(len(flat)), flat * 0 + np.repeat(
        np.arange(0, len(flat), 24), 24)).reshape(rows.shape).sum(-1)  # fmt: skip
    right = ((each[:, 1] > each[:, 0]) == (p.label > 0.5))[p.label != 0.5]
    assert float(accuracy["value"]) == pytest.approx(right.mean(), abs=1e-5) and accuracy["pairs"] == "30"
    t = suites.SUITES["metaworld"].read_transitions(others, run.task)
    by_step = found["by step, other episodes", "pearson"]
    assert float(by_step["value"]) == pytest.approx(stats.pearsonr(reward.reward_of(run, t), t.reward)[0], abs=1e-4)
    assert by_step["value"] != found["by step", "pearson"]["value"] and by_step["pairs"] == ""
    assert (("pairs of other episodes", "log-loss") in found) == (script != "pt_iql")


def test_episodes_that_the_run_saw_are_refused(whole, data_dir, tmp_path):
    """Its own dataset, and some of it under other labels."""
    (own,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    teacher = tmp_path / "pairs.npz"
    dataset.main(dataset.DatasetArgs("drawer-open-v2", data_dir=data_dir, teacher=("mistake=1",), out=str(teacher)))
    for path in (own, teacher):
        with pytest.raises(InputError, match=r"120 of its 120 segments are in the data of .*; take other episodes"):
            reward.main(args(data_dir, whole(), out=tmp_path, preferences=(str(path),)))
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.npz"]


@pytest.fixture
def without_rewards(tmp_path, run):
    """A run on all pairs of an NPZ, which holds no reward, and its dataset, whose rewards are all zero."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(2, 60, 25, 39)), rng.uniform(-1, 1, (2, 60, 25, 4))
    obs[..., -3:] = 0  # the goal, which the environment hides
    np.savez(tmp_path / "p.npz", obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1],
             label=rng.integers(0, 2, 60))  # fmt: skip
    write_hdf5(tmp_path / "d.hdf5", {"obs": obs[0].reshape(-1, 39), "action": action[0].reshape(-1, 4),
               "reward": np.zeros(1500), "episodes/row": np.array([0, 700]), "episodes/length": np.array([699, 20])},
               {})  # fmt: skip
    done = run("ipl_iql", *SMALL, "--num-preferences", 0, "--preferences", "p.npz", "--use-replay", "--dataset",
               "d.hdf5")  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = run("ipl_iql", *SMALL, "--num-preferences", 0, "--preferences", "p.npz", "--run-dir", "alone")
    assert alone.returncode == 0, alone.stderr
    return tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1", tmp_path / "alone/seed-1"


def test_a_run_without_rewards_and_held_out_pairs(without_rewards, tmp_path):
    """Accuracy on what it was trained on, said so; how to hold some out; no correlation with a constant, no warning."""
    for k, folder in enumerate(without_rewards):
        line = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tools.reward", folder, "--out", tmp_path / str(k)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert "60 pairs trained on | accuracy | " in done.stdout and "nan" not in done.stdout
        hints = [said for said in done.stdout.splitlines() if "was trained on all of its pairs" in said]
        assert len(hints) == 1 and "--preferences FILE judges by others, or train on fewer than 60" in hints[0]
        left_out = [said for said in done.stdout.splitlines() if "no correlation by" in said]
        assert len(left_out) == (3 if k == 0 else 0)  # without a dataset there is nothing to correlate
        found = measured(tmp_path / str(k))
        assert set(found) == {("pairs trained on", "accuracy"), ("pairs trained on", "log-loss")}
        assert f"| accuracy | {float(found['pairs trained on', 'accuracy']['value']):.3f} |" in done.stdout
        picture = np.asarray(Image.open(next((tmp_path / str(k)).glob("*.png"))).convert("L"))
        assert (picture < 128).mean(0).astype(bool).mean() > 0.5  # not blank: ink in most columns
    pages = [*(tmp_path / "0").glob("*.png"), *(tmp_path / "1").glob("*.png")]
    assert pages[0].name != pages[1].name  # each run has its own, in one folder too
    both = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tools.reward", *without_rewards, "--out", "both"]
    done = subprocess.run(both, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr and (tmp_path / "both/compare.png").exists(), done.stderr


def test_correlations_with_a_constant_are_left_out():
    x = [np.arange(5.0), np.arange(3.0)]
    for constant in ([np.full(5, 0.1), np.full(3, 0.1)], [np.zeros(5), np.zeros(3)]):
        assert correlations(x, constant) == correlations(constant, x) == {}
    assert correlations([x[0][:1]], [x[0][:1]]) == correlations([x[0][:0]], [x[0][:0]]) == {}


def test_rewards_of_pt_iql_are_those_that_it_trains_iql_on(whole, data_dir, monkeypatch):
    run, (own,) = read_run(whole("pt_iql"), data_dir), (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    p, t = reward.read_data(run)[0], suites.SUITES["metaworld"].read_transitions(own, run.task)
    model = pt_iql.make_reward_model(run.args, 1, 39, 4).eval()
    model.load_state_dict(torch.load(run.folder / "reward.pt", weights_only=True)["model"])
    monkeypatch.setattr(pt_iql, "train_reward", lambda *_: model)
    pairs = PreferenceBuffer(p.obs, p.action, p.start[:50], p.label[:50], p.length, p.reward, "cpu")
    replay = ReplayBuffer(t.obs, t.action, t.reward, t.next_obs, t.terminal, "cpu")
    one = SimpleNamespace(folders=[SimpleNamespace(time={"train": 0.0})], task=run.task, check_stop=lambda: None)
    trained = pt_iql.relabel(run.args, one, pairs, replay)[1].reward[0].numpy()
    assert reward.reward_of(run, t) == pytest.approx(trained, rel=1e-5, abs=1e-5) and trained.std() > 0.01


def test_implied_reward_is_q_minus_discounted_v(whole, data_dir):
    run = read_run(whole(), data_dir)
    obs, next_obs, action = (np.random.default_rng(k).normal(size=(6, n)) for k, n in enumerate((39, 39, 4)))

    def net(name: str, x: np.ndarray, member: int = 0) -> np.ndarray:
        for i in range(3):
            w, b = (run.state[name][f"{p}{i}"][0, member].numpy() for p in "wb")
            x = x @ w + b
            x = np.maximum(x, 0) if i < 2 else x
        return x[:, 0]

    q = np.mean([net("critic", np.concatenate([obs, action], 1), k) for k in range(2)], 0)
    terminal = np.array([0, 0, 0, 0, 0, 1.0])
    by_hand = q - 0.99 * (1 - terminal) * net("value", next_obs)
    assert run.reward(obs, action, next_obs, terminal) == pytest.approx(by_hand, abs=1e-5)


def test_a_relabelled_dataset_trains_iql(whole, data_dir, tmp_path, run):
    path = tmp_path / "relabelled.hdf5"
    reward.main(args(data_dir, whole(), relabel=str(path)))
    (own,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    with h5py.File(path) as new, h5py.File(own) as old:
        protocol = json.loads(new.attrs["protocol"])
        assert protocol["reward"] == "learned by ipl_iql" and protocol["step"] == 40 and "git_commit" in protocol
        assert (new["obs"][:] == old["obs"][:]).all() and not np.allclose(new["reward"][:], old["reward"][:])
    done = run("iql", *SMALL, "--total-steps", 4, "--use-replay", "--dataset", path)
    assert done.returncode == 0, done.stderr


def noisy_pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (480, 480, 3), dtype=np.uint8) for _ in range(6)]  # noise: nothing is harder
    pictures = draw_film(frames, rng.normal(size=24), rng.normal(size=24))
    return pictures


@pytest.mark.parametrize("suffix", ["gif", "mp4"])
def test_films_are_written(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    write_film(path, noisy_pictures())
    assert path.stat().st_size > 1000 and (suffix == "mp4" or path.stat().st_size <= 1_000_000)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.thorough
def test_standardised_rewards_are_judged_but_not_as_log_odds(data_dir, tmp_path, run):
    """The reward of --normalize-reward is the plain one's in other units: the same but by episodes, of any length."""
    folders = []
    for name, flag in (("raw", "--no-normalize-reward"), ("scaled", "--normalize-reward")):
        done = run("mr_iql", *SMALL, "--use-replay", flag, "--run-dir", name)
        assert done.returncode == 0, done.stderr
        folders.append(tmp_path / name / "seed-1")
        reward.main(args(data_dir, folders[-1], out=tmp_path / f"{name}-out"))
    raw, scaled = measured(tmp_path / "raw-out"), measured(tmp_path / "scaled-out")
    assert raw.keys() - scaled.keys() == {("pairs held out of the same episodes", "log-loss")}
    for key in [key for key in scaled if key[0] != "by episode"]:
        assert float(scaled[key]["value"]) == pytest.approx(float(raw[key]["value"]), abs=1e-4), key
    (own,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    plain, other = (read_run(folder, data_dir) for folder in folders)
    t = suites.SUITES["metaworld"].read_transitions(own, other.task)
    mean, square = (other.state["scale"][name].item() for name in ("mean", "square"))
    by_hand = (reward.reward_of(plain, t) - mean) / np.sqrt(square - mean**2)
    learned = reward.reward_of(other, t)
    assert learned == pytest.approx(by_hand, abs=1e-4)
    # the moments are those of 40 batches, while the model moved
    assert abs(learned.mean()) < 0.5 and learned.std() == pytest.approx(1, abs=0.3)


def test_wrong_input(whole, data_dir, tmp_path):
    changed = tmp_path / "seed-1"
    shutil.copytree(whole(), changed)
    config = json.loads((changed / "config.json").read_text())
    config["dataset_fingerprint"]["preferences"] = "0" * 16
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"is not what .* was trained on"):
        reward.main(args(data_dir, changed, out=tmp_path))
    config["algorithm"] = "iql"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="iql has no learned_reward"):
        reward.main(args(data_dir, tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="take exactly one"):
        reward.main(args(data_dir, changed, changed, film="film.gif"))
    (own,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    for target in ("a.npz", str(tmp_path / "none/a.hdf5"), str(own)):
        with pytest.raises(InputError, match=r"must be an \.hdf5 in a folder that exists"):
            reward.main(args(data_dir, whole(), relabel=target))
    with pytest.raises(InputError, match="must be an"):
        reward.main(args(data_dir, changed, film="film.avi"))
    env = {**os.environ, "IPL_DATA_DIR": str(data_dir)}
    line = [sys.executable, "-m", "tools.reward", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no run's folder" in done.stderr
