"""D4RL's locomotion: Gymnasium's -v4 environments, D4RL's HDF5 files, and human preferences."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np

from common.files import InputError, build_once, download, read_arrays
from common.suites.base import (
    Preferences,
    Recipe,
    Task,
    Transitions,
    check,
    check_actions,
    pairs_of_transitions,
    require,
)

URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"
SIMS = {  # Gymnasium's id, numbers of an observation and an action, returns of D4RL's random and expert policies
    "hopper": ("Hopper-v4", 11, 3, -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 17, 6, 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", 17, 6, -280.178953, 12135.0),
}
HUMAN_FILES = {  # environment: file of human preferences, its git blob id
    "hopper-medium-expert-v2": (
        "hopper-medium-expert-v2/num100_human_train.npz", "e8104fff8d0a7c548e0850d07459296ac9b7335b"),
    "hopper-medium-replay-v2": (
        "hopper-medium-replay-v2/num500_human_train.npz", "a2fab7441f40ea9c37afc52734ebd29d722c3284"),
    "walker2d-medium-expert-v2": (
        "walker2d-medium-expert-v2/num100_human_train.npz", "ee5205bb6ef318e65d23da12a7300b65099112f2"),
    "walker2d-medium-replay-v2": (
        "walker2d-medium-replay-v2/num500_human_train.npz", "b0074f35a77c0afd9c28b45784f47ce976537d9f"),
}  # fmt: skip
SEGMENT = 100
"""steps of a segment, as long as those that people labelled"""


def names() -> list[str]:
    return [f"{task}-{kind}-v2" for task in SIMS for kind in ("medium-replay", "medium-expert")]


def canonical(env: str) -> str | None:
    name = f"{env.removesuffix('-v2').removesuffix('-v3')}-v2"
    return name if name in names() else None


def find(env: str, max_steps: int) -> Task:
    _, obs_dim, act_dim, *_ = SIMS[env.split("-")[0]]
    return Task("d4rl", env, obs_dim, act_dim, max_steps)


def make(task: Task, render: bool = False) -> gymnasium.Env:
    """Gymnasium's -v4 is the nearest to the environments of the datasets; -v5 has other observations."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # it would advise -v5
    extra = {"render_mode": "rgb_array", "camera_name": "track"} if render else {}  # else it walks out of sight
    return gymnasium.make(SIMS[task.env.split("-")[0]][0], disable_env_checker=True, **extra)


def score(task: Task, episode_return: float) -> float:
    *_, low, high = SIMS[task.env.split("-")[0]]
    return 100 * (episode_return - low) / (high - low)


# ---------------------------------------------------------------- data
def dataset(task: Task, folder: Path, workers, recipe: Recipe | None = None) -> Path:
    path = folder / "d4rl" / f"{task.env.removesuffix('-v2').replace('-', '_')}-v2.hdf5"
    advice = "give a copy with --dataset, or train on the preference segments alone with --no-use-replay"
    return build_once(path, lambda: download(f"{URL}/{path.name}", path, advice, workers.stop), workers.stop)


def read_transitions(path: Path, task: Task) -> Transitions:
    """D4RL's HDF5 as its `qlearning_dataset`: a time limit ends an episode without a terminal state, and that step,
    whose next observation is another episode's, is left out, as is the file's last one. (In IPL's reader that step
    leads to its own observation, and an episode within which the file ends is left out.)

    Rewards are scaled by 1000 / (largest - smallest return), as IQL and IPL do for locomotion.
    """
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    arrays = read_arrays(path, lambda name: name in keys)
    require(path, arrays, keys)
    rows = len(check(path, "observations", arrays["observations"], (None, task.obs_dim)))
    if not rows:
        raise InputError(f"{path}: 'observations' is empty; make the file again")
    action = check_actions(path, "actions", arrays["actions"], (rows, task.act_dim))
    reward = check(path, "rewards", arrays["rewards"], (rows,)).astype(np.float32)
    terminal = check(path, "terminals", arrays["terminals"], (rows,), 0, 1).astype(bool)
    timeout = check(path, "timeouts", arrays["timeouts"], (rows,), 0, 1).astype(bool)
    first = np.flatnonzero(np.append(True, (terminal | timeout)[:-1]))
    returns = np.add.reduceat(reward.astype(np.float64), first)
    obs = arrays["observations"].astype(np.float32)
    keep = np.flatnonzero(terminal | ~timeout)
    keep = keep[(keep < rows - 1) | terminal[keep]]
    scale = 1000 / max(returns.max() - returns.min(), 1e-6)
    # nothing follows a terminal state: the row itself stands in, and its value is multiplied by zero
    follows = np.where(terminal[keep], keep, keep + 1)
    return Transitions(obs[keep], action[keep], (reward * scale).astype(np.float32)[keep], obs[follows],
                       terminal[keep].astype(np.float32))  # fmt: skip


def read_pairs(path: Path, task: Task) -> Preferences:
    return pairs_of_transitions(path, read_transitions(path, task), SEGMENT)


def describe(path: Path, task: Task) -> list[str]:
    return [f"{len(read_transitions(path, task).obs)} transitions"]
