"""The mathematics: losses against numbers worked by hand, the whole update against the original's."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch

from algorithms import bc, cpl, ipl_iql, mr_iql
from algorithms.cpl import contrastive_loss, row_shares, whole_segments
from algorithms.ipl_iql import expectile_loss, implied_reward, log_prob, preference_loss
from algorithms.ipl_xql import gumbel_loss
from common.actors import Actor
from common.trees import leaves, tree_map, unstack
from tests import parity
from tests.conftest import SHIPPED, few_of

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
OBS, ACT = 5, 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_parity_with_the_original(path):
    result = parity.compare(path)
    assert max(result["max_param_diff"], result["max_loss_diff"]) <= parity.tolerance(result["algo"])


def test_every_script_with_an_original_has_golden_numbers():
    assert {parity.read_case(path)[0]["algo"] for path in GOLDEN} == set(SHIPPED) - {"ipl_xql"}


def test_parity_command():
    done = subprocess.run([sys.executable, "-m", "tests.parity", GOLDEN[0]], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"algo", "max_param_diff", "max_loss_diff"}
    missing = subprocess.run([sys.executable, "-m", "tests.parity", "nowhere.npz"], capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


def test_parity_notices_a_changed_update(monkeypatch):
    """The comparison must be able to fail: with another expectile the parameters differ."""
    true = parity.make_args
    monkeypatch.setattr(parity, "make_args", lambda *a: replace(true(*a), expectile=0.6))
    assert parity.compare(GOLDEN[0].parent / "ipl_iql_replay.npz")["max_param_diff"] > 1e-6


@pytest.mark.parametrize(("name", "value"), [("contrastive_bias", 0.9), ("alpha", 0.2), ("warmup_steps", 1)])
def test_parity_notices_a_changed_cpl(monkeypatch, name, value):
    true = parity.make_args
    monkeypatch.setattr(parity, "make_args", lambda *a: replace(true(*a), **{name: value}))
    assert parity.compare(GOLDEN[0].parent / "cpl_bias.npz")["max_param_diff"] > 1e-6


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


def test_contrastive_loss_by_hand():
    def loss(label: float, bias: float) -> tuple[float, float]:
        """Two segments of two steps, advantages -1 and -3."""
        adv = torch.tensor([[-0.25, -0.75, -2.0, -1.0]], dtype=torch.float64)
        return tuple(x.item() for x in contrastive_loss(adv, torch.tensor([[label]], dtype=torch.float64), bias))

    def by_hand(better: float, worse: float) -> float:
        return math.log(1 + math.exp(worse - better))

    assert loss(0.0, 1.0) == (pytest.approx(by_hand(-1.0, -3.0)), 1.0)
    assert loss(1.0, 1.0) == (pytest.approx(by_hand(-3.0, -1.0)), 0.0)
    assert loss(0.0, 0.5) == (pytest.approx(by_hand(-1.0, 0.5 * -3.0)), 1.0)
    assert loss(1.0, 0.5) == (pytest.approx(by_hand(-3.0, 0.5 * -1.0)), 0.0)
    assert loss(0.5, 0.5)[0] == pytest.approx((loss(0.0, 0.5)[0] + loss(1.0, 0.5)[0]) / 2)  # a tie; no accuracy


def test_contrastive_loss_without_bias_is_the_cross_entropy_of_the_difference():
    generator = torch.Generator().manual_seed(0)
    adv = torch.randn(2, 2 * 8 * 3, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 2, (2, 8), generator=generator).double()
    first, second = adv.view(2, 2, 8, 3).sum(-1).unbind(1)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(second - first, label, reduction="none").mean(-1)
    torch.testing.assert_close(contrastive_loss(adv, label, 1.0)[0], wanted)
    reward = preference_loss(adv.unsqueeze(1), label)  # IPL's, of a reward instead of an advantage
    torch.testing.assert_close(contrastive_loss(adv, label, 1.0), reward)


@pytest.mark.parametrize("adv", [[-1e3, 1e3], [1e3, -1e3], [-1e3, -1e3], [1e3, 1e3]])
@pytest.mark.parametrize("label", [0.0, 0.5, 1.0])
def test_contrastive_loss_and_its_gradient_are_finite(adv, label):
    adv = torch.tensor([adv], requires_grad=True)
    loss, _ = contrastive_loss(adv, torch.tensor([[label]]), 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), adv)
    assert loss.isfinite().all() and gradient.isfinite().all() and 0 <= loss.item() <= 2e3


def test_cloning_by_hand():
    """Rows of the preferred segments share alike, of both where they tie; log pi is minus the squared distance."""
    label, obs = torch.tensor([[1.0, 0.0, 0.5]]), torch.zeros(1, 12, OBS)  # three pairs of two steps
    wanted = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]]) / 8
    torch.testing.assert_close(row_shares(label, obs), wanted)
    torch.testing.assert_close(row_shares(None, obs), torch.full((1, 12), 1 / 12))
    assert cpl.log_prob(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 2.0]]])).item() == -5.0


def test_whole_segments_hold_every_step_in_its_order():
    obs, last = torch.arange(12.0).view(1, 12, 1), torch.tensor([[[100.0], [101.0], [102.0], [103.0]]])
    rows = whole_segments({"obs": obs, "action": -obs, "last_obs": last, "last_action": -last})
    wanted = [0, 1, 2, 100, 3, 4, 5, 101, 6, 7, 8, 102, 9, 10, 11, 103]
    assert rows["obs"].flatten().tolist() == wanted and rows["action"].flatten().tolist() == [-x for x in wanted]


def test_gumbel_loss_by_hand():
    weight = torch.ones(1)
    for diff in (-2.0, 0.0, 1.0):
        by_hand = math.exp(diff / 0.5) - diff / 0.5 - 1
        assert gumbel_loss(torch.tensor([[diff]]), 0.5, 5.0, weight).item() == pytest.approx(by_hand, abs=1e-6)
    # beyond the clip: the tangent of exp at 5, exp(5) (1 + 10 - 5)
    assert gumbel_loss(torch.tensor([[5.0]]), 0.5, 5.0, weight).item() == pytest.approx(6 * math.exp(5) - 11, rel=1e-6)


@pytest.mark.parametrize("diff", [-1e3, 1e3])
def test_gumbel_loss_and_its_gradient_are_finite_and_point_to_q(diff):
    v = torch.tensor([[0.0]], requires_grad=True)
    loss = gumbel_loss(torch.tensor([[diff]]) - v, 0.1, 5.0, torch.ones(1))
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    assert loss.isfinite().all() and gradient.isfinite().all() and gradient.item() * diff < 0


def test_gumbel_regression_of_large_temperature_is_the_mean_and_of_small_the_maximum():
    q, weight = torch.tensor([[0.0, 1.0, 5.0]], dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)

    def minimum(alpha: float) -> float:
        grid = torch.linspace(-1, 6, 7001, dtype=torch.float64)
        losses = torch.stack([gumbel_loss(q - v, alpha, 1e3, weight) for v in grid])
        return grid[losses.argmin()].item()

    assert minimum(1e3) == pytest.approx(2.0, abs=0.01)  # the mean
    # the soft maximum, alpha log mean exp(q / alpha)
    assert minimum(0.5) == pytest.approx(0.5 * math.log((1 + math.exp(2) + math.exp(10)) / 3), abs=1e-3)


# ---------------------------------------------------------------- seeds, compilation
SCRIPTS = [importlib.import_module(f"algorithms.{name}") for name in SHIPPED]


def small(script=ipl_iql, **changes):
    args = script.Args(hidden_sizes=(16, 16), preference_batch_size=4, segment_length=6, total_steps=40)
    changes = {"bc_steps": 5, "warmup_steps": 3, "dropout": 0.0, **changes}
    return replace(args, **{name: value for name, value in changes.items() if hasattr(args, name)})


def batches(script, args, seeds: list[int], steps: int, replay: bool):
    """Random batches; each seed's numbers depend on the seed and the step alone."""
    pairs = args.preference_batch_size

    def draw(n: int, seed: int, step: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(1000 * seed + 10 * step + (n == 10))
        sizes = {"obs": (n, OBS), "next_obs": (n, OBS), "action": (n, ACT), "last_obs": (2 * pairs, OBS)}
        rand = {name: torch.randn(size, generator=g) for name, size in sizes.items()}
        label = torch.randint(0, 2, (pairs,), generator=g).to(rand["obs"].dtype)
        more = {"last_action": rand["last_obs"][:, :ACT].tanh(), "reward": rand["obs"].sum(-1), "label": label}
        return {**rand, **more, "action": rand["action"].tanh(), "terminal": (torch.rand(n, generator=g) < 0.1).float()}

    def stacked(n: int, step: int) -> dict[str, torch.Tensor]:
        return tree_map(lambda *leaves: torch.stack(leaves), *[draw(n, seed, step) for seed in seeds])

    for step in range(steps):
        segments = stacked(2 * pairs * (args.segment_length - 1), step)
        yield script.make_batch(args, seeds, step, segments, stacked(10, step) if replay else None)


def final_state(
    script, args, seeds: list[int], steps: int = 20, replay: bool = True, wrap=lambda update: update, device="cpu"
) -> dict:
    states = [script.init(args, seed, OBS, ACT) for seed in seeds]
    state = tree_map(lambda *leaves: torch.stack(leaves).to(device), *states)
    update = parity.updates(script, args, wrap)
    for step, batch in enumerate(batches(script, args, seeds, steps, replay)):
        update(state, tree_map(lambda leaf: leaf.to(device), batch), step)
    return tree_map(lambda leaf: leaf.cpu(), state)


def largest_difference(a: dict, b: dict) -> float:
    return max((x - y).abs().max().item() for (_, x), (_, y) in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.ALGORITHM)
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1, "target_clipping": True, "normalize_reward": True}],
                         ids=["plain", "more-flags"])  # fmt: skip
