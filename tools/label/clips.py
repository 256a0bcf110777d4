"""The videos of segments: a segment is replayed in the simulator, which proves itself by the recorded observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import suites
from common.errors import Interrupted, WorkersError
from common.rollouts import simulator, write_video
from common.suites.base import Episode, Task
from common.workers import Workers
from tools.label.questions import Pairs

FPS = 8
"""frames a second"""
REPLAY_GAP = 1e-3
"""largest difference of a replayed observation from the recorded one: another processor rounds differently"""


def render_clip(task: Task, episode: Episode, first: int, steps: int, frames: int, path: Path) -> str:
    """Write a video of `frames` states, evenly spaced over steps `first` to `first + steps - 1` of a recorded episode.

    Returns:
        Empty, or in a few words why there is none.
    """
    sim, pictures = simulator(task, True), []
    wanted = set(np.linspace(first, first + steps - 1, min(frames, steps)).round().astype(int))
    for t, obs in zip(range(first, first + steps), suites.SUITES[task.suite].replay(sim, episode, first), strict=False):
        gap = np.abs(obs - episode.obs[t]).max()
        if not gap <= REPLAY_GAP:
            return f"the replay of an episode differs from its recording by {gap:.2g} at step {t}"
        if t in wanted:
            pictures.append(sim.unwrapped.render())
    write_video(path, pictures, FPS)
    return ""


class Clips:
    """The videos of pairs, rendered by worker processes in the order of the questions, and kept on disk."""

    def __init__(self, task: Task, episodes: list[Episode], pairs: Pairs, folder: Path, frames: int, workers: Workers):
        self.task, self.episodes, self.pairs, self.folder = task, episodes, pairs, folder
        self.frames, self.workers = frames, workers
        self.failed: dict[Path, str] = {}  # why there will be no video

    def paths(self, pair: int) -> list[Path]:
        """Where the videos of the pair's two segments are, or will be."""
        return [self.folder / f"episode-{episode}_first-{first}_steps-{self.pairs.steps}_frames-{self.frames}.webm"
                for episode, first in self.pairs.segments[pair]]  # fmt: skip

    def render(self, pairs: list[int]) -> None:
        """Render the videos that are missing."""
        jobs = [(self.task, self.episodes[episode], first, self.pairs.steps, self.frames, path)
                for pair in dict.fromkeys(pairs)  # one may be among them twice
                for path, (episode, first) in zip(self.paths(pair), self.pairs.segments[pair], strict=True)
                if not path.exists()]  # fmt: skip
        try:
            said = self.workers.run(render_clip, jobs)
            self.failed |= {path: why for (*_, path), why in zip(jobs, said, strict=True) if why}
        except (WorkersError, OSError) as error:
            self.failed |= {path: str(error) for *_, path in jobs if not path.exists()}
        except Interrupted:
            pass

    def render_all(self, order: list[int]) -> None:
        """Render the pairs in `order`, those of a few at a time, so that what fails is known early."""
        each = max(1, self.workers.count)
        for i in range(0, len(order), each):
            self.render(order[i : i + each])
            if self.workers.stop():
                return
