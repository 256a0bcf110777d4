"""The mathematics: losses against numbers worked by hand, the whole update against the original's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algorithms import ipl_iql
from algorithms.ipl_iql import (
    Args,
    expectile_loss,
    implied_reward,
    init,
    log_prob,
    make_batch,
    make_update,
    preference_loss,
)
from common.runs import tree_map
from tests import parity

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
OBS, ACT = 5, 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_parity_with_the_original(path):
    result = parity.compare(path)
    assert result["max_param_diff"] <= 1e-9
    assert result["max_loss_diff"] <= 1e-9


def test_parity_command():
    done = subprocess.run([sys.executable, "-m", "tests.parity", GOLDEN[0]], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"algo", "max_param_diff", "max_loss_diff"}
    missing = subprocess.run([sys.executable, "-m", "tests.parity", "nowhere.npz"], capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


def test_parity_notices_a_changed_update(monkeypatch):
    """The comparison must be able to fail: with another expectile the parameters differ."""
    true = parity.make_args
    monkeypatch.setattr(parity, "make_args", lambda *a: replace(true(*a), expectile=0.6))
    assert parity.compare(GOLDEN[0])["max_param_diff"] > 1e-6


def test_expectile_loss_by_hand():
    # u = 2 weighs 0.75, u = -1 weighs 0.25: (0.75 * 4 + 0.25 * 1) / 2
    loss = expectile_loss(torch.tensor([[2.0, -1.0]]), 0.75, torch.tensor([0.5, 0.5]))
    assert loss.tolist() == [1.625]


def test_implied_reward_by_hand():
    reward = implied_reward(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[10.0, 10.0]]), torch.tensor([[0.5, 0.0]]))
    assert reward.tolist() == [[[-4.0, 2.0]]]  # 1 - 0.5 * 10; a terminal state has no next value


def test_preference_loss_by_hand():
    # two pairs of two steps: sums 1 and 3 in the first segments, 2 and 0 in the second
    reward = torch.tensor([[[0.5, 0.5, 1.0, 2.0, 1.0, 1.0, 0.0, 0.0]]])
    loss, accuracy = preference_loss(reward, torch.tensor([[1.0, 0.5]]))
    by_hand = (math.log(1 + math.exp(-1.0)) + 0.5 * (math.log(1 + math.exp(3.0)) + math.log(1 + math.exp(-3.0)))) / 2
    assert loss.item() == pytest.approx(by_hand)
    assert accuracy.item() == 1.0  # the tie does not count
    assert preference_loss(reward, torch.tensor([[0.0, 0.0]]))[1].item() == 0.5


def test_log_prob_by_hand():
    got = log_prob(torch.zeros(1, 1, 2), torch.tensor([[[0.0, math.log(2.0)]]]), torch.tensor([[[1.0, 2.0]]]))
    assert got.item() == pytest.approx(-0.5 - 0.5 - math.log(2.0) - math.log(2 * math.pi))


# ---------------------------------------------------------------- seeds, compilation
def small(**changes) -> Args:
    return replace(Args(hidden_sizes=(16, 16), preference_batch_size=4, segment_length=6), **changes)


def batches(args: Args, seeds: list[int], steps: int, replay: bool):
    """Random batches; each seed's numbers depend on the seed and the step alone."""
    transitions = args.preference_batch_size * 2 * (args.segment_length - 1)

    def draw(n: int, seed: int, step: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(1000 * seed + 10 * step + (n != transitions))
        rand = {
            name: torch.randn(n, size, generator=g) for name, size in (("obs", OBS), ("next_obs", OBS), ("action", ACT))
        }
        label = torch.randint(0, 2, (args.preference_batch_size,), generator=g).to(rand["obs"].dtype)
        return {
            **rand,
            "action": rand["action"].tanh(),
            "label": label,
            "terminal": (torch.rand(n, generator=g) < 0.1).float(),
        }

    def stacked(n: int, step: int) -> dict[str, torch.Tensor]:
        return tree_map(lambda *leaves: torch.stack(leaves), *[draw(n, seed, step) for seed in seeds])

    for step in range(steps):
        yield make_batch(args, seeds, step, stacked(transitions, step), stacked(10, step) if replay else None)


def final_state(args: Args, seeds: list[int], steps: int = 20, replay: bool = True, wrap=lambda update: update) -> dict:
    state = tree_map(lambda *leaves: torch.stack(leaves), *[init(args, seed, OBS, ACT) for seed in seeds])
    update = wrap(make_update(args))
    for batch in batches(args, seeds, steps, replay):
        update(state, batch)
    return state


def largest_difference(a: dict, b: dict) -> float:
    found: list[float] = []
    tree_map(lambda x, y: found.append((x - y).abs().max().item()), a, b)
    return max(found)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1, "target_clipping": True}], ids=["plain", "dropout-clipping"])
def test_stacked_seeds_equal_separate_ones(double, changes):
    args = small(**changes)
    together = final_state(args, [3, 4, 5])
    for k, seed in enumerate([3, 4, 5]):
        alone = final_state(args, [seed])
        assert largest_difference(tree_map(lambda leaf, k=k: leaf[k : k + 1], together), alone) <= 1e-9


@pytest.mark.parametrize("replay", [False, True])
def test_compiled_equals_eager(double, replay):
    """As one graph, traced through autograd. The learning test runs the C++ back end where there is a compiler."""
    torch._dynamo.config.trace_autograd_ops = True
    args = small(target_clipping=replay)
    compiled = final_state(args, [1, 2], 10, replay, lambda u: torch.compile(u, backend="aot_eager", fullgraph=True))
    assert largest_difference(compiled, final_state(args, [1, 2], 10, replay)) <= 1e-12


def test_clipping_bounds_the_next_value():
    """With target clipping an enormous V leaves rewards of at most |q| + gamma / (c (1 - gamma))."""
    args = small(target_clipping=True, chi2_coeff=2.0, gamma=0.9)
    state = tree_map(lambda leaf: leaf.unsqueeze(0), init(args, 1, OBS, ACT))
    state["value"]["b2"] += 1e6
    batch = next(batches(args, [1], 1, replay=False))
    reward = make_update(args)(state, batch)["train/reward"].item()
    assert abs(reward) < 0.9 / (2.0 * 0.1) + 1


def test_module_has_no_state_of_its_own():
    """Two updates from one `make_update` on two states do not touch each other."""
    args = small()
    update, states = make_update(args), [tree_map(lambda leaf: leaf[None], init(args, 1, OBS, ACT)) for _ in range(2)]
    batch = next(batches(args, [1], 1, replay=False))
    update(states[0], batch)
    assert largest_difference(states[1], tree_map(lambda leaf: leaf[None], init(args, 1, OBS, ACT))) == 0
    assert ipl_iql.ALGORITHM == "ipl_iql"
