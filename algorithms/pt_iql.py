"""PT-IQL: a Preference Transformer (Kim et al. 2023, arXiv 2303.00957) as reward model, and implicit Q-learning on it,
the non-Markovian baseline of Hejna & Sadigh 2023 (arXiv 2305.15363).

    python algorithms/pt_iql.py --env button-press-topdown-v2

Phase 1 trains the transformer on the pairs, until its loss on held-out pairs stops falling. Then every transition of
the data is labelled once, by the model's reward at the end of the window of past steps that leads to it, and phase 2
is iql.py on those rewards. One update of phase 2:

    1. V      expectile regression towards the target critic's Q (IQL, Kostrikov et al. 2021, equation 5)
    2. actor  advantage-weighted regression (IQL, equation 7)
    3. Q      towards the reward plus the new V of the next state (IQL, equation 6)
    4. target critic moves towards the critic

Shapes: S seeds (trained as one batch; nothing mixes them), E critics, B pairs, L transitions of a window,
N flat rows (2BL of segments or R of the offline dataset), O observation, A action. The transformer is trained for one
seed at a time: B segments of T steps, D its width.

Differences from the authors' code (github.com/csmile-1006/PreferenceTransformer) and from the original IPL's:
    [D1] each pair draws its own window start, from all offsets; the original draws one for the whole batch and never
         the last offset.
    [D2] an epoch's last, partial batch of pairs is dropped in phase 2, so that every batch has the same shape.
    [D4] ties in generated data are labelled 0.5; the original's count as "first preferred".
    [D5] pairs are the first of one generated dataset (common/suites/metaworld.py), not of the released files.
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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import suites
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import main
from common.errors import InputError
from common.seed_folder import SeedFolder
from common.seeds import noise_seed
from common.training import Experiment, Training, check_finite
from common.trees import check_alike, save, tree_map

ALGORITHM = Path(__file__).stem
REWARD_SAVE_EVERY = 10
"""seconds between two writings of reward.pt, the checkpoint of phase 1"""
RETURN_SCALE = {"d4rl": 1000}
"""suite: what the authors scale the range of the trajectories' returns to; 500 elsewhere"""
Params = dict[str, Tensor]  # weights w0, b0, w1, ...: (S, E, in, out), (S, E, 1, out); log_std: (S, A)
Batch = dict[str, Tensor]  # what an update reads: see make_batch
Metrics = dict[str, Tensor]  # what it says: (S,) each
State = dict  # networks: Params; adam: the moments of each, m and v: Params; step: (S,), the updates so far


