"""IPL-XQL: Inverse Preference Learning on top of extreme Q-learning. Algorithm 1 of Hejna & Sadigh 2023
(arXiv 2305.15363), with V the soft maximum of Q by Gumbel regression (Garg et al. 2023); never released by its authors.

    python algorithms/ipl_xql.py --env button-press-topdown-v2

The Q-function implies a reward, r(s, a) = Q(s, a) - gamma V(s'), by the inverse soft Bellman operator, and Q is trained
so that this reward explains the labels (Bradley-Terry), with a chi^2 regulariser. One update:

    1. V      Gumbel regression towards the target critic's Q
    2. Q      mean over pairs of -log sigmoid(sum r+ - sum r-), + chi2_coeff times the mean of r^2, with the new V
    3. actor  advantage-weighted regression, with the new V
    4. target critic moves towards the critic

Shapes: S seeds (trained as one batch; nothing mixes them), E critics, B pairs, L transitions of a window,
N = 2BL + R flat rows [first segments | second segments | replay], O observation, A action.

Differences from the original code (github.com/jhejna/inverse-preference-learning), which has no XQL variant: all but
the value loss is as in its IPL-IQL, with ipl_iql's hyper-parameters and alpha = 1, our choice: on drawer-open-v2 with
10,000 pairs, three seeds end at success 1.00, 1.00, 1.00 after 10,000 steps; with 0.1 (and beta 0.1), 0.00, 0.20, 0.00,
because the exponential follows the largest errors of Q and V grows without end.
    [D1] each pair draws its own window start, from all offsets; the original draws one for the whole batch and never
         the last offset.
    [D2] an epoch's last, partial batch of pairs is dropped, so that every batch has the same shape.
    [D3] training reads one slowly moving copy, the critic's; the original makes one of every network.
    [D4] ties in generated data are labelled 0.5; the original's count as "first preferred".
    [D5] pairs are the first of one generated dataset (common/suites/metaworld.py), not of the released files.
    [D7] above clip_exponent the exponential continues as its tangent. XQL's code cuts z there, which leaves the largest
         errors without any gradient, and divides by exp(max z), which makes one row's gradient depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import main
from common.seeds import noise_seed
from common.training import Experiment, Training
from common.trees import tree_map

ALGORITHM = Path(__file__).stem
Params = dict[str, Tensor]  # weights w0, b0, w1, ...: (S, E, in, out), (S, E, 1, out); log_std: (S, A)
Batch = dict[str, Tensor]  # what an update reads: see make_batch
Metrics = dict[str, Tensor]  # what it says: (S,) each
State = dict  # networks: Params; adam: the moments of each, m and v: Params; step: (S,), the updates so far


# ---------------------------------------------------------------- arguments
@dataclass
class Args:
    """IPL-XQL: inverse preference learning on top of extreme Q-learning."""

    # ---- method
    gamma: Annotated[float, "[0, 1)"] = 0.99
    """discount, of environment steps"""
    tau: Annotated[float, "(0, 1]"] = 0.005
    """step size of the target critic (not the expectile)"""
    lr: Annotated[float, "(0, inf)"] = 3e-4
    """Adam's learning rate, all networks"""
    beta: Annotated[float, "(0, inf)"] = 1 / 3
    """temperature of the actor's weights: weight = exp(adv / beta); smaller is greedier"""
    clip_score: Annotated[float, "(0, inf)"] = 100.0
    """upper bound of the actor's weights"""
    alpha: Annotated[float, "(0, inf)"] = 1.0
    """temperature of V, the soft maximum of Q: smaller leans to the best actions, infinite is their mean"""
    clip_exponent: Annotated[float, "(0, inf)"] = 5.0
    """exponent of the value loss above which it continues as a straight line"""
    chi2_coeff: Annotated[float, "[0, inf)"] = 3.0
    """lambda, the weight of the regulariser; larger keeps the implied rewards smaller"""
    target_clipping: bool = False
    """bound next values by 1 / (chi2_coeff (1 - gamma)), as the original does"""
    actor_cosine: bool = False
    """let the actor's learning rate fall to zero along a cosine"""
    replay_weight: Annotated[float, "[0, 1]"] = 0.5
    """share of the offline dataset in every loss but the preference loss"""
    hidden_sizes: tuple[Annotated[int, "[1, inf)"], ...] = (256, 256, 256)
    """widths of the hidden layers, all networks"""
    num_critics: Annotated[int, "[1, inf)"] = 2
    """critics in the ensemble"""
    dropout: Annotated[float, "[0, 1)"] = 0.0
    """dropout of the actor's hidden layers"""
    preference_batch_size: Annotated[int, "[1, inf)"] = 16
    """pairs a step"""
    segment_length: Annotated[int, "[2, inf)"] = 16
    """observations of the window taken from each segment: one transition less"""
    replay_batch_size: Annotated[int, "[1, inf)"] = 256
    """transitions of the offline dataset a step"""

    # ---- data
    env: str = "button-press-topdown-v2"
    """MetaWorld task, robomimic or D4RL name, Gymnasium id, or module:Id; decides the defaults of all the rest"""
    preferences: tuple[str, ...] = ()
    """files of preference pairs (.npz or .hdf5) instead of the environment's own"""
    num_preferences: Annotated[int, "[0, inf)"] = 4_000
    """pairs to learn from: the first ones of the files, in their order; 0: all"""
    preference_labels: Literal["human", "script", "crowd", "released"] = "script"
    """the environment's pairs: drawn from its offline dataset and labelled by reward (script), or as others released"""
    dataset: tuple[str, ...] = ()
    """offline dataset instead of the environment's own: files (.hdf5), or minari:ID, whose environment it brings"""
    use_replay: bool = False
    """train on the offline dataset too, beside the preference segments"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""

    # ---- run
    total_steps: Annotated[int, "[1, inf)"] = 200_000
    """updates"""
    seed: Annotated[int, "[0, 4294967295]"] = 1
    """first seed: of initial weights, batches and evaluation goals"""
    num_seeds: Annotated[int, "[1, inf)"] = 1
    """seeds SEED, SEED + 1, ... trained as one batch in this process"""
    eval_every: Annotated[int, "[1, inf)"] = 2_500
    """updates between evaluations"""
    eval_episodes: Annotated[int, "[1, inf)"] = 20
    """episodes of an evaluation"""
    actor_average: Annotated[float, "[0, 1]"] = 0.0
    """rate at which an average of the actor's weights follows them, evaluated and saved beside it; 0: no average"""
    max_episode_steps: Annotated[int, "[0, inf)"] = 0
    """end episodes after so many steps; 0: at the environment's own limit"""
    log_every: Annotated[int, "[1, inf)"] = 500
    """updates between rows of train.csv"""
    run_dir: str = ""
    """folder of the results, one folder a seed inside; empty: runs/ENV/ALGORITHM"""
    overwrite: bool = False
    """start from scratch where the folder holds an earlier run"""
    capture_video: bool = False
    """write an MP4 of one episode of every evaluation"""
    track: bool = False
    """log to Weights & Biases"""
    wandb_project: str = "ipl"
    """project of --track"""
    wandb_entity: str = ""
    """team or user of --track; empty: your default"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: cuda where there is one"""
    compile: bool = True
    """compile the update (torch.compile); without a C++ compiler it runs eager"""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """float32 matrix products: highest, high or medium; on a GPU both are tf32, on a CPU medium is bfloat16"""
    threads: Annotated[int, "[0, 1024]"] = 0
    """CPU threads; 0: this process's cores, at most 4"""


