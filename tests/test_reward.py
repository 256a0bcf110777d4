"""tools.reward: numbers of the learned reward, its pictures, its film, and the dataset labelled with it."""

from __future__ import annotations

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
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import parse_args
from common.files import InputError
from tests.conftest import SMALL
from tools import report, reward
from tools.reward import RewardArgs, correlations, draw_film, read_run, score_pairs, write_film


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


@pytest.mark.parametrize("script", ["ipl_iql", "mr_iql", "pt_iql"])
def test_a_run_is_looked_at(whole, data_dir, tmp_path, capsys, script):
    reward.main(args(data_dir, whole(script), out=tmp_path))
    said = capsys.readouterr().out
    assert "10 pairs held out | accuracy" in said and "by episode | spearman" in said
    assert ("log-loss" in said) == (script != "pt_iql")  # its rewards are no log-odds
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".pdf", ".png"]
    assert min(Image.open(next(tmp_path.glob("*.png"))).size) > 500


def test_several_runs_are_compared_and_join_the_report(whole, data_dir, tmp_path, capsys):
    folders = [whole(script) for script in ("ipl_iql", "mr_iql", "pt_iql")]
    reward.main(args(data_dir, *folders, out=tmp_path))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 5 and rows[0][3] == "accuracy" and "spearman by episode" in rows[0][-1]
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


def test_rewards_of_pt_iql_are_those_that_it_trains_iql_on(whole, data_dir, monkeypatch):
    run, (dataset,) = read_run(whole("pt_iql"), data_dir), (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    p, t = reward.read_data(run)[0], suites.metaworld.read_transitions(dataset, run.task)
    model = pt_iql.make_reward_model(run.args, 1, 39, 4).eval()
    model.load_state_dict(torch.load(run.folder / "reward.pt", weights_only=True)["model"])
    monkeypatch.setattr(pt_iql, "train_reward", lambda *_: model)
    pairs = PreferenceBuffer(p.obs, p.action, p.start[:50], p.label[:50], p.length, p.reward, "cpu")
    replay = ReplayBuffer(t.obs, t.action, t.reward, t.next_obs, t.terminal, "cpu")
    one = SimpleNamespace(runs=[SimpleNamespace(time={"train": 0.0})], task=run.task, check_stop=lambda: None)
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
    (dataset,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    with h5py.File(path) as new, h5py.File(dataset) as old:
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
    (dataset,) = (data_dir / "metaworld").glob("drawer-open-v2*.hdf5")
    for target in ("a.npz", str(tmp_path / "none/a.hdf5"), str(dataset)):
        with pytest.raises(InputError, match=r"must be an \.hdf5 in a folder that exists"):
            reward.main(args(data_dir, whole(), relabel=target))
    with pytest.raises(InputError, match="must be an"):
        reward.main(args(data_dir, changed, film="film.avi"))
    env = {**os.environ, "IPL_DATA_DIR": str(data_dir)}
    line = [sys.executable, "-m", "tools.reward", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no run's folder" in done.stderr
