"""What all suites share: a task, offline data as arrays, their checks, and pairs labelled from rewards."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from common.arrays import ONE_ARRAY, read_arrays, read_pickle
from common.download import Remote, on_github
from common.errors import InputError
from common.locks import atomic

ACTION_LIMIT = 1 - 1e-5
"""actions are clipped to +-ACTION_LIMIT, as in the original"""
PAIRS = 10_000
"""pairs that are drawn from an offline dataset"""
SCHEMA = 1
"""version of the datasets that this code builds"""
IPL = ("jhejna/inverse-preference-learning", "8037b84c57c10383cc7b628a39c4f66b7e16358b")
"""repository and commit of the pairs that IPL's authors released"""


@dataclass(frozen=True)
class Task:
    """An environment as its suite knows it."""

    suite: str  # its file in common/suites
    env: str  # the canonical id
    obs_dim: int  # numbers of an observation
    act_dim: int  # numbers of an action, each in [-1, 1]
    max_steps: int = 0  # of --max-episode-steps; 0: the environment's own limit
    low: tuple[float, ...] = ()  # the smallest and largest actions in the environment's own units; (): -1 and 1
    high: tuple[float, ...] = ()
    keys: tuple[str, ...] = ()  # names of what its observations are flattened from, in order, where they are several


@dataclass(frozen=True)
class Recipe:
    """How a dataset is collected, where a suite collects its own."""

    episodes: int = 100  # of each kind
    noise: float = 1.0  # standard deviation, on scripted actions
    seed: int = 0
    pairs: int = PAIRS
    kinds: tuple[str, ...] = ()  # of episodes; (): all


@dataclass(frozen=True)
class Labels:
    """Pairs that others have labelled, as they released them."""

    files: tuple[Remote, ...]  # one NPZ; or pickles: the labels, and the first rows of first and of second segments
    segment: int = 0  # steps of a segment, where the files hold rows of the offline dataset
    within: bool = True  # no segment crosses an episode's end


def released_by_ipl(name: str, blob: str) -> Labels:
    """Pairs that IPL's authors released as an NPZ: their own of MetaWorld; people's, and pairs labelled by reward, of
    Preference Transformer's data (Kim et al. 2023). `name`: below datasets/ of their repository."""
    return Labels((on_github(*IPL, f"datasets/{name}", name, blob),))


@dataclass
class Preferences:
    """Labelled pairs of segments as rows of trajectories; see `common.buffers.PreferenceBuffer` for the shapes."""

    obs: np.ndarray  # (T, O)
    action: np.ndarray  # (T, A)
    start: np.ndarray  # (P, 2)
    label: np.ndarray  # (P,)
    length: int
    reward: np.ndarray | None = None  # (T,), where the file holds it
    gamma: float = 1.0  # discount of the returns that labels from rewards compare
    lengths: np.ndarray | None = None  # (P,), where files have segments of other lengths; then `length` is the shortest


@dataclass
class Transitions:
    """An offline dataset; see `common.buffers.ReplayBuffer` for the shapes."""

    obs: np.ndarray  # (T, O)
    action: np.ndarray  # (T, A)
    reward: np.ndarray | None  # (T,), where the file holds it
    next_obs: np.ndarray  # (T, O)
    terminal: np.ndarray  # (T,)


@dataclass
class Episode:
    """A recorded episode of n steps."""

    obs: np.ndarray  # (n, O)
    action: np.ndarray  # (n, A)
    reward: np.ndarray | None  # (n,), where it was recorded
    state: dict[str, np.ndarray | int | str]  # what its suite's `replay` places the simulator by
    success: bool | None = None  # whether any step had one, where it was recorded
    policy: int | None = None  # which of several it is of, where the file says


@functools.cache
def warn(line: str) -> None:
    """A line on stderr, once a process: files are read more than once."""
    print(line, file=sys.stderr)


# ---------------------------------------------------------------- checks
def require(path: Path, arrays: dict, names: tuple[str, ...]) -> None:
    """Raises InputError naming the first of `names` that `arrays` lacks."""
    for name in names:
        if name not in arrays:
            found = ", ".join(sorted(n for n in arrays if n not in ("protocol", "env_args"))[:5])
            raise InputError(f"{path}: has no '{name}' (it has {found or 'no arrays'}); docs/data.md lists the keys")


