"""Environments and their data, one suite a file. A new suite is one new file, and its name in SUITES.

What a suite must have and may have are the methods of `Suite` (common/suites/suite.py). No torch is imported here.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gymnasium

from common.download import fetch_file
from common.errors import InputError, said, simulator_remedy
from common.suites.base import Labels, Recipe, Task
from common.suites.d4rl import D4RLSuite
from common.suites.gym import GymSuite
from common.suites.metaworld import MetaWorldSuite
from common.suites.minari import MinariSuite, require_environment
from common.suites.robomimic import RobomimicSuite
from common.suites.suite import Suite

SUITES: dict[str, Suite] = {
    "metaworld": MetaWorldSuite(),
    "robomimic": RobomimicSuite(),
    "d4rl": D4RLSuite(),
    "minari": MinariSuite(),
    "gym": GymSuite(),  # last: what stands before a colon, it imports
}


def identify(env: str) -> tuple[str, str]:
    """Suite and canonical id of an environment: `drawer-open`, `drawer-open-v3` -> ("metaworld", "drawer-open-v2").

    Raises:
        InputError: no such environment; names the nearest ones.
    """
    for key, suite in SUITES.items():
        if (name := suite.canonical(env)) is not None:
            return key, name
    names = {name.lower(): name for suite in SUITES.values() for name in suite.names()}
    near = [names[name] for name in difflib.get_close_matches(env.lower(), names, n=3)]
    known = ("try drawer-open-v2 (MetaWorld), lift-ph (robomimic), hopper-medium-expert-v2 (D4RL), a Gymnasium id, "
             "or your own as my_package:My-v0")  # fmt: skip
    raise InputError(f"--env {env}: no such environment; {'did you mean ' + ', '.join(near) + '?' if near else known}")


def env_of(dataset: str) -> str:
    """The environment that a dataset brings with it, or an empty string."""
    return SUITES["minari"].canonical(dataset) or ""


def several(names: str | Iterable[str]) -> tuple[str, ...]:
    """The files that --dataset or --preferences names. A string, of older runs and scripts: one, or none if empty."""
    return tuple(filter(None, [names] if isinstance(names, str) else names))


def resolve(env: str, max_steps: int = 0, dataset: str | Iterable[str] = ()) -> Task:
    """The task of an environment. `max_steps`: of an episode, 0: its own limit.

    `dataset`: where it brings its environment, that one, which `env` must be.

    Raises:
        InputError: no such environment, or none that can be trained on; or a dataset of Minari beside others.
    """
    names = several(dataset)
    if own := next(filter(env_of, names), ""):
        if set(names) - {own}:
            raise InputError(f"--dataset {' '.join(names)}: {own} is a dataset of Minari, which is read without "
                             "others; leave it out, or the others")  # fmt: skip
        require_environment(own, env)
    suite, name = identify(own or env)
    return SUITES[suite].find(name, max_steps)


def make(task: Task, render: bool = False) -> gymnasium.Env:
    """The task's environment. Observations (O,), actions (A,) in [-1, 1]; `render()` gives (H, W, 3) uint8.

    Raises:
        InputError: it cannot be made; without `render` too, since simulators load OpenGL when they are imported.
    """
    try:
        env = SUITES[task.suite].make(task, render)
    except Exception as error:  # each back end of OpenGL raises its own kind
        if isinstance(error, InputError) or not (way := simulator_remedy(str(error))):
            raise
        raise InputError(f"--env {task.env}: cannot be made ({said(error)}); {way}") from None
    return gymnasium.wrappers.TimeLimit(env, task.max_steps) if task.max_steps else env


def score(task: Task, episode_return: float) -> float | None:
    """D4RL's normalised score, 0 for its random and 100 for its expert policy; None where there is none."""
    return SUITES[task.suite].score(task, episode_return)


def find_datasets(names: str | Iterable[str], task: Task, folder: Path, workers, advice: str,
                  recipe: Recipe = Recipe()) -> list[Path]:  # noqa: B008 (frozen)  # fmt: skip
    """The files that --dataset names, in its order; for the task's id, or where there is no name, the task's own one,
    built or downloaded if it is not there.

    Args:
        advice: what the command that asks can do without it, in its own flags.

    Raises:
        InputError: it cannot be had.
    """
    with advised(advice):
        return [SUITES[task.suite].dataset(task, folder, workers, recipe) if name == task.env else Path(name)
                for name in several(names) or (task.env,)]  # fmt: skip


@contextlib.contextmanager
def advised(advice: str) -> Iterator[None]:
    """Ends an InputError of the block with `advice`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; {advice}") from None


def labels_of(task: Task, whose: str) -> Labels:
    """What --preference-labels names. InputError: nobody has labelled the task so."""
    labels = SUITES[task.suite].LABELS
    if task.env not in labels.get(whose, {}):
        others = ", ".join([kind for kind, files in labels.items() if task.env in files] + ["script"])
        raise InputError(f"--preference-labels {whose}: nobody has labelled {task.env} so; take {others}, or "
                         "--preferences FILE")  # fmt: skip
    return labels[whose][task.env]


def fetch(labels: Labels, folder: Path, stop: Callable[[], bool] = lambda: False) -> list[Path]:
    """Paths of the files of `labels`, in `folder` or IPL_DATA_DIR, else downloaded. InputError: they cannot be had."""
    return [fetch_file(file, folder, stop) for file in labels.files]
