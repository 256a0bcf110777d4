"""Robomimic: robosuite's tasks, its demonstrations, and the human preferences of Preference Transformer."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from common.arrays import read_arrays
from common.download import Remote
from common.errors import InputError
from common.suites.base import (
    Episode,
    Preferences,
    Task,
    Transitions,
    check,
    check_actions,
    copy_with_rewards,
    describe_episodes,
    describe_pairs,
    hint_at_limit,
    pairs_of_transitions,
    released_by_ipl,
    require,
    warn,
)
from common.suites.suite import Suite, or_rows

SIMS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
"""task: robosuite's name"""
ROBOT, CONTROLLER, RATE = "Panda", "OSC_POSE", 20
"""those of the datasets; decisions a second"""
ABOUT = {"lift": "Lift the cube.", "can": "Put the can into its bin.", "square": "Put the square nut over its peg."}
"""task: what a person is told of it"""
OBS_SIZES = {"lift": 49, "can": 53, "square": 53}
OBS_KEYS = (
    "object-state robot0_joint_pos robot0_joint_pos_cos robot0_joint_pos_sin robot0_joint_vel robot0_eef_pos "
    "robot0_eef_quat robot0_gripper_qpos robot0_gripper_qvel"
).split()  # the order of the human preferences' observations
HUMAN = {  # environment: file of human preferences, its git blob id
    "can-mh": ("Can/num500_q100_human_train.npz", "8460c3f3a6a8bc04f88e410730f95678fe868fb1"),
    "can-ph": ("Can/num100_q50_human_train.npz", "b4e0fb73c3bbc602d58279cfb6350405cef6b0e5"),
    "lift-mh": ("Lift/num500_q100_human_train.npz", "ebbc9ff12abe455ff506aad9a2e5c5c31bfbde8d"),
    "lift-ph": ("Lift/num100_q50_human_train.npz", "192c5cc5c91801aaf07d48bdbcaa17a2ad344161"),
    "square-mh": ("Square/num500_q100_human_train.npz", "35250b0b7e0f9cf4ad8aad284a05544c89389b24"),
    "square-ph": ("Square/num100_q50_human_train.npz", "d3ac922577d4467ca981b36e8c1eefd8994aed96"),
}
RELEASED = {  # the same pairs labelled by reward
    "can-mh": ("Can/num500_q100_script_train.npz", "9f25e361c23d5d80478cdad99ef88387827e185a"),
    "can-ph": ("Can/num100_q50_script_train.npz", "74662f329acc746837bd80961f80e7cb7369084d"),
    "lift-mh": ("Lift/num500_q100_script_train.npz", "33846c9d67c9097f700fdebaacfa21e0815a2141"),
    "lift-ph": ("Lift/num100_q50_script_train.npz", "9537af07381126935276186e61150fe0a6bf2ec5"),
    "square-mh": ("Square/num500_q100_script_train.npz", "9c3b1fdc1ac6f7472e285f89fad870d1ab4d9142"),
    "square-ph": ("Square/num100_q50_script_train.npz", "f8055f76faa5b7c38cb833d6349032899659fb39"),
}
HORIZON = {"ph": 400, "mh": 500}
"""steps after which an episode is cut off, by robomimic's registry"""
SEGMENT = {"ph": 50, "mh": 100}
"""steps of a segment, as long as those that people labelled"""


