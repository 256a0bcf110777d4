"""The videos of segments: replayed in the simulator, which proves itself by the recorded observations, or cut from the
videos of whole episodes that lie beside the dataset, FILE.videos/episode-N.webm or .mp4, one frame a step.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from common import suites
from common.arrays import read_arrays
from common.errors import InputError, Interrupted, WorkersError, first_line
from common.rollouts import REPLAY_GAP, count_frames, replay_error, simulator, write_video
from common.suites.base import Episode, Task
from common.suites.suite import videos_of
from common.workers import Workers
from tools.label.questions import Pairs

FPS = 8
"""frames a second"""
EXAMPLE = 4
"""segments that the example is as long as, at most: its last ones"""
WAY_OUT = "record it with --video of tools.record, and it need not replay"
UNTIMED = ["-fps_mode", "passthrough"]
"""ffmpeg's option for every frame once, whatever its time"""


# ---------------------------------------------------------------- where the pictures come from
def task_of(env: str, names: tuple[str, ...]) -> Task:
    """The task of --env and the first --dataset. Where it has videos no simulator is made: it may be a real robot's.

    Raises:
        InputError: neither says the environment, or there is no such one.
    """
    if env and not any(map(suites.env_of, names)):  # its own dataset says nothing that it does not
        names = tuple(name for name in names if Path(name).exists() or suites.identify(env)[1] != name)
    if not names or any(map(suites.env_of, names)):
        return suites.resolve(env or ("" if names else "drawer-open-v2"), dataset=names)
    path = Path(names[0])
    filmed = videos_of(path).is_dir()
    arrays = read_arrays(path, lambda name: filmed and name in ("obs", "action"))
    protocol = arrays.get("protocol", {})  # an NPZ has none
    env = env or protocol.get("env", "")
    limit = protocol.get("max_episode_steps", 0)
    limit = limit if isinstance(limit, int) else 0
    if not (env and isinstance(env, str)):
        raise InputError(f"--env: {path} does not say which environment it is of; name that")
    if filmed and all(arrays.get(name, np.empty(0)).ndim == 2 for name in ("obs", "action")):
        try:
            suite, env = suites.identify(env)
        except InputError:
            suite = "gym"  # nobody has a simulator of it
        keys = tuple(protocol.get("keys", ()))
        return Task(suite, env, arrays["obs"].shape[1], arrays["action"].shape[1], limit, keys=keys)
    return suites.resolve(env, limit)


def read_source(datasets: list[Path], task: Task) -> tuple[list[Episode], list[Path]]:
    """The episodes of all datasets, and the video of each where some lie beside them, else none. Policies of two files
    count as different ones.

    Raises:
        InputError: a dataset is wrong or does not replay; the videos are not those of its episodes.
    """
    if len(datasets) == 1:
        return read_file(datasets[0], task)
    episodes, videos, policies = [], [], 0
    for dataset in datasets:
        own, found = read_file(dataset, task)
        if episodes and bool(found) != bool(videos):
            has = f"has {'' if found else 'no '}videos beside it, unlike {datasets[0]}"
            raise InputError(f"--dataset {dataset}: {has}; bring them for all files, or move them away to replay all")
        episodes += [dataclasses.replace(e, policy=policies + (e.policy or 0)) for e in own]
        videos, policies = videos + found, 1 + max(e.policy for e in episodes)
    return episodes, videos


def read_file(dataset: Path, task: Task) -> tuple[list[Episode], list[Path]]:
    """Those of one dataset."""
    episodes, folder = suites.SUITES[task.suite].read_episodes(dataset, task), videos_of(dataset)
    if not folder.is_dir():
        return episodes, []
    found = {int(match[1]): path for path in folder.iterdir()
             if (match := re.fullmatch(r"episode-(\d+)\.(webm|mp4)", path.name))}  # fmt: skip
    if found.keys() != set(range(len(episodes))):
        wrong = min(found.keys() ^ set(range(len(episodes))))
        raise InputError(f"{folder}: has {'a' if wrong in found else 'no'} video of episode {wrong}, the dataset has "
                         f"episodes 0 to {len(episodes) - 1}; bring one of each, episode-N.webm or .mp4, or move the "
                         "folder away to replay them")  # fmt: skip
    return episodes, [found[number] for number in range(len(episodes))]


def check_videos(videos: list[Path], episodes: list[Episode], numbers: list[int], workers: Workers) -> None:
    """Raises InputError where a video of the episodes `numbers` has not one frame a step, and maybe one of its end."""
    for number, frames in zip(numbers, workers.run(count_frames, [(videos[n],) for n in numbers]), strict=True):
        steps = len(episodes[number].action)
        if frames not in (steps, steps + 1):
            said = f"has {frames} frames" if isinstance(frames, int) else f"cannot be read ({frames})"
            raise InputError(f"{videos[number]}: {said}, and its episode {steps} steps; bring one with a frame a step")


# ---------------------------------------------------------------- a clip, inside a worker
def seconds_of_step(task: Task) -> float | None:
    """Simulated time of a step, where the environment says it."""
    sim = simulator(task, True).unwrapped
    fps = sim.metadata.get("render_fps")
    dt = getattr(sim, "dt", None) or (1 / fps if fps else None)
    return float(dt) if isinstance(dt, int | float | np.number) and 0 < dt < np.inf else None


