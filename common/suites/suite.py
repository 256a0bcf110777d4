"""What a suite is: environments of one kind, and where their data come from."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import gymnasium
import h5py
import numpy as np

from common.arrays import read_arrays, write_hdf5
from common.download import Remote, fetch_file
from common.errors import InputError
from common.suites.base import (
    SCHEMA,
    Episode,
    Labels,
    Preferences,
    Recipe,
    Task,
    Transitions,
    check,
    check_actions,
    check_labels,
    describe_episodes,
    describe_pairs,
    hint_at_units,
    labelled_by_reward,
    native,
    require,
    require_target,
)


class Suite(abc.ABC):
    """Environments of one kind and their data. A suite must have `canonical`, `find` and `make`, and overrides what
    else it has. By default data are an HDF5 in this project's own layout (docs/data.md), which the user brings.
    """

    LABELS: ClassVar[dict[str, dict[str, Labels]]] = {}
    """whose labels ("human", "crowd", ...) -> canonical id -> their files"""

    # ---------------------------------------------------------------- the environment
    def names(self) -> list[str]:
        """Canonical ids, for the hint after a misspelt one."""
        return []

    def about(self, task: Task) -> str:
        """What the task is, in a sentence or two, for a person who looks at pictures of it; empty: it does not say."""
        return ""

    @abc.abstractmethod
    def canonical(self, env: str) -> str | None:
        """The canonical id, or None: not an id of this suite."""

    @abc.abstractmethod
    def find(self, env: str, max_steps: int) -> Task:
        """The task of a canonical id, with its sizes. `max_steps`: of an episode, 0: its own limit.

        Raises:
            InputError: it cannot be trained on.
        """

    @abc.abstractmethod
    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        """Flat observations (O,), actions (A,) in [-1, 1], `reset(seed=)`, `render()` upright (H, W, 3) uint8, and
        `info["success"]` where the task has a success.
        """

    def score(self, task: Task, episode_return: float) -> float | None:
        """The return as D4RL normalises it: 0 for its random policy, 100 for its expert; None where there is none."""
        return None

    def scripted(self, task: Task, sim: gymnasium.Env) -> Callable[[np.ndarray], np.ndarray]:
        """The task's scripted policy, acting in `sim`: obs (O,) -> action (A,). InputError: it has none."""
        raise InputError(f"--policies scripted: {task.env} has no scripted policy; name your own as module:function")

    # ---------------------------------------------------------------- the offline dataset
    def remote(self, task: Task) -> Remote | None:
        """Where others host the dataset."""
        return None

    def dataset(self, task: Task, folder: Path, workers, recipe: Recipe = Recipe()) -> Path:  # noqa: B008 (frozen)
        """The dataset's file in the data folder, built or downloaded if it is not there.

        Raises:
            InputError: it cannot be had.
        """
        if (file := self.remote(task)) is None:
            raise InputError(f"--env {task.env}: has no data of its own (docs/data.md says how to make them)")
        return fetch_file(file, folder, workers.stop)

    def read_transitions(self, path: Path, task: Task) -> Transitions:
        """Every step of every episode; `terminal` (T,) where the file has it, else none is terminal.

        Raises:
            InputError: a key is missing, a shape or number is wrong, or the file is another environment's.
        """
        arrays = read_rows(path, task)
        step = steps_of(arrays)
        obs, reward, terminal = arrays["obs"], arrays.get("reward"), arrays.get("terminal")
        if terminal is not None:
            terminal = check(path, "terminal", terminal, (len(obs),), 0, 1)[step].astype(np.float32)
        return Transitions(obs[step], arrays["action"][step], None if reward is None else reward[step], obs[step + 1],
                           np.zeros(len(step), np.float32) if terminal is None else terminal)  # fmt: skip

    def write_rewards(self, path: Path, task: Task, target: str, reward: np.ndarray, made: dict) -> None:
        """A copy of the dataset with other rewards (T,), those of `read_transitions`; `made`: how, into its attributes.

        Raises:
            InputError: it cannot be written to `target`.
        """
        new, step, arrays = require_target(path, target), steps_of(read_rows(path, task)), read_arrays(path)
        protocol, column = arrays.pop("protocol") | made, np.zeros(len(arrays["obs"]), np.float32)
        column[step] = reward
        write_hdf5(new, arrays | {"reward": column}, protocol)

    def describe(self, path: Path, task: Task) -> list[str]:
        """The dataset in a few lines: its episodes, by policy where tools.record wrote it, and its pairs if any."""
        arrays = read_rows(path, task)
        names, policy = arrays["protocol"].get("policies"), arrays.get("episodes/policy")
        lines = [] if names is None or policy is None else by_kind(arrays, "policy", names, policy)
        returns = [arrays["reward"][part].sum() for part in episodes_of(arrays)] if "reward" in arrays else []
        lines += describe_episodes(arrays["episodes/length"].tolist(), returns)
        return lines + (describe_pairs(self.read_pairs(path, task)) if "preferences/start" in arrays else [])

    # ---------------------------------------------------------------- pairs
    def hint(self, path: Path, p: Preferences, task: Task) -> None:  # noqa: B027 (most have none)
        """A word on stderr where the pairs look like those of another environment of the suite."""

    def segment(self, task: Task) -> int:
        """Steps of a segment that people are shown, and of the pairs of a file that does not say."""
        return 25

    def read_pairs(self, path: Path, task: Task) -> Preferences:
        """Pairs labelled from the dataset's rewards: preferences/start (P, 2) and preferences/label (P,), or, of what
        tools.record wrote, PAIRS that are drawn here and labelled by their summed rewards.

        Raises:
            InputError: there are none, or a segment crosses an episode's end.
        """
        arrays = read_rows(path, task)
        length, gamma = arrays["protocol"].get("segment", self.segment(task)), arrays["protocol"].get("gamma", 1.0)
        drawn = "episodes/seed" in arrays and "preferences/start" not in arrays
        if not isinstance(length, int) or length < 1 or (length > len(arrays["obs"]) and not drawn):
            raise InputError(f"{path}: its protocol has segments of {length!r} steps; make the file again")
        if not isinstance(gamma, int | float):
            raise InputError(f"{path}: its protocol has the discount {gamma!r}; make the file again")
        if drawn:
            if "reward" not in arrays:
                raise InputError(f"{path}: holds no rewards to label pairs by; label some with python -m tools.label, "
                                 "and name them with --preferences FILE")  # fmt: skip
            columns = (arrays[name] for name in ("episodes/length", "episodes/row", "obs", "action", "reward"))
            return labelled_by_reward(path, *columns, length, float(gamma))
        require(path, arrays, ("preferences/start", "preferences/label"))
        last = len(arrays["obs"]) - length
        start = check(path, "preferences/start", arrays["preferences/start"], (None, 2), 0, last, np.integer)
        start = start.astype(np.int64)  # of unsigned ones and others numpy makes floats
        label = check_labels(path, arrays["preferences/label"], len(start))
        row, steps = arrays["episodes/row"], arrays["episodes/length"]
        order = np.argsort(row)
        episode = order[np.maximum(np.searchsorted(row[order], start, side="right") - 1, 0)]
        inside = (start >= row[episode]) & (start + length <= row[episode] + steps[episode])
        if not inside.all():
            raise InputError(f"{path}: {(~inside).sum()} segments of {length} steps from 'preferences/start' cross an "
                             "episode's end; draw first rows from row to row + length - steps")  # fmt: skip
        return Preferences(arrays["obs"], arrays["action"], start, label, length, arrays.get("reward"), float(gamma))

    def read_labels(self, labels: Labels, files: list[Path], path: Path, task: Task) -> Preferences:
        """The pairs of `files` where labels are by index: rows of the dataset `path`.

        Raises:
            InputError: they are not of this dataset.
        """
        raise InputError(f"--env {task.env}: its labels are not by index; take --preferences FILE")

    # ---------------------------------------------------------------- pictures
    def read_episodes(self, path: Path, task: Task) -> list[Episode]:
        """The dataset's episodes, with what `replay` needs: by default the seed of their `reset`, episodes/seed (E,). A
        file beside which videos lie (see `videos_of`) needs none.

        Raises:
            InputError: it has neither.
        """
        arrays = read_rows(path, task)
        number, seeds = len(arrays["episodes/row"]), arrays.get("episodes/seed")
        if seeds is not None:
            seeds = check(path, "episodes/seed", seeds, (number,), 0, kind=np.integer)
        elif not videos_of(path).is_dir():
            raise InputError(f"{path}: has no 'episodes/seed' to replay its episodes from, and no videos in "
                             f"{videos_of(path)}; record with python -m tools.record, which keeps the seeds, or its "
                             "--video, where seeds do not replay")  # fmt: skip
        return as_episodes(arrays, [{}] * number if seeds is None else [{"seed": int(seed)} for seed in seeds])

    def replay(self, sim: gymnasium.Env, episode: Episode, first: int) -> Iterator[np.ndarray]:
        """Places the environment `sim` in the episode's states from step `first` on; `obs` (O,) of each, while
        `sim.render()` shows it. By default from the seed of its `reset` and its actions.
        """
        obs = sim.reset(seed=episode.state["seed"])[0]
        for t, action in enumerate(episode.action):
            if t >= first:
                yield obs
            obs = sim.step(action)[0]


