"""PT-IQL: a Preference Transformer (Kim et al. 2023, arXiv 2303.00957) as reward model, and implicit Q-learning on it,
the non-Markovian baseline of Hejna & Sadigh 2023 (arXiv 2305.15363).

    python algorithms/pt_iql.py --env button-press-topdown-v2

Phase 1 trains the transformer on the pairs, until its loss on held-out pairs stops falling. Then every transition of
the data is labelled once, by the model's reward at the end of the window of past steps that leads to it, and phase 2
is iql.py on those rewards. One update of phase 2:

    1. V      expectile regression towards the target critic's Q (equation 5)
    2. actor  advantage-weighted regression (equation 7)
    3. Q      towards the reward plus the new V of the next state (equation 6)
    4. target critic moves towards the critic

Shapes: S seeds (trained as one batch; nothing mixes them), E critics, B pairs, L transitions of a window,
N flat rows (2BL of segments or R of the offline dataset), O observation, A action. The transformer is trained for one
seed at a time: B segments of T steps, D its width.

Differences from the authors' code (github.com/csmile-1006/PreferenceTransformer) and from the original IPL's:
    [D1] each pair draws its own window start, from all offsets; the original draws one for the whole batch and never
         the last offset.
    [D2] an epoch's last, partial batch of pairs is dropped in phase 2, so that every batch has the same shape.
    [D4] ties in generated data are labelled 0.5; the original's count as "first preferred".
    [D5] pairs come from a fixed order of one generated dataset (see common/datasets.py), not from the released files.
    [D8] the held-out pairs are the last tenth and are not trained on; the authors' are trained on too.
    [D9] the preference attention layer is on, as in the paper; the authors' released commands leave it off
         (--no-weighted-sum). As in their code its logits are not divided by the square root of its width.
    [D10] 100 epochs at most on MetaWorld, with its thousands of pairs; the authors' 10,000 are of 1 to 4 steps each.
    [D11] phase 2 has the networks and the update order of the original IPL's IQL, as iql.py and mr_iql.py.
    [D12] every layer starts from a normal distribution of standard deviation 0.02, as in GPT-2.
    [D13] any better held-out loss counts, and reward_patience checks without one end phase 1; the authors train on.
    [D14] without --use-replay the trajectories are the segments: windows begin at their first step, and their returns
         and length scale the rewards.
    [D15] the windows of labelling are as long as the segments of the pairs; the authors' default is 25 steps for all.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.buffers import NOISE, PreferenceBuffer, ReplayBuffer, load
from common.envs import InputError, Interrupted, Workers, available_cpus, evaluate, require_rendering, resolve, seed_of
from common.runs import (
    SCHEMA,
    Run,
    Signals,
    actor_arrays,
    can_compile,
    check_alike,
    check_args,
    check_finite,
    default_args,
    parse_args,
    print_summary,
    save,
    setup_device,
    tree_map,
    user_errors,
)

ALGORITHM = Path(__file__).stem
REWARD_SAVE_EVERY = 10
"""seconds between two writings of reward.pt, the checkpoint of phase 1"""
Params = dict[str, Tensor]  # w0, b0, w1, ...: (S, E, in, out), (S, E, 1, out); E = 1 but for critics


# ---------------------------------------------------------------- arguments
@dataclass
class Args:
    """PT-IQL: a Preference Transformer as reward model, then implicit Q-learning on it."""

    env: str = "button-press-topdown-v2"
    """environment; decides the defaults of all that follows"""
    seed: int = 1
    """first seed: of initial weights, batches and evaluation goals"""
    num_seeds: int = 1
    """seeds SEED, SEED + 1, ... trained as one batch in this process"""
    total_steps: int = 200_000
    """updates"""
    eval_every: int = 2_500
    """updates between evaluations"""
    eval_episodes: int = 20
    """episodes of an evaluation"""
    log_every: int = 500
    """updates between rows of train.csv"""
    num_preferences: int = 4_000
    """pairs to learn from: the first ones of the file; 0: all"""
    preferences: str = ""
    """file of preference pairs (.npz or .hdf5) instead of the environment's own"""
    preference_labels: str = "script"
    """the environment's pairs: labelled by a human, or by a script from the rewards of the offline dataset"""
    dataset: str = ""
    """offline dataset (.hdf5) instead of the environment's own"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""
    run_dir: str = ""
    """folder of the results, one folder a seed inside; empty: runs/ENV/ALGORITHM"""
    overwrite: bool = False
    """start anew where the folder holds an earlier run"""
    track: bool = False
    """log to Weights & Biases"""
    wandb_project: str = "ipl"
    """project of --track"""
    wandb_entity: str = ""
    """team or user of --track; empty: your default"""
    capture_video: bool = False
    """write an MP4 of one episode of every evaluation"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: cuda where there is one"""
    compile: bool = True
    """compile the update (torch.compile); without a C++ compiler it runs eager"""
    matmul_precision: str = "highest"
    """float32 matrix products: highest, high or medium; on a GPU both are tf32, on a CPU medium is bfloat16"""
    threads: int = 0
    """CPU threads; 0: this process's cores, at most 4"""

    gamma: float = 0.99
    """discount, of environment steps"""
    tau: float = 0.005
    """step size of the target critic (not the expectile)"""
    lr: float = 3e-4
    """Adam's learning rate, all networks"""
    beta: float = 1 / 3
    """temperature of the actor's weights: weight = exp(adv / beta); smaller is greedier"""
    clip_score: float = 100.0
    """upper bound of the actor's weights"""
    expectile: float = 0.75
    """expectile of V; above 0.5 leans to the better actions, towards 1 it nears their maximum"""
    weighted_sum: bool = True
    """score segments by preference attention; else by the plain mean of their steps' rewards"""
    reward_width: int = 256
    """embedding width of the transformer"""
    reward_layers: int = 1
    """transformer blocks"""
    reward_heads: int = 4
    """attention heads of a block"""
    reward_dropout: float = 0.1
    """dropout of embeddings, attention and residual branches"""
    reward_epochs: int = 100  # [D10]
    """passes over the pairs, at the most"""
    reward_batch_size: int = 256
    """pairs a step of the reward model"""
    reward_patience: int = 4  # [D13]
    """end phase 1 after so many checks (one in five epochs) without a better held-out loss; 0: never"""
    reward_shift: float = 0.0
    """added to every reward once it is scaled, a constant"""
    actor_cosine: bool = True
    """let the actor's learning rate fall to zero along a cosine"""
    use_replay: bool = False
    """IQL on the offline dataset instead of the transitions of the preference segments"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers, all networks"""
    num_critics: int = 2
    """critics in the ensemble"""
    dropout: float = 0.0
    """dropout of the actor's hidden layers"""
    preference_batch_size: int = 16
    """pairs a step"""
    segment_length: int = 16
    """observations of the window taken from each segment: one transition less"""
    replay_batch_size: int = 256
    """transitions of the offline dataset a step"""


