"""MetaWorld: the v2 tasks on today's MuJoCo, and offline data by the protocol of IPL (Hejna & Sadigh 2023, appendix).

A dataset has `episodes` each of four kinds, all in the target environment: *expert* (scripted policy of the task and
its goal), *within* (the same policy, acting for another goal), *random* (uniform actions) and *cross* (scripted policy
of a random other task). The policies act in their own simulator, and their noisy actions are applied to the target's.
Pairs of segments are labelled by discounted return.

Ids hide the goal, as the paper does: zeros stand in its place. `drawer-open-v2-goal-observable` shows it: the same
episodes, in a dataset of their own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
from tqdm import tqdm

from common.arrays import write_hdf5
from common.locks import build_once
from common.seeds import of_dataset, seed_of
from common.suites.base import (
    ACTION_LIMIT,
    SCHEMA,
    Episode,
    Preferences,
    Recipe,
    Task,
    draw_pairs,
    hint_at_limit,
    released_by_ipl,
    warn,
)
from common.suites.suite import Suite, as_episodes, by_kind, read_rows

TASKS = (
    "assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open "
    "door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side "
    "handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place "
    "pick-place-wall plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall "
    "reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open"
).split()
SEEN = "-goal-observable"
"""ends the id of a task whose observations show the goal, as in MetaWorld's own names"""
KINDS = ("expert", "within", "random", "cross")
SUCCESS_STEPS = 25  # an episode ends after so many steps with success, consecutive or not
HORIZON = 500
STATE = {"hand_position": 3, "gripper": 1, "object_1_position": 3, "object_1_quaternion": 4, "object_2_position": 3,
         "object_2_quaternion": 4}  # fmt: skip
"""names and sizes of the simulator's state in an observation, in order"""
RELEASED = {  # task: git blob id of the 10,000 pairs that IPL's authors released
    "assembly": "1329d16bcc4a34175632cc4d1fe870ba7aee8ff9",
    "button-press": "546c35e87352e0f2a4c67e906771ec6f866baa19",
    "door-close": "17720b4eab39823215a3ee60851fb5a822229527",
    "drawer-open": "73594174005953a1134f052736d4a334c2d6d5f1",
    "plate-slide": "ff43d6ec1c2e11040059ebef0b7ae9b81be64461",
    "sweep-into": "0f912cee0dc5c9592dbf5e5baa0638f378c49e56",
}
ABOUT = {
    "assembly": "Put the ring of the wrench over the peg.", "basketball": "Dunk the ball into the basket.",
    "bin-picking": "Move the object from one bin to the other.", "box-close": "Put the lid on the box.",
    "button-press": "Press the button.", "button-press-topdown": "Press the button from above.",
    "button-press-topdown-wall": "Reach around the wall and press the button from above.",
    "button-press-wall": "Reach around the wall and press the button.",
    "coffee-button": "Press the button of the coffee machine.", "coffee-pull": "Pull the mug away from the machine.",
    "coffee-push": "Push the mug under the coffee machine.", "dial-turn": "Turn the dial by half a turn.",
    "disassemble": "Take the ring of the wrench off the peg.", "door-close": "Close the door.",
    "door-lock": "Lock the door: turn its lock clockwise.", "door-open": "Open the door.",
    "door-unlock": "Unlock the door: turn its lock counter-clockwise.", "drawer-close": "Push the drawer shut.",
    "drawer-open": "Open the drawer.", "faucet-close": "Turn the faucet clockwise.",
    "faucet-open": "Turn the faucet counter-clockwise.", "hammer": "Hammer the nail into the wall.",
    "hand-insert": "Put the gripper into the hole.", "handle-press": "Press the handle down.",
    "handle-press-side": "Press the handle down from the side.", "handle-pull": "Pull the handle up.",
    "handle-pull-side": "Pull the handle up from the side.", "lever-pull": "Pull the lever up.",
    "peg-insert-side": "Insert the peg sideways.", "peg-unplug-side": "Unplug the peg sideways.",
    "pick-out-of-hole": "Take the puck out of the hole.", "pick-place": "Pick up the puck and take it to the goal.",
    "pick-place-wall": "Pick up the puck, lift it over the wall and take it to the goal.",
    "plate-slide": "Slide the plate into the cabinet.", "plate-slide-back": "Slide the plate out of the cabinet.",
    "plate-slide-back-side": "Slide the plate out of the cabinet sideways.",
    "plate-slide-side": "Slide the plate into the cabinet sideways.", "push": "Push the puck to the goal.",
    "push-back": "Push the puck back to the goal.", "push-wall": "Push the puck past the wall to the goal.",
    "reach": "Reach the goal with the gripper.", "reach-wall": "Reach the goal behind the wall with the gripper.",
    "shelf-place": "Put the puck onto the shelf.", "soccer": "Kick the ball into the goal.",
    "stick-pull": "Pull the box with the stick.", "stick-push": "Push the box with the stick.",
    "sweep": "Sweep the puck off the table.", "sweep-into": "Sweep the puck into the hole.",
    "window-close": "Push the window shut.", "window-open": "Push the window open.",
}  # fmt: skip
"""task: what a person is told of it"""
BALLS = {
    "green": "coffee-pull door-close drawer-close drawer-open push push-back push-wall shelf-place soccer stick-pull "
             "stick-push window-close window-open",
    "red": "basketball coffee-push dial-turn lever-pull peg-insert-side peg-unplug-side plate-slide plate-slide-back "
           "plate-slide-back-side plate-slide-side reach reach-wall",
    "blue": "hand-insert pick-place pick-place-wall sweep-into",
}  # fmt: skip
"""colour of the ball that stands at the goal: the tasks whose pictures show one"""
SEGMENT, GAMMA = 25, 0.99  # length and label discount of the preference segments