DEFAULTS = {  # pattern of SUITE:ENV: what differs from the defaults above, which are MetaWorld's
    "robomimic:*": {
        "total_steps": 1_000_000, "eval_every": 50_000, "eval_episodes": 25, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "dropout": 0.1,
        "hidden_sizes": (256, 256), "beta": 2.0, "chi2_coeff": 4.0, "target_clipping": True,
    },
    "robomimic:*-ph": {"segment_length": 32},
    "robomimic:*-mh": {"segment_length": 64},
    "d4rl:*": {
        "total_steps": 1_000_000, "eval_every": 5_000, "eval_episodes": 10, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "segment_length": 64,
        "hidden_sizes": (256, 256), "beta": 1 / 3, "chi2_coeff": 0.5, "target_clipping": True,
    },
    "d4rl:*-medium-v2": {"preference_labels": "crowd"},
    "d4rl:halfcheetah-medium-expert-*": {"preference_labels": "script", "num_preferences": 100},
    "d4rl:halfcheetah-medium-replay-*": {"preference_labels": "script", "num_preferences": 500},
    "gym:*": {"actor_average": 0.002, "num_preferences": 0, "total_steps": 20_000, "eval_every": 1_000},
    "minari:*": {"actor_average": 0.002, "num_preferences": 0},
}  # fmt: skip