# ---------------------------------------------------------------- rows of this project's own HDF5
def read_rows(path: Path, task: Task) -> dict[str, np.ndarray]:
    """The checked rows of an HDF5 in the layout of docs/data.md: obs, action, episodes/row, episodes/length; reward,
    where the file has it.

    An episode of n steps has n + 1 rows; the last one holds the final observation and zeros.

    Raises:
        InputError: a key is missing, a shape or number is wrong, or the file is another environment's.
    """
    arrays = read_arrays(path)
    require(path, arrays, ("obs", "action", "episodes/row", "episodes/length"))
    protocol = arrays["protocol"]
    made_for, schema, keys = (protocol.get("env", task.env), protocol.get("schema", SCHEMA), protocol.get("keys"))
    if made_for != task.env:
        raise InputError(f"{path}: was built for {made_for}, not for {task.env}; name a file of that one")
    if schema != SCHEMA:
        raise InputError(f"{path}: has schema {schema}, this code reads {SCHEMA}; build it with this code")
    if keys is not None and keys != list(task.keys):
        own = ", ".join(map(str, keys)) if isinstance(keys, list) else keys
        raise InputError(f"{path}: its observations are {own}, those of {task.env} are "
                         f"{', '.join(task.keys) or 'one vector'}; record it again")  # fmt: skip
    bounds = [list(task.low), list(task.high)]
    if task.low and (own := protocol.get("bounds", bounds)) != bounds:  # () where only videos are shown
        raise InputError(f"{path}: its actions had the bounds {own}, {task.env} now has {bounds}; record it again")
    for name in {"obs", "action", "reward", "terminal", "success"} & arrays.keys():
        arrays[name] = native(arrays[name])
    rows = len(check(path, "obs", arrays["obs"], (None, task.obs_dim)))
    arrays["action"] = check_actions(path, "action", arrays["action"], (rows, task.act_dim))
    if "policies" not in protocol:  # tools.record has rescaled them
        hint_at_units(path, arrays["action"], task)
    if "reward" in arrays:
        check(path, "reward", arrays["reward"], (rows,))
    if "success" in arrays:
        check(path, "success", arrays["success"], (rows,))
    for name in ("episodes/row", "episodes/length"):
        if arrays[name].dtype.kind in "iu":
            arrays[name] = arrays[name].astype(np.int64)  # sums of small types would wrap
    number = len(check(path, "episodes/row", arrays["episodes/row"], (None,), 0, rows - 1, np.integer))
    check(path, "episodes/length", arrays["episodes/length"], (number,), 1, rows, np.integer)
    if "episodes/policy" in arrays:
        check(path, "episodes/policy", arrays["episodes/policy"], (number,), 0, kind=np.integer)
    if not number:
        raise InputError(f"{path}: 'episodes/row' is empty; there is nothing to learn from")
    if (arrays["episodes/row"] + arrays["episodes/length"]).max() >= rows:
        raise InputError(f"{path}: 'episodes/length' points past the last row; make the file again")
    return arrays


