"""Compare a script's own update with golden numbers of the original implementation, in float64.

    python -m tests.parity GOLDEN.npz

prints one JSON line {"algo", "max_param_diff", "max_loss_diff"} and exits 0 where both are small enough, 1 where not.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import user_errors
from common.errors import InputError
from common.trees import tree_map

# golden step metric -> ours
IPL = {"q_loss": "losses/preference", "chi2_loss": "losses/chi2", "actor_loss": "losses/actor", "q": "train/q",
       "reward": "train/reward"}  # fmt: skip
IQL = {"v_loss": "losses/value", "actor_loss": "losses/actor", "q_loss": "losses/critic", "v": "train/v",
       "q": "train/q", "adv": "train/adv"}  # fmt: skip
METRICS = {
    "ipl_iql": IPL,
    "ipl_awac": {**IPL, "adv": "train/adv"},
    "mr_iql": {**IQL, "reward_loss": "losses/reward", "reward": "train/reward"},
    "iql": IQL,
    "cpl": {"cpl_loss": "losses/preference", "bc_loss": "losses/bc"},
    "bc": {"loss": "losses/bc"},
}


def tolerance(algo: str) -> float:
    """What counts as equal: the Preference Transformer's authors compute attention in float32."""
    return 1e-5 if algo == "pt_iql" else 1e-9


