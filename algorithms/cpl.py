"""CPL: Contrastive Preference Learning (Hejna et al. 2023, arXiv 2310.13639): a policy from labelled pairs of segments,
without a reward model and without a value function.

    python algorithms/cpl.py --env button-press-topdown-v2

In maximum-entropy RL the optimal policy's advantage is alpha log pi(a|s). Where preferences follow the regret, the
segment with the larger sum of it wins, and so the preference loss is one on the policy alone. One update:

    1. actor  in the first --bc-steps: cloning of the segments
    2. actor  then: contrastive loss on the segments' summed alpha log pi(a|s) = -alpha ||mu(s) - a||^2, whose
              bias lambda < 1 keeps the policy near the data

--reference subtracts the log-probabilities of the policy at the end of cloning (CPL-KL).

Shapes: S seeds (trained as one batch; nothing mixes them), B pairs, L transitions of a window, L + 1 steps of it,
N flat rows (2B(L+1) of segments or, for cloning, R of the offline dataset), O observation, A action.

Differences from the original code (github.com/jhejna/cpl):
    [D2] an epoch's last, partial batch of pairs is dropped, so that every batch has the same shape.
    [D5] pairs are the first of one generated dataset (common/suites/metaworld.py), not of the released files.
    [D16] networks, learning rate, pairs a step and updates are those of the other scripts here, so that a comparison
         compares methods; the original's: docs/choosing.md.
    [D17] --warmup-steps is by default 2 % of the updates: the original's 10,000 of 500,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import main
from common.errors import InputError
from common.seeds import noise_seed
from common.training import Experiment, Training
from common.trees import tree_map

ALGORITHM = Path(__file__).stem
Params = dict[str, Tensor]  # weights w0, b0, w1, ...: (S, E, in, out), (S, E, 1, out); E = 1
Batch = dict[str, Tensor]  # what an update reads: see make_batch
Metrics = dict[str, Tensor]  # what it says: (S,) each
State = dict  # networks: Params; adam: the moments of each, m and v: Params; step: (S,), the updates so far


# ---------------------------------------------------------------- arguments
@dataclass
class Args:
    """CPL: contrastive preference learning, a policy from preferences without reward model and value function."""

    # ---- method
    lr: Annotated[float, "(0, inf)"] = 3e-4
    """Adam's learning rate, all networks"""
    alpha: Annotated[float, "(0, inf)"] = 0.1
    """temperature: a segment's advantage is alpha times its summed log-probability"""
    contrastive_bias: Annotated[float, "(0, 1]"] = 0.5
    """lambda, the factor of the advantage of the segment that is not preferred; 1: no bias"""
    reference: bool = False
    """CPL-KL: log-probabilities relative to the actor at the end of cloning"""
    bc_data: Literal["all", "preferred"] = "all"
    """segments that are cloned: all, or the preferred ones, both of a tie"""
    bc_steps: Annotated[int | None, "[0, inf)"] = None
    """updates of cloning alone, before those of the contrastive loss; not given: 40 % of --total-steps"""
    bc_coeff: Annotated[float, "[0, inf)"] = 0.0
    """weight of cloning beside the contrastive loss"""
    warmup_steps: Annotated[int | None, "[1, inf)"] = None  # [D17]
    """updates after cloning in which the learning rate rises linearly; not given: 2 % of --total-steps"""
    lr_multiplier: Annotated[float, "(0, inf)"] = 1.0
    """factor of the learning rate after cloning"""
    hidden_sizes: tuple[Annotated[int, "[1, inf)"], ...] = (256, 256, 256)  # [D16]
    """widths of the hidden layers, all networks"""
    dropout: Annotated[float, "[0, 1)"] = 0.25
    """dropout of the actor's hidden layers"""
    preference_batch_size: Annotated[int, "[1, inf)"] = 16
    """pairs a step"""
    segment_length: Annotated[int, "[0, inf)"] = 0
    """steps of the window taken from each segment, all of them observed and cloned; 0: the whole segment"""
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
    """clone the offline dataset instead of the segments"""
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
        "hidden_sizes": (256, 256),
    },
    "d4rl:*": {
        "total_steps": 1_000_000, "eval_every": 5_000, "eval_episodes": 10, "preference_labels": "human",
        "num_preferences": 0, "use_replay": True, "preference_batch_size": 8, "dropout": 0.0,
        "hidden_sizes": (256, 256),
    },
    "d4rl:*-medium-v2": {"preference_labels": "crowd"},
    "d4rl:halfcheetah-medium-expert-*": {"preference_labels": "script", "num_preferences": 100},
    "d4rl:halfcheetah-medium-replay-*": {"preference_labels": "script", "num_preferences": 500},
    "minari:*": {"actor_average": 0.002, "num_preferences": 0, "dropout": 0.0},
    "gym:*": {"actor_average": 0.002, "num_preferences": 0, "total_steps": 20_000, "eval_every": 1_000, "dropout": 0.0},
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