# ---------------------------------------------------------------- arguments
@dataclass
class Args:
    """PT-IQL: a Preference Transformer as reward model, then implicit Q-learning on it."""

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
    expectile: Annotated[float, "(0, 1)"] = 0.75
    """expectile of V; above 0.5 leans to the better actions, towards 1 it nears their maximum"""
    weighted_sum: bool = True
    """score segments by preference attention; else by the plain mean of their steps' rewards"""
    reward_width: Annotated[int, "[1, inf)"] = 256
    """embedding width of the transformer, which has its own learning rate too"""
    reward_layers: Annotated[int, "[1, inf)"] = 1
    """transformer blocks"""
    reward_heads: Annotated[int, "[1, inf)"] = 4
    """attention heads of a block"""
    reward_dropout: Annotated[float, "[0, 1)"] = 0.1
    """dropout of embeddings, attention and residual branches"""
    reward_epochs: Annotated[int, "[1, inf)"] = 100  # [D10]
    """passes over the pairs, at the most"""
    reward_batch_size: Annotated[int, "[1, inf)"] = 256
    """pairs a step of the reward model"""
    reward_patience: Annotated[int, "[0, inf)"] = 4  # [D13]
    """end phase 1 after so many checks (one in five epochs) without a better held-out loss; 0: never"""
    reward_shift: Annotated[float, "(-inf, inf)"] = 0.0
    """added to every reward once it is scaled, a constant"""
    actor_cosine: bool = True
    """let the actor's learning rate fall to zero along a cosine"""
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
    """IQL on the offline dataset instead of the transitions of the preference segments"""
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
        "hidden_sizes": (256, 256), "beta": 2.0, "expectile": 0.7, "reward_epochs": 10_000, "reward_patience": 100,
    },
    "robomimic:*-ph": {"segment_length": 32},
    "robomimic:*-mh": {"segment_length": 64},
    "d4rl:*": {
        "total_steps": 1_000_000, "eval_every": 5_000, "eval_episodes": 10, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "segment_length": 64,
        "hidden_sizes": (256, 256), "beta": 1 / 3, "expectile": 0.7, "reward_epochs": 10_000, "reward_patience": 100,
        "reward_shift": 0.5,
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
def expectile_loss(diff: Tensor, expectile: float, share: Tensor) -> Tensor:  # (S, N), (N,) -> (S,)
    """|expectile - 1(u < 0)| u^2 of u = q - v (IQL, Kostrikov et al. 2021, equation 5)."""
    return (share * (expectile - (diff < 0).float()).abs() * diff.square()).sum(-1)


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


def make_batch(args: Args, seeds: list[int], step: int, pairs: Batch | None, replay: Batch | None) -> Batch:
    """What `update` takes: transitions of the segments or of the offline dataset."""
    rows = pairs if replay is None else replay
    batch = {name: rows[name] for name in ("obs", "action", "next_obs", "reward")}
    # a window's last action, the only one that can end an episode, is in none of its transitions
    terminal = rows.get("terminal", torch.zeros_like(rows["obs"][..., 0]))
    batch["discount"] = args.gamma * (1 - terminal)
    batch["share"] = torch.full_like(rows["obs"][0, :, 0], 1 / rows["obs"].shape[1])  # (N,): turns a sum into a mean
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

    @torch.no_grad()  # [D11]
    def update(state: State, batch: Batch) -> Metrics:
        """One update in place. Returns metrics, (S,) each. The order is part of the algorithm."""
        obs, action, share, discount = batch["obs"], batch["action"], batch["share"], batch["discount"]
        step, actor_lr = state["step"][0] + 1, args.lr
        if args.actor_cosine:
            actor_lr = args.lr * (0.5 + 0.5 * torch.cos(math.pi / args.total_steps * state["step"][0]))

        # 1. V towards the target critic's Q
        q_target = q_values(state["critic_target"], obs, action).min(1).values  # (S, N)

        def v_loss(value: Params) -> tuple[Tensor, Metrics]:
            v = v_values(value, obs)
            adv = q_target - v  # (S, N)
            loss = expectile_loss(adv, args.expectile, share)
            return loss, {"losses/value": loss, "train/v": v.mean(-1), "adv": adv}

        metrics = descend(v_loss, state, "value", step, args.lr)
        adv = metrics.pop("adv")  # with the V before this step's, as in the original

        # 2. actor by advantage-weighted regression
        weight = (adv / args.beta).exp().clamp(max=args.clip_score)
        masks = dropout_masks(args, batch)

        def actor_loss(actor: Params) -> tuple[Tensor, Metrics]:
            mean, log_std = policy(actor, obs, masks)
            loss = -(share * weight * log_prob(mean, log_std, action)).sum(-1)
            return loss, {"losses/actor": loss, "train/adv": adv.mean(-1), "train/weight": weight.mean(-1)}

        metrics |= descend(actor_loss, state, "actor", step, actor_lr)

        # 3. Q towards the reward plus the new V of the next state
        q_target = batch["reward"] + discount * v_values(state["value"], batch["next_obs"])  # (S, N)

        def q_loss(critic: Params) -> tuple[Tensor, Metrics]:
            q = q_values(critic, obs, action)  # (S, E, N)
            loss = (share * (q - q_target.unsqueeze(1)).square()).sum(-1).mean(1)
            return loss, {"losses/critic": loss, "train/q": q.mean((1, 2))}

        metrics |= descend(q_loss, state, "critic", step, args.lr)

        # 4. target critic
        for name, target in state["critic_target"].items():
            target.lerp_(state["critic"][name], args.tau)
        state["step"] += 1
        return metrics

    return update


# ---------------------------------------------------------------- phase 1: the reward model
def make_reward_model(args: Args, seed: int, obs_dim: int, act_dim: int) -> PreferenceTransformer:
    """The untrained reward model of a seed."""
    torch.manual_seed(noise_seed(seed, 0, 0))
    return PreferenceTransformer(obs_dim, act_dim, args.reward_width, args.reward_layers, args.reward_heads,
                                 args.reward_dropout, args.weighted_sum)  # fmt: skip


def reward_lr(progress: float) -> float:
    """From 1e-4 up to 1e-3 in the first tenth, back to 1e-4 along a cosine."""
    return 1e-4 + 9e-4 * (progress / 0.1 if progress < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9))


