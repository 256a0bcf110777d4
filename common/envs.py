"""Environment id -> Gymnasium environment; episodes and their evaluation over worker processes.

Nothing here imports torch, so that a worker process starts in a second and stays small: the actor travels as numpy
arrays and `mean_action` computes its mean. Whoever gives the actor another architecture changes `mean_action` too.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import gymnasium
import numpy as np

METAWORLD_TASKS = (
    "assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall "
    "button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open "
    "door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press handle-press-side "
    "handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole pick-place "
    "pick-place-wall plate-slide plate-slide-back plate-slide-back-side plate-slide-side push push-back push-wall "
    "reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close window-open"
).split()

ROBOMIMIC_TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
ROBOMIMIC_OBS = (
    "object-state robot0_joint_pos robot0_joint_pos_cos robot0_joint_pos_sin robot0_joint_vel robot0_eef_pos "
    "robot0_eef_quat robot0_gripper_qpos robot0_gripper_qvel"
).split()  # the order of the human preferences' observations
D4RL_TASKS = {  # environment, returns of D4RL's random and expert policies (scores 0 and 100)
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
}
SUITES = {
    **{f"{task}-v2": "metaworld" for task in METAWORLD_TASKS},
    **{f"{task}-{kind}": "robomimic" for task in ROBOMIMIC_TASKS for kind in ("ph", "mh")},
    **{f"{task}-{kind}-v2": "d4rl" for task in D4RL_TASKS for kind in ("medium-replay", "medium-expert")},
}
"""environment id: suite"""
SIZES = {"lift": (49, 7), "can": (53, 7), "square": (53, 7), "hopper": (11, 3), "walker2d": (17, 6),
         "halfcheetah": (17, 6)}  # fmt: skip
"""task: numbers of an observation and of an action; MetaWorld's have 39 and 4"""
RENDER_EVERY = 4
"""steps between two frames of a video: rendering without a GPU takes about 0.2 s a frame"""
EPISODE_TIMEOUT = 600
"""seconds without a finished episode after which the workers count as hung"""


class InputError(ValueError):
    """The user's input is wrong; the message is one line that says what, where and how to mend it."""


def resolve(env: str) -> tuple[str, str]:
    """The suite and canonical id of an environment: `drawer-open`, `drawer-open-v3` -> ("metaworld", "drawer-open-v2").

    Raises:
        InputError: no such environment; names the nearest ones.
    """
    stem = env.removesuffix("-v2").removesuffix("-v3")
    for name in (stem, f"{stem}-v2"):
        if name in SUITES:
            return SUITES[name], name
    near = difflib.get_close_matches(env, SUITES, n=3, cutoff=0.4)
    known = "drawer-open-v2 (MetaWorld), lift-ph (robomimic) or hopper-medium-expert-v2 (D4RL)"
    hint = f"did you mean {', '.join(near)}?" if near else f"try {known}"
    raise InputError(f"--env {env}: no such environment; {hint}")


def sizes(env: str) -> tuple[int, int]:
    """Numbers of an observation and of an action."""
    return SIZES.get(env.split("-")[0], (39, 4))


def make(env: str, goal_visible: bool = False, render: bool = False) -> gymnasium.Env:
    """A Gymnasium environment for `env`; `reset_env` seeds it.

    MetaWorld: the v2 task on the current MuJoCo bindings with the v2 reward; the goal (last three numbers of the
    observation) is zero unless `goal_visible`, which the scripted policies need. Robomimic: the robosuite task that
    the datasets record. D4RL: Gymnasium's -v4, the nearest to the environments of the datasets.
    """
    suite, name = resolve(env)
    if suite == "robomimic":
        return Robosuite(name, render)
    if suite == "d4rl":
        gymnasium.logger.min_level = gymnasium.logger.ERROR  # it would advise -v5, which has other observations
        extra = {"render_mode": "rgb_array", "camera_name": "track"} if render else {}  # else it walks out of sight
        return gymnasium.make(D4RL_TASKS[name.split("-")[0]][0], disable_env_checker=True, **extra)
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    extra = {"render_mode": "rgb_array", "camera_name": "corner"} if render else {}
    sim = ALL_V3_ENVIRONMENTS[name.replace("-v2", "-v3")](reward_function_version="v2", **extra)
    sim._partially_observable = not goal_visible
    sim._set_task_called = True
    sim.seeded_rand_vec = True  # else goals come from numpy's global state
    sim.__dict__.pop("sawyer_observation_space", None)  # cached before the two lines above; it clips the goal
    return sim