def test_stacked_seeds_equal_separate_ones(double, script, changes):
    args = small(script, **changes)
    together = final_state(script, args, [3, 4, 5])
    for k, seed in enumerate([3, 4, 5]):
        alone = final_state(script, args, [seed])
        assert largest_difference(tree_map(lambda leaf, k=k: leaf[k : k + 1], together), alone) <= 1e-9


KINDS = [(script, replay) for script in SCRIPTS for replay in (False, True)]
QUICK = (ipl_iql, True), (cpl, False)


@pytest.mark.parametrize(("script", "replay"), few_of(KINDS, *QUICK), ids=lambda x: getattr(x, "ALGORITHM", x))
def test_compiled_equals_eager(double, script, replay):
    """As one graph, traced through autograd. The learning test runs the C++ back end where there is a compiler."""
    torch.compiler.reset()
    torch._dynamo.config.trace_autograd_ops = True
    args = small(script, target_clipping=replay, normalize_reward=replay, reward_steps=5)

    def compiled(update):
        return torch.compile(update, backend="aot_eager", fullgraph=True)

    got = final_state(script, args, [1, 2], 10, replay, compiled)
    assert largest_difference(got, final_state(script, args, [1, 2], 10, replay)) <= 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.ALGORITHM)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_gpu_computes_what_a_cpu_does(double, script, compiled):
    torch.compiler.reset()
    torch._dynamo.config.trace_autograd_ops = True
    args = small(script, dropout=0.1, reward_steps=5)
    wrap = functools.partial(torch.compile, fullgraph=True) if compiled else lambda update: update
    got = final_state(script, args, [1, 2], 10, wrap=wrap, device="cuda")
    assert largest_difference(got, final_state(script, args, [1, 2], 10)) <= 1e-6