class MetaWorldSuite(Suite):
    LABELS: ClassVar = {"released": {f"{task}-v2": released_by_ipl(f"metaworld/{task}_10000.npz", blob)
                                     for task, blob in RELEASED.items()}}  # fmt: skip

    def names(self) -> list[str]:
        return [f"{task}-v2{end}" for end in ("", SEEN) for task in TASKS]

    def about(self, task: Task) -> str:
        name = task.env.removesuffix("-v2")
        balls = [f" The {colour} ball is the goal." for colour, tasks in BALLS.items() if name in tasks.split()]
        return ABOUT[name] + "".join(balls)

    def canonical(self, env: str) -> str | None:
        stem = hidden(env).removesuffix("-v2").removesuffix("-v3")
        return f"{stem}-v2{SEEN * env.endswith(SEEN)}" if stem in TASKS else None

    def find(self, env: str, max_steps: int) -> Task:
        hint_at_limit(env, max_steps, HORIZON)
        return Task("metaworld", env, 39, 4, max_steps)

    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        return MetaWorld(task.env, render)

    def scripted(self, task: Task, sim: gymnasium.Env) -> Callable[[np.ndarray], np.ndarray]:
        """MetaWorld's own policy, which sees the goal that observations hide."""
        policy, target = scripted_policy(task.env), sim.unwrapped
        return lambda obs: policy.get_action(with_goal(obs, target))

    def dataset(self, task: Task, folder: Path, workers, recipe: Recipe = Recipe()) -> Path:  # noqa: B008 (frozen)
        what = f"episodes-{recipe.episodes}_noise-{recipe.noise:g}_pairs-{recipe.pairs}_seed-{recipe.seed}"
        what += f"_{'-'.join(recipe.kinds)}" if recipe.kinds else ""
        path = folder / "metaworld" / f"{task.env}_{what}.hdf5"
        return build_once(path, lambda: build(path, task.env, recipe, workers), workers.stop)

    def describe(self, path: Path, task: Task) -> list[str]:
        """Of a dataset that `build` wrote also success rate, length and return of each kind of episode."""
        arrays, whole = read_rows(path, task), super().describe(path, task)
        if not {"episodes/kind", "success"} <= arrays.keys():
            return whole
        return [*by_kind(arrays, "kind", list(KINDS), arrays["episodes/kind"]), *whole]

    def hint(self, path: Path, p: Preferences, task: Task) -> None:
        seen, shown = task.env.endswith(SEEN), bool(p.obs[:, -3:].any())
        if seen != shown:
            warn(f"{path}: the pairs {'show' if shown else 'hide'} the goal, the last three observed numbers, which "
                 f"{task.env} {'shows' if seen else 'hides'}; are they of {other(task.env)}?")  # fmt: skip

    def segment(self, task: Task) -> int:
        return SEGMENT

    def read_episodes(self, path: Path, task: Task) -> list[Episode]:
        """Of a dataset that `build` wrote, too: its protocol's seed gives that of each episode."""
        arrays = read_rows(path, task)
        seed = arrays["protocol"].get("seed")
        if "episodes/seed" in arrays or not isinstance(seed, int):
            return super().read_episodes(path, task)
        seeds = (seed_of(*of_dataset(seed, number, 0)) for number in range(len(arrays["episodes/row"])))
        return as_episodes(arrays, [{"seed": number} for number in seeds])


