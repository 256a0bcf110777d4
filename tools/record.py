"""Record episodes of an environment with policies of any kind, as an offline dataset to label and to train on.

    python -m tools.record --env my_package:My-v0 --policies random my_package:controller --episodes 50 --out mine.hdf5
    python -m tools.record --env drawer-open-v2 --policies scripted random --noise 0.5 --out drawer.hdf5

The file has the layout of docs/data.md. Every episode keeps the seed of its `reset`, from which tools.label replays it;
where an environment does not replay, `--video` films each episode instead. Interrupted, it writes nothing.
"""

from __future__ import annotations

import importlib
import random
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import gymnasium
import numpy as np
import tyro
from tqdm import tqdm

from common import suites
from common.arrays import fingerprint, write_hdf5
from common.cli import Signals, parse_args, user_errors
from common.errors import InputError, Interrupted, said
from common.locks import locked
from common.rollouts import (
    REPLAY_GAP,
    Act,
    count_frames,
    not_finite,
    one,
    replay_error,
    require_rendering,
    simulator,
    success_of,
    write_video,
)
from common.seeds import RECORD, seed_of
from common.suites.base import ACTION_LIMIT, SCHEMA, Episode, Task
from common.suites.gym import see_modules_here
from common.suites.suite import read_rows, videos_of
from common.workers import Workers, available_cpus
from tools.evaluate import read_actor, require_fit


@dataclass
class RecordArgs:
    """Record episodes of an environment as an offline dataset."""

    env: str
    """environment: a Gymnasium id, one's own as my_package:My-v0, or one of MetaWorld, robomimic or D4RL"""
    out: Path
    """file (.hdf5) to write; it must not be there, but for --append"""
    policies: tuple[str, ...] = ("random",)
    """any of: random; module:name, a function of the flat observation, or a class that has reset() and is called with
    it, made anew for each episode: both return the action in the environment's OWN units; a run's best.pt or final.pt;
    scripted (MetaWorld)"""
    episodes: Annotated[int, "[1, inf)"] = 50
    """episodes of each policy; the policies share their start states"""
    noise: Annotated[float, "[0, inf)"] = 0.0
    """standard deviation of the noise on all actions but random's, where [-1, 1] is an action's range"""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """of the start states, the random actions and the noise"""
    append: bool = False
    """add to --out, which the same flags have recorded; the policies may be others. Those that are in it go on with new
    start states"""
    reward: bool = True
    """keep the environment's rewards; without them the file trains all methods that need none"""
    video: bool = False
    """film every step into OUT.videos/episode-N.webm, for an environment that does not replay from its seeds"""
    max_episode_steps: Annotated[int, "[0, inf)"] = 0
    """steps of an episode; 0: the environment's own limit"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes; 0: one a core. The file does not depend on it"""


# ---------------------------------------------------------------- policies
def load(policy: str):
    """What module:name names. InputError: it cannot be imported, is not there, or cannot be called."""
    see_modules_here()
    module, colon, name = policy.rpartition(":")
    if not colon:
        raise InputError(f"--policies {policy}: no such policy; take random, scripted, module:name, or a best.pt or "
                         "final.pt that is there")  # fmt: skip
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"--policies {policy}: the module {module} cannot be imported ({said(error)}); "
                         "start in its folder, or put that on PYTHONPATH") from None  # fmt: skip
    if not callable(found):
        what = "has no" if found is None else "cannot call its"
        raise InputError(f"--policies {policy}: {module} {what} {name}; it must be a function of the observation, or a "
                         "class with reset() and __call__(obs)")  # fmt: skip
    return found


def draw_alike(policy, key: tuple[int, ...]) -> None:
    """Give all random numbers that a policy is likely to draw to the episode of `key`, in whatever process it acts:
    Python's, numpy's and torch's, and those of the generators among the policy's attributes and its module's globals.
    """
    random.seed(seed_of(*key))
    np.random.seed(seed_of(*key))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed_of(*key))
    module = sys.modules.get(getattr(policy, "__module__", None) or "")
    places = [getattr(place, "__dict__", {}) for place in (policy, module)]
    found = [place[name] for place in places for name in sorted(place) if isinstance(place[name], np.random.Generator)]
    for k, generator in enumerate(found, start=1):  # 0 is the noise's
        generator.bit_generator.state = type(generator.bit_generator)([*key, k]).state