DEFAULTS = {  # pattern of --env: what differs from the defaults above, which are MetaWorld's
    "*-[pm]h": {  # robomimic
        "total_steps": 1_000_000, "eval_every": 50_000, "eval_episodes": 25, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "dropout": 0.1,
        "hidden_sizes": (256, 256), "beta": 2.0, "expectile": 0.7, "reward_epochs": 10_000, "reward_patience": 100,
    },
    "*-ph": {"segment_length": 32},
    "*-mh": {"segment_length": 64},
    "*-medium-*": {  # D4RL locomotion
        "total_steps": 1_000_000, "eval_every": 5_000, "eval_episodes": 10, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "segment_length": 64,
        "hidden_sizes": (256, 256), "beta": 1 / 3, "expectile": 0.7, "reward_epochs": 10_000, "reward_patience": 100,
        "reward_shift": 0.5,
    },
    "halfcheetah-medium-expert-*": {"preference_labels": "script", "num_preferences": 100},
    "halfcheetah-medium-replay-*": {"preference_labels": "script", "num_preferences": 500},
}  # fmt: skip


# ---------------------------------------------------------------- networks
def mlp(params: Params, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:  # (S, N, in) -> (S, E, N, out)
    """ReLU network; seeds and ensemble members are axes of the weights, so all of them are one batched product."""
    depth = len(params) // 2
    x = x.unsqueeze(1)  # (S, 1, N, in)
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


class Block(nn.Module):
    """A pre-norm transformer block: causal self-attention and a ReLU MLP (GPT-2 but for the activation)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, allowed: Tensor, last: bool) -> Tensor:  # (B, 2T, D), (B, 1, 2T, 2T) -> (B, 2T, D)
        """`last`: compute the last token alone, (B, 1, D), which is all that labelling reads."""
        h, width = self.ln1(x), x.shape[-1]
        (w_q, w_kv), (b_q, b_kv) = (p.split([width, 2 * width]) for p in (self.qkv.weight, self.qkv.bias))
        k, v = F.linear(h, w_kv, b_kv).chunk(2, -1)
        if last:
            x, h, allowed = x[:, -1:], h[:, -1:], allowed[:, :, -1:]
        q = F.linear(h, w_q, b_q)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=drop).transpose(1, 2).flatten(2)
        return self.finish(x, y)

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the attention `y`."""
        x = x + F.dropout(self.proj(y), self.dropout, self.training)
        return x + F.dropout(self.fc2(F.relu(self.fc1(self.ln2(x)))), self.dropout, self.training)


class PreferenceTransformer(nn.Module):
    """Reward of every step from the steps up to it, and a segment's score (Preference Transformer, section 3)."""

    def __init__(self, obs_dim: int, act_dim: int, width: int, layers: int, heads: int, dropout: float,
                 weighted_sum: bool = True, pref_width: int = 256, max_timestep: int = 1000):  # fmt: skip
        super().__init__()
        self.obs, self.action = nn.Linear(obs_dim, width), nn.Linear(act_dim, width)
        self.timestep = nn.Embedding(max_timestep + 1, width)  # row 0: padding
        self.ln_in, self.ln_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.pref = self.head = None
        if weighted_sum:
            self.pref = nn.Linear(width, 2 * pref_width + 1)  # query, key and the reward as value
        else:
            self.head = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 1))
        self.dropout = dropout
        for name, p in self.named_parameters():
            if "ln" not in name:
                nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, std=0.02)  # [D12]

    def forward(self, obs: Tensor, action: Tensor, mask: Tensor, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            obs: (B, T, O), action: (B, T, A), mask: (B, T) 0 for padding, on the left.
            last: only the last step's reward.

        Returns:
            Reward (B, T), or (B, 1) for `last`; score (B,), or None.
        """
        time = self.timestep((mask.cumsum(-1) * mask).long())
        x = torch.stack([self.action(action) + time, self.obs(obs) + time], 2).flatten(1, 2)  # a1, s1, a2, s2, ...
        x = F.dropout(self.ln_in(x), self.dropout, self.training)  # (B, 2T, D)
        valid = mask.bool().repeat_interleave(2, -1)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # padding attends to itself, lest it be NaN
        allowed = (causal & valid.unsqueeze(1) | own).unsqueeze(1)  # (B, 1, 2T, 2T)
        for i, block in enumerate(self.blocks):
            x = block(x, allowed, last and i == len(self.blocks) - 1)
        x = x if last else x[:, 1::2]  # state tokens have seen s_t and a_t
        if last or self.pref is None:
            reward = self.reward(x)
            return reward, None if last else reward.mean(-1)
        width = (self.pref.out_features - 1) // 2
        query, key, value = self.pref(self.ln_out(x)).split([width, width, 1], -1)
        z = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # both directions [D9]
        return value.squeeze(-1), z.squeeze(-1).mean(-1)

    def reward(self, x: Tensor) -> Tensor:  # (..., D) -> (...)
        """The reward of steps from what the last block gives for their states."""
        x = self.ln_out(x)
        return self.head(x).squeeze(-1) if self.pref is None else self.pref(x)[..., -1]


# ---------------------------------------------------------------- losses: one number a seed
def expectile_loss(diff: Tensor, expectile: float, weight: Tensor) -> Tensor:  # (S, N), (N,) -> (S,)
    """|expectile - 1(u < 0)| u^2 of u = q - v (IQL, Kostrikov et al. 2021, equation 5)."""
    return (weight * (expectile - (diff < 0).float()).abs() * diff.square()).sum(-1)


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


def init(args: Args, seed: int, obs_dim: int, act_dim: int) -> dict:
    """One seed's state, without the S axis: networks, target critic and Adam's moments."""
    generator, hidden = torch.Generator().manual_seed(seed), args.hidden_sizes
    actor = init_mlp(generator, 1, (obs_dim, *hidden, act_dim)) | {"log_std": torch.zeros(act_dim)}
    critic = init_mlp(generator, args.num_critics, (obs_dim + act_dim, *hidden, 1))
    value = init_mlp(generator, 1, (obs_dim, *hidden, 1))
    nets = {"actor": actor, "critic": critic, "value": value}
    zeros = tree_map(torch.zeros_like, nets)
    moments = {name: {"m": zeros[name], "v": tree_map(torch.clone, zeros[name])} for name in nets}
    return {**nets, "critic_target": tree_map(torch.clone, critic), "adam": moments}


def draw_noise(args: Args, seeds: list[int], step: int, batch: Params) -> Params:
    """The random numbers of one update, from (seed, step) alone: dropout masks of the actor's hidden layers."""
    obs, rows, noise = batch["obs"], batch["obs"].shape[1], {}
    generators = [torch.Generator(obs.device).manual_seed(seed_of(NOISE, seed, step)) for seed in seeds if args.dropout]
    for i, width in enumerate(args.hidden_sizes if args.dropout else ()):
        draws = [torch.rand(1, rows, width, generator=g, dtype=torch.float32, device=obs.device) for g in generators]
        noise[f"mask{i}"] = (torch.stack(draws) >= args.dropout).to(obs) / (1 - args.dropout)  # (S, 1, N, H)
    return noise


def make_batch(args: Args, seeds: list[int], step: int, pairs: Params, replay: Params | None) -> Params:
    """What `update` takes: transitions of the offline dataset or, without one, of the segments."""
    rows = pairs if replay is None else replay
    batch = {name: rows[name] for name in ("obs", "action", "next_obs", "reward")}
    batch["discount"] = torch.full_like(rows["obs"][..., 0], args.gamma)  # segments hold no terminal states
    if replay is not None:
        batch["discount"] = args.gamma * (1 - replay["terminal"])
    batch["weight"] = torch.full_like(rows["obs"][0, :, 0], 1 / rows["obs"].shape[1])  # (N,): makes a sum a mean
    bias = [1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)]  # of Adam's moments
    batch["bias"] = torch.stack([batch["obs"].new_full((), b) for b in bias])  # a copy would wait for the device
    lr = args.lr * (0.5 + 0.5 * math.cos(math.pi * step / args.total_steps) if args.actor_cosine else 1.0)
    batch["actor_lr"] = batch["obs"].new_full((), lr)
    return batch | draw_noise(args, seeds, step, batch)