def episodes_of(arrays: dict[str, np.ndarray]) -> list[slice]:
    """The rows of `read_rows` at which an action was taken, an episode each."""
    return [slice(row, row + n) for row, n in zip(arrays["episodes/row"], arrays["episodes/length"], strict=True)]


def steps_of(arrays: dict[str, np.ndarray]) -> np.ndarray:  # -> (T,)
    """Those of `episodes_of`, one after the other."""
    return np.concatenate([np.arange(part.start, part.stop) for part in episodes_of(arrays)])


def videos_of(path: Path) -> Path:
    """Where videos of a dataset's episodes lie, one frame a step: episode-0.webm, or .mp4, and so on."""
    return path.with_name(f"{path.name}.videos")


def as_episodes(arrays: dict[str, np.ndarray], states: list[dict]) -> list[Episode]:
    """The rows of `read_rows` as episodes. `states`: what each is replayed from."""
    policy, episodes = arrays.get("episodes/policy"), []
    for number, part in enumerate(episodes_of(arrays)):
        reward, success = (arrays[name][part] if name in arrays else None for name in ("reward", "success"))
        episodes.append(Episode(arrays["obs"][part], arrays["action"][part], reward, states[number],
                                None if success is None else bool(success.max() > 0),
                                None if policy is None else int(policy[number])))  # fmt: skip
    return episodes


