"""Episodes and their evaluation over worker processes, and videos.

Nothing here imports torch, so that workers that build data start in a second and stay small.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np

from common import suites
from common.errors import InputError, WorkersError, first_line, simulator_remedy
from common.seeds import start_of_evaluation
from common.suites.base import Task
from common.workers import Jobs, Workers

RENDER_EVERY = 4
"""steps between two frames of a video: rendering without a GPU takes about 0.2 s a frame"""
VP9 = "-crf 30 -b:v 0 -deadline realtime -cpu-used 8".split()
"""ffmpeg's options for a WebM. Browsers bring VP9 along; for H.264 Firefox on Linux needs the system's libavcodec"""
REPLAY_GAP = 1e-3
"""largest difference of a replay from what was recorded: another processor rounds differently"""
Act = Callable[[np.ndarray], np.ndarray]  # what acts in an episode: (O,) -> (A,), such as common.actors.Actor


# ---------------------------------------------------------------- episodes, inside a worker
@functools.cache
def simulator(task: Task, render: bool) -> gymnasium.Env:
    """`suites.make`, once a worker."""
    return suites.make(task, render)


def one(value, what: str) -> float:
    """A number, also as an array of one element. InputError: it is none."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise InputError(f"{what} is {value!s:.80} ({type(value).__name__}); the environment must give one number")
    return float(array.item())


def success_of(info: dict) -> float | None:
    """What a step's `info` says of success, also where a wrapper keeps the episode's last one; None: nothing."""
    for place in (info, info.get("final_info")):
        for name in ("success", "is_success"):
            if isinstance(place, dict) and place.get(name) is not None:
                return one(place[name], f"info[{name!r}]")
    return None


def rollout(task: Task, act: Act, seed: int, video: Path | None = None) -> dict:
    """One episode. It ends at the first observation, action or reward that is not finite, and its return is NaN.

    Returns:
        return; success, the maximum over the episode, and D4RL's score: None where the environment says none; length;
        fault: empty, or what was not finite, and when.
    """
    sim = simulator(task, video is not None)
    obs, total, success, steps, frames, done = sim.reset(seed=seed)[0], 0.0, None, 0, [], False
    fault = not_finite(0, observation=obs)
    while not (done or fault):
        if video is not None and steps % RENDER_EVERY == 0:
            frames.append(sim.render())
        action = act(obs)
        if fault := not_finite(steps, action=action):
            break
        obs, reward, terminated, truncated, info = sim.step(action)
        total, steps = total + one(reward, "the reward"), steps + 1
        if (now := success_of(info)) is not None:
            success = max(success or 0.0, now)
        done = bool(one(terminated, "terminated") or one(truncated, "truncated"))
        fault = not_finite(steps, observation=obs, reward=reward)
    total = float("nan") if fault else total
    if frames:  # none of an episode that a fault ended at once
        write_video(video, frames)
    return {"return": total, "success": success, "score": suites.score(task, total), "length": steps, "fault": fault}


def not_finite(step: int, **parts) -> str:
    """Which of `parts` is not finite, in words, or empty."""
    bad = [name for name, x in parts.items() if not np.isfinite(x).all()]
    return f"the {bad[0]} of step {step} is not finite" if bad else ""


def columns(episodes: list[dict]) -> dict[str, np.ndarray | None]:
    """What `rollout` says of several episodes, column by column, (episodes,) each; None where the environment has none.

    Where any of them showed a success, one that did not had none: 0.
    """
    table: dict[str, np.ndarray | None] = {}
    for name in ("return", "success", "score", "length"):
        values = [episode[name] for episode in episodes]
        said = any(value is not None for value in values)
        table[name] = np.array([value or 0.0 for value in values]) if said else None
    return table