def adam_(params: Params, grads: Params, moments: dict, bias: Tensor, lr: float | Tensor) -> None:
    """One step of Adam (Kingma & Ba 2015) in place; our own, so that the whole update is one compiled graph."""
    for name, p in params.items():
        m, v = moments["m"][name], moments["v"][name]
        m.lerp_(grads[name], 1 - 0.9)
        v.mul_(0.999).addcmul_(grads[name], grads[name], value=1 - 0.999)
        p.sub_(lr * (m / bias[0]) / ((v / bias[1]).sqrt() + 1e-8))


def descend(loss_fn, state: dict, name: str, batch: Params, lr: float | Tensor) -> Params:
    """One step of Adam on the network `name`. `loss_fn`: parameters -> loss (S,), metrics. Returns the metrics."""
    with torch.enable_grad():
        leaves = {key: p.detach().requires_grad_() for key, p in state[name].items()}
        loss, metrics = loss_fn(leaves)
        # Seeds share no parameter, so the gradient of the sum over seeds is each seed's own.
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
    adam_(state[name], dict(zip(leaves, grads, strict=True)), state["adam"][name], batch["bias"], lr)
    return {key: metric.detach() for key, metric in metrics.items()}


def make_update(args: Args):
    """The update as one function of state and batch: no other input, no random numbers, no transfer to the host."""

    @torch.no_grad()  # [D11]
    def update(state: dict, batch: Params) -> Params:
        """One update in place. Returns metrics, (S,) each. The order is part of the algorithm."""
        obs, action, weight, discount = batch["obs"], batch["action"], batch["weight"], batch["discount"]

        # 1. V towards the target critic's Q
        q_target = q_values(state["critic_target"], obs, action).min(1).values  # (S, N)
        adv = q_target - v_values(state["value"], obs)  # (S, N), with the V before this step's, as in the original

        def v_loss(value: Params) -> tuple[Tensor, Params]:
            v = v_values(value, obs)
            loss = expectile_loss(q_target - v, args.expectile, weight)
            return loss, {"losses/value": loss, "train/v": v.mean(-1)}

        metrics = descend(v_loss, state, "value", batch, args.lr)

        # 2. actor by advantage-weighted regression
        score = (adv / args.beta).exp().clamp(max=args.clip_score)
        masks = [batch[f"mask{i}"] for i in range(len(args.hidden_sizes))] if args.dropout else []

        def actor_loss(actor: Params) -> tuple[Tensor, Params]:
            mean, log_std = policy(actor, obs, masks)
            loss = -(weight * score * log_prob(mean, log_std, action)).sum(-1)
            return loss, {"losses/actor": loss, "train/adv": adv.mean(-1), "train/score": score.mean(-1)}

        metrics |= descend(actor_loss, state, "actor", batch, batch["actor_lr"])

        # 3. Q towards the reward plus the new V of the next state
        q_next = batch["reward"] + discount * v_values(state["value"], batch["next_obs"])  # (S, N)

        def q_loss(critic: Params) -> tuple[Tensor, Params]:
            q = q_values(critic, obs, action)  # (S, E, N)
            loss = (weight * (q - q_next.unsqueeze(1)).square()).sum(-1).mean(1)
            return loss, {"losses/critic": loss, "train/q": q.mean((1, 2))}

        metrics |= descend(q_loss, state, "critic", batch, args.lr)

        # 4. target critic
        tree_map(lambda target, p: target.lerp_(p, args.tau), state["critic_target"], state["critic"])
        return metrics

    return update