def own_policy(name: str, task: Task, key: tuple[int, ...]) -> Act:
    """The policy of module:name: obs (O,) -> action (A,), in units of [-1, 1].

    Raises:
        InputError: it fails, or returns anything but A finite numbers; when it acts, too.
    """
    shape, step = (task.act_dim,), 0
    low, high = (np.array(bound or np.full(shape, fallback)) for bound, fallback in ((task.low, -1), (task.high, 1)))

    def guarded(what: str, function: Callable, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # whatever the user's code raises
            raise InputError(f"--policies {name}: {what} ({said(error, __file__)}); it takes one "
                             f"argument, the observation ({task.obs_dim},), and returns an action {shape}; a class is "
                             "made without arguments") from None  # fmt: skip

    found = load(name)
    draw_alike(found, key)  # what a class draws when it is made
    policy = guarded("cannot be made", found) if isinstance(found, type) else found
    draw_alike(policy, key)
    guarded("reset() fails", getattr(policy, "reset", lambda: None))

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal step
        action = guarded(f"fails in step {step}", lambda: np.asarray(policy(obs.copy()), np.float64))
        if action.shape != shape:
            raise InputError(f"--policies {name}: returned an action of shape {action.shape} in step {step}, not "
                             f"{shape}; return one number for each of the environment's actions")  # fmt: skip
        if not np.isfinite(action).all():
            raise InputError(f"--policies {name}: its action of step {step} is not finite: {action.tolist()}")
        step += 1
        return 2 * (action - low) / (high - low) - 1

    return act


def policy_of(task: Task, policy: str | Act, sim: gymnasium.Env, key: tuple[int, ...], noise: float) -> Act:
    """What acts in an episode: obs (O,) -> action (A,) about [-1, 1]. `key`: of all that is drawn."""
    rng = np.random.default_rng(key)
    if policy == "random":
        return lambda obs: rng.uniform(-1, 1, task.act_dim)
    if policy == "scripted":
        policy = suites.SUITES[task.suite].scripted(task, sim)
    act = own_policy(policy, task, key) if isinstance(policy, str) else policy
    return (lambda obs: act(obs) + rng.normal(0, noise, task.act_dim)) if noise else act


# ---------------------------------------------------------------- an episode, inside a worker
def record(task: Task, policy: str | Act, key: tuple[int, ...], start: int, noise: float, reward: bool,
           video: Path | None) -> dict:  # fmt: skip
    """One episode of n steps, from `reset(seed=start)`.

    Returns:
        obs (n + 1, O), action (n + 1, A), reward, success, terminal (n + 1,), zeros in their last row; success is None
        where the environment says nothing of it; outside: steps whose action was out of bounds, and was clipped.

    Raises:
        InputError: the policy fails, or the environment gives what is not finite.
    """
    sim = simulator(task, video is not None)
    seen = [sim.reset(seed=start)[0]]
    act, rows, frames, done, outside = policy_of(task, policy, sim, key, noise), [], [], False, 0
    fault = not_finite(0, observation=np.float32(seen[0]))
    while not (done or fault):
        if video is not None:
            frames.append(sim.render())
        wanted = act(seen[-1])
        outside += bool((np.abs(wanted) > 1 + 1e-3).any())
        action = np.clip(wanted, -ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
        obs, gained, terminated, truncated, info = sim.step(action)
        gained = one(gained, "the reward") if reward else 0.0
        seen.append(obs)
        rows.append((action, gained, success_of(info), one(terminated, "terminated")))
        fault = not_finite(len(rows), observation=np.float32(obs), reward=np.float32(gained))
        done = bool(rows[-1][-1] or one(truncated, "truncated"))
    if fault:
        raise InputError(f"--env {task.env}: {fault}, in the episode of reset(seed={start}); correct the environment")
    if video is not None:
        film(video, [*frames, sim.render()])
    actions, rewards, successes, terminals = zip(*rows, strict=True)
    said = any(value is not None for value in successes)
    columns = {"action": actions, "reward": rewards, "success": [value or 0.0 for value in successes] if said else None,
               "terminal": terminals}  # fmt: skip
    columns = {name: None if x is None else np.append(x, np.zeros_like(x[:1]), 0).astype(np.float32)
               for name, x in columns.items()}  # fmt: skip
    return {"obs": np.float32(seen), "outside": outside} | columns


def film(path: Path, frames: list[np.ndarray]) -> None:
    """Write a video of whole frames. InputError: it has fewer; ffmpeg does not tell of a full disk."""
    write_video(path, frames)
    if (written := count_frames(path)) != len(frames):
        written = written if isinstance(written, int) else 0  # not even a video
        raise InputError(f"--video: {written} of {len(frames)} frames were written to {path}; is the disk full? Make "
                         "room there, or choose another --out")  # fmt: skip


def replay_gap(task: Task, episode: Episode) -> float:
    """The largest such difference in an episode."""
    replayed = np.stack(list(suites.SUITES[task.suite].replay(simulator(task, False), episode, 0)))
    return replay_error(replayed, episode.obs)


# ---------------------------------------------------------------- the file
def protocol_of(args: RecordArgs, task: Task) -> dict:
    """How the episodes are recorded. Two recordings that differ in more than their policies are not of one file."""
    more = {"keys": list(task.keys)} if task.keys else {}
    more |= {"bounds": [list(task.low), list(task.high)]} if task.low else {}
    if actors := {name: fingerprint(Path(name)) for name in args.policies if name.endswith(".pt")}:
        more["actors"] = actors
    return {"schema": SCHEMA, "env": task.env, **more, "policies": list(args.policies), "noise": args.noise,
            "max_episode_steps": task.max_steps, "reward": args.reward, "video": args.video}  # fmt: skip


def read_old(args: RecordArgs, task: Task, protocol: dict) -> dict[str, np.ndarray]:
    """What --append adds to; empty without it. InputError: --out is there without it, or was recorded otherwise."""
    path = args.out
    if not args.append:
        if path.exists():
            raise InputError(f"--out {path}: is there already; name another file, or add to it with --append")
        if not args.video and any(videos_of(path).glob("episode-*")):
            raise InputError(f"{videos_of(path)}: holds videos of other episodes; move them away")
        return {}
    old = read_rows(path, task)
    if not {"episodes/seed", "episodes/policy"} <= old.keys() or "policies" not in old["protocol"]:
        raise InputError(f"--append: {path} was not recorded by this command; name a new file with --out")
    for name in protocol.keys() - {"policies", "actors", "bounds"}:  # of bounds an older file says nothing
        if old["protocol"].get(name) != protocol[name]:
            raise InputError(f"--append: {path} was recorded with {name} {old['protocol'].get(name)}, not "
                             f"{protocol[name]}; give the same flags, or name a new file with --out")  # fmt: skip
    before, actors = old["protocol"].get("actors", {}), protocol.get("actors", {})
    if changed := [name for name, mark in actors.items() if before.get(name, mark) != mark]:
        raise InputError(f"--append: {changed[0]} is another actor now than the one in {path}; copy it to another name")
    protocol |= {"actors": before | actors} if before or actors else {}
    protocol["policies"] = list(dict.fromkeys([*old["protocol"]["policies"], *args.policies]))
    return old


def joined(old: dict[str, np.ndarray], parts: list[dict], seeds: list[int], policy: list[int], reward: bool) -> dict:
    """The arrays of the file: those of `old`, and the episodes `parts` behind them."""
    rows, before = np.array([len(part["obs"]) for part in parts]), len(old.get("obs", ()))
    names = ["obs", "action", "terminal", *(["reward"] if reward else [])]
    if "success" in old or any(part["success"] is not None for part in parts):
        names.append("success")
    # where the others say of success, an episode that says nothing had none
    new = {name: np.concatenate([np.zeros(len(part["obs"]), np.float32) if part[name] is None else part[name]
                                 for part in parts]) for name in names}  # fmt: skip
    new |= {"episodes/row": before + np.cumsum(rows) - rows, "episodes/length": rows - 1,
            "episodes/seed": np.array(seeds, np.int64), "episodes/policy": np.array(policy, np.int64)}  # fmt: skip
    blank = np.zeros(before, np.float32)
    return {name: np.concatenate([old.get(name, blank), x]) if old else x for name, x in new.items()}


def put(made: Path, out: Path) -> None:
    """Move what was written into the folder `made` where it belongs: the file last, so that its videos are there."""
    for video in made.glob("*.webm"):
        videos_of(out).mkdir(exist_ok=True)
        video.replace(videos_of(out) / video.name)
    (made / out.name).replace(out)


def record_all(args: RecordArgs, task: Task, policies: list[str | Act], workers: Workers) -> list[int]:
    """Record, and write --out. Returns the steps at which each policy's actions were out of bounds."""
    protocol = protocol_of(args, task)
    old, made = read_old(args, task, protocol), args.out.with_name(f".{args.out.name}.partial")
    number = [protocol["policies"].index(name) for name in args.policies]
    known, seeds = old.get("episodes/policy", np.zeros(0)), old.get("episodes/seed", np.zeros(0))
    first = len(np.unique(seeds)) if np.isin(number, known).any() else 0  # policies that are new share the old starts
    jobs, where = [], []
    for i in range(args.episodes):  # all policies early, so that a wrong one is soon known
        start = seed_of(RECORD, args.seed, first + i, 0)
        for k, policy in enumerate(policies):
            video = made / f"episode-{len(known) + k * args.episodes + i}.webm" if args.video else None
            key = (RECORD, args.seed, number[k], first + i)
            jobs.append((task, policy, key, start, args.noise, args.reward, video))
            where.append((k, i))
    shutil.rmtree(made, ignore_errors=True)  # left by a kill
    try:
        made.mkdir()
        with tqdm(total=len(jobs), desc=f"recording {args.out.name}", unit="episode", disable=None) as bar:
            done = dict(zip(where, workers.run(record, jobs, lambda _: bar.update()), strict=True))
        order = sorted(done)  # by policy, then by start
        starts = {place: job[3] for place, job in zip(where, jobs, strict=True)}
        arrays = joined(old, [done[place] for place in order], [starts[place] for place in order],
                        [number[k] for k, _ in order], args.reward)  # fmt: skip
        write_hdf5(made / args.out.name, arrays, protocol)
        put(made, args.out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return [sum(done[k, i]["outside"] for i in range(args.episodes)) for k in range(len(policies))]


def main(args: RecordArgs) -> None:
    """Record; print what the file holds, and the command that labels it."""
    task = suites.resolve(args.env, args.max_episode_steps)
    if args.out.suffix not in (".hdf5", ".h5"):
        raise InputError(f"--out {args.out}: must end in .hdf5")
    if not args.policies or len(set(args.policies)) < len(args.policies):
        raise InputError(f"--policies {' '.join(args.policies)}: name at least one, and each once")
    policies = [find(policy, task) for policy in args.policies]
    read_old(args, task, protocol_of(args, task))  # before a simulator starts
    with Signals() as signals, closing(Workers(args.workers or available_cpus(), lambda: bool(signals))) as workers:
        try:
            if args.video:
                require_rendering(workers, task, "--video")
            with locked(args.out, workers.stop, "--out"):
                outside = record_all(args, task, policies, workers)
        except Interrupted:
            print(f"interrupted: {args.out} is as it was", file=sys.stderr)
            raise SystemExit(signals.exit_status) from None
        with suppress(Interrupted):
            say(args, task, outside, workers)


def find(policy: str, task: Task) -> str | Act:
    """What a worker makes a policy of: its name, or a run's actor. InputError: there is none of that name."""
    if policy in ("random", "scripted"):
        return policy
    if not policy.endswith(".pt"):
        load(policy)
        return policy
    saved, actor = read_actor(Path(policy))
    if (own := suites.identify(saved["env"])[1]) != task.env:
        raise InputError(f"--policies {policy}: acts in {own}, not in {task.env}; name an actor of this environment")
    require_fit(Path(policy), actor, task)
    return actor


def say(args: RecordArgs, task: Task, outside: list[int], workers: Workers) -> None:
    """What was recorded, what is wrong with it, and what comes next."""
    suite = suites.SUITES[task.suite]
    print(args.out, *suite.describe(args.out, task), sep="\n")
    for name, steps in zip(args.policies, outside, strict=True):
        if steps and not args.noise:
            bounds = f", {list(task.low)} to {list(task.high)}" if task.low else ""
            print(f"--policies {name}: {steps} of its actions were outside the environment's own bounds{bounds}, and "
                  "were clipped", file=sys.stderr)  # fmt: skip
    if not args.video:
        gap = workers.run(replay_gap, [(task, suite.read_episodes(args.out, task)[-1])])[0]
        if not gap <= REPLAY_GAP:
            print(f"{args.out}: its last episode does not replay from its seed: an observation differs by {gap:.2g}. "
                  "To label it, record with --video", file=sys.stderr)  # fmt: skip
            return
    print(shlex.join(["python", "-m", "tools.label", "--env", task.env, "--dataset", str(args.out)]))


if __name__ == "__main__":
    with user_errors():
        main(parse_args(RecordArgs(tyro.MISSING, tyro.MISSING)))