def hint_at_limit(env: str, max_steps: int, horizon: int) -> None:
    """A word on stderr where --max-episode-steps is beyond the simulator's own limit, which no wrapper lengthens."""
    if max_steps > horizon:
        warn(f"--max-episode-steps {max_steps}: {env} ends after {horizon} steps all the same")


def check(path: Path, name: str, array: np.ndarray, shape: tuple, low=-np.inf, high=np.inf,
          kind: type = np.number) -> np.ndarray:  # fmt: skip
    """Return `array` if it is as it should be. `shape`: None stands for any size; `kind`: np.integer for indices.

    Raises:
        InputError: names the file, the key and what is wrong.
    """
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        want = " x ".join("any" if n is None else str(n) for n in shape)
        other = array.ndim == len(shape) > 1 and array.shape[-1] != shape[-1] is not None
        hint = "is it a file of this environment?" if other else "docs/data.md has the shapes"
        raise InputError(f"{path}: '{name}' has shape {array.shape}, not {want}; {hint}")
    if array.dtype == object:
        raise InputError(f"{path}: '{name}' holds Python objects, not numbers; {ONE_ARRAY}")
    if np.issubdtype(array.dtype, np.complexfloating) or not (
        np.issubdtype(array.dtype, kind) or (array.dtype == bool and kind is np.number)
    ):
        what = "numbers" if kind is np.number else "whole numbers"
        raise InputError(f"{path}: '{name}' holds {array.dtype}, not {what}; make the file again")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()  # what training will see
    if not finite:
        raise InputError(f"{path}: '{name}' holds NaN or infinity; make the file again")
    if array.size and (array.min() < low or array.max() > high):
        raise InputError(f"{path}: '{name}' holds values outside [{low:g}, {high:g}]; make the file again")
    return array


def check_actions(path: Path, name: str, action: np.ndarray, shape: tuple) -> np.ndarray:
    """Actions, checked and clipped to +-ACTION_LIMIT."""
    action = check(path, name, action, shape)
    if action.size and np.abs(action).max() > 1 + 1e-3:
        raise InputError(f"{path}: '{name}' holds values outside [-1, 1]; rescale the actions: "
                         "2 (action - low) / (high - low) - 1, with the bounds of the action space")  # fmt: skip
    return np.clip(action.astype(np.float32), -ACTION_LIMIT, ACTION_LIMIT)


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, the only one that torch takes."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def hint_at_units(path: Path, action: np.ndarray, task: Task) -> None:
    """A word on stderr where `action` (..., A), within +-1, looks like one in the environment's own units."""
    low, high = (np.array(bound or (fallback,), np.float64) for bound, fallback in ((task.low, -1), (task.high, 1)))
    narrow = (low > -1).any() or (high < 1).any()  # else every action in [-1, 1] lies within them
    if narrow and action.size and (action >= low - 1e-3).all() and (action <= high + 1e-3).all():
        warn(f"{path}: all actions lie within the environment's own bounds, {list(task.low)} to {list(task.high)}; "
             "were they rescaled to [-1, 1]? 2 (action - low) / (high - low) - 1 does it")  # fmt: skip


OUR_LABELS = "0 (first preferred), 0.5 (tie) and 1 (second preferred)"
OTHER_LABELS = {
    (1, 2): "label - 1",
    (-1, 1): "(label + 1) / 2",
    (-1, 0, 1): "np.where(label < 0, 0.5, label) if -1 is a tie",
}
"""other conventions, and what makes ours of them"""


def one_a_pair(path: Path, name: str, label: np.ndarray) -> None:
    """Raises InputError where labels are columns."""
    if label.ndim == 2 and label.shape[1] in (1, 2):
        made = f"{name}[:, {label.shape[1] - 1}]" + (", the second segment's," if label.shape[1] == 2 else "")
        raise InputError(f"{path}: '{name}' has shape {label.shape}; one number a pair is wanted, ({len(label)},): "
                         f"{made} makes it")  # fmt: skip