def by_kind(arrays: dict[str, np.ndarray], head: str, names: list[str], kind: np.ndarray) -> list[str]:
    """A table, a row a kind of episode: number, success and return where the file has them, mean length.

    Args:
        arrays: of `read_rows`.  head: over the names.  kind: (E,) index into `names`.
    """
    parts, width = episodes_of(arrays), max(8, *map(len, names))
    columns: list[tuple] = [("length", 7, ".1f", lambda part: part.stop - part.start)]
    if "success" in arrays:
        columns.insert(0, ("success", 8, ".2f", lambda part: arrays["success"][part].max()))
    if "reward" in arrays:
        columns.append(("return", 8, ".1f", lambda part: arrays["reward"][part].sum()))
    lines = [f"{head:{width}} episodes" + "".join(f" {name:>{wide}}" for name, wide, *_ in columns)]
    for k, name in enumerate(names):
        if chosen := [parts[i] for i in np.flatnonzero(kind == k)]:
            cells = (f" {np.mean(list(map(value, chosen))):{wide}{digits}}" for _, wide, digits, value in columns)
            lines.append(f"{name:{width}} {len(chosen):8}" + "".join(cells))
    return lines


# ---------------------------------------------------------------- files that others release
def is_rows(path: Path) -> bool:
    """Whether a file has this project's own layout."""
    try:
        with h5py.File(path, "r") as file:
            return "episodes/row" in file
    except Exception:  # damaged files raise many kinds; who reads it says why
        return False


def or_rows(method):
    """Of a suite whose data others release: `method` reads their layout, and this makes it read ours as `Suite` does,
    for what tools.record wrote.
    """

    @functools.wraps(method)
    def read(self, path: Path, *rest):
        return (getattr(Suite, method.__name__) if is_rows(path) else method)(self, path, *rest)

    return read
