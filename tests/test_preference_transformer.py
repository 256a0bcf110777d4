"""The reward model of pt_iql: what it may see, how it labels, that it learns."""

from __future__ import annotations

import pytest
import torch

from algorithms import pt_iql
from algorithms.pt_iql import Args, PreferenceTransformer, label_transitions, reward_lr, train_reward
from common.errors import Interrupted
from common.seed_folder import SeedFolder
from common.trees import read_saved

OBS, ACT, STEPS = 5, 3, 8


def make(layers: int = 2, weighted_sum: bool = True) -> PreferenceTransformer:
    torch.manual_seed(0)
    model = PreferenceTransformer(OBS, ACT, 16, layers, 4, 0.1, weighted_sum, pref_width=16).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # as far from trivial as trained weights
    return model


def segments(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, STEPS, n, generator=g, dtype=torch.float64) for n in (OBS, ACT))


@pytest.mark.parametrize("weighted_sum", [True, False])
def test_later_steps_change_no_earlier_reward(weighted_sum):
    model, (obs, action) = make(weighted_sum=weighted_sum), segments()
    mask = torch.ones(obs.shape[:2], dtype=torch.float64)
    before, score = model(obs, action, mask)
    for t in range(1, STEPS):
        changed = obs.clone()
        changed[:, t:] += 1
        after, _ = model(changed, action, mask)
        assert torch.equal(after[:, :t], before[:, :t]) and (after[:, t] != before[:, t]).all()
    _, other_score = model(changed, action, mask)
    assert (other_score != score).all()


def test_a_steps_own_observation_and_action_change_its_reward():
    model, (obs, action) = make(), segments()
    mask = torch.ones(obs.shape[:2], dtype=torch.float64)
    before = model(obs, action, mask)[0][:, -1]
    for which in (0, 1):
        inputs = [obs.clone(), action.clone()]
        inputs[which][:, -1] += 1
        assert (model(*inputs, mask)[0][:, -1] != before).all()


def test_padding_changes_nothing():
    model, (obs, action) = make(), segments()
    mask = torch.ones(obs.shape[:2], dtype=torch.float64)
    plain, _ = model(obs, action, mask)
    for fill in (0.0, 7.0):
        pad = [torch.cat([torch.full_like(x[:, :3], fill), x], 1) for x in (obs, action, mask)]
        pad[2][:, :3] = 0
        padded, _ = model(*pad)
        torch.testing.assert_close(padded[:, 3:], plain, rtol=0, atol=1e-12)
        assert padded.isfinite().all()


@pytest.mark.parametrize(("layers", "weighted_sum"), [(1, True), (1, False), (3, True)])
def test_windowed_labels_equal_a_slow_loop(layers, weighted_sum):
    model, window = make(layers, weighted_sum), 5
    g = torch.Generator().manual_seed(2)
    lengths = [3, 200, 1, 140]  # more than a chunk of rows
    obs, action = (torch.randn(sum(lengths), n, generator=g, dtype=torch.float64) for n in (OBS, ACT))
    first = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])
    fast = label_transitions(model, obs, action, first, window, scale=500)
    slow = []
    for t in range(len(obs)):
        rows = slice(max(int(first[t]), t - window + 1), t + 1)
        with torch.no_grad():
            reward, _ = model(obs[rows][None], action[rows][None], torch.ones(1, rows.stop - rows.start).double())
        slow.append(reward[0, -1])
    slow = torch.stack(slow)
    returns = torch.stack([part.sum() for part in slow.split(lengths)])
    torch.testing.assert_close(fast, slow * 500 / (returns.max() - returns.min()), rtol=1e-9, atol=1e-9)


def test_learning_rate_warms_up_and_falls():
    assert reward_lr(0) == pytest.approx(1e-4) and reward_lr(0.1) == pytest.approx(1e-3)
    assert reward_lr(0.05) == pytest.approx(5.5e-4) and reward_lr(1) == pytest.approx(1e-4)


def rows(seed: SeedFolder) -> list[dict[str, float]]:
    return [{name: float(cell) for name, cell in row.items()} for row in seed.log.rows["reward"]]


def synthetic(pairs: int) -> dict[str, torch.Tensor]:
    """Pairs whose label is the larger sum of |obs[0]| + action[0], a reward that no linear model gives."""
    g = torch.Generator().manual_seed(3)
    obs, action = torch.randn(pairs, 2, 6, OBS, generator=g), torch.randn(pairs, 2, 6, ACT, generator=g).tanh()
    returns = (obs[..., 0].abs() + action[..., 0]).sum(-1)
    return {"obs": obs, "action": action, "label": (returns[:, 1] > returns[:, 0]).float()}


def small_args(**changes) -> Args:
    sizes = {"reward_width": 32, "reward_batch_size": 64, "reward_patience": 0, "reward_dropout": 0.0}
    return Args(**{**sizes, "reward_epochs": 40, **changes})


@pytest.mark.thorough
def test_held_out_pairs_are_predicted(tmp_path):
    seed = SeedFolder(tmp_path / "seed-1", small_args(), "pt_iql")
    train_reward(small_args(), seed, synthetic(2000))
    assert max(row["reward/held_out_accuracy"] for row in rows(seed)) > 0.9


def test_reward_model_resumes_where_it_was_stopped(tmp_path, monkeypatch):
    """Stopped between two checks and started again: bitwise the model of an uninterrupted training."""
    monkeypatch.setattr(pt_iql, "REWARD_SAVE_EVERY", 0)
    data, args = synthetic(200), small_args(reward_epochs=15, reward_dropout=0.1)
    whole, stopped = (SeedFolder(tmp_path / name, args, "pt_iql") for name in ("whole", "stopped"))
    expected = train_reward(args, whole, data)

    batches = iter(range(20))  # in the middle of epoch 7

    def check_stop() -> None:
        if next(batches, None) is None:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_reward(args, stopped, data, check_stop)
    assert read_saved(stopped.path / "reward.pt", ("epoch",))["epoch"] == 6
    got = train_reward(args, stopped, data)
    assert rows(whole) == rows(stopped)
    for a, b in zip(expected.parameters(), got.parameters(), strict=True):
        assert torch.equal(a, b)


def test_patience_ends_the_training(tmp_path):
    data = synthetic(100)
    data["label"] = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(4)).float()  # nothing to learn
    args = small_args(reward_epochs=500, reward_patience=2)
    seed = SeedFolder(tmp_path / "seed-1", args, "pt_iql")
    train_reward(args, seed, data)
    found = rows(seed)
    assert found[-1]["step"] < 500
    best = min(range(len(found)), key=lambda i: found[i]["reward/held_out_loss"])
    assert len(found) - 1 - best == 2