def read_case(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """The meta and the arrays (float64) of a golden case."""
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            return meta, {
                name: torch.as_tensor(file[name], dtype=torch.float64) for name in file.files if name != "meta"
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a golden case ({type(error).__name__})") from None


def make_args(script, meta: dict):
    """The script's Args with the case's hyper-parameters; names that only the case has are left out."""
    names = {f.name for f in fields(script.Args)}
    given = {**meta, "hidden_sizes": tuple(meta["hidden"]), "segment_length": meta["segment_obs"],
             "preference_batch_size": meta["pairs"], "replay_batch_size": meta["n_replay"],
             "use_replay": meta["n_replay"] > 0, "actor_cosine": False, "dropout": 0.0,
             "bc_data": "preferred" if meta.get("bc_data") == "pos" else "all"}  # fmt: skip
    return script.Args(**{name: value for name, value in given.items() if name in names})


def params(arrays: dict[str, Tensor], prefix: str) -> dict:
    """The parameters below `prefix`, with the S axis: {part: {w0: (1, E, in, out), ..., log_std: (1, A)}}."""
    tree: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith(prefix + "/"):
            part, leaf = name.removeprefix(prefix + "/").split("/")
            tree.setdefault(part, {})[leaf] = array.clone().unsqueeze(0)
    return tree


def batch_of(script, args, meta: dict, arrays: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Step `step`'s batch, as the script's own `make_batch` joins it."""
    case = {name.split("/")[1]: array for name, array in arrays.items() if name.startswith(f"batch{step}/")}
    obs, action = (torch.stack([case[f"{kind}_1"], case[f"{kind}_2"]]) for kind in ("obs", "action"))  # (2, B, L+1, .)
    pairs = {
        "obs": obs[:, :, :-1].flatten(0, 2), "next_obs": obs[:, :, 1:].flatten(0, 2),
        "action": action[:, :, :-1].flatten(0, 2),
        "last_obs": obs[:, :, -1].flatten(0, 1), "last_action": action[:, :, -1].flatten(0, 1),
        "label": case["label"].float(),  # float32, as in the original, whose cross-entropy is float32 for that reason
    }  # fmt: skip
    replay = None
    if meta["n_replay"]:
        replay = {name: case[f"replay_{name}"] for name in ("obs", "action", "next_obs", "reward")}
        replay["terminal"] = 1 - case["replay_discount"] / args.gamma
        replay = {name: array.unsqueeze(0) for name, array in replay.items()}
    batch = script.make_batch(args, [0], step, {name: array.unsqueeze(0) for name, array in pairs.items()}, replay)
    return batch | {name: array.unsqueeze(0) for name, array in case.items() if name.startswith("noise")}


def updates(script, args, wrap=lambda update: update):
    """The script's update as its loop chooses it: of state, batch and step. `wrap`: what is done to each."""
    if hasattr(script, "make_update"):
        only = wrap(script.make_update(args))
        return lambda state, batch, step: only(state, batch)
    first, then = map(wrap, script.make_updates(args))
    clones = hasattr(args, "bc_steps")
    until = args.bc_steps if clones else args.reward_steps

    def update(state: dict, batch: dict, step: int) -> dict:
        if clones and step == until:
            tree_map(Tensor.zero_, state["adam"])
        return (first if step < until else then)(state, batch)

    return update


def compare_transformer(meta: dict, arrays: dict[str, Tensor]) -> dict[str, str | float]:
    """A case of the Preference Transformer's reward model: rewards, scores and loss, and the gradient."""
    script = importlib.import_module("algorithms.pt_iql")
    sizes = [meta[name] for name in ("obs_dim", "act_dim", "embed_dim", "num_layers", "num_heads")]
    model = script.PreferenceTransformer(*sizes, 0.0, True, meta["preference_embed_dim"], meta["max_timestep"])
    if meta["activation"] != "relu" or not meta["weighted_sum"]:
        raise InputError("pt_iql is compared with ReLU and with the preference attention layer alone")
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = meta["layer_norm_eps"]

    def ours(name: str) -> str:
        name = name.replace("state/", "obs/").replace("/b", ".bias").replace("/w", ".weight")
        return re.sub(r"^block(\d+)[/.]", r"blocks.\1.", name)

    def oriented(name: str, array: Tensor) -> Tensor:
        return array.T if array.ndim == 2 and "timestep" not in name else array  # theirs: (in, out)

    names = {ours(key.removeprefix("init/reward/")): key for key in arrays if key.startswith("init/reward/")}
    for name, p in model.named_parameters():
        p.data = oriented(name, arrays[names[name]]).clone()
    case = {key.removeprefix("batch0/"): array for key, array in arrays.items() if key.startswith("batch0/")}
    sides = [model(case[f"obs_{i}"], case[f"action_{i}"], case[f"mask_{i}"]) for i in (1, 2)]
    losses = [(r - arrays[f"step0/reward_{i}"])[case[f"mask_{i}"] > 0].abs().max() for i, (r, _) in enumerate(sides, 1)]
    grads = [torch.zeros(())]
    if all((case[f"mask_{i}"] > 0).all() for i in (1, 2)):  # scores of padded segments are not compared
        losses += [(score - arrays[f"step0/score_{i}"]).abs().max() for i, (_, score) in enumerate(sides, 1)]
        loss = F.binary_cross_entropy_with_logits(sides[1][1] - sides[0][1], case["label"])
        loss.backward()
        losses.append((loss - arrays["step0/loss"]).abs())
        for name, p in model.named_parameters():
            theirs = oriented(name, arrays[names[name].replace("init/", "grad/", 1)])
            grads.append((p.grad - theirs).abs().max())
    return {"algo": meta["algo"], "max_param_diff": max(grads).item(), "max_loss_diff": max(losses).item()}


def compare(path: Path) -> dict[str, str | float]:
    """Run the case. Returns {"algo", "max_param_diff", "max_loss_diff"}."""
    meta, arrays = read_case(path)
    if meta["algo"] == "pt_iql":
        return compare_transformer(meta, arrays)
    if meta["algo"] not in METRICS:
        raise InputError(f"{path}: algorithm {meta['algo']} is not one of {', '.join(METRICS)}")
    script = importlib.import_module(f"algorithms.{meta['algo']}")
    args = make_args(script, meta)
    state = params(arrays, "init")
    if meta.get("reference"):
        state["reference"] = tree_map(torch.clone, state["actor"])
    nets = {name: p for name, p in state.items() if not name.endswith(("_target", "reference"))}
    state["adam"] = {
        name: {"m": tree_map(torch.zeros_like, p), "v": tree_map(torch.zeros_like, p)} for name, p in nets.items()
    }
    state["step"] = torch.zeros(1, dtype=torch.float64)
    update, loss_diff = updates(script, args), 0.0
    for step in range(meta["steps"]):
        metrics = update(state, batch_of(script, args, meta, arrays, step), step)
        for theirs, ours in METRICS[meta["algo"]].items():
            if f"step{step}/{theirs}" in arrays:  # mr_iql: while its reward model learns; cpl_loss is 0 before
                loss_diff = max(loss_diff, abs(float(metrics.get(ours, 0.0)) - float(arrays[f"step{step}/{theirs}"])))
    final = params(arrays, "final")
    diffs = [(state[part][leaf] - array).abs().max().item() for part, p in final.items() for leaf, array in p.items()]
    return {"algo": meta["algo"], "max_param_diff": max(diffs), "max_loss_diff": loss_diff}


if __name__ == "__main__":
    with user_errors():
        if len(sys.argv) != 2:
            raise InputError("give one golden file: python -m tests.parity GOLDEN.npz")
        result = compare(Path(sys.argv[1]))
    print(json.dumps(result))
    sys.exit(not max(result["max_param_diff"], result["max_loss_diff"]) <= tolerance(result["algo"]))  # NaN fails too