def check_phase_1(args: Args, pairs: PreferenceBuffer) -> None:
    """Raises InputError for what the transformer cannot learn from."""
    if args.reward_width % args.reward_heads:
        raise InputError(f"--reward-width {args.reward_width}: not a multiple of --reward-heads, {args.reward_heads}")
    if pairs.length > 1000:
        raise InputError(f"segments of {pairs.length} steps: the Preference Transformer takes at most 1000")
    if len(pairs) < 2:
        raise InputError(f"--num-preferences {len(pairs)}: a tenth is held out, at least one pair; give 2 or more")


def segment_loss(model: PreferenceTransformer, segments: Batch, index: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the scores of the pairs `index` (B,), and the accuracy, ties left out.

    Args:
        segments: obs (P, 2, T, O), action (P, 2, T, A), label (P,).
    """
    obs, action, label = (segments[name][index] for name in ("obs", "action", "label"))
    _, score = model(obs.flatten(0, 1), action.flatten(0, 1), obs.new_ones(2 * len(index), obs.shape[2]))
    logits = score.view(-1, 2)[:, 1] - score.view(-1, 2)[:, 0]
    strict = (label != 0.5).float()
    right = (((logits > 0) == (label > 0.5)) * strict).sum() / strict.sum().clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, label), right


def train_reward(args: Args, seed: SeedFolder, segments: Batch, check_stop=lambda: None) -> PreferenceTransformer:
    """Train one seed's reward model, or resume its training, and return the best one by held-out loss."""
    obs, label = segments["obs"], segments["label"]
    model = make_reward_model(args, seed.seed, obs.shape[-1], segments["action"].shape[-1]).to(obs.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    path, count = seed.path / "reward.pt", max(1, len(label) * 9 // 10)  # [D8]
    held_out = torch.arange(count, len(label), device=obs.device)
    progress = {"epoch": 0, "best": float("inf"), "waited": 0, "done": False, "model": model.state_dict()}
    if path.exists():
        saved = seed.read(path.name, (*progress, "last_model", "optimizer"))
        for name in ("model", "last_model"):
            check_alike(path, saved[name], model.state_dict())
        progress = {name: saved[name] for name in progress}
        model.load_state_dict(saved["last_model"])
        optimizer.load_state_dict(saved["optimizer"])
    seed.log.open_table("reward", progress["epoch"])
    what = f"reward model, seed {seed.seed}"
    bar = tqdm(total=args.reward_epochs, initial=progress["epoch"], desc=what, unit="epoch", disable=None)
    saved_at = time.perf_counter()
    while progress["epoch"] < args.reward_epochs and not progress["done"]:
        torch.manual_seed(noise_seed(seed.seed, 0, progress["epoch"] + 1))  # of the order and of the dropout
        model.train()
        order = torch.randperm(count, device=obs.device).split(args.reward_batch_size)
        for i, index in enumerate(order):
            check_stop()
            for group in optimizer.param_groups:
                group["lr"] = reward_lr((progress["epoch"] + i / len(order)) / args.reward_epochs)
            loss, _ = segment_loss(model, segments, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        check_finite(
            seed.path.parent, [seed.seed], progress["epoch"] + 1, {"loss of the reward model": loss.detach()}, {}
        )
        progress["epoch"] += 1
        bar.update()
        if progress["epoch"] % 5 == 0 or progress["epoch"] == args.reward_epochs:
            model.eval()
            with torch.no_grad():
                held_loss, right = (x.item() for x in segment_loss(model, segments, held_out))
            row = {"loss": loss.item(), "held_out_loss": held_loss, "held_out_accuracy": right}
            seed.log.row("reward", progress["epoch"], {f"reward/{name}": number for name, number in row.items()})
            bar.set_postfix({name: f"{number:.3f}" for name, number in row.items()})
            better = {"best": held_loss, "waited": 0, "model": {k: p.clone() for k, p in model.state_dict().items()}}
            progress |= better if held_loss < progress["best"] else {"waited": progress["waited"] + 1}
            progress["done"] = 0 < args.reward_patience <= progress["waited"]
        ended = progress["done"] or progress["epoch"] == args.reward_epochs
        if ended or time.perf_counter() - saved_at > REWARD_SAVE_EVERY:
            last = {"last_model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(path, {"args": seed.args, **progress, **last})
            saved_at = time.perf_counter()
    bar.close()
    model.load_state_dict(progress["model"])
    return model.eval()


@torch.no_grad()
def label_transitions(model: PreferenceTransformer, obs: Tensor, action: Tensor, first: Tensor, window: int,
                      scale: int, check_stop=lambda: None) -> Tensor:  # fmt: skip
    """The model's reward of every row, from the window of past steps of its trajectory that ends at it.

    Args:
        obs: (M, O), action: (M, A), first: (M,) the first row of each row's trajectory.
        window: steps of a window, fewer where the trajectory has only begun.
        scale: RETURN_SCALE; of segments alone their length.

    Returns:
        (M,), scaled as the authors do: by `scale` over the range of the trajectories' returns.
    """
    rewards = []
    for rows in tqdm(torch.arange(len(obs), device=obs.device).split(256), "labelling", unit="batch", disable=None):
        check_stop()
        start = torch.maximum(first[rows], rows - window + 1)
        index = rows.unsqueeze(1) + torch.arange(1 - window, 1, device=obs.device)
        mask = (index >= start.unsqueeze(1)).to(obs.dtype)  # (B, T)
        past_obs, past_action = (x[index.clamp(min=0)] * mask.unsqueeze(-1) for x in (obs, action))
        rewards.append(model(past_obs, past_action, mask, last=True)[0][:, 0])
    reward, (_, lengths) = torch.cat(rewards), torch.unique_consecutive(first, return_counts=True)
    trajectory = torch.repeat_interleave(torch.arange(len(lengths), device=obs.device), lengths)
    returns = torch.zeros(len(lengths), dtype=reward.dtype, device=obs.device).index_add_(0, trajectory, reward)
    return reward * scale / (returns.max() - returns.min()).clamp(min=1e-6)


def relabel(args: Args, training: Training, pairs: PreferenceBuffer, replay: ReplayBuffer | None):
    """Phase 1 for every seed; the buffers with their models' rewards."""
    along = pairs.start.unsqueeze(-1) + torch.arange(pairs.length, device=pairs.device)  # (P, 2, T)
    segments = {"obs": pairs.obs[along], "action": pairs.action[along], "label": pairs.label}
    # Segments may overlap in the stored rows, but a step's reward depends on its segment: one row each. [D14]
    obs, action = segments["obs"].flatten(0, 2), segments["action"].flatten(0, 2)
    row = torch.arange(len(obs), device=pairs.device)
    first, scale = row - row % pairs.length, pairs.length
    if replay is not None:
        obs, action, row = replay.obs, replay.action, torch.arange(len(replay), device=pairs.device)
        breaks = (replay.next_obs[:-1] - replay.obs[1:]).norm(dim=-1) > 1e-5
        starts = torch.cat([torch.ones_like(breaks[:1]), breaks | replay.terminal[:-1].bool()])
        first, scale = (row * starts).cummax(0).values, RETURN_SCALE.get(training.task.suite, 500)
    rewards = []
    for seed in training.folders:
        began = time.perf_counter()
        model = train_reward(args, seed, segments, training.check_stop)
        reward = label_transitions(model, obs, action, first, pairs.length, scale, training.check_stop)  # [D15]
        rewards.append(reward + args.reward_shift)
        seed.time["train"] += time.perf_counter() - began
    if replay is not None:
        replay.reward = torch.stack(rewards)
        return pairs, replay
    start = torch.arange(2 * len(pairs), device=pairs.device).view(-1, 2) * pairs.length
    return PreferenceBuffer(obs, action, start, pairs.label, pairs.length, torch.stack(rewards), pairs.device), None


def learned_reward(state: State, batch: Batch, args: Args) -> Tensor:  # -> (S, N)
    """The model's rewards for `tools.reward`: of every row, from the window of past steps that ends at it. Those that
    phase 2 trains on, where it trains on the offline dataset; of segments it has other windows and another scale [D14].

    Args:
        state: `reward`, the model that reward.pt holds, leaves (S, ...).
        batch: obs (S, N, O), action (S, N, A) of whole trajectories; first (N,) the first row of each row's one;
            window () steps of the pairs' segments [D15].
    """
    scale, rewards = RETURN_SCALE.get(suites.identify(args.env)[0], 500), []
    for k, (obs, action) in enumerate(zip(batch["obs"], batch["action"], strict=True)):
        model = make_reward_model(args, args.seed, obs.shape[-1], action.shape[-1]).eval()
        model.load_state_dict({name: p[k] for name, p in state["reward"].items()})
        rewards.append(label_transitions(model, obs, action, batch["first"], int(batch["window"]), scale))
    return torch.stack(rewards) + args.reward_shift


# ---------------------------------------------------------------- training
def train(args: Args) -> dict:
    """Train every seed to the end, resuming what is there. Returns {seed: `SeedFolder.summary()`}."""
    with Experiment.open(ALGORITHM, args) as experiment:
        for training, pairs, replay in experiment.batches(lambda pairs, _: check_phase_1(args, pairs)):  # [D4] [D5]
            train_seeds(args, training, *relabel(args, training, pairs, replay))
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