# ---------------------------------------------------------------- the environment
def hidden(env: str) -> str:
    """The id of the task with its goal hidden."""
    return env.removesuffix(SEEN)


def other(env: str) -> str:
    """The id of the task with its goal hidden where `env` shows it, and shown where `env` hides it."""
    return hidden(env) if env.endswith(SEEN) else env + SEEN


class MetaWorld(gymnasium.Env):
    """A task with the v2 reward. Observation (39,); action (4,); 500 steps.

    Args:
        env: `drawer-open-v2`, or `drawer-open-v2-goal-observable`, which has the goal in the last three numbers, as
            scripted policies need it; else they are zeros.
    """

    def __init__(self, env: str, render: bool = False):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        extra = {"render_mode": "rgb_array", "camera_name": "corner"} if render else {}
        self.sim = ALL_V3_ENVIRONMENTS[hidden(env).replace("-v2", "-v3")](reward_function_version="v2", **extra)
        self.sim._partially_observable = not env.endswith(SEEN)
        self.sim._set_task_called = True
        self.sim.seeded_rand_vec = True  # else goals come from numpy's global state
        self.sim.__dict__.pop("sawyer_observation_space", None)  # cached before the lines above; it clips the goal
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self.observation_parts = STATE | {f"previous_{name}": size for name, size in STATE.items()} | {"goal": 3}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.dt = self.sim.dt  # seconds of a step

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """To the state that `seed` draws: positions of goal and objects."""
        super().reset(seed=seed)
        self.sim.seed(int(self.np_random.integers(2**32) if seed is None else seed))
        self.sim._freeze_rand_vec = False
        self.sim.reset()
        # A reset places objects twice and moves the simulation on only between the two; with one and the same draw the
        # first observation shows them where they are.
        self.sim._freeze_rand_vec = True
        return self.sim.reset()

    def step(self, action: np.ndarray):
        return self.sim.step(action)

    def render(self) -> np.ndarray:
        return np.ascontiguousarray(self.sim.render()[::-1, ::-1])  # the corner camera hangs upside down

    def close(self) -> None:
        self.sim.close()


# ---------------------------------------------------------------- collection, inside a worker
@functools.cache
def target_of(env: str) -> MetaWorld:
    """The learner's environment, one a worker."""
    return MetaWorld(env)


@functools.lru_cache(maxsize=1)
def guide_of(task: str) -> MetaWorld:
    """Where a scripted policy acts. Nobody asks for its rewards, which take a fifth of a step."""
    guide = MetaWorld(task + SEEN)
    guide.sim.evaluate_state = lambda obs, action: (0.0, {})
    return guide


def scripted_policy(env: str):
    """MetaWorld's own policy of a task."""
    from metaworld.policies import ENV_POLICY_MAP

    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # they overshoot by design
    return ENV_POLICY_MAP[hidden(env).replace("-v2", "-v3")]()


def with_goal(obs: np.ndarray, target: MetaWorld) -> np.ndarray:  # (39,) -> (39,)
    """The observation as scripted policies need it."""
    return np.append(obs[:-3], target.sim._get_pos_goal())