# ---------------------------------------------------------------- networks
def mlp(params: Params, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:  # (S, N, in) -> (S, E, N, out)
    """ReLU network; seeds and ensemble members are axes of the weights, so all of them are one batched product."""
    depth, x = len(params) // 2, x.unsqueeze(1)  # (S, 1, N, in)
    for i in range(depth):
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        if i < depth - 1:
            x = F.relu(x * masks[i] if masks else x)
    return x


def q_values(critic: Params, obs: Tensor, action: Tensor) -> Tensor:  # (S, N, O), (S, N, A) -> (S, E, N)
    """Q(s, a) of every critic."""
    return mlp(critic, torch.cat([obs, action], -1)).squeeze(-1)


def v_values(value: Params, obs: Tensor) -> Tensor:  # (S, N, O) -> (S, N)
    """V(s)."""
    return mlp(value, obs)[:, 0, :, 0]


def policy(actor: Params, obs: Tensor, masks: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Mean (S, N, A), through tanh, and log standard deviation (S, 1, A), independent of the state."""
    layers = {name: p for name, p in actor.items() if name != "log_std"}
    return mlp(layers, obs, masks)[:, 0].tanh(), actor["log_std"].clamp(-5.0, 2.0).unsqueeze(1)


# ---------------------------------------------------------------- losses: one number a seed
def gumbel_loss(diff: Tensor, alpha: float, clip: float, share: Tensor) -> Tensor:  # (S, N), (N,) -> (S,)
    """exp(z) - z - 1 of z = (q - v) / alpha (Gumbel regression, Garg et al. 2023); exp is linear above `clip` [D7]."""
    z = diff / alpha
    low = z.clamp(max=clip)
    return (share * (low.exp() * (1 + z - low) - z - 1)).sum(-1)


def implied_reward(q: Tensor, next_v: Tensor, discount: Tensor) -> Tensor:  # (S, E, N), (S, N), (S, N) -> (S, E, N)
    """r(s, a) = Q(s, a) - gamma V(s'), IPL's inverse Bellman operator."""
    return q - (discount * next_v).unsqueeze(1)


def next_value(value: Params, batch: Batch, args: Args) -> Tensor:  # -> (S, N)
    """V(s'); with --target-clipping bounded as in the original, for each row by its own discount."""
    next_v = v_values(value, batch["next_obs"])
    if args.target_clipping:
        bound = 1 / (args.chi2_coeff * (1 - batch["discount"]))
        next_v = next_v.clamp(-bound, bound)
    return next_v


def preference_loss(reward: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:  # (S, E, 2BL), (S, B) -> (S,), (S,)
    """Bradley-Terry cross-entropy of the segments' summed rewards, and the accuracy, ties left out. Labels: 1 where
    the second is better, 0 where the first, 0.5 for a tie.
    """
    seeds, critics, _ = reward.shape
    first, second = reward.view(seeds, critics, 2, label.shape[-1], -1).sum(-1).unbind(2)  # (S, E, B)
    logits, label = second - first, label.unsqueeze(1).expand_as(first)
    loss = F.binary_cross_entropy_with_logits(logits, label, reduction="none").mean((1, 2))
    strict = (label != 0.5).to(loss.dtype)
    right = ((logits > 0) == (label > 0.5)) * strict
    return loss, right.sum((1, 2)) / strict.sum((1, 2)).clamp(min=1)


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:  # (S, N, A), (S, 1, A), (S, N, A) -> (S, N)
    """Log density of a Gaussian with independent dimensions."""
    return (-0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


# ---------------------------------------------------------------- initial state and update
def init_mlp(generator: torch.Generator, members: int, sizes: tuple[int, ...]) -> Params:
    """Orthogonal weights (E, in, out) with gain 1, every member on its own, and zero biases (E, 1, out)."""
    params = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        draws = [torch.nn.init.orthogonal_(torch.empty(n_in, n_out), generator=generator) for _ in range(members)]
        params[f"w{i}"], params[f"b{i}"] = torch.stack(draws), torch.zeros(members, 1, n_out)
    return params


def init(args: Args, seed: int, obs_dim: int, act_dim: int) -> State:
    """One seed's state, without the S axis: networks, target critic, Adam's moments, the updates so far."""
    generator, hidden = torch.Generator().manual_seed(seed), args.hidden_sizes
    actor = init_mlp(generator, 1, (obs_dim, *hidden, act_dim)) | {"log_std": torch.zeros(act_dim)}
    critic = init_mlp(generator, args.num_critics, (obs_dim + act_dim, *hidden, 1))
    value = init_mlp(generator, 1, (obs_dim, *hidden, 1))
    nets = {"actor": actor, "critic": critic, "value": value}
    zeros = tree_map(torch.zeros_like, nets)
    moments = {name: {"m": zeros[name], "v": tree_map(torch.clone, zeros[name])} for name in nets}
    return {**nets, "critic_target": tree_map(torch.clone, critic), "adam": moments, "step": torch.zeros(())}


def draw_noise(args: Args, seeds: list[int], step: int, batch: Batch) -> Batch:
    """The random numbers of one update, from (seed, step) alone: dropout's, of the actor's hidden layers."""
    if not args.dropout:
        return {}
    obs, rows, noise = batch["obs"], batch["obs"].shape[1], {}
    generators = [torch.Generator(obs.device).manual_seed(noise_seed(seed, step)) for seed in seeds]
    for i, width in enumerate(args.hidden_sizes):
        draws = [torch.rand(1, rows, width, generator=g, dtype=torch.float32, device=obs.device) for g in generators]
        noise[f"uniform{i}"] = torch.stack(draws)  # (S, 1, N, H)
    return noise


def dropout_masks(args: Args, batch: Batch) -> list[Tensor]:  # (S, 1, N, H) of each hidden layer
    """0 or 1 / (1 - p), from the numbers drawn; made inside the update, where the compiler fuses it."""
    draws = [batch[f"uniform{i}"] for i in range(len(args.hidden_sizes))] if args.dropout else []
    return [(draw >= args.dropout).to(batch["obs"]) / (1 - args.dropout) for draw in draws]


def make_batch(args: Args, seeds: list[int], step: int, pairs: Batch, replay: Batch | None) -> Batch:
    """Join a batch of pairs and one of the offline dataset into what `update` takes."""
    batch = {name: pairs[name] for name in ("obs", "action", "next_obs", "label")}
    batch["discount"] = torch.full_like(batch["obs"][..., 0], args.gamma)  # segments hold no terminal states
    batch["share"] = torch.full_like(batch["obs"][0, :, 0], 1 / batch["obs"].shape[1])  # (N,): turns a sum into a mean
    if replay is not None:
        share = torch.full_like(replay["obs"][0, :, 0], args.replay_weight / replay["obs"].shape[1])
        batch["share"] = torch.cat([(1 - args.replay_weight) * batch["share"], share])
        batch["discount"] = torch.cat([batch["discount"], args.gamma * (1 - replay["terminal"])], 1)
        batch |= {name: torch.cat([batch[name], replay[name]], 1) for name in ("obs", "action", "next_obs")}
    return batch | draw_noise(args, seeds, step, batch)


def adam_(params: Params, grads: Params, moments: dict, step: Tensor, lr: float | Tensor) -> None:
    """Adam's update number `step`, counted from 1 (Kingma & Ba 2015), in place; ours, so that all is one graph."""
    bias_m, bias_v = (-torch.expm1(step * math.log(decay)) for decay in (0.9, 0.999))  # 1 - decay^step
    for name, p in params.items():
        m, v = moments["m"][name], moments["v"][name]
        m.lerp_(grads[name], 1 - 0.9)
        v.mul_(0.999).addcmul_(grads[name], grads[name], value=1 - 0.999)
        p.sub_(lr * (m / bias_m) / ((v / bias_v).sqrt() + 1e-8))


def descend(loss_fn, state: State, name: str, step: Tensor, lr: float | Tensor) -> Metrics:
    """One step of Adam on the network `name`. `loss_fn`: parameters -> loss (S,), metrics. Returns the metrics."""
    with torch.enable_grad():
        leaves = {key: p.detach().requires_grad_() for key, p in state[name].items()}
        loss, metrics = loss_fn(leaves)
        # Seeds share no parameter, so the gradient of the sum over seeds is each seed's own.
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
    adam_(state[name], dict(zip(leaves, grads, strict=True)), state["adam"][name], step, lr)
    return {key: metric.detach() for key, metric in metrics.items()}


def make_update(args: Args):
    """The update as one function of state and batch: no other input, no random numbers, no transfer to the host."""

    @torch.no_grad()
    def update(state: State, batch: Batch) -> Metrics:
        """One update in place. Returns metrics, (S,) each. The order is part of the algorithm."""
        obs, action, share, discount = batch["obs"], batch["action"], batch["share"], batch["discount"]
        step, actor_lr = state["step"][0] + 1, args.lr
        if args.actor_cosine:
            actor_lr = args.lr * (0.5 + 0.5 * torch.cos(math.pi / args.total_steps * state["step"][0]))
        n_pref = 2 * batch["label"].shape[1] * (args.segment_length - 1)

        # 1. V towards the target critic's Q
        q_target = q_values(state["critic_target"], obs, action).min(1).values  # (S, N)

        def v_loss(value: Params) -> tuple[Tensor, Metrics]:
            v = v_values(value, obs)
            loss = gumbel_loss(q_target - v, args.alpha, args.clip_exponent, share)
            return loss, {"losses/value": loss, "train/v": v.mean(-1)}

        metrics = descend(v_loss, state, "value", step, args.lr)

        # 2. Q by the preferences over its implied reward, with the new V
        next_v = next_value(state["value"], batch, args)  # (S, N)

        def q_loss(critic: Params) -> tuple[Tensor, Metrics]:
            q = q_values(critic, obs, action)  # (S, E, N)
            reward = implied_reward(q, next_v, discount)  # (S, E, N)
            preference, accuracy = preference_loss(reward[..., :n_pref], batch["label"])
            chi2 = args.chi2_coeff * (share * reward.square()).sum(-1).mean(1)
            return preference + chi2, {
                "losses/preference": preference, "losses/chi2": chi2, "train/accuracy": accuracy,
                "train/q": q.mean((1, 2)), "train/reward": reward.mean((1, 2)),
            }  # fmt: skip

        metrics |= descend(q_loss, state, "critic", step, args.lr)

        # 3. actor by advantage-weighted regression, with the new V
        adv = q_target - v_values(state["value"], obs)  # (S, N)
        weight = (adv / args.beta).exp().clamp(max=args.clip_score)
        masks = dropout_masks(args, batch)

        def actor_loss(actor: Params) -> tuple[Tensor, Metrics]:
            mean, log_std = policy(actor, obs, masks)
            loss = -(share * weight * log_prob(mean, log_std, action)).sum(-1)
            return loss, {"losses/actor": loss, "train/adv": adv.mean(-1), "train/weight": weight.mean(-1)}

        metrics |= descend(actor_loss, state, "actor", step, actor_lr)

        # 4. target critic [D3]
        for name, target in state["critic_target"].items():
            target.lerp_(state["critic"][name], args.tau)
        state["step"] += 1
        return metrics

    return update


def learned_reward(state: State, batch: Batch, args: Args) -> Tensor:  # -> (S, N)
    """The implied reward of a trained state, mean over the critics, for `tools.reward`.

    Args:
        batch: obs, next_obs (S, N, O), action (S, N, A), discount (S, N): zero for terminal states.
    """
    q, next_v = q_values(state["critic"], batch["obs"], batch["action"]), next_value(state["value"], batch, args)
    return implied_reward(q, next_v, batch["discount"]).mean(1)


# ---------------------------------------------------------------- training
def train(args: Args) -> dict:
    """Train every seed to the end, resuming what is there. Returns {seed: `SeedFolder.summary()`}."""
    with Experiment.open(ALGORITHM, args) as experiment:
        for training, pairs, replay in experiment.batches():  # [D4] [D5]
            train_seeds(args, training, pairs, replay)
    return experiment.summary()


def train_seeds(args: Args, training: Training, pairs: PreferenceBuffer, replay: ReplayBuffer | None) -> None:
    """The training loop, all seeds of `training` as one batch."""
    seeds, start, sizes = training.seeds, training.step, (pairs.obs.shape[1], pairs.action.shape[1])
    state = training.restore([init(args, seed, *sizes) for seed in seeds])  # every leaf: (S, ...)
    update = training.compile(make_update(args))
    pair_batches = pairs.batches(seeds, start, args.preference_batch_size, args.segment_length)  # [D1] [D2]
    replay_batches = replay.batches(seeds, start, args.replay_batch_size) if replay else repeat(None)
    for step in range(start, args.total_steps + 1):
        if training.due(step):  # an evaluation, a minute since the last checkpoint, or a signal
            training.checkpoint(step, state)
            training.evaluate(step, state["actor"], policy)
        if step == args.total_steps:
            break
        batch = make_batch(args, seeds, step, next(pair_batches), next(replay_batches))
        metrics = update(state, batch)
        training.log(step + 1, metrics, state, batch)  # every --log-every updates; a NaN stops the run
    training.finish(state)


if __name__ == "__main__":
    main(train, Args, DEFAULTS)
