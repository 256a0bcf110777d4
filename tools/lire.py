"""LiRE's replay buffers (Choi et al. 2024) -> a dataset in this project's layout: tools.dataset --dataset FILE.pkl."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.arrays import fingerprint, read_pickled_arrays, write_hdf5
from common.errors import InputError
from common.suites.base import SCHEMA, Recipe, Task, check, check_actions, draw_pairs, segment_returns
from common.suites.metaworld import HORIZON, SEEN, SEGMENT, TASKS, hidden, other

LIRE = {"observations": 39, "actions": 4, "next_observations": 39, "rewards": 1, "dones": 1}
"""arrays in a pickle of LiRE's (Choi et al. 2024; chwoong/LiRE, algorithms/utils_env.py), and the numbers in a row"""
QUALITY = 100_000
"""first rows that quality 1 takes of each pickle"""


def read_lire(path: Path, task: Task, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `rows` of one of LiRE's pickles: E episodes of HORIZON steps. Their ends, `dones`, are a time limit's.

    Returns:
        obs (E, HORIZON + 1, 39); action (E, HORIZON, 4), in [-1, 1]; reward (E, HORIZON).

    Raises:
        InputError: the file is none of theirs, or is shorter, or shows the goal where `task` does not, or vice versa.
    """
    arrays = read_pickled_arrays(path)
    lengths = {name: len(np.atleast_1d(arrays[name])) for name in LIRE if name in arrays}
    if lengths.keys() != LIRE.keys() or len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:6]) or "nothing"
        raise InputError(f"{path}: holds {found}; LiRE's have {', '.join(LIRE)}, each with one row a step")
    if (have := lengths["dones"]) < rows:
        raise InputError(f"{path}: has {have:,} rows, and --quality {rows / QUALITY:g} takes {rows:,}; this file has "
                         f"{have // HORIZON * HORIZON / QUALITY:g} at most")  # fmt: skip

    def episodes(name: str, size: int) -> np.ndarray:
        part = arrays[name][:rows]
        part = part[:, None] if part.ndim == size == 1 else part
        return check(path, name, part, (rows, size)).reshape(-1, HORIZON, size)

    obs, action, after, reward, done = (episodes(name, size) for name, size in LIRE.items())
    if done[:, :-1].any() or (obs[:, 1:] != after[:, :-1]).any():
        raise InputError(f"{path}: its episodes do not all have {HORIZON} steps, as LiRE's have from the first row on")
    seen, shown = task.env.endswith(SEEN), (obs[..., -3:] != 0).any(-1)
    if (shown != seen).any():
        raise InputError(f"{path}: {shown.sum():,} of {rows:,} rows show the goal, in the last three observed numbers, "
                         f"in {task.env} {'all' if seen else 'none'} do; is it --env {other(task.env)}?")  # fmt: skip
    action = check_actions(path, "actions", action, action.shape)
    return np.concatenate([obs, after[:, -1:]], 1).astype(np.float32), action, reward[..., 0].astype(np.float32)


def convert_lire(files: list[Path], out: Path, task: Task, quality: float, tie_margin: float, recipe: Recipe) -> None:
    """Write the first `quality` x QUALITY rows of each of LiRE's pickles as one HDF5 in the layout that `Suite` reads.

    Its pairs are drawn uniformly from all segments within episodes and labelled by summed rewards: a tie where the sums
    differ by `tie_margin` at most, as in LiRE's own code.

    Args:
        recipe: `pairs`, and their `seed`.

    Raises:
        InputError: `quality` is no whole number of episodes, or a file is not as `read_lire` wants it.
    """
    rows = round(quality * QUALITY)
    if hidden(task.env).removesuffix("-v2") not in TASKS:
        raise InputError(f"--env {task.env}: pickles are LiRE's, of MetaWorld: --env button-press-topdown-v2{SEEN}")
    if rows % HORIZON or not rows:
        raise InputError(f"--quality {quality:g}: takes {rows:,} rows, and an episode has {HORIZON}; "
                         f"take a multiple of {HORIZON / QUALITY:g}")  # fmt: skip
    obs, action, reward = map(np.concatenate, zip(*(read_lire(path, task, rows) for path in files), strict=True))
    # one row more than steps: zeros stand beside the final observation
    obs, action = obs.reshape(-1, 39), np.pad(action, ((0, 0), (0, 1), (0, 0))).reshape(-1, 4)
    reward = np.pad(reward, ((0, 0), (0, 1))).ravel()
    row = np.arange(0, len(obs), HORIZON + 1)
    length = np.full(len(row), HORIZON)
    start, _ = draw_pairs(length, row, reward, recipe.pairs, recipe.seed, SEGMENT, 1.0)
    better = np.diff(segment_returns(reward, start, np.ones(SEGMENT)))[:, 0]
    label = np.where(np.abs(better) <= tie_margin, 0.5, better > 0).astype(np.float32)
    protocol = {"schema": SCHEMA, "env": task.env, "source": "LiRE", "files": [fingerprint(path) for path in files],
                "quality": quality, "tie_margin": tie_margin, "pairs": recipe.pairs, "pairs_seed": recipe.seed,
                "segment": SEGMENT, "gamma": 1.0, "horizon": HORIZON}  # fmt: skip
    arrays = {"obs": obs, "action": action, "reward": reward, "episodes/row": row, "episodes/length": length,
              "preferences/start": start, "preferences/label": label}  # fmt: skip
    write_hdf5(out, arrays, protocol)