# ---------------------------------------------------------------- phase 1: the reward model
def make_reward_model(args: Args, seed: int, obs_dim: int, act_dim: int) -> PreferenceTransformer:
    """The untrained reward model of a seed."""
    torch.manual_seed(seed_of(NOISE, seed, 0, 0))
    return PreferenceTransformer(obs_dim, act_dim, args.reward_width, args.reward_layers, args.reward_heads,
                                 args.reward_dropout, args.weighted_sum)  # fmt: skip


def reward_lr(progress: float) -> float:
    """From 1e-4 up to 1e-3 in the first tenth, back to 1e-4 along a cosine."""
    return 1e-4 + 9e-4 * (progress / 0.1 if progress < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9))


def train_reward(args: Args, run: Run, segments: Params, stop: Signals) -> PreferenceTransformer:
    """Train one seed's reward model, or go on training it, and return the best one by held-out loss.

    Args:
        segments: obs (P, 2, T, O), action (P, 2, T, A), label (P,).
    """
    obs, action, label = segments["obs"], segments["action"], segments["label"]
    if obs.shape[2] > 1000:
        raise InputError(f"segments of {obs.shape[2]} steps: the Preference Transformer takes at most 1000")
    if len(label) < 2:
        raise InputError(
            "--num-preferences 1: the Preference Transformer holds out a tenth, at least one; give 2 or more"
        )
    model = make_reward_model(args, run.seed, obs.shape[-1], action.shape[-1]).to(obs.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    path, count = run.folder / "reward.pt", max(1, len(label) * 9 // 10)  # [D8]
    progress = {"epoch": 0, "best": float("inf"), "waited": 0, "done": False, "model": model.state_dict()}
    if path.exists():
        saved = run.read(path.name, (*progress, "last_model", "optimizer"))
        for name in ("model", "last_model"):
            check_alike(path, saved[name], model.state_dict())
        progress = {name: saved[name] for name in progress}
        model.load_state_dict(saved["last_model"])
        optimizer.load_state_dict(saved["optimizer"])
    run.open_table("reward", progress["epoch"])

    def loss_of(index: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the pairs' scores, and the accuracy but for ties."""
        mask = obs.new_ones(2 * len(index), obs.shape[2])
        _, score = model(obs[index].flatten(0, 1), action[index].flatten(0, 1), mask)
        logits = score.view(-1, 2)[:, 1] - score.view(-1, 2)[:, 0]
        strict = (label[index] != 0.5).float()
        right = (((logits > 0) == (label[index] > 0.5)) * strict).sum() / strict.sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, label[index]), right

    bar = tqdm(total=args.reward_epochs, initial=progress["epoch"], desc=f"reward model, seed {run.seed}", unit="epoch",
               disable=None)  # fmt: skip
    saved_at = time.perf_counter()
    while progress["epoch"] < args.reward_epochs and not progress["done"]:
        torch.manual_seed(seed_of(NOISE, run.seed, 0, progress["epoch"] + 1))  # of the order and of the dropout
        model.train()
        order = torch.randperm(count, device=obs.device).split(args.reward_batch_size)
        for i, index in enumerate(order):
            if stop:
                bar.close()
                raise Interrupted
            for group in optimizer.param_groups:
                group["lr"] = reward_lr((progress["epoch"] + i / len(order)) / args.reward_epochs)
            loss, _ = loss_of(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        check_finite([run], progress["epoch"] + 1, {"loss of the reward model": loss.detach()}, {})
        progress["epoch"] += 1
        bar.update()
        if progress["epoch"] % 5 == 0 or progress["epoch"] == args.reward_epochs:
            model.eval()
            with torch.no_grad():
                held_loss, held_right = (x.item() for x in loss_of(torch.arange(count, len(label), device=obs.device)))
            row = {"loss": loss.item(), "held_out_loss": held_loss, "held_out_accuracy": held_right}
            run.log("reward", progress["epoch"], {f"reward/{name}": number for name, number in row.items()})
            bar.set_postfix(loss=f"{loss.item():.3f}", held_out=f"{held_loss:.3f}", accuracy=f"{held_right:.2f}")
            better = {"best": held_loss, "waited": 0, "model": {k: p.clone() for k, p in model.state_dict().items()}}
            progress |= better if held_loss < progress["best"] else {"waited": progress["waited"] + 1}
            progress["done"] = 0 < args.reward_patience <= progress["waited"]
        ended = progress["done"] or progress["epoch"] == args.reward_epochs
        if ended or time.perf_counter() - saved_at > REWARD_SAVE_EVERY:
            last = {"last_model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, {"schema": SCHEMA, "args": run.args, **progress, **last})
            saved_at = time.perf_counter()
    bar.close()
    model.load_state_dict(progress["model"])
    return model.eval()


def last_rewards(model: PreferenceTransformer, obs: Tensor, action: Tensor, start: Tensor, rows: Tensor,
                 window: int) -> Tensor:  # fmt: skip
    """`model(..., last=True)` of the windows START[i]..ROWS[i], for a model of one block; `rows` are consecutive: (C,).

    Every token stands in `window` windows, each time at another position j. Its key and value need not be computed for
    each: the two LayerNorms before them only subtract means, multiply by weights and divide by a number, hence they are
        W x / (s0 s1) + W p_j / (s0 s1) + W c / s1 + b
    with x, p_j and c what token, position and bias become; W x is computed once a token, s0 and s1 are products of x
    and p_j. Labelling is 2.7 (windows of 25 steps) to 15 times (of 100) as fast for it.
    """
    block, width = model.blocks[0], model.timestep.embedding_dim
    (w_q, w_kv), (b_q, b_kv) = (p.split([width, 2 * width]) for p in (block.qkv.weight, block.qkv.bias))
    w, b = (w_kv * block.ln1.weight).T, F.linear(block.ln1.bias, w_kv, b_kv)

    def centre(x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)

    def variance(x: Tensor, p: Tensor) -> Tensor:  # of x + p, both centred: (2, n, D), (T, D) -> (2, n, T)
        return x.square().mean(-1, keepdim=True) + p.square().mean(-1) + x @ p.T * (2 / width)

    def heads(y: Tensor) -> Tensor:  # (..., k D) -> (k, H, ..., d)
        return y.unflatten(-1, (-1, block.heads, width // block.heads)).movedim((-3, -2), (0, 1))

    # tokens: of actions and of states, (2, n, D); queries: of the rows' states, (H, C, d)
    span = torch.arange(int(start.min()), int(rows[-1]) + 1, device=obs.device)
    token = torch.stack([model.action(action[span]), model.obs(obs[span])])
    position = model.timestep.weight[1 : window + 1]
    last = model.ln_in(token[1, -len(rows) :] + position[rows - start])
    (q,) = heads(F.linear(block.ln1(last), w_q, b_q)) * (width // block.heads) ** -0.5

    # keys and values: the parts of tokens (H, 2, n, d), positions (H, T, d) and bias (H, 1, d), and 1 / s0, 1 / s1
    x, p, c = centre(token), centre(position), centre(model.ln_in.bias).unsqueeze(0)
    first = (variance(x, p) + model.ln_in.eps).rsqrt()
    x, p = (centre(model.ln_in.weight * part) for part in (x, p))
    both = variance(x, p) * first.square() + 2 / width * first * (x @ c.T + (p @ c.T).T) + c.square().mean()
    second = (both + block.ln1.eps).rsqrt()
    (k_x, v_x), (k_p, v_p), (k_c, v_c), (k_b, v_b) = (heads(part) for part in (x @ w, p @ w, c @ w, b.unsqueeze(0)))

    # attention of every row to the tokens of its window, at their positions in it: scores (H, 2, C, n)
    at = (span - start.unsqueeze(-1)).clamp(0, window - 1)  # (C, n)
    seen = (start.unsqueeze(-1) <= span) & (span <= rows.unsqueeze(-1))
    chosen = at + window * torch.arange(len(span), device=obs.device)
    second, both = (s.flatten(1)[:, chosen] for s in (second, first * second))  # (2, C, n)
    at, qp = at.expand(block.heads, -1, -1), q @ k_p.mT
    score = both * (q.unsqueeze(1) @ k_x.mT + qp.gather(-1, at).unsqueeze(1))
    score = (score + second * (q @ k_c.mT).unsqueeze(1) + (q @ k_b.mT).unsqueeze(1)).masked_fill(~seen, -torch.inf)
    weight = score.transpose(1, 2).flatten(2).softmax(-1).unflatten(-1, (2, -1)).transpose(1, 2)
    y = (weight * both @ v_x).sum(1) + torch.zeros_like(qp).scatter_add(-1, at, (weight * both).sum(1)) @ v_p
    y = y + (weight * second).sum((1, 3)).unsqueeze(-1) * v_c + v_b  # (H, C, d)
    return model.reward(block.finish(last, y.transpose(0, 1).flatten(1)))


@torch.no_grad()
def label_transitions(model: PreferenceTransformer, obs: Tensor, action: Tensor, first: Tensor, window: int,
                      horizon: int, stop: Signals | bool = False) -> Tensor:  # fmt: skip
    """The model's reward of every row, from the window of past steps of its trajectory that ends at it.

    Args:
        obs: (M, O), action: (M, A), first: (M,) the first row of each row's trajectory.
        window: steps of a window, fewer where the trajectory has only begun.
        horizon: the authors' scale of a trajectory's return: 1000 for D4RL, else 500; of segments alone their length.

    Returns:
        (M,), scaled as the authors do: by the horizon over the range of the trajectories' returns.
    """
    rewards = []
    for rows in tqdm(torch.arange(len(obs), device=obs.device).split(256), "labelling", unit="batch", disable=None):
        if stop:
            raise Interrupted
        start = torch.maximum(first[rows], rows - window + 1)
        if len(model.blocks) == 1:
            rewards.append(last_rewards(model, obs, action, start, rows, window))
            continue
        index = rows.unsqueeze(1) + torch.arange(1 - window, 1, device=obs.device)
        mask = (index >= start.unsqueeze(1)).to(obs.dtype)  # (B, T)
        past_obs, past_action = (x[index.clamp(min=0)] * mask.unsqueeze(-1) for x in (obs, action))
        rewards.append(model(past_obs, past_action, mask, last=True)[0][:, 0])
    reward, (_, lengths) = torch.cat(rewards), torch.unique_consecutive(first, return_counts=True)
    trajectory = torch.repeat_interleave(torch.arange(len(lengths), device=obs.device), lengths)
    returns = torch.zeros(len(lengths), dtype=reward.dtype, device=obs.device).index_add_(0, trajectory, reward)
    return reward * horizon / (returns.max() - returns.min()).clamp(min=1e-6)


def relabel(args: Args, runs: list[Run], pairs: PreferenceBuffer, replay: ReplayBuffer | None, stop: Signals):
    """Phase 1 for every seed; the buffers with their models' rewards."""
    along = pairs.start.unsqueeze(-1) + torch.arange(pairs.length, device=pairs.device)  # (P, 2, T)
    segments = {"obs": pairs.obs[along], "action": pairs.action[along], "label": pairs.label}
    # Segments may overlap in the stored rows, but a step's reward depends on its segment: one row each. [D14]
    obs, action = segments["obs"].flatten(0, 2), segments["action"].flatten(0, 2)
    row = torch.arange(len(obs), device=pairs.device)
    first, horizon = row - row % pairs.length, pairs.length
    if replay is not None:
        obs, action, row = replay.obs, replay.action, torch.arange(len(replay), device=pairs.device)
        breaks = (replay.next_obs[:-1] - replay.obs[1:]).norm(dim=-1) > 1e-5
        starts = torch.cat([torch.ones_like(breaks[:1]), breaks | replay.terminal[:-1].bool()])
        first, horizon = (row * starts).cummax(0).values, 1000 if resolve(args.env)[0] == "d4rl" else 500
    rewards = []
    for run in runs:
        began = time.perf_counter()
        model = train_reward(args, run, segments, stop)
        reward = label_transitions(model, obs, action, first, pairs.length, horizon, stop)  # [D15]
        rewards.append(reward + args.reward_shift)
        run.time["train"] += time.perf_counter() - began
    if replay is not None:
        replay.reward = torch.stack(rewards)
        return pairs, replay
    start = torch.arange(2 * len(pairs), device=pairs.device).view(-1, 2) * pairs.length
    return PreferenceBuffer(obs, action, start, pairs.label, pairs.length, torch.stack(rewards), pairs.device), None


# ---------------------------------------------------------------- training
def train(args: Args) -> dict:
    """Train, or go on training, every seed. Returns {seed: {"last": ..., "best": ..., "time": ...}}."""
    check_args(args)
    args = replace(args, env=resolve(args.env)[1])
    run_dir = Path(args.run_dir or f"runs/{args.env}/{ALGORITHM}")
    seeds = range(args.seed, args.seed + args.num_seeds)
    device = setup_device(args)
    with Signals() as stop:
        runs = [Run(run_dir / f"seed-{seed}", replace(args, seed=seed), ALGORITHM) for seed in seeds]
        todo = [run for run in runs if not run.finished]
        if not todo:
            print(f"{run_dir}: finished already; --overwrite starts anew")
        workers = Workers(available_cpus(), stop=lambda: bool(stop))
        try:
            if todo:
                if args.capture_video:
                    require_rendering(workers, args.env)
                began = time.perf_counter()
                pairs, replay, prints = load(args, workers, device)  # [D4] [D5]
                for run in todo:
                    run.time["data"] += time.perf_counter() - began
                    run.open(prints, device, args.track)
            # Seeds that were stopped at different steps go on in turn; all others are one batch.
            for step in sorted({run.step for run in todo}):
                group = [run for run in todo if run.step == step]
                train_seeds(args, group, *relabel(args, group, pairs, replay, stop), workers, stop)
        except Interrupted:
            print(f"stopped; the same command goes on from the last checkpoint in {run_dir}", file=sys.stderr)
            raise SystemExit(stop.exit_status) from None
        finally:
            workers.close()
            for run in runs:
                run.close()
    return print_summary(runs)


def train_seeds(args: Args, runs: list[Run], pairs: PreferenceBuffer, replay: ReplayBuffer | None, workers: Workers,
                stop: Signals) -> None:  # fmt: skip
    """Train seeds that stand at the same step, as one batch, to the end."""
    seeds, start, device = [run.seed for run in runs], runs[0].step, pairs.device
    sizes = pairs.obs.shape[1], pairs.action.shape[1]
    states = [run.restore(init(args, run.seed, *sizes)) for run in runs]
    state = tree_map(lambda *leaves: torch.stack(leaves).to(device), *states)  # every leaf: (S, ...)
    update = make_update(args)
    if args.compile and (missing := can_compile(device)):
        print(f"torch.compile needs {missing}: the update runs eager, somewhat slower", file=sys.stderr)
    elif args.compile:
        torch.compiler.reset()  # graphs of an earlier batch of seeds count against dynamo's limit
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside the graph
        update = torch.compile(update, fullgraph=True)
    pair_batches = pairs.batches(seeds, start, args.preference_batch_size, args.segment_length)  # [D1] [D2]
    replay_batches = replay.batches(seeds, start, args.replay_batch_size) if replay else None

    def checkpoint(step: int) -> None:
        for k, run in enumerate(runs):
            run.save_checkpoint(step, tree_map(lambda leaf, k=k: leaf[k], state))

    def evaluate_and_log(step: int) -> None:
        began = time.perf_counter()
        actors = [actor_arrays(state["actor"], k) for k in range(len(runs))]
        videos = [run.folder / "videos" / f"step-{step:07d}.mp4" for run in runs] if args.capture_video else None
        rows = evaluate(workers, args.env, actors, seeds, step, args.eval_episodes, videos)
        for k, run in enumerate(runs):
            run.time["eval"] += time.perf_counter() - began
            run.log_eval(step, rows[k], tree_map(lambda leaf, k=k: leaf[k], state["actor"]))
        bar.write(f"step {step:>7}  " + "  ".join(f"seed {run.seed}: {run.describe_eval()}" for run in runs))

    bar = tqdm(total=args.total_steps, initial=start, desc=f"{ALGORITHM} {args.env}", unit="step", disable=None)
    metrics, since = {}, time.perf_counter()
    saved = since
    for step in range(start, args.total_steps + 1):
        due = step % args.eval_every == 0 or step == args.total_steps
        if due or stop or time.perf_counter() - saved > 60:
            for run in runs:
                run.time["train"] += time.perf_counter() - since
            check_finite(runs, step, metrics, state)
            checkpoint(step)
            if stop:
                raise Interrupted
            if due and not all(run.evaluated(step) for run in runs):
                evaluate_and_log(step)
            since = saved = time.perf_counter()
        if step == args.total_steps:
            break
        batch = make_batch(args, seeds, step, next(pair_batches), next(replay_batches) if replay else None)
        metrics = update(state, batch)
        bar.update()
        log = (step + 1) % args.log_every == 0 or step + 1 == args.total_steps
        if log or device.type == "cpu":  # elsewhere a look at every step would wait for the device
            check_finite(runs, step + 1, metrics, state, batch)
        if log:
            columns = {name: m.tolist() for name, m in metrics.items()}  # the only wait for the device
            for k, run in enumerate(runs):
                run.log("train", step + 1, {name: column[k] for name, column in columns.items()})
            losses = {name.removeprefix("losses/"): c[0] for name, c in columns.items() if name.startswith("losses/")}
            bar.set_postfix({name: f"{loss:.3g}" for name, loss in losses.items()}, last=runs[0].describe_eval())
    bar.close()
    checkpoint(args.total_steps)
    for k, run in enumerate(runs):
        run.save_actor("final.pt", args.total_steps, tree_map(lambda leaf, k=k: leaf[k], state["actor"]))


if __name__ == "__main__":
    with user_errors():
        train(parse_args(default_args(Args, DEFAULTS)))