class RobomimicSuite(Suite):
    LABELS: ClassVar = {whose: {env: released_by_ipl(f"preference_transformer/{name}", blob)
                                for env, (name, blob) in files.items()}
                        for whose, files in (("human", HUMAN), ("released", RELEASED))}  # fmt: skip

    def names(self) -> list[str]:
        return [f"{task}-{kind}" for task in SIMS for kind in ("ph", "mh")]

    def about(self, task: Task) -> str:
        return ABOUT[task.env.split("-")[0]]

    def canonical(self, env: str) -> str | None:
        name = env.removesuffix("-v2").removesuffix("-v3")
        return name if name in self.names() else None

    def find(self, env: str, max_steps: int) -> Task:
        hint_at_limit(env, max_steps, HORIZON[env.split("-")[1]])
        return Task("robomimic", env, OBS_SIZES[env.split("-")[0]], 7, max_steps)

    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        return Robosuite(task, render)

    def remote(self, task: Task) -> Remote:
        """By robomimic's registry, which says http; https is tried first. No other host is known to have 1.4.1."""
        from robomimic import DATASET_REGISTRY

        name, kind = task.env.split("-")
        url = DATASET_REGISTRY[name][kind]["low_dim"]["url"]
        urls = dict.fromkeys((url.replace("http://", "https://"), url))
        return Remote(f"robomimic/{name}/{kind}/low_dim_v141.hdf5", tuple(urls))

    @or_rows
    def read_transitions(self, path: Path, task: Task) -> Transitions:
        """Robomimic's low-dimensional HDF5. Demonstrations in the file's order; rewards as they are, 1 for success.

        As in IPL's code: a step marked done (it reaches success) or the last of its demonstration is terminal, and a
        step that begins where one marked done has ended is left out.
        """
        parts = []
        for demo in read_demos(path, task, ("obs", "next_obs")):
            keep, terminal = kept(demo["done"]), np.append(demo["done"][:-1], True).astype(np.float32)
            columns = (demo["obs"], demo["action"], demo["reward"], demo["next_obs"], terminal)
            parts.append([column[keep] for column in columns])
        return Transitions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @or_rows
    def write_rewards(self, path: Path, task: Task, target: str, reward: np.ndarray, made: dict) -> None:
        """Steps that `read_transitions` leaves out get 0."""
        arrays, columns, begin = read_arrays(path, lambda name: name.endswith("/dones")), {}, 0
        for name in (name for name in arrays if name.endswith("/dones")):
            keep = kept(arrays[name])
            column, end = np.zeros(len(keep)), begin + keep.sum()
            column[keep], begin = reward[begin:end], end
            columns[name.replace("/dones", "/rewards")] = column
        copy_with_rewards(path, target, columns, made)

    @or_rows
    def describe(self, path: Path, task: Task) -> list[str]:
        rewards = [demo["reward"] for demo in read_demos(path, task, ())]
        episodes = describe_episodes([len(reward) for reward in rewards], [float(reward.sum()) for reward in rewards])
        transitions = f"{len(self.read_transitions(path, task).obs)} transitions"
        return [transitions, *episodes, *describe_pairs(self.read_pairs(path, task))]

    def segment(self, task: Task) -> int:
        return SEGMENT[task.env.split("-")[1]]

    @or_rows
    def read_pairs(self, path: Path, task: Task) -> Preferences:
        return pairs_of_transitions(path, self.read_transitions(path, task), self.segment(task))

    @or_rows
    def read_episodes(self, path: Path, task: Task) -> list[Episode]:
        return [Episode(demo["obs"], demo["action"], demo["reward"],
                        {"states": check(path, "states", demo["states"], (len(demo["obs"]), None)),
                         "model_file": str(demo["model_file"])})
                for demo in read_demos(path, task, ("obs",), ("states", "model_file"))]  # fmt: skip

    def replay(self, sim: gymnasium.Env, episode: Episode, first: int) -> Iterator[np.ndarray]:
        """As robomimic's `reset_to`."""
        if "seed" in episode.state:  # tools.record's
            yield from super().replay(sim, episode, first)
            return
        target = sim.unwrapped
        target.reset(seed=0)
        target.sim.reset_from_xml_string(target.sim.edit_model_xml(episode.state["model_file"]))
        target.sim.sim.reset()
        for state in episode.state["states"][first:]:
            target.sim.sim.set_state_from_flattened(state)
            target.sim.sim.forward()
            yield target._flat(target.sim._get_observations(force_update=True))


# ---------------------------------------------------------------- the environment
class Robosuite(gymnasium.Env):
    """A task of robosuite 1.4 with the Panda arm and the controller of the robomimic datasets.

    Observation (49 or 53,): OBS_KEYS in order; action (7,). Reward 1 in a state of success, which ends the episode,
    else 0; truncated at robomimic's horizon, 400 (ph) or 500 (mh) steps of 1/20 s.
    """

    def __init__(self, task: Task, render: bool = False):
        os.environ.setdefault("MUJOCO_GL", "glx")  # robosuite would insist on EGL, which may be missing
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        # robosuite refuses to be imported with a device that is none of CUDA_VISIBLE_DEVICES, also where nothing is
        # rendered; EGL has its own numbers.
        device = os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
        import robosuite

        os.environ |= {"MUJOCO_EGL_DEVICE_ID": device} if device is not None else {}
        name, kind = task.env.split("-")
        controller = robosuite.load_controller_config(default_controller=CONTROLLER)
        self.sim = robosuite.make(
            SIMS[name], robots=ROBOT, controller_configs=controller, control_freq=RATE, ignore_done=True,
            reward_shaping=False, use_camera_obs=False, has_renderer=False, has_offscreen_renderer=render,
        )  # fmt: skip
        for what in ("enabled", "active"):
            self.sim.modify_observable("robot0_joint_pos", what, True)
        self.horizon, self.steps, self.dt = HORIZON[kind], 0, 1 / RATE  # dt: seconds of a step
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.act_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        before = np.random.get_state()  # robosuite places objects by numpy's global state
        np.random.seed(self.np_random.integers(2**32))
        obs, self.steps = self.sim.reset(), 0
        np.random.set_state(before)
        return self._flat(obs), {}

    def step(self, action: np.ndarray):
        obs, reward, _, _ = self.sim.step(action)
        success, self.steps = bool(self.sim._check_success()), self.steps + 1
        return self._flat(obs), float(reward), success, self.steps >= self.horizon, {"success": success}

    def render(self) -> np.ndarray:
        return np.ascontiguousarray(self.sim.sim.render(camera_name="agentview", width=480, height=480)[::-1])

    def close(self) -> None:
        self.sim.close()

    @property
    def observation_parts(self) -> dict[str, int]:
        """Names and sizes of what an observation holds, in order."""
        obs = self.sim.reset()
        return {name: np.size(obs[name]) for name in OBS_KEYS}

    def _flat(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.atleast_1d(obs[name]) for name in OBS_KEYS])