def policy(actor: Params, obs: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:  # (S, N, O) -> (S, N, A)
    """The action, through tanh."""
    return mlp(actor, obs, masks)[:, 0].tanh()


# ---------------------------------------------------------------- losses: one number a seed
def log_prob(mean: Tensor, action: Tensor) -> Tensor:  # (S, N, A), (S, N, A) -> (S, N)
    """-||mu(s) - a||^2: the log density of a Gaussian of variance 1/2, but for a constant."""
    return -(action - mean).square().sum(-1)


def contrastive_loss(adv: Tensor, label: Tensor, bias: float) -> tuple[Tensor, Tensor]:  # (S, N), (S, B) -> (S,), (S,)
    """-log sigmoid(A+ - bias A-) of the better and the worse segment's summed advantages, of a tie half of each order;
    and the accuracy, ties left out."""
    first, second = adv.view(len(adv), 2, label.shape[-1], -1).sum(-1).unbind(1)  # (S, B)
    loss = -label * F.logsigmoid(second - bias * first) - (1 - label) * F.logsigmoid(first - bias * second)
    strict = (label != 0.5).to(loss.dtype)
    right = ((second > first) == (label > 0.5)) * strict
    return loss.mean(-1), right.sum(-1) / strict.sum(-1).clamp(min=1)


# ---------------------------------------------------------------- initial state and update
def init_mlp(generator: torch.Generator, members: int, sizes: tuple[int, ...]) -> Params:
    """Orthogonal weights (E, in, out) with gain 1, every member on its own, and zero biases (E, 1, out)."""
    params = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        draws = [torch.nn.init.orthogonal_(torch.empty(n_in, n_out), generator=generator) for _ in range(members)]
        params[f"w{i}"], params[f"b{i}"] = torch.stack(draws), torch.zeros(members, 1, n_out)
    return params


def init(args: Args, seed: int, obs_dim: int, act_dim: int) -> State:
    """One seed's state, without the S axis: the actor, Adam's moments and, with --reference, the reference."""
    generator, hidden = torch.Generator().manual_seed(seed), args.hidden_sizes
    actor = init_mlp(generator, 1, (obs_dim, *hidden, act_dim))
    zeros = tree_map(torch.zeros_like, actor)
    moments = {"actor": {"m": zeros, "v": tree_map(torch.clone, zeros)}}
    reference = {"reference": tree_map(torch.clone, actor)} if args.reference else {}
    return {"actor": actor, **reference, "adam": moments, "step": torch.zeros(())}


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


def whole_segments(pairs: Batch) -> Batch:
    """obs, action (S, 2B(L+1), .): all steps of the windows, the last one too."""
    segments, rows = pairs["last_obs"].shape[1], {}  # 2B
    for name in ("obs", "action"):
        steps = pairs[name].unflatten(1, (segments, pairs[name].shape[1] // segments))  # (S, 2B, L, .)
        rows[name] = torch.cat([steps, pairs[f"last_{name}"].unsqueeze(2)], 2).flatten(1, 2)
    return rows


def row_shares(label: Tensor | None, obs: Tensor) -> Tensor:  # (S, B), (S, N, O) -> (S, N)
    """What turns a sum over rows into a mean: of all or, with labels, of the preferred segments, both of a tie."""
    if label is None:
        return torch.full_like(obs[..., 0], 1 / obs.shape[1])
    chosen = torch.cat([label <= 0.5, label >= 0.5], 1).to(obs)  # (S, 2B)
    steps = obs.shape[1] // chosen.shape[1]
    return (chosen / (steps * chosen.sum(1, keepdim=True))).repeat_interleave(steps, 1)


def make_batch(args: Args, seeds: list[int], step: int, pairs: Batch, replay: Batch | None) -> Batch:
    """What an update takes: whole segments and their labels or, while cloning, the rows to clone."""
    batch = whole_segments(pairs)
    if step < args.bc_steps and replay is not None:
        batch = {name: replay[name] for name in ("obs", "action")}
    batch["share"] = row_shares(pairs["label"] if args.bc_data == "preferred" else None, batch["obs"])
    batch["label"] = pairs["label"]
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


def make_updates(args: Args):
    """Two updates, the first ones and the others: functions of state and batch, with no other input, no random numbers,
    no transfer to the host. Each works in place and returns metrics, (S,) each.
    """

    @torch.no_grad()
    def clone(state: State, batch: Batch) -> Metrics:
        # 1. actor by cloning; the reference follows it
        def bc_loss(actor: Params) -> tuple[Tensor, Metrics]:
            lp = log_prob(policy(actor, batch["obs"], dropout_masks(args, batch)), batch["action"])
            loss = -(batch["share"] * lp).sum(-1)
            return loss, {"losses/bc": loss}

        metrics = descend(bc_loss, state, "actor", state["step"][0] + 1, args.lr)
        for name, p in state.get("reference", {}).items():
            p.copy_(state["actor"][name])
        state["step"] += 1
        return metrics

    @torch.no_grad()
    def contrast(state: State, batch: Batch) -> Metrics:
        # 2. actor by preferences, with an Adam that starts from scratch
        obs, action, step = batch["obs"], batch["action"], state["step"][0] + 1 - args.bc_steps
        lr = args.lr * args.lr_multiplier * (step / args.warmup_steps).clamp(max=1)
        lp_reference = log_prob(policy(state["reference"], obs), action) if args.reference else 0.0

        def actor_loss(actor: Params) -> tuple[Tensor, Metrics]:
            lp = log_prob(policy(actor, obs, dropout_masks(args, batch)), action)  # (S, N)
            adv = args.alpha * (lp - lp_reference)
            preference, accuracy = contrastive_loss(adv, batch["label"], args.contrastive_bias)
            bc = -(batch["share"] * lp).sum(-1)
            return preference + args.bc_coeff * bc, {
                "losses/preference": preference, "losses/bc": bc, "train/accuracy": accuracy, "train/adv": adv.mean(-1),
            }  # fmt: skip

        metrics = descend(actor_loss, state, "actor", step, lr)
        state["step"] += 1
        return metrics

    return clone, contrast


# ---------------------------------------------------------------- training
def fill_in(args: Args) -> Args:
    """--bc-steps and --warmup-steps, where not given, in proportion to the updates."""
    if args.bc_steps is None:
        args = replace(args, bc_steps=2 * args.total_steps // 5)
    if args.warmup_steps is None:
        args = replace(args, warmup_steps=max(1, args.total_steps // 50))
    return args


def train(args: Args) -> dict:
    """Train every seed to the end, resuming what is there. Returns {seed: `SeedFolder.summary()`}."""
    args = fill_in(args)
    if args.bc_data == "preferred" and args.use_replay:
        raise InputError("--bc-data preferred: the offline dataset has no labels; add --no-use-replay")
    if args.bc_steps >= args.total_steps:
        steps = f"--bc-steps {args.bc_steps}"
        raise InputError(f"{steps}: leaves no update for the contrastive loss; choose fewer than {args.total_steps}")
    if args.reference and not args.bc_steps:
        raise InputError("--bc-steps 0: --reference is the policy at the end of cloning; choose 1 or more")
    with Experiment.open(ALGORITHM, args) as experiment:
        for training, pairs, replay in experiment.batches():  # [D5]
            train_seeds(args, training, pairs, replay)
    return experiment.summary()


def train_seeds(args: Args, training: Training, pairs: PreferenceBuffer, replay: ReplayBuffer | None) -> None:
    """The training loop, all seeds of `training` as one batch."""
    seeds, start, sizes = training.seeds, training.step, (pairs.obs.shape[1], pairs.action.shape[1])
    state = training.restore([init(args, seed, *sizes) for seed in seeds])  # every leaf: (S, ...)
    clone, contrast = map(training.compile, make_updates(args))
    pair_batches = pairs.batches(seeds, start, args.preference_batch_size, args.segment_length)  # [D2]
    replay_batches = replay.batches(seeds, start, args.replay_batch_size) if replay else repeat(None)
    for step in range(start, args.total_steps + 1):
        if training.due(step):  # an evaluation, a minute since the last checkpoint, or a signal
            training.checkpoint(step, state)
            training.evaluate(step, state["actor"], policy)
        if step == args.total_steps:
            break
        if step == args.bc_steps:
            tree_map(Tensor.zero_, state["adam"])  # contrast counts its steps from here
        update = clone if step < args.bc_steps else contrast
        batch = make_batch(args, seeds, step, next(pair_batches), next(replay_batches))
        metrics = update(state, batch)
        training.log(step + 1, metrics, state, batch)  # every --log-every updates; a NaN stops the run
    training.finish(state)


if __name__ == "__main__":
    main(train, Args, DEFAULTS)