def test_clipping_bounds_the_next_value():
    """With target clipping an enormous V leaves rewards of at most |q| + gamma / (c (1 - gamma))."""
    args = small(target_clipping=True, chi2_coeff=2.0, gamma=0.9)
    state = tree_map(lambda leaf: leaf.unsqueeze(0), ipl_iql.init(args, 1, OBS, ACT))
    state["value"]["b2"] += 1e6
    batch = next(batches(ipl_iql, args, [1], 1, replay=False))
    reward = ipl_iql.make_update(args)(state, batch)["train/reward"].item()
    assert abs(reward) < 0.9 / (2.0 * 0.1) + 1


def last(script, args, steps: int) -> dict:
    """The state after an update with `args` of what `steps - 1` updates at a constant rate make."""
    state = final_state(script, dataclasses.replace(args, actor_cosine=False), [1], steps - 1)
    *_, batch = batches(script, args, [1], steps, replay=True)
    parity.updates(script, args)(state, batch, steps - 1)
    return state


@pytest.mark.parametrize("script", [s for s in SCRIPTS if hasattr(s.Args, "actor_cosine")], ids=lambda s: s.ALGORITHM)
def test_cosine_ends_at_zero_and_only_for_the_actor(double, script):
    args, constant = (small(script, total_steps=20, actor_cosine=cosine) for cosine in (True, False))
    rates, before = [], None
    for steps in (0, 1, 10, 11, 19, 20):  # how far one update moves the actor by each schedule, from one state
        state = final_state(script, constant, [1], steps)
        if steps in (1, 11, 20):
            moved = [after["actor"]["b0"] - before["actor"]["b0"] for after in (last(script, args, steps), state)]
            rates.append((moved[0].norm() / moved[1].norm()).item())
        before = state
    assert rates == pytest.approx([1.0, 0.5, 0.5 + 0.5 * math.cos(math.pi * 19 / 20)])
    falling, steady = final_state(script, args, [1]), final_state(script, constant, [1])
    assert largest_difference(falling["actor"], steady["actor"]) > 0
    if "value" in falling:  # IPL-AWAC's critic learns from the actor's actions
        assert largest_difference(falling["critic"], steady["critic"]) == 0