# ---------------------------------------------------------------- data
def read_demos(path: Path, task: Task, groups: tuple[str, ...], extra: tuple[str, ...] = ()) -> list[dict]:
    """The demonstrations of robomimic's low-dimensional HDF5, in the file's order.

    Args:
        groups: of "obs" and "next_obs", those to read.  extra: names to read beside them.

    Returns:
        For each: the groups (n, O), action (n, A), reward (n,), done (n,) bool, and `extra` as it is in the file.
    """
    keys = ["object" if name == "object-state" else name for name in OBS_KEYS]
    wanted = {"actions", "rewards", "dones", *extra} | {f"{group}/{name}" for group in groups for name in keys}
    arrays = read_arrays(path, lambda name: name.startswith("data/") and name.split("/", 2)[-1] in wanted)
    made_for = arrays.get("env_args", {}).get("env_name")
    if made_for not in (None, SIMS[task.env.split("-")[0]]):
        raise InputError(f"{path}: holds the task {made_for}, not that of {task.env}; name a file of that one")
    if made := other_simulator(arrays.get("env_args", {})):
        warn(f"{path}: was recorded with {', '.join(made)}: what is learned from it may not hold in this simulator")
    names = list(dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("data/")))
    if not names:
        require(path, arrays, ("data/demo_0/actions",))
    demos = []
    for demo in (f"data/{name}" for name in names):
        require(path, arrays, tuple(f"{demo}/{name}" for name in sorted(wanted)))
        steps = len(check(path, f"{demo}/actions", arrays[f"{demo}/actions"], (None, task.act_dim)))
        if not steps:
            raise InputError(f"{path}: '{demo}/actions' is empty; make the file again")
        found = {name: arrays[f"{demo}/{name}"] for name in extra}
        for group in groups:
            columns = [check(path, key, arrays[key], (steps, None))
                       for key in (f"{demo}/{group}/{name}" for name in keys)]  # fmt: skip
            joined = check(path, f"{demo}/{group}", np.concatenate(columns, -1), (steps, task.obs_dim))
            found[group] = joined.astype(np.float32)
        found["action"] = check_actions(path, f"{demo}/actions", arrays[f"{demo}/actions"], (steps, task.act_dim))
        found["reward"] = check(path, f"{demo}/rewards", arrays[f"{demo}/rewards"], (steps,)).astype(np.float32)
        found["done"] = check(path, f"{demo}/dones", arrays[f"{demo}/dones"], (steps,), 0, 1).astype(bool)
        demos.append(found)
    return demos


def other_simulator(env_args: dict) -> list[str]:
    """How the simulator of a dataset, by its attribute `env_args`, differs from ours, where it says."""
    found = env_args.get("env_kwargs")
    found = found if isinstance(found, dict) else {}
    controller, ours = found.get("controller_configs"), version("robosuite")
    same = str(env_args.get("env_version")).split(".")[:2] == ours.split(".")[:2]
    said = (
        ("robosuite", ours if same else env_args.get("env_version"), ours),
        ("robot", found.get("robots"), ROBOT),
        ("controller", controller.get("type") if isinstance(controller, dict) else None, CONTROLLER),
        ("Hz", found.get("control_freq"), RATE),
    )
    return [f"{name} {value}, not {own}" for name, value, own in said if value not in (None, own, [own])]


def kept(done: np.ndarray) -> np.ndarray:  # (n,) -> (n,)
    """Whether `read_transitions` keeps a step."""
    return np.append(True, ~done[:-1].astype(bool))