def check_labels(path: Path, label: np.ndarray, pairs: int) -> np.ndarray:
    """Labels (P,): 1 the second segment is preferred, 0 the first, 0.5 a tie."""
    one_a_pair(path, "label", label)
    check(path, "label", label, (pairs,))
    if not np.isin(label, (0.0, 0.5, 1.0)).all():
        values = np.unique(label)
        made = OTHER_LABELS.get(tuple(values.tolist()), "make the file again")
        shown = ", ".join(f"{value:g}" for value in values[:5])
        raise InputError(f"{path}: 'label' holds {shown}; wanted are {OUR_LABELS}: {made}")
    if not pairs:
        raise InputError(f"{path}: 'label' is empty; there is nothing to learn from")
    return label.astype(np.float32)


# ---------------------------------------------------------------- pairs
def draw_pairs(length: np.ndarray, row: np.ndarray, reward: np.ndarray, pairs: int, seed: int, segment: int,
               gamma: float) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Pairs labelled from rewards: `2 * pairs` windows, uniform over all that do not cross an episode's end.

    Args:
        length: (E,) steps of each episode; row: (E,) its first row in `reward` (T,).
        segment: steps of a window.

    Returns:
        start (P, 2) rows; label (P,): 1 where sum_t gamma^t r_t is larger in the second, 0 in the first, 0.5 if equal.
    """
    windows = np.maximum(length - segment + 1, 0)
    ends = np.cumsum(windows)
    draw = np.random.default_rng([seed, len(length) + 1]).integers(0, ends[-1], (pairs, 2))
    episode = np.searchsorted(ends, draw, side="right")
    start = row[episode] + draw - (ends - windows)[episode]
    returns = segment_returns(reward, start, gamma ** np.arange(segment))
    return start, (0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0])).astype(np.float32)


def segment_returns(reward: np.ndarray, start: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(P, 2): the sum of `weight` (L,) times the rewards of each segment, which begins at row `start` (P, 2)."""
    return (reward[start[..., None] + np.arange(len(weight))].astype(np.float64) * weight).sum(-1)


def first_rows(t: Transitions) -> np.ndarray:
    """The rows at which episodes begin: those that do not follow the row before."""
    follows = (t.next_obs[:-1] == t.obs[1:]).all(-1) & (t.terminal[:-1] == 0)
    return np.flatnonzero(np.concatenate([[True], ~follows]))


def pairs_of_transitions(path: Path, t: Transitions, segment: int) -> Preferences:
    """PAIRS pairs drawn from an offline dataset and labelled by their summed rewards."""
    row = first_rows(t)
    return labelled_by_reward(path, np.diff(np.append(row, len(t.obs))), row, t.obs, t.action, t.reward, segment)


def labelled_by_reward(path: Path, length: np.ndarray, row: np.ndarray, obs: np.ndarray, action: np.ndarray,
                       reward: np.ndarray, segment: int, gamma: float = 1.0) -> Preferences:  # fmt: skip
    """PAIRS pairs of (E,) episodes, see `draw_pairs`. InputError: none is as long as a segment."""
    if length.max() < segment:
        raise InputError(f"{path}: no episode is as long as a segment, {segment} steps; train on --preferences FILE")
    start, label = draw_pairs(length, row, reward, PAIRS, 0, segment, gamma)
    return Preferences(obs, action, start, label, segment, reward, gamma)


def read_npz_pairs(path: Path, task: Task) -> Preferences:
    """Pairs from an NPZ with obs_1, obs_2 (P, L, O), action_1, action_2 (P, L, A), label (P,).

    Raises:
        InputError: a key is missing; a shape, number or label is wrong.
    """
    needed = ("obs_1", "obs_2", "action_1", "action_2", "label")
    arrays = read_arrays(path, lambda name: name in (*needed, "env"))
    require(path, arrays if arrays.keys() >= set(needed) else read_arrays(path), needed)
    if (labelled := str(arrays.get("env", task.env))) != task.env:
        warn(f"{path}: its pairs are of {labelled}, not of {task.env}; are they meant for it?")
    pairs, length, _ = check(path, "obs_1", arrays["obs_1"], (None, None, task.obs_dim)).shape
    check(path, "obs_2", arrays["obs_2"], (pairs, length, task.obs_dim))
    action = np.stack([check_actions(path, f"action_{k}", arrays[f"action_{k}"], (pairs, length, task.act_dim))
                       for k in (1, 2)]).reshape(-1, task.act_dim)  # fmt: skip
    hint_at_units(path, action, task)
    obs = np.stack([arrays["obs_1"], arrays["obs_2"]]).astype(np.float32).reshape(-1, task.obs_dim)
    start = np.arange(2 * pairs).reshape(2, pairs).T * length
    return Preferences(obs, action, start, check_labels(path, arrays["label"], pairs), length)