def collect(env: str, seed: int, noise: float, kind: str, other: str, numbers: list[int]) -> list[tuple]:
    """Collect episodes in `env`.

    Args:
        kind: one of KINDS.  other: the task whose scripted policy acts; that of `env`, but for "cross".
        numbers: one an episode; its random numbers depend on (seed, number) alone.

    Returns:
        For each: obs (n + 1, O), action (n, A), reward (n,), success (n,).
    """
    target = target_of(env)
    guide = guide_of(other) if kind in ("within", "cross") else None  # an expert acts in the target itself
    episodes = []
    for number in numbers:
        rng = np.random.default_rng(of_dataset(seed, number))
        obs = target.reset(seed=seed_of(*of_dataset(seed, number, 0)))[0]
        if kind == "random":
            actions = rng.uniform(-1, 1, (HORIZON, target.action_space.shape[0]))
        else:
            seen = guide.reset(seed=seed_of(*of_dataset(seed, number, 1)))[0] if guide else with_goal(obs, target)
            policy = scripted_policy(other)
            bump = rng.normal(0.0, noise, (HORIZON, target.action_space.shape[0]))
        rows: list[list] = [[obs], [], [], []]
        successes = 0
        for t in range(HORIZON):
            action = actions[t] if kind == "random" else policy.get_action(seen) + bump[t]
            action = action.clip(-ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
            obs, reward, _, _, info = target.step(action)
            successes += info["success"] > 0
            for column, item in zip(rows, (obs, action, reward, info["success"]), strict=True):
                column.append(item)
            if successes >= SUCCESS_STEPS:
                break
            seen = guide.step(action)[0] if guide else with_goal(obs, target)
        episodes.append(tuple(np.asarray(column, dtype=np.float32) for column in rows))
    return episodes


# ---------------------------------------------------------------- the dataset
def plan(env: str, episodes: int, seed: int) -> list[tuple[str, str, list[int]]]:
    """The episodes of a dataset as jobs for `collect`: (kind, other, numbers). Those of one other task share a job."""
    own = hidden(env)
    others = [f"{task}-v2" for task in TASKS if f"{task}-v2" != own]
    drawn = np.random.default_rng(of_dataset(seed, 4 * episodes)).integers(0, len(others), episodes)
    jobs = [(kind, own, [k * episodes + i]) for k, kind in enumerate(KINDS[:3]) for i in range(episodes)]
    for index in np.unique(drawn):
        jobs.append(("cross", others[index], [int(3 * episodes + i) for i in np.flatnonzero(drawn == index)]))
    return jobs


def build(path: Path, env: str, recipe: Recipe, workers) -> None:
    """Collect a dataset and write it as HDF5 in the layout that `Suite` reads."""
    episodes, seed, kinds = recipe.episodes, recipe.seed, recipe.kinds or KINDS
    jobs = [job for job in plan(env, episodes, seed) if job[0] in kinds]
    with tqdm(total=len(kinds) * episodes, desc=f"building {path.name}", unit="episode", disable=None) as bar:
        done = workers.run(
            collect, [(env, seed, recipe.noise, *job) for job in jobs], lambda part: bar.update(len(part))
        )
    collected = {number: episode for (*_, numbers), part in zip(jobs, done, strict=True)
                 for number, episode in zip(numbers, part, strict=True)}  # fmt: skip
    numbers = np.array(sorted(collected))
    parts = [collected[number] for number in numbers]
    length = np.array([len(p[1]) for p in parts])
    row = np.concatenate([[0], np.cumsum(length + 1)[:-1]])
    # one row more than steps: zeros stand beside the final observation
    action, reward, success = (
        np.concatenate([np.concatenate([p[k], np.zeros_like(p[k][:1])]) for p in parts]) for k in (1, 2, 3)
    )
    start, label = draw_pairs(length, row, reward, recipe.pairs, seed, SEGMENT, GAMMA)
    protocol = {"schema": SCHEMA, "env": env, "episodes": episodes, "noise": recipe.noise, "seed": seed,
                "pairs": recipe.pairs, "segment": SEGMENT, "gamma": GAMMA, "horizon": HORIZON,
                "success_steps": SUCCESS_STEPS, "reward": "metaworld v2", "kinds": KINDS,
                "versions": {name: version(name) for name in ("metaworld", "mujoco", "numpy")}}  # fmt: skip
    arrays = {"obs": np.concatenate([p[0] for p in parts]), "action": action, "reward": reward, "success": success,
              "episodes/row": row, "episodes/length": length, "episodes/kind": numbers // episodes,
              "preferences/start": start, "preferences/label": label}  # fmt: skip
    if recipe.kinds:  # else their numbers, and so their seeds, are those of the rows
        arrays["episodes/seed"] = np.array([seed_of(*of_dataset(seed, number, 0)) for number in numbers])
    write_hdf5(path, arrays, protocol)
