"""Datasets in the Farama Foundation's format: `--dataset minari:NAMESPACE/NAME-v0`, downloaded or recorded by oneself.

A dataset knows its environment, which is any that Gymnasium can make: the id of the dataset is the environment's id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Dict, MultiBinary, Tuple

from common.arrays import unreadable
from common.errors import InputError, first_line, remedy, said, simulator_remedy
from common.locks import locked
from common.suites import gym
from common.suites.base import (
    ACTION_LIMIT,
    Episode,
    Preferences,
    Recipe,
    Task,
    Transitions,
    check,
    describe_episodes,
    describe_pairs,
    labelled_by_reward,
)
from common.suites.suite import Suite, or_rows

FOLDER = "MINARI_DATASETS_PATH"
"""what chooses Minari's folder"""


class MinariSuite(Suite):
    def canonical(self, env: str) -> str | None:
        return env if env.startswith("minari:") else None

    def find(self, env: str, max_steps: int) -> Task:
        """Of the environment that the dataset brings. InputError: it cannot be made or trained on, or is another's."""
        data, sim = open_dataset(env), _recover(env)
        own = data.env_spec.id
        obs_dim, act_dim = gym.sizes(env, sim, max_steps)
        if differ := difference(sim.observation_space, data.observation_space):
            raise InputError(f"--dataset {env}: its observations are not those of {own}: {differ}")
        space = data.action_space
        bounded = isinstance(space, Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()
        if not bounded or space.shape != (act_dim,):
            raise InputError(f"--dataset {env}: has actions {space}, which are not the {act_dim} bounded numbers of "
                             f"{own}")  # fmt: skip
        task = Task("minari", env, obs_dim, act_dim, max_steps, *gym.bounds(sim.action_space))
        self.score(task, 0.0)  # wrong metadata are said here, not in the first evaluation
        return task

    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        return gym.wrap(_recover(task.env, render, task.max_steps))

    def score(self, task: Task, episode_return: float) -> float | None:
        """100 times Minari's normalised score, where the metadata have the two returns that it needs.

        Raises:
            InputError: they are not two different numbers.
        """
        metadata = open_dataset(task.env).storage.metadata
        low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if low is None or high is None:
            return None
        try:
            return float(100 * (episode_return - low) / (high - low))
        except (TypeError, ArithmeticError):
            raise InputError(f"--dataset {task.env}: its metadata have ref_min_score {low!r} and ref_max_score "
                             f"{high!r}, which are not two returns; put two numbers there, or neither"
                             ) from None  # fmt: skip

    def dataset(self, task: Task, folder: Path, workers, recipe: Recipe = Recipe()) -> Path:  # noqa: B008 (frozen)
        """Minari's own folder, not the data folder, has it: there its recorder writes too."""
        return Path(open_dataset(task.env).storage.data_path) / "main_data.hdf5"

    @or_rows
    def read_transitions(self, path: Path, task: Task) -> Transitions:
        parts = [(obs[:-1], action, reward, obs[1:], end) for obs, action, reward, end in read_columns(path, task)]
        return Transitions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @or_rows
    def write_rewards(self, path: Path, task: Task, target: str, reward: np.ndarray, made: dict) -> None:
        """As another Minari dataset, beside the first; `made` joins its metadata."""
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.dataset.minari_storage import METADATA_FILE_NAME
        from minari.namespace import create_namespace, list_local_namespaces
        from minari.storage.local import get_dataset_path

        name = target.removeprefix("minari:")
        try:
            parse_dataset_id(name)
            folder = Path(get_dataset_path(name))
        except (TypeError, ValueError):  # TypeError: no version
            folder = None
        if name == target or folder is None or folder.exists():
            raise InputError(f"--relabel {target}: must be minari:NAMESPACE/NAME-v0, and no dataset that is there "
                             "already")  # fmt: skip
        partial, begin = folder.with_name(f".{folder.name}.partial"), 0
        try:
            shutil.copytree(path.parent, partial / "data")
            with h5py.File(partial / "data" / path.name, "r+") as file:
                for e in open_dataset(task.env).iterate_episodes():
                    end = begin + len(e.rewards)
                    del file[f"episode_{e.id}/rewards"]  # its type may be another
                    file[f"episode_{e.id}/rewards"], begin = reward[begin:end], end
            metadata = partial / "data" / METADATA_FILE_NAME
            metadata.write_text(json.dumps(json.loads(metadata.read_text()) | made | {"dataset_id": name}))
            if (namespace := parse_dataset_id(name)[0]) and namespace not in list_local_namespaces():
                create_namespace(namespace)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @or_rows
    def describe(self, path: Path, task: Task) -> list[str]:
        rewards = [reward for _, _, reward, _ in read_columns(path, task)]
        episodes = describe_episodes([len(reward) for reward in rewards], [float(reward.sum()) for reward in rewards])
        return [*episodes, *describe_pairs(self.read_pairs(path, task))]

    def segment(self, task: Task) -> int:
        return 50

    @or_rows
    def read_pairs(self, path: Path, task: Task) -> Preferences:
        """PAIRS pairs, labelled by their summed rewards."""
        episodes = read_columns(path, task)
        length = np.array([len(reward) for _, _, reward, _ in episodes])
        columns = zip(*((obs[:-1], action, reward) for obs, action, reward, _ in episodes), strict=True)
        obs, action, reward = map(np.concatenate, columns)
        return labelled_by_reward(path, length, np.cumsum(length) - length, obs, action, reward, self.segment(task))

    @or_rows
    def read_episodes(self, path: Path, task: Task) -> list[Episode]:
        """Each is replayed from the seed that Minari keeps, by its actions in the environment's own units.

        Raises:
            InputError: some have no seed.
        """
        data = open_dataset(task.env)
        seeds = [episode.get("seed") for episode in data.storage.get_episode_metadata(data.episode_indices)]
        if missing := sum(seed is None for seed in seeds):
            raise InputError(f"{path}: {missing} of its {len(seeds)} episodes have no seed to be replayed from; record "
                             "with reset(seed=...), or with python -m tools.record --video")  # fmt: skip
        actions = [np.asarray(episode.actions) for episode in data.iterate_episodes()]
        columns = zip(read_columns(path, task), seeds, actions, strict=True)
        return [Episode(obs[:-1], action, reward, {"seed": seed, "action": own})
                for (obs, action, reward, _), seed, own in columns]  # fmt: skip

    def replay(self, sim: gymnasium.Env, episode: Episode, first: int) -> Iterator[np.ndarray]:
        """Beneath the wrapper that rescales actions: rescaled and clipped ones would lead elsewhere in the end."""
        if "action" in episode.state:  # else of what tools.record wrote
            while not isinstance(sim, gymnasium.wrappers.RescaleAction):
                sim = sim.env
            sim, episode = sim.env, dataclasses.replace(episode, action=episode.state["action"])
        yield from super().replay(sim, episode, first)


# ---------------------------------------------------------------- the dataset and its environment
@functools.cache
def open_dataset(env: str):
    """The dataset of an id, `minari:NAMESPACE/NAME-v0`, downloaded if it is not there.

    Raises:
        InputError: there is none, it cannot be had, or it is not stored as HDF5.
    """
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.storage.local import get_dataset_path

    name = env.removeprefix("minari:")
    if not re.search(r"-v\d+$", name):
        raise InputError(f"--dataset {env}: has no version; write {env}-v0, for example")
    try:
        parse_dataset_id(name)
        folder = Path(get_dataset_path(name))
        if not (folder / "data").exists() or unfinished(folder).exists():
            _download(name, folder)
        _require_classes(MinariStorage.read_raw_metadata(folder / "data"))
        data = minari.load_dataset(name)
    except InputError:
        raise
    except Exception as error:  # each of Minari's hosts has its own
        advice = remedy(error, flag=FOLDER) or "`minari list local` and `minari list remote` name those that can"
        raise InputError(f"--dataset {env}: cannot be had ({said(error)}); {advice}") from None
    if not (Path(data.storage.data_path) / "main_data.hdf5").exists():
        raise InputError(f'--dataset {env}: is not stored as HDF5; record it with data_format="hdf5"')
    return data


def _download(name: str, folder: Path) -> None:
    """Once, if two processes ask at once; nothing is left of a download that is cut. Minari takes a folder that is
    there, even an empty one, for the dataset.
    """
    import minari
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # else a line a retry
    with locked(folder, flag=FOLDER):
        if (begun := unfinished(folder)).exists():  # left by a kill
            shutil.rmtree(folder, ignore_errors=True)
        if not (folder / "data").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                begun.touch()
            try:
                minari.download_dataset(name)
            except BaseException:
                shutil.rmtree(folder if begun.exists() else folder / "data", ignore_errors=True)
                raise
            finally:
                begun.unlink(missing_ok=True)


def unfinished(folder: Path) -> Path:
    """What stands beside a dataset's folder while it is downloaded."""
    return folder.with_name(f".{folder.name}.unfinished")


def _require_classes(metadata: dict) -> None:
    """Raises ValueError where the metadata name anything but a class of environments and classes of wrappers: Gymnasium
    calls whatever they name.
    """
    gym.see_modules_here()
    spec = json.loads(metadata.get("env_spec") or "{}")
    parts = [(spec, gymnasium.Env), *((part, gymnasium.Wrapper) for part in spec.get("additional_wrappers", ()))]
    for part, kind in parts:
        try:
            made = load_env_creator(part["entry_point"])
        except Exception:  # Gymnasium will say that it is not there
            continue
        if not (isinstance(made, type) and issubclass(made, kind)):
            raise ValueError(f"its environment calls {part['entry_point']}, which is no class of {kind.__name__}")


def require_environment(env: str, given: str) -> None:
    """Raises InputError where --env, `given`, is neither the dataset `env` nor the environment it was recorded in."""
    spec = open_dataset(env).env_spec
    own = spec.id if spec else None
    if given not in ("", env) and given.split(":")[-1] != own:
        raise InputError(f"--env {given}: {env} was recorded in {own}; leave --env out, or choose another --dataset")


@functools.cache
def spaces(env: str) -> tuple[gymnasium.Space, Box]:
    """The environment's own spaces: a dataset may keep the keys of its observations in another order."""
    sim = _recover(env)
    sim.close()
    return sim.observation_space, sim.action_space


def difference(space: gymnasium.Space, stored: gymnasium.Space) -> str:
    """Empty, or how a dataset's space differs from the environment's in its keys (in any order), kind or shapes."""
    kind, names = (Dict if isinstance(space, Dict) else Tuple), range(len(getattr(space, "spaces", ())))
    if isinstance(space, Dict | Tuple):
        if not isinstance(stored, kind) or len(stored) != len(space) or (kind is Dict and set(stored) != set(space)):
            return f"{stored}, not {space}"
        parts = [(space[name], stored[name]) for name in (space if kind is Dict else names)]
        return next((why for part in parts if (why := difference(*part))), "")
    return "" if gymnasium.spaces.flatdim(space) == gymnasium.spaces.flatdim(stored) else f"{stored}, not {space}"


def _recover(env: str, render: bool = False, max_steps: int = 0) -> gymnasium.Env:
    gym.see_modules_here()
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # it would advise newer versions
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of packages
            extra = {"max_episode_steps": max_steps} if max_steps else {}
            render_mode = "rgb_array" if render else None
            return open_dataset(env).recover_environment(render_mode=render_mode, disable_env_checker=True, **extra)
    except Exception as error:  # whatever the environment's constructor raises
        way = simulator_remedy(first_line(error))
        raise InputError(
            f"--dataset {env}: its environment cannot be made ({said(error)}){way and '; ' + way}"
        ) from None


# ---------------------------------------------------------------- data
def flatten(space: gymnasium.Space, x, steps: int) -> np.ndarray:
    """What Gymnasium's FlattenObservation makes of each of `steps` observations: (steps, O)."""
    if isinstance(space, Dict | Tuple):
        parts = space.items() if isinstance(space, Dict) else enumerate(space)
        return np.concatenate([flatten(part, x[key], steps) for key, part in parts], -1)
    if isinstance(space, Box | MultiBinary):
        return np.asarray(x).reshape(steps, -1)
    return np.stack([gymnasium.spaces.flatten(space, item) for item in x])


def read_columns(path: Path, task: Task) -> list[tuple[np.ndarray, ...]]:
    """Of each episode of n steps: obs (n + 1, O), action (n, A) in [-1, 1], reward and terminal (n,)."""
    data, episodes = open_dataset(task.env), []
    if path != Path(data.storage.data_path) / "main_data.hdf5":
        raise InputError(f"{path}: is no file in the layout of docs/data.md, nor the data of {task.env}; name another")
    observations, space = spaces(task.env)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    try:
        recorded = [(e, flatten(observations, e.observations, len(e.rewards) + 1))
                    for e in data.iterate_episodes()]  # fmt: skip
    except Exception as error:  # damaged files raise many kinds
        raise unreadable(path, error, "delete its folder, and download or record it") from None
    for e, obs in recorded:
        steps, name = len(e.rewards), f"episode {e.id}"
        obs = check(path, f"{name}, observations", obs, (steps + 1, task.obs_dim)).astype(np.float32)
        action = check(path, f"{name}, actions", np.asarray(e.actions), (steps, task.act_dim))
        action = 2 * (action - low) / (high - low) - 1  # which RescaleAction undoes
        if action.size and np.abs(action).max() > 1 + 1e-3:
            raise InputError(f"{path}: {name} has actions outside the bounds of {space}; record clipped ones")
        action = action.clip(-ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
        reward = check(path, f"{name}, rewards", np.asarray(e.rewards), (steps,)).astype(np.float32)
        terminal = check(path, f"{name}, terminations", np.asarray(e.terminations), (steps,), 0, 1).astype(np.float32)
        episodes.append((obs, action, reward, terminal))
    if not any(len(reward) for _, _, reward, _ in episodes):
        raise InputError(f"{path}: has no episodes; there is nothing to learn from")
    return episodes