class Robosuite(gymnasium.Env):
    """A task of robosuite 1.4 with the Panda arm and the controller of the robomimic datasets.

    Observation (49 or 53,): ROBOMIMIC_OBS in order. Reward 1 in a state of success, which ends the episode, else 0;
    truncated at robomimic's horizon, 400 (ph) or 500 (mh) steps of 1/20 s.
    """

    def __init__(self, env: str, render: bool = False):
        os.environ.setdefault("MUJOCO_GL", "glx")  # robosuite would insist on EGL, which may be missing
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        import robomimic
        import robosuite

        task, kind = env.split("-")
        controller = robosuite.load_controller_config(default_controller="OSC_POSE")
        self.sim = robosuite.make(
            ROBOMIMIC_TASKS[task], robots="Panda", controller_configs=controller, control_freq=20, ignore_done=True,
            reward_shaping=False, use_camera_obs=False, has_renderer=False, has_offscreen_renderer=render,
        )  # fmt: skip
        for what in ("enabled", "active"):
            self.sim.modify_observable("robot0_joint_pos", what, True)
        self.horizon, self.steps = robomimic.DATASET_REGISTRY[task][kind]["low_dim"]["horizon"], 0
        obs_dim, act_dim = sizes(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (act_dim,), np.float32)

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
        return self.sim.sim.render(camera_name="agentview", width=480, height=480)[::-1]

    def close(self) -> None:
        self.sim.close()

    def _flat(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.atleast_1d(obs[name]) for name in ROBOMIMIC_OBS])


def reset_env(sim: gymnasium.Env, seed: int, goal: np.ndarray | None = None) -> np.ndarray:  # -> (O,)
    """Reset to the state that `seed` draws. MetaWorld: or to `goal`, the `_last_rand_vec` of another reset."""
    if not hasattr(sim, "seeded_rand_vec"):
        return sim.reset(seed=int(seed))[0]
    if goal is None:
        sim.seed(int(seed))
        sim._freeze_rand_vec = False
        sim.reset()
        goal = sim._last_rand_vec.copy()
    # A reset places objects twice and moves the simulation on only between the two; with one and the same draw the
    # first observation shows them where they are.
    sim._freeze_rand_vec, sim._last_rand_vec = True, goal
    return sim.reset()[0]


def frame(sim: gymnasium.Env) -> np.ndarray:  # -> (H,W,3) uint8
    """One picture of the simulation, the right way up (MetaWorld's corner camera hangs upside down)."""
    picture = sim.render()
    return np.ascontiguousarray(picture[::-1, ::-1] if hasattr(sim, "seeded_rand_vec") else picture)


def d4rl_score(env: str, episode_return: float) -> float | None:
    """D4RL's normalised score, 0 for its random and 100 for its expert policy; None for other suites."""
    if resolve(env)[0] != "d4rl":
        return None
    _, low, high = D4RL_TASKS[env.split("-")[0]]
    return 100 * (episode_return - low) / (high - low)


def seed_of(*key: int) -> int:
    """One 32-bit seed from several numbers, without the collisions of adding them."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])  # (1, 0) alone would equal (1,)


# ---------------------------------------------------------------- episodes, inside a worker
def mean_action(actor: dict[str, np.ndarray], obs: np.ndarray) -> np.ndarray:  # (O,) -> (A,)
    """tanh of a ReLU network with weights w0, b0, w1, ...: the actor's mean, for one observation."""
    x, depth = obs.astype(np.float32), sum(name.startswith("w") for name in actor)
    for i in range(depth):
        x = x @ actor[f"w{i}"] + actor[f"b{i}"]
        x = np.maximum(x, 0.0) if i < depth - 1 else np.tanh(x)
    return np.clip(x, -1.0, 1.0)


@functools.cache
def simulator(env: str, goal_visible: bool = False, render: bool = False) -> gymnasium.Env:
    """`make`, once a worker."""
    return make(env, goal_visible, render)


def rollout(env: str, actor: dict[str, np.ndarray], seed: int, video: Path | None = None) -> dict[str, float | None]:
    """One episode of the mean action.

    Returns:
        return; success, the maximum over the episode, and D4RL's score: None where the environment has none; length.
    """
    sim = simulator(env, render=video is not None)
    obs, total, success, steps, frames, done = reset_env(sim, seed), 0.0, None, 0, [], False
    while not done:
        if video is not None and steps % RENDER_EVERY == 0:
            frames.append(frame(sim))
        obs, reward, terminated, truncated, info = sim.step(mean_action(actor, obs))
        total, steps = total + float(reward), steps + 1
        success = max(success or 0.0, float(info["success"])) if "success" in info else None
        done = terminated or truncated
    if video is not None:
        write_video(video, frames)
    return {"return": total, "success": success, "score": d4rl_score(env, total), "length": steps}


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    """Write an MP4, atomically."""
    import imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    imageio.mimwrite(partial, frames, fps=20, macro_block_size=8)
    partial.replace(path)