def replayed(task: Task, episode: Episode, first: int, wanted: set[int]) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) of the steps `wanted`. ValueError: the replay is not what was recorded."""
    sim, last = simulator(task, True), max(wanted)
    for t, obs in zip(range(first, last + 1), suites.SUITES[task.suite].replay(sim, episode, first), strict=False):
        gap = replay_error(obs, episode.obs[t])
        if not gap <= REPLAY_GAP:
            why = "the environment was changed since" + ", or does not follow reset(seed)" * ("seed" in episode.state)
            raise ValueError(f"the replay of an episode differs from its recording by {gap:.2g} at step {t}: {why}")
        if t in wanted:
            yield sim.unwrapped.render()


def cut(video: Path, wanted: set[int]) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) of the frames `wanted`."""
    reader = imageio_ffmpeg.read_frames(str(video), output_params=UNTIMED)
    width, height = next(reader)["size"]
    for t, frame in enumerate(reader):
        if t in wanted:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
        if t >= max(wanted):
            break
    reader.close()


def make_clip(task: Task, episode: Episode, first: int, steps: int, frames: int, path: Path,
              video: Path | None = None) -> str:  # fmt: skip
    """Write a video of `frames` states, evenly spaced over steps `first` to `first + steps - 1` of a recorded episode.

    Args:
        video: of the whole episode, to cut from; None: replay.

    Returns:
        Empty, or in a few words why there is none.
    """
    wanted = set(np.linspace(first, first + steps - 1, min(frames, steps)).round().astype(int).tolist())
    try:
        pictures = list(cut(video, wanted) if video else replayed(task, episode, first, wanted))
        made = path.with_name(f".made-{os.getpid()}-{path.name}")
        write_video(made, pictures, FPS)
        if count_frames(made) != len(pictures):  # ffmpeg does not tell of a full disk
            made.unlink(missing_ok=True)
            return "its video could not be written whole; is the disk full?"
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the environment raises, or frames that are none
        return first_line(error)
    made.replace(path)
    return ""


class Clips:
    """The videos of pairs, made by worker processes in the order of the questions, and kept on disk.

    Args:
        frames: of a segment.  videos: of each episode, to cut from; empty: replay.  example: an episode shown as a good
        one, None: there is none.
    """

    def __init__(self, task: Task, episodes: list[Episode], pairs: Pairs, folder: Path, frames: int, workers: Workers,
                 videos: list[Path] = (), example: int | None = None):  # fmt: skip
        self.task, self.episodes, self.pairs, self.folder = task, episodes, pairs, folder
        self.frames, self.workers, self.videos = frames, workers, videos
        self.failed: dict[Path, str] = {}  # why there will be no video
        self.example = None if example is None else self.end_of(example)

    def end_of(self, episode: int) -> tuple[int, int, int, int]:
        """The last EXAMPLE segments of an episode, as fast as a segment: episode, first step, steps, frames."""
        length, steps = len(self.episodes[episode].action), self.pairs.steps
        shown = min(length, EXAMPLE * steps)
        return episode, length - shown, shown, max(2, round(shown * min(self.frames, steps) / steps))

    def clips(self, pair: int) -> list[tuple[int, int, int, int]]:
        """Of the pair's two segments: episode, first step, steps, frames. An episode that is shorter than another has
        fewer frames, and so the pace of all.
        """
        found, longest = [], self.pairs.steps
        for e, t in self.pairs.segments[pair].tolist():
            steps = min(longest, len(self.episodes[e].action) - t)
            found.append((e, t, steps, max(2, round(self.frames * steps / longest))))
        return found

    def path(self, episode: int, first: int, steps: int, frames: int) -> Path:
        """Where a clip is, or will be."""
        return self.folder / f"episode-{episode}_first-{first}_steps-{steps}_frames-{frames}.webm"

    def paths(self, pair: int) -> list[Path]:
        """Where the videos of the pair's two segments are, or will be."""
        return [self.path(*clip) for clip in self.clips(pair)]

    def render(self, clips: list[tuple[int, int, int, int]]) -> None:
        """Make the clips that are missing."""
        jobs = [(self.task, self.episodes[clip[0]], *clip[1:], self.path(*clip),
                 self.videos[clip[0]] if self.videos else None)
                for clip in dict.fromkeys(clips) if not self.path(*clip).exists()]  # fmt: skip
        try:
            said = self.workers.run(make_clip, jobs)
            self.failed |= {path: why for (*_, path, _), why in zip(jobs, said, strict=True) if why}
        except (WorkersError, OSError) as error:
            self.failed |= {path: str(error) for *_, path, _ in jobs if not path.exists()}
        except Interrupted:
            pass

    def render_all(self, order: list[int]) -> None:
        """Make the example and the pairs in `order`, a few at a time, so that what fails is known early."""
        each, example = max(1, self.workers.count), [self.example] if self.example else []
        for i in range(0, len(order), each):
            if self.workers.stop():
                return
            self.render(example + [clip for pair in order[i : i + each] for clip in self.clips(pair)])
            example = []
