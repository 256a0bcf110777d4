"""tools.reward: numbers of the learned reward, its pictures, its film, and the dataset labelled with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from common.cli import parse_args
from common.files import InputError
from tests.conftest import SMALL
from tools import reward
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


@pytest.mark.parametrize("script", ["ipl_iql", "mr_iql"])
def test_a_run_is_looked_at(whole, data_dir, tmp_path, capsys, script):
    reward.main(args(data_dir, whole(script), out=tmp_path))
    said = capsys.readouterr().out
    assert "10 pairs held out | accuracy" in said and "by episode | spearman" in said
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pdf", ".png"]
    assert min(Image.open(next(tmp_path.glob("*.png"))).size) > 500


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
    with pytest.raises(InputError, match="must be an"):
        reward.main(args(data_dir, changed, film="film.avi"))
    env = {**os.environ, "IPL_DATA_DIR": str(data_dir)}
    line = [sys.executable, "-m", "tools.reward", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no run's folder" in done.stderr