def try_rendering(env: str) -> str:
    """Empty, or in a few words why a picture of `env` cannot be made here."""
    sys.unraisablehook = lambda _: None  # a half-made renderer complains when it is collected
    try:
        sim = make(env, render=True)
        reset_env(sim, 0)
        frame(sim)
        return ""
    except Exception as error:  # every OpenGL back end raises its own kind
        return f"{type(error).__name__}: {error}".splitlines()[0]


# ---------------------------------------------------------------- worker processes
def available_cpus() -> int:
    """Cores this process may use: its affinity, bounded by SLURM_CPUS_PER_TASK."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK") or cores)))


class WorkersError(RuntimeError):
    """The worker processes died or hung, and their replacements too."""


class Interrupted(RuntimeError):
    """`stop()` became true while waiting for the workers."""


def _follow_parent(parent: int) -> None:
    """In a worker: leave signals to the parent, and end when it is gone, even by kill -9."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A pool of processes, started at the first use, that runs jobs and hands back their results in order.

    Args:
        count: processes. Each computes on one thread: the pool is what uses the cores.
        stop: asked twice a second; when it returns true the wait ends with `Interrupted`.
    """

    def __init__(self, count: int, stop=lambda: False):
        self.count, self.stop, self.pool = count, stop, None

    def run(self, function, jobs: list[tuple], progress=lambda result: None) -> list:
        """[function(*job) for job in jobs], computed in parallel; `progress(result)` is called as each job ends.

        A pool that breaks (a worker was killed, is out of memory, or hung for EPISODE_TIMEOUT) is replaced once.

        Raises:
            WorkersError: it broke again.  Interrupted: `stop()` became true.
        """
        results: dict[int, object] = {}
        for attempt in (1, 2):
            try:
                self._run(function, jobs, results, progress)
                break
            except (BrokenProcessPool, MemoryError, ImportError, OSError) as error:  # TimeoutError is an OSError
                self.close()
                if attempt == 2:
                    reason = str(error).split(". ")[0]
                    raise WorkersError(f"worker processes failed twice ({type(error).__name__}: {reason})") from error
        return [results[i] for i in range(len(jobs))]

    def _run(self, function, jobs, results, progress) -> None:
        if self.pool is None:
            from loky import ProcessPoolExecutor  # its workers do not import the main script, hence not torch

            one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
            self.pool = ProcessPoolExecutor(self.count, env=one, initializer=_follow_parent, initargs=(os.getpid(),))
        pending = {self.pool.submit(function, *job): i for i, job in enumerate(jobs) if i not in results}
        last = time.monotonic()
        while pending:
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                results[pending.pop(future)] = future.result()
                last = time.monotonic()
                progress(future.result())
            if pending and self.stop():
                self.close()
                raise Interrupted
            if time.monotonic() - last > EPISODE_TIMEOUT:
                raise TimeoutError(f"no episode finished within {EPISODE_TIMEOUT} s")

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, kill_workers=True)
            self.pool = None


def require_rendering(workers: Workers, env: str, flag: str = "--capture-video") -> None:
    """Raises InputError where pictures of `env` cannot be made; tried in a worker, since OpenGL may end its process."""
    try:
        why = workers.run(try_rendering, [(env,)])[0]
    except WorkersError:
        why = "the process ended"
    if why:
        mend = "install libegl1 and libgl1-mesa-dri, or libosmesa6, and source setup_shell.sh again"
        raise InputError(f"{flag}: MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} cannot render ({why}); {mend}")


def evaluate(
    workers: Workers, env: str, actors: list[dict[str, np.ndarray]], seeds: list[int], step: int, episodes: int,
    videos: list[Path] | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Evaluate one actor a seed for `episodes` episodes each, spread over the workers.

    Episode i of seed k at step t starts from the goal drawn by (k, t, i): fresh at every evaluation, the same however
    many workers there are and whichever seeds are trained beside it.

    Returns:
        For each seed: episodes, return_mean, return_std, success, score (None where there is none), length.
    """
    jobs = [
        (env, actor, seed_of(seed, step, i), videos[k] if videos and i == 0 else None)
        for k, (actor, seed) in enumerate(zip(actors, seeds, strict=True)) for i in range(episodes)
    ]  # fmt: skip
    results, rows = workers.run(rollout, jobs), []
    for k in range(len(seeds)):
        part = results[k * episodes : (k + 1) * episodes]
        column = {name: [r[name] for r in part] for name in part[0]}
        mean = {name: None if None in column[name] else float(np.mean(column[name])) for name in column}
        spread = float(np.std(column["return"]))
        rows.append({"episodes": episodes, "return_mean": mean.pop("return"), "return_std": spread, **mean})
    return rows