def pairs_by_index(labels: Labels, files: list[Path], path: Path, rows: Preferences, episode: np.ndarray):
    """Pairs from pickles of labels (P,), -1 a tie, and of first rows (P,) of both segments.

    Args:
        rows: the dataset's obs, action and reward in the numbering of the files; episode: (T,) each row's.

    Raises:
        InputError: a label is none, or a segment is not inside the dataset of `path` or one of its episodes.
    """
    one_a_pair(files[0], "labels", label := read_pickle(files[0]))
    check(files[0], "labels", label, (None,), kind=np.integer)
    if not (len(label) and np.isin(label, (-1, 0, 1)).all()):
        raise InputError(f"{files[0]}: holds labels other than 0 (first), 1 (second preferred) and -1 (tie)")
    first, steps = [], labels.segment
    for file in files[1:]:
        row = check(file, "rows", read_pickle(file), (len(label),), kind=np.integer).astype(np.int64)
        if row.min() < 0 or row.max() > len(rows.obs) - steps:
            raise InputError(f"{file}: has segments past the {len(rows.obs)} rows of {path}; is that the dataset they "
                             "were drawn from?")  # fmt: skip
        if labels.within and (crossing := episode[row] != episode[row + steps - 1]).any():
            raise InputError(f"{file}: {crossing.sum()} segments cross an episode's end in {path}, and were drawn "
                             "within episodes; is that the dataset they were drawn from?")  # fmt: skip
        first.append(row)
    label = np.where(label < 0, 0.5, label).astype(np.float32)
    return Preferences(rows.obs, rows.action, np.stack(first, 1), label, steps, rows.reward)


# ---------------------------------------------------------------- what is in them
def describe_episodes(lengths: list[int], returns: list[float]) -> list[str]:
    """Number, lengths and, where there are any, returns of episodes, a fact a line."""
    lines = [f"{len(lengths)} episodes of {min(lengths)} to {max(lengths)} steps, {sum(lengths)} in all"]
    if returns:
        lines.append(f"returns {min(returns):.1f} to {max(returns):.1f}, mean {np.mean(returns):.1f}")
    return lines


def describe_pairs(p: Preferences) -> list[str]:
    """Number, length and ties of pairs; where there are rewards, how often a label names the larger return."""
    lines = [f"{len(p.label)} pairs of {p.length} steps, ties: {(p.label == 0.5).mean():.4f}"]
    if p.reward is not None:
        returns = segment_returns(p.reward, p.start, p.gamma ** np.arange(p.length))
        larger = np.sign(returns[:, 1] - returns[:, 0])
        decided = (p.label != 0.5) & (larger != 0)
        agree = (np.sign(p.label - 0.5) == larger)[decided]
        said = f"{100 * agree.mean():.0f} % of the {len(agree)} pairs without a tie" if len(agree) else "all are ties"
        margin = np.median(np.abs(returns[:, 1] - returns[:, 0]))
        lines += [
            f"labels agree with the rewards: {said}",
            f"returns of segments {returns.min():.4g} to {returns.max():.4g}, median difference in a pair {margin:.4g}",
        ]
    return lines


# ---------------------------------------------------------------- other rewards
def require_target(path: Path, target: str) -> Path:
    """Where a copy of the dataset `path` may be written. InputError: not there."""
    new = Path(target)
    if new.suffix != ".hdf5" or not new.parent.is_dir() or new.resolve() == path.resolve():
        raise InputError(f"--relabel {target}: must be an .hdf5 in a folder that exists, and not the dataset itself")
    return new


def copy_with_rewards(path: Path, target: str, columns: dict[str, np.ndarray], made: dict) -> None:
    """A copy of an HDF5 with `columns` in place of its own of that name, and `made` as its attribute `protocol`."""
    new = require_target(path, target)
    with atomic(new) as partial:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as file:
            for name, column in columns.items():
                del file[name]  # its type may be another, even whole numbers
                file[name] = column.astype(np.float32)
            file.attrs["protocol"] = json.dumps(made)
