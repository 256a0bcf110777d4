"""Any Gymnasium environment with a continuous action space: `Hopper-v5`, or one's own as `my_package:My-v0`.

Observations are flattened and actions rescaled to [-1, 1] by Gymnasium's wrappers; sizes come from its spaces. The
pairs come from a file (docs/data.md).
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from common.errors import InputError, first_line, said, simulator_remedy
from common.suites.base import Task
from common.suites.suite import Suite


class GymSuite(Suite):
    def names(self) -> list[str]:
        return list(gymnasium.registry)

    def canonical(self, env: str) -> str | None:
        """`my_package:My-v0` imports the module, which registers the id.

        Raises:
            InputError: it cannot be imported, or registers no such id.
        """
        module, colon, name = env.rpartition(":")
        if colon:
            see_modules_here()
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever the user's module raises
                own = f"No module named '{module.split('.')[0]}" in str(error)
                way = "" if own else simulator_remedy(first_line(error))
                raise InputError(f"--env {env}: the module {module} cannot be imported ({said(error)}); "
                                 f"{way or 'start in its folder, or put that on PYTHONPATH'}") from None  # fmt: skip
            if name not in gymnasium.registry:
                near = difflib.get_close_matches(name, gymnasium.registry, n=3)
                hint = f"did you mean {', '.join(near)}?" if near else f"{module} must call gymnasium.register"
                raise InputError(f"--env {env}: {module} does not register {name}; {hint}")
        return env if name in gymnasium.registry else None

    def find(self, env: str, max_steps: int) -> Task:
        """Makes the environment once and reads its spaces."""
        sim = _make(env, False, max_steps)
        space = sim.observation_space
        keys = tuple(part["name"] for part in parts_of(space)) if isinstance(space, Dict | Tuple) else ()
        return Task("gym", env, *sizes(env, sim, max_steps), max_steps, *bounds(sim.action_space), keys)

    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        return wrap(_make(task.env, render, task.max_steps))


# ---------------------------------------------------------------- the environment
def see_modules_here() -> None:
    """Let a module be imported beside which the user stands."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def bounds(action: Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The smallest and the largest action, in the environment's own units."""
    return tuple(action.low.tolist()), tuple(action.high.tolist())


def sizes(env: str, sim: gymnasium.Env, max_steps: int) -> tuple[int, int]:
    """Numbers of a flat observation and of an action, after one reset and one step. Closes `sim`.

    Raises:
        InputError: it cannot be trained on.
    """
    obs, action = sim.observation_space, sim.action_space
    limit = sim.spec.max_episode_steps if sim.spec else None
    if not isinstance(action, Box):
        raise InputError(f"--env {env}: has {type(action).__name__} actions; only continuous ones (Box) can be trained")
    if len(action.shape) != 1 or not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise InputError(f"--env {env}: has actions {action}; they must be a bounded vector, such as Box(-1, 1, (4,))")
    if not np.issubdtype(action.dtype, np.floating):
        raise InputError(f"--env {env}: has whole numbers as actions, {action}; they must be of a float type")
    with np.errstate(over="ignore"):
        width = action.high - action.low
    for i in np.flatnonzero(~((width > 0) & np.isfinite(width)))[:1]:
        low, high = action.low[i], action.high[i]
        raise InputError(f"--env {env}: action {i} has the bounds {low:g} and {high:g}, between which nothing can be "
                         "scaled; leave it out of the action space, or give it a range")  # fmt: skip
    if not flattens(obs):
        raise InputError(f"--env {env}: has observations {obs}; only vectors, or what flattens to one, can be trained")
    if not (limit or max_steps):
        raise InputError(f"--env {env}: has no time limit; register it with max_episode_steps=N, or train with "
                         "--max-episode-steps N")  # fmt: skip
    if why := try_out(sim):
        raise InputError(f"--env {env}: {why}")
    sim.close()
    return gymnasium.spaces.flatdim(obs), action.shape[0]


def try_out(sim: gymnasium.Env) -> str:
    """Empty, or what Gymnasium's API asks for and one reset and one step of the environment did not give."""
    inner = sim.unwrapped  # Gymnasium's own wrappers stumble over an environment of the older API
    try:
        made = inner.reset(seed=0)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict)):
            return f"reset() returned {type(made).__name__}, not (observation, info) as Gymnasium's API asks"
        made = inner.step(inner.action_space.sample())
        if not (isinstance(made, tuple) and len(made) == 5 and isinstance(made[4], dict)):
            what = f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__
            return (f"step() returned {what}, not (observation, reward, terminated, truncated, info) as Gymnasium's "
                    "API asks")  # fmt: skip
        for name, value in zip(("reward", "terminated", "truncated"), made[1:4], strict=True):
            if np.size(value) != 1 or np.asarray(value).dtype.kind not in "biuf":
                return f"step() returned {value!r:.60} as {name}, which must be one number"
        whole = wrap(sim)
        want = whole.observation_space.shape
        for obs in (whole.reset(seed=0)[0], whole.step(np.zeros(whole.action_space.shape, np.float32))[0]):
            if np.shape(obs) != want:
                return f"gives observations of shape {np.shape(obs)}, where its observation_space says {want}"
    except Exception as error:  # whatever the environment raises
        return f"fails in its first reset or step ({said(error, __file__)})"
    return ""


def flattens(space: gymnasium.Space) -> bool:
    """Whether the observations are numbers of a fixed size and no images."""
    if isinstance(space, Dict | Tuple):
        return all(map(flattens, space.values() if isinstance(space, Dict) else space))
    image = isinstance(space, Box) and len(space.shape) >= 2 and space.dtype == np.uint8
    return isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete) and not image


def parts_of(space: gymnasium.Space, name: str = "") -> list[dict[str, str | int]]:
    """Names, sizes and kinds of what is flattened to an observation, in order; a Discrete part is one-hot."""
    if isinstance(space, Dict | Tuple):
        named = space.items() if isinstance(space, Dict) else enumerate(space)
        return [part for key, sub in named for part in parts_of(sub, f"{name}/{key}".lstrip("/"))]
    return [{"name": name or "obs", "size": gymnasium.spaces.flatdim(space), "space": type(space).__name__}]


def wrap(sim: gymnasium.Env) -> gymnasium.Env:
    """Flat observations, actions in [-1, 1]. Each observation is an array of its own: some environments return one that
    they go on to change.
    """
    if not isinstance(sim.observation_space, Box) or len(sim.observation_space.shape) != 1:
        sim = gymnasium.wrappers.FlattenObservation(sim)
    else:
        sim = gymnasium.wrappers.TransformObservation(sim, np.array, sim.observation_space)
    box = sim.action_space  # rescaled, -1 and 1 may round to numbers outside it, which some environments refuse
    sim = gymnasium.wrappers.TransformAction(sim, lambda action: np.clip(action, box.low, box.high), box)
    return gymnasium.wrappers.RescaleAction(sim, -box.dtype.type(1), box.dtype.type(1))


def _make(env: str, render: bool, max_steps: int) -> gymnasium.Env:
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # it would advise newer versions
    extra = {"render_mode": "rgb_array"} if render else {}  # a constructor need not know the argument
    extra |= {"max_episode_steps": max_steps} if max_steps else {}
    try:
        return gymnasium.make(env, disable_env_checker=True, **extra)
    except Exception as error:  # whatever the environment's constructor raises
        way = simulator_remedy(first_line(error))
        raise InputError(f"--env {env}: cannot be made ({said(error)}){way and '; ' + way}") from None