def test_reward_model_stops_learning_after_its_steps():
    args = small(mr_iql, reward_steps=5)
    early, late = (final_state(mr_iql, args, [1], steps)["reward"] for steps in (5, 9))
    assert largest_difference(early, late) == 0
    assert largest_difference(early, final_state(mr_iql, args, [1], 4)["reward"]) > 0


def standing_still(seeds: list[int], **changes):
    """Args of mr_iql whose reward model hardly learns, a state of these seeds, and the update."""
    args = small(mr_iql, normalize_reward=True, lr=1e-12, **changes)
    state = tree_map(lambda *leaves: torch.stack(leaves), *(mr_iql.init(args, seed, OBS, ACT) for seed in seeds))
    return args, state, parity.updates(mr_iql, args)


@pytest.mark.parametrize("replay", [False, True], ids=["segments", "replay"])
def test_standardised_rewards_have_mean_0_and_standard_deviation_1_over_the_data(double, replay):
    """Here every batch is all the data. `learned_reward` gives the rewards that IQL learns from, and a batch after
    --reward-steps leaves their scale as it is."""
    args, state, update = standing_still([1, 2], reward_steps=3)
    state["reward"]["w2"] *= 10
    state["reward"]["b2"] += 100
    data, later = batches(mr_iql, args, [1, 2], 2, replay)
    for step in range(3):
        metrics = update(state, data, step)
    learned = mr_iql.learned_reward(state, data, args)
    torch.testing.assert_close(learned.mean(-1), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(learned.std(-1, correction=0), torch.ones(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["train/reward"], learned.mean(-1), rtol=0, atol=1e-6)
    scale = tree_map(torch.clone, state["scale"])
    metrics = update(state, later, 3)
    assert largest_difference(state["scale"], scale) == 0 and metrics["train/reward"].abs().min() > 0.01
    r = mr_iql.rewards(state["reward"], later["obs"], later["action"])
    by_hand = (r.mean(-1) - scale["mean"]) / (scale["square"] - scale["mean"] ** 2).sqrt()
    torch.testing.assert_close(metrics["train/reward"], by_hand)


def test_the_scale_of_rewards_averages_100_batches_and_then_follows(double):
    args, state, update = standing_still([1], reward_steps=200)
    means = []
    for step, batch in enumerate(batches(mr_iql, args, [1], 102, replay=False)):
        update(state, batch, step)
        means.append(mr_iql.rewards(state["reward"], batch["obs"], batch["action"]).mean().item())
        if step in (0, 1, 99):
            assert state["scale"]["mean"].item() == pytest.approx(sum(means) / len(means), abs=1e-9)
    by_hand = 0.99 * (0.99 * sum(means[:100]) / 100 + 0.01 * means[100]) + 0.01 * means[101]
    assert state["scale"]["mean"].item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("at", [4, 5, 6])
def test_standardised_rewards_resume_across_the_end_of_reward_steps(at):
    """From the state after `at` updates alone, bitwise: in 5 the reward model learns."""
    args = small(mr_iql, normalize_reward=True, reward_steps=5, dropout=0.1)
    state, update = final_state(mr_iql, args, [1], at), parity.updates(mr_iql, args)
    for step, batch in list(enumerate(batches(mr_iql, args, [1], 9, replay=True)))[at:]:
        update(state, batch, step)
    assert largest_difference(state, final_state(mr_iql, args, [1], 9)) == 0


def test_the_scale_changes_iql_and_not_the_reward_model():
    plain, scaled = (small(mr_iql, normalize_reward=flag, reward_steps=5) for flag in (False, True))
    before, after = (final_state(mr_iql, args, [1], 9) for args in (plain, scaled))
    assert set(after) - set(before) == {"scale"} and largest_difference(before["reward"], after["reward"]) == 0
    assert largest_difference(before["critic"], after["critic"]) > 0


def test_the_reference_is_the_actor_at_the_end_of_cloning(double):
    args = small(cpl, reference=True)
    cloned, later = (final_state(cpl, args, [1], steps, replay=False) for steps in (5, 9))
    assert largest_difference(cloned["reference"], cloned["actor"]) == 0
    assert largest_difference(later["reference"], cloned["reference"]) == 0
    assert largest_difference(later["reference"], later["actor"]) > 0
    assert "reference" not in final_state(cpl, small(cpl), [1], 1)


def test_adam_starts_from_scratch_after_cloning_and_the_learning_rate_rises(double):
    args = small(cpl, lr_multiplier=0.5)
    states = [final_state(cpl, args, [1], steps, replay=False) for steps in range(5, 11)]
    for i, rate in enumerate((0.5 / 3, 1 / 3, 0.5, 0.5, 0.5), start=1):
        m, v = (states[i]["adam"]["actor"][name]["w0"] for name in ("m", "v"))
        step = rate * args.lr * (m / (1 - 0.9**i)) / ((v / (1 - 0.999**i)).sqrt() + 1e-8)
        torch.testing.assert_close(states[i - 1]["actor"]["w0"] - states[i]["actor"]["w0"], step)


@pytest.mark.parametrize("at", [4, 5, 6])
def test_cpl_resumes_across_the_end_of_cloning(at):
    """From the state after `at` updates alone, bitwise: 5 are of cloning."""
    args = small(cpl, reference=True, dropout=0.1)
    state, update = final_state(cpl, args, [1], at, replay=False), parity.updates(cpl, args)
    for step, batch in list(enumerate(batches(cpl, args, [1], 9, replay=False)))[at:]:
        update(state, batch, step)
    assert largest_difference(state, final_state(cpl, args, [1], 9, replay=False)) == 0


@pytest.mark.parametrize("script", [bc, cpl], ids=lambda script: script.ALGORITHM)
def test_cloning_of_the_preferred_differs_from_cloning_of_all(double, script):
    """BC takes all segments first; CPL clones what --bc-data says from the first update on."""
    plain, preferred = (small(script, bc_data=data) for data in ("all", "preferred"))
    early, late = ([final_state(script, args, [1], steps, replay=False)["actor"] for args in (plain, preferred)]
                   for steps in (5, 6))  # fmt: skip
    assert (largest_difference(*early) == 0) == (script is bc)
    assert largest_difference(*late) > 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.ALGORITHM)
def test_evaluation_runs_the_network_that_is_trained(script):
    """The mean of `policy`, of one observation and of several, also where it went through a worker's pickle."""
    actor = tree_map(lambda p: p.unsqueeze(0) + 0.1, script.init(small(script), 1, OBS, ACT)["actor"])
    obs = torch.randn(1, 7, OBS, generator=torch.Generator().manual_seed(0))
    trained = script.policy(actor, obs)
    trained = trained[0] if isinstance(trained, tuple) else trained  # mean and log_std, or the action alone
    act = Actor(script.policy, tree_map(lambda p: p.numpy(), unstack(actor, 1)[0]))
    for acting in (act, cloudpickle.loads(cloudpickle.dumps(act))):
        for k in range(7):
            torch.testing.assert_close(torch.from_numpy(acting(obs[0, k].numpy())), trained[0, k].clamp(-1, 1))
        torch.testing.assert_close(torch.from_numpy(acting(obs[0].numpy())), trained[0].clamp(-1, 1))


# ---------------------------------------------------------------- one house style
ALL = tuple("ipl_iql ipl_awac ipl_xql mr_iql pt_iql iql".split())
CLONES = ("bc", "cpl")
MAY_DIFFER = {  # name: (reason, the groups of scripts within which it is still the same)
    "Args": ("each method's own hyper-parameters", []),
    "init": ("each method's own networks", [("ipl_iql", "ipl_xql", "iql", "pt_iql")]),
    "draw_noise": ("ipl_awac samples actions", [("ipl_iql", "ipl_xql", "mr_iql", "iql", "pt_iql", *CLONES)]),
    "make_batch": ("IPL joins segments and replay, the others choose one of them",
                   [("ipl_iql", "ipl_awac", "ipl_xql"), ("iql", "pt_iql")]),
    "make_update": ("the method", []),
    "make_updates": ("the method", []),
    "fill_in": ("cpl warms up", []),
    "next_value": ("IPL-AWAC's is of an action", [("ipl_iql", "ipl_xql")]),
    "policy": ("another actor", [ALL, CLONES]),
    "log_prob": ("an actor without standard deviation", [ALL, CLONES]),
    "learned_reward": ("each method's own reward", [("ipl_iql", "ipl_xql")]),
    "train_seeds": ("mr_iql and cpl have two updates; iql and bc need no pairs where they have the dataset",
                    [("ipl_iql", "ipl_awac", "ipl_xql", "pt_iql"), ("iql", "bc")]),
    "train": ("pt_iql trains its reward model first, iql needs rewards, bc and cpl check their steps of cloning",
              [("ipl_iql", "ipl_awac", "ipl_xql", "mr_iql")]),
}  # fmt: skip


@pytest.mark.house
def test_same_names_mean_the_same_code():
    seen: dict[tuple, tuple[str, str]] = {}
    for script in SCRIPTS:
        for node in ast.parse(Path(script.__file__).read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            _, groups = MAY_DIFFER.get(node.name, ("", [tuple(s.ALGORITHM for s in SCRIPTS)]))
            group = next((g for g in groups if script.ALGORITHM in g), script.ALGORITHM)
            first, code = seen.setdefault((node.name, group), (script.ALGORITHM, ast.unparse(node)))
            assert ast.unparse(node) == code, (
                f"{node.name} differs between {first} and {script.ALGORITHM}: make it the same, rename it, or give the "
                "reason in MAY_DIFFER"
            )
    assert {"mlp", "adam_", "descend", "train_seeds"} <= {name for name, _ in seen}


@pytest.mark.house
def test_shared_arguments_have_the_same_words():
    words: dict[str, str] = {}
    for script in SCRIPTS:
        body = next(
            n for n in ast.parse(Path(script.__file__).read_text()).body if getattr(n, "name", "") == "Args"
        ).body
        for field, help_text in zip(body[1::2], body[2::2], strict=True):
            name = field.target.id
            # the dataset joins the segments or replaces them; two papers' alpha; transitions or all steps of a window;
            # what follows cloning
            if name not in ("use_replay", "alpha", "segment_length", "bc_steps"):
                assert words.setdefault(name, help_text.value.value) == help_text.value.value, name