def write_video(path: Path, frames: list[np.ndarray], fps: int = 20) -> None:
    """Write an MP4 (H.264) or a WebM (VP9), atomically."""
    import imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    webm = {"codec": "libvpx-vp9", "quality": None, "output_params": VP9} if path.suffix == ".webm" else {}
    odd = [(0, n % 2) for n in np.shape(frames[0])[:2]] if frames else []  # the codecs want an even size
    frames = [np.pad(frame, [*odd, (0, 0)], "edge") for frame in frames] if np.any(odd) else frames
    imageio.mimwrite(partial, frames, fps=fps, macro_block_size=2, **webm)
    partial.replace(path)


def count_frames(path: Path) -> int | str:
    """Frames of a video, or in a few words why it cannot be read."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except Exception as error:  # RuntimeError and others, with all that ffmpeg said
        return first_line(error)


def replay_error(obs: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference of replayed observations from the recorded ones, relative to numbers beyond 1; of a right
    replay at most REPLAY_GAP.
    """
    return float((np.abs(obs - recorded) / np.maximum(1, np.abs(recorded))).max())


def try_rendering(task: Task) -> str:
    """Empty, or in a few words why a picture of `task` cannot be made here, and the way out."""
    sys.unraisablehook = lambda _: None  # a half-made renderer complains when it is collected
    try:
        sim = suites.make(task, render=True)
        sim.reset(seed=0)
        picture = np.asarray(sim.render())
        if picture.ndim == 3 and picture.shape[-1] == 3 and picture.dtype == np.uint8:
            return ""
        said = f"it renders {'nothing' if picture.dtype == object else f'{picture.shape} {picture.dtype}'}"
    except InputError as error:
        return str(error).removeprefix(f"--env {task.env}: ")
    except Exception as error:  # every OpenGL back end raises its own kind
        said = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{said}; {simulator_remedy(said) or 'its render() must work here'}"


def require_rendering(workers: Workers, task: Task, flag: str = "--capture-video") -> None:
    """Raises InputError where `task` cannot be rendered; tried in a worker, since OpenGL may end its process."""
    try:
        why = workers.run(try_rendering, [(task,)])[0]
    except WorkersError as error:
        why = f"{error}; {simulator_remedy('OpenGL')}"
    if why:
        raise InputError(f"{flag}: cannot render: {why}")


def evaluate(workers: Workers, task: Task, actors: list[Act], seeds: list[int], step: int, episodes: int,
             videos: list[Path | None] | None = None, at_once: int = 0) -> Jobs:  # fmt: skip
    """Evaluate one actor a seed for `episodes` episodes each, spread over the workers; two of a seed that comes twice.

    Episode i of seed k at step t starts from the state drawn by (k, t, i): fresh at every evaluation, the same however
    many workers there are and whichever seeds are trained beside it.

    Args:
        at_once: episodes beside the caller until it asks for the result.

    Returns:
        Its result, for each seed: episodes, return_mean, return_std, success, score (None where there is none), length;
        faults: in words, what was not finite in which episode.
    """
    starts = [[start_of_evaluation(seed, step, i) for i in range(episodes)] for seed in seeds]
    jobs = [
        (task, actor, start, videos[k] if videos and i == 0 else None)
        for k, actor in enumerate(actors) for i, start in enumerate(starts[k])
    ]  # fmt: skip

    def rows(results: list[dict]) -> list[dict]:
        rows = []
        for k in range(len(seeds)):
            part = results[k * episodes : (k + 1) * episodes]
            table = columns(part)
            mean = {name: None if column is None else float(column.mean()) for name, column in table.items()}
            spread = float(np.std(table["return"]))
            faults = [
                f"episode {i} (reset(seed={start})): {episode['fault']}"
                for i, (start, episode) in enumerate(zip(starts[k], part, strict=True))
                if episode["fault"]
            ]
            row = {"episodes": episodes, "return_mean": mean.pop("return"), "return_std": spread, **mean}
            rows.append(row | {"faults": faults})
        return rows

    return Jobs(workers, rollout, jobs, at_once, rows)
